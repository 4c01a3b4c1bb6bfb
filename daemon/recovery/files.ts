// What a recovery keeps on disk: scratch files that nobody else ever sees, and the records of persistent databases that lost
// against another history, which an operator must be able to look at. The simulator has its own in memory.

import { mkdirSync, renameSync, rmSync, unlinkSync } from "node:fs"
import { join } from "node:path"
import { closeFile, O_CREAT, O_EXCL, O_RDWR, O_TRUNC, openFile, readAt, writeAt } from "../../lib/sys/memory.ts"
import { openTdb, REPLACE, type Tdb } from "../../lib/tdb/tdb.ts"

/** A file that only grows. All raise SysError. */
export interface Scratch {
  /** Returns where the bytes are now. */
  append(bytes: Uint8Array): number
  /** Fills `target` from there. */
  read(offset: number, target: Uint8Array): void
  close(): void
}

/** Records that are kept aside; nothing is visible until keep(). */
export interface Aside {
  store(key: Uint8Array, data: Uint8Array): void
  /** Gives the file its name, over one of the same name. Returns the path. */
  keep(name: string): string
  abandon(): void
}

export interface RecoveryFiles {
  openScratch(): Scratch
  /** @param name distinguishes what is written at the same time */
  openAside(name: string): Aside
}

/**
 * Files in a node's state directory. A scratch file has no name from the moment it exists, so that nothing of a database's
 * contents is left behind, however the process ends.
 */
export function diskFiles(directory: string): RecoveryFiles {
  let serial = 0
  return {
    openScratch: () => openScratch(join(directory, `recovery.${process.pid}.${serial++}`)),
    openAside: (name) => openAside(directory, join(directory, `diverged.${process.pid}.${serial++}.${name}.new`)),
  }
}

function openScratch(path: string): Scratch {
  const fd = openFile(path, O_RDWR | O_CREAT | O_EXCL, 0o600)
  unlinkSync(path)
  let end = 0
  let open = true
  return {
    append: (bytes) => {
      const at = end
      writeAt(fd, bytes, at)
      end += bytes.length
      return at
    },
    read: (offset, target) => {
      if (readAt(fd, target, offset) !== target.length) throw new Error(`scratch file ends before byte ${offset}`)
    },
    close: () => {
      if (open) closeFile(fd)
      open = false
    },
  }
}

function openAside(directory: string, path: string): Aside {
  mkdirSync(directory, { recursive: true })
  const tdb: Tdb = openTdb(path, { openFlags: O_RDWR | O_CREAT | O_TRUNC, mode: 0o600, hashSize: 1009 })
  return {
    store: (key, data) => tdb.store(key, data, REPLACE),
    keep: (name) => {
      tdb.close()
      const kept = join(directory, name)
      renameSync(path, kept)
      return kept
    },
    abandon: () => {
      tdb.close()
      rmSync(path, { force: true })
    },
  }
}
