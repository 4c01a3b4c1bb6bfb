// The watching loop: once a second it looks at the own node and, on the leader, at all others, and repairs what it finds:
// flags are spread, troublemakers banned, recoveries run (cluster page, section 6). A pass is a task; leadership, messages
// and the conversation with the daemon belong to recovery-daemon.ts.

import type { ControlReply, Session } from "../../lib/client/session.ts"
import type { Parsed } from "../../lib/config/fault.ts"
import type { ListedNode } from "../../lib/config/nodes-file.ts"
import { tunablesFromWords } from "../../lib/config/tunables.ts"
import { ProtocolError } from "../../lib/protocol/codec.ts"
import { BROADCAST_CONNECTED, Capability, NodeFlag, RecoveryMode, Srvid } from "../../lib/protocol/constants.ts"
import { type ControlName, decodeReply, type ReplyOf } from "../../lib/protocol/controls.ts"
import type { NodeMap } from "../../lib/protocol/structs.ts"
import type { Leadership } from "../cluster/leader.ts"
import type { RecoveryEnvironment } from "../environment.ts"
import { isActive, isConnected, socketAddress } from "../state.ts"
import { BanningCredits, bannable } from "./banning.ts"
import type { Operation } from "./operation.ts"
import { RecoveryFailure, recover } from "./recover.ts"
import type { TakeoverRuns } from "./takeover.ts"
import { askAll, askNodes, type Question, type Task } from "./task.ts"
import {
  activePnns,
  connectedPnns,
  countBanned,
  flagsOf,
  type MemberView,
  newOwnView,
  type OwnView,
  Silence,
} from "./view.ts"

/** A pass waits this long for a member's answers; who is late is asked again in the next one. */
const PROBE_MS = 2000
/**
 * A member that has answered nothing for so long is left out, though its links stand. Sooner than keepalives would find a
 * hung node dead (25 to 30 s), later than a busy daemon is ever away.
 */
const EXCLUDE_AFTER_MS = 15_000
/** Two members that are both here but not connected to each other for so long do not come together by themselves. */
const ASYMMETRY_MS = 10_000
/** Recoveries because a node came or went do not wait for RerecoveryTimeout, so many times in a row. */
const UNSUPPRESSED_MAX = 2

/** The longest pause after a recovery that failed (s). */
const BACK_OFF_MAX_S = 16

/** Why a recovery is needed; `pnn` gets a credit. `membership`: a node came or went. */
interface Finding {
  readonly reason: string
  readonly pnn?: number
  readonly membership?: true
}

export class Watch {
  readonly own: OwnView = newOwnView()
  readonly credits = new BanningCredits()
  private readonly silence = new Silence()
  /** The last recovery that was begun did not end well: another one is due. */
  private unfinished = false
  private becameInactive = false
  private culprit = 0
  private unsuppressed = 0
  /** Recoveries that failed in a row, and the members of the last one. */
  private failures = 0
  private failedWith = ""
  /** Monotonic time since which a pair of members, "low high", sees no link between them. */
  private readonly asymmetric = new Map<string, number>()
  private readonly bannedForLinks = new Set<number>()
  private readonly comparedLists = new Set<number>()

  constructor(
    private readonly environment: RecoveryEnvironment,
    private readonly session: Session,
    private readonly leadership: Leadership,
    readonly recoveries: Operation,
    readonly takeover: TakeoverRuns,
  ) {}

  /** One pass, from top to bottom. */
  *pass(): Task<void> {
    const { leadership } = this
    if (leadership.electionInProgress) return
    if (!(yield* this.lookAtSelf())) return
    leadership.sawConnected(connectedPnns(this.own.nodeMap).length, listedCount(this.own.nodeMap))
    if (yield* this.banTroublemakers()) return
    if ((this.flagsOfSelf() & NodeFlag.INACTIVE) !== 0) {
      yield* this.stayInactive()
      return
    }
    this.becameInactive = false
    yield* this.compareLists()
    if (!leadership.isLeader) {
      this.takeover.forget()
      this.unsuppressed = 0
      this.asymmetric.clear()
      return
    }
    yield* this.lookAtMembers()
  }

  /** Nothing but the own map counts between passes: a leader broadcast must not come from a node just banned. */
  flagsOfSelf(): number {
    return flagsOf(this.own.nodeMap, this.session.pnn) ?? NodeFlag.UNHEALTHY
  }

  /** What the main daemon says about this node between two maps. */
  ownFlagsChanged(flags: number): void {
    this.own.nodeMap = this.own.nodeMap.map((node) => (node.pnn === this.session.pnn ? { ...node, flags } : node))
  }

  blame(pnn: number, count = 1): void {
    if ((this.flagsOfSelf() & NodeFlag.INACTIVE) !== 0) return
    this.culprit = pnn
    const graceMs = this.own.tunables.RecoveryGracePeriod * 1000
    this.credits.add(pnn, count, this.environment.monotonicMs(), graceMs)
  }

  // ---- every node ----------------------------------------------------------------------------------------------

  private *lookAtSelf(): Task<boolean> {
    const pnn = this.session.pnn
    const names = [
      "GET_DEBUG",
      "GET_ALL_TUNABLES",
      "GET_RUNSTATE",
      "GET_NODEMAP",
      "GET_RECMODE",
      "GET_CAPABILITIES",
      "GETVNNMAP",
    ] as const
    const replies = yield* askAll(
      this.session,
      names.map((control) => ({ control, pnn })),
      PROBE_MS,
    )
    const read = <N extends ControlName>(control: N, index: number): ReplyOf<N> | undefined =>
      readReply(control, replies[index])
    const level = read("GET_DEBUG", 0)
    const tunables = replies[1]
    const runState = read("GET_RUNSTATE", 2)
    const nodeMap = read("GET_NODEMAP", 3)
    const mode = replies[4]
    const capabilities = read("GET_CAPABILITIES", 5)
    const vnnMap = read("GETVNNMAP", 6)
    const missing = level === undefined || runState === undefined || nodeMap === undefined || vnnMap === undefined
    if (missing || capabilities === undefined || mode?.ok !== true || tunables?.ok !== true) return false
    if (level !== this.environment.log.level) this.environment.log.setLevel(level)
    this.own.tunables = tunablesFromWords(words(tunables.data))
    this.own.runState = runState
    this.own.nodeMap = nodeMap
    this.own.recoveryMode = mode.status
    this.own.capabilities = capabilities
    this.own.vnnMap = vnnMap
    return true
  }

  /** true: this node has banned itself. */
  private *banTroublemakers(): Task<boolean> {
    const limit = 2 * this.own.nodeMap.length
    const reached = this.credits.reached(limit)
    const { nodeMap } = this.own
    const chosen = bannable(reached, activePnns(nodeMap), countBanned(nodeMap))
    for (const pnn of reached) {
      this.environment.log.error(`Node ${pnn} reached ${this.credits.count(pnn)} banning credits`)
      this.credits.forget(pnn)
      if (!chosen.includes(pnn)) {
        this.environment.log.error(`Node ${pnn} is not banned: too few nodes would be left`)
        continue
      }
      yield* this.ban(pnn)
      if (pnn === this.session.pnn) return true
    }
    return false
  }

  private *ban(pnn: number): Task<boolean> {
    const time = this.own.tunables.RecoveryBanPeriod
    this.environment.log.error(`Banning node ${pnn} for ${time} seconds`)
    const replies = yield* askNodes(this.session, "SET_BAN_STATE", [pnn], PROBE_MS, { pnn, time })
    const reply = replies.get(pnn)
    if (reply?.ok === true) return true
    this.environment.log.error(`Failed to ban node ${pnn}: ${reply?.error}`)
    return false
  }

  private *stayInactive(): Task<void> {
    this.leadership.resetPriority()
    const pnn = this.session.pnn
    const timeoutMs = this.own.tunables.RecoverTimeout * 1000
    if (this.own.recoveryMode === RecoveryMode.NORMAL) {
      this.environment.log.error(
        "Node is stopped or banned but recovery mode is not active. Activate recovery mode and lock databases",
      )
      yield* askNodes(this.session, "SET_RECMODE", [pnn], timeoutMs, RecoveryMode.ACTIVE)
    }
    if (this.becameInactive) return
    const frozen = yield* askNodes(this.session, "FREEZE", [pnn], timeoutMs)
    this.becameInactive = frozen.get(pnn)?.ok === true
  }

  /** Nodes with different lists make different clusters: say so when a node comes, and where they differ. */
  private *compareLists(): Task<void> {
    const { nodeMap } = this.own
    const connected = connectedPnns(nodeMap).filter((pnn) => pnn !== this.session.pnn)
    for (const pnn of this.comparedLists) if (!connected.includes(pnn)) this.comparedLists.delete(pnn)
    const fresh = connected.filter((pnn) => !this.comparedLists.has(pnn))
    if (fresh.length === 0) return
    const listed = (yield (resume) => {
      this.environment.readNodes(resume)
      return () => {}
    }) as Parsed<readonly ListedNode[]>
    if (!listed.ok) return
    for (const [pnn, reply] of yield* askNodes(this.session, "GET_NODES_FILE", fresh, PROBE_MS)) {
      const theirs = readReply("GET_NODES_FILE", reply)
      if (theirs === undefined) continue
      this.comparedLists.add(pnn)
      const mine = listed.value.map((entry) => ({ ...entry, addr: socketAddress(entry) }))
      for (let line = 0; line < Math.max(mine.length, theirs.length); line++) {
        if (sameEntry(mine[line], theirs[line])) continue
        this.environment.log.error(
          `Nodes list of node ${pnn} differs for node ${line}: ` +
            `${entryText(theirs[line])} there, ${entryText(mine[line])} here. All nodes need the same list`,
        )
      }
    }
  }

  // ---- the leader ----------------------------------------------------------------------------------------------

  private *lookAtMembers(): Task<void> {
    const { environment, own, session } = this
    const others = connectedPnns(own.nodeMap).filter((pnn) => pnn !== session.pnn)
    this.silence.keepOnly(others)
    const members = yield* this.probe(others)
    const nowMs = environment.monotonicMs()
    const excluded = new Set(others.filter((pnn) => this.silence.silentMs(pnn, nowMs) >= EXCLUDE_AFTER_MS))
    const maps = new Map<number, NodeMap>([...members].map(([pnn, view]) => [pnn, view.nodeMap]))
    maps.set(session.pnn, own.nodeMap)

    if (!(yield* this.spreadFlags(maps, excluded))) return
    const waiting = others.filter((pnn) => !members.has(pnn) && !excluded.has(pnn))
    if (waiting.length > 0) {
      environment.log.notice(`Node ${waiting.join(", ")} did not answer in time`)
      return
    }
    yield* this.mendAsymmetry(maps, nowMs)
    const finding = this.judge(members, excluded)
    if (finding !== undefined) {
      yield* this.repair(finding, excluded)
      return
    }
    if (!this.recoveries.suppressed) this.unsuppressed = 0
    yield* this.takeover.runIfWanted(activePnns(own.nodeMap).filter((pnn) => !excluded.has(pnn)))
  }

  /** Asks every member all that a pass needs, in one go. Who answers all of it is in the result. */
  private *probe(pnns: readonly number[]): Task<ReadonlyMap<number, MemberView>> {
    const names = ["GET_NODEMAP", "GET_RECMODE", "GET_CAPABILITIES", "GETVNNMAP"] as const
    const questions: Question[] = pnns.flatMap((pnn) => names.map((control) => ({ control, pnn })))
    const replies = yield* askAll(this.session, questions, PROBE_MS)
    const nowMs = this.environment.monotonicMs()
    const members = new Map<number, MemberView>()
    for (const [index, pnn] of pnns.entries()) {
      const [map, mode, capability, vnn] = replies.slice(index * names.length, (index + 1) * names.length)
      const nodeMap = readReply("GET_NODEMAP", map)
      const capabilities = readReply("GET_CAPABILITIES", capability)
      const vnnMap = readReply("GETVNNMAP", vnn)
      if (nodeMap !== undefined && capabilities !== undefined && vnnMap !== undefined && mode?.ok === true) {
        this.silence.answered(pnn)
        members.set(pnn, { nodeMap, recoveryMode: mode.status, capabilities, vnnMap })
        continue
      }
      // A node that is gone meanwhile has failed at once; its links tell.
      this.silence.missed(pnn, nowMs)
    }
    return members
  }

  /**
   * A node is the authority for its own flags; all others learn them from here (cluster page 4.2). DISCONNECTED is left
   * out of the comparison: each node knows that for itself, and pushing it would change nothing.
   */
  private *spreadFlags(maps: ReadonlyMap<number, NodeMap>, excluded: ReadonlySet<number>): Task<boolean> {
    const { own, session } = this
    for (const { pnn, flags } of own.nodeMap) {
      const theirs = maps.get(pnn)
      if (theirs === undefined || !isConnected({ flags })) continue
      const truth = flagsOf(theirs, pnn) ?? flags
      const differs = [...maps.values()].some((map) => !sameFlags(flagsOf(map, pnn), truth))
      if (!differs) continue
      if (!sameFlags(flags, truth)) {
        this.environment.log.notice(
          `Remote node ${pnn} had flags 0x${truth.toString(16)}, local had 0x${flags.toString(16)} - updating local`,
        )
      }
      this.environment.log.notice(`Pushing updated flags for node ${pnn} (0x${truth.toString(16)})`)
      const targets = connectedPnns(own.nodeMap).filter((target) => !excluded.has(target))
      if (!(yield* this.pushFlags(pnn, truth, flags, targets))) return false
    }
    // The own map is of before the pushes: what follows must judge by what is true now.
    const replies = yield* askNodes(session, "GET_NODEMAP", [session.pnn], PROBE_MS)
    const fresh = readReply("GET_NODEMAP", replies.get(session.pnn))
    if (fresh === undefined) return false
    own.nodeMap = fresh
    return true
  }

  private *pushFlags(pnn: number, newFlags: number, oldFlags: number, targets: readonly number[]): Task<boolean> {
    const replies = yield* askNodes(this.session, "MODIFY_FLAGS", targets, PROBE_MS, { pnn, newFlags, oldFlags })
    return [...replies].every(([target, reply]) => {
      if (reply.ok) return true
      this.environment.log.error(`Failed to push flags of node ${pnn} to node ${target}: ${reply.error}`)
      return !activePnns(this.own.nodeMap).includes(target)
    })
  }

  /**
   * Two members that do not see each other can not pass records; nothing but the leader notices. If the link does not
   * come back, the one of them that misses more links is banned, until its links stand again.
   */
  private *mendAsymmetry(maps: ReadonlyMap<number, NodeMap>, nowMs: number): Task<void> {
    const broken = new Map<number, number>()
    const pairs = new Set<string>()
    const members = [...maps.keys()].sort((a, b) => a - b)
    for (const low of members) {
      for (const high of members) {
        if (low >= high || (linkSeen(maps, low, high) && linkSeen(maps, high, low))) continue
        const pair = `${low} ${high}`
        pairs.add(pair)
        if (!this.asymmetric.has(pair)) {
          this.asymmetric.set(pair, nowMs)
          this.environment.log.warning(`Nodes ${low} and ${high} are connected to this node but not to each other`)
        }
        for (const pnn of [low, high]) broken.set(pnn, (broken.get(pnn) ?? 0) + 1)
      }
    }
    for (const pair of this.asymmetric.keys()) if (!pairs.has(pair)) this.asymmetric.delete(pair)
    for (const pnn of this.bannedForLinks) {
      if (broken.has(pnn)) continue
      this.bannedForLinks.delete(pnn)
      if (((flagsOf(this.own.nodeMap, pnn) ?? 0) & NodeFlag.BANNED) === 0) continue
      this.environment.log.notice(`Links of node ${pnn} stand again: lifting its ban`)
      yield* askNodes(this.session, "SET_BAN_STATE", [pnn], PROBE_MS, { pnn, time: 0 })
    }
    if (this.own.tunables.EnableBans === 0) return
    for (const [pair, sinceMs] of this.asymmetric) {
      const ends = pair.split(" ").map(Number)
      const active = ends.every((pnn) => isActive({ flags: flagsOf(this.own.nodeMap, pnn) ?? NodeFlag.DISCONNECTED }))
      if (!active || nowMs - sinceMs < ASYMMETRY_MS) continue
      const victim = ends
        .filter((pnn) => pnn !== this.session.pnn)
        .sort((a, b) => (broken.get(b) ?? 0) - (broken.get(a) ?? 0) || b - a)[0]
      if (victim === undefined) continue
      this.environment.log.error(`Nodes ${ends.join(" and ")} can not reach each other: banning node ${victim}`)
      if (yield* this.ban(victim)) this.bannedForLinks.add(victim)
      return
    }
  }

  /** What, if anything, calls for a recovery (cluster page 6.3, 16 to 23). */
  private judge(members: ReadonlyMap<number, MemberView>, excluded: ReadonlySet<number>): Finding | undefined {
    const { own, session, leadership } = this
    const { nodeMap, vnnMap } = own
    if (vnnMap === undefined) return undefined
    const active = activePnns(nodeMap).filter((pnn) => !excluded.has(pnn))
    if (this.unfinished) return { reason: "the last recovery did not finish" }
    for (const pnn of active) {
      const mode = pnn === session.pnn ? own.recoveryMode : members.get(pnn)?.recoveryMode
      if (mode === RecoveryMode.ACTIVE) {
        return { reason: `Node:${pnn} was in recovery mode. Start recovery process`, membership: true }
      }
    }
    if (!leadership.lockOk) return { reason: "Failed cluster lock sanity check", pnn: session.pnn }
    for (const pnn of active) {
      const theirs = members.get(pnn)?.nodeMap
      if (theirs === undefined) continue
      if (theirs.length !== nodeMap.length) {
        const counts = `${theirs.length} vs ${nodeMap.length} of the local node`
        return { reason: `Remote node:${pnn} has different node count. ${counts}`, pnn }
      }
      const wrong = theirs.find((entry, index) => entry.pnn !== nodeMap[index]?.pnn)
      if (wrong !== undefined) return { reason: `Remote node:${pnn} has different nodemap pnn for ${wrong.pnn}`, pnn }
    }
    const lmasters = active.filter((pnn) => {
      const capabilities = pnn === session.pnn ? own.capabilities : (members.get(pnn)?.capabilities ?? 0)
      return (capabilities & Capability.LMASTER) !== 0
    })
    // Without any active lmaster a recovery puts the leader alone into the map.
    const wanted = lmasters.length > 0 ? lmasters : [session.pnn]
    if (vnnMap.map.length !== wanted.length) {
      const counts = `${vnnMap.map.length} vs ${wanted.length}`
      const reason = `The vnnmap count is different from the number of active lmaster nodes: ${counts}`
      return { reason, membership: true }
    }
    const absent = wanted.find((pnn) => !vnnMap.map.includes(pnn))
    if (absent !== undefined) {
      return { reason: `Active LMASTER node ${absent} is not in the vnnmap`, pnn: absent, membership: true }
    }
    for (const pnn of active) {
      const theirs = members.get(pnn)?.vnnMap
      if (theirs === undefined) continue
      if (theirs.generation !== vnnMap.generation) {
        const pair = `${theirs.generation} vs ${vnnMap.generation} (ours)`
        return { reason: `Remote node ${pnn} has different generation of vnnmap. ${pair}`, pnn, membership: true }
      }
      if (theirs.map.length !== vnnMap.map.length || theirs.map.some((entry, i) => entry !== vnnMap.map[i])) {
        return { reason: `Remote node ${pnn} has different vnnmap.`, pnn }
      }
    }
    return undefined
  }

  private *repair(finding: Finding, excluded: ReadonlySet<number>): Task<void> {
    const { environment, leadership, session } = this
    if (finding.pnn !== undefined) this.blame(finding.pnn)
    if (!leadership.lockOk) {
      environment.log.error("Cluster lock not held - abort recovery, ban node")
      yield* this.ban(session.pnn)
      return
    }
    if (this.recoveries.suppressed && finding.membership === true && this.unsuppressed < UNSUPPRESSED_MAX) {
      // Calls to the node that has gone hang until this recovery: they must not wait for the last one's echo to end.
      this.unsuppressed++
      this.recoveries.lift()
    }
    if (this.failures > 0 && this.membersText(excluded) !== this.failedWith) {
      this.failures = 0
      this.recoveries.lift()
    }
    environment.log.notice(finding.reason)
    // What was found stays to be found; only a recovery that has begun leaves something half done behind.
    if (!this.recoveries.begin()) return
    this.unfinished = true
    try {
      yield* this.runRecovery(excluded)
    } finally {
      this.recoveries.end()
    }
    if (this.unfinished) return
    const seconds = this.own.tunables.RerecoveryTimeout
    environment.log.notice(
      "Just finished a recovery. New recoveries will now be suppressed for the rerecovery timeout " +
        `(${seconds} seconds)`,
    )
    this.recoveries.suppress(seconds)
  }

  private *runRecovery(excluded: ReadonlySet<number>): Task<void> {
    const { environment, own, session } = this
    const { log } = environment
    log.notice(`Starting do_recovery. Recovery initiated due to problem with node ${this.culprit}`)
    this.leadership.announce()
    const startedMs = environment.monotonicMs()
    const targets = connectedPnns(own.nodeMap).filter((pnn) => !excluded.has(pnn))
    for (const pnn of targets) {
      const flags = flagsOf(own.nodeMap, pnn) ?? 0
      if (!(yield* this.pushFlags(pnn, flags, flags, targets))) return
    }
    log.notice("Recovery - updated flags")
    try {
      yield* recover({
        session,
        scheduler: environment,
        log,
        files: environment.recoveryFiles,
        pnn: session.pnn,
        tunables: own.tunables,
        generation: this.newGeneration(),
        excluded,
        firstSrvid: environment.randomU32(),
      })
    } catch (error) {
      if (!(error instanceof RecoveryFailure)) throw error
      log.error(`Recovery failed: ${error.message}`)
      // Who did not answer in all that time need not be waited for as long again.
      for (const pnn of error.silent) this.silence.missed(pnn, startedMs)
      if (!error.overtaken) this.backOff(error.pnns, excluded)
      return
    }
    this.failures = 0
    yield* this.takeover.run(activePnns(own.nodeMap).filter((pnn) => !excluded.has(pnn)))
    session.sendMessage(BROADCAST_CONNECTED, Srvid.RECONFIGURE, new Uint8Array(0))
    const seconds = (environment.monotonicMs() - startedMs) / 1000
    log.notice(`Recovery complete in ${seconds.toFixed(1)} s. Resetting ban count to 0 for all nodes`)
    this.unfinished = false
    this.credits.reset()
  }

  /**
   * A recovery that fails time and again must neither keep the cluster busy nor go on for ever: each pause is longer than
   * the last, and who let it fail is banned in the end. With other members the next one is another matter.
   */
  private backOff(pnns: readonly number[], excluded: ReadonlySet<number>): void {
    for (const pnn of pnns) this.blame(pnn)
    this.failures++
    this.failedWith = this.membersText(excluded)
    if (this.failures < 2) return
    this.recoveries.suppress(Math.min(2 ** (this.failures - 1), BACK_OFF_MAX_S))
  }

  private membersText(excluded: ReadonlySet<number>): string {
    return activePnns(this.own.nodeMap)
      .filter((pnn) => !excluded.has(pnn))
      .join(" ")
  }

  /** Random, 31 bits, never the invalid one and never the last one's. */
  private newGeneration(): number {
    for (;;) {
      const generation = this.environment.randomU32() >>> 1
      if (generation > 1 && generation !== this.own.vnnMap?.generation) return generation
    }
  }

  /** Leadership has gone: what this node had begun is another's now. */
  lostLeadership(): void {
    this.unfinished = false
    this.failures = 0
    this.takeover.forget()
    this.recoveries.lift()
  }
}

function listedCount(nodeMap: NodeMap): number {
  return nodeMap.filter((node) => (node.flags & NodeFlag.DELETED) === 0).length
}

function sameFlags(a: number | undefined, b: number | undefined): boolean {
  return a === undefined || b === undefined || (a | NodeFlag.DISCONNECTED) === (b | NodeFlag.DISCONNECTED)
}

function linkSeen(maps: ReadonlyMap<number, NodeMap>, observer: number, other: number): boolean {
  const flags = flagsOf(maps.get(observer) ?? [], other)
  return flags === undefined || isConnected({ flags })
}

interface ListEntry {
  readonly flags: number
  readonly addr: { readonly addr: string; readonly port: number }
}

function sameEntry(a: ListEntry | undefined, b: ListEntry | undefined): boolean {
  if (a === undefined || b === undefined) return a === b
  const deleted = (entry: ListEntry) => (entry.flags & NodeFlag.DELETED) !== 0
  return deleted(a) === deleted(b) && (deleted(a) || a.addr.addr === b.addr.addr)
}

function entryText(entry: ListEntry | undefined): string {
  if (entry === undefined) return "none"
  return (entry.flags & NodeFlag.DELETED) !== 0 ? "deleted" : entry.addr.addr
}

function readReply<N extends ControlName>(control: N, reply: ControlReply | undefined): ReplyOf<N> | undefined {
  if (reply?.ok !== true) return undefined
  try {
    return decodeReply(control, reply.data)
  } catch (error) {
    if (!(error instanceof ProtocolError)) throw error
    return undefined
  }
}

function words(data: Uint8Array): number[] {
  const view = new DataView(data.buffer, data.byteOffset, data.byteLength)
  return Array.from({ length: data.byteLength >> 2 }, (_, index) => view.getUint32(index * 4, true))
}
