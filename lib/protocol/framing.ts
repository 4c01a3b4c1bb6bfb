// What a stream reader needs to cut packets out of a byte stream (wire-protocol.md 2.1 to 2.4): the verdict on the
// header at an offset, as bits. Policy (drop the packet, close, tear the link down) is the reader's.

import { ALIGNMENT, CTDB_MAGIC, CTDB_VERSION, HEADER_SIZE } from "./constants.ts"
import { readU32 } from "./header.ts"

/** Bits of checkHeader(); 0 means a whole packet with a good header is there. */
export const HeaderFault = {
  /** More bytes must arrive: fewer than the checks need, or fewer than the packet's length. */
  INCOMPLETE: 0x1,
  /** Length 0: the peer's end of file. Nothing else was checked. */
  ZERO_LENGTH: 0x2,
  /** Length 1 to 31. Nothing else was checked. */
  SHORT: 0x4,
  BAD_MAGIC: 0x8,
  BAD_VERSION: 0x10,
  /** Length not a multiple of 8: an error between nodes, legal on the Unix socket. */
  UNALIGNED: 0x20,
} as const

/**
 * Checks the header at `at`, of which (and of what follows) `available` bytes are there. Faults are reported as soon as
 * the bytes that show them have arrived, together with INCOMPLETE while the packet is not there as a whole.
 */
export function checkHeader(bytes: Uint8Array, at: number, available: number): number {
  if (available < 4) return HeaderFault.INCOMPLETE
  const length = readU32(bytes, at)
  if (length < HEADER_SIZE) return length === 0 ? HeaderFault.ZERO_LENGTH : HeaderFault.SHORT
  let faults = available < length ? HeaderFault.INCOMPLETE : 0
  if (length % ALIGNMENT !== 0) faults |= HeaderFault.UNALIGNED
  if (available >= 8 && readU32(bytes, at + 4) !== CTDB_MAGIC) faults |= HeaderFault.BAD_MAGIC
  if (available >= 12 && readU32(bytes, at + 8) !== CTDB_VERSION) faults |= HeaderFault.BAD_VERSION
  return faults
}
