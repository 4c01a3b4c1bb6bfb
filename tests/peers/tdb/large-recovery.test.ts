// A database that is much larger than the memory its nodes may take: three nodes of ours, one of them killed, and the recovery that
// follows brings all of it to the two that are left. What counts is memory that only a process's end gives back; pages of files are
// the kernel's to drop. Every node, the leader with its recovery daemon too, keeps to half the size. Part of the long form only, as it takes minutes
// of both processors. CTDB_LARGE_MB=N does it with another size.

import { expect, test } from "bun:test"
import { existsSync, readdirSync, readFileSync } from "node:fs"
import { join } from "node:path"
import { encode } from "../../../lib/protocol/codec.ts"
import { ltdbHeader } from "../../../lib/protocol/structs.ts"
import { word64 } from "../../../lib/protocol/word64.ts"
import { INCOMPATIBLE_HASH, MUTEX_LOCKING, NOSYNC } from "../../../lib/tdb/format.ts"
import { check, openTdb, traverseRead } from "../../../lib/tdb/tdb.ts"
import { soak } from "../../tdb/random.ts"
import { MixedCluster } from "../nodes.ts"
import { type StockNode, waitUntil } from "../stock.ts"

/** Bytes of keys and data, and what all processes of a node may grow by together. */
const CONTENTS = Number(process.env.CTDB_LARGE_MB ?? 1024) * 1e6
const GROWTH_MAX = 512e6
/** Exit status of a node of a test that has let it go: an orderly end. */
const LET_GO = 32
const VALUE = 4000
const RECORDS = Math.floor(CONTENTS / VALUE)
const DATABASE = "large.tdb"

/** Stores what `owner` has of the records: all of them as of before, and those of its own with a newer rsn. */
function populate(node: StockNode, pnn: number, round: number): void {
  const tdb = openTdb(pathOf(node, pnn), { flags: MUTEX_LOCKING | INCOMPATIBLE_HASH | NOSYNC })
  const value = Buffer.alloc(VALUE - 16)
  tdb.lockAllrecord()
  for (let index = 0; index < RECORDS; index++) {
    if (index % 3 !== pnn) continue
    const header = { rsn: word64(0, 4 + round), dmaster: pnn, reserved1: 0, flags: 0x10000 }
    value.fill(65 + ((index + round) % 26))
    value.set(encode(ltdbHeader, header))
    tdb.store(keyOf(index), value)
  }
  tdb.unlockAllrecord()
  tdb.close()
}

const keyOf = (index: number): Buffer => Buffer.from(`record ${String(index).padStart(9, "0")}`)
const pathOf = (node: StockNode, pnn: number): string => join(node.base, "volatile", `${DATABASE}.${pnn}`)

function children(pid: number): number[] {
  try {
    const own = readFileSync(`/proc/${pid}/task/${pid}/children`, "utf8").trim().split(" ").filter(Boolean).map(Number)
    return own.flatMap((child) => [child, ...children(child)])
  } catch {
    return []
  }
}

function anonymousBytes(pid: number): number {
  try {
    return Number(/RssAnon:\s+(\d+) kB/.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1] ?? 0) * 1024
  } catch {
    return 0
  }
}

/** The most that a node's processes, those that come and go included, have had together since it began. */
class MemoryWatch {
  private readonly before: ReadonlyMap<number, number>
  private peak: ReadonlyMap<number, number>
  private readonly timer: Timer

  constructor(private readonly node: StockNode) {
    this.before = this.now()
    this.peak = this.before
    this.timer = setInterval(() => {
      const now = this.now()
      if (total(now) > total(this.peak)) this.peak = now
    }, 20)
  }

  private now(): Map<number, number> {
    const pids = [this.node.pid, ...children(this.node.pid)]
    return new Map(pids.map((pid) => [pid, anonymousBytes(pid)]))
  }

  /** How much more it was at most than at the beginning (bytes), and where. */
  stop(): { readonly bytes: number; readonly parts: string } {
    clearInterval(this.timer)
    const parts = [...this.peak]
      .map(([pid, bytes]) => bytes - (this.before.get(pid) ?? 0))
      .map((bytes) => Math.round(bytes / 1e6))
    return { bytes: total(this.peak) - total(this.before), parts: parts.join("+") }
  }
}

const total = (bytes: ReadonlyMap<number, number>): number => [...bytes.values()].reduce((sum, one) => sum + one, 0)

test.skipIf(!soak)(
  `a recovery of ${CONTENTS / 1e6} MB in one database, after a node was killed, with less memory than that`,
  async () => {
    const tunables = ["VacuumInterval=100000", "RerecoveryTimeout=1", "RecoverTimeout=120"]
    const cluster = new MixedCluster("127.72.1.", ["ours", "ours", "ours"], { lock: true, tunables })
    const settled = async (from: number, before: number): Promise<void> => {
      await waitUntil(
        "recovery",
        async () => {
          const view = await cluster.view(from)
          return view !== undefined && view.generation !== before && view.recoveryMode === 0
        },
        300_000,
      )
    }
    const watched = async (from: readonly number[], what: string, start: () => Promise<unknown>): Promise<void> => {
      const before = (await cluster.view(from[0]!))!.generation
      const watches = from.map((pnn) => new MemoryWatch(cluster.node(pnn)))
      const since_ms = performance.now()
      await start()
      await Promise.all(from.map((pnn) => settled(pnn, before)))
      const grown = watches.map((watch) => watch.stop())
      const seconds = ((performance.now() - since_ms) / 1000).toFixed(1)
      console.log(`${what}: ${seconds} s, nodes grew by ${grown.map(({ parts }) => parts).join(", ")} MB`)
      for (const { bytes } of grown) expect(bytes).toBeLessThan(GROWTH_MAX)
    }
    try {
      await cluster.startAll()
      await cluster.allOk()
      await cluster.node(0).tool("attach", DATABASE)
      await waitUntil("the database on all nodes", () =>
        cluster.pnns.every((pnn) => existsSync(pathOf(cluster.node(pnn), pnn))),
      )
      // Each has a third: everything travels, and files grow.
      for (const pnn of cluster.pnns) populate(cluster.node(pnn), pnn, 0)
      await watched(cluster.pnns, "first recovery", () => cluster.node(0).tool("-t", "300", "recover"))
      // Everything is changed somewhere, so that everything travels again, and files as they are are written anew.
      for (const pnn of cluster.pnns) populate(cluster.node(pnn), pnn, 1)
      const leader = cluster.leader(0)
      const killed = cluster.pnns.find((pnn) => pnn !== leader)!
      const left = cluster.pnns.filter((pnn) => pnn !== killed)
      await watched(left, "after kill -9", () => cluster.kill(killed))
      for (const pnn of left) {
        const node = cluster.node(pnn)
        const tdb = openTdb(pathOf(node, pnn), { flags: MUTEX_LOCKING | INCOMPATIBLE_HASH | NOSYNC })
        let wrong = 0
        const count = traverseRead(tdb, (bytes, keyStart, keyLength, dataStart, dataLength) => {
          const index = Number(Buffer.from(bytes.buffer, keyStart + bytes.byteOffset + 7, keyLength - 7).toString())
          // What the dead node alone had changed is as it was before.
          const round = index % 3 === killed ? 0 : 1
          const last = bytes[dataStart + dataLength - 1]
          if (dataLength !== VALUE - 16 || last !== 65 + ((index + round) % 26)) wrong++
        })
        expect({ pnn, count, wrong }).toEqual({ pnn, count: RECORDS, wrong: 0 })
        expect(check(tdb).findings.map(String)).toEqual([])
        tdb.close()
        // Nothing is left beside the files.
        expect(readdirSync(join(node.base, "volatile")).filter((name) => name.startsWith("."))).toEqual([])
        expect(await cluster.stop(pnn)).toBe(LET_GO)
      }
    } finally {
      await cluster.end()
    }
  },
  1_800_000,
)
