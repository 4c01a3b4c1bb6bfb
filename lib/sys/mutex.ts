// Robust process-shared pthread mutexes in mapped memory. A mutex belongs to the thread that locked it and the kernel hands it on
// when that thread dies, so only libc may write the lock word. Addresses are those of the mapping and must stay mapped while held.

import { dlopen, type Pointer, ptr } from "bun:ffi"
import { EBUSY, EDEADLK, EOWNERDEAD, SysError } from "./errno.ts"

const libc = dlopen("libc.so.6", {
  pthread_mutex_lock: { args: ["ptr"], returns: "i32" },
  pthread_mutex_trylock: { args: ["ptr"], returns: "i32" },
  pthread_mutex_timedlock: { args: ["ptr", "ptr"], returns: "i32" },
  pthread_mutex_unlock: { args: ["ptr"], returns: "i32" },
  pthread_mutex_consistent: { args: ["ptr"], returns: "i32" },
  clock_gettime: { args: ["i32", "ptr"], returns: "i32" },
}).symbols

/** Bytes of a pthread_mutex_t (x86-64 glibc; reference/tdb-format.md 1.7). */
export const MUTEX_SIZE = 40
const KIND_OFFSET = 16
// ERRORCHECK | robust | process shared
const KIND = 0x92
const ETIMEDOUT = 110

export const LOCKED = 0
/** The lock is ours, its owner died holding it, and it is consistent again. */
export const LOCKED_AFTER_DEATH = 1
export const BUSY = 2
export type MutexResult = typeof LOCKED | typeof LOCKED_AFTER_DEATH | typeof BUSY

/** True where this machine's mutex layout is the one this module knows. */
export const mutexesSupported = process.arch === "x64" && process.platform === "linux"

/** Initialise a mutex in `bytes` at `offset`: the same 40 bytes that pthread_mutex_init writes. */
export function initMutex(bytes: Uint8Array, offset: number): void {
  bytes.fill(0, offset, offset + MUTEX_SIZE)
  bytes[offset + KIND_OFFSET] = KIND
}

function settle(errno: number, call: string, address: number): MutexResult {
  if (errno === EOWNERDEAD) {
    const failed = libc.pthread_mutex_consistent(address as Pointer)
    if (failed !== 0) throw new SysError("pthread_mutex_consistent", failed)
    return LOCKED_AFTER_DEATH
  }
  if (errno === EBUSY || errno === ETIMEDOUT) return BUSY
  throw new SysError(call, errno)
}

/** Lock, blocking this thread. Raises SysError: EDEADLK when this thread holds it already, ENOTRECOVERABLE. */
export function lockMutex(address: number): MutexResult {
  const errno = libc.pthread_mutex_lock(address as Pointer)
  return errno === 0 ? LOCKED : settle(errno, "pthread_mutex_lock", address)
}

/** Lock without waiting. BUSY also when this thread holds it already, which can only be through another handle on the file. */
export function tryLockMutex(address: number): MutexResult {
  const errno = libc.pthread_mutex_trylock(address as Pointer)
  if (errno === EDEADLK) return BUSY
  return errno === 0 ? LOCKED : settle(errno, "pthread_mutex_trylock", address)
}

const timespec = new Float64Array(new ArrayBuffer(16))
const timespecWords = new Int32Array(timespec.buffer)
const timespecAddress = ptr(timespec)

/** Lock, giving up with BUSY after `wait_ms` (whole milliseconds, below 1000). */
export function lockMutexFor(address: number, wait_ms: number): MutexResult {
  libc.clock_gettime(0, timespecAddress)
  const nanoseconds = timespecWords[2]! + wait_ms * 1_000_000
  // seconds since 1970 fit 32 unsigned bits until 2106
  timespecWords[0] = ((timespecWords[0]! >>> 0) + (nanoseconds >= 1_000_000_000 ? 1 : 0)) | 0
  timespecWords[2] = nanoseconds % 1_000_000_000
  const errno = libc.pthread_mutex_timedlock(address as Pointer, timespecAddress)
  return errno === 0 ? LOCKED : settle(errno, "pthread_mutex_timedlock", address)
}

/** Unlock on the thread that locked. Raises SysError EPERM otherwise. */
export function unlockMutex(address: number): void {
  const errno = libc.pthread_mutex_unlock(address as Pointer)
  if (errno !== 0) throw new SysError("pthread_mutex_unlock", errno)
}
