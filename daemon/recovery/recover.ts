// One recovery, run by the leader: brings all active nodes to one generation, one vnnmap and recovery mode NORMAL (cluster
// page 7.3). It is client code: controls to the nodes, nothing else. Databases are recovered between the vnnmap and the
// end, each on its own; without any there is nothing between.

import type { ControlReply, Session } from "../../lib/client/session.ts"
import type { Logger } from "../../lib/config/log.ts"
import type { Tunables } from "../../lib/config/tunables.ts"
import { ProtocolError } from "../../lib/protocol/codec.ts"
import { Capability, RecoveryMode } from "../../lib/protocol/constants.ts"
import { type ControlName, decodeReply, type ReplyOf, type RequestOf } from "../../lib/protocol/controls.ts"
import type { DbidMap, NodeMap } from "../../lib/protocol/structs.ts"
import { isActive } from "../state.ts"
import { askNodes, type Task } from "./task.ts"
import { connectedPnns, flagsOf } from "./view.ts"

export interface RecoveryOrder {
  readonly session: Session
  readonly log: Logger
  /** The leader's own number. */
  readonly pnn: number
  readonly tunables: Tunables
  /** A fresh one for each attempt: 31 bits, not 1. */
  readonly generation: number
  /** Nodes that are connected but do not answer: the recovery goes on without them. */
  readonly excluded: ReadonlySet<number>
}

/** Ends a recovery. What was done stays done; the next attempt starts over it. */
export class RecoveryFailure extends Error {
  constructor(
    message: string,
    /** The node whose failure it was, if it was one's. */
    readonly pnn: number | undefined,
  ) {
    super(message)
    this.name = "RecoveryFailure"
  }
}

/** Runs the phases in order. Throws RecoveryFailure. */
export function* recover(order: RecoveryOrder): Task<void> {
  const { log, generation } = order
  const nodes = yield* members(order)
  const capabilities = yield* ask(order, "GET_CAPABILITIES", nodes)
  const databases = yield* ask(order, "GET_DBMAP", nodes)

  yield* tell(order, "SET_RECMODE", nodes, RecoveryMode.ACTIVE)
  log.notice("Set recovery mode to ACTIVE")

  yield* tell(order, "START_RECOVERY", nodes, undefined)
  log.notice("start_recovery event finished")

  const lmasters = nodes.filter((pnn) => ((capabilities.get(pnn) ?? 0) & Capability.LMASTER) !== 0)
  const map = lmasters.length > 0 ? lmasters : [order.pnn]
  yield* tell(order, "SETVNNMAP", nodes, { generation, map })
  log.notice("updated VNNMAP")

  const union = unionOf(databases)
  if (union.size > 0) {
    const ids = [...union.keys()].map((id) => `0x${id.toString(16).padStart(8, "0")}`).join(" ")
    throw new RecoveryFailure(`databases ${ids} are attached, and this version recovers none`, undefined)
  }
  log.notice("0 of 0 databases recovered")

  yield* tell(order, "SET_RECMODE", nodes, RecoveryMode.NORMAL)
  log.notice("Set recovery mode to NORMAL")

  yield* tell(order, "END_RECOVERY", nodes, undefined)
  log.notice("recovered event finished")
}

/** The nodes that take part: connected, answering, and not inactive by their own word. In PNN order. */
function* members(order: RecoveryOrder): Task<readonly number[]> {
  const own = (yield* ask(order, "GET_NODEMAP", [order.pnn])).get(order.pnn) as NodeMap
  const connected = connectedPnns(own).filter((pnn) => !order.excluded.has(pnn))
  const maps = yield* ask(order, "GET_NODEMAP", connected)
  return connected.filter((pnn) => isActive({ flags: flagsOf(maps.get(pnn) ?? [], pnn) ?? 0 }))
}

/** Every database that some node has, with its flags. Flags of one id must agree, but for READONLY and STICKY. */
function unionOf(maps: ReadonlyMap<number, DbidMap>): ReadonlyMap<number, number> {
  const union = new Map<number, number>()
  for (const [pnn, map] of maps) {
    for (const { dbId, flags } of map) {
      const known = union.get(dbId)
      const kind = flags & ~0x06
      if (known !== undefined && known !== kind) {
        const id = dbId.toString(16).padStart(8, "0")
        const pair = `0x${known.toString(16)} != 0x${kind.toString(16)}`
        throw new RecoveryFailure(`Incompatible database flags for 0x${id} (${pair}) on node ${pnn}`, pnn)
      }
      union.set(dbId, kind)
    }
  }
  return union
}

function* tell<N extends ControlName>(
  order: RecoveryOrder,
  control: N,
  pnns: readonly number[],
  request: RequestOf<N> | undefined,
): Task<void> {
  const timeoutMs = order.tunables.RecoverTimeout * 1000
  for (const [pnn, reply] of yield* askNodes(order.session, control, pnns, timeoutMs, request)) {
    if (!reply.ok) throw failure(control, pnn, reply)
  }
}

function* ask<N extends ControlName>(
  order: RecoveryOrder,
  control: N,
  pnns: readonly number[],
): Task<ReadonlyMap<number, ReplyOf<N>>> {
  const timeoutMs = order.tunables.RecoverTimeout * 1000
  const answers = new Map<number, ReplyOf<N>>()
  for (const [pnn, reply] of yield* askNodes(order.session, control, pnns, timeoutMs)) {
    if (!reply.ok) throw failure(control, pnn, reply)
    try {
      answers.set(pnn, decodeReply(control, reply.data))
    } catch (error) {
      if (!(error instanceof ProtocolError)) throw error
      throw new RecoveryFailure(`control ${control} to node ${pnn}: ${error.message}`, pnn)
    }
  }
  return answers
}

function failure(control: ControlName, pnn: number, reply: Extract<ControlReply, { ok: false }>): RecoveryFailure {
  const why = reply.reason === "status" ? `status ${reply.status}` : reply.reason
  const text = reply.error === "" ? why : `${why}: ${reply.error}`
  return new RecoveryFailure(`control ${control} to node ${pnn}: ${text}`, pnn)
}
