// Three of our nodes go through the faults of faults.ts, with and without a cluster lock: after each everybody agrees, says the
// stock tool too, and in no more time than stock nodes need with generous room for a busy machine.
// tests/bench/faults.ts measures both kinds side by side; the times of stock nodes are also in cluster page 9.

import { afterAll, beforeAll, expect, test } from "bun:test"
import type { MixedCluster } from "../peers/nodes.ts"
import { stockInstalled } from "../peers/stock.ts"
import { newCluster, stories } from "./faults.ts"

/**
 * Seconds that a stock cluster takes at most, by what is timed: timers of the reference (leader timeout 5, election 3,
 * 10 between recoveries, keepalive limit 30) plus loops of a second each; twice the loops for a busy machine.
 */
const BOUNDS: readonly [RegExp, number][] = [
  [/hangs: given up$/, 32],
  [/^member hangs: the others agree$/, 34],
  [/^leader hangs: the others agree$/, 42],
  [/started at once/, 24],
  [/agree$|all OK/, 20],
]
const TEST_MS = 300_000

const locks = [true, false]
let clusters: MixedCluster[] = []

beforeAll(() => {
  clusters = locks.map((lock, index) => newCluster("ours", `127.21.${55 + index}.`, lock))
})
afterAll(async () => {
  await Promise.all(clusters.map((cluster) => cluster.end()))
}, 300_000)

const [withLock, withoutLock] = [stories(true), stories(false)]
for (const [index, { name }] of withLock.entries()) {
  test.skipIf(!stockInstalled)(
    name,
    async () => {
      const tales = [withLock[index]!, withoutLock[index]!]
      const outcomes = await Promise.allSettled(tales.map((story, which) => story.tell(clusters[which]!)))
      for (const outcome of outcomes) if (outcome.status === "rejected") throw outcome.reason
      const timings = outcomes.flatMap((outcome) => (outcome.status === "fulfilled" ? outcome.value : []))
      expect(timings.length).toBeGreaterThan(0)
      const late = timings.filter(({ what, seconds }) => {
        const bound = BOUNDS.find(([pattern]) => pattern.test(what))?.[1]
        return bound === undefined || seconds > bound
      })
      expect(late).toEqual([])
    },
    TEST_MS,
  )
}
