// Notices when one turn of the event loop took too long, and says what was handled last: nothing in a node may hold up the
// loop, and what does is to be found in the log. It measures; it changes nothing.

import type { Logger } from "../lib/config/log.ts"
import type { Scheduler } from "../lib/net/ports.ts"
import { controlName } from "../lib/protocol/controls.ts"
import { Operation, operationName } from "../lib/protocol/packet.ts"

/** A turn longer than this is counted and logged (ms). */
const LONG_TURN_MS = 100
/** How often the loop is looked at (ms). */
const LOOK_MS = 50
/** One line for so long, whatever happens in it: a slow machine must not fill its log (ms). */
const QUIET_MS = 5000

/** The packet that was handled last, which is what made a long turn long; -1 before the first. */
export interface Handled {
  readonly operation: number
  /** Of the last control. */
  readonly opcode: number
}

export class LoopWatch {
  /** Turns over LONG_TURN_MS since the start. */
  longTurns = 0
  longestMs = 0
  private expectedMs = 0
  private loggedMs = Number.NEGATIVE_INFINITY

  constructor(
    private readonly scheduler: Scheduler,
    private readonly log: Logger,
    private readonly handled: Handled,
  ) {}

  start(): void {
    this.expectedMs = this.scheduler.monotonicMs() + LOOK_MS
    this.scheduler.setTimer(LOOK_MS, () => this.look())
  }

  private look(): void {
    const nowMs = this.scheduler.monotonicMs()
    const lateMs = nowMs - this.expectedMs
    if (lateMs > LONG_TURN_MS) {
      this.longTurns++
      this.longestMs = Math.max(this.longestMs, lateMs)
      if (nowMs - this.loggedMs > QUIET_MS) {
        this.loggedMs = nowMs
        this.log.warning(`The event loop stood still for ${Math.round(lateMs)} ms (last: ${this.last()})`)
      }
    }
    this.start()
  }

  private last(): string {
    const { operation, opcode } = this.handled
    if (operation < 0) return "no packet yet"
    return operation === Operation.REQ_CONTROL ? `control ${controlName(opcode) ?? opcode}` : operationName(operation)
  }
}
