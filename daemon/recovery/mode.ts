// The node's part in a recovery that somebody else runs: recovery mode, the new vnnmap and generation, the events at its
// beginning and end, the checks that protect the cluster lock (cluster page 5.8, 7.8; data path page 10.6).

import type { Timer } from "../../lib/net/ports.ts"
import { decode, ProtocolError } from "../../lib/protocol/codec.ts"
import { INVALID_GENERATION, RecoveryMode, RunState } from "../../lib/protocol/constants.ts"
import { controls } from "../../lib/protocol/controls.ts"
import type { VnnMap } from "../../lib/protocol/structs.ts"
import { ZERO64 } from "../../lib/protocol/word64.ts"
import type { NodeFreeze } from "../database/freeze.ts"
import type { NodeEnvironment } from "../environment.ts"
import type { Answer, Router } from "../routing.ts"
import { isActive, isConnected, type NodeState } from "../state.ts"
import { addLatency } from "../statistics.ts"

/** A node tries the lock itself for so long before it believes the leader (cluster page 5.6). */
const LOCK_TEST_MS = 5000
const COHERENCE =
  "Took recovery lock from daemon during recovery - probably a cluster filesystem lock coherence problem"

/** SET_RECMODE NORMAL while the lock is being tried. */
interface Normalizing {
  readonly cancel: () => void
  readonly answers: Answer[]
}

export class RecoverySide {
  private normalizing: Normalizing | undefined
  private dropAddressesTimer: Timer | undefined

  constructor(
    private readonly state: NodeState,
    private readonly environment: NodeEnvironment,
    private readonly router: Router,
    private readonly freeze: NodeFreeze,
    private readonly hooks: {
      /** Leaves the cluster, since it would only do harm. */
      readonly shutdown: (status: number, reason: string) => void
      readonly releaseAddresses: () => void
      /** Recovery mode is NORMAL again: what waited for that may go on. */
      readonly recovered: () => void
      readonly setRunState: (runState: number) => void
    },
  ) {}

  /** How any node asks for a recovery: the leader finds the mode ACTIVE in its next pass. */
  ask(reason: string): void {
    this.environment.log.notice(`${reason}. Recovery mode set to ACTIVE`)
    this.cancelNormal()
    this.state.recoveryMode = RecoveryMode.ACTIVE
  }

  setMode(mode: number, answer: Answer): void {
    if (mode !== RecoveryMode.NORMAL && mode !== RecoveryMode.ACTIVE) {
      answer({ status: -1 })
      return
    }
    if (mode === RecoveryMode.ACTIVE) {
      // A NORMAL that is still being checked must not overwrite this one later.
      this.cancelNormal()
      if (this.state.recoveryMode !== RecoveryMode.ACTIVE) {
        this.environment.log.notice("Recovery mode set to ACTIVE")
        this.state.recoveryMode = RecoveryMode.ACTIVE
      }
      // Also when the mode is ACTIVE already, from the start or by the node's own wish: a recovery that never ends must not
      // leave addresses where nobody serves them.
      this.armDropAddresses()
      answer({ status: 0 })
      return
    }
    if (this.state.recoveryMode === RecoveryMode.NORMAL) {
      answer({ status: 0 })
      return
    }
    this.setNormal(answer)
  }

  private setNormal(answer: Answer): void {
    if (this.normalizing !== undefined) {
      this.normalizing.answers.push(answer)
      return
    }
    if (!isActive(this.state.self) || this.state.generation === INVALID_GENERATION) {
      // It became inactive while a recovery was under way that counts on it; the next one will not.
      answer({ status: -1, error: "This node takes no part in the recovery" })
      return
    }
    const left = this.freeze.others(this.state.generation)
    if (left.length > 0) {
      for (const { name, generation } of left) {
        this.environment.log.error(`Inconsistent DB generation ${generation} for ${name}`)
      }
      answer({ status: -1 })
      return
    }
    if (this.freeze.frozen) this.freeze.thaw()
    const lock = this.state.clusterLock
    if (lock === undefined) {
      this.nowNormal()
      answer({ status: 0 })
      return
    }
    const startedMs = this.environment.monotonicMs()
    const cancel = this.environment.clusterLock.take(
      lock,
      LOCK_TEST_MS,
      (outcome, held) => {
        const answers = this.normalizing?.answers ?? []
        this.normalizing = undefined
        const seconds = (this.environment.monotonicMs() - startedMs) / 1000
        if (outcome === "contention") addLatency(this.state.statistics.now.reclock.ctdbd, seconds)
        if (outcome === "timeout") {
          this.environment.log.warning("Time out getting recovery lock, allowing recovery mode set anyway")
        }
        if (outcome === "contention" || outcome === "timeout") {
          this.nowNormal()
          for (const done of answers) done({ status: 0 })
          return
        }
        held?.release()
        const error = outcome === "taken" ? COHERENCE : "Unexpected error when testing recovery lock"
        this.environment.log.error(error)
        for (const done of answers) done({ status: -1, error })
      },
      () => {},
    )
    this.normalizing = { cancel, answers: [answer] }
  }

  private nowNormal(): void {
    this.environment.log.notice("Recovery mode set to NORMAL")
    this.state.recoveryMode = RecoveryMode.NORMAL
    this.dropAddressesTimer?.cancel()
    this.dropAddressesTimer = undefined
    this.hooks.recovered()
  }

  private cancelNormal(): void {
    if (this.normalizing === undefined) return
    this.normalizing.cancel()
    for (const answer of this.normalizing.answers) {
      answer({ status: -1, error: "Recovery mode was set to ACTIVE again" })
    }
    this.normalizing = undefined
  }

  private armDropAddresses(): void {
    this.dropAddressesTimer ??= this.environment.setTimer(this.state.tunables.RecoveryDropAllIPs * 1000, () => {
      this.dropAddressesTimer = undefined
      this.environment.log.error("Been in recovery mode for too long. Dropping all IPS")
      this.hooks.releaseAddresses()
    })
  }

  /** SETVNNMAP: false unless this node is in recovery. From now on packets carry the new generation. */
  setVnnMap(vnnMap: VnnMap): boolean {
    if (this.state.recoveryMode !== RecoveryMode.ACTIVE) {
      this.environment.log.error("Attempt to set vnnmap when not in recovery")
      return false
    }
    if (!isActive(this.state.self)) {
      // A generation would let record packets through again, and the recovery must learn that this node has left it.
      this.environment.log.error("Attempt to set vnnmap of an inactive node")
      return false
    }
    this.state.generation = vnnMap.generation
    this.state.vnnMap = vnnMap.map
    return true
  }

  start(srcnode: number, answer: Answer): void {
    this.environment.log.notice("Recovery has started")
    this.state.lastRecoveryStarted = this.environment.wallClock()
    const node = this.state.nodes[srcnode]
    if (node === undefined || !isConnected(node) || srcnode === this.state.pnn) {
      this.runStartEvent(answer)
      return
    }
    const control = { opcode: controls.GET_RECLOCK_FILE.opcode, srvid: ZERO64, clientId: 0, flags: 0, data: NO_DATA }
    this.router.request(srcnode, control, undefined, ({ status, data, error }) => {
      if (status !== 0) {
        answer(error === undefined || error === "" ? { status } : { status, error })
        return
      }
      let theirs: string | undefined
      try {
        theirs = decode(controls.GET_RECLOCK_FILE.reply, data ?? NO_DATA) ?? undefined
      } catch (failure) {
        if (!(failure instanceof ProtocolError)) throw failure
        answer({ status: -1, error: `GET_RECLOCK_FILE of node ${srcnode}: ${failure.message}` })
        return
      }
      if (theirs === this.state.clusterLock) {
        this.runStartEvent(answer)
        return
      }
      answer({ status: -1 })
      this.hooks.shutdown(
        1,
        `Recovery lock configuration inconsistent: recmaster has ${theirs ?? "NULL"}, ` +
          `this node has ${this.state.clusterLock ?? "NULL"}, shutting down`,
      )
    })
  }

  private runStartEvent(answer: Answer): void {
    const { EventScriptTimeout } = this.state.tunables
    this.environment.runEvent("startrecovery", "", EventScriptTimeout, (status) => answer({ status }))
  }

  end(answer: Answer): void {
    this.environment.log.notice("Recovery has finished")
    this.environment.runEvent("recovered", "", this.state.tunables.EventScriptTimeout, (status) => {
      this.state.statistics.now.numRecoveries++
      this.state.lastRecoveryFinished = this.environment.wallClock()
      this.state.lastRecoveryFinishedMs = this.environment.monotonicMs()
      if (this.state.runState === RunState.FIRST_RECOVERY) this.hooks.setRunState(RunState.STARTUP)
      answer({ status })
    })
  }
}

const NO_DATA = new Uint8Array(0)
