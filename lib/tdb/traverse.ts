// Walks over all records (tdb-format.md 6.12): in one go, or in bounded chunks between which the caller's event loop runs. A walk
// that pauses inside a chain keeps a record lock, so that nobody frees the record it stands on. Loops are errors here.

import { SysError } from "../sys/errno.ts"
import type { Tdb } from "./database.ts"
import { AT_CHAINS, AT_DATA_LEN, AT_FULL_HASH, AT_KEY_LEN, AT_MAGIC, AT_NEXT, LIVE, RECORD_HEADER } from "./format.ts"

/**
 * Sees one record in place. `bytes` is the whole map and must not be kept or changed; the record's chain is locked. Returns true to
 * end the walk.
 */
export type Visitor = (
  bytes: Uint8Array,
  keyStart: number,
  keyLength: number,
  dataStart: number,
  dataLength: number,
  // biome-ignore lint/suspicious/noConfusingVoidType: a visitor that never ends the walk returns nothing
) => boolean | void

/** Sees copies of one record with no chain locked, so that it may store and delete. Returns true to end the walk. */
// biome-ignore lint/suspicious/noConfusingVoidType: a visitor that never ends the walk returns nothing
export type RecordVisitor = (key: Uint8Array, data: Uint8Array) => boolean | void

/**
 * Loop detection over a chain that may change while a walk pauses. A dead record on which a walk stands can be reused at the head of
 * its chain, and the walk then meets records again: so after a change the detection starts anew.
 */
class ChainMemory {
  private mark = 0
  private steps = 0
  private limit = 2
  private head = 0
  private next = 0
  private magic = 0

  begin(): void {
    this.mark = 0
    this.steps = 0
    this.limit = 2
  }

  /** Note that the walk goes on to `offset`; false when it was there before. */
  step(offset: number): boolean {
    if (offset === this.mark) return false
    if (++this.steps === this.limit) {
      this.mark = offset
      this.limit *= 2
    }
    return true
  }

  pause(db: Tdb, chain: number, offset: number): void {
    this.head = db.get(AT_CHAINS + 4 * chain)
    this.next = db.get(offset + AT_NEXT)
    this.magic = db.get(offset + AT_MAGIC)
  }

  /** Where the walk goes on from the record it stood on: the chain is locked again. */
  resume(db: Tdb, chain: number, offset: number): number {
    db.checkRecord(offset)
    const head = AT_CHAINS + 4 * chain
    const same =
      db.get(head) === this.head && db.get(offset + AT_NEXT) === this.next && db.get(offset + AT_MAGIC) === this.magic
    if (same) return db.getUnsigned(offset + AT_NEXT)
    this.begin()
    // Dead records are reused whatever stands on them, even by another chain: then begin this chain again.
    const moved = db.chainOf(db.getUnsigned(offset + AT_FULL_HASH)) !== chain
    return db.getUnsigned(moved ? head : offset + AT_NEXT)
  }
}

/** A read walk. It sees every record that is there from beginning to end at least once, others perhaps. */
export class Walk {
  private chain = 0
  // The record to go on from, 0 at the start of a chain. While it is not 0 we hold its record lock.
  private at = 0
  private finished = false
  private readonly memory = new ChainMemory()

  constructor(private readonly db: Tdb) {
    // A file that was cut since we looked would be a bus error later.
    db.look()
  }

  /**
   * Visit at least one and about `records_max` records. Returns false when the walk is over. With `wait` false it returns as soon as
   * a chain is locked by somebody else, having visited fewer. Raises CORRUPT, IO.
   */
  next(records_max: number, visitor: Visitor, wait = true): boolean {
    const db = this.db
    if (this.finished) return false
    let left = records_max
    while (this.chain < db.hashSize) {
      const head = AT_CHAINS + 4 * this.chain
      // An unlocked look at the head passes by empty chains.
      if (this.at === 0 && db.w[head >>> 2] === 0) {
        this.chain++
        continue
      }
      if (!db.lockList(this.chain + 1, false, wait)) return true
      try {
        left = this.visitChain(head, left, visitor)
      } catch (error) {
        this.close()
        throw error
      } finally {
        db.locks.unlock(this.chain + 1)
      }
      if (this.finished) return false
      if (this.at === 0) this.chain++
      if (left <= 0 && this.chain < db.hashSize) return true
    }
    this.finished = true
    return false
  }

  // The chain is locked. Leaves `at` on a record when the chain is not done.
  private visitChain(head: number, budget: number, visitor: Visitor): number {
    const db = this.db
    let left = budget
    let offset = this.at === 0 ? this.enterChain(head) : this.resume()
    while (offset !== 0) {
      db.checkRecord(offset)
      if (db.get(offset + AT_MAGIC) === LIVE) {
        const keyLength = db.getUnsigned(offset + AT_KEY_LEN)
        const keyStart = offset + RECORD_HEADER
        left--
        if (visitor(db.b, keyStart, keyLength, keyStart + keyLength, db.getUnsigned(offset + AT_DATA_LEN)) === true) {
          this.finished = true
          return left
        }
      }
      const next = db.getUnsigned(offset + AT_NEXT)
      if (next === 0) break
      if (!this.memory.step(next)) throw db.fail("CORRUPT", "circular chain", offset)
      if (left <= 0) {
        this.stand(offset)
        return left
      }
      offset = next
    }
    return left
  }

  private enterChain(head: number): number {
    this.memory.begin()
    return this.db.getUnsigned(head)
  }

  private stand(offset: number): void {
    standOn(this.db, offset)
    this.memory.pause(this.db, this.chain, offset)
    this.at = offset
  }

  private resume(): number {
    const offset = this.at
    this.leaveRecord()
    return this.memory.resume(this.db, this.chain, offset)
  }

  private leaveRecord(): void {
    if (this.at === 0) return
    leaveRecord(this.db, this.at)
    this.at = 0
  }

  /** End the walk early. Needed only for a walk that did not reach its end. */
  close(): void {
    this.finished = true
    this.leaveRecord()
  }
}

function standOn(db: Tdb, offset: number): void {
  db.locks.lockRecord(offset)
  db.standing.push(offset)
}

function leaveRecord(db: Tdb, offset: number): void {
  const standing = db.standing
  standing.splice(standing.lastIndexOf(offset), 1)
  if (!standing.includes(offset)) {
    try {
      db.locks.unlockRecord(offset)
    } catch (error) {
      if (!(error instanceof SysError)) throw error
    }
  }
}

/** Visit all records in place; writes through this handle raise RDONLY meanwhile. Returns how many were visited. */
export function traverseRead(db: Tdb, visitor: Visitor): number {
  const walk = new Walk(db)
  const forbidden = db.locks.forbidWrites
  let count = 0
  const counting: Visitor = (bytes, keyStart, keyLength, dataStart, dataLength) => {
    count++
    return visitor(bytes, keyStart, keyLength, dataStart, dataLength)
  }
  db.locks.forbidWrites = true
  try {
    while (walk.next(Number.MAX_SAFE_INTEGER, counting)) {
      // one call does it all
    }
  } finally {
    db.locks.forbidWrites = forbidden
    walk.close()
  }
  return count
}

/**
 * Visit copies of all records with no chain locked; the visitor may store and delete. Holds the transaction lock throughout, so one
 * such walk runs at a time. Returns how many records were visited. Raises LOCK when the allrecord lock is only a read lock.
 */
export function traverse(db: Tdb, visitor: RecordVisitor): number {
  const locks = db.locks
  const reading = db.readOnly || db.transaction !== null
  if (!reading && !locks.lockTransaction(locks.allrecordCount === 0)) {
    throw db.fail("LOCK", "a transaction or traverse is under way")
  }
  db.look()
  let count = 0
  try {
    for (let chain = 0; chain < db.hashSize; chain++) {
      const result = traverseChain(db, chain, visitor)
      count += Math.abs(result)
      if (result < 0) break
    }
  } finally {
    if (!reading) locks.unlockTransaction()
  }
  return count
}

// Visited records of one chain; negative when the visitor ended the walk.
function traverseChain(db: Tdb, chain: number, visitor: RecordVisitor): number {
  const head = AT_CHAINS + 4 * chain
  if (db.w[head >>> 2] === 0) return 0
  let at = 0
  let visited = 0
  const memory = new ChainMemory()
  try {
    for (;;) {
      let key: Uint8Array | undefined
      let data: Uint8Array | undefined
      db.lockList(chain + 1, !db.readOnly, true)
      try {
        let offset: number
        if (at === 0) offset = db.getUnsigned(head)
        else {
          offset = memory.resume(db, chain, at)
          leaveRecord(db, at)
          at = 0
        }
        while (offset !== 0) {
          db.checkRecord(offset)
          if (!memory.step(offset)) throw db.fail("CORRUPT", "circular chain", offset)
          if (db.get(offset + AT_MAGIC) === LIVE) {
            const keyStart = offset + RECORD_HEADER
            const dataStart = keyStart + db.getUnsigned(offset + AT_KEY_LEN)
            key = db.b.slice(keyStart, dataStart)
            data = db.b.slice(dataStart, dataStart + db.getUnsigned(offset + AT_DATA_LEN))
            standOn(db, offset)
            memory.pause(db, chain, offset)
            at = offset
            break
          }
          offset = db.getUnsigned(offset + AT_NEXT)
        }
      } finally {
        db.locks.unlock(chain + 1)
      }
      if (key === undefined || data === undefined) return visited
      visited++
      if (visitor(key, data) === true) return -visited
    }
  } finally {
    if (at !== 0) leaveRecord(db, at)
  }
}

/** All keys, in the order of a walk. */
export function keys(db: Tdb): Uint8Array[] {
  const found: Uint8Array[] = []
  traverseRead(db, (bytes, keyStart, keyLength) => {
    found.push(bytes.slice(keyStart, keyStart + keyLength))
  })
  return found
}
