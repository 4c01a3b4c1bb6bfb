// What a recovery asks of nodes: one control to several at once, all answers awaited, every failure named (cluster page
// 7.2). Time limits count only the time in which this process ran and nothing moved, so that neither its own pauses nor a
// large database are taken for a node's fault.

import type { Cancel, ControlReply, Session } from "../../lib/client/session.ts"
import type { Scheduler, Timer } from "../../lib/net/ports.ts"
import { ProtocolError } from "../../lib/protocol/codec.ts"
import { type ControlName, decodeReply, type ReplyOf, type RequestOf } from "../../lib/protocol/controls.ts"
import type { Task } from "./task.ts"

/** How often a limit looks at the clock; a longer gap means that this process stood still. */
const TICK_MS = 500

/** A limit on time without progress. */
export class Patience {
  private leftMs: number
  private lastMs: number
  private timer: Timer | undefined

  constructor(
    private readonly scheduler: Scheduler,
    private readonly limitMs: number,
    private readonly over: () => void,
  ) {
    this.leftMs = limitMs
    this.lastMs = scheduler.monotonicMs()
    this.wait()
  }

  /** Something came: the limit counts from now. */
  renew(): void {
    this.leftMs = this.limitMs
    this.lastMs = this.scheduler.monotonicMs()
  }

  cancel(): void {
    this.timer?.cancel()
    this.timer = undefined
  }

  private wait(): void {
    this.timer = this.scheduler.setTimer(Math.min(TICK_MS, Math.max(1, this.leftMs)), () => {
      const nowMs = this.scheduler.monotonicMs()
      this.leftMs -= Math.min(nowMs - this.lastMs, 2 * TICK_MS)
      this.lastMs = nowMs
      if (this.leftMs > 0) this.wait()
      else this.over()
    })
  }
}

/** One node that did not do what it was asked to. */
export interface NodeFailure {
  readonly pnn: number
  readonly timedOut: boolean
  readonly text: string
}

/** A control, or what takes its place, failed on one or more nodes. */
export class PhaseFailure extends Error {
  override readonly name = "PhaseFailure"
  constructor(
    readonly phase: string,
    readonly failures: readonly NodeFailure[],
    /** It was asked with a limit for what needs no time. */
    readonly prompt = false,
  ) {
    super(`${phase} failed on ${failures.map(({ pnn, text }) => `node ${pnn} (${text})`).join(", ")}`)
  }
}

export type Replies = ReadonlyMap<number, Extract<ControlReply, { ok: true }>>

export class Requests {
  constructor(
    private readonly session: Session,
    private readonly scheduler: Scheduler,
    /** Longest wait for an answer (ms). */
    readonly limitMs: number,
    /** Marks failures as of what a living node answers at once. */
    private readonly prompt = false,
  ) {}

  /** Sends to all in one go and waits for all. @throws PhaseFailure that names each node that failed */
  *tell<N extends ControlName>(control: N, pnns: readonly number[], request?: RequestOf<N>, flags = 0): Task<Replies> {
    const replies = yield* this.ask(control, pnns, request, flags)
    const failures = failuresOf(replies)
    if (failures.length > 0) throw new PhaseFailure(control, failures, this.prompt)
    return replies as Replies
  }

  /** The same with decoded answers. An answer that does not decode is a failure. */
  *read<N extends ControlName>(
    control: N,
    pnns: readonly number[],
    request?: RequestOf<N>,
    flags = 0,
  ): Task<ReadonlyMap<number, ReplyOf<N>>> {
    const answers = new Map<number, ReplyOf<N>>()
    const failures: NodeFailure[] = []
    for (const [pnn, { data }] of yield* this.tell(control, pnns, request, flags)) {
      try {
        answers.set(pnn, decodeReply(control, data))
      } catch (error) {
        if (!(error instanceof ProtocolError)) throw error
        failures.push({ pnn, timedOut: false, text: error.message })
      }
    }
    if (failures.length > 0) throw new PhaseFailure(control, failures, this.prompt)
    return answers
  }

  /** Sends to all in one go and waits until each has answered or the time is over. */
  *ask<N extends ControlName>(
    control: N,
    pnns: readonly number[],
    request?: RequestOf<N>,
    flags = 0,
    limitMs = this.limitMs,
  ): Task<ReadonlyMap<number, ControlReply>> {
    if (pnns.length === 0) return new Map()
    return (yield (resume) => {
      const replies = new Map<number, ControlReply>()
      const cancels: Cancel[] = []
      const patience = new Patience(this.scheduler, limitMs, () => {
        for (const { cancel } of cancels) cancel()
        for (const pnn of pnns) if (!replies.has(pnn)) replies.set(pnn, tooLate(limitMs))
        resume(inOrder(pnns, replies))
      })
      for (const pnn of pnns) {
        cancels.push(
          this.session.request(control, pnn, request === undefined ? { flags } : { request, flags }, (reply) => {
            replies.set(pnn, reply)
            if (replies.size < pnns.length) return
            patience.cancel()
            resume(inOrder(pnns, replies))
          }),
        )
      }
      return () => {
        patience.cancel()
        for (const { cancel } of cancels) cancel()
      }
    }) as ReadonlyMap<number, ControlReply>
  }
}

function inOrder<T>(pnns: readonly number[], replies: ReadonlyMap<number, T>): ReadonlyMap<number, T> {
  return new Map(pnns.map((pnn) => [pnn, replies.get(pnn) as T]))
}

export function tooLate(limitMs: number): ControlReply {
  return { ok: false, reason: "timeout", status: -1, error: `no reply in ${limitMs / 1000} s` }
}

export function failuresOf(replies: ReadonlyMap<number, ControlReply>): NodeFailure[] {
  const failures: NodeFailure[] = []
  for (const [pnn, reply] of replies) {
    if (reply.ok) continue
    const why = reply.reason === "status" ? `status ${reply.status}` : reply.reason
    const text = reply.error === "" ? why : `${why}: ${reply.error}`
    failures.push({ pnn, timedOut: reply.reason === "timeout", text })
  }
  return failures
}
