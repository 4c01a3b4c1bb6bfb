// Monitoring: runs the monitor event at its pace, decides from its results whether this node is healthy, and tells the
// recovery side about a change (events page, section 14).

import { encode } from "../../lib/protocol/codec.ts"
import { BROADCAST_CONNECTED, Errno, NodeFlag, RecoveryMode, RunState, Srvid } from "../../lib/protocol/constants.ts"
import { nodeFlagChange, srvidMessage } from "../../lib/protocol/structs.ts"
import { ZERO64 } from "../../lib/protocol/word64.ts"
import type { NodeFreeze } from "../database/freeze.ts"
import type { NodeEnvironment } from "../environment.ts"
import type { Router } from "../routing.ts"
import type { NodeState } from "../state.ts"

/** Seconds to the first event after RUNNING, and after a change of health. */
const FIRST_S = 2
const CHANGED_S = 5

export class Monitor {
  private intervalS = FIRST_S
  private timeouts = 0

  constructor(
    private readonly state: NodeState,
    private readonly environment: NodeEnvironment,
    private readonly router: Router,
    private readonly freeze: NodeFreeze,
  ) {}

  start(): void {
    // The first event comes after 2 s, the second 5 s after one that made the node healthy.
    this.schedule(FIRST_S)
  }

  private schedule(seconds: number): void {
    this.environment.setTimer(Math.max(1, seconds) * 1000, () => this.look())
  }

  private look(): void {
    const { state, environment } = this
    if (state.shuttingDown) return
    const away = NodeFlag.DISCONNECTED | NodeFlag.BANNED | NodeFlag.DELETED | NodeFlag.STOPPED
    if (
      state.recoveryMode !== RecoveryMode.NORMAL ||
      state.runState !== RunState.RUNNING ||
      (state.self.flags & away) !== 0 ||
      this.freeze.frozen
    ) {
      this.schedule(this.intervalS)
      return
    }
    environment.runEvent("monitor", "", state.tunables.EventScriptTimeout, (status) => this.ended(status))
  }

  private ended(status: number): void {
    if (status === Errno.ECANCELED) this.environment.log.info("Monitoring event was cancelled")
    else if (status === Errno.ETIMEDOUT) this.timedOut()
    else {
      this.timeouts = 0
      this.setHealth(status === 0)
    }
    this.schedule(this.intervalS)
    this.intervalS = Math.min(this.intervalS * 2, this.state.tunables.MonitorInterval)
  }

  private timedOut(): void {
    this.timeouts++
    if (this.timeouts < this.state.tunables.MonitorTimeoutCount) return
    this.environment.log.error(`Maximum monitor timeout count ${this.timeouts} reached. Making node unhealthy`)
    this.setHealth(false)
  }

  private setHealth(healthy: boolean): void {
    const { self, pnn } = this.state
    const { log } = this.environment
    const oldFlags = self.flags
    if (healthy === ((oldFlags & NodeFlag.UNHEALTHY) === 0)) return
    self.flags = healthy ? oldFlags & ~NodeFlag.UNHEALTHY : oldFlags | NodeFlag.UNHEALTHY
    log.notice(healthy ? "monitor event OK - node re-enabled" : "monitor event failed - disabling node")
    this.intervalS = CHANGED_S
    this.environment.notify(healthy ? "healthy" : "unhealthy")
    this.router.sendMessage(pnn, Srvid.PUSH_NODE_FLAGS, encode(nodeFlagChange, { pnn, newFlags: self.flags, oldFlags }))
    log.notice(`Node became ${healthy ? "HEALTHY" : "UNHEALTHY"}. Ask recovery master to reallocate IPs`)
    this.router.sendMessage(BROADCAST_CONNECTED, Srvid.TAKEOVER_RUN, encode(srvidMessage, { pnn, srvid: ZERO64 }))
  }
}
