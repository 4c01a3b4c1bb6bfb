// The locks of one handle on one TDB file: lists (freelist and chains), allrecord, transaction, record and open locks, on fcntl
// ranges or robust mutexes (tdb-format.md sections 4 and 5), with nesting and marks. Waiting without blocking the event loop is in
// waits.ts; what a lock protects is not known here.

import { EIO, SysError } from "../sys/errno.ts"
import { isRangeFree, lockRange, READ_LOCK, tryLockRange, unlockRange, WRITE_LOCK } from "../sys/lock.ts"
import { mapShared, readAt, releaseView, unmap, viewMemory } from "../sys/memory.ts"
import { BUSY, LOCKED_AFTER_DEATH, lockMutex, MUTEX_SIZE, tryLockMutex, unlockMutex } from "../sys/mutex.ts"
import { TdbError } from "./error.ts"
import {
  ACTIVE_LOCK,
  ALLRECORD_FREE,
  AT_ALLRECORD_MUTEX,
  AT_ALLRECORD_WORD,
  AT_LIST_MUTEXES,
  CHAIN_LOCKS,
  FREELIST_LOCK,
  OPEN_LOCK,
  TRANSACTION_LOCK,
} from "./format.ts"

/** List 0 is the freelist, list i + 1 is chain i. */
export const FREELIST = 0

const READ = 0
const WRITE = 1
/** The lock itself is held by somebody else on our behalf: a helper process (mark) or a waiter thread. */
const MARKED = 2

/** What a waiter thread that holds a chain's mutex needs to hear: see waits.ts. */
export interface ListWaits {
  /** May this handle try `list` (-1: allrecord) now? For blocking callers no waiter thread will stand between. */
  admit(list: number, wait: boolean): boolean
  /** A marked list of a waiter was unlocked for the last time. True when the waiter owned it. */
  release(list: number): boolean
  /** A blocking lock on a list that somebody waits for was unlocked. */
  resume(list: number): void
}

/** Mutexes that a sweep looks at together. */
const LOOKED_AT = 2048
const looked = new Uint8Array(LOOKED_AT * MUTEX_SIZE)
const lookedWords = new Int32Array(looked.buffer)

/** A mapping of a file's mutex area that stays where it is for as long as a mutex in it may be held. */
export class MutexArea {
  readonly address: number
  readonly buffer: ArrayBuffer
  /** Address of the first list's mutex. */
  readonly lists: number
  readonly word: Int16Array
  /** The mutexes' lock words, at index (AT_LIST_MUTEXES + MUTEX_SIZE * list) / 4: to look at, never to write. */
  readonly words: Int32Array

  constructor(
    private readonly fd: number,
    readonly length: number,
  ) {
    this.address = mapShared(fd, length, 0, true)
    this.buffer = viewMemory(this.address, length)
    this.word = new Int16Array(this.buffer, AT_ALLRECORD_WORD, 1)
    this.words = new Int32Array(this.buffer)
    this.lists = this.address + AT_LIST_MUTEXES
  }

  get allrecord(): number {
    return this.word[0]!
  }
  set allrecord(value: number) {
    this.word[0] = value
  }
  get allrecordMutex(): number {
    return this.address + AT_ALLRECORD_MUTEX
  }
  get allrecordWord(): number {
    return this.address + AT_ALLRECORD_WORD
  }
  listMutex(list: number): number {
    return this.lists + MUTEX_SIZE * list
  }
  /**
   * Has nobody list [from, ...) locked who locked it before the allrecord word was set? Returns the first list of [from, until) that
   * is held now, or `until`. Whoever locks one later sees the word. The first list is locked for real, which also orders our store of
   * the word before the looks at the others.
   */
  sweep(from: number, until: number): number {
    for (let list = from; list < until; ) {
      const address = this.listMutex(list)
      if (tryLockMutex(address) === BUSY) return list
      unlockMutex(address)
      list = this.lockedAfter(list, until)
    }
    return until
  }

  /**
   * The next of [list + 1, until) whose lock word is not 0, or `until`. The kernel copies the mutexes to where they are looked at: there is a
   * page of them for a hundred chains, nobody else looks at most, and to touch a page for the first time is dear (backing.ts).
   */
  private lockedAfter(list: number, until: number): number {
    for (let next = list + 1; next < until; ) {
      const count = Math.min(until - next, LOOKED_AT)
      const part = looked.subarray(0, count * MUTEX_SIZE)
      const read = readAt(this.fd, part, AT_LIST_MUTEXES + MUTEX_SIZE * next)
      if (read < part.length)
        throw new SysError("pread", EIO, `mutex ${next + Math.floor(read / MUTEX_SIZE)} of the file`)
      // Plain loads: a recovery, whose code is always cold, looks at the mutexes of all databases.
      for (let index = 0; index < count; index++) if (lookedWords[(index * MUTEX_SIZE) >>> 2] !== 0) return next + index
      next += count
    }
    return until
  }
  close(): void {
    releaseView(this.buffer)
    unmap(this.address, this.length)
  }
}

/** Looks at a busy lock word before this thread goes to sleep: about as long as a store takes. */
const SPINS = 150

// A holder on another processor is done in less time than it takes to fall asleep. True: locked.
function spin(mutexes: MutexArea, list: number, address: number): boolean {
  const { words } = mutexes
  const index = (AT_LIST_MUTEXES + MUTEX_SIZE * list) >>> 2
  for (let i = 0; i < SPINS; i++) {
    if (Atomics.load(words, index) === 0 && tryLockMutex(address) !== BUSY) return true
  }
  return false
}

export class Locks {
  /** Something makes every lock take the long way: allrecord, noLock, forbidWrites. */
  private slow = false
  private lockless = false
  private forbidding = false
  /** How many lists are held; the freelist counts too. */
  heldLists = 0
  heldChains = 0
  private allrecords = 0
  allrecordWrite = false
  /** A read lock that a commit will upgrade: for this handle it counts as a write lock. */
  upgradable = false
  transactionCount = 0
  waits: ListWaits | null = null
  /** Changes whenever a lock is given up: what was seen under it may no longer be so. */
  stamp = 0
  private allrecordMarked = false
  private transactionMarked = false
  private openHeld = false
  // A list locked the short way, -1 for none: until `spill` it is not in the tables, whose memory most operations so never touch.
  private alone = -1
  private aloneCount = 0
  private aloneWrite = false
  private readonly count: Uint16Array
  private readonly type: Uint8Array
  private readonly recordsStart: number

  constructor(
    readonly file: string,
    readonly fd: number,
    readonly hashSize: number,
    readonly mutexes: MutexArea | null,
  ) {
    this.count = new Uint16Array(hashSize + 1)
    this.type = new Uint8Array(hashSize + 1)
    this.recordsStart = CHAIN_LOCKS + 4 * hashSize
  }

  private decide(): void {
    this.slow = this.lockless || this.forbidding || this.allrecords !== 0
  }

  /** Take no locks at all (NOLOCK, read-only, memory). May change while open: CTDB sets it during recoveries. */
  get noLock(): boolean {
    return this.lockless
  }
  set noLock(value: boolean) {
    this.lockless = value
    this.decide()
  }

  /** Nothing may be written through this handle now: read-only, or inside a read traverse. */
  get forbidWrites(): boolean {
    return this.forbidding
  }
  set forbidWrites(value: boolean) {
    this.forbidding = value
    this.decide()
  }

  get allrecordCount(): number {
    return this.allrecords
  }
  set allrecordCount(value: number) {
    this.allrecords = value
    this.decide()
  }

  private refuse(reason: string): TdbError {
    return new TdbError("LOCK", this.file, reason)
  }

  /** Is it this list that was locked the short way, strong enough? Then an operation that ends in this turn need not nest. */
  has(list: number, write: boolean): boolean {
    return list === this.alone && !this.slow && (!write || this.aloneWrite)
  }

  /** Nest in a lock of the list that this handle holds already, strong enough: the short way of `lock`. */
  nest(list: number, write: boolean): boolean {
    if (list === this.alone) {
      if (this.slow || (write && !this.aloneWrite)) return false
      this.aloneCount++
      return true
    }
    const count = this.count[list]!
    if (count === 0 || this.slow || (write && (this.type[list]! & WRITE) === 0)) return false
    this.count[list] = count + 1
    return true
  }

  /** Lock a list when no list is held and nothing is special: the short way of `lock`. False: take the long one. */
  lockAlone(list: number, write: boolean, wait: boolean): boolean {
    if (this.slow || this.heldLists !== 0 || this.waits !== null) return false
    const mutexes = this.mutexes
    if (mutexes === null) {
      if (!wait) return false
      lockRange(this.fd, write ? WRITE_LOCK : READ_LOCK, FREELIST_LOCK + 4 * list, 1)
    } else {
      const address = mutexes.lists + MUTEX_SIZE * list
      if (tryLockMutex(address) === BUSY && !(wait && spin(mutexes, list, address))) return false
      if (mutexes.word[0] !== ALLRECORD_FREE && list !== FREELIST) {
        unlockMutex(address)
        return false
      }
    }
    this.alone = list
    this.aloneCount = 1
    this.aloneWrite = write
    this.heldLists = 1
    if (list !== FREELIST) this.heldChains = 1
    return true
  }

  private spill(): void {
    const list = this.alone
    if (list < 0) return
    this.count[list] = this.aloneCount
    this.type[list] = this.aloneWrite ? WRITE : READ
    this.alone = -1
  }

  /**
   * Lock a list, nested if this handle holds it already. False: not available (only with `wait` false). Raises TdbError LOCK when
   * the allrecord lock held is too weak, RDONLY for a write lock on a handle that may not write.
   */
  lock(list: number, write: boolean, wait: boolean): boolean {
    this.spill()
    if (write && this.forbidWrites) throw new TdbError("RDONLY", this.file, "not writable")
    // The freelist is locked even under the allrecord lock: a peer's freelist_size needs nothing but the freelist (6.9).
    if (this.allrecordCount !== 0 && list !== FREELIST) {
      if (write && !this.allrecordWrite && !this.upgradable) throw this.refuse("allrecord lock is not a write lock")
      return true
    }
    const count = this.count[list]!
    if (count !== 0) {
      if (write && (this.type[list]! & WRITE) === READ) {
        if (!this.upgrade(list, wait)) return false
        this.type[list]! |= WRITE
      }
      this.count[list] = count + 1
      return true
    }
    if (!this.noLock) {
      if (this.waits !== null && !this.waits.admit(list, wait)) return false
      if (!this.acquire(list, write, wait)) return false
    }
    this.enter(list, write ? WRITE : READ)
    return true
  }

  private enter(list: number, type: number): void {
    this.count[list] = 1
    this.type[list] = type
    this.heldLists++
    if (list !== FREELIST) this.heldChains++
  }

  /** The list's lock was obtained elsewhere on this handle's descriptor or thread (waits.ts): take note of it. */
  enterList(list: number): void {
    this.enter(list, WRITE)
  }

  private leave(list: number): void {
    this.stamp++
    this.count[list] = 0
    this.heldLists--
    if (list !== FREELIST) this.heldChains--
  }

  unlock(list: number): void {
    if (list === this.alone && !this.slow && this.waits === null) {
      if (--this.aloneCount > 0) return
      this.alone = -1
      this.stamp++
      this.heldLists--
      if (list !== FREELIST) this.heldChains--
      this.releaseList(list)
      return
    }
    this.spill()
    const count = this.count[list]!
    if (count > 1) {
      this.count[list] = count - 1
      return
    }
    if (this.slow || count === 0 || this.waits !== null || (this.type[list]! & MARKED) !== 0) {
      this.unlockSlowly(list)
      return
    }
    this.leave(list)
    this.releaseList(list)
  }

  private unlockSlowly(list: number): void {
    if (this.count[list] === 0) {
      if (this.allrecordCount !== 0) return
      throw this.refuse(`unlock of list ${list}, which is not locked`)
    }
    const type = this.type[list]!
    this.leave(list)
    if ((type & MARKED) !== 0) {
      if (this.waits?.release(list)) return
      throw this.refuse(`unlock of list ${list}, which is only marked`)
    }
    if (!this.noLock) {
      this.releaseList(list)
      this.waits?.resume(list)
    }
  }

  /** Enter the list as locked without locking: another process or thread holds it for us. */
  mark(list: number): void {
    this.spill()
    if (this.allrecordCount !== 0) return
    if (this.count[list] !== 0) {
      this.count[list]!++
      return
    }
    this.enter(list, WRITE | MARKED)
  }

  unmark(list: number): void {
    this.spill()
    const count = this.count[list]!
    if (count > 1) this.count[list] = count - 1
    else if (count === 1) this.leave(list)
    else if (this.allrecordCount === 0) throw this.refuse(`unmark of list ${list}, which is not marked`)
  }

  isLocked(list: number): boolean {
    return this.allrecordCount !== 0 || this.alone === list || this.count[list] !== 0
  }

  private upgrade(list: number, wait: boolean): boolean {
    if (this.noLock || this.mutexes !== null || (this.type[list]! & MARKED) !== 0) return true
    const offset = FREELIST_LOCK + 4 * list
    if (!wait) return tryLockRange(this.fd, WRITE_LOCK, offset, 1)
    lockRange(this.fd, WRITE_LOCK, offset, 1)
    return true
  }

  /** The real lock, whoever asks: no table, no nesting. */
  acquire(list: number, write: boolean, wait: boolean): boolean {
    const mutexes = this.mutexes
    if (mutexes === null) {
      const offset = FREELIST_LOCK + 4 * list
      const type = write ? WRITE_LOCK : READ_LOCK
      if (!wait) return tryLockRange(this.fd, type, offset, 1)
      lockRange(this.fd, type, offset, 1)
      return true
    }
    const address = mutexes.listMutex(list)
    for (;;) {
      const result = wait ? lockMutex(address) : tryLockMutex(address)
      if (result === BUSY) return false
      // A chain holder that asked for the allrecord lock's state here would deadlock with the sweep of its owner (5.1 step 3).
      if (list === FREELIST || this.heldChains > 0) return true
      const state = mutexes.allrecord
      if (state === ALLRECORD_FREE || (state === READ_LOCK && !write)) return true
      unlockMutex(address)
      if (!this.passAllrecord(mutexes, wait)) return false
    }
  }

  // Wait until the holder of the allrecord mutex is gone.
  private passAllrecord(mutexes: MutexArea, wait: boolean): boolean {
    const result = wait ? lockMutex(mutexes.allrecordMutex) : tryLockMutex(mutexes.allrecordMutex)
    if (result === BUSY) return false
    if (result === LOCKED_AFTER_DEATH) mutexes.allrecord = ALLRECORD_FREE
    unlockMutex(mutexes.allrecordMutex)
    return true
  }

  private releaseList(list: number): void {
    if (this.mutexes === null) unlockRange(this.fd, FREELIST_LOCK + 4 * list, 1)
    else unlockMutex(this.mutexes.listMutex(list))
  }

  // ---- allrecord

  /** Every chain at once. False: not available (only with `wait` false). Raises LOCK when other locks are held. */
  lockAllrecord(write: boolean, wait: boolean, upgradable = false): boolean {
    if (write && this.forbidWrites) throw new TdbError("RDONLY", this.file, "not writable")
    if (this.allrecordCount !== 0) {
      if (this.allrecordWrite !== write && !(this.upgradable && write)) {
        throw this.refuse("allrecord lock is held with another type")
      }
      this.allrecordCount++
      return true
    }
    if (this.heldLists !== 0) throw this.refuse("allrecord lock while other locks are held")
    if (!this.noLock) {
      if (this.waits !== null && !this.waits.admit(-1, wait)) return false
      if (this.mutexes === null) {
        if (!this.lockGradually(write, wait, CHAIN_LOCKS, 4 * this.hashSize)) return false
      } else if (!this.lockAllrecordMutex(this.mutexes, write, wait)) return false
      if (!this.lockRecordPart(write, wait)) {
        if (this.mutexes === null) unlockRange(this.fd, CHAIN_LOCKS, 4 * this.hashSize)
        else this.unlockAllrecordMutex(this.mutexes)
        return false
      }
    }
    this.enterAllrecord(write, upgradable)
    return true
  }

  /** The allrecord lock was obtained piece by piece elsewhere (waits.ts): take note of it. */
  enterAllrecord(write: boolean, upgradable: boolean): void {
    this.allrecordCount = 1
    this.allrecordWrite = write
    this.upgradable = upgradable
  }

  private lockRecordPart(write: boolean, wait: boolean): boolean {
    const type = write ? WRITE_LOCK : READ_LOCK
    if (!wait) return tryLockRange(this.fd, type, this.recordsStart, 0)
    lockRange(this.fd, type, this.recordsStart, 0)
    return true
  }

  // First all, then halves: many short locks of others cannot starve us, and they go on where we have no lock yet (4.4).
  private lockGradually(write: boolean, wait: boolean, start: number, length: number): boolean {
    const type = write ? WRITE_LOCK : READ_LOCK
    if (tryLockRange(this.fd, type, start, length)) return true
    if (length <= 4) {
      if (!wait) return false
      lockRange(this.fd, type, start, length)
      return true
    }
    const lower = 4 * Math.floor(length / 8) || 4
    if (!this.lockGradually(write, wait, start, lower)) return false
    if (!this.lockGradually(write, wait, start + lower, length - lower)) {
      unlockRange(this.fd, start, lower)
      return false
    }
    return true
  }

  /** First step of the allrecord lock in a mutex file: the mutex itself and the word that everybody looks at. */
  beginAllrecordMutex(mutexes: MutexArea, write: boolean, wait: boolean): boolean {
    const result = wait ? lockMutex(mutexes.allrecordMutex) : tryLockMutex(mutexes.allrecordMutex)
    if (result === BUSY) return false
    if (result === LOCKED_AFTER_DEATH) mutexes.allrecord = ALLRECORD_FREE
    if (mutexes.allrecord !== ALLRECORD_FREE) {
      unlockMutex(mutexes.allrecordMutex)
      throw this.refuse("allrecord word is not free under the allrecord mutex")
    }
    mutexes.allrecord = write ? WRITE_LOCK : READ_LOCK
    return true
  }

  private lockAllrecordMutex(mutexes: MutexArea, write: boolean, wait: boolean): boolean {
    if (!this.beginAllrecordMutex(mutexes, write, wait)) return false
    if (this.sweep(mutexes, wait)) return true
    this.unlockAllrecordMutex(mutexes)
    return false
  }

  // Everybody who got a chain before the word was set must be gone.
  private sweep(mutexes: MutexArea, wait: boolean): boolean {
    for (let list = 1; ; ) {
      list = mutexes.sweep(list, this.hashSize + 1)
      if (list > this.hashSize) return true
      if (!wait) return false
      lockMutex(mutexes.listMutex(list))
      unlockMutex(mutexes.listMutex(list))
    }
  }

  unlockAllrecordMutex(mutexes: MutexArea): void {
    mutexes.allrecord = ALLRECORD_FREE
    unlockMutex(mutexes.allrecordMutex)
  }

  unlockAllrecord(): void {
    if (this.allrecordCount === 0) throw this.refuse("allrecord unlock without lock")
    if (this.allrecordCount > 1) {
      this.allrecordCount--
      return
    }
    this.stamp++
    this.allrecordCount = 0
    this.upgradable = false
    if (this.allrecordMarked) {
      this.allrecordMarked = false
      return
    }
    if (this.noLock) return
    if (this.mutexes === null) unlockRange(this.fd, CHAIN_LOCKS, 0)
    else {
      this.unlockAllrecordMutex(this.mutexes)
      unlockRange(this.fd, this.recordsStart, 0)
    }
    if (this.waits !== null) this.waits.resume(-1)
  }

  /** From the upgradable read lock to a write lock: waits for all readers. */
  upgradeAllrecord(wait = true): boolean {
    if (this.allrecordCount !== 1 || !this.upgradable) throw this.refuse("allrecord lock cannot be upgraded")
    if (!this.noLock && !this.allrecordMarked && !this.allrecordWrite) {
      const mutexes = this.mutexes
      if (mutexes === null) {
        if (!wait) {
          if (!tryLockRange(this.fd, WRITE_LOCK, CHAIN_LOCKS, 0)) return false
        } else lockRange(this.fd, WRITE_LOCK, CHAIN_LOCKS, 0)
      } else {
        mutexes.allrecord = WRITE_LOCK
        if (!this.sweep(mutexes, wait) || !this.lockRecordPart(true, wait)) {
          mutexes.allrecord = READ_LOCK
          return false
        }
      }
    }
    this.allrecordWrite = true
    this.upgradable = false
    return true
  }

  markAllrecord(write: boolean): void {
    if (this.allrecordCount !== 0) throw this.refuse("allrecord mark while locked")
    if (this.heldLists !== 0) throw this.refuse("allrecord mark while other locks are held")
    this.enterAllrecord(write, false)
    this.allrecordMarked = true
  }

  unmarkAllrecord(): void {
    if (!this.allrecordMarked) throw this.refuse("allrecord unmark without mark")
    if (this.allrecordCount > 1) {
      this.allrecordCount--
      return
    }
    this.stamp++
    this.allrecordCount = 0
    this.upgradable = false
    this.allrecordMarked = false
  }

  // ---- transaction, open, active, recovery, record

  lockTransaction(wait: boolean): boolean {
    if (this.transactionCount === 0 && !this.noLock) {
      if (!wait) {
        if (!tryLockRange(this.fd, WRITE_LOCK, TRANSACTION_LOCK, 1)) return false
      } else lockRange(this.fd, WRITE_LOCK, TRANSACTION_LOCK, 1)
    }
    this.transactionCount++
    return true
  }

  unlockTransaction(): void {
    if (this.transactionCount === 0) throw this.refuse("transaction unlock without lock")
    if (--this.transactionCount > 0) return
    if (this.transactionMarked) this.transactionMarked = false
    else if (!this.noLock) unlockRange(this.fd, TRANSACTION_LOCK, 1)
  }

  markTransaction(): void {
    if (this.transactionCount === 0) this.transactionMarked = true
    this.transactionCount++
  }

  unmarkTransaction(): void {
    this.unlockTransaction()
  }

  /** Keep openers out. `always`: even with `noLock`, unless there is no file. */
  lockOpen(always = false): void {
    if (this.needsOpen(always)) lockRange(this.fd, WRITE_LOCK, OPEN_LOCK, 1)
  }

  tryLockOpen(always = false): boolean {
    if (!this.needsOpen(always)) return true
    if (tryLockRange(this.fd, WRITE_LOCK, OPEN_LOCK, 1)) return true
    this.openHeld = false
    return false
  }

  private needsOpen(always: boolean): boolean {
    this.openHeld = this.fd >= 0 && (always || !this.noLock)
    return this.openHeld
  }

  unlockOpen(): void {
    if (this.openHeld) unlockRange(this.fd, OPEN_LOCK, 1)
    this.openHeld = false
  }

  lockActive(): void {
    if (!this.noLock) lockRange(this.fd, READ_LOCK, ACTIVE_LOCK, 1)
  }

  /** The lock of somebody who recovers a file that others have open: everything from the chain locks on. */
  lockRecovery(): void {
    if (!this.noLock) lockRange(this.fd, WRITE_LOCK, CHAIN_LOCKS, 0)
  }

  tryLockRecovery(): boolean {
    return this.noLock || tryLockRange(this.fd, WRITE_LOCK, CHAIN_LOCKS, 0)
  }

  unlockRecovery(): void {
    if (!this.noLock) unlockRange(this.fd, CHAIN_LOCKS, 0)
  }

  /** Keep the record at this offset from being freed by others. */
  lockRecord(offset: number): void {
    if (!this.noLock && this.allrecordCount === 0) lockRange(this.fd, READ_LOCK, offset, 1)
  }

  unlockRecord(offset: number): void {
    if (!this.noLock && this.allrecordCount === 0) unlockRange(this.fd, offset, 1)
  }

  /** Is nobody else standing on the record at this offset? The caller has checked its own traverses. */
  probeRecord(offset: number): boolean {
    if (this.allrecordCount !== 0) return this.allrecordWrite || this.upgradable
    if (this.noLock) return true
    // To look is enough: who wants to stand on it needs the chain, which the caller has locked.
    return isRangeFree(this.fd, WRITE_LOCK, offset, 1)
  }

  /** Release whatever is held for real, before the descriptor is closed: mutexes do not go away with it. */
  close(): void {
    if (this.mutexes === null) return
    this.spill()
    try {
      for (let list = 0; this.heldLists > 0 && list <= this.hashSize; list++) {
        if (this.count[list] === 0) continue
        this.count[list] = 1
        if ((this.type[list]! & MARKED) !== 0) this.leave(list)
        else this.unlock(list)
      }
      if (this.allrecordCount > 0) {
        this.allrecordCount = 1
        this.unlockAllrecord()
      }
    } catch (error) {
      if (!(error instanceof SysError)) throw error
    }
    this.mutexes.close()
  }
}
