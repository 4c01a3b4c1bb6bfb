// The promise level of a conversation with a daemon, for the tool, the load generators and tests: connect and say hello,
// typed controls to one node or many, messages, tunnels, waiting for a recovery to end, connecting again. What goes over
// the wire is session.ts's affair; databases are not here.

import type { SocketConnection } from "../net/connection.ts"
import type { Priority } from "../net/ports.ts"
import { realScheduler } from "../net/scheduler.ts"
import { connectUnix } from "../net/unix.ts"
import { type Codec, decode, ProtocolError } from "../protocol/codec.ts"
import { CURRENT_NODE, INVALID_GENERATION, RecoveryMode, TunnelFlag, UNKNOWN_PNN } from "../protocol/constants.ts"
import { type ControlName, controls, type ReplyOf, type RequestOf } from "../protocol/controls.ts"
import type { VnnMap } from "../protocol/structs.ts"
import type { Word64 } from "../protocol/word64.ts"
import { SysError } from "../sys/errno.ts"
import {
  type CallOptions,
  type Cancel,
  type ControlReply,
  type Failure,
  type MessageHandler,
  Session,
  type TunnelHandler,
} from "./session.ts"

/** Between two tries while the daemon's backlog is full, or while reconnect() finds no daemon (ms). */
const CONNECT_PAUSE_MS = 20
/** Between two looks at the generation or the recovery mode (ms). */
const POLL_MS = 100

export interface Waiting {
  /** 0 or left out: no limit. */
  readonly timeoutMs?: number | undefined
  /** Gives up with the signal's reason. */
  readonly signal?: AbortSignal | undefined
}

export interface ConnectOptions extends Waiting {
  /** Path of the daemon's socket. */
  readonly socket: string
}

export interface ControlSettings extends Waiting {
  readonly srvid?: Word64 | undefined
  readonly flags?: number | undefined
  readonly priority?: Priority | undefined
  /** The request in bytes instead of a value. */
  readonly payload?: Uint8Array | undefined
}

/** What one node made of a control that went to several. */
export type Result<Reply> =
  | { readonly ok: true; readonly reply: Reply }
  | { readonly ok: false; readonly error: ControlError }

/** A control that failed: which, where, why. */
export class ControlError extends Error {
  override readonly name = "ControlError"
  constructor(
    /** The control's name, or what else was asked ("REQ_CALL"). */
    readonly control: string,
    readonly destnode: number,
    readonly reason: Failure["reason"],
    /** The reply's status, -1 if none came. */
    readonly status: number,
    /** The daemon's or decoder's own words; may be empty. */
    readonly text: string,
    cause?: unknown,
  ) {
    const why = reason === "status" ? `status ${status}${text === "" ? "" : ` (${text})`}` : `${reason}: ${text}`
    super(
      `control ${control} to ${destnode === CURRENT_NODE ? "the current node" : `node ${destnode}`}: ${why}`,
      cause === undefined ? {} : { cause },
    )
  }
}

export class Client {
  /** The callback level, for what is not here. */
  readonly session = new Session(realScheduler)
  /** The connection ended by itself (not by close()). The next reconnect() may follow. */
  onClosed: (reason: string) => void = () => {}
  private connection: SocketConnection | undefined
  /** @internal called before this side closes, for last messages */
  readonly closing = new Set<() => void>()
  /** @internal called when the connection ends by itself */
  readonly closedWaiters = new Set<(reason: string) => void>()

  private constructor(readonly socket: string) {
    this.session.onClosed = (reason) => {
      this.connection = undefined
      for (const waiter of [...this.closedWaiters]) waiter(reason)
      this.onClosed(reason)
    }
  }

  /**
   * Connects and asks the daemon for its node number (client-library 3).
   * @throws SysError ENOENT, ECONNREFUSED, EACCES, ENAMETOOLONG ...; ControlError if the daemon does not answer in time
   */
  static async connect(options: ConnectOptions): Promise<Client> {
    const client = new Client(options.socket)
    await client.open(options, (error) => error.code === "EAGAIN")
    return client
  }

  /** The number of the node that it talks to. */
  get pnn(): number {
    return this.session.pnn
  }

  get isOpen(): boolean {
    return this.session.isOpen
  }

  /**
   * Connects again after the connection was lost, trying until a daemon answers or the time is over. Messages and tunnels
   * are registered again; everything else that the old connection had (requests, attached databases' locks) is gone.
   */
  async reconnect(options: Waiting = {}): Promise<void> {
    this.session.close()
    this.connection?.close()
    this.connection = undefined
    const patient = ["EAGAIN", "ENOENT", "ECONNREFUSED"]
    await this.open(options, (error) => patient.includes(error.code))
  }

  private async open(options: Waiting, mayTryAgain: (error: SysError) => boolean): Promise<void> {
    const { timeoutMs = 0, signal } = options
    const deadline = timeoutMs > 0 ? performance.now() + timeoutMs : Number.POSITIVE_INFINITY
    signal?.throwIfAborted()
    for (;;) {
      try {
        this.session.pnn = UNKNOWN_PNN
        this.connection = connectUnix(this.socket, this.session.handler)
        this.session.attach(this.connection)
        const left = Number.isFinite(deadline) ? Math.max(1, deadline - performance.now()) : 0
        this.session.pnn = await this.controlStatus("GET_PNN", CURRENT_NODE, undefined, { timeoutMs: left, signal })
        return
      } catch (error) {
        const again =
          (error instanceof SysError && mayTryAgain(error)) ||
          // A daemon that is going away took the connection and dropped it.
          (error instanceof ControlError && error.reason === "closed" && mayTryAgain(REFUSED))
        if (!again || performance.now() + CONNECT_PAUSE_MS > deadline) {
          this.session.close()
          this.connection = undefined
          throw error
        }
        await pause(CONNECT_PAUSE_MS, signal)
      }
    }
  }

  /** Sends what is queued, then closes. Requests that wait fail with "closed". */
  async close(): Promise<void> {
    for (const last of this.closing) last()
    const connection = this.connection
    if (connection !== undefined && !connection.isClosed) {
      connection.flushNow()
      // A daemon that does not read is not waited for for ever.
      for (let turns = 0; connection.queuedBytes > 0 && turns < 100; turns++) await pause(10, undefined)
    }
    this.session.close()
    this.connection = undefined
  }

  /** Resolves with the reason when the connection ends by itself (a daemon shuts down so: SHUTDOWN is never answered). */
  waitForClose(options: Waiting = {}): Promise<string> {
    if (!this.isOpen) return Promise.resolve("not connected")
    return waiting<string>(options, "the connection's end", (resolve) => {
      this.closedWaiters.add(resolve)
      return { cancel: () => this.closedWaiters.delete(resolve) }
    })
  }

  /**
   * Sends a control and returns the decoded reply payload (undefined where the table says none).
   * @throws ControlError, or the signal's reason
   */
  async control<N extends ControlName>(
    name: N,
    destnode: number,
    request?: RequestOf<N>,
    settings: ControlSettings = {},
  ): Promise<ReplyOf<N>> {
    const reply = await this.ask(name, destnode, request, settings)
    if (!reply.ok) throw failed(name, destnode, reply)
    try {
      return decode(controls[name].reply as Codec<ReplyOf<N>>, reply.data)
    } catch (cause) {
      if (!(cause instanceof ProtocolError)) throw cause
      throw new ControlError(name, destnode, "protocol", reply.status, cause.message, cause)
    }
  }

  /**
   * The status of the reply, whatever it is: for controls whose status is the result, and to look at a failure's number.
   * @throws ControlError if no reply came, or the signal's reason
   */
  async controlStatus<N extends ControlName>(
    name: N,
    destnode: number,
    request?: RequestOf<N>,
    settings: ControlSettings = {},
  ): Promise<number> {
    const reply = await this.ask(name, destnode, request, settings)
    if (!reply.ok && reply.reason !== "status") throw failed(name, destnode, reply)
    return reply.status
  }

  /** The same control to several nodes at once. Waits for all; a node's failure is its entry's. */
  async controlAll<N extends ControlName>(
    name: N,
    nodes: readonly number[],
    request?: RequestOf<N>,
    settings: ControlSettings = {},
  ): Promise<Map<number, Result<ReplyOf<N>>>> {
    const one = async (node: number): Promise<[number, Result<ReplyOf<N>>]> => {
      try {
        return [node, { ok: true, reply: await this.control(name, node, request, settings) }]
      } catch (error) {
        if (error instanceof ControlError) return [node, { ok: false, error }]
        throw error
      }
    }
    return new Map(await Promise.all(nodes.map(one)))
  }

  /** Sends a control without asking for a reply. destnode may be a broadcast. */
  sendControl<N extends ControlName>(
    name: N,
    destnode: number,
    request?: RequestOf<N>,
    settings: Omit<ControlSettings, "timeoutMs" | "signal"> = {},
  ): void {
    this.session.sendControl(name, destnode, { ...settings, request })
  }

  private ask<N extends ControlName>(
    name: N,
    destnode: number,
    request: RequestOf<N> | undefined,
    { timeoutMs, signal, ...rest }: ControlSettings,
  ): Promise<ControlReply> {
    return cancellable(signal, (resolve) =>
      this.session.request(name, destnode, { ...rest, request, timeoutMs }, resolve),
    )
  }

  /** Runs a call on a record and returns the reply's data. Without a time limit it may never come back. */
  async call(options: CallOptions & Waiting): Promise<Uint8Array> {
    const reply = await cancellable<ControlReply>(options.signal, (resolve) => this.session.call(options, resolve))
    if (!reply.ok) throw failed("REQ_CALL", CURRENT_NODE, reply)
    return reply.data
  }

  sendMessage(destnode: number, srvid: Word64, data: Uint8Array): void {
    this.session.sendMessage(destnode, srvid, data)
  }

  /** Calls `handler` for every message to `srvid`, from when this resolves at the latest. `data` is valid in the call. */
  onMessage(srvid: Word64, handler: MessageHandler, settings: Waiting = {}): Promise<Cancel> {
    return this.registered("REGISTER_SRVID", settings, (done) => this.session.onMessage(srvid, handler, done))
  }

  /** Calls `handler` for every packet from the tunnel. @throws ControlError if another client of the node has it */
  onTunnel(tunnelId: Word64, handler: TunnelHandler, settings: Waiting = {}): Promise<Cancel> {
    return this.registered("TUNNEL_REGISTER", settings, (done) => this.session.onTunnel(tunnelId, handler, done))
  }

  /** Sends through a tunnel that this client has registered. `destnode` must be a real node (wire-protocol 3.10). */
  sendTunnel(destnode: number, tunnelId: Word64, data: Uint8Array): void {
    this.session.sendTunnel(destnode, tunnelId, TunnelFlag.REQUEST | TunnelFlag.NOREPLY, data)
  }

  private registered(
    what: ControlName,
    settings: Waiting,
    register: (done: (reply: ControlReply) => void) => Cancel,
  ): Promise<Cancel> {
    let registration: Cancel | undefined
    const confirmed = waiting<ControlReply>(settings, what, (resolve) => {
      registration = register(resolve)
      return { cancel: () => {} }
    })
    return confirmed.then(
      (reply) => {
        if (reply.ok) return registration!
        registration!.cancel()
        throw failed(what, this.pnn, reply)
      },
      (error: unknown) => {
        registration?.cancel()
        throw error
      },
    )
  }

  /**
   * The payload (a copy) of the next message to `srvid` that `accept` likes.
   * @throws ControlError "timeout", or the signal's reason
   */
  async waitForMessage(
    srvid: Word64,
    settings: Waiting & { readonly accept?: (data: Uint8Array) => boolean } = {},
  ): Promise<Uint8Array> {
    const accept = settings.accept ?? (() => true)
    return await waiting<Uint8Array>(settings, "message", (resolve, reject) =>
      this.session.onMessage(
        srvid,
        (data) => {
          if (accept(data)) resolve(data.slice())
        },
        (reply) => {
          if (!reply.ok) reject(failed("REGISTER_SRVID", this.pnn, reply))
        },
      ),
    )
  }

  /**
   * Waits until the node has a valid generation that is not `previous` (an earlier one, to wait for the next recovery).
   * @throws ControlError "timeout", or the signal's reason
   */
  async waitForGeneration(
    settings: Waiting & { readonly previous?: number; readonly node?: number } = {},
  ): Promise<VnnMap> {
    const node = settings.node ?? this.pnn
    return await this.poll(settings, "valid generation", async (limits) => {
      const map = await this.control("GETVNNMAP", node, undefined, limits)
      const found = map.generation !== INVALID_GENERATION && map.generation !== settings.previous
      return found ? map : undefined
    })
  }

  /** Waits until the node's recovery mode is NORMAL (client-library 7). @throws ControlError "timeout", or the signal's reason */
  async waitForRecovery(settings: Waiting & { readonly node?: number } = {}): Promise<void> {
    const node = settings.node ?? this.pnn
    await this.poll(settings, "end of recovery", async (limits) => {
      const mode = await this.controlStatus("GET_RECMODE", node, undefined, limits)
      return mode === RecoveryMode.NORMAL ? true : undefined
    })
  }

  private async poll<T>(
    settings: Waiting,
    what: string,
    look: (limits: Waiting) => Promise<T | undefined>,
  ): Promise<T> {
    const { timeoutMs = 0, signal } = settings
    const deadline = timeoutMs > 0 ? performance.now() + timeoutMs : Number.POSITIVE_INFINITY
    for (;;) {
      signal?.throwIfAborted()
      const left = Number.isFinite(deadline) ? Math.max(1, deadline - performance.now()) : 0
      const found = await look({ timeoutMs: left, signal })
      if (found !== undefined) return found
      if (performance.now() + POLL_MS > deadline) {
        throw new ControlError(what, this.pnn, "timeout", -1, `not in ${timeoutMs} ms`)
      }
      await pause(POLL_MS, signal)
    }
  }
}

const REFUSED = new SysError("connect", 111)

function failed(control: string, destnode: number, failure: Failure): ControlError {
  return new ControlError(control, destnode, failure.reason, failure.status, failure.error, failure.cause)
}

/** A promise for what `start` resolves; an aborted signal cancels it and rejects with the signal's reason. */
export function cancellable<T>(
  signal: AbortSignal | undefined,
  start: (resolve: (value: T) => void, reject: (error: unknown) => void) => Cancel,
): Promise<T> {
  return new Promise<T>((resolve, reject) => {
    signal?.throwIfAborted()
    const onAbort = (): void => {
      running.cancel()
      reject(signal!.reason)
    }
    const settled = (): void => signal?.removeEventListener("abort", onAbort)
    const running = start(
      (value) => {
        settled()
        resolve(value)
      },
      (error) => {
        settled()
        reject(error)
      },
    )
    signal?.addEventListener("abort", onAbort, { once: true })
  })
}

/** cancellable() with a time limit; what was started is cancelled in the end, however it ends. */
async function waiting<T>(
  { timeoutMs = 0, signal }: Waiting,
  what: string,
  start: (resolve: (value: T) => void, reject: (error: unknown) => void) => Cancel,
): Promise<T> {
  let timer: ReturnType<typeof setTimeout> | undefined
  let running: Cancel | undefined
  try {
    return await cancellable<T>(signal, (resolve, reject) => {
      running = start(resolve, reject)
      if (timeoutMs > 0) {
        const late = () => reject(new ControlError(what, CURRENT_NODE, "timeout", -1, `not in ${timeoutMs} ms`))
        timer = setTimeout(late, timeoutMs)
      }
      return running
    })
  } finally {
    clearTimeout(timer)
    running?.cancel()
  }
}

function pause(ms: number, signal: AbortSignal | undefined): Promise<void> {
  return cancellable<void>(signal, (resolve) => realScheduler.setTimer(ms, () => resolve()))
}
