// The keys that migrate to this node most often (data path page 7.2): a count a key within a second, and a table of the ten
// highest. Only counts and logs; what is hot may be reported, and is nobody's reason to act.

import type { Logger } from "../../lib/config/log.ts"
import { HOT_KEYS_MAX } from "../../lib/protocol/constants.ts"
import type { HotKey } from "../../lib/protocol/structs.ts"

/** Migrations of a key count together for so long from the first one on. */
const WINDOW_MS = 1000
/** Counts whose window is over are dropped so often. */
const PURGE_MS = 10_000

interface Counter {
  count: number
  sinceMs: number
}

interface Slot {
  readonly hex: string
  readonly key: Uint8Array
  count: number
  lastLogged: number
}

export class HotKeys {
  /** By the hash of the key: two keys of one hash, which are rare, count together. */
  private readonly counters = new Map<number, Counter>()
  private slots: Slot[] = []
  private purgedMs = 0

  constructor(
    private readonly database: string,
    private readonly log: Logger,
  ) {}

  /** A record has come to this node. */
  count(key: Uint8Array, jenkins: number, nowMs: number): void {
    if (nowMs - this.purgedMs > PURGE_MS) this.purge(nowMs)
    const counter = this.counters.get(jenkins)
    let count = 1
    if (counter === undefined) this.counters.set(jenkins, { count, sinceMs: nowMs })
    else if (nowMs - counter.sinceMs > WINDOW_MS) {
      counter.count = 1
      counter.sinceMs = nowMs
    } else count = ++counter.count
    const full = this.slots.length === HOT_KEYS_MAX
    if (!full || count > (this.slots[0]?.count ?? 0)) this.enter(key, count, full)
  }

  private enter(key: Uint8Array, count: number, full: boolean): void {
    const { slots } = this
    const hex = Buffer.from(key.buffer, key.byteOffset, key.byteLength).toString("hex")
    const known = slots.find((slot) => slot.hex === hex)
    if (known !== undefined) {
      if (count <= known.count) return
      known.count = count
      if (count >= 2 * known.lastLogged) {
        known.lastLogged = count
        this.log.notice(`Updated hot key database=${this.database} key=${hex.toUpperCase()} count=${count}`)
      }
    } else {
      if (full) slots.shift()
      slots.push({ hex, key: key.slice(), count, lastLogged: count })
      this.log.notice(`Added hot key database=${this.database} key=${hex.toUpperCase()} count=${count}`)
    }
    slots.sort((a, b) => a.count - b.count)
  }

  private purge(nowMs: number): void {
    this.purgedMs = nowMs
    for (const [jenkins, counter] of this.counters) {
      if (nowMs - counter.sinceMs > WINDOW_MS) this.counters.delete(jenkins)
    }
  }

  /** Ascending by count. */
  list(): HotKey[] {
    return this.slots.map(({ count, key }) => ({ count, key }))
  }

  reset(): void {
    this.slots = []
  }
}
