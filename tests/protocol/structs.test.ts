// Every structure against the golden vectors: the listed fields give the listed bytes and the other way round, and no
// structure decodes from fewer bytes than it needs.

import { describe, expect, expectTypeOf, test } from "bun:test"
import type { SockAddr } from "../../lib/protocol/address.ts"
import { decode, decodeExact, encode, ProtocolError, Reader } from "../../lib/protocol/codec.ts"
import type { ReplyOf, RequestOf } from "../../lib/protocol/controls.ts"
import type { PayloadOf } from "../../lib/protocol/messages.ts"
import * as structs from "../../lib/protocol/structs.ts"
import type { Word64 } from "../../lib/protocol/word64.ts"
import { bytesOf, codecsByType, expectedValue, structVectors } from "./vectors.ts"

describe("structure vectors", () => {
  for (const vector of structVectors) {
    const codec = codecsByType[vector.type]!
    const bytes = bytesOf(vector.hex)
    const value = expectedValue(vector.type, vector.fields)

    test(`${vector.name}: fields to bytes`, () => {
      expect(codec.size(value)).toBe(vector.length)
      expect(encode(codec, value).toHex()).toBe(vector.hex)
    })

    test(`${vector.name}: bytes to fields`, () => {
      expect(decodeExact(codec, bytes)).toEqual(value)
      expect(codec.minSize).toBeLessThanOrEqual(vector.length)
    })

    test(`${vector.name}: no truncation decodes`, () => {
      // string, data and g_lock_list end where the payload ends: any cut is another valid value.
      if (codec.toEnd) return
      for (let length = 0; length < bytes.length; length++) {
        const error = failure(() => decode(codec, bytes.subarray(0, length)))
        expect(error.code).toBe("EMSGSIZE")
        expect(error.structure).not.toBe("")
        expect(error.offset).toBeGreaterThanOrEqual(0)
        expect(error.offset).toBeLessThanOrEqual(length)
        expect(error.message).toContain(error.structure)
        if ("fields" in codec || codec.element !== undefined) expect(error.field).not.toBe("")
      }
    })

    test(`${vector.name}: starts at any offset, leftovers are ignored`, () => {
      if (codec.toEnd) return
      for (const before of [1, 3, 8]) {
        const around = new Uint8Array(before + bytes.length + 5).fill(0xa5)
        around.set(bytes, before)
        const r = new Reader(around, "shifted", before)
        expect(codec.read(r)).toEqual(value)
        expect(r.offset).toBe(before + bytes.length)
      }
    })
  }

  test("every structure of the module has a vector", () => {
    const known = new Set(Object.values(codecsByType))
    const missing = Object.entries(structs)
      .filter(
        ([name, value]) => typeof value === "object" && "read" in value && !known.has(value) && name !== "tunableName",
      )
      .map(([name]) => name)
    expect(missing).toEqual([])
  })
})

function failure(run: () => unknown): ProtocolError {
  try {
    run()
  } catch (error) {
    if (error instanceof ProtocolError) return error
    throw error
  }
  throw new Error("nothing failed")
}

describe("errors name their place", () => {
  const cases: readonly [
    name: string,
    run: () => unknown,
    structure: string,
    field: string,
    offset: number,
    code: string,
  ][] = [
    ["nested", () => decode(structs.uptime, new Uint8Array(20)), "timeval", "sec", 16, "EMSGSIZE"],
    ["list", () => decode(structs.nodeMap, bytesOf("02000000")), "node_map", "num", 0, "EMSGSIZE"],
    ["count", () => decode(structs.vnnMap, bytesOf("01000000ffffffff00000000")), "vnn_map", "map", 4, "EMSGSIZE"],
    ["bool", () => decode(structs.dbVacuum, bytesOf("0100000002")), "db_vacuum", "fullVacuumRun", 4, "EINVAL"],
    ["lock type", () => decode(structs.gLock, new Uint8Array(32).fill(2)), "g_lock", "type", 0, "EPROTO"],
    [
      "record",
      () => decode(structs.recData, bytesOf("11000000000000000200000000000000aaaa")),
      "rec_data",
      "length",
      0,
      "EMSGSIZE",
    ],
    ["family", () => decode(structs.publicIp, new Uint8Array(32).fill(1)), "public_ip", "addr", 4, "EINVAL"],
    ["seconds", () => decode(structs.timeval, new Uint8Array(16).fill(0x7f)), "timeval", "sec", 0, "EINVAL"],
    ["leftovers", () => decodeExact(structs.banState, new Uint8Array(9)), "ban_state", "", 8, "EMSGSIZE"],
  ]
  for (const [name, run, structure, field, offset, code] of cases) {
    test(name, () => {
      const { structure: s, field: f, offset: o, code: c } = failure(run)
      expect({ structure: s, field: f, offset: o, code: c as string }).toEqual({ structure, field, offset, code })
    })
  }

  test("a hot key's size counts with all its 64 bits", () => {
    const bytes = bytesOf(structVectors.find(({ name }) => name === "db_statistics")!.hex)
    const lastSlot = 224 + 9 * 24
    new DataView(bytes.buffer).setUint32(lastSlot + 20, 1, true)
    const error = failure(() => decode(structs.dbStatistics, bytes))
    expect([error.code, error.structure, error.field, error.offset]).toEqual([
      "EMSGSIZE",
      "db_statistics",
      "hotKeys",
      lastSlot + 16,
    ])
  })

  test("a field after a nested structure is blamed on the outer one", () => {
    const error = failure(() => decode(structs.electionMessage, new Uint8Array(26)))
    expect([error.structure, error.field, error.offset]).toEqual(["election_message", "pnn", 24])
  })
})

test("the last byte of a name field is taken as NUL whatever it is", () => {
  const bytes = new Uint8Array(24).fill(0x65)
  expect(decode(structs.iface, bytes).name).toBe("e".repeat(17))
})

describe("encoders refuse what a field can't hold", () => {
  const cases: readonly [name: string, run: () => unknown, structure: string, field: string][] = [
    ["negative u32", () => encode(structs.banState, { pnn: -1, time: 0 }), "ban_state", "pnn"],
    ["fraction", () => encode(structs.banState, { pnn: 0, time: 0.5 }), "ban_state", "time"],
    ["u32 overflow", () => encode(structs.banState, { pnn: 0, time: 2 ** 32 }), "ban_state", "time"],
    ["u8 overflow", () => encode(structs.dbid, { dbId: 1, flags: 256 }), "dbid", "flags"],
    ["u16 overflow", () => encode(structs.iface, { name: "e", linkState: 65536, references: 0 }), "iface", "linkState"],
    ["long name", () => encode(structs.iface, { name: "e".repeat(18), linkState: 0, references: 0 }), "iface", "name"],
    ["NUL in text", () => encode(structs.tunable, { value: 1, name: "a\0b" }), "tunable", "name"],
    ["separator in a name", () => encode(structs.varList, ["a:b"]), "var_list", ""],
    ["stray surrogate", () => encode(structs.tunable, { value: 1, name: "\ud800" }), "tunable", "name"],
    [
      "not an address",
      () => encode(structs.publicIp, { pnn: 0, addr: { family: "inet", addr: "1.2.3", port: 0, scopeId: 0 } }),
      "public_ip",
      "addr",
    ],
    [
      "wide port",
      () => encode(structs.sockAddr, { family: "inet", addr: "1.2.3.4", port: 65536, scopeId: 0 }),
      "sock_addr",
      "",
    ],
    ["unsafe seconds", () => encode(structs.timeval, { sec: 2 ** 53, usec: 0 }), "timeval", "sec"],
  ]
  for (const [name, run, structure, field] of cases) {
    test(name, () => {
      const error = failure(run)
      expect([error.code, error.structure, error.field]).toEqual(["EINVAL", structure, field])
    })
  }

  test("an empty var_list still has its NUL, as length 0 crashes the stock tool", () => {
    expect(encode(structs.varList, []).toHex()).toBe("0100000000")
  })
})

test("types follow from descriptions (checked by the compiler)", () => {
  type FlagChange = { readonly pnn: number; readonly newFlags: number; readonly oldFlags: number }
  expectTypeOf<structs.NodeFlagChange>().toEqualTypeOf<FlagChange>()
  expectTypeOf<structs.VnnMap>().toEqualTypeOf<{ readonly generation: number; readonly map: readonly number[] }>()
  expectTypeOf<structs.NodeMap>().toEqualTypeOf<readonly structs.NodeAndFlags[]>()
  expectTypeOf<structs.NodeAndFlags["addr"]>().toEqualTypeOf<SockAddr>()
  expectTypeOf<structs.SrvidMessage>().toEqualTypeOf<{ readonly pnn: number; readonly srvid: Word64 }>()
  expectTypeOf<RequestOf<"SET_BAN_STATE">>().toEqualTypeOf<structs.BanState>()
  expectTypeOf<RequestOf<"GET_PNN">>().toEqualTypeOf<undefined>()
  expectTypeOf<ReplyOf<"GETDBPATH">>().toEqualTypeOf<string | null>()
  expectTypeOf<PayloadOf<"ELECTION">>().toEqualTypeOf<structs.ElectionMessage>()
})
