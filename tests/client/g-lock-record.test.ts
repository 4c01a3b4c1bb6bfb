// Records of g_lock.tdb in both formats: bytes that real programs wrote (client-library 16 and 17), which of the two a record is in, and
// what becomes of holders.

import { describe, expect, test } from "bun:test"
import fc from "fast-check"
import {
  type CtdbLock,
  type GLockRecord,
  holdersOf,
  readGLock,
  type SambaLock,
  withHolder,
  withoutHolder,
  writeGLock,
} from "../../lib/client/g-lock-record.ts"
import { ProtocolError } from "../../lib/protocol/codec.ts"
import type { ServerId } from "../../lib/protocol/structs.ts"
import { fromBigInt, word64 } from "../../lib/protocol/word64.ts"

const bytes = (hex: string): Uint8Array => new Uint8Array(Buffer.from(hex.replace(/\s/g, ""), "hex"))

// `net g_lock do mykey`: pid 12033, node 0.
const NET_HOLDS = bytes(
  "00000000 012f000000000000 00000000 00000000 63ac60920835af83 823efc5ac5d114e3 813efc5ac5d114e3 00000000",
)
// The same with one watcher on node 1.
const NET_WAITS = bytes(
  "01000000 6c66000000000000 00000000 01000000 bf48fc7651677ad4 0100000000000000" +
    "7565000000000000 00000000 00000000 0b296a28e6ec9d8f 087642eb11675353 077642eb11675353 00000000",
)
const server = (pid: number, vnn: number, unique: bigint, taskId = 0): ServerId => ({
  pid: word64(0, pid),
  taskId,
  vnn,
  uniqueId: fromBigInt(unique),
})
const NET_HOLDER = server(0x2f01, 0, 0x83af35089260ac63n)

describe("bytes of real programs", () => {
  test("Samba's exclusive holder", () => {
    expect(readGLock(NET_HOLDS)).toEqual({
      format: "samba",
      watchers: [],
      exclusive: NET_HOLDER,
      shared: [],
      lockEpoch: fromBigInt(0xe314d1c55afc3e82n),
      dataEpoch: fromBigInt(0xe314d1c55afc3e81n),
      userData: new Uint8Array(0),
    })
    expect(writeGLock(readGLock(NET_HOLDS))).toEqual(NET_HOLDS)
  })

  test("Samba's holder with a watcher", () => {
    const record = readGLock(NET_WAITS) as SambaLock
    expect(record.watchers).toEqual([{ id: server(0x666c, 1, 0xd47a675176fc48bfn), instance: word64(0, 1) }])
    expect(holdersOf(record)).toEqual([{ type: "write", id: server(0x6575, 0, 0x8f9dece6286a290bn) }])
    expect(writeGLock(record)).toEqual(NET_WAITS)
  })

  test("the stock client's holder", () => {
    // A transaction of pid 4660 on node 2, database 0x7132c184.
    const list = bytes("01000000 00000000 3412000000000000 84c13271 02000000 34120000 84c13271")
    const record = readGLock(list) as CtdbLock
    expect(record).toEqual({
      format: "ctdb",
      holders: [
        { type: "write", id: { pid: word64(0, 4660), taskId: 0x7132c184, vnn: 2, uniqueId: word64(0x7132c184, 4660) } },
      ],
    })
    expect(writeGLock(record)).toEqual(list)
  })
})

describe("which format", () => {
  const zeros = (count: number) => "00".repeat(count)
  const shared = (pid: string) => `${pid}000000000000 00000000 01000000 0807060504030201`
  test.each([
    [
      "Samba, two readers: 96 bytes",
      `00000000 ${zeros(24)} ${"11".repeat(16)} 02000000 ${shared("0102")} ${shared("0103")}`,
      2,
    ],
    [
      "Samba, writer chosen while two readers are left",
      `00000000 ${shared("0105")} ${"11".repeat(16)} 02000000 ${shared("0102")} ${shared("0103")}`,
      3,
    ],
    [
      "Samba, one watcher, two readers",
      `01000000 ${shared("0104")} 0100000000000000 ${zeros(24)} ${"11".repeat(16)} 02000000 ${shared("0102")} ${shared("0103")}`,
      2,
    ],
    ["Samba, only a watcher", `01000000 ${shared("0104")} 0100000000000000`, 0],
  ])("%s", (_name, hex, holders) => {
    const record = readGLock(bytes(hex))
    expect(record.format).toBe("samba")
    expect(holdersOf(record).length).toBe(holders)
    expect(writeGLock(record)).toEqual(bytes(hex))
  })

  test("an empty record is free, and rubbish is refused without reading beyond it", () => {
    expect(readGLock(new Uint8Array(0))).toEqual({ format: "free" })
    for (const hex of ["00", "ffffffff", "01000000", `${"00".repeat(44)}ffffffff`, `${"ff".repeat(96)}`]) {
      expect(() => readGLock(bytes(hex))).toThrow(ProtocolError)
    }
  })

  const word = fc
    .tuple(fc.integer({ min: 0, max: 0xffffffff }), fc.integer({ min: 0, max: 0xffffffff }))
    .map(([hi, lo]) => word64(hi, lo))
  const anyServer: fc.Arbitrary<ServerId> = fc.record({
    pid: fc.integer({ min: 1, max: 0x3fffff }).map((pid) => word64(0, pid)),
    taskId: fc.integer({ min: 0, max: 0xffffffff }),
    vnn: fc.integer({ min: 0, max: 63 }),
    uniqueId: word,
  })
  const anyList: fc.Arbitrary<GLockRecord> = fc
    .array(fc.record({ type: fc.constantFrom("read" as const, "write" as const), id: anyServer }), {
      minLength: 1,
      maxLength: 5,
    })
    .map((holders) => ({ format: "ctdb", holders }))
  const anySamba: fc.Arbitrary<GLockRecord> = fc
    .record({
      watchers: fc.array(fc.record({ id: anyServer, instance: word }), { maxLength: 4 }),
      exclusive: fc.option(anyServer, { nil: undefined }),
      shared: fc.array(anyServer, { maxLength: 4 }),
      lockEpoch: word,
      dataEpoch: word,
      userData: fc.uint8Array({ maxLength: 20 }),
    })
    .filter(({ exclusive, shared }) => exclusive !== undefined || shared.length > 0)
    .map((parts) => ({ format: "samba", ...parts }))

  test("any record of either format is told from the other and comes back", () => {
    fc.assert(
      fc.property(fc.oneof(anyList, anySamba), (record) => {
        expect(readGLock(writeGLock(record))).toEqual(record)
      }),
      { seed: 20261124, numRuns: 2000 },
    )
  })

  test("any bytes at all are read or refused", () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 200 }), (data) => {
        try {
          readGLock(data)
        } catch (error) {
          expect(error).toBeInstanceOf(ProtocolError)
        }
      }),
      { seed: 20261124, numRuns: 5000 },
    )
  })
})

describe("holders", () => {
  const me = server(77, 1, 5n)
  test("into and out of a free record leaves it free", () => {
    for (const format of ["ctdb", "samba"] as const) {
      for (const type of ["read", "write"] as const) {
        const held = withHolder({ format: "free" }, { type, id: me }, format)
        expect(held.format).toBe(format)
        expect(holdersOf(held)).toEqual([{ type, id: me }])
        expect(writeGLock(withoutHolder(held, me))).toEqual(new Uint8Array(0))
      }
    }
  })

  test("others, watchers and user data stay, and Samba's lock epoch changes", () => {
    const record = readGLock(NET_WAITS) as SambaLock
    const left = withoutHolder(record, holdersOf(record)[0]!.id) as SambaLock
    expect(left.watchers).toEqual(record.watchers)
    expect(left.lockEpoch).not.toEqual(record.lockEpoch)
    expect(writeGLock(left)).toEqual(NET_WAITS.slice(0, 36))
    const two = withHolder(
      withHolder({ format: "free" }, { type: "read", id: me }, "ctdb"),
      { type: "read", id: NET_HOLDER },
      "ctdb",
    )
    expect(holdersOf(withoutHolder(two, me))).toEqual([{ type: "read", id: NET_HOLDER }])
    expect(withoutHolder(two, server(1, 1, 1n))).toEqual(two)
  })
})
