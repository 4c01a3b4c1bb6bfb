// Opening and creating TDBs, in the order of steps that libtdb's users rely on (tdb-format.md 1.10, 3.2, 3.3), and databases in plain
// memory. What it does on purpose differently: a file that is not empty and no TDB is refused, never created over.

import { EAGAIN, EINVAL, EIO, ENOSPC, SysError } from "../sys/errno.ts"
import { lockRange, READ_LOCK, tryLockRange, unlockRange, WRITE_LOCK } from "../sys/lock.ts"
import {
  closeFile,
  fileSize,
  O_ACCMODE,
  O_CREAT,
  O_RDONLY,
  O_WRONLY,
  openFile,
  readAt,
  truncateFile,
  writeAt,
} from "../sys/memory.ts"
import { initMutex, MUTEX_SIZE, mutexesSupported } from "../sys/mutex.ts"
import { FileBacking, MemoryBacking } from "./backing.ts"
import { Tdb } from "./database.ts"
import { TdbError } from "./error.ts"
import * as f from "./format.ts"
import { type HashKind, JENKINS_HASH, OLD_HASH } from "./hash.ts"
import { Locks, MutexArea } from "./locks.ts"
import { recover } from "./recovery.ts"

const ENOSYS = 38
/** Mutexes of a new file that are written in one call. */
const MUTEXES_AT_ONCE = 1024

export interface OpenOptions {
  /** TDB flags (format.ts), default 0. */
  readonly flags?: number
  /** Number of chains of a new file, default 131; an existing file keeps its own. */
  readonly hashSize?: number
  /** Flags of open(2): O_RDONLY, O_RDWR (default), O_CREAT, O_EXCL, O_TRUNC. */
  readonly openFlags?: number
  /** Mode of a new file, default 0600. */
  readonly mode?: number
  /** How many deleted records may stay in a chain, default 0, or 5 with the flag VOLATILE. */
  readonly maxDead?: number
  /** False: raise BUSY instead of blocking on another process that is opening or committing. Default true. */
  readonly wait?: boolean
  /**
   * True: a commit that somebody died in is not undone here, but by whoever takes a lock next: between the turns of a loop, if by waiting
   * for it. Nothing that is read before means anything. Default false.
   */
  readonly leaveRecovery?: boolean
  /** For tests: see Tdb.step; here it also sees a recovery at open. */
  readonly step?: (what: string) => void
}

interface Header {
  readonly swapped: boolean
  readonly hashSize: number
  readonly hashKind: HashKind
  readonly mutexSize: number
}

/**
 * Open a TDB file. Raises SysError when open(2) fails, TdbError FORMAT for a file that is none or is of an unknown kind (`errno` as
 * libtdb's open would set it), EINVAL for flags that do not go together, BUSY (with `wait` false), CORRUPT when a recovery is needed
 * and impossible, NOSPACE when a new file does not fit on the disk. Blocks for other openers and committers unless `wait` is false.
 *
 * The flag NOMMAP (smb.conf's `use mmap = no`) is kept in `flags`, and the file is mapped nevertheless: on Linux's local file systems what is
 * stored through a mapping and what libtdb's NOMMAP users read and write is one page cache, so that either side sees the other's stores at once.
 * Where a file cannot be mapped shared (FUSE with direct I/O) the open raises SysError, with this flag too; there libtdb works. Of file systems
 * that several hosts mount none will do: neither way do hosts see each other's stores in time.
 */
export function openTdb(path: string, options: OpenOptions = {}): Tdb {
  const openFlags = options.openFlags ?? 2
  const readOnly = (openFlags & O_ACCMODE) === O_RDONLY
  const flags = checkFlags(path, options.flags ?? 0, openFlags, readOnly)
  if ((flags & f.INTERNAL) !== 0) {
    return openMemory({
      name: path,
      flags,
      ...(options.hashSize === undefined ? {} : { hashSize: options.hashSize }),
      ...(options.maxDead === undefined ? {} : { maxDead: options.maxDead }),
    })
  }
  const fd = openFile(path, openFlags, options.mode ?? 0o600)
  const opening = new Opening(path, fd, flags, readOnly, options)
  try {
    return opening.run()
  } catch (error) {
    opening.giveUp()
    throw error
  }
}

function checkFlags(path: string, asked: number, openFlags: number, readOnly: boolean): number {
  let flags = asked
  const refuse = (reason: string, errno = EINVAL) => new TdbError("EINVAL", path, reason, undefined, errno)
  if ((openFlags & O_ACCMODE) === O_WRONLY) throw refuse("cannot open write-only")
  if ((flags & f.ALLOW_NESTING) !== 0 && (flags & f.DISALLOW_NESTING) !== 0) {
    throw refuse("flags ALLOW_NESTING and DISALLOW_NESTING exclude each other")
  }
  if ((flags & f.DISALLOW_NESTING) === 0) flags |= f.ALLOW_NESTING
  if (readOnly) flags = (flags | f.NOLOCK) & ~(f.CLEAR_IF_FIRST | f.MUTEX_LOCKING)
  if ((flags & f.MUTEX_LOCKING) !== 0) {
    if ((flags & (f.INTERNAL | f.NOMMAP)) !== 0) throw refuse("flag MUTEX_LOCKING needs a mapped file")
    if (!mutexesSupported) throw refuse("robust mutexes of this machine are not known", ENOSYS)
    flags |= f.INCOMPATIBLE_HASH
  }
  if ((flags & f.INTERNAL) !== 0) flags = (flags | f.NOLOCK | f.NOMMAP | f.INCOMPATIBLE_HASH) & ~f.CLEAR_IF_FIRST
  return process.env.TDB_NO_FSYNC === undefined ? flags : flags | f.NOSYNC
}

class Opening {
  private backing: FileBacking | null = null
  private mutexes: MutexArea | null = null
  private activeWrite = false
  private openLocked = false
  private readonly lockless: boolean

  constructor(
    private readonly path: string,
    private readonly fd: number,
    private readonly flags: number,
    private readonly readOnly: boolean,
    private readonly options: OpenOptions,
  ) {
    this.lockless = (flags & f.NOLOCK) !== 0
  }

  giveUp(): void {
    if (this.mutexes !== null) this.mutexes.close()
    if (this.backing !== null) this.backing.close()
    else closeFile(this.fd)
  }

  private format(reason: string, errno: number): TdbError {
    return new TdbError("FORMAT", this.path, reason, undefined, errno)
  }

  run(): Tdb {
    this.lockOpen()
    if ((this.flags & f.CLEAR_IF_FIRST) !== 0) this.clearIfFirst()
    const header = this.readHeader()
    this.openMutexes(header)
    const backing = this.map(header)
    const hashKind = header.hashKind
    if (this.activeWrite) unlockRange(this.fd, f.ACTIVE_LOCK, 1)
    if (!this.lockless && (this.activeWrite || (this.flags & f.CLEAR_IF_FIRST) !== 0)) {
      lockRange(this.fd, READ_LOCK, f.ACTIVE_LOCK, 1)
    }
    const locks = new Locks(this.path, this.fd, header.hashSize, this.mutexes)
    locks.noLock = this.lockless
    locks.forbidWrites = this.readOnly
    const db = new Tdb({
      path: this.path,
      flags: (this.flags & ~f.CONVERT) | (header.swapped ? f.CONVERT : 0),
      backing,
      locks,
      hashKind,
      hashSize: header.hashSize,
      swapped: header.swapped,
      readOnly: this.readOnly,
      maxDead: this.options.maxDead ?? ((this.flags & f.VOLATILE) !== 0 ? f.VOLATILE_MAX_DEAD : 0),
    })
    db.step = this.options.step ?? null
    if (this.options.leaveRecovery !== true) recover(db)
    if (this.openLocked) unlockRange(this.fd, f.OPEN_LOCK, 1)
    return db
  }

  private lockOpen(): void {
    if (this.lockless) return
    if (this.options.wait === false) {
      if (!tryLockRange(this.fd, WRITE_LOCK, f.OPEN_LOCK, 1)) {
        throw new TdbError("BUSY", this.path, "another process is opening or committing", undefined, EAGAIN)
      }
    } else lockRange(this.fd, WRITE_LOCK, f.OPEN_LOCK, 1)
    this.openLocked = true
  }

  private tryActive(): boolean {
    return this.lockless || tryLockRange(this.fd, WRITE_LOCK, f.ACTIVE_LOCK, 1)
  }

  // Nobody else uses the file: start it anew. With NOLOCK the question is always answered with yes.
  private clearIfFirst(): void {
    if (!this.tryActive()) return
    this.activeWrite = !this.lockless
    if (!this.lockless) lockRange(this.fd, WRITE_LOCK, f.CHAIN_LOCKS, 0)
    truncateFile(this.fd, 0)
    this.create()
    if (!this.lockless) unlockRange(this.fd, f.CHAIN_LOCKS, 0)
  }

  private create(): void {
    const hashSize = this.options.hashSize || f.DEFAULT_HASH_SIZE
    if (hashSize > 0xffffffff / 4 || hashSize < 0) throw this.format(`hash size ${hashSize} too large`, EINVAL)
    const mutexes = (this.flags & f.MUTEX_LOCKING) !== 0
    const swapped = (this.flags & f.CONVERT) !== 0
    if (mutexes && swapped) throw this.format("a byte-swapped file cannot have mutexes", EIO)
    const image = newImage(hashSize, this.flags, mutexes ? f.mutexAreaSize(hashSize) : 0, swapped)
    try {
      writeAt(this.fd, image, 0)
      if (!mutexes) return
      const mutexSize = f.mutexAreaSize(hashSize)
      truncateFile(this.fd, mutexSize + f.HEADER_SIZE)
      this.initMutexes(hashSize)
      writeAt(this.fd, image, mutexSize)
    } catch (error) {
      if (!(error instanceof SysError) || error.errno !== ENOSPC) throw error
      truncateFile(this.fd, 0)
      throw new TdbError("NOSPACE", this.path, error.message, undefined, ENOSPC)
    }
  }

  // What lies behind the last mutex, up to the end of the area, is never written.
  private initMutexes(hashSize: number): void {
    const first = new Uint8Array(f.AT_LIST_MUTEXES - f.HEADER_SIZE)
    initMutex(first, 0)
    first[f.AT_ALLRECORD_WORD - f.HEADER_SIZE] = f.ALLRECORD_FREE
    writeAt(this.fd, first, f.HEADER_SIZE)
    // All are the same bytes, and memory for a hundred thousand of them would cost more than the writes.
    const count = hashSize + 1
    const run = new Uint8Array(MUTEX_SIZE * Math.min(count, MUTEXES_AT_ONCE))
    for (let at = 0; at < run.length; at += MUTEX_SIZE) initMutex(run, at)
    const end = f.AT_LIST_MUTEXES + MUTEX_SIZE * count
    for (let at = f.AT_LIST_MUTEXES; at < end; at += run.length) {
      writeAt(this.fd, run.subarray(0, Math.min(run.length, end - at)), at)
    }
  }

  private readHeader(): Header {
    const bytes = new Uint8Array(f.HEADER_SIZE)
    let length = readAt(this.fd, bytes, 0)
    if (length === 0) {
      const openFlags = this.options.openFlags ?? 2
      if ((openFlags & O_CREAT) === 0 || this.readOnly) throw this.format("file is empty", EIO)
      this.create()
      length = readAt(this.fd, bytes, 0)
    }
    if (length < f.HEADER_SIZE) throw this.format(`header of ${length} bytes, not ${f.HEADER_SIZE}`, EIO)
    return parseHeader(this.path, bytes)
  }

  private openMutexes(header: Header): void {
    if (header.mutexSize === 0 || this.lockless) return
    if ((this.flags & f.MUTEX_LOCKING) === 0) {
      throw this.format("file has mutexes: needs the flag MUTEX_LOCKING or NOLOCK", EINVAL)
    }
    const expected = f.mutexAreaSize(header.hashSize)
    if (header.mutexSize !== expected) {
      throw this.format(`mutex area of ${header.mutexSize} bytes, not ${expected}`, EINVAL)
    }
    if (fileSize(this.fd) < expected) throw this.format("file ends inside its mutex area", EINVAL)
    if ((this.flags & f.CLEAR_IF_FIRST) === 0 && this.tryActive()) {
      // Nobody uses them: whoever held one died without a heir.
      this.activeWrite = true
      this.initMutexes(header.hashSize)
    }
    this.mutexes = new MutexArea(this.fd, expected)
  }

  private map(header: Header): FileBacking {
    if (header.hashSize > 0xffffffff / 4) throw this.format(`hash size ${header.hashSize} too large`, EINVAL)
    const backing = new FileBacking(this.fd, this.path, header.mutexSize, !this.readOnly)
    this.backing = backing
    if (backing.size < f.dataStart(header.hashSize)) {
      throw this.format(`hash size ${header.hashSize} does not fit`, EINVAL)
    }
    return backing
  }
}

/** Check the 168 header bytes. Raises FORMAT with the errno of libtdb's open. */
export function parseHeader(path: string, bytes: Uint8Array): Header {
  const refuse = (reason: string, errno: number) => new TdbError("FORMAT", path, reason, undefined, errno)
  for (let i = 0; i <= f.MAGIC_FOOD.length; i++) {
    if (bytes[i] !== (i < f.MAGIC_FOOD.length ? f.MAGIC_FOOD.charCodeAt(i) : 0)) throw refuse("not a TDB file", EIO)
  }
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  const version = view.getUint32(f.AT_VERSION, true)
  if (version !== f.VERSION && version !== f.VERSION_SWAPPED) {
    throw refuse(`unknown version 0x${version.toString(16)}`, EIO)
  }
  const swapped = version === f.VERSION_SWAPPED
  const word = (at: number) => view.getUint32(at, !swapped)
  const rwlocks = word(f.AT_RWLOCKS)
  if (rwlocks !== 0 && rwlocks !== f.RWLOCKS_HASH && rwlocks !== f.RWLOCKS_FEATURES) {
    throw refuse("spinlocks no longer supported", ENOSYS)
  }
  const hashSize = word(f.AT_HASH_SIZE)
  if (hashSize === 0) throw refuse("invalid database: 0 hash_size", ENOSYS)
  let mutexSize = 0
  if (rwlocks === f.RWLOCKS_FEATURES) {
    const features = word(f.AT_FEATURE_FLAGS)
    if ((features & ~f.FEATURE_MUTEX) !== 0) {
      throw refuse(`unsupported features 0x${features.toString(16)} (supported: 0x1)`, ENOSYS)
    }
    if ((features & f.FEATURE_MUTEX) !== 0) {
      mutexSize = word(f.AT_MUTEX_SIZE)
      if (swapped) throw refuse("a byte-swapped file with mutexes", EINVAL)
      if (mutexSize % 4096 !== 0 || mutexSize === 0) throw refuse(`mutex area of ${mutexSize} bytes`, EINVAL)
    }
  }
  const hashKind = hashKindOf(word(f.AT_MAGIC1_HASH), word(f.AT_MAGIC2_HASH), swapped)
  if (hashKind === null) {
    const [one, two] = [word(f.AT_MAGIC1_HASH), word(f.AT_MAGIC2_HASH)]
    throw refuse(`unknown hash function: magic1_hash 0x${one.toString(16)}, magic2_hash 0x${two.toString(16)}`, EINVAL)
  }
  return { swapped, hashSize, hashKind, mutexSize }
}

function hashKindOf(magic1: number, magic2: number, swapped: boolean): HashKind | null {
  if (magic1 === 0 && magic2 === 0) return OLD_HASH
  for (const kind of [OLD_HASH, JENKINS_HASH]) {
    if (magic1 === kind.magic1 && magic2 === (swapped ? kind.magic2Swapped : kind.magic2)) return kind
  }
  return null
}

/** Header, freelist head and chain heads of an empty database. */
function newImage(hashSize: number, flags: number, mutexSize: number, swapped: boolean): Uint8Array {
  const image = new Uint8Array(f.HEADER_SIZE + 4 * (hashSize + 1))
  const view = new DataView(image.buffer)
  const kind = (flags & (f.INCOMPATIBLE_HASH | f.MUTEX_LOCKING | f.INTERNAL)) !== 0 ? JENKINS_HASH : OLD_HASH
  const put = (at: number, value: number) => view.setUint32(at, value, !swapped)
  Buffer.from(image.buffer).write(f.MAGIC_FOOD, "latin1")
  put(f.AT_VERSION, f.VERSION)
  put(f.AT_HASH_SIZE, hashSize)
  if (mutexSize !== 0) {
    put(f.AT_RWLOCKS, f.RWLOCKS_FEATURES)
    put(f.AT_FEATURE_FLAGS, f.FEATURE_MUTEX)
    put(f.AT_MUTEX_SIZE, mutexSize)
  } else if (kind === JENKINS_HASH) put(f.AT_RWLOCKS, f.RWLOCKS_HASH)
  put(f.AT_MAGIC1_HASH, kind.magic1)
  put(f.AT_MAGIC2_HASH, swapped ? kind.magic2Swapped : kind.magic2)
  return image
}

export interface MemoryOptions {
  /** What errors call it. */
  readonly name?: string
  readonly flags?: number
  readonly hashSize?: number
  readonly maxDead?: number
  /** The bytes of a TDB file to work on a copy of; without them, an empty database. */
  readonly contents?: Uint8Array
  readonly readOnly?: boolean
}

/**
 * A TDB in plain memory, without locks. Unlike libtdb's INTERNAL it knows transactions. With `contents` it raises the errors of
 * `openTdb`, and a commit that died in them is undone (or raises CORRUPT with `readOnly`).
 */
export function openMemory(options: MemoryOptions = {}): Tdb {
  const name = options.name ?? "memory"
  const readOnly = options.readOnly ?? false
  const flags = (options.flags ?? 0) | f.INTERNAL | f.NOLOCK | f.NOMMAP | f.INCOMPATIBLE_HASH
  const contents =
    options.contents ??
    newImage(options.hashSize || f.DEFAULT_HASH_SIZE, (options.flags ?? 0) | f.INTERNAL, 0, (flags & f.CONVERT) !== 0)
  if (contents.length < f.HEADER_SIZE) {
    throw new TdbError("FORMAT", name, `header of ${contents.length} bytes, not ${f.HEADER_SIZE}`, undefined, EIO)
  }
  const header = parseHeader(name, contents)
  if (header.hashSize > 0xffffffff / 4) {
    throw new TdbError("FORMAT", name, `hash size ${header.hashSize} too large`, undefined, EINVAL)
  }
  if (contents.length < header.mutexSize + f.dataStart(header.hashSize)) {
    throw new TdbError("FORMAT", name, `hash size ${header.hashSize} does not fit`, undefined, EINVAL)
  }
  const locks = new Locks(name, -1, header.hashSize, null)
  locks.noLock = true
  locks.forbidWrites = readOnly
  const db = new Tdb({
    path: name,
    flags: header.swapped ? flags | f.CONVERT : flags & ~f.CONVERT,
    backing: new MemoryBacking(contents.subarray(header.mutexSize), header.mutexSize),
    locks,
    hashKind: header.hashKind,
    hashSize: header.hashSize,
    swapped: header.swapped,
    readOnly,
    maxDead: options.maxDead ?? ((flags & f.VOLATILE) !== 0 ? f.VOLATILE_MAX_DEAD : 0),
  })
  recover(db)
  return db
}
