// Every sample file of the real library: same header, lists, records and check verdict; every defect gives a typed error. The samples
// and what libtdb 1.4.8 says of them are in tests/vectors/tdb.

import { expect, test } from "bun:test"
import { readdirSync, readFileSync } from "node:fs"
import { join } from "node:path"
import { AT_CHAINS, AT_FREELIST, AT_NEXT, AT_RECOVERY_START } from "../../lib/tdb/format.ts"
import {
  check,
  jenkinsHash,
  oldHash,
  openMemory,
  summary,
  type Tdb,
  TdbError,
  traverseRead,
} from "../../lib/tdb/tdb.ts"

const folder = join(import.meta.dir, "../vectors/tdb")

function load(name: string): Uint8Array {
  const bytes = readFileSync(join(folder, name))
  return name.endsWith(".gz") ? Bun.gunzipSync(bytes) : new Uint8Array(bytes)
}

interface SampleRecord {
  chain: number
  offset: number
  key_hex: string
  data_hex?: string
}
interface Parsed {
  byte_order: string
  header: { hash_size: number; recovery_start: number; sequence_number: number; mutex_size: number }
  header_at_mutex_size?: { sequence_number: number; recovery_start: number }
  hash_function: string
  map_size: number
  lists: Record<string, number[]>
  records_in_traverse_order: SampleRecord[]
}
interface Sample {
  parsed: Parsed
  after_recovery?: {
    recovery_start: number
    sequence_number: number
    lists: Record<string, number[]>
    records_in_traverse_order: SampleRecord[]
    check_output: string[]
  }
}

function listsOf(db: Tdb): Record<string, number[]> {
  const lists: Record<string, number[]> = {}
  for (let list = 0; list <= db.hashSize; list++) {
    const offsets: number[] = []
    const head = list === 0 ? AT_FREELIST : AT_CHAINS + 4 * (list - 1)
    for (let offset = db.getUnsigned(head); offset !== 0; offset = db.getUnsigned(offset + AT_NEXT))
      offsets.push(offset)
    if (offsets.length > 0) lists[list === 0 ? "freelist" : String(list - 1)] = offsets
  }
  return lists
}

function recordsOf(db: Tdb): { key_hex: string; data_hex: string }[] {
  const records: { key_hex: string; data_hex: string }[] = []
  const hex = (bytes: Uint8Array, start: number, length: number) =>
    Buffer.from(bytes.slice(start, start + length)).toString("hex")
  traverseRead(db, (bytes, keyStart, keyLength, dataStart, dataLength) => {
    records.push({ key_hex: hex(bytes, keyStart, keyLength), data_hex: hex(bytes, dataStart, dataLength) })
  })
  return records
}

const withoutEmpty = (lists: Record<string, number[]>) =>
  Object.fromEntries(Object.entries(lists).filter(([, offsets]) => offsets.length > 0))

const samples = readdirSync(folder).filter((name) => /\.tdb(\.gz)?$/.test(name) && !name.startsWith("corrupt-"))

test("there are samples", () => {
  expect(samples.length).toBeGreaterThanOrEqual(20)
})

for (const name of samples) {
  const sample: Sample = JSON.parse(readFileSync(join(folder, name.replace(/\.tdb(\.gz)?$/, ".json")), "utf8"))
  test(`${name}: lists, records and check as libtdb`, () => {
    const { parsed } = sample
    const recovered = sample.after_recovery
    const db = openMemory({ name, contents: load(name) })
    expect(db.hashSize).toBe(parsed.header.hash_size)
    expect(db.hashKind.name as string).toBe(parsed.hash_function)
    expect(db.swapped).toBe(parsed.byte_order === "big")
    expect(db.mapOffset).toBe(parsed.header.mutex_size)
    const live = recovered ?? { ...(parsed.header_at_mutex_size ?? parsed.header), ...parsed }
    expect(db.sequenceNumber()).toBe(live.sequence_number)
    expect(listsOf(db)).toEqual(withoutEmpty(live.lists))
    // data_hex is left out of the samples for long data
    const expected = live.records_in_traverse_order
    const records = recordsOf(db)
    expect(records.map((record) => record.key_hex)).toEqual(expected.map((record) => record.key_hex))
    expected.forEach((record, i) => {
      if (record.data_hex !== undefined) expect(records[i]!.data_hex).toBe(record.data_hex)
      expect(db.fetch(Buffer.from(record.key_hex, "hex"))).toEqual(
        new Uint8Array(Buffer.from(records[i]!.data_hex, "hex")),
      )
    })
    const result = check(db)
    expect(result.findings.map(String)).toEqual([])
    expect(result.ok).toBe(recovered === undefined || recovered.check_output[0] === "check -> 0")
    expect(result.records).toBe(expected.length)
    expect(summary(db).keys.count).toBe(expected.length)
  })
  if (sample.after_recovery !== undefined && /sync[123]|half|newarea/.test(name)) {
    test(`${name}: a commit that died is not opened read-only, and keeps its recovery area when undone`, () => {
      if (name.startsWith("txn-killed-at-sync1")) return
      expect(() => openMemory({ name, contents: load(name), readOnly: true })).toThrow(TdbError)
      const db = openMemory({ name, contents: load(name) })
      expect(db.getUnsigned(AT_RECOVERY_START)).toBeGreaterThan(0)
      db.startTransaction()
      db.store(Buffer.from("after"), new Uint8Array(100_000))
      db.commit()
      expect(check(db).findings.map(String)).toEqual([])
    })
  }
}

// ---- defects

interface Defect {
  file: string
  libtdb_1_4_8_result: Record<string, string[]>
}
const defects = Object.entries(
  JSON.parse(
    readFileSync(join(folder, "corrupt.json"), "utf8").replaceAll("libtdb_1.4.8_result", "libtdb_1_4_8_result"),
  ).cases as Record<string, Defect>,
)
const errnos: Record<string, number> = { "errno=5": 5, "errno=22": 22, "errno=38": 38 }
const hello = Buffer.from("hello")

test("there are defects", () => {
  expect(defects.length).toBe(22)
})

for (const [what, defect] of defects) {
  const said = defect.libtdb_1_4_8_result
  const openError = /open failed (errno=\d+)/.exec(said.check![0]!)?.[1]
  const contents = load(defect.file)
  const open = () => openMemory({ name: defect.file, contents })

  if (openError !== undefined) {
    test(`${what}: refused at open with libtdb's errno`, () => {
      try {
        open()
        throw new Error("was opened")
      } catch (error) {
        expect(error).toBeInstanceOf(TdbError)
        const tdbError = error as TdbError
        expect(tdbError.code).toBe("FORMAT")
        expect(tdbError.errno).toBe(errnos[openError]!)
        expect(tdbError.file).toBe(defect.file)
      }
    })
    continue
  }

  test(`${what}: check finds it`, () => {
    const result = check(open())
    expect(result.ok).toBe(false)
    expect(result.findings.length).toBeGreaterThan(0)
    for (const finding of result.findings) expect(finding).toBeInstanceOf(TdbError)
    // The finding has libtdb's words, where it has words.
    const words = said.check!.find((line) => line.startsWith("LOG"))
    const phrase =
      /Hashes do not match|invalid tailer|incorrect hash|tdb_oob|misaligned next|overflow|too short|Bad magic/.exec(
        words ?? "",
      )
    if (phrase !== null) expect(result.findings.map(String).join("\n")).toContain(phrase[0])
  })

  test(`${what}: every operation ends with libtdb's result or a typed error that says where`, () => {
    const attempt = (operation: (db: Tdb) => unknown): unknown => {
      const db = open()
      const before = new Uint8Array(db.b)
      try {
        return operation(db)
      } catch (error) {
        expect(error).toBeInstanceOf(TdbError)
        expect((error as TdbError).file).toBe(defect.file)
        // nothing silently emptied
        expect(Buffer.compare(before.subarray(0, 168), db.b.subarray(0, 168))).toBe(0)
        return (error as TdbError).code
      }
    }
    const fetched = attempt((db) => db.fetch(hello))
    const libtdbFound = /fetch -> 0x1/.test(said.fetch_hello![0]!)
    if (libtdbFound) expect(fetched).toEqual(new Uint8Array(Buffer.from("world,again")))
    else if (/does not exist/.test(said.fetch_hello![1]!)) expect(fetched).toBeNull()
    else expect(["CORRUPT", "IO"]).toContain(fetched as string)

    const walked = attempt((db) => recordsOf(db).length)
    const count = /traverse_read (-?\d+)/.exec(said.traverse_read![0]!)?.[1]
    if (count !== undefined && Number(count) >= 0) expect(walked).toBe(Number(count))
    // libtdb never comes back from a loop of two records
    else expect(["CORRUPT", "IO"]).toContain(walked as string)

    const deleted = attempt((db) => db.delete(hello))
    if (said.delete_hello![0] === "delete -> 0") expect(deleted).toBe(true)
    else if (/does not exist/.test(said.delete_hello![0]!)) expect(deleted).toBe(false)
    attempt((db) => db.store(hello, new Uint8Array(3000)))
  })
}

// ---- hashes

test("both hash functions agree with libtdb's vectors", () => {
  const vectors = JSON.parse(readFileSync(join(folder, "hash-vectors.json"), "utf8"))
  const list: { key_hex: string; old: string | number; jenkins: string | number }[] = vectors.vectors ?? vectors
  expect(list.length).toBeGreaterThanOrEqual(30)
  for (const vector of list) {
    const key = Buffer.from(vector.key_hex, "hex")
    expect(oldHash(key)).toBe(Number(vector.old))
    expect(jenkinsHash(key)).toBe(Number(vector.jenkins))
  }
})
