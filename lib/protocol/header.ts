// A packet where it lies in a byte array: its fields read and rewritten in place, for what routes, matches and forwards
// packets without decoding them and must not allocate. decodePacket() (packet.ts) makes values and names what is wrong.
// `at` is where the packet starts. Offsets: wire-protocol.md 2.1 and section 3.

import { HEADER_SIZE, Operation } from "./constants.ts"

/** A little-endian unsigned 32-bit number. */
export function readU32(bytes: Uint8Array, at: number): number {
  return (bytes[at]! | (bytes[at + 1]! << 8) | (bytes[at + 2]! << 16) | (bytes[at + 3]! << 24)) >>> 0
}

export function writeU32(bytes: Uint8Array, at: number, value: number): void {
  bytes[at] = value
  bytes[at + 1] = value >>> 8
  bytes[at + 2] = value >>> 16
  bytes[at + 3] = value >>> 24
}

// The header. It must be there as a whole: checked by checkHeader() (framing.ts) or a connection's reader.

export const lengthOf = (packet: Uint8Array, at = 0): number => readU32(packet, at)
export const generationOf = (packet: Uint8Array, at = 0): number => readU32(packet, at + 12)
export const operationOf = (packet: Uint8Array, at = 0): number => readU32(packet, at + 16)
export const destnodeOf = (packet: Uint8Array, at = 0): number => readU32(packet, at + 20)
export const srcnodeOf = (packet: Uint8Array, at = 0): number => readU32(packet, at + 24)
export const reqidOf = (packet: Uint8Array, at = 0): number => readU32(packet, at + 28)

export const putGeneration = (packet: Uint8Array, generation: number, at = 0): void =>
  writeU32(packet, at + 12, generation)
export const putDestnode = (packet: Uint8Array, pnn: number, at = 0): void => writeU32(packet, at + 20, pnn)
export const putSrcnode = (packet: Uint8Array, pnn: number, at = 0): void => writeU32(packet, at + 24, pnn)
export const putReqid = (packet: Uint8Array, reqid: number, at = 0): void => writeU32(packet, at + 28, reqid)

/** Where the variable part of each operation begins (section 3), by operation. */
export const BODY_OFFSET = [56, 40, 60, 56, 40, 44, 32, 60, 44, 40, 48] as const

/**
 * Whether the packet, all of whose bytes are there, has a known operation, all of its fixed fields, and inner lengths
 * that stay inside it: exactly when decodePacket() succeeds. The functions below need a packet for which this holds.
 */
export function checkBody(packet: Uint8Array, at = 0): boolean {
  const length = readU32(packet, at)
  const operation = readU32(packet, at + 16)
  if (operation === Operation.REQ_KEEPALIVE) return length === HEADER_SIZE || length >= 40
  const body = BODY_OFFSET[operation]
  if (body === undefined || operation === 6 || length < body) return false
  // The sums can't overflow: both lengths are below 2^32 and numbers are exact to 2^53.
  switch (operation) {
    case Operation.REQ_CALL:
    case Operation.REPLY_DMASTER:
      return readU32(packet, at + 48) + readU32(packet, at + 52) <= length - body
    case Operation.REQ_DMASTER:
      return readU32(packet, at + 52) + readU32(packet, at + 56) <= length - body
    case Operation.REPLY_CONTROL:
      return readU32(packet, at + 36) + readU32(packet, at + 40) <= length - body
    case Operation.REPLY_CALL:
    case Operation.REPLY_ERROR:
      return readU32(packet, at + 36) <= length - body
    default:
      // REQ_MESSAGE, REQ_CONTROL and REQ_TUNNEL: the length word is the last fixed field.
      return readU32(packet, at + body - 4) <= length - body
  }
}

// REQ_CALL (3.1): the key lies at REQ_CALL_KEY, the call data directly behind it.

export const REQ_CALL_KEY = 56
export const callFlags = (packet: Uint8Array, at = 0): number => readU32(packet, at + 32)
export const callDbId = (packet: Uint8Array, at = 0): number => readU32(packet, at + 36)
export const callCallid = (packet: Uint8Array, at = 0): number => readU32(packet, at + 40)
export const callKeyLength = (packet: Uint8Array, at = 0): number => readU32(packet, at + 48)
export const callDataLength = (packet: Uint8Array, at = 0): number => readU32(packet, at + 52)
export const putCallid = (packet: Uint8Array, callid: number, at = 0): void => writeU32(packet, at + 40, callid)
export const putHopcount = (packet: Uint8Array, hopcount: number, at = 0): void => writeU32(packet, at + 44, hopcount)
/** The hopcount of a REQ_CALL (3.1); 0 for a packet too short to have one. */
export const hopcountOf = (packet: Uint8Array, at = 0): number =>
  packet.length - at < 48 ? 0 : readU32(packet, at + 44)

// REPLY_CALL (3.2)

export const REPLY_CALL_DATA = 40
export const replyCallStatus = (packet: Uint8Array, at = 0): number => readU32(packet, at + 32) | 0
export const replyCallDataLength = (packet: Uint8Array, at = 0): number => readU32(packet, at + 36)

// REQ_MESSAGE (3.6)

export const REQ_MESSAGE_DATA = 44
export const messageSrvidLo = (packet: Uint8Array, at = 0): number => readU32(packet, at + 32)
export const messageSrvidHi = (packet: Uint8Array, at = 0): number => readU32(packet, at + 36)
export const messageDataLength = (packet: Uint8Array, at = 0): number => readU32(packet, at + 40)

// REQ_CONTROL (3.7)

export const REQ_CONTROL_DATA = 60
export const controlOpcode = (packet: Uint8Array, at = 0): number => readU32(packet, at + 32)
export const controlSrvidLo = (packet: Uint8Array, at = 0): number => readU32(packet, at + 40)
export const controlSrvidHi = (packet: Uint8Array, at = 0): number => readU32(packet, at + 44)
export const controlClientId = (packet: Uint8Array, at = 0): number => readU32(packet, at + 48)
export const controlFlags = (packet: Uint8Array, at = 0): number => readU32(packet, at + 52)
export const controlDataLength = (packet: Uint8Array, at = 0): number => readU32(packet, at + 56)
export const putClientId = (packet: Uint8Array, clientId: number, at = 0): void => writeU32(packet, at + 48, clientId)

// REPLY_CONTROL (3.8)

export const REPLY_CONTROL_DATA = 44
export const replyControlStatus = (packet: Uint8Array, at = 0): number => readU32(packet, at + 32) | 0
export const replyControlDataLength = (packet: Uint8Array, at = 0): number => readU32(packet, at + 36)
export const replyControlErrorLength = (packet: Uint8Array, at = 0): number => readU32(packet, at + 40)
