// POSIX record locks over a whole file, as pid files hold them: fcntl F_SETLK on bytes 0 to end of file. Such a lock is the
// process's: closing any descriptor of the file releases it, so a process that holds one must not open that file again.

import { dlopen, FFIType, ptr, read } from "bun:ffi"
import { EACCES, EAGAIN, SysError } from "./errno.ts"

const { i32 } = FFIType
const { symbols: libc } = dlopen("libc.so.6", {
  fcntl: { args: [i32, i32, FFIType.ptr], returns: i32 },
  __errno_location: { args: [], returns: FFIType.ptr },
})

const F_GETLK = 5
const F_SETLK = 6
const F_WRLCK = 1
const F_UNLCK = 2

/** `struct flock` of 64-bit Linux: type, whence (SEEK_SET), start 0, length 0 (to the end), pid. */
function wholeFile(type: number): DataView {
  const view = new DataView(new ArrayBuffer(32))
  view.setInt16(0, type, true)
  return view
}

function fcntl(fd: number, command: number, lock: DataView): number {
  return libc.fcntl(fd, command, ptr(lock)) === 0 ? 0 : read.i32(libc.__errno_location()!, 0)
}

/**
 * Takes the write lock without waiting. False if another process holds one.
 * @throws SysError for every other failure
 */
export function tryLockWholeFile(fd: number): boolean {
  const errno = fcntl(fd, F_SETLK, wholeFile(F_WRLCK))
  if (errno === EAGAIN || errno === EACCES) return false
  if (errno !== 0) throw new SysError("fcntl F_SETLK", errno)
  return true
}

/** The process that holds a lock in the way of a write lock, undefined if none does. */
export function lockHolder(fd: number): number | undefined {
  const lock = wholeFile(F_WRLCK)
  if (fcntl(fd, F_GETLK, lock) !== 0 || lock.getInt16(0, true) === F_UNLCK) return undefined
  return lock.getInt32(24, true)
}
