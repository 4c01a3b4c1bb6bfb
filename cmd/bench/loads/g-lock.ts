// A cluster-wide lock, taken and released again and again (load-generators 7), in the stock client's format. That nobody else has it meanwhile
// shows in memory that all workers share: a word with the holder's number, and a counter that has no other protection.

import { attach } from "../../../lib/client/attach.ts"
import { G_LOCK_DATABASE, GLock } from "../../../lib/client/g-lock.ts"
import type { Histogram } from "../histogram.ts"
import type { Load, LoadContext } from "./load.ts"

/** The stock generator's. */
const TASK_ID = 1

export async function gLock(context: LoadContext): Promise<Load> {
  const { plan, arena, client } = context
  const database = await attach(client, G_LOCK_DATABASE)
  let done = 0

  return {
    database,
    async run(latency: Histogram | undefined) {
      while (arena.running) {
        const begun = latency === undefined ? 0 : Bun.nanoseconds()
        const lock = await GLock.acquire(client, { name: plan.key, type: "write", taskId: TASK_ID })
        if (arena.holder !== 0) {
          context.violation(`worker ${plan.index} has the lock while worker ${arena.holder - 1} has it`)
        }
        arena.holder = plan.index + 1
        const guarded = arena.guarded
        arena.guarded = guarded + 1
        if (arena.holder !== plan.index + 1) context.violation(`the lock of worker ${plan.index} was taken over`)
        arena.holder = 0
        await lock.release()
        if (latency !== undefined) latency.record(Bun.nanoseconds() - begun)
        arena.setDone(plan.index, ++done)
      }
    },
    async settle() {
      return plan.index === 0
        ? { counted: done, total: arena.guarded, violations: [] }
        : { counted: done, violations: [] }
    },
  }
}
