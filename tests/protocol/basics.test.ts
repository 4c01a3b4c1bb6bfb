// The small parts: 64-bit words, text that isn't UTF-8, addresses, hashes, header checks and in-place access.

import { describe, expect, test } from "bun:test"
import { isIPv4, isIPv6 } from "node:net"
import fc from "fast-check"
import { formatIp6, parseIp4, parseIp6, sameIp, sockAddrFrom } from "../../lib/protocol/address.ts"
import { Operation, SEQNUM_KEY } from "../../lib/protocol/constants.ts"
import { checkHeader, HeaderFault } from "../../lib/protocol/framing.ts"
import { databaseId, jenkinsHash, lmasterOf } from "../../lib/protocol/hash.ts"
import * as header from "../../lib/protocol/header.ts"
import { decodePacket, type Packet } from "../../lib/protocol/packet.ts"
import { decodeText, textLength, writeText } from "../../lib/protocol/text.ts"
import * as word64 from "../../lib/protocol/word64.ts"
import { bytesOf, dbidVectors, hashVectors, packetVectors } from "./vectors.ts"

const u64 = fc.bigInt({ min: 0n, max: 2n ** 64n - 1n })

describe("64-bit words", () => {
  test("agree with bigint", () => {
    fc.assert(
      fc.property(u64, u64, fc.maxSafeInteger(), (a, b, small) => {
        const x = word64.fromBigInt(a)
        const y = word64.fromBigInt(b)
        expect(word64.toBigInt(x)).toBe(a)
        expect(word64.toDecimal(x)).toBe(a.toString())
        expect(word64.toHex(x)).toBe(a.toString(16).padStart(16, "0"))
        expect(Math.sign(word64.compare(x, y))).toBe(a < b ? -1 : a > b ? 1 : 0)
        expect(word64.equal(x, y)).toBe(a === b)
        expect(word64.toBigInt(word64.add(x, small))).toBe(BigInt.asUintN(64, a + BigInt(small)))
        expect(word64.toBigInt(word64.fromNumber(small))).toBe(BigInt.asUintN(64, BigInt(small)))
      }),
      { seed: 64, numRuns: 2000 },
    )
  })

  test("an unsafe number is refused", () => {
    expect(() => word64.fromNumber(2 ** 53)).toThrow(RangeError)
    expect(() => word64.fromNumber(0.5)).toThrow(RangeError)
  })
})

describe("text", () => {
  test("every byte string without NUL survives", () => {
    fc.assert(
      fc.property(fc.uint8Array({ min: 1, max: 255, maxLength: 40 }), (bytes) => {
        const text = decodeText(bytes, 0, bytes.length)
        expect(textLength(text)).toBe(bytes.length)
        const again = new Uint8Array(bytes.length)
        expect(writeText(again, 0, text)).toBe(bytes.length)
        expect(again).toEqual(bytes)
      }),
      { seed: 8, numRuns: 5000 },
    )
  })

  test("what only looks like UTF-8 is kept byte by byte", () => {
    // A surrogate, overlong forms, a value above U+10FFFF, a cut sequence, a lone continuation; each after a good letter.
    for (const hex of [
      "61eda080",
      "61edb2a9",
      "61c080",
      "61c1bf",
      "61e09fbf",
      "61f08fbfbf",
      "61f4908080",
      "61e282",
      "6180",
    ]) {
      const bytes = bytesOf(hex)
      const text = decodeText(bytes, 0, bytes.length)
      expect(text).toBe(`a${Array.from(bytes.subarray(1), (byte) => String.fromCharCode(0xdc00 + byte)).join("")}`)
    }
    const mixed = bytesOf("c3a9ffe282ac")
    expect(decodeText(mixed, 0, mixed.length)).toBe("é\udcff€")
  })

  test("UTF-8 is the platform's", () => {
    fc.assert(
      fc.property(fc.string({ unit: "binary", maxLength: 20 }), (text) => {
        fc.pre(!text.includes("\0"))
        const bytes = new TextEncoder().encode(text)
        expect(textLength(text)).toBe(bytes.length)
        const written = new Uint8Array(bytes.length)
        writeText(written, 0, text)
        expect(written).toEqual(bytes)
        expect(decodeText(bytes, 0, bytes.length)).toBe(text)
      }),
      { seed: 9, numRuns: 2000 },
    )
  })
})

describe("addresses", () => {
  test("what inet_pton takes and refuses", () => {
    for (const good of ["0.0.0.0", "255.255.255.255", "192.0.2.17"]) expect(parseIp4(good)?.join(".")).toBe(good)
    for (const bad of ["", "1.2.3", "1.2.3.4.5", "1.2.3.256", "01.2.3.4", "1.2.3.-4", "1.2.3.4 ", "a.b.c.d"]) {
      expect(parseIp4(bad)).toBeUndefined()
    }
    for (const bad of [
      "",
      ":",
      ":::",
      "1::2::3",
      "1:2:3:4:5:6:7",
      "1:2:3:4:5:6:7:8:9",
      "12345::",
      "g::",
      "1.2.3.4::",
      "::1.2.3",
      "1:",
      ":1",
      "1:2:3:4:5:6:7::8",
      "fe80::1%eth0",
    ]) {
      expect([bad, parseIp6(bad)]).toEqual([bad, undefined])
    }
  })

  test("what inet_ntop prints", () => {
    const cases = {
      "0:0:0:0:0:0:0:0": "::",
      "0:0:0:0:0:0:0:1": "::1",
      "2001:db8:0:0:0:0:0:17": "2001:db8::17",
      "1:0:0:2:0:0:0:3": "1:0:0:2::3",
      "1:0:2:3:4:5:6:7": "1:0:2:3:4:5:6:7",
      "0:0:0:0:0:ffff:102:304": "::ffff:1.2.3.4",
      "0:0:0:0:0:0:102:304": "::1.2.3.4",
      "0:0:0:0:0:1:102:304": "::1:102:304",
      "FE80:0:0:0:0:0:0:0": "fe80::",
    }
    for (const [text, printed] of Object.entries(cases)) expect(formatIp6(parseIp6(text)!)).toBe(printed)
  })

  test("text round trip, and the platform accepts what we print", () => {
    const groups = fc.array(fc.oneof(fc.constant(0), fc.integer({ min: 0, max: 0xffff })), {
      minLength: 8,
      maxLength: 8,
    })
    fc.assert(
      fc.property(groups, (values) => {
        const bytes = new Uint8Array(values.flatMap((value) => [value >> 8, value & 0xff]))
        const text = formatIp6(bytes)
        expect(isIPv6(text)).toBe(true)
        expect(parseIp6(text)).toEqual(bytes)
      }),
      { seed: 6, numRuns: 2000 },
    )
    expect(isIPv4("192.0.2.17")).toBe(true)
  })

  test("a mapped address becomes IPv4; only family, address and scope tell addresses apart", () => {
    expect(sockAddrFrom("::ffff:192.0.2.1", 5)).toEqual({ family: "inet", addr: "192.0.2.1", port: 5, scopeId: 0 })
    expect(sameIp(sockAddrFrom("10.0.0.1", 1)!, sockAddrFrom("10.0.0.1", 2)!)).toBe(true)
    expect(sameIp(sockAddrFrom("fe80::1", 0, 2)!, sockAddrFrom("fe80::1", 0, 3)!)).toBe(false)
    expect(sockAddrFrom("host")).toBeUndefined()
  })
})

describe("hashes", () => {
  test("jenkinsHash", () => {
    for (const { key_hex, jenkins } of hashVectors) {
      const key = bytesOf(key_hex)
      expect(jenkinsHash(key)).toBe(Number(jenkins))
      const around = new Uint8Array(key.length + 9).fill(0xff)
      around.set(key, 3)
      expect(jenkinsHash(around, 3, 3 + key.length)).toBe(Number(jenkins))
    }
  })

  test("databaseId", () => {
    for (const { name, db_id } of dbidVectors) expect(databaseId(name)).toBe(Number(db_id))
    expect(() => databaseId("a\0b")).toThrow(RangeError)
  })

  test("lmasterOf is the map entry at hash modulo size, and nobody for an empty map", () => {
    // hash "a" is 0x58d68708 (vector); modulo 3 = 1.
    expect(0x58d68708 % 3).toBe(1)
    expect(lmasterOf(bytesOf("61"), { map: [4, 7, 9] })).toBe(7)
    expect(lmasterOf(bytesOf("61"), { map: [] })).toBeUndefined()
  })

  test("the sequence number key has 23 bytes with its NUL", () => expect(SEQNUM_KEY.length + 1).toBe(23))
})

describe("checkHeader", () => {
  const whole = bytesOf(packetVectors[0]!.hex)
  const at = 5
  const placed = (change: (view: DataView) => void) => {
    const bytes = new Uint8Array(at + whole.length)
    bytes.set(whole, at)
    const view = new DataView(bytes.buffer)
    change(view)
    return bytes
  }

  test("a good packet is incomplete until its last byte", () => {
    const bytes = placed(() => {})
    expect(header.lengthOf(bytes, at)).toBe(whole.length)
    for (let available = 0; available < whole.length; available++) {
      expect(checkHeader(bytes, at, available)).toBe(HeaderFault.INCOMPLETE)
    }
    expect(checkHeader(bytes, at, whole.length)).toBe(0)
    expect(checkHeader(bytes, at, whole.length + 100)).toBe(0)
  })

  test("faults show as soon as their bytes are there", () => {
    const length = (n: number) => placed((view) => view.setUint32(at, n, true))
    expect(checkHeader(length(0), at, 4)).toBe(HeaderFault.ZERO_LENGTH)
    for (const n of [1, 8, 31]) expect(checkHeader(length(n), at, 4)).toBe(HeaderFault.SHORT)
    expect(checkHeader(length(61), at, 4)).toBe(HeaderFault.INCOMPLETE | HeaderFault.UNALIGNED)
    expect(checkHeader(length(61), at, 61)).toBe(HeaderFault.UNALIGNED)
    const magic = placed((view) => view.setUint32(at + 4, 1, true))
    expect(checkHeader(magic, at, 7)).toBe(HeaderFault.INCOMPLETE)
    expect(checkHeader(magic, at, 8)).toBe(HeaderFault.INCOMPLETE | HeaderFault.BAD_MAGIC)
    expect(checkHeader(magic, at, 64)).toBe(HeaderFault.BAD_MAGIC)
    const version = placed((view) => view.setUint32(at + 8, 2, true))
    expect(checkHeader(version, at, 11)).toBe(HeaderFault.INCOMPLETE)
    expect(checkHeader(version, at, 64)).toBe(HeaderFault.BAD_VERSION)
    expect(checkHeader(length(0xffffffff), at, 64)).toBe(HeaderFault.INCOMPLETE | HeaderFault.UNALIGNED)
  })
})

describe("in place", () => {
  const named = (name: string) => bytesOf(packetVectors.find((vector) => vector.name === name)!.hex)

  test("reads what decodePacket reads, at any offset", () => {
    const call = named("REQ_CALL readonly with calldata")
    const value = decodePacket(call)
    if (value.operation !== Operation.REQ_CALL) throw new Error("not a call")
    const shifted = new Uint8Array(call.length + 3)
    shifted.set(call, 3)
    for (const [packet, at] of [
      [call, 0],
      [shifted, 3],
    ] as const) {
      const inPlace = {
        operation: header.operationOf(packet, at) as typeof Operation.REQ_CALL,
        generation: header.generationOf(packet, at),
        destnode: header.destnodeOf(packet, at),
        srcnode: header.srcnodeOf(packet, at),
        reqid: header.reqidOf(packet, at),
        flags: header.callFlags(packet, at),
        dbId: header.callDbId(packet, at),
        callid: header.callCallid(packet, at),
        hopcount: header.hopcountOf(packet, at),
        key: packet.slice(at + header.REQ_CALL_KEY, at + header.REQ_CALL_KEY + header.callKeyLength(packet, at)),
        data: packet.slice(
          at + header.REQ_CALL_KEY + 3,
          at + header.REQ_CALL_KEY + 3 + header.callDataLength(packet, at),
        ),
      }
      expect(inPlace as Packet).toEqual(value)
    }

    const message = named("REQ_MESSAGE data")
    expect([header.messageSrvidHi(message), header.messageSrvidLo(message)]).toEqual([0, 4242])
    expect([header.messageDataLength(message), message[header.REQ_MESSAGE_DATA]]).toEqual([9, 0x61])
    const control = named("REQ_CONTROL REGISTER_SRVID (no payload)")
    expect([header.controlOpcode(control), header.controlSrvidHi(control), header.controlSrvidLo(control)]).toEqual([
      23, 0xf1010000, 0,
    ])
    const startup = named("daemon REQ_CONTROL STARTUP")
    expect([header.controlClientId(startup), header.controlFlags(startup), header.controlDataLength(startup)]).toEqual([
      0, 1, 0,
    ])
    const reply = named("REPLY_CALL")
    expect([header.replyCallStatus(reply), header.replyCallDataLength(reply)]).toEqual([-1, 10])
    expect(reply[header.REPLY_CALL_DATA]).toBe(0x72)
    const error = named("daemon REPLY_CONTROL error (text without NUL)")
    expect([header.replyControlStatus(error), header.replyControlDataLength(error)]).toEqual([-1, 0])
    expect([header.replyControlErrorLength(error), error[header.REPLY_CONTROL_DATA]]).toEqual([22, 0x63])
    const path = named("REQ_CONTROL GETDBPATH")
    expect(header.readU32(path, header.REQ_CONTROL_DATA)).toBe(2048514125)
  })

  test("a packet too short for a hopcount has none", () => {
    const message = named("REQ_MESSAGE empty").slice(0, 44)
    expect(header.hopcountOf(message)).toBe(0)
  })

  test("rewrites a header and nothing else, at any offset", () => {
    for (const at of [0, 5]) {
      const whole = named("REQ_CALL migrate")
      const bytes = new Uint8Array(at + whole.length)
      bytes.set(whole, at)
      const before = decodePacket(bytes, at)
      header.putGeneration(bytes, 0xfffffffe, at)
      header.putDestnode(bytes, 3, at)
      header.putSrcnode(bytes, 2, at)
      header.putReqid(bytes, 0, at)
      header.putHopcount(bytes, 1, at)
      header.putCallid(bytes, 0xff000003, at)
      const fields = { generation: 0xfffffffe, destnode: 3, srcnode: 2, reqid: 0, hopcount: 1, callid: 0xff000003 }
      expect(decodePacket(bytes, at)).toEqual({ ...before, ...fields } as Packet)
      expect(bytes.subarray(0, at).toHex()).toBe("00".repeat(at))
    }
    const control = named("REQ_CONTROL GETDBPATH")
    const before = decodePacket(control)
    header.putClientId(control, 77)
    expect(decodePacket(control)).toEqual({ ...before, clientId: 77 } as Packet)
  })
})
