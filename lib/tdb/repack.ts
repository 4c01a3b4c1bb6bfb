// Operations on all records at once: wiping a database, and writing it anew without gaps (tdb-format.md 6.13, 6.14).

import type { Tdb } from "./database.ts"
import {
  AT_CHAINS,
  AT_FREELIST,
  AT_MAGIC,
  AT_REC_LEN,
  AT_RECOVERY_START,
  RECORD_HEADER,
  RECOVERY_ACTIVE,
  RECOVERY_IDLE,
} from "./format.ts"
import { releaseRegion } from "./freelist.ts"
import { restoreHeader } from "./header.ts"
import { openMemory } from "./open.ts"
import { traverseRead } from "./traverse.ts"

/** Forget all records: everything but the recovery area becomes free space. In a transaction a damaged header is set right. */
export function wipe(db: Tdb): void {
  db.lockAllrecord(true)
  try {
    db.lockFreelist(true)
    try {
      db.look()
      db.forget()
      if (db.transaction !== null) restoreHeader(db)
      clearChains(db)
      db.put(AT_FREELIST, 0)
      const area = recoveryArea(db)
      if (area === null) releaseRegion(db, db.dataStart, db.size)
      else {
        releaseRegion(db, db.dataStart, area.start)
        releaseRegion(db, area.end, db.size)
      }
      if (db.countSequence) db.incrementSequence()
    } finally {
      db.unlockFreelist()
    }
  } finally {
    db.unlockAllrecord()
  }
}

/** All chains at once: one by one, in code that is cold, they took longer than anything else. */
function clearChains(db: Tdb): void {
  const from = AT_CHAINS
  const to = AT_CHAINS + 4 * db.hashSize
  db.transaction?.space.expectStores(from, to - from)
  db.w.fill(0, from >>> 2, to >>> 2)
  db.dirty?.fill(1, from >>> 12, ((to - 1) >>> 12) + 1)
}

/** The recovery area's offsets when the header points to a record that can be one. */
export function recoveryArea(db: Tdb): { start: number; end: number } | null {
  const start = db.getUnsigned(AT_RECOVERY_START)
  if (start === 0 || (start & 3) !== 0 || start < db.dataStart || start + RECORD_HEADER > db.size) return null
  const magic = db.get(start + AT_MAGIC)
  if (magic !== RECOVERY_IDLE && magic !== RECOVERY_ACTIVE) return null
  const end = start + RECORD_HEADER + db.getUnsigned(start + AT_REC_LEN)
  return end > db.size ? null : { start, end }
}

/** Copy all records to memory, wipe, insert them again: one transaction. */
export function repack(db: Tdb): void {
  db.startTransaction()
  try {
    const copy = openMemory({ name: `${db.path} (repack)`, hashSize: db.hashSize })
    const take = (bytes: Uint8Array, keyStart: number, keyLength: number, dataStart: number, dataLength: number) => {
      copy.store(bytes.subarray(keyStart, keyStart + keyLength), bytes.subarray(dataStart, dataStart + dataLength))
    }
    traverseRead(db, take)
    wipe(db)
    traverseRead(copy, (bytes, keyStart, keyLength, dataStart, dataLength) => {
      db.store(bytes.subarray(keyStart, keyStart + keyLength), bytes.subarray(dataStart, dataStart + dataLength))
    })
    copy.close()
  } catch (error) {
    db.cancel()
    throw error
  }
  db.commit()
}
