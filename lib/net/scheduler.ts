// The real clock and timers behind the Scheduler port. The simulator has its own.

import type { Scheduler, Timer } from "./ports.ts"

class RealTimer implements Timer {
  constructor(private handle: ReturnType<typeof setTimeout> | undefined) {}
  cancel(): void {
    if (this.handle !== undefined) clearTimeout(this.handle)
    this.handle = undefined
  }
}

/** Bun's monotonic clock, timers and loop turns. */
export const realScheduler: Scheduler = {
  monotonicMs: () => performance.now(),
  setTimer: (delayMs, run) => new RealTimer(setTimeout(run, Math.max(0, delayMs))),
  nextTurn: (run) => void setImmediate(run),
}
