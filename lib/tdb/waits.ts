// Waiting for locks without blocking the event loop: a FIFO queue per chain, served by a small fixed set of threads (waiter.ts). A
// thread waits for a chain, not for a request, so that thousands of requests cost a queue. What the lock protects is not known here.
//
// fcntl locks belong to the open file description, which the threads share: when a thread says that it got one, the main thread has
// it, and makes sure with a try. A mutex belongs to the thread: that thread keeps it while the main thread counts the chain as marked.

import { errnoName } from "../sys/errno.ts"
import { READ_LOCK, tryLockRange, unlockRange, WRITE_LOCK } from "../sys/lock.ts"
import { interruptThread } from "../sys/thread.ts"
import { workEndsMs } from "../sys/turn.ts"
import { TdbError } from "./error.ts"
import { CHAIN_LOCKS, FREELIST_LOCK, OPEN_LOCK, TRANSACTION_LOCK } from "./format.ts"
import type { ListWaits, Locks } from "./locks.ts"
import { type Pieces, runInPieces, type Underway, type Waiting } from "./pieces.ts"
import {
  ARG_ALLRECORD_MUTEX,
  ARG_ALLRECORD_WORD,
  ARG_FD,
  ARG_KIND,
  ARG_LENGTH,
  ARG_MUTEX,
  ARG_START,
  ARG_TYPE,
  CANCELLED,
  HELD,
  IDLE,
  KIND_MUTEX,
  KIND_RANGE,
  RELEASING,
  RESULT_ACQUIRED,
  RESULT_FAILED,
  SHARED_BYTES,
  WAITING,
  WORD_ERRNO,
  WORD_RESULT,
  WORD_STATE,
  WORDS_BYTES,
} from "./waiting.ts"

/** A lock that the caller has: for as long as its callback runs, or until `release` after `keep`. */
export interface Held {
  /** Keep the lock when the callback returns. */
  keep(): void
  /** Give it back; only after `keep`. */
  release(): void
}

/** Called with the lock, or with null and the reason why there will be none (LOCK, CANCELLED when the file was closed). */
export type Granted = (held: Held | null, error: TdbError | null) => void

/** A request that waits. */
export interface Wait {
  /** Give up: the callback is not called. Does nothing after the callback. */
  cancel(): void
}

/** Threads that wait, in the whole process. */
export const WAITERS = 4
/** A chain's lock is given back to other processes after this many requests, or this long (ms), whichever comes first. */
const BATCH_REQUESTS_MAX = 64
const BATCH_MS = 2
/** With more chains than threads, a thread is taken from a chain that it waited for so long (ms). */
const TURN_MS = 200
/** How often tasks without a thread are tried, and threads are taken away (ms). */
const TICK_MS = 5
/** Chains that an allrecord sweep looks at in one piece. */
const SWEEP_CHAINS = 5000

/** Something to wait for. */
interface Task {
  readonly kind: typeof KIND_RANGE | typeof KIND_MUTEX
  readonly locks: Locks
  readonly type: typeof READ_LOCK | typeof WRITE_LOCK
  /** Range, or the list's mutex address. */
  readonly start: number
  readonly length: number
  slot: Slot | null
  /** The thread has it (and keeps it, for a mutex). */
  acquired(): void
  /** The task is over without the lock: errno 0 for one that was taken away or cancelled. */
  ended(errno: number): void
  /** Try it from the main thread; true: it has it. */
  attempt(): boolean
}

// ---- the threads

class Slot {
  readonly words: Int32Array
  readonly args: Float64Array
  task: Task | null = null
  since_ms = 0
  /** The task's `acquired` was called. */
  granted = false
  private readonly worker: Worker
  private tid = 0

  constructor(private readonly pool: Pool) {
    const shared = new SharedArrayBuffer(SHARED_BYTES)
    this.words = new Int32Array(shared, 0, WORDS_BYTES / 4)
    this.args = new Float64Array(shared, WORDS_BYTES)
    this.worker = new Worker(waiterEntry())
    this.worker.onmessage = (event: MessageEvent) => {
      if (typeof event.data === "number") this.tid = event.data
      else this.inspect()
    }
    this.worker.onerror = (event: ErrorEvent) => pool.failed(new Error(`lock waiter: ${event.message}`))
    this.worker.postMessage(shared)
    this.worker.unref()
  }

  get state(): number {
    return Atomics.load(this.words, WORD_STATE)
  }

  start(task: Task): void {
    const { args } = this
    args[ARG_KIND] = task.kind
    args[ARG_TYPE] = task.type
    args[ARG_FD] = task.locks.fd
    args[ARG_START] = task.start
    args[ARG_LENGTH] = task.length
    if (task.kind === KIND_MUTEX) {
      const mutexes = task.locks.mutexes!
      args[ARG_MUTEX] = task.start
      args[ARG_ALLRECORD_MUTEX] = mutexes.allrecordMutex
      args[ARG_ALLRECORD_WORD] = mutexes.allrecordWord
    }
    this.task = task
    task.slot = this
    this.granted = false
    this.since_ms = performance.now()
    this.worker.ref()
    this.move(WAITING)
  }

  private move(state: number): void {
    Atomics.store(this.words, WORD_STATE, state)
    Atomics.notify(this.words, WORD_STATE)
  }

  /** The thread said something: see what. May be called at any time. */
  inspect(): void {
    const task = this.task
    if (task === null) return
    const state = this.state
    if (state === HELD && !this.granted) {
      this.granted = true
      if (task.kind === KIND_RANGE) this.release()
      task.acquired()
    } else if (state === IDLE) {
      const result = Atomics.load(this.words, WORD_RESULT)
      const granted = this.granted
      this.task = null
      task.slot = null
      this.worker.unref()
      if (!granted) {
        if (result === RESULT_ACQUIRED) task.acquired()
        else task.ended(result === RESULT_FAILED ? Atomics.load(this.words, WORD_ERRNO) : 0)
      } else task.ended(0)
      this.pool.next()
    }
  }

  /** The thread need not hold it any more. */
  release(): void {
    if (this.state === HELD) this.move(RELEASING)
  }

  /** Take the task away. False: the thread has the lock. */
  cancel(): boolean {
    if (Atomics.compareExchange(this.words, WORD_STATE, WAITING, CANCELLED) === HELD) return false
    if (this.task?.kind === KIND_RANGE) this.interrupt()
    return true
  }

  /** Block until the thread is out of the task: its memory and descriptor are about to go away. */
  settle(): void {
    if (!this.cancel()) this.release()
    for (let state = this.state; state !== IDLE; state = this.state) {
      this.interrupt()
      Atomics.wait(this.words, WORD_STATE, state, 2)
    }
    // The message about it is still to come and will find another task or none.
    this.task = null
    this.worker.unref()
  }

  // A signal may come just before the thread blocks: the pool's tick repeats it.
  interrupt(): void {
    if (this.tid !== 0 && this.state === CANCELLED) interruptThread(this.tid)
  }
}

/** Where the worker's code is: beside this file, or in the compiled binary, whose build must list lib/tdb/waiter.ts as an entry point. */
function waiterEntry(): string {
  if (import.meta.url.includes("/$bunfs/") || import.meta.url.includes("/~BUN/")) return "./lib/tdb/waiter.ts"
  return new URL("./waiter.ts", import.meta.url).href
}

class Pool {
  private readonly slots: Slot[] = []
  private readonly pending: Task[] = []
  private timer: ReturnType<typeof setTimeout> | null = null

  submit(task: Task): void {
    this.pending.push(task)
    this.next()
  }

  withdraw(task: Task): void {
    const at = this.pending.indexOf(task)
    if (at >= 0) {
      this.pending.splice(at, 1)
      task.ended(0)
    } else task.slot?.cancel()
    this.keepTicking()
  }

  /** Start all threads now rather than at the first contention. */
  start(): void {
    while (this.slots.length < WAITERS) this.slots.push(new Slot(this))
  }

  next(): void {
    while (this.pending.length > 0) {
      let free = this.slots.find((slot) => slot.task === null)
      if (free === undefined && this.slots.length < WAITERS) {
        free = new Slot(this)
        this.slots.push(free)
      }
      if (free === undefined) break
      free.start(this.pending.shift()!)
    }
    this.keepTicking()
  }

  private keepTicking(): void {
    const needed = this.pending.length > 0 || this.slots.some((slot) => slot.state === CANCELLED)
    if (needed && this.timer === null) {
      this.timer = setTimeout(() => {
        this.timer = null
        this.tick()
      }, TICK_MS)
    }
  }

  private tick(): void {
    for (const slot of this.slots) slot.interrupt()
    // More chains than threads: try those without one, and take a thread from who had it longest.
    for (const task of this.pending.slice(0, 64)) {
      if (!this.pending.includes(task) || !task.attempt()) continue
      this.pending.splice(this.pending.indexOf(task), 1)
    }
    if (this.pending.length > 0) {
      const now = performance.now()
      for (const slot of this.slots) {
        if (slot.task !== null && slot.state === WAITING && now - slot.since_ms > TURN_MS) {
          slot.cancel()
          break
        }
      }
    }
    this.keepTicking()
  }

  failed(error: Error): void {
    throw error
  }
}

const pool = new Pool()

/** Start the waiting threads now: the first contention then does not pay for them. */
export function startWaiters(): void {
  pool.start()
}

// ---- the queues of one handle

const closedError = (locks: Locks): TdbError => new TdbError("CANCELLED", locks.file, "the database was closed")

/** A callback that throws must keep nobody from the lock: the error surfaces as an uncaught one. */
function guarded(callback: () => void): void {
  try {
    callback()
  } catch (error) {
    queueMicrotask(() => {
      throw error
    })
  }
}

interface Request {
  readonly granted: Granted
  cancelled: boolean
}

class Queue {
  readonly requests: Request[] = []
  head = 0
  task: Task | null = null
  /** The chain is counted as locked for our requests: between grant and the last release. */
  open = false
  /** A grant was kept and not released yet. */
  kept = false
  /** Not waited for now: this handle itself has the chain or the allrecord lock. */
  parked = false

  constructor(readonly list: number) {}

  get length(): number {
    return this.requests.length - this.head
  }

  shift(): Request | undefined {
    const request = this.requests[this.head]
    if (request === undefined) return undefined
    this.head++
    if (this.head > 1024 && this.head * 2 > this.requests.length) {
      this.requests.splice(0, this.head)
      this.head = 0
    }
    return request
  }
}

/** All waits of one handle. */
export class Waits implements ListWaits {
  private readonly queues = new Map<number, Queue>()
  private readonly allrecordWaits: AllrecordWait[] = []
  private readonly others = new Set<TransactionWait>()
  private closed = false

  constructor(private readonly locks: Locks) {}

  /** Requests that wait for chains. */
  get length(): number {
    let length = 0
    for (const queue of this.queues.values()) length += queue.length
    return length
  }

  /** @throws TdbError CANCELLED when the file was closed */
  waitForList(list: number, granted: Granted): Wait {
    if (this.closed) throw closedError(this.locks)
    let queue = this.queues.get(list)
    if (queue === undefined) {
      queue = new Queue(list)
      this.queues.set(list, queue)
      this.locks.waits = this
    }
    const request: Request = { granted, cancelled: false }
    queue.requests.push(request)
    if (queue.task === null && !queue.open && !queue.parked) this.submit(queue)
    return {
      cancel: () => {
        if (request.cancelled) return
        request.cancelled = true
        this.drop(queue, request)
      },
    }
  }

  private drop(queue: Queue, request: Request): void {
    const at = queue.requests.indexOf(request, queue.head)
    if (at < 0) return
    queue.requests.splice(at, 1)
    if (queue.length === 0 && queue.task !== null && !queue.open) pool.withdraw(queue.task)
    this.forget(queue)
  }

  private forget(queue: Queue): void {
    if (queue.length > 0 || queue.task !== null || queue.open) return
    if (this.queues.get(queue.list) === queue) this.queues.delete(queue.list)
    this.detach()
  }

  private detach(): void {
    if (this.queues.size === 0 && this.allrecordWaits.length === 0) this.locks.waits = null
  }

  private submit(queue: Queue): void {
    const { locks } = this
    if (locks.isLocked(queue.list) || this.allrecordWaits.length > 0) {
      queue.parked = true
      return
    }
    queue.parked = false
    const mutexes = locks.mutexes
    const task: Task = {
      kind: mutexes === null ? KIND_RANGE : KIND_MUTEX,
      locks,
      type: WRITE_LOCK,
      start: mutexes === null ? FREELIST_LOCK + 4 * queue.list : mutexes.listMutex(queue.list),
      length: 1,
      slot: null,
      acquired: () => this.acquired(queue, task),
      ended: (errno) => this.ended(queue, task, errno),
      attempt: () => {
        if (locks.isLocked(queue.list) || this.allrecordWaits.length > 0) return false
        if (!locks.acquire(queue.list, true, false)) return false
        queue.task = null
        locks.enterList(queue.list)
        this.serve(queue)
        return true
      },
    }
    queue.task = task
    pool.submit(task)
  }

  private acquired(queue: Queue, task: Task): void {
    const { locks } = this
    if (task.kind === KIND_MUTEX) {
      // A blocking caller on this thread may have borrowed it already: then it is marked.
      if (queue.length === 0 && !locks.isLocked(queue.list)) {
        task.slot!.release()
        return
      }
      if (locks.allrecordCount !== 0 || this.allrecordWaits.length > 0) {
        task.slot!.release()
        return
      }
      locks.mark(queue.list)
      this.serve(queue)
      return
    }
    queue.task = null
    if (locks.isLocked(queue.list)) {
      // The range is ours already; whoever holds it in this handle will resume the queue.
      queue.parked = true
      return
    }
    if (this.allrecordWaits.length > 0) {
      unlockRange(locks.fd, task.start, 1)
      queue.parked = true
      return
    }
    if (queue.length === 0) {
      unlockRange(locks.fd, task.start, 1)
      this.forget(queue)
      return
    }
    // Only a hint: a blocking lock and unlock of this thread may have dropped it again.
    if (!locks.acquire(queue.list, true, false)) {
      this.submit(queue)
      return
    }
    locks.enterList(queue.list)
    this.serve(queue)
  }

  private ended(queue: Queue, task: Task, errno: number): void {
    if (queue.task !== task) return
    queue.task = null
    if (errno !== 0) {
      this.failAll(queue, new TdbError("LOCK", this.locks.file, `waiting for list ${queue.list}: ${errnoName(errno)}`))
    } else if (queue.length > 0 && !queue.open) this.submit(queue)
    this.forget(queue)
  }

  // Those that are there now: a callback that asks again is not told here, or this would never end.
  private failAll(queue: Queue, error: TdbError): void {
    const requests = queue.requests.splice(0).slice(queue.head)
    queue.head = 0
    for (const request of requests) {
      if (request.cancelled) continue
      request.cancelled = true
      guarded(() => request.granted(null, error))
    }
  }

  // The chain counts as locked: give it to the requests in turn.
  private serve(queue: Queue): void {
    queue.open = true
    const until = performance.now() + BATCH_MS
    let left = BATCH_REQUESTS_MAX
    while (left-- > 0 && performance.now() < until) {
      const request = queue.shift()
      if (request === undefined) break
      if (request.cancelled) continue
      request.cancelled = true
      let serving = true
      let released = false
      const held: Held = {
        keep: () => {
          queue.kept = true
        },
        release: () => {
          if (released || !queue.kept) return
          released = true
          queue.kept = false
          if (!serving) this.serve(queue)
        },
      }
      guarded(() => request.granted(held, null))
      serving = false
      if (queue.kept) return
    }
    queue.open = false
    this.locks.unlock(queue.list)
    if (queue.length > 0 && queue.task === null && !queue.parked) this.submit(queue)
    this.forget(queue)
  }

  // ---- what locks.ts asks

  admit(list: number, wait: boolean): boolean {
    if (this.allrecordWaits.some((waiting) => waiting.started)) {
      if (wait) throw new TdbError("LOCK", this.locks.file, "this handle is taking the allrecord lock")
      return false
    }
    if (list < 0) {
      for (const queue of this.queues.values()) {
        const slot = queue.task?.slot
        if (slot !== undefined && slot !== null && !slot.cancel() && !queue.open) slot.release()
      }
      return true
    }
    const queue = this.queues.get(list)
    if (queue === undefined) return true
    if (!wait) return false
    // A thread that has the mutex already gives it back, and will wait again: its word of it is on the way, and we cannot wait for that.
    const slot = queue.task?.slot
    if (slot != null && !slot.cancel() && !queue.open) slot.release()
    return true
  }

  release(list: number): boolean {
    const queue = this.queues.get(list)
    const slot = queue?.task?.slot
    if (queue === undefined || slot === undefined || slot === null) return false
    slot.release()
    return true
  }

  resume(list: number): void {
    if (list >= 0) {
      const queue = this.queues.get(list)
      if (queue?.parked && queue.task === null && !queue.open) this.submit(queue)
      return
    }
    this.resumeAll()
  }

  private resumeAll(): void {
    for (const queue of this.queues.values()) {
      if (queue.parked && queue.task === null && !queue.open && queue.length > 0) this.submit(queue)
    }
  }

  // ---- allrecord and transaction

  waitForAllrecord(write: boolean, granted: Granted): Wait {
    return this.beginAllrecord(write, granted, null)
  }

  /** Do `pieces` of work with everything locked; nothing else gets a lock through this handle meanwhile. */
  exclusively(pieces: Pieces, done: (error: unknown) => void): void {
    const told: Granted = (_held, error) => done(error)
    this.beginAllrecord(true, told, (over) => {
      return runInPieces(pieces, { nextTurn: soon, monotonicMs: () => performance.now(), workEndsMs }, (error) => {
        over()
        done(error)
      })
    })
  }

  private beginAllrecord(write: boolean, granted: Granted, work: Work | null): Wait {
    const waiting = new AllrecordWait(this.locks, write, granted, work, (wait) => {
      const at = this.allrecordWaits.indexOf(wait)
      if (at >= 0) this.allrecordWaits.splice(at, 1)
      this.allrecordWaits[0]?.start()
      if (this.allrecordWaits.length === 0) this.resumeAll()
      this.detach()
    })
    this.allrecordWaits.push(waiting)
    this.locks.waits = this
    for (const queue of this.queues.values()) {
      const slot = queue.task?.slot
      if (slot !== undefined && slot !== null && !slot.cancel() && !queue.open) slot.release()
    }
    if (this.allrecordWaits.length === 1) waiting.start()
    return waiting
  }

  waitForTransaction(granted: Granted): Wait {
    const waiting: TransactionWait = new TransactionWait(this.locks, granted, () => this.others.delete(waiting))
    this.others.add(waiting)
    waiting.submit()
    return waiting
  }

  close(): void {
    this.closed = true
    const error = closedError(this.locks)
    for (const wait of [...this.allrecordWaits]) wait.fail(error)
    for (const wait of [...this.others]) wait.fail(error)
    for (const queue of [...this.queues.values()]) {
      this.failAll(queue, error)
      const slot = queue.task?.slot
      if (slot != null) slot.settle()
      else if (queue.task !== null) pool.withdraw(queue.task)
    }
    this.locks.waits = null
  }
}

// A single range, waited for by a thread and then made sure of by `take`.
class RangeTask implements Task {
  readonly kind = KIND_RANGE
  slot: Slot | null = null
  private over = false

  constructor(
    readonly locks: Locks,
    readonly type: typeof READ_LOCK | typeof WRITE_LOCK,
    readonly start: number,
    readonly length: number,
    private readonly take: () => void,
    private readonly fail: (errno: number) => void,
  ) {
    pool.submit(this)
  }

  acquired(): void {
    if (this.over) {
      unlockRange(this.locks.fd, this.start, this.length)
      return
    }
    this.over = true
    this.take()
  }

  ended(errno: number): void {
    if (this.over) return
    if (errno !== 0) {
      this.over = true
      this.fail(errno)
    } else pool.submit(this)
  }

  attempt(): boolean {
    if (!tryLockRange(this.locks.fd, this.type, this.start, this.length)) return false
    this.acquired()
    return true
  }

  cancel(): void {
    this.over = true
    pool.withdraw(this)
  }

  /** Cancel, and be sure that no thread uses the descriptor. */
  settle(): void {
    this.over = true
    if (this.slot !== null) this.slot.settle()
    else pool.withdraw(this)
  }
}

class TransactionWait implements Wait {
  private task: RangeTask | null = null

  constructor(
    private readonly locks: Locks,
    private readonly granted: Granted,
    private readonly over: () => void,
  ) {}

  submit(): void {
    this.task = new RangeTask(
      this.locks,
      WRITE_LOCK,
      TRANSACTION_LOCK,
      1,
      () => this.take(),
      (errno) =>
        this.fail(new TdbError("LOCK", this.locks.file, `waiting for the transaction lock: ${errnoName(errno)}`)),
    )
  }

  private take(): void {
    this.task = null
    // Only a hint, and when this handle has a transaction the range was its own all the time.
    if (this.locks.transactionCount !== 0 || !this.locks.lockTransaction(false)) {
      setTimeout(() => this.submit(), TICK_MS)
      return
    }
    this.over()
    grantOnce(this.granted, () => this.locks.unlockTransaction())
  }

  fail(error: TdbError): void {
    this.task?.settle()
    this.cancel()
    this.granted(null, error)
  }

  cancel(): void {
    this.task?.cancel()
    this.task = null
    this.over()
  }
}

// A range that the caller takes with `take`: true when it has it, which with `wait` it always has. The range is waited for by a thread.
function rangeWaiting(locks: Locks, start: number, length: number, take: (wait: boolean) => boolean): Waiting {
  return {
    block: () => {
      take(true)
    },
    later: (done) => {
      let task: RangeTask | null = null
      let timer: ReturnType<typeof setTimeout> | null = null
      const attempt = (): void => {
        timer = null
        task = null
        try {
          if (take(false)) {
            done(null)
            return
          }
        } catch (error) {
          done(error)
          return
        }
        // A mutex that somebody has is no range that a thread could wait for.
        if (length === 0 && locks.mutexes !== null) timer = setTimeout(attempt, TICK_MS)
        else task = new RangeTask(locks, WRITE_LOCK, start, length, attempt, failed)
      }
      const failed = (errno: number): void =>
        done(new TdbError("LOCK", locks.file, `waiting for byte ${start}: ${errnoName(errno)}`))
      timer = setTimeout(attempt, 0)
      return () => {
        if (timer !== null) clearTimeout(timer)
        task?.settle()
      }
    },
  }
}

/** For the OPEN lock, which a commit holds. */
export function openWaiting(locks: Locks, always: boolean): Waiting {
  return rangeWaiting(locks, OPEN_LOCK, 1, (wait) => {
    if (!wait) return locks.tryLockOpen(always)
    locks.lockOpen(always)
    return true
  })
}

/** For the readers that keep an allrecord lock from becoming a write lock. */
export function upgradeWaiting(locks: Locks): Waiting {
  return rangeWaiting(locks, CHAIN_LOCKS, 0, (wait) => locks.upgradeAllrecord(wait))
}

// Call `granted` with a lock that `unlock` gives back, after the callback or on release.
function grantOnce(granted: Granted, unlock: () => void): void {
  let kept = false
  let running = true
  let released = false
  const release = (): void => {
    if (released) return
    released = true
    unlock()
  }
  try {
    granted(
      {
        keep: () => {
          kept = true
        },
        release: () => {
          if (!kept) return
          kept = false
          if (!running) release()
        },
      },
      null,
    )
  } finally {
    running = false
    if (!kept) release()
  }
}

const soon = (run: () => void): void => {
  setImmediate(run)
}

/** Steps of allrecord waits that are due: a node that freezes two hundred databases has as many. */
let due: (() => void)[] = []

/** In a coming turn of the loop, as long as work may go on in it. */
function whenDue(step: () => void): void {
  if (due.push(step) === 1) setImmediate(runDue)
}

function runDue(): void {
  const end_ms = workEndsMs()
  const steps = due
  due = []
  let done = 0
  try {
    while (done < steps.length && (done === 0 || performance.now() < end_ms)) steps[done++]!()
  } finally {
    // What came meanwhile has asked for a turn already.
    const asked = due.length > 0
    due = [...steps.slice(done), ...due]
    if (due.length > 0 && !asked) setImmediate(runDue)
  }
}

/** What is done with the lock instead of giving it to somebody; `over` is called when it is done. */
type Work = (over: () => void) => Underway

/** The allrecord lock, taken piece by piece by the main thread itself: nobody else can own a mutex for it. */
class AllrecordWait implements Wait {
  started = false
  private timer: ReturnType<typeof setTimeout> | null = null
  private task: RangeTask | null = null
  private finished = false
  private working: Underway | null = null
  // fcntl: ranges still to be locked, next one last. Mutexes: the next chain to sweep, -1 before the allrecord mutex is ours.
  private readonly ranges: { start: number; length: number }[] = []
  private swept = -1

  constructor(
    private readonly locks: Locks,
    private readonly write: boolean,
    private readonly granted: Granted,
    private readonly work: Work | null,
    private readonly over: (wait: AllrecordWait) => void,
  ) {}

  start(): void {
    if (this.locks.mutexes === null) this.ranges.push({ start: CHAIN_LOCKS, length: 4 * this.locks.hashSize })
    this.later(0)
  }

  private later(wait_ms: number): void {
    if (wait_ms === 0) whenDue(() => this.advance())
    else this.timer = setTimeout(() => whenDue(() => this.advance()), wait_ms)
  }

  private get type(): typeof READ_LOCK | typeof WRITE_LOCK {
    return this.write ? WRITE_LOCK : READ_LOCK
  }

  private advance(): void {
    this.timer = null
    if (this.finished) return
    const { locks } = this
    // Own chains and marks must be gone first; nobody gets a new one meanwhile.
    if (!this.started && (locks.heldLists !== 0 || locks.allrecordCount !== 0)) {
      this.later(1)
      return
    }
    try {
      this.started = true
      const pause_ms = locks.mutexes === null ? this.advanceRanges() : this.advanceMutexes()
      if (pause_ms >= 0) this.later(pause_ms)
    } catch (error) {
      this.fail(error instanceof TdbError ? error : new TdbError("LOCK", locks.file, String(error)))
    }
  }

  // Returns after how many ms to go on, -1 when something else will call.
  private advanceRanges(): number {
    const { locks, ranges } = this
    for (let steps = 0; steps < 256; steps++) {
      const range = ranges.pop()
      if (range === undefined) return this.recordPart()
      if (tryLockRange(locks.fd, this.type, range.start, range.length)) continue
      if (range.length <= 4) {
        this.task = new RangeTask(
          locks,
          this.type,
          range.start,
          range.length,
          () => this.taskDone(),
          (errno) => this.fail(new TdbError("LOCK", locks.file, `waiting for all chains: ${errnoName(errno)}`)),
        )
        return -1
      }
      const lower = 4 * Math.floor(range.length / 8) || 4
      ranges.push({ start: range.start + lower, length: range.length - lower }, { start: range.start, length: lower })
    }
    return 0
  }

  private taskDone(): void {
    this.task = null
    this.later(0)
  }

  private advanceMutexes(): number {
    const { locks } = this
    const mutexes = locks.mutexes!
    if (this.swept < 0) {
      if (!locks.beginAllrecordMutex(mutexes, this.write, false)) return 1
      this.swept = 0
    }
    const until = Math.min(locks.hashSize, this.swept + SWEEP_CHAINS)
    this.swept = mutexes.sweep(this.swept + 1, until + 1) - 1
    if (this.swept < until) return 1
    return this.swept < locks.hashSize ? 0 : this.recordPart()
  }

  private recordPart(): number {
    const { locks } = this
    const start = CHAIN_LOCKS + 4 * locks.hashSize
    if (tryLockRange(locks.fd, this.type, start, 0)) {
      this.grant()
      return -1
    }
    this.task = new RangeTask(
      locks,
      this.type,
      start,
      0,
      () => this.taskDone(),
      (errno) => this.fail(new TdbError("LOCK", locks.file, `waiting for all records: ${errnoName(errno)}`)),
    )
    return -1
  }

  private grant(): void {
    if (this.work !== null) {
      const working = this.work(() => this.cancel())
      if (!this.finished) this.working = working
      return
    }
    this.finished = true
    this.locks.enterAllrecord(this.write, false)
    this.over(this)
    grantOnce(this.granted, () => this.locks.unlockAllrecord())
  }

  fail(error: TdbError): void {
    // Work that has begun ends by itself, and says so.
    if (this.working !== null) {
      this.working.finish()
      return
    }
    this.task?.settle()
    this.cancel()
    this.granted(null, error)
  }

  /** Give up, or give the locks back after the work. */
  cancel(): void {
    if (this.finished) return
    this.finished = true
    if (this.timer !== null) clearTimeout(this.timer)
    this.task?.cancel()
    this.task = null
    const { locks } = this
    if (this.started) {
      if (locks.mutexes === null) unlockRange(locks.fd, CHAIN_LOCKS, 0)
      else {
        if (this.swept >= 0) locks.unlockAllrecordMutex(locks.mutexes)
        unlockRange(locks.fd, CHAIN_LOCKS + 4 * locks.hashSize, 0)
      }
    }
    this.started = false
    this.over(this)
  }
}
