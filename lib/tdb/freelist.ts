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
  AT_RECOVERY_START,
  align4,
  DEAD,
  FREE,
  growth,
  LIVE,
  MAP_SIZE_MAX,
  MIN_CARVE,
  PAD,
  RECORD_HEADER,
  swap32,
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

const endOf = (db: Tdb, offset: number): number => offset + RECORD_HEADER + db.getUnsigned(offset + AT_REC_LEN)

function putTailer(db: Tdb, offset: number, recLen: number): void {
  db.put(offset + RECORD_HEADER + recLen - 4, RECORD_HEADER + recLen)
}

/*
 * libtdb merges a free record into its left neighbour before it takes it out of the list. If it is killed in between, the record is in
 * the list and inside of its neighbour, and whoever takes both hands the same bytes out twice; libtdb merges it a second time, over
 * what follows. Here such a record is only taken out of the list: by whoever meets it there, and before bytes that it lies in are handed
 * out, as its neighbour mostly comes first in the list.
 */

/** The free record that the tailer in front of `offset` tells of, 0 for none; where it ends is not looked at. */
function freeBefore(db: Tdb, offset: number): number {
  if (offset - 4 <= db.dataStart) return 0
  const total = db.getUnsigned(offset - 4)
  if (total === 0 || total === PAD || total > offset || offset - total < db.dataStart) return 0
  const left = offset - total
  if ((left & 3) !== 0 || total < RECORD_HEADER + 4) return 0
  if (db.get(left + AT_MAGIC) !== FREE) return 0
  // The recovery area has no tailer, and saved copies of free records inside.
  const area = db.getUnsigned(AT_RECOVERY_START)
  return area !== 0 && area < left && area + RECORD_HEADER <= db.size && left < endOf(db, area) ? 0 : left
}

/** A record that its left neighbour covers already: somebody died before it was taken out of the list. */
const MERGED = -1

/** Offset of the free record that ends where `offset` starts, 0 when its left neighbour is not free, or MERGED. */
function neighbourOf(db: Tdb, offset: number): number {
  const left = freeBefore(db, offset)
  if (left === 0) return 0
  const end = endOf(db, left)
  if (end > offset) {
    if (end === endOf(db, offset)) putTailer(db, left, end - left - RECORD_HEADER)
    return MERGED
  }
  // A stale tailer (behind a recovery area) may point anywhere: believe it only if the record agrees.
  if (end !== offset) return 0
  // One that is merged itself, before its neighbour had a tailer.
  const outer = freeBefore(db, left)
  return outer !== 0 && endOf(db, outer) === offset ? outer : left
}

/** The same of what is in no list. */
function freeLeftOf(db: Tdb, offset: number): number {
  return Math.max(0, neighbourOf(db, offset))
}

/** Take a record out of the free list. False: it is not in it. */
function unlist(db: Tdb, wanted: number): boolean {
  let last = AT_FREELIST
  let offset = db.getUnsigned(last)
  const most = db.size / RECORD_HEADER
  let steps = 0
  while (offset !== 0 && steps++ < most && (offset & 3) === 0 && offset + RECORD_HEADER <= db.size) {
    if (offset === wanted) {
      db.put(last, db.get(offset + AT_NEXT))
      return true
    }
    last = offset + AT_NEXT
    offset = db.getUnsigned(last)
  }
  if (steps > LONG_LIST) db.put(wanted + AT_MAGIC, 0)
  return false
}

/** A list of so many records is not walked again for the same trace of an older record. */
const LONG_LIST = 256

/** Take a record out of the free list whose header lies in bytes that are about to be handed out. False: there is none. */
function unlistInside(db: Tdb, from: number, to: number): boolean {
  const { w } = db
  const free = db.swapped ? swap32(FREE) : FREE
  for (let i = from >>> 2, end = to >>> 2; i < end; i++) {
    // Mostly it is what a merge has left behind.
    if (w[i] === free && unlist(db, 4 * i - AT_MAGIC)) return true
  }
  return false
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

// Check a record of the free list. False: it has no business there, but is somebody's. A live magic without contents is an interrupted
// allocation or release and is put right.
function isFree(db: Tdb, offset: number): boolean {
  if ((offset & 3) !== 0 || offset < db.dataStart) throw db.fail("CORRUPT", "free record outside the records", offset)
  db.reach(offset + RECORD_HEADER)
  const magic = db.get(offset + AT_MAGIC)
  const recLen = db.getUnsigned(offset + AT_REC_LEN)
  if (magic !== FREE && magic !== LIVE) {
    throw db.fail("CORRUPT", `bad magic 0x${(magic >>> 0).toString(16)} of a free record`, offset)
  }
  if ((recLen & 3) !== 0 || recLen < 4) throw db.fail("CORRUPT", `free record of ${recLen} bytes`, offset)
  db.reach(offset + RECORD_HEADER + recLen)
  if (magic === LIVE) {
    if (hasContents(db, offset, recLen)) return false
    if (!db.readOnly) db.put(offset + AT_MAGIC, FREE)
  }
  return true
}

function hasContents(db: Tdb, offset: number, recLen: number): boolean {
  const keyLength = db.getUnsigned(offset + AT_KEY_LEN)
  const dataLength = db.getUnsigned(offset + AT_DATA_LEN)
  if (keyLength + dataLength + 4 > recLen) return false
  const key = db.b.subarray(offset + RECORD_HEADER, offset + RECORD_HEADER + keyLength)
  return (db.hash(key) | 0) === db.get(offset + AT_FULL_HASH)
}

// Best fit from the free list, which may have to grow. The freelist is locked.
function takeFree(db: Tdb, length: number): number {
  const want = align4(Math.floor(length * 1.25) + 4)
  if (want + RECORD_HEADER > MAP_SIZE_MAX) throw db.fail("NOSPACE", `record of ${length} bytes`)
  let grown = false
  let into = 0
  for (;;) {
    const offset = scanFree(db, want)
    if (offset > 0) return offset
    if (offset < 0) continue
    if (grown) {
      // What was just added went into a free record that is in no list, as somebody died before it was: more would go the same way.
      if (into === 0 || unlist(db, into)) {
        throw db.fail("CORRUPT", "free list does not hold the space just added", AT_FREELIST)
      }
      link(db, into)
      into = 0
      continue
    }
    into = expand(db, want + RECORD_HEADER)
    grown = true
  }
}

// One pass over the free list: the offset of the space taken, 0 for nothing that fits, -1 to scan again after merges and repairs.
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
    const free = isFree(db, offset)
    const recLen = db.getUnsigned(offset + AT_REC_LEN)
    const next = db.getUnsigned(offset + AT_NEXT)
    const left = neighbourOf(db, offset)
    if (!free || left === MERGED) db.put(last, next)
    else if (left !== 0) {
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

// The same result, but for nothing that fits.
function carve(db: Tdb, offset: number, last: number, recLen: number, want: number): number {
  const end = offset + RECORD_HEADER + recLen
  if (recLen < want + MIN_CARVE) {
    if (unlistInside(db, offset + RECORD_HEADER, end)) return -1
    db.put(last, db.get(offset + AT_NEXT))
    // Of the record that it was, which may have been longer: a kill before the new ones are there leaves a whole record.
    db.put(offset + AT_KEY_LEN, 0)
    db.put(offset + AT_DATA_LEN, 0)
    db.put(offset + AT_MAGIC, LIVE)
    // Somebody may have died in a merge before it had one.
    putTailer(db, offset, recLen)
    return offset
  }
  const rest = recLen - want - RECORD_HEADER
  const taken = offset + RECORD_HEADER + rest
  if (unlistInside(db, taken, end)) return -1
  // The one store of rec_len splits the record: before it nothing has changed, after it both halves have headers.
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

// More map, as one free record or as part of the last one, whose offset is returned, else 0. The freelist is locked.
function expand(db: Tdb, needed: number): number {
  if (db.transaction === null) db.refresh()
  const from = db.size
  if ((from & 3) !== 0) throw db.fail("CORRUPT", `map of ${from} bytes is not a multiple of 4`)
  const more = Math.floor(growth(from, needed) / 4) * 4
  if (from + more > MAP_SIZE_MAX || more < needed) {
    throw db.fail("NOSPACE", `map of ${from} bytes cannot grow by ${more}`)
  }
  db.grow(from + more)
  return releaseRegion(db, from, from + more)
}

/**
 * Make [from, to) one free record, if it is large enough to be one, or add it to a free left neighbour, whose offset is returned, else 0.
 * The freelist is locked.
 */
export function releaseRegion(db: Tdb, from: number, to: number): number {
  if (to - from <= RECORD_HEADER) return 0
  const recLen = to - from - RECORD_HEADER
  putTailer(db, from, recLen)
  const left = freeLeftOf(db, from)
  if (left !== 0) {
    mergeInto(db, left, recLen)
    return left
  }
  db.put(from + AT_REC_LEN, recLen)
  db.put(from + AT_KEY_LEN, 0)
  db.put(from + AT_DATA_LEN, 0)
  db.put(from + AT_FULL_HASH, 0)
  link(db, from)
  return 0
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
      const free = isFree(db, offset)
      const next = db.getUnsigned(offset + AT_NEXT)
      const left = db.readOnly ? 0 : neighbourOf(db, offset)
      if (!db.readOnly && (!free || left === MERGED)) db.put(last, next)
      else if (left !== 0) {
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
