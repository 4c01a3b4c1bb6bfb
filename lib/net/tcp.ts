// Packet connections over TCP, as links between nodes need them: listening on a node's own address, and connecting from
// it with a time limit. Which peer may connect and when to try again is the daemon's decision.

import { errnoName, SysError } from "../sys/errno.ts"
import { isConnected, setBacklog, setKeepAlive, setNoDelay, socketError, startTcpConnect } from "../sys/socket.ts"
import {
  adopt,
  type ConnectionOptions,
  errorReason,
  SocketConnection,
  type StreamSocket,
  socketCallbacks,
} from "./connection.ts"
import { type PacketHandler, Priority } from "./ports.ts"
import type { Listener } from "./unix.ts"

/** Limits of a connection between nodes, unless the caller says otherwise. */
export const NODE_CONNECTION: ConnectionOptions = {
  maxPacketSize: 1024 * 1024 * 1024,
  alignment: 8,
  readPriority: Priority.LIVENESS,
  writeOnly: false,
  highWaterBytes: 16 * 1024 * 1024,
  maxQueuedBytes: 1024 * 1024 * 1024,
}

export interface TcpListenOptions {
  /** The node's own address, numeric. */
  readonly address: string
  readonly port: number
  /** Connections that may wait to be accepted (wire-protocol 10.1: 10). */
  readonly backlog?: number
  readonly connection?: Partial<ConnectionOptions>
  /** A peer connected. Undefined refuses it: it is closed at once, with nothing sent. */
  onAccept(connection: SocketConnection, remoteAddress: string, remotePort: number): PacketHandler | undefined
}

export interface TcpConnectOptions {
  /** The address that the peer is to see; undefined leaves it to the kernel. */
  readonly localAddress?: string
  readonly remoteAddress: string
  readonly port: number
  readonly timeoutMs: number
  readonly connection?: Partial<ConnectionOptions>
  /** Established. Never called from within connectTcp(). */
  onConnected(connection: SocketConnection): PacketHandler
  /** An errno name or a text. Called once, never after onConnected or cancel(), never from within connectTcp(). */
  onFailed(reason: string): void
}

/** Listens with SO_REUSEADDR. @throws Bun's error with `code` EADDRINUSE, EADDRNOTAVAIL ... */
export function listenTcp(options: TcpListenOptions): Listener & { readonly port: number } {
  const connectionOptions = { ...NODE_CONNECTION, ...options.connection }
  const listener = Bun.listen<SocketConnection>({
    hostname: options.address,
    port: options.port,
    socket: {
      ...socketCallbacks,
      open(opened) {
        const socket = opened as StreamSocket
        const connection = new SocketConnection(connectionOptions)
        socket.data = connection
        connection.open(socket)
        setKeepAlive(socket.fd)
        setNoDelay(socket.fd)
        // An IPv4 peer on an IPv6 listener counts as IPv4 (cluster-and-recovery 3.3).
        const handler = options.onAccept(connection, socket.remoteAddress.replace(/^::ffff:/, ""), socket.remotePort)
        if (handler === undefined) connection.close()
        else connection.setHandler(handler)
      },
    },
  })
  setBacklog((listener as unknown as { readonly fd: number }).fd, options.backlog ?? 10)
  return { port: listener.port, close: () => listener.stop(false) }
}

/** Starts to connect, bound to `localAddress` and any port. */
export function connectTcp(options: TcpConnectOptions): { cancel(): void } {
  const connection = new SocketConnection({ ...NODE_CONNECTION, ...options.connection })
  let state: "connecting" | "established" | "over" = "connecting"
  const timer = setTimeout(() => fail("timed out"), options.timeoutMs)

  function fail(reason: string): void {
    if (state !== "connecting") return
    state = "over"
    clearTimeout(timer)
    connection.close()
    options.onFailed(reason)
  }

  function established(fd: number): void {
    if (state !== "connecting") return
    const errno = socketError(fd)
    if (errno !== 0) fail(errnoName(errno))
    if (state !== "connecting") return
    if (!isConnected(fd)) return
    state = "established"
    clearTimeout(timer)
    setKeepAlive(fd)
    setNoDelay(fd)
    connection.setHandler(options.onConnected(connection))
  }

  let fd: number
  try {
    fd = startTcpConnect(options.localAddress, options.remoteAddress, options.port)
  } catch (error) {
    setImmediate(() => fail(error instanceof SysError ? error.code : String(error)))
    return { cancel: () => cancel() }
  }
  adopt(fd, connection, {
    // Bun takes the descriptor for connected; writability tells that it is.
    drain() {
      established(fd)
      if (state === "established") connection.writable()
    },
    close(_socket, error) {
      ended(errorReason(error) ?? "connection closed")
    },
    connectError(_socket, error) {
      ended(errorReason(error) ?? "connect failed")
    },
    error(_socket, error) {
      ended(errorReason(error) ?? "error")
    },
  })

  function ended(reason: string): void {
    if (state === "connecting") fail(reason)
    else connection.end(reason)
  }

  function cancel(): void {
    if (state !== "connecting") return
    state = "over"
    clearTimeout(timer)
    connection.close()
  }
  return { cancel }
}
