// Log lines about what other programs send: the first of a kind at once, and then one line a period with how many more came,
// so that a flood costs a number and not a log. What is worth a complaint, and what makes two of a kind, its users say.

import type { Logger } from "../lib/config/log.ts"
import type { Scheduler } from "../lib/net/ports.ts"

/** Between two lines about complaints of one kind (ms). */
const PERIOD_MS = 10_000
/** So many kinds are kept apart; all others together are one. */
const KINDS_MAX = 256
const OTHERS = "others"

interface Kind {
  text: string
  more: number
}

export class Complaints {
  private readonly kinds = new Map<string, Kind>()
  private counting = false

  constructor(private readonly environment: Scheduler & { readonly log: Logger }) {}

  /** Logs `text` at level ERROR unless one of that kind was logged in this period. */
  add(kind: string, text: string): void {
    const key = this.kinds.size < KINDS_MAX || this.kinds.has(kind) ? kind : OTHERS
    const known = this.kinds.get(key)
    if (known !== undefined) {
      known.more++
      known.text = text
      return
    }
    this.environment.log.error(text)
    this.kinds.set(key, { text, more: 0 })
    this.countLater()
  }

  private countLater(): void {
    if (this.counting) return
    this.counting = true
    this.environment.setTimer(PERIOD_MS, () => {
      this.counting = false
      this.count()
    })
  }

  private count(): void {
    for (const [key, kind] of this.kinds) {
      if (kind.more === 0) {
        this.kinds.delete(key)
        continue
      }
      this.environment.log.error(`${kind.text} (the last of ${kind.more} more like it)`)
      kind.more = 0
    }
    if (this.kinds.size > 0) this.countLater()
  }
}
