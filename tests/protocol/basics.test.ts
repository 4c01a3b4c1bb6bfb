// The small parts: 64-bit words, text that isn't UTF-8, addresses, hashes, header checks and in-place access.

import { describe, expect, test } from "bun:test"
import { isIPv4, isIPv6 } from "node:net"
import fc from "fast-check"
import { formatIp6, parseIp4, parseIp6, sameIp, sockAddrFrom } from "../../lib/protocol/address.ts"
import { Operation, SEQNUM_KEY } from "../../lib/protocol/constants.ts"
import { checkHeader, HeaderFault, packetLength } from "../../lib/protocol/framing.ts"
import { databaseId, jenkinsHash, lmasterOf } from "../../lib/protocol/hash.ts"
import * as packet from "../../lib/protocol/packet.ts"
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
    return view
  }

  test("a good packet is incomplete until its last byte", () => {
    const view = placed(() => {})
    expect(packetLength(view, at)).toBe(whole.length)
    for (let available = 0; available < whole.length; available++) {
      expect(checkHeader(view, at, available)).toBe(HeaderFault.INCOMPLETE)
    }
    expect(checkHeader(view, at, whole.length)).toBe(0)
    expect(checkHeader(view, at, whole.length + 100)).toBe(0)
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
  const view = (name: string) => {
    const bytes = bytesOf(packetVectors.find((vector) => vector.name === name)!.hex)
    return new DataView(bytes.buffer)
  }
  const decoded = (v: DataView) => packet.decodePacket(new Uint8Array(v.buffer))

  test("reads what decodePacket reads", () => {
    const c = view("REQ_CALL readonly with calldata")
    const call = decoded(c)
    if (call.operation !== Operation.REQ_CALL) throw new Error("not a call")
    expect([
      packet.callFlags(c, 0),
      packet.callDbId(c, 0),
      packet.callCallid(c, 0),
      packet.packetHopcount(c, 0),
    ]).toEqual([call.flags, call.dbId, call.callid, call.hopcount])
    expect([packet.callKeyLength(c, 0), packet.callDataLength(c, 0)]).toEqual([call.key.length, call.data.length])
    expect([
      packet.packetGeneration(c, 0),
      packet.packetOperation(c, 0),
      packet.packetDestnode(c, 0),
      packet.packetSrcnode(c, 0),
      packet.packetReqid(c, 0),
    ]).toEqual([call.generation, call.operation, call.destnode, call.srcnode, call.reqid])

    const m = view("REQ_MESSAGE data")
    expect([packet.messageSrvidLo(m, 0), packet.messageSrvidHi(m, 0), packet.messageDataLength(m, 0)]).toEqual([
      4242, 0, 9,
    ])
    const k = view("REQ_CONTROL REGISTER_SRVID (no payload)")
    expect([packet.controlOpcode(k, 0), packet.controlSrvidHi(k, 0), packet.controlSrvidLo(k, 0)]).toEqual([
      23, 0xf1010000, 0,
    ])
    expect([packet.controlClientId(k, 0), packet.controlFlags(k, 0), packet.controlDataLength(k, 0)]).toEqual([0, 0, 0])
    const r = view("REPLY_CALL")
    expect([packet.replyCallStatus(r, 0), packet.replyCallDataLength(r, 0)]).toEqual([-1, 10])
    const e = view("daemon REPLY_CONTROL error (text without NUL)")
    expect([packet.replyControlStatus(e, 0), packet.replyControlDataLength(e, 0)]).toEqual([-1, 0])
    expect(packet.replyControlErrorLength(e, 0)).toBe(22)
  })

  test("rewrites a header and nothing else", () => {
    const v = view("REQ_CALL migrate")
    const before = decoded(v)
    packet.setGeneration(v, 0, 0xfffffffe)
    packet.setDestnode(v, 0, 3)
    packet.setSrcnode(v, 0, 2)
    packet.setReqid(v, 0, 0)
    packet.setHopcount(v, 0, 1)
    packet.setCallid(v, 0, 0xff000003)
    expect(decoded(v)).toEqual({
      ...before,
      generation: 0xfffffffe,
      destnode: 3,
      srcnode: 2,
      reqid: 0,
      hopcount: 1,
      callid: 0xff000003,
    } as packet.Packet)
    const k = view("REQ_CONTROL GETDBPATH")
    const control = decoded(k)
    packet.setClientId(k, 0, 77)
    expect(decoded(k)).toEqual({ ...control, clientId: 77 } as packet.Packet)
  })
})
