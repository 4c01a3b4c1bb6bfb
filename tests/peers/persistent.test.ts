// Persistent and replicated databases in clusters of nodes of both kinds: statuses of commits, and counters that many clients raise in
// transactions while recoveries run. Nodes that are killed are persistent-kill.test.ts's affair, disks that fail
// persistent-disk.test.ts's.

import { afterAll, beforeAll, describe, expect, test } from "bun:test"
import { readFileSync } from "node:fs"
import { attach, forgetDatabases } from "../../lib/client/attach.ts"
import { Client } from "../../lib/client/client.ts"
import { Transaction } from "../../lib/client/transaction.ts"
import { CURRENT_NODE, NodeFlag } from "../../lib/protocol/constants.ts"
import { commitOf, raise, SEQUENCE_KEY, stored, u64, utf8 } from "./commits.ts"
import { MixedCluster } from "./nodes.ts"
import { canTrace, STRACE } from "./privileges.ts"
import { stockInstalled, waitUntil } from "./stock.ts"

describe.skipIf(!stockInstalled)("one cluster of both kinds", () => {
  const cluster = new MixedCluster("127.63.51.", ["ours", "stock", "ours"], { lock: true })
  beforeAll(async () => {
    await cluster.startTogether()
    await cluster.allOk()
  }, 300_000)
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
  }, 300_000)

  test.skipIf(!canTrace)(
    "a commit is on the disk of each node after four syncs, half of stock's",
    async () => {
      const COMMITS = 10
      const name = "synced.tdb"
      // What a first commit does to a new file, and a first use to a client, is not counted.
      for (const pnn of cluster.pnns) await raise(cluster.client(pnn), name, "persistent", utf8.encode("counter"))
      const counts = await Promise.all(
        [0, 1].map(async (pnn) => {
          const output = `${cluster.directory}/syncs.${pnn}`
          const calls = "trace=fdatasync,fsync,msync,sync_file_range"
          const tracer = Bun.spawn([STRACE, "-f", "-o", output, "-e", calls, "-p", String(cluster.node(pnn).pid)], {
            stdin: "ignore",
            stdout: "ignore",
            stderr: "pipe",
          })
          await tracer.stderr.getReader().read()
          return { tracer, output }
        }),
      )
      for (let i = 0; i < COMMITS; i++) await raise(cluster.client(2), name, "persistent", utf8.encode("counter"))
      const [ours, stock] = await Promise.all(
        counts.map(async ({ tracer, output }) => {
          tracer.kill("SIGINT")
          await tracer.exited
          return [...readFileSync(output, "utf8").matchAll(/ (fdatasync|fsync|msync|sync_file_range)\(/g)].length
        }),
      )
      expect(ours).toBe(4 * COMMITS)
      expect(stock).toBe(8 * COMMITS)
    },
    300_000,
  )

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
  }, 300_000)

  test.each(["ours", "stock"] as const)(
    "a client whose node (%s) is banned in its transaction is told, and its lock is free when the node is back",
    async (kind) => {
      const pnn = cluster.kinds.indexOf(kind)
      const name = `banned-${kind}.tdb`
      const key = utf8.encode("key")
      const client = await Client.connect({ socket: cluster.node(pnn).socket })
      const database = await attach(client, name, { kind: "persistent" })
      const transaction = await Transaction.start(client, database)
      await transaction.store(key, u64(1))
      expect((await cluster.node(pnn).tool("ban", "600")).status).toBe(0)
      await waitUntil("the ban", async () => ((await cluster.view(pnn))?.flags[pnn] ?? 0) === NodeFlag.BANNED)
      const begun = performance.now()
      const told = await transaction.commit().then(() => "", String)
      expect(told).toContain(`node ${pnn} is banned: nothing was committed`)
      expect(performance.now() - begun).toBeLessThan(10_000)
      expect((await cluster.node(pnn).tool("unban")).status).toBe(0)
      await cluster.allOk(60_000)
      // From another node, while the first client lives on.
      const other = cluster.client(cluster.pnns.find((each) => each !== pnn)!)
      expect(await raise(other, name, "persistent", key)).toBe(1)
      await forgetDatabases(client)
      await client.close()
    },
    120_000,
  )

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
          const { status } = await cluster.node(i % 3).tool("-t", "120", "pstore", name, `stock ${i}`, "x")
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
    }, 300_000)
  }
})
