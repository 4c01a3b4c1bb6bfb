// Brings the copies of one database together: takes the record buffers of all nodes in any order, and gives back the records
// that survive (cluster page 7.5). Records are spread over partitions by the hash of their key, which go to a scratch file
// when they are many, and are merged partition by partition: so memory stays the same whatever the size. It asks nobody
// and sends nothing.

import { ProtocolError } from "../../lib/protocol/codec.ts"
import { RecordFlag, SEQNUM_KEY } from "../../lib/protocol/constants.ts"
import { jenkinsHash } from "../../lib/protocol/hash.ts"
import { LTDB_HEADER_SIZE, REC_DATA_HEAD } from "../../lib/protocol/structs.ts"
import { copyBytes } from "../../lib/sys/memory.ts"
import type { RecoveryFiles, Scratch } from "./files.ts"

/** Records stay in memory up to this many bytes of one database. */
const MEMORY_MAX = 2 * 1024 * 1024
const PARTITIONS = 256
/** Bytes of a partition that are written at once. */
const SLOT = 4096

/** Places in a rec_data (wire-protocol page 5.11) and in the header in front of its data (5.10). */
const AT_LENGTH = 0
const AT_TAG = 4
const AT_KEY_LENGTH = 8
const AT_DATA_LENGTH = 12
const AT_DMASTER = 8
const AT_FLAGS = 16

/**
 * The field `reqid`, which means nothing in a pull, holds what the merge needs of a stored record: the chain that it has in
 * a node's file, and which source it came from.
 */
const SOURCE_BITS = 10
export const SOURCES_MAX = 1 << SOURCE_BITS
const CHAINS_MAX = 2 ** (32 - SOURCE_BITS)

const SEQNUM_KEY_BYTES = new TextEncoder().encode(`${SEQNUM_KEY}\0`)

/**
 * volatile: per record the highest rsn wins. whole: one source's records are taken as they are; of the others', what can not
 * be an older state of it is told.
 */
export type MergeRule =
  | { readonly kind: "volatile"; readonly leader: number }
  | {
      readonly kind: "whole"
      readonly winner: number
      /** Replicated databases get the leader as dmaster too, persistent ones stay as they are (cluster page 7.6). */
      readonly leader: number | undefined
      /** Sources whose sequence number is the winner's: they must not differ at all. */
      readonly equals: ReadonlySet<number>
      /** A record that only another source has, or has otherwise. Views, valid during the call. */
      readonly onDiverged: (source: number, key: Uint8Array, data: Uint8Array) => void
    }

/** One partition while it is being merged. */
interface Load {
  readonly bytes: Uint8Array
  readonly view: DataView
  readonly length: number
  readonly count: number
  /** The chains that it is about. */
  readonly firstChain: number
  readonly chains: number
}

/**
 * Memory that merges have given back, for the next ones. A process gets new memory page by page, each on its first touch, and that takes as
 * long as the merge itself.
 */
export class MergeMemory {
  private readonly free: Uint8Array<ArrayBuffer>[] = []

  /** At least so many bytes, with anything in them. */
  take(size: number): Uint8Array<ArrayBuffer> {
    const index = this.free.findIndex(({ length }) => length >= size)
    if (index >= 0) return this.free.splice(index, 1)[0]!
    return new Uint8Array(Math.max(size, MEMORY_MAX))
  }

  give(memory: Uint8Array<ArrayBuffer>): void {
    if (memory.length === MEMORY_MAX) this.free.push(memory)
  }
}

export class RecordMerge {
  /** Records and bytes taken so far. */
  records = 0
  bytes = 0

  /** While everything is in memory: whole records, tags set, in the first bytes of `work`. */
  private kept = 0
  private scratch: Scratch | undefined
  private slots = new Uint8Array(0)
  private filled = new Int32Array(0)
  private counts = new Int32Array(0)
  private sizes = new Float64Array(0)
  /** Per partition: offset and length of each piece in the scratch file. */
  private extents: number[][] = []
  private work = new Uint8Array(0)
  private table = new Int32Array(0)

  private readonly chains: number

  /**
   * @param hashSize chains of a volatile database's file (DatabaseHashSize): records come out in the order of chains, in
   *   which nodes store them with the fewest jumps through their files
   * @param memory what the merges of one recovery use by turns
   */
  constructor(
    private readonly dbId: number,
    private readonly files: RecoveryFiles,
    hashSize: number,
    private readonly memory = new MergeMemory(),
  ) {
    this.chains = Math.min(Math.max(hashSize, PARTITIONS), CHAINS_MAX)
  }

  /**
   * Takes one record buffer of a source; copies what it keeps. Returns the number of its records.
   * @param source 0 <= source < SOURCES_MAX, in the order of the nodes list
   * @throws ProtocolError for a buffer of another database, or one that can't be right: what was taken of it stays taken
   * @throws SysError when the scratch file can't be written
   */
  add(source: number, buffer: Uint8Array): number {
    if (buffer.length < 8) throw malformed("record buffer without header", 0)
    const view = new DataView(buffer.buffer, buffer.byteOffset, buffer.byteLength)
    const dbId = view.getUint32(0, true)
    if (dbId !== this.dbId) throw malformed(`record buffer of database 0x${dbId.toString(16)}`, 0)
    const count = view.getUint32(4, true)
    if (this.scratch === undefined && this.kept + buffer.length > MEMORY_MAX) this.startSpreading()
    if (this.scratch === undefined) this.keep(source, buffer, count)
    else this.spread(source, buffer, view, count)
    this.records += count
    this.bytes += buffer.length - 8
    return count
  }

  /** Keeps the whole buffer in memory. */
  private keep(source: number, buffer: Uint8Array, count: number): void {
    const start = this.kept
    const end = start + buffer.length - 8
    this.makeRoom(end)
    const { work } = this
    copyBytes.call(buffer, work, start, 8, buffer.length)
    const view = new DataView(work.buffer, work.byteOffset, work.byteLength)
    let at = start
    for (let index = 0; index < count; index++) {
      const length = checkRecord(view, at, end)
      const keyStart = at + REC_DATA_HEAD
      const chain = this.chainOf(work, keyStart, view.getUint32(at + AT_KEY_LENGTH, true))
      view.setUint32(at + AT_TAG, tagOf(chain, source), true)
      at += length
      // What was taken of a bad buffer stays taken.
      this.kept = at
    }
  }

  private makeRoom(size: number): void {
    if (this.work.length >= size) return
    const grown = this.memory.take(Math.max(size, Math.min(2 * this.work.length, MEMORY_MAX)))
    copyBytes.call(this.work, grown, 0, 0, this.kept)
    this.memory.give(this.work)
    this.work = grown
  }

  private startSpreading(): void {
    this.scratch = this.files.openScratch()
    this.slots = this.memory.take(PARTITIONS * SLOT)
    this.filled = new Int32Array(PARTITIONS)
    this.counts = new Int32Array(PARTITIONS)
    this.sizes = new Float64Array(PARTITIONS)
    this.extents = Array.from({ length: PARTITIONS }, () => [])
    const { work, kept } = this
    const view = new DataView(work.buffer, work.byteOffset, work.byteLength)
    for (let at = 0; at < kept; ) {
      const length = view.getUint32(at + AT_LENGTH, true)
      const tag = view.getUint32(at + AT_TAG, true)
      this.append(this.partitionOf(tag >>> SOURCE_BITS), work, at, length, tag)
      at += length
    }
    this.kept = 0
  }

  private spread(source: number, buffer: Uint8Array, view: DataView, count: number): void {
    let at = 8
    for (let index = 0; index < count; index++) {
      const length = checkRecord(view, at, buffer.length)
      const keyStart = at + REC_DATA_HEAD
      const chain = this.chainOf(buffer, keyStart, view.getUint32(at + AT_KEY_LENGTH, true))
      this.append(this.partitionOf(chain), buffer, at, length, tagOf(chain, source))
      at += length
    }
  }

  private chainOf(bytes: Uint8Array, keyStart: number, keyLength: number): number {
    return jenkinsHash(bytes, keyStart, keyStart + keyLength) % this.chains
  }

  /** Partitions are ranges of chains. */
  private partitionOf(chain: number): number {
    return Math.floor((chain * PARTITIONS) / this.chains)
  }

  private append(partition: number, from: Uint8Array, at: number, length: number, tag: number): void {
    const { filled, slots } = this
    if (filled[partition]! + length > SLOT) this.flush(partition)
    this.counts[partition]!++
    this.sizes[partition]! += length
    if (length > SLOT) {
      const record = from.slice(at, at + length)
      putU32(record, AT_TAG, tag)
      this.write(partition, record)
      return
    }
    const to = partition * SLOT + filled[partition]!
    copyBytes.call(from, slots, to, at, at + length)
    putU32(slots, to + AT_TAG, tag)
    filled[partition]! += length
  }

  private flush(partition: number): void {
    const length = this.filled[partition]!
    if (length === 0) return
    this.write(partition, this.slots.subarray(partition * SLOT, partition * SLOT + length))
    this.filled[partition] = 0
  }

  private write(partition: number, piece: Uint8Array): void {
    this.extents[partition]!.push(this.scratch!.append(piece), piece.length)
  }

  /**
   * Merges and gives the surviving records as whole record buffers of about `limit` bytes (one record more at most), the
   * last one perhaps empty: there is always at least one (cluster page 7.6). Records without data are left out.
   * Each buffer is valid until the next one is asked for. Only once.
   * @throws SysError when the scratch file can't be read
   */
  *buffers(rule: MergeRule, limit: number): Generator<{ readonly bytes: Uint8Array; readonly count: number }> {
    const out = new OutBuffer(this.dbId, limit)
    const leader = rule.leader
    const partitions = this.scratch === undefined ? 1 : PARTITIONS
    for (let partition = 0; partition < partitions; partition++) {
      const load = this.load(partition, partitions)
      if (load.count === 0) continue
      const slots = rule.kind === "volatile" ? this.mergeVolatile(load, rule.leader) : this.mergeWhole(load, rule)
      const { bytes, view } = load
      // Counted, as an iterator is slow in code that runs once in a while.
      for (let index = 0; index < slots.length; index++) {
        const slot = slots[index]!
        if (slot === 0) continue
        const at = slot - 1
        if (view.getUint32(at + AT_DATA_LENGTH, true) <= LTDB_HEADER_SIZE) continue
        const length = view.getUint32(at + AT_LENGTH, true)
        if (!out.fits(length)) {
          if (out.count > 0) yield out.close()
          out.begin(length)
        }
        out.push(bytes, at, length, leader)
      }
    }
    yield out.close()
  }

  private load(partition: number, partitions: number): Load {
    const { scratch } = this
    const length = scratch === undefined ? this.kept : this.sizes[partition]!
    this.makeRoom(Math.ceil(scratch === undefined ? length : length * 1.25))
    const { work } = this
    let at = 0
    if (scratch !== undefined) {
      const extents = this.extents[partition]!
      for (let index = 0; index < extents.length; index += 2) {
        const size = extents[index + 1]!
        scratch.read(extents[index]!, work.subarray(at, at + size))
        at += size
      }
      const rest = this.filled[partition]!
      work.set(this.slots.subarray(partition * SLOT, partition * SLOT + rest), at)
    }
    const count = scratch === undefined ? this.records : this.counts[partition]!
    const firstChain = Math.ceil((partition * this.chains) / partitions)
    const chains = Math.ceil(((partition + 1) * this.chains) / partitions) - firstChain
    return {
      bytes: work,
      view: new DataView(work.buffer, work.byteOffset, work.byteLength),
      length,
      count,
      firstChain,
      chains,
    }
  }

  /** An empty table with room for `count` keys: places in the load, plus one. */
  private emptyTable(count: number): Int32Array {
    let size = 64
    while (size < count * 2) size *= 2
    if (this.table.length < size) this.table = new Int32Array(size)
    else this.table.fill(0, 0, size)
    return this.table.subarray(0, size)
  }

  private mergeVolatile(load: Load, leader: number): Int32Array {
    const { view, length } = load
    const table = this.emptyTable(load.count)
    for (let at = 0; at < length; at += view.getUint32(at + AT_LENGTH, true)) {
      const slot = find(table, load, at)
      const stored = table[slot]!
      if (stored === 0 || wins(view, stored - 1, at, leader)) table[slot] = at + 1
    }
    return table
  }

  private mergeWhole(load: Load, rule: Extract<MergeRule, { kind: "whole" }>): Int32Array {
    const { bytes, view, length } = load
    const table = this.emptyTable(load.count)
    for (let at = 0; at < length; at += view.getUint32(at + AT_LENGTH, true)) {
      if (sourceOf(view, at) === rule.winner) table[find(table, load, at)] = at + 1
    }
    for (let at = 0; at < length; at += view.getUint32(at + AT_LENGTH, true)) {
      const source = sourceOf(view, at)
      if (source === rule.winner) continue
      const winner = table[find(table, load, at)]!
      if (!diverges(bytes, view, winner - 1, at, rule.equals.has(source))) continue
      const keyStart = at + REC_DATA_HEAD
      const dataStart = keyStart + view.getUint32(at + AT_KEY_LENGTH, true)
      const dataEnd = dataStart + view.getUint32(at + AT_DATA_LENGTH, true)
      rule.onDiverged(source, bytes.subarray(keyStart, dataStart), bytes.subarray(dataStart, dataEnd))
    }
    return table
  }

  /** Gives scratch file and memory back. */
  close(): void {
    this.scratch?.close()
    this.scratch = undefined
    this.memory.give(this.slots)
    this.memory.give(this.work)
    this.slots = new Uint8Array(0)
    this.work = new Uint8Array(0)
    this.table = new Int32Array(0)
    this.extents = []
  }
}

/**
 * Whether record `n` replaces `s`. The page's rule goes by the order of nodes; put for any order it is: a higher rsn wins;
 * of equal ones the first whose dmaster is not the leader; if all name the leader, the last.
 */
function wins(view: DataView, s: number, n: number, leader: number): boolean {
  const sHead = headerAt(view, s)
  const nHead = headerAt(view, n)
  const difference = compareRsn(view, nHead, sHead)
  if (difference !== 0) return difference > 0
  const sOther = view.getUint32(sHead + AT_DMASTER, true) !== leader
  const nOther = view.getUint32(nHead + AT_DMASTER, true) !== leader
  if (sOther !== nOther) return nOther
  return sOther ? sourceOf(view, n) < sourceOf(view, s) : sourceOf(view, n) > sourceOf(view, s)
}

/**
 * Whether record `at` of a copy that was not taken can not be an older state of the winner's (`winner` negative: there is
 * none). With equal sequence numbers there is no older state: the copies hold the same, or they are of two histories.
 */
function diverges(bytes: Uint8Array, view: DataView, winner: number, at: number, equal: boolean): boolean {
  const size = view.getUint32(at + AT_DATA_LENGTH, true)
  // That the winner lacks a deleted record is what a recovery makes of deleted records.
  if (winner < 0) return size > LTDB_HEADER_SIZE && !isSeqnum(bytes, view, at)
  // Its rsn says nothing: whoever asks for the number makes the record (data path page 10.1).
  if (isSeqnum(bytes, view, at)) return false
  const difference = compareRsn(view, headerAt(view, at), headerAt(view, winner))
  if (difference < 0 && !equal) return false
  return difference > 0 || !sameContents(bytes, view, winner, at)
}

function isSeqnum(bytes: Uint8Array, view: DataView, at: number): boolean {
  if (view.getUint32(at + AT_KEY_LENGTH, true) !== SEQNUM_KEY_BYTES.length) return false
  const start = at + REC_DATA_HEAD
  return SEQNUM_KEY_BYTES.every((byte, index) => bytes[start + index] === byte)
}

function sameContents(bytes: Uint8Array, view: DataView, a: number, b: number): boolean {
  const size = view.getUint32(a + AT_DATA_LENGTH, true)
  if (size !== view.getUint32(b + AT_DATA_LENGTH, true)) return false
  const aHead = headerAt(view, a)
  const bHead = headerAt(view, b)
  for (let index = LTDB_HEADER_SIZE; index < size; index++) {
    if (bytes[aHead + index] !== bytes[bHead + index]) return false
  }
  return true
}

function compareRsn(view: DataView, a: number, b: number): number {
  const high = view.getUint32(a + 4, true) - view.getUint32(b + 4, true)
  return high !== 0 ? high : view.getUint32(a, true) - view.getUint32(b, true)
}

function headerAt(view: DataView, at: number): number {
  return at + REC_DATA_HEAD + view.getUint32(at + AT_KEY_LENGTH, true)
}

function sourceOf(view: DataView, at: number): number {
  return view.getUint32(at + AT_TAG, true) & (SOURCES_MAX - 1)
}

function tagOf(chain: number, source: number): number {
  return ((chain << SOURCE_BITS) | source) >>> 0
}

/**
 * The place of a record's key in the table: where it is, or the free one where it belongs. Places rise with the chains, so
 * that a walk over the table meets the records in about their order.
 */
function find(table: Int32Array, { bytes, view, firstChain, chains }: Load, at: number): number {
  const mask = table.length - 1
  const chain = view.getUint32(at + AT_TAG, true) >>> SOURCE_BITS
  const keyLength = view.getUint32(at + AT_KEY_LENGTH, true)
  let slot = Math.floor(((chain - firstChain) * table.length) / chains) & mask
  for (;;) {
    const entry = table[slot]!
    if (entry === 0) return slot
    const other = entry - 1
    if (
      view.getUint32(other + AT_TAG, true) >>> SOURCE_BITS === chain &&
      view.getUint32(other + AT_KEY_LENGTH, true) === keyLength &&
      sameBytes(bytes, other + REC_DATA_HEAD, at + REC_DATA_HEAD, keyLength)
    ) {
      return slot
    }
    slot = (slot + 1) & mask
  }
}

function sameBytes(bytes: Uint8Array, a: number, b: number, length: number): boolean {
  for (let index = 0; index < length; index++) if (bytes[a + index] !== bytes[b + index]) return false
  return true
}

/** Length of the record at `at`, which is whole, holds a header and nothing else behind its data. */
function checkRecord(view: DataView, at: number, end: number): number {
  if (at + REC_DATA_HEAD > end) throw malformed("record beyond the buffer", at)
  const length = view.getUint32(at + AT_LENGTH, true)
  const data = view.getUint32(at + AT_DATA_LENGTH, true)
  if (length !== REC_DATA_HEAD + view.getUint32(at + AT_KEY_LENGTH, true) + data || at + length > end) {
    throw malformed(`record of ${length} bytes that does not fit`, at)
  }
  if (data < LTDB_HEADER_SIZE) throw malformed(`record data of ${data} bytes, shorter than its header`, at)
  return length
}

function malformed(what: string, offset: number): ProtocolError {
  return new ProtocolError("EMSGSIZE", "rec_buffer", "", offset, what)
}

function putU32(bytes: Uint8Array, at: number, value: number): void {
  bytes[at] = value
  bytes[at + 1] = value >>> 8
  bytes[at + 2] = value >>> 16
  bytes[at + 3] = value >>> 24
}

/** Whatever the tunable says, a buffer has room for its head and a small record (bytes). */
const SMALLEST_BUFFER = 64

/** The buffer that is being filled for the push. */
class OutBuffer {
  count = 0
  private readonly limit: number
  private bytes: Uint8Array
  private view: DataView
  private size = 8

  constructor(
    private readonly dbId: number,
    limit: number,
  ) {
    this.limit = Math.max(limit, SMALLEST_BUFFER)
    this.bytes = new Uint8Array(this.limit)
    this.view = new DataView(this.bytes.buffer)
  }

  fits(length: number): boolean {
    return this.size + length <= this.bytes.length
  }

  /** Starts an empty one that has room for a record of that length. */
  begin(length: number): void {
    const capacity = Math.max(this.limit, 8 + length)
    if (this.bytes.length !== capacity) {
      this.bytes = new Uint8Array(capacity)
      this.view = new DataView(this.bytes.buffer)
    }
  }

  /** @param leader the new dmaster, undefined to leave the header as it is */
  push(from: Uint8Array, at: number, length: number, leader: number | undefined): void {
    const { bytes, view, size } = this
    copyBytes.call(from, bytes, size, at, at + length)
    view.setUint32(size + AT_TAG, 0, true)
    if (leader !== undefined) {
      const header = headerAt(view, size)
      const flags = view.getUint32(header + AT_FLAGS, true) | RecordFlag.MIGRATED_WITH_DATA
      view.setUint32(header + AT_DMASTER, leader, true)
      view.setUint32(header + AT_FLAGS, flags >>> 0, true)
    }
    this.size += length
    this.count++
  }

  close(): { readonly bytes: Uint8Array; readonly count: number } {
    this.view.setUint32(0, this.dbId, true)
    this.view.setUint32(4, this.count, true)
    const closed = { bytes: this.bytes.subarray(0, this.size), count: this.count }
    this.count = 0
    this.size = 8
    return closed
  }
}
