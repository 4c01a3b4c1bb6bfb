// The words through which waits.ts and the threads of waiter.ts speak. Only numbers: both sides import it.

/** Bytes of the words (Int32) in front of the arguments (Float64) in a waiter's shared memory. */
export const WORDS_BYTES = 16
export const SHARED_BYTES = WORDS_BYTES + 8 * 8

export const WORD_STATE = 0
export const WORD_RESULT = 1
export const WORD_ERRNO = 2

export const IDLE = 0
/** Main has given a task; the waiter blocks for its lock. */
export const WAITING = 1
/** The waiter has the lock: main uses it. */
export const HELD = 2
/** Main no longer wants it. */
export const CANCELLED = 3
/** Main is done with it: the waiter unlocks. */
export const RELEASING = 4

export const RESULT_NOTHING = 0
export const RESULT_ACQUIRED = 1
export const RESULT_FAILED = 2

export const ARG_KIND = 0
export const KIND_RANGE = 0
export const KIND_MUTEX = 1
export const ARG_FD = 1
export const ARG_TYPE = 2
export const ARG_START = 3
export const ARG_LENGTH = 4
export const ARG_MUTEX = 5
export const ARG_ALLRECORD_MUTEX = 6
export const ARG_ALLRECORD_WORD = 7

/** A mutex wait looks for a cancel this often (ms): nothing else wakes it. */
export const SLICE_MS = 50
