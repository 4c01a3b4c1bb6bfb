// The pid file of a daemon: `PID\n`, mode 0644, write-locked (POSIX, whole file) for the life of the process, so that a second
// daemon on the same base refuses to start, a stock one included. Source: reference page "Configuration", section 19.

import { FileLock, lockHolder, WHOLE_FILE } from "../sys/filelock.ts"
import { strerrorOf } from "../sys/strerror.ts"

/** Exit status of a daemon whose pid file is held by another or can't be made. */
export const PID_FILE_EXIT_STATUS = 11

export interface PidFile {
  readonly path: string
  /** Removes the file and gives up the lock: the last act of an orderly shutdown. A second call does nothing. */
  release(): void
}

export type PidFileResult =
  | { readonly ok: true; readonly pidFile: PidFile }
  | {
      readonly ok: false
      /** Another process holds the lock, which is the usual second start; else the file can't be made. */
      readonly held: boolean
      /** What the stock daemon logs. */
      readonly message: string
      /** Why, and what to do: for a second line. */
      readonly reason: string
    }

/** An old daemon may remove the file between our open and our lock; then we hold a lock on nothing and start over. */
const ATTEMPTS_MAX = 10

/** Makes, locks and fills the file. A left-over one without a lock is taken over. Nobody may open it again in here. */
export function createPidFile(path: string, pid: number = process.pid): PidFileResult {
  const refused = (held: boolean, reason: string): PidFileResult => ({
    ok: false,
    held,
    message: `Failed to create PID file ${path}`,
    reason,
  })
  try {
    for (let attempt = 0; attempt < ATTEMPTS_MAX; attempt++) {
      const lock = FileLock.tryLock(path, 0o644, WHOLE_FILE)
      if (lock === undefined) {
        const holder = lockHolder(path, WHOLE_FILE)
        if (holder === undefined) continue
        return refused(true, `process ${holder} holds it: another daemon runs on this base, stop it first`)
      }
      if (lock.isInPlace()) {
        lock.write(`${pid}\n`)
        return { ok: true, pidFile: { path, release: () => lock.remove() } }
      }
      lock.release()
    }
  } catch (error) {
    return refused(false, `${path}: ${strerrorOf(error)}`)
  }
  return refused(false, `${path} keeps changing hands`)
}
