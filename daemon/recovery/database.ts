// The recovery of one database, from its name to its thaw (cluster page 7.4). It knows nothing of other databases: each goes
// its own way, and one that a node holds up holds up nobody else. Three attempts, then it is given up; which nodes were at
// fault is counted for whoever decides on bans.

import type { Session } from "../../lib/client/session.ts"
import type { Logger } from "../../lib/config/log.ts"
import type { Scheduler } from "../../lib/net/ports.ts"
import { ControlFlag, DbFlag } from "../../lib/protocol/constants.ts"
import { databaseId, jenkinsHash } from "../../lib/protocol/hash.ts"
import { compare, equal, toDecimal, type Word64, ZERO64 } from "../../lib/protocol/word64.ts"
import { SysError } from "../../lib/sys/errno.ts"
import { TdbError } from "../../lib/tdb/tdb.ts"
import { GROUP_WORDS, GROUPS, keptRecords, ODD } from "../database/alike.ts"
import { pull, type Srvids } from "./collect.ts"
import type { Aside, RecoveryFiles } from "./files.ts"
import type { Gate, Pass } from "./gate.ts"
import { type MergeMemory, type MergeRule, RecordMerge } from "./merge.ts"
import type { ProgressReport } from "./progress.ts"
import { push } from "./push.ts"
import { failuresOf, type NodeFailure, PhaseFailure, type Requests } from "./requests.ts"
import { sleep, type Task } from "./task.ts"

const ATTEMPTS = 3
/** Between attempts, so that what fails at once gets a chance to pass by itself (ms). */
const PAUSE_MS = 250
/**
 * A record buffer of a push (bytes): small enough that storing one is a short turn of a node's loop, and with its header a packet
 * that every reader on the way has a buffer for, over and over the same. Fresh memory for each cost as much as all other work.
 */
const BUFFER_SIZE = 60 * 1024

/** What all databases of one recovery share. */
export interface Surroundings {
  readonly session: Session
  readonly scheduler: Scheduler
  readonly log: Logger
  readonly requests: Requests
  readonly srvids: Srvids
  readonly files: RecoveryFiles
  readonly memory: MergeMemory
  readonly gate: Gate
  readonly progress: ProgressReport
  /** The leader's own number. */
  readonly pnn: number
  readonly members: readonly number[]
  /** Members that take and give a database in one packet only. */
  readonly unchunked: ReadonlySet<number>
  readonly generation: number
  /** RecBufferSizeLimit, bytes. */
  readonly bufferLimit: number
  /** All members can tell what they hold alike: all are ours. */
  readonly alikeKnown: boolean
  /** The destination of messages that stands for all members; undefined if there is none. */
  readonly everybody: number | undefined
  /** DatabaseHashSize. */
  readonly hashSize: number
  /**
   * Looks into a failure. Returns the nodes whose fault it was.
   * @throws whatever ends the whole recovery: a member has gone, a newer recovery runs
   */
  readonly judge: (failure: PhaseFailure) => Task<readonly number[]>
}

/** One database as the nodes' maps show it. */
export interface Known {
  readonly dbId: number
  /** Without READONLY and STICKY. */
  readonly kind: number
  /** Flags by node that has it. */
  readonly holders: ReadonlyMap<number, number>
}

export interface Outcome {
  readonly recovered: boolean
  /** A credit for each attempt that a node let fail. */
  readonly credits: ReadonlyMap<number, number>
}

export function hexId(dbId: number): string {
  return `0x${dbId.toString(16).padStart(8, "0")}`
}

export function* recoverDatabase(around: Surroundings, known: Known): Task<Outcome> {
  const credits = new Map<number, number>()
  const state = new DatabaseRecovery(around, known)
  for (let attempt = 1; ; attempt++) {
    try {
      yield* state.attempt(attempt === ATTEMPTS)
      around.progress.recovered++
      return { recovered: true, credits }
    } catch (error) {
      const failure = asFailure(error, around.pnn)
      if (failure === undefined) throw error
      around.log.error(`Database ${state.label}, attempt ${attempt} of ${ATTEMPTS}: ${failure.message}`)
      for (const pnn of yield* around.judge(failure)) credits.set(pnn, (credits.get(pnn) ?? 0) + 1)
    }
    if (attempt === ATTEMPTS) {
      around.log.error(`Database ${state.label} is given up in this recovery and stays frozen`)
      around.progress.failed++
      return { recovered: false, credits }
    }
    yield* sleep(around.scheduler, PAUSE_MS * attempt)
  }
}

/** What an attempt may fail by; the leader's own files are its own fault. */
function asFailure(error: unknown, pnn: number): PhaseFailure | undefined {
  if (error instanceof PhaseFailure) return error
  if (!(error instanceof SysError || error instanceof TdbError)) return undefined
  return new PhaseFailure("keeping records on disk", [{ pnn, timedOut: false, text: error.message }])
}

class DatabaseRecovery {
  private name: string | undefined
  private frozen = false

  constructor(
    private readonly around: Surroundings,
    private readonly known: Known,
  ) {}

  get label(): string {
    return this.name ?? hexId(this.known.dbId)
  }

  /** @throws PhaseFailure, SysError, TdbError: what was done stays done, the next attempt starts over it */
  *attempt(last: boolean): Task<void> {
    const { requests, members, generation, gate, progress, log } = this.around
    const { dbId } = this.known
    const transaction = { dbId, tid: generation }
    this.name ??= yield* this.agreedName()
    yield* this.attachWhereMissing(this.name)
    yield* this.restoreFlags()
    const watch = new PhaseTimes(this.around.scheduler)
    yield* requests.tell("DB_FREEZE", members, dbId)
    watch.over("freeze")
    if (!this.frozen) progress.frozen++
    this.frozen = true
    yield* requests.tell("DB_TRANSACTION_START", members, transaction)
    const pass = yield* gate.enter()
    watch.over("wait")
    try {
      yield* this.moveRecords(pass, last, watch)
    } finally {
      pass.leave()
    }
    yield* requests.tell("DB_TRANSACTION_COMMIT", members, transaction)
    yield* requests.tell("DB_THAW", members, dbId)
    watch.over("commit")
    log.info(`recovered database ${this.label}: ${watch.text}`)
  }

  /** A database's id is made from its name: who says another one is at fault. */
  private *agreedName(): Task<string> {
    const { dbId, holders } = this.known
    const names = yield* this.around.requests.read("GET_DBNAME", [...holders.keys()], dbId)
    const failures: NodeFailure[] = []
    let agreed: string | undefined
    for (const [pnn, name] of names) {
      if (name !== null && databaseId(name) === dbId) agreed ??= name
      if (name !== agreed) failures.push({ pnn, timedOut: false, text: `Incompatible database name ${name}` })
    }
    if (failures.length > 0 || agreed === undefined) throw new PhaseFailure("GET_DBNAME", failures)
    return agreed
  }

  private *attachWhereMissing(name: string): Task<void> {
    const { requests, members } = this.around
    const { kind, holders, dbId } = this.known
    const missing = members.filter((pnn) => !holders.has(pnn))
    if (missing.length === 0) return
    const control =
      (kind & DbFlag.PERSISTENT) !== 0
        ? "DB_ATTACH_PERSISTENT"
        : (kind & DbFlag.REPLICATED) !== 0
          ? "DB_ATTACH_REPLICATED"
          : "DB_ATTACH"
    const replies = yield* requests.ask(control, missing, name, ControlFlag.ATTACH_RECOVERY)
    const failures = failuresOf(replies)
    for (const [pnn, reply] of replies) {
      if (reply.ok && reply.data.length >= 4 && u32(reply.data) !== dbId) {
        failures.push({ pnn, timedOut: false, text: `attached as ${hexId(u32(reply.data))}` })
      }
    }
    const left: NodeFailure[] = []
    for (const failure of failures) {
      const attached = !failure.timedOut && (yield* this.attachThoughDenied(control, failure.pnn, name))
      if (!attached) left.push(failure)
    }
    if (left.length > 0) throw new PhaseFailure(control, left)
  }

  /**
   * A stock node whose tunable AllowClientDBAttach is 0 (which `ctdb detach` asks for) denies the recovery's attach too. That
   * is no fault: the tunable is lifted for the moment of the attach (cluster page 10.3, row 27).
   */
  private *attachThoughDenied(
    control: "DB_ATTACH" | "DB_ATTACH_PERSISTENT" | "DB_ATTACH_REPLICATED",
    pnn: number,
    name: string,
  ): Task<boolean> {
    const { requests, log } = this.around
    const tunable = "AllowClientDBAttach"
    const value = (yield* requests.ask("GET_TUNABLE", [pnn], tunable)).get(pnn)
    if (value?.ok !== true || value.data.length < 4 || u32(value.data) !== 0) return false
    log.notice(`Node ${pnn} denies attaches (${tunable} is 0): lifted while ${name} is attached there`)
    yield* requests.ask("SET_TUNABLE", [pnn], { name: tunable, value: 1 })
    const reply = (yield* requests.ask(control, [pnn], name, ControlFlag.ATTACH_RECOVERY)).get(pnn)
    yield* requests.ask("SET_TUNABLE", [pnn], { name: tunable, value: 0 })
    return reply?.ok === true
  }

  /** Properties that only some nodes know of: the others would treat the records otherwise. No reason to fail. */
  private *restoreFlags(): Task<void> {
    const { requests, members, log } = this.around
    const { holders, dbId } = this.known
    for (const [flag, control] of [
      [DbFlag.READONLY, "SET_DB_READONLY"],
      [DbFlag.STICKY, "SET_DB_STICKY"],
    ] as const) {
      if (![...holders.values()].some((flags) => (flags & flag) !== 0)) continue
      const lacking = members.filter((pnn) => ((holders.get(pnn) ?? 0) & flag) === 0)
      for (const { pnn, text } of failuresOf(yield* requests.ask(control, lacking, dbId))) {
        log.warning(`${control} for ${this.label} failed on node ${pnn}: ${text}`)
      }
    }
  }

  private *moveRecords(pass: Pass, last: boolean, watch: PhaseTimes): Task<void> {
    const { session, requests, srvids, files, memory, progress, members, generation, bufferLimit, hashSize } =
      this.around
    const { dbId } = this.known
    const merge = new RecordMerge(dbId, files, hashSize, memory)
    const kept = new DivergedRecords(this.around, this.label)
    try {
      const alike = yield* this.findAlike()
      pass.moved()
      watch.over("digest")
      const rule = yield* this.collect(merge, kept, pass, last, alike?.keep)
      watch.over(`pull of ${merge.records} records`)
      if (alike === undefined) yield* requests.tell("WIPE_DATABASE", members, { dbId, tid: generation })
      else yield* this.retain(alike)
      pass.moved()
      yield* push({
        session,
        requests,
        srvids,
        dbId,
        pnns: members.filter((pnn) => !this.around.unchunked.has(pnn)),
        unchunked: [...this.around.unchunked],
        everybody: this.around.everybody,
        buffers: merge.buffers(rule, Math.min(bufferLimit, BUFFER_SIZE)),
        onSent: (records, bytes) => {
          pass.moved()
          progress.pushedRecords += records
          progress.pushedBytes += bytes
        },
      })
      watch.over("push")
      kept.keep()
    } finally {
      kept.abandon()
      merge.close()
    }
  }

  /** What all members hold alike, if they can tell and it is worth leaving alone. */
  private *findAlike(): Task<Alike | undefined> {
    const { requests, members, generation, alikeKnown } = this.around
    if (!alikeKnown) return undefined
    const transaction = { dbId: this.known.dbId, tid: generation }
    const sketches = yield* requests.tell("ALIKE_SKETCH", members, transaction)
    if (!worthDigest([...sketches.values()].map(({ data }) => data))) return undefined
    const replies = yield* requests.tell("ALIKE_DIGEST", members, transaction)
    return compareDigests([...replies.values()].map(({ data }) => data))
  }

  private *retain({ keep, records }: Alike): Task<void> {
    const { requests, members, generation, pnn, progress } = this.around
    const { dbId } = this.known
    const failures: NodeFailure[] = []
    const request = { dbId, tid: generation, leader: pnn, keep }
    for (const [node, kept] of yield* requests.read("ALIKE_RETAIN", members, request)) {
      if (kept !== records) failures.push({ pnn: node, timedOut: false, text: `kept ${kept} of ${records} records` })
    }
    if (failures.length > 0) throw new PhaseFailure("ALIKE_RETAIN", failures)
    progress.keptRecords += records
  }

  private *collect(
    merge: RecordMerge,
    kept: DivergedRecords,
    pass: Pass,
    last: boolean,
    keep: Uint8Array | undefined,
  ): Task<MergeRule> {
    const { session, scheduler, requests, srvids, progress, pnn: leader, members, log } = this.around
    const { dbId, kind } = this.known
    const replicatedByNumber = (kind & (DbFlag.PERSISTENT | DbFlag.REPLICATED)) !== 0
    const numbers = replicatedByNumber ? yield* requests.read("GET_DB_SEQNUM", members, dbId) : undefined
    const failures = yield* pull({
      session,
      scheduler,
      srvids,
      dbId,
      pnns: members,
      unchunked: this.around.unchunked,
      keep,
      limitMs: requests.limitMs,
      onBuffer: (pnn, buffer) => {
        const records = merge.add(members.indexOf(pnn), buffer)
        pass.moved()
        progress.pulledRecords += records
        progress.pulledBytes += buffer.length
        return records
      },
    })
    if (numbers === undefined) {
      if (failures.length > 0) throw new PhaseFailure("DB_PULL", failures)
      return { kind: "volatile", leader }
    }
    const highest = highestOf(numbers)
    // The others are asked for what they have only to see whether something would be lost; one that never tells, or says that it knows
    // of no commit, is replaced.
    const known = (pnn: number): boolean => !equal(numbers.get(pnn)!, ZERO64)
    const serious = failures.filter(({ pnn, timedOut }) => timedOut || pnn === highest.pnn || (!last && known(pnn)))
    if (serious.length > 0) throw new PhaseFailure("DB_PULL", serious)
    for (const { pnn, text } of failures) {
      log.error(`Copy of database ${this.label} on node ${pnn} can not be read and is replaced: ${text}`)
    }
    kept.numbers = numbers
    kept.winner = highest.pnn
    const equals = members.filter((pnn) => compare(numbers.get(pnn)!, highest.number) === 0)
    return {
      kind: "whole",
      winner: members.indexOf(highest.pnn),
      leader: (kind & DbFlag.PERSISTENT) !== 0 ? undefined : leader,
      equals: new Set(equals.map((pnn) => members.indexOf(pnn))),
      onDiverged: (source, key, data) => kept.add(members[source]!, key, data),
    }
  }
}

interface Alike {
  /** A bit for each group that stays as it is. */
  readonly keep: Uint8Array
  /** How many records each member has in these groups. */
  readonly records: number
}

/** Below this share of alike records everything is sent. */
const WORTH_SHARE = 0.25

/** Whether a good part of the sketches' ranges is the same everywhere: else the members hold different keys. */
function worthDigest(sketches: readonly Uint8Array[]): boolean {
  const [first, ...others] = sketches
  if (first === undefined || sketches.some(({ length }) => length === 0 || length !== first.length)) return false
  const words = first.length >>> 2
  let same = 0
  for (let word = 1; word < words; word++) {
    if (others.every((other) => u32(other, 0) === u32(first, 0) && u32(other, 4 * word) === u32(first, 4 * word)))
      same++
  }
  return same >= (words - 1) * WORTH_SHARE
}

/** The groups that every digest shows the same; undefined if there is no digest, or too little in common. */
function compareDigests(digests: readonly Uint8Array[]): Alike | undefined {
  const size = GROUPS * GROUP_WORDS * 4
  if (digests.some((digest) => digest.length !== size)) return undefined
  // Replies are copies of their own, and so lie at the start of their memory.
  const [first, ...others] = digests.map((digest) => new Uint32Array(digest.buffer, digest.byteOffset, size / 4))
  const keep = new Uint8Array(GROUPS / 8)
  let total = 0
  for (let group = 0; group < GROUPS; group++) {
    const at = group * GROUP_WORDS
    total += first![at + 2]!
    if (first![at + 3] === ODD) continue
    let same = true
    for (const other of others) {
      for (let word = at; word < at + GROUP_WORDS; word++) if (other[word] !== first![word]) same = false
    }
    if (same) keep[group >>> 3]! |= 1 << (group & 7)
  }
  const records = keptRecords(digests[0]!, keep)
  return records >= total * WORTH_SHARE ? { keep, records } : undefined
}

/** Where the time went, for the log. */
class PhaseTimes {
  text = ""
  private sinceMs: number

  constructor(private readonly scheduler: Scheduler) {
    this.sinceMs = scheduler.monotonicMs()
  }

  over(phase: string): void {
    const nowMs = this.scheduler.monotonicMs()
    this.text += `${this.text === "" ? "" : ", "}${phase} ${Math.round(nowMs - this.sinceMs)} ms`
    this.sinceMs = nowMs
  }
}

/** The first node with the highest sequence number. */
function highestOf(numbers: ReadonlyMap<number, Word64>): { readonly pnn: number; readonly number: Word64 } {
  let best: { readonly pnn: number; readonly number: Word64 } | undefined
  for (const [pnn, number] of numbers) {
    if (best === undefined || compare(number, best.number) > 0) best = { pnn, number }
  }
  return best!
}

function u32(bytes: Uint8Array, at = 0): number {
  return new DataView(bytes.buffer, bytes.byteOffset).getUint32(at, true)
}

/**
 * Records of copies that lost by sequence number but are no older state of the winner: two histories, of which a recovery
 * can take only one. The other's go to a file each node, and the log says where (cluster page 10.3, row 3).
 */
class DivergedRecords {
  numbers: ReadonlyMap<number, Word64> = new Map()
  winner = -1
  private readonly asides = new Map<number, { readonly aside: Aside; count: number; digest: number }>()

  constructor(
    private readonly around: Surroundings,
    private readonly label: string,
  ) {}

  add(pnn: number, key: Uint8Array, data: Uint8Array): void {
    let entry = this.asides.get(pnn)
    if (entry === undefined) {
      entry = { aside: this.around.files.openAside(`${this.label}.node${pnn}`), count: 0, digest: 0 }
      this.asides.set(pnn, entry)
    }
    entry.aside.store(key, data)
    entry.count++
    entry.digest = (entry.digest + Math.imul(jenkinsHash(key), 31) + jenkinsHash(data)) | 0
  }

  /** Names the files by their contents: what is found again, after a failed attempt for one, is the same file. */
  keep(): void {
    for (const [pnn, { aside, count, digest }] of this.asides) {
      const theirs = toDecimal(this.numbers.get(pnn)!)
      const taken = toDecimal(this.numbers.get(this.winner)!)
      const hex = (digest >>> 0).toString(16).padStart(8, "0")
      const path = aside.keep(`diverged.${this.label}.node${pnn}.seqnum${theirs}.${hex}.tdb`)
      this.around.log.error(
        `Database ${this.label}: node ${pnn} (sequence number ${theirs}) has ${count} records that the copy taken, ` +
          `of node ${this.winner} (${taken}), has not or has otherwise. They are kept in ${path}`,
      )
    }
    this.asides.clear()
  }

  abandon(): void {
    for (const { aside } of this.asides.values()) aside.abandon()
    this.asides.clear()
  }
}
