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
import type { Job, Report } from "./client-worker.ts"
import { type Kind, MixedCluster } from "./nodes.ts"
import { SMALL_TABLES, stockInstalled, waitUntil } from "./stock.ts"

const COUNT_MS = process.env.CTDB_SOAK === undefined ? 6000 : 180_000
const WORKER = join(import.meta.dir, "client-worker.ts")
const TUNABLES = ["VacuumInterval=100000", "RerecoveryTimeout=1", SMALL_TABLES]
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
async function start(prefix: string, kinds: readonly Kind[], tunables = TUNABLES): Promise<MixedCluster> {
  const cluster = new MixedCluster(prefix, kinds, { lock: true, tunables })
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
  }, 300_000)
  afterEach(endAll, 60_000)

  for (const [prefix, kinds] of MIXED) {
    test(`leave the same copies on ${kinds.join(", ")} as on three stock nodes`, async () => {
      expect(expected.length).toBeGreaterThan(30)
      expect(await copiesAfterMoves(await start(prefix, kinds))).toEqual(expected)
    }, 300_000)
  }
})

// ---- counting ----------------------------------------------------------------------------------------------------

function spawnWorker(cluster: MixedCluster, pnn: number, database: string, job: Job) {
  const task = JSON.stringify({ ...job, database, socket: cluster.node(pnn).socket })
  return Bun.spawn([process.execPath, WORKER, task], { stdin: "ignore", stdout: "pipe", stderr: "pipe" })
}

/** Has a process work in rounds until the time is over; how many operations it did, none of which may be wrong. */
async function work(cluster: MixedCluster, pnn: number, database: string, job: Job, untilMs: number): Promise<number> {
  let done = 0
  while (performance.now() < untilMs) {
    const worker = spawnWorker(cluster, pnn, database, job)
    const [output, errors, status] = await Promise.all([
      new Response(worker.stdout).text(),
      new Response(worker.stderr).text(),
      worker.exited,
    ])
    expect({ pnn, status, errors: status === 0 ? "" : errors }).toEqual({ pnn, status: 0, errors: "" })
    const report = JSON.parse(output) as Report
    if (job.job === "churn") expect({ pnn, wrong: report.wrong }).toEqual({ pnn, wrong: 0 })
    done += report.done
  }
  return done
}

const count = (cluster: MixedCluster, pnn: number, database: string, keys: number, untilMs: number) =>
  work(cluster, pnn, database, { job: "count", keys, rounds: 300 }, untilMs)

/** What all counters of a database say together, read under their locks from that node. */
async function total(cluster: MixedCluster, pnn: number, name: string, keys: number): Promise<number> {
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

/** Three of ours, then mixed with one and with two stock nodes, each kind leading once. */
const COUNTED: readonly (readonly [prefix: string, kinds: readonly Kind[], leader: Kind])[] = [
  ["127.61.31.", ["ours", "ours", "ours"], "ours"],
  ["127.61.32.", ["ours", "ours", "stock"], "ours"],
  ["127.61.33.", ["ours", "stock", "stock"], "stock"],
]

describe.skipIf(!stockInstalled)("nine client processes", () => {
  afterEach(endAll, 60_000)

  for (const [prefix, kinds, leader] of COUNTED) {
    test(
      `count exactly on ${kinds.join(", ")}, led by ${leader}: recoveries, vacuuming every second, freezes`,
      async () => {
        // Every other vacuuming run reads the whole database.
        const tunables = ["VacuumInterval=1", "VacuumFastPathCount=1", "RerecoveryTimeout=1", SMALL_TABLES]
        const cluster = await start(prefix, kinds, tunables)
        for (const pnn of cluster.pnns) {
          if (kinds[pnn] !== leader) expect((await cluster.node(pnn).tool("setleaderrole", "off")).status).toBe(0)
        }
        await waitUntil(`a leader of kind ${leader}`, () => kinds[cluster.leader(0)] === leader, 60_000)
        await cluster.allOk()
        const databases = [
          ["hot.tdb", 1],
          ["many.tdb", 50],
        ] as const
        for (const name of ["hot.tdb", "many.tdb", "churn.tdb"]) await everywhere(cluster, name)
        const untilMs = performance.now() + COUNT_MS
        const counts = databases.map(([name, keys]) =>
          Promise.all(cluster.pnns.map((pnn) => count(cluster, pnn, name, keys, untilMs))),
        )
        const churns = Promise.all(
          cluster.pnns.map((pnn) => {
            const others = cluster.pnns.filter((other) => other !== pnn).map((other) => cluster.node(other).socket)
            const job = { job: "churn", keys: 40, rounds: 200, mine: `of ${pnn}`, others } as const
            return work(cluster, pnn, "churn.tdb", job, untilMs)
          }),
        )
        let recoveries = 0
        let freezes = 0
        const disturbed = (async () => {
          for (let round = 0; performance.now() < untilMs; round++) {
            await Bun.sleep(1500)
            if (round % 2 === 0) {
              expect((await cluster.node(round % 3).tool("recover")).status).toBe(0)
              recoveries++
              continue
            }
            const node = cluster.client(round % 3)
            const database = await attach(node, ["hot.tdb", "many.tdb", "churn.tdb"][freezes % 3]!)
            await node.control("DB_FREEZE", CURRENT_NODE, database.id)
            await Bun.sleep(100)
            await node.control("DB_THAW", CURRENT_NODE, database.id)
            freezes++
          }
        })()
        // The stock client: what it wrote on one node it reads on any other.
        const registers = (async () => {
          let writes = 0
          for (; performance.now() < untilMs || writes < 3; writes++) {
            const [writer, reader] = [writes % 3, (writes + 1 + (writes % 2)) % 3]
            const written = await cluster.node(writer).tool("writekey", "many.tdb", "register", `value ${writes}`)
            expect({ writes, written }).toMatchObject({ writes, written: { status: 0 } })
            const { stdout } = await cluster.node(reader).tool("readkey", "many.tdb", "register")
            expect(stdout).toContain(`[value ${writes}]`)
          }
        })()
        const [hot, many, churned] = await Promise.all([counts[0]!, counts[1]!, churns, registers, disturbed])
        await cluster.allOk()
        const sum = (numbers: readonly number[]) => numbers.reduce((a, b) => a + b, 0)
        for (const pnn of cluster.pnns) {
          expect(await total(cluster, pnn, "hot.tdb", 1)).toBe(sum(hot))
          expect(await total(cluster, pnn, "many.tdb", 50)).toBe(sum(many))
        }
        expect(sum(hot)).toBeGreaterThan(100)
        // All that came and went has gone, from every node's file: vacuuming ran, and finished what was left to it.
        const churn = await everywhere(cluster, "churn.tdb")
        const left = async () => sum(await Promise.all(churn.map((database) => database.traverseLocal(() => {}))))
        await waitUntil("vacuuming has emptied the database", async () => (await left()) === 0, 60_000)
        console.log(
          `${kinds}: ${sum(hot)} counted on one key, ${sum(many)} on 50, ${sum(churned)} records came and went, ` +
            `${recoveries} recoveries, ${freezes} freezes`,
        )
      },
      COUNT_MS + 180_000,
    )
  }
})

// ---- recovering many records -------------------------------------------------------------------------------------

/** Each kind as the leader that brings together what the other kind's nodes have. */
const RECOVERED: readonly (readonly [leader: Kind, prefix: string, kinds: readonly Kind[]])[] = [
  ["stock", "127.61.34.", ["ours", "stock", "ours"]],
  ["ours", "127.61.35.", ["stock", "ours", "stock"]],
]

describe.skipIf(!stockInstalled)("20 databases with 100,000 records", () => {
  afterEach(endAll, 60_000)

  for (const [leader, prefix, kinds] of RECOVERED) {
    test(`of nodes of the other kind: a leader of kind ${leader} recovers them, and nothing is lost`, async () => {
      const [DATABASES, RECORDS] = [20, 5000]
      const cluster = await start(prefix, kinds)
      // Half of the records on either follower, which are both of the other kind.
      const followers = [0, 2]
      for (const pnn of followers) expect((await cluster.node(pnn).tool("setleaderrole", "off")).status).toBe(0)
      await waitUntil("the leader", () => cluster.leader(0) === 1, 60_000)
      await cluster.allOk()
      const names = Array.from({ length: DATABASES }, (_, n) => `many-${n}.tdb`)
      for (const name of names) {
        const files = await everywhere(cluster, name)
        const value = new Uint8Array(24 + 60)
        const view = new DataView(value.buffer)
        value[0] = 7
        for (let n = 0; n < RECORDS; n++) {
          const owner = followers[n % 2]!
          view.setUint32(8, owner, true)
          view.setUint32(24, n, true)
          files[owner]!.tdb.store(utf8.encode(`key ${n}`), value)
          if (n % 1000 === 0) await Bun.sleep(0)
        }
      }
      // A follower of ours, or the leader of ours: whichever there is answers all the time.
      const ours = kinds.indexOf("ours")
      let slowestMs = 0
      let watching = true
      const watch = (async () => {
        while (watching) {
          const began = performance.now()
          await cluster.client(ours).controlStatus("PING", CURRENT_NODE)
          slowestMs = Math.max(slowestMs, performance.now() - began)
          await Bun.sleep(5)
        }
      })()
      const generation = async () => (await cluster.view(ours))?.generation
      const before = await generation()
      const began = performance.now()
      expect((await cluster.node(ours).tool("recover")).status).toBe(0)
      await waitUntil("new generation", async () => (await generation()) !== before, 60_000)
      await cluster.allOk()
      const ms = performance.now() - began
      watching = false
      await watch
      console.log(`recovery by ${leader}: ${ms.toFixed(0)} ms, our node's slowest answer ${slowestMs.toFixed(0)} ms`)
      for (const name of names) {
        for (const [pnn, database] of (await everywhere(cluster, name)).entries()) {
          let count = 0
          let wrong = 0
          await database.traverseLocal((map, keyStart, keyLength, dataStart, dataLength) => {
            count++
            const number = Number(text.decode(map.subarray(keyStart + 4, keyStart + keyLength)))
            const view = new DataView(map.buffer, map.byteOffset)
            if (dataLength !== 84 || view.getUint32(dataStart + 24, true) !== number) wrong++
          })
          expect({ pnn, name, count, wrong }).toEqual({ pnn, name, count: RECORDS, wrong: 0 })
        }
      }
    }, 300_000)
  }
})

// ---- everything else on one cluster of both kinds ----------------------------------------------------------------

describe.skipIf(!stockInstalled)("two stock nodes and one of ours, led by stock", () => {
  let cluster: MixedCluster
  beforeAll(async () => {
    cluster = await start("127.51.24.", ["ours", "stock", "stock"])
    await stockLeads()
  }, 300_000)
  afterAll(endAll, 60_000)

  async function stockLeads(): Promise<void> {
    await cluster.node(0).tool("setleaderrole", "off")
    await waitUntil("stock leader", () => cluster.leader(0) > 0 && cluster.leader(0) < 3, 60_000)
    await cluster.allOk()
  }

  const generation = async (pnn: number) => (await cluster.view(pnn))?.generation

  async function recover(): Promise<void> {
    const before = await generation(1)
    const outcome = await cluster.node(1).tool("recover")
    expect(outcome.status).toBe(0)
    await waitUntil("new generation", async () => (await generation(1)) !== before, 60_000)
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
  }, 300_000)

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
  }, 300_000)

  test("a node that is killed takes with it at most what its own clients wrote", async () => {
    for (const victim of [2, 0]) {
      const name = `kill-${victim}.tdb`
      // A stock daemon does not start again while somebody has its old files open.
      await forgetDatabases(cluster.client(victim))
      const survivors = cluster.pnns.filter((pnn) => pnn !== victim)
      const untilMs = performance.now() + 4000
      const counts = Promise.all(survivors.map((pnn) => count(cluster, pnn, name, 5, untilMs)))
      const doomed = spawnWorker(cluster, victim, name, { job: "count", keys: 5, rounds: 1_000_000 })
      await Bun.sleep(2000)
      await cluster.kill(victim)
      doomed.kill(9)
      await doomed.exited
      const counted = (await counts).reduce((a, b) => a + b, 0)
      await cluster.allOk(60_000)
      for (const pnn of survivors) expect(await total(cluster, pnn, name, 5)).toBeGreaterThanOrEqual(counted)
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
      expect(await total(cluster, victim, name, 5)).toBeGreaterThanOrEqual(counted)
    }
  }, 300_000)
})
