// Who leads: leader broadcasts, elections with and without a cluster lock, giving leadership up (cluster page, section 5).
// One state machine in each recovery daemon. It knows messages, timers and the lock; what a leader does is elsewhere.

import type { Timer } from "../../lib/net/ports.ts"
import { decode, encode, ProtocolError, u32 } from "../../lib/protocol/codec.ts"
import { BROADCAST_ALL, BROADCAST_CONNECTED, NodeFlag, Srvid, UNKNOWN_PNN } from "../../lib/protocol/constants.ts"
import { type ElectionMessage, electionMessage, type Timeval } from "../../lib/protocol/structs.ts"
import type { Word64 } from "../../lib/protocol/word64.ts"
import type { HeldLock, ProcessEnvironment } from "../environment.ts"

/** A leader says so this often, whatever else it does. */
const BROADCAST_MS = 1000
/** Another leader is contradicted at most this often. */
const SAY_AGAIN_MS = 100
/** The answer to an election message that this node wins goes out after this time (cluster page 5.4). */
const ANSWER_MS = 500
/** The first election in test mode. */
const FIRST_ELECTION_TEST_MS = 500
/** A recovery daemon waits this long for the lock (cluster page 5.6). */
const LOCK_TAKE_MS = 120_000
/** A timer that fires later than this was not late: this process stood still, and knows nothing of what went on. */
const PAUSE_MS = 1500
/**
 * The period of a vote that a leaving leader has asked for. Whoever wins against another answers within ANSWER_MS, so
 * silence for twice that is an answer; the long period is for messages of nodes that are only just finding each other.
 */
const HAND_OVER_MS = 1000
/** So long after a pause of this process, what arrives was sent while it stood still. */
const RESUMED_MS = 1000
/** So long without a broadcast, when all nodes are connected, shows that a starting cluster has no leader yet. */
const NOBODY_LEADS_MS = 2200
/** Between LEADER UNKNOWN and the ELECTION message that must follow it; a sender that dies in between must not stop us. */
const FOLLOW_UP_MS = 2000

/**
 * idle: no election. announcing: recovery mode is being set on all nodes. locking: the lock is being tried.
 * voting: election messages are exchanged until nobody has spoken for a period. following: another node has said that
 * an election begins, and its message has not come yet.
 */
type Phase =
  | { readonly name: "idle" }
  | { readonly name: "announcing"; readonly cancel: () => void }
  | { readonly name: "locking"; readonly cancel: () => void }
  | { readonly name: "voting"; period: Timer; answer: Timer | undefined; readonly handOver: boolean }
  | { readonly name: "following"; readonly timer: Timer }

export interface LeaderSettings {
  readonly clusterLock: string | undefined
  readonly leaderTimeoutS: number
  readonly testMode: boolean
}

/** What the state machine needs of the recovery daemon around it. */
export interface LeaderPort {
  pnn(): number
  /** Own flags and capability as of the last map; the number of connected nodes, this one included. */
  ownFlags(): number
  leaderCapability(): boolean
  connectedCount(): number
  electionTimeoutS(): number
  sendMessage(destnode: number, srvid: Word64, data: Uint8Array): void
  /**
   * Makes sure that the own daemon is alive, and sets recovery mode ACTIVE on all active nodes. `done(false)`: the own
   * daemon does not answer. The function returned stops waiting.
   */
  announceElection(done: (ok: boolean) => void): () => void
  /** Leadership came or went; a recovery or takeover that was being run is no longer ours. */
  leaderChanged(leader: number): void
  reportLockLatency(seconds: number): void
}

export class Leadership {
  leader: number = UNKNOWN_PNN
  private phase: Phase = { name: "idle" }
  private held: HeldLock | undefined
  private leaderTimer: Timer | undefined
  private priorityTime: Timeval
  private firstElection = true
  private tickDueMs = 0
  /** When the last pause of this process ended. */
  private stoodStillMs = Number.NEGATIVE_INFINITY
  /** There was a leader since this recovery daemon began: the cluster is not a starting one. */
  private knewLeader = false
  private stopped = false
  /** When the last broadcast went out. */
  private saidMs = Number.NEGATIVE_INFINITY
  private complete: { readonly count: number; readonly sinceMs: number } | undefined

  constructor(
    private readonly settings: LeaderSettings,
    private readonly environment: ProcessEnvironment,
    private readonly port: LeaderPort,
  ) {
    this.priorityTime = environment.wallClock()
  }

  get isLeader(): boolean {
    return this.leader !== UNKNOWN_PNN && this.leader === this.port.pnn()
  }

  get electionInProgress(): boolean {
    return this.phase.name !== "idle"
  }

  get holdsLock(): boolean {
    return this.held !== undefined
  }

  /** A configured lock is held; true without one. */
  get lockOk(): boolean {
    return this.settings.clusterLock === undefined || this.held !== undefined
  }

  /** Begins to watch and to broadcast. */
  start(): void {
    this.watchLeader()
    this.tickDueMs = this.environment.monotonicMs()
    this.tick()
  }

  /**
   * The recovery daemon ends: whoever is left need not wait for a time-out. The lock goes first, as the others try it
   * as soon as they hear.
   */
  stop(): void {
    if (this.stopped) return
    this.stopped = true
    this.leavePhase()
    this.leaderTimer?.cancel()
    const led = this.isLeader
    this.releaseLock()
    if (led) this.handOver()
  }

  /** While a node is inactive its priority time is always now, so that it has the last word in elections. */
  resetPriority(): void {
    this.priorityTime = this.environment.wallClock()
  }

  /** Says who leads, so that another leader that has just come into reach steps back before both recover. */
  announce(): void {
    if (this.isLeader && !this.electionInProgress) this.broadcast(this.leader)
  }

  /** Own flags or capability have changed: leadership goes at once if it has to. */
  check(): void {
    if (this.stopped || this.canLead()) return
    if (this.isLeader) this.giveUp("this node can not lead any more")
    this.releaseLock()
  }

  canLead(): boolean {
    return !this.stopped && (this.port.ownFlags() & NodeFlag.INACTIVE) === 0 && this.port.leaderCapability()
  }

  /** The node map has changed: a starting cluster that is complete and hears no leader need not wait any longer. */
  sawConnected(connected: number, listed: number): void {
    if (this.knewLeader || connected < listed) {
      this.complete = undefined
      return
    }
    const nowMs = this.environment.monotonicMs()
    if (this.complete?.count !== connected) this.complete = { count: connected, sinceMs: nowMs }
    if (nowMs - this.complete.sinceMs < NOBODY_LEADS_MS || this.electionInProgress) return
    this.complete = undefined
    this.startElection()
  }

  // ---- broadcasts ----------------------------------------------------------------------------------------------

  private tick(): void {
    if (this.stopped) return
    this.check()
    this.noticePause()
    this.announce()
    this.tickDueMs = this.environment.monotonicMs() + BROADCAST_MS
    this.environment.setTimer(BROADCAST_MS, () => this.tick())
  }

  /** After a pause messages may come before the timers that were due in it: both have to know. */
  private noticePause(): void {
    const nowMs = this.environment.monotonicMs()
    const lateMs = nowMs - this.tickDueMs
    if (lateMs <= PAUSE_MS) return
    this.stoodStillMs = nowMs
    if (this.isLeader && this.held === undefined && lateMs > this.settings.leaderTimeoutS * 1000) {
      // Without a lock the others have elected somebody meanwhile; they adopt whoever broadcasts, so this one must not.
      this.environment.log.notice(`Stood still for ${Math.round(lateMs / 1000)} s: another node may lead by now`)
      this.leavePhase()
      this.setLeader(UNKNOWN_PNN)
      this.watchLeader()
    }
  }

  private broadcast(leader: number): void {
    this.saidMs = this.environment.monotonicMs()
    this.port.sendMessage(BROADCAST_CONNECTED, Srvid.LEADER, encode(u32, leader))
  }

  onLeaderMessage(data: Uint8Array): void {
    const leader = this.decodeMessage("leader", () => decode(u32, data))
    if (leader === undefined || this.stopped) return
    this.noticePause()
    if (leader === UNKNOWN_PNN) {
      if (this.hasJustResumed()) this.sayAgain()
      else this.electionBegins()
      return
    }
    if (leader === this.port.pnn()) {
      // The own broadcast comes back. It may be one of before an election, of which it then says nothing.
      if (this.isLeader && !this.electionInProgress) this.watchLeader()
      return
    }
    if (this.isLeader && !this.electionInProgress && this.prevailsOver(leader)) {
      // Two leaders meet after a partition. One stays, and says so soon; not at once each time, as two that both believe
      // to hold a lock that does not exclude would answer each other without end.
      this.sayAgain()
      return
    }
    if (this.phase.name !== "locking") this.leavePhase()
    if (leader !== this.leader) {
      this.environment.log.notice(`Received leader broadcast, leader=${leader}`)
      this.releaseLock()
      this.setLeader(leader)
    }
    this.watchLeader()
  }

  private sayAgain(): void {
    if (this.environment.monotonicMs() - this.saidMs >= SAY_AGAIN_MS) this.broadcast(this.port.pnn())
  }

  /**
   * This leader stood still for less than an election takes, so nobody else leads: the election that others began
   * meanwhile ends with its next broadcast, and to take part in it would only prolong it.
   */
  private hasJustResumed(): boolean {
    if (!this.isLeader || this.electionInProgress || this.settings.clusterLock !== undefined) return false
    return this.environment.monotonicMs() - this.stoodStillMs < RESUMED_MS
  }

  /** The lock decides; without one the lower number does, so that both sides come to the same answer. */
  private prevailsOver(other: number): boolean {
    if (this.settings.clusterLock !== undefined) return this.held !== undefined
    return this.port.pnn() < other
  }

  private watchLeader(): void {
    this.leaderTimer?.cancel()
    const timeoutMs = this.settings.leaderTimeoutS * 1000
    const dueMs = this.environment.monotonicMs() + timeoutMs
    this.leaderTimer = this.environment.setTimer(timeoutMs, () => this.leaderTimedOut(dueMs))
  }

  private leaderTimedOut(dueMs: number): void {
    if (this.stopped) return
    this.leaderTimer = undefined
    const nowMs = this.environment.monotonicMs()
    // This timer may have been due at the end of a pause; the broadcasts' own, due each second, has noticed it then.
    if (nowMs - dueMs > PAUSE_MS || nowMs - this.stoodStillMs < PAUSE_MS) {
      // After a pause first listen, then judge: a healthy cluster must not be upset by a clock that stood still.
      this.environment.log.notice("Stood still for a while: waiting for a leader broadcast before judging")
      this.watchLeader()
      return
    }
    if ((this.port.ownFlags() & NodeFlag.INACTIVE) !== 0 || this.electionInProgress) {
      this.watchLeader()
      return
    }
    this.environment.log.error("Leader broadcast timeout")
    this.startElection()
  }

  // ---- elections -----------------------------------------------------------------------------------------------

  private startElection(): void {
    if (this.electionInProgress) return
    this.leaderTimer?.cancel()
    this.environment.log.notice("Start election")
    const phase: Phase = { name: "announcing", cancel: () => cancel() }
    this.phase = phase
    const cancel = this.port.announceElection((ok) => {
      if (this.phase !== phase) return
      this.phase = { name: "idle" }
      if (!ok) {
        this.environment.log.error("The own daemon does not answer: no election now")
        // Nobody hears a leader whose daemon hangs. The lock goes, so that another can lead; a message would only arrive
        // when the daemon wakes up.
        this.releaseLock()
        if (this.isLeader) this.setLeader(UNKNOWN_PNN)
        this.watchLeader()
        return
      }
      this.broadcast(UNKNOWN_PNN)
      this.elect()
    })
  }

  /** Another node, or this one by its own broadcast, has said that an election begins. */
  private electionBegins(): void {
    this.leaderTimer?.cancel()
    if (this.phase.name === "announcing") this.leavePhase()
    if (this.electionInProgress) return
    if (this.settings.clusterLock !== undefined) {
      this.elect()
      return
    }
    const timer = this.environment.setTimer(FOLLOW_UP_MS, () => {
      this.phase = { name: "idle" }
      this.watchLeader()
    })
    this.phase = { name: "following", timer }
  }

  private elect(): void {
    if (this.settings.clusterLock !== undefined) this.race(this.settings.clusterLock)
    else this.vote()
  }

  private race(lock: string): void {
    const { environment } = this
    if (!this.canLead()) {
      this.releaseLock()
      if (this.isLeader) this.setLeader(UNKNOWN_PNN)
      this.watchLeader()
      return
    }
    if (this.held !== undefined) {
      this.lead()
      return
    }
    this.setLeader(UNKNOWN_PNN)
    environment.log.notice(`Attempting to take cluster lock (${lock})`)
    const startedMs = environment.monotonicMs()
    let lost = false
    const phase: Phase = { name: "locking", cancel: () => cancel() }
    this.phase = phase
    const cancel = environment.clusterLock.take(
      lock,
      LOCK_TAKE_MS,
      (outcome, held) => {
        if (this.phase !== phase) {
          held?.release()
          return
        }
        this.phase = { name: "idle" }
        if (outcome !== "taken" || held === undefined || lost) {
          environment.log.error(
            outcome === "error"
              ? "Unable to take cluster lock - unknown error"
              : `Unable to take cluster lock - ${outcome}`,
          )
          this.watchLeader()
          return
        }
        this.held = held
        this.port.reportLockLatency((environment.monotonicMs() - startedMs) / 1000)
        environment.log.notice("Cluster lock taken successfully")
        environment.log.notice(`Took cluster lock, leader=${this.port.pnn()}`)
        this.lead()
      },
      () => {
        lost = true
        this.lockLost()
      },
    )
  }

  private lockLost(): void {
    if (this.held === undefined) return
    this.held = undefined
    this.environment.log.error("Cluster lock helper terminated")
    if (this.isLeader) this.setLeader(UNKNOWN_PNN)
    this.watchLeader()
    if (this.canLead()) this.startElection()
  }

  private lead(): void {
    this.phase = { name: "idle" }
    this.setLeader(this.port.pnn())
    this.broadcast(this.port.pnn())
    this.watchLeader()
  }

  private vote(): void {
    this.phase = { name: "voting", period: this.startPeriod(false), answer: undefined, handOver: false }
    this.setLeader(this.canLead() ? this.port.pnn() : UNKNOWN_PNN)
    this.sendElection()
  }

  private startPeriod(handOver: boolean): Timer {
    const electionMs = this.port.electionTimeoutS() * 1000
    const first = this.firstElection && this.settings.testMode
    const usualMs = first ? FIRST_ELECTION_TEST_MS : electionMs
    // Never the first election's: an answer takes as long as that, and must not be cut off.
    const periodMs = handOver ? Math.min(HAND_OVER_MS, electionMs) : usualMs
    const dueMs = this.environment.monotonicMs() + periodMs
    return this.environment.setTimer(periodMs, () => this.periodOver(dueMs))
  }

  private periodOver(dueMs: number): void {
    if (this.phase.name !== "voting") return
    this.leavePhase()
    this.firstElection = false
    if (this.environment.monotonicMs() - dueMs > PAUSE_MS) {
      this.environment.log.notice("Stood still during an election: its end is not known here")
      this.setLeader(UNKNOWN_PNN)
      this.watchLeader()
      return
    }
    this.environment.log.notice(`Election period ended, leader=${this.leader}`)
    if (this.isLeader && this.canLead()) this.lead()
    else this.watchLeader()
  }

  private sendElection(): void {
    const canLead = this.canLead()
    const message: ElectionMessage = {
      numConnected: canLead ? this.port.connectedCount() : 0,
      priorityTime: canLead ? this.priorityTime : this.environment.wallClock(),
      pnn: this.port.pnn(),
      // A node that leaves says so: everybody wins against an inactive one.
      nodeFlags: this.port.ownFlags() | (this.stopped ? NodeFlag.STOPPED : 0),
    }
    this.port.sendMessage(BROADCAST_ALL, Srvid.ELECTION, encode(electionMessage, message))
  }

  onElectionMessage(data: Uint8Array): void {
    const message = this.decodeMessage("election", () => decode(electionMessage, data))
    if (message === undefined || this.stopped || message.pnn === this.port.pnn()) return
    if (this.settings.clusterLock !== undefined) {
      // The lock alone decides, and nobody who has one sends this (cluster page 5.3): its sender is configured otherwise.
      this.environment.log.warning(`Ignored election message of node ${message.pnn}: this cluster has a lock`)
      return
    }
    this.noticePause()
    if (this.hasJustResumed() && this.wins(message)) {
      this.sayAgain()
      return
    }
    this.leaderTimer?.cancel()
    if (this.phase.name === "voting") this.phase.period.cancel()
    else this.leavePhase()
    const before = this.phase.name === "voting" ? this.phase : undefined
    const handOver = before?.handOver ?? (message.nodeFlags & NodeFlag.INACTIVE) !== 0
    const phase: Phase = { name: "voting", period: this.startPeriod(handOver), answer: before?.answer, handOver }
    this.phase = phase
    if (this.wins(message)) {
      phase.answer ??= this.environment.setTimer(ANSWER_MS, () => {
        phase.answer = undefined
        if (this.phase.name !== "voting") return
        this.setLeader(this.port.pnn())
        this.sendElection()
      })
    } else {
      phase.answer?.cancel()
      phase.answer = undefined
      this.releaseLock()
      this.setLeader(message.pnn)
    }
  }

  /** The earlier priority time wins, then the higher number (cluster page 5.4). */
  private wins(other: ElectionMessage): boolean {
    if (!this.canLead()) return false
    if ((other.nodeFlags & NodeFlag.INACTIVE) !== 0) return true
    const mine = this.priorityTime
    if (mine.sec !== other.priorityTime.sec) return mine.sec < other.priorityTime.sec
    if (mine.usec !== other.priorityTime.usec) return mine.usec < other.priorityTime.usec
    return this.port.pnn() > other.pnn
  }

  // ---- leaving -------------------------------------------------------------------------------------------------

  private giveUp(reason: string): void {
    this.environment.log.notice(`Giving up leadership: ${reason}`)
    this.releaseLock()
    this.setLeader(UNKNOWN_PNN)
    this.handOver()
  }

  /** Says at once that there is no leader. Without a lock, a stock peer needs an election message after that. */
  private handOver(): void {
    this.broadcast(UNKNOWN_PNN)
    if (this.settings.clusterLock === undefined) this.sendElection()
  }

  private releaseLock(): void {
    const held = this.held
    this.held = undefined
    held?.release()
  }

  private leavePhase(): void {
    const phase = this.phase
    this.phase = { name: "idle" }
    if (phase.name === "announcing" || phase.name === "locking") phase.cancel()
    else if (phase.name === "following") phase.timer.cancel()
    else if (phase.name === "voting") {
      phase.period.cancel()
      phase.answer?.cancel()
    }
  }

  private setLeader(leader: number): void {
    if (leader !== UNKNOWN_PNN) this.knewLeader = true
    if (leader === this.leader) return
    this.leader = leader
    this.port.leaderChanged(leader)
  }

  private decodeMessage<T>(name: string, read: () => T): T | undefined {
    try {
      return read()
    } catch (error) {
      if (!(error instanceof ProtocolError)) throw error
      this.environment.log.error(`Ignored ${name} message: ${error.message}`)
      return undefined
    }
  }
}
