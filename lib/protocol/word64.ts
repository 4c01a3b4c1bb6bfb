// 64-bit wire fields as two unsigned 32-bit words, so that hot paths never touch bigint.
// Conversions to bigint and to text are for the edges (printing, JSON, command lines) only.
// No arithmetic beyond comparison and small additions lives here.

/** A 64-bit value; both words are unsigned 32-bit integers. */
export interface Word64 {
  readonly hi: number
  readonly lo: number
}

export const ZERO64: Word64 = Object.freeze({ hi: 0, lo: 0 })

/** Builds a value from its two words; each is reduced to unsigned 32 bits. */
export function word64(hi: number, lo: number): Word64 {
  return { hi: hi >>> 0, lo: lo >>> 0 }
}

/** The low 64 bits of `value` (negative numbers give their two's complement). */
export function fromBigInt(value: bigint): Word64 {
  const bits = BigInt.asUintN(64, value)
  return { hi: Number(bits >> 32n), lo: Number(bits & 0xffffffffn) }
}

/** From an integer number. @throws RangeError unless `value` is a safe integer; negatives give their two's complement. */
export function fromNumber(value: number): Word64 {
  if (!Number.isSafeInteger(value)) throw new RangeError(`${value} is not a safe integer`)
  return { hi: Math.floor(value / 0x100000000) >>> 0, lo: value >>> 0 }
}

/** The unsigned value. */
export function toBigInt(value: Word64): bigint {
  return (BigInt(value.hi) << 32n) | BigInt(value.lo)
}

/** The unsigned value as a number: exact below 2^53, else rounded. For sizes and sequence numbers, not for srvids. */
export function toNumber(value: Word64): number {
  return value.hi * 0x100000000 + value.lo
}

/** Unsigned decimal digits. */
export function toDecimal(value: Word64): string {
  return value.hi === 0 ? String(value.lo) : toBigInt(value).toString()
}

/** 16 lower-case hexadecimal digits, without prefix. */
export function toHex(value: Word64): string {
  return value.hi.toString(16).padStart(8, "0") + value.lo.toString(16).padStart(8, "0")
}

export function equal(a: Word64, b: Word64): boolean {
  return a.hi === b.hi && a.lo === b.lo
}

/** Unsigned order: negative, zero or positive. */
export function compare(a: Word64, b: Word64): number {
  return a.hi === b.hi ? a.lo - b.lo : a.hi - b.hi
}

/** `value` + `small` modulo 2^64; `small` is a safe integer, possibly negative. */
export function add(value: Word64, small: number): Word64 {
  const lo = value.lo + (small >>> 0)
  const hi = value.hi + Math.floor(small / 0x100000000) + (lo > 0xffffffff ? 1 : 0)
  return { hi: hi >>> 0, lo: lo >>> 0 }
}
