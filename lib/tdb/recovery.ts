// Undoing a commit that somebody died in (tdb-format.md 7.5), at open and by whoever meets it later. It differs from libtdb in what
// stays behind: an area made by that very commit is kept, and space that the commit had added is given back.

import { SysError } from "../sys/errno.ts"
import { BLOCK } from "./backing.ts"
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
import { type Pieces, runNow } from "./pieces.ts"

/** Bytes copied before others may have a turn. */
const COPY_PIECE = 1 << 20

const asIO = (db: Tdb, error: unknown): unknown => (error instanceof SysError ? db.fail("IO", error.message) : error)

/** Sync the file unless the handle says not to. Raises IO. */
export function* syncing(db: Tdb): Pieces {
  if (db.noSync || !db.backing.onDisk) return
  yield {
    block: () => {
      try {
        db.backing.sync()
      } catch (error) {
        throw asIO(db, error)
      }
    },
    later: (done) => {
      db.backing.syncLater((error) => done(error === null ? null : asIO(db, error)))
      return () => {}
    },
  }
}

/**
 * Write the saved blocks back if the recovery record is active; true when there was something to do. The caller holds the OPEN lock
 * (and RECOVERY, when others have the file open) and the view is the file's own. Raises CORRUPT for a record that cannot be one.
 */
export function recover(db: Tdb): boolean {
  return runNow(recovering(db))
}

/** Bytes that `recover` would have to write back, 0 when there is nothing to do. */
export function recoverySize(db: Tdb): number {
  return db.needsRecovery() ? db.getUnsigned(db.getUnsigned(AT_RECOVERY_START) + AT_DATA_LEN) : 0
}

/** The same in pieces. */
export function* recovering(db: Tdb): Pieces<boolean> {
  if (!db.needsRecovery()) return false
  if (db.readOnly) throw db.fail("CORRUPT", "needs recovery from a commit that died, and is open read-only")
  const start = db.getUnsigned(AT_RECOVERY_START)
  const capacity = db.getUnsigned(start + AT_REC_LEN)
  const used = db.getUnsigned(start + AT_DATA_LEN)
  const savedEnd = db.getUnsigned(start + AT_KEY_LEN)
  const areaEnd = start + RECORD_HEADER + capacity
  if (used < 4 || used > capacity || areaEnd > db.size) {
    throw db.fail("CORRUPT", `recovery record of ${used} bytes in ${capacity}`, start)
  }
  const saved = readSaved(db, start, used)
  // The recovery record's own header, which is idle there, and the word that points to it may say that there is nothing to do:
  // written last, a kill before it loses nothing. Any other part of the area would spoil what is still to be read.
  const own: { offset: number; bytes: Uint8Array }[] = []
  const last: { offset: number; bytes: Uint8Array }[] = []
  // A crash test looks before every block, and has turns of the loop after every one.
  const piece = db.step === null ? COPY_PIECE : BLOCK
  let copied = 0
  const edges = [AT_RECOVERY_START, AT_RECOVERY_START + 4, start, start + RECORD_HEADER, areaEnd]
  for (const { offset, at, length } of saved.flatMap((block) => cut(block, edges))) {
    if (offset === AT_RECOVERY_START || (offset >= start && offset < start + RECORD_HEADER)) {
      last.push({ offset, bytes: db.b.slice(at, at + length) })
      continue
    }
    if (offset >= start && offset < areaEnd) {
      own.push({ offset, bytes: db.b.slice(at, at + length) })
      continue
    }
    for (let done = 0; done < length; done += piece) {
      const part = Math.min(piece, length - done)
      db.step?.(`recovery writes ${part} bytes of ${offset + done}`)
      db.b.copyWithin(offset + done, at + done, at + done + part)
      copied += part
      if (copied < piece) continue
      copied = 0
      yield null
    }
  }
  for (const { offset, bytes } of [...own, ...last]) {
    db.step?.(`recovery writes block ${offset}, of the recovery record`)
    db.b.set(bytes, offset)
  }
  yield* syncing(db)
  yield* finish(db, start, capacity, savedEnd)
  yield* syncing(db)
  return true
}

interface SavedBlock {
  readonly offset: number
  /** Where its old bytes are. */
  readonly at: number
  readonly length: number
}

// A run of blocks may be as long as the database: only its parts that need special care are to be copied to memory.
function cut(block: SavedBlock, edges: readonly number[]): SavedBlock[] {
  const parts: SavedBlock[] = []
  let { offset, at, length } = block
  for (const edge of edges) {
    const left = edge - offset
    if (left <= 0 || left >= length) continue
    parts.push({ offset, at, length: left })
    offset += left
    at += left
    length -= left
  }
  parts.push({ offset, at, length })
  return parts
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
    blocks.push({ offset, at: at + 8, length })
    at += 8 + length
  }
  return blocks
}

function* finish(db: Tdb, start: number, capacity: number, savedEnd: number): Pieces {
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
    yield* syncing(db)
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
