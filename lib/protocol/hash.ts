// The Jenkins hash that CTDB uses for lmasters and database ids: Bob Jenkins' public-domain lookup3, function
// hashlittle, initial value 0 (wire-protocol.md 3.1). TDB's own default hash is not here.

import { textLength, writeText } from "./text.ts"

/** Hash of bytes[start, end) as an unsigned 32-bit integer. Allocates nothing. */
export function jenkinsHash(bytes: Uint8Array, start = 0, end = bytes.length): number {
  let left = end - start
  let at = start
  let a = (0xdeadbeef + left) | 0
  let b = a
  let c = a

  while (left > 12) {
    a = (a + word(bytes, at)) | 0
    b = (b + word(bytes, at + 4)) | 0
    c = (c + word(bytes, at + 8)) | 0
    a = (a - c) ^ ((c << 4) | (c >>> 28))
    c = (c + b) | 0
    b = (b - a) ^ ((a << 6) | (a >>> 26))
    a = (a + c) | 0
    c = (c - b) ^ ((b << 8) | (b >>> 24))
    b = (b + a) | 0
    a = (a - c) ^ ((c << 16) | (c >>> 16))
    c = (c + b) | 0
    b = (b - a) ^ ((a << 19) | (a >>> 13))
    a = (a + c) | 0
    c = (c - b) ^ ((b << 4) | (b >>> 28))
    b = (b + a) | 0
    at += 12
    left -= 12
  }
  if (left === 0) return c >>> 0

  // The last 1 to 12 bytes, as if followed by zeros.
  a = (a + tailWord(bytes, at, left)) | 0
  if (left > 4) b = (b + tailWord(bytes, at + 4, left - 4)) | 0
  if (left > 8) c = (c + tailWord(bytes, at + 8, left - 8)) | 0
  c = ((c ^ b) - ((b << 14) | (b >>> 18))) | 0
  a = ((a ^ c) - ((c << 11) | (c >>> 21))) | 0
  b = ((b ^ a) - ((a << 25) | (a >>> 7))) | 0
  c = ((c ^ b) - ((b << 16) | (b >>> 16))) | 0
  a = ((a ^ c) - ((c << 4) | (c >>> 28))) | 0
  b = ((b ^ a) - ((a << 14) | (a >>> 18))) | 0
  c = ((c ^ b) - ((b << 24) | (b >>> 8))) | 0
  return c >>> 0
}

function word(bytes: Uint8Array, at: number): number {
  return bytes[at]! | (bytes[at + 1]! << 8) | (bytes[at + 2]! << 16) | (bytes[at + 3]! << 24)
}

function tailWord(bytes: Uint8Array, at: number, left: number): number {
  if (left >= 4) return word(bytes, at)
  let value = bytes[at]!
  if (left > 1) value |= bytes[at + 1]! << 8
  if (left > 2) value |= bytes[at + 2]! << 16
  return value
}

/** The id of a database: the hash of its name including the NUL (wire-protocol.md 3.1). @throws RangeError on NUL */
export function databaseId(name: string): number {
  const length = textLength(name)
  if (length < 0) throw new RangeError("a database name can't contain NUL")
  const bytes = new Uint8Array(length + 1)
  writeText(bytes, 0, name)
  return jenkinsHash(bytes)
}

/** PNN of the lmaster of `key`, or undefined while the VNN map is empty. */
export function lmasterOf(key: Uint8Array, vnnMap: { readonly map: readonly number[] }): number | undefined {
  const size = vnnMap.map.length
  return size === 0 ? undefined : vnnMap.map[jenkinsHash(key) % size]
}
