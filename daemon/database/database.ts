// One attached database: its file, its kind and properties, its generation, and what a recovery does to it: freeze, a
// transaction, new contents, thaw (data path page 10). Which databases there are is the registry's business, and how records
// move is in calls.ts.

import { decode } from "../../lib/protocol/codec.ts"
import { DbFlag, LOCK_BUCKET_SECONDS } from "../../lib/protocol/constants.ts"
import { type DbStatistics, dbStatistics } from "../../lib/protocol/structs.ts"
import { Filling, MUTEX_LOCKING, type Tdb, type Underway } from "../../lib/tdb/tdb.ts"
import type { NodeEnvironment } from "../environment.ts"
import { isActive, type NodeState } from "../state.ts"
import { addLatency, type MutableLatency } from "../statistics.ts"
import type { DatabaseKind, FileUpdates, OpenedFile } from "./files.ts"
import type { Freezable } from "./freeze.ts"
import { HotKeys } from "./hot-keys.ts"
import { ChainLocks } from "./locks.ts"
import type { Deletions, RecordStore } from "./record.ts"

interface LockStatistics {
  numCalls: number
  numCurrent: number
  numPending: number
  numFailed: number
  readonly latency: MutableLatency
  readonly buckets: number[]
}

interface Counters {
  readonly locks: LockStatistics
  readonly vacuum: { readonly latency: MutableLatency }
  dbRoDelegations: number
  dbRoRevokes: number
  readonly hopCountBucket: number[]
}

/** What goes on with a database in a recovery and must end with its transaction: a pull, a push. */
export interface Passage {
  abort(reason: string): void
}

function zeroCounters(): Counters {
  return decode(dbStatistics, new Uint8Array(dbStatistics.minSize)) as unknown as Counters
}

const KIND_FLAGS: Readonly<Record<DatabaseKind, number>> = {
  volatile: 0,
  persistent: DbFlag.PERSISTENT,
  replicated: DbFlag.REPLICATED,
}

export class Database implements Freezable, RecordStore {
  readonly path: string
  readonly tdb: Tdb
  readonly locks: ChainLocks
  /** Transactions of clients; never those of a recovery. */
  readonly updates: FileUpdates
  readonly volatile: boolean
  readonly pnn: number
  /** The TDB flags that clients are told to open the file with. */
  readonly openFlags: number
  /** READONLY and STICKY: properties of this node's handle, not of the file. */
  properties = 0
  /** Of the recovery that has given the database its contents. */
  generation: number
  /** The records are those of before this node left the cluster: they count for nothing in a recovery. */
  invalid = false
  /** It was detached, and its file is closed. */
  closed = false
  deletions: Deletions | undefined
  counters = zeroCounters()
  readonly hotKeys: HotKeys
  /** Called when the database may be used again after a freeze. */
  onThaw: () => void = () => {}
  /** Called when a defect of the file is met. */
  onDamaged: (reason: string) => void = () => {}
  /** Called when nothing of what the database holds in memory counts any more: it was wiped. */
  onWipe: () => void = () => {}
  /** Called when a recovery has ended all read-only delegations. */
  onDelegationsVoid: () => void = () => {}
  private freezing: "none" | "pending" | "frozen" = "none"
  private waitingForFreeze: ((ok: boolean) => void)[] = []
  /** The id of the transaction that runs. */
  private tid: number | undefined
  private readonly passages = new Set<Passage>()
  /** While the transaction of a recovery stores records one behind the other: it was wiped, and nothing else was stored since. */
  private filling: Filling | undefined
  /** The commit of the recovery's transaction, while it is under way. */
  private committing: Underway | undefined

  constructor(
    readonly id: number,
    readonly name: string,
    readonly kind: DatabaseKind,
    file: OpenedFile,
    private readonly state: NodeState,
    private readonly environment: NodeEnvironment,
  ) {
    this.path = file.path
    this.tdb = file.tdb
    this.updates = file.updates
    this.volatile = kind === "volatile"
    this.pnn = state.pnn
    this.openFlags = file.tdb.flags
    this.generation = state.generation
    this.hotKeys = new HotKeys(name, environment.log)
    this.locks = new ChainLocks(file.locks, (hash) => this.tdb.chainOf(hash), environment, {
      waiting: () => {
        this.counters.locks.numPending++
        state.statistics.now.locks.numPending++
      },
      served: (seconds) => this.countLock(seconds, "RECORD"),
      slow: (what, seconds) => {
        environment.log.warning(
          `Unable to get ${what} lock on database ${name} for ${Math.round(seconds)} seconds` +
            (what === "RECORD" ? ` (${this.locks.waitingCount} requests wait)` : ""),
        )
        // On a node that takes no part in the cluster, the freeze holds up everything: nobody need be told by whom.
        if (what === "RECORD" && !isActive(state.self)) return
        environment.debugLocks(what, this.path, (this.openFlags & MUTEX_LOCKING) !== 0)
      },
    })
  }

  /** Database flags as on the wire (wire-protocol page 8.3). */
  get flags(): number {
    return KIND_FLAGS[this.kind] | this.properties
  }

  get frozen(): boolean {
    return this.freezing === "frozen"
  }

  get transaction(): number | undefined {
    return this.tid
  }

  lmasterOf(jenkins: number): number {
    const { vnnMap } = this.state
    return vnnMap[jenkins % vnnMap.length] ?? this.pnn
  }

  private countLock(seconds: number, what: "RECORD" | "DB"): void {
    for (const locks of [this.state.statistics.now.locks as unknown as LockStatistics, this.counters.locks]) {
      if (what === "RECORD") locks.numPending--
      locks.numCalls++
      addLatency(locks.latency, seconds)
      let bucket = 0
      while (bucket < LOCK_BUCKET_SECONDS.length && seconds >= LOCK_BUCKET_SECONDS[bucket]!) bucket++
      locks.buckets[bucket]!++
    }
    const limitMs = this.state.tunables.LogLatencyMs
    if (limitMs === 0 || seconds * 1000 <= limitMs) return
    const operation = what === "RECORD" ? "lock_record" : "lock_db"
    this.environment.log.warning(
      `High latency ${seconds.toFixed(6)}s for operation ${operation} on database ${this.name}`,
    )
  }

  // ---- freeze and thaw -----------------------------------------------------------------------------------------

  freeze(done: (ok: boolean) => void): void {
    if (this.freezing === "frozen") {
      done(true)
      return
    }
    this.waitingForFreeze.push(done)
    if (this.freezing === "pending") return
    this.freezing = "pending"
    const sinceMs = this.environment.monotonicMs()
    this.locks.freeze((ok) => {
      this.freezing = ok ? "frozen" : "none"
      if (ok) this.countLock((this.environment.monotonicMs() - sinceMs) / 1000, "DB")
      this.tellFreezers(ok)
    })
  }

  private tellFreezers(ok: boolean): void {
    const waiting = this.waitingForFreeze
    this.waitingForFreeze = []
    for (const done of waiting) done(ok)
  }

  thaw(): void {
    const was = this.freezing
    if (was === "none") return
    this.cancelTransaction()
    this.freezing = "none"
    this.invalid = false
    this.locks.thaw()
    this.tellFreezers(false)
    if (was === "frozen") this.onThaw()
  }

  invalidate(generation: number): void {
    this.finishCommit()
    this.generation = generation
    if (this.volatile) this.invalid = true
  }

  // ---- the recovery's transaction ------------------------------------------------------------------------------

  /** false: the database is not frozen. One that runs is cancelled first. @throws TdbError */
  startTransaction(tid: number): boolean {
    if (this.freezing !== "frozen") return false
    this.cancelTransaction()
    this.updates.drop()
    // Every lock of the file is ours; taking smaller ones again could only wait for programs that stand still in between.
    this.tdb.markTransaction()
    this.setNoLock(true)
    try {
      this.tdb.startTransaction()
    } catch (error) {
      this.endLocking()
      throw error
    }
    this.tid = tid
    return true
  }

  /** Whether the transaction `tid` runs: anything else that names one is refused. */
  inTransaction(tid: number): boolean {
    return this.freezing === "frozen" && this.tid === tid
  }

  /**
   * Makes the new contents the database's, in pieces between the turns of the loop. `done` is called once, in this turn or a later
   * one, with what went wrong or null; the transaction has ended in any case.
   */
  commitTransaction(done: (error: unknown) => void): void {
    const tid = this.tid
    if (tid === undefined) throw new Error(`commit of database ${this.name} without a transaction`)
    this.endPassages("committed")
    this.tid = undefined
    let over = false
    const end = (error: unknown) => {
      over = true
      this.committing = undefined
      this.endLocking()
      if (error === null) this.generation = tid
      done(error)
    }
    try {
      this.endFilling()
    } catch (error) {
      this.tdb.cancel()
      end(error)
      return
    }
    const committing = this.tdb.commitInPieces(this.environment, end)
    if (!over) this.committing = committing
  }

  /** What can't wait for a commit that is under way: seldom, as whoever asked for it waits for its end. */
  private finishCommit(): void {
    this.committing?.finish()
  }

  cancelTransaction(): void {
    this.finishCommit()
    this.endPassages("transaction cancelled")
    this.filling = undefined
    if (this.tid === undefined) return
    this.tid = undefined
    try {
      this.tdb.cancel()
    } finally {
      this.endLocking()
    }
  }

  private endLocking(): void {
    this.setNoLock(false)
    this.tdb.unmarkTransaction()
  }

  /** A database in memory never takes locks. */
  private setNoLock(noLock: boolean): void {
    if (this.tdb.locks.fd >= 0) this.tdb.setNoLock(noLock)
  }

  /** All records go. Only inside a transaction. @throws TdbError */
  wipe(): void {
    this.endPassages("database wiped")
    this.filling = undefined
    this.tdb.wipe()
    this.onWipe()
    this.filling = Filling.begin(this.tdb)
  }

  /**
   * Stores a record of a push whose key and data (header and all) lie one behind the other in `source`. Returns where its data
   * is in the file's bytes, or 0: it must be stored by the rules for single records. @throws TdbError
   */
  fill(source: Uint8Array, from: number, keyLength: number, dataLength: number, hash: number): number {
    return this.filling === undefined ? 0 : this.filling.add(source, from, keyLength, dataLength, hash)
  }

  /** From now on records are stored one by one. */
  endFilling(): void {
    this.filling?.end()
    this.filling = undefined
  }

  addPassage(passage: Passage): void {
    this.passages.add(passage)
  }

  removePassage(passage: Passage): void {
    this.passages.delete(passage)
  }

  private endPassages(reason: string): void {
    for (const passage of [...this.passages]) passage.abort(reason)
    this.passages.clear()
  }

  // ---- the rest ------------------------------------------------------------------------------------------------

  statistics(): DbStatistics {
    const { locks, ...rest } = this.counters
    return { ...rest, locks, hotKeys: this.hotKeys.list() } as unknown as DbStatistics
  }

  resetStatistics(): void {
    const { numPending, numCurrent } = this.counters.locks
    this.counters = zeroCounters()
    this.counters.locks.numPending = numPending
    this.counters.locks.numCurrent = numCurrent
    this.hotKeys.reset()
  }

  /** Whoever waits for something of it is told. */
  close(): void {
    this.closed = true
    this.cancelTransaction()
    this.freezing = "none"
    this.tellFreezers(false)
    this.locks.close()
    this.updates.close()
    this.tdb.close()
  }
}
