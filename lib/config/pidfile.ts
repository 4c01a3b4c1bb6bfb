// The pid file of a daemon: `PID\n`, mode 0644, write-locked (POSIX, whole file) for the life of the process, so that a second
// daemon on the same base refuses to start, a stock one included. Source: reference page "Configuration", section 19.

import { closeSync, constants, fstatSync, ftruncateSync, openSync, statSync, unlinkSync, writeSync } from "node:fs"
import { lockHolder, tryLockWholeFile } from "../sys/pidlock.ts"
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
  for (let attempt = 0; attempt < ATTEMPTS_MAX; attempt++) {
    let fd: number
    try {
      fd = openSync(path, constants.O_RDWR | constants.O_CREAT, 0o644)
    } catch (error) {
      return refused(false, `${path}: ${strerrorOf(error)}`)
    }
    try {
      if (!tryLockWholeFile(fd)) {
        const holder = lockHolder(fd)
        closeSync(fd)
        if (holder === undefined) continue
        return refused(true, `process ${holder} holds it: another daemon runs on this base, stop it first`)
      }
      if (statSync(path, { throwIfNoEntry: false })?.ino !== fstatSync(fd).ino) {
        closeSync(fd)
        continue
      }
      ftruncateSync(fd, 0)
      writeSync(fd, `${pid}\n`, 0)
      return { ok: true, pidFile: heldFile(path, fd) }
    } catch (error) {
      closeSync(fd)
      return refused(false, `${path}: ${strerrorOf(error)}`)
    }
  }
  return refused(false, `${path} keeps changing hands`)
}

function heldFile(path: string, fd: number): PidFile {
  let held = true
  return {
    path,
    release() {
      if (!held) return
      held = false
      try {
        unlinkSync(path)
      } catch {
        // Somebody removed it already: nothing is left to do but to let the lock go.
      }
      closeSync(fd)
    },
  }
}
