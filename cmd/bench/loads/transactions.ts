// Transactions on a persistent or replicated database (load-generators 8): one record with a counter for each worker. Every commit must be
// there in the next transaction, nobody's counter may go back, and in the end the sequence number has grown by all commits together.

import { attach } from "../../../lib/client/attach.ts"
import { sequenceNumber, Transaction } from "../../../lib/client/transaction.ts"
import type { Histogram } from "../histogram.ts"
import type { Load, LoadContext } from "./load.ts"

export async function transactions(context: LoadContext): Promise<Load> {
  const { plan, client, arena } = context
  // Several databases: workers take them by turns.
  const databases = Math.max(1, plan.records)
  const own = plan.index % databases
  const name = databases === 1 ? plan.database : plan.database.replace(/\.tdb$/, `.${own}.tdb`)
  const database = await attach(client, name, { kind: plan.kind })
  const key = Buffer.from(plan.key)
  /** With stock generators, a node has a place; among our own workers each has. */
  const places = plan.shared ? plan.nodes : plan.workers
  const place = plan.shared ? client.pnn : plan.index
  const last = new Uint32Array(places)
  const first = (await sequenceNumber(database)).lo
  const isFirst = plan.index < databases
  let done = 0
  let known = false

  async function once(): Promise<void> {
    const transaction = await Transaction.start(client, database)
    const stored = await transaction.fetch(key)
    const bytes = new Uint8Array(Math.max(4 * places, plan.valueSize, stored?.length ?? 0))
    if (stored !== undefined && stored.length >= 4 * places) bytes.set(stored)
    const view = new DataView(bytes.buffer)
    for (let other = 0; other < places; other++) {
      const counter = view.getUint32(4 * other, true)
      if (counter < last[other]!) {
        context.violation(
          `counter reduced for ${plan.shared ? "node" : "worker"} ${other}: ${last[other]} -> ${counter}`,
        )
      }
      if (other === place && known && counter !== last[other]) {
        context.violation(`worker ${place} committed ${last[other]} and finds ${counter}`)
      }
      last[other] = counter
    }
    last[place]!++
    known = !plan.shared || plan.workers <= plan.nodes
    view.setUint32(4 * place, last[place]!, true)
    await transaction.store(key, bytes)
    await transaction.commit()
    done++
  }

  return {
    database,
    async run(latency: Histogram | undefined) {
      while (arena.running) {
        const begun = latency === undefined ? 0 : Bun.nanoseconds()
        await once()
        if (latency !== undefined) latency.record(Bun.nanoseconds() - begun)
        arena.setDone(plan.index, done)
      }
    },
    async settle() {
      const commits = (await sequenceNumber(database)).lo - first
      return isFirst ? { counted: done, total: commits, violations: [] } : { counted: done, violations: [] }
    },
  }
}
