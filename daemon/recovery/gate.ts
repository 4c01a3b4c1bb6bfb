// Lets a few databases at a time move their records, so that the memory of a recovery does not grow with the number of
// databases. One that waits for a node does not count: it must not hold up the others.

import type { Scheduler, Timer } from "../../lib/net/ports.ts"
import type { Task } from "./task.ts"

/** A database that nothing came for in this time (ms) has left its place to others. */
const STALLED_MS = 1000

export interface Pass {
  /** Something was moved. */
  moved(): void
  leave(): void
}

export class Gate {
  private readonly inside = new Set<{ movedMs: number }>()
  private waiting: (() => void)[] = []
  private timer: Timer | undefined

  constructor(
    private readonly scheduler: Scheduler,
    private readonly places: number,
  ) {}

  /** Waits for a place. In the order of asking. */
  *enter(): Task<Pass> {
    if (this.waiting.length > 0 || this.busy() >= this.places) {
      yield (resume) => {
        const go = () => resume(undefined)
        this.waiting.push(go)
        this.watch()
        return () => {
          this.waiting = this.waiting.filter((other) => other !== go)
        }
      }
    }
    const entry = { movedMs: this.scheduler.monotonicMs() }
    this.inside.add(entry)
    return {
      moved: () => {
        entry.movedMs = this.scheduler.monotonicMs()
      },
      leave: () => {
        if (this.inside.delete(entry)) this.admit()
      },
    }
  }

  private busy(): number {
    const nowMs = this.scheduler.monotonicMs()
    let count = 0
    for (const { movedMs } of this.inside) if (nowMs - movedMs < STALLED_MS) count++
    return count
  }

  private admit(): void {
    let free = this.places - this.busy()
    while (free-- > 0 && this.waiting.length > 0) this.waiting.shift()?.()
  }

  private watch(): void {
    this.timer ??= this.scheduler.setTimer(STALLED_MS / 2, () => {
      this.timer = undefined
      this.admit()
      if (this.waiting.length > 0) this.watch()
    })
  }
}
