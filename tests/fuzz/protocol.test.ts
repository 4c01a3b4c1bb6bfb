// Mutates every golden vector, two million times, with fixed seeds. Whatever the bytes are: decoding ends within a
// number of steps that the input's length bounds, reads nothing outside the packet, allocates in proportion to the
// input, and fails only with ProtocolError; what it accepts, the encoder can write again or refuses by ProtocolError.

import { expect, test } from "bun:test"
import {
  array,
  arrayToEnd,
  type Codec,
  data,
  decode,
  none,
  ProtocolError,
  Reader,
  string,
  struct,
  text,
  u32,
  Writer,
} from "../../lib/protocol/codec.ts"
import { HEADER_SIZE } from "../../lib/protocol/constants.ts"
import { type ControlName, controlByOpcode, decodeRequest } from "../../lib/protocol/controls.ts"
import {
  decodeEventdReply,
  decodeEventdRequest,
  encodeEventdReply,
  encodeEventdRequest,
} from "../../lib/protocol/eventd.ts"
import { checkHeader, HeaderFault } from "../../lib/protocol/framing.ts"
import { checkBody } from "../../lib/protocol/header.ts"
import { messageName, messages } from "../../lib/protocol/messages.ts"
import { decodePacket, encodePacket, Operation, type Packet } from "../../lib/protocol/packet.ts"
import {
  bytesOf,
  captureVectors,
  codecsByType,
  controlVectors,
  eventdCaptureVectors,
  eventdVectors,
  nodeCaptureVectors,
  packetVectors,
  structVectors,
} from "../protocol/vectors.ts"

/** Seeded random numbers (xorshift32), so that a failing case can be replayed from its seed and number. */
class Random {
  private state: number
  constructor(seed: number) {
    this.state = seed | 1
  }
  next(): number {
    let x = this.state
    x ^= x << 13
    x ^= x >>> 17
    x ^= x << 5
    this.state = x
    return x >>> 0
  }
  below(limit: number): number {
    return this.next() % limit
  }
}

const INTERESTING = [0, 1, 2, 7, 8, 16, 31, 32, 255, 256, 0x7fffffff, 0x80000000, 0xfffffff0, 0xffffffff]
/** Longest vector (a statistics history) plus what mutations add. */
const ROOM = 64 * 1024
/** Where a case lies in its buffer: bytes on both sides are not the packet's. */
const AT = 64

/** A decoder under test; `codec` undefined is a packet. */
interface Target {
  readonly name: string
  readonly seedBytes: Uint8Array
  run(bytes: Uint8Array, at: number, end: number): void
}

/** A reader that counts its steps: every loop over elements takes at least one per turn. */
class CountingReader extends Reader {
  steps = 0
  override advance(size: number): number {
    this.steps++
    return super.advance(size)
  }
}

/** Fixed structures of up to this many fields, whatever the input is. */
const FIXED_STEPS = 400

/**
 * Bytes, characters and elements that a value holds: what decoding allocated for it. Views must lie in the input.
 * `end` is the end of the input in its buffer.
 */
function weigh(value: unknown, bytes: Uint8Array, at: number, end: number): number {
  if (typeof value === "string") return value.length
  if (typeof value === "number" && !Number.isNaN(value)) return 1
  if (typeof value !== "object" || value === null) return 1
  if (value instanceof Uint8Array) {
    if (value.length > 0) {
      const start = value.byteOffset - bytes.byteOffset
      if (value.buffer !== bytes.buffer || start < at || start + value.length > end) {
        throw new Error("a view outside the input")
      }
    }
    return 1
  }
  let weight = 1
  if (Array.isArray(value)) for (const element of value) weight += weigh(element, bytes, at, end)
  else for (const key in value) weight += weigh((value as Record<string, unknown>)[key], bytes, at, end)
  return weight
}

/** `read` may fail with ProtocolError only, whose offset lies in the input; returns undefined then. */
function attempt<T>(length: number, read: () => T): T | undefined {
  try {
    return read()
  } catch (error) {
    if (!(error instanceof ProtocolError)) throw error
    if (error.structure === "" || error.offset < 0 || error.offset > length) throw error
    if (recording) outcome += `${error.message};`
    return undefined
  }
}

let accepted = 0
let refused = 0
/** While `recording`, what the last case came to: the error, or the value's bytes. */
let recording = false
let outcome = ""

function runCodec(codec: Codec<unknown>, bytes: Uint8Array, at: number, end: number): void {
  const length = end - at
  const r = new CountingReader(bytes, codec.name, at, end)
  const value = attempt(length, () => codec.read(r))
  if (r.steps > FIXED_STEPS + length) throw new Error(`${r.steps} steps for ${length} bytes`)
  if (r.offset > end) throw new Error("read beyond the input")
  if (value === undefined) {
    refused++
    return
  }
  accepted++
  if (weigh(value, bytes, at, end) > FIXED_STEPS + 2 * length) throw new Error(`allocation beyond ${length} bytes`)
  attempt(ROOM, () => {
    const size = codec.size(value)
    if (size > FIXED_STEPS + 3 * length) throw new Error(`${size} bytes from ${length}`)
    const w = new Writer(new Uint8Array(size), codec.name)
    codec.write(w, value)
    if (w.offset !== size) throw new Error(`${w.offset} bytes where size() said ${size}`)
    if (recording) outcome += `${w.bytes.toHex()};`
  })
}

function payloadCodec(packet: Packet): Codec<unknown> | undefined {
  if (packet.operation === Operation.REQ_CONTROL) return controlByOpcode(packet.opcode)?.request
  if (packet.operation !== Operation.REQ_MESSAGE) return undefined
  const name = messageName(packet.srvid)
  return name === undefined ? undefined : (messages[name].payload as Codec<unknown>)
}

function runPacket(bytes: Uint8Array, at: number, end: number, replyCodec?: Codec<unknown>): void {
  const length = end - at
  const faults = checkHeader(bytes, at, length)
  const packet = attempt(length, () => decodePacket(bytes, at, end))
  // The header check and the decoder are two readers of the same rules; they must agree.
  const whole = (faults & ~HeaderFault.UNALIGNED) === 0
  if (!whole && packet !== undefined) throw new Error("decoded in spite of a bad header")
  if (whole && checkBody(bytes, at) !== (packet !== undefined)) throw new Error("checkBody and decodePacket disagree")
  if (packet === undefined) {
    refused++
    return
  }
  accepted++
  if (weigh(packet, bytes, at, end) > 64 + length) throw new Error("allocation beyond the packet")
  const again = attempt(ROOM, () => encodePacket(packet, "daemon"))
  if (again !== undefined && again.length > 3 * length + 64) throw new Error("encoded to more than its length allows")
  if (recording && again !== undefined) outcome += `${again.toHex()};`
  const codec =
    replyCodec !== undefined && packet.operation === Operation.REPLY_CONTROL ? replyCodec : payloadCodec(packet)
  if (codec !== undefined && "data" in packet && packet.data.length > 0) {
    const start = packet.data.byteOffset - bytes.byteOffset
    runCodec(codec, bytes, start, start + packet.data.length)
  }
  if (packet.operation === Operation.REQ_CONTROL) {
    const name = controlByOpcode(packet.opcode)?.name as ControlName | undefined
    if (name !== undefined) attempt(length, () => decodeRequest(name, packet.data))
  }
}

function runEventd(bytes: Uint8Array, at: number, end: number, request: boolean): void {
  const input = bytes.subarray(at, end)
  const value = attempt(input.length, () => (request ? decodeEventdRequest(input) : decodeEventdReply(input)))
  if (value === undefined) {
    refused++
    return
  }
  accepted++
  if (weigh(value, bytes, at, end) > 64 + 2 * input.length) throw new Error("allocation beyond the packet")
  const again = request
    ? attempt(ROOM, () => encodeEventdRequest(value as ReturnType<typeof decodeEventdRequest>))
    : attempt(ROOM, () => encodeEventdReply(value as ReturnType<typeof decodeEventdReply>))
  if (recording && again !== undefined) outcome += `${again.toHex()};`
}

function targets(): Target[] {
  const all: Target[] = []
  for (const { name, type, hex } of structVectors) {
    const codec = codecsByType[type]!
    all.push({ name, seedBytes: bytesOf(hex), run: (bytes, at, end) => runCodec(codec, bytes, at, end) })
  }
  for (const { name, hex, control, opcode, payload_hex, kind } of controlVectors) {
    const row = controlByOpcode(opcode)!
    const codec = kind === "request" ? row.request : row.reply
    all.push({ name, seedBytes: bytesOf(hex), run: (bytes, at, end) => runPacket(bytes, at, end, row.reply) })
    // The payload by itself as well: mutations of the whole packet mostly hit its header.
    all.push({
      name: `${control} payload`,
      seedBytes: bytesOf(payload_hex),
      run: (bytes, at, end) => runCodec(codec as Codec<unknown>, bytes, at, end),
    })
  }
  for (const { name, hex } of packetVectors) all.push({ name, seedBytes: bytesOf(hex), run: runPacket })
  for (const { command, hex } of captureVectors) all.push({ name: command, seedBytes: bytesOf(hex), run: runPacket })
  for (const { section, hex } of nodeCaptureVectors)
    all.push({ name: section, seedBytes: bytesOf(hex), run: runPacket })
  for (const { name, hex } of eventdVectors) {
    const request = name.startsWith("request")
    all.push({ name, seedBytes: bytesOf(hex), run: (bytes, at, end) => runEventd(bytes, at, end, request) })
  }
  for (const { client, direction, hex } of eventdCaptureVectors) {
    const request = direction === "to-eventd"
    all.push({ name: client, seedBytes: bytesOf(hex), run: (bytes, at, end) => runEventd(bytes, at, end, request) })
  }
  return all
}

/** Changes the case at AT in place and returns its new length. */
function mutate(random: Random, bytes: Uint8Array, length: number, fixLength: boolean): number {
  const view = new DataView(bytes.buffer)
  let size = length
  for (let count = 1 + random.below(4); count > 0; count--) {
    const spot = AT + random.below(Math.max(1, size))
    switch (random.below(7)) {
      case 0:
        bytes[spot]! ^= 1 << random.below(8)
        break
      case 1:
        bytes[spot] = random.next()
        break
      case 2:
        // Counts and lengths are words, mostly at multiples of four.
        view.setUint32(
          AT + (random.below(Math.max(1, size >> 2)) << 2),
          INTERESTING[random.below(INTERESTING.length)]!,
          true,
        )
        break
      case 3:
        view.setUint32(spot, random.next() >>> random.below(32), true)
        break
      case 4:
        size = random.below(size + 1)
        break
      case 5:
        size += random.below(40)
        break
      default:
        if (size > 8) bytes.copyWithin(spot, AT + random.below(size), AT + size)
    }
  }
  if (fixLength && size >= 4 && random.below(4) !== 0) view.setUint32(AT, size, true)
  return size
}

/** What the case at AT comes to when everything around it is `poison`. */
function outcomeAmid(poison: number, bytes: Uint8Array, size: number, target: Target): string {
  bytes.fill(poison, 0, AT)
  bytes.fill(poison, AT + size, AT + size + 512)
  outcome = ""
  recording = true
  try {
    target.run(bytes, AT, AT + size)
  } finally {
    recording = false
  }
  return outcome
}

const CASES = 2_000_000
/** Every so many rounds each case runs twice, amid zeros and amid ones, and must come to the same. */
const TWIN_ROUNDS = 4

test("two million mutated packets, structures and payloads", () => {
  const all = targets()
  const rounds = Math.ceil(CASES / all.length)
  const bytes = new Uint8Array(ROOM)
  Bun.gc(true)
  const before = process.memoryUsage().rss
  let cases = 0
  let twins = 0
  for (let round = 0; round < rounds; round++) {
    for (let index = 0; index < all.length; index++) {
      const target = all[index]!
      const { name, seedBytes } = target
      const random = new Random((round + 1) * 0x9e3779b1 + index * 0x85ebca6b)
      bytes.fill(round & 1 ? 0xff : 0, 0, AT + seedBytes.length + 512)
      bytes.set(seedBytes, AT)
      const size = mutate(random, bytes, seedBytes.length, seedBytes.length >= HEADER_SIZE)
      cases++
      try {
        if (round % TWIN_ROUNDS === 0) {
          twins++
          const amidOnes = outcomeAmid(0xff, bytes, size, target)
          if (outcomeAmid(0, bytes, size, target) !== amidOnes) throw new Error("bytes outside the input matter")
        } else target.run(bytes, AT, AT + size)
      } catch (error) {
        const hex = bytes.subarray(AT, AT + size).toHex()
        throw new Error(`round ${round}, target ${index} (${name}): ${hex}`, { cause: error })
      }
    }
  }
  expect(cases).toBeGreaterThanOrEqual(CASES)
  expect(twins).toBeGreaterThan(CASES / 8)
  // Mutations that all fail, or all pass, would test little.
  expect(accepted).toBeGreaterThan(cases / 10)
  expect(refused).toBeGreaterThan(cases / 10)
  // No input is longer than 64 KiB: what stays (heap and compiled code) is far below what one unchecked count could take.
  expect(process.memoryUsage().rss - before).toBeLessThan(512 * 1024 * 1024)
}, 300_000)

test("a crafted count reads no element, and no count reads more elements than there are bytes", () => {
  let reads = 0
  const probe: Codec<number> = {
    ...u32,
    read: (r) => {
      reads++
      return r.u32()
    },
  }
  for (const gap of [0, 4]) {
    for (const there of [0, 3, 4, 40, 4000]) {
      const bytes = new Uint8Array(4 + gap + there)
      const view = new DataView(bytes.buffer)
      for (const count of [...INTERESTING, there >> 2, (there >> 2) + 1, 0x40000000, 0x40000001, 0x3fffffff]) {
        view.setUint32(0, count, true)
        reads = 0
        const values = attempt(bytes.length, () => decode(array(probe, gap), bytes))
        const fits = count * 4 <= there
        expect(values?.length).toBe(fits ? count : undefined)
        expect(reads).toBe(fits ? count : 0)
      }
    }
  }
})

test("nothing that could take no bytes, or all of them, can be an element", () => {
  for (const element of [none, string, data, text] as readonly Codec<unknown>[]) {
    expect(() => array(element)).toThrow(TypeError)
    expect(() => arrayToEnd(element)).toThrow(TypeError)
  }
  expect(() => struct("bad", { rest: data, after: u32 })).toThrow("bad.rest leaves no bytes for the fields after it")
})

test("the checks of this file catch a decoder that is wrong", () => {
  const bytes = new Uint8Array(ROOM)
  bytes.fill(0xff, AT, AT + 8)
  const bad = (read: (r: Reader) => unknown): Codec<unknown> => ({ ...u32, name: "bad", read, write: () => {} })
  const run = (read: (r: Reader) => unknown) => () => runCodec(bad(read), bytes, AT, AT + 8)
  expect(run((r) => Array.from({ length: r.u32() >>> 12 }, () => 0))).toThrow("allocation beyond 8 bytes")
  expect(run((r) => r.bytes.subarray(r.offset, r.end + 1))).toThrow("a view outside the input")
  expect(
    run((r) => {
      r.offset = r.end + 1
      return r.bytes[r.end]
    }),
  ).toThrow("read beyond the input")
  expect(
    run((r) => {
      for (let left = 1000; left > 0; left--) r.advance(0)
      return 0
    }),
  ).toThrow("steps for 8 bytes")
  expect(
    run(() => {
      throw new RangeError("out of bounds")
    }),
  ).toThrow(RangeError)
  const peeks: Target = {
    name: "peeks",
    seedBytes: bytes,
    run: (b, at, end) => runCodec({ ...u32, name: "peeks", read: (r) => r.u32() + r.bytes[end]! }, b, at, end),
  }
  expect(outcomeAmid(0, bytes, 8, peeks)).not.toBe(outcomeAmid(1, bytes, 8, peeks))
})
