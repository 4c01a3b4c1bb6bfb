// Cuts a byte stream into CTDB packets. A packet that lies whole in one received chunk is a view into that chunk; one that
// spans chunks is gathered in a buffer that grows with the bytes that came, never with the length that was announced. It
// checks the header (wire-protocol 2.1, 2.3, 2.4) and reports what is wrong; what to do about it is the owner's decision.

import { HEADER_SIZE } from "../protocol/constants.ts"
import { checkHeader, HeaderFault } from "../protocol/framing.ts"
import { readU32 } from "../protocol/header.ts"
import { dropBuffer } from "../sys/memory.ts"

/** Largest gathering buffer that is kept for the next split packet; larger ones are given back at once (bytes). */
const KEPT_BUFFER_SIZE = 65536
/** A split packet of at most this size gets its whole buffer at once; beyond it the buffer doubles as bytes come. */
const EAGER_SIZE = 65536
/** Bytes of a gathering buffer at least, so that small packets share one. */
const SMALLEST_BUFFER = 256

const NO_BYTES = new Uint8Array(0)

export interface ReaderLimits {
  /** The longest packet that is believed (bytes, header included). */
  readonly maxPacketSize: number
  /** What every length must be a multiple of: 8 between nodes, 1 on the Unix socket (wire-protocol 2.2). */
  readonly alignment: number
}

/** What next() found. */
export const Found = {
  /** `packet` holds a packet. */
  PACKET: 0,
  /** All complete packets are read. */
  NEED_MORE: 1,
  /** `reason` says what is wrong with the header at hand; skip() passes over it unless `canSkip` is false. */
  BAD_HEADER: 2,
} as const
export type Found = (typeof Found)[keyof typeof Found]

export class PacketReader {
  /** The packet that next() found: valid until the next call of next(). */
  packet: Uint8Array = NO_BYTES
  reason = ""
  canSkip = true
  /** Bytes received that have not been handed out, skipped ones excluded. */
  bufferedBytes = 0

  /** Chunks not yet looked at, after `chunk`. */
  private readonly waiting: Uint8Array[] = []
  private waitingHead = 0
  private chunk: Uint8Array = NO_BYTES
  private at = 0
  /** A chunk that is read to its end; what next() has found last may still be a view of it. */
  private spent: Uint8Array | undefined
  /** Start of a packet whose rest has not come, `gathered` bytes of it. */
  private gather: Uint8Array = NO_BYTES
  private gathered = 0
  /** The last call of next() returned the gathered packet: its buffer is free at the next call. */
  private handedOut = false
  /** Bytes still to pass over, after skip(). */
  private skipping = 0
  private badLength = 0

  constructor(private readonly limits: ReaderLimits) {}

  /** Bytes received that nobody has looked at: without those of a packet whose rest has not come. */
  get unreadBytes(): number {
    return this.handedOut ? this.bufferedBytes : this.bufferedBytes - this.gathered
  }

  /** Takes a received chunk. The reader owns its bytes from now on. */
  push(chunk: Uint8Array): void {
    if (chunk.length === 0) return
    this.bufferedBytes += chunk.length
    if (this.at === this.chunk.length) {
      this.chunk = chunk
      this.at = 0
    } else this.waiting.push(chunk)
  }

  next(): Found {
    this.dropSpent()
    if (this.gathered === 0) {
      // The common case: a whole packet in the chunk at hand.
      const { chunk, at } = this
      const available = chunk.length - at
      if (available >= HEADER_SIZE && this.skipping === 0) {
        const length = readU32(chunk, at)
        if (length <= available) {
          if (!this.headerIsGood(chunk, at, length)) return Found.BAD_HEADER
          this.packet = available === length && at === 0 ? chunk : chunk.subarray(at, at + length)
          this.consume(length)
          return Found.PACKET
        }
      }
    } else if (this.handedOut) {
      this.handedOut = false
      this.gathered = 0
      if (this.gather.length > KEPT_BUFFER_SIZE) this.gather = NO_BYTES
      return this.next()
    }
    return this.nextSplit()
  }

  /** Passes over the packet with the bad header that next() reported, as far as it has come and as its rest comes. */
  skip(): void {
    const gathered = this.gathered
    this.gathered = 0
    if (this.badLength < gathered) {
      // A length of 1 to 3: some of the gathered bytes belong to what follows.
      const rest = this.chunk.subarray(this.at)
      const joined = new Uint8Array(gathered - this.badLength + rest.length)
      joined.set(this.gather.subarray(this.badLength, gathered))
      joined.set(rest, gathered - this.badLength)
      this.chunk = joined
      this.at = 0
      this.bufferedBytes -= this.badLength
      return
    }
    this.bufferedBytes -= gathered
    this.skipping = this.badLength - gathered
    this.passOver()
  }

  private passOver(): void {
    while (this.skipping > 0 && this.at < this.chunk.length) {
      const count = Math.min(this.skipping, this.chunk.length - this.at)
      this.skipping -= count
      this.consume(count)
    }
  }

  /** The slow way: fewer bytes at hand than a header or a packet needs. */
  private nextSplit(): Found {
    this.passOver()
    if (this.skipping > 0 || this.at === this.chunk.length) return Found.NEED_MORE
    // A whole packet may start here after bytes were passed over.
    if (this.gathered === 0 && this.chunk.length - this.at >= HEADER_SIZE) {
      const length = readU32(this.chunk, this.at)
      if (!this.headerIsGood(this.chunk, this.at, length)) return Found.BAD_HEADER
      if (length <= this.chunk.length - this.at) return this.next()
    }
    // The length, then the header, then the packet: never a byte of the packet after this one.
    if (!this.gatherUpTo(4)) return Found.NEED_MORE
    const length = readU32(this.gather, 0)
    if (length < HEADER_SIZE || length > this.limits.maxPacketSize) {
      this.headerIsGood(this.gather, 0, length)
      return Found.BAD_HEADER
    }
    if (!this.gatherUpTo(HEADER_SIZE)) return Found.NEED_MORE
    if (!this.headerIsGood(this.gather, 0, length)) return Found.BAD_HEADER
    if (!this.gatherUpTo(length)) return Found.NEED_MORE
    this.packet = this.gather.length === length ? this.gather : this.gather.subarray(0, length)
    this.handedOut = true
    this.bufferedBytes -= length
    return Found.PACKET
  }

  /** Moves bytes from the chunks to the gathering buffer until it holds `total`. False: they have not all come. */
  private gatherUpTo(total: number): boolean {
    while (this.gathered < total) {
      const count = Math.min(total - this.gathered, this.chunk.length - this.at)
      if (count === 0) return false
      this.makeRoom(this.gathered + count, total)
      this.gather.set(this.chunk.subarray(this.at, this.at + count), this.gathered)
      this.gathered += count
      // Still buffered, only elsewhere.
      this.bufferedBytes += count
      this.consume(count)
    }
    return true
  }

  private makeRoom(needed: number, total: number): void {
    if (this.gather.length >= needed) return
    const size =
      total <= EAGER_SIZE
        ? Math.max(total, SMALLEST_BUFFER)
        : Math.min(total, Math.max(EAGER_SIZE, needed, 2 * this.gather.length))
    const grown = new Uint8Array(size)
    grown.set(this.gather.subarray(0, this.gathered))
    this.gather = grown
  }

  private consume(count: number): void {
    this.at += count
    this.bufferedBytes -= count
    if (this.at < this.chunk.length) return
    this.at = 0
    // The one before was read to its end by gathering, and nothing shows it.
    this.dropSpent()
    this.spent = this.chunk
    if (this.waitingHead === this.waiting.length) {
      this.chunk = NO_BYTES
      return
    }
    this.chunk = this.waiting[this.waitingHead]!
    this.waiting[this.waitingHead++] = NO_BYTES
    if (this.waitingHead === this.waiting.length) {
      this.waiting.length = 0
      this.waitingHead = 0
    }
  }

  private dropSpent(): void {
    if (this.spent === undefined) return
    const { spent } = this
    this.spent = undefined
    dropBuffer(spent)
  }

  /** Looks at as much of the header as the length allows, and sets reason, canSkip and badLength if it can't be right. */
  private headerIsGood(bytes: Uint8Array, at: number, length: number): boolean {
    const { maxPacketSize, alignment } = this.limits
    const faults = length <= maxPacketSize ? checkHeader(bytes, at, HEADER_SIZE) & ~HeaderFault.INCOMPLETE : 0
    if (length > maxPacketSize) this.reason = `length ${length} is over the limit of ${maxPacketSize}`
    else if (length < HEADER_SIZE) this.reason = `length ${length} is shorter than a header`
    else if ((faults & HeaderFault.BAD_MAGIC) !== 0)
      this.reason = `wrong magic 0x${readU32(bytes, at + 4).toString(16)}`
    else if ((faults & HeaderFault.BAD_VERSION) !== 0) {
      this.reason = `wrong protocol version ${readU32(bytes, at + 8)}`
    } else if (alignment > 1 && (faults & HeaderFault.UNALIGNED) !== 0) {
      this.reason = `length ${length} is not a multiple of ${alignment}`
    } else return true
    this.badLength = length
    this.canSkip = length > 0
    return false
  }
}
