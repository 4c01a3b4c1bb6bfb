// One open TDB: words and bytes of its map, its locks, and the operations on single records (tdb-format.md 6.1 to 6.11). Space is
// handed out by freelist.ts, transactions are in transaction.ts, walks in traverse.ts. It creates no file: see open.ts.

import { SysError } from "../sys/errno.ts"
import { copyBytes } from "../sys/memory.ts"
import type { Backing, PrivateSpace } from "./backing.ts"
import { TdbError, type TdbErrorCode } from "./error.ts"
import {
  AT_CHAINS,
  AT_DATA_LEN,
  AT_FULL_HASH,
  AT_KEY_LEN,
  AT_MAGIC,
  AT_NEXT,
  AT_REC_LEN,
  AT_RECOVERY_START,
  AT_SEQUENCE_NUMBER,
  DEAD,
  dataStart,
  FREE,
  LIVE,
  RECORD_HEADER,
  RECOVERY_ACTIVE,
  swap32,
} from "./format.ts"
import { allocate, trimDead } from "./freelist.ts"
import type { HashKind } from "./hash.ts"
import { FREELIST, type Locks } from "./locks.ts"
import { type Pieces, runInPieces, runNow, type Turns, type Underway } from "./pieces.ts"
import { recover, recovering, recoverySize } from "./recovery.ts"
import { repack, wipe } from "./repack.ts"
import { startTransaction, type Transaction } from "./transaction.ts"
import { type Granted, openWaiting, type Wait, Waits } from "./waits.ts"

/** Insert or replace. */
export const REPLACE = 1
/** Only insert: an existing record raises EXISTS. */
export const INSERT = 2
/** Only replace: a missing record raises NOEXIST. */
export const MODIFY = 3
export type StoreMode = typeof REPLACE | typeof INSERT | typeof MODIFY

/** Reads data in place: `bytes` is the whole map and must not be kept, changed, or read outside [start, start + length). */
export type Parser<T> = (bytes: Uint8Array, start: number, length: number) => T

const EMPTY = new Uint8Array(0)

// Short runs of words: faster than any call of the engine's.
function copyWords(source: Int32Array, from: number, target: Int32Array, to: number, words: number): void {
  const end = from + words
  for (; from + 8 <= end; from += 8, to += 8) {
    target[to] = source[from]!
    target[to + 1] = source[from + 1]!
    target[to + 2] = source[from + 2]!
    target[to + 3] = source[from + 3]!
    target[to + 4] = source[from + 4]!
    target[to + 5] = source[from + 5]!
    target[to + 6] = source[from + 6]!
    target[to + 7] = source[from + 7]!
  }
  for (; from < end; from++, to++) target[to] = source[from]!
}

export interface TdbParts {
  readonly path: string
  readonly flags: number
  readonly backing: Backing
  readonly locks: Locks
  readonly hashKind: HashKind
  readonly hashSize: number
  readonly swapped: boolean
  readonly readOnly: boolean
  readonly maxDead: number
}

/**
 * An open TDB. Every operation takes the locks it needs and blocks this thread for them, as libtdb does; a caller that must not
 * block takes the chain lock first with `tryLockChain` or `waitForChain`, after which the operation nests inside it. All operations
 * raise TdbError: CORRUPT for a defect of the file, IO for offsets outside it, RDONLY, LOCK.
 *
 * Operations take an optional `hash`, the value of `db.hash(key)`, for callers that know it already.
 */
export class Tdb {
  readonly path: string
  /** Flags as libtdb's tdb_get_flags shows them. */
  flags: number
  readonly hashSize: number
  readonly hashKind: HashKind
  readonly readOnly: boolean
  /** True for a file of the other byte order. */
  readonly swapped: boolean
  /** How many deleted records may stay in a chain for reuse (libtdb: tdb_set_max_dead). */
  maxDead: number
  /** Stores and deletes through this handle increment the file's sequence number. */
  countSequence: boolean
  /** Commits do not sync. */
  noSync: boolean
  /**
   * A commit that somebody died in, and of which more than so many bytes must be undone, is undone in pieces between other turns of
   * the loop, when it is met by a caller that does not wait: that one does not get its lock.
   */
  recoverAtOnce_bytes_max = 1 << 20
  /**
   * Of the pages that transactions of this thread have changed, all databases together, so many bytes stay in memory. What one through
   * this handle changes beyond goes to a file without a name beside the database, unless there is no room for it.
   */
  transactionMemory_bytes_max = 128 << 20
  /** Repack after a commit that left the free space in pieces, as libtdb does. */
  autoRepack = true

  // Internal to lib/tdb: the current view of the map. In a transaction it is the transaction's.
  w: Int32Array
  b: Uint8Array
  size: number
  /** One flag per page of the current view with stores; only in a transaction. */
  dirty: Uint8Array | null = null
  transaction: Transaction | null = null
  /** A transaction's view, kept for the next one: making it costs more than a small commit. */
  idleSpace: PrivateSpace | null = null
  readonly backing: Backing
  readonly locks: Locks
  readonly dataStart: number
  /** Offsets of records on which walks of this handle stand, and so hold a record lock. */
  readonly standing: number[] = []
  /** For tests: called before every store of a commit or recovery to the file with a word on what comes next. */
  step: ((what: string) => void) | null = null
  private lastHash = 0
  private lastChain = 0
  // The record found last: still there for the same key as long as no lock was given up and nothing was removed.
  private foundKey: Uint8Array | null = null
  private foundHash = 0
  private foundOffset = 0
  private foundStamp = 0
  private lastTarget: Uint8Array | null = null
  private lastTargetWords: Int32Array | null = null
  private lastSource: Uint8Array | null = null
  private lastSourceWords: Int32Array | null = null
  private waits: Waits | null = null
  private repairing = false
  // Why the last repair in pieces failed.
  private repairError: TdbError | null = null
  // A commit in pieces that is under way.
  private ending: Underway | null = null
  private closed = false

  constructor(parts: TdbParts) {
    this.path = parts.path
    this.flags = parts.flags
    this.backing = parts.backing
    this.locks = parts.locks
    this.hashKind = parts.hashKind
    this.hashSize = parts.hashSize
    this.swapped = parts.swapped
    this.readOnly = parts.readOnly
    this.maxDead = parts.maxDead
    this.countSequence = (parts.flags & 0x80) !== 0
    this.noSync = (parts.flags & 0x40) !== 0
    this.dataStart = dataStart(parts.hashSize)
    this.w = parts.backing.words
    this.b = parts.backing.bytes
    this.size = parts.backing.size
  }

  // ---- the map as words and bytes

  /** Make the current view that of the backing: after growth or a look at the file's size. */
  adopt(): void {
    this.forget()
    const space = this.transaction === null ? this.backing : this.transaction.space
    this.w = space.words
    this.b = space.bytes
    this.size = space.size
  }

  /** Signed 32-bit word at a 4-byte aligned offset that was checked to be inside the map. */
  get(offset: number): number {
    const value = this.w[offset >>> 2]!
    return this.swapped ? swap32(value) : value
  }

  /** The same as an offset or length. */
  getUnsigned(offset: number): number {
    const value = this.w[offset >>> 2]!
    return (this.swapped ? swap32(value) : value) >>> 0
  }

  put(offset: number, value: number): void {
    this.w[offset >>> 2] = this.swapped ? swap32(value) : value
    if (this.dirty !== null) this.dirty[offset >>> 12] = 1
  }

  putBytes(offset: number, source: Uint8Array): void {
    const length = source.length
    if (length === 0) return
    if (length <= 32 && (offset & 3) === 0) this.putShort(offset, source, length)
    else this.b.set(source, offset)
    const dirty = this.dirty
    if (dirty === null) return
    const last = (offset + length - 1) >>> 12
    for (let page = offset >>> 12; page <= last; page++) dirty[page] = 1
  }

  // A key, mostly: word by word it is done before a call would have begun.
  private putShort(offset: number, source: Uint8Array, length: number): void {
    const { w, b } = this
    let i = 0
    for (let word = offset >>> 2; i + 4 <= length; i += 4, word++) {
      w[word] = source[i]! | (source[i + 1]! << 8) | (source[i + 2]! << 16) | (source[i + 3]! << 24)
    }
    for (; i < length; i++) b[offset + i] = source[i]!
  }

  // As putBytes. Callers that store often do so from the same array: from its second time on its words are at hand.
  private putAgain(offset: number, source: Uint8Array): void {
    const length = source.length
    if (source !== this.lastSource) {
      this.lastSource = source
      this.lastSourceWords = null
    } else if (length <= 256 && (offset & 3) === 0 && this.dirty === null) {
      const words = this.lastSourceWords ?? this.wordsOf(source)
      if (words !== null) {
        copyWords(words, 0, this.w, offset >>> 2, length >>> 2)
        for (let i = length & ~3; i < length; i++) this.b[offset + i] = source[i]!
        return
      }
    }
    this.putBytes(offset, source)
  }

  private wordsOf(source: Uint8Array): Int32Array | null {
    if ((source.byteOffset & 3) !== 0 || source.buffer === this.b.buffer) return null
    this.lastSourceWords = new Int32Array(source.buffer, source.byteOffset, source.length >>> 2)
    return this.lastSourceWords
  }

  fail(code: TdbErrorCode, reason: string, offset?: number): TdbError {
    return new TdbError(code, this.path, reason, offset)
  }

  /** Raise unless the map reaches to `end`: others may have made it longer since we looked. */
  reach(end: number): void {
    if (end <= this.size) return
    if (this.transaction === null) {
      this.refresh()
      if (end <= this.size) return
    }
    throw this.fail("IO", `access up to ${end} beyond the end of the map at ${this.size}`)
  }

  refresh(): void {
    try {
      this.backing.refresh()
    } catch (error) {
      if (error instanceof SysError) throw this.fail("IO", error.message)
      throw error
    }
    this.adopt()
  }

  /** Look how large the map is before much is done with it. Raises IO when somebody has cut its hash table off. */
  look(): void {
    if (this.transaction !== null) return
    this.refresh()
    if (this.size < this.dataStart) throw this.fail("IO", `map of ${this.size} bytes is shorter than its hash table`)
  }

  /** Make the map `size` bytes long. The freelist is locked. */
  grow(size: number): void {
    try {
      if (this.transaction !== null) this.transaction.grow(size)
      else this.backing.grow(size)
    } catch (error) {
      if (error instanceof SysError) throw this.fail("NOSPACE", error.message)
      throw error
    }
    this.adopt()
  }

  /** Where the map starts in the file: the size of its mutex area, or 0. */
  get mapOffset(): number {
    return this.backing.base
  }

  chainOf(hash: number): number {
    // An operation asks several times, and a locked sequence of operations more often.
    if (hash === this.lastHash) return this.lastChain
    // Integer arithmetic only: a remainder of numbers above 2^31 would be a floating point one.
    const hashSize = this.hashSize
    const chain = hash <= 0x7fffffff ? hash % hashSize : (((hash >>> 1) % hashSize) * 2 + (hash & 1)) % hashSize
    this.lastHash = hash
    this.lastChain = chain
    return chain
  }

  /** The file's hash of a key. */
  hash(key: Uint8Array): number {
    return this.hashKind.hash(key)
  }

  /** Raise CORRUPT or IO unless a LIVE or DEAD record with sane lengths is at `offset` (8.2). */
  checkRecord(offset: number): void {
    if ((offset & 3) !== 0) throw this.fail("CORRUPT", "record is not 4-byte aligned", offset)
    if (offset < this.dataStart) throw this.fail("CORRUPT", "record inside the hash table", offset)
    if (offset + RECORD_HEADER > this.size) this.reach(offset + RECORD_HEADER)
    const magic = this.get(offset + AT_MAGIC)
    if (magic !== LIVE && magic !== DEAD) throw this.badMagic(magic, offset)
    const recLen = this.getUnsigned(offset + AT_REC_LEN)
    const used = this.getUnsigned(offset + AT_KEY_LEN) + this.getUnsigned(offset + AT_DATA_LEN)
    if (used > recLen) throw this.fail("CORRUPT", `key and data of ${used} bytes in a record of ${recLen}`, offset)
    const end = offset + RECORD_HEADER + recLen
    if (end > this.size) this.reach(end)
    const next = this.getUnsigned(offset + AT_NEXT)
    if (next + RECORD_HEADER > this.size) this.reach(next + RECORD_HEADER)
  }

  badMagic(magic: number, offset: number): TdbError {
    return this.fail("CORRUPT", `bad magic 0x${(magic >>> 0).toString(16)}`, offset)
  }

  sameKey(offset: number, key: Uint8Array): boolean {
    const b = this.b
    const length = key.length
    let i = 0
    if ((offset & 3) === 0) {
      const w = this.w
      for (let word = offset >>> 2; i + 4 <= length; i += 4, word++) {
        if (w[word] !== (key[i]! | (key[i + 1]! << 8) | (key[i + 2]! << 16) | (key[i + 3]! << 24))) return false
      }
    }
    for (; i < length; i++) if (b[offset + i] !== key[i]) return false
    return true
  }

  /** Offset of the live record with this key, 0 when there is none. Its chain is locked. */
  find(key: Uint8Array, hash: number): number {
    if (key === this.foundKey && hash === this.foundHash && this.locks.stamp === this.foundStamp) {
      return this.foundOffset
    }
    const offset = this.search(key, hash)
    if (offset !== 0) {
      this.foundKey = key
      this.foundHash = hash
      this.foundOffset = offset
      this.foundStamp = this.locks.stamp
    }
    return offset
  }

  /** What `find` found is no longer true. */
  forget(): void {
    this.foundKey = null
  }

  private search(key: Uint8Array, hash: number): number {
    const w = this.w
    const signed = hash | 0
    const head = w[(AT_CHAINS >>> 2) + this.chainOf(hash)]!
    if (head === 0) return 0
    // The common case in one look: the first record is it, and is sane.
    if (!this.swapped && (head & 3) === 0 && head >= this.dataStart) {
      const i = head >>> 2
      const end = head + RECORD_HEADER
      if (end <= this.size && w[i + 4] === signed && w[i + 5] === LIVE && w[i + 2] === key.length) {
        const recLen = w[i + 1]! >>> 0
        const next = w[i]! >>> 0
        if (
          key.length + (w[i + 3]! >>> 0) <= recLen &&
          end + recLen <= this.size &&
          next + RECORD_HEADER <= this.size &&
          this.sameKey(end, key)
        ) {
          return head
        }
      }
    }
    return this.searchSlowly(key, hash)
  }

  private searchSlowly(key: Uint8Array, hash: number): number {
    const keyLength = key.length
    const signed = hash | 0
    let offset = this.getUnsigned(AT_CHAINS + 4 * this.chainOf(hash))
    // Brent's loop detection: a mark that moves to the current record at every power of two.
    let mark = 0
    let steps = 0
    let limit = 2
    while (offset !== 0) {
      this.checkRecord(offset)
      if (
        this.get(offset + AT_FULL_HASH) === signed &&
        this.get(offset + AT_KEY_LEN) === keyLength &&
        this.get(offset + AT_MAGIC) === LIVE &&
        this.sameKey(offset + RECORD_HEADER, key)
      ) {
        return offset
      }
      offset = this.getUnsigned(offset + AT_NEXT)
      if (offset === mark && offset !== 0) throw this.fail("CORRUPT", "circular chain", offset)
      if (++steps === limit) {
        mark = offset
        limit *= 2
      }
    }
    return 0
  }

  // ---- locks

  /** Lock a list; repair the file first if somebody died in a commit. False: not available (only with `wait` false). */
  lockList(list: number, write: boolean, wait: boolean): boolean {
    const locks = this.locks
    if (locks.nest(list, write)) return true
    if (locks.lockAlone(list, write, wait)) {
      if (this.w[AT_RECOVERY_START >>> 2] === 0) return true
      if (this.transaction !== null || !this.needsRecovery()) return true
      locks.unlock(list)
      if (!this.repair(wait)) return false
    }
    return this.lockListSlowly(list, write, wait)
  }

  private lockListSlowly(list: number, write: boolean, wait: boolean): boolean {
    const locks = this.locks
    for (;;) {
      const before = locks.heldLists
      if (!locks.lock(list, write, wait)) return false
      if (before !== 0 || locks.heldLists === 0 || this.w[AT_RECOVERY_START >>> 2] === 0) return true
      if (locks.noLock || this.transaction !== null || !this.needsRecovery()) return true
      locks.unlock(list)
      if (!this.repair(wait)) return false
    }
  }

  /** Is there a commit that somebody died in? */
  needsRecovery(): boolean {
    const start = this.getUnsigned(AT_RECOVERY_START)
    if (start === 0) return false
    if ((start & 3) !== 0 || start < this.dataStart) return false
    if (start + RECORD_HEADER > this.size) {
      this.refresh()
      if (start + RECORD_HEADER > this.size) return false
    }
    return this.get(start + AT_MAGIC) === RECOVERY_ACTIVE
  }

  /** Undo a commit that somebody died in; this handle holds no lock. False, only with `wait` false: others are in the way, or it takes long. */
  repair(wait: boolean): boolean {
    const { locks } = this
    if (!wait && recoverySize(this) > this.recoverAtOnce_bytes_max) {
      this.repairLater()
      return false
    }
    if (wait) locks.lockRecovery()
    else if (!locks.tryLockRecovery()) return false
    try {
      if (wait) locks.lockOpen()
      else if (!locks.tryLockOpen()) return false
      try {
        this.refresh()
        recover(this)
      } finally {
        locks.unlockOpen()
      }
    } finally {
      locks.unlockRecovery()
    }
    return true
  }

  // The same in pieces. Until it is over nobody gets a lock through this handle.
  private repairLater(): void {
    if (this.repairing) return
    this.repairing = true
    this.waiting().exclusively(this.repairInPieces(), (error) => {
      this.repairing = false
      this.repairError = error === null || error instanceof TdbError ? error : this.fail("IO", String(error))
    })
  }

  private *repairInPieces(): Pieces {
    const { locks } = this
    if (!locks.tryLockOpen()) yield openWaiting(locks, false)
    try {
      this.refresh()
      yield* recovering(this)
    } finally {
      locks.unlockOpen()
    }
  }

  /** Lock the chain of a key's hash, blocking this thread. Nests. */
  lockChain(hash: number, write = true): void {
    this.lockList(this.chainOf(hash) + 1, write, true)
  }

  /** Lock the chain of a key's hash unless somebody else, or an earlier waiter of this handle, has it. Nests. */
  tryLockChain(hash: number, write = true): boolean {
    return this.lockList(this.chainOf(hash) + 1, write, false)
  }

  /**
   * Wait for a chain's write lock without blocking: `granted` is called in a later turn of the event loop with the lock, which is given
   * back when it returns (or on `release`, after `keep`). Requests for a chain are served in their order. Use `tryLockChain` first.
   */
  waitForChain(hash: number, granted: Granted): Wait {
    const list = this.chainOf(hash) + 1
    return this.waitRecovering(granted, (then) => this.waiting().waitForList(list, then))
  }

  /** Wait for the allrecord lock without blocking. Meanwhile this handle gets no new chain locks. */
  waitForAllrecord(write: boolean, granted: Granted): Wait {
    return this.waitRecovering(granted, (then) => this.waiting().waitForAllrecord(write, then))
  }

  /** Wait for the transaction lock (also that of write walks) without blocking: a transaction may then be started and nests in it. */
  waitForTransaction(granted: Granted): Wait {
    return this.waiting().waitForTransaction(granted)
  }

  private waiting(): Waits {
    if (this.locks.noLock) throw this.fail("LOCK", "a handle without locks has nothing to wait for")
    this.waits ??= new Waits(this.locks)
    return this.waits
  }

  // Whoever gets a lock first looks whether somebody died in a commit (4.3 step 4), undoes that, and waits again.
  private waitRecovering(granted: Granted, wait: (granted: Granted) => Wait): Wait {
    let cancelled = false
    const attempt = (): Wait =>
      wait((held, error) => {
        if (held === null || this.transaction !== null || !this.needsRecovery()) {
          granted(held, error)
          return
        }
        if (this.repairError !== null) {
          granted(null, this.repairError)
          return
        }
        setTimeout(() => {
          if (cancelled || this.closed) return
          this.repairLater()
          inner = attempt()
        }, 0)
      })
    let inner = attempt()
    return {
      cancel: () => {
        cancelled = true
        inner.cancel()
      },
    }
  }

  unlockChain(hash: number): void {
    this.locks.unlock(this.chainOf(hash) + 1)
  }

  /** Count the chain as locked: another process holds the lock on our behalf. */
  markChain(hash: number): void {
    this.locks.mark(this.chainOf(hash) + 1)
  }

  unmarkChain(hash: number): void {
    this.locks.unmark(this.chainOf(hash) + 1)
  }

  /** Lock every chain, blocking this thread. Raises LOCK when a chain is locked already. */
  lockAllrecord(write = true): void {
    this.allrecord(write, true)
  }

  /** Lock every chain unless somebody has one of them. */
  tryLockAllrecord(write = true): boolean {
    return this.allrecord(write, false)
  }

  private allrecord(write: boolean, wait: boolean): boolean {
    for (;;) {
      const nested = this.locks.allrecordCount !== 0
      if (!this.locks.lockAllrecord(write, wait)) return false
      if (nested || this.locks.noLock || this.transaction !== null || !this.needsRecovery()) return true
      this.locks.unlockAllrecord()
      if (!this.repair(wait)) return false
    }
  }

  unlockAllrecord(): void {
    this.locks.unlockAllrecord()
  }

  /** Count every chain as locked: another process holds the allrecord lock on our behalf. */
  markAllrecord(write = true): void {
    if (this.needsRecovery()) throw this.fail("LOCK", "allrecord mark cannot do recovery")
    this.locks.markAllrecord(write)
  }

  unmarkAllrecord(): void {
    this.locks.unmarkAllrecord()
  }

  /** Count the transaction lock as held by another process on our behalf. */
  markTransaction(): void {
    this.locks.markTransaction()
  }

  unmarkTransaction(): void {
    this.locks.unmarkTransaction()
  }

  /** Take no locks from now on (libtdb: tdb_add_flags(TDB_NOLOCK)), or take them again. Change it only while no lock is held for real. */
  setNoLock(noLock: boolean): void {
    if (!noLock && this.readOnly) throw this.fail("EINVAL", "a read-only handle takes no locks")
    this.locks.noLock = noLock
    this.flags = noLock ? this.flags | 0x4 : this.flags & ~0x4
  }

  // ---- reading

  /** Copy of a record's data, null when there is no such record. */
  fetch(key: Uint8Array, hash = this.hash(key)): Uint8Array | null {
    const list = this.chainOf(hash) + 1
    this.lockList(list, false, true)
    try {
      const offset = this.find(key, hash)
      if (offset === 0) return null
      const start = offset + RECORD_HEADER + key.length
      return this.b.slice(start, start + this.getUnsigned(offset + AT_DATA_LEN))
    } finally {
      this.locks.unlock(list)
    }
  }

  /**
   * Copy a record's data to `target` from `at` on. Returns its length, which is also returned (with nothing copied) when it does
   * not fit, and -1 when there is no such record. Allocates nothing.
   */
  fetchInto(key: Uint8Array, target: Uint8Array, at = 0, hash = this.hash(key)): number {
    const list = this.chainOf(hash) + 1
    if (this.locks.has(list, false)) return this.fetchLocked(key, target, at, hash)
    this.lockList(list, false, true)
    try {
      return this.fetchLocked(key, target, at, hash)
    } finally {
      this.locks.unlock(list)
    }
  }

  private fetchLocked(key: Uint8Array, target: Uint8Array, at: number, hash: number): number {
    const offset = this.find(key, hash)
    if (offset === 0) return -1
    const length = this.getUnsigned(offset + AT_DATA_LEN)
    if (length <= target.length - at) this.copyOut(offset + RECORD_HEADER + key.length, target, at, length)
    return length
  }

  // Callers read into the same buffer again and again: short data goes word by word, which beats any call.
  private copyOut(start: number, target: Uint8Array, at: number, length: number): void {
    if (length > 256 || ((start | at) & 3) !== 0) {
      copyBytes.call(this.b, target, at, start, start + length)
      return
    }
    if (target !== this.lastTarget) {
      this.lastTarget = target
      const aligned = (target.byteOffset & 3) === 0
      this.lastTargetWords = aligned ? new Int32Array(target.buffer, target.byteOffset, target.length >>> 2) : null
    }
    const to = this.lastTargetWords
    if (to === null) {
      copyBytes.call(this.b, target, at, start, start + length)
      return
    }
    copyWords(this.w, start >>> 2, to, at >>> 2, length >>> 2)
    for (let i = length & ~3; i < length; i++) target[at + i] = this.b[start + i]!
  }

  /** Run `parser` on a record's data in place, its chain locked; undefined when there is no such record. */
  parse<T>(key: Uint8Array, parser: Parser<T>, hash = this.hash(key)): T | undefined {
    const list = this.chainOf(hash) + 1
    this.lockList(list, false, true)
    try {
      const offset = this.find(key, hash)
      if (offset === 0) return undefined
      return parser(this.b, offset + RECORD_HEADER + key.length, this.getUnsigned(offset + AT_DATA_LEN))
    } finally {
      this.locks.unlock(list)
    }
  }

  exists(key: Uint8Array, hash = this.hash(key)): boolean {
    const list = this.chainOf(hash) + 1
    this.lockList(list, false, true)
    try {
      return this.find(key, hash) !== 0
    } finally {
      this.locks.unlock(list)
    }
  }

  // ---- writing

  /** Store a record. Raises EXISTS (mode INSERT), NOEXIST (mode MODIFY), NOSPACE. */
  store(key: Uint8Array, data: Uint8Array, mode: StoreMode = REPLACE, hash = this.hash(key)): void {
    this.storeTwo(key, data, EMPTY, mode, hash)
  }

  /** Store the concatenation of `parts` as one record's data. */
  storeParts(key: Uint8Array, parts: readonly Uint8Array[], mode: StoreMode = REPLACE, hash = this.hash(key)): void {
    if (parts.length <= 2) this.storeTwo(key, parts[0] ?? EMPTY, parts[1] ?? EMPTY, mode, hash)
    else this.storeTwo(key, Buffer.concat(parts as Uint8Array[]), EMPTY, mode, hash)
  }

  /** Store `first` and `second`, one behind the other, as one record's data: a CTDB header and its payload. Allocates nothing. */
  storeTwo(key: Uint8Array, first: Uint8Array, second: Uint8Array, mode: StoreMode, hash = this.hash(key)): void {
    const list = this.chainOf(hash) + 1
    if (this.locks.has(list, true)) {
      this.storeLocked(key, first, second, mode, hash)
      return
    }
    this.lockList(list, true, true)
    try {
      this.storeLocked(key, first, second, mode, hash)
    } finally {
      this.locks.unlock(list)
    }
  }

  private storeLocked(key: Uint8Array, first: Uint8Array, second: Uint8Array, mode: StoreMode, hash: number): void {
    const dataLength = first.length + second.length
    const found = this.find(key, hash)
    if (found !== 0) {
      if (mode === INSERT) throw this.fail("EXISTS", "record exists")
      const keyLength = key.length
      if (this.getUnsigned(found + AT_REC_LEN) >= keyLength + dataLength + 4) {
        this.overwrite(found, found + RECORD_HEADER + keyLength, first, second)
        if (this.countSequence) this.incrementSequence()
        if (this.transaction !== null) this.transaction.stored(dataLength)
        return
      }
      this.deleteAt(found, hash)
    } else if (mode === MODIFY) throw this.fail("NOEXIST", "record does not exist")

    const offset = allocate(this, hash, key.length + dataLength)
    const head = AT_CHAINS + 4 * this.chainOf(hash)
    // Everything before the head: a kill in between leaks a record, and never shows half of one.
    this.put(offset + AT_NEXT, this.get(head))
    this.put(offset + AT_KEY_LEN, key.length)
    this.put(offset + AT_DATA_LEN, dataLength)
    this.put(offset + AT_FULL_HASH, hash | 0)
    this.put(offset + AT_MAGIC, LIVE)
    this.putBytes(offset + RECORD_HEADER, key)
    this.putAgain(offset + RECORD_HEADER + key.length, first)
    this.putBytes(offset + RECORD_HEADER + key.length + first.length, second)
    this.put(head, offset)
    if (this.countSequence) this.incrementSequence()
    if (this.transaction !== null) this.transaction.stored(dataLength)
  }

  // New data into a record that is large enough: data first, then the length.
  private overwrite(offset: number, start: number, first: Uint8Array, second: Uint8Array): void {
    const length = first.length + second.length
    const same = this.getUnsigned(offset + AT_DATA_LEN) === length
    // In a transaction an unchanged page need not be saved and written.
    if (same && this.dirty !== null && this.sameKey(start, first) && this.sameKey(start + first.length, second)) return
    this.putAgain(start, first)
    this.putBytes(start + first.length, second)
    if (!same) this.put(offset + AT_DATA_LEN, length)
  }

  /** Remove a record; false when there is none. */
  delete(key: Uint8Array, hash = this.hash(key)): boolean {
    const list = this.chainOf(hash) + 1
    this.lockList(list, true, true)
    try {
      const offset = this.find(key, hash)
      if (offset === 0) return false
      this.deleteAt(offset, hash)
      return true
    } finally {
      this.locks.unlock(list)
    }
  }

  /** Mark a record of a write-locked chain as dead, and give back what is more than max_dead. */
  deleteAt(offset: number, hash: number): void {
    this.forget()
    this.put(offset + AT_MAGIC, DEAD)
    if (this.countSequence) this.incrementSequence()
    trimDead(this, this.chainOf(hash), this.maxDead)
    if (this.transaction !== null) this.transaction.stored(0)
  }

  /** Add to the end of a record's data, creating the record when there is none. */
  append(key: Uint8Array, data: Uint8Array, hash = this.hash(key)): void {
    const list = this.chainOf(hash) + 1
    this.lockList(list, true, true)
    try {
      const old = this.fetch(key, hash)
      this.storeLocked(key, old ?? EMPTY, data, REPLACE, hash)
    } finally {
      this.locks.unlock(list)
    }
  }

  // ---- the sequence number

  /** The header's sequence number, an unsigned 32-bit integer that wraps. */
  sequenceNumber(): number {
    if (this.transaction !== null || this.swapped) return this.getUnsigned(AT_SEQUENCE_NUMBER)
    return Atomics.load(this.w, AT_SEQUENCE_NUMBER >>> 2) >>> 0
  }

  incrementSequence(): void {
    if (this.transaction !== null || this.swapped) {
      this.put(AT_SEQUENCE_NUMBER, this.get(AT_SEQUENCE_NUMBER) + 1)
    } else Atomics.add(this.w, AT_SEQUENCE_NUMBER >>> 2, 1)
  }

  /** Count stores and deletes through this handle from now on (libtdb: tdb_enable_seqnum). */
  enableSequence(): void {
    this.countSequence = true
    this.flags |= 0x80
  }

  // ---- transactions and the whole file

  /**
   * Start a transaction, blocking this thread, or nest in the one under way. Until its end every operation on this handle works in
   * it. Raises EINVAL (read-only), LOCK (chains locked, a walk under way), NESTING (with DISALLOW_NESTING).
   */
  startTransaction(): void {
    startTransaction(this, true)
  }

  /** The same without waiting: false when another process has a transaction or a lock. */
  tryStartTransaction(): boolean {
    return startTransaction(this, false)
  }

  private running(): Transaction {
    if (this.transaction === null) throw this.fail("EINVAL", "no transaction")
    if (this.ending !== null) throw this.fail("EINVAL", "the transaction is being committed")
    return this.transaction
  }

  /** Save the old contents in the file: waits for all readers. Raises IO, NOSPACE, LOCK; the transaction is cancelled then. */
  prepareCommit(): void {
    const transaction = this.running()
    try {
      runNow(transaction.preparing())
    } catch (error) {
      transaction.abandon()
      throw error
    }
  }

  /** Commit. When it raises (IO, NOSPACE, LOCK) the transaction is cancelled and the file as before. */
  commit(): void {
    this.running().commit()
  }

  /**
   * The same without blocking, for a transaction however large: piece by piece between the turns of a loop, waiting for readers,
   * openers and the disk elsewhere. Until `done` is called, once, with what went wrong or null, the handle can be read, showing
   * the new state, and not be written (RDONLY). Unlike `commit` it never repacks. Raises EINVAL for a nested transaction.
   */
  commitInPieces(turns: Turns, done: (error: unknown) => void): Underway {
    const transaction = this.running()
    if (transaction.nesting > 0) throw this.fail("EINVAL", "a nested transaction has nothing to write")
    const { locks } = this
    const forbidden = locks.forbidWrites
    locks.forbidWrites = true
    let over = false
    const underway = runInPieces(transaction.committingInPieces(), turns, (error) => {
      over = true
      this.ending = null
      locks.forbidWrites = forbidden
      done(error)
    })
    if (!over) this.ending = underway
    return underway
  }

  cancel(): void {
    this.running().cancel()
  }

  /** Remove all records, under the allrecord lock. */
  wipe(): void {
    wipe(this)
  }

  /** Write all records anew without gaps, in a transaction. */
  repack(): void {
    repack(this)
  }

  /** Is this a free record? For walks over the physical file. */
  isFree(offset: number): boolean {
    return this.get(offset + AT_MAGIC) === FREE
  }

  lockFreelist(wait: boolean): boolean {
    return this.locks.lock(FREELIST, true, wait)
  }

  unlockFreelist(): void {
    this.locks.unlock(FREELIST)
  }

  /** Cancel a transaction, release every lock, unmap and close. Afterwards the handle must not be used. */
  close(): void {
    if (this.closed) return
    this.closed = true
    this.ending?.finish()
    if (this.transaction !== null) this.transaction.abandon()
    this.idleSpace?.close()
    this.waits?.close()
    this.locks.close()
    this.backing.close()
    this.w = this.backing.words
    this.b = this.backing.bytes
    this.size = 0
  }
}
