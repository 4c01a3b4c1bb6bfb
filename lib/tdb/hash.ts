// The two hash functions that TDB files use, and the pair of header words by which a file says which of them it uses. Functions
// supplied by a caller, which libtdb allows, are not supported: no CTDB or Samba file uses one.

import { jenkinsHash } from "../protocol/hash.ts"

export { jenkinsHash }

/** Hash of the key bytes as an unsigned 32-bit integer. */
export type HashFunction = (key: Uint8Array) => number

/** TDB's default hash (tdb-format.md section 2), used by persistent databases. */
export function oldHash(key: Uint8Array): number {
  const length = key.length
  let value = Math.imul(0x238f13af, length)
  let shift = 0
  for (let i = 0; i < length; i++) {
    value = (value + (key[i]! << shift)) | 0
    shift += 5
    if (shift >= 24) shift -= 24
  }
  return (Math.imul(1103515243, value) + 12345) >>> 0
}

export interface HashKind {
  readonly name: "old" | "jenkins"
  readonly hash: HashFunction
  /** magic1_hash: hash of the ten bytes "TDB file\n\0". */
  readonly magic1: number
  /** magic2_hash: hash of 0x26011999 in the byte order of the file. */
  readonly magic2: number
  readonly magic2Swapped: number
}

export const OLD_HASH: HashKind = {
  name: "old",
  hash: oldHash,
  magic1: 0xf67d9f0d,
  magic2: 0x3afef920,
  magic2Swapped: 0x566f1e0f,
}

export const JENKINS_HASH: HashKind = {
  name: "jenkins",
  hash: (key) => jenkinsHash(key, 0, key.length),
  magic1: 0xd7b694e5,
  magic2: 0x76b9440e,
  magic2Swapped: 0x123c1283,
}
