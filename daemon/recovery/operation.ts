// An operation that can be switched off for a while and that runs one at a time: recoveries, and takeover runs (cluster
// page 6.6). Times are on the monotonic clock, in milliseconds.

import type { Logger } from "../../lib/config/log.ts"
import type { Scheduler, Timer } from "../../lib/net/ports.ts"

export class Operation {
  private disabledTimer: Timer | undefined
  private running = false

  constructor(
    private readonly name: string,
    private readonly scheduler: Scheduler,
    private readonly log: Logger,
  ) {}

  get disabled(): boolean {
    return this.disabledTimer !== undefined
  }

  get inProgress(): boolean {
    return this.running
  }

  /** Switches it off for some seconds, or on again with 0. false: it is running. */
  disable(seconds: number): boolean {
    if (seconds === 0) {
      if (this.disabledTimer !== undefined) this.log.notice(`Reenabling ${this.name}`)
      this.enable()
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

  /** false: it is switched off, or running already. */
  begin(): boolean {
    if (this.disabled) {
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
