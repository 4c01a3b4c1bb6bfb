// Transactions: all changes stay in a private copy-on-write view of the map until commit, which first saves the old contents in the
// file's recovery area (tdb-format.md section 7). A crash at any store leaves a file that recovery, ours or libtdb's, turns into the
// old or the new state.

import { SysError } from "../sys/errno.ts"
import { BLOCK, type PrivateSpace, SPILL } from "./backing.ts"
import type { Tdb } from "./database.ts"
import {
  AT_DATA_LEN,
  AT_FREELIST,
  AT_FULL_HASH,
  AT_KEY_LEN,
  AT_MAGIC,
  AT_NEXT,
  AT_REC_LEN,
  AT_RECOVERY_START,
  DISALLOW_NESTING,
  growth,
  INTERNAL,
  MAP_SIZE_MAX,
  RECORD_HEADER,
  RECOVERY_ACTIVE,
  RECOVERY_IDLE,
  swap32,
} from "./format.ts"
import { release } from "./freelist.ts"
import { FREELIST } from "./locks.ts"
import { type Pieces, runNow } from "./pieces.ts"
import { recovering, syncing } from "./recovery.ts"
import { repack } from "./repack.ts"
import { openWaiting, upgradeWaiting } from "./waits.ts"

/** Bytes copied before others may have a turn: about half a millisecond. */
const COPY_PIECE = 1 << 20
/** The same for growing the file, and for giving memory back. */
const GROWTH_PIECE = 16 << 20
const DISCARD_PIECE = 8 << 20

/** A transaction looks at its memory after so many bytes of stores; a store counts for its data and two pages around it. */
const LOOK_BYTES = 1 << 20
const STORE_BYTES = 2 * BLOCK
const SPILL_PAGES = SPILL / BLOCK

/** What this thread's transactions kept in memory when they looked last (bytes). */
let kept_bytes = 0

interface Range {
  readonly offset: number
  readonly length: number
}

// Take the word recovery_start out of the first range, which is the header's block.
function splitRecoveryStart(ranges: Range[]): void {
  const { length } = ranges.shift()!
  const behind = AT_RECOVERY_START + 4
  ranges.unshift({ offset: 0, length: AT_RECOVERY_START }, { offset: behind, length: length - behind })
}

export class Transaction {
  nesting = 0
  private failed = false
  private prepared = false
  private readonly startSize: number
  // Set by prepare: where the recovery record is, and what recovery_start is in the old state.
  private area = 0
  private areaEnd = 0
  private oldArea = 0
  // What is to be written, outside the recovery area.
  private changed: Range[] = []
  // Since the last look at the memory, and what it found.
  private stored_bytes = 0
  private kept_bytes = 0
  // The disk has no room for what memory should not hold.
  private mustKeep = false

  constructor(
    private readonly db: Tdb,
    readonly space: PrivateSpace,
  ) {
    this.startSize = db.backing.size
    db.dirty = new Uint8Array(Math.ceil(this.startSize / BLOCK) + 64)
  }

  grow(size: number): void {
    const db = this.db
    this.space.grow(size)
    const pages = Math.ceil(size / BLOCK) + 1
    if (db.dirty!.length < pages) {
      const dirty = new Uint8Array(pages * 2)
      dirty.set(db.dirty!)
      db.dirty = dirty
    }
  }

  /** So many bytes were stored in one record: what memory should not hold goes to a file from time to time. */
  stored(bytes: number): void {
    this.filled(bytes + STORE_BYTES)
  }

  /** The same of records that lie one behind the other. */
  filled(bytes: number): void {
    this.stored_bytes += bytes
    if (this.stored_bytes >= LOOK_BYTES) this.limitMemory()
  }

  private limitMemory(): void {
    this.stored_bytes = 0
    const { db, space } = this
    if (db.size <= LOOK_BYTES || this.mustKeep) return
    const dirty = db.dirty!
    const pages = Math.ceil(db.size / BLOCK)
    const units: { readonly unit: number; readonly pages: number }[] = []
    let kept = 0
    for (let unit = 0; unit * SPILL_PAGES < pages; unit++) {
      if (space.spilled.has(unit)) continue
      let page = dirty.indexOf(1, unit * SPILL_PAGES)
      if (page === -1 || page >= pages) break
      unit = Math.floor(page / SPILL_PAGES)
      if (space.spilled.has(unit)) continue
      const end = (unit + 1) * SPILL_PAGES
      let count = 0
      for (; page < end; page++) if (dirty[page] === 1) count++
      kept += count * BLOCK
      // One that reaches behind the map's end would be cut when the map grows.
      if (end * BLOCK <= db.size) units.push({ unit, pages: count })
    }
    this.count(kept)
    if (kept_bytes <= db.transactionMemory_bytes_max) return
    // The fullest first: what is copied with them is nothing that was not changed.
    units.sort((a, b) => b.pages - a.pages || a.unit - b.unit)
    for (const { unit, pages } of units) {
      if (!space.spill(unit)) {
        this.mustKeep = true
        return
      }
      this.count(this.kept_bytes - pages * BLOCK)
      if (kept_bytes <= db.transactionMemory_bytes_max) return
    }
  }

  private count(bytes: number): void {
    kept_bytes += bytes - this.kept_bytes
    this.kept_bytes = bytes
  }

  /** Write the recovery record: afterwards commit can only fail by I/O errors. Raises IO, NOSPACE, LOCK; the transaction stays. */
  *preparing(): Pieces {
    const db = this.db
    const { locks } = db
    if (this.failed) throw db.fail("IO", "a nested transaction was cancelled")
    if (this.prepared) return
    if (locks.heldChains !== 0) throw db.fail("LOCK", "commit while chains are locked")
    if (!this.hasChanges()) {
      this.prepared = true
      return
    }
    if (locks.allrecordCount !== 0 && locks.upgradable && !locks.upgradeAllrecord(false)) yield upgradeWaiting(locks)
    if (!locks.tryLockOpen(this.inPieces)) yield openWaiting(locks, this.inPieces)
    this.openLocked = true
    db.backing.refresh()
    if (db.backing.size < this.startSize) {
      throw db.fail(
        "IO",
        `file was cut from ${this.startSize} to ${db.backing.size} bytes by somebody who ignores locks`,
      )
    }
    yield* this.writeRecoveryRecord()
    this.prepared = true
  }

  /** Turns of an event loop pass during this commit: whoever opens the file then must not find it half done. */
  private inPieces = false
  private openLocked = false

  private hasChanges(): boolean {
    return this.db.dirty!.includes(1)
  }

  // In all of this `db` shows the transaction's view; the file is written through these.
  private filePut(what: string, offset: number, value: number): void {
    this.db.step?.(`${what} at ${offset}`)
    this.db.backing.words[offset >>> 2] = this.db.swapped ? swap32(value) : value
  }

  private fileGet(offset: number): number {
    const value = this.db.backing.words[offset >>> 2]!
    return (this.db.swapped ? swap32(value) : value) >>> 0
  }

  private *growFile(size: number): Pieces {
    const { backing } = this.db
    const from = backing.size
    this.db.step?.(`grow the file to ${size}`)
    try {
      while (backing.size < size) {
        backing.grow(Math.min(size, backing.size + GROWTH_PIECE))
        yield null
      }
    } catch (error) {
      if (!(error instanceof SysError)) throw error
      if (backing.size > from) backing.shrink(from)
      throw this.db.fail("NOSPACE", error.message)
    }
  }

  private *writeRecoveryRecord(): Pieces {
    const db = this.db
    const oldEnd = db.backing.size
    this.placeArea(oldEnd)
    const newArea = this.areaEnd > oldEnd
    if (newArea) yield* this.makeArea(oldEnd)
    // Before the record is active: it may name what lies behind the old end.
    else if (db.size > oldEnd) yield* this.growFile(db.size)
    const area = this.area
    const saved = this.rangesToSave(oldEnd)
    let used = 4
    for (const range of saved) used += 8 + range.length
    if (used > this.areaEnd - area - RECORD_HEADER)
      throw db.fail("IO", `recovery area too small for ${used} bytes`, area)

    this.filePut("recovery next", area + AT_NEXT, 0)
    this.filePut("recovery rec_len", area + AT_REC_LEN, this.areaEnd - area - RECORD_HEADER)
    // libtdb forgets an area that lies behind this end. Ours is part of the old state, so the end is never before it.
    this.filePut("recovery end", area + AT_KEY_LEN, newArea ? this.areaEnd : oldEnd)
    this.filePut("recovery used", area + AT_DATA_LEN, used)
    this.filePut("recovery hash", area + AT_FULL_HASH, 0)
    this.filePut("recovery magic", area + AT_MAGIC, RECOVERY_IDLE)
    yield* this.saveRanges(saved, area + RECORD_HEADER)
    this.filePut("recovery tailer", area + RECORD_HEADER + used - 4, this.areaEnd - area)
    db.step?.("sync 1")
    yield* syncing(db)
    this.filePut("recovery magic active", area + AT_MAGIC, RECOVERY_ACTIVE)
    if (this.fileGet(AT_RECOVERY_START) !== area) this.filePut("recovery_start", AT_RECOVERY_START, area)
    db.step?.("sync 2")
    yield* syncing(db)
  }

  // Decide where the recovery record goes. Leaves area, areaEnd and oldArea; areaEnd lies behind the file when it must be made.
  private placeArea(oldEnd: number): void {
    const db = this.db
    const current = this.currentArea(oldEnd)
    if (current !== null && current.end - current.start - RECORD_HEADER >= this.needed(oldEnd)) {
      this.area = current.start
      this.areaEnd = current.end
      this.oldArea = current.start
      return
    }
    if (current !== null && current.end === db.size && db.size === oldEnd) {
      this.area = current.start
      this.oldArea = current.start
    } else {
      if (current !== null) {
        // Its space is free from this transaction on.
        db.put(current.start + AT_REC_LEN, current.end - current.start - RECORD_HEADER)
        release(db, current.start)
      }
      this.area = db.size
      this.oldArea = current === null ? oldEnd : current.start
      db.put(AT_RECOVERY_START, this.area)
    }
    const needed = this.needed(oldEnd) + RECORD_HEADER
    const more = growth(db.size, needed)
    this.areaEnd = db.size + Math.floor(more / 4) * 4
    if (this.areaEnd > MAP_SIZE_MAX || this.areaEnd - this.area < needed) {
      throw db.fail("NOSPACE", `no space for a recovery area of ${needed} bytes`)
    }
  }

  private currentArea(oldEnd: number): { start: number; end: number } | null {
    const start = this.fileGet(AT_RECOVERY_START)
    if (start === 0 || (start & 3) !== 0 || start < this.db.dataStart || start + RECORD_HEADER > oldEnd) return null
    const magic = this.fileGet(start + AT_MAGIC) | 0
    if (magic !== RECOVERY_IDLE && magic !== RECOVERY_ACTIVE) return null
    const recLen = this.fileGet(start + AT_REC_LEN)
    const end = start + RECORD_HEADER + recLen
    return (recLen & 3) !== 0 || recLen < 4 || end > oldEnd ? null : { start, end }
  }

  // Upper bound of what the saved ranges take.
  private needed(oldEnd: number): number {
    // One block more for the header's, one range for what lies at the old end.
    let needed = 4 + 8 + RECORD_HEADER + 8 + BLOCK + 2 * 12
    const dirty = this.db.dirty!
    const blocks = Math.ceil(oldEnd / BLOCK)
    for (let block = 0; block < blocks; block++) if (dirty[block] === 1) needed += 16 + BLOCK
    return needed
  }

  // Grow the file and make the new space part of a valid old state, as an idle recovery area where there was none.
  private *makeArea(oldEnd: number): Pieces {
    yield* this.growFile(this.areaEnd)
    if (this.oldArea === oldEnd) {
      this.filePut("idle area next", oldEnd + AT_NEXT, 0)
      this.filePut("idle area rec_len", oldEnd + AT_REC_LEN, this.areaEnd - oldEnd - RECORD_HEADER)
      this.filePut("idle area recovery_start", AT_RECOVERY_START, oldEnd)
    } else if (this.area === this.oldArea) {
      this.filePut("larger area rec_len", this.area + AT_REC_LEN, this.areaEnd - this.area - RECORD_HEADER)
    }
  }

  // Parts of [from, to) outside the recovery area, whose bytes no block may touch.
  private outsideArea(from: number, to: number, ranges: Range[]): void {
    const left = Math.min(to, this.area)
    if (left > from) ranges.push({ offset: from, length: left - from })
    const right = Math.max(from, this.areaEnd)
    if (to > right) ranges.push({ offset: right, length: to - right })
  }

  // Also finds what is to be written. Neighbouring blocks make one range.
  private rangesToSave(oldEnd: number): Range[] {
    const db = this.db
    const dirty = db.dirty!
    const ranges: Range[] = []
    this.changed = []
    const blocks = Math.ceil(db.size / BLOCK)
    for (let block = dirty.indexOf(1); block !== -1 && block < blocks; ) {
      let end = block + 1
      while (end < blocks && dirty[end] === 1) end++
      const from = block * BLOCK
      this.outsideArea(from, Math.min(end * BLOCK, db.size), this.changed)
      if (from < oldEnd) this.outsideArea(from, Math.min(end * BLOCK, oldEnd), ranges)
      block = dirty.indexOf(1, end)
    }
    if (this.oldArea !== this.area) {
      // The block of recovery_start is saved even if nothing else in it changes: the old state may have another area.
      if (dirty[0] !== 1) ranges.unshift({ offset: 0, length: Math.min(BLOCK, oldEnd) })
      splitRecoveryStart(ranges)
    }
    // What follows the old end in the old state: an idle area's header, or zeros, and not a torn piece of the new one.
    if (db.size > oldEnd) this.outsideArea(oldEnd, oldEnd + RECORD_HEADER, ranges)
    // Recoveries write in this order: a recovery that is itself interrupted must still find the record.
    if (this.oldArea !== this.area) ranges.push({ offset: AT_RECOVERY_START, length: 4 })
    return ranges
  }

  // The longest run of bytes that is copied in one go. A crash test looks before every block.
  private get copyPiece(): number {
    return this.db.step === null ? COPY_PIECE : BLOCK
  }

  private *saveRanges(ranges: readonly Range[], at: number): Pieces {
    const db = this.db
    const piece = this.copyPiece
    let copied = 0
    for (const { offset, length } of ranges) {
      this.filePut("saved offset", at, offset)
      this.filePut("saved length", at + 4, length)
      at += 8
      for (let done = 0; done < length; done += piece) {
        const part = Math.min(piece, length - done)
        db.step?.(`save ${part} bytes of ${offset + done}`)
        db.backing.copy(offset + done, at + done, part)
        copied += part
        if (copied < piece) continue
        copied = 0
        yield null
      }
      at += length
    }
  }

  /** Make the changes permanent and end the transaction, also when it raises (IO, NOSPACE, LOCK). */
  commit(): void {
    const db = this.db
    if (this.nesting > 0) {
      this.nesting--
      return
    }
    const grown = db.size > this.startSize
    runNow(this.committing())
    if (grown && db.autoRepack && isFragmented(db)) {
      try {
        repack(db)
      } catch {
        // The commit is done; a failed repack only leaves the space as it is.
      }
    }
  }

  /** The same in pieces, of an outermost transaction and without what libtdb does after a commit that left the space in pieces. */
  *committingInPieces(): Pieces {
    this.inPieces = true
    yield* this.committing()
  }

  private *committing(): Pieces {
    try {
      yield* this.preparing()
      if (this.changed.length > 0) yield* this.writeBlocks()
    } catch (error) {
      try {
        yield* this.undoing()
      } finally {
        this.end()
      }
      throw error
    }
    const { size } = this.space
    if (this.inPieces && size > DISCARD_PIECE) {
      // Whoever reads from now on sees the file.
      this.leave()
      for (let from = 0; from < size; from += DISCARD_PIECE) {
        this.space.discard(from, DISCARD_PIECE)
        yield null
      }
    }
    this.end()
  }

  private *writeBlocks(): Pieces {
    const db = this.db
    const source = this.space.bytes
    const piece = this.copyPiece
    let copied = 0
    for (const { offset, length } of this.changed) {
      const end = offset + length
      for (let at = offset; at < end; at += piece) {
        const to = Math.min(at + piece, end)
        db.step?.(`write ${to - at} bytes of ${at}`)
        db.backing.store(source, at, to, at)
        copied += to - at
        if (copied < piece) continue
        copied = 0
        yield null
      }
    }
    db.step?.("sync 3")
    yield* syncing(db)
    db.backing.touch()
    this.filePut("recovery magic idle", this.area + AT_MAGIC, RECOVERY_IDLE)
    this.area = 0
    db.step?.("sync 4")
    yield* syncing(db)
    db.step?.("done")
  }

  /** Drop the changes and end the transaction (a nested one makes the outer commit fail). */
  cancel(): void {
    if (this.nesting > 0) {
      this.nesting--
      this.failed = true
      return
    }
    try {
      runNow(this.undoing())
    } finally {
      this.end()
    }
  }

  // After prepare, a cancel is a recovery: it also undoes blocks that were already written.
  private *undoing(): Pieces {
    const db = this.db
    if (this.area === 0 || !this.openLocked) return
    if (this.fileGet(AT_RECOVERY_START) === this.area && (this.fileGet(this.area + AT_MAGIC) | 0) === RECOVERY_ACTIVE) {
      this.leave()
      yield* recovering(db)
    }
  }

  private leave(): void {
    const db = this.db
    db.transaction = null
    db.dirty = null
    db.adopt()
  }

  // Only locks and views: the file is not touched.
  private end(): void {
    const db = this.db
    const pages: number[] = []
    const dirty = db.dirty
    if (dirty !== null) for (let i = dirty.indexOf(1); i !== -1; i = dirty.indexOf(1, i + 1)) pages.push(i)
    this.leave()
    db.refresh()
    this.count(0)
    if (dirty !== null && this.space.end(pages)) db.idleSpace = this.space
    else this.space.close()
    db.unlockFreelist()
    db.locks.unlockAllrecord()
    db.locks.unlockTransaction()
    if (this.openLocked) db.locks.unlockOpen()
  }

  /** The handle is being closed. */
  abandon(): void {
    this.nesting = 0
    this.cancel()
  }
}

/**
 * Start a transaction, or nest in the one that runs. False only with `wait` false: another process has one, or a chain. Raises EINVAL
 * (read-only), LOCK (chains locked, a walk under way), NESTING.
 */
export function startTransaction(db: Tdb, wait: boolean): boolean {
  if (db.readOnly || db.locks.forbidWrites) throw db.fail("EINVAL", "transaction on a handle that may not write")
  if (db.transaction !== null) {
    if ((db.flags & DISALLOW_NESTING) !== 0) throw db.fail("NESTING", "nested transaction")
    db.transaction.nesting++
    return true
  }
  if (db.locks.heldLists !== 0) throw db.fail("LOCK", "transaction while chains are locked")
  if (db.standing.length !== 0) throw db.fail("LOCK", "transaction inside a traverse")
  const locks = db.locks
  // Before the locks, which look into the header.
  db.look()
  if (!locks.lockTransaction(wait)) return false
  const marked = locks.allrecordCount !== 0
  for (;;) {
    let got = false
    try {
      got = locks.lockAllrecord(marked ? locks.allrecordWrite : false, wait, true)
    } finally {
      if (!got) locks.unlockTransaction()
    }
    if (!got) return false
    if (marked || locks.noLock || !db.needsRecovery()) break
    locks.unlockAllrecord()
    if (!db.repair(wait)) {
      locks.unlockTransaction()
      return false
    }
  }
  try {
    if (!locks.lock(FREELIST, true, wait)) {
      locks.unlockAllrecord()
      locks.unlockTransaction()
      return false
    }
    db.look()
    const space = db.idleSpace ?? db.backing.openPrivate()
    if (db.idleSpace !== null) space.begin()
    db.idleSpace = null
    db.transaction = new Transaction(db, space)
    db.adopt()
  } catch (error) {
    db.unlockFreelist()
    locks.unlockAllrecord()
    locks.unlockTransaction()
    throw error
  }
  return true
}

/** Is the free space in pieces, none of which is half of it (7.4 step 12)? */
function isFragmented(db: Tdb): boolean {
  if ((db.flags & INTERNAL) !== 0 || !db.lockFreelist(false)) return false
  try {
    let total = 0
    let largest = 0
    let offset = db.getUnsigned(AT_FREELIST)
    for (let steps = 0; offset !== 0 && steps < db.size / RECORD_HEADER; steps++) {
      if ((offset & 3) !== 0 || offset + RECORD_HEADER > db.size) return false
      const recLen = db.getUnsigned(offset + AT_REC_LEN)
      total += recLen
      if (recLen > largest) largest = recLen
      offset = db.getUnsigned(offset + AT_NEXT)
    }
    return total > 2 * largest
  } finally {
    db.unlockFreelist()
  }
}
