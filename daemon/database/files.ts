// The files behind databases, as the daemon's rooms see them: where they are, how they are opened, and their locks, which
// other processes share. One implementation is on disk (files-disk.ts), the other in the simulator's memory.

import type { Tdb } from "../../lib/tdb/tdb.ts"

/** The three database models of a stock node (data path page 9.1). */
export type DatabaseKind = "volatile" | "persistent" | "replicated"

/**
 * The locks on one database file that are shared with everybody who has the file open. Nothing here blocks. A lock that was
 * got, by any of these, counts as held by the Tdb handle too, so that its operations nest inside.
 */
export interface FileLocks {
  /** The chain of a key's hash, if nobody has it. */
  tryChain(hash: number): boolean
  unlockChain(hash: number): void
  /**
   * Waits for a chain. `locked` is called once, in a later turn, with the chain locked until it returns. The function
   * returned gives the wait up.
   */
  waitForChain(hash: number, locked: () => void): () => void
  /** Waits for all chains at once; `locked` is called once, in this turn or later, with false if they can't be had. */
  waitForAll(locked: (ok: boolean) => void): () => void
  unlockAll(): void
}

/**
 * What became of a transaction: "refused" by the rules, "full" or "broken" is the disk, "damaged" what the file holds; only "applied"
 * changes anything.
 */
export interface UpdateResult {
  readonly outcome: "applied" | "refused" | "full" | "broken" | "damaged" | "dropped"
  /** For the log and whoever asked; empty if applied. */
  readonly reason: string
}

/** Transactions on one file that are written beside the loop. */
export interface FileUpdates {
  /**
   * Takes a record buffer, which stays the file's, in one transaction, after those before it; when `done` is called, once and
   * in a later turn, it is on the disk. The function returned gives it up if it has not begun; `done` is not called then.
   */
  apply(records: Uint8Array, done: (result: UpdateResult) => void): () => void
  /** `done` when what has been stored so far is on the disk. */
  sync(done: (result: UpdateResult) => void): void
  /**
   * Writes the file anew without gaps if its free space is in at least so many pieces; `reason` of "applied" is their number
   * then, else empty. While it is written nobody can use it.
   */
  repack(pieces: number, done: (result: UpdateResult) => void): void
  /** Other contents are about to come: what has not begun is dropped. */
  drop(): void
  close(): void
}

/** A record of the file of health marks; no value removes it. */
export interface Mark {
  readonly key: Uint8Array
  readonly value: Uint8Array | undefined
}

/** The file of health marks (data path page 9.5). */
export interface HealthFile {
  /** As it was found. */
  readonly tdb: Tdb
  /** Stores marks in one transaction, after those before it; `done` in a later turn, when they are on the disk. */
  write(marks: readonly Mark[], done: (result: UpdateResult) => void): void
  close(): void
}

export interface OpenedFile {
  readonly path: string
  readonly tdb: Tdb
  readonly locks: FileLocks
  readonly updates: FileUpdates
}

export interface OpenParameters {
  readonly kind: DatabaseKind
  readonly name: string
  readonly pnn: number
  /** Chains of a file that is created. */
  readonly hashSize: number
  /** Deleted records that may stay in a chain. */
  readonly maxDead: number
}

export interface DatabaseFiles {
  /**
   * Opens or creates a database's file. A volatile or replicated one is empty afterwards, even if a program that outlived
   * an earlier daemon still has the old file. A persistent one is as it was left: it is not to be read before it was checked.
   * @throws TdbError, SysError
   */
  open(parameters: OpenParameters): OpenedFile
  /** The names of the persistent databases of that node that have a file. */
  persistentNames(pnn: number): readonly string[]
  /** Moves a damaged persistent database's file out of the way; its new path. @throws Error */
  setAside(name: string, pnn: number): string
  /**
   * Copies a damaged file that is in use, and is about to get other contents; `done` in a later turn, with the copy's path or why there
   * is none.
   */
  copyAside(path: string, done: (copy: string | Error) => void): void
  /** Opens or creates it. @throws TdbError, SysError */
  openHealth(pnn: number): HealthFile
  setHealthAside(pnn: number): string
}
