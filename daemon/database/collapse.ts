// Fetch collapse (data path page 7.3): while a call of this node for a record is on its way, the other calls of this node for it
// wait for its end instead of following it. Knows queues of calls, not what they ask for.

import type { Scheduler, Timer } from "../../lib/net/ports.ts"
import type { Database } from "./database.ts"

/** They are let go after this time even if the call has not come back (ms). */
const WAIT_MS_MAX = 30_000
/** How often that is looked at, as long as any call is on its way (ms): one timer, and not one for each call. */
const LOOK_MS = 1000

/** The calls that wait for one that was sent. */
interface Collapsed {
  readonly key: Uint8Array
  readonly sinceMs: number
  readonly waiting: (() => void)[]
}

const sameKey = (a: Uint8Array, b: Uint8Array): boolean => Buffer.compare(a, b) === 0

export class Collapse {
  /** By the keys' hash; two keys of one hash stand in one list. */
  private readonly sent = new Map<Database, Map<number, Collapsed[]>>()
  private timer: Timer | undefined

  constructor(private readonly scheduler: Scheduler) {}

  attached(database: Database): void {
    this.sent.set(database, new Map())
  }

  detached(database: Database): void {
    const lists = this.sent.get(database)
    this.sent.delete(database)
    for (const list of lists?.values() ?? []) for (const queue of list) this.letGo(queue)
  }

  /** Is a call for that record on its way? */
  has(database: Database, key: Uint8Array, jenkins: number): boolean {
    return this.find(database, key, jenkins) !== undefined
  }

  /** `again` is called after the call that is on its way. */
  join(database: Database, key: Uint8Array, jenkins: number, again: () => void): void {
    this.find(database, key, jenkins)?.waiting.push(again)
  }

  private find(database: Database, key: Uint8Array, jenkins: number): Collapsed | undefined {
    const list = this.sent.get(database)?.get(jenkins)
    return list?.find((queue) => sameKey(queue.key, key))
  }

  /** A call was sent, and keeps its `key`: others may wait for it until release(). */
  begin(database: Database, key: Uint8Array, jenkins: number): void {
    const lists = this.sent.get(database)
    if (lists === undefined || this.has(database, key, jenkins)) return
    const queue = { key, sinceMs: this.scheduler.monotonicMs(), waiting: [] }
    const list = lists.get(jenkins)
    if (list === undefined) lists.set(jenkins, [queue])
    else list.push(queue)
    this.timer ??= this.scheduler.setTimer(LOOK_MS, () => this.look())
  }

  release(database: Database, key: Uint8Array, jenkins: number): void {
    const lists = this.sent.get(database)
    const list = lists?.get(jenkins)
    const at = list?.findIndex((queue) => sameKey(queue.key, key)) ?? -1
    if (lists === undefined || list === undefined || at < 0) return
    const [queue] = list.splice(at, 1)
    if (list.length === 0) lists.delete(jenkins)
    this.letGo(queue!)
  }

  private look(): void {
    this.timer = undefined
    const lateMs = this.scheduler.monotonicMs() - WAIT_MS_MAX
    let left = 0
    for (const [database, lists] of this.sent) {
      for (const [jenkins, list] of lists) {
        for (const queue of [...list]) {
          if (queue.sinceMs <= lateMs) this.release(database, queue.key, jenkins)
          else left++
        }
      }
    }
    if (left > 0) this.timer ??= this.scheduler.setTimer(LOOK_MS, () => this.look())
  }

  /** One call a turn, in their order: the first of them may be sent again, and then the rest wait for that one. */
  private letGo({ waiting }: Collapsed): void {
    let next = 0
    const step = () => {
      waiting[next++]?.()
      if (next < waiting.length) this.scheduler.nextTurn(step)
    }
    if (waiting.length > 0) this.scheduler.nextTurn(step)
  }
}
