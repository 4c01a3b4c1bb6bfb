// The stories of tests/integration/faults.ts on three stock nodes and on three of ours, side by side, with and without a cluster
// lock: how long the cluster takes until everybody agrees again. CTDB_SOAK=1 makes the long hang one of 60 s.
//
//   bun tests/bench/faults.ts [ROUNDS]     medians of ROUNDS runs (default 1)

import { newCluster, stories, type Timing } from "../integration/faults.ts"
import type { Kind } from "../peers/nodes.ts"

const rounds = Number(process.argv[2] ?? 1)
const kinds: readonly Kind[] = ["stock", "ours"]
const times = new Map<string, Record<Kind, number[]>>()

function note(kind: Kind, lock: boolean, { what, seconds }: Timing): void {
  const key = `${lock ? "lock   " : "no lock"}  ${what}`
  const row = times.get(key) ?? { stock: [], ours: [] }
  times.set(key, row)
  row[kind].push(seconds)
}

async function run(kind: Kind, lock: boolean): Promise<void> {
  const cluster = newCluster(kind, `127.21.${60 + (kind === "ours" ? 0 : 2) + (lock ? 0 : 1)}.`, lock)
  try {
    for (const story of stories(lock)) {
      try {
        for (const timing of await story.tell(cluster)) note(kind, lock, timing)
      } catch (error) {
        throw new Error(`${kind}, ${lock ? "lock" : "no lock"}, ${story.name}: ${String(error)}`)
      }
    }
  } finally {
    await cluster.end()
  }
}

const text = (seconds: readonly number[]): string => {
  const sorted = seconds.toSorted((a, b) => a - b)
  const median = sorted[Math.floor(sorted.length / 2)]
  if (median === undefined) return "-".padStart(20)
  return `${median.toFixed(1)} (${sorted[0]!.toFixed(1)} .. ${sorted.at(-1)!.toFixed(1)})`.padStart(20)
}

for (let round = 0; round < rounds; round++) {
  const runs = kinds.flatMap((kind) => [run(kind, true), run(kind, false)])
  for (const outcome of await Promise.allSettled(runs)) {
    if (outcome.status === "rejected") console.error(String(outcome.reason))
  }
}
console.log(`${"seconds: median (least .. most)".padEnd(62)}${"stock".padStart(20)}${"ours".padStart(20)}`)
for (const [what, { stock, ours }] of [...times].sort(([a], [b]) => (a < b ? -1 : 1))) {
  console.log(`${what.padEnd(62)}${text(stock)}${text(ours)}`)
}
process.exit(0)
