// Read-only fetch-locks of one hot record (load-generators 6) in a database with the read-only property, while the first worker writes to it
// now and then, which takes back all copies. No reader may see the record go back.

import type { Histogram } from "../histogram.ts"
import { attached, BATCH, CounterValue, counterOf, type Load, type LoadContext, Pace, readCounter } from "./load.ts"

export async function readonly(context: LoadContext): Promise<Load> {
  const { plan, arena } = context
  const database = await attached(context, !plan.shared)
  const key = Buffer.from(plan.key)
  const value = new CounterValue(plan.valueSize)
  const writer = plan.index === 0 && !plan.shared
  let last = 0
  let done = 0
  let written = 0

  async function write(): Promise<void> {
    const record = await database.fetchLock(key)
    const before = record.parse(counterOf)
    if (before < last) context.violation(`record went back from ${last} to ${before} for the writer`)
    record.store(value.set(before + 1))
    record.unlock()
    last = before + 1
    written++
  }

  return {
    database,
    async run(latency: Histogram | undefined) {
      const pace = new Pace()
      let nextWrite = performance.now()
      while (arena.running) {
        if (writer && plan.rate > 0 && performance.now() >= nextWrite) {
          await write()
          nextWrite += 1000 / plan.rate
        }
        for (let i = 0; i < BATCH; i++) {
          const begun = latency === undefined ? 0 : Bun.nanoseconds()
          const locked = database.fetchLock(key, "read")
          const record = locked instanceof Promise ? await locked : locked
          const seen = record.parse(counterOf)
          record.unlock()
          if (latency !== undefined) latency.record(Bun.nanoseconds() - begun)
          if (seen < last) context.violation(`a reader saw the record go back from ${last} to ${seen}`)
          last = seen
        }
        done += BATCH
        arena.setDone(plan.index, done)
        const turn = pace.turn()
        if (turn !== undefined) await turn
      }
    },
    async settle() {
      if (plan.index !== 0) return { counted: 0, violations: [] }
      return { counted: written, total: await readCounter(database, key), violations: [] }
    },
  }
}
