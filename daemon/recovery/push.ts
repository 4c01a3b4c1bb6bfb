// Pushes one database's records to all nodes (cluster page 7.6): the same buffers to each, then the confirmation that
// compares the counts. It does so lot by lot: the next records go out only when every node has confirmed that it stored
// the last ones, so that no queue on the way, and no receiver, holds more than one lot. Nodes of old, which know no chunks, get
// everything in one packet at the end.

import type { Session } from "../../lib/client/session.ts"
import { decode } from "../../lib/protocol/codec.ts"
import { LMASTER_ANY } from "../../lib/protocol/constants.ts"
import { type RecData, recBuffer } from "../../lib/protocol/structs.ts"
import type { Srvids } from "./collect.ts"
import { type NodeFailure, PhaseFailure, type Requests } from "./requests.ts"
import type { Task } from "./task.ts"

/** Bytes of one lot, to each node. A stock node knows no lots: to it each is a push of its own. */
const LOT = 1024 * 1024

export interface PushOrder {
  readonly session: Session
  readonly requests: Requests
  readonly srvids: Srvids
  readonly dbId: number
  readonly pnns: readonly number[]
  /** Nodes that know only PUSH_DB, which brings the whole database in one packet (cluster page 7.11). */
  readonly unchunked: readonly number[]
  /** One message to this destination reaches all of `pnns`; undefined: each gets its own. */
  readonly everybody: number | undefined
  /** Whole record buffers, each valid until the next is asked for; at least one. */
  readonly buffers: Iterable<{ readonly bytes: Uint8Array; readonly count: number }>
  readonly onSent: (records: number, bytes: number) => void
}

/** @throws PhaseFailure; whatever `buffers` throws */
export function* push(order: PushOrder): Task<void> {
  const buffers = order.buffers[Symbol.iterator]()
  const whole: RecData[] = []
  const { unchunked } = order
  for (let next = buffers.next(); next.done !== true; ) {
    const srvid = order.srvids.take()
    const { session, requests, dbId, pnns, everybody, onSent } = order
    const destinations = everybody === undefined ? pnns : [everybody]
    yield* requests.tell("DB_PUSH_START", pnns, { dbId, lmaster: LMASTER_ANY, srvid })
    let records = 0
    for (let sent = 0; next.done !== true && sent < LOT; next = buffers.next()) {
      const { bytes, count } = next.value
      for (const pnn of destinations) session.sendMessage(pnn, srvid, bytes)
      if (unchunked.length > 0) whole.push(...decode(recBuffer, bytes.slice()).records)
      records += count
      sent += bytes.length
      onSent(count, bytes.length)
    }
    yield* confirm(order, records)
  }
  yield* order.requests.tell("PUSH_DB", unchunked, { dbId: order.dbId, records: whole })
}

function* confirm({ requests, pnns, dbId }: PushOrder, records: number): Task<void> {
  const failures: NodeFailure[] = []
  for (const [pnn, stored] of yield* requests.read("DB_PUSH_CONFIRM", pnns, dbId)) {
    if (stored !== records) failures.push({ pnn, timedOut: false, text: `stored ${stored} of ${records} records` })
  }
  if (failures.length > 0) throw new PhaseFailure("DB_PUSH_CONFIRM", failures)
}
