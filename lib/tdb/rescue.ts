// Getting records out of a file whose structure is broken (tdb-format.md 6.16): whatever looks like a live record is a candidate, and
// what lists and free space say decides between several of one key. It changes nothing.

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
  FREE,
  LIVE,
  RECORD_HEADER,
} from "./format.ts"
import { recoveryArea } from "./repack.ts"

/** Show every record that can be made out, linked ones first choice: `key` and `data` are copies. Returns how many. */
export function rescue(db: Tdb, found: (key: Uint8Array, data: Uint8Array) => void): number {
  const linked = linkedRecords(db)
  const free = freeRanges(db)
  const byKey = new Map<string, number[]>()
  for (let offset = db.dataStart; offset + RECORD_HEADER <= db.size; offset += 4) {
    if (db.get(offset + AT_MAGIC) !== LIVE || !looksLive(db, offset)) continue
    const start = offset + RECORD_HEADER
    const key = Buffer.from(db.b.buffer, db.b.byteOffset + start, db.getUnsigned(offset + AT_KEY_LEN)).toString(
      "latin1",
    )
    const offsets = byKey.get(key)
    if (offsets === undefined) byKey.set(key, [offset])
    else offsets.push(offset)
  }
  let count = 0
  for (const offsets of byKey.values()) {
    const inLists = offsets.filter((offset) => linked.has(offset))
    const chosen = inLists.length > 0 ? inLists : offsets.filter((offset) => !isInside(free, offset))
    for (const offset of chosen) {
      const dataStart = offset + RECORD_HEADER + db.getUnsigned(offset + AT_KEY_LEN)
      found(
        db.b.slice(offset + RECORD_HEADER, dataStart),
        db.b.slice(dataStart, dataStart + db.getUnsigned(offset + AT_DATA_LEN)),
      )
      count++
    }
  }
  return count
}

function looksLive(db: Tdb, offset: number): boolean {
  const recLen = db.getUnsigned(offset + AT_REC_LEN)
  const keyLength = db.getUnsigned(offset + AT_KEY_LEN)
  const dataLength = db.getUnsigned(offset + AT_DATA_LEN)
  const next = db.getUnsigned(offset + AT_NEXT)
  if ((recLen & 3) !== 0 || offset + RECORD_HEADER + recLen > db.size) return false
  if (keyLength + dataLength + 4 > recLen) return false
  if (next !== 0 && (next < db.dataStart || next + RECORD_HEADER > db.size)) return false
  const start = offset + RECORD_HEADER
  return (db.hash(db.b.subarray(start, start + keyLength)) | 0) === db.get(offset + AT_FULL_HASH)
}

function linkedRecords(db: Tdb): Set<number> {
  const linked = new Set<number>()
  for (let chain = 0; chain < db.hashSize; chain++) follow(db, AT_CHAINS + 4 * chain, linked)
  return linked
}

function follow(db: Tdb, head: number, met: Set<number>): void {
  let offset = db.getUnsigned(head)
  while (offset >= db.dataStart && (offset & 3) === 0 && offset + RECORD_HEADER <= db.size && !met.has(offset)) {
    met.add(offset)
    offset = db.getUnsigned(offset + AT_NEXT)
  }
}

// Sorted, disjoint enough: free records and the recovery area.
function freeRanges(db: Tdb): { start: number; end: number }[] {
  const free = new Set<number>()
  follow(db, AT_FREELIST, free)
  const ranges: { start: number; end: number }[] = []
  for (const start of free) {
    const end = start + RECORD_HEADER + db.getUnsigned(start + AT_REC_LEN)
    if (db.get(start + AT_MAGIC) === FREE && end <= db.size) ranges.push({ start, end })
  }
  const area = recoveryArea(db)
  if (area !== null) ranges.push(area)
  return ranges.sort((a, b) => a.start - b.start)
}

function isInside(ranges: readonly { start: number; end: number }[], offset: number): boolean {
  let low = 0
  let high = ranges.length - 1
  while (low <= high) {
    const middle = (low + high) >> 1
    const range = ranges[middle]!
    if (offset < range.start) high = middle - 1
    else if (offset >= range.end) low = middle + 1
    else return true
  }
  return false
}
