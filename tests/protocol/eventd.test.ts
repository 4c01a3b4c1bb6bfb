// The event daemon's protocol against the golden vectors and the recorded conversations.

import { describe, expect, test } from "bun:test"
import { ProtocolError } from "../../lib/protocol/codec.ts"
import {
  decodeEventdReply,
  decodeEventdRequest,
  type EventdReply,
  type EventdRequest,
  encodeEventdReply,
  encodeEventdRequest,
} from "../../lib/protocol/eventd.ts"
import {
  bytesOf,
  type EventdVector,
  eventdCaptureVectors,
  eventdVectors,
  expectedValue,
  type JsonObject,
} from "./vectors.ts"

const isRequest = (vector: EventdVector) => vector.name.startsWith("request")

function expected(vector: EventdVector): object {
  const { length: _length, version: _version, status, ...rest } = vector.fields
  if (status === undefined) return expectedValue("", rest) as object
  if (isRequest(vector)) return { ...(expectedValue("", rest) as object), status: expectedValue("", status) }
  // num_scripts is the array's length.
  const { num_scripts: _count, summary, scripts } = status as JsonObject
  return { ...(expectedValue("", rest) as object), status: { summary, scripts: expectedValue("scripts", scripts!) } }
}

describe("vectors", () => {
  for (const vector of eventdVectors) {
    const bytes = bytesOf(vector.hex)
    const decodeIt = (from: Uint8Array) => (isRequest(vector) ? decodeEventdRequest(from) : decodeEventdReply(from))

    test(`${vector.name}: fields to bytes`, () => {
      const value = expected(vector)
      const encoded = isRequest(vector)
        ? encodeEventdRequest(value as EventdRequest)
        : encodeEventdReply(value as EventdReply)
      expect(encoded.toHex()).toBe(vector.hex)
    })

    test(`${vector.name}: bytes to fields`, () => {
      expect(decodeIt(bytes) as object).toEqual(expected(vector))
    })

    test(`${vector.name}: no truncation decodes`, () => {
      for (let length = 0; length < bytes.length; length++) {
        const cut = bytes.slice(0, length)
        expect(() => decodeIt(cut)).toThrow(ProtocolError)
        if (length < 4) continue
        new DataView(cut.buffer).setUint32(0, length, true)
        expect(() => decodeIt(cut)).toThrow(ProtocolError)
      }
    })
  }
})

test("every recorded packet decodes and encodes to the same bytes", () => {
  for (const { direction, hex } of eventdCaptureVectors) {
    const bytes = bytesOf(hex)
    const again =
      direction === "to-eventd"
        ? encodeEventdRequest(decodeEventdRequest(bytes))
        : encodeEventdReply(decodeEventdReply(bytes))
    expect(again.toHex()).toBe(hex)
  }
})

describe("bad input", () => {
  const run = bytesOf(eventdVectors[0]!.hex)
  const script = bytesOf(eventdVectors.find(({ name }) => name.includes("SCRIPT"))!.hex)

  test("any version is accepted", () => {
    for (const version of [0, 1, 7]) {
      const bytes = run.slice()
      new DataView(bytes.buffer).setUint32(4, version, true)
      expect(decodeEventdRequest(bytes)).toEqual(decodeEventdRequest(run))
    }
  })

  test("bytes after a complete request are ignored", () => {
    const longer = new Uint8Array(run.length + 9)
    longer.set(run)
    new DataView(longer.buffer).setUint32(0, longer.length, true)
    expect(decodeEventdRequest(longer)).toEqual(decodeEventdRequest(run))
  })

  test("a string that ends beyond the packet's length is refused, whatever follows the packet", () => {
    const shorter = run.slice()
    new DataView(shorter.buffer).setUint32(0, run.length - 1, true)
    expect(() => decodeEventdRequest(shorter)).toThrow("eventd_run.flags")
    new DataView(shorter.buffer).setUint32(0, 21, true)
    expect(() => decodeEventdRequest(shorter)).toThrow("eventd_run.component")
  })

  test("an unknown command and an unknown action are refused", () => {
    const command = run.slice()
    command[12] = 4
    expect(() => decodeEventdRequest(command)).toThrow("eventd_request.cmd at byte 12: command 4")
    const action = script.slice()
    action[action.length - 4] = 2
    expect(() => decodeEventdRequest(action)).toThrow("eventd_script.action")
  })

  test("a crafted number of scripts is refused before anything is allocated", () => {
    const reply = bytesOf(eventdVectors.find(({ name }) => name === "reply STATUS two scripts")!.hex)
    for (const count of [0xffffffff, 0x80000000, 0x7fffffff, 1000]) {
      new DataView(reply.buffer).setUint32(24, count, true)
      expect(() => decodeEventdReply(reply)).toThrow("eventd_status_reply.scripts at byte 24")
    }
  })

  test("a reply with a status that is not due, or without one that is, is never written", () => {
    expect(() => encodeEventdReply({ reqid: 1, cmd: 2, result: 0 })).toThrow("status missing")
    const status = { summary: 0, scripts: [] }
    expect(() => encodeEventdReply({ reqid: 1, cmd: 1, result: 0, status })).toThrow("without being due")
  })
})
