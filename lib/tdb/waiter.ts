// The thread that waits for locks so that the main thread need not: entry point of a worker, one task at a time, driven through shared
// words by waits.ts. It never touches a database's contents.

import { EINTR, SysError } from "../sys/errno.ts"
import { type LockType, lockRangeInterruptibly, READ_LOCK } from "../sys/lock.ts"
import { readInt16, viewMemory } from "../sys/memory.ts"
import { BUSY, LOCKED_AFTER_DEATH, lockMutexFor, unlockMutex } from "../sys/mutex.ts"
import { threadId } from "../sys/thread.ts"
import { ALLRECORD_FREE } from "./format.ts"
import {
  ARG_ALLRECORD_MUTEX,
  ARG_ALLRECORD_WORD,
  ARG_FD,
  ARG_KIND,
  ARG_LENGTH,
  ARG_MUTEX,
  ARG_START,
  ARG_TYPE,
  HELD,
  IDLE,
  KIND_RANGE,
  RELEASING,
  RESULT_ACQUIRED,
  RESULT_FAILED,
  RESULT_NOTHING,
  SLICE_MS,
  WAITING,
  WORD_ERRNO,
  WORD_RESULT,
  WORD_STATE,
  WORDS_BYTES,
} from "./waiting.ts"

declare const self: {
  onmessage: ((event: { data: SharedArrayBuffer }) => void) | null
  postMessage(message: unknown): void
}

function run(shared: SharedArrayBuffer): void {
  const words = new Int32Array(shared, 0, WORDS_BYTES / 4)
  const args = new Float64Array(shared, WORDS_BYTES)
  const state = (): number => Atomics.load(words, WORD_STATE)

  // True: acquired. False: cancelled.
  const waitRange = (): boolean => {
    while (state() === WAITING) {
      if (lockRangeInterruptibly(args[ARG_FD]!, args[ARG_TYPE] as LockType, args[ARG_START]!, args[ARG_LENGTH]!)) {
        return true
      }
    }
    return false
  }

  // The protocol of locks.ts's acquire (tdb-format.md 5.1), in slices, so that a cancel is seen.
  const waitMutex = (): boolean => {
    const mutex = args[ARG_MUTEX]!
    const allrecord = args[ARG_ALLRECORD_MUTEX]!
    while (state() === WAITING) {
      if (lockMutexFor(mutex, SLICE_MS) === BUSY) continue
      const word = readInt16(args[ARG_ALLRECORD_WORD]!)
      if (word === ALLRECORD_FREE || (word === READ_LOCK && args[ARG_TYPE] === READ_LOCK)) return true
      unlockMutex(mutex)
      const passed = lockMutexFor(allrecord, SLICE_MS)
      if (passed === BUSY) continue
      if (passed === LOCKED_AFTER_DEATH) setWord(args[ARG_ALLRECORD_WORD]!)
      unlockMutex(allrecord)
    }
    return false
  }

  for (;;) {
    while (state() === IDLE) Atomics.wait(words, WORD_STATE, IDLE)
    if (state() === HELD || state() === RELEASING) throw new Error("a waiter was given a task that it has")
    const range = args[ARG_KIND] === KIND_RANGE
    let result = RESULT_NOTHING
    try {
      const acquired = range ? waitRange() : waitMutex()
      if (acquired) {
        result = RESULT_ACQUIRED
        if (Atomics.compareExchange(words, WORD_STATE, WAITING, HELD) === WAITING) {
          self.postMessage(null)
          while (state() === HELD) Atomics.wait(words, WORD_STATE, HELD)
          if (!range) {
            unlockMutex(args[ARG_MUTEX]!)
            result = RESULT_NOTHING
          }
        } else if (!range) {
          unlockMutex(args[ARG_MUTEX]!)
          result = RESULT_NOTHING
        }
      }
    } catch (error) {
      result = RESULT_FAILED
      Atomics.store(words, WORD_ERRNO, error instanceof SysError ? error.errno : EINTR)
    }
    Atomics.store(words, WORD_RESULT, result)
    Atomics.store(words, WORD_STATE, IDLE)
    self.postMessage(null)
  }
}

// The allrecord word of a holder that died: free. The caller holds the allrecord mutex.
function setWord(address: number): void {
  new Int16Array(viewMemory(address, 2))[0] = ALLRECORD_FREE
}

self.onmessage = (event) => {
  self.postMessage(threadId())
  run(event.data)
}
