// What the database commands have in common: finding a database by name or id, attaching it, keys and values on the command line, and
// records as they are printed. Reference page "Admin tool", sections 6.1 to 6.4.

import { readFileSync } from "node:fs"
import { AttachError, attach } from "../../lib/client/attach.ts"
import { ControlError } from "../../lib/client/client.ts"
import { type Database, DatabaseError, HEADER_SIZE, kindOf } from "../../lib/client/database.ts"
import { DbFlag, RecordFlag } from "../../lib/protocol/constants.ts"
import { readU32 } from "../../lib/protocol/header.ts"
import { toDecimal, word64 } from "../../lib/protocol/word64.ts"
import { ENOMEM, SysError } from "../../lib/sys/errno.ts"
import { quoteBytes, TdbError } from "../../lib/tdb/tdb.ts"
import { Failure, type Invocation } from "./invocation.ts"
import { parseUint32 } from "./numbers.ts"

const EIO = 5
const EINVAL = 22
const ETIMEDOUT = 110

/** A database of the local node's map. */
export interface FoundDatabase {
  readonly id: number
  readonly name: string
  /** Database flags of constants.ts. */
  readonly flags: number
}

/** `0x7132c184` */
export const hexId = (id: number): string => `0x${id.toString(16).padStart(8, "0")}`

export const isVolatile = (flags: number): boolean => (flags & (DbFlag.PERSISTENT | DbFlag.REPLICATED)) === 0

/**
 * The database that a word means: `0x` and an id, or a name. The local node is asked, whatever `-n` says.
 * @throws Failure after printing why
 */
export async function findDatabase(invocation: Invocation, word: string): Promise<FoundDatabase> {
  const found = await lookForDatabase(invocation, word)
  return found ?? invocation.fail(1, notFound(word))
}

export const notFound = (word: string): string => `No database matching '${word}' found`

/** The same, undefined when there is none. @throws Failure when the map can't be had */
export async function lookForDatabase(invocation: Invocation, word: string): Promise<FoundDatabase | undefined> {
  const node = invocation.localNode
  const map = await invocation.tryControl("GET_DBMAP", node)
  if (!map.ok) throw new Failure(1)
  const wanted = word.startsWith("0x") ? parseUint32(word, 16) : undefined
  for (const { dbId, flags } of map.reply) {
    if (wanted !== undefined && dbId !== (wanted.ok ? wanted.value : 0)) continue
    const named = await invocation.tryControl("GET_DBNAME", node, dbId)
    if (!named.ok) return undefined
    const name = named.reply ?? ""
    if (wanted !== undefined || name === word) return { id: dbId, name, flags }
  }
  return undefined
}

/**
 * Attaches a database that is there, as the kind that it is. As the stock tool, it switches read-only records and stickiness on where they
 * are on at this node but not on others.
 * @throws Failure after printing why
 */
export async function attachFound(invocation: Invocation, found: FoundDatabase): Promise<Database> {
  try {
    return await attachDatabase(invocation, found.name, found.flags)
  } catch (error) {
    if (error instanceof Failure) return invocation.fail(error.status, `Failed to attach to DB ${found.name}`)
    throw error
  }
}

/** Attaches a database, creating it if need be. @throws Failure after printing which step failed */
export async function attachDatabase(invocation: Invocation, name: string, flags: number): Promise<Database> {
  const { client, timeoutMs } = invocation
  const kind = kindOf(flags)
  if (timeoutMs === 0) {
    const control = { volatile: "DB_ATTACH", persistent: "DB_ATTACH_PERSISTENT", replicated: "DB_ATTACH_REPLICATED" }
    return invocation.fail(ETIMEDOUT, `attach: ${name} ${control[kind]} failed, ret=${ETIMEDOUT}`)
  }
  try {
    return await attach(client, name, {
      kind,
      readonly: (flags & DbFlag.READONLY) !== 0,
      sticky: (flags & DbFlag.STICKY) !== 0,
      timeoutMs,
    })
  } catch (error) {
    if (error instanceof AttachError) return attachFailed(invocation, error, flags)
    throw error
  }
}

function attachFailed(invocation: Invocation, error: AttachError, flags: number): never {
  const { output } = invocation
  const { database: name, step, cause } = error
  if (step === "open") {
    output.warn(`attach: ${name} tdb_wrap_open failed`)
    if (output.mode === "terminal") output.warn(`  ${error.reason}`)
    throw new Failure(ENOMEM)
  }
  if (!(cause instanceof ControlError)) return invocation.fail(EIO, `attach: ${name} ${error.reason}`)
  if (cause.reason === "closed") throw new Failure(1)
  const status = cause.reason === "status" ? cause.status : ETIMEDOUT
  if (step === "SET_DB_READONLY" || step === "SET_DB_STICKY") {
    output.warn(`set_db_flags: ${hexId(error.id ?? 0)} ${step} failed, ret=${status}`)
    output.warn(`attach: ${name} set db flags 0x${flags.toString(16).padStart(8, "0")} failed`)
  } else if (step === "DB_ATTACH" && cause.reason === "status") {
    output.warn(`attach: ${name} failed to get db_id, ret=${status}`)
  } else output.warn(`attach: ${name} ${cause.control} failed, ret=${status}`)
  if (output.mode === "terminal" && cause.text !== "") {
    output.warn(`  the daemon of node ${cause.destnode} says: ${cause.text}`)
  }
  throw new Failure(status)
}

/**
 * Runs what works on records; turns what it raises into the line of the stock tool and the end.
 * @throws Failure after printing `line` and, for people, why
 */
export async function recordWork<T>(invocation: Invocation, line: string, work: () => Promise<T>): Promise<T> {
  try {
    return await work()
  } catch (error) {
    if (error instanceof ControlError && error.reason === "closed") throw new Failure(1)
    const status = workStatus(error)
    if (status === undefined) throw error
    invocation.output.warn(line)
    if (invocation.output.mode === "terminal" && error instanceof Error) invocation.output.warn(`  ${error.message}`)
    throw new Failure(status)
  }
}

function workStatus(error: unknown): number | undefined {
  if (error instanceof ControlError) return error.reason === "timeout" ? ETIMEDOUT : EIO
  if (error instanceof DatabaseError) {
    return error.code === "EINVAL" ? EINVAL : error.code === "ETIMEDOUT" ? ETIMEDOUT : EIO
  }
  if (error instanceof SysError) return error.errno
  return error instanceof TdbError ? EIO : undefined
}

/**
 * The bytes of a word: hexadecimal behind `0x`, else as they were typed.
 * @throws Failure EINVAL after printing why
 */
export function parseBytes(invocation: Invocation, what: "key" | "value", word: string): Uint8Array {
  const parsed = bytesOfText(word.startsWith("0x") ? word : wordBytes(word))
  if (parsed instanceof Uint8Array) return parsed
  invocation.output.warn(parsed)
  return invocation.fail(EINVAL, `Failed to parse ${what} ${word}`)
}

/**
 * Bytes of hexadecimal text behind `0x`, or of other text with one character a byte; else the complaint, which quotes up to the end of the
 * string that the text is the start of: `tail` is what follows.
 */
export function bytesOfText(text: string | Uint8Array, tail = ""): Uint8Array | string {
  if (typeof text !== "string") return text
  if (!text.startsWith("0x")) return Buffer.from(text, "latin1")
  const digits = text.slice(2)
  if (digits.length % 2 !== 0) return `Key (${digits}${tail}) contains odd number of hex digits`
  const bytes = new Uint8Array(digits.length / 2)
  for (let i = 0; i < bytes.length; i++) {
    const pair = digits.slice(2 * i, 2 * i + 2)
    if (!/^[0-9a-fA-F]{2}$/.test(pair)) return `Invalid hex: ${digits.slice(2 * i)}${tail}`
    bytes[i] = Number.parseInt(pair, 16)
  }
  return bytes
}

/** A word as the shell gave it: the runtime's argument strings have lost bytes that are no UTF-8. */
function wordBytes(word: string): Uint8Array {
  if (!word.includes("\ufffd")) return Buffer.from(word)
  const line = readFileSync("/proc/self/cmdline")
  for (let start = 0; start < line.length; ) {
    const end = line.indexOf(0, start)
    const bytes = line.subarray(start, end < 0 ? line.length : end)
    if (bytes.toString() === word) return bytes
    start += bytes.length + 1
  }
  return Buffer.from(word)
}

/** The names of record flags in their order. */
const flagNames: readonly (readonly [flag: number, name: string])[] = [
  [RecordFlag.MIGRATED_WITH_DATA, "MIGRATED_WITH_DATA"],
  [RecordFlag.VACUUM_MIGRATED, "VACUUM_MIGRATED"],
  [RecordFlag.AUTOMATIC, "AUTOMATIC"],
  [RecordFlag.RO_HAVE_DELEGATIONS, "RO_HAVE_DELEGATIONS"],
  [RecordFlag.RO_HAVE_READONLY, "RO_HAVE_READONLY"],
  [RecordFlag.RO_REVOKING_READONLY, "RO_REVOKING_READONLY"],
  [RecordFlag.RO_REVOKE_COMPLETE, "RO_REVOKE_COMPLETE"],
]

/** A value's header as values. The value has at least its 24 bytes. */
export function readHeader(value: Uint8Array, at = 0) {
  return {
    rsn: word64(readU32(value, at + 4), readU32(value, at)),
    dmaster: readU32(value, at + 8),
    flags: readU32(value, at + 16),
  }
}

/** `dmaster:`, `rsn:`, `flags:` and `data(N)` of a value with its header. */
export function valueText(value: Uint8Array): string {
  const { rsn, dmaster, flags } = readHeader(value)
  const names = flagNames.filter(([flag]) => (flags & flag) !== 0).map(([, name]) => ` ${name}`)
  const data = value.subarray(HEADER_SIZE)
  return (
    `dmaster: ${dmaster}\nrsn: ${toDecimal(rsn)}\n` +
    `flags: 0x${flags.toString(16).padStart(8, "0")}${names.join("")}\n` +
    `data(${data.length}) = "${quoteBytes(data)}"\n`
  )
}

export function recordText(key: Uint8Array, value: Uint8Array): string {
  return `key(${key.length}) = "${quoteBytes(key)}"\n${valueText(value)}\n`
}

/** Bytes in JSON: as text where they are text, and in hexadecimal. */
export function bytesJson(bytes: Uint8Array): { text: string; hex: string } {
  return { text: quoteBytes(bytes), hex: Buffer.from(bytes).toString("hex") }
}

export function recordJson(key: Uint8Array, value: Uint8Array) {
  const { rsn, dmaster, flags } = readHeader(value)
  return {
    key: bytesJson(key),
    dmaster,
    rsn: toDecimal(rsn),
    flags: flagNames.filter(([flag]) => (flags & flag) !== 0).map(([, name]) => name),
    data: bytesJson(value.subarray(HEADER_SIZE)),
  }
}
