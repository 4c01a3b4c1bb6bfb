// The packet reader alone: every split, many packets a chunk, bad headers and lengths, and what it allocates.

import { describe, expect, test } from "bun:test"
import { readFileSync } from "node:fs"
import { Found, PacketReader, type ReaderLimits } from "../../lib/net/reader.ts"
import { concat, markOf, packetOf } from "./streams.ts"

const UNIX: ReaderLimits = { maxPacketSize: 256 * 1024 * 1024, alignment: 1 }
const NODE: ReaderLimits = { maxPacketSize: 1024 * 1024 * 1024, alignment: 8 }

/** Everything that is found in the chunks: copies of packets, reasons of bad headers (which are skipped). */
function readAll(limits: ReaderLimits, chunks: readonly Uint8Array[]): (Uint8Array | string)[] {
  const reader = new PacketReader(limits)
  const found: (Uint8Array | string)[] = []
  for (const chunk of chunks) {
    reader.push(chunk.slice())
    drain(reader, found)
  }
  return found
}

function drain(reader: PacketReader, found: (Uint8Array | string)[]): void {
  for (;;) {
    const what = reader.next()
    if (what === Found.NEED_MORE) return
    if (what === Found.PACKET) found.push(reader.packet.slice())
    else {
      found.push(reader.reason)
      if (!reader.canSkip) return
      reader.skip()
    }
  }
}

const stream = [packetOf(32, 1), packetOf(61, 2), packetOf(300, 3), packetOf(33, 4)]

describe("packets", () => {
  test("come whole however the stream is split in two or three", () => {
    const bytes = concat(...stream)
    for (let first = 0; first <= bytes.length; first++) {
      expect(readAll(UNIX, [bytes.subarray(0, first), bytes.subarray(first)])).toEqual(stream)
      for (let second = first; second <= bytes.length; second += 7) {
        const parts = [bytes.subarray(0, first), bytes.subarray(first, second), bytes.subarray(second)]
        expect(readAll(UNIX, parts)).toEqual(stream)
      }
    }
  })

  test("come whole byte by byte, and with all chunks pushed before the first is read", () => {
    const bytes = concat(...stream)
    const single = [...bytes].map((byte) => new Uint8Array([byte]))
    expect(readAll(UNIX, single)).toEqual(stream)
    const reader = new PacketReader(UNIX)
    for (const chunk of single) reader.push(chunk)
    const found: (Uint8Array | string)[] = []
    drain(reader, found)
    expect(found).toEqual(stream)
    expect(reader.bufferedBytes).toBe(0)
  })

  test("that lie whole in a chunk are views into it", () => {
    const chunk = concat(packetOf(40, 1), packetOf(48, 2))
    const reader = new PacketReader(NODE)
    reader.push(chunk)
    expect(reader.next()).toBe(Found.PACKET)
    expect([reader.packet.buffer, reader.packet.byteOffset]).toEqual([chunk.buffer, 0])
    expect(reader.next()).toBe(Found.PACKET)
    expect([reader.packet.buffer, reader.packet.byteOffset]).toEqual([chunk.buffer, 40])
    expect(reader.next()).toBe(Found.NEED_MORE)
  })

  test("beyond any buffer's first size keep their bytes", () => {
    const large = packetOf(3_000_000, 9)
    for (let i = 32; i < large.length; i++) large[i] = (i * 7 + (i >> 8)) & 0xff
    const bytes = concat(packetOf(32, 1), large, packetOf(40, 2))
    const chunks: Uint8Array[] = []
    for (let at = 0; at < bytes.length; at += 65_537) chunks.push(bytes.subarray(at, at + 65_537))
    const found = readAll(UNIX, chunks)
    expect(found.map((packet) => (typeof packet === "string" ? packet : packet.length))).toEqual([32, large.length, 40])
    expect(Buffer.compare(found[1] as Uint8Array, large)).toBe(0)
  })

  test("give a large chunk's memory back when the last of them is done with, and not before", () => {
    const [one, two, three] = [packetOf(20_000, 1), packetOf(20_000, 2), packetOf(20_000, 3)]
    const first = concat(one, two.subarray(0, 100))
    const second = concat(two.subarray(100), three)
    const reader = new PacketReader(UNIX)
    reader.push(first)
    reader.push(second)
    for (const [packet, left] of [
      [one, [20_100, 39_900]],
      [two, [20_100, 39_900]],
      [three, [0, 39_900]],
    ] as const) {
      expect(reader.next()).toBe(Found.PACKET)
      expect(Buffer.compare(reader.packet, packet)).toBe(0)
      expect([first.length, second.length]).toEqual([...left])
    }
    expect(reader.next()).toBe(Found.NEED_MORE)
    expect([first.length, second.length]).toEqual([0, 0])
  })

  test("leave the memory of a chunk that is part of something larger alone", () => {
    const whole = concat(packetOf(20_000, 1), packetOf(20_000, 2))
    const found = readAll(UNIX, [whole.subarray(0, 20_000), whole.subarray(20_000)])
    expect(found.map((packet) => markOf(packet as Uint8Array))).toEqual([1, 2])
    expect(whole.length).toBe(40_000)
  })

  test("count as buffered until they are handed out", () => {
    const reader = new PacketReader(UNIX)
    const bytes = concat(packetOf(100, 1), packetOf(100, 2))
    reader.push(bytes.slice(0, 150))
    expect(reader.bufferedBytes).toBe(150)
    reader.next()
    expect(reader.bufferedBytes).toBe(50)
    expect(reader.next()).toBe(Found.NEED_MORE)
    expect(reader.bufferedBytes).toBe(50)
    reader.push(bytes.slice(150))
    expect(reader.bufferedBytes).toBe(100)
    expect(reader.next()).toBe(Found.PACKET)
    expect(reader.bufferedBytes).toBe(0)
  })
})

describe("a header that can't be right", () => {
  const good = packetOf(40, 7)
  const changed = (at: number, value: number): Uint8Array => {
    const packet = packetOf(40, 1)
    new DataView(packet.buffer).setUint32(at, value, true)
    return packet
  }

  const faults: [string, Uint8Array, ReaderLimits, string][] = [
    ["magic", changed(4, 0x43544443), UNIX, "wrong magic 0x43544443"],
    ["version", changed(8, 2), UNIX, "wrong protocol version 2"],
    ["alignment", packetOf(36, 1), NODE, "length 36 is not a multiple of 8"],
  ]
  for (const [name, bad, limits, reason] of faults) {
    test(`${name}: reported once and skipped, wherever the stream is split`, () => {
      const bytes = concat(good, bad, good)
      for (let split = 0; split <= bytes.length; split++) {
        const found = readAll(limits, [bytes.subarray(0, split), bytes.subarray(split)])
        expect(found).toEqual([good, reason, good])
      }
    })
  }

  test("a length below a header's skips exactly that many bytes (wire-protocol 2.4)", () => {
    // After 1 to 3 bytes the length field's own rest belongs to the next packet: its length must begin with zeros.
    const nextLength: Readonly<Record<number, number>> = { 1: 0x1000000, 2: 0x10000, 3: 0x100 }
    for (let length = 1; length < 32; length++) {
      const short = new Uint8Array(length)
      short[0] = length
      const next = packetOf(nextLength[length] ?? 40, 3)
      const bytes = concat(short, next)
      for (let split = 0; split <= (length === 1 ? 6 : 72); split++) {
        const [reason, packet, ...rest] = readAll(UNIX, [bytes.subarray(0, split), bytes.subarray(split)])
        expect(reason).toBe(`length ${length} is shorter than a header`)
        expect(Buffer.compare(packet as Uint8Array, next)).toBe(0)
        expect(rest).toEqual([])
      }
    }
  })

  test("a length of 0 can't be skipped", () => {
    const reader = new PacketReader(UNIX)
    reader.push(new Uint8Array(4))
    expect(reader.next()).toBe(Found.BAD_HEADER)
    expect(reader.canSkip).toBe(false)
  })

  test("is told as soon as its bytes are there, not when the packet is", () => {
    const reader = new PacketReader(NODE)
    const bad = changed(4, 0x20544547)
    new DataView(bad.buffer).setUint32(0, 0x10000000, true)
    reader.push(bad.slice(0, 32))
    expect(reader.next()).toBe(Found.BAD_HEADER)
    expect(reader.reason).toBe("wrong magic 0x20544547")
  })

  test("a length over the limit is told by its four bytes, and skipped as it comes", () => {
    const limits = { maxPacketSize: 100, alignment: 1 }
    const reader = new PacketReader(limits)
    reader.push(new Uint8Array([101, 0, 0, 0]))
    expect(reader.next()).toBe(Found.BAD_HEADER)
    const bytes = concat(packetOf(101, 1), good)
    for (let split = 0; split <= bytes.length; split++) {
      const found = readAll(limits, [bytes.subarray(0, split), bytes.subarray(split)])
      expect(found).toEqual(["length 101 is over the limit of 100", good])
    }
  })
})

test("random streams in random chunks give the packets that went in (seeds 1 to 300)", () => {
  for (let seed = 1; seed <= 300; seed++) {
    let state = seed
    const random = (below: number): number => {
      state = (Math.imul(state, 1664525) + 1013904223) >>> 0
      return Math.floor((state / 0x100000000) * below)
    }
    // Every third has chunks large enough for their memory to be given back.
    const scale = seed % 3 === 0 ? 30 : 1
    const packets = Array.from({ length: 1 + random(20) }, (_, i) =>
      packetOf(random(4) === 0 ? 32 + random(5000 * scale) : 32 + random(64 * scale), i),
    )
    const bytes = concat(...packets)
    const chunks: Uint8Array[] = []
    for (let at = 0; at < bytes.length; ) {
      const size = 1 + (random(3) === 0 ? random(3) : random(3000 * scale))
      chunks.push(bytes.slice(at, at + size))
      at += size
    }
    const found = readAll(UNIX, chunks)
    expect(found.length, `seed ${seed}`).toBe(packets.length)
    for (const [i, packet] of packets.entries()) {
      expect(Buffer.compare(found[i] as Uint8Array, packet), `seed ${seed} packet ${i}`).toBe(0)
      expect(markOf(found[i] as Uint8Array)).toBe(i)
    }
  }
})

test("an announced gigabyte costs nothing until it comes", () => {
  const announce = new Uint8Array(packetOf(32, 1))
  new DataView(announce.buffer).setUint32(0, 1024 * 1024 * 1024, true)
  // Reserved, not only used: zeroed memory costs nothing until it is written.
  const reserved = (): number => Number(/VmSize:\s*(\d+) kB/.exec(readFileSync("/proc/self/status", "utf8"))![1])
  Bun.gc(true)
  const before = reserved()
  const readers = Array.from({ length: 1000 }, () => new PacketReader(NODE))
  for (const reader of readers) {
    reader.push(announce.slice())
    expect(reader.next()).toBe(Found.NEED_MORE)
    reader.push(new Uint8Array(1000))
    expect(reader.next()).toBe(Found.NEED_MORE)
  }
  // 1,000 announcements of 1 GiB with a kilobyte each: bounded by the eager buffer, 64 KiB each, far below what was announced.
  expect(reserved() - before).toBeLessThan(400_000)
  expect(readers.every((reader) => reader.bufferedBytes === 1032)).toBe(true)
})
