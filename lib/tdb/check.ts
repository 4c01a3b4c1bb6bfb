// Whether a file keeps the invariants of the format (tdb-format.md 6.15), and figures about its contents (10.1). Findings carry
// libtdb's words. It verifies exactly that lists and records agree, where libtdb compares filters, and it knows where dead space ends.

import type { Tdb } from "./database.ts"
import { TdbError } from "./error.ts"
import {
  AT_CHAINS,
  AT_DATA_LEN,
  AT_FREELIST,
  AT_FULL_HASH,
  AT_HASH_SIZE,
  AT_KEY_LEN,
  AT_MAGIC,
  AT_NEXT,
  AT_REC_LEN,
  AT_RECOVERY_START,
  AT_RWLOCKS,
  DEAD,
  FREE,
  HEADER_SIZE,
  LIVE,
  PAD,
  RECORD_HEADER,
  RECOVERY_ACTIVE,
  RECOVERY_IDLE,
  RWLOCKS_FEATURES,
  RWLOCKS_HASH,
} from "./format.ts"
import { parseHeader } from "./open.ts"
import { type Pieces, runInPieces, runNow, type Turns, type Underway } from "./pieces.ts"
import type { Held } from "./waits.ts"

export interface CheckResult {
  readonly ok: boolean
  /** Live records met in the file. */
  readonly records: number
  /** What is wrong, in the order found; at most `FINDINGS_MAX`. */
  readonly findings: readonly TdbError[]
}

const FINDINGS_MAX = 100

/** Sees key and data of every live record during a check; a reason that it returns becomes a finding. */
export type RecordCheck = (key: Uint8Array, data: Uint8Array) => string | undefined

/**
 * Check the whole file under the allrecord read lock (taken here unless it is held or the handle is read-only). Defects are findings,
 * not exceptions. Raises LOCK when other locks are held.
 */
export function check(db: Tdb, inspect?: RecordCheck): CheckResult {
  return runNow(checking(db, inspect))
}

/**
 * The same piece by piece between the turns of a loop, waiting for locks and for the undoing of a commit that died elsewhere. `done` is
 * called once, in this turn or a later one, with the result or with what was raised.
 */
export function checkInPieces(db: Tdb, turns: Turns, done: (result: CheckResult | Error) => void): Underway {
  let result: CheckResult | undefined
  const pieces = function* (): Pieces {
    result = yield* checking(db, undefined)
  }
  return runInPieces(pieces(), turns, (error) => done(error === null ? result! : (error as Error)))
}

function* checking(db: Tdb, inspect: RecordCheck | undefined): Pieces<CheckResult> {
  // Before the locks, which look into the header.
  if (db.transaction === null) db.refresh()
  const lock = !db.readOnly && db.locks.allrecordCount === 0 && db.size >= db.dataStart
  const unlock = lock ? yield* readLocking(db) : () => {}
  try {
    if (db.transaction === null) db.refresh()
    return yield* new Check(db, inspect).running()
  } finally {
    unlock()
  }
}

/** Takes the allrecord read lock. Returns how to give it back. */
function* readLocking(db: Tdb): Pieces<() => void> {
  const alone = db.locks.noLock || db.transaction !== null
  // A commit that somebody died in is undone by who gets the lock, which is long work of its own.
  if ((alone || !db.needsRecovery()) && db.tryLockAllrecord(false)) return () => db.unlockAllrecord()
  let held: Held | null = null
  yield {
    block: () => db.lockAllrecord(false),
    later: (done) => {
      const wait = db.waitForAllrecord(false, (granted, error) => {
        granted?.keep()
        held = granted
        done(error)
      })
      return () => wait.cancel()
    },
  }
  const kept = held as Held | null
  return kept === null ? () => db.unlockAllrecord() : () => kept.release()
}

const LIST_UNKNOWN = -1

/** Records, list heads and so on looked at before others may have a turn: the first look at each may be a page fault. */
const PIECE = 256
/** Bytes of dead space looked at before others may have a turn. */
const DEAD_PIECE = 1 << 20

/** A bit for every word of a file. */
class Words {
  private readonly bits: Uint32Array
  constructor(size: number) {
    this.bits = new Uint32Array(Math.ceil(size / 128))
  }
  has(offset: number): boolean {
    return (this.bits[offset >>> 7]! & (1 << ((offset >>> 2) & 31))) !== 0
  }
  add(offset: number): void {
    this.bits[offset >>> 7]! |= 1 << ((offset >>> 2) & 31)
  }
}

const CHUNK_BITS = 14
const CHUNK = 1 << CHUNK_BITS

/** The records met in the file, in its order, and the list that each belongs to (0 freelist, chain + 1). Grows without being copied. */
class Met {
  count = 0
  private readonly offsets: Uint32Array[] = []
  private readonly lists: Int32Array[] = []

  add(offset: number): void {
    const at = this.count++ & (CHUNK - 1)
    if (at === 0) {
      this.offsets.push(new Uint32Array(CHUNK))
      this.lists.push(new Int32Array(CHUNK))
    }
    this.offsets[this.offsets.length - 1]![at] = offset
    this.belongs(LIST_UNKNOWN)
  }

  /** Says so of the one that was added last. */
  belongs(list: number): void {
    this.lists[this.lists.length - 1]![(this.count - 1) & (CHUNK - 1)] = list
  }

  offsetOf(index: number): number {
    return this.offsets[index >>> CHUNK_BITS]![index & (CHUNK - 1)]!
  }

  /** The list of the record at `offset`, undefined where there is none. */
  listAt(offset: number): number | undefined {
    let low = 0
    let high = this.count
    while (low < high) {
      const middle = (low + high) >>> 1
      if (this.offsetOf(middle) < offset) low = middle + 1
      else high = middle
    }
    if (low === this.count || this.offsetOf(low) !== offset) return undefined
    return this.lists[low >>> CHUNK_BITS]![low & (CHUNK - 1)]
  }
}

class Check {
  private readonly findings: TdbError[] = []
  private readonly met = new Met()
  private readonly linked: Words
  private records = 0
  private work = 0

  constructor(
    private readonly db: Tdb,
    private readonly inspect: RecordCheck | undefined,
  ) {
    this.linked = new Words(db.size)
  }

  /** Whether a piece is done. */
  private pieceDone(): boolean {
    if (++this.work < PIECE) return false
    this.work = 0
    return true
  }

  private find(reason: string, offset?: number): void {
    if (this.findings.length < FINDINGS_MAX) this.findings.push(new TdbError("CORRUPT", this.db.path, reason, offset))
  }

  *running(): Pieces<CheckResult> {
    const db = this.db
    if (db.size < db.dataStart) this.find(`hash size ${db.hashSize} does not fit`)
    else {
      this.checkHeader()
      const lists = yield* this.walkLists()
      yield* this.walkFile()
      yield* this.compare(lists)
    }
    return { ok: this.findings.length === 0, records: this.records, findings: this.findings }
  }

  private checkHeader(): void {
    const db = this.db
    try {
      parseHeader(db.path, db.b.subarray(0, HEADER_SIZE))
    } catch (error) {
      this.find(error instanceof TdbError ? error.reason : String(error), 0)
    }
    const rwlocks = db.getUnsigned(AT_RWLOCKS)
    if (rwlocks !== 0 && rwlocks !== RWLOCKS_HASH && rwlocks !== RWLOCKS_FEATURES) {
      this.find(`Bad rwlocks 0x${rwlocks.toString(16)}`, AT_RWLOCKS)
    }
    const hashSize = db.getUnsigned(AT_HASH_SIZE)
    if (hashSize !== db.hashSize) this.find(`Changed hash size ${hashSize}`, AT_HASH_SIZE)
    const recovery = db.getUnsigned(AT_RECOVERY_START)
    if (recovery !== 0 && recovery < db.dataStart) this.find(`Bad recovery start ${recovery}`, AT_RECOVERY_START)
  }

  // Every list's records in order. A list that cannot be followed to its end is a finding.
  private *walkLists(): Pieces<number[][]> {
    const db = this.db
    const lists: number[][] = []
    for (let list = 0; list <= db.hashSize; list++) {
      const head = list === 0 ? AT_FREELIST : AT_CHAINS + 4 * (list - 1)
      if (this.pieceDone()) yield null
      let offset = db.getUnsigned(head)
      if (offset === 0) {
        lists.push([])
        continue
      }
      const found: number[] = []
      while (offset !== 0) {
        if (this.pieceDone()) yield null
        if ((offset & 3) !== 0 || offset < db.dataStart) {
          this.find(`list points to ${offset}, where no record can be`, found[found.length - 1] ?? head)
          break
        }
        if (offset + RECORD_HEADER > db.size) {
          this.find(`tdb_oob len ${offset + RECORD_HEADER} beyond eof at ${db.size}`, found[found.length - 1] ?? head)
          break
        }
        if (this.linked.has(offset)) {
          this.find("Hashes do not match records: in a list twice, or a circular chain", offset)
          break
        }
        this.linked.add(offset)
        found.push(offset)
        offset = db.getUnsigned(offset + AT_NEXT)
      }
      lists.push(found)
    }
    return lists
  }

  private *walkFile(): Pieces {
    const db = this.db
    const recovery = db.getUnsigned(AT_RECOVERY_START)
    let recoveryMet = false
    let offset = db.dataStart
    while (offset < db.size) {
      if (this.pieceDone()) yield null
      if (offset + RECORD_HEADER > db.size) {
        // Growth in multiples of pages may leave less than a header.
        this.find(`tdb_oob len ${offset + RECORD_HEADER} beyond eof at ${db.size}`, offset)
        break
      }
      const magic = db.get(offset + AT_MAGIC)
      let length = 0
      if (magic === LIVE || magic === DEAD) length = this.usedRecord(offset, magic)
      else if (magic === FREE) length = this.freeRecord(offset)
      else if (offset === recovery && (magic === RECOVERY_ACTIVE || magic === RECOVERY_IDLE)) {
        recoveryMet = true
        length = this.bounded(offset, db.getUnsigned(offset + AT_REC_LEN))
      } else if (magic === 0 || magic === PAD || this.isForgottenArea(offset)) {
        length = yield* this.deadSpace(offset, recovery)
      } else this.find(`Bad magic 0x${(magic >>> 0).toString(16)} at offset ${offset}`, offset)
      if (length === 0) break
      offset += length
    }
    if (recovery !== 0 && !recoveryMet && this.findings.length === 0) {
      this.find(`Expected a recovery area at ${recovery}`, AT_RECOVERY_START)
    }
  }

  // A recovery record that nothing points to any more, its magic still active.
  private isForgottenArea(offset: number): boolean {
    return this.db.get(offset + AT_MAGIC) === RECOVERY_ACTIVE && !this.linked.has(offset)
  }

  // Left by a crash between growth and use: it ends at the next record that something points to.
  private *deadSpace(offset: number, recovery: number): Pieces<number> {
    const db = this.db
    for (let at = offset + 4; at < db.size; at += 4) {
      if ((at & (DEAD_PIECE - 1)) === 0) yield null
      if (at === recovery || this.linked.has(at)) return at - offset
    }
    return db.size - offset
  }

  private bounded(offset: number, recLen: number): number {
    const db = this.db
    const end = offset + RECORD_HEADER + recLen
    if ((recLen & 3) !== 0 || recLen < 4) {
      this.find(`Record offset ${offset} bad length ${recLen}`, offset)
      return 0
    }
    if (end > db.size) {
      this.find(`tdb_oob len ${end} beyond eof at ${db.size}`, offset)
      return 0
    }
    return RECORD_HEADER + recLen
  }

  private nextAndTailer(offset: number): number {
    const db = this.db
    const next = db.getUnsigned(offset + AT_NEXT)
    if (next !== 0 && next < db.dataStart) this.find(`Record offset ${offset} too small next ${next}`, offset)
    else if ((next & 3) !== 0) this.find(`Record offset ${offset} misaligned next ${next}`, offset)
    else if (next !== 0 && next + RECORD_HEADER > db.size) {
      this.find(`tdb_oob len ${next + RECORD_HEADER} beyond eof at ${db.size}`, offset)
    }
    const length = this.bounded(offset, db.getUnsigned(offset + AT_REC_LEN))
    if (length !== 0 && db.getUnsigned(offset + length - 4) !== length) {
      this.find(`Record offset ${offset} invalid tailer`, offset)
    }
    return length
  }

  private usedRecord(offset: number, magic: number): number {
    const db = this.db
    const length = this.nextAndTailer(offset)
    if (length === 0) return 0
    const keyLength = db.getUnsigned(offset + AT_KEY_LEN)
    const dataLength = db.getUnsigned(offset + AT_DATA_LEN)
    const recLen = length - RECORD_HEADER
    this.met.add(offset)
    if (keyLength + dataLength > 0xffffffff) {
      this.find("Record lengths overflow", offset)
      return length
    }
    if (keyLength + dataLength + 4 > recLen) {
      this.find(`Record offset ${offset} too short for contents`, offset)
      return length
    }
    const keyStart = offset + RECORD_HEADER
    const key = db.b.subarray(keyStart, keyStart + keyLength)
    const hash = db.hash(key)
    if ((hash | 0) !== db.get(offset + AT_FULL_HASH)) {
      // Taken from the free list by somebody who died before its contents were written: nothing can reach it.
      const unreachable = this.linked.has(offset) ? "" : " and is in no list"
      this.find(`Record offset ${offset} has incorrect hash${unreachable}`, offset)
      return length
    }
    this.met.belongs(db.chainOf(hash) + 1)
    if (magic !== LIVE) return length
    this.records++
    if (this.inspect !== undefined) {
      const reason = this.inspect(key, db.b.subarray(keyStart + keyLength, keyStart + keyLength + dataLength))
      if (reason !== undefined) this.find(reason, offset)
    }
    return length
  }

  private freeRecord(offset: number): number {
    const length = this.nextAndTailer(offset)
    if (length === 0) return 0
    this.met.add(offset)
    this.met.belongs(0)
    return length
  }

  private *compare(lists: readonly (readonly number[])[]): Pieces {
    // A broken record ends the walk over the file: what lies behind it is not known, and says nothing about the lists.
    if (this.findings.length > 0) return
    for (let list = 0; list < lists.length; list++) {
      for (const offset of lists[list]!) {
        if (this.pieceDone()) yield null
        const belongs = this.met.listAt(offset)
        if (belongs === undefined) this.find("Hashes do not match records: a list points inside another record", offset)
        else if (belongs !== list) this.find("Hashes do not match records: in the wrong list", offset)
      }
    }
    for (let index = 0; index < this.met.count; index++) {
      if (this.pieceDone()) yield null
      const offset = this.met.offsetOf(index)
      if (!this.linked.has(offset)) this.find("Hashes do not match records: in no list", offset)
    }
  }
}

export interface Tally {
  readonly count: number
  readonly smallest: number
  readonly largest: number
  readonly total: number
}

class Tallying implements Tally {
  count = 0
  smallest = 0
  largest = 0
  total = 0

  add(value: number): void {
    if (this.count === 0 || value < this.smallest) this.smallest = value
    if (value > this.largest) this.largest = value
    this.count++
    this.total += value
  }
}

/** What is in the file, in bytes unless it says otherwise. */
export interface Summary {
  readonly fileSize: number
  readonly mapOffset: number
  readonly mapSize: number
  /** Sum of key and data lengths of live records. */
  readonly dataSize: number
  readonly hashSize: number
  readonly hash: "old" | "jenkins"
  readonly mutexes: boolean
  readonly swapped: boolean
  readonly sequenceNumber: number
  readonly recoveryStart: number
  readonly keys: Tally
  readonly data: Tally
  readonly padding: Tally
  /** Dead records, and the recovery area. */
  readonly dead: Tally
  readonly free: Tally
  /** Records (dead ones too) per chain. */
  readonly chains: Tally
  /** Runs of adjacent free records: how many could be merged away. */
  readonly uncoalesced: Tally
  readonly recoveryArea: number
  readonly deadSpace: number
}

/** Figures about a file, under the allrecord read lock. Raises CORRUPT where a record cannot be followed. */
export function summary(db: Tdb): Summary {
  const lock = !db.readOnly && db.locks.allrecordCount === 0
  if (lock) db.lockAllrecord(false)
  try {
    if (db.transaction === null) db.refresh()
    return summarize(db)
  } finally {
    if (lock) db.unlockAllrecord()
  }
}

function summarize(db: Tdb): Summary {
  const keys = new Tallying()
  const data = new Tallying()
  const padding = new Tallying()
  const dead = new Tallying()
  const free = new Tallying()
  const chains = new Tallying()
  const uncoalesced = new Tallying()
  const linked = new Set<number>()
  for (let chain = 0; chain < db.hashSize; chain++) {
    let length = 0
    for (let offset = db.getUnsigned(AT_CHAINS + 4 * chain); offset !== 0; offset = db.getUnsigned(offset + AT_NEXT)) {
      db.checkRecord(offset)
      if (linked.has(offset)) throw db.fail("CORRUPT", "circular chain", offset)
      linked.add(offset)
      length++
    }
    chains.add(length)
  }
  const recovery = db.getUnsigned(AT_RECOVERY_START)
  let recoveryArea = 0
  let deadSpace = 0
  let run = 0
  let offset = db.dataStart
  while (offset + RECORD_HEADER <= db.size) {
    const magic = db.get(offset + AT_MAGIC)
    const recLen = db.getUnsigned(offset + AT_REC_LEN)
    let length = RECORD_HEADER + recLen
    if (magic !== FREE && offset !== recovery) {
      if (run > 1) uncoalesced.add(run - 1)
      run = 0
    }
    if (magic === LIVE || magic === DEAD) {
      db.checkRecord(offset)
      if (magic === DEAD) dead.add(recLen)
      else {
        const keyLength = db.getUnsigned(offset + AT_KEY_LEN)
        const dataLength = db.getUnsigned(offset + AT_DATA_LEN)
        keys.add(keyLength)
        data.add(dataLength)
        padding.add(recLen - keyLength - dataLength)
      }
    } else if (magic === FREE) {
      free.add(recLen)
      run++
    } else if (offset === recovery) {
      // libtdb's summary counts it among the dead, and as a free neighbour.
      recoveryArea = length
      dead.add(recLen)
      run++
    } else if (magic === 0 || magic === PAD || magic === RECOVERY_ACTIVE) {
      let end = offset + 4
      while (end < db.size && end !== recovery && !linked.has(end)) end += 4
      length = end - offset
      deadSpace += length
    } else throw db.badMagic(magic, offset)
    if ((length & 3) !== 0 || length < 4 || offset + length > db.size) {
      throw db.fail("CORRUPT", `record of ${length} bytes`, offset)
    }
    offset += length
  }
  if (run > 1) uncoalesced.add(run - 1)
  const mapOffset = db.mapOffset
  return {
    fileSize: mapOffset + db.size,
    mapOffset,
    mapSize: db.size,
    dataSize: keys.total + data.total,
    hashSize: db.hashSize,
    hash: db.hashKind.name,
    mutexes: mapOffset !== 0,
    swapped: db.swapped,
    sequenceNumber: db.sequenceNumber(),
    recoveryStart: recovery,
    keys,
    data,
    padding,
    dead,
    free,
    chains,
    uncoalesced,
    recoveryArea,
    deadSpace,
  }
}
