// The real libtdb for tests, through bun:ffi. Never use it in a process that holds libtdb's POSIX locks on a file which this process
// also opens otherwise: closing that descriptor drops them.

import { cc, type Pointer } from "bun:ffi"

const p = "ptr"
const i = "i32"
const { symbols: d } = cc({
  source: new URL("./libtdb.c", import.meta.url).pathname,
  symbols: {
    d_init: { args: [], returns: i },
    d_open: { args: [p, i, i, i], returns: p },
    d_close: { args: [p], returns: i },
    d_store: { args: [p, p, i, p, i, i], returns: i },
    d_append: { args: [p, p, i, p, i], returns: i },
    d_delete: { args: [p, p, i], returns: i },
    d_exists: { args: [p, p, i], returns: i },
    d_fetch: { args: [p, p, i, p, i], returns: i },
    d_chainlock: { args: [p, p, i], returns: i },
    d_chainlock_nonblock: { args: [p, p, i], returns: i },
    d_chainunlock: { args: [p, p, i], returns: i },
    d_traverse_read: { args: [p, p, i], returns: i },
    d_count: { args: [p], returns: i },
    d_lockall: { args: [p], returns: i },
    d_lockall_nonblock: { args: [p], returns: i },
    d_unlockall: { args: [p], returns: i },
    d_lockall_read: { args: [p], returns: i },
    d_unlockall_read: { args: [p], returns: i },
    d_start: { args: [p], returns: i },
    d_prepare: { args: [p], returns: i },
    d_commit: { args: [p], returns: i },
    d_cancel: { args: [p], returns: i },
    d_check: { args: [p], returns: i },
    d_wipe: { args: [p], returns: i },
    d_repack: { args: [p], returns: i },
    d_seqnum: { args: [p], returns: i },
    d_freelist_size: { args: [p], returns: i },
    d_error: { args: [p], returns: i },
    d_set_max_dead: { args: [p, i], returns: "void" },
    d_hash_size: { args: [p], returns: i },
  },
})

if (d.d_init() !== 0) throw new Error("libtdb.so.1 is not installed")

const room = Buffer.alloc(64 * 1024 * 1024)
// An empty buffer has no address.
const bytesOf = (bytes: Uint8Array): Uint8Array => (bytes.length === 0 ? new Uint8Array(1) : bytes)

/** One handle of the real library. Methods return its results: 0, -1, or what their names say. */
export class LibTdb {
  private constructor(private readonly handle: Pointer) {}

  /** Null when the open fails. */
  static open(path: string, hashSize: number, flags: number, openFlags: number): LibTdb | null {
    const handle = d.d_open(Buffer.from(`${path}\0`), hashSize, flags, openFlags)
    return handle === null ? null : new LibTdb(handle as Pointer)
  }
  close(): number {
    return d.d_close(this.handle)
  }
  store(key: Uint8Array, data: Uint8Array, mode = 0): number {
    return d.d_store(this.handle, bytesOf(key), key.length, bytesOf(data), data.length, mode)
  }
  append(key: Uint8Array, data: Uint8Array): number {
    return d.d_append(this.handle, bytesOf(key), key.length, bytesOf(data), data.length)
  }
  delete(key: Uint8Array): number {
    return d.d_delete(this.handle, bytesOf(key), key.length)
  }
  exists(key: Uint8Array): boolean {
    return d.d_exists(this.handle, bytesOf(key), key.length) !== 0
  }
  fetch(key: Uint8Array): Uint8Array | null {
    const length = d.d_fetch(this.handle, bytesOf(key), key.length, room, room.length)
    return length < 0 ? null : new Uint8Array(room.subarray(0, length))
  }
  lockChain(key: Uint8Array): number {
    return d.d_chainlock(this.handle, bytesOf(key), key.length)
  }
  tryLockChain(key: Uint8Array): number {
    return d.d_chainlock_nonblock(this.handle, bytesOf(key), key.length)
  }
  unlockChain(key: Uint8Array): number {
    return d.d_chainunlock(this.handle, bytesOf(key), key.length)
  }
  /** Null when the traverse fails. */
  records(): { key: Buffer; data: Buffer }[] | null {
    const count = d.d_traverse_read(this.handle, room, room.length)
    if (count < 0) return null
    const records: { key: Buffer; data: Buffer }[] = []
    let at = 0
    for (let n = 0; n < count; n++) {
      const keyEnd = at + 8 + room.readUInt32LE(at)
      const dataEnd = keyEnd + room.readUInt32LE(at + 4)
      records.push({
        key: Buffer.from(room.subarray(at + 8, keyEnd)),
        data: Buffer.from(room.subarray(keyEnd, dataEnd)),
      })
      at = dataEnd
    }
    return records
  }
  count(): number {
    return d.d_count(this.handle)
  }
  lockAll(): number {
    return d.d_lockall(this.handle)
  }
  tryLockAll(): number {
    return d.d_lockall_nonblock(this.handle)
  }
  unlockAll(): number {
    return d.d_unlockall(this.handle)
  }
  lockAllRead(): number {
    return d.d_lockall_read(this.handle)
  }
  unlockAllRead(): number {
    return d.d_unlockall_read(this.handle)
  }
  start(): number {
    return d.d_start(this.handle)
  }
  prepare(): number {
    return d.d_prepare(this.handle)
  }
  commit(): number {
    return d.d_commit(this.handle)
  }
  cancel(): number {
    return d.d_cancel(this.handle)
  }
  check(): number {
    return d.d_check(this.handle)
  }
  wipe(): number {
    return d.d_wipe(this.handle)
  }
  repack(): number {
    return d.d_repack(this.handle)
  }
  sequenceNumber(): number {
    return d.d_seqnum(this.handle) >>> 0
  }
  freelistSize(): number {
    return d.d_freelist_size(this.handle)
  }
  error(): number {
    return d.d_error(this.handle)
  }
  setMaxDead(maxDead: number): void {
    d.d_set_max_dead(this.handle, maxDead)
  }
  hashSize(): number {
    return d.d_hash_size(this.handle)
  }
}
