// Memory that the processes of one measurement share: whether to go on, how much each has done, and a word and a counter that only the
// holder of a cluster-wide lock may touch. So a loop learns of its end, and the progress line of the loops, without a message.

import { closeSync, ftruncateSync, openSync } from "node:fs"

/** Words in front: [0] running, [1] who holds the lock, from byte 16 a counter for that holder. */
const RUNNING = 0
const HOLDER = 1
const GUARDED = 2
/** Where the workers' places start, and how far apart they are (64-bit words): a cache line each. */
const PLACES = 8
const PLACE = 8
const DONE = 0
const MARKS = 1

export class Arena {
  private readonly words: Int32Array
  private readonly numbers: Float64Array

  private constructor(
    readonly path: string,
    readonly workers: number,
  ) {
    const bytes = Bun.mmap(path, { shared: true })
    this.words = new Int32Array(bytes.buffer, bytes.byteOffset, 4)
    this.numbers = new Float64Array(bytes.buffer, bytes.byteOffset, PLACES + PLACE * workers)
  }

  /** Makes the file; it must not exist. */
  static create(path: string, workers: number): Arena {
    const fd = openSync(path, "wx+", 0o600)
    ftruncateSync(fd, (PLACES + PLACE * workers) * 8)
    closeSync(fd)
    return new Arena(path, workers)
  }

  static open(path: string, workers: number): Arena {
    return new Arena(path, workers)
  }

  get running(): boolean {
    return this.words[RUNNING] === 1
  }
  set running(value: boolean) {
    this.words[RUNNING] = value ? 1 : 0
  }

  /** Worker that holds the lock that is measured, plus one; 0: nobody. */
  get holder(): number {
    return this.words[HOLDER]!
  }
  set holder(value: number) {
    this.words[HOLDER] = value
  }

  /** Counted without any protection but the lock that is measured. */
  get guarded(): number {
    return this.numbers[GUARDED]!
  }
  set guarded(value: number) {
    this.numbers[GUARDED] = value
  }

  /** Operations that a worker has done since it began; only the worker writes. */
  done(worker: number): number {
    return this.numbers[PLACES + PLACE * worker + DONE]!
  }
  setDone(worker: number, value: number): void {
    this.numbers[PLACES + PLACE * worker + DONE] = value
  }

  /** Something else that a worker counts for all to see: tokens taken out minus tokens put in. */
  marks(worker: number): number {
    return this.numbers[PLACES + PLACE * worker + MARKS]!
  }
  addMarks(worker: number, value: number): void {
    this.numbers[PLACES + PLACE * worker + MARKS]! += value
  }

  get allDone(): number {
    let sum = 0
    for (let worker = 0; worker < this.workers; worker++) sum += this.done(worker)
    return sum
  }

  get allMarks(): number {
    let sum = 0
    for (let worker = 0; worker < this.workers; worker++) sum += this.marks(worker)
    return sum
  }
}
