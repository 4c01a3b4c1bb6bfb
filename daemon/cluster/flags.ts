// A node's own flags, of which it is the authority, and what it takes over of the others' (cluster page, section 4):
// stop and continue, ban and its end, disable and enable, MODIFY_FLAGS. Spreading flags is the recovery side's business.

import type { Timer } from "../../lib/net/ports.ts"
import { INVALID_GENERATION, NodeFlag, RunState } from "../../lib/protocol/constants.ts"
import type { BanState, NodeFlagChange } from "../../lib/protocol/structs.ts"
import type { NodeFreeze } from "../database/freeze.ts"
import type { NodeEnvironment } from "../environment.ts"
import { isActive, isConnected, type NodeState } from "../state.ts"

/** A ban of this node that runs. */
interface Ban {
  readonly seconds: number
  readonly timer: Timer
}

export class Flags {
  private ban: Ban | undefined

  constructor(
    private readonly state: NodeState,
    private readonly environment: NodeEnvironment,
    private readonly freeze: NodeFreeze,
    private readonly askForRecovery: (reason: string) => void,
    /** All public addresses leave this node. */
    private readonly releaseAddresses: () => void,
    /** The recovery daemon need not find out by itself that it can not lead any more. */
    private readonly tellRecoveryDaemon: (change: NodeFlagChange) => void,
  ) {}

  modify({ pnn, newFlags }: NodeFlagChange): boolean {
    const { log } = this.environment
    const node = this.state.nodes[pnn]
    if (node === undefined) {
      log.error(`Node ${pnn} is invalid`)
      return false
    }
    if (pnn === this.state.pnn || !isConnected(node)) return true
    const before = node.flags
    node.flags = (newFlags & ~NodeFlag.DISCONNECTED) | (before & NodeFlag.DISCONNECTED)
    if (node.flags === before) return true
    log.notice(`Node ${pnn} has changed flags - ${hex(before)} -> ${hex(node.flags)}`)
    if (node.flags === 0 && this.state.runState <= RunState.STARTUP) {
      this.askForRecovery(`Node ${pnn} became healthy - force recovery for startup`)
    }
    return true
  }

  stop(): void {
    this.environment.log.notice("Stopping node")
    this.setInactive(NodeFlag.STOPPED)
  }

  continue(): void {
    this.environment.log.notice("Continue node")
    this.state.self.flags &= ~NodeFlag.STOPPED
  }

  disable(): void {
    this.environment.log.notice("Disable node")
    this.state.self.flags |= NodeFlag.PERMANENTLY_DISABLED
  }

  enable(): void {
    this.environment.log.notice("Enable node")
    this.state.self.flags &= ~NodeFlag.PERMANENTLY_DISABLED
  }

  /** SET_BAN_STATE. false: it names another node. */
  setBanState({ pnn, time }: BanState): boolean {
    const { log } = this.environment
    if (pnn !== this.state.pnn) {
      log.warning(`SET_BAN_STATE control for PNN ${pnn} ignored`)
      return false
    }
    if (this.state.tunables.EnableBans === 0) {
      log.error(`Bans are disabled - ignoring ban of node ${pnn}`)
      return true
    }
    this.ban?.timer.cancel()
    this.ban = undefined
    if (time === 0) {
      log.error("Unbanning this node")
      this.state.self.flags &= ~NodeFlag.BANNED
      return true
    }
    log.error(`Banning this node for ${time} seconds`)
    this.startBan(time)
    if ((this.state.self.flags & NodeFlag.BANNED) === 0) this.setInactive(NodeFlag.BANNED)
    return true
  }

  /** Seconds as they were set, not what is left; 0 if not banned. */
  banState(): BanState {
    return { pnn: this.state.pnn, time: this.ban?.seconds ?? 0 }
  }

  private startBan(seconds: number): void {
    this.ban = { seconds, timer: this.environment.setTimer(seconds * 1000, () => this.banOver()) }
  }

  private banOver(): void {
    this.ban = undefined
    if (!this.freeze.allFrozen) {
      // Records are still locked by somebody who must not meet a cluster that has gone on.
      this.environment.log.error("Banning timed out, but not all databases frozen yet - banning this node again.")
      this.startBan(this.state.tunables.RecoveryBanPeriod)
      return
    }
    this.environment.log.error("Banning timed out")
    this.state.self.flags &= ~NodeFlag.BANNED
  }

  private setInactive(flag: number): void {
    const { self, pnn } = this.state
    const oldFlags = self.flags
    const wasActive = isActive(self)
    self.flags |= flag
    if (!wasActive) return
    this.environment.log.error("Making node INACTIVE")
    // From now on record packets of any generation are dropped, and what lies here counts for nothing in a recovery.
    this.state.generation = INVALID_GENERATION
    this.freeze.invalidate()
    this.askForRecovery("node became inactive")
    this.freeze.freeze(() => {})
    this.tellRecoveryDaemon({ pnn, newFlags: self.flags, oldFlags })
    this.environment.log.notice("Dropping all public IP addresses")
    this.releaseAddresses()
  }
}

function hex(flags: number): string {
  return `0x${flags.toString(16)}`
}
