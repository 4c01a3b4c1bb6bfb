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
      if (ended && result.done !== true) {
        // Cancelled from inside this very step: what it wants to wait for is not begun, its `finally` runs.
        running = false
        task.return(undefined as T)
        return
      }
      if (result.done === true) {
        const cancelled = ended
        ended = true
        running = false
        if (!cancelled) done(result.value)
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
      // Runs what the task has in `finally`. One that is in the middle of a step is ended after it, above.
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

export type Ended<T> = { readonly ok: true; readonly value: T } | { readonly ok: false; readonly error: unknown }

/**
 * Runs tasks at the same time and ends when all have ended, each with its result or its error. The first error that
 * `fatal` finds so ends all others at once, and is thrown.
 */
export function* together<T>(
  tasks: readonly Task<T>[],
  fatal: (error: unknown) => boolean = () => false,
): Task<readonly Ended<T>[]> {
  if (tasks.length === 0) return []
  let thrown: { readonly error: unknown } | undefined
  const ends = (yield (resume) => {
    const results: Ended<T>[] = []
    const running: Cancel[] = []
    let left = tasks.length
    const cancelAll = () => {
      for (const { cancel } of running) cancel()
    }
    for (const [index, task] of tasks.entries()) {
      if (thrown !== undefined) break
      const end = (result: Ended<T>) => {
        if (thrown !== undefined) return
        results[index] = result
        if (--left === 0) resume(results)
      }
      const cancel = run(
        task,
        (value) => end({ ok: true, value }),
        (error) => {
          if (!fatal(error) || thrown !== undefined) {
            end({ ok: false, error })
            return
          }
          thrown = { error }
          cancelAll()
          resume(results)
        },
      )
      running.push(cancel)
    }
    return cancelAll
  }) as readonly Ended<T>[]
  if (thrown !== undefined) throw (thrown as { readonly error: unknown }).error
  return ends
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
