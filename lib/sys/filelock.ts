// A file that is locked for the life of a process: pid files and the cluster lock. Plain POSIX record locks (fcntl
// F_SETLK), because that is what stock daemons and ctdb_mutex_fcntl_helper take, on cluster file systems too. Record locks
// of databases are elsewhere.
//
// A POSIX lock belongs to the process and is lost when the process closes ANY descriptor of that file. Nothing in this
// process may open the file a second time while it is held.

import { dlopen, FFIType, ptr, read } from "bun:ffi"
import { closeSync, constants, fstatSync, ftruncateSync, openSync, statSync, unlinkSync, writeSync } from "node:fs"
import { EACCES, EAGAIN, SysError } from "./errno.ts"

const { i32 } = FFIType
const { symbols: libc } = dlopen("libc.so.6", {
  fcntl: { args: [i32, i32, FFIType.ptr], returns: i32 },
  __errno_location: { args: [], returns: FFIType.ptr },
})

// 64-bit Linux.
const F_GETLK = 5
const F_SETLK = 6
const F_SETLKW = 7
const F_WRLCK = 1
const F_UNLCK = 2

/** Bytes of a file: `length` 0 reaches to its end, wherever that is. */
export interface ByteRange {
  readonly start: number
  readonly length: number
}

/** What the cluster lock locks (cluster-and-recovery 5.7). */
export const FIRST_BYTE: ByteRange = { start: 0, length: 1 }
/** What a pid file locks (configuration 19). */
export const WHOLE_FILE: ByteRange = { start: 0, length: 0 }

/** `struct flock` of 64-bit Linux: type i16, whence i16, 4 bytes hole, start i64, length i64, pid i32. */
function flock(type: number, range: ByteRange): Uint8Array {
  const bytes = new Uint8Array(32)
  const view = new DataView(bytes.buffer)
  view.setInt16(0, type, true)
  view.setBigInt64(8, BigInt(range.start), true)
  view.setBigInt64(16, BigInt(range.length), true)
  return bytes
}

export class FileLock {
  private constructor(
    readonly path: string,
    private fd: number,
  ) {}

  /**
   * Opens the file for reading and writing (creating it with `mode`) and takes a write lock without waiting. Undefined:
   * another process has it. @throws SysError of fcntl, or node's error with `code` if the file can't be opened
   */
  static tryLock(path: string, mode: number, range: ByteRange): FileLock | undefined {
    const fd = openSync(path, constants.O_RDWR | constants.O_CREAT, mode)
    if (libc.fcntl(fd, F_SETLK, ptr(flock(F_WRLCK, range))) < 0) {
      const errno = read.i32(libc.__errno_location()!, 0)
      closeSync(fd)
      if (errno === EACCES || errno === EAGAIN) return undefined
      throw new SysError("fcntl F_SETLK", errno, path)
    }
    return new FileLock(path, fd)
  }

  /** Replaces the file's contents. */
  write(text: string): void {
    ftruncateSync(this.fd, 0)
    writeSync(this.fd, text, 0)
  }

  /** Identifies the locked file, for another process that looks whether the path still leads to it. */
  get inode(): number {
    return fstatSync(this.fd).ino
  }

  /** Whether the path still leads to the locked file: false once it was removed or replaced. */
  isInPlace(): boolean {
    const locked = fstatSync(this.fd)
    const found = statSync(this.path, { throwIfNoEntry: false })
    return found !== undefined && found.ino === locked.ino && found.dev === locked.dev
  }

  /** Gives the lock up; twice does nothing. */
  release(): void {
    if (this.fd >= 0) closeSync(this.fd)
    this.fd = -1
  }

  /** Removes the file, if it is still the locked one, and gives the lock up. */
  remove(): void {
    if (this.fd >= 0 && this.isInPlace()) unlinkSync(this.path)
    this.release()
  }
}

/** Takes a write lock and waits for it as long as that takes; the whole process stands still. @throws SysError */
export function waitForLock(fd: number, range: ByteRange): void {
  if (libc.fcntl(fd, F_SETLKW, ptr(flock(F_WRLCK, range))) < 0) {
    throw new SysError("fcntl F_SETLKW", read.i32(libc.__errno_location()!, 0))
  }
}

/**
 * The process that holds a lock which a write lock on `range` would have to wait for; undefined if there is none, or no
 * file; 0 if it can't be told (a lock of an open file description, or on another host).
 * Opens and closes the file: never to be asked about a file that this process has locked.
 */
export function lockHolder(path: string, range: ByteRange): number | undefined {
  let fd: number
  try {
    fd = openSync(path, constants.O_RDWR)
  } catch (error) {
    if ((error as { readonly code?: string }).code === "ENOENT") return undefined
    throw error
  }
  try {
    const request = flock(F_WRLCK, range)
    if (libc.fcntl(fd, F_GETLK, ptr(request)) < 0) {
      throw new SysError("fcntl F_GETLK", read.i32(libc.__errno_location()!, 0), path)
    }
    const view = new DataView(request.buffer)
    if (view.getInt16(0, true) === F_UNLCK) return undefined
    return Math.max(0, view.getInt32(24, true))
  } finally {
    closeSync(fd)
  }
}
