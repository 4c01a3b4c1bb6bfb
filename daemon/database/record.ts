// One record as the cluster sees it: the 24-byte header in front of its data, and the rules by which a node reads it and
// writes it back (data path page, section 4). All of this happens under the lock of the record's chain, which the caller
// holds. Who may own a record and how it moves is decided elsewhere (calls.ts).

import { RecordFlag } from "../../lib/protocol/constants.ts"
import { jenkinsHash } from "../../lib/protocol/hash.ts"
import { readU32, writeU32 } from "../../lib/protocol/header.ts"
import { LTDB_HEADER_SIZE } from "../../lib/protocol/structs.ts"
import { type Parser, REPLACE, type Tdb } from "../../lib/tdb/tdb.ts"

/** A record's header (4.1), as a value that the rules change before it is written. */
export class RecordHeader {
  rsnHi = 0
  rsnLo = 0
  dmaster = 0
  reserved = 0
  flags = 0

  /** The header in bytes[at, at + 24). */
  read(bytes: Uint8Array, at = 0): this {
    this.rsnLo = readU32(bytes, at)
    this.rsnHi = readU32(bytes, at + 4)
    this.dmaster = readU32(bytes, at + 8)
    this.reserved = readU32(bytes, at + 12)
    this.flags = readU32(bytes, at + 16)
    return this
  }

  write(bytes: Uint8Array, at = 0): void {
    writeU32(bytes, at, this.rsnLo)
    writeU32(bytes, at + 4, this.rsnHi)
    writeU32(bytes, at + 8, this.dmaster)
    writeU32(bytes, at + 12, this.reserved)
    writeU32(bytes, at + 16, this.flags)
    writeU32(bytes, at + 20, 0)
  }

  /** rsn += count, for a small count. */
  addRsn(count: number): void {
    const lo = this.rsnLo + count
    this.rsnLo = lo >>> 0
    if (lo > 0xffffffff) this.rsnHi = (this.rsnHi + 1) >>> 0
  }

  /** Negative, zero or positive, as this rsn is below, at or above the other. */
  compareRsn(hi: number, lo: number): number {
    return this.rsnHi === hi ? this.rsnLo - lo : this.rsnHi - hi
  }
}

/** What a database gives to the rules. */
export interface RecordStore {
  readonly tdb: Tdb
  readonly volatile: boolean
  /** This node's number. */
  readonly pnn: number
  /** The node that must know who owns the key of that hash (4.2). */
  lmasterOf(jenkins: number): number
  /** Keys of empty records that may go everywhere: vacuuming keeps them. Undefined: nobody does. */
  readonly deletions: Deletions | undefined
}

/** The queue of records that vacuuming looks at (13.2). */
export interface Deletions {
  /** An empty record that this node owns was left behind. */
  schedule(hash: number, key: Uint8Array, header: RecordHeader): void
  /** The record of that key has data again, or belongs to another node. */
  forget(hash: number, key: Uint8Array): void
}

/** A record as it was found, or as it would be made. */
export interface Found {
  readonly header: RecordHeader
  readonly data: Uint8Array
  /** False: there is none in the file. A volatile one that comes into being on its lmaster has rsn 1 and no flags (4.3). */
  readonly stored: boolean
}

const NO_DATA = new Uint8Array(0)
const headerBytes = new Uint8Array(LTDB_HEADER_SIZE)

/** Hash by which the lmaster of a key is found; in a volatile database it is the chain's, too. */
export function keyHash(key: Uint8Array): number {
  return jenkinsHash(key, 0, key.length)
}

let taken = new RecordHeader()
/** The header into `taken`, and a copy of the data: one array and not two views of one. */
const take: Parser<Uint8Array | undefined> = (bytes, start, length) => {
  if (length < LTDB_HEADER_SIZE) return undefined
  taken.read(bytes, start)
  return length === LTDB_HEADER_SIZE ? NO_DATA : bytes.slice(start + LTDB_HEADER_SIZE, start + length)
}

/**
 * Reads a record. A missing one is made up as by a stock node (4.3), but reaches the file only with the store that follows:
 * the caller that serves it always has one.
 */
export function fetchRecord(store: RecordStore, key: Uint8Array, jenkins: number, hash: number): Found {
  const header = new RecordHeader()
  taken = header
  const data = store.tdb.parse(key, take, hash)
  if (data !== undefined) return { header, data, stored: true }
  header.dmaster = store.lmasterOf(jenkins)
  if (store.volatile && header.dmaster === store.pnn) header.addRsn(1)
  else header.flags = RecordFlag.AUTOMATIC
  return { header, data: NO_DATA, stored: false }
}

/** What the store rules say of a record: it stays or goes, and whether vacuuming is to look at it. */
export const Fate = { DELETE: 0, KEEP: 1, KEEP_AND_SCHEDULE: 2 } as const
export type Fate = (typeof Fate)[keyof typeof Fate]

/**
 * Writes a record back by the rules of 4.4, which change `header`. @throws TdbError
 */
export function storeRecord(
  store: RecordStore,
  key: Uint8Array,
  jenkins: number,
  hash: number,
  header: RecordHeader,
  data: Uint8Array,
): void {
  settle(store, key, hash, header, data, decide(store, jenkins, header, data.length))
}

/** The rules of 4.4: they change `header`, but nothing in the file. Two in a row need only one settle(), for the last. */
export function decide(store: RecordStore, jenkins: number, header: RecordHeader, dataLength: number): Fate {
  if (!store.volatile) return Fate.KEEP
  const { flags } = header
  const mine = header.dmaster === store.pnn
  let keep = true
  let schedule = false
  if (dataLength > 0 || (flags & RecordFlag.RO_FLAGS) !== 0) {
    // Kept whoever owns it.
  } else if ((flags & RecordFlag.AUTOMATIC) !== 0) schedule = true
  else if ((flags & RecordFlag.MIGRATED_WITH_DATA) !== 0) {
    // Old copies with data may lie around: this one must be able to say that they are old.
  } else if (store.lmasterOf(jenkins) === store.pnn) keep = (flags & RecordFlag.VACUUM_MIGRATED) === 0 || !mine
  else keep = mine

  if (keep && mine && (flags & RecordFlag.RO_FLAGS) === 0) {
    header.addRsn(1)
    schedule ||= dataLength === 0
  }
  header.flags &= ~(RecordFlag.VACUUM_MIGRATED | RecordFlag.AUTOMATIC)
  if (!keep) return Fate.DELETE
  return schedule ? Fate.KEEP_AND_SCHEDULE : Fate.KEEP
}

/** Does to the file what the rules said. @throws TdbError */
export function settle(
  store: RecordStore,
  key: Uint8Array,
  hash: number,
  header: RecordHeader,
  data: Uint8Array,
  fate: Fate,
): void {
  if (fate === Fate.DELETE) {
    store.tdb.delete(key, hash)
    return
  }
  header.write(headerBytes)
  store.tdb.storeTwo(key, headerBytes, data, REPLACE, hash)
  if (fate === Fate.KEEP_AND_SCHEDULE) store.deletions?.schedule(hash, key, header)
  else store.deletions?.forget(hash, key)
}

const peeked = new RecordHeader()
const peek: Parser<boolean> = (bytes, start, length) => {
  if (length < LTDB_HEADER_SIZE) return false
  peeked.read(bytes, start)
  return true
}

/** The header of the record in the file, valid until the next call; undefined if there is none. */
export function storedHeader(tdb: Tdb, key: Uint8Array, hash: number): RecordHeader | undefined {
  return tdb.parse(key, peek, hash) === true ? peeked : undefined
}
