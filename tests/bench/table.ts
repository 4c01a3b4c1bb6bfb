// Makes docs/performance.md: every speed target with our figure, stock's beside it in the same run, the ratios, and whether it holds. What is
// measured where is in table/; this file runs the parts, keeps what they find, and knows why rows that do not hold do not.
//
//   bun tests/bench/table.ts [--only PART[,PART...]]    no words: all of it
//
// What a part finds is kept in docs/performance/PART.json, so that one part can be measured again without the others. Parts are:
// the generators of `ctdb bench` (single-record contention g-lock persistent ring spread readonly messages), traverse, memory, pressure, stall, syncs,
// import, engine, helper, nodes, start.

import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs"
import { loadavg } from "node:os"
import { join } from "node:path"
import { GENERATOR_NAMES, generatorLines } from "./table/generators.ts"
import type { Line, Part } from "./table/lines.ts"
import { importLines, memoryLines, pressureLines, stallLines, syncLines, traverseLines } from "./table/nodes.ts"
import { page } from "./table/page.ts"
import { engineLines, helperLines, nodeRecoveryLines, startLines } from "./table/programs.ts"

const root = join(import.meta.dir, "../..")
const kept = join(root, "docs", "performance")

/** Why a row is below its target, where that is known; printed beside those that are. */
const REASONS: readonly (readonly [start: RegExp, reason: string])[] = [
  [
    /^(message ring.* 2 messages|1 record round)/,
    "One token: each message wakes a sleeping process, and only one is awake at a time. Both kinds of daemon wake as often (5.4 times a migration), send as many packets (6.6), and make no more system calls than wait, receive and send for each. Processor time of a migration, three daemons together, cold: kernel 112 us (stock 77), own code 158 us (stock 28); six processes share two processors' caches. With 64 messages under way the same daemons are bound by work, and ours do more of it.",
  ],
  [
    /records under 12 clients/,
    "Processor time: kernel 19 us a record on either side, own code 21 us after 40 s of load (63 us after 6 s, while the compiler works) beside stock's 8 us, for the same 5 packets. Two processors serve three daemons and twelve clients, so that shows in full.",
  ],
  [
    /^contention|^single record/,
    "The client and the kernel's locks alone: the daemons use less than 0.05 us an operation, whichever they are, and the client is the same. Ratios are noise around 1.",
  ],
  [
    /^persistent transactions on 8 databases, disk/,
    "Processor time: nine clients and three nodes keep both processors busy (1.96 of 2; 0.01 wait for the disk). A commit takes 14 ms of them, all processes and the kernel's threads together, beside stock's 62 (both while the machine was slow). Of ours 5.5 are the threads that write, half of it the kernel's share in twelve syncs, and 4 the kernel's own threads for the disk.",
  ],
  [
    /^g_lock from 1/,
    "A lock that nobody else wants is local work of the client, the same on both sides; the daemon hears of it once a second. Stock's own algorithm on stock nodes, one round trip a lock, is a row of the client's own cost.",
  ],
  [
    /^g_lock from/,
    "The same client on both sides: a queue instead of polling, and turns of 10 ms with the lock. What is left is the lock's record changing nodes between turns: see the record's ring. Stock's own algorithm on stock nodes is a row of the client's own cost.",
  ],
  [
    /^control round trip/,
    "A client, a daemon and a wake-up each way; ours and stock's daemon use as much processor time (9.7 us each). Noise around 1.",
  ],
  [
    /^recovery of nodes/,
    "Processor time: three nodes and the recovery share two processors, so what counts is the sum. The first recovery of 100 000 records in 10 databases takes 4.4 s of it, a third in the kernel (mostly page faults: what a transaction changes is copied, saved and written back), 17 % in the compilers for code that runs for the first time. A database of 100 001 chains costs 77 ms of it on all processes together before its first record: 4 MB of mutexes are looked at and 400 KB of chains wiped, saved and written on each node.",
  ],
  [
    /^peak memory of the leader's (recovery )?processes/,
    "A recovery daemon at rest has 24 MB of its own, what its runtime needs. What comes on top is bounded: four databases at a time, with 3 MB for the merge and 1 MB on the way of each, and what is not collected yet.",
  ],
  [
    /worst answer of a node to its client/,
    "Pieces of several databases that fall into one turn of the loop: four move at a time, with 5 ms for each, and a freeze looks at 4 MB of mutexes of each database, where the first look at a page is a page fault of up to 17 us on this machine.",
  ],
  [
    /^commit of /,
    "The same number of syncs of the same bytes: of a small commit nearly all of the time is the disk's, and ratios are noise around 1. Of 10 000 records each side copies 1.8 MB three times; page faults are what is left of the difference.",
  ],
  [
    /^insert\+delete with growth, fcntl/,
    "The lock calls: the same work with mutexes takes 1.6 us beside 8.3. What libtdb does not do is to look for free records that a killed process has left half merged, 0.16 us (measured by turns with and without); without it the ratio was 1.04.",
  ],
  [/^read-only/, "Local reads of the client between two revokes: the daemon is hardly involved."],
  [
    /idle clients$/,
    "What one more client adds is the same on both sides (see the rows on rest); the runtime takes its heap in steps.",
  ],
]

const PARTS: Readonly<Record<string, (complaints: string[]) => Promise<Line[]>>> = {
  traverse: traverseLines,
  memory: memoryLines,
  pressure: pressureLines,
  stall: stallLines,
  syncs: syncLines,
  import: importLines,
  engine: engineLines,
  helper: helperLines,
  nodes: nodeRecoveryLines,
  start: startLines,
}
const NAMES = [...GENERATOR_NAMES, ...Object.keys(PARTS)]

/** Parts by the command line. @throws Error for words that are none */
function chosen(words: readonly string[]): readonly string[] {
  if (words.length === 0) return NAMES
  const names = words[0] === "--only" ? words.slice(1).flatMap((word) => word.split(",")) : []
  const unknown = names.find((name) => !NAMES.includes(name))
  if (names.length === 0 || unknown !== undefined) throw new Error(`--only takes some of: ${NAMES.join(" ")}`)
  return names
}

let since = performance.now()
function keep(name: string, lines: readonly Line[], complaints: readonly string[]): void {
  const now = performance.now()
  const part: Part = { lines, complaints, load: loadavg()[0] ?? 0, seconds: Math.round((now - since) / 1000) }
  since = now
  writeFileSync(join(kept, `${name}.json`), `${JSON.stringify(part, null, 2)}\n`)
  console.error(`${new Date().toISOString()} ${name}: ${part.lines.length} rows, ${part.seconds} s`)
}

async function attempt(name: string, measure: () => Promise<void>): Promise<boolean> {
  try {
    await measure()
    return true
  } catch (error) {
    console.error(`${name}: ${error instanceof Error ? error.message : String(error)}`)
    return false
  }
}

mkdirSync(kept, { recursive: true })
const names = chosen(process.argv.slice(2))
const outcomes: boolean[] = []
const generators = names.filter((name) => GENERATOR_NAMES.includes(name))
if (generators.length > 0) outcomes.push(await attempt("generators", () => generatorLines(generators, keep)))
for (const [name, measure] of Object.entries(PARTS)) {
  if (!names.includes(name)) continue
  outcomes.push(
    await attempt(name, async () => {
      const complaints: string[] = []
      keep(name, await measure(complaints), complaints)
    }),
  )
}
const files = NAMES.map((name) => join(kept, `${name}.json`)).filter(existsSync)
const parts = files.map((file) => JSON.parse(readFileSync(file, "utf8")) as Part)
const reasonOf = ({ what }: Line): string | undefined => REASONS.find(([start]) => start.test(what))?.[1]
writeFileSync(join(root, "docs", "performance.md"), page(parts, reasonOf))
console.log("docs/performance.md")
process.exit(outcomes.every(Boolean) ? 0 : 1)
