// Byte-range locks that belong to an open file description (F_OFD_*). They exclude the POSIX locks of other processes in both
// directions, but closing another descriptor of the same file does not drop them. They know no deadlock detection.

import { dlopen, ptr } from "bun:ffi"
import { EACCES, EAGAIN, EINTR, SysError } from "./errno.ts"
import { lastErrno } from "./memory.ts"

const libc = dlopen("libc.so.6", {
  fcntl: { args: ["i32", "i32", "ptr"], returns: "i32" },
}).symbols

// asm-generic/fcntl.h
const F_OFD_GETLK = 36
const F_OFD_SETLK = 37
const F_OFD_SETLKW = 38
export const READ_LOCK = 0
export const WRITE_LOCK = 1
const UNLOCK = 2

export type LockType = typeof READ_LOCK | typeof WRITE_LOCK

// struct flock: i16 l_type, i16 l_whence, (pad), i64 l_start, i64 l_len, i32 l_pid. One per thread is enough: the kernel copies it.
const flock = new Int32Array(new ArrayBuffer(32))
const flockAddress = ptr(flock)

function call(fd: number, command: number, type: number, start: number, length: number): number {
  flock[0] = type
  flock[2] = start | 0
  flock[3] = start > 0xffffffff ? Math.floor(start / 0x100000000) : 0
  flock[4] = length | 0
  flock[5] = length > 0xffffffff ? Math.floor(length / 0x100000000) : 0
  flock[6] = 0
  return libc.fcntl(fd, command, flockAddress)
}

/** Lock [start, start + length) without waiting; length 0 reaches to the end of the file and beyond. False: somebody else has it. */
export function tryLockRange(fd: number, type: LockType, start: number, length: number): boolean {
  for (;;) {
    if (call(fd, F_OFD_SETLK, type, start, length) === 0) return true
    const errno = lastErrno()
    if (errno === EAGAIN || errno === EACCES) return false
    if (errno !== EINTR) throw new SysError("fcntl(F_OFD_SETLK)", errno, `fd ${fd} bytes ${start}+${length}`)
  }
}

/** Could this descriptor lock [start, start + length) now? Half the price of a lock and unlock. */
export function isRangeFree(fd: number, type: LockType, start: number, length: number): boolean {
  if (call(fd, F_OFD_GETLK, type, start, length) !== 0) {
    throw new SysError("fcntl(F_OFD_GETLK)", lastErrno(), `fd ${fd} bytes ${start}+${length}`)
  }
  // l_type says what is in the way; the lower half of the first word.
  return (flock[0]! & 0xffff) === UNLOCK
}

/** Lock [start, start + length), blocking this thread until it is free. */
export function lockRange(fd: number, type: LockType, start: number, length: number): void {
  while (!lockRangeInterruptibly(fd, type, start, length)) {
    // a signal: wait on
  }
}

/** As lockRange, but returns false when a signal interrupted the wait. */
export function lockRangeInterruptibly(fd: number, type: LockType, start: number, length: number): boolean {
  if (call(fd, F_OFD_SETLKW, type, start, length) === 0) return true
  const errno = lastErrno()
  if (errno === EINTR) return false
  throw new SysError("fcntl(F_OFD_SETLKW)", errno, `fd ${fd} bytes ${start}+${length}`)
}

export function unlockRange(fd: number, start: number, length: number): void {
  if (call(fd, F_OFD_SETLK, UNLOCK, start, length) !== 0) {
    throw new SysError("fcntl(F_OFD_SETLK, F_UNLCK)", lastErrno(), `fd ${fd} bytes ${start}+${length}`)
  }
}
