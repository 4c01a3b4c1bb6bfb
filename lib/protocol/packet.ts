// The ten packets of wire-protocol.md section 3 as values, decoded and encoded. header.ts reads and rewrites a packet where
// it lies, for paths that must not allocate. Payload structures (controls, messages) are not looked into here.

import { Reader, Writer } from "./codec.ts"
import { ALIGNMENT, CTDB_MAGIC, CTDB_VERSION, HEADER_SIZE, Operation } from "./constants.ts"
import { BODY_OFFSET } from "./header.ts"
import { textLength } from "./text.ts"
import type { Word64 } from "./word64.ts"

export { Operation } from "./constants.ts"

/** Header fields of every packet (2.5, 2.6). Length, magic and version are written and checked, never held. */
export interface PacketHeader {
  readonly generation: number
  readonly destnode: number
  readonly srcnode: number
  readonly reqid: number
}

/** 3.1 */
export interface ReqCall extends PacketHeader {
  readonly operation: typeof Operation.REQ_CALL
  readonly flags: number
  readonly dbId: number
  readonly callid: number
  readonly hopcount: number
  readonly key: Uint8Array
  readonly data: Uint8Array
}

/** 3.2 */
export interface ReplyCall extends PacketHeader {
  readonly operation: typeof Operation.REPLY_CALL
  readonly status: number
  readonly data: Uint8Array
}

/** 3.4. `recordFlags` is 0 if the packet is too short to hold them. */
export interface ReqDmaster extends PacketHeader {
  readonly operation: typeof Operation.REQ_DMASTER
  readonly dbId: number
  readonly rsn: Word64
  readonly dmaster: number
  readonly recordFlags: number
  readonly key: Uint8Array
  readonly data: Uint8Array
}

/** 3.5 */
export interface ReplyDmaster extends PacketHeader {
  readonly operation: typeof Operation.REPLY_DMASTER
  readonly dbId: number
  readonly rsn: Word64
  readonly recordFlags: number
  readonly key: Uint8Array
  readonly data: Uint8Array
}

/** 3.3 */
export interface ReplyError extends PacketHeader {
  readonly operation: typeof Operation.REPLY_ERROR
  readonly status: number
  readonly message: string
}

/** 3.6 */
export interface ReqMessage extends PacketHeader {
  readonly operation: typeof Operation.REQ_MESSAGE
  readonly srvid: Word64
  readonly data: Uint8Array
}

/** 3.7 */
export interface ReqControl extends PacketHeader {
  readonly operation: typeof Operation.REQ_CONTROL
  readonly opcode: number
  readonly srvid: Word64
  readonly clientId: number
  readonly flags: number
  readonly data: Uint8Array
}

/** 3.8. `error` is "" when there is none; a payload and an error text never travel together. */
export interface ReplyControl extends PacketHeader {
  readonly operation: typeof Operation.REPLY_CONTROL
  readonly status: number
  readonly data: Uint8Array
  readonly error: string
}

/** 3.9. `uptime` in seconds. Without version (very old senders) both are 0 and the packet is a bare header. */
export interface ReqKeepalive extends PacketHeader {
  readonly operation: typeof Operation.REQ_KEEPALIVE
  readonly version: number
  readonly uptime: number
  readonly hasVersion: boolean
}

/** 3.10 */
export interface ReqTunnel extends PacketHeader {
  readonly operation: typeof Operation.REQ_TUNNEL
  readonly tunnelId: Word64
  readonly flags: number
  readonly data: Uint8Array
}

export type Packet =
  | ReqCall
  | ReplyCall
  | ReqDmaster
  | ReplyDmaster
  | ReplyError
  | ReqMessage
  | ReqControl
  | ReplyControl
  | ReqKeepalive
  | ReqTunnel

/**
 * "client": the exact sum of the fields rounded up to 8, error texts with NUL, record flags only if not 0.
 * "daemon": at least the C minimum size, error texts of controls without NUL, record flags always (2.2, 3.4, 3.8).
 */
export type Layout = "client" | "daemon"

/** What a stock daemon sends at least (2.2), by operation. */
const DAEMON_MINIMUM = [64, 48, 64, 64, 48, 48, 32, 64, 48, 40, 56] as const
const NAMES = [
  "REQ_CALL",
  "REPLY_CALL",
  "REQ_DMASTER",
  "REPLY_DMASTER",
  "REPLY_ERROR",
  "REQ_MESSAGE",
  "operation 6",
  "REQ_CONTROL",
  "REPLY_CONTROL",
  "REQ_KEEPALIVE",
  "REQ_TUNNEL",
] as const

/** "REQ_CALL" and so on; "operation N" for numbers that mean nothing. For logs. */
export function operationName(operation: number): string {
  return NAMES[operation] ?? `operation ${operation}`
}

/**
 * The packet in bytes[start, end), of which the length word may use up less (padding after it is ignored).
 * Keys and payloads are views into `bytes`.
 * @throws ProtocolError EMSGSIZE (truncated, inner length beyond the packet), EPROTO (magic, version, operation)
 */
export function decodePacket(bytes: Uint8Array, start = 0, end = bytes.length): Packet {
  const r = new Reader(bytes, "header", start, end)
  r.field = "length"
  const length = r.u32()
  if (length < HEADER_SIZE) r.fail("EMSGSIZE", `length ${length}`, start)
  if (length > end - start) r.fail("EMSGSIZE", `length ${length}, ${end - start} bytes there`, start)
  r.end = start + length
  r.field = "ctdb_magic"
  if (r.u32() !== CTDB_MAGIC) r.fail("EPROTO", "not a CTDB packet", start + 4)
  r.field = "ctdb_version"
  const version = r.u32()
  if (version !== CTDB_VERSION) r.fail("EPROTO", `version ${version}`, start + 8)
  const generation = r.u32()
  const operation = r.u32()
  const destnode = r.u32()
  const srcnode = r.u32()
  const reqid = r.u32()
  r.structure = operationName(operation)
  switch (operation) {
    case Operation.REQ_CALL: {
      r.field = "flags"
      const flags = r.u32()
      r.field = "db_id"
      const dbId = r.u32()
      r.field = "callid"
      const callid = r.u32()
      r.field = "hopcount"
      const hopcount = r.u32()
      r.field = "keylen"
      const keylen = r.u32()
      r.field = "calldatalen"
      const datalen = r.u32()
      r.field = "key"
      const key = r.take(keylen)
      r.field = "calldata"
      const data = r.take(datalen)
      return { operation, generation, destnode, srcnode, reqid, flags, dbId, callid, hopcount, key, data }
    }
    case Operation.REPLY_CALL: {
      r.field = "status"
      const status = r.i32()
      r.field = "datalen"
      const datalen = r.u32()
      r.field = "data"
      return { operation, generation, destnode, srcnode, reqid, status, data: r.take(datalen) }
    }
    case Operation.REQ_DMASTER: {
      r.field = "db_id"
      const dbId = r.u32()
      r.field = "pad"
      r.advance(4)
      r.field = "rsn"
      const rsn = r.u64()
      r.field = "dmaster"
      const dmaster = r.u32()
      r.field = "keylen"
      const keylen = r.u32()
      r.field = "datalen"
      const datalen = r.u32()
      r.field = "key"
      const key = r.take(keylen)
      r.field = "data"
      const data = r.take(datalen)
      const recordFlags = r.remaining >= 4 ? r.u32() : 0
      return { operation, generation, destnode, srcnode, reqid, dbId, rsn, dmaster, recordFlags, key, data }
    }
    case Operation.REPLY_DMASTER: {
      r.field = "db_id"
      const dbId = r.u32()
      r.field = "pad"
      r.advance(4)
      r.field = "rsn"
      const rsn = r.u64()
      r.field = "keylen"
      const keylen = r.u32()
      r.field = "datalen"
      const datalen = r.u32()
      r.field = "key"
      const key = r.take(keylen)
      r.field = "data"
      const data = r.take(datalen)
      const recordFlags = r.remaining >= 4 ? r.u32() : 0
      return { operation, generation, destnode, srcnode, reqid, dbId, rsn, recordFlags, key, data }
    }
    case Operation.REPLY_ERROR: {
      r.field = "status"
      const status = r.i32()
      r.field = "msglen"
      const msglen = r.u32()
      r.field = "msg"
      return { operation, generation, destnode, srcnode, reqid, status, message: r.text(msglen) }
    }
    case Operation.REQ_MESSAGE: {
      r.field = "srvid"
      const srvid = r.u64()
      r.field = "datalen"
      const datalen = r.u32()
      r.field = "data"
      return { operation, generation, destnode, srcnode, reqid, srvid, data: r.take(datalen) }
    }
    case Operation.REQ_CONTROL: {
      r.field = "opcode"
      const opcode = r.u32()
      r.field = "pad"
      r.advance(4)
      r.field = "srvid"
      const srvid = r.u64()
      r.field = "client_id"
      const clientId = r.u32()
      r.field = "flags"
      const flags = r.u32()
      r.field = "datalen"
      const datalen = r.u32()
      r.field = "data"
      return { operation, generation, destnode, srcnode, reqid, opcode, srvid, clientId, flags, data: r.take(datalen) }
    }
    case Operation.REPLY_CONTROL: {
      r.field = "status"
      const status = r.i32()
      r.field = "datalen"
      const datalen = r.u32()
      r.field = "errorlen"
      const errorlen = r.u32()
      r.field = "data"
      const data = r.take(datalen)
      r.field = "error"
      // With status 0 the text means nothing; a client's decoder would not even look at it.
      const error = errorlen === 0 ? "" : r.text(errorlen)
      return { operation, generation, destnode, srcnode, reqid, status, data, error: status === 0 ? "" : error }
    }
    case Operation.REQ_KEEPALIVE: {
      if (length === HEADER_SIZE) {
        return { operation, generation, destnode, srcnode, reqid, version: 0, uptime: 0, hasVersion: false }
      }
      r.field = "version"
      const version = r.u32()
      r.field = "uptime"
      return { operation, generation, destnode, srcnode, reqid, version, uptime: r.u32(), hasVersion: true }
    }
    case Operation.REQ_TUNNEL: {
      r.field = "tunnel_id"
      const tunnelId = r.u64()
      r.field = "flags"
      const flags = r.u32()
      r.field = "datalen"
      const datalen = r.u32()
      r.field = "data"
      return { operation, generation, destnode, srcnode, reqid, tunnelId, flags, data: r.take(datalen) }
    }
    default:
      r.structure = "header"
      r.field = "operation"
      return r.fail("EPROTO", `operation ${operation}`, start + 16)
  }
}

/** Bytes that encodePacket() makes of `p`, padding included. */
export function packetSize(p: Packet, layout: Layout): number {
  let size: number = BODY_OFFSET[p.operation]
  switch (p.operation) {
    case Operation.REQ_CALL:
      size += p.key.length + p.data.length
      break
    case Operation.REQ_DMASTER:
    case Operation.REPLY_DMASTER:
      size += p.key.length + p.data.length + (layout === "daemon" || p.recordFlags !== 0 ? 4 : 0)
      break
    case Operation.REPLY_ERROR:
      size += Math.max(0, textLength(p.message)) + 1
      break
    case Operation.REPLY_CONTROL:
      size += p.data.length + errorSize(p, layout)
      break
    case Operation.REQ_KEEPALIVE:
      if (!p.hasVersion) return HEADER_SIZE
      break
    default:
      size += p.data.length
  }
  const padded = size + (-size & (ALIGNMENT - 1))
  return layout === "daemon" ? Math.max(padded, DAEMON_MINIMUM[p.operation]) : padded
}

function errorSize(p: ReplyControl, layout: Layout): number {
  if (p.error === "") return 0
  return Math.max(0, textLength(p.error)) + (layout === "client" ? 1 : 0)
}

/**
 * A fresh packet.
 * @throws ProtocolError EINVAL for what must never be sent: a number outside its field, an empty key in REQ_CALL, an
 * error text together with a payload or with status 0, text with NUL
 */
export function encodePacket(p: Packet, layout: Layout): Uint8Array {
  const bytes = new Uint8Array(packetSize(p, layout))
  writePacket(p, layout, bytes, 0, bytes.length)
  return bytes
}

/** Writes `p` as bytes[at, at + size), where `size` is packetSize(p, layout) and is left to the caller to have at hand. */
export function writePacket(p: Packet, layout: Layout, bytes: Uint8Array, at: number, size: number): void {
  const operation = p.operation
  const w = new Writer(bytes, "header", at, at + size)
  w.u32(size)
  w.u32(CTDB_MAGIC)
  w.u32(CTDB_VERSION)
  w.field = "generation"
  w.u32(p.generation)
  w.u32(operation)
  w.field = "destnode"
  w.u32(p.destnode)
  w.field = "srcnode"
  w.u32(p.srcnode)
  w.field = "reqid"
  w.u32(p.reqid)
  w.structure = NAMES[operation]
  switch (p.operation) {
    case Operation.REQ_CALL:
      w.field = "key"
      if (p.key.length === 0) w.fail("EINVAL", "empty key")
      w.field = "flags"
      w.u32(p.flags)
      w.field = "db_id"
      w.u32(p.dbId)
      w.field = "callid"
      w.u32(p.callid)
      w.field = "hopcount"
      w.u32(p.hopcount)
      w.field = "key"
      w.u32(p.key.length)
      w.u32(p.data.length)
      w.data(p.key)
      w.data(p.data)
      break
    case Operation.REPLY_CALL:
      w.field = "status"
      w.i32(p.status)
      w.field = "data"
      w.u32(p.data.length)
      w.data(p.data)
      break
    case Operation.REQ_DMASTER:
    case Operation.REPLY_DMASTER:
      w.field = "db_id"
      w.u32(p.dbId)
      w.u32(0)
      w.field = "rsn"
      w.u64(p.rsn)
      if (p.operation === Operation.REQ_DMASTER) {
        w.field = "dmaster"
        w.u32(p.dmaster)
      }
      w.field = "key"
      w.u32(p.key.length)
      w.u32(p.data.length)
      w.data(p.key)
      w.data(p.data)
      w.field = "record_flags"
      if (layout === "daemon" || p.recordFlags !== 0) w.u32(p.recordFlags)
      break
    case Operation.REPLY_ERROR:
      w.field = "status"
      w.i32(p.status)
      w.field = "msg"
      w.u32(Math.max(0, textLength(p.message)) + 1)
      w.text(p.message)
      w.u8(0)
      break
    case Operation.REQ_MESSAGE:
      w.field = "srvid"
      w.u64(p.srvid)
      w.field = "data"
      w.u32(p.data.length)
      w.data(p.data)
      break
    case Operation.REQ_CONTROL:
      w.field = "opcode"
      w.u32(p.opcode)
      w.u32(0)
      w.field = "srvid"
      w.u64(p.srvid)
      w.field = "client_id"
      w.u32(p.clientId)
      w.field = "flags"
      w.u32(p.flags)
      w.field = "data"
      w.u32(p.data.length)
      w.data(p.data)
      break
    case Operation.REPLY_CONTROL:
      w.field = "error"
      if (p.error !== "" && (p.status === 0 || p.data.length !== 0)) {
        w.fail("EINVAL", p.status === 0 ? "error text with status 0" : "error text and payload")
      }
      w.field = "status"
      w.i32(p.status)
      w.field = "data"
      w.u32(p.data.length)
      w.u32(errorSize(p, layout))
      w.data(p.data)
      w.field = "error"
      w.text(p.error)
      if (p.error !== "" && layout === "client") w.u8(0)
      break
    case Operation.REQ_KEEPALIVE:
      if (!p.hasVersion) break
      w.field = "version"
      w.u32(p.version)
      w.field = "uptime"
      w.u32(p.uptime)
      break
    case Operation.REQ_TUNNEL:
      w.field = "tunnel_id"
      w.u64(p.tunnelId)
      w.field = "flags"
      w.u32(p.flags)
      w.field = "data"
      w.u32(p.data.length)
      w.data(p.data)
  }
  w.zeros(w.end - w.offset)
}
