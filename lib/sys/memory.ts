// Files as memory: open, size, grow, positioned reads and writes, mappings and their syncs, straight from libc. It knows nothing
// of what the bytes mean, and it does not protect a view of a mapping that was unmapped: detach it first (`releaseView`).

import { dlopen, FFIType, type Pointer, ptr, read, toArrayBuffer } from "bun:ffi"
import { close, fdatasync } from "node:fs"
import { EINTR, EIO, SysError } from "./errno.ts"

const libc = dlopen("libc.so.6", {
  open: { args: ["ptr", "i32", "i32"], returns: "i32" },
  unlink: { args: ["ptr"], returns: "i32" },
  close: { args: ["i32"], returns: "i32" },
  lseek: { args: ["i32", "i64", "i32"], returns: FFIType.i64_fast },
  ftruncate: { args: ["i32", "i64"], returns: "i32" },
  posix_fallocate: { args: ["i32", "i64", "i64"], returns: "i32" },
  pread: { args: ["i32", "ptr", "u64", "i64"], returns: FFIType.i64_fast },
  pwrite: { args: ["i32", "ptr", "u64", "i64"], returns: FFIType.i64_fast },
  mmap: { args: ["u64", "u64", "i32", "i32", "i32", "i64"], returns: FFIType.i64_fast },
  mremap: { args: ["u64", "u64", "u64", "i32", "u64"], returns: FFIType.i64_fast },
  munmap: { args: ["u64", "u64"], returns: "i32" },
  madvise: { args: ["u64", "u64", "i32"], returns: "i32" },
  fdatasync: { args: ["i32"], returns: "i32" },
  futimens: { args: ["i32", "u64"], returns: "i32" },
  getpagesize: { args: [], returns: "i32" },
  __errno_location: { args: [], returns: "ptr" },
}).symbols

const errnoAddress = libc.__errno_location() as Pointer

/** errno of this thread's last failed libc call. */
export function lastErrno(): number {
  return read.i32(errnoAddress, 0)
}

/** Bytes in a page of this machine's memory. */
export const PAGE_SIZE = libc.getpagesize()

// asm-generic/fcntl.h and mman-common.h
export const O_RDONLY = 0
export const O_WRONLY = 1
export const O_RDWR = 2
export const O_ACCMODE = 3
export const O_CREAT = 0o100
export const O_EXCL = 0o200
export const O_TRUNC = 0o1000
const O_CLOEXEC = 0o2000000
const PROT_READ = 1
const PROT_WRITE = 2
const MAP_SHARED = 1
const MAP_PRIVATE = 2
const MAP_FIXED = 0x10
const MAP_ANONYMOUS = 0x20
const MAP_NORESERVE = 0x4000
const MADV_DONTNEED = 4
const MADV_POPULATE_WRITE = 23
const PROT_NONE = 0
const MREMAP_MAYMOVE = 1
const MREMAP_FIXED = 2
const SEEK_END = 2

/** Open with close-on-exec. Raises SysError (ENOENT, EACCES, EEXIST, ...). */
export function openFile(path: string, flags: number, mode = 0o600): number {
  const name = Buffer.from(`${path}\0`)
  for (;;) {
    const fd = libc.open(ptr(name), flags | O_CLOEXEC, mode)
    if (fd >= 0) return fd
    const errno = lastErrno()
    if (errno !== EINTR) throw new SysError("open", errno, path)
  }
}

export function closeFile(fd: number): void {
  libc.close(fd)
}

/**
 * The same on a thread of the runtime's: to close the last descriptor of a large file without a name takes as long as it takes to
 * give its space back. Nobody may use the descriptor from now on.
 */
export function closeFileLater(fd: number): void {
  close(fd, () => {})
}

/** Create a file for reading and writing whose name, which must be nobody's, is gone when this returns. Raises SysError. */
export function createNameless(path: string): number {
  const fd = openFile(path, O_RDWR | O_CREAT | O_EXCL, 0o600)
  libc.unlink(ptr(Buffer.from(`${path}\0`)))
  return fd
}

/** Size in bytes of an open file. Moves the file position, which nothing here uses. */
export function fileSize(fd: number): number {
  const size = libc.lseek(fd, 0, SEEK_END) as number
  if (size < 0) throw new SysError("lseek", lastErrno(), `fd ${fd}`)
  return size
}

export function truncateFile(fd: number, bytes: number): void {
  while (libc.ftruncate(fd, bytes) !== 0) {
    const errno = lastErrno()
    if (errno !== EINTR) throw new SysError("ftruncate", errno, `fd ${fd}`)
  }
}

/** posix_fallocate: zero-filled space for [offset, offset + bytes). Returns 0 or an errno. */
export function allocateFile(fd: number, offset: number, bytes: number): number {
  for (;;) {
    const errno = libc.posix_fallocate(fd, offset, bytes)
    if (errno !== EINTR) return errno
  }
}

/** Fill `target` from `position`; returns the bytes read, fewer than asked only at the end of the file. */
export function readAt(fd: number, target: Uint8Array, position: number): number {
  let done = 0
  while (done < target.length) {
    const part = target.subarray(done)
    const n = libc.pread(fd, ptr(part), part.length, position + done) as number
    if (n === 0) break
    if (n > 0) done += n
    else if (lastErrno() !== EINTR) throw new SysError("pread", lastErrno(), `fd ${fd}`)
  }
  return done
}

/** Write all of `source` at `position`. */
export function writeAt(fd: number, source: Uint8Array, position: number): void {
  let done = 0
  while (done < source.length) {
    const part = source.subarray(done)
    const n = libc.pwrite(fd, ptr(part), part.length, position + done) as number
    if (n > 0) done += n
    else if (n === 0 || lastErrno() !== EINTR) throw new SysError("pwrite", n === 0 ? 5 : lastErrno(), `fd ${fd}`)
  }
}

function map(address: number, bytes: number, protection: number, flags: number, fd: number, offset: number): number {
  const at = libc.mmap(address, bytes, protection, flags, fd, offset) as number
  if (at === -1 || at === 0) throw new SysError("mmap", lastErrno(), `${bytes} bytes of fd ${fd} at ${offset}`)
  return at
}

/**
 * Map `bytes` of a file from `offset` (a multiple of PAGE_SIZE), shared with every other process that maps it. The range may reach
 * behind the end of the file: those pages become usable when the file grows, and touching them earlier is a SIGBUS.
 */
export function mapShared(fd: number, bytes: number, offset: number, writable: boolean): number {
  return map(0, bytes, writable ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED | MAP_NORESERVE, fd, offset)
}

/** The same range, copy-on-write: stores stay private to this mapping. */
export function mapPrivate(fd: number, bytes: number, offset: number): number {
  return map(0, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, fd, offset)
}

/** Put zero-filled private memory over a page-aligned part of a mapping that this process made. */
export function mapZeroOver(address: number, bytes: number): void {
  map(address, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0)
}

/**
 * Put a page-aligned part of a file, of which every page must exist, over the same number of bytes of a mapping that this process made:
 * stores go to the file.
 */
export function mapSharedOver(address: number, bytes: number, fd: number, offset: number): void {
  map(address, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, offset)
}

/** Addresses that nothing else gets: to be filled by `mapZeroOver`, `mapSharedOver` and `moveMapping`, and a fault to touch before. */
export function reserve(bytes: number): number {
  return map(0, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
}

/** Move a page-aligned part of one mapping, contents and all, to addresses that this process has reserved. Copies nothing. */
export function moveMapping(from: number, bytes: number, to: number): void {
  const at = libc.mremap(from, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, to) as number
  if (at !== to) throw new SysError("mremap", lastErrno(), `${bytes} bytes`)
}

/** Zero-filled memory of its own, page-aligned. */
export function mapZero(bytes: number): number {
  return map(0, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
}

export function unmap(address: number, bytes: number): void {
  libc.munmap(address, bytes)
}

/** Forget the private copies of a page-aligned part of a private mapping: it shows the file again. */
export function discardCopies(address: number, bytes: number): void {
  if (libc.madvise(address, bytes, MADV_DONTNEED) !== 0) throw new SysError("madvise", lastErrno())
}

/**
 * Make pages that are about to be stored into present, in one call: a fault for each of them takes longer than the stores. `address` is
 * page-aligned. Kernels before 5.14 do nothing, and what can't be made present is left to the store.
 */
export function populate(address: number, bytes: number): void {
  libc.madvise(address, bytes, MADV_POPULATE_WRITE)
}

/** Memory as an ArrayBuffer that does not own it. */
export function viewMemory(address: number, bytes: number): ArrayBuffer {
  return toArrayBuffer(address as Pointer, 0, bytes)
}

/** A 16-bit word of shared memory, as it is now. */
export function readInt16(address: number): number {
  return read.i16(address as Pointer, 0)
}

/** Buffers that were used once and dropped are collected after so many bytes. */
const COLLECT_BYTES = 32 << 20
/** Smaller buffers are not worth the call that gives them back (bytes). */
const GIVEN_BACK_BYTES = 16 << 10
let dropped_bytes = 0

/**
 * A buffer, received or sent, was used and is dropped. A large one that has its memory for itself is empty from now on, for whoever still has it:
 * the memory is free at once, for the next one, and not when the runtime collects. That takes views of mapped files for memory of its own, and lets as
 * much again pile up; so it is made to collect after many small ones.
 */
export function dropBuffer(bytes: Uint8Array): void {
  if (bytes.length >= GIVEN_BACK_BYTES && bytes.length === bytes.buffer.byteLength) {
    // A shared one is nobody's to give back, and never a packet.
    ;(bytes.buffer as ArrayBuffer).transfer(0)
    return
  }
  dropped_bytes += bytes.length
  if (dropped_bytes < COLLECT_BYTES) return
  dropped_bytes = 0
  Bun.gc(false)
}

/** `copyBytes.call(source, to, at, start, end)` copies between arrays without making a view of the source first. */
export const copyBytes = Buffer.prototype.copy as (
  this: Uint8Array,
  to: Uint8Array,
  at: number,
  start: number,
  end: number,
) => number

/** Detach a view, so that a reference kept by mistake reads as empty instead of touching memory that is gone. */
export function releaseView(buffer: ArrayBuffer): void {
  buffer.transfer()
}

/** Write the file's data (not its times) to the disk, also what was stored through mappings. */
export function syncFileData(fd: number): void {
  while (libc.fdatasync(fd) !== 0) {
    const errno = lastErrno()
    if (errno !== EINTR) throw new SysError("fdatasync", errno, `fd ${fd}`)
  }
}

/** The same on a thread of the runtime's: `done` is called in a later turn of the loop. The descriptor stays open until then. */
export function syncFileDataLater(fd: number, done: (error: SysError | null) => void): void {
  fdatasync(fd, (error) => done(error === null ? null : new SysError("fdatasync", -(error.errno ?? -EIO), `fd ${fd}`)))
}

/** Set the file's modification time to now. */
export function touchFile(fd: number): void {
  libc.futimens(fd, 0)
}
