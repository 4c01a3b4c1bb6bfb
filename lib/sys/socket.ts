// What Bun's sockets lack: credentials of a Unix peer, a connect that is bound to a local address and can be given up,
// the backlog of a listener. Sockets made here are non-blocking and close-on-exec, and are handed to Bun by number; the
// bytes on them are lib/net's affair.

import { dlopen, FFIType, ptr, read } from "bun:ffi"
import { EINVAL, SysError } from "./errno.ts"

const { i32, u32 } = FFIType
const { symbols: libc } = dlopen("libc.so.6", {
  socket: { args: [i32, i32, i32], returns: i32 },
  bind: { args: [i32, FFIType.ptr, u32], returns: i32 },
  connect: { args: [i32, FFIType.ptr, u32], returns: i32 },
  listen: { args: [i32, i32], returns: i32 },
  close: { args: [i32], returns: i32 },
  getsockopt: { args: [i32, i32, i32, FFIType.ptr, FFIType.ptr], returns: i32 },
  setsockopt: { args: [i32, i32, i32, FFIType.ptr, u32], returns: i32 },
  recv: { args: [i32, FFIType.ptr, FFIType.u64, i32], returns: FFIType.i64_fast },
  getpeername: { args: [i32, FFIType.ptr, FFIType.ptr], returns: i32 },
  inet_pton: { args: [i32, FFIType.ptr, FFIType.ptr], returns: i32 },
  if_nametoindex: { args: [FFIType.ptr], returns: u32 },
  __errno_location: { args: [], returns: FFIType.ptr },
})

const AF_UNIX = 1
const AF_INET = 2
const AF_INET6 = 10
const SOCK_STREAM = 1
const SOCK_NONBLOCK = 0o4000
const SOCK_CLOEXEC = 0o2000000
const SOL_SOCKET = 1
const SO_REUSEADDR = 2
const SO_ERROR = 4
const SO_SNDBUF = 7
const SO_RCVBUF = 8
const SO_KEEPALIVE = 9
const SO_PEERCRED = 17
const IPPROTO_TCP = 6
const TCP_NODELAY = 1
const MSG_DONTWAIT = 0x40
const ENAMETOOLONG = 36
const EINPROGRESS = 115

/** Room for a path in `struct sockaddr_un`, its NUL included (bytes). */
export const UNIX_PATH_SIZE = 108

const errno = (): number => read.i32(libc.__errno_location()!, 0)

function check(result: number, call: string, subject: string): number {
  if (result < 0) throw new SysError(call, errno(), subject)
  return result
}

const cString = (text: string): Uint8Array => new TextEncoder().encode(`${text}\0`)

/** Raises SysError ENAMETOOLONG for a path that no Unix socket can have. */
export function checkUnixPath(path: string): void {
  const length = new TextEncoder().encode(path).length
  if (length === 0) throw new SysError("socket path", EINVAL, path)
  if (length >= UNIX_PATH_SIZE) throw new SysError("socket path", ENAMETOOLONG, path)
}

/**
 * `struct sockaddr_in` or `sockaddr_in6` of a numeric address ("127.0.0.1", "fd00::1", "fe80::1%eth0").
 * @throws SysError EINVAL for text that is no numeric address.
 */
export function socketAddress(address: string, port: number): Uint8Array {
  const percent = address.indexOf("%")
  const text = cString(percent < 0 ? address : address.slice(0, percent))
  const inet6 = address.includes(":")
  const bytes = new Uint8Array(inet6 ? 28 : 16)
  const view = new DataView(bytes.buffer)
  view.setUint16(0, inet6 ? AF_INET6 : AF_INET, true)
  view.setUint16(2, port, false)
  const target = bytes.subarray(inet6 ? 8 : 4)
  if (libc.inet_pton(inet6 ? AF_INET6 : AF_INET, ptr(text), ptr(target)) !== 1) {
    throw new SysError("address", EINVAL, address)
  }
  if (inet6 && percent >= 0) {
    const zone = address.slice(percent + 1)
    const scope = /^\d+$/.test(zone) ? Number(zone) : libc.if_nametoindex(ptr(cString(zone)))
    if (scope === 0) throw new SysError("address", EINVAL, address)
    view.setUint32(24, scope, true)
  }
  return bytes
}

/**
 * A connected Unix stream socket (fd). @throws SysError: ENAMETOOLONG, ENOENT, ECONNREFUSED, EACCES, and EAGAIN while the
 * listener's backlog is full.
 */
export function connectUnixSocket(path: string): number {
  checkUnixPath(path)
  const name = cString(path)
  const address = new Uint8Array(2 + name.length)
  new DataView(address.buffer).setUint16(0, AF_UNIX, true)
  address.set(name, 2)
  const fd = check(libc.socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), "socket", path)
  if (libc.connect(fd, ptr(address), address.length) < 0) {
    const code = errno()
    libc.close(fd)
    throw new SysError("connect", code, path)
  }
  return fd
}

/**
 * A TCP socket (fd) bound to `localAddress` with any port, whose connect is under way or done. Once it is writable
 * socketError() says how it ended.
 * @throws SysError of socket, bind (EADDRNOTAVAIL) or connect (ENETUNREACH ...).
 */
export function startTcpConnect(localAddress: string | undefined, remoteAddress: string, port: number): number {
  const remote = socketAddress(remoteAddress, port)
  const local = localAddress === undefined ? undefined : socketAddress(localAddress, 0)
  const family = remote.length === 28 ? AF_INET6 : AF_INET
  const fd = check(libc.socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), "socket", remoteAddress)
  if (local !== undefined) {
    setFlag(fd, SOL_SOCKET, SO_REUSEADDR)
    if (libc.bind(fd, ptr(local), local.length) < 0) {
      const code = errno()
      libc.close(fd)
      throw new SysError("bind", code, localAddress)
    }
  }
  if (libc.connect(fd, ptr(remote), remote.length) < 0) {
    const code = errno()
    if (code !== EINPROGRESS) {
      libc.close(fd)
      throw new SysError("connect", code, `${remoteAddress} port ${port}`)
    }
  }
  return fd
}

function setFlag(fd: number, level: number, option: number): void {
  check(libc.setsockopt(fd, level, option, ptr(new Int32Array([1])), 4), "setsockopt", `fd ${fd}`)
}

function getInt(fd: number, option: number): number {
  const value = new Int32Array(1)
  check(libc.getsockopt(fd, SOL_SOCKET, option, ptr(value), ptr(new Uint32Array([4]))), "getsockopt", `fd ${fd}`)
  return value[0]!
}

/** The pending error (errno) of a socket, 0 for none; reading clears it. */
export function socketError(fd: number): number {
  return getInt(fd, SO_ERROR)
}

/** Whether the socket has a peer: false while a connect is under way. */
export function isConnected(fd: number): boolean {
  return libc.getpeername(fd, ptr(new Uint8Array(128)), ptr(new Uint32Array([128]))) === 0
}

/** Pid, uid and gid of the process that connected a Unix socket. @throws SysError */
export function peerCredentials(fd: number): { readonly pid: number; readonly uid: number; readonly gid: number } {
  const value = new Int32Array(3)
  check(libc.getsockopt(fd, SOL_SOCKET, SO_PEERCRED, ptr(value), ptr(new Uint32Array([12]))), "SO_PEERCRED", `fd ${fd}`)
  return { pid: value[0]!, uid: value[1]! >>> 0, gid: value[2]! >>> 0 }
}

export function setKeepAlive(fd: number): void {
  setFlag(fd, SOL_SOCKET, SO_KEEPALIVE)
}

export function setNoDelay(fd: number): void {
  setFlag(fd, IPPROTO_TCP, TCP_NODELAY)
}

/** Changes the backlog of a socket that listens already. */
export function setBacklog(fd: number, backlog: number): void {
  check(libc.listen(fd, backlog), "listen", `fd ${fd}`)
}

/** Kernel buffer sizes (bytes, as the kernel counts them: twice what was asked for). */
export function socketBuffers(fd: number): { readonly send: number; readonly receive: number } {
  return { send: getInt(fd, SO_SNDBUF), receive: getInt(fd, SO_RCVBUF) }
}

export function closeSocket(fd: number): void {
  libc.close(fd)
}

/** Receives what is there, without waiting. Returns its bytes, 0 at the end of the stream, negative for nothing or an error. */
export function receive(fd: number, buffer: Uint8Array): number {
  return Number(libc.recv(fd, ptr(buffer), buffer.length, MSG_DONTWAIT))
}
