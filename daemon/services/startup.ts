// The way of a node from its first recovery to RUNNING: waits until the cluster has recovered with it, runs the startup
// event, tells the others (cluster page 1.7). The run state only ever grows.

import {
  BROADCAST_CONNECTED,
  INVALID_GENERATION,
  NodeFlag,
  RecoveryMode,
  RunState,
} from "../../lib/protocol/constants.ts"
import { controls } from "../../lib/protocol/controls.ts"
import type { NodeEnvironment } from "../environment.ts"
import type { Router } from "../routing.ts"
import type { NodeState } from "../state.ts"

const NAMES = ["UNKNOWN", "INIT", "SETUP", "FIRST_RECOVERY", "STARTUP", "RUNNING", "SHUTDOWN"]

/** Raises the run state. Lowering it would mean that the node has lost track of itself. */
export function setRunState(state: NodeState, environment: NodeEnvironment, runState: number): void {
  if (runState <= state.runState) throw new Error(`run state can't go from ${state.runState} to ${runState}`)
  environment.log.notice(`Set runstate to ${NAMES[runState]} (${runState})`)
  state.runState = runState
}

/** Besides RerecoveryTimeout, so that one more recovery that is due happens before the startup event (seconds). */
const SETTLE_S = 3

export class Startup {
  private waits = 0

  constructor(
    private readonly state: NodeState,
    private readonly environment: NodeEnvironment,
    private readonly router: Router,
    private readonly testMode: boolean,
    private readonly running: () => void,
  ) {}

  /** Looks once a second whether the node may go on. */
  wait(): void {
    this.environment.setTimer(1000, () => this.look())
  }

  private look(): void {
    const { state, environment } = this
    if (state.shuttingDown) return
    if (this.waits < 60 || this.waits % 600 === 0) {
      environment.log.notice("CTDB_WAIT_UNTIL_RECOVERED")
      if ((state.self.flags & NodeFlag.STOPPED) !== 0) environment.log.notice("Node is STOPPED. Node will NOT recover.")
    }
    this.waits++
    if (this.ready()) this.runStartup()
    else this.wait()
  }

  private ready(): boolean {
    const { state, environment } = this
    if (state.generation === INVALID_GENERATION || state.recoveryMode !== RecoveryMode.NORMAL) return false
    const settleMs = (state.tunables.RerecoveryTimeout + SETTLE_S) * 1000
    if (!this.testMode && environment.monotonicMs() - state.lastRecoveryFinishedMs < settleMs) {
      environment.log.info("wait for pending recoveries to end. Wait one more second.")
      return false
    }
    return state.runState === RunState.STARTUP
  }

  private runStartup(): void {
    const { state, environment } = this
    environment.log.notice('Running the "startup" event.')
    environment.runEvent("startup", "", state.tunables.EventScriptTimeout, (status) => {
      if (state.shuttingDown) return
      if (status !== 0) {
        environment.log.error("startup event failed")
        environment.setTimer(5000, () => this.look())
        return
      }
      environment.log.notice("startup event OK - enabling monitoring")
      setRunState(state, environment, RunState.RUNNING)
      environment.notify("startup")
      this.router.sendControl(BROADCAST_CONNECTED, controls.STARTUP.opcode)
      this.running()
    })
  }
}
