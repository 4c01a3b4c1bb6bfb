// Pulls one database from several nodes at once (cluster page 7.5, data path page 10.2): each node sends its record buffers
// to a srvid of its own, and its reply says how many records they held. What becomes of the records is the merge's affair.

import type { Cancel, ControlReply, Session } from "../../lib/client/session.ts"
import type { Scheduler } from "../../lib/net/ports.ts"
import { decodeExact, ProtocolError, u32 } from "../../lib/protocol/codec.ts"
import { LMASTER_ANY, Srvid } from "../../lib/protocol/constants.ts"
import { type Word64, word64 } from "../../lib/protocol/word64.ts"
import { failuresOf, type NodeFailure, Patience, tooLate } from "./requests.ts"
import type { Task } from "./task.ts"

/** Message ids of one recovery: never one that a late packet of an earlier recovery can still carry. */
export class Srvids {
  constructor(private next: number) {}

  take(): Word64 {
    const lo = this.next
    this.next = (this.next + 1) >>> 0
    return word64(Srvid.RECOVERY.hi, lo)
  }
}

export interface PullOrder {
  readonly session: Session
  readonly scheduler: Scheduler
  readonly srvids: Srvids
  readonly dbId: number
  readonly pnns: readonly number[]
  /** Of these, the nodes that know only PULL_DB, which answers with the whole database in one packet (cluster page 7.11). */
  readonly unchunked: ReadonlySet<number>
  /** Groups that are not asked for (database/alike.ts); undefined: everything is, by the control that all nodes know. */
  readonly keep: Uint8Array | undefined
  /** Longest time without anything from a node that has not finished (ms). */
  readonly limitMs: number
  /** One record buffer from a node, a view valid during the call. Returns its number of records. @throws ProtocolError */
  readonly onBuffer: (pnn: number, buffer: Uint8Array) => number
}

/** Ends when every node has delivered or failed. Returns the failures. An error that onBuffer throws ends it at once. */
export function* pull(order: PullOrder): Task<readonly NodeFailure[]> {
  const pulls = order.pnns.map((pnn) => new NodePull(order, pnn))
  let thrown: { readonly error: unknown } | undefined
  const stop = () => {
    for (const one of pulls) one.stop()
  }
  try {
    yield (resume) => {
      let left = pulls.length
      const done = () => {
        if (--left === 0) resume(undefined)
      }
      const failed = (error: unknown) => {
        thrown ??= { error }
        stop()
        resume(undefined)
      }
      for (const one of pulls) one.start(done, failed)
      return stop
    }
  } finally {
    stop()
  }
  if (thrown !== undefined) throw (thrown as { readonly error: unknown }).error
  return pulls.flatMap((one) => one.failure ?? [])
}

class NodePull {
  failure: NodeFailure | undefined
  private records = 0
  private fault: string | undefined
  private patience: Patience | undefined
  private registration: Cancel | undefined
  private request: Cancel | undefined

  constructor(
    private readonly order: PullOrder,
    private readonly pnn: number,
  ) {}

  start(done: () => void, failed: (error: unknown) => void): void {
    const { session, scheduler, dbId, limitMs, keep, onBuffer } = this.order
    const srvid = this.order.srvids.take()
    const finish = (reply: ControlReply) => {
      if (this.patience === undefined) return
      this.judge(reply)
      this.stop()
      done()
    }
    this.patience = new Patience(scheduler, limitMs, () => finish(tooLate(limitMs)))
    if (this.order.unchunked.has(this.pnn)) {
      const request = { dbId, lmaster: LMASTER_ANY }
      this.request = session.request("PULL_DB", this.pnn, { request }, (reply) => {
        if (this.patience === undefined) return
        try {
          if (reply.ok) this.records = onBuffer(this.pnn, reply.data)
          else this.failure = failuresOf(new Map([[this.pnn, reply]]))[0]
        } catch (error) {
          if (!(error instanceof ProtocolError)) {
            failed(error)
            return
          }
          this.failure = { pnn: this.pnn, timedOut: false, text: error.message }
        }
        this.stop()
        done()
      })
      return
    }
    const onMessage = (data: Uint8Array) => {
      this.patience?.renew()
      if (this.fault !== undefined) return
      try {
        this.records += onBuffer(this.pnn, data)
      } catch (error) {
        if (error instanceof ProtocolError) this.fault = error.message
        else failed(error)
      }
    }
    this.registration = session.onMessage(srvid, onMessage, (registered) => {
      if (this.patience === undefined) return
      if (!registered.ok) {
        failed(new Error(`the own node does not register a message id: ${registered.error}`))
        return
      }
      const request = { dbId, lmaster: LMASTER_ANY, srvid }
      this.request =
        keep === undefined
          ? session.request("DB_PULL", this.pnn, { request }, finish)
          : session.request("ALIKE_PULL", this.pnn, { request: { ...request, keep } }, finish)
    })
  }

  stop(): void {
    this.patience?.cancel()
    this.patience = undefined
    this.request?.cancel()
    this.registration?.cancel()
  }

  private judge(reply: ControlReply): void {
    const { pnn } = this
    if (!reply.ok) {
      this.failure = failuresOf(new Map([[pnn, reply]]))[0]
      return
    }
    const fault = this.fault ?? this.mismatch(reply.data)
    if (fault !== undefined) this.failure = { pnn, timedOut: false, text: fault }
  }

  /** The reply is what says that nothing is missing: it must be a count, and the right one. */
  private mismatch(data: Uint8Array): string | undefined {
    try {
      const announced = decodeExact(u32, data)
      return announced === this.records ? undefined : `${this.records} of ${announced} records came`
    } catch (error) {
      if (!(error instanceof ProtocolError)) throw error
      return error.message
    }
  }
}
