// A packet connection over one of Bun's stream sockets, Unix or TCP: packets in by turns (turns.ts), packets out in one
// coalesced write a loop turn, urgent ones first. How a socket comes to be is unix.ts's and tcp.ts's affair; what the
// packets mean is nobody's here.

import type { Socket, SocketHandler, TCPSocketConnectOptions } from "bun"
import { dropBuffer } from "../sys/memory.ts"
import { receive } from "../sys/socket.ts"
import { type PacketConnection, type PacketHandler, Priority } from "./ports.ts"
import { Found, PacketReader, type ReaderLimits } from "./reader.ts"
import { arrived, PACKET_COST, type UrgentTaker, unwatchUrgent, wantFlush, wantTurn, watchUrgent } from "./turns.ts"

/** Bun's sockets have their descriptor as a property that its types leave out. */
export type StreamSocket = Socket<SocketConnection> & { readonly fd: number }

export interface ConnectionOptions extends ReaderLimits {
  /** The class whose turns it reads in. */
  readonly readPriority: Priority
  /** The peer must not send: any byte from it ends the connection (an outgoing link, wire-protocol 10.1). */
  readonly writeOnly: boolean
  /** Above this many queued bytes the connection counts as full, and onDrain comes when it is empty again. */
  readonly highWaterBytes: number
  /** At this many queued bytes the peer is taken for dead: the connection ends with a reason that says so. */
  readonly maxQueuedBytes: number
}

/** Received bytes that may wait for their turn before the socket is told to stop (bytes). */
const READ_BACKLOG = 256 * 1024
/** The most that one write call is given (bytes); larger packets are written from where they are. */
const WRITE_SIZE = 128 * 1024
/** The most that one connection writes in one turn (bytes), so that a fast reader can't hold the loop. */
const WRITE_TURN = 4 * 1024 * 1024

/** Where packets are put together for a write. The kernel has copied them when write() returns, so all share it. */
const scratch = new Uint8Array(WRITE_SIZE)
/** Where an urgent connection's input is fetched to; it keeps a copy of what came. */
const fetched = new Uint8Array(64 * 1024)

/** A queue that gives up its front in constant time. */
class PacketQueue {
  private readonly packets: (Uint8Array | undefined)[] = []
  private head = 0
  push(packet: Uint8Array): void {
    this.packets.push(packet)
  }
  first(): Uint8Array | undefined {
    return this.packets[this.head]
  }
  drop(): void {
    this.packets[this.head++] = undefined
    if (this.head === this.packets.length) {
      this.packets.length = 0
      this.head = 0
    } else if (this.head >= 1024 && this.head * 2 > this.packets.length) {
      this.packets.splice(0, this.head)
      this.head = 0
    }
  }
}

export class SocketConnection implements PacketConnection, UrgentTaker {
  queuedBytes = 0
  queuedPackets = 0

  private priority: Priority
  private readonly reader: PacketReader
  private handler: PacketHandler | undefined
  private socket: StreamSocket | undefined
  private closed = false
  /** Why it ended, until onClose has been told. */
  private ended: string | undefined
  /** Nothing of what is left to read can be believed. */
  private broken = false
  private waitsForTurn = false
  private waitsForFlush = false
  /** The kernel took less than it was given: drain says when to go on. */
  private blocked = false
  private wasFull = false
  private pausedByOwner = false
  private socketPaused = false

  private readonly queues: [PacketQueue | undefined, PacketQueue | undefined, PacketQueue | undefined] = [
    undefined,
    undefined,
    undefined,
  ]
  /** Bytes that a write left over, which nothing may overtake any more; from `startedAt`, ending `startedPackets`. */
  private started: Uint8Array | undefined
  private startedAt = 0
  private startedPackets = 0

  constructor(private readonly options: ConnectionOptions) {
    this.reader = new PacketReader(options)
    this.priority = options.readPriority
  }

  // The port.

  send(packet: Uint8Array, priority: Priority = Priority.BULK): void {
    if (this.closed || this.ended !== undefined) return
    let queue = this.queues[priority]
    if (queue === undefined) {
      queue = new PacketQueue()
      this.queues[priority] = queue
    }
    queue.push(packet)
    this.queuedPackets++
    this.queuedBytes += packet.length
    if (this.queuedBytes > this.options.highWaterBytes) this.wasFull = true
    if (!this.waitsForFlush && (!this.blocked || this.queuedBytes > this.options.maxQueuedBytes)) {
      this.waitsForFlush = true
      wantFlush(this)
    }
  }

  pause(): void {
    this.pausedByOwner = true
    this.pauseSocket()
  }

  resume(): void {
    if (!this.pausedByOwner) return
    this.pausedByOwner = false
    this.askForTurn()
  }

  close(): void {
    if (this.closed) return
    this.closed = true
    this.dropQueues()
    this.closeSocket()
  }

  get readPriority(): Priority {
    return this.priority
  }

  set readPriority(priority: Priority) {
    this.priority = priority
    this.watch()
  }

  /** Writes what the kernel takes of the queue now, for a program that is about to end. */
  flushNow(): void {
    if (!this.closed && this.ended === undefined && !this.blocked) this.writeQueue()
  }

  /** Received bytes that wait for their turn, or for the rest of their packet. */
  get waitingBytes(): number {
    return this.reader.bufferedBytes
  }

  get isClosed(): boolean {
    return this.closed
  }

  // Its owner's side: unix.ts and tcp.ts.

  /** Gives it the socket. Until setHandler() what arrives waits. */
  open(socket: StreamSocket): void {
    this.socket = socket
    this.watch()
    if (this.pausedByOwner) this.pauseSocket()
    if (this.queuedBytes > 0 && !this.waitsForFlush) {
      this.waitsForFlush = true
      wantFlush(this)
    }
  }

  setHandler(handler: PacketHandler): void {
    this.handler = handler
    if (this.reader.bufferedBytes > 0 || this.ended !== undefined) this.askForTurn()
  }

  // What the socket reports.

  received(chunk: Uint8Array): void {
    if (this.closed || this.ended !== undefined) return
    if (this.options.writeOnly) {
      this.end("data on a connection that is only written to")
      return
    }
    this.reader.push(chunk)
    if (this.reader.unreadBytes > READ_BACKLOG) this.pauseSocket()
    if (this.waitsForTurn || this.handler === undefined || this.pausedByOwner) return
    this.waitsForTurn = true
    arrived(this)
  }

  /** Reads ahead of the loop, in the middle of a long turn. An end or an error is left for the loop to find. */
  fetch(): void {
    if (this.socket === undefined || this.socketPaused || this.handler === undefined) return
    const length = receive(this.socket.fd, fetched)
    if (length <= 0) return
    this.reader.push(fetched.slice(0, length))
    this.askForTurn()
  }

  writable(): void {
    this.blocked = false
    this.flush()
  }

  /** The connection is over; onClose comes after the packets that arrived before. */
  end(reason: string): void {
    if (this.closed || this.ended !== undefined) return
    this.ended = reason
    this.dropQueues()
    this.closeSocket()
    this.askForTurn()
  }

  // Turns.

  private askForTurn(): void {
    if (this.waitsForTurn || this.handler === undefined || this.pausedByOwner) return
    this.waitsForTurn = true
    wantTurn(this)
  }

  takeTurn(quantum: number): number {
    const { reader, handler } = this
    let used = 0
    if (handler === undefined) return 0
    while (!this.closed && !this.pausedByOwner) {
      if (this.broken) {
        this.tellEnd(handler)
        break
      }
      const found = reader.next()
      if (found === Found.PACKET) {
        used += reader.packet.length + PACKET_COST
        handler.onPacket(reader.packet)
        if (used >= quantum) return used
      } else if (found === Found.NEED_MORE) {
        this.waitsForTurn = false
        if (this.ended !== undefined) this.tellEnd(handler)
        else if (this.socketPaused) this.resumeSocket()
        return 0
      } else {
        used += PACKET_COST
        this.badHeader(handler)
        if (used >= quantum) return used
      }
    }
    this.waitsForTurn = false
    return 0
  }

  private badHeader(handler: PacketHandler): void {
    const { reason, canSkip } = this.reader
    let wish: "drop" | "close" = "close"
    try {
      wish = handler.onBadHeader(reason)
    } finally {
      // An owner that throws has not decided to drop: it would be asked about the same header for ever.
      if (wish === "drop" && canSkip) this.reader.skip()
      else {
        this.broken = true
        this.ended ??= reason
      }
    }
  }

  private tellEnd(handler: PacketHandler): void {
    this.closed = true
    this.dropQueues()
    this.closeSocket()
    handler.onClose(this.ended!)
  }

  flush(): void {
    this.waitsForFlush = false
    if (this.closed || this.ended !== undefined || this.socket === undefined) return
    if (this.queuedBytes > this.options.maxQueuedBytes) {
      this.end(`peer does not read: ${this.queuedBytes} bytes queued`)
      return
    }
    if (!this.blocked) this.writeQueue()
    if (this.wasFull && this.queuedBytes === 0) {
      this.wasFull = false
      this.handler?.onDrain?.()
    }
  }

  private writeQueue(): void {
    let room = WRITE_TURN
    while (this.queuedBytes > 0) {
      if (room <= 0) {
        if (!this.waitsForFlush) {
          this.waitsForFlush = true
          wantFlush(this)
        }
        return
      }
      const written = this.started === undefined ? this.writeBatch() : this.writeStarted()
      if (written < 0) return
      room -= written
      if (this.blocked) return
    }
  }

  /** Writes packets, urgent ones first, as many as go into one call. Returns the bytes written, negative for none ever. */
  private writeBatch(): number {
    let filled = 0
    let count = 0
    for (const queue of this.queues) {
      if (queue === undefined) continue
      for (let packet = queue.first(); packet !== undefined; packet = queue.first()) {
        if (filled + packet.length > WRITE_SIZE) {
          if (filled > 0) return this.write(scratch, filled, count)
          queue.drop()
          return this.write(packet, packet.length, 1)
        }
        scratch.set(packet, filled)
        filled += packet.length
        count++
        queue.drop()
        dropBuffer(packet)
      }
    }
    return this.write(scratch, filled, count)
  }

  private write(bytes: Uint8Array, length: number, packets: number): number {
    const written = this.socket!.write(bytes, 0, length)
    if (written < 0) {
      this.end("write failed")
      return -1
    }
    this.queuedBytes -= written
    if (written === length) {
      this.queuedPackets -= packets
      if (bytes !== scratch) dropBuffer(bytes)
      return written
    }
    this.blocked = true
    this.started = bytes === scratch ? bytes.slice(written, length) : bytes
    this.startedAt = bytes === scratch ? 0 : written
    this.startedPackets = packets
    return written
  }

  private writeStarted(): number {
    const started = this.started!
    const length = started.length - this.startedAt
    const written = this.socket!.write(started, this.startedAt, length)
    if (written < 0) {
      this.end("write failed")
      return -1
    }
    this.queuedBytes -= written
    this.startedAt += written
    if (written < length) this.blocked = true
    else {
      this.queuedPackets -= this.startedPackets
      this.started = undefined
      dropBuffer(started)
    }
    return written
  }

  private dropQueues(): void {
    this.queues.fill(undefined)
    this.started = undefined
    this.queuedBytes = 0
    this.queuedPackets = 0
  }

  private pauseSocket(): void {
    if (this.socketPaused || this.socket === undefined) return
    this.socketPaused = true
    this.socket.pause()
  }

  private resumeSocket(): void {
    this.socketPaused = false
    this.socket?.resume()
  }

  private watch(): void {
    if (this.priority === Priority.LIVENESS && !this.options.writeOnly && this.socket !== undefined) watchUrgent(this)
    else unwatchUrgent(this)
  }

  private closeSocket(): void {
    const { socket } = this
    unwatchUrgent(this)
    this.socket = undefined
    socket?.close()
  }
}

/** One set of callbacks for every socket; `data` of a socket is its connection. */
export const socketCallbacks = {
  // Bun's option types only know handlers of Buffers; the plain array is one, less a prototype.
  binaryType: "uint8array" as "buffer",
  data(socket, chunk) {
    socket.data?.received(chunk)
  },
  drain(socket) {
    socket.data?.writable()
  },
  end(socket) {
    socket.data?.end("end of file")
  },
  close(socket, error) {
    socket.data?.end(errorReason(error) ?? "connection closed")
  },
  error(socket, error) {
    socket.data?.end(errorReason(error) ?? "error")
  },
} satisfies SocketHandler<SocketConnection>

/** Hands a socket made by lib/sys to Bun's loop. `open` is called before this returns, connected or not. */
export function adopt(
  fd: number,
  connection: SocketConnection,
  handlers: Partial<SocketHandler<SocketConnection>>,
): void {
  const options = {
    fd,
    data: connection,
    socket: {
      ...socketCallbacks,
      open(socket: Socket<SocketConnection>) {
        connection.open(socket as StreamSocket)
      },
      // Without it a descriptor that Bun can't use would be an unhandled rejection.
      connectError(_socket: Socket<SocketConnection>, error: Error) {
        connection.end(errorReason(error) ?? "connect failed")
      },
      ...handlers,
    },
  }
  // connect() takes a descriptor, and has an option type for it, but no overload with it.
  void Bun.connect(options as unknown as TCPSocketConnectOptions<SocketConnection>)
}

/** The errno name of a socket error, for logs. */
export function errorReason(error: unknown): string | undefined {
  if (!(error instanceof Error)) return undefined
  return "code" in error && typeof error.code === "string" ? error.code : error.message
}
