// Round trips of random values: every structure from a generator derived from its own description, and every packet in
// both layouts. The seeds are fixed; a failure prints the one that replays it.

import { describe, expect, test } from "bun:test"
import fc from "fast-check"
import { formatIp4, formatIp6, type SockAddr } from "../../lib/protocol/address.ts"
import * as basic from "../../lib/protocol/codec.ts"
import { type Codec, decode, decodeExact, encode, type Struct } from "../../lib/protocol/codec.ts"
import { CTDB_MAGIC } from "../../lib/protocol/constants.ts"
import { controls } from "../../lib/protocol/controls.ts"
import {
  decodeEventdReply,
  decodeEventdRequest,
  encodeEventdReply,
  encodeEventdRequest,
  eventdRun,
  eventdScript,
  eventdStatus,
  statusReply,
} from "../../lib/protocol/eventd.ts"
import { checkBody } from "../../lib/protocol/header.ts"
import { messages, sambaMessage } from "../../lib/protocol/messages.ts"
import * as ownStructs from "../../lib/protocol/own-structs.ts"
import {
  decodePacket,
  encodePacket,
  Operation,
  type Packet,
  packetSize,
  writePacket,
} from "../../lib/protocol/packet.ts"
import * as structs from "../../lib/protocol/structs.ts"
import { decodeText } from "../../lib/protocol/text.ts"

const u32 = fc.oneof(fc.nat(0xffffffff), fc.constantFrom(0, 1, 0x7fffffff, 0x80000000, 0xffffffff))
const i32 = fc.oneof(fc.integer(), fc.constantFrom(-1, -(2 ** 31), 2 ** 31 - 1))
const word = fc.record({ hi: u32, lo: u32 })
const bytes = (maxLength: number) => fc.uint8Array({ maxLength })
/** Any text that bytes without NUL can be, so also what is not UTF-8. */
const text = (maxLength: number) =>
  fc.uint8Array({ min: 1, max: 255, maxLength }).map((raw) => decodeText(raw, 0, raw.length))
const port = fc.nat(0xffff)
const sockAddr: fc.Arbitrary<SockAddr> = fc.oneof(
  fc.constant({ family: "unspec", addr: "", port: 0, scopeId: 0 } as const),
  fc.record({
    family: fc.constant("inet" as const),
    addr: fc.uint8Array({ minLength: 4, maxLength: 4 }).map((raw) => formatIp4(raw)),
    port,
    scopeId: fc.constant(0),
  }),
  fc.record({
    family: fc.constant("inet6" as const),
    addr: fc.uint8Array({ minLength: 16, maxLength: 16 }).map((raw) => formatIp6(raw)),
    port,
    scopeId: u32,
  }),
)

const leaves = new Map<Codec<unknown>, fc.Arbitrary<unknown>>([
  [basic.u8, fc.nat(0xff)],
  [basic.u16, fc.nat(0xffff)],
  [basic.u32, u32],
  [basic.i32, i32],
  [basic.i64, fc.maxSafeInteger()],
  [basic.u64, word],
  [basic.f64, fc.double({ noNaN: true })],
  [basic.bool, fc.boolean()],
  [basic.pid, i32],
  [basic.none, fc.constant(undefined)],
  [basic.u32AndZero, u32],
  [basic.string, fc.option(text(30))],
  [basic.stringn, fc.option(text(30))],
  [basic.text, text(30)],
  [basic.data, bytes(30)],
  [basic.datan, bytes(30)],
  [structs.sockAddr, sockAddr],
  [structs.recData, fc.record({ reqid: u32, key: bytes(20), data: bytes(40) })],
  // An empty list is written as one empty element, see var_list.
  [
    structs.varList,
    fc.array(
      fc.string({ unit: "grapheme-ascii", maxLength: 9 }).map((name) => name.replaceAll(":", "")),
      { minLength: 1, maxLength: 6 },
    ),
  ],
  [
    structs.dbStatistics.fields.hotKeys,
    fc.array(fc.record({ count: u32, key: bytes(9) }), { minLength: 10, maxLength: 10 }),
  ],
  [structs.gLock.fields.type, fc.constantFrom(0, 1)],
  [eventdScript.fields.action, fc.constantFrom(0, 1)],
])

/** Random values of a codec, from its description. @throws if the description has a part that isn't known here */
function valuesOf(codec: Codec<unknown>): fc.Arbitrary<unknown> {
  const leaf = leaves.get(codec)
  if (leaf !== undefined) return leaf
  if ("fields" in codec) {
    const { fields } = codec as Struct<Record<string, Codec<unknown>>>
    const kept = Object.entries(fields).filter(([, field]) => !("padding" in field))
    return fc.record(Object.fromEntries(kept.map(([key, field]) => [key, valuesOf(field)])), { noNullPrototype: true })
  }
  if (codec.element !== undefined) {
    const count = codec.fixed ? codec.minSize / codec.element.minSize : undefined
    const bounds = count === undefined ? { maxLength: 5 } : { minLength: count, maxLength: count }
    return fc.array(valuesOf(codec.element), bounds)
  }
  if (codec.name.startsWith("chars[")) return text(codec.minSize - 1)
  throw new Error(`no generator for ${codec.name}`)
}

const named = new Map<string, Codec<unknown>>()
for (const module of [
  basic,
  structs,
  ownStructs,
  { eventdRun, eventdStatus, eventdScript, statusReply, sambaMessage },
]) {
  for (const value of Object.values(module) as readonly unknown[]) {
    if (typeof value === "object" && value !== null && "read" in value) {
      const codec = value as Codec<unknown>
      named.set(codec.name, codec)
    }
  }
}

describe("structures", () => {
  for (const [name, codec] of named) {
    test(name, () => {
      fc.assert(
        fc.property(valuesOf(codec), (value) => {
          const encoded = encode(codec, value)
          expect(encoded.length).toBe(codec.size(value))
          expect(encoded.length).toBeGreaterThanOrEqual(codec.minSize)
          if (codec.fixed) expect(encoded.length).toBe(codec.minSize)
          expect(decodeExact(codec, encoded)).toEqual(value)
        }),
        { seed: 2024, numRuns: 300 },
      )
    })
  }

  test("every payload of a control or message is one of them", () => {
    const all = [...Object.values(controls).flatMap(({ request, reply }) => [request, reply])] as Codec<unknown>[]
    for (const { payload } of Object.values(messages)) all.push(payload as Codec<unknown>)
    for (const codec of all) expect(named.get(codec.name)).toBe(codec)
  })
})

const key = fc.uint8Array({ minLength: 1, maxLength: 30 })
const data = bytes(60)
const message = text(30)
const head = { generation: u32, destnode: u32, srcnode: u32, reqid: u32 }
const is = <O extends Operation>(operation: O) => ({ operation: fc.constant(operation), ...head })
const record = <T>(shape: { [K in keyof T]: fc.Arbitrary<T[K]> }) => fc.record(shape, { noNullPrototype: true })

const packets: Readonly<Record<keyof typeof Operation, fc.Arbitrary<Packet>>> = {
  REQ_CALL: record({ ...is(Operation.REQ_CALL), flags: u32, dbId: u32, callid: u32, hopcount: u32, key, data }),
  REPLY_CALL: record({ ...is(Operation.REPLY_CALL), status: i32, data }),
  REQ_DMASTER: record({
    ...is(Operation.REQ_DMASTER),
    dbId: u32,
    rsn: word,
    dmaster: u32,
    recordFlags: u32,
    key: data,
    data,
  }),
  REPLY_DMASTER: record({ ...is(Operation.REPLY_DMASTER), dbId: u32, rsn: word, recordFlags: u32, key: data, data }),
  REPLY_ERROR: record({ ...is(Operation.REPLY_ERROR), status: i32, message }),
  REQ_MESSAGE: record({ ...is(Operation.REQ_MESSAGE), srvid: word, data }),
  REQ_CONTROL: record({ ...is(Operation.REQ_CONTROL), opcode: u32, srvid: word, clientId: u32, flags: u32, data }),
  REPLY_CONTROL: fc.oneof(
    record({ ...is(Operation.REPLY_CONTROL), status: i32, data, error: fc.constant("") }),
    record({
      ...is(Operation.REPLY_CONTROL),
      status: i32.filter((status) => status !== 0),
      data: fc.constant(new Uint8Array(0)),
      error: message,
    }),
  ),
  REQ_KEEPALIVE: fc.oneof(
    record({ ...is(Operation.REQ_KEEPALIVE), version: u32, uptime: u32, hasVersion: fc.constant(true) }),
    record({
      ...is(Operation.REQ_KEEPALIVE),
      version: fc.constant(0),
      uptime: fc.constant(0),
      hasVersion: fc.constant(false),
    }),
  ),
  REQ_TUNNEL: record({ ...is(Operation.REQ_TUNNEL), tunnelId: word, flags: u32, data }),
}

describe("packets", () => {
  // The C sizes of wire-protocol.md 2.2; a keepalive without version is a bare header.
  const minimum = {
    REQ_CALL: 64,
    REPLY_CALL: 48,
    REPLY_ERROR: 48,
    REQ_DMASTER: 64,
    REPLY_DMASTER: 64,
    REQ_MESSAGE: 48,
    REQ_CONTROL: 64,
    REPLY_CONTROL: 48,
    REQ_KEEPALIVE: 32,
    REQ_TUNNEL: 56,
  }
  for (const [name, packet] of Object.entries(packets) as [keyof typeof packets, fc.Arbitrary<Packet>][]) {
    for (const layout of ["client", "daemon"] as const) {
      test(`${name}, ${layout}`, () => {
        fc.assert(
          fc.property(packet, (value) => {
            const encoded = encodePacket(value, layout)
            const view = new DataView(encoded.buffer)
            expect(encoded.length % 8).toBe(0)
            expect(view.getUint32(0, true)).toBe(encoded.length)
            expect(view.getUint32(4, true)).toBe(CTDB_MAGIC)
            if (layout === "daemon") expect(encoded.length).toBeGreaterThanOrEqual(minimum[name])
            expect(checkBody(encoded)).toBe(true)
            expect(decodePacket(encoded)).toEqual(value)

            // The same into a used buffer: padding is zeroed, nothing around is touched.
            const size = packetSize(value, layout)
            const used = new Uint8Array(size + 16).fill(0xaa)
            writePacket(value, layout, used, 8, size)
            expect(used.subarray(8, 8 + size).toHex()).toBe(encoded.toHex())
            for (let i = 0; i < 8; i++) expect([used[i], used[8 + size + i]]).toEqual([0xaa, 0xaa])
          }),
          { seed: 2024, numRuns: 300 },
        )
      })
    }
  }
})

describe("event protocol", () => {
  const requests = fc.oneof(
    record({ reqid: u32, cmd: fc.constant(1 as const), run: valuesOf(eventdRun) }),
    record({ reqid: u32, cmd: fc.constant(2 as const), status: valuesOf(eventdStatus) }),
    record({ reqid: u32, cmd: fc.constant(3 as const), script: valuesOf(eventdScript) }),
  )
  const replies = fc.oneof(
    record({ reqid: u32, cmd: fc.constantFrom(1, 3), result: i32 }),
    record({ reqid: u32, cmd: fc.constant(2), result: i32.filter((result) => result !== 0) }),
    record({ reqid: u32, cmd: fc.constant(2), result: fc.constant(0), status: valuesOf(statusReply) }),
  )

  test("requests", () => {
    fc.assert(
      fc.property(requests, (request) => {
        const typed = request as Parameters<typeof encodeEventdRequest>[0]
        expect(decodeEventdRequest(encodeEventdRequest(typed))).toEqual(typed)
      }),
      { seed: 2024, numRuns: 500 },
    )
  })

  test("replies", () => {
    fc.assert(
      fc.property(replies, (reply) => {
        const typed = reply as Parameters<typeof encodeEventdReply>[0]
        expect(decodeEventdReply(encodeEventdReply(typed))).toEqual(typed)
      }),
      { seed: 2024, numRuns: 500 },
    )
  })
})

test("fewer than ten hot keys are filled up with empty ones", () => {
  const [sample] = fc.sample(valuesOf(structs.dbStatistics), { seed: 1, numRuns: 1 }) as [structs.DbStatistics]
  const two = sample.hotKeys.slice(0, 2)
  const again = decode(structs.dbStatistics, encode(structs.dbStatistics, { ...sample, hotKeys: two }))
  expect(again.hotKeys.slice(0, 2)).toEqual(two)
  expect(again.hotKeys.slice(2)).toEqual(Array.from({ length: 8 }, () => ({ count: 0, key: new Uint8Array(0) })))
})
