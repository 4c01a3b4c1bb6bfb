// How long work in pieces may hold up the event loop: recoveries move several databases at a time, and take locks, read, store and commit in
// all of them. With a limit for each, a turn of the loop would last as long as all limits together.

/** For all work in pieces of one turn, together (ms). */
const WORK_MS = 5

let endsMs = 0
let begun = false

/**
 * Until when (performance.now()) such work may go on in this turn. It begins with the first that asks; who comes when the time is over does
 * one piece, so that everything gets on.
 */
export function workEndsMs(): number {
  if (!begun) {
    begun = true
    endsMs = performance.now() + WORK_MS
    setImmediate(() => {
      begun = false
    })
  }
  return endsMs
}
