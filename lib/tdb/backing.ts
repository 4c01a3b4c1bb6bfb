// Where the bytes of a map live: a shared file mapping, plain memory, or the private copy-on-write view that a transaction works
// in. All three show the map (header copy B first in a mutex file) as one Int32Array and one Uint8Array over the same memory.
// Nothing here knows records or locks.

import { EIO, ENOSPC, SysError } from "../sys/errno.ts"
import {
  allocateFile,
  closeFile,
  closeFileLater,
  createNameless,
  discardCopies,
  fileSize,
  mapPrivate,
  mapShared,
  mapSharedOver,
  mapZeroOver,
  moveMapping,
  PAGE_SIZE,
  populate,
  readAt,
  releaseView,
  reserve,
  syncFileData,
  syncFileDataLater,
  touchFile,
  truncateFile,
  unmap,
  viewMemory,
  writeAt,
} from "../sys/memory.ts"
import { MAP_SIZE_MAX, PAD, roundUp } from "./format.ts"

/** One view of a map. `words` and `bytes` may be longer than `size`; nothing behind `size` may be touched. */
export interface Space {
  readonly words: Int32Array
  readonly bytes: Uint8Array
  /** Bytes of the map that exist. */
  readonly size: number
  /** [from, from + bytes), all of it inside the map, is about to be stored into. Changes nothing but the time that takes. */
  expectStores(from: number, bytes: number): void
}

export interface Backing extends Space {
  /** Offset of the map in the file. */
  readonly base: number
  /** There is a disk to sync to. */
  readonly onDisk: boolean
  /** Look again how large the map is: others may have grown it. `words` and `bytes` may be replaced. */
  refresh(): void
  /** Make the map `size` bytes long, zero filled. Raises SysError ENOSPC, having undone a partial growth. */
  grow(size: number): void
  /** Cut everything and start over with `size` zero bytes. */
  reset(size: number): void
  /** Cut it to `size` bytes, which it had before a `grow` that nobody has used yet. */
  shrink(size: number): void
  /** Store source[from, to) at `at`. Raises SysError where the file can't take it. */
  store(source: Uint8Array, from: number, to: number, at: number): void
  /** Store the `bytes` bytes at `from` at `to` as well, which they do not overlap. */
  copy(from: number, to: number, bytes: number): void
  /** All stores so far are on the disk when this returns. */
  sync(): void
  /** The same without blocking: `done` is called in a later turn. Only with `onDisk`. */
  syncLater(done: (error: SysError | null) => void): void
  /** Set the modification time. */
  touch(): void
  /** A private copy-on-write view of the whole map. */
  openPrivate(): PrivateSpace
  close(): void
}

/** A transaction's view: stores stay in it. */
export interface PrivateSpace extends Space {
  /** Make it longer, zero filled. */
  grow(size: number): void
  /** Give back the memory of [from, from + bytes), multiples of BLOCK: stores in it are lost. */
  discard(from: number, bytes: number): void
  /** Parts of the view, numbered in units of SPILL bytes, that lie in a file without a name beside the map's own. */
  readonly spilled: ReadonlySet<number>
  /** Move a part, all of it inside the map, from memory to that file. The view shows what it showed. False: no room for it there. */
  spill(unit: number): boolean
  /**
   * The transaction is over: `pages` are the numbers of the pages with stores. Until `begin`, the view must not be used. False: it
   * is of no use for another one.
   */
  end(pages: readonly number[]): boolean
  /** Show the map as it is now, without any earlier changes and growth. */
  begin(): void
  close(): void
}

// Windows reach behind the file, so that growth seldom needs a new mapping. They cost address space only.
const WINDOW_MIN = 16 * 1024 * 1024
const WINDOW_MAX = 0x100000000

function windowFor(size: number): number {
  return Math.min(WINDOW_MAX, Math.max(WINDOW_MIN, roundUp(size * 2, WINDOW_MIN)))
}

/** Bytes that a transaction saves and writes as one: a page of memory on this architecture. */
export const BLOCK = 4096
/** Bytes that leave a transaction's memory as one: few mappings for a large database, and not much around a single changed page. */
export const SPILL = 64 * BLOCK
/** Copied pages that a view keeps between transactions in any case. */
const KEPT_MAX = 64
/** Those of views that keep more, all of this thread's together: large transactions seldom come alone. */
const KEPT_TOGETHER_MAX = 2048

/** Below so many pages a call is not worth it. */
const EXPECTED_MIN = 4
/**
 * From so many bytes on the kernel copies: to touch a page of a mapping for the first time costs more than to copy it, on virtual machines ten
 * times as much, and of a large change few pages are ever looked at through the map.
 */
const KERNEL_COPY_MIN = 16 * 4096
/** What it copies within a file goes through here. */
const between = new Uint8Array(64 * 4096)

/** False: too few to be worth it. */
function populatePages(address: number, from: number, bytes: number): boolean {
  const start = Math.floor(from / PAGE_SIZE) * PAGE_SIZE
  const end = Math.ceil((from + bytes) / PAGE_SIZE) * PAGE_SIZE
  if (end - start < EXPECTED_MIN * PAGE_SIZE) return false
  populate(address + start, end - start)
  return true
}

interface Window {
  readonly address: number
  readonly length: number
  readonly buffer: ArrayBuffer
}

/**
 * The map of a file, from file offset `base` on. Never unmaps before close, so that an older view stays valid.
 *
 * A process that cuts the file without asking for locks (cp over it, a truncate) takes pages from under every mapping of it, libtdb's
 * as well as this one: whoever touches them gets a SIGBUS, which no code that runs in a script engine can catch. So the size is looked
 * at wherever that costs nothing beside the work (transaction start and commit, walks, checks, growth, locks that were waited for in
 * recoveries), which makes a cut that has happened a typed error. It is not looked at in single operations: a system call is twice
 * as long as a store. Files that several programs use are never to be replaced in place; rename(2) leaves the old one whole.
 */
export class FileBacking implements Backing {
  readonly onDisk = true
  words = new Int32Array(0)
  bytes = new Uint8Array(0)
  size = 0
  private windows: Window[] = []

  constructor(
    readonly fd: number,
    readonly path: string,
    readonly base: number,
    readonly writable: boolean,
  ) {
    this.refresh()
  }

  expectStores(from: number, bytes: number): void {
    const window = this.windows.at(-1)
    if (window !== undefined) populatePages(window.address, from, bytes)
  }

  refresh(): void {
    const size = fileSize(this.fd) - this.base
    if (size > MAP_SIZE_MAX) throw new SysError("mmap", 27, `${this.path}: map of ${size} bytes`)
    this.size = Math.max(0, size)
    if (this.size > this.bytes.length || this.windows.length === 0) this.addWindow()
  }

  private addWindow(): void {
    const length = windowFor(this.size)
    const address = mapShared(this.fd, length, this.base, this.writable)
    const buffer = viewMemory(address, length)
    this.windows.push({ address, length, buffer })
    this.words = new Int32Array(buffer)
    this.bytes = new Uint8Array(buffer)
  }

  grow(size: number): void {
    const from = this.base + this.size
    const errno = allocateFile(this.fd, from, size - this.size)
    if (errno === ENOSPC) {
      truncateFile(this.fd, from)
      throw new SysError("posix_fallocate", errno, this.path)
    }
    if (errno !== 0) this.growByWriting(from, this.base + size)
    this.refresh()
  }

  // For file systems without fallocate: real blocks now rather than a SIGBUS on a full disk later.
  private growByWriting(from: number, to: number): void {
    const pad = new Uint8Array(8192).fill(PAD & 0xff)
    try {
      truncateFile(this.fd, to)
      for (let at = from; at < to; at += pad.length)
        writeAt(this.fd, pad.subarray(0, Math.min(pad.length, to - at)), at)
    } catch (error) {
      truncateFile(this.fd, from)
      throw error
    }
  }

  reset(size: number): void {
    truncateFile(this.fd, this.base)
    truncateFile(this.fd, this.base + size)
    this.refresh()
  }

  shrink(size: number): void {
    truncateFile(this.fd, this.base + size)
    this.size = size
  }

  store(source: Uint8Array, from: number, to: number, at: number): void {
    if (to - from >= KERNEL_COPY_MIN) {
      writeAt(this.fd, source.subarray(from, to), this.base + at)
      return
    }
    this.expectStores(at, to - from)
    this.bytes.set(source.subarray(from, to), at)
  }

  copy(from: number, to: number, bytes: number): void {
    if (bytes < KERNEL_COPY_MIN) {
      this.expectStores(to, bytes)
      this.bytes.copyWithin(to, from, from + bytes)
      return
    }
    for (let done = 0; done < bytes; done += between.length) {
      const part = between.subarray(0, Math.min(between.length, bytes - done))
      const read = readAt(this.fd, part, this.base + from + done)
      if (read < part.length) throw new SysError("pread", EIO, `${this.path}: cut at ${from + done + read} bytes`)
      writeAt(this.fd, part, this.base + to + done)
    }
  }

  sync(): void {
    // Linux writes what was stored through mappings as well. (libtdb calls msync in addition, which syncs a second time.)
    syncFileData(this.fd)
  }

  syncLater(done: (error: SysError | null) => void): void {
    syncFileDataLater(this.fd, done)
  }

  touch(): void {
    touchFile(this.fd)
  }

  openPrivate(): PrivateSpace {
    return new PrivateFileSpace(this)
  }

  close(): void {
    this.words = new Int32Array(0)
    this.bytes = new Uint8Array(0)
    this.size = 0
    for (const window of this.windows) {
      releaseView(window.buffer)
      unmap(window.address, window.length)
    }
    this.windows = []
    closeFile(this.fd)
  }
}

/** Views between transactions that keep more than KEPT_MAX pages, the one that was used last at the end. */
const keepers = new Set<PrivateFileSpace>()

class PrivateFileSpace implements PrivateSpace {
  words: Int32Array
  bytes: Uint8Array
  size: number
  private address: number
  private length: number
  private buffer: ArrayBuffer
  // Start of the zero memory that stands for growth, 0 when there is none.
  private grownFrom = 0
  // The mappings that growth was made of.
  private readonly pieces: { readonly start: number; readonly length: number }[] = []
  // Pages that are copies of ours and no longer the file's.
  private readonly kept = new Set<number>()
  // Pages were copied that nothing may have been stored into.
  private copiedAhead = false
  // What was spilled lies at the same offset of this file.
  private spillFile = -1
  readonly spilled = new Set<number>()

  constructor(private readonly file: FileBacking) {
    this.size = file.size
    this.length = windowFor(file.size)
    this.address = mapPrivate(file.fd, this.length, file.base)
    this.buffer = viewMemory(this.address, this.length)
    this.words = new Int32Array(this.buffer)
    this.bytes = new Uint8Array(this.buffer)
  }

  expectStores(from: number, bytes: number): void {
    if (populatePages(this.address, from, bytes)) this.copiedAhead = true
  }

  private replace(length: number): void {
    const address = mapPrivate(this.file.fd, length, this.file.base)
    releaseView(this.buffer)
    unmap(this.address, this.length)
    this.show(address, length)
  }

  grow(size: number): void {
    if (size > this.length) this.move(windowFor(size))
    const from = roundUp(this.size, PAGE_SIZE)
    const to = roundUp(size, PAGE_SIZE)
    if (to > from) {
      mapZeroOver(this.address + from, to - from)
      if (this.grownFrom === 0) this.grownFrom = from
      this.pieces.push({ start: from, length: to - from })
    }
    this.size = size
  }

  // A larger window. The memory moves there: to copy it would take as long as the database is large.
  private move(length: number): void {
    const address = reserve(length)
    const fileEnd = this.grownFrom === 0 ? roundUp(this.size, PAGE_SIZE) : this.grownFrom
    this.moveUnspilled(0, fileEnd, address)
    for (const piece of this.pieces) this.moveUnspilled(piece.start, piece.start + piece.length, address)
    releaseView(this.buffer)
    for (const unit of this.spilled) {
      mapSharedOver(address + unit * SPILL, SPILL, this.spillFile, unit * SPILL)
      unmap(this.address + unit * SPILL, SPILL)
    }
    // Only what has stayed behind: addresses that were moved away may be another thread's by now.
    const moved = roundUp(this.size, PAGE_SIZE)
    if (moved < this.length) unmap(this.address + moved, this.length - moved)
    this.show(address, length)
  }

  // Each part by itself: what was spilled in between has cut the mapping.
  private moveUnspilled(from: number, to: number, address: number): void {
    let start = from
    for (let at = from; at < to; at = Math.min(to, (Math.floor(at / SPILL) + 1) * SPILL)) {
      if (!this.spilled.has(Math.floor(at / SPILL))) continue
      if (at > start) moveMapping(this.address + start, at - start, address + start)
      start = Math.min(to, (Math.floor(at / SPILL) + 1) * SPILL)
    }
    if (to > start) moveMapping(this.address + start, to - start, address + start)
  }

  spill(unit: number): boolean {
    const from = unit * SPILL
    try {
      if (this.spillFile < 0) this.spillFile = createNameless(namelessPath(this.file.path))
      // The disk has room for all of it, or says so here: a store through the mapping could only be answered with a signal.
      writeAt(this.spillFile, this.bytes.subarray(from, from + SPILL), from)
      mapSharedOver(this.address + from, SPILL, this.spillFile, from)
    } catch (error) {
      if (!(error instanceof SysError)) throw error
      return false
    }
    this.spilled.add(unit)
    return true
  }

  private show(address: number, length: number): void {
    this.address = address
    this.length = length
    this.buffer = viewMemory(address, length)
    this.words = new Int32Array(this.buffer)
    this.bytes = new Uint8Array(this.buffer)
  }

  discard(from: number, bytes: number): void {
    const end = Math.min(from + bytes, roundUp(this.size, PAGE_SIZE))
    if (end > from) discardCopies(this.address + from, end - from)
  }

  end(pages: readonly number[]): boolean {
    if (this.spillFile >= 0) return false
    // Grown memory can't be used again: a few pages of it may wait for the next transaction, which makes another view.
    if (this.grownFrom !== 0) return pages.length <= KEPT_MAX
    for (const page of pages) this.kept.add(page)
    // All that is kept is copied again by the next one: not much more than the last one needed.
    const tooMany = this.kept.size > Math.max(KEPT_MAX, 2 * pages.length)
    if (PAGE_SIZE !== BLOCK || this.copiedAhead || tooMany) this.forgetCopies()
    else if (this.kept.size > KEPT_MAX) this.keepMany()
    return true
  }

  private keepMany(): void {
    keepers.add(this)
    let pages = 0
    for (const { kept } of keepers) pages += kept.size
    for (const keeper of keepers) {
      if (pages <= KEPT_TOGETHER_MAX) return
      pages -= keeper.kept.size
      keepers.delete(keeper)
      keeper.forgetCopies()
    }
  }

  private forgetCopies(): void {
    this.kept.clear()
    this.copiedAhead = false
    discardCopies(this.address, this.length)
  }

  begin(): void {
    keepers.delete(this)
    this.size = this.file.size
    if (this.grownFrom !== 0 || this.size > this.length) {
      this.replace(windowFor(this.size))
      this.grownFrom = 0
      this.pieces.length = 0
      this.kept.clear()
      this.copiedAhead = false
      return
    }
    // Copies that we made in earlier transactions are brought up to date: much cheaper than to drop them and fault them in again.
    const source = this.file.bytes
    for (const page of this.kept) {
      const start = page * BLOCK
      if (start < this.size) this.bytes.set(source.subarray(start, start + BLOCK), start)
    }
  }

  close(): void {
    keepers.delete(this)
    this.words = new Int32Array(0)
    this.bytes = new Uint8Array(0)
    this.size = 0
    releaseView(this.buffer)
    unmap(this.address, this.length)
    if (this.spillFile >= 0) closeFileLater(this.spillFile)
  }
}

// No database's name, whoever looks for databases in the directory.
function namelessPath(path: string): string {
  const slash = path.lastIndexOf("/") + 1
  return `${path.slice(0, slash)}.${path.slice(slash)}.${crypto.randomUUID()}`
}

/** A map in plain memory: for databases that are INTERNAL, for the simulator and for looking into a copy of a file. */
export class MemoryBacking implements Backing {
  readonly onDisk = false
  words: Int32Array
  bytes: Uint8Array
  size: number

  constructor(
    contents: Uint8Array | number,
    readonly base = 0,
  ) {
    this.size = typeof contents === "number" ? contents : contents.length
    const buffer = new ArrayBuffer(roundUp(Math.max(this.size, 64), 4))
    this.words = new Int32Array(buffer)
    this.bytes = new Uint8Array(buffer)
    if (typeof contents !== "number") this.bytes.set(contents)
  }

  expectStores(_from: number, _bytes: number): void {}

  refresh(): void {}

  grow(size: number): void {
    if (size > this.bytes.length) {
      const buffer = new ArrayBuffer(roundUp(Math.max(size, Math.min(this.bytes.length * 2, MAP_SIZE_MAX)), 4))
      const bytes = new Uint8Array(buffer)
      bytes.set(this.bytes.subarray(0, this.size))
      this.words = new Int32Array(buffer)
      this.bytes = bytes
    }
    this.size = size
  }

  reset(size: number): void {
    this.size = 0
    this.bytes.fill(0)
    this.grow(size)
  }

  shrink(size: number): void {
    this.bytes.fill(0, size, this.size)
    this.size = size
  }

  store(source: Uint8Array, from: number, to: number, at: number): void {
    this.bytes.set(source.subarray(from, to), at)
  }

  copy(from: number, to: number, bytes: number): void {
    this.bytes.copyWithin(to, from, from + bytes)
  }

  sync(): void {}

  syncLater(_done: (error: SysError | null) => void): void {}

  touch(): void {}

  openPrivate(): PrivateSpace {
    return new PrivateMemorySpace(this)
  }

  close(): void {
    this.words = new Int32Array(0)
    this.bytes = new Uint8Array(0)
    this.size = 0
  }
}

class PrivateMemorySpace extends MemoryBacking implements PrivateSpace {
  readonly spilled: ReadonlySet<number> = new Set()

  constructor(private readonly origin: MemoryBacking) {
    super(origin.bytes.subarray(0, origin.size))
  }

  discard(_from: number, _bytes: number): void {}

  spill(_unit: number): boolean {
    return false
  }

  end(_pages: readonly number[]): boolean {
    return true
  }

  begin(): void {
    this.size = 0
    this.grow(this.origin.size)
    this.bytes.set(this.origin.bytes.subarray(0, this.origin.size))
    this.bytes.fill(0, this.size)
  }
}
