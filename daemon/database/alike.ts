// What saves a recovery among our own nodes most of its time: records that all nodes hold alike need not travel. Keys fall
// into groups by their hash; a digest tells what a node holds of each group, and whether it may stay as it is; what the
// leader then finds alike is retained instead of wiped, pulled and pushed. Stock nodes know none of these controls.
//
// A group of a volatile database may stay when its records all have data, name one dmaster, and hold nothing of read-only
// copies or of vacuuming. Their rsn count without the one that the dmaster is ahead (data path page 4.4), so that copies
// that a recovery left behind are alike.

import { RecordFlag } from "../../lib/protocol/constants.ts"
import { readU32, writeU32 } from "../../lib/protocol/header.ts"
import { LTDB_HEADER_SIZE } from "../../lib/protocol/structs.ts"
import { AT_CHAINS, AT_FULL_HASH, RECORD_HEADER, REPLACE, TdbError, Walk } from "../../lib/tdb/tdb.ts"
import type { NodeEnvironment } from "../environment.ts"
import type { Answer } from "../routing.ts"
import type { Database, Passage } from "./database.ts"
import { RecordHeader } from "./record.ts"

/** Groups of every database: enough that a few changed records leave most groups alone. */
export const GROUPS = 8192
/** Words of a group in a digest: two sums, number of records, common dmaster. */
export const GROUP_WORDS = 4
/** No records. */
export const NO_DMASTER = 0xffffffff
/** Something in the group must be looked at record by record. */
export const ODD = 0xfffffffe

/** Records of one piece of work. */
const RECORDS_PER_LOOK = 128

/** The group of a record by the hash that its file keeps beside its key. */
export function groupOf(hash: number): number {
  return hash & (GROUPS - 1)
}

/** The hash of a record whose key begins at that place of a map; `w` are the map's words. */
export function storedHash(w: Int32Array, keyStart: number): number {
  return w[(keyStart - RECORD_HEADER + AT_FULL_HASH) >>> 2]!
}

export function isKept(keep: Uint8Array, group: number): boolean {
  return (keep[group >>> 3]! & (1 << (group & 7))) !== 0
}

/** Any flag besides this one says that the record is about more than its data. */
const PLAIN_FLAGS = RecordFlag.MIGRATED_WITH_DATA

/** Ranges of chains in a sketch, one word each; of each only the first chains count, one in SKETCH_SHARE. */
export const SKETCH_RANGES = 64
const SKETCH_SHARE = 8

/**
 * Answers ALIKE_SKETCH: number of chains, then a word for each range of them that says which are empty. Copies with different
 * keys show so at once, and no digest need be made. Nothing if the database is too small to be worth comparing.
 */
export function sketch({ tdb }: Database, worthBytes: number): Uint8Array {
  const chains = tdb.hashSize
  if (tdb.size - tdb.dataStart < worthBytes) return new Uint8Array(0)
  const words = new Uint32Array(1 + SKETCH_RANGES)
  words[0] = chains
  const heads = AT_CHAINS >>> 2
  for (let range = 0; range < SKETCH_RANGES; range++) {
    const from = Math.floor((range * chains) / SKETCH_RANGES)
    const to = from + Math.ceil(chains / SKETCH_RANGES / SKETCH_SHARE)
    let hash = 0
    for (let chain = from; chain < to; chain++) {
      if (tdb.w[heads + chain] !== 0) hash = (Math.imul(hash, 31) + (chain - from + 1)) | 0
    }
    words[1 + range] = hash
  }
  return new Uint8Array(words.buffer)
}

abstract class Pieces implements Passage {
  protected readonly walk: Walk
  private ended = false

  constructor(
    protected readonly database: Database,
    private readonly environment: NodeEnvironment,
    private readonly answer: Answer,
    private readonly what: string,
  ) {
    this.walk = new Walk(database.tdb)
    database.addPassage(this)
  }

  abort(reason: string): void {
    if (this.ended) return
    this.end()
    this.answer({ status: -1, error: `${this.what} of ${this.database.name}: ${reason}` })
  }

  private end(): void {
    this.ended = true
    this.walk.close()
    this.database.removePassage(this)
  }

  step(): void {
    if (this.ended) return
    const deadlineMs = this.environment.workEndsMs()
    try {
      do {
        if (!this.piece()) {
          this.end()
          this.answer({ status: 0, data: this.result() })
          return
        }
      } while (this.environment.monotonicMs() < deadlineMs)
    } catch (error) {
      if (error instanceof TdbError) this.database.onDamaged(error.message)
      this.abort(error instanceof Error ? error.message : String(error))
      return
    }
    this.environment.nextTurn(() => this.step())
  }

  /** Works on some records. false: there are no more. */
  protected abstract piece(): boolean
  protected abstract result(): Uint8Array
}

/** Answers ALIKE_DIGEST: GROUP_WORDS words a group, or nothing if there is nothing worth comparing. */
export class Digest extends Pieces {
  private readonly words = new Uint32Array(GROUPS * GROUP_WORDS)
  private readonly sums = new Int32Array(2)
  private bytes = 0
  private readonly header = new RecordHeader()

  /** @param worthBytes a database with less bytes of records is sent faster than compared */
  constructor(
    database: Database,
    private readonly worthBytes: number,
    environment: NodeEnvironment,
    answer: Answer,
  ) {
    super(database, environment, answer, "digest")
    for (let group = 0; group < GROUPS; group++) this.words[group * GROUP_WORDS + 3] = NO_DMASTER
  }

  protected piece(): boolean {
    return this.walk.next(RECORDS_PER_LOOK, this.visit)
  }

  private readonly visit = (
    map: Uint8Array,
    keyStart: number,
    keyLength: number,
    dataStart: number,
    dataLength: number,
  ): void => {
    const { words, header } = this
    this.bytes += keyLength + dataLength
    const w = this.database.tdb.w
    const at = groupOf(storedHash(w, keyStart)) * GROUP_WORDS
    words[at + 2]!++
    if (dataLength <= LTDB_HEADER_SIZE) {
      words[at + 3] = ODD
      return
    }
    header.read(map, dataStart)
    const { dmaster, rsnHi, flags } = header
    const common = words[at + 3]!
    let { rsnLo } = header
    if (this.database.volatile) {
      if ((flags & ~PLAIN_FLAGS) !== 0 || (common !== NO_DMASTER && common !== dmaster)) words[at + 3] = ODD
      else words[at + 3] = dmaster
      if (dmaster === this.database.pnn) rsnLo = (rsnLo - 1) >>> 0
    } else if (common === NO_DMASTER) words[at + 3] = 0
    const { sums } = this
    sums[0] = keyLength
    sums[1] = dataLength
    addBytes(sums, map, w, keyStart, keyStart + keyLength)
    addBytes(sums, map, w, dataStart + LTDB_HEADER_SIZE, dataStart + dataLength)
    // Two words with nothing in common but the record: 64 bits against a chance likeness.
    const first = mix(mix(sums[0]!, rsnLo), rsnHi)
    const second = mix(mix(sums[1]!, rsnHi), ~rsnLo)
    // Sums, since two nodes need not meet their records in the same order.
    words[at] = words[at]! + first
    words[at + 1] = words[at + 1]! + second
  }

  protected result(): Uint8Array {
    if (this.bytes < this.worthBytes) return new Uint8Array(0)
    return new Uint8Array(this.words.buffer)
  }
}

/** Goes on with two sums over bytes[from, to) of a map, whose words are `w`. */
function addBytes(sums: Int32Array, bytes: Uint8Array, w: Int32Array, from: number, to: number): void {
  let first = sums[0]!
  let second = sums[1]!
  let at = from
  const aligned = Math.min(to, from + (-from & 3))
  let edge = 0
  while (at < aligned) edge = (edge << 8) | bytes[at++]!
  const lastWord = to >>> 2
  for (let i = at >>> 2; i < lastWord; i++) {
    const word = w[i]!
    first = Math.imul(first ^ word, 0x9e3779b1)
    first ^= first >>> 15
    second = Math.imul((second << 7) ^ (second >>> 25) ^ word, 0x85ebca6b)
  }
  if (lastWord * 4 > at) at = lastWord * 4
  let tail = 0
  while (at < to) tail = (tail << 8) | bytes[at++]!
  first = Math.imul(first ^ edge, 0x9e3779b1)
  first = Math.imul(first ^ (first >>> 15) ^ tail, 0x85ebca6b)
  second = Math.imul((second << 7) ^ (second >>> 25) ^ edge, 0x85ebca6b)
  second = Math.imul((second << 7) ^ (second >>> 25) ^ tail, 0x9e3779b1)
  sums[0] = first
  sums[1] = second
}

/** The finisher of MurmurHash3 (public domain) over two words. */
function mix(a: number, b: number): number {
  let h = (Math.imul(a, 0x9e3779b1) ^ b) | 0
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b)
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35)
  return (h ^ (h >>> 16)) >>> 0
}

/**
 * Answers ALIKE_RETAIN: what a recovery does with WIPE_DATABASE and a push, for the groups that all nodes hold alike: their
 * records stay and become the leader's, all others go.
 */
export class Retain extends Pieces {
  private kept = 0
  private readonly doomed: Uint8Array[] = []
  private readonly changed: { readonly key: Uint8Array; readonly value: Uint8Array }[] = []
  private readonly header = new RecordHeader()

  constructor(
    database: Database,
    private readonly keep: Uint8Array,
    /** The new dmaster of a volatile database's records. */
    private readonly leader: number,
    environment: NodeEnvironment,
    answer: Answer,
  ) {
    super(database, environment, answer, "retaining")
    database.onWipe()
  }

  protected piece(): boolean {
    const { tdb } = this.database
    const more = this.walk.next(RECORDS_PER_LOOK, this.visit)
    for (const key of this.doomed) tdb.delete(key)
    for (const { key, value } of this.changed) tdb.store(key, value, REPLACE)
    this.doomed.length = 0
    this.changed.length = 0
    return more
  }

  private readonly visit = (
    map: Uint8Array,
    keyStart: number,
    keyLength: number,
    dataStart: number,
    dataLength: number,
  ): void => {
    const { database, header, leader } = this
    if (!isKept(this.keep, groupOf(storedHash(database.tdb.w, keyStart)))) {
      this.doomed.push(map.slice(keyStart, keyStart + keyLength))
      return
    }
    this.kept++
    if (!database.volatile || header.read(map, dataStart).dmaster === leader) return
    // Another's until now: one above what anybody has, as the push of a whole database leaves it, and the leader's above that.
    const value = map.slice(dataStart, dataStart + dataLength)
    const wasMine = header.dmaster === database.pnn
    header.addRsn((wasMine ? 0 : 1) + (leader === database.pnn ? 1 : 0))
    header.dmaster = leader
    header.flags = (header.flags | RecordFlag.MIGRATED_WITH_DATA) >>> 0
    header.write(value)
    this.changed.push({ key: map.slice(keyStart, keyStart + keyLength), value })
  }

  protected result(): Uint8Array {
    const data = new Uint8Array(4)
    writeU32(data, 0, this.kept)
    return data
  }
}

/** Number of records that a digest says are in kept groups. */
export function keptRecords(digest: Uint8Array, keep: Uint8Array): number {
  let count = 0
  for (let group = 0; group < GROUPS; group++) {
    if (isKept(keep, group)) count += readU32(digest, (group * GROUP_WORDS + 2) * 4)
  }
  return count
}
