// Records of databases: catdb, cattdb, readkey, writekey, deletekey, pushrecord on attached ones, tfetch and tstore on TDB files.
// Transactions are in persistent.ts. Reference page "Admin tool", section 8.9.

import { writeFileSync } from "node:fs"
import { ControlError } from "../../lib/client/client.ts"
import type { Database, LockedRecord } from "../../lib/client/database.ts"
import { HEADER_SIZE } from "../../lib/client/database.ts"
import { traverse } from "../../lib/client/traverse.ts"
import { BROADCAST_ACTIVE, RecordFlag } from "../../lib/protocol/constants.ts"
import { writeU32 } from "../../lib/protocol/header.ts"
import { add, fromBigInt, ZERO64 } from "../../lib/protocol/word64.ts"
import { openTdb, type Tdb } from "../../lib/tdb/tdb.ts"
import {
  attachFound,
  bytesJson,
  findDatabase,
  isVolatile,
  parseBytes,
  readHeader,
  recordJson,
  recordText,
  recordWork,
  valueText,
} from "./databases.ts"
import { Failure, type Invocation, UsageError } from "./invocation.ts"
import { atoi, parseUnsigned } from "./numbers.ts"

const EIO = 5
const EINVAL = 22

/** Prints records as they come; in JSON as one list. `end` is the text of the last line. */
export class RecordPrinter {
  private count = 0
  private readonly records: unknown[] = []

  constructor(private readonly invocation: Invocation) {}

  record(key: Uint8Array, value: Uint8Array): void {
    this.count++
    if (this.invocation.output.mode === "json") this.records.push(recordJson(key, value))
    else this.invocation.output.print(recordText(key, value))
  }

  end(noun: string, database?: string, complete = true): void {
    const { output } = this.invocation
    if (output.mode === "json") {
      const of = database === undefined ? {} : { database }
      output.json({ ...of, complete, count: this.count, records: this.records })
    } else output.print(`Dumped ${this.count} ${noun}\n`)
  }
}

export async function catdb(invocation: Invocation): Promise<number> {
  const { client, output } = invocation
  const found = await findDatabase(invocation, invocation.words[0] ?? "")
  await attachFound(invocation, found)
  const printer = new RecordPrinter(invocation)
  let status = 0
  try {
    const result = await traverse(client, found.id, (bytes, keyStart, keyLength, dataStart, dataLength) => {
      printer.record(bytes.subarray(keyStart, keyStart + keyLength), bytes.subarray(dataStart, dataStart + dataLength))
    })
    if (result.cut !== undefined) {
      output.warn(`The dump is not complete: ${result.cut}`)
      status = EIO
    } else if (result.maybeCut && output.mode === "terminal") {
      output.warn("The daemon's TraverseTimeout is over: records of slow nodes may be missing.")
    }
  } catch (error) {
    if (!(error instanceof ControlError)) throw error
    if (error.reason === "closed") throw new Failure(1)
    output.warn(`traverse: control reply failed, ret=${error.status}`)
    status = error.status
  }
  printer.end("records", found.name, status === 0)
  return status
}

export async function cattdb(invocation: Invocation): Promise<number> {
  const found = await findDatabase(invocation, invocation.words[0] ?? "")
  const database = await attachFound(invocation, found)
  const printer = new RecordPrinter(invocation)
  await database.traverseLocal((bytes, keyStart, keyLength, dataStart, dataLength) => {
    if (dataLength < HEADER_SIZE) return
    printer.record(bytes.subarray(keyStart, keyStart + keyLength), bytes.subarray(dataStart, dataStart + dataLength))
  })
  printer.end("record(s)", found.name)
  return 0
}

/** Finds and attaches the volatile database of the first word, and reads the key of the second. @throws Failure */
async function volatileRecord(invocation: Invocation): Promise<{ database: Database; key: Uint8Array }> {
  const found = await findDatabase(invocation, invocation.words[0] ?? "")
  if (!isVolatile(found.flags)) return invocation.fail(1, `DB ${found.name} is not a volatile database`)
  const database = await attachFound(invocation, found)
  return { database, key: parseBytes(invocation, "key", invocation.words[1] ?? "") }
}

/** Runs `work` with the record locked. @throws Failure after printing `line` if it can't be locked */
async function withRecord<T>(
  invocation: Invocation,
  { database, key }: { readonly database: Database; readonly key: Uint8Array },
  line: string,
  mode: "read" | "write",
  work: (record: LockedRecord) => T | Promise<T>,
): Promise<T> {
  // An empty key can't go into a call; the stock tool finds out after its first look.
  if (key.length === 0) {
    invocation.output.warn(`fetch_lock: ${database.name} CALL failed, ret=${EINVAL}`)
    return invocation.fail(EINVAL, line)
  }
  const record = await recordWork(invocation, line, async () => await database.fetchLock(key, mode))
  try {
    return await work(record)
  } finally {
    record.unlock()
  }
}

/** Up to the first NUL, as a C string ends. */
export function cString(bytes: Uint8Array): Uint8Array {
  const end = bytes.indexOf(0)
  return end < 0 ? bytes : bytes.subarray(0, end)
}

export async function readkey(invocation: Invocation): Promise<number> {
  const { output, words } = invocation
  const [, key = "", mode] = words
  if (mode !== undefined && mode !== "readonly") throw new UsageError()
  const target = await volatileRecord(invocation)
  const line = `Failed to read record for key ${key}`
  const data = await withRecord(invocation, target, line, mode === undefined ? "write" : "read", (record) =>
    record.copy(),
  )
  if (output.mode === "json") {
    output.json({
      database: target.database.name,
      key: bytesJson(target.key),
      size: data.length,
      data: bytesJson(data),
    })
    return 0
  }
  output.print(`Data: size:${data.length} ptr:[`)
  output.printBytes(cString(data))
  output.print("]\n")
  return 0
}

export async function writekey(invocation: Invocation): Promise<number> {
  const { output, words } = invocation
  const [database = "", key = "", value = ""] = words
  const target = await volatileRecord(invocation)
  const data = parseBytes(invocation, "value", value)
  // The stock tool names the database here where it means the key.
  const line = `Failed to lock record for key ${database}`
  await withRecord(invocation, target, line, "write", (record) =>
    recordWork(invocation, `Failed to store record for key ${key}`, async () => record.store(data)),
  )
  if (output.mode === "json") output.json({ database: target.database.name, key: bytesJson(target.key), stored: true })
  return 0
}

export async function deletekey(invocation: Invocation): Promise<number> {
  const { output, words } = invocation
  const [, key = ""] = words
  const target = await volatileRecord(invocation)
  const line = `Failed to fetch record for key ${key}`
  await withRecord(invocation, target, line, "write", (record) =>
    recordWork(invocation, `Failed to delete record for key ${key}`, () => record.deleteConfirmed()),
  )
  if (output.mode === "json") output.json({ database: target.database.name, key: bytesJson(target.key), deleted: true })
  return 0
}

/** writekey, and the record to all nodes at once: how newest Samba keeps records that must survive their node. */
export async function pushrecord(invocation: Invocation): Promise<number> {
  const { client, output, words, localNode } = invocation
  const [database = "", , value = ""] = words
  const target = await volatileRecord(invocation)
  const data = parseBytes(invocation, "value", value)
  const map = await invocation.control("GETVNNMAP", localNode)
  await withRecord(invocation, target, `Failed to lock record for key ${database}`, "write", (record) => {
    const header = record.header()
    const { rsn, dmaster, flags } = readHeader(header)
    const pushed = { rsn: add(rsn, 1), dmaster, reserved1: 0, flags: flags | RecordFlag.MIGRATED_WITH_DATA }
    writeU32(header, 0, pushed.rsn.lo)
    writeU32(header, 4, pushed.rsn.hi)
    writeU32(header, 16, pushed.flags)
    record.storeWithHeader(header, data)
    const { id } = target.database
    const request = { generation: map.generation, dbId: id, hdr: pushed, key: target.key, value: data }
    client.sendControl("PUSH_RECORD", BROADCAST_ACTIVE, request, { srvid: { hi: 0, lo: id } })
  })
  // The push leaves before the process does: this answer comes behind it.
  await invocation.controlStatus("PING", localNode)
  if (output.mode === "json") output.json({ database: target.database.name, key: bytesJson(target.key), pushed: true })
  return 0
}

function openFile(invocation: Invocation, path: string): Tdb {
  try {
    return openTdb(path)
  } catch (error) {
    invocation.output.warn(`Failed to open TDB file ${path}`)
    if (invocation.output.mode === "terminal" && error instanceof Error) invocation.output.warn(`  ${error.message}`)
    throw new Failure(1)
  }
}

export async function tfetch(invocation: Invocation): Promise<number> {
  const { output, words } = invocation
  const [path = "", word = "", file] = words
  const tdb = openFile(invocation, path)
  try {
    const key = parseBytes(invocation, "key", word)
    const value = tdb.fetch(key)
    if (value === null) return invocation.fail(1, `No record for key ${word}`)
    if (value.length < HEADER_SIZE) return invocation.fail(1, `Invalid record for key ${word}`)
    await output.show({
      text: () => valueText(value),
      json: () => recordJson(key, value),
    })
    if (file === undefined) return 0
    try {
      writeFileSync(file, value, { mode: 0o600 })
    } catch {
      // Reported only, as by the stock tool.
      output.warn(`Failed to open output file ${file}`)
    }
    return 0
  } finally {
    tdb.close()
  }
}

export async function tstore(invocation: Invocation): Promise<number> {
  const { output, words } = invocation
  const [path = "", keyWord = "", dataWord = "", rsnWord, dmasterWord] = words
  const tdb = openFile(invocation, path)
  try {
    const key = parseBytes(invocation, "key", keyWord)
    const data = parseBytes(invocation, "value", dataWord)
    let rsn = ZERO64
    if (rsnWord !== undefined) {
      const parsed = parseUnsigned(rsnWord)
      if (!parsed.ok) return invocation.badNumber(rsnWord, parsed.errno)
      rsn = fromBigInt(parsed.value)
    }
    const dmaster = dmasterWord === undefined ? 0 : atoi(dmasterWord) >>> 0
    const header = new Uint8Array(HEADER_SIZE)
    writeU32(header, 0, rsn.lo)
    writeU32(header, 4, rsn.hi)
    writeU32(header, 8, dmaster)
    await recordWork(invocation, `Failed to write record ${keyWord} to file ${path}`, async () =>
      tdb.storeParts(key, [header, data]),
    )
    if (output.mode === "json") output.json({ file: path, key: bytesJson(key), stored: true })
    return 0
  } finally {
    tdb.close()
  }
}
