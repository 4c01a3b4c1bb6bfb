// An operation that can be switched off for a while and that runs one at a time: recoveries, and takeover runs (cluster
// page 6.6). Times are on the monotonic clock, in milliseconds.

import type { Logger } from "../../lib/config/log.ts"
import type { Scheduler, Timer } from "../../lib/net/ports.ts"

export class Operation {
  /** Somebody has asked for it. */
  private disabledTimer: Timer | undefined
  /** This node keeps itself from it. */
  private suppressedTimer: Timer | undefined
  private running = false

  constructor(
    private readonly name: string,
    private readonly scheduler: Scheduler,
    private readonly log: Logger,
  ) {}

  get disabled(): boolean {
    return this.disabledTimer !== undefined
  }

  get suppressed(): boolean {
    return this.suppressedTimer !== undefined
  }

  get inProgress(): boolean {
    return this.running
  }

  /** Switches it off for some seconds, or on again with 0. false: it is running. */
  disable(seconds: number): boolean {
    if (seconds === 0) {
      if (this.disabled || this.suppressed) this.log.notice(`Reenabling ${this.name}`)
      this.enable()
      this.lift()
      return true
    }
    if (this.running) {
      this.log.error(`Unable to disable ${this.name} - in progress`)
      return false
    }
    this.log.notice(`Disabling ${this.name} for ${seconds} seconds`)
    this.enable()
    this.disabledTimer = this.scheduler.setTimer(seconds * 1000, () => {
      this.disabledTimer = undefined
      this.log.notice(`Reenabling ${this.name} after timeout`)
    })
    return true
  }

  /** Keeps it from running for some seconds; unlike disable() that can be lifted without undoing another's wish. */
  suppress(seconds: number): void {
    this.lift()
    this.suppressedTimer = this.scheduler.setTimer(seconds * 1000, () => {
      this.suppressedTimer = undefined
      this.log.notice(`Reenabling ${this.name} after timeout`)
    })
  }

  lift(): void {
    this.suppressedTimer?.cancel()
    this.suppressedTimer = undefined
  }

  /** false: it is switched off, or running already. */
  begin(): boolean {
    if (this.disabled || this.suppressed) {
      this.log.notice(`Unable to begin - ${this.name} are disabled`)
      return false
    }
    if (this.running) return false
    this.running = true
    return true
  }

  end(): void {
    this.running = false
  }

  private enable(): void {
    this.disabledTimer?.cancel()
    this.disabledTimer = undefined
  }
}
