// IP addresses as text and bytes, and sock_addr, the 28-byte socket address of wire-protocol.md 5.14.
// Text forms are those of inet_pton(3) and inet_ntop(3). Names are not resolved and nothing is looked up here.

import type { Codec, Reader, Writer } from "./codec.ts"

/**
 * `addr` is the numeric text of the address without port and zone, "" for "unspec" (no address). `scopeId` is an
 * interface index, 0 except for link-local IPv6 addresses.
 */
export interface SockAddr {
  readonly family: "inet" | "inet6" | "unspec"
  readonly addr: string
  readonly port: number
  readonly scopeId: number
}

export const NO_ADDRESS: SockAddr = Object.freeze({ family: "unspec", addr: "", port: 0, scopeId: 0 })

const AF_UNSPEC = 0
const AF_INET = 2
const AF_INET6 = 10

/** The 4 bytes of a dotted quad, or undefined. Leading zeros and short forms are refused, as by inet_pton(3). */
export function parseIp4(text: string): Uint8Array | undefined {
  const parts = text.split(".")
  if (parts.length !== 4) return undefined
  const bytes = new Uint8Array(4)
  for (let i = 0; i < 4; i++) {
    const part = parts[i]!
    if (!/^(0|[1-9][0-9]{0,2})$/.test(part) || Number(part) > 255) return undefined
    bytes[i] = Number(part)
  }
  return bytes
}

/** The 16 bytes of an IPv6 address without zone, or undefined. */
export function parseIp6(text: string): Uint8Array | undefined {
  const halves = text.split("::")
  if (halves.length > 2) return undefined
  const head = groups(halves[0]!, halves.length === 1)
  const tail = halves.length === 2 ? groups(halves[1]!, true) : []
  if (head === undefined || tail === undefined) return undefined
  const missing = 8 - head.length - tail.length
  // "::" stands for at least one group of zeros; without it nothing may be missing.
  if (halves.length === 2 ? missing < 1 : missing !== 0) return undefined
  const bytes = new Uint8Array(16)
  head.forEach((group, i) => {
    bytes[2 * i] = group >> 8
    bytes[2 * i + 1] = group
  })
  tail.forEach((group, i) => {
    const at = 16 - 2 * (tail.length - i)
    bytes[at] = group >> 8
    bytes[at + 1] = group
  })
  return bytes
}

/** The 16-bit groups of one side of "::"; a dotted quad may stand at the very end. */
function groups(text: string, last: boolean): number[] | undefined {
  if (text === "") return []
  const parts = text.split(":")
  const values: number[] = []
  for (let i = 0; i < parts.length; i++) {
    const part = parts[i]!
    if (/^[0-9a-fA-F]{1,4}$/.test(part)) {
      values.push(Number.parseInt(part, 16))
      continue
    }
    const quad = last && i === parts.length - 1 ? parseIp4(part) : undefined
    if (quad === undefined) return undefined
    values.push((quad[0]! << 8) | quad[1]!, (quad[2]! << 8) | quad[3]!)
  }
  return values
}

/** Dotted quad of the 4 bytes at `at`. */
export function formatIp4(bytes: Uint8Array, at = 0): string {
  return `${bytes[at]}.${bytes[at + 1]}.${bytes[at + 2]}.${bytes[at + 3]}`
}

/** Text of the 16 bytes at `at` as inet_ntop(3) writes it: longest run of zero groups as "::", mapped IPv4 dotted. */
export function formatIp6(bytes: Uint8Array, at = 0): string {
  const values: number[] = []
  for (let i = 0; i < 8; i++) values.push((bytes[at + 2 * i]! << 8) | bytes[at + 2 * i + 1]!)
  let best = -1
  let bestLength = 1
  for (let i = 0; i < 8; ) {
    let length = 0
    while (i + length < 8 && values[i + length] === 0) length++
    if (length > bestLength) {
      best = i
      bestLength = length
    }
    i += length + 1
  }
  const dotted = best === 0 && (bestLength === 6 || (bestLength === 5 && values[5] === 0xffff))
  const parts = values.slice(0, dotted ? 6 : 8).map((value) => value.toString(16))
  if (dotted) parts.push(formatIp4(bytes, at + 12))
  if (best < 0) return parts.join(":")
  return `${parts.slice(0, best).join(":")}::${parts.slice(best + bestLength).join(":")}`
}

/** A socket address from numeric text. An IPv4-mapped IPv6 address becomes IPv4 (wire-protocol.md 5.14). */
export function sockAddrFrom(text: string, port = 0, scopeId = 0): SockAddr | undefined {
  if (parseIp4(text) !== undefined) return { family: "inet", addr: text, port, scopeId: 0 }
  const bytes = parseIp6(text)
  if (bytes === undefined) return undefined
  const mapped = bytes.subarray(0, 10).every((byte) => byte === 0) && bytes[10] === 0xff && bytes[11] === 0xff
  if (mapped) return { family: "inet", addr: formatIp4(bytes, 12), port, scopeId: 0 }
  return { family: "inet6", addr: formatIp6(bytes), port, scopeId }
}

/** The same address, whatever the ports: family, address and scope are compared. Both as this module makes them. */
export function sameIp(a: SockAddr, b: SockAddr): boolean {
  return a.family === b.family && a.addr === b.addr && a.scopeId === b.scopeId
}

export function sameSockAddr(a: SockAddr, b: SockAddr): boolean {
  return a.port === b.port && sameIp(a, b)
}

/** 28 bytes. Unused bytes of IPv4 addresses and flowinfo are ignored when read and zero when written. */
export const sockAddr: Codec<SockAddr> = {
  name: "sock_addr",
  minSize: 28,
  fixed: true,
  size: () => 28,
  read: readSockAddr,
  write: writeSockAddr,
}

function readSockAddr(r: Reader): SockAddr {
  const at = r.advance(28)
  const bytes = r.bytes
  const family = bytes[at]! | (bytes[at + 1]! << 8)
  const port = (bytes[at + 2]! << 8) | bytes[at + 3]!
  if (family === AF_INET) return { family: "inet", addr: formatIp4(bytes, at + 4), port, scopeId: 0 }
  if (family === AF_INET6) {
    const scopeId = (bytes[at + 24]! | (bytes[at + 25]! << 8) | (bytes[at + 26]! << 16) | (bytes[at + 27]! << 24)) >>> 0
    return { family: "inet6", addr: formatIp6(bytes, at + 8), port, scopeId }
  }
  if (family !== AF_UNSPEC) r.fail("EINVAL", `address family ${family}`, at)
  return NO_ADDRESS
}

function writeSockAddr(w: Writer, value: SockAddr): void {
  if (value.family === "unspec") {
    w.zeros(28)
    return
  }
  const ip = value.family === "inet" ? parseIp4(value.addr) : parseIp6(value.addr)
  if (ip === undefined) w.fail("EINVAL", `"${value.addr}" is not an ${value.family} address`)
  if (!(value.port >= 0 && value.port <= 0xffff)) w.fail("EINVAL", `port ${value.port}`)
  w.u16(value.family === "inet" ? AF_INET : AF_INET6)
  w.u8(value.port >> 8)
  w.u8(value.port & 0xff)
  if (value.family === "inet") {
    w.data(ip)
    w.zeros(20)
  } else {
    w.zeros(4)
    w.data(ip)
    w.u32(value.scopeId)
  }
}
