// Undoing a commit that somebody died in (tdb-format.md 7.5), at open and by whoever meets it later. It differs from libtdb in what
// stays behind: an area made by that very commit is kept, and space that the commit had added is given back.

import { SysError } from "../sys/errno.ts"
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
  FREE,
  RECORD_HEADER,
  RECOVERY_IDLE,
} from "./format.ts"

/** Sync the file unless the handle says not to. Raises IO. */
export function sync(db: Tdb): void {
  if (db.noSync) return
  try {
    db.backing.sync()
  } catch (error) {
    if (error instanceof SysError) throw db.fail("IO", error.message)
    throw error
  }
}

/**
 * Write the saved blocks back if the recovery record is active; true when there was something to do. The caller holds the OPEN lock
 * (and RECOVERY, when others have the file open) and the view is the file's own. Raises CORRUPT for a record that cannot be one.
 */
export function recover(db: Tdb): boolean {
  if (!db.needsRecovery()) return false
  if (db.readOnly) throw db.fail("CORRUPT", "needs recovery from a commit that died, and is open read-only")
  const start = db.getUnsigned(AT_RECOVERY_START)
  const capacity = db.getUnsigned(start + AT_REC_LEN)
  const used = db.getUnsigned(start + AT_DATA_LEN)
  const savedEnd = db.getUnsigned(start + AT_KEY_LEN)
  if (used < 4 || used > capacity || start + RECORD_HEADER + capacity > db.size) {
    throw db.fail("CORRUPT", `recovery record of ${used} bytes in ${capacity}`, start)
  }
  const saved = readSaved(db, start, used)
  // What holds the recovery record's own header, which is idle there, or the word that points to it, may say that there is nothing
  // to do: written last, a kill before it loses nothing.
  const holds = (block: SavedBlock, from: number, to: number): boolean =>
    block.offset < to && block.offset + block.bytes.length > from
  const own = saved.filter(
    (block) => holds(block, start, start + RECORD_HEADER) || holds(block, AT_RECOVERY_START, AT_RECOVERY_START + 4),
  )
  for (const block of saved) {
    if (own.includes(block)) continue
    db.step?.(`recovery writes block ${block.offset}`)
    db.b.set(block.bytes, block.offset)
  }
  for (const block of own) {
    db.step?.(`recovery writes block ${block.offset}, which holds or names the recovery record`)
    db.b.set(block.bytes, block.offset)
  }
  sync(db)
  finish(db, start, capacity, savedEnd)
  sync(db)
  return true
}

interface SavedBlock {
  readonly offset: number
  readonly bytes: Uint8Array
}

function readSaved(db: Tdb, start: number, used: number): SavedBlock[] {
  const blocks: SavedBlock[] = []
  const view = new DataView(db.b.buffer, db.b.byteOffset)
  const little = !db.swapped
  const from = start + RECORD_HEADER
  const end = from + used - 4
  let at = from
  while (at + 8 <= end) {
    const offset = view.getUint32(at, little)
    const length = view.getUint32(at + 4, little)
    if (at + 8 + length > end || offset + length > db.size) {
      throw db.fail("CORRUPT", `recovery record saves ${length} bytes of offset ${offset}`, at)
    }
    blocks.push({ offset, bytes: db.b.slice(at + 8, at + 8 + length) })
    at += 8 + length
  }
  return blocks
}

function finish(db: Tdb, start: number, capacity: number, savedEnd: number): void {
  const size = db.size
  if (savedEnd < start && savedEnd >= db.dataStart && (savedEnd & 3) === 0) {
    // libtdb's first commit, which had also grown the map: everything behind the old end becomes one idle recovery area. The one
    // store of recovery_start ends the recovery.
    db.step?.("recovery writes the header of the widened area")
    db.put(savedEnd + AT_NEXT, 0)
    db.put(savedEnd + AT_REC_LEN, size - savedEnd - RECORD_HEADER)
    db.put(savedEnd + AT_KEY_LEN, 0)
    db.put(savedEnd + AT_DATA_LEN, 0)
    db.put(savedEnd + AT_FULL_HASH, 0)
    db.put(savedEnd + AT_MAGIC, RECOVERY_IDLE)
    sync(db)
    db.step?.("recovery points to the widened area")
    db.put(AT_RECOVERY_START, savedEnd)
    return
  }
  if (savedEnd <= start && db.getUnsigned(AT_RECOVERY_START) === 0) db.put(AT_RECOVERY_START, start)
  if (savedEnd > start + RECORD_HEADER + capacity || savedEnd > start) reclaimTail(db, savedEnd, size)
  db.step?.("recovery makes the area idle")
  db.put(start + AT_MAGIC, RECOVERY_IDLE)
}

// Space behind the old end that the dead commit had added: a free record of its own, linked once however often we are interrupted.
function reclaimTail(db: Tdb, from: number, to: number): void {
  if (to - from <= RECORD_HEADER || (from & 3) !== 0 || from < db.dataStart) return
  let offset = db.getUnsigned(AT_FREELIST)
  for (let steps = 0; offset !== 0 && steps < to / RECORD_HEADER; steps++) {
    if (offset === from) return
    if ((offset & 3) !== 0 || offset + RECORD_HEADER > to) return
    offset = db.getUnsigned(offset + AT_NEXT)
  }
  const recLen = to - from - RECORD_HEADER
  if ((recLen & 3) !== 0) return
  db.step?.("recovery gives back the space behind the old end")
  db.put(from + AT_REC_LEN, recLen)
  db.put(from + RECORD_HEADER + recLen - 4, RECORD_HEADER + recLen)
  db.put(from + AT_NEXT, db.get(AT_FREELIST))
  db.put(from + AT_MAGIC, FREE)
  db.put(AT_FREELIST, from)
}
