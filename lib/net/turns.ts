// Shares the turns of the event loop among connections (design decision 3): what arrived in a turn is handled after the
// poll, class by class, connections of a class taking turns by bytes, each class within a budget; then every connection
// that queued something writes once. What is over the budget waits for the next turn, after new input was polled.
// On an idle loop there is nothing to share: what arrives then is served, and written, at once.

import { Priority } from "./ports.ts"

/** Cost of a packet beyond its bytes: handling a small one costs as much as copying this many bytes. */
export const PACKET_COST = 192
/** Cost that one connection may use before the next of its class has its turn. */
export const TURN_QUANTUM = 16 * 1024
/** Cost that each class may use in one loop turn. No class starves another: each has its own. */
export const CLASS_BUDGETS: readonly number[] = [512 * 1024, 512 * 1024, 256 * 1024]
/** A turn stops handing out packets after this time, whatever the budgets say (ms). */
export const TURN_TIME_MS = 50

/** The loop counts as busy if it was at work this shortly before (ms): longer than it takes to fetch the next event. */
const BUSY_GAP_MS = 0.015

/** What takes turns: a connection. */
export interface TurnTaker {
  readPriority: Priority
  /** Handles packets for about `quantum` of cost. Returns the cost used; 0 or less than `quantum`: nothing is left. */
  takeTurn(quantum: number): number
  /** Writes what was queued. */
  flush(): void
}

const classes: TurnTaker[][] = [[], [], []]
let writers: TurnTaker[] = []
let scheduled = false
/** In a turn, or serving at once: flushing comes at its end. */
let serving = false
let workEnded = 0

const isBusy = (): boolean => scheduled || serving || performance.now() - workEnded < BUSY_GAP_MS

function schedule(): void {
  if (scheduled) return
  scheduled = true
  setImmediate(run)
}

/** Asks for a turn of reading. To be called once until the turn came (takeTurn returning less than it was given). */
export function wantTurn(taker: TurnTaker): void {
  classes[taker.readPriority]!.push(taker)
  schedule()
}

/**
 * Input for `taker` just arrived. On an idle loop it takes a turn now, of one quantum; otherwise it waits for one, as
 * with wantTurn().
 */
export function arrived(taker: TurnTaker): void {
  if (isBusy()) {
    wantTurn(taker)
    return
  }
  serving = true
  if (guarded(taker, takeOne) >= TURN_QUANTUM) wantTurn(taker)
  flushAll()
}

/** Asks for flush() when what runs now is done, on a busy loop at the end of the turn. To be called once until it came. */
export function wantFlush(taker: TurnTaker): void {
  writers.push(taker)
  if (serving) return
  if (isBusy()) schedule()
  else if (writers.length === 1) queueMicrotask(flushEarly)
}

function flushEarly(): void {
  if (!serving && !scheduled) flushAll()
}

function run(): void {
  scheduled = false
  serving = true
  const deadline = performance.now() + TURN_TIME_MS
  for (const priority of [Priority.LIVENESS, Priority.RECORD, Priority.BULK]) {
    if (classes[priority]!.length > 0) runClass(priority, CLASS_BUDGETS[priority]!, deadline)
  }
  flushAll()
}

/** Ends a turn: everybody writes, and what is left over gets the next one. */
function flushAll(): void {
  serving = true
  const flushing = writers
  writers = []
  for (const writer of flushing) guarded(writer, flushOne)
  serving = false
  workEnded = performance.now()
  if (writers.length > 0 || classes.some((takers) => takers.length > 0)) schedule()
}

/** Round robin over the takers that were there or came; those not served keep their places for the next turn. */
function runClass(priority: Priority, budget: number, deadline: number): void {
  const takers = classes[priority]!
  let left = budget
  let head = 0
  while (head < takers.length && left > 0 && performance.now() < deadline) {
    const taker = takers[head++]!
    const used = guarded(taker, takeOne)
    left -= used
    if (used >= TURN_QUANTUM) takers.push(taker)
  }
  takers.splice(0, head)
}

const takeOne = (taker: TurnTaker): number => taker.takeTurn(TURN_QUANTUM)
const flushOne = (taker: TurnTaker): number => {
  taker.flush()
  return 0
}

/** A handler that throws must not take other connections' turns with it: the error surfaces as an uncaught one. */
function guarded(taker: TurnTaker, step: (taker: TurnTaker) => number): number {
  try {
    return step(taker)
  } catch (error) {
    queueMicrotask(() => {
      throw error
    })
    return TURN_QUANTUM
  }
}
