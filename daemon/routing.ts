// Where a packet goes: to another node, to this node, to all nodes of a set; and what a packet from a node or from a
// client is. Keeps the table of requests that wait for a reply, and fails them when their node goes or their time is
// over (data path page, sections 2 and 3). What a control or a message means is decided elsewhere.

import { Priority, type Timer } from "../lib/net/ports.ts"
import { ProtocolError } from "../lib/protocol/codec.ts"
import {
  BROADCAST_ACTIVE,
  BROADCAST_ALL,
  BROADCAST_CONNECTED,
  ControlFlag,
  CURRENT_NODE,
  NodeFlag,
  Srvid,
} from "../lib/protocol/constants.ts"
import { controls } from "../lib/protocol/controls.ts"
import { destnodeOf, generationOf, operationOf, putDestnode } from "../lib/protocol/header.ts"
import {
  decodePacket,
  encodePacket,
  Operation,
  type Packet,
  type ReqCall,
  type ReqControl,
  type ReqMessage,
  type ReqTunnel,
} from "../lib/protocol/packet.ts"
import type { Word64 } from "../lib/protocol/word64.ts"
import { ZERO64 } from "../lib/protocol/word64.ts"
import { dropBuffer } from "../lib/sys/memory.ts"
import type { Keepalive } from "./cluster/keepalive.ts"
import type { Links } from "./cluster/links.ts"
import type { Complaints } from "./complaints.ts"
import type { NodeEnvironment } from "./environment.ts"
import type { IdTable } from "./ids.ts"
import { SrvidTable } from "./messaging/srvids.ts"
import { TunnelTable } from "./messaging/tunnels.ts"
import { isActive, isConnected, type NodeEntry, type NodeState } from "./state.ts"

/** The answer to a control. `error` is for the log and the tool, without NUL; never together with data. */
export interface ControlAnswer {
  readonly status: number
  readonly data?: Uint8Array
  readonly error?: string
}

export type Answer = (answer: ControlAnswer) => void

/** Whoever is behind a client connection, as far as the router needs to know. */
export interface LocalClient {
  readonly id: number
  readonly pid: number
  /** Ids of its requests that wait for other nodes: what is to be forgotten when it leaves. */
  readonly pendingIds: Set<number>
  send(packet: Uint8Array): void
}

/** A request sent to another node that waits for its REPLY_CONTROL. */
export interface PendingControl {
  readonly kind: "control"
  readonly destnode: number
  readonly opcode: number
  readonly deadlineMs: number
  /** Whose request it is; undefined for the daemon's own. */
  readonly client: LocalClient | undefined
  readonly answer: Answer
}

/** A call on a record that waits for the record to come; the database room knows the rest. */
export interface PendingRecordCall {
  readonly kind: "call"
}

export type IdEntry = PendingControl | PendingRecordCall | { readonly kind: "client"; readonly client: LocalClient }

/** Packets that record traffic consists of: the database room takes them. */
export interface RecordTraffic {
  /** REQ_CALL, REPLY_CALL, REQ_DMASTER, REPLY_DMASTER or REPLY_ERROR from a node or from this one. */
  receive(packet: Uint8Array): void
  /** REQ_CALL from a client of this node; the packet's key and data are valid only during the call. */
  callFromClient(call: ReqCall, client: LocalClient): void
}

const NO_DATA = new Uint8Array(0)
/** One client may have this many controls waiting for other nodes; the next one is refused with -1. */
const PENDING_CONTROLS_MAX = 100_000

export class Router {
  readonly srvids = new SrvidTable<object>()
  readonly tunnels = new TunnelTable<LocalClient>()
  /** What is being handled, for whoever watches the loop. */
  readonly handled = { operation: -1, opcode: -1 }
  keepalive: Keepalive | undefined
  records: RecordTraffic | undefined
  /** Executes a control on this node. */
  execute: (control: ReqControl, client: LocalClient | undefined, answer: Answer) => void = () => {}
  private sweepTimer: Timer | undefined
  private pendingControls = 0

  constructor(
    private readonly state: NodeState,
    private readonly environment: NodeEnvironment,
    private readonly ids: IdTable<IdEntry>,
    readonly complaints: Complaints,
    private readonly links: () => Links,
  ) {}

  // ---- towards nodes -------------------------------------------------------------------------------------------

  /** The nodes that a destination stands for, this one included if it belongs to them. Unknown or deleted: none. */
  targets(destnode: number): NodeEntry[] {
    const { nodes } = this.state
    switch (destnode) {
      case BROADCAST_ALL:
        return nodes.filter((node) => (node.flags & NodeFlag.DELETED) === 0)
      case BROADCAST_ACTIVE:
        return nodes.filter(isActive)
      case BROADCAST_CONNECTED:
        return nodes.filter(isConnected)
      case CURRENT_NODE:
        return [this.state.self]
      default: {
        const node = nodes[destnode]
        return node === undefined || (node.flags & NodeFlag.DELETED) !== 0 ? [] : [node]
      }
    }
  }

  /**
   * Sends a packet, which belongs to the router from now on, to its destnode. A copy to this node is handled in the
   * next turn of the loop. false: nobody could be reached.
   */
  send(packet: Uint8Array, priority: Priority): boolean {
    const destnode = destnodeOf(packet)
    const one = this.state.nodes[destnode]
    if (one !== undefined) return (one.flags & NodeFlag.DELETED) === 0 && this.sendTo(one, packet, priority)
    const targets = this.targets(destnode)
    let reached = false
    for (const [index, node] of targets.entries()) {
      const copy = index === targets.length - 1 ? packet : packet.slice()
      putDestnode(copy, node.pnn)
      if (this.sendTo(node, copy, priority)) reached = true
    }
    return reached
  }

  private sendTo(node: NodeEntry, packet: Uint8Array, priority: Priority): boolean {
    this.state.statistics.now.nodePacketsSent++
    if (node.pnn !== this.state.pnn) return this.links().send(node.pnn, packet, priority)
    this.environment.nextTurn(() => this.receiveFromSelf(packet))
    return true
  }

  /** Bytes that were sent to that node, to that srvid on this one, and have not been taken: what a bulk sender waits by. */
  queuedBytes(destnode: number, srvid: Word64): number {
    return destnode === this.state.pnn ? this.srvids.queuedBytes(srvid) : this.links().queuedBytes(destnode)
  }

  /** A message from the daemon itself. Copies to this node are delivered in the next turn. */
  sendMessage(destnode: number, srvid: Word64, data: Uint8Array): void {
    this.send(
      encodePacket(this.packet(Operation.REQ_MESSAGE, destnode, { srvid, data }), "daemon"),
      messagePriority(srvid),
    )
  }

  /** A control from the daemon itself that wants no answer; broadcasts are allowed. */
  sendControl(destnode: number, opcode: number, data: Uint8Array = NO_DATA, srvid: Word64 = ZERO64): void {
    const packet = this.packet(Operation.REQ_CONTROL, destnode, {
      opcode,
      srvid,
      clientId: 0,
      flags: ControlFlag.NOREPLY,
      data,
    })
    this.send(encodePacket(packet, "daemon"), controlPriority(opcode))
  }

  /**
   * Asks one other node; the answer comes once, also when the node goes away or ControlTimeout is over. It is made up
   * by this node then, with the texts of wire-protocol page 6.1.
   */
  request(
    destnode: number,
    control: Pick<ReqControl, "opcode" | "srvid" | "clientId" | "flags" | "data">,
    client: LocalClient | undefined,
    answer: Answer,
  ): void {
    const node = this.state.nodes[destnode]
    if (node === undefined || !isConnected(node)) {
      answer({ status: -1, error: "ctdb_control to disconnected node" })
      return
    }
    const waiting = client?.pendingIds.size ?? 0
    if (waiting >= PENDING_CONTROLS_MAX) {
      answer({ status: -1, error: `${waiting} controls of this client are waiting for other nodes: no more accepted` })
      return
    }
    const timeoutS = this.state.tunables.ControlTimeout
    const deadlineMs = timeoutS === 0 ? Number.POSITIVE_INFINITY : this.environment.monotonicMs() + timeoutS * 1000
    const reqid = this.ids.add({ kind: "control", destnode, opcode: control.opcode, deadlineMs, client, answer })
    this.pendingControls++
    client?.pendingIds.add(reqid)
    this.sweepTimer ??= this.environment.setTimer(1000, () => this.sweep())
    const packet = this.packet(Operation.REQ_CONTROL, destnode, control, reqid)
    const bytes = encodePacket(packet, "daemon")
    this.state.statistics.now.nodePacketsSent++
    this.links().send(destnode, bytes, controlPriority(control.opcode))
  }

  /** All requests to that node fail now. */
  nodeDisconnected(pnn: number): void {
    this.failPending((pending) => pending.destnode === pnn, "node is disconnected")
  }

  /** Requests of a client that has gone are forgotten; their late replies meet nobody. */
  clientGone(client: LocalClient): void {
    for (const id of client.pendingIds) {
      this.ids.remove(id)
      this.pendingControls--
    }
    client.pendingIds.clear()
  }

  private failPending(match: (pending: PendingControl) => boolean, error: string): void {
    for (const [id, entry] of this.ids.all()) {
      if (entry.kind !== "control" || !match(entry)) continue
      this.forget(id, entry)
      entry.answer({ status: -1, error })
    }
  }

  private forget(id: number, { client }: PendingControl): void {
    this.ids.remove(id)
    this.pendingControls--
    client?.pendingIds.delete(id)
  }

  private sweep(): void {
    this.sweepTimer = undefined
    const nowMs = this.environment.monotonicMs()
    const late = (pending: PendingControl) => {
      if (pending.deadlineMs > nowMs) return false
      this.state.statistics.now.timeouts.control++
      return true
    }
    this.failPending(late, "ctdb_control timed out")
    if (this.pendingControls > 0) this.sweepTimer = this.environment.setTimer(1000, () => this.sweep())
  }

  // ---- from nodes ----------------------------------------------------------------------------------------------

  /** A packet from a peer's link; the view is valid only during the call. */
  receiveFromNode(peer: NodeEntry, packet: Uint8Array): void {
    this.state.statistics.now.nodePacketsRecv++
    this.receive(packet, peer)
  }

  private receiveFromSelf(packet: Uint8Array): void {
    this.receive(packet, undefined)
    dropBuffer(packet)
  }

  private receive(bytes: Uint8Array, peer: NodeEntry | undefined): void {
    const operation = operationOf(bytes)
    this.handled.operation = operation
    const counters = this.state.statistics.now.node
    switch (operation) {
      case Operation.REQ_CALL:
      case Operation.REPLY_CALL:
      case Operation.REQ_DMASTER:
      case Operation.REPLY_DMASTER:
        // The gate for record traffic: no other generation's, and none while banned (data path page 3.2).
        if ((this.state.self.flags & NodeFlag.BANNED) !== 0 || generationOf(bytes) !== this.state.generation) return
        if (operation === Operation.REQ_CALL) counters.reqCall++
        else if (operation === Operation.REPLY_CALL) counters.replyCall++
        else if (operation === Operation.REQ_DMASTER) counters.reqDmaster++
        else counters.replyDmaster++
        this.records?.receive(bytes)
        return
      case Operation.REPLY_ERROR:
        counters.replyError++
        this.records?.receive(bytes)
        return
      case Operation.REQ_MESSAGE:
      case Operation.REQ_CONTROL:
      case Operation.REPLY_CONTROL:
      case Operation.REQ_KEEPALIVE:
      case Operation.REQ_TUNNEL:
        break
      default:
        this.complaints.add(
          `operation of ${peer?.pnn}`,
          `Packet with unknown operation ${operation} from node ${peer?.pnn ?? this.state.pnn}, dropped`,
        )
        return
    }
    const packet = this.decode(bytes, peer)
    if (packet === undefined) return
    switch (packet.operation) {
      case Operation.REQ_MESSAGE:
        counters.reqMessage++
        this.srvids.deliver(packet.srvid, packet.data)
        return
      case Operation.REQ_CONTROL:
        counters.reqControl++
        this.executeFor(packet)
        return
      case Operation.REPLY_CONTROL:
        counters.replyControl++
        this.replied(packet.reqid, packet.status, packet.data, packet.error, peer)
        return
      case Operation.REQ_KEEPALIVE:
        if (peer !== undefined) this.keepalive?.receive(peer, packet)
        return
      case Operation.REQ_TUNNEL:
        counters.reqTunnel++
        this.deliverTunnel(packet)
        return
      default:
        return
    }
  }

  private decode(bytes: Uint8Array, peer: NodeEntry | undefined): Packet | undefined {
    try {
      return decodePacket(bytes)
    } catch (error) {
      if (!(error instanceof ProtocolError)) throw error
      const from = peer?.pnn ?? this.state.pnn
      this.complaints.add(`packet of ${from}`, `Invalid packet from node ${from}, dropped: ${error.message}`)
      return undefined
    }
  }

  private executeFor(packet: ReqControl & { readonly srcnode: number; readonly reqid: number }): void {
    const { srcnode, reqid, opcode, flags } = packet
    // A client id means something only in the daemon that gave it: in a control from another node there is no client.
    const entry = srcnode === this.state.pnn ? this.ids.get(packet.clientId) : undefined
    const client = entry?.kind === "client" ? entry.client : undefined
    const silent = (flags & ControlFlag.NOREPLY) !== 0
    this.execute(packet, client, (answer) => {
      if (silent) return
      const reply = this.packet(
        Operation.REPLY_CONTROL,
        srcnode,
        { status: answer.status, data: answer.data ?? NO_DATA, error: answer.error ?? "" },
        reqid,
      )
      this.send(encodePacket(reply, "daemon"), controlPriority(opcode))
    })
  }

  private replied(reqid: number, status: number, data: Uint8Array, error: string, peer: NodeEntry | undefined): void {
    const entry = this.ids.get(reqid)
    if (entry?.kind !== "control" || (peer !== undefined && peer.pnn !== entry.destnode)) {
      this.environment.log.debug(`pnn ${this.state.pnn} Invalid reqid ${reqid} in ctdb_reply_control`)
      return
    }
    this.forget(reqid, entry)
    entry.answer({ status, data, error })
  }

  private deliverTunnel(packet: ReqTunnel): void {
    const owner = this.tunnels.owner(packet.tunnelId)
    if (owner === undefined) return
    const { tunnelId, flags, data } = packet
    owner.send(encodePacket(this.packet(Operation.REQ_TUNNEL, 0, { tunnelId, flags, data }), "daemon"))
  }

  // ---- from clients --------------------------------------------------------------------------------------------

  /**
   * A message of a client: to this node at once, so that what the client sends next comes after it; elsewhere through the
   * links.
   */
  messageFromClient(packet: ReqMessage & { readonly destnode: number }): void {
    const { destnode, srvid, data } = packet
    for (const { pnn } of this.targets(destnode)) {
      if (pnn === this.state.pnn) this.srvids.deliver(srvid, data)
      else this.sendMessage(pnn, srvid, data)
    }
  }

  tunnelFromClient(packet: ReqTunnel & { readonly destnode: number }): void {
    const { destnode, tunnelId, flags, data } = packet
    if (this.state.nodes[destnode] === undefined || this.tunnels.owner(tunnelId) === undefined) return
    this.send(
      encodePacket(this.packet(Operation.REQ_TUNNEL, destnode, { tunnelId, flags, data }), "daemon"),
      Priority.BULK,
    )
  }

  /** A call on a record. A stock node leaves one that it can't serve unanswered; here it fails at once. */
  callFromClient(call: ReqCall, client: LocalClient): void {
    if (this.records !== undefined) this.records.callFromClient(call, client)
    else
      client.send(
        encodePacket(this.packet(Operation.REPLY_CALL, 0, { status: -1, data: NO_DATA }, call.reqid), "daemon"),
      )
  }

  /** A control of a client: executed here, or asked of the node it names (data path page 2.4). */
  controlFromClient(
    packet: ReqControl & { readonly destnode: number; readonly reqid: number },
    client: LocalClient,
  ): void {
    const { reqid, opcode, srvid, flags, data } = packet
    const destnode = packet.destnode === CURRENT_NODE ? this.state.pnn : packet.destnode
    const silent = (flags & ControlFlag.NOREPLY) !== 0
    const answer: Answer = ({ status, data: payload, error }) => {
      if (silent) return
      const reply = { status, data: payload ?? NO_DATA, error: error ?? "" }
      client.send(encodePacket(this.packet(Operation.REPLY_CONTROL, 0, reply, reqid), "daemon"))
    }
    if (destnode === this.state.pnn) {
      this.state.statistics.now.node.reqControl++
      this.execute({ ...packet, srcnode: this.state.pnn, clientId: client.id }, client, answer)
      return
    }
    const forwarded = { opcode, srvid, clientId: client.id, flags, data }
    if (destnode === BROADCAST_ALL || destnode === BROADCAST_ACTIVE || destnode === BROADCAST_CONNECTED) {
      if (silent) {
        this.send(
          encodePacket(this.packet(Operation.REQ_CONTROL, destnode, forwarded), "daemon"),
          controlPriority(opcode),
        )
      } else {
        // A stock node says nothing here, and the client waits for ever.
        answer({ status: -1, error: "Attempt to broadcast control without NOREPLY" })
      }
      return
    }
    if (!silent) {
      this.request(destnode, forwarded, client, answer)
      return
    }
    const node = this.state.nodes[destnode]
    if (node === undefined || !isConnected(node)) return
    this.send(encodePacket(this.packet(Operation.REQ_CONTROL, destnode, forwarded), "daemon"), controlPriority(opcode))
  }

  /** The packet that hands a message to a client: nobody can see from it who sent it (wire-protocol page 3.6). */
  messageToClient(srvid: Word64, data: Uint8Array): Uint8Array {
    return encodePacket(this.packet(Operation.REQ_MESSAGE, 0, { srvid, data }), "daemon")
  }

  packet<O extends Packet["operation"]>(
    operation: O,
    destnode: number,
    body: PacketBody<O>,
    reqid = 0,
  ): Extract<Packet, { operation: O }> {
    const header = { operation, generation: this.state.generation, destnode, srcnode: this.state.pnn, reqid }
    return { ...header, ...body } as unknown as Extract<Packet, { operation: O }>
  }
}

type PacketBody<O> = Omit<
  Extract<Packet, { operation: O }>,
  "operation" | "generation" | "destnode" | "srcnode" | "reqid"
>

/** Leader broadcasts and election messages carry the cluster's life; pushes keep their order with their confirmation. */
export function messagePriority(srvid: Word64): Priority {
  if (srvid.hi === Srvid.LEADER.hi || srvid.hi === Srvid.ELECTION.hi) return Priority.LIVENESS
  return srvid.hi >>> 16 === Srvid.RECOVERY.hi >>> 16 ? Priority.RECORD : Priority.BULK
}

/** Controls that recovery and its watching loop consist of go first: late, they cost the cluster its leader. */
const LIVENESS_CONTROLS: ReadonlySet<number> = new Set(
  [
    controls.GET_CAPABILITIES,
    controls.GET_NODEMAP,
    controls.GET_RECMODE,
    controls.GETVNNMAP,
    controls.GET_DBMAP,
    controls.GET_DBNAME,
    controls.GET_RECLOCK_FILE,
    controls.SET_RECMODE,
    controls.SETVNNMAP,
    controls.START_RECOVERY,
    controls.END_RECOVERY,
    controls.MODIFY_FLAGS,
    controls.SET_BAN_STATE,
    controls.DB_FREEZE,
    controls.DB_THAW,
    controls.DB_TRANSACTION_START,
    controls.DB_TRANSACTION_COMMIT,
    controls.WIPE_DATABASE,
  ].map((control) => control.opcode),
)
/**
 * These must not overtake the record buffers that travel as messages beside them (cluster page 7.6), or must not be overtaken
 * by calls for the records of the database that they attach.
 */
const RECORD_CONTROLS: ReadonlySet<number> = new Set(
  [
    controls.DB_PULL,
    controls.ALIKE_PULL,
    controls.SRVID_BACKLOG,
    controls.DB_PUSH_START,
    controls.DB_PUSH_CONFIRM,
    controls.TRAVERSE_DATA,
    controls.DB_ATTACH,
    controls.DB_ATTACH_PERSISTENT,
    controls.DB_ATTACH_REPLICATED,
    controls.DB_DETACH,
  ].map((control) => control.opcode),
)

export function controlPriority(opcode: number): Priority {
  if (LIVENESS_CONTROLS.has(opcode)) return Priority.LIVENESS
  return RECORD_CONTROLS.has(opcode) ? Priority.RECORD : Priority.BULK
}
