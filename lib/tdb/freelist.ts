// Space for records: the free list, its merging, reuse of dead records, and growth of the file (tdb-format.md 6.4 to 6.9). The same
// choices as libtdb makes, so that a history gives the same file. All callers hold the lock of the chain they work for.

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
  DEAD,
  FREE,
  growth,
  LIVE,
  MAP_SIZE_MAX,
  MIN_CARVE,
  PAD,
  RECORD_HEADER,
} from "./format.ts"

/** Space for `length` bytes of key and data: the offset of a record whose rec_len and tailer are set. Raises NOSPACE, CORRUPT. */
export function allocate(db: Tdb, hash: number, length: number): number {
  const ownChain = db.chainOf(hash)
  if (db.maxDead > 0) {
    const hashSize = db.hashSize
    for (let i = 0; i < hashSize; i++) {
      let chain = ownChain + i
      if (chain >= hashSize) chain -= hashSize
      if (i === 0 || db.locks.lock(chain + 1, true, false)) {
        const dead = takeDead(db, chain, length)
        if (i !== 0) db.locks.unlock(chain + 1)
        if (dead !== 0) return dead
      }
      if (db.lockFreelist(false)) return allocateFree(db, ownChain, length)
    }
  }
  db.lockFreelist(true)
  return allocateFree(db, ownChain, length)
}

// The freelist is locked; unlocks it.
function allocateFree(db: Tdb, chain: number, length: number): number {
  try {
    trimDead(db, chain, 0)
    return takeFree(db, length)
  } finally {
    db.unlockFreelist()
  }
}

// The smallest dead record of a locked chain that fits, unlinked; 0 for none.
function takeDead(db: Tdb, chain: number, length: number): number {
  let last = AT_CHAINS + 4 * chain
  let offset = db.getUnsigned(last)
  let best = 0
  let bestLast = 0
  let bestLength = 0
  let mark = 0
  let steps = 0
  let limit = 2
  while (offset !== 0) {
    db.checkRecord(offset)
    if (db.get(offset + AT_MAGIC) === DEAD) {
      const recLen = db.getUnsigned(offset + AT_REC_LEN)
      if (recLen >= length + 4 && (best === 0 || recLen < bestLength)) {
        best = offset
        bestLast = last
        bestLength = recLen
      }
    }
    last = offset + AT_NEXT
    offset = db.getUnsigned(last)
    if (offset === mark && offset !== 0) throw db.fail("CORRUPT", "circular chain", offset)
    if (++steps === limit) {
      mark = offset
      limit *= 2
    }
  }
  if (best === 0 || db.standing.includes(best)) return 0
  db.put(bestLast, db.get(best + AT_NEXT))
  return best
}

/** Give the dead records of a write-locked chain back, except the first `keep` and those on which somebody stands. */
export function trimDead(db: Tdb, chain: number, keep: number): void {
  let last = AT_CHAINS + 4 * chain
  let offset = db.getUnsigned(last)
  let dead = 0
  let haveFreelist = false
  let mark = 0
  let steps = 0
  let limit = 2
  try {
    while (offset !== 0) {
      db.checkRecord(offset)
      const next = db.getUnsigned(offset + AT_NEXT)
      let unlinked = false
      if (db.get(offset + AT_MAGIC) === DEAD && ++dead > keep) {
        if (!haveFreelist) haveFreelist = db.lockFreelist(true)
        if (!db.standing.includes(offset) && db.locks.probeRecord(offset)) {
          db.put(last, next)
          release(db, offset)
          unlinked = true
        }
      }
      if (!unlinked) last = offset + AT_NEXT
      offset = next
      if (offset === mark && offset !== 0) throw db.fail("CORRUPT", "circular chain", offset)
      if (++steps === limit) {
        mark = offset
        limit *= 2
      }
    }
  } finally {
    if (haveFreelist) db.unlockFreelist()
  }
}

function putTailer(db: Tdb, offset: number, recLen: number): void {
  db.put(offset + RECORD_HEADER + recLen - 4, RECORD_HEADER + recLen)
}

/** Offset of the free record that ends where `offset` starts, 0 when its left neighbour is not free. */
function freeLeftOf(db: Tdb, offset: number): number {
  if (offset - 4 <= db.dataStart) return 0
  const total = db.getUnsigned(offset - 4)
  if (total === 0 || total === PAD || total > offset || offset - total < db.dataStart) return 0
  const left = offset - total
  if ((left & 3) !== 0 || total < RECORD_HEADER + 4) return 0
  // A stale tailer (behind a recovery area) may point anywhere: believe it only if the record agrees.
  if (db.get(left + AT_MAGIC) !== FREE || db.getUnsigned(left + AT_REC_LEN) + RECORD_HEADER !== total) return 0
  return left
}

/** Put a region whose rec_len is set on the free list, or add it to a free left neighbour. The freelist is locked. */
export function release(db: Tdb, offset: number): void {
  const recLen = db.getUnsigned(offset + AT_REC_LEN)
  if ((recLen & 3) !== 0 || recLen < 4) throw db.fail("CORRUPT", `record of ${recLen} bytes`, offset)
  putTailer(db, offset, recLen)
  const left = freeLeftOf(db, offset)
  if (left !== 0) {
    mergeInto(db, left, recLen)
    return
  }
  link(db, offset)
}

function link(db: Tdb, offset: number): void {
  db.put(offset + AT_NEXT, db.get(AT_FREELIST))
  db.put(offset + AT_MAGIC, FREE)
  db.put(AT_FREELIST, offset)
}

function mergeInto(db: Tdb, left: number, recLen: number): number {
  const merged = db.getUnsigned(left + AT_REC_LEN) + RECORD_HEADER + recLen
  db.put(left + AT_REC_LEN, merged)
  putTailer(db, left, merged)
  return merged
}

// Check a record of the free list; a live magic there is an interrupted allocation or release and is put right.
function checkFree(db: Tdb, offset: number): void {
  if ((offset & 3) !== 0 || offset < db.dataStart) throw db.fail("CORRUPT", "free record outside the records", offset)
  db.reach(offset + RECORD_HEADER)
  const magic = db.get(offset + AT_MAGIC)
  if (magic !== FREE) {
    if (magic !== LIVE) throw db.fail("CORRUPT", `bad magic 0x${(magic >>> 0).toString(16)} of a free record`, offset)
    if (!db.readOnly) db.put(offset + AT_MAGIC, FREE)
  }
  const recLen = db.getUnsigned(offset + AT_REC_LEN)
  if ((recLen & 3) !== 0 || recLen < 4) throw db.fail("CORRUPT", `free record of ${recLen} bytes`, offset)
  db.reach(offset + RECORD_HEADER + recLen)
}

// Best fit from the free list, which may have to grow. The freelist is locked.
function takeFree(db: Tdb, length: number): number {
  const want = align4(Math.floor(length * 1.25) + 4)
  if (want + RECORD_HEADER > MAP_SIZE_MAX) throw db.fail("NOSPACE", `record of ${length} bytes`)
  let grown = false
  for (;;) {
    const offset = scanFree(db, want)
    if (offset > 0) return offset
    if (offset < 0) continue
    // What was just added went into a free record that is in no list: more would go the same way.
    if (grown) throw db.fail("CORRUPT", "free list does not hold the space just added", AT_FREELIST)
    expand(db, want + RECORD_HEADER)
    grown = true
  }
}

// One pass over the free list: the offset of the space taken, 0 for nothing that fits, -1 to scan again after merges.
function scanFree(db: Tdb, want: number): number {
  let last = AT_FREELIST
  let offset = db.getUnsigned(last)
  let best = 0
  let bestLast = 0
  let bestLength = 0
  let candidate = false
  let multiplier = 1
  let mark = 0
  let steps = 0
  let limit = 2
  while (offset !== 0) {
    checkFree(db, offset)
    const recLen = db.getUnsigned(offset + AT_REC_LEN)
    const next = db.getUnsigned(offset + AT_NEXT)
    const left = freeLeftOf(db, offset)
    if (left !== 0) {
      // Unlink first: a kill in between leaks it, where the other order would leave its space in the list twice.
      db.put(last, next)
      const merged = mergeInto(db, left, recLen)
      if (left === best) bestLength = merged
      if (merged > want) candidate = true
    } else {
      if (recLen >= want && (best === 0 || recLen < bestLength)) {
        best = offset
        bestLast = last
        bestLength = recLen
      }
      if (best !== 0 && Math.fround(bestLength) < Math.fround(Math.fround(want) * multiplier)) break
      last = offset + AT_NEXT
      multiplier = Math.fround(multiplier * 1.05)
    }
    offset = next
    if (offset === mark && offset !== 0) throw db.fail("CORRUPT", "circular freelist", offset)
    if (++steps === limit) {
      mark = offset
      limit *= 2
    }
  }
  if (best !== 0) return carve(db, best, bestLast, bestLength, want)
  return candidate ? -1 : 0
}

function carve(db: Tdb, offset: number, last: number, recLen: number, want: number): number {
  if (recLen < want + MIN_CARVE) {
    db.put(last, db.get(offset + AT_NEXT))
    db.put(offset + AT_MAGIC, LIVE)
    return offset
  }
  const rest = recLen - want - RECORD_HEADER
  // The one store of rec_len splits the record: before it nothing has changed, after it both halves have headers.
  const taken = offset + RECORD_HEADER + rest
  db.put(taken + AT_NEXT, 0)
  db.put(taken + AT_REC_LEN, want)
  db.put(taken + AT_KEY_LEN, 0)
  db.put(taken + AT_DATA_LEN, 0)
  db.put(taken + AT_FULL_HASH, 0)
  db.put(taken + AT_MAGIC, LIVE)
  putTailer(db, offset, rest)
  db.put(offset + AT_REC_LEN, rest)
  putTailer(db, taken, want)
  return taken
}

// More map, as one free record. The freelist is locked.
function expand(db: Tdb, needed: number): void {
  if (db.transaction === null) db.refresh()
  const from = db.size
  if ((from & 3) !== 0) throw db.fail("CORRUPT", `map of ${from} bytes is not a multiple of 4`)
  const more = Math.floor(growth(from, needed) / 4) * 4
  if (from + more > MAP_SIZE_MAX || more < needed) {
    throw db.fail("NOSPACE", `map of ${from} bytes cannot grow by ${more}`)
  }
  db.grow(from + more)
  releaseRegion(db, from, from + more)
}

/** Make [from, to) one free record, if it is large enough to be one. The freelist is locked. */
export function releaseRegion(db: Tdb, from: number, to: number): void {
  if (to - from <= RECORD_HEADER) return
  const recLen = to - from - RECORD_HEADER
  putTailer(db, from, recLen)
  const left = freeLeftOf(db, from)
  if (left !== 0) {
    mergeInto(db, left, recLen)
    return
  }
  db.put(from + AT_REC_LEN, recLen)
  db.put(from + AT_KEY_LEN, 0)
  db.put(from + AT_DATA_LEN, 0)
  db.put(from + AT_FULL_HASH, 0)
  link(db, from)
}

/**
 * Merge free neighbours and count the free records visited, merged ones included (libtdb: tdb_freelist_size). Takes the freelist
 * for writing, where libtdb takes it for reading (6.9).
 */
export function freelistSize(db: Tdb): number {
  if (!db.readOnly) db.lockFreelist(true)
  try {
    let last = AT_FREELIST
    let offset = db.getUnsigned(last)
    let count = 0
    let mark = 0
    let limit = 2
    while (offset !== 0) {
      checkFree(db, offset)
      const next = db.getUnsigned(offset + AT_NEXT)
      const left = db.readOnly ? 0 : freeLeftOf(db, offset)
      if (left !== 0) {
        db.put(last, next)
        mergeInto(db, left, db.getUnsigned(offset + AT_REC_LEN))
      } else last = offset + AT_NEXT
      offset = next
      if (offset === mark && offset !== 0) throw db.fail("CORRUPT", "circular freelist", offset)
      if (++count === limit) {
        mark = offset
        limit *= 2
      }
    }
    return count
  } finally {
    if (!db.readOnly) db.unlockFreelist()
  }
}
