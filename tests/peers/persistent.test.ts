// Persistent and replicated databases in clusters of nodes of both kinds: statuses of commits, counters that many clients raise in
// transactions while recoveries run and nodes are killed, and disks that fail. What was acknowledged is there in the end.
// CTDB_SOAK=1 runs the long forms.

import { afterAll, beforeAll, describe, expect, test } from "bun:test"
import { existsSync, readFileSync } from "node:fs"
import { attach, forgetDatabases } from "../../lib/client/attach.ts"
import { Client, ControlError } from "../../lib/client/client.ts"
import { Transaction } from "../../lib/client/transaction.ts"
import { CURRENT_NODE, NodeFlag } from "../../lib/protocol/constants.ts"
import { check, openTdb } from "../../lib/tdb/tdb.ts"
import { type Kind, MixedCluster } from "./nodes.ts"
import { stockInstalled, waitUntil } from "./stock.ts"

const SOAK = process.env.CTDB_SOAK === "1"
const utf8 = new TextEncoder()
const SEQUENCE_KEY = utf8.encode("__db_sequence_number__\0")

function value(rsn: number, data: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(24 + data.length)
  new DataView(bytes.buffer).setUint32(0, rsn, true)
  bytes.set(data, 24)
  return bytes
}

function u64(number: number): Uint8Array {
  const bytes = new Uint8Array(8)
  new DataView(bytes.buffer).setBigUint64(0, BigInt(number), true)
  return bytes
}

const numberOf = (bytes: Uint8Array | undefined): number =>
  bytes === undefined ? 0 : Number(new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(0, true))

/** A commit of one record and the sequence number, without any lock. */
const commitOf = (dbId: number, rsn: number, data: string) => ({
  dbId,
  records: [
    { reqid: 0, key: utf8.encode("key"), data: value(rsn, utf8.encode(data)) },
    { reqid: 0, key: SEQUENCE_KEY, data: value(rsn, u64(rsn)) },
  ],
})

/** Raises the counter of its key once in a transaction. */
async function raise(
  client: Client,
  name: string,
  kind: "persistent" | "replicated",
  key: Uint8Array,
): Promise<number> {
  const database = await attach(client, name, { kind })
  const transaction = await Transaction.start(client, database)
  const next = numberOf(await transaction.fetch(key)) + 1
  await transaction.store(key, u64(next))
  await transaction.commit()
  return next
}

/** A node's own copy of a record's number. */
async function stored(cluster: MixedCluster, pnn: number, name: string, key: Uint8Array): Promise<number> {
  const database = await attach(cluster.client(pnn), name, { kind: "persistent", unhealthy: true })
  return numberOf((await database.localRecord(key))?.slice(24))
}

describe.skipIf(!stockInstalled)("one cluster of both kinds", () => {
  const cluster = new MixedCluster("127.56.51.", ["ours", "stock", "ours"], { lock: true })
  beforeAll(async () => {
    await cluster.startTogether()
    await cluster.allOk()
  }, 60_000)
  afterAll(() => cluster.end(), 60_000)

  test("statuses of commits and updates are stock's", async () => {
    for (const pnn of [0, 1]) {
      const client = await Client.connect({ socket: cluster.node(pnn).socket })
      const dbId = await client.control("DB_ATTACH_PERSISTENT", CURRENT_NODE, `status${pnn}.tdb`)
      const commit = (request: ReturnType<typeof commitOf>, node = CURRENT_NODE) =>
        client.controlStatus("TRANS3_COMMIT", node, request)
      expect(await commit(commitOf(dbId, 1, "one"))).toBe(0)
      // The same again changes nothing and is accepted; other data with an rsn that was used is not, by any node.
      expect(await commit(commitOf(dbId, 1, "one"))).toBe(0)
      expect(await client.controlStatus("UPDATE_RECORD", CURRENT_NODE, commitOf(dbId, 1, "two"))).toBe(1)
      expect(await commit(commitOf(0x12345678, 1, "one"))).toBe(-1)
      expect(await commit(commitOf(dbId, 2, "two"), pnn === 0 ? 2 : 0)).toBe(-1)
      expect(await client.controlStatus("UPDATE_RECORD", CURRENT_NODE, commitOf(0x12345678, 1, "one"))).toBe(-1)
      for (const node of cluster.pnns) {
        expect((await cluster.node(node).tool("getdbseqnum", `status${pnn}.tdb`)).stdout.trim()).toBe("0x1")
      }
      await client.close()
    }
  }, 30_000)

  test("a client that leaves in its commit forces a recovery; all nodes have the same afterwards", async () => {
    const generation = (await cluster.view(0))!.generation
    const client = await Client.connect({ socket: cluster.node(0).socket })
    const dbId = await client.control("DB_ATTACH_PERSISTENT", CURRENT_NODE, "leaver.tdb")
    cluster.node(2).pause()
    const lost = client.controlStatus("TRANS3_COMMIT", CURRENT_NODE, commitOf(dbId, 1, "left")).catch(() => "lost")
    await waitUntil("the commit on node 0", async () => (await stored(cluster, 0, "leaver.tdb", SEQUENCE_KEY)) === 1)
    await client.close()
    await lost
    cluster.node(2).resume()
    await waitUntil(
      "a recovery",
      async () => ((await cluster.view(0))?.generation ?? generation) !== generation,
      40_000,
    )
    await cluster.allOk()
    for (const pnn of cluster.pnns) expect(await stored(cluster, pnn, "leaver.tdb", SEQUENCE_KEY)).toBe(1)
  }, 90_000)

  for (const kind of ["persistent", "replicated"] as const) {
    test(`${kind}: transactions of all nodes and of the stock tool, with recoveries between, are exact`, async () => {
      const name = `count-${kind}.tdb`
      const key = utf8.encode("counter")
      await attach(cluster.client(0), name, { kind })
      let left = false
      const seen: number[] = []
      const count = async (pnn: number) => {
        for (let i = 0; i < 25; i++) seen.push(await raise(cluster.client(pnn), name, kind, key))
      }
      const stockTool = async () => {
        let done = 0
        for (let i = 0; i < 10; i++) {
          const { status } = await cluster.node(i % 3).tool("pstore", name, `stock ${i}`, "x")
          if (status === 0) done++
        }
        return done
      }
      const recoveries = async () => {
        while (!left) {
          await cluster.node(0).tool("recover")
          await Bun.sleep(700)
        }
      }
      const disturbing = recoveries()
      const [, , , stock] = await Promise.all([count(0), count(1), count(2), stockTool()])
      left = true
      await disturbing
      await cluster.allOk()
      expect(stock).toBe(10)
      // Every number once: no commit was lost, none done twice.
      expect(seen.toSorted((a, b) => a - b)).toEqual(Array.from({ length: 75 }, (_, i) => i + 1))
      for (const pnn of cluster.pnns) {
        expect((await cluster.node(pnn).tool("getdbseqnum", name)).stdout.trim()).toBe(`0x${(85).toString(16)}`)
        expect(await stored(cluster, pnn, name, key)).toBe(75)
      }
    }, 120_000)
  }
})

/** A client that counts in transactions, and knows which of its commits were acknowledged, until its node dies. */
async function countUntilDeath(cluster: MixedCluster, pnn: number, name: string, over: () => boolean): Promise<number> {
  let client: Client
  try {
    client = await Client.connect({ socket: cluster.node(pnn).socket, timeoutMs: 20_000 })
  } catch {
    return 0
  }
  let acknowledged = 0
  try {
    while (!over()) acknowledged = await raise(client, name, "persistent", utf8.encode(`counter ${pnn}`))
  } catch (error) {
    if (!(error instanceof ControlError) && !/closed|lost/.test(String(error))) throw error
  }
  // A stock node aborts at its next start if a program still has the volatile file of the old one open.
  await forgetDatabases(client)
  await client.close().catch(() => {})
  return acknowledged
}

/** A stock node ends soon after its start while the event daemon of the killed one is still about. */
async function startAgain(cluster: MixedCluster, pnn: number): Promise<void> {
  const pidfile = `${cluster.base(pnn)}/run/eventd.pid`
  if (cluster.kinds[pnn] === "stock" && existsSync(pidfile)) {
    const pid = Number.parseInt(readFileSync(pidfile, "utf8"), 10)
    await waitUntil("the old event daemon to end", () => Promise.resolve(!existsSync(`/proc/${pid}`)), 30_000)
  }
  await cluster.start(pnn)
}

const compositions: readonly (readonly Kind[])[] = [
  ["ours", "ours", "ours"],
  ["ours", "stock", "ours"],
]
for (const [index, kinds] of compositions.entries()) {
  test.skipIf(!stockInstalled)(
    `${kinds.join()}: kill -9 of nodes during commits, one or all: nothing acknowledged is lost`,
    async () => {
      const cluster = new MixedCluster(`127.56.${52 + index}.`, kinds, { lock: true })
      const name = "killed.tdb"
      const acknowledged = [0, 0, 0]
      const rounds = SOAK ? 100 : 4
      try {
        await cluster.startTogether()
        await cluster.allOk()
        await attach(cluster.client(0), name, { kind: "persistent" })
        for (let round = 0; round < rounds; round++) {
          let over = false
          const clients = cluster.pnns.map((pnn) => countUntilDeath(cluster, pnn, name, () => over))
          await Bun.sleep(300 + ((round * 397) % 500))
          const victims = round % 2 === 0 ? cluster.pnns : [1 + (round % 2)]
          await Promise.all(victims.map((pnn) => cluster.kill(pnn)))
          over = true
          for (const [pnn, last] of (await Promise.all(clients)).entries()) {
            acknowledged[pnn] = Math.max(acknowledged[pnn]!, last)
          }
          for (const pnn of victims) {
            const file = `${cluster.base(pnn)}/persistent/${name}.${pnn}`
            const tdb = openTdb(file)
            expect(check(tdb).ok).toBe(true)
            tdb.close()
          }
          await Promise.all(victims.map((pnn) => startAgain(cluster, pnn)))
          await cluster.allOk(60_000)
          await attach(cluster.client(0), name, { kind: "persistent" })
          const copies = await Promise.all(
            cluster.pnns.map((pnn) =>
              Promise.all(cluster.pnns.map((of) => stored(cluster, pnn, name, utf8.encode(`counter ${of}`)))),
            ),
          )
          for (const copy of copies) {
            expect(copy).toEqual(copies[0]!)
            // The last one, which was not answered any more, may have been done.
            for (const pnn of cluster.pnns) {
              expect(copy[pnn]! - acknowledged[pnn]!).toBeGreaterThanOrEqual(0)
              expect(copy[pnn]! - acknowledged[pnn]!).toBeLessThanOrEqual(1)
              acknowledged[pnn] = copy[pnn]!
            }
          }
        }
        expect(Math.min(...acknowledged)).toBeGreaterThan(0)
      } finally {
        await cluster.end()
      }
    },
    SOAK ? 3_600_000 : 180_000,
  )
}

const STRACE = "/usr/bin/strace"

test.skipIf(!stockInstalled || !existsSync(STRACE))(
  "a disk that fails: the client is told, the database is marked, and goes on when the disk does",
  async () => {
    const cluster = new MixedCluster("127.56.54.", ["ours"], { lock: true })
    try {
      await cluster.startTogether()
      await cluster.allOk()
      const client = cluster.client(0)
      const dbId = await client.control("DB_ATTACH_PERSISTENT", CURRENT_NODE, "failing.tdb")
      const commit = (rsn: number, data: string) =>
        client.controlStatus("TRANS3_COMMIT", CURRENT_NODE, commitOf(dbId, rsn, data))
      expect(await commit(1, "good")).toBe(0)
      const health = async () => (await client.control("DB_GET_HEALTH", CURRENT_NODE, dbId)) ?? ""

      const broken = async (injection: string, during: () => Promise<void>) => {
        const tracer = Bun.spawn(
          [STRACE, "-f", "-o", "/dev/null", "-e", `inject=${injection}`, "-p", String(cluster.node(0).pid)],
          { stdin: "ignore", stdout: "ignore", stderr: "pipe" },
        )
        const reader = tracer.stderr.getReader()
        await reader.read()
        try {
          await during()
        } finally {
          tracer.kill("SIGINT")
          await tracer.exited
        }
      }

      const large = "x".repeat(600_000)
      await broken("fallocate:error=ENOSPC", async () => {
        const error = await client.control("TRANS3_COMMIT", CURRENT_NODE, commitOf(dbId, 2, large)).then(
          () => undefined,
          (failure: unknown) => failure,
        )
        expect(String(error)).toMatch(/no node has stored it: node 0: .*(ENOSPC|[Nn]o space)/)
        expect(await health()).toMatch(/^WARNING - no space on the disk: /)
      })
      // The old contents are all there, and a commit that succeeds takes the mark away.
      expect(await stored(cluster, 0, "failing.tdb", SEQUENCE_KEY)).toBe(1)
      expect(await commit(2, large)).toBe(0)
      expect(await health()).toBe("")

      await broken("fdatasync:error=EIO", async () => {
        expect(await commit(3, "lost")).toBe(-1)
        expect(await health()).toMatch(/^ERROR - write failed: /)
        expect(await commit(3, "lost")).toBe(-1)
      })
      expect(await stored(cluster, 0, "failing.tdb", SEQUENCE_KEY)).toBe(2)
      expect(await commit(3, "refused")).toBe(-1)
      await client.control("DB_SET_HEALTHY", CURRENT_NODE, dbId)
      expect(await commit(3, "good")).toBe(0)
      expect((await cluster.view(0))!.flags[0]! & NodeFlag.BANNED).toBe(0)
    } finally {
      await cluster.end()
    }
  },
  60_000,
)
