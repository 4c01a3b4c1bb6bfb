// One attached database as a client sees it: records in the local TDB file, moved here by the daemon when they are elsewhere. Holds
// fetch-lock, store, delete, reading without a lock and walks over the local file (client-library 9 to 14). How a database gets
// attached is in attach.ts, the cluster-wide traverse in traverse.ts, transactions on persistent databases in transaction.ts.

import type { Scheduler } from "../net/ports.ts"
import { CallFlag, CallId, CURRENT_NODE, DbFlag, RecordFlag } from "../protocol/constants.ts"
import { readU32 } from "../protocol/header.ts"
import { type Word64, word64 } from "../protocol/word64.ts"
import { EDEADLK, SysError } from "../sys/errno.ts"
import { LOCKED_AFTER_DEATH, lockMutexFor, BUSY as MUTEX_BUSY, unlockMutex } from "../sys/mutex.ts"
import type { MutexArea } from "../tdb/locks.ts"
import {
  ALLRECORD_FREE,
  AT_DATA_LEN,
  type Parser,
  RECORD_HEADER,
  REPLACE,
  type Tdb,
  type Visitor,
  Walk,
} from "../tdb/tdb.ts"
import { ControlError, cancellable, type Waiting } from "./client.ts"
import type { Cancel, ControlReply, Session } from "./session.ts"

/** Bytes of the header in front of every record's data (tdb-format 9.4). */
export const HEADER_SIZE = 24
const AT_DMASTER = 8
const AT_FLAGS = 16
const DELEGATED = RecordFlag.RO_HAVE_DELEGATIONS
const READONLY_COPY = RecordFlag.RO_HAVE_READONLY

/** How long one wait for another process's mutex may hold up this thread before the event loop gets its turn (ms). */
const MUTEX_SLICE_MS = 20
/** So many waits in a row that ended with somebody else getting the chain, then the event loop gets its turn. */
const MUTEX_WAITS = 8
/** Between looks at a chain that another process has locked with fcntl, which knows no wait with a limit (ms). */
const CHAIN_LOOK_MS = [0, 1, 1, 2, 2, 4] as const
const CHAIN_LOOK_MAX_MS = 5
/** Records of a local walk between two turns of the event loop. */
const WALK_CHUNK = 2000

const NOTHING = new Uint8Array(0)
/** Headers on their way into the file; used within one synchronous call only. */
const scratch = new Uint8Array(HEADER_SIZE)

export type DatabaseKind = "volatile" | "persistent" | "replicated"

export function kindOf(flags: number): DatabaseKind {
  if ((flags & DbFlag.PERSISTENT) !== 0) return "persistent"
  return (flags & DbFlag.REPLICATED) !== 0 ? "replicated" : "volatile"
}

/** "write": the only copy, to be changed. "read": a delegated copy is enough, and nothing may be stored. */
export type LockMode = "write" | "read"

/** What can be wrong with a use of a database, apart from the TDB's own TdbError and the daemon's ControlError. */
export class DatabaseError extends Error {
  override readonly name = "DatabaseError"
  constructor(
    readonly database: string,
    /** EINVAL: the operation does not go with the kind of database or lock. ETIMEDOUT: not in time. EIO: broken. */
    readonly code: "EINVAL" | "ETIMEDOUT" | "EIO",
    readonly reason: string,
  ) {
    super(`database ${database}: ${reason}`)
  }
}

export interface DatabaseParts {
  readonly session: Session
  readonly scheduler: Scheduler
  readonly tdb: Tdb
  readonly id: number
  readonly name: string
  readonly kind: DatabaseKind
}

/** The chain is not free now. */
class Busy {
  readonly obstacle = "busy"
}
/** The record is on another node; `known`: it has been here before, so a copy to keep is worth asking for. */
class Elsewhere {
  constructor(readonly known: boolean) {}
}
const BUSY = new Busy()
const ELSEWHERE = new Elsewhere(false)
const MOVED_AWAY = new Elsewhere(true)

/** A caller of this process that waits for a chain. The first in the queue of its chain looks, the others sleep. */
interface Waiter {
  wake(): void
}

/** A record whose chain this process holds locked. Short-lived: unlock() soon, and never wait for the daemon meanwhile. */
export class LockedRecord {
  /** @internal where the value (header and data) starts in the map, -1 when it has to be found again */
  start: number
  /** @internal bytes of the value */
  size: number
  private held = true

  /** @internal */
  constructor(
    private readonly database: Database,
    readonly key: Uint8Array,
    /** @internal */
    readonly hash: number,
    start: number,
    size: number,
    /** store() and delete() are refused: locked for reading, or a delegated copy. */
    readonly readOnly: boolean,
  ) {
    this.start = start
    this.size = size
  }

  /** Bytes of data. 0 is an empty or a deleted record: CTDB does not tell them apart. */
  get length(): number {
    this.locate()
    return this.size - HEADER_SIZE
  }

  get rsn(): Word64 {
    const at = this.locate()
    const bytes = this.database.tdb.b
    return word64(readU32(bytes, at + 4), readU32(bytes, at))
  }
  get dmaster(): number {
    return readU32(this.database.tdb.b, this.locate() + AT_DMASTER)
  }
  /** Record flags of constants.ts. */
  get flags(): number {
    return readU32(this.database.tdb.b, this.locate() + AT_FLAGS)
  }

  /** Reads the data in place. */
  parse<T>(parser: Parser<T>): T {
    const at = this.locate()
    return parser(this.database.tdb.b, at + HEADER_SIZE, this.size - HEADER_SIZE)
  }

  /** A copy of the data. */
  copy(): Uint8Array {
    const at = this.locate()
    return this.database.tdb.b.slice(at + HEADER_SIZE, at + this.size)
  }

  /** A copy of the 24 header bytes. */
  header(): Uint8Array {
    const at = this.locate()
    return this.database.tdb.b.slice(at, at + HEADER_SIZE)
  }

  /** Replaces the data; the header stays as it was read (client-library 9). @throws DatabaseError EINVAL, TdbError */
  store(data: Uint8Array): void {
    this.loadHeader()
    this.write(scratch, data)
  }

  /**
   * Replaces header and data, for tools that need a header of their own making. Whoever changes the rsn of a volatile
   * record must know what the daemons make of it.
   */
  storeWithHeader(header: Uint8Array, data: Uint8Array): void {
    this.refuseReadOnly()
    this.write(header, data)
  }

  /**
   * Empties the record and tells the daemon that it may go (client-library 11). Losing that hint only delays vacuuming.
   * @throws DatabaseError EINVAL, TdbError
   */
  delete(): void {
    this.loadHeader()
    this.write(scratch, NOTHING)
    const { session, id } = this.database
    session.sendControl("SCHEDULE_FOR_DELETION", session.pnn, {
      payload: deletionHint(id, scratch, this.key),
      srvid: word64(0, id),
    })
  }

  /** delete(), but the daemon's answer is waited for, with the chain locked meanwhile, as the stock client does. */
  async deleteConfirmed(waiting: Waiting = {}): Promise<void> {
    this.loadHeader()
    this.write(scratch, NOTHING)
    const { session, id } = this.database
    const payload = deletionHint(id, scratch, this.key)
    const { timeoutMs } = waiting
    const reply = await cancellable<ControlReply>(waiting.signal, (resolve) =>
      session.request("SCHEDULE_FOR_DELETION", session.pnn, { payload, timeoutMs }, resolve),
    )
    if (!reply.ok) {
      throw new ControlError("SCHEDULE_FOR_DELETION", session.pnn, reply.reason, reply.status, reply.error, reply.cause)
    }
  }

  /** Lets go of the chain. The record must not be used afterwards; a second call does nothing. */
  unlock(): void {
    if (!this.held) return
    this.held = false
    this.database.release(this)
  }

  private refuseReadOnly(): void {
    if (this.readOnly) throw new DatabaseError(this.database.name, "EINVAL", "the record is locked for reading only")
  }

  private loadHeader(): void {
    this.refuseReadOnly()
    const at = this.locate()
    const bytes = this.database.tdb.b
    for (let i = 0; i < HEADER_SIZE; i++) scratch[i] = bytes[at + i]!
  }

  private write(header: Uint8Array, data: Uint8Array): void {
    if (!this.held) throw new DatabaseError(this.database.name, "EINVAL", "the record is unlocked")
    this.start = -1
    this.database.tdb.storeTwo(this.key, header, data, REPLACE, this.hash)
  }

  /** Where the value starts now. While the chain is locked only this process moves it. */
  private locate(): number {
    if (!this.held) throw new DatabaseError(this.database.name, "EINVAL", "the record is unlocked")
    if (this.start >= 0) return this.start
    const { tdb, name } = this.database
    const offset = tdb.find(this.key, this.hash)
    if (offset === 0) throw new DatabaseError(name, "EIO", "a locked record vanished")
    this.start = offset + RECORD_HEADER + this.key.length
    this.size = tdb.getUnsigned(offset + AT_DATA_LEN)
    return this.start
  }
}

/** SCHEDULE_FOR_DELETION's payload (client-library 11). */
function deletionHint(id: number, header: Uint8Array, key: Uint8Array): Uint8Array {
  const payload = new Uint8Array(36 + key.length)
  const view = new DataView(payload.buffer)
  view.setUint32(0, id, true)
  payload.set(header, 8)
  view.setUint32(32, key.length, true)
  payload.set(key, 36)
  return payload
}

export class Database {
  readonly id: number
  readonly name: string
  readonly kind: DatabaseKind
  /** The open file. Whoever takes locks on it directly must know that fetchLock() takes the same ones. */
  readonly tdb: Tdb
  /** @internal */
  readonly session: Session
  /** What fetchLock() met so far: calls to the daemon, and waits for a chain that somebody else had. */
  readonly counters = { migrations: 0, chainWaits: 0 }

  private readonly scheduler: Scheduler
  /** Callers of this process that wait for a chain, by list, in their order. */
  private readonly queues = new Map<number, Waiter[]>()
  private closed = false

  constructor(parts: DatabaseParts) {
    this.id = parts.id
    this.name = parts.name
    this.kind = parts.kind
    this.tdb = parts.tdb
    this.session = parts.session
    this.scheduler = parts.scheduler
  }

  // ---- fetch-lock

  /**
   * Locks a record of a volatile database on this node, having it moved here if need be (client-library 10). When it is here and its
   * chain free, it comes back at once without a promise; else the promise goes on trying until it has it, `timeoutMs` is over or
   * the signal says so. The caller may hold other records' locks only if all callers take them in one order.
   * @throws DatabaseError EINVAL for other kinds of database; the promise rejects with DatabaseError ETIMEDOUT, ControlError,
   *   TdbError, or the signal's reason
   */
  fetchLock(key: Uint8Array, mode: LockMode = "write", waiting: Waiting = {}): LockedRecord | Promise<LockedRecord> {
    const hash = this.tdb.hash(key)
    const record = this.attempt(key, hash, mode, false)
    if (record instanceof LockedRecord) return record
    return this.lockSlowly(key, hash, mode, record, waiting)
  }

  /** fetchLock() without waiting: undefined when the record is elsewhere or its chain is not free. */
  tryFetchLock(key: Uint8Array, mode: LockMode = "write"): LockedRecord | undefined {
    const record = this.attempt(key, this.tdb.hash(key), mode, false)
    return record instanceof LockedRecord ? record : undefined
  }

  private attempt(key: Uint8Array, hash: number, mode: LockMode, isFirst: boolean): LockedRecord | Busy | Elsewhere {
    if (this.kind !== "volatile") {
      throw new DatabaseError(this.name, "EINVAL", `records of a ${this.kind} database are not locked one by one`)
    }
    const tdb = this.tdb
    const list = tdb.chainOf(hash) + 1
    // The TDB handle counts nested locks: that another caller of this process has the chain only we can see.
    if (tdb.locks.isLocked(list) || (!isFirst && this.queues.size > 0 && this.queues.has(list))) return BUSY
    if (!tdb.tryLockChain(hash)) return BUSY
    let taken = false
    try {
      const offset = tdb.find(key, hash)
      if (offset === 0) return ELSEWHERE
      const size = tdb.getUnsigned(offset + AT_DATA_LEN)
      if (size < HEADER_SIZE) return ELSEWHERE
      const start = offset + RECORD_HEADER + key.length
      const flags = readU32(tdb.b, start + AT_FLAGS)
      const isOwn = readU32(tdb.b, start + AT_DMASTER) === this.session.pnn
      // A writer of a delegated record asks the daemon, which revokes the copies first.
      const usable = mode === "write" ? isOwn && (flags & DELEGATED) === 0 : isOwn || (flags & READONLY_COPY) !== 0
      if (!usable) return ELSEWHERE
      taken = true
      const readOnly = mode === "read" || (flags & (DELEGATED | READONLY_COPY)) !== 0
      return new LockedRecord(this, key, hash, start, size, readOnly)
    } finally {
      if (!taken) this.unlockChain(hash, list)
    }
  }

  private async lockSlowly(
    key: Uint8Array,
    hash: number,
    mode: LockMode,
    first: Busy | Elsewhere,
    waiting: Waiting,
  ): Promise<LockedRecord> {
    // The caller may reuse its buffer while we wait.
    const own = key.slice()
    const limit = new Limit(this.name, this.scheduler, waiting)
    let outcome: LockedRecord | Busy | Elsewhere = first
    for (;;) {
      limit.check()
      if (outcome instanceof Busy) outcome = await this.whenFree(hash, () => this.attempt(own, hash, mode, true), limit)
      else {
        await this.migrate(own, mode, limit)
        this.refuseClosed()
        outcome = this.attempt(own, hash, mode, false)
      }
      if (outcome instanceof LockedRecord) return outcome
    }
  }

  /** Asks the daemon to bring the record here. Its reply's contents don't matter: the file is looked at again. */
  private async migrate(key: Uint8Array, mode: LockMode, limit: Limit): Promise<void> {
    this.counters.migrations++
    const flags = CallFlag.IMMEDIATE_MIGRATION | (mode === "read" ? CallFlag.WANT_READONLY : 0)
    const timeoutMs = limit.left()
    const reply = await cancellable<ControlReply>(limit.signal, (resolve) =>
      this.session.call({ dbId: this.id, key, callid: CallId.NULL, flags, timeoutMs }, resolve),
    )
    if (!reply.ok) throw callFailed(this.name, reply)
  }

  // ---- waiting for a chain

  /** Calls `attempt` whenever the chain of `hash` may be free, after all who came before, until it does not say BUSY. */
  private async whenFree<T>(hash: number, attempt: () => T | Busy, limit: Limit): Promise<T> {
    const list = this.tdb.chainOf(hash) + 1
    const waiter: Waiter = { wake: () => {} }
    const queue = this.queues.get(list) ?? []
    queue.push(waiter)
    this.queues.set(list, queue)
    this.counters.chainWaits++
    try {
      for (let looks = 0; ; ) {
        this.refuseClosed()
        limit.check()
        if (queue[0] !== waiter || this.tdb.locks.isLocked(list)) {
          // Somebody of this process is first, or has it: woken by unlockChain() or by the end of the one before.
          let timer = NEVER
          await cancellable<void>(limit.signal, (resolve) => {
            waiter.wake = resolve
            timer = limit.timer(resolve)
            return timer
          })
          timer.cancel()
          continue
        }
        const outcome = attempt()
        if (!(outcome instanceof Busy)) return outcome
        await this.waitForOthers(list, looks++, limit)
      }
    } finally {
      queue.splice(queue.indexOf(waiter), 1)
      if (queue.length === 0) this.queues.delete(list)
      else queue[0]!.wake()
    }
  }

  /** Another process has the chain, or the whole file. */
  private async waitForOthers(list: number, looks: number, limit: Limit): Promise<void> {
    const area = this.tdb.locks.mutexes
    if (area !== null && !this.tdb.locks.noLock) {
      const wasFree = waitForMutexes(area, list)
      if (wasFree && looks % MUTEX_WAITS !== MUTEX_WAITS - 1) return
      // "undefined": another handle of this thread has it, and only the event loop brings its unlock.
      await this.pause(wasFree === undefined ? 1 : 0, limit.signal)
    } else await this.pause(CHAIN_LOOK_MS[looks] ?? CHAIN_LOOK_MAX_MS, limit.signal)
  }

  private pause(ms: number, signal: AbortSignal | undefined): Promise<void> {
    return cancellable<void>(signal, (resolve) => this.scheduler.setTimer(ms, () => resolve()))
  }

  private unlockChain(hash: number, list: number): void {
    this.tdb.unlockChain(hash)
    if (this.queues.size > 0 && !this.tdb.locks.isLocked(list)) this.queues.get(list)?.[0]?.wake()
  }

  /** @internal */
  release(record: LockedRecord): void {
    if (!this.closed) this.unlockChain(record.hash, this.tdb.chainOf(record.hash) + 1)
  }

  // ---- reading without a lock

  /**
   * Reads a record where it lies, without keeping a lock (client-library 13). Volatile databases: the local copy if it is
   * the record or a delegated copy of it, else the daemon is asked, and the answer comes as a promise. Other kinds: the
   * local copy. The parser sees the data without its header; undefined for a missing, empty or deleted record.
   */
  parse<T>(key: Uint8Array, parser: Parser<T>, waiting: Waiting = {}): T | undefined | Promise<T | undefined> {
    const hash = this.tdb.hash(key)
    const found = this.parseHere(key, hash, parser)
    return found instanceof Busy || found instanceof Elsewhere
      ? this.parseSlowly(key.slice(), hash, parser, found, waiting)
      : found
  }

  private parseHere<T>(key: Uint8Array, hash: number, parser: Parser<T>): T | undefined | Busy | Elsewhere {
    const tdb = this.tdb
    if (!tdb.tryLockChain(hash, false)) return BUSY
    try {
      const offset = tdb.find(key, hash)
      const size = offset === 0 ? 0 : tdb.getUnsigned(offset + AT_DATA_LEN)
      if (size < HEADER_SIZE) return this.kind === "volatile" ? ELSEWHERE : undefined
      const start = offset + RECORD_HEADER + key.length
      const usable =
        this.kind !== "volatile" ||
        readU32(tdb.b, start + AT_DMASTER) === this.session.pnn ||
        (readU32(tdb.b, start + AT_FLAGS) & READONLY_COPY) !== 0
      if (!usable) return MOVED_AWAY
      return size === HEADER_SIZE ? undefined : parser(tdb.b, start + HEADER_SIZE, size - HEADER_SIZE)
    } finally {
      this.unlockChain(hash, tdb.chainOf(hash) + 1)
    }
  }

  /** A copy of a record's data; undefined for a missing, empty or deleted one. */
  async fetch(key: Uint8Array, waiting: Waiting = {}): Promise<Uint8Array | undefined> {
    return await this.parse(key, copyOf, waiting)
  }

  private async parseSlowly<T>(
    key: Uint8Array,
    hash: number,
    parser: Parser<T>,
    first: Busy | Elsewhere,
    waiting: Waiting,
  ): Promise<T | undefined> {
    const limit = new Limit(this.name, this.scheduler, waiting)
    const found =
      first instanceof Busy ? await this.whenFree(hash, () => this.parseHere(key, hash, parser), limit) : first
    if (!(found instanceof Elsewhere)) return found
    const flags = found.known ? CallFlag.WANT_READONLY : 0
    const timeoutMs = limit.left()
    const reply = await cancellable<ControlReply>(limit.signal, (resolve) =>
      this.session.call({ dbId: this.id, key, callid: CallId.FETCH_WITH_HEADER, flags, timeoutMs }, resolve),
    )
    if (!reply.ok) throw callFailed(this.name, reply)
    const length = reply.data.length - HEADER_SIZE
    return length <= 0 ? undefined : parser(reply.data, HEADER_SIZE, length)
  }

  /**
   * The local record as it is, header and data copied, whatever the kind of database and whoever is its dmaster; undefined if the
   * file has no record with a header there.
   */
  localRecord(key: Uint8Array, waiting: Waiting = {}): Uint8Array | undefined | Promise<Uint8Array | undefined> {
    const hash = this.tdb.hash(key)
    const found = this.localHere(key, hash)
    if (!(found instanceof Busy)) return found
    const own = key.slice()
    return this.whenFree(hash, () => this.localHere(own, hash), new Limit(this.name, this.scheduler, waiting))
  }

  private localHere(key: Uint8Array, hash: number): Uint8Array | undefined | Busy {
    if (!this.tdb.tryLockChain(hash, false)) return BUSY
    try {
      const value = this.tdb.fetch(key, hash)
      return value === null || value.length < HEADER_SIZE ? undefined : value
    } finally {
      this.unlockChain(hash, this.tdb.chainOf(hash) + 1)
    }
  }

  // ---- walks over the local file

  /**
   * Visits every record of the local file in place, whoever is its dmaster, header and empty records included, in chunks between
   * which the event loop runs. The visitor returns true to end the walk. Returns how many records it saw.
   */
  async traverseLocal(visitor: Visitor, waiting: Waiting = {}): Promise<number> {
    const limit = new Limit(this.name, this.scheduler, waiting)
    const walk = new Walk(this.tdb)
    let seen = 0
    let idle = 0
    const counting: Visitor = (bytes, keyStart, keyLength, dataStart, dataLength) => {
      seen++
      return visitor(bytes, keyStart, keyLength, dataStart, dataLength)
    }
    try {
      for (let before = 0; walk.next(WALK_CHUNK, counting, false); before = seen) {
        limit.check()
        // A chunk without records: some chain is locked.
        idle = seen === before ? idle + 1 : 0
        await this.pause(CHAIN_LOOK_MS[idle] ?? CHAIN_LOOK_MAX_MS, waiting.signal)
        this.refuseClosed()
      }
    } finally {
      walk.close()
    }
    return seen
  }

  /** What waited while the file was closed must not touch it: neither its memory nor its descriptor, which may be another file's now. */
  private refuseClosed(): void {
    if (this.closed) throw new DatabaseError(this.name, "EIO", "it was closed meanwhile")
  }

  get isClosed(): boolean {
    return this.closed
  }

  /** Unlocks what is locked, then closes the file: a mapping that goes away under a held mutex locks the chain for ever. */
  close(): void {
    if (this.closed) return
    this.closed = true
    this.tdb.close()
    // The first of each chain may wait for an unlock that was this one; the others follow.
    for (const queue of this.queues.values()) queue[0]?.wake()
  }
}

/** The limits of one operation that waits. */
class Limit {
  private readonly deadline: number

  constructor(
    private readonly database: string,
    private readonly scheduler: Scheduler,
    private readonly waiting: Waiting,
  ) {
    const { timeoutMs = 0 } = waiting
    this.deadline = timeoutMs > 0 ? scheduler.monotonicMs() + timeoutMs : Number.POSITIVE_INFINITY
  }

  /** @throws DatabaseError ETIMEDOUT, or the signal's reason */
  check(): void {
    this.waiting.signal?.throwIfAborted()
    if (this.scheduler.monotonicMs() > this.deadline) {
      throw new DatabaseError(this.database, "ETIMEDOUT", `not in ${this.waiting.timeoutMs} ms`)
    }
  }

  get signal(): AbortSignal | undefined {
    return this.waiting.signal
  }

  /** Calls back when the time is over, if there is a limit. */
  timer(late: () => void): Cancel {
    return Number.isFinite(this.deadline) ? this.scheduler.setTimer(this.left(), late) : NEVER
  }

  /** Milliseconds left, 0 for no limit. */
  left(): number {
    return Number.isFinite(this.deadline) ? Math.max(1, this.deadline - this.scheduler.monotonicMs()) : 0
  }
}

const NEVER: Cancel = { cancel: () => {} }

/**
 * Waits for other processes in the kernel, which wakes us the moment they are done; for a slice only, so that this process's timers and
 * messages get their turn. True: the chain was free. Undefined: this very thread has it, through another handle.
 */
function waitForMutexes(area: MutexArea, list: number): boolean | undefined {
  try {
    if (lockMutexFor(area.listMutex(list), MUTEX_SLICE_MS) === MUTEX_BUSY) return false
    unlockMutex(area.listMutex(list))
    if (area.allrecord === ALLRECORD_FREE) return true
    // The whole file is locked, as in a recovery.
    const result = lockMutexFor(area.allrecordMutex, MUTEX_SLICE_MS)
    if (result === MUTEX_BUSY) return false
    if (result === LOCKED_AFTER_DEATH) area.allrecord = ALLRECORD_FREE
    unlockMutex(area.allrecordMutex)
    return true
  } catch (error) {
    if (error instanceof SysError && error.errno === EDEADLK) return undefined
    throw error
  }
}

function copyOf(bytes: Uint8Array, start: number, length: number): Uint8Array {
  return bytes.slice(start, start + length)
}

function callFailed(database: string, reply: Exclude<ControlReply, { readonly ok: true }>): ControlError {
  const text = reply.error === "" ? `call on database ${database}` : `${reply.error} (database ${database})`
  return new ControlError("REQ_CALL", CURRENT_NODE, reply.reason, reply.status, text, reply.cause)
}
