// Vacuuming: records without data go everywhere, and nobody but their lmaster decides it (data path page, section 13). Queues of
// what may go, a run now and then that looks at them, and this node's part in the runs of others. All of it in short pieces;
// every decision is made again under the chain's lock at the moment it is acted on. Why nothing is lost: ARCHITECTURE.md.

import type { Timer } from "../../lib/net/ports.ts"
import { decode, encode, ProtocolError } from "../../lib/protocol/codec.ts"
import { CallFlag, CallId, CURRENT_NODE, RecordFlag, RecoveryMode } from "../../lib/protocol/constants.ts"
import { controls } from "../../lib/protocol/controls.ts"
import { readU32 } from "../../lib/protocol/header.ts"
import { Operation, type ReqCall } from "../../lib/protocol/packet.ts"
import { type KeyData, LTDB_HEADER_SIZE, type RecBuffer, type RecData, recBuffer } from "../../lib/protocol/structs.ts"
import { ZERO64 } from "../../lib/protocol/word64.ts"
import { ChainWalk, TdbError } from "../../lib/tdb/tdb.ts"
import type { NodeEnvironment } from "../environment.ts"
import type { IdTable } from "../ids.ts"
import type { Answer, IdEntry, LocalClient, Router } from "../routing.ts"
import { isActive, type NodeState } from "../state.ts"
import { addLatency } from "../statistics.ts"
import type { Database } from "./database.ts"
import { type Deletions, keyHash, RecordHeader } from "./record.ts"
import type { Databases } from "./registry.ts"

/** One piece of work ends after this time (ms). */
const PIECE_MS = 4
const RECORDS_PER_LOOK = 256
/** Keys in one queue; full runs find the rest again. */
const QUEUE_MAX = 1_000_000
/** Records in one TRY_DELETE_RECORDS or VACUUM_FETCH. */
const BATCH = 1000
/** Records that a run calls home at a time. */
const CALLS_MAX = 64
/** A record that some node could not delete is tried in so many runs; then a full one has to find it. */
const TRIES_MAX = 5
/** Another database is vacuumed: look again after this time (ms). */
const BUSY_MS = 500

/** A record without data that this node owned. */
interface Candidate {
  readonly key: Uint8Array
  readonly jenkins: number
  rsnHi: number
  rsnLo: number
  flags: number
  tries: number
  /** The next one of the same hash. */
  next: Candidate | undefined
}

/** Candidates by hash: looking for a key that is not there must cost nothing, as every store does it. */
class Candidates {
  private readonly byHash = new Map<number, Candidate>()
  size = 0

  get(jenkins: number, key: Uint8Array): Candidate | undefined {
    for (let entry = this.byHash.get(jenkins); entry !== undefined; entry = entry.next) {
      if (sameBytes(entry.key, key)) return entry
    }
    return undefined
  }

  /** false: it is full. */
  add(candidate: Candidate): boolean {
    if (this.size >= QUEUE_MAX) return false
    candidate.next = this.byHash.get(candidate.jenkins)
    this.byHash.set(candidate.jenkins, candidate)
    this.size++
    return true
  }

  remove(jenkins: number, key: Uint8Array): void {
    let before: Candidate | undefined
    for (let entry = this.byHash.get(jenkins); entry !== undefined; before = entry, entry = entry.next) {
      if (!sameBytes(entry.key, key)) continue
      if (before !== undefined) before.next = entry.next
      else if (entry.next !== undefined) this.byHash.set(jenkins, entry.next)
      else this.byHash.delete(jenkins)
      this.size--
      return
    }
  }

  /** At most that many, taken out. */
  take(count: number): Candidate[] {
    const taken: Candidate[] = []
    for (const first of this.byHash.values()) {
      for (let entry: Candidate | undefined = first; entry !== undefined; entry = entry.next) taken.push(entry)
      this.byHash.delete(first.jenkins)
      if (taken.length >= count) break
    }
    this.size -= taken.length
    return taken
  }

  clear(): void {
    this.byHash.clear()
    this.size = 0
  }
}

/** What vacuuming keeps for one database. */
class Queues implements Deletions {
  readonly deletions = new Candidates()
  readonly fetches = new Candidates()
  timer: Timer | undefined
  runs = 0
  /** Records were deleted since the free space was looked at. */
  deleted = false

  schedule(jenkins: number, key: Uint8Array, header: RecordHeader): void {
    const known = this.deletions.get(jenkins, key)
    if (known === undefined) this.deletions.add(candidate(key.slice(), jenkins, header))
    else {
      known.rsnHi = header.rsnHi
      known.rsnLo = header.rsnLo
      known.flags = header.flags
    }
  }

  forget(jenkins: number, key: Uint8Array): void {
    if (this.deletions.size > 0) this.deletions.remove(jenkins, key)
  }
}

/** Calls records home through the node's own record traffic, as a client would. */
export interface RecordCalls {
  callFromClient(call: ReqCall, client: LocalClient): void
}

export class Vacuum {
  private readonly queues = new Map<Database, Queues>()
  /** One run at a time on this node. */
  private running: Run | undefined

  constructor(
    readonly state: NodeState,
    readonly environment: NodeEnvironment,
    readonly router: Router,
    private readonly databases: Databases,
    readonly ids: IdTable<IdEntry>,
    readonly calls: RecordCalls,
  ) {}

  attached(database: Database): void {
    if (!database.volatile) return
    const queues = new Queues()
    this.queues.set(database, queues)
    database.deletions = queues
    this.wait(database, queues, Math.max(1, this.state.tunables.VacuumInterval) * 1000)
  }

  detached(database: Database): void {
    this.queues.get(database)?.timer?.cancel()
    this.queues.delete(database)
    this.abort(database, "database was detached")
  }

  /** The records are gone, and with them whatever was to be done about them. */
  forget(database: Database): void {
    const queues = this.queues.get(database)
    queues?.deletions.clear()
    queues?.fetches.clear()
    this.abort(database, "database was wiped")
  }

  private abort(database: Database, reason: string): void {
    if (this.running?.database === database) this.running.finish(reason)
  }

  private wait(database: Database, queues: Queues, delayMs: number): void {
    const setMs = this.environment.monotonicMs()
    queues.timer = this.environment.setTimer(delayMs, () => {
      const intervalMs = Math.max(1, this.state.tunables.VacuumInterval) * 1000
      const waitedMs = this.environment.monotonicMs() - setMs
      if (delayMs !== BUSY_MS && waitedMs < intervalMs - 1) this.wait(database, queues, intervalMs - waitedMs)
      else if (this.state.recoveryMode !== RecoveryMode.NORMAL || database.frozen)
        this.wait(database, queues, intervalMs)
      else if (this.running !== undefined) this.wait(database, queues, BUSY_MS)
      else this.regularRun(database, queues, intervalMs)
    })
  }

  private regularRun(database: Database, queues: Queues, intervalMs: number): void {
    const fast = this.state.tunables.VacuumFastPathCount
    const full = fast !== 0 && queues.runs >= fast
    queues.runs = full ? 0 : queues.runs + 1
    const next = () => {
      if (this.queues.has(database)) this.wait(database, queues, intervalMs)
    }
    if (!full && queues.deletions.size === 0 && queues.fetches.size === 0) next()
    else this.begin(database, queues, full, next)
  }

  private begin(database: Database, queues: Queues, full: boolean, done: (failure: string | undefined) => void): void {
    const sinceMs = this.environment.monotonicMs()
    const run = new Run(this, database, queues, full, (failure) => {
      this.running = undefined
      const seconds = (this.environment.monotonicMs() - sinceMs) / 1000
      addLatency(database.counters.vacuum.latency, seconds)
      const limitMs = this.state.tunables.LogLatencyMs
      if (limitMs !== 0 && seconds * 1000 > limitMs) {
        this.environment.log.warning(
          `High latency ${seconds.toFixed(6)}s for operation vacuum on database ${database.name}`,
        )
      }
      if (failure !== undefined) this.environment.log.notice(`Vacuuming of ${database.name} ended early: ${failure}`)
      done(failure)
    })
    this.running = run
    run.start()
  }

  // ---- controls ------------------------------------------------------------------------------------------------

  /** DB_VACUUM. */
  runNow(dbId: number, full: boolean, answer: Answer): void {
    const database = this.databases.get(dbId)
    const queues = database === undefined ? undefined : this.queues.get(database)
    const refusal =
      database === undefined || queues === undefined
        ? "no such volatile database"
        : this.state.recoveryMode !== RecoveryMode.NORMAL || database.frozen
          ? "recovery is active"
          : this.running !== undefined
            ? `${this.running.database.name} is being vacuumed`
            : undefined
    if (database === undefined || queues === undefined || refusal !== undefined) {
      this.environment.log.error(`DB_VACUUM refused: ${refusal}`)
      answer({ status: -1, ...(refusal === undefined ? {} : { error: refusal }) })
      return
    }
    this.begin(database, queues, full, (failure) =>
      answer(failure === undefined ? { status: 0 } : { status: -1, error: failure }),
    )
  }

  /** SCHEDULE_FOR_DELETION: false, no such database. */
  schedule({ dbId, header, key }: KeyData): boolean {
    const queues = this.queuesOf(dbId)
    if (queues === undefined) return false
    const at = new RecordHeader()
    at.rsnHi = header.rsn.hi
    at.rsnLo = header.rsn.lo
    at.flags = header.flags
    queues.schedule(keyHash(key), key, at)
    return true
  }

  /** VACUUM_FETCH: keys whose records had better come home to this node. */
  fetch({ dbId, records }: RecBuffer): boolean {
    const queues = this.queuesOf(dbId)
    if (queues === undefined) return false
    for (const { key } of records) {
      const jenkins = keyHash(key)
      if (key.length > 0 && queues.fetches.get(jenkins, key) === undefined) {
        queues.fetches.add(candidate(key.slice(), jenkins, NO_HEADER))
      }
    }
    return true
  }

  private queuesOf(dbId: number): Queues | undefined {
    const database = this.databases.get(dbId)
    return database === undefined ? undefined : this.queues.get(database)
  }

  /**
   * TRY_DELETE_RECORDS: the lmaster of these records wants copies of them gone. The answer has those that must stay (13.4).
   * The request is valid only during the call.
   */
  tryDelete(request: RecBuffer, answer: Answer): void {
    const database = this.databases.get(request.dbId)
    const short = request.records.some(({ data }) => data.length < LTDB_HEADER_SIZE)
    if (database === undefined || !database.volatile || short) {
      answer({ status: -1 })
      return
    }
    const records = request.records.map(({ key, data }) => ({ reqid: 0, key: key.slice(), data: data.slice() }))
    const kept: RecData[] = []
    let next = 0
    const step = (): void => {
      const deadlineMs = this.environment.monotonicMs() + PIECE_MS
      for (; next < records.length; next++) {
        if (next % RECORDS_PER_LOOK === RECORDS_PER_LOOK - 1 && this.environment.monotonicMs() > deadlineMs) {
          this.environment.nextTurn(step)
          return
        }
        const record = records[next]!
        if (database.closed || !this.deleteCopy(database, record)) kept.push(record)
      }
      answer({ status: 0, data: encode(recBuffer, { dbId: database.id, records: kept }) })
    }
    step()
  }

  private deleteCopy(database: Database, { key, data }: RecData): boolean {
    const jenkins = keyHash(key)
    if (database.lmasterOf(jenkins) === database.pnn || data.length !== LTDB_HEADER_SIZE) return false
    if (!database.locks.enter(jenkins)) return false
    try {
      const value = database.tdb.fetch(key, jenkins)
      if (value === null) return true
      if (value.length >= LTDB_HEADER_SIZE) {
        const theirs = new RecordHeader().read(data)
        const ours = new RecordHeader().read(value)
        if (ours.compareRsn(theirs.rsnHi, theirs.rsnLo) > 0) return false
        if (((theirs.flags | ours.flags) & RecordFlag.RO_FLAGS) !== 0) return false
        if (ours.dmaster === database.pnn) return false
      }
      database.tdb.delete(key, jenkins)
      const queues = this.queues.get(database)
      if (queues !== undefined) queues.deleted = true
      return true
    } catch (error) {
      if (!(error instanceof TdbError)) throw error
      this.environment.log.error(`Record of database ${database.name} can't be deleted: ${error.message}`)
      return false
    } finally {
      database.locks.leave(jenkins)
    }
  }
}

/** One run over one database: what it finds, what it calls home, what it deletes, and the free space in the end (13.3). */
class Run {
  private ended = false
  private readonly limit: Timer
  private readonly generation: number
  private readonly client: InternalClient
  /** Records of other lmasters, by these. */
  private readonly homes = new Map<number, Candidate[]>()
  /** Records that other nodes may have copies of: these go first. */
  private spread: Candidate[] = []
  private again: Candidate[] = []

  constructor(
    private readonly room: Vacuum,
    readonly database: Database,
    private readonly queues: Queues,
    private readonly full: boolean,
    private readonly done: (failure: string | undefined) => void,
  ) {
    const seconds = Math.max(1, room.state.tunables.VacuumMaxRunTime)
    this.limit = room.environment.setTimer(seconds * 1000, () => this.finish(`it took more than ${seconds} s`))
    this.generation = database.generation
    this.client = new InternalClient(room.ids)
  }

  start(): void {
    this.next(() => (this.full ? this.walk(new ChainWalk(this.database.tdb)) : this.callHome()))
  }

  /** What it has not come to stays in the queues. */
  finish(failure: string | undefined): void {
    if (this.ended) return
    this.ended = true
    this.limit.cancel()
    this.client.close()
    for (const entry of this.again) this.queues.deletions.add(entry)
    this.done(failure)
  }

  /** Whether a recovery has come: then nothing that was found counts. */
  private isOver(): boolean {
    if (this.ended) return true
    const { database } = this
    const recovery = this.room.state.recoveryMode !== RecoveryMode.NORMAL || database.frozen
    if (!recovery && database.generation === this.generation && !database.closed) return false
    this.finish("recovery has begun")
    return true
  }

  private next(step: () => void): void {
    this.room.environment.nextTurn(() => this.goOn(step))
  }

  private later(step: () => void): void {
    this.room.environment.setTimer(2, () => this.goOn(step))
  }

  /** A defect of the file ends the run, and nothing else. */
  private goOn(step: () => void): void {
    if (this.isOver()) return
    try {
      step()
    } catch (error) {
      if (!(error instanceof TdbError)) throw error
      this.finish(error.message)
    }
  }

  // ---- 1: everything (full runs) -------------------------------------------------------------------------------

  private walk(walk: ChainWalk): void {
    const { environment } = this.room
    const { pnn } = this.database
    const deadlineMs = environment.monotonicMs() + PIECE_MS
    const header = new RecordHeader()
    do {
      const state = walk.next(RECORDS_PER_LOOK, (map, keyStart, keyLength, dataStart, dataLength) => {
        if (dataLength !== LTDB_HEADER_SIZE || readU32(map, dataStart + 8) !== pnn) return
        header.read(map, dataStart)
        const key = map.subarray(keyStart, keyStart + keyLength)
        this.queues.schedule(keyHash(key), key, header)
      })
      if (state === "over") {
        this.callHome()
        return
      }
      if (state === "locked") {
        this.later(() => this.walk(walk))
        return
      }
    } while (environment.monotonicMs() < deadlineMs)
    this.next(() => this.walk(walk))
  }

  // ---- 2: records that others want to come home ----------------------------------------------------------------

  private callHome(): void {
    const wanted = this.queues.fetches.take(BATCH)
    if (wanted.length === 0) {
      this.look()
      return
    }
    let pending = 0
    let next = 0
    const step = (): void => {
      while (pending < CALLS_MAX && next < wanted.length) {
        const entry = wanted[next++]!
        if (!this.isElsewhere(entry)) continue
        pending++
        this.call(entry, () => {
          pending--
          this.goOn(step)
        })
      }
      if (pending === 0 && next === wanted.length) this.next(() => this.callHome())
    }
    step()
  }

  /** An owned one without data is a candidate; one that nobody here has needs nothing. */
  private isElsewhere(entry: Candidate): boolean {
    const header = this.headerOf(entry)
    if (header === "busy") {
      this.queues.fetches.add(entry)
      return false
    }
    if (header === undefined) return false
    if (header.dmaster !== this.database.pnn) return true
    if (header.empty) this.queues.schedule(entry.jenkins, entry.key, header.header)
    return false
  }

  private call({ key, jenkins }: Candidate, done: () => void): void {
    const flags = CallFlag.IMMEDIATE_MIGRATION | CallFlag.VACUUM_MIGRATION
    this.client.call(this.room.calls, this.database.id, key, flags, () => {
      this.goOn(() => {
        const header = this.headerOf({ key, jenkins })
        if (header !== undefined && header !== "busy" && header.empty && header.dmaster === this.database.pnn) {
          this.queues.schedule(jenkins, key, header.header)
        }
      })
      done()
    })
  }

  private headerOf({ key, jenkins }: Pick<Candidate, "key" | "jenkins">) {
    const { database } = this
    if (!database.locks.enter(jenkins)) return "busy"
    try {
      const value = database.tdb.fetch(key, jenkins)
      if (value === null || value.length < LTDB_HEADER_SIZE) return undefined
      const header = new RecordHeader().read(value)
      return { header, dmaster: header.dmaster, empty: value.length === LTDB_HEADER_SIZE }
    } finally {
      database.locks.leave(jenkins)
    }
  }

  // ---- 3: what may go ------------------------------------------------------------------------------------------

  private look(): void {
    const { environment } = this.room
    const deadlineMs = environment.monotonicMs() + PIECE_MS
    for (;;) {
      const candidates = this.queues.deletions.take(RECORDS_PER_LOOK)
      for (const entry of candidates) this.sort(entry)
      if (this.spread.length >= BATCH || candidates.length === 0) {
        this.deleteEverywhere(this.spread.splice(0, BATCH), candidates.length > 0 || this.spread.length > 0)
        return
      }
      if (environment.monotonicMs() >= deadlineMs) {
        this.next(() => this.look())
        return
      }
    }
  }

  private sort(entry: Candidate): void {
    const { database } = this
    const { key, jenkins } = entry
    if (!database.locks.enter(jenkins)) {
      this.tryAgain(entry)
      return
    }
    try {
      const flags = this.deletable(entry)
      if (flags === undefined) return
      const lmaster = database.lmasterOf(jenkins)
      if (lmaster !== database.pnn) {
        const list = this.homes.get(lmaster)
        if (list === undefined) this.homes.set(lmaster, [entry])
        else list.push(entry)
      } else if (((entry.flags | flags) & RecordFlag.MIGRATED_WITH_DATA) !== 0) this.spread.push(entry)
      else this.remove(key, jenkins)
    } finally {
      database.locks.leave(jenkins)
    }
  }

  /** Flags of the record if it may go: still empty, owned, unchanged, and no copies for readers are out. The chain is locked. */
  private deletable({ key, jenkins, rsnHi, rsnLo }: Candidate): number | undefined {
    const value = this.database.tdb.fetch(key, jenkins)
    if (value === null || value.length !== LTDB_HEADER_SIZE) return undefined
    const header = new RecordHeader().read(value)
    if (header.dmaster !== this.database.pnn || header.compareRsn(rsnHi, rsnLo) !== 0) return undefined
    return (header.flags & RecordFlag.RO_FLAGS) === 0 ? header.flags : undefined
  }

  private remove(key: Uint8Array, jenkins: number): void {
    this.database.tdb.delete(key, jenkins)
    this.queues.deleted = true
  }

  private tryAgain(entry: Candidate): void {
    if (++entry.tries < TRIES_MAX) this.again.push(entry)
  }

  // ---- 4 and 5: copies on other nodes first, then the lmaster's ------------------------------------------------

  private deleteEverywhere(batch: Candidate[], more: boolean): void {
    const goOn = () => this.next(() => (more ? this.look() : this.sendHome()))
    if (batch.length === 0) {
      goOn()
      return
    }
    this.askAll(this.others(), controls.TRY_DELETE_RECORDS.opcode, this.encode(batch), (answers) => {
      const kept = new Candidates()
      for (const answer of answers) {
        const records = answer === undefined ? undefined : keptRecords(answer)
        if (records === undefined) {
          for (const entry of batch) this.tryAgain(entry)
          goOn()
          return
        }
        for (const { key } of records) {
          const jenkins = keyHash(key)
          if (kept.get(jenkins, key) === undefined) kept.add(candidate(key.slice(), jenkins, NO_HEADER))
        }
      }
      for (const entry of batch) {
        if (kept.get(entry.jenkins, entry.key) !== undefined) this.tryAgain(entry)
        else this.deleteHere(entry)
      }
      goOn()
    })
  }

  private deleteHere(entry: Candidate): void {
    const { database } = this
    const { key, jenkins } = entry
    if (!database.locks.enter(jenkins)) {
      this.tryAgain(entry)
      return
    }
    try {
      if (this.deletable(entry) !== undefined && database.lmasterOf(jenkins) === database.pnn) this.remove(key, jenkins)
    } finally {
      database.locks.leave(jenkins)
    }
  }

  private others(): number[] {
    const { state } = this.room
    return state.nodes.filter((node) => isActive(node) && node.pnn !== state.pnn).map(({ pnn }) => pnn)
  }

  /** Records of other lmasters: they are asked to fetch them. */
  private sendHome(): void {
    const next = this.homes.entries().next()
    if (next.done === true) {
      this.repack()
      return
    }
    const [lmaster, all] = next.value
    const list = all.splice(0, BATCH)
    if (all.length === 0) this.homes.delete(lmaster)
    this.askAll([lmaster], controls.VACUUM_FETCH.opcode, this.encode(list), ([answer]) => {
      if (answer === undefined) for (const entry of list) this.tryAgain(entry)
      this.next(() => this.sendHome())
    })
  }

  private encode(batch: readonly Candidate[]): Uint8Array {
    const dbId = this.database.id
    const records = batch.map(({ key, rsnHi, rsnLo, flags }) => {
      const header = Object.assign(new RecordHeader(), { rsnHi, rsnLo, flags, dmaster: this.database.pnn })
      const data = new Uint8Array(LTDB_HEADER_SIZE)
      header.write(data)
      return { reqid: 0, key, data }
    })
    return encode(recBuffer, { dbId, records })
  }

  /** Asks nodes; undefined stands for one that has failed. */
  private askAll(
    nodes: readonly number[],
    opcode: number,
    data: Uint8Array,
    done: (answers: readonly (Uint8Array | undefined)[]) => void,
  ): void {
    const answers: (Uint8Array | undefined)[] = []
    if (nodes.length === 0) done(answers)
    for (const pnn of nodes) {
      const control = { opcode, srvid: ZERO64, clientId: 0, flags: 0, data }
      this.room.router.request(pnn, control, undefined, ({ status, data: payload }) => {
        answers.push(status === 0 ? (payload?.slice() ?? new Uint8Array(0)) : undefined)
        if (answers.length === nodes.length) this.goOn(() => done(answers))
      })
    }
  }

  // ---- 6: free space -------------------------------------------------------------------------------------------

  private repack(): void {
    const limit = this.room.state.tunables.RepackLimit
    if (limit === 0 || !this.queues.deleted) {
      this.finish(undefined)
      return
    }
    this.queues.deleted = false
    this.database.updates.repack(limit, ({ outcome, reason }) => {
      if (outcome === "applied" && reason !== "") {
        this.room.environment.log.notice(`Repacked ${this.database.name} with ${reason} freelist entries`)
      }
      this.finish(outcome === "applied" ? undefined : reason)
    })
  }
}

/** A caller inside the daemon: its calls go the way of every client's. */
class InternalClient implements LocalClient {
  readonly id: number
  readonly pid = 0
  readonly pendingIds = new Set<number>()
  private readonly waiting = new Map<number, () => void>()
  private reqid = 0

  constructor(private readonly ids: IdTable<IdEntry>) {
    this.id = ids.add({ kind: "client", client: this })
  }

  send(packet: Uint8Array): void {
    const reqid = readU32(packet, 28)
    const done = this.waiting.get(reqid)
    this.waiting.delete(reqid)
    done?.()
  }

  call(calls: RecordCalls, dbId: number, key: Uint8Array, flags: number, done: () => void): void {
    this.reqid++
    this.waiting.set(this.reqid, done)
    calls.callFromClient(
      {
        operation: Operation.REQ_CALL,
        generation: 0,
        destnode: CURRENT_NODE,
        srcnode: 0,
        reqid: this.reqid,
        flags,
        dbId,
        callid: CallId.NULL,
        hopcount: 0,
        key,
        data: new Uint8Array(0),
      },
      this,
    )
  }

  close(): void {
    this.ids.remove(this.id)
    this.waiting.clear()
  }
}

const NO_HEADER = new RecordHeader()

/** What a node has not deleted; undefined if that can't be known. */
function keptRecords(answer: Uint8Array): readonly RecData[] | undefined {
  try {
    return decode(recBuffer, answer).records
  } catch (error) {
    if (!(error instanceof ProtocolError)) throw error
    return undefined
  }
}

function candidate(key: Uint8Array, jenkins: number, { rsnHi, rsnLo, flags }: RecordHeader): Candidate {
  return { key, jenkins, rsnHi, rsnLo, flags, tries: 0, next: undefined }
}

function sameBytes(a: Uint8Array, b: Uint8Array): boolean {
  if (a.length !== b.length) return false
  for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) return false
  return true
}
