// For tests of lib/net: packets with known bytes, raw peers that speak or stay silent at will, and a handler that notes
// everything it is told.

import { mkdtempSync, rmSync } from "node:fs"
import { join } from "node:path"
import type { Socket } from "bun"
import type { PacketHandler } from "../../lib/net/ports.ts"

/** An address of these tests' own range. */
export const address = (last: number): string => `127.31.1.${last}`

/** A directory that goes away with `[Symbol.dispose]`. */
export function temporaryDirectory(): { readonly path: string; file(name: string): string; [Symbol.dispose](): void } {
  const path = mkdtempSync("/tmp/net-")
  return {
    path,
    file: (name) => join(path, name),
    [Symbol.dispose]: () => rmSync(path, { recursive: true, force: true }),
  }
}

/** A packet of `length` bytes by the header's layout (wire-protocol 2.1), with `mark` as its reqid and filling. */
export function packetOf(length: number, mark: number): Uint8Array {
  const bytes = new Uint8Array(length).fill(mark & 0xff)
  const view = new DataView(bytes.buffer)
  view.setUint32(0, length, true)
  bytes.set([0x42, 0x44, 0x54, 0x43], 4)
  view.setUint32(8, 1, true)
  view.setUint32(16, 5, true)
  view.setUint32(28, mark, true)
  return bytes
}

export const markOf = (packet: Uint8Array): number =>
  new DataView(packet.buffer, packet.byteOffset, packet.length).getUint32(28, true)

export function concat(...parts: readonly Uint8Array[]): Uint8Array {
  return new Uint8Array(Buffer.concat(parts))
}

/** Waits for a condition, looking every turn or so. @throws after 10 s, with what it waited for */
export async function until(what: string, condition: () => boolean): Promise<void> {
  const deadline = performance.now() + 10_000
  while (!condition()) {
    if (performance.now() > deadline) throw new Error(`no ${what} within 10 s`)
    await Bun.sleep(0)
  }
}

/** Notes what a connection tells, packets as copies. */
export class Recorder implements PacketHandler {
  readonly packets: Uint8Array[] = []
  readonly faults: string[] = []
  readonly closes: string[] = []
  drains = 0
  constructor(private readonly onFault: "drop" | "close" = "close") {}
  onPacket(packet: Uint8Array): void {
    this.packets.push(packet.slice())
  }
  onBadHeader(reason: string): "drop" | "close" {
    this.faults.push(reason)
    return this.onFault
  }
  onClose(reason: string): void {
    this.closes.push(reason)
  }
  onDrain(): void {
    this.drains++
  }
}

/** A peer that works with bytes, not packets, over Bun's own socket. */
export class RawPeer {
  readonly received: Uint8Array[] = []
  isClosed = false
  private constructor(readonly socket: Socket<undefined>) {}

  static async connect(to: string | { readonly hostname: string; readonly port: number }): Promise<RawPeer> {
    let peer: RawPeer | undefined
    const handlers = {
      data: (_socket: unknown, chunk: Uint8Array) => void peer?.received.push(chunk.slice()),
      close: () => {
        if (peer !== undefined) peer.isClosed = true
      },
    }
    const socket =
      typeof to === "string"
        ? await Bun.connect({ unix: to, socket: handlers })
        : await Bun.connect({ ...to, socket: handlers })
    peer = new RawPeer(socket)
    return peer
  }

  /** Writes all of it, waiting for room as long as it takes. */
  async write(bytes: Uint8Array): Promise<void> {
    for (let at = 0; at < bytes.length; ) {
      const written = this.socket.write(bytes, at, bytes.length - at)
      if (written < 0) throw new Error("closed")
      at += written
      if (at < bytes.length) await Bun.sleep(1)
    }
  }

  get bytes(): Uint8Array {
    return concat(...this.received)
  }
}
