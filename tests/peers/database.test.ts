// Databases in clusters of nodes of both kinds: the same files, the same headers after the same moves, counters that stay exact
// while stock leaders recover, databases are frozen and nodes die. What our client does on them is client-database.test.ts's
// affair; CTDB_SOAK=1 counts for three minutes instead of some seconds.

import { afterAll, afterEach, beforeAll, describe, expect, test } from "bun:test"
import { readFileSync, statSync } from "node:fs"
import { join } from "node:path"
import { attach, forgetDatabases } from "../../lib/client/attach.ts"
import type { Database } from "../../lib/client/database.ts"
import { decode } from "../../lib/protocol/codec.ts"
import { CURRENT_NODE } from "../../lib/protocol/constants.ts"
import { ltdbHeader } from "../../lib/protocol/structs.ts"
import { Random } from "../simulation/world.ts"
import type { Report } from "./client-worker.ts"
import { type Kind, MixedCluster } from "./nodes.ts"
import { stockInstalled, waitUntil } from "./stock.ts"

const COUNT_MS = process.env.CTDB_SOAK === undefined ? 6000 : 180_000
const WORKER = join(import.meta.dir, "client-worker.ts")
const TUNABLES = ["VacuumInterval=100000", "RerecoveryTimeout=1"]
const utf8 = new TextEncoder()
const text = new TextDecoder()

const STOCK: readonly Kind[] = ["stock", "stock", "stock"]
/** Each of the two kinds as one of three, so that each is requester, lmaster and owner for the other. */
const MIXED: readonly (readonly [prefix: string, kinds: readonly Kind[]])[] = [
  ["127.51.21.", ["ours", "stock", "stock"]],
  ["127.51.22.", ["stock", "ours", "ours"]],
  ["127.51.23.", ["ours", "ours", "ours"]],
]

const running: MixedCluster[] = []
async function start(prefix: string, kinds: readonly Kind[]): Promise<MixedCluster> {
  const cluster = new MixedCluster(prefix, kinds, { lock: true, tunables: TUNABLES })
  running.push(cluster)
  await cluster.startTogether()
  await cluster.allOk()
  return cluster
}
const endAll = async () => {
  await Promise.all(running.splice(0).map((cluster) => cluster.end()))
}

async function everywhere(cluster: MixedCluster, name: string): Promise<Database[]> {
  const databases: Database[] = []
  for (const pnn of cluster.pnns) databases.push(await attach(cluster.client(pnn), name))
  return databases
}

// ---- the same moves leave the same copies ------------------------------------------------------------------------

/** Every copy of every key on every node after a fixed sequence of moves: "rsn/dmaster/flags/data". */
async function copiesAfterMoves(cluster: MixedCluster): Promise<string[]> {
  const databases = await everywhere(cluster, "moves.tdb")
  const keys = Array.from({ length: 20 }, (_, n) => utf8.encode(`record ${n}`))
  const random = new Random(4711)
  for (let step = 0; step < 250; step++) {
    const key = random.pick(keys)
    const record = await random.pick(databases).fetchLock(key)
    const choice = random.below(4)
    if (choice === 0) record.store(utf8.encode(`step ${step} `.repeat(1 + random.below(40))))
    else if (choice === 1) record.store(new Uint8Array(0))
    record.unlock()
  }
  const lines: string[] = []
  for (const [pnn, database] of databases.entries()) {
    for (const key of keys) {
      const value = await database.localRecord(key)
      if (value === undefined) continue
      const { rsn, dmaster, flags } = decode(ltdbHeader, value)
      lines.push(`node ${pnn} ${text.decode(key)}: ${rsn.lo}/${dmaster}/0x${flags.toString(16)}/${value.length - 24}`)
      expect(rsn.hi).toBe(0)
    }
  }
  return lines
}

describe.skipIf(!stockInstalled)("the same moves", () => {
  let expected: string[] = []
  beforeAll(async () => {
    expected = await copiesAfterMoves(await start("127.51.20.", STOCK))
    await endAll()
  }, 60_000)
  afterEach(endAll, 60_000)

  for (const [prefix, kinds] of MIXED) {
    test(`leave the same copies on ${kinds.join(", ")} as on three stock nodes`, async () => {
      expect(expected.length).toBeGreaterThan(30)
      expect(await copiesAfterMoves(await start(prefix, kinds))).toEqual(expected)
    }, 60_000)
  }
})

// ---- everything else on one cluster of both kinds ----------------------------------------------------------------

describe.skipIf(!stockInstalled)("two stock nodes and one of ours, led by stock", () => {
  let cluster: MixedCluster
  beforeAll(async () => {
    cluster = await start("127.51.24.", ["ours", "stock", "stock"])
    await stockLeads()
  }, 90_000)
  afterAll(endAll, 60_000)

  async function stockLeads(): Promise<void> {
    await cluster.node(0).tool("setleaderrole", "off")
    await waitUntil("stock leader", () => cluster.leader(0) > 0 && cluster.leader(0) < 3, 40_000)
    await cluster.allOk()
  }

  const generation = async (pnn: number) => (await cluster.view(pnn))?.generation

  async function recover(): Promise<void> {
    const before = await generation(1)
    const outcome = await cluster.node(1).tool("recover")
    expect(outcome.status).toBe(0)
    await waitUntil("new generation", async () => (await generation(1)) !== before, 30_000)
    await cluster.allOk()
  }

  test("a new file is a stock node's: size, mode, header, flags that clients are told", async () => {
    const kinds = [
      ["volatile", "DB_ATTACH"],
      ["persistent", "DB_ATTACH_PERSISTENT"],
      ["replicated", "DB_ATTACH_REPLICATED"],
    ] as const
    for (const [kind, control] of kinds) {
      const dbId = await cluster.client(1).control(control, CURRENT_NODE, `new-${kind}.tdb`)
      await waitUntil(`${kind} database on all nodes`, async () => {
        const maps = await Promise.all(
          cluster.pnns.map((pnn) => cluster.client(pnn).control("GET_DBMAP", CURRENT_NODE)),
        )
        return maps.every((map) => map.some((row) => row.dbId === dbId))
      })
      const seen = await Promise.all(
        [0, 1].map(async (pnn) => {
          const path = await cluster.client(pnn).control("GETDBPATH", CURRENT_NODE, dbId)
          const { size, mode } = statSync(path!)
          const flags = await cluster.client(pnn).control("DB_OPEN_FLAGS", CURRENT_NODE, dbId)
          const name = path!.split("/").slice(-2).join("/").replace(/\d+$/, "N")
          return { size, mode, flags, name, header: readFileSync(path!).subarray(0, 168).toString("hex") }
        }),
      )
      expect(seen[0]).toEqual(seen[1]!)
    }
  }, 60_000)

  test("a stock leader recovers 20 databases with 100,000 records, and nothing of our node is lost", async () => {
    const [DATABASES, RECORDS] = [20, 5000]
    const names = Array.from({ length: DATABASES }, (_, n) => `many-${n}.tdb`)
    const owner = cluster.client(0)
    const files: Database[] = []
    for (const name of names) files.push(await attach(owner, name))
    for (const file of files) {
      const value = new Uint8Array(24 + 60)
      value[0] = 7
      for (let n = 0; n < RECORDS; n++) {
        new DataView(value.buffer).setUint32(24, n, true)
        file.tdb.store(utf8.encode(`key ${n}`), value)
        if (n % 1000 === 0) await Bun.sleep(0)
      }
    }
    let slowestMs = 0
    let watching = true
    const watch = (async () => {
      while (watching) {
        const began = performance.now()
        await owner.controlStatus("PING", CURRENT_NODE)
        slowestMs = Math.max(slowestMs, performance.now() - began)
        await Bun.sleep(5)
      }
    })()
    const began = performance.now()
    await recover()
    const ms = performance.now() - began
    watching = false
    await watch
    console.log(`recovery by a stock leader: ${ms.toFixed(0)} ms, our node's slowest answer ${slowestMs.toFixed(0)} ms`)
    for (const pnn of [0, 1, 2]) {
      const databases = pnn === 0 ? files : await Promise.all(names.map((name) => attach(cluster.client(pnn), name)))
      for (const database of databases) {
        let count = 0
        let wrong = 0
        await database.traverseLocal((map, keyStart, keyLength, dataStart, dataLength) => {
          count++
          const number = Number(text.decode(map.subarray(keyStart + 4, keyStart + keyLength)))
          const view = new DataView(map.buffer, map.byteOffset)
          if (dataLength !== 84 || view.getUint32(dataStart + 24, true) !== number) wrong++
        })
        expect({ pnn, name: database.name, count, wrong }).toEqual({
          pnn,
          name: database.name,
          count: RECORDS,
          wrong: 0,
        })
      }
    }
  }, 120_000)

  test("a stock leader recovers persistent and replicated databases of a node of ours", async () => {
    for (const [name, kind] of [
      ["p.tdb", "persistent"],
      ["r.tdb", "replicated"],
    ] as const) {
      expect((await cluster.node(1).tool("attach", name, kind)).status).toBe(0)
      for (let n = 0; n < 5; n++) {
        const store = await cluster.node(n % 3).tool("pstore", name, `key ${n}`, `value ${n}`)
        expect(store).toMatchObject({ status: 0 })
      }
    }
    await recover()
    for (const name of ["p.tdb", "r.tdb"]) {
      const contents = await Promise.all(
        cluster.pnns.map(async (pnn) => (await cluster.node(pnn).tool("cattdb", name)).stdout),
      )
      for (let n = 0; n < 5; n++) expect(contents[0]).toContain(`value ${n}`)
      const strip = (listing: string) =>
        listing
          .split("\n")
          .filter((line) => /^(key|data)/.test(line))
          .sort()
      expect(strip(contents[0]!)).toEqual(strip(contents[1]!))
      expect(strip(contents[2]!)).toEqual(strip(contents[1]!))
      const numbers = await Promise.all(
        cluster.pnns.map(async (pnn) => (await cluster.node(pnn).tool("getdbseqnum", name)).stdout),
      )
      expect(new Set(numbers)).toEqual(new Set(["0x5\n"]))
    }
  }, 60_000)

  // ---- counting ----

  const spawn = (pnn: number, database: string, keys: number, rounds: number) => {
    const task = JSON.stringify({ job: "count", keys, rounds, database, socket: cluster.node(pnn).socket })
    return Bun.spawn([process.execPath, WORKER, task], { stdin: "ignore", stdout: "pipe", stderr: "pipe" })
  }

  /** Counts in rounds until the time is over; what each worker has counted. */
  async function count(pnn: number, database: string, keys: number, untilMs: number): Promise<number> {
    let done = 0
    while (performance.now() < untilMs) {
      const worker = spawn(pnn, database, keys, 300)
      const [output, errors, status] = await Promise.all([
        new Response(worker.stdout).text(),
        new Response(worker.stderr).text(),
        worker.exited,
      ])
      expect({ pnn, status, errors: status === 0 ? "" : errors }).toEqual({ pnn, status: 0, errors: "" })
      done += (JSON.parse(output) as Report).done
    }
    return done
  }

  async function total(pnn: number, name: string, keys: number): Promise<number> {
    const database = await attach(cluster.client(pnn), name)
    let sum = 0
    for (let n = 0; n < keys; n++) {
      const record = await database.fetchLock(utf8.encode(`counter ${n}`))
      const data = record.copy()
      record.unlock()
      if (data.length >= 4) sum += new DataView(data.buffer, data.byteOffset).getUint32(0, true)
    }
    return sum
  }

  test(
    "counters on one and on many keys are exact while stock recovers, the stock tool writes, and databases freeze",
    async () => {
      const databases = [
        ["hot.tdb", 1],
        ["many.tdb", 50],
      ] as const
      for (const [name] of databases) await everywhere(cluster, name)
      const untilMs = performance.now() + COUNT_MS
      const counts = databases.map(([name, keys]) =>
        Promise.all([0, 1, 2].map((pnn) => count(pnn, name, keys, untilMs))),
      )
      const disturbed = (async () => {
        for (let round = 0; performance.now() < untilMs; round++) {
          await Bun.sleep(1500)
          if (round % 2 === 0) expect((await cluster.node(round % 3).tool("recover")).status).toBe(0)
          else {
            const database = await attach(cluster.client(0), databases[round % 4 === 1 ? 0 : 1][0])
            await cluster.client(0).control("DB_FREEZE", CURRENT_NODE, database.id)
            await Bun.sleep(100)
            await cluster.client(0).control("DB_THAW", CURRENT_NODE, database.id)
          }
        }
      })()
      // The stock client: what it wrote on one node it reads on any other.
      const registers = (async () => {
        let writes = 0
        for (; performance.now() < untilMs; writes++) {
          const [writer, reader] = [writes % 3, (writes + 1 + (writes % 2)) % 3]
          const written = await cluster.node(writer).tool("writekey", "many.tdb", "register", `value ${writes}`)
          expect({ writes, written }).toMatchObject({ writes, written: { status: 0 } })
          const { stdout } = await cluster.node(reader).tool("readkey", "many.tdb", "register")
          expect(stdout).toContain(`[value ${writes}]`)
        }
        return writes
      })()
      const [hot, many, writes] = await Promise.all([counts[0]!, counts[1]!, registers, disturbed])
      await cluster.allOk()
      const sum = (numbers: readonly number[]) => numbers.reduce((a, b) => a + b, 0)
      console.log(`counted ${sum(hot)} on one key, ${sum(many)} on 50; the stock tool wrote ${writes} times`)
      for (const pnn of [0, 1, 2]) {
        expect(await total(pnn, "hot.tdb", 1)).toBe(sum(hot))
        expect(await total(pnn, "many.tdb", 50)).toBe(sum(many))
      }
      expect(sum(hot)).toBeGreaterThan(500)
      expect(writes).toBeGreaterThan(2)
    },
    COUNT_MS + 120_000,
  )

  test("a node that is killed takes with it at most what its own clients wrote", async () => {
    for (const victim of [2, 0]) {
      const name = `kill-${victim}.tdb`
      // A stock daemon does not start again while somebody has its old files open.
      await forgetDatabases(cluster.client(victim))
      const survivors = cluster.pnns.filter((pnn) => pnn !== victim)
      const untilMs = performance.now() + 4000
      const counts = Promise.all(survivors.map((pnn) => count(pnn, name, 5, untilMs)))
      const doomed = spawn(victim, name, 5, 1_000_000)
      await Bun.sleep(2000)
      await cluster.kill(victim)
      doomed.kill(9)
      await doomed.exited
      const counted = (await counts).reduce((a, b) => a + b, 0)
      await cluster.allOk(60_000)
      for (const pnn of survivors) expect(await total(pnn, name, 5)).toBeGreaterThanOrEqual(counted)
      // A stock node's event daemon outlives it by up to 5 s and keeps it from starting again.
      for (let attempt = 1; ; attempt++) {
        try {
          await cluster.start(victim)
          break
        } catch (error) {
          if (attempt === 10 || !String(error).includes("Failed to initialize event daemon")) throw error
          await Bun.sleep(1000)
        }
      }
      await cluster.allOk(60_000)
      expect(await total(victim, name, 5)).toBeGreaterThanOrEqual(counted)
    }
  }, 180_000)
})
