// Databases as a whole: backupdb, restoredb, dumpdbbackup, wipedb. The backup file's format is the stock tool's, but its buffers carry the
// right database id and an old longer file leaves no tail. Reference pages "Admin tool" sections 8.8 and 8.10, "TDB format" section 9.9.

import { closeSync, openSync, readFileSync, writeSync } from "node:fs"
import { HEADER_SIZE } from "../../lib/client/database.ts"
import { decode, encode, ProtocolError } from "../../lib/protocol/codec.ts"
import { NodeFlag, RecoveryMode } from "../../lib/protocol/constants.ts"
import type { ControlName, RequestOf } from "../../lib/protocol/controls.ts"
import { readU32, writeU32 } from "../../lib/protocol/header.ts"
import { REC_DATA_HEAD, type RecData, recBuffer, recData } from "../../lib/protocol/structs.ts"
import { fromNumber, toBigInt, toNumber, type Word64, word64 } from "../../lib/protocol/word64.ts"
import { attachDatabase, attachFound, findDatabase, hexId } from "./databases.ts"
import { Failure, type Invocation } from "./invocation.ts"
import { activeNodes, tryNodeMap } from "./nodes.ts"
import { RecordPrinter } from "./records.ts"

const VERSION = 3
/** Bytes of the file's head: version, time, flags, number of buffers and of records, name. */
const HEAD = 104
const AT_NAME = 40
const NAME_SIZE = 64
/** Bytes in front of a buffer's records: database id, count, length. */
const BUFFER_HEAD = 16
/** A buffer that has this many bytes of records is closed. */
const BUFFER_FULL = 100_000
/** Where the nodes expect the records of a restore. */
const PUSH_SRVID: Word64 = word64(0xce020000, 0)
const EINVAL = 22
const EIO = 5

interface Buffered {
  readonly count: number
  readonly records: Uint8Array
}

interface Backup {
  readonly time: number
  readonly flags: number
  readonly name: string
  readonly records: number
  readonly buffers: readonly Buffered[]
}

const read64 = (bytes: Uint8Array, at: number): Word64 => word64(readU32(bytes, at + 4), readU32(bytes, at))

function put64(bytes: Uint8Array, at: number, value: number): void {
  const { hi, lo } = fromNumber(value)
  writeU32(bytes, at, lo)
  writeU32(bytes, at + 4, hi)
}

/** `2026/11/23 16:46:53`, local time. */
function stamp(seconds: number): string {
  const date = new Date(seconds * 1000)
  const two = (value: number) => String(value).padStart(2, "0")
  const day = `${date.getFullYear()}/${two(date.getMonth() + 1)}/${two(date.getDate())}`
  return `${day} ${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}`
}

function errnoOf(error: unknown): number {
  const { errno } = error as { errno?: unknown }
  return typeof errno === "number" ? Math.abs(errno) : EIO
}

export async function backupdb(invocation: Invocation): Promise<number> {
  const { output, words } = invocation
  const [word = "", file = ""] = words
  const found = await findDatabase(invocation, word)
  const database = await attachFound(invocation, found)
  let descriptor: number
  try {
    descriptor = openSync(file, "w", 0o600)
  } catch (error) {
    return invocation.fail(errnoOf(error), `Failed to open file ${file} for writing`)
  }
  try {
    // The head says how much follows, so it is written again at the end.
    const head = new Uint8Array(HEAD)
    writeSync(descriptor, head)
    const gathered = new Gatherer(found.id, descriptor)
    const progress = () => `Backing up ${found.name}: ${gathered.records} records`
    await invocation.waiting(progress, () =>
      database.traverseLocal((bytes, keyStart, keyLength, dataStart, dataLength) =>
        gathered.add(bytes, keyStart, keyLength, dataStart, dataLength),
      ),
    )
    gathered.close()
    put64(head, 0, VERSION)
    put64(head, 8, Math.floor(Date.now() / 1000))
    put64(head, 16, found.flags)
    put64(head, 24, gathered.buffers)
    put64(head, 32, gathered.records)
    head.set(Buffer.from(found.name).subarray(0, NAME_SIZE - 1), AT_NAME)
    writeSync(descriptor, head, 0, HEAD, 0)
    if (output.mode === "json") {
      output.json({ database: found.name, file, records: gathered.records })
    } else output.print(`Database backed up to ${file}\n`)
    return 0
  } catch (error) {
    if (!(error instanceof Error && "code" in error)) throw error
    return invocation.fail(errnoOf(error), "Failed to write records to backup file")
  } finally {
    closeSync(descriptor)
  }
}

/** Collects records and writes them buffer by buffer. */
class Gatherer {
  records = 0
  buffers = 0
  private bytes = new Uint8Array(2 * BUFFER_FULL)
  private used = BUFFER_HEAD
  private count = 0

  constructor(
    private readonly dbId: number,
    private readonly descriptor: number,
  ) {}

  add(bytes: Uint8Array, keyStart: number, keyLength: number, dataStart: number, dataLength: number): void {
    const length = REC_DATA_HEAD + keyLength + dataLength
    if (this.used + length > this.bytes.length) {
      const larger = new Uint8Array(Math.max(2 * this.bytes.length, this.used + length))
      larger.set(this.bytes.subarray(0, this.used))
      this.bytes = larger
    }
    const at = this.used
    writeU32(this.bytes, at, length)
    writeU32(this.bytes, at + 4, 0)
    writeU32(this.bytes, at + 8, keyLength)
    writeU32(this.bytes, at + 12, dataLength)
    this.bytes.set(bytes.subarray(keyStart, keyStart + keyLength), at + REC_DATA_HEAD)
    this.bytes.set(bytes.subarray(dataStart, dataStart + dataLength), at + REC_DATA_HEAD + keyLength)
    this.used += length
    this.count++
    this.records++
    if (this.used - BUFFER_HEAD >= BUFFER_FULL) this.close()
  }

  close(): void {
    if (this.count === 0) return
    writeU32(this.bytes, 0, this.dbId)
    writeU32(this.bytes, 4, this.count)
    put64(this.bytes, 8, this.used - BUFFER_HEAD)
    for (let done = 0; done < this.used; ) done += writeSync(this.descriptor, this.bytes, done, this.used - done)
    this.buffers++
    this.count = 0
    this.used = BUFFER_HEAD
  }
}

/** Reads a backup file; every length in it is checked. @throws Failure after printing why */
function readBackup(invocation: Invocation, file: string): Backup {
  let bytes: Uint8Array
  try {
    bytes = readFileSync(file)
  } catch (error) {
    return invocation.fail(errnoOf(error), `Failed to open file ${file} for reading`)
  }
  const version = bytes.length < 8 ? 0n : toBigInt(read64(bytes, 0))
  if (version !== BigInt(VERSION)) {
    return invocation.fail(EINVAL, `Wrong version of backup file, expected ${VERSION}, got ${version}`)
  }
  const short = (): never => invocation.fail(EIO, "Failed to read records")
  if (bytes.length < HEAD) return short()
  const name = Buffer.from(bytes.subarray(AT_NAME, AT_NAME + NAME_SIZE))
    .toString()
    .replace(/\0.*$/s, "")
  const buffers: Buffered[] = []
  const expected = toNumber(read64(bytes, 24))
  let at = HEAD
  while (buffers.length < expected) {
    if (at + BUFFER_HEAD > bytes.length) return short()
    const length = toNumber(read64(bytes, at + 8))
    const start = at + BUFFER_HEAD
    if (length > bytes.length - start) return short()
    buffers.push({ count: readU32(bytes, at + 4), records: bytes.subarray(start, start + length) })
    at = start + length
  }
  const flags = readU32(bytes, 16) & 0xff
  return { time: toNumber(read64(bytes, 8)), flags, name, records: toNumber(read64(bytes, 32)), buffers }
}

/** The records of a buffer; what does not fit ends them with a ProtocolError. */
function recordsOf({ count, records }: Buffered): RecData[] {
  const found: RecData[] = []
  let at = 0
  while (found.length < count) {
    const record = decode(recData, records.subarray(at))
    found.push(record)
    at += readU32(records, at)
  }
  return found
}

export async function dumpdbbackup(invocation: Invocation): Promise<number> {
  const { output, words } = invocation
  const backup = readBackup(invocation, words[0] ?? "")
  if (output.mode !== "json") output.print(`Dumping database ${backup.name} from backup @ ${stamp(backup.time)}\n`)
  const printer = new RecordPrinter(invocation)
  for (const buffer of backup.buffers) {
    try {
      for (const { key, data } of recordsOf(buffer)) {
        if (data.length >= HEADER_SIZE) printer.record(key, data)
      }
    } catch (error) {
      if (!(error instanceof ProtocolError)) throw error
      return invocation.fail(EIO, "Failed to dump records")
    }
  }
  printer.end("record(s)", backup.name)
  return 0
}

/** One step of replacing a database: a control to all active nodes, complete before the next. */
type Step = <N extends ControlName>(name: N, request: RequestOf<N>) => Promise<void>

/**
 * Empties a database on all active nodes, lets `fill` put in new records, and makes all of it visible at once. When a step fails a recovery
 * puts the nodes back in order, and the old contents with it.
 */
async function replaceContents(
  invocation: Invocation,
  what: string,
  dbId: number,
  name: string,
  fill: (nodes: readonly number[]) => Promise<void>,
): Promise<void> {
  const { output, localNode } = invocation
  const map = await tryNodeMap(invocation)
  if (map === undefined) return invocation.fail(1, "Failed to get nodemap")
  const nodes = activeNodes(map).filter((pnn) =>
    map.some((node) => node.pnn === pnn && (node.flags & NodeFlag.DELETED) === 0),
  )
  const vnnMap = await invocation.control("GETVNNMAP", localNode, undefined, "Failed to get current generation")
  const transaction = { dbId, tid: vnnMap.generation }
  const step: Step = async (control, request) => {
    const outcomes = await invocation.waiting(`${what} ${name}: ${control}`, () =>
      invocation.controlAll(control, nodes, request),
    )
    for (const [pnn, outcome] of outcomes) {
      if (outcome.ok) continue
      if (output.mode === "terminal") output.warn(`${control} failed on node ${pnn}, ret=${outcome.error}`)
      throw new Failure(outcome.error)
    }
  }
  try {
    await step("DB_FREEZE", dbId)
    await step("DB_TRANSACTION_START", transaction)
    await step("WIPE_DATABASE", transaction)
    await fill(nodes)
    await step("DB_SET_HEALTHY", dbId)
    await step("DB_TRANSACTION_COMMIT", transaction)
    await step("DB_THAW", dbId)
  } catch (error) {
    if (!(error instanceof Failure)) throw error
    if (output.mode === "terminal")
      output.warn("A recovery is started: it thaws the database and puts all nodes in order.")
    await invocation.controlAll("SET_RECMODE", [localNode], RecoveryMode.ACTIVE)
    throw error
  }
}

export async function wipedb(invocation: Invocation): Promise<number> {
  const { output } = invocation
  const found = await findDatabase(invocation, invocation.words[0] ?? "")
  await attachFound(invocation, found)
  await replaceContents(invocation, "Wiping", found.id, found.name, async () => {})
  if (output.mode === "json") output.json({ database: found.name, wiped: true })
  else output.print(`Database ${found.name} wiped\n`)
  return 0
}

export async function restoredb(invocation: Invocation): Promise<number> {
  const { client, output, words } = invocation
  const [file = "", otherName] = words
  const backup = readBackup(invocation, file)
  const name = otherName ?? backup.name
  if (output.mode !== "json") output.print(`Restoring database ${name} from backup @ ${stamp(backup.time)}\n`)
  const database = await attachDatabase(invocation, name, backup.flags).catch((error: unknown) => {
    if (error instanceof Failure) return invocation.fail(error.status, `Failed to attach to DB ${name}`)
    throw error
  })
  const { id } = database
  let sent = 0
  const push = async (nodes: readonly number[]): Promise<void> => {
    const started = await invocation.controlAll("DB_PUSH_START", nodes, { dbId: id, lmaster: 0, srvid: PUSH_SRVID })
    for (const outcome of started.values()) if (!outcome.ok) throw new Failure(outcome.error)
    // A volatile record without data is one that was deleted. A stock node that has no use for it takes it for a failure and refuses all
    // that comes with it; recoveries drop such records, too.
    const wanted = ({ data }: RecData) => database.kind !== "volatile" || data.length > HEADER_SIZE
    for (const buffer of backup.buffers) {
      let message: Uint8Array
      try {
        const records = recordsOf(buffer).filter(wanted)
        sent += records.length
        message = encode(recBuffer, { dbId: id, records })
      } catch (error) {
        if (!(error instanceof ProtocolError)) throw error
        return invocation.fail(EIO, "Failed to read records")
      }
      for (const pnn of nodes) client.sendMessage(pnn, PUSH_SRVID, message)
      await drained(invocation)
    }
    const confirmed = await invocation.controlAll("DB_PUSH_CONFIRM", nodes, id)
    for (const [pnn, outcome] of confirmed) {
      if (!outcome.ok) throw new Failure(outcome.error)
      if (outcome.reply !== sent) {
        return invocation.fail(EIO, `Node ${pnn} received ${outcome.reply} of ${sent} records`)
      }
    }
  }
  const progress = () => `Restoring ${name}: ${sent} of ${backup.records} records sent`
  await replaceContents(invocation, "Restoring", id, name, (nodes) => invocation.waiting(progress, () => push(nodes)))
  if (output.mode === "json") output.json({ database: name, id: hexId(id), records: backup.records })
  else output.print(`Database ${name} restored\n`)
  return 0
}

/** A large backup is not queued whole: the daemon's answer comes behind what was sent. */
async function drained(invocation: Invocation): Promise<void> {
  await invocation.controlAll("PING", [invocation.localNode])
}
