// Fetch collapse (data path page 7.3): while a call of this node for a record is on its way, the other calls of this node for it
// wait for its end instead of following it. Knows queues of calls, not what they ask for.

import type { Scheduler, Timer } from "../../lib/net/ports.ts"
import type { Database } from "./database.ts"

/** They are let go after this time even if the call has not come back (ms). */
const WAIT_MS_MAX = 30_000

/** The calls that wait for one that was sent. */
class Collapsed {
  readonly waiting: (() => void)[] = []
  timer: Timer | undefined
}

export class Collapse {
  private readonly sent = new Map<Database, Map<string, Collapsed>>()

  constructor(private readonly scheduler: Scheduler) {}

  attached(database: Database): void {
    this.sent.set(database, new Map())
  }

  detached(database: Database): void {
    const queues = this.sent.get(database)
    this.sent.delete(database)
    for (const queue of queues?.values() ?? []) this.letGo(queue)
  }

  /** Is a call for that record on its way? */
  has(database: Database, key: Uint8Array): boolean {
    const queues = this.sent.get(database)
    return queues !== undefined && queues.size > 0 && queues.has(nameOf(key))
  }

  /** `again` is called after the call that is on its way. */
  join(database: Database, key: Uint8Array, again: () => void): void {
    this.sent.get(database)?.get(nameOf(key))?.waiting.push(again)
  }

  /** A call was sent: others may wait for it until release(). */
  begin(database: Database, key: Uint8Array): void {
    const queues = this.sent.get(database)
    const name = nameOf(key)
    if (queues === undefined || queues.has(name)) return
    const queue = new Collapsed()
    queues.set(name, queue)
    queue.timer = this.scheduler.setTimer(WAIT_MS_MAX, () => this.release(database, key))
  }

  release(database: Database, key: Uint8Array): void {
    const queues = this.sent.get(database)
    const name = nameOf(key)
    const queue = queues?.get(name)
    if (queue === undefined) return
    queues?.delete(name)
    this.letGo(queue)
  }

  /** One call a turn, in their order: the first of them may be sent again, and then the rest wait for that one. */
  private letGo(queue: Collapsed): void {
    queue.timer?.cancel()
    let next = 0
    const step = () => {
      queue.waiting[next++]?.()
      if (next < queue.waiting.length) this.scheduler.nextTurn(step)
    }
    if (queue.waiting.length > 0) this.scheduler.nextTurn(step)
  }
}

function nameOf(key: Uint8Array): string {
  return Buffer.from(key.buffer, key.byteOffset, key.byteLength).toString("latin1")
}
