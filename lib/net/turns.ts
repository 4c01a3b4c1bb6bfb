// Shares the turns of the event loop among connections (design decision 3): what arrived in a turn is handled after the
// poll, class by class, connections of a class taking turns by bytes, each class within a budget; then every connection
// that queued something writes once. What is over the budget waits for the next turn, after new input was polled.
// On an idle loop there is nothing to share: what arrives then is served, and written, at once. A turn with a thousand
// clients in it takes tens of milliseconds; urgent connections are looked at, and answered, in the middle of it.

import { Priority } from "./ports.ts"

/** Cost of a packet beyond its bytes: handling a small one costs as much as copying this many bytes. */
export const PACKET_COST = 192
/** Cost that one connection may use before the next of its class has its turn; less where many wait, down to the least. */
export const TURN_QUANTUM = 16 * 1024
export const LEAST_QUANTUM = 1024
/** Cost that each class may use in one loop turn. No class starves another: each has its own. */
export const CLASS_BUDGETS: readonly number[] = [512 * 1024, 512 * 1024, 256 * 1024]
/** A turn stops handing out packets after this time, whatever the budgets say (ms). */
export const TURN_TIME_MS = 50

/** While others are read and handled, urgent connections are looked at this often (ms). */
const URGENT_GAP_MS = 2

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

/** A connection that can be looked at between two polls of the loop. */
export interface UrgentTaker extends TurnTaker {
  /** Takes what has arrived for it, and asks for a turn if that is something. */
  fetch(): void
}

const classes: TurnTaker[][] = [[], [], []]
let writers: TurnTaker[] = []
let scheduled = false
/** In a turn, or serving at once: flushing comes at its end. */
let serving = false
let workEnded = 0
const urgent = new Set<UrgentTaker>()
/** When urgent connections were last served, or the loop was idle (ms). */
let urgentServed = 0

/** From now on `taker` is looked at in the middle of long turns. It reads in the class LIVENESS. */
export function watchUrgent(taker: UrgentTaker): void {
  urgent.add(taker)
}

export function unwatchUrgent(taker: UrgentTaker): void {
  urgent.delete(taker)
}

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
    if (!serving && performance.now() - urgentServed > URGENT_GAP_MS) serveUrgent()
    return
  }
  serving = true
  urgentServed = performance.now()
  if (serve(taker, TURN_QUANTUM) >= TURN_QUANTUM) wantTurn(taker)
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
    if (priority === Priority.LIVENESS) urgentServed = performance.now()
  }
  flushAll()
}

/** In the middle of a turn, or of a poll: what urgent connections have, and what has been queued so far. */
function serveUrgent(): void {
  const within = serving
  serving = true
  for (const taker of urgent) taker.fetch()
  if (classes[Priority.LIVENESS]!.length > 0) {
    runClass(Priority.LIVENESS, CLASS_BUDGETS[Priority.LIVENESS]!, performance.now() + TURN_TIME_MS)
    flushQueued()
  }
  urgentServed = performance.now()
  serving = within
}

/** Ends a turn: everybody writes, and what is left over gets the next one. */
function flushAll(): void {
  serving = true
  flushQueued()
  serving = false
  workEnded = performance.now()
  if (writers.length > 0 || classes.some((takers) => takers.length > 0)) schedule()
}

function flushQueued(): void {
  const flushing = writers
  writers = []
  for (const writer of flushing) write(writer)
}

/** Round robin over the takers that were there or came; those not served keep their places for the next turn. */
function runClass(priority: Priority, budget: number, deadline: number): void {
  const takers = classes[priority]!
  // All of them within one budget, if that can be: who wants little does not wait for those that want much.
  const quantum = Math.min(TURN_QUANTUM, Math.max(LEAST_QUANTUM, Math.floor(budget / takers.length)))
  let left = budget
  let head = 0
  for (let now = performance.now(); head < takers.length && left > 0 && now < deadline; now = performance.now()) {
    if (priority !== Priority.LIVENESS && now - urgentServed > URGENT_GAP_MS) serveUrgent()
    const taker = takers[head++]!
    const used = serve(taker, quantum)
    left -= used
    if (used >= quantum) takers.push(taker)
  }
  takers.splice(0, head)
}

/** A handler that throws must not take other connections' turns with it. Returns the cost used. */
function serve(taker: TurnTaker, quantum: number): number {
  try {
    return taker.takeTurn(quantum)
  } catch (error) {
    surface(error)
    return quantum
  }
}

function write(taker: TurnTaker): void {
  try {
    taker.flush()
  } catch (error) {
    surface(error)
  }
}

/** As an uncaught error, outside of what runs now. */
function surface(error: unknown): void {
  queueMicrotask(() => {
    throw error
  })
}
