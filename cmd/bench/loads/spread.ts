// Many records, counted up in random order by many clients on all nodes, so that they move all the time. The sum of all counters must be
// the sum of what the clients counted, and no client may see a record go back.

import type { Histogram } from "../histogram.ts"
import { attached, CounterValue, counterOf, type Load, type LoadContext, Pace, readCounter } from "./load.ts"

export async function spread(context: LoadContext): Promise<Load> {
  const { plan, arena } = context
  const database = await attached(context)
  const keys = Array.from({ length: plan.records }, (_, index) => Buffer.from(`${plan.key}.${index}`))
  const last = new Uint32Array(plan.records)
  const value = new CounterValue(plan.valueSize)
  // A linear congruential generator of its own: the same order in every run.
  let random = (plan.index + 1) * 2654435761
  let done = 0

  return {
    database,
    async run(latency: Histogram | undefined) {
      const pace = new Pace()
      while (arena.running) {
        random = (Math.imul(random, 1664525) + 1013904223) >>> 0
        const index = Math.floor((random / 2 ** 32) * plan.records)
        const begun = latency === undefined ? 0 : Bun.nanoseconds()
        const locked = database.fetchLock(keys[index]!)
        const record = locked instanceof Promise ? await locked : locked
        const before = record.parse(counterOf)
        if (before < last[index]!) context.violation(`record ${index} went back from ${last[index]} to ${before}`)
        last[index] = before + 1
        record.store(value.set(before + 1))
        record.unlock()
        if (latency !== undefined) latency.record(Bun.nanoseconds() - begun)
        arena.setDone(plan.index, ++done)
        const turn = pace.turn()
        if (turn !== undefined) await turn
      }
    },
    async settle() {
      if (plan.index !== 0) return { counted: done, violations: [] }
      let total = 0
      for (const key of keys) total += await readCounter(database, key)
      return { counted: done, total, violations: [] }
    },
  }
}
