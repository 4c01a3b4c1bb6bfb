// What lies in a record of g_lock.tdb: the stock client's list of holders, or Samba's watcher list around its own lock (client-library 16
// to 18). Values and bytes only; who may have the lock, and waiting for it, is in g-lock.ts.

import { ProtocolError } from "../protocol/codec.ts"
import { readU32, writeU32 } from "../protocol/header.ts"
import type { ServerId } from "../protocol/structs.ts"
import { add, equal, type Word64, word64 } from "../protocol/word64.ts"

export type GLockType = "read" | "write"

/** Whose way of writing: "ctdb" is the stock client's and tool's, "samba" is smbd's and net's. */
export type GLockFormat = "ctdb" | "samba"

export interface GLockHolder {
  readonly type: GLockType
  readonly id: ServerId
}

/** Somebody who asked in the record to be woken (Samba's format only). `instance` goes into the wake-up message. */
export interface Watcher {
  readonly id: ServerId
  readonly instance: Word64
}

export interface CtdbLock {
  readonly format: "ctdb"
  readonly holders: readonly GLockHolder[]
}

export interface SambaLock {
  readonly format: "samba"
  readonly watchers: readonly Watcher[]
  readonly exclusive: ServerId | undefined
  readonly shared: readonly ServerId[]
  readonly lockEpoch: Word64
  readonly dataEpoch: Word64
  readonly userData: Uint8Array
}

/** "free" is an empty record: neither format. */
export type GLockRecord = { readonly format: "free" } | CtdbLock | SambaLock

const FREE: GLockRecord = { format: "free" }
const ENTRY = 32
const SERVER_ID = 24
const SAMBA_HEAD = 44

export function sameServer(a: ServerId, b: ServerId): boolean {
  return equal(a.pid, b.pid) && a.taskId === b.taskId && a.vnn === b.vnn && equal(a.uniqueId, b.uniqueId)
}

export function holdersOf(record: GLockRecord): readonly GLockHolder[] {
  switch (record.format) {
    case "free":
      return []
    case "ctdb":
      return record.holders
    case "samba": {
      const shared = record.shared.map((id): GLockHolder => ({ type: "read", id }))
      return record.exclusive === undefined ? shared : [{ type: "write", id: record.exclusive }, ...shared]
    }
  }
}

const read64 = (bytes: Uint8Array, at: number): Word64 => word64(readU32(bytes, at + 4), readU32(bytes, at))

function write64(bytes: Uint8Array, at: number, value: Word64): void {
  writeU32(bytes, at, value.lo)
  writeU32(bytes, at + 4, value.hi)
}

function readServer(bytes: Uint8Array, at: number): ServerId {
  return {
    pid: read64(bytes, at),
    taskId: readU32(bytes, at + 8),
    vnn: readU32(bytes, at + 12),
    uniqueId: read64(bytes, at + 16),
  }
}

function writeServer(bytes: Uint8Array, at: number, id: ServerId): void {
  write64(bytes, at, id.pid)
  writeU32(bytes, at + 8, id.taskId)
  writeU32(bytes, at + 12, id.vnn)
  write64(bytes, at + 16, id.uniqueId)
}

/**
 * Reads a record's data. Nothing in it says which format it has; a list of the stock client's is told by entries that all have a type of
 * 0 or 1, no bits in the padding behind it, and a process id: in Samba's, the bytes there are parts of other fields.
 * @throws ProtocolError EPROTO for what is neither
 */
export function readGLock(data: Uint8Array): GLockRecord {
  if (data.length === 0) return FREE
  return readCtdb(data) ?? readSamba(data)
}

function readCtdb(data: Uint8Array): CtdbLock | undefined {
  if (data.length % ENTRY !== 0) return undefined
  const holders: GLockHolder[] = []
  for (let at = 0; at < data.length; at += ENTRY) {
    const type = readU32(data, at)
    const id = readServer(data, at + 8)
    if (type > 1 || readU32(data, at + 4) !== 0 || id.pid.hi !== 0 || id.pid.lo === 0) return undefined
    holders.push({ type: type === 0 ? "read" : "write", id })
  }
  return { format: "ctdb", holders }
}

function readSamba(data: Uint8Array): SambaLock {
  const fail = (what: string, at: number): never => {
    throw new ProtocolError("EPROTO", "g_lock", "", at, what)
  }
  if (data.length < 4) fail(`${data.length} bytes are no lock`, 0)
  const count = readU32(data, 0)
  const body = 4 + ENTRY * count
  if (body > data.length) fail(`${count} watchers in ${data.length} bytes`, 0)
  const watchers: Watcher[] = []
  for (let at = 4; at < body; at += ENTRY) {
    watchers.push({ id: readServer(data, at), instance: read64(data, at + SERVER_ID) })
  }
  const none = { watchers, exclusive: undefined, shared: [], userData: new Uint8Array(0) }
  const zero = word64(0, 0)
  if (data.length - body < SAMBA_HEAD) return { format: "samba", ...none, lockEpoch: zero, dataEpoch: zero }
  const exclusive = readServer(data, body)
  const sharedCount = readU32(data, body + 40)
  const end = body + SAMBA_HEAD + SERVER_ID * sharedCount
  if (end > data.length) fail(`${sharedCount} shared holders in ${data.length} bytes`, body + 40)
  const shared: ServerId[] = []
  for (let at = body + SAMBA_HEAD; at < end; at += SERVER_ID) shared.push(readServer(data, at))
  return {
    format: "samba",
    watchers,
    exclusive: exclusive.pid.lo === 0 && exclusive.pid.hi === 0 ? undefined : exclusive,
    shared,
    lockEpoch: read64(data, body + 24),
    dataEpoch: read64(data, body + 32),
    userData: data.slice(end),
  }
}

/** The bytes of a record; none when nothing is left that anybody needs to find. */
export function writeGLock(record: GLockRecord): Uint8Array {
  if (record.format === "free") return new Uint8Array(0)
  if (record.format === "ctdb") {
    const bytes = new Uint8Array(ENTRY * record.holders.length)
    record.holders.forEach(({ type, id }, index) => {
      writeU32(bytes, ENTRY * index, type === "read" ? 0 : 1)
      writeServer(bytes, ENTRY * index + 8, id)
    })
    return bytes
  }
  const { watchers, exclusive, shared, userData } = record
  const isFree = exclusive === undefined && shared.length === 0 && userData.length === 0
  if (isFree && watchers.length === 0) return new Uint8Array(0)
  const body = 4 + ENTRY * watchers.length
  const bytes = new Uint8Array(isFree ? body : body + SAMBA_HEAD + SERVER_ID * shared.length + userData.length)
  writeU32(bytes, 0, watchers.length)
  watchers.forEach(({ id, instance }, index) => {
    writeServer(bytes, 4 + ENTRY * index, id)
    write64(bytes, 4 + ENTRY * index + SERVER_ID, instance)
  })
  if (isFree) return bytes
  if (exclusive !== undefined) writeServer(bytes, body, exclusive)
  write64(bytes, body + 24, record.lockEpoch)
  write64(bytes, body + 32, record.dataEpoch)
  writeU32(bytes, body + 40, shared.length)
  for (const [index, id] of shared.entries()) writeServer(bytes, body + SAMBA_HEAD + SERVER_ID * index, id)
  bytes.set(userData, body + SAMBA_HEAD + SERVER_ID * shared.length)
  return bytes
}

/** The record without one holder; free when nothing is left of it. */
export function withoutHolder(record: GLockRecord, id: ServerId): GLockRecord {
  switch (record.format) {
    case "free":
      return record
    case "ctdb": {
      const holders = record.holders.filter((holder) => !sameServer(holder.id, id))
      return holders.length === 0 ? FREE : { format: "ctdb", holders }
    }
    case "samba": {
      const exclusive =
        record.exclusive !== undefined && sameServer(record.exclusive, id) ? undefined : record.exclusive
      const shared = record.shared.filter((holder) => !sameServer(holder, id))
      return { ...record, exclusive, shared, lockEpoch: add(record.lockEpoch, 1) }
    }
  }
}

/** The record with one holder more. `fresh` is the format of a record that was free; epochs start anywhere. */
export function withHolder(record: GLockRecord, holder: GLockHolder, fresh: GLockFormat): GLockRecord {
  const format = record.format === "free" ? fresh : record.format
  if (format === "ctdb") {
    return { format, holders: [...(record.format === "ctdb" ? record.holders : []), holder] }
  }
  const start = word64(Math.random() * 0x100000000, Math.random() * 0x100000000)
  const base: SambaLock =
    record.format === "samba" && (record.lockEpoch.hi !== 0 || record.lockEpoch.lo !== 0)
      ? { ...record, lockEpoch: add(record.lockEpoch, 1) }
      : {
          format: "samba",
          watchers: record.format === "samba" ? record.watchers : [],
          exclusive: record.format === "samba" ? record.exclusive : undefined,
          shared: record.format === "samba" ? record.shared : [],
          lockEpoch: add(start, 1),
          dataEpoch: start,
          userData: record.format === "samba" ? record.userData : new Uint8Array(0),
        }
  return holder.type === "write" ? { ...base, exclusive: holder.id } : { ...base, shared: [...base.shared, holder.id] }
}
