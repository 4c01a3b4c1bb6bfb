// One conversation of a client with its daemon, over any packet connection and clock: requests matched to replies by id,
// time-outs, messages to their handlers, tunnels. Callbacks only, no promises (client.ts has those), so that the recovery
// daemon runs on it in the simulator too. It follows client-library.md sections 3 to 5, 15 and 21.

import type { PacketConnection, PacketHandler, Priority, Scheduler, Timer } from "../net/ports.ts"
import { encode, ProtocolError } from "../protocol/codec.ts"
import { ControlFlag, CURRENT_NODE, Srvid, TunnelFlag, UNKNOWN_PNN } from "../protocol/constants.ts"
import { type ControlName, controls, type RequestOf } from "../protocol/controls.ts"
import { readU32 } from "../protocol/header.ts"
import { decodePacket, encodePacket, Operation, type ReplyCall, type ReplyControl } from "../protocol/packet.ts"
import { type Word64, ZERO64 } from "../protocol/word64.ts"

/** First request id of a client (wire-protocol 2.6); after ID_LAST comes 0. */
const ID_FIRST = 0x7fffff38
const ID_LAST = 0x7fffffff

const NO_DATA = new Uint8Array(0)

/** Ends what it stands for; twice or too late does nothing. */
export interface Cancel {
  cancel(): void
}

/**
 * How a request failed. "timeout": no reply in time. "status": the daemon said no, `status` and perhaps `error` say more.
 * "closed": the connection is gone or never was. "protocol": a reply came that does not decode.
 */
export interface Failure {
  readonly ok: false
  readonly reason: "timeout" | "status" | "closed" | "protocol"
  /** The reply's status; -1 if none came. */
  readonly status: number
  /** What the daemon or the decoder said; may be empty. */
  readonly error: string
  readonly cause?: ProtocolError
}

/** `data` is the callback's own copy. Of a control whose status is its value (wire-protocol 6.2) that is `status`. */
export type ControlReply = { readonly ok: true; readonly status: number; readonly data: Uint8Array } | Failure
export type CallReply = ControlReply

export interface ControlOptions<N extends ControlName> {
  /** The payload as a value; may be left out where the control has none. */
  readonly request?: RequestOf<N> | undefined
  /** The payload in bytes instead, for one that lies ready. */
  readonly payload?: Uint8Array | undefined
  /** The header's srvid field. */
  readonly srvid?: Word64 | undefined
  /** Flags besides NOREPLY (wire-protocol 3.7). */
  readonly flags?: number | undefined
  readonly priority?: Priority | undefined
}

export interface RequestOptions<N extends ControlName> extends ControlOptions<N> {
  /** 0 or left out: waits as long as the connection lives. */
  readonly timeoutMs?: number | undefined
}

export interface CallOptions {
  readonly dbId: number
  readonly key: Uint8Array
  readonly callid: number
  readonly flags?: number | undefined
  readonly data?: Uint8Array | undefined
  /** 0 or left out: never (a daemon does not answer a call to an unknown database, wire-protocol 3.1). */
  readonly timeoutMs?: number | undefined
}

/** `data` is a view that is valid during the call only. */
export type MessageHandler = (data: Uint8Array, srvid: Word64) => void

/** A packet from a tunnel; `data` is a view. Stock daemons lose reqid and origin (client-library 21). */
export interface TunnelPacket {
  readonly srcnode: number
  readonly reqid: number
  readonly flags: number
  readonly data: Uint8Array
}
export type TunnelHandler = (packet: TunnelPacket) => void

interface Pending {
  readonly kind: "control" | "call" | "tunnel"
  readonly statusIsValue: boolean
  readonly done: (reply: ControlReply) => void
  timer: Timer | undefined
}

interface Registration<Handler> {
  readonly id: Word64
  readonly handlers: Handler[]
}

/** Handlers by 64-bit id, looked up without making a key. */
class Registry<Handler> {
  private readonly buckets = new Map<number, Registration<Handler>[]>()

  find(hi: number, lo: number): Registration<Handler> | undefined {
    const bucket = this.buckets.get((hi ^ lo) >>> 0)
    if (bucket === undefined) return undefined
    for (const registration of bucket) {
      if (registration.id.lo === lo && registration.id.hi === hi) return registration
    }
    return undefined
  }

  add(registration: Registration<Handler>): void {
    const key = (registration.id.hi ^ registration.id.lo) >>> 0
    const bucket = this.buckets.get(key)
    if (bucket === undefined) this.buckets.set(key, [registration])
    else bucket.push(registration)
  }

  remove(registration: Registration<Handler>): void {
    const key = (registration.id.hi ^ registration.id.lo) >>> 0
    const rest = (this.buckets.get(key) ?? []).filter((other) => other !== registration)
    if (rest.length === 0) this.buckets.delete(key)
    else this.buckets.set(key, rest)
  }

  *all(): Generator<Registration<Handler>> {
    for (const bucket of this.buckets.values()) yield* bucket
  }
}

export class Session {
  /** What the connection tells: to be given to connectUnix() or the simulator's like. */
  readonly handler: PacketHandler = {
    onPacket: (packet) => this.onPacket(packet),
    // As upstream's client does: a packet with a bad header is ignored.
    onBadHeader: () => "drop",
    onClose: (reason) => this.onClose(reason),
  }

  /** Own node number, once known: the srcnode of requests. */
  pnn: number = UNKNOWN_PNN
  /** The connection ended by itself. Pending requests have failed already. */
  onClosed: (reason: string) => void = () => {}

  private connection: PacketConnection | undefined
  private readonly pending = new Map<number, Pending>()
  private nextId = ID_FIRST
  private readonly messageHandlers = new Registry<MessageHandler>()
  private readonly tunnelHandlers = new Registry<TunnelHandler>()

  constructor(private readonly scheduler: Scheduler) {}

  /** Starts on a fresh connection. What messages and tunnels were asked for is registered again. */
  attach(connection: PacketConnection): void {
    this.connection = connection
    for (const { id } of this.messageHandlers.all()) this.sendControl("REGISTER_SRVID", this.own(), { srvid: id })
    for (const { id } of this.tunnelHandlers.all()) this.sendControl("TUNNEL_REGISTER", this.own(), { srvid: id })
  }

  get isOpen(): boolean {
    return this.connection !== undefined
  }

  get pendingRequests(): number {
    return this.pending.size
  }

  /** Closes the connection; pending requests fail with "closed", in a later turn; onClosed is not called. */
  close(): void {
    const connection = this.connection
    this.connection = undefined
    connection?.close()
    const orphans = [...this.pending]
    this.scheduler.nextTurn(() => {
      for (const [reqid, entry] of orphans) {
        if (this.pending.get(reqid) === entry) this.fail(reqid, "closed", "closed by this side")
      }
    })
  }

  /**
   * Sends a control and calls `done` once, in a later turn, unless cancelled. A cancelled or timed-out request still
   * runs in the daemon; its late reply is dropped.
   * @throws ProtocolError if the request can't be encoded
   */
  request<N extends ControlName>(
    control: N,
    destnode: number,
    options: RequestOptions<N>,
    done: (reply: ControlReply) => void,
  ): Cancel {
    const { opcode, statusIsValue } = controls[control]
    const payload = controlPayload(control, options)
    const reqid = this.enter({ kind: "control", statusIsValue, done, timer: undefined }, options.timeoutMs)
    this.sendReqControl(opcode, destnode, reqid, options.flags ?? 0, options.srvid ?? ZERO64, payload, options.priority)
    return this.cancelOf(reqid)
  }

  /** Sends a control with NOREPLY. Whether it worked is never learned (wire-protocol 6.1). */
  sendControl<N extends ControlName>(control: N, destnode: number, options: ControlOptions<N>): void {
    const flags = (options.flags ?? 0) | ControlFlag.NOREPLY
    const payload = controlPayload(control, options)
    const { opcode } = controls[control]
    this.sendReqControl(opcode, destnode, this.takeId(), flags, options.srvid ?? ZERO64, payload, options.priority)
  }

  /** Sends a message. There is no reply, and no error if nobody is there (wire-protocol 3.6). */
  sendMessage(destnode: number, srvid: Word64, data: Uint8Array, priority?: Priority): void {
    if (this.connection === undefined) return
    const packet = encodePacket(
      {
        operation: Operation.REQ_MESSAGE,
        generation: 0,
        destnode,
        srcnode: this.pnn,
        reqid: 0,
        srvid,
        data,
      },
      "client",
    )
    this.connection.send(packet, priority)
  }

  /**
   * Calls `handler` for every message to `srvid` (Srvid.ALL: for every message). Registered with the daemon once however
   * many handlers there are, as each registration brings a copy (client-library 15). `registered` tells how that went;
   * whatever it says, the handler stays, and attach() registers it again.
   */
  onMessage(srvid: Word64, handler: MessageHandler, registered: (reply: ControlReply) => void = () => {}): Cancel {
    return this.listen(this.messageHandlers, "SRVID", srvid, handler, registered)
  }

  /** Calls `handler` for what comes through the tunnel. One client per node and id (client-library 21). */
  onTunnel(tunnelId: Word64, handler: TunnelHandler, registered: (reply: ControlReply) => void = () => {}): Cancel {
    return this.listen(this.tunnelHandlers, "TUNNEL", tunnelId, handler, registered)
  }

  /** Sends through a tunnel without waiting for an answer. Returns the id that the packet has. */
  sendTunnel(destnode: number, tunnelId: Word64, flags: number, data: Uint8Array, reqid = this.takeId()): number {
    this.sendReqTunnel(destnode, tunnelId, flags, data, reqid)
    return reqid
  }

  /** Sends a request through a tunnel and waits for the answer. Only daemons that carry the reqid over bring one. */
  requestTunnel(
    destnode: number,
    tunnelId: Word64,
    data: Uint8Array,
    timeoutMs: number,
    done: (reply: ControlReply) => void,
  ): Cancel {
    const reqid = this.enter({ kind: "tunnel", statusIsValue: false, done, timer: undefined }, timeoutMs)
    this.sendReqTunnel(destnode, tunnelId, TunnelFlag.REQUEST, data, reqid)
    return this.cancelOf(reqid)
  }

  /** Runs a call on a record (REQ_CALL). The daemon finds the node by the key. @throws ProtocolError for an empty key */
  call(options: CallOptions, done: (reply: CallReply) => void): Cancel {
    const { dbId, key, callid, flags = 0, data = NO_DATA, timeoutMs } = options
    const header = { generation: 0, destnode: CURRENT_NODE, srcnode: this.pnn }
    const reqid = this.takeId()
    const packet = encodePacket(
      { operation: Operation.REQ_CALL, ...header, reqid, flags, dbId, callid, hopcount: 0, key, data },
      "client",
    )
    this.enter({ kind: "call", statusIsValue: false, done, timer: undefined }, timeoutMs, reqid)
    this.connection?.send(packet)
    return this.cancelOf(reqid)
  }

  // Sending.

  private own(): number {
    return this.pnn === UNKNOWN_PNN ? CURRENT_NODE : this.pnn
  }

  private takeId(): number {
    let id = this.nextId
    while (this.pending.has(id)) id = id === ID_LAST ? 0 : id + 1
    this.nextId = id === ID_LAST ? 0 : id + 1
    return id
  }

  /** Notes a request that waits. On a dead connection it fails in the next turn. */
  private enter(entry: Pending, timeoutMs: number | undefined, reqid = this.takeId()): number {
    this.pending.set(reqid, entry)
    if (this.connection === undefined) {
      entry.timer = this.scheduler.setTimer(0, () => this.fail(reqid, "closed", "not connected"))
    } else if (timeoutMs !== undefined && timeoutMs > 0) {
      entry.timer = this.scheduler.setTimer(timeoutMs, () => this.fail(reqid, "timeout", `no reply in ${timeoutMs} ms`))
    }
    return reqid
  }

  private cancelOf(reqid: number): Cancel {
    const entry = this.pending.get(reqid)
    return {
      cancel: () => {
        // The id may be another request's by now.
        if (entry === undefined || this.pending.get(reqid) !== entry) return
        this.pending.delete(reqid)
        entry.timer?.cancel()
      },
    }
  }

  private sendReqControl(
    opcode: number,
    destnode: number,
    reqid: number,
    flags: number,
    srvid: Word64,
    data: Uint8Array,
    priority: Priority | undefined,
  ): void {
    if (this.connection === undefined) return
    const header = { generation: 0, destnode, srcnode: this.pnn, reqid }
    const packet = encodePacket(
      { operation: Operation.REQ_CONTROL, ...header, opcode, srvid, clientId: 0, flags, data },
      "client",
    )
    this.connection.send(packet, priority)
  }

  private sendReqTunnel(destnode: number, tunnelId: Word64, flags: number, data: Uint8Array, reqid: number): void {
    const header = { generation: 0, destnode, srcnode: this.pnn, reqid }
    const packet = encodePacket({ operation: Operation.REQ_TUNNEL, ...header, tunnelId, flags, data }, "client")
    this.connection?.send(packet)
  }

  private listen<Handler>(
    registry: Registry<Handler>,
    kind: "SRVID" | "TUNNEL",
    id: Word64,
    handler: Handler,
    registered: (reply: ControlReply) => void,
  ): Cancel {
    const known = registry.find(id.hi, id.lo)
    const registration = known ?? { id, handlers: [] }
    registration.handlers.push(handler)
    if (known === undefined) {
      registry.add(registration)
      const control = kind === "SRVID" ? "REGISTER_SRVID" : "TUNNEL_REGISTER"
      this.request(control, this.own(), { srvid: id }, registered)
    } else this.scheduler.nextTurn(() => registered({ ok: true, status: 0, data: NO_DATA }))
    let active = true
    return {
      cancel: () => {
        if (!active) return
        active = false
        registration.handlers.splice(registration.handlers.indexOf(handler), 1)
        if (registration.handlers.length > 0) return
        registry.remove(registration)
        this.sendControl(kind === "SRVID" ? "DEREGISTER_SRVID" : "TUNNEL_DEREGISTER", this.own(), { srvid: id })
      },
    }
  }

  // Receiving.

  private onPacket(packet: Uint8Array): void {
    switch (readU32(packet, 16)) {
      case Operation.REQ_MESSAGE:
        this.onReqMessage(packet)
        break
      case Operation.REPLY_CONTROL:
      case Operation.REPLY_CALL:
      case Operation.REPLY_ERROR:
        this.onReply(packet)
        break
      case Operation.REQ_TUNNEL:
        this.onReqTunnel(packet)
        break
      default:
      // Nothing that a daemon sends to a client: ignored (wire-protocol 2.4).
    }
  }

  private onReqMessage(packet: Uint8Array): void {
    if (packet.length < 44) return
    const lo = readU32(packet, 32)
    const hi = readU32(packet, 36)
    const end = 44 + readU32(packet, 40)
    if (end > packet.length) return
    const data = packet.subarray(44, end)
    this.deliver(this.messageHandlers.find(hi, lo), data, hi, lo)
    if (lo !== 0xffffffff || hi !== 0xffffffff) {
      this.deliver(this.messageHandlers.find(Srvid.ALL.hi, Srvid.ALL.lo), data, hi, lo)
    }
  }

  private deliver(
    registration: Registration<MessageHandler> | undefined,
    data: Uint8Array,
    hi: number,
    lo: number,
  ): void {
    if (registration === undefined) return
    const { handlers, id } = registration
    const srvid = id.hi === hi && id.lo === lo ? id : { hi, lo }
    // A handler may remove itself or another; those added meanwhile wait for the next message.
    if (handlers.length === 1) handlers[0]!(data, srvid)
    else for (const handler of [...handlers]) if (handlers.includes(handler)) handler(data, srvid)
  }

  private onReply(bytes: Uint8Array): void {
    const reqid = readU32(bytes, 28)
    const entry = this.pending.get(reqid)
    if (entry === undefined) return
    const isCall = readU32(bytes, 16) !== Operation.REPLY_CONTROL
    if (isCall !== (entry.kind === "call") || entry.kind === "tunnel") return
    this.pending.delete(reqid)
    entry.timer?.cancel()
    entry.done(readReply(bytes, entry.statusIsValue))
  }

  private onReqTunnel(bytes: Uint8Array): void {
    if (bytes.length < 48) return
    const flags = readU32(bytes, 40)
    const end = 48 + readU32(bytes, 44)
    if (end > bytes.length) return
    const data = bytes.subarray(48, end)
    const reqid = readU32(bytes, 28)
    if ((flags & TunnelFlag.REPLY) !== 0) {
      const entry = this.pending.get(reqid)
      if (entry?.kind !== "tunnel") return
      this.pending.delete(reqid)
      entry.timer?.cancel()
      entry.done({ ok: true, status: 0, data: data.slice() })
    } else if ((flags & TunnelFlag.REQUEST) !== 0) {
      const handlers = this.tunnelHandlers.find(readU32(bytes, 36), readU32(bytes, 32))?.handlers ?? []
      for (const handler of [...handlers]) handler({ srcnode: readU32(bytes, 24), reqid, flags, data })
    }
  }

  private onClose(reason: string): void {
    if (this.connection === undefined) return
    this.connection = undefined
    this.failAll(reason)
    this.onClosed(reason)
  }

  private fail(reqid: number, reason: Failure["reason"], error: string): void {
    const entry = this.pending.get(reqid)
    if (entry === undefined) return
    this.pending.delete(reqid)
    entry.timer?.cancel()
    entry.done({ ok: false, reason, status: -1, error })
  }

  private failAll(reason: string): void {
    for (const reqid of [...this.pending.keys()]) this.fail(reqid, "closed", reason)
  }
}

function controlPayload<N extends ControlName>(control: N, options: ControlOptions<N>): Uint8Array {
  if (options.payload !== undefined) return options.payload
  if (options.request === undefined) return NO_DATA
  // The table gives the codec of exactly this name's request; TypeScript can't follow the index that far.
  return encode(controls[control].request as Parameters<typeof encode<RequestOf<N>>>[0], options.request)
}

/** A reply to a control or a call. One that does not decode is a failure of its request (wire-protocol 2.4). */
function readReply(bytes: Uint8Array, statusIsValue: boolean): ControlReply {
  try {
    const packet = decodePacket(bytes)
    if (packet.operation === Operation.REPLY_ERROR) {
      return { ok: false, reason: "status", status: packet.status, error: packet.message }
    }
    const reply = packet as ReplyControl | ReplyCall
    const good = statusIsValue ? reply.status >= 0 : reply.status === 0
    if (good) return { ok: true, status: reply.status, data: reply.data.length === 0 ? NO_DATA : reply.data.slice() }
    return { ok: false, reason: "status", status: reply.status, error: "error" in reply ? reply.error : "" }
  } catch (cause) {
    if (!(cause instanceof ProtocolError)) throw cause
    return { ok: false, reason: "protocol", status: -1, error: cause.message, cause }
  }
}
