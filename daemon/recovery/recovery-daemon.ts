// The recovery daemon: a client of its own node that takes part in elections and, as leader, keeps the cluster whole. It
// wires leadership, the watching loop and the messages of other recovery daemons together, and runs on any environment.

import type { Cancel } from "../../lib/client/session.ts"
import { Session } from "../../lib/client/session.ts"
import type { Timer } from "../../lib/net/ports.ts"
import { decode, encode, i32, ProtocolError, u32 } from "../../lib/protocol/codec.ts"
import { Capability, CURRENT_NODE, RecoveryMode, Srvid } from "../../lib/protocol/constants.ts"
import { controls } from "../../lib/protocol/controls.ts"
import { type DisableMessage, disableMessage, nodeFlagChange, srvidMessage } from "../../lib/protocol/structs.ts"
import { equal, type Word64, ZERO64 } from "../../lib/protocol/word64.ts"
import { EAGAIN } from "../../lib/sys/errno.ts"
import { type LeaderSettings, Leadership } from "../cluster/leader.ts"
import type { RecoveryEnvironment } from "../environment.ts"
import { Operation } from "./operation.ts"
import { TakeoverRuns } from "./takeover.ts"
import { askNodes, run, type Task } from "./task.ts"
import { activePnns, connectedPnns } from "./view.ts"
import { Watch } from "./watch.ts"

/** What this node believes about leadership, and what it does as leader. */
export interface Standing {
  readonly leader: number
  readonly isLeader: boolean
  readonly electionInProgress: boolean
  readonly holdsLock: boolean
  readonly recovering: boolean
  /** Questions of its own that wait for an answer. */
  readonly pendingRequests: number
}

const PING_MS = 1000
/** The own daemon must answer within this time before an election is announced. */
const OWN_ANSWER_MS = 2000
/** Members that do not confirm recovery mode by then do not hold up an election. */
const ANNOUNCE_MS = 3000

export class RecoveryDaemon {
  private readonly session: Session
  private readonly leadership: Leadership
  private readonly watch: Watch
  private pass: Cancel | undefined
  private passTimer: Timer | undefined
  private stopped = false

  constructor(
    settings: LeaderSettings,
    private readonly environment: RecoveryEnvironment,
  ) {
    const { log } = environment
    this.session = new Session(environment)
    const { session } = this
    this.leadership = new Leadership(settings, environment, {
      pnn: () => session.pnn,
      ownFlags: () => this.watch.flagsOfSelf(),
      leaderCapability: () => (this.watch.own.capabilities & Capability.RECMASTER) !== 0,
      connectedCount: () => connectedPnns(this.watch.own.nodeMap).length,
      electionTimeoutS: () => this.watch.own.tunables.ElectionTimeout,
      sendMessage: (destnode: number, srvid: Word64, data: Uint8Array) =>
        this.session.sendMessage(destnode, srvid, data),
      announceElection: (done: (ok: boolean) => void) => this.announceElection(done),
      leaderChanged: (leader: number) => this.leaderChanged(leader),
      reportLockLatency: (seconds: number) => {
        this.session.sendControl("RECD_RECLOCK_LATENCY", this.session.pnn, { request: seconds })
      },
    })
    const takeover = new TakeoverRuns(
      this.session,
      log,
      new Operation("takeover runs", environment, log),
      () => this.watch.own.tunables.TakeoverTimeout * 3000,
    )
    const recoveries = new Operation("recoveries", environment, log)
    this.watch = new Watch(environment, this.session, this.leadership, recoveries, takeover)
  }

  /** Connects and goes on until the main daemon or stop() ends it. Throws if it can't connect. */
  start(): void {
    this.session.onClosed = () => {
      if (this.stopped) return
      this.environment.log.error("recovery daemon parent died - exiting")
      this.stopped = true
      this.leadership.stop()
      this.environment.exit(1)
    }
    this.session.attach(this.environment.connectLocal(this.session.handler))
    this.session.request("GET_PNN", CURRENT_NODE, {}, (reply) => {
      if (!reply.ok) {
        this.environment.log.error(`The main daemon does not tell its PNN: ${reply.error}`)
        this.environment.exit(1)
        return
      }
      this.session.pnn = reply.status
      this.listen()
      this.ping()
      this.leadership.start()
      this.nextPass()
    })
  }

  /** A copy of the present state; it changes nothing. */
  standing(): Standing {
    const { leader, isLeader, electionInProgress, holdsLock } = this.leadership
    const recovering = this.watch.recoveries.inProgress
    return {
      leader,
      isLeader,
      electionInProgress,
      holdsLock,
      recovering,
      pendingRequests: this.session.pendingRequests,
    }
  }

  /** Gives up leadership and lock, and ends once the others have been told. */
  stop(): void {
    if (this.stopped) return
    this.stopped = true
    this.environment.log.notice("Received SIGTERM, exiting")
    this.pass?.cancel()
    this.passTimer?.cancel()
    this.leadership.stop()
    this.environment.exit(0)
  }

  private ping(): void {
    if (this.stopped) return
    this.session.sendControl("RECD_PING", this.session.pnn, {})
    this.environment.setTimer(PING_MS, () => this.ping())
  }

  private nextPass(): void {
    if (this.stopped) return
    const startedMs = this.environment.monotonicMs()
    const over = () => {
      this.pass = undefined
      const intervalMs = Math.max(1, this.watch.own.tunables.RecoverInterval) * 1000
      const leftMs = Math.max(0, startedMs + intervalMs - this.environment.monotonicMs())
      this.passTimer = this.environment.setTimer(leftMs, () => this.nextPass())
    }
    this.pass = run(this.watch.pass(), over, (error) => {
      this.environment.log.error(
        `A pass of the recovery daemon failed: ${error instanceof Error ? error.stack : error}`,
      )
      over()
    })
  }

  /** A pass that began under another leader has judged as one or the other: it ends here, and a new one begins. */
  private leaderChanged(leader: number): void {
    if (leader !== this.session.pnn) {
      this.watch.lostLeadership()
      if (this.watch.recoveries.inProgress) {
        this.environment.log.notice(`Leader changed to ${leader}, aborting recovery`)
      } else if (this.watch.takeover.operation.inProgress) {
        this.environment.log.notice(`Leader changed to ${leader}, aborting takeover`)
      }
    }
    const pass = this.pass
    this.pass = undefined
    pass?.cancel()
    this.passTimer?.cancel()
    if (!this.stopped) this.passTimer = this.environment.setTimer(0, () => this.nextPass())
  }

  // ---- elections -----------------------------------------------------------------------------------------------

  private announceElection(done: (ok: boolean) => void): () => void {
    const task = run(this.announcing(), done, () => done(false))
    return () => task.cancel()
  }

  /** The own map first: its answer shows that what follows is sent now, not when a hung daemon wakes up. */
  private *announcing(): Task<boolean> {
    const { session } = this
    const own = (yield* askNodes(session, "GET_NODEMAP", [session.pnn], OWN_ANSWER_MS)).get(session.pnn)
    if (own?.ok !== true) return false
    const nodeMap = decode(controls.GET_NODEMAP.reply, own.data)
    this.watch.own.nodeMap = nodeMap
    const replies = yield* askNodes(session, "SET_RECMODE", activePnns(nodeMap), ANNOUNCE_MS, RecoveryMode.ACTIVE)
    for (const [pnn, reply] of replies) {
      if (!reply.ok) this.environment.log.warning(`Node ${pnn} did not confirm recovery mode ACTIVE: ${reply.error}`)
    }
    return true
  }

  // ---- messages ------------------------------------------------------------------------------------------------

  private listen(): void {
    const { session, leadership, watch } = this
    session.onMessage(Srvid.LEADER, (data) => leadership.onLeaderMessage(data))
    session.onMessage(Srvid.ELECTION, (data) => leadership.onElectionMessage(data))
    session.onMessage(Srvid.TAKEOVER_RUN, (data) => watch.takeover.request(data))
    session.onMessage(Srvid.BANNING, (data) => this.blamed(data))
    session.onMessage(Srvid.DISABLE_TAKEOVER_RUNS, (data) => this.disable(data, watch.takeover.operation))
    session.onMessage(Srvid.DISABLE_RECOVERIES, (data) => this.disable(data, watch.recoveries))
    session.onMessage(Srvid.DISABLE_IP_CHECK, (data) => {
      const seconds = this.read("DISABLE_IP_CHECK", () => decode(u32, data))
      if (seconds !== undefined) watch.takeover.operation.disable(seconds)
    })
    session.onMessage(Srvid.PUSH_NODE_FLAGS, (data) => this.pushFlags(data))
    session.onMessage(Srvid.RELOAD_NODES, () => this.environment.log.notice("Nodes list was reloaded"))
    session.onMessage(Srvid.REBALANCE_NODE, () => {})
    session.onMessage(Srvid.MEM_DUMP, (data) => this.memoryDump(data))
    session.onMessage(Srvid.SET_NODE_FLAGS, () =>
      this.environment.log.notice("SRVID CTDB_SRVID_SET_NODE_FLAGS (0xf400000000000000) is obsolete"),
    )
  }

  private blamed(data: Uint8Array): void {
    const pnn = this.read("BANNING", () => decode(u32, data))
    if (pnn === undefined || !this.leadership.isLeader) return
    this.watch.blame(pnn, this.watch.own.nodeMap.length)
  }

  private disable(data: Uint8Array, operation: Operation): void {
    const message = this.read<DisableMessage>("disable", () => decode(disableMessage, data))
    if (message === undefined) return
    const done = operation.disable(message.timeout)
    this.answer(message, done ? this.session.pnn : -EAGAIN)
  }

  private answer(to: { readonly pnn: number; readonly srvid: Word64 }, result: number): void {
    if (!equal(to.srvid, ZERO64)) this.session.sendMessage(to.pnn, to.srvid, encode(i32, result))
  }

  /**
   * The own flags have changed. Leadership is given up at once if they say so; the others are told without waiting for
   * the leader's next pass: its map says who they are.
   */
  private pushFlags(data: Uint8Array): void {
    const change = this.read("PUSH_NODE_FLAGS", () => decode(nodeFlagChange, data))
    const { session } = this
    if (change === undefined) return
    if (change.pnn === session.pnn) {
      this.watch.ownFlagsChanged(change.newFlags)
      this.leadership.check()
    }
    const { leader } = this.leadership
    session.request("GET_NODEMAP", leader, { timeoutMs: OWN_ANSWER_MS }, (reply) => {
      if (!reply.ok) return
      const nodeMap = this.read("GET_NODEMAP", () => decode(controls.GET_NODEMAP.reply, reply.data))
      for (const pnn of connectedPnns(nodeMap ?? [])) {
        session.request("MODIFY_FLAGS", pnn, { request: change, timeoutMs: OWN_ANSWER_MS }, () => {})
      }
    })
  }

  private memoryDump(data: Uint8Array): void {
    const to = this.read("MEM_DUMP", () => decode(srvidMessage, data))
    if (to === undefined) return
    const text = `recovery daemon of node ${this.session.pnn}: ${this.session.pendingRequests} requests wait\n`
    this.session.sendMessage(to.pnn, to.srvid, new TextEncoder().encode(text))
  }

  private read<T>(name: string, decodeIt: () => T): T | undefined {
    try {
      return decodeIt()
    } catch (error) {
      if (!(error instanceof ProtocolError)) throw error
      this.environment.log.error(`Ignored ${name} message: ${error.message}`)
      return undefined
    }
  }
}
