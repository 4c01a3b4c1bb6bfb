// Header fields of a packet that lies in a byte array, read and rewritten in place: what routes and matches packets without
// decoding them. The packet's header must have been checked (framing.ts, a reader); decodePacket() is for its contents.
// Offsets: wire-protocol.md 2.1.

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

export const generationOf = (packet: Uint8Array): number => readU32(packet, 12)
export const operationOf = (packet: Uint8Array): number => readU32(packet, 16)
export const destnodeOf = (packet: Uint8Array): number => readU32(packet, 20)
export const srcnodeOf = (packet: Uint8Array): number => readU32(packet, 24)
export const reqidOf = (packet: Uint8Array): number => readU32(packet, 28)

export const putDestnode = (packet: Uint8Array, pnn: number): void => writeU32(packet, 20, pnn)

/** The hopcount of a REQ_CALL (3.1); 0 for a packet too short to have one. */
export const hopcountOf = (packet: Uint8Array): number => (packet.length < 48 ? 0 : readU32(packet, 44))
