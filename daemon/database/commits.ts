// Transactions written beside the loop: a queue a file, served by a few threads (commit-worker.ts), so that syncs of different
// files are under way at the same time and a disk puts them together. What an update means is not known here.

import type { Scheduler, Timer } from "../../lib/net/ports.ts"
import type { CommitOrder, CommitReport, CommitWork } from "./commit-worker.ts"
import type { FileUpdates, Mark, UpdateResult } from "./files.ts"

/** So many files are written at a time; a thread is made when all others are busy. */
const THREADS_MAX = 4
/** A locked file is tried again after this time, which grows to the other (ms). */
const FIRST_RETRY_MS = 0.5
const RETRY_MS_MAX = 20

interface Job {
  readonly work: CommitWork
  readonly epoch: number
  readonly done: (result: UpdateResult) => void
  cancelled: boolean
}

class Thread {
  readonly worker: Worker
  readonly files = new Set<number>()
  busy: ((report: CommitReport) => void) | undefined

  constructor() {
    this.worker = new Worker(entry())
    this.worker.onmessage = (event: MessageEvent<CommitReport>) => this.finish(event.data)
    this.worker.onerror = (event: ErrorEvent) => this.finish({ outcome: "broken", reason: event.message })
    this.worker.unref()
  }

  private finish(report: CommitReport): void {
    const { busy } = this
    this.busy = undefined
    this.worker.unref()
    busy?.(report)
  }

  send(order: CommitOrder, done?: (report: CommitReport) => void): void {
    if (done !== undefined) {
      this.busy = done
      this.worker.ref()
    }
    this.worker.postMessage(order)
  }
}

/** Where the worker's code is: beside this file, or in the compiled binary, where build.ts has put it. */
function entry(): string {
  if (import.meta.url.includes("/$bunfs/") || import.meta.url.includes("/~BUN/")) {
    return "./daemon/database/commit-worker.ts"
  }
  return new URL("./commit-worker.ts", import.meta.url).href
}

/** The threads of one daemon. */
export class CommitThreads {
  private readonly threads: Thread[] = []
  /** Files with something to write that wait for a thread. */
  private readonly waiting = new Set<CommitFile>()
  private files = 0

  constructor(readonly scheduler: Scheduler) {}

  open(path: string, flags: number, maxDead: number): FileUpdates {
    return new CommitFile(this, ++this.files, path, flags, maxDead)
  }

  /** A file whose records have no headers. */
  openRaw(path: string, flags: number): CommitFile {
    return new CommitFile(this, ++this.files, path, flags, 0)
  }

  /** A thread that has nothing to do, the given one if it can be. */
  take(file: CommitFile, last: Thread | undefined): Thread | undefined {
    if (last !== undefined && last.busy === undefined) return last
    const idle = this.threads.find((thread) => thread.busy === undefined)
    if (idle !== undefined) return idle
    if (this.threads.length < THREADS_MAX) {
      const thread = new Thread()
      this.threads.push(thread)
      return thread
    }
    this.waiting.add(file)
    return undefined
  }

  /** A thread has become free. */
  next(): void {
    for (const file of this.waiting) {
      this.waiting.delete(file)
      file.work()
      return
    }
  }

  forget(id: number): void {
    for (const thread of this.threads) if (thread.files.delete(id)) thread.send({ file: id, close: true })
  }
}

class CommitFile implements FileUpdates {
  private readonly epochs = new Int32Array(new SharedArrayBuffer(4))
  private jobs: Job[] = []
  /** Who waits for a sync that is yet to begin, and for the one under way. */
  private syncs: ((result: UpdateResult) => void)[] = []
  private started: ((result: UpdateResult) => void)[] = []
  private running = false
  private last: Thread | undefined
  private retry: Timer | undefined
  private retryMs = FIRST_RETRY_MS
  private closed = false

  constructor(
    private readonly threads: CommitThreads,
    private readonly id: number,
    private readonly path: string,
    private readonly flags: number,
    private readonly maxDead: number,
  ) {}

  apply(records: Uint8Array, done: (result: UpdateResult) => void): () => void {
    return this.add(records, done)
  }

  repack(pieces: number, done: (result: UpdateResult) => void): void {
    this.add(pieces, done)
  }

  /** Records as they are to lie in the file. */
  store(marks: readonly Mark[], done: (result: UpdateResult) => void): void {
    this.add(marks, done)
  }

  /** One for all who ask while another is under way. */
  sync(done: (result: UpdateResult) => void): void {
    this.syncs.push(done)
    if (this.syncs.length > 1) return
    this.add("sync", (result) => {
      for (const each of this.started) each(result)
    })
  }

  private add(work: CommitWork, done: (result: UpdateResult) => void): () => void {
    const job: Job = { work, epoch: Atomics.load(this.epochs, 0), done, cancelled: false }
    this.jobs.push(job)
    if (!this.running && this.retry === undefined) this.work()
    return () => {
      job.cancelled = true
    }
  }

  drop(): void {
    Atomics.add(this.epochs, 0, 1)
  }

  work(): void {
    this.retry = undefined
    if (this.running) return
    while (this.jobs[0]?.cancelled === true) this.jobs.shift()
    const job = this.jobs[0]
    if (job === undefined || this.closed) return
    const thread = this.threads.take(this, this.last)
    if (thread === undefined) return
    this.running = true
    this.last = thread
    thread.files.add(this.id)
    const { id: file, path, flags, maxDead, epochs } = this
    if (job.work === "sync") {
      this.started = this.syncs
      this.syncs = []
    }
    const order = { file, path, flags, maxDead, epochs, epoch: job.epoch, work: job.work }
    thread.send(order, (report) => this.finished(job, report))
  }

  private finished(job: Job, report: CommitReport): void {
    this.running = false
    if (report.outcome === "busy" && !this.closed) {
      this.retry = this.threads.scheduler.setTimer(this.retryMs, () => this.work())
      this.retryMs = Math.min(this.retryMs * 2, RETRY_MS_MAX)
    } else {
      this.retryMs = FIRST_RETRY_MS
      this.jobs.shift()
      if (!job.cancelled && report.outcome !== "busy") job.done(report)
      this.work()
    }
    this.threads.next()
    if (this.closed) this.threads.forget(this.id)
  }

  close(): void {
    this.closed = true
    this.retry?.cancel()
    this.jobs = []
    if (!this.running) this.threads.forget(this.id)
  }
}
