// The merge against the reference's rule (cluster-and-recovery 7.5) applied record by record in the order of nodes, for
// random copies in random orders of arrival, in memory and over a scratch file; and what it must refuse and tell.

import { expect, setDefaultTimeout, test } from "bun:test"
import { mkdtempSync, readdirSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { diskFiles } from "../../../daemon/recovery/files.ts"
import { type MergeRule, RecordMerge } from "../../../daemon/recovery/merge.ts"
import { decode, encode, ProtocolError } from "../../../lib/protocol/codec.ts"
import { ltdbHeader, recBuffer } from "../../../lib/protocol/structs.ts"
import { word64 } from "../../../lib/protocol/word64.ts"
import { openTdb } from "../../../lib/tdb/tdb.ts"
import { Random } from "../../simulation/world.ts"

setDefaultTimeout(60_000)

const DB = 0xd56fcbab
const LEADER = 1
const HASH_SIZE = 100_001
const files = diskFiles(mkdtempSync(join(tmpdir(), "ctdb-merge-")))

interface Copy {
  readonly key: string
  readonly rsn: number
  readonly dmaster: number
  readonly flags: number
  readonly value: string
}

const data = ({ rsn, dmaster, flags, value }: Copy): Uint8Array => {
  const header = encode(ltdbHeader, { rsn: word64(rsn > 7 ? 1 : 0, rsn), dmaster, reserved1: 0, flags })
  return Buffer.concat([header, Buffer.from(value)])
}
const record = (copy: Copy) => ({ reqid: 0, key: Buffer.from(copy.key), data: data(copy) })
const buffer = (copies: readonly Copy[]) => encode(recBuffer, { dbId: DB, records: copies.map(record) })
const text = (copy: Copy) => `${copy.key} rsn ${copy.rsn} dmaster ${copy.dmaster} flags ${copy.flags} ${copy.value}`

/** What came out, sorted, and how many buffers of what size. */
function result(merge: RecordMerge, rule: MergeRule, limit = 100_000): { records: string[]; sizes: number[] } {
  const records: string[] = []
  const sizes: number[] = []
  for (const { bytes, count } of merge.buffers(rule, limit)) {
    const decoded = decode(recBuffer, bytes)
    expect(decoded.dbId).toBe(DB)
    expect(decoded.records.length).toBe(count)
    sizes.push(bytes.length)
    for (const { reqid, key, data } of decoded.records) {
      expect(reqid).toBe(0)
      const header = decode(ltdbHeader, data)
      const value = Buffer.from(data.subarray(24)).toString()
      const { dmaster, flags } = header
      records.push(text({ key: Buffer.from(key).toString(), rsn: header.rsn.lo, dmaster, flags, value }))
    }
  }
  merge.close()
  return { records: records.sort(), sizes }
}

/** 7.5 as it stands: node after node, record after record; then 7.6's changes. */
function bySerialRule(nodes: readonly (readonly Copy[])[]): string[] {
  const stored = new Map<string, Copy>()
  for (const copies of nodes) {
    for (const copy of copies) {
      const old = stored.get(copy.key)
      if (old !== undefined && copy.rsn < old.rsn) continue
      if (old !== undefined && copy.rsn === old.rsn && old.dmaster !== LEADER) continue
      stored.set(copy.key, copy)
    }
  }
  return [...stored.values()]
    .filter(({ value }) => value !== "")
    .map((copy) => text({ ...copy, dmaster: LEADER, flags: (copy.flags | 0x10000) >>> 0 }))
    .sort()
}

function randomCopies(random: Random, keys: number, size: number): Copy[][] {
  return Array.from({ length: 2 + random.below(4) }, (_, node) =>
    Array.from({ length: keys }, (_, index) => index)
      .filter(() => random.chance(0.8))
      .map((index) => ({
        key: `key ${index}`,
        rsn: random.below(12),
        dmaster: random.below(3),
        flags: random.pick([0, 0x10000, 0x1000000]),
        value: random.chance(0.2) ? "" : `node ${node} ${"x".repeat(random.below(size))}`,
      })),
  )
}

/** Buffers of all nodes, cut anywhere, mixed as they may arrive. */
function arrive(random: Random, merge: RecordMerge, nodes: readonly (readonly Copy[])[]): void {
  const queues = nodes.map((copies) => [...copies])
  while (queues.some((queue) => queue.length > 0)) {
    const source = random.below(queues.length)
    const cut = queues[source]!.splice(0, 1 + random.below(40))
    expect(merge.add(source, buffer(cut))).toBe(cut.length)
  }
}

test("whatever the order of arrival, the records are those of the serial rule", () => {
  for (let seed = 1; seed <= 300; seed++) {
    const random = new Random(seed)
    const nodes = randomCopies(random, 60, 20)
    const merge = new RecordMerge(DB, files, HASH_SIZE)
    arrive(random, merge, nodes)
    const { records } = result(merge, { kind: "volatile", leader: LEADER }, 100 + random.below(2000))
    expect({ seed, records }).toEqual({ seed, records: bySerialRule(nodes) })
  }
})

test("the same over a scratch file, which has no name", () => {
  const directory = mkdtempSync(join(tmpdir(), "ctdb-merge-"))
  for (let seed = 1; seed <= 4; seed++) {
    const random = new Random(seed)
    const nodes = randomCopies(random, 9000, 900)
    const merge = new RecordMerge(DB, diskFiles(directory), HASH_SIZE)
    arrive(random, merge, nodes)
    expect(merge.bytes).toBeGreaterThan(4 * 1024 * 1024)
    expect(readdirSync(directory)).toEqual([])
    const { records } = result(merge, { kind: "volatile", leader: LEADER })
    expect({ seed, records }).toEqual({ seed, records: bySerialRule(nodes) })
  }
  rmSync(directory, { recursive: true })
})

test("one buffer even without records, and a record of any size", () => {
  const empty = new RecordMerge(DB, files, HASH_SIZE)
  expect(result(empty, { kind: "volatile", leader: LEADER })).toEqual({ records: [], sizes: [8] })
  const one = { key: "big", rsn: 1, dmaster: 2, flags: 0, value: "x".repeat(9_000_000) }
  const small = { ...one, key: "small", value: "y" }
  const merge = new RecordMerge(DB, files, HASH_SIZE)
  merge.add(0, buffer([small, one]))
  const { records, sizes } = result(merge, { kind: "volatile", leader: LEADER })
  expect(records.length).toBe(2)
  expect(Math.max(...sizes)).toBeLessThan(9_000_200)
})

test("a buffer that can't be right is refused", () => {
  const good = buffer([{ key: "k", rsn: 1, dmaster: 0, flags: 0, value: "v" }])
  const bend = (at: number, value: number) => {
    const bent = good.slice()
    bent[at] = value
    return bent
  }
  const cases = {
    "no header": good.slice(0, 7),
    "other database": bend(0, 1),
    "more records than there are": bend(4, 2),
    "length too long": bend(8, 250),
    "length too short": bend(8, 3),
    "key beyond the record": bend(16, 200),
    "data shorter than its header": bend(20, 10),
    "cut off": good.slice(0, good.length - 1),
  }
  for (const [what, bytes] of Object.entries(cases)) {
    expect(() => new RecordMerge(DB, files, HASH_SIZE).add(0, bytes), what).toThrow(ProtocolError)
  }
  expect(new RecordMerge(DB, files, HASH_SIZE).add(0, good)).toBe(1)
})

test("one copy whole; of the others, what is no older state of it is told", () => {
  const common = { key: "same", rsn: 3, dmaster: 0, flags: 0, value: "s" }
  const winner: Copy[] = [
    common,
    { ...common, key: "changed since", rsn: 5, value: "new" },
    { ...common, key: "deleted since", rsn: 4, value: "" },
    { ...common, key: "two writes", rsn: 4, value: "ours" },
    { ...common, key: "only here" },
  ]
  const older: Copy[] = [
    common,
    { ...common, key: "changed since", rsn: 4, value: "old" },
    { ...common, key: "deleted since", rsn: 3, value: "old" },
    { ...common, key: "long deleted", rsn: 9, value: "" },
  ]
  const other: Copy[] = [
    common,
    { ...common, key: "changed since", rsn: 6, value: "theirs" },
    { ...common, key: "two writes", rsn: 4, value: "theirs" },
    { ...common, key: "only there", rsn: 1, value: "theirs" },
  ]
  const told: string[] = []
  const merge = new RecordMerge(DB, files, HASH_SIZE)
  merge.add(2, buffer(other))
  merge.add(0, buffer(older))
  merge.add(1, buffer(winner))
  const { records } = result(merge, {
    kind: "whole",
    winner: 1,
    leader: undefined,
    equals: new Set([1]),
    onDiverged: (source, key) => told.push(`${source} ${Buffer.from(key)}`),
  })
  expect(told.sort()).toEqual(["2 changed since", "2 only there", "2 two writes"])
  expect(records).toEqual(
    winner
      .filter(({ value }) => value !== "")
      .map(text)
      .sort(),
  )
})

test("with the winner's sequence number, a copy must not differ at all", () => {
  const one = { key: "k", rsn: 3, dmaster: 0, flags: 0, value: "a" }
  const told: number[] = []
  const merge = new RecordMerge(DB, files, HASH_SIZE)
  for (const [source, rsn] of [3, 2, 1].entries()) merge.add(source, buffer([{ ...one, rsn, value: `rsn ${rsn}` }]))
  const equals = new Set([0, 1])
  const onDiverged = (source: number) => told.push(source)
  result(merge, { kind: "whole", winner: 0, leader: undefined, equals, onDiverged })
  expect(told).toEqual([1])
})

test("records kept aside are a TDB under their name, and nothing is left of those that were not", () => {
  const directory = mkdtempSync(join(tmpdir(), "ctdb-merge-"))
  const aside = diskFiles(directory).openAside("p.tdb.node2")
  aside.store(Buffer.from("key"), Buffer.from("data"))
  const path = aside.keep("diverged.p.tdb")
  diskFiles(directory).openAside("gone").abandon()
  expect(readdirSync(directory)).toEqual(["diverged.p.tdb"])
  const tdb = openTdb(path)
  expect(Buffer.from(tdb.fetch(Buffer.from("key"))!).toString()).toBe("data")
  tdb.close()
  rmSync(directory, { recursive: true })
})
