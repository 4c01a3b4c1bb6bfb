// Packet connections over Unix sockets: the daemon's listener, and a client's connect. Nothing here knows what a client is.

import { checkUnixPath, connectUnixSocket, peerCredentials, setBacklog } from "../sys/socket.ts"
import { adopt, type ConnectionOptions, SocketConnection, type StreamSocket, socketCallbacks } from "./connection.ts"
import { type PacketHandler, type PeerCredentials, Priority } from "./ports.ts"

/** Limits of a connection between a daemon and its client, unless the caller says otherwise. */
export const CLIENT_CONNECTION: ConnectionOptions = {
  maxPacketSize: 256 * 1024 * 1024,
  alignment: 1,
  readPriority: Priority.BULK,
  writeOnly: false,
  highWaterBytes: 4 * 1024 * 1024,
  maxQueuedBytes: 1024 * 1024 * 1024,
}

export interface Listener {
  /**
   * Stops accepting. Accepted connections live on. A Unix listener's file is removed; a process that ends without this
   * leaves it behind, as the stock daemon does.
   */
  close(): void
}

export interface UnixListenOptions {
  /** Permissions of the socket file (wire-protocol 11: 0700). */
  readonly mode: number
  /** Connections that may wait to be accepted (wire-protocol 11: 100). */
  readonly backlog: number
  readonly connection?: Partial<ConnectionOptions>
  /** A client connected. Undefined refuses it: it is closed at once. */
  onAccept(connection: SocketConnection, credentials: PeerCredentials): PacketHandler | undefined
}

/**
 * Listens on a socket file that must not exist yet.
 * @throws SysError ENAMETOOLONG, or Bun's error with `code` EADDRINUSE, EACCES ...
 */
export function listenUnix(path: string, options: UnixListenOptions): Listener {
  checkUnixPath(path)
  const connectionOptions = { ...CLIENT_CONNECTION, ...options.connection }
  // The file has its mode from the moment it exists.
  const umask = process.umask(0o777 & ~options.mode)
  try {
    const listener = Bun.listen<SocketConnection>({
      unix: path,
      socket: {
        ...socketCallbacks,
        open(opened) {
          const socket = opened as StreamSocket
          const connection = new SocketConnection(connectionOptions)
          socket.data = connection
          connection.open(socket)
          const handler = options.onAccept(connection, peerCredentials(socket.fd))
          if (handler === undefined) connection.close()
          else connection.setHandler(handler)
        },
      },
    })
    setBacklog((listener as unknown as { readonly fd: number }).fd, options.backlog)
    return { close: () => listener.stop(false) }
  } finally {
    process.umask(umask)
  }
}

/**
 * Connects to a daemon's socket.
 * @throws SysError: ENOENT, ECONNREFUSED, EACCES, ENAMETOOLONG, EAGAIN (the backlog is full: try again later)
 */
export function connectUnix(
  path: string,
  handler: PacketHandler,
  options: Partial<ConnectionOptions> = {},
): SocketConnection {
  const fd = connectUnixSocket(path)
  const connection = new SocketConnection({ ...CLIENT_CONNECTION, ...options })
  adopt(fd, connection, {})
  connection.setHandler(handler)
  return connection
}
