// Database files in the simulator's memory. Persistent ones and health marks survive the death of their daemon, volatile ones
// don't; the locks of a file are shared by the daemon and the simulated clients of its host, each under its own name.

import type {
  DatabaseFiles,
  FileLocks,
  FileUpdates,
  HealthFile,
  OpenedFile,
  OpenParameters,
  UpdateResult,
} from "../../daemon/database/files.ts"
import { applyRecords } from "../../daemon/database/update.ts"
import { decode } from "../../lib/protocol/codec.ts"
import { recBuffer } from "../../lib/protocol/structs.ts"
import { openMemory, type Tdb } from "../../lib/tdb/tdb.ts"

/** Runs something of a lock's holder, later, as an event of its own; false from `alive` loses it. */
export interface LockScheduler {
  later(run: () => void): void
}

const HASH_SIZE = 31

interface Waiter {
  readonly owner: object
  readonly chain: number
  readonly locked: () => void
}

/** All chains at once. */
const ALL = -1

/** Who holds the chains of one file. Nobody who waits is overtaken by a later one for the same chain. */
export class SimLocks {
  /** chain -> holder and how often. */
  private readonly held = new Map<number, { readonly owner: object; count: number }>()
  private all: object | undefined
  private waiters: Waiter[] = []

  try(owner: object, chain: number): boolean {
    if (this.waiters.some((waiter) => waiter.chain === chain || waiter.chain === ALL)) return false
    return this.take(owner, chain)
  }

  private take(owner: object, chain: number): boolean {
    if (chain === ALL) {
      if (this.all !== undefined || this.held.size > 0) return false
      this.all = owner
      return true
    }
    if (this.all !== undefined) return this.all === owner
    const holder = this.held.get(chain)
    if (holder === undefined) this.held.set(chain, { owner, count: 1 })
    else if (holder.owner === owner) holder.count++
    else return false
    return true
  }

  release(owner: object, chain: number): void {
    if (chain === ALL) {
      if (this.all === owner) this.all = undefined
    } else if (this.all !== owner) {
      const holder = this.held.get(chain)
      if (holder === undefined || holder.owner !== owner) throw new Error(`chain ${chain} is not held by its releaser`)
      if (--holder.count === 0) this.held.delete(chain)
    }
    this.serve()
  }

  wait(owner: object, chain: number, locked: () => void): () => void {
    const waiter = { owner, chain, locked }
    this.waiters.push(waiter)
    this.serve()
    return () => {
      this.waiters = this.waiters.filter((other) => other !== waiter)
      this.serve()
    }
  }

  private serve(): void {
    for (const waiter of [...this.waiters]) {
      if (!this.waiters.includes(waiter)) continue
      if (!this.take(waiter.owner, waiter.chain)) {
        if (waiter.chain === ALL) return
        continue
      }
      this.waiters = this.waiters.filter((other) => other !== waiter)
      waiter.locked()
    }
  }

  /** A holder has died: its locks are free, as those of a dead process are. */
  died(owner: object): void {
    this.waiters = this.waiters.filter((waiter) => waiter.owner !== owner)
    for (const [chain, holder] of this.held) if (holder.owner === owner) this.held.delete(chain)
    if (this.all === owner) this.all = undefined
    this.serve()
  }
}

export interface SimFile {
  readonly tdb: Tdb
  readonly locks: SimLocks
}

/** The disk and the shared memory of one host. */
export class SimDisk implements DatabaseFiles {
  /** What is open, by database name: for the simulated clients of the host. */
  readonly files = new Map<string, SimFile>()
  private readonly saved = new Map<string, Uint8Array>()
  private daemon: object = {}

  constructor(private readonly later: (run: () => void) => void) {}

  /** The daemon died, or begins anew: volatile files go, what others had open of them is nobody's any more. */
  restart(): void {
    for (const [name, { tdb, locks }] of this.files) {
      locks.died(this.daemon)
      if (this.saved.has(name)) this.saved.set(name, tdb.b.slice(0, tdb.size))
    }
    this.files.clear()
    this.daemon = {}
  }

  open({ kind, name, pnn, maxDead }: OpenParameters): OpenedFile {
    const contents = kind === "persistent" ? this.saved.get(name) : undefined
    const tdb = openMemory({ name, hashSize: HASH_SIZE, maxDead, ...(contents === undefined ? {} : { contents }) })
    tdb.autoRepack = false
    if (kind === "persistent") this.saved.set(name, new Uint8Array(0))
    const locks = new SimLocks()
    this.files.set(name, { tdb, locks })
    const updates = new SimUpdates(tdb, locks, this.later)
    return { path: `/sim/${name}.${pnn}`, tdb, locks: this.locksOf(tdb, locks), updates }
  }

  private locksOf(tdb: Tdb, locks: SimLocks): FileLocks {
    const owner = this.daemon
    return {
      tryChain: (hash) => locks.try(owner, tdb.chainOf(hash)),
      unlockChain: (hash) => locks.release(owner, tdb.chainOf(hash)),
      waitForChain: (hash, locked) => {
        let over = false
        const cancel = locks.wait(owner, tdb.chainOf(hash), () =>
          this.later(() => {
            if (over) locks.release(owner, tdb.chainOf(hash))
            else {
              over = true
              locked()
              locks.release(owner, tdb.chainOf(hash))
            }
          }),
        )
        return () => {
          if (over) return
          over = true
          cancel()
        }
      },
      waitForAll: (locked) => {
        let over = false
        const cancel = locks.wait(owner, ALL, () => {
          over = true
          tdb.lockAllrecord()
          locked(true)
        })
        return () => {
          if (!over) cancel()
        }
      },
      unlockAll: () => {
        tdb.unlockAllrecord()
        locks.release(owner, ALL)
      },
    }
  }

  persistentNames(): readonly string[] {
    return [...this.saved.keys()].filter((name) => (this.saved.get(name)?.length ?? 0) > 0)
  }

  setAside(name: string): string {
    this.saved.delete(name)
    return `/sim/${name}.corrupted`
  }

  copyAside(path: string, done: (copy: string | Error) => void): void {
    this.later(() => done(`${path}.corrupted`))
  }

  openHealth(): HealthFile {
    const tdb = openMemory({ name: "health", hashSize: HASH_SIZE })
    const write: HealthFile["write"] = (marks, done) =>
      this.later(() => {
        for (const { key, value } of marks) value === undefined ? tdb.delete(key) : tdb.store(key, value)
        done({ outcome: "applied", reason: "" })
      })
    return { tdb, write, close: () => tdb.close() }
  }

  setHealthAside(): string {
    return "/sim/health.corrupted"
  }
}

/** Transactions in one event each, when all chains are free. */
class SimUpdates implements FileUpdates {
  private epoch = 0
  private closed = false

  constructor(
    private readonly tdb: Tdb,
    private readonly locks: SimLocks,
    private readonly later: (run: () => void) => void,
  ) {}

  apply(records: Uint8Array, done: (result: UpdateResult) => void): () => void {
    const { epoch } = this
    const owner = {}
    let cancelled = false
    const giveUp = this.locks.wait(owner, ALL, () =>
      this.later(() => {
        if (this.closed) return
        const dropped: UpdateResult = { outcome: "dropped", reason: "recovery has begun" }
        const result = cancelled || epoch !== this.epoch ? dropped : this.write(records)
        this.locks.release(owner, ALL)
        if (!cancelled) done(result)
      }),
    )
    return () => {
      cancelled = true
      giveUp()
    }
  }

  private write(records: Uint8Array): UpdateResult {
    this.tdb.startTransaction()
    const refused = applyRecords(this.tdb, decode(recBuffer, records))
    if (refused !== undefined) {
      this.tdb.cancel()
      return { outcome: "refused", reason: refused }
    }
    this.tdb.commit()
    return { outcome: "applied", reason: "" }
  }

  sync(done: (result: UpdateResult) => void): void {
    this.later(() => done({ outcome: "applied", reason: "" }))
  }

  repack(_pieces: number, done: (result: UpdateResult) => void): void {
    this.later(() => done({ outcome: "applied", reason: "" }))
  }

  drop(): void {
    this.epoch++
  }

  close(): void {
    this.closed = true
  }
}
