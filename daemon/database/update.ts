// The rules by which a node takes a record buffer into a database whose contents all nodes have (data path page 12.3): all of
// it or nothing. The caller has a transaction under way on the file; whose thread that is, and what became of the control,
// is known elsewhere (commits.ts, persistent.ts).

import { SEQNUM_KEY } from "../../lib/protocol/constants.ts"
import { readU32 } from "../../lib/protocol/header.ts"
import type { RecBuffer, RecData } from "../../lib/protocol/structs.ts"
import { LTDB_HEADER_SIZE } from "../../lib/protocol/structs.ts"
import { add, compare, toDecimal, type Word64, word64, ZERO64 } from "../../lib/protocol/word64.ts"
import { REPLACE, type Tdb } from "../../lib/tdb/tdb.ts"
import { RecordHeader } from "./record.ts"

const EMPTY = new Uint8Array(0)
const sequenceKey: Uint8Array = Buffer.from(`${SEQNUM_KEY}\0`)

/** Why a buffer that lies about its contents can't be used; undefined if every record has a header. */
export function wrongRecords({ records }: RecBuffer): string | undefined {
  for (const [index, { data }] of records.entries()) {
    if (data.length < LTDB_HEADER_SIZE) return `record ${index} has ${data.length} bytes of data`
  }
  return undefined
}

/**
 * Stores every record, in order; a reason if one of them may not be stored, and then the caller cancels the transaction.
 * @throws TdbError
 */
export function applyRecords(tdb: Tdb, { records }: RecBuffer): string | undefined {
  const theirs = new RecordHeader()
  const ours = new RecordHeader()
  const gap = missedCommits(tdb, records)
  if (gap !== undefined) return gap
  for (const { key, data } of records) {
    const hash = tdb.hash(key)
    theirs.read(data)
    const refused = tdb.parse(
      key,
      (bytes, start, length) => {
        if (length < LTDB_HEADER_SIZE) return undefined
        ours.read(bytes, start)
        return isOlder(ours, theirs) && !sameData(bytes, start, length, data) ? olderThan(ours, theirs) : undefined
      },
      hash,
    )
    if (refused !== undefined) return refused
    tdb.storeTwo(key, data, EMPTY, REPLACE, hash)
  }
  return undefined
}

/** Whether what would be stored is not newer than what is there. */
export function isOlder(ours: RecordHeader, theirs: RecordHeader): boolean {
  return ours.compareRsn(theirs.rsnHi, theirs.rsnLo) >= 0
}

/** Whether a stored value, header included, has the same data behind its header as `data` behind its own. */
export function sameData(bytes: Uint8Array, start: number, length: number, data: Uint8Array): boolean {
  if (length !== data.length) return false
  for (let i = LTDB_HEADER_SIZE; i < length; i++) if (bytes[start + i] !== data[i]) return false
  return true
}

/** The stock text, which ends up in the log of whoever asked. */
export function olderThan(ours: RecordHeader, theirs: RecordHeader): string {
  return `existing header has larger RSN ${rsn(ours)} than new RSN ${rsn(theirs)} in ctdb_persistent_store`
}

function rsn({ rsnHi, rsnLo }: RecordHeader): string {
  return ((BigInt(rsnHi) << 32n) | BigInt(rsnLo)).toString()
}

/**
 * A commit raises the sequence number by one. One that is further ahead comes from a copy with commits that this one has not: stored
 * over it, it would make the two look equal to every recovery. (A stock node stores it.)
 */
function missedCommits(tdb: Tdb, records: readonly RecData[]): string | undefined {
  const record = records.findLast(({ key }) => Buffer.compare(key, sequenceKey) === 0)
  if (record === undefined || record.data.length !== LTDB_HEADER_SIZE + 8) return undefined
  const theirs = sequenceOf(record.data, 0)
  const ours =
    tdb.parse(sequenceKey, (bytes, start, length) =>
      length === LTDB_HEADER_SIZE + 8 ? sequenceOf(bytes, start) : ZERO64,
    ) ?? ZERO64
  if (compare(theirs, add(ours, 1)) <= 0) return undefined
  return `sequence number ${toDecimal(theirs)} does not follow on this copy's ${toDecimal(ours)}: it has missed commits`
}

function sequenceOf(bytes: Uint8Array, start: number): Word64 {
  const at = start + LTDB_HEADER_SIZE
  return word64(readU32(bytes, at + 4), readU32(bytes, at))
}
