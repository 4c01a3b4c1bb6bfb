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
  // Before the locks, which look into the header.
  if (db.transaction === null) db.refresh()
  const lock = !db.readOnly && db.locks.allrecordCount === 0 && db.size >= db.dataStart
  if (lock) db.lockAllrecord(false)
  try {
    if (db.transaction === null) db.refresh()
    return new Check(db, inspect).run()
  } finally {
    if (lock) db.unlockAllrecord()
  }
}

const LIST_UNKNOWN = -1

class Check {
  private readonly findings: TdbError[] = []
  // For every record met in the file: the list that it belongs to (0 freelist, chain + 1).
  private readonly expected = new Map<number, number>()
  private readonly linked = new Set<number>()
  private records = 0

  constructor(
    private readonly db: Tdb,
    private readonly inspect: RecordCheck | undefined,
  ) {}

  private find(reason: string, offset?: number): void {
    if (this.findings.length < FINDINGS_MAX) this.findings.push(new TdbError("CORRUPT", this.db.path, reason, offset))
  }

  run(): CheckResult {
    const db = this.db
    if (db.size < db.dataStart) this.find(`hash size ${db.hashSize} does not fit`)
    else {
      this.checkHeader()
      const lists = this.walkLists()
      this.walkFile()
      this.compare(lists)
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
  private walkLists(): number[][] {
    const db = this.db
    const lists: number[][] = []
    for (let list = 0; list <= db.hashSize; list++) {
      const head = list === 0 ? AT_FREELIST : AT_CHAINS + 4 * (list - 1)
      let offset = db.getUnsigned(head)
      if (offset === 0) {
        lists.push([])
        continue
      }
      const found: number[] = []
      while (offset !== 0) {
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

  private walkFile(): void {
    const db = this.db
    const recovery = db.getUnsigned(AT_RECOVERY_START)
    let recoveryMet = false
    let offset = db.dataStart
    while (offset < db.size) {
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
      } else if (magic === 0 || magic === PAD || this.isForgottenArea(offset)) length = this.deadSpace(offset, recovery)
      else this.find(`Bad magic 0x${(magic >>> 0).toString(16)} at offset ${offset}`, offset)
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
  private deadSpace(offset: number, recovery: number): number {
    const db = this.db
    for (let at = offset + 4; at < db.size; at += 4) {
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
    this.expected.set(offset, LIST_UNKNOWN)
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
    this.expected.set(offset, db.chainOf(hash) + 1)
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
    if (length !== 0) this.expected.set(offset, 0)
    return length
  }

  private compare(lists: readonly (readonly number[])[]): void {
    // A broken record ends the walk over the file: what lies behind it is not known, and says nothing about the lists.
    if (this.findings.length > 0) return
    for (let list = 0; list < lists.length; list++) {
      for (const offset of lists[list]!) {
        const belongs = this.expected.get(offset)
        if (belongs === undefined) this.find("Hashes do not match records: a list points inside another record", offset)
        else if (belongs !== list) this.find("Hashes do not match records: in the wrong list", offset)
      }
    }
    for (const offset of this.expected.keys()) {
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
