// The thread that writes transactions, so that the loop does not wait for the disk: entry point of a worker, one record buffer
// at a time, driven by commits.ts. It opens the files anew: locks belong to an open file, so that its own and the loop's keep
// each other out. It never waits for a lock.

import { decode } from "../../lib/protocol/codec.ts"
import { recBuffer } from "../../lib/protocol/structs.ts"
import { SysError } from "../../lib/sys/errno.ts"
import { freelistSize, headerDefect, openTdb, type Tdb, TdbError } from "../../lib/tdb/tdb.ts"
import type { Mark, UpdateResult } from "./files.ts"
import { applyRecords } from "./update.ts"

/**
 * A record buffer to store; records as they are to lie in the file; a number of pieces of free space from which on the file is
 * written anew; or only a sync.
 */
export type CommitWork = Uint8Array | readonly Mark[] | number | "sync"

/** To the thread: write this, or forget the file. */
export type CommitOrder =
  | {
      readonly file: number
      readonly path: string
      readonly flags: number
      readonly maxDead: number
      /** Word 0 says which recovery the file's contents are of; an update of before it is void. */
      readonly epochs: Int32Array
      readonly epoch: number
      readonly work: CommitWork
    }
  | { readonly file: number; readonly close: true }

/** From the thread. "busy": somebody has the file locked; nothing was done. */
export type CommitReport = UpdateResult | { readonly outcome: "busy"; readonly reason: string }

declare const self: {
  onmessage: ((event: { data: CommitOrder }) => void) | null
  postMessage(message: CommitReport): void
}

const BUSY: CommitReport = { outcome: "busy", reason: "" }
const files = new Map<number, Tdb>()

function write(order: Exclude<CommitOrder, { readonly close: true }>): CommitReport {
  let tdb = files.get(order.file)
  if (tdb === undefined) {
    tdb = openTdb(order.path, { flags: order.flags, maxDead: order.maxDead })
    tdb.autoRepack = false
    // This thread may take its time to undo a dead process's commit.
    tdb.recoverAtOnce_bytes_max = Number.POSITIVE_INFINITY
    files.set(order.file, tdb)
  }
  if (order.work === "sync") {
    tdb.backing.sync()
    return { outcome: "applied", reason: "" }
  }
  const { locks } = tdb
  if (!locks.lockTransaction(false)) return BUSY
  try {
    // The write lock from the beginning: waiting for readers at the commit could take any time.
    if (!tdb.tryLockAllrecord()) return BUSY
    try {
      if (Atomics.load(order.epochs, 0) !== order.epoch) return { outcome: "dropped", reason: "recovery has begun" }
      if (typeof order.work === "number") return repack(tdb, order.work)
      const defect = headerDefect(tdb)
      if (defect !== undefined) return { outcome: "damaged", reason: `${order.path}: ${defect}` }
      tdb.startTransaction()
      return finish(tdb, order.work)
    } finally {
      tdb.unlockAllrecord()
    }
  } finally {
    locks.unlockTransaction()
  }
}

function repack(tdb: Tdb, pieces: number): CommitReport {
  const size = freelistSize(tdb)
  if (size < pieces) return { outcome: "applied", reason: "" }
  tdb.repack()
  return { outcome: "applied", reason: String(size) }
}

function finish(tdb: Tdb, work: Uint8Array | readonly Mark[]): CommitReport {
  let refused: string | undefined
  try {
    if (work instanceof Uint8Array) refused = applyRecords(tdb, decode(recBuffer, work))
    else for (const { key, value } of work) value === undefined ? tdb.delete(key) : tdb.store(key, value)
  } catch (error) {
    tdb.cancel()
    // Nothing was written yet: what went wrong is what was read.
    if (!(error instanceof TdbError) || error.code === "NOSPACE") throw error
    return { outcome: "damaged", reason: error.message }
  }
  if (refused !== undefined) {
    tdb.cancel()
    return { outcome: "refused", reason: refused }
  }
  tdb.commit()
  return { outcome: "applied", reason: "" }
}

function outcomeOf(error: TdbError | SysError): UpdateResult["outcome"] {
  if (!(error instanceof TdbError)) return "broken"
  if (error.code === "NOSPACE") return "full"
  return error.code === "CORRUPT" || error.code === "FORMAT" ? "damaged" : "broken"
}

self.onmessage = ({ data: order }) => {
  if ("close" in order) {
    files.get(order.file)?.close()
    files.delete(order.file)
    return
  }
  try {
    self.postMessage(write(order))
  } catch (error) {
    if (!(error instanceof TdbError || error instanceof SysError)) throw error
    self.postMessage({ outcome: outcomeOf(error), reason: error.message })
  }
}
