// Takeover runs of the leader: requests are queued, run at the end of a pass, and answered (cluster page, section 8). Without
// public addresses a run is the ipreallocated event on every node; placing addresses belongs to daemon/failover.

import type { Session } from "../../lib/client/session.ts"
import type { Logger } from "../../lib/config/log.ts"
import { decode, encode, i32, ProtocolError } from "../../lib/protocol/codec.ts"
import { Srvid, UNKNOWN_PNN } from "../../lib/protocol/constants.ts"
import { disableMessage, type SrvidMessage, srvidMessage } from "../../lib/protocol/structs.ts"
import { equal, ZERO64 } from "../../lib/protocol/word64.ts"
import type { Operation } from "./operation.ts"
import { askNodes, type Task } from "./task.ts"

/** The other nodes keep their own requests back for so long (seconds). */
const DISABLE_S = 60
/** Requests that wait; a flood of them is one run all the same, and who is not answered asks again. */
const QUEUE_MAX = 10_000

export class TakeoverRuns {
  private queue: SrvidMessage[] = []
  private failed = false

  constructor(
    private readonly session: Session,
    private readonly log: Logger,
    readonly operation: Operation,
    private readonly timeoutMs: () => number,
  ) {}

  /** TAKEOVER_RUN came. Only the leader acts on it. */
  request(data: Uint8Array): void {
    try {
      const message = decode(srvidMessage, data)
      if (this.queue.length < QUEUE_MAX) this.queue.push(message)
    } catch (error) {
      if (!(error instanceof ProtocolError)) throw error
      this.log.error(`Ignored TAKEOVER_RUN message: ${error.message}`)
    }
  }

  /** Not the leader: whoever is, has got the same messages. */
  forget(): void {
    this.queue = []
    this.failed = false
  }

  *runIfWanted(pnns: readonly number[]): Task<void> {
    if (this.operation.disabled || (this.queue.length === 0 && !this.failed)) return
    yield* this.run(pnns)
  }

  *run(pnns: readonly number[]): Task<void> {
    const requests = this.queue
    this.queue = []
    if (!this.operation.begin()) {
      this.queue = requests
      return
    }
    let ok = false
    try {
      this.disableOthers(pnns, DISABLE_S)
      const replies = yield* askNodes(this.session, "IPREALLOCATED", pnns, this.timeoutMs())
      ok = [...replies].every(([pnn, reply]) => {
        if (!reply.ok) this.log.error(`IPREALLOCATED failed on node ${pnn}: ${reply.error || reply.status}`)
        return reply.ok
      })
    } finally {
      this.operation.end()
      this.disableOthers(pnns, 0)
    }
    this.failed = !ok
    for (const { pnn, srvid } of requests) {
      if (!equal(srvid, ZERO64)) this.session.sendMessage(pnn, srvid, encode(i32, ok ? this.session.pnn : -1))
    }
  }

  private disableOthers(pnns: readonly number[], timeout: number): void {
    const message = encode(disableMessage, { pnn: UNKNOWN_PNN, srvid: ZERO64, timeout })
    for (const pnn of pnns) {
      if (pnn !== this.session.pnn) this.session.sendMessage(pnn, Srvid.DISABLE_TAKEOVER_RUNS, message)
    }
  }
}
