// Pushes one database's records to all nodes (cluster page 7.6): the same buffers to each, then the confirmation that
// compares the counts. The next buffers go out only when the own node has taken the last ones and every receiver has
// stored what came before, so that no queue on the way holds more than a few of them.

import type { Session } from "../../lib/client/session.ts"
import { LMASTER_ANY } from "../../lib/protocol/constants.ts"
import type { Srvids } from "./collect.ts"
import { type NodeFailure, PhaseFailure, type Requests } from "./requests.ts"
import { begin, type Running, type Task } from "./task.ts"

/** Bytes sent to each node before all of them are asked whether they are through; two such lots at most are on the way. */
const LOT = 1024 * 1024

export interface PushOrder {
  readonly session: Session
  readonly requests: Requests
  readonly srvids: Srvids
  readonly dbId: number
  readonly pnns: readonly number[]
  /** Whole record buffers, each valid until the next is asked for; at least one. */
  readonly buffers: Iterable<{ readonly bytes: Uint8Array; readonly count: number }>
  readonly onSent: (records: number, bytes: number) => void
}

/** @throws PhaseFailure; whatever `buffers` throws */
export function* push(order: PushOrder): Task<void> {
  const { session, requests, dbId, pnns } = order
  const srvid = order.srvids.take()
  yield* requests.tell("DB_PUSH_START", pnns, { dbId, lmaster: LMASTER_ANY, srvid })
  let records = 0
  let sent = 0
  let asked: Running<unknown> | undefined
  try {
    for (const { bytes, count } of order.buffers) {
      for (const pnn of pnns) session.sendMessage(pnn, srvid, bytes)
      records += count
      sent += bytes.length
      order.onSent(count, bytes.length)
      if (sent < LOT) continue
      sent = 0
      // Messages and controls to a node stay in order: its answer says that the messages before it are stored.
      const next = begin(requests.tell("PING", pnns))
      const last = asked
      asked = next
      if (last !== undefined) yield* last.wait()
    }
    if (asked !== undefined) yield* asked.wait()
  } finally {
    asked?.cancel()
  }
  const failures: NodeFailure[] = []
  for (const [pnn, stored] of yield* requests.read("DB_PUSH_CONFIRM", pnns, dbId)) {
    if (stored !== records) failures.push({ pnn, timedOut: false, text: `stored ${stored} of ${records} records` })
  }
  if (failures.length > 0) throw new PhaseFailure("DB_PUSH_CONFIRM", failures)
}
