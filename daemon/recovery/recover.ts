// One recovery, run by the leader: brings all active nodes to one generation, one vnnmap and recovery mode NORMAL, and every
// database to the same contents in between (cluster page 7.3). It is client code: controls and messages, nothing else. One
// database's way is in database.ts; when to run a recovery is watch.ts's affair.

import type { ControlReply, Session } from "../../lib/client/session.ts"
import type { Logger } from "../../lib/config/log.ts"
import type { Tunables } from "../../lib/config/tunables.ts"
import type { Scheduler } from "../../lib/net/ports.ts"
import { ProtocolError } from "../../lib/protocol/codec.ts"
import { BROADCAST_CONNECTED, Capability, DbFlag, RecoveryMode } from "../../lib/protocol/constants.ts"
import { decodeReply } from "../../lib/protocol/controls.ts"
import type { DbidMap, NodeMap } from "../../lib/protocol/structs.ts"
import { isActive } from "../state.ts"
import { bannable } from "./banning.ts"
import { Srvids } from "./collect.ts"
import { hexId, type Known, type Outcome, recoverDatabase, type Surroundings } from "./database.ts"
import type { RecoveryFiles } from "./files.ts"
import { Gate } from "./gate.ts"
import { MergeMemory } from "./merge.ts"
import { ProgressReport } from "./progress.ts"
import { PhaseFailure, Requests } from "./requests.ts"
import { type Ended, sleep, type Task, together } from "./task.ts"
import { activePnns, connectedPnns, countBanned, flagsOf } from "./view.ts"

export interface RecoveryOrder {
  readonly session: Session
  readonly scheduler: Scheduler
  readonly log: Logger
  readonly files: RecoveryFiles
  /** The leader's own number. */
  readonly pnn: number
  readonly tunables: Tunables
  /** A fresh one for each attempt: 31 bits, not 1. */
  readonly generation: number
  /** Nodes that are connected but do not answer: the recovery goes on without them. */
  readonly excluded: ReadonlySet<number>
  /** Where message ids begin: random, so that packets of an earlier recovery meet nobody. */
  readonly firstSrvid: number
}

/** Ends a recovery. What was done stays done; the next attempt starts over it. */
export class RecoveryFailure extends Error {
  override readonly name = "RecoveryFailure"
  constructor(
    message: string,
    /** The nodes whose failure it was. Empty: nobody's. */
    readonly pnns: readonly number[] = [],
    /** Nodes went away or another recovery is under way: the next one need not wait. */
    readonly overtaken = false,
    /** Nodes that did not answer what a living daemon answers at once. */
    readonly silent: readonly number[] = [],
  ) {
    super(message)
  }
}

/** As many databases move records at the same time; all others freeze, wait or finish meanwhile. */
const MOVING_MAX = 4
/** A node with so many credits of one recovery is banned (cluster page 7.10). */
const BAN_CREDITS = 3
/** What needs no script, lock or disk is answered in this time, by any node that a recovery can wait for (ms). */
const PROMPT_MS = 5000
/** Own node and members must answer a look into a failure in this time (ms). */
const LOOK_MS = 3000
/** Databases that are attached while a recovery runs are recovered in it, so many times. */
const ROUNDS = 5
/** No recovery goes on for longer than this many times RecoverTimeout (10 minutes by default). */
const BOUND = 20

/** Runs the phases in order. Throws RecoveryFailure. */
export function* recover(order: RecoveryOrder): Task<void> {
  const progress = new ProgressReport(order.session, order.scheduler, order.log, order.pnn, order.generation)
  let done = false
  try {
    yield* bounded(order, new Recovery(order, progress).run())
    done = true
  } finally {
    progress.end(done ? "done" : "failed")
  }
}

function* bounded(order: RecoveryOrder, task: Task<void>): Task<void> {
  const limitMs = BOUND * order.tunables.RecoverTimeout * 1000
  const over = function* (): Task<void> {
    yield* sleep(order.scheduler, limitMs)
    throw new RecoveryFailure(`not finished after ${limitMs / 1000} s`)
  }
  const ended = new Error("the recovery ended")
  const working = function* (): Task<void> {
    yield* task
    throw ended
  }
  try {
    yield* together([working(), over()], () => true)
  } catch (error) {
    if (error !== ended) throw error
  }
}

class Recovery {
  private readonly requests: Requests
  /** For what a living daemon answers at once. */
  private readonly prompt: Requests
  private members: readonly number[] = []
  /** The members carry this recovery's generation. */
  private generationSet = false
  /** Every member is one of ours. */
  private alikeKnown = false
  /** Members that take and give a database in one packet only (Samba 4.4). */
  private unchunked: ReadonlySet<number> = new Set()
  /** No node is connected but left out: a broadcast reaches the members and nobody else. */
  private membersAreConnected = false

  constructor(
    private readonly order: RecoveryOrder,
    private readonly progress: ProgressReport,
  ) {
    this.requests = new Requests(order.session, order.scheduler, order.tunables.RecoverTimeout * 1000)
    this.prompt = new Requests(order.session, order.scheduler, PROMPT_MS, true)
  }

  *run(): Task<void> {
    try {
      yield* this.phases()
    } catch (error) {
      if (!(error instanceof PhaseFailure)) throw error
      const faulty = yield* this.judge(error)
      // What fails everywhere is no single node's fault.
      const everywhere = this.members.length > 1 && this.members.every((pnn) => faulty.includes(pnn))
      const late = error.failures.filter(({ timedOut }) => timedOut).map(({ pnn }) => pnn)
      throw new RecoveryFailure(error.message, everywhere ? [] : faulty, false, error.prompt ? late : [])
    }
  }

  private *phases(): Task<void> {
    const { order, requests, prompt } = this
    const { log, generation } = order
    this.members = yield* this.findMembers()
    const { members } = this
    const capabilities = yield* prompt.read("GET_CAPABILITIES", members)
    const lacking = (capability: number) => members.filter((pnn) => ((capabilities.get(pnn) ?? 0) & capability) === 0)
    const serial = lacking(Capability.PARALLEL_RECOVERY)
    if (serial.length > 0) {
      throw new RecoveryFailure(`node ${serial.join(", ")} knows no parallel recovery (older than Samba 4.4)`, serial)
    }
    this.unchunked = new Set(lacking(Capability.FRAGMENTED_CONTROLS))
    const maps = yield* prompt.read("GET_DBMAP", members)

    yield* prompt.tell("SET_RECMODE", members, RecoveryMode.ACTIVE)
    log.notice("Set recovery mode to ACTIVE")

    yield* requests.tell("START_RECOVERY", members)
    log.notice("start_recovery event finished")

    const lmasters = members.filter((pnn) => ((capabilities.get(pnn) ?? 0) & Capability.LMASTER) !== 0)
    const map = lmasters.length > 0 ? lmasters : [order.pnn]
    yield* prompt.tell("SETVNNMAP", members, { generation, map })
    this.generationSet = true
    log.notice("updated VNNMAP")

    // Stock nodes refuse what they do not know.
    const answers = yield* prompt.ask("ALIKE_DIGEST", members, { dbId: 0, tid: generation })
    this.alikeKnown = [...answers.values()].every(({ ok }) => ok)

    const recovered = new Set<number>()
    yield* this.recoverAll(unionOf(maps), recovered)
    yield* this.finish(recovered)
    yield* requests.tell("END_RECOVERY", members)
    log.notice("recovered event finished")
  }

  /** The nodes that take part: connected, answering, and not inactive by their own word. In PNN order. */
  private *findMembers(): Task<readonly number[]> {
    const { pnn, excluded } = this.order
    const own = (yield* this.prompt.read("GET_NODEMAP", [pnn])).get(pnn) as NodeMap
    const all = connectedPnns(own)
    const connected = all.filter((other) => !excluded.has(other))
    const maps = yield* this.prompt.read("GET_NODEMAP", connected)
    const members = connected.filter((other) => isActive({ flags: flagsOf(maps.get(other) ?? [], other) ?? 0 }))
    this.membersAreConnected = members.length === all.length
    return members
  }

  /** Recovery mode NORMAL, which every database must have reached; those attached meanwhile are recovered first. */
  private *finish(recovered: Set<number>): Task<void> {
    const { requests, members, order, progress } = this
    for (let round = 1; ; round++) {
      yield* this.recoverLatecomers(recovered)
      progress.enter("finishing")
      try {
        yield* requests.tell("SET_RECMODE", members, RecoveryMode.NORMAL)
        order.log.notice("Set recovery mode to NORMAL")
        return
      } catch (error) {
        if (!(error instanceof PhaseFailure) || round === ROUNDS) throw error
        const before = recovered.size
        yield* this.recoverLatecomers(recovered)
        if (recovered.size === before) throw error
      }
    }
  }

  private *recoverLatecomers(recovered: Set<number>): Task<void> {
    for (let round = 1; round <= ROUNDS; round++) {
      const union = unionOf(yield* this.prompt.read("GET_DBMAP", this.members))
      const fresh = new Map([...union].filter(([dbId]) => !recovered.has(dbId)))
      if (fresh.size === 0) return
      yield* this.recoverAll(fresh, recovered)
    }
  }

  /** All databases at once. @throws RecoveryFailure when some could not be recovered: after the others were */
  private *recoverAll(union: ReadonlyMap<number, Known>, recovered: Set<number>): Task<void> {
    const { order, progress } = this
    const around = this.surroundings()
    const credits = new Map<number, number>()
    const sound: Known[] = []
    for (const known of union.values()) {
      order.log.info(`recover database ${hexId(known.dbId)}`)
      const odd = oddFlags(known)
      if (odd === undefined) sound.push(known)
      else {
        order.log.error(odd.text)
        progress.failed++
        for (const pnn of odd.pnns) credits.set(pnn, (credits.get(pnn) ?? 0) + BAN_CREDITS)
      }
    }
    progress.databases += union.size
    progress.enter("databases")
    const tasks = sound.map((known) => recoverDatabase(around, known))
    // What one database may not settle for itself ends the recovery.
    const ends = yield* together(tasks, () => true)
    for (const [index, end] of ends.entries()) {
      const { recovered: well, credits: theirs } = (end as Extract<Ended<Outcome>, { ok: true }>).value
      if (well) recovered.add(sound[index]!.dbId)
      for (const [pnn, count] of theirs) credits.set(pnn, (credits.get(pnn) ?? 0) + count)
    }
    order.log.notice(`${progress.recovered} of ${progress.databases} databases recovered`)
    if (progress.failed === 0) return
    yield* this.banFaulty(credits)
    throw new RecoveryFailure(`${progress.failed} of ${progress.databases} databases were not recovered`, [
      ...credits.keys(),
    ])
  }

  private surroundings(): Surroundings {
    const { session, scheduler, log, files, pnn, generation, tunables, firstSrvid } = this.order
    return {
      session,
      scheduler,
      log,
      requests: this.requests,
      srvids: new Srvids(firstSrvid),
      files,
      memory: new MergeMemory(),
      gate: new Gate(scheduler, MOVING_MAX),
      progress: this.progress,
      pnn,
      members: this.members,
      unchunked: this.unchunked,
      generation,
      bufferLimit: tunables.RecBufferSizeLimit,
      alikeKnown: this.alikeKnown,
      everybody: this.alikeKnown && this.membersAreConnected ? BROADCAST_CONNECTED : undefined,
      hashSize: tunables.DatabaseHashSize,
      judge: (failure) => this.judge(failure),
    }
  }

  /**
   * Why did a node fail? When it has gone, or has a newer generation, this recovery has no point any more; whoever runs the
   * next one knows more. When this node does not answer itself, it can't tell who was late.
   */
  private *judge(failure: PhaseFailure): Task<readonly number[]> {
    const { order, requests, members } = this
    const own = order.pnn
    const failing = failure.failures.map(({ pnn }) => pnn)
    const looks = yield* together([
      requests.ask("GET_NODEMAP", [own], undefined, 0, LOOK_MS),
      requests.ask("GETVNNMAP", [...new Set([own, ...failing])], undefined, 0, LOOK_MS),
    ])
    const [maps, vnns] = looks.map((look) => (look.ok ? look.value : undefined))
    const nodeMap = readNodeMap(maps?.get(own))
    if (nodeMap === undefined) {
      order.log.error("The own node does not answer: nobody is blamed for being late")
      return failing.filter((pnn) => !failure.failures.some((one) => one.pnn === pnn && one.timedOut))
    }
    const active = activePnns(nodeMap)
    const gone = members.filter((pnn) => !active.includes(pnn))
    if (gone.length > 0) throw new RecoveryFailure(`node ${gone.join(", ")} went away meanwhile`, [], true)
    for (const [pnn, reply] of this.generationSet ? (vnns ?? []) : []) {
      const generation = reply.ok && reply.data.length >= 4 ? u32(reply.data) : order.generation
      if (generation === order.generation) continue
      throw new RecoveryFailure(`overtaken: node ${pnn} is at generation ${generation}`, [], true)
    }
    return failing
  }

  /** How many connected nodes are banned, as far as this node knows. */
  private *bannedNodes(): Task<number> {
    const own = this.order.pnn
    const reply = (yield* this.requests.ask("GET_NODEMAP", [own], undefined, 0, LOOK_MS)).get(own)
    return countBanned(readNodeMap(reply) ?? [])
  }

  /** Nodes that let databases fail again and again are banned, if they still take part (cluster page 7.10). */
  private *banFaulty(credits: ReadonlyMap<number, number>): Task<void> {
    const { order, requests, members } = this
    if (order.tunables.EnableBans === 0) return
    const faulty = [...credits].filter(([, count]) => count >= BAN_CREDITS).sort((a, b) => b[1] - a[1] || a[0] - b[0])
    const pnns = faulty.map(([pnn]) => pnn)
    const chosen = bannable(pnns, members, yield* this.bannedNodes())
    const spared = pnns.filter((pnn) => !chosen.includes(pnn))
    if (spared.length > 0) {
      order.log.error(
        `Node ${spared.join(", ")} failed again and again, but too many do: not banned, what they share may be no fault of theirs`,
      )
    }
    for (const [pnn, count] of faulty.filter(([node]) => chosen.includes(node))) {
      const reply = (yield* requests.ask("GET_NODEMAP", [pnn], undefined, 0, LOOK_MS)).get(pnn)
      const flags = flagsOf(readNodeMap(reply) ?? [], pnn)
      if (flags === undefined || !isActive({ flags })) continue
      const time = order.tunables.RecoveryBanPeriod
      order.log.error(`Banning node ${pnn} for ${time} seconds: ${count} failures in one recovery`)
      yield* requests.ask("SET_BAN_STATE", [pnn], { pnn, time })
    }
  }
}

/** Properties that a node may lack: they are set where they are missing. */
const PROPERTIES = DbFlag.READONLY | DbFlag.STICKY

/** Every database that some node has, in the order of first appearance. */
function unionOf(maps: ReadonlyMap<number, DbidMap>): ReadonlyMap<number, Known> {
  const union = new Map<number, { dbId: number; kind: number; holders: Map<number, number> }>()
  for (const [pnn, map] of maps) {
    for (const { dbId, flags } of map) {
      const known = union.get(dbId) ?? { dbId, kind: flags & ~PROPERTIES, holders: new Map<number, number>() }
      known.holders.set(pnn, flags)
      union.set(dbId, known)
    }
  }
  return union
}

/** Nodes that have a database as another kind than most have it; of equal numbers, nobody is at fault. */
function oddFlags(known: Known): { readonly text: string; readonly pnns: readonly number[] } | undefined {
  const byKind = new Map<number, number[]>()
  for (const [pnn, flags] of known.holders) {
    const kind = flags & ~PROPERTIES
    byKind.set(kind, [...(byKind.get(kind) ?? []), pnn])
  }
  if (byKind.size < 2) return undefined
  const groups = [...byKind].sort((a, b) => b[1].length - a[1].length)
  const [first, second] = groups
  const clear = first![1].length > second![1].length
  const kinds = groups.map(([kind, pnns]) => `0x${kind.toString(16)} on node ${pnns.join(", ")}`).join("; ")
  return {
    text: `Incompatible database flags for ${hexId(known.dbId)}: ${kinds}`,
    pnns: clear ? groups.slice(1).flatMap(([, pnns]) => pnns) : [],
  }
}

function readNodeMap(reply: ControlReply | undefined): NodeMap | undefined {
  if (reply?.ok !== true) return undefined
  try {
    return decodeReply("GET_NODEMAP", reply.data)
  } catch (error) {
    if (!(error instanceof ProtocolError)) throw error
    return undefined
  }
}

function u32(bytes: Uint8Array): number {
  return new DataView(bytes.buffer, bytes.byteOffset).getUint32(0, true)
}
