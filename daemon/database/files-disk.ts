// Database files on disk: names, directories, flags and the way to open them as stock daemons and their clients do
// (tdb-format page 9.1, 9.2). What is in them, and when they are opened, is decided elsewhere.

import { constants, copyFile, readdirSync, renameSync, unlinkSync } from "node:fs"
import type { Scheduler } from "../../lib/net/ports.ts"
import {
  CLEAR_IF_FIRST,
  DISALLOW_NESTING,
  type Held,
  INCOMPATIBLE_HASH,
  MUTEX_LOCKING,
  NOSYNC,
  openTdb,
  type Tdb,
  Walk,
} from "../../lib/tdb/tdb.ts"
import { CommitThreads } from "./commits.ts"
import type { DatabaseFiles, DatabaseKind, FileLocks, OpenedFile, OpenParameters } from "./files.ts"

export interface DatabaseDirectories {
  readonly volatileDirectory: string
  readonly persistentDirectory: string
  readonly stateDirectory: string
  /** Robust mutexes for volatile databases. */
  readonly tdbMutexes: boolean
}

const FILE_MODE = 0o600
const HEALTH_HASH_SIZE = 131
const HEALTH = "persistent_health.tdb"

export function databaseFiles(directories: DatabaseDirectories, scheduler: Scheduler): DatabaseFiles {
  const pathOf = (kind: DatabaseKind, name: string, pnn: number) => {
    const { persistentDirectory, volatileDirectory } = directories
    return `${kind === "persistent" ? persistentDirectory : volatileDirectory}/${name}.${pnn}`
  }
  const threads = new CommitThreads(scheduler)
  const healthPath = (pnn: number) => `${directories.stateDirectory}/${HEALTH}.${pnn}`
  return {
    open: (parameters) => openDatabase(parameters, pathOf, directories.tdbMutexes, scheduler, threads),
    persistentNames: (pnn) => persistentNames(directories.persistentDirectory, pnn),
    setAside: (name, pnn) => setAside(pathOf("persistent", name, pnn)),
    copyAside: (path, done) => {
      const target = asideOf(path)
      copyFile(path, target, constants.COPYFILE_EXCL | constants.COPYFILE_FICLONE, (error) => done(error ?? target))
    },
    openHealth: (pnn) => {
      const openFlags = constants.O_RDWR | constants.O_CREAT
      const flags = DISALLOW_NESTING
      const path = healthPath(pnn)
      const tdb = openTdb(path, { flags, hashSize: HEALTH_HASH_SIZE, openFlags, mode: FILE_MODE })
      const file = threads.openRaw(path, tdb.flags)
      return {
        tdb,
        write: (marks, done) => file.store(marks, done),
        close: () => {
          file.close()
          tdb.close()
        },
      }
    },
    setHealthAside: (pnn) => setAside(healthPath(pnn)),
  }
}

function flagsOf(kind: DatabaseKind, mutexes: boolean): number {
  if (kind === "persistent") return DISALLOW_NESTING
  const flags = NOSYNC | CLEAR_IF_FIRST | DISALLOW_NESTING | INCOMPATIBLE_HASH
  return kind === "volatile" && mutexes ? flags | MUTEX_LOCKING : flags
}

function openDatabase(
  parameters: OpenParameters,
  pathOf: (kind: DatabaseKind, name: string, pnn: number) => string,
  mutexes: boolean,
  scheduler: Scheduler,
  threads: CommitThreads,
): OpenedFile {
  const { kind, name, pnn, hashSize, maxDead } = parameters
  const path = pathOf(kind, name, pnn)
  const open = () =>
    openTdb(path, {
      flags: flagsOf(kind, mutexes),
      hashSize,
      openFlags: constants.O_RDWR | constants.O_CREAT,
      mode: FILE_MODE,
      maxDead,
      // Whoever attaches checks the file, which does it between turns of the loop.
      leaveRecovery: kind === "persistent",
    })
  let tdb = open()
  if (kind !== "persistent" && !isEmpty(tdb)) {
    // A program that outlived an earlier daemon has it open, so it was not cleared. It keeps its old file; nobody else does.
    // (A stock daemon ends here.)
    tdb.close()
    unlinkSync(path)
    tdb = open()
  }
  // What libtdb does after a commit that left the space in pieces takes as long as the database is large.
  tdb.autoRepack = false
  // Whether the file is cleared was decided above.
  const updates = threads.open(path, tdb.flags & ~CLEAR_IF_FIRST, maxDead)
  return { path, tdb, locks: new TdbLocks(tdb, scheduler), updates }
}

/** Whether there is no record, and nobody holds a chain either. */
function isEmpty(tdb: Tdb): boolean {
  const walk = new Walk(tdb)
  let found = false
  const more = walk.next(
    1,
    () => {
      found = true
      return true
    },
    false,
  )
  walk.close()
  return !found && !more
}

/** Files `NAME.tdb.PNN` (tdb-format page 9.2). */
function persistentNames(directory: string, pnn: number): string[] {
  const names: string[] = []
  for (const file of readdirSync(directory)) {
    const match = /^(.*\.tdb)\.(\d+)$/.exec(file)
    if (match?.[1] !== undefined && match[2] === String(pnn)) names.push(match[1])
  }
  return names.sort()
}

/** `PATH.corrupted.YYYYMMDDhhmmss.0Z`, in UTC (tdb-format page 9.2). */
function asideOf(path: string): string {
  return `${path}.corrupted.${new Date().toISOString().replace(/\D/g, "").slice(0, 14)}.0Z`
}

function setAside(path: string): string {
  const target = asideOf(path)
  renameSync(path, target)
  return target
}

/** A wait that the engine had to give up is taken up again after this time. */
const RETRY_MS = 100

/** The engine's locks and its waiting threads. */
class TdbLocks implements FileLocks {
  private all: Held | undefined

  constructor(
    private readonly tdb: Tdb,
    private readonly scheduler: Scheduler,
  ) {}

  tryChain(hash: number): boolean {
    return this.tdb.tryLockChain(hash)
  }

  unlockChain(hash: number): void {
    this.tdb.unlockChain(hash)
  }

  waitForChain(hash: number, locked: () => void): () => void {
    let cancel: () => void
    const ask = () => {
      const wait = this.tdb.waitForChain(hash, (held, error) => {
        if (held !== null) locked()
        else if (error?.code !== "CANCELLED") {
          const timer = this.scheduler.setTimer(RETRY_MS, ask)
          cancel = () => timer.cancel()
        }
      })
      cancel = () => wait.cancel()
    }
    ask()
    return () => cancel()
  }

  waitForAll(locked: (ok: boolean) => void): () => void {
    const wait = this.tdb.waitForAllrecord(true, (held) => {
      held?.keep()
      this.all = held ?? undefined
      locked(held !== null)
    })
    return () => wait.cancel()
  }

  unlockAll(): void {
    this.all?.release()
    this.all = undefined
  }
}
