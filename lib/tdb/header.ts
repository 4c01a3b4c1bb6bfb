// The header of a file that is open: handles keep what they need of it, so that one that somebody has scribbled over is noticed by those
// who open the file next, and only by them. Here it is compared with what it was, and written again. Files with mutexes, whose
// header lies in front of the map, are left alone.

import type { Tdb } from "./database.ts"
import {
  AT_HASH_SIZE,
  AT_MAGIC1_HASH,
  AT_MAGIC2_HASH,
  AT_RECOVERY_START,
  AT_RWLOCKS,
  AT_VERSION,
  MAGIC_FOOD,
  RWLOCKS_HASH,
  VERSION,
} from "./format.ts"
import { JENKINS_HASH } from "./hash.ts"
import { recoveryArea } from "./repack.ts"

/** The words that say how the file is to be read, by their offsets. */
function words(db: Tdb): readonly (readonly [offset: number, value: number])[] {
  const { hashKind, hashSize, swapped } = db
  return [
    [AT_VERSION, VERSION],
    [AT_HASH_SIZE, hashSize],
    [AT_RWLOCKS, hashKind === JENKINS_HASH ? RWLOCKS_HASH : 0],
    [AT_MAGIC1_HASH, hashKind.magic1],
    [AT_MAGIC2_HASH, swapped ? hashKind.magic2Swapped : hashKind.magic2],
  ]
}

/** What is wrong with the header; undefined if it still says what it said at open. */
export function headerDefect(db: Tdb): string | undefined {
  if (db.mapOffset !== 0) return undefined
  for (let i = 0; i <= MAGIC_FOOD.length; i++) {
    if (db.b[i] !== (i < MAGIC_FOOD.length ? MAGIC_FOOD.charCodeAt(i) : 0))
      return "the header is not that of a TDB file"
  }
  // Files of old versions have no hash of the magic.
  const unnamed = db.get(AT_MAGIC1_HASH) === 0 && db.get(AT_MAGIC2_HASH) === 0
  for (const [offset, value] of words(db)) {
    if (unnamed && (offset === AT_MAGIC1_HASH || offset === AT_MAGIC2_HASH)) continue
    const found = db.getUnsigned(offset)
    if (found !== value) return `header word ${offset} is 0x${found.toString(16)}, not 0x${value.toString(16)}`
  }
  return undefined
}

/** Writes the header as it was, where it is not. Only in a transaction that has wiped the database. */
export function restoreHeader(db: Tdb): void {
  if (recoveryArea(db) === null && db.get(AT_RECOVERY_START) !== 0) db.put(AT_RECOVERY_START, 0)
  if (headerDefect(db) === undefined) return
  const food = new Uint8Array(AT_VERSION)
  food.set(Buffer.from(MAGIC_FOOD, "latin1"))
  db.putBytes(0, food)
  for (const [offset, value] of words(db)) db.put(offset, value)
}
