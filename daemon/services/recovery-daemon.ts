// Watches over the recovery daemon, a process of its own: starts it again when it has ended or hangs, and asks it to leave
// at shutdown (cluster page 1.10). What it does is in daemon/recovery.

import type { Timer } from "../../lib/net/ports.ts"
import type { NodeEnvironment, RecoveryProcess } from "../environment.ts"
import type { NodeState } from "../state.ts"

/** A recovery daemon that ends at once, again and again, is started with this pause. */
const RESTART_MS = 1000
/**
 * The recovery daemon pings from a timer of its own, once a second, whatever else it waits for. After so long without one
 * it hangs. (RecdPingTimeout, 60 s by default, is the upper bound; a stock daemon waits for eleven of those.)
 */
const HUNG_MS = 10_000
/** A timer that fires later than this was held up by a pause of this whole process. */
const PAUSE_MS = 1500
/** At shutdown it gets this long to hand over leadership and lock. */
const LEAVE_MS = 2000

export class RecoveryDaemonWatch {
  private process: RecoveryProcess | undefined
  private hungTimer: Timer | undefined
  private leaving: { readonly done: () => void; readonly timer: Timer } | undefined

  constructor(
    private readonly state: NodeState,
    private readonly environment: NodeEnvironment,
  ) {}

  start(): void {
    const process = this.environment.startRecoveryDaemon((reason) => {
      if (this.process !== process) return
      this.process = undefined
      this.hungTimer?.cancel()
      if (this.leaving !== undefined) this.left()
      else this.restart(reason)
    })
    this.process = process
    this.watch()
  }

  /** The log was rotated. */
  reopenLog(): void {
    this.process?.reopenLog()
  }

  /** RECD_PING came. */
  pinged(): void {
    if (this.process !== undefined) this.watch()
  }

  /** Ends it in an orderly way; `done` comes when it has ended, or after LEAVE_MS. */
  leave(done: () => void): void {
    if (this.process === undefined) {
      done()
      return
    }
    this.hungTimer?.cancel()
    this.leaving = { done, timer: this.environment.setTimer(LEAVE_MS, () => this.left()) }
    this.process.terminate()
  }

  private left(): void {
    const leaving = this.leaving
    this.leaving = undefined
    leaving?.timer.cancel()
    this.process?.kill()
    this.process = undefined
    leaving?.done()
  }

  private restart(reason: string): void {
    if (this.state.shuttingDown) return
    this.environment.log.error(`Recovery daemon is no longer running (${reason}). Trying to restart recovery daemon.`)
    this.environment.setTimer(RESTART_MS, () => {
      if (!this.state.shuttingDown) this.start()
    })
  }

  private watch(): void {
    this.hungTimer?.cancel()
    const timeoutS = this.state.tunables.RecdPingTimeout
    if (timeoutS === 0 || this.leaving !== undefined) return
    const limitMs = Math.min(timeoutS * 1000, HUNG_MS)
    const dueMs = this.environment.monotonicMs() + limitMs
    this.hungTimer = this.environment.setTimer(limitMs, () => this.hung(dueMs))
  }

  private hung(dueMs: number): void {
    if (this.environment.monotonicMs() - dueMs > PAUSE_MS) {
      // It was this process that stood still; the pings of that time are still to be read.
      this.watch()
      return
    }
    this.environment.log.error("Recovery daemon ping timeout. Ending it")
    // A stopped process keeps a TERM pending and holds the cluster lock: only KILL frees it. Its end brings the restart.
    this.process?.kill()
  }
}
