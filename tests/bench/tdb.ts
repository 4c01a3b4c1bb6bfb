// Our TDB engine against libtdb, in the same run and on the same kind of file: `bun tests/bench/tdb.ts [NAME]`. Each figure is the median
// of alternating runs; the ratio is libtdb's time by ours, so above 1 we are faster. Needs cc for the libtdb side.

import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"

const folder = mkdtempSync(join(process.env.CTDB_BENCH_DIR ?? tmpdir(), "ctdb-bench-"))
const driver = join(folder, "tdb-libtdb")
const built = Bun.spawnSync(["cc", "-O2", "-o", driver, join(import.meta.dir, "tdb-libtdb.c"), "-ldl"])
if (built.exitCode !== 0) throw new Error(built.stderr.toString())
const ours = join(import.meta.dir, "tdb-ours.ts")
const ROUNDS = Number(process.env.CTDB_BENCH_ROUNDS ?? 5)

interface Case {
  name: string
  operation: string
  count: number
  flags: number
  hashSize: number
  keys: number
  processes?: number
  /** Fill the file with this many records first. */
  fill?: number
  /** Ours makes libtdb's second sync call, too. */
  msync?: boolean
}

const MUTEX = 0x1801
const FCNTL = 0x801
const CASES: Case[] = [
  {
    name: "locked fetch+store, mutex, 1 key",
    operation: "fetchstore",
    count: 4e6,
    flags: MUTEX,
    hashSize: 100001,
    keys: 1,
  },
  {
    name: "locked fetch+store, mutex, 1000 keys",
    operation: "fetchstore",
    count: 4e6,
    flags: MUTEX,
    hashSize: 100001,
    keys: 1000,
  },
  ...[2, 4, 8].flatMap((processes): Case[] => [
    {
      name: `the same, ${processes} processes, 1 key`,
      operation: "fetchstore",
      count: 4e5,
      flags: MUTEX,
      hashSize: 100001,
      keys: 1,
      processes,
    },
    {
      name: `the same, ${processes} processes, 1000 keys`,
      operation: "fetchstore",
      count: 1e6,
      flags: MUTEX,
      hashSize: 100001,
      keys: 1000,
      processes,
    },
  ]),
  {
    name: "locked fetch+store, fcntl, 1 key",
    operation: "fetchstore",
    count: 5e5,
    flags: FCNTL,
    hashSize: 100001,
    keys: 1,
  },
  {
    name: "locked fetch+store, fcntl, 1000 keys",
    operation: "fetchstore",
    count: 5e5,
    flags: FCNTL,
    hashSize: 100001,
    keys: 1000,
  },
  {
    name: "insert+delete with growth, mutex",
    operation: "insertdelete",
    count: 1e6,
    flags: MUTEX,
    hashSize: 100001,
    keys: 100000,
  },
  {
    name: "insert+delete with growth, fcntl",
    operation: "insertdelete",
    count: 4e5,
    flags: FCNTL,
    hashSize: 100001,
    keys: 100000,
  },
  {
    name: "traverse of a million records, mutex",
    operation: "traverse",
    count: 1e6,
    flags: 0x1000,
    hashSize: 100001,
    keys: 1,
    fill: 1e6,
  },
  {
    name: "traverse of a million records, fcntl",
    operation: "traverse",
    count: 1e6,
    flags: 0x800,
    hashSize: 100001,
    keys: 1,
    fill: 1e6,
  },
  { name: "commit of 1 record, synced", operation: "commit", count: 400, flags: 0, hashSize: 10007, keys: 1 },
  { name: "commit of 100 records, synced", operation: "commit", count: 300, flags: 0, hashSize: 10007, keys: 100 },
  { name: "commit of 10000 records, synced", operation: "commit", count: 30, flags: 0, hashSize: 10007, keys: 10000 },
  {
    name: "commit of 1 record, libtdb's sync calls",
    operation: "commit",
    count: 400,
    flags: 0,
    hashSize: 10007,
    keys: 1,
    msync: true,
  },
  {
    name: "commit of 100 records, libtdb's sync calls",
    operation: "commit",
    count: 300,
    flags: 0,
    hashSize: 10007,
    keys: 100,
    msync: true,
  },
  {
    name: "commit of 10000 records, libtdb's sync calls",
    operation: "commit",
    count: 30,
    flags: 0,
    hashSize: 10007,
    keys: 10000,
    msync: true,
  },
  { name: "commit of 1 record, not synced", operation: "commit", count: 10000, flags: 0x40, hashSize: 10007, keys: 1 },
  {
    name: "commit of 100 records, not synced",
    operation: "commit",
    count: 2000,
    flags: 0x40,
    hashSize: 10007,
    keys: 100,
  },
  {
    name: "commit of 10000 records, not synced",
    operation: "commit",
    count: 50,
    flags: 0x40,
    hashSize: 10007,
    keys: 10000,
  },
]

async function run(
  side: "ours" | "libtdb",
  one: Case,
  path: string,
  operation = one.operation,
  count = one.count,
): Promise<number> {
  const processes = operation === "fill" ? 1 : (one.processes ?? 1)
  // Time for all to start and to warm up.
  const startAt_ms = processes > 1 ? Date.now() + 1500 + 300 * processes : 1
  const flags = operation === "fill" ? one.flags | 1 : one.flags
  const args = [
    path,
    operation,
    String(count),
    String(flags),
    String(one.hashSize),
    String(one.keys),
    String(startAt_ms),
  ]
  const command = side === "ours" ? [process.execPath, ours, ...args] : [driver, ...args]
  const env = one.msync === true ? { ...process.env, CTDB_BENCH_MSYNC: "1" } : process.env
  const crowd = Array.from({ length: processes }, () => Bun.spawn(command, { stdout: "pipe", stderr: "inherit", env }))
  const times = await Promise.all(crowd.map((process) => new Response(process.stdout).text()))
  for (const process of crowd) if ((await process.exited) !== 0) throw new Error(`${side}: ${one.name} failed`)
  return Math.max(...times.map(Number)) / (count * processes)
}

/** How often a commit syncs, as the kernel is asked: "4 fdatasync, 4 msync". */
function syncCalls(side: "ours" | "libtdb", one: Case): string {
  const path = join(folder, "calls.tdb")
  const count = (commits: number): Map<string, number> => {
    rmSync(path, { force: true })
    const args = [path, "commit", String(commits), String(one.flags), String(one.hashSize), "1", "1"]
    const command = side === "ours" ? [process.execPath, ours, ...args] : [driver, ...args]
    const env = one.msync === true ? { ...process.env, CTDB_BENCH_MSYNC: "1" } : process.env
    const calls = "trace=fdatasync,fsync,msync,sync_file_range"
    const traced = Bun.spawnSync(["strace", "-f", "-qq", "-e", calls, "-e", "signal=none", ...command], { env })
    if (traced.exitCode !== 0) throw new Error(traced.stderr.toString())
    const counts = new Map<string, number>()
    for (const [, name] of traced.stderr.toString().matchAll(/^(?:\[pid +\d+\] )?(\w+)\(/gm)) {
      counts.set(name!, (counts.get(name!) ?? 0) + 1)
    }
    return counts
  }
  const [few, many] = [count(1), count(11)]
  const found = [...many].map(([name, n]) => `${(n - (few.get(name) ?? 0)) / 10} ${name}`)
  return found.length === 0 ? "none" : found.join(" and ")
}

const median = (values: number[]): number => values.toSorted((a, b) => a - b)[values.length >> 1]!

for (const one of CASES) {
  if (process.argv[2] !== undefined && !one.name.includes(process.argv[2])) continue
  const times: Record<"ours" | "libtdb", number[]> = { ours: [], libtdb: [] }
  const path = join(folder, "bench.tdb")
  if (one.fill !== undefined) {
    rmSync(path, { force: true })
    await run("libtdb", one, path, "fill", one.fill)
  }
  for (let round = 0; round < ROUNDS; round++) {
    for (const side of round % 2 === 0 ? (["libtdb", "ours"] as const) : (["ours", "libtdb"] as const)) {
      if (one.fill === undefined) rmSync(path, { force: true })
      times[side].push(await run(side, one, path))
    }
  }
  const [mine, real] = [median(times.ours), median(times.libtdb)]
  const unit = (ns: number): string =>
    ns >= 1e6 ? `${(ns / 1e6).toFixed(2)} ms` : ns >= 1e4 ? `${(ns / 1e3).toFixed(1)} us` : `${ns.toFixed(0)} ns`
  console.log(
    `${one.name.padEnd(44)} libtdb ${unit(real).padStart(9)}  ours ${unit(mine).padStart(9)}  ratio ${(real / mine).toFixed(2)}`,
  )
  if (one.operation === "commit" && one.keys === 1 && Bun.which("strace") !== null) {
    for (const side of ["libtdb", "ours"] as const) console.log(`  syncs of a commit, ${side}: ${syncCalls(side, one)}`)
  }
}
rmSync(folder, { recursive: true, force: true })
