// The real clock and timers behind the Scheduler port. The simulator has its own.

import { workEndsMs } from "../sys/turn.ts"
import type { Scheduler, Timer } from "./ports.ts"

/** The runtime's timers count in 32 bits, and one that is later than that fires at once (ms). */
const LONGEST_MS = 0x7fffffff

class RealTimer implements Timer {
  constructor(private handle: ReturnType<typeof setTimeout> | undefined) {}
  cancel(): void {
    if (this.handle !== undefined) clearTimeout(this.handle)
    this.handle = undefined
  }
}

/** Bun's monotonic clock, timers and loop turns. A timer of more than LONGEST_MS (25 days) fires after them. */
export const realScheduler: Scheduler = {
  monotonicMs: () => performance.now(),
  setTimer: (delayMs, run) => new RealTimer(setTimeout(run, Math.min(Math.max(0, delayMs), LONGEST_MS))),
  nextTurn: (run) => void setImmediate(run),
  workEndsMs,
}
