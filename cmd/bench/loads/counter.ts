// One record, fetch-locked, counted up and unlocked again and again (load-generators 3 and 4): by one process, by many on one node, by
// many nodes. No count may be lost, and nobody may see the counter go back.

import type { Histogram } from "../histogram.ts"
import { attached, BATCH, CounterValue, counterOf, type Load, type LoadContext, Pace, readCounter } from "./load.ts"

export async function counter(context: LoadContext): Promise<Load> {
  const { plan, arena } = context
  const database = await attached(context)
  const key = Buffer.from(plan.key)
  const value = new CounterValue(plan.valueSize)
  let done = 0
  let last = 0

  function count(record: ReturnType<typeof database.tryFetchLock> & object): void {
    const before = record.parse(counterOf)
    if (before === -1) context.violation(`half a value in record ${plan.key}`)
    else if (before < last) context.violation(`record ${plan.key} went back from ${last} to ${before}`)
    last = before + 1
    record.store(value.set(last))
    record.unlock()
    done++
  }

  async function run(latency: Histogram | undefined): Promise<void> {
    const pace = new Pace()
    while (arena.running) {
      for (let i = 0; i < BATCH; i++) {
        const begun = latency === undefined ? 0 : Bun.nanoseconds()
        const locked = database.fetchLock(key)
        count(locked instanceof Promise ? await locked : locked)
        if (latency !== undefined) latency.record(Bun.nanoseconds() - begun)
      }
      arena.setDone(plan.index, done)
      const turn = pace.turn()
      if (turn !== undefined) await turn
    }
  }

  return {
    database,
    run,
    async settle() {
      if (plan.index !== 0) return { counted: done, violations: [] }
      return { counted: done, total: await readCounter(database, key), violations: [] }
    },
  }
}
