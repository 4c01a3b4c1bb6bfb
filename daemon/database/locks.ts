// Who waits for the lock of a chain. A request that finds its chain locked waits in that chain's queue; one wait for the
// lock, whatever the length of the queue, is under way at a time, and whoever waits behind it is served while the lock is
// held. While the database is frozen everybody waits. No process and no thread per request (design decision 4).

import type { Scheduler, Timer } from "../../lib/net/ports.ts"
import type { FileLocks } from "./files.ts"

/** So many requests of one chain are served under one hold of its lock; then others may have it. */
const SERVED_PER_HOLD = 64
/** A wait is reported after so long, and again after as much (data path page 8.4). */
const SLOW_MS = 10_000

/** Runs with the chain locked, and must not keep it; or when the database has been closed. */
export type Turn = () => void

interface Queue {
  /** The hash of the first key that waited: any of the chain's would do. */
  readonly hash: number
  turns: Turn[]
  readonly sinceMs: number[]
  cancelWait: (() => void) | undefined
  slow: Timer | undefined
}

export interface LockEvents {
  /** A request begins to wait. */
  waiting(): void
  /** It has the lock, after so many seconds. */
  served(seconds: number): void
  /** Somebody has held up a chain, or all of them, for so many seconds. */
  slow(what: "RECORD" | "DB", seconds: number): void
}

export class ChainLocks {
  /** All chains are locked for a recovery, or because this node takes no part in the cluster. */
  private allLocked = false
  private cancelAll: (() => void) | undefined
  private slowAll: Timer | undefined
  private readonly queues = new Map<number, Queue>()
  private waiting = 0

  constructor(
    private readonly files: FileLocks,
    private readonly chainOf: (hash: number) => number,
    private readonly scheduler: Scheduler,
    private readonly events: LockEvents,
  ) {}

  /** Requests that wait. */
  get waitingCount(): number {
    return this.waiting
  }

  get frozen(): boolean {
    return this.allLocked
  }

  /** The chain's lock, if it is free and nobody waits for it. Whoever gets it calls leave() in the same turn. */
  enter(hash: number): boolean {
    if (this.allLocked || this.queues.has(this.chainOf(hash))) return false
    return this.files.tryChain(hash)
  }

  leave(hash: number): void {
    this.files.unlockChain(hash)
  }

  /** Runs `turn` when the chain is locked, after all who came before. */
  wait(hash: number, turn: Turn): void {
    const chain = this.chainOf(hash)
    const nowMs = this.scheduler.monotonicMs()
    this.waiting++
    this.events.waiting()
    const queue = this.queues.get(chain)
    if (queue !== undefined) {
      queue.turns.push(turn)
      queue.sinceMs.push(nowMs)
      return
    }
    const made: Queue = { hash, turns: [turn], sinceMs: [nowMs], cancelWait: undefined, slow: undefined }
    this.queues.set(chain, made)
    if (!this.allLocked) this.ask(chain, made)
    this.watch(made, nowMs)
  }

  private watch(queue: Queue, sinceMs: number): void {
    queue.slow = this.scheduler.setTimer(SLOW_MS, () => {
      if (!this.allLocked) this.events.slow("RECORD", (this.scheduler.monotonicMs() - sinceMs) / 1000)
      this.watch(queue, sinceMs)
    })
  }

  private ask(chain: number, queue: Queue): void {
    queue.cancelWait = this.files.waitForChain(queue.hash, () => {
      queue.cancelWait = undefined
      this.serve(chain, queue)
    })
  }

  private serve(chain: number, queue: Queue): void {
    queue.slow?.cancel()
    const turns = queue.turns.splice(0, SERVED_PER_HOLD)
    const since = queue.sinceMs.splice(0, turns.length)
    const nowMs = this.scheduler.monotonicMs()
    this.waiting -= turns.length
    for (const [index, turn] of turns.entries()) {
      this.events.served((nowMs - (since[index] ?? nowMs)) / 1000)
      turn()
    }
    if (queue.turns.length === 0) {
      this.queues.delete(chain)
      return
    }
    this.watch(queue, queue.sinceMs[0] ?? nowMs)
    this.ask(chain, queue)
  }

  /**
   * Locks every chain; `done` is called once, in this turn or later, unless thaw() comes first: with false if the file
   * can't be locked.
   */
  freeze(done: (ok: boolean) => void): void {
    const sinceMs = this.scheduler.monotonicMs()
    const watch = () => {
      this.slowAll = this.scheduler.setTimer(SLOW_MS, () => {
        this.events.slow("DB", (this.scheduler.monotonicMs() - sinceMs) / 1000)
        watch()
      })
    }
    let got = false
    const cancel = this.files.waitForAll((ok) => {
      got = true
      this.cancelAll = undefined
      this.slowAll?.cancel()
      this.allLocked = ok
      if (ok)
        for (const queue of this.queues.values()) {
          queue.cancelWait?.()
          queue.cancelWait = undefined
        }
      done(ok)
    })
    if (got) return
    this.cancelAll = cancel
    watch()
  }

  /** Gives all chains back, or gives up waiting for them; who waited for one waits for its lock again. */
  thaw(): void {
    this.cancelAll?.()
    this.cancelAll = undefined
    this.slowAll?.cancel()
    if (!this.allLocked) return
    this.allLocked = false
    this.files.unlockAll()
    for (const [chain, queue] of this.queues) this.ask(chain, queue)
  }

  /** The database is closed: whoever waits has its turn now, without a lock, and finds that out. */
  close(): void {
    this.thaw()
    const queues = [...this.queues.values()]
    this.queues.clear()
    this.waiting = 0
    for (const queue of queues) {
      queue.cancelWait?.()
      queue.slow?.cancel()
      for (const turn of queue.turns) turn()
    }
  }
}
