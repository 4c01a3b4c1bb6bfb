// Loads on the daemon's client side alone: control round trips, clients that do nothing, clients that send each other messages at a given rate,
// and filling a database with records.

import { Client } from "../../../lib/client/client.ts"
import { CURRENT_NODE } from "../../../lib/protocol/constants.ts"
import { word64 } from "../../../lib/protocol/word64.ts"
import type { Histogram } from "../histogram.ts"
import { attached, CounterValue, counterOf, type Load, type LoadContext } from "./load.ts"

/** GET_PNN, one at a time. The answer must be the node's number. */
export async function control(context: LoadContext): Promise<Load> {
  const { plan, client, arena } = context
  let done = 0
  return {
    async run(latency: Histogram | undefined) {
      await new Promise<void>((resolve) => {
        let begun = 0
        const ask = (): void => {
          begun = latency === undefined ? 0 : Bun.nanoseconds()
          client.session.request("GET_PNN", CURRENT_NODE, {}, (reply) => {
            if (latency !== undefined) latency.record(Bun.nanoseconds() - begun)
            if (!reply.ok || reply.status !== client.pnn) context.violation(`GET_PNN answered ${reply.status}`)
            arena.setDone(plan.index, ++done)
            if (arena.running && reply.ok) ask()
            else resolve()
          })
        }
        ask()
      })
    },
    settle: async () => ({ counted: 0, violations: [] }),
  }
}

async function connectMany(socket: string, count: number): Promise<Client[]> {
  const clients: Client[] = []
  for (let i = 0; i < count; i++) clients.push(await Client.connect({ socket, timeoutMs: 10_000 }))
  return clients
}

/** Clients that are connected and no more. All must still be connected in the end. */
export async function idle(context: LoadContext): Promise<Load> {
  const { plan, arena } = context
  const clients = await connectMany(plan.socket, plan.clients)
  arena.setDone(plan.index, clients.length)
  return {
    async run() {
      while (arena.running) await Bun.sleep(20)
      const gone = clients.filter((client) => !client.isOpen).length
      if (gone > 0) context.violation(`${gone} of ${clients.length} idle clients were disconnected`)
    },
    settle: async () => ({ counted: 0, violations: [] }),
  }
}

/** Sends are due in steps of this (ms). */
const STEP_MS = 2

/**
 * Clients that send messages to one another in a ring, `rate` a second together, each due at a time of its own whatever happened before: how long
 * one takes is counted from when it was due. All that were sent must arrive, in their order.
 */
export async function flood(context: LoadContext): Promise<Load> {
  const { plan, arena } = context
  const clients = await connectMany(plan.socket, plan.clients)
  /** When the message with this number was due; numbers go round. */
  const due = new Float64Array(1 << 20)
  const mask = due.length - 1
  let sent = 0
  let arrived = 0
  let latency: Histogram | undefined
  const lastOf = new Float64Array(plan.clients).fill(-1)
  const srvidOf = (index: number) => word64(0xae0000ff, plan.index * 65536 + index)
  for (const [index, client] of clients.entries()) {
    await client.onMessage(srvidOf(index), (data) => {
      const number = new DataView(data.buffer, data.byteOffset, data.byteLength).getFloat64(0, true)
      if (number <= lastOf[index]!) context.violation(`client ${index} got message ${number} after ${lastOf[index]}`)
      lastOf[index] = number
      arrived++
      arena.setDone(plan.index, arrived)
      if (latency !== undefined) latency.record((performance.now() - due[number & mask]!) * 1e6)
    })
  }
  return {
    async run(into: Histogram | undefined) {
      latency = into
      const start = performance.now() - sent / (plan.rate / 1000)
      while (arena.running) {
        const now = performance.now()
        for (let when = start + sent / (plan.rate / 1000); when <= now; when = start + sent / (plan.rate / 1000)) {
          const data = new Uint8Array(8)
          new DataView(data.buffer).setFloat64(0, sent, true)
          due[sent & mask] = when
          const to = sent % plan.clients
          clients[(to + 1) % plan.clients]!.sendMessage(clients[0]!.pnn, srvidOf(to), data)
          sent++
        }
        await Bun.sleep(STEP_MS)
      }
      const deadline = performance.now() + 10_000
      while (arrived < sent && performance.now() < deadline) await Bun.sleep(STEP_MS)
      if (arrived !== sent) context.violation(`${sent} messages were sent, ${arrived} arrived`)
    },
    settle: async () => ({ counted: sent, total: arrived, violations: [] }),
  }
}

/** So many records are on their way at a time. */
const FILLING = 64

/** Fills a database before something else is measured; settles with how many records are as it left them. */
export async function fill(context: LoadContext): Promise<Load> {
  const { plan, arena } = context
  const database = await attached(context)
  const value = new CounterValue(plan.valueSize)
  const keyOf = (index: number) => Buffer.from(`${plan.key}.${index}`)

  /** Calls `see` for each record of this worker under its lock. */
  async function each(
    see: (record: Awaited<ReturnType<typeof database.fetchLock>>, index: number) => void,
  ): Promise<void> {
    let next = plan.index
    const one = async (): Promise<void> => {
      for (let index = next; index < plan.records; index = next) {
        next = index + plan.workers
        const locked = database.fetchLock(keyOf(index))
        const record = locked instanceof Promise ? await locked : locked
        try {
          see(record, index)
        } finally {
          record.unlock()
        }
      }
    }
    await Promise.all(Array.from({ length: FILLING }, one))
  }

  return {
    database,
    async run() {
      let done = 0
      await each((record, index) => {
        record.store(value.set(index))
        arena.setDone(plan.index, ++done)
      })
    },
    async settle() {
      let wrong = 0
      let seen = 0
      await each((record, index) => {
        seen++
        if (record.parse(counterOf) !== index) wrong++
      })
      return { counted: seen, violations: wrong === 0 ? [] : [`${wrong} of ${seen} records are not as they were left`] }
    },
  }
}
