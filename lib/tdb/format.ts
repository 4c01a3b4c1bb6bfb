// The numbers of the TDB file format (tdb-format.md sections 1, 3 and 4): magics, header words, record words, flags, lock offsets,
// and how files grow. No access to any file.

import { PAGE_SIZE } from "../sys/memory.ts"
import { MUTEX_SIZE } from "../sys/mutex.ts"

/** "TDB file\n" and zeros, 32 bytes, never byte swapped. */
export const MAGIC_FOOD = "TDB file\n"
export const HEADER_SIZE = 168
export const VERSION = 0x2601196d
export const VERSION_SWAPPED = 0x6d190126

// Byte offsets of header words.
export const AT_VERSION = 32
export const AT_HASH_SIZE = 36
export const AT_RWLOCKS = 40
export const AT_RECOVERY_START = 44
export const AT_SEQUENCE_NUMBER = 48
export const AT_MAGIC1_HASH = 52
export const AT_MAGIC2_HASH = 56
export const AT_FEATURE_FLAGS = 60
export const AT_MUTEX_SIZE = 64
export const AT_FREELIST = 168
export const AT_CHAINS = 172

export const RWLOCKS_HASH = 0x0bad1a51
export const RWLOCKS_FEATURES = 0x0bad1a52
export const FEATURE_MUTEX = 1

// Record header words.
export const RECORD_HEADER = 24
export const AT_NEXT = 0
export const AT_REC_LEN = 4
export const AT_KEY_LEN = 8
export const AT_DATA_LEN = 12
export const AT_FULL_HASH = 16
export const AT_MAGIC = 20

// Record magics as signed 32-bit values, as an Int32Array yields them.
export const LIVE = 0x26011999 | 0
export const FREE = 0xd9fee666 | 0
export const DEAD = 0xfee1dead | 0
export const RECOVERY_ACTIVE = 0xf53bc0e7 | 0
export const RECOVERY_IDLE = 0
export const PAD = 0x42424242

/** A free record keeps at least this much when space is carved from it, else it is taken whole. */
export const MIN_CARVE = 36

/** Largest map (bytes): offsets are 32 bit. */
export const MAP_SIZE_MAX = 0xffffffff

// Open flags.
export const CLEAR_IF_FIRST = 0x0001
export const INTERNAL = 0x0002
export const NOLOCK = 0x0004
export const NOMMAP = 0x0008
export const CONVERT = 0x0010
export const BIGENDIAN = 0x0020
export const NOSYNC = 0x0040
export const SEQNUM = 0x0080
export const VOLATILE = 0x0100
export const ALLOW_NESTING = 0x0200
export const DISALLOW_NESTING = 0x0400
export const INCOMPATIBLE_HASH = 0x0800
export const MUTEX_LOCKING = 0x1000

export const DEFAULT_HASH_SIZE = 131
/** max_dead of a handle opened with VOLATILE. */
export const VOLATILE_MAX_DEAD = 5

// fcntl lock offsets: raw file offsets in plain and in mutex files.
export const OPEN_LOCK = 0
export const ACTIVE_LOCK = 4
export const TRANSACTION_LOCK = 8
export const SEQNUM_LOCK = 48
export const FREELIST_LOCK = 164
export const CHAIN_LOCKS = 168

// The mutex area (tdb-format.md 1.7).
export const AT_ALLRECORD_MUTEX = 168
export const AT_ALLRECORD_WORD = 208
export const AT_LIST_MUTEXES = 216
export const ALLRECORD_FREE = 2

/** Bytes of the mutex area of a file with `hashSize` chains, which is also where its map starts. */
export function mutexAreaSize(hashSize: number): number {
  return roundUp(AT_LIST_MUTEXES + MUTEX_SIZE * (hashSize + 1), PAGE_SIZE)
}

export function roundUp(value: number, multiple: number): number {
  return Math.ceil(value / multiple) * multiple
}

export function align4(value: number): number {
  return value % 4 === 0 ? value : value + 4 - (value % 4)
}

/** Where the records start. */
export function dataStart(hashSize: number): number {
  return AT_CHAINS + 4 * hashSize
}

/** How many bytes a map of `mapSize` bytes grows when `size` bytes are needed: libtdb's policy (tdb-format.md 1.9). */
export function growth(mapSize: number, size: number): number {
  if (size > MAP_SIZE_MAX - mapSize) return size
  const increment = size > 100 * 1024 ? size * 2 : size * 100
  if (increment > MAP_SIZE_MAX || mapSize + increment > MAP_SIZE_MAX) return MAP_SIZE_MAX - mapSize
  const top = mapSize + increment
  const factor = mapSize > 100 * 1024 * 1024 ? 1.1 : 1.25
  const wanted = Math.max(top, Math.floor(mapSize * factor))
  if (wanted + PAGE_SIZE > MAP_SIZE_MAX) return MAP_SIZE_MAX - mapSize
  return roundUp(wanted, PAGE_SIZE) - mapSize
}

export function swap32(value: number): number {
  return (value << 24) | ((value & 0xff00) << 8) | ((value >>> 8) & 0xff00) | (value >>> 24)
}
