// Sequences of steps that wait in between: a pass of the watching loop, a recovery. A task is a generator that yields what
// it waits for; the runner resumes it when that has come. Unlike a promise it can be ended from outside at any point, runs
// on virtual time, and resumes in the very turn of the event.

import type { Cancel, ControlReply, Session } from "../../lib/client/session.ts"
import type { Scheduler } from "../../lib/net/ports.ts"
import type { ControlName, RequestOf } from "../../lib/protocol/controls.ts"

/** Starts something and calls `resume` once, in this turn or later, unless the function it returned is called first. */
export type Effect = (resume: (value: unknown) => void) => () => void
export type Task<T> = Generator<Effect, T, unknown>

/** Runs a task to its end; `done` gets its result, or the error it threw. */
export function run<T>(task: Task<T>, done: (result: T) => void, failed: (error: unknown) => void): Cancel {
  let cancelWait: (() => void) | undefined
  let ended = false
  let running = false
  let arrived: { readonly value: unknown } | undefined

  const step = (first: unknown): void => {
    running = true
    let next: { readonly value: unknown } | undefined = { value: first }
    while (next !== undefined && !ended) {
      let result: IteratorResult<Effect, T>
      try {
        result = task.next(next.value)
      } catch (error) {
        ended = true
        running = false
        failed(error)
        return
      }
      if (result.done === true) {
        ended = true
        running = false
        done(result.value)
        return
      }
      arrived = undefined
      let resumed = false
      cancelWait = result.value((value) => {
        if (ended || resumed) return
        resumed = true
        if (running) arrived = { value }
        else step(value)
      })
      next = arrived
    }
    running = false
  }

  step(undefined)
  return {
    cancel: () => {
      if (ended) return
      ended = true
      cancelWait?.()
      // Runs what the task has in `finally`; a task that is cancelled from inside its own step ends by itself.
      if (!running) task.return(undefined as T)
    },
  }
}

export function* sleep(scheduler: Scheduler, delayMs: number): Task<void> {
  yield (resume) => {
    const timer = scheduler.setTimer(delayMs, () => resume(undefined))
    return () => timer.cancel()
  }
}

export interface Question<N extends ControlName = ControlName> {
  readonly control: N
  readonly pnn: number
  readonly request?: RequestOf<N>
}

/** Sends all questions in one go and waits for all answers, each with the same limit. */
export function* askAll(
  session: Session,
  questions: readonly Question[],
  timeoutMs: number,
): Task<readonly ControlReply[]> {
  if (questions.length === 0) return []
  return (yield (resume) => {
    const replies: ControlReply[] = []
    let left = questions.length
    const cancels = questions.map(({ control, pnn, request }, index) =>
      session.request(control, pnn, { request, timeoutMs }, (reply) => {
        replies[index] = reply
        if (--left === 0) resume(replies)
      }),
    )
    return () => {
      for (const { cancel } of cancels) cancel()
    }
  }) as readonly ControlReply[]
}

/** The same control to several nodes; answers by node. */
export function* askNodes<N extends ControlName>(
  session: Session,
  control: N,
  pnns: readonly number[],
  timeoutMs: number,
  request?: RequestOf<N>,
): Task<ReadonlyMap<number, ControlReply>> {
  const questions = pnns.map((pnn) => (request === undefined ? { control, pnn } : { control, pnn, request }))
  const replies = yield* askAll(session, questions as readonly Question[], timeoutMs)
  return new Map(pnns.map((pnn, index) => [pnn, replies[index] as ControlReply]))
}
