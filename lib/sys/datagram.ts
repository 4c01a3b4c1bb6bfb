// Connected datagram sockets that never wait: what syslog is spoken over. Unix datagram sockets are not in Bun, and a log line
// must not need a turn of the event loop to leave.

import { dlopen, FFIType, ptr, read } from "bun:ffi"
import { SysError } from "./errno.ts"
import { checkUnixPath, socketAddress } from "./socket.ts"

const { i32, u32, u64 } = FFIType
const { symbols: libc } = dlopen("libc.so.6", {
  socket: { args: [i32, i32, i32], returns: i32 },
  connect: { args: [i32, FFIType.ptr, u32], returns: i32 },
  send: { args: [i32, FFIType.ptr, u64, i32], returns: FFIType.i64_fast },
  close: { args: [i32], returns: i32 },
  __errno_location: { args: [], returns: FFIType.ptr },
})

const AF_UNIX = 1
const AF_INET = 2
const AF_INET6 = 10
const SOCK_DGRAM_NONBLOCK_CLOEXEC = 2 | 0o4000 | 0o2000000
const MSG_DONTWAIT_NOSIGNAL = 0x40 | 0x4000

const errno = (): number => read.i32(libc.__errno_location()!, 0)

export interface Datagrams {
  /** Sends one datagram now; 0 or the errno of what went wrong (EAGAIN: the receiver's buffer is full). */
  send(bytes: Uint8Array): number
  close(): void
}

function connected(family: number, address: Uint8Array, subject: string): Datagrams {
  const fd = libc.socket(family, SOCK_DGRAM_NONBLOCK_CLOEXEC, 0)
  if (fd < 0) throw new SysError("socket", errno(), subject)
  if (libc.connect(fd, ptr(address), address.length) !== 0) {
    const failure = errno()
    libc.close(fd)
    throw new SysError("connect", failure, subject)
  }
  return {
    send: (bytes) => (Number(libc.send(fd, ptr(bytes), bytes.length, MSG_DONTWAIT_NOSIGNAL)) < 0 ? errno() : 0),
    close: () => void libc.close(fd),
  }
}

/** @throws SysError if nobody listens there */
export function unixDatagrams(path: string): Datagrams {
  checkUnixPath(path)
  const address = new Uint8Array(110)
  new DataView(address.buffer).setUint16(0, AF_UNIX, true)
  address.set(new TextEncoder().encode(path), 2)
  return connected(AF_UNIX, address, path)
}

/** UDP to a numeric address. Nobody listening shows in a later send, as ECONNREFUSED. */
export function udpDatagrams(address: string, port: number): Datagrams {
  const family = address.includes(":") ? AF_INET6 : AF_INET
  return connected(family, socketAddress(address, port), `${address}:${port}`)
}
