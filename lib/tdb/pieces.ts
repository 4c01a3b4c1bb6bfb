// Long work on a file, written as generators that pause after every bounded piece and wherever they must wait: for the disk, for a
// lock. Here they are run, either to their end at once or piece by piece between the turns of an event loop. What the work is, is
// not known here.

/** Something that work waits for. */
export interface Waiting {
  /** Wait here and now, blocking this thread. */
  block(): void
  /** Wait without blocking: `done` is called in a later turn, with what went wrong or null. Returns how to give up. */
  later(done: (error: unknown) => void): () => void
}

/** Work in pieces of about a millisecond at most. Pauses with null to let others go first. */
export type Pieces<T = void> = Generator<Waiting | null, T, undefined>

/** The event loop of whoever has long work done in pieces. */
export interface Turns {
  nextTurn(run: () => void): void
  monotonicMs(): number
  /** Until when work may go on in this turn, where it shares the turn with other work. */
  workEndsMs?(): number
}

/** Work that is under way. */
export interface Underway {
  /** Do all the rest now, blocking this thread. Afterwards it is over, and `done` was called. */
  finish(): void
  /** Do no more of it. The work undoes what it has begun; `done` is not called. */
  abandon(): void
}

/** Where nobody says how long work may go on in a turn of the loop, it is so long (ms). */
const TURN_MS = 3

/** Do all of it now, blocking this thread. */
export function runNow<T>(pieces: Pieces<T>): T {
  let step = pieces.next()
  while (step.done !== true) step = advance(pieces, step.value)
  return step.value
}

function advance<T>(pieces: Pieces<T>, waiting: Waiting | null): IteratorResult<Waiting | null, T> {
  if (waiting !== null) {
    try {
      waiting.block()
    } catch (error) {
      // The work knows how to undo what it has begun.
      return pieces.throw(error)
    }
  }
  return pieces.next()
}

/** Do it between other turns of the loop, the first piece now. `done` is called once, with what the work raised or null. */
export function runInPieces(pieces: Pieces, turns: Turns, done: (error: unknown) => void): Underway {
  let over = false
  let waiting: Waiting | null = null
  let giveUp: (() => void) | null = null
  // Turns and waits of before a `finish` come to nothing.
  let round = 0

  const end = (error: unknown): void => {
    over = true
    done(error)
  }
  const go = (failure: unknown): void => {
    const mine = ++round
    giveUp = null
    const until_ms = turns.workEndsMs?.() ?? turns.monotonicMs() + TURN_MS
    try {
      let step = failure === null ? pieces.next() : pieces.throw(failure)
      while (step.done !== true) {
        waiting = step.value
        if (waiting !== null) {
          giveUp = waiting.later((error) => {
            if (round === mine && !over) go(error)
          })
          return
        }
        if (turns.monotonicMs() >= until_ms) {
          turns.nextTurn(() => {
            if (round === mine && !over) go(null)
          })
          return
        }
        step = pieces.next()
      }
    } catch (error) {
      end(error)
      return
    }
    end(null)
  }
  go(null)
  return {
    abandon: () => {
      if (over) return
      over = true
      giveUp?.()
      pieces.return()
    },
    finish: () => {
      if (over) return
      round++
      giveUp?.()
      giveUp = null
      try {
        let step = advance(pieces, waiting)
        while (step.done !== true) step = advance(pieces, step.value)
      } catch (error) {
        end(error)
        return
      }
      end(null)
    },
  }
}
