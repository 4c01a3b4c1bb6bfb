// The main test of the cluster's logic: many random histories, each with the invariants looked at after every event and the
// wait for a whole cluster at its end (histories.ts). CTDB_SOAK=1 runs twenty thousand instead of a thousand;
// CTDB_SOAK=N runs N; CTDB_SEED=N begins at another seed.

import { expect, test } from "bun:test"
import { CONVERGENCE_MS, planOf, planText, runPlan, shrink } from "./histories.ts"

const soak = Number(process.env.CTDB_SOAK ?? 0)
const HISTORIES = soak > 1 ? soak : soak === 1 ? 20_000 : 1000
const FIRST = Number(process.env.CTDB_SEED ?? 1)
const BLOCK = 50
/** The report shows so many lines before the failure; the replay shows all. */
const TRACE_LINES = 40

function report(seed: number): string {
  const { plan, failure, world } = shrink(planOf(seed))
  const trace = world.traceText().split("\n").slice(-TRACE_LINES).join("\n")
  return `${trace}\n\n${planText(plan)}\n${failure}\n\nreplay with: bun tests/simulation/replay.ts ${seed}\n`
}

for (let from = FIRST; from < FIRST + HISTORIES; from += BLOCK) {
  const to = Math.min(from + BLOCK, FIRST + HISTORIES) - 1
  test(`histories ${from} to ${to}: one leader, one generation, whole within ${CONVERGENCE_MS / 1000} s`, () => {
    for (let seed = from; seed <= to; seed++) {
      if (runPlan(planOf(seed)).failure !== undefined) throw new Error(`history ${seed} failed\n${report(seed)}`)
    }
  }, 300_000)
}

test("a seed gives the same history every time, to the last line", () => {
  for (const seed of [3, 4, 5]) {
    const first = runPlan(planOf(seed))
    const second = runPlan(planOf(seed))
    expect(first.world.events).toBeGreaterThan(1000)
    expect(second.world.events).toBe(first.world.events)
    expect(second.world.traceText()).toBe(first.world.traceText())
  }
})

test("the plans cover every kind of fault, cluster size, mode and ending", () => {
  const kinds = new Map<string, number>()
  for (let seed = 1; seed <= 1000; seed++) {
    const { nodes, lock, testMode, lasting, faults } = planOf(seed)
    const shape = [
      `${nodes} nodes`,
      lock ? "lock" : "no lock",
      testMode ? "test" : "normal",
      lasting ? "parted" : "healed",
    ]
    for (const key of [...shape, ...faults.map(({ deed }) => deed.kind)]) kinds.set(key, (kinds.get(key) ?? 0) + 1)
  }
  expect([...kinds.keys()].filter((key) => key.endsWith("nodes")).sort()).toEqual(
    [3, 4, 5, 6, 7].map((nodes) => `${nodes} nodes`),
  )
  const rare = [...kinds].filter(([, count]) => count < 30)
  expect(rare).toEqual([])
  // 5 sizes, 2 locks, 2 modes, 2 endings and 23 kinds of fault.
  expect(kinds.size).toBe(34)
})
