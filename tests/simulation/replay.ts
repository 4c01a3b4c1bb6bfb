// `bun tests/simulation/replay.ts SEED [whole]`: runs one history again and tells what happened in it. A failing one is first
// shrunk to the faults that matter, unless `whole` is given. Without a failure it prints the plan and the trace.

import { planOf, planText, runPlan, shrink } from "./histories.ts"

const seed = Number(process.argv[2])
if (!Number.isInteger(seed)) {
  console.error("usage: bun tests/simulation/replay.ts SEED [whole]")
  process.exit(2)
}
const plan = planOf(seed)
const first = runPlan(plan)
const outcome = first.failure === undefined || process.argv[3] === "whole" ? first : shrink(plan)
console.log(outcome.world.traceText())
console.log(`\nseed ${seed}: ${planText(outcome.plan)}`)
console.log(outcome.failure ?? `whole ${(outcome.convergedMs / 1000).toFixed(1)} s after the faults stopped`)
process.exit(outcome.failure === undefined ? 0 : 1)
