// Fills a database that was just wiped, inside a transaction: records are laid one behind the other into the free space, with no
// look for room and none for an older record. A recovery stores all records of a database in one go, and almost all of its time
// went to such looks. Single stores are in database.ts.

import { copyBytes } from "../sys/memory.ts"
import type { Tdb } from "./database.ts"
import {
  AT_CHAINS,
  AT_DATA_LEN,
  AT_FREELIST,
  AT_FULL_HASH,
  AT_KEY_LEN,
  AT_MAGIC,
  AT_NEXT,
  AT_REC_LEN,
  align4,
  growth,
  LIVE,
  MAP_SIZE_MAX,
  MIN_CARVE,
  RECORD_HEADER,
} from "./format.ts"
import { releaseRegion } from "./freelist.ts"
import type { Transaction } from "./transaction.ts"

/** A wiped database has free space in front of its recovery area and behind it; more pieces mean that it was not just wiped. */
const REGIONS_MAX = 4

/** Bytes of memory that are made ready at a time. */
const AHEAD = 64 * 1024

interface Region {
  readonly start: number
  readonly end: number
}

export class Filling {
  /** Where the next record goes, and where the free space ends. */
  private at = 0
  private to = 0
  /** Up to here pages are ready. */
  private ready = 0

  private constructor(
    private readonly db: Tdb,
    private readonly transaction: Transaction,
    /** Free space that was not touched yet, the last one first to be used. */
    private readonly regions: Region[],
  ) {}

  /** Takes the free space out of the database, which needs a transaction; undefined where single stores must do. */
  static begin(db: Tdb): Filling | undefined {
    const { transaction } = db
    if (transaction === null || db.swapped || db.countSequence) return undefined
    const regions: Region[] = []
    let offset = db.getUnsigned(AT_FREELIST)
    while (offset !== 0) {
      if (regions.length === REGIONS_MAX) return undefined
      regions.push({ start: offset, end: offset + RECORD_HEADER + db.getUnsigned(offset + AT_REC_LEN) })
      offset = db.getUnsigned(offset + AT_NEXT)
    }
    db.put(AT_FREELIST, 0)
    regions.sort((a, b) => b.start - a.start)
    return new Filling(db, transaction, regions)
  }

  /**
   * Adds a record; its key and data lie one behind the other in `source` from `from` on. Returns the offset of its data in the
   * database's bytes, which the caller may change in place at once, or 0 if there is a record with this key. Raises NOSPACE.
   * @param hash the database's hash of the key
   */
  add(source: Uint8Array, from: number, keyLength: number, dataLength: number, hash: number): number {
    const { db } = this
    const head = AT_CHAINS + 4 * db.chainOf(hash)
    const first = db.w[head >>> 2]!
    if (first !== 0 && this.has(first >>> 0, source, from, keyLength, hash)) return 0

    const length = keyLength + dataLength
    // The room that a single store would leave for the record to grow.
    let recLen = align4(Math.floor(length * 1.25) + 4)
    let offset = this.at
    let left = this.to - offset - RECORD_HEADER - recLen
    if (left < 0) {
      this.nextRegion(recLen)
      offset = this.at
      left = this.to - offset - RECORD_HEADER - recLen
    }
    // What is too small to be a free record goes to this one.
    if (left < MIN_CARVE) recLen += left
    const end = offset + RECORD_HEADER + recLen
    if (end > this.ready) this.makeReady(end)
    const { w, b } = db
    const i = offset >>> 2
    w[i + (AT_NEXT >>> 2)] = first
    w[i + (AT_REC_LEN >>> 2)] = recLen
    w[i + (AT_KEY_LEN >>> 2)] = keyLength
    w[i + (AT_DATA_LEN >>> 2)] = dataLength
    w[i + (AT_FULL_HASH >>> 2)] = hash | 0
    w[i + (AT_MAGIC >>> 2)] = LIVE
    copyBytes.call(source, b, offset + RECORD_HEADER, from, from + length)
    w[(end - 4) >>> 2] = RECORD_HEADER + recLen
    w[head >>> 2] = offset
    const dirty = db.dirty!
    dirty[head >>> 12] = 1
    for (let page = offset >>> 12, last = (end - 1) >>> 12; page <= last; page++) dirty[page] = 1
    this.at = end
    this.transaction.filled(RECORD_HEADER + recLen)
    return offset + RECORD_HEADER + keyLength
  }

  private makeReady(end: number): void {
    this.ready = Math.min(this.to, Math.max(end, this.at + AHEAD))
    this.db.transaction?.space.expectStores(this.at, this.ready - this.at)
  }

  private has(first: number, source: Uint8Array, from: number, keyLength: number, hash: number): boolean {
    const { w, b } = this.db
    const signed = hash | 0
    for (let offset = first; offset !== 0; offset = w[offset >>> 2]! >>> 0) {
      const i = offset >>> 2
      if (w[i + (AT_FULL_HASH >>> 2)] !== signed || w[i + (AT_KEY_LEN >>> 2)] !== keyLength) continue
      let same = 0
      while (same < keyLength && b[offset + RECORD_HEADER + same] === source[from + same]) same++
      if (same === keyLength) return true
    }
    return false
  }

  /** Goes on where a record of `recLen` bytes fits; the map grows if it must. */
  private nextRegion(recLen: number): void {
    const { db, regions } = this
    const needed = RECORD_HEADER + recLen
    for (;;) {
      const next = regions.pop()
      if (next === undefined) break
      this.give()
      this.at = next.start
      this.to = next.end
      if (this.to - this.at >= needed) return
    }
    const from = db.size
    const more = Math.floor(growth(from, needed) / 4) * 4
    if (from + more > MAP_SIZE_MAX || more < needed) {
      throw db.fail("NOSPACE", `map of ${from} bytes cannot grow by ${more}`)
    }
    db.grow(from + more)
    if (this.to !== from) {
      this.give()
      this.at = from
    }
    this.to = from + more
  }

  private give(): void {
    this.ready = 0
    if (this.to > this.at) releaseRegion(this.db, this.at, this.to)
    this.at = 0
    this.to = 0
  }

  /** Gives back the space that is left. Needed before the transaction is committed, and before anything else is stored. */
  end(): void {
    this.give()
    for (const { start, end } of this.regions.splice(0)) releaseRegion(this.db, start, end)
  }
}
