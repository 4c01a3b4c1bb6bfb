// Filling a wiped database: after any history of the file it holds exactly what was put in, and our check as well as the real
// tdbtool find nothing wrong with it, then and after more single stores.

import { afterAll, expect, test } from "bun:test"
import { existsSync, mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { check, Filling, INCOMPATIBLE_HASH, openMemory, openTdb, type Tdb, traverseRead } from "../../lib/tdb/tdb.ts"
import { firstSeed, Random, soak } from "./random.ts"

const TDBTOOL = "/usr/bin/tdbtool"
const folder = mkdtempSync(join(tmpdir(), "ctdb-filling-"))
afterAll(() => rmSync(folder, { recursive: true, force: true }))

function contents(db: Tdb): Map<string, string> {
  const found = new Map<string, string>()
  traverseRead(db, (bytes, keyStart, keyLength, dataStart, dataLength) => {
    const key = Buffer.from(bytes.subarray(keyStart, keyStart + keyLength)).toString("hex")
    expect(found.has(key)).toBe(false)
    found.set(key, Buffer.from(bytes.subarray(dataStart, dataStart + dataLength)).toString("hex"))
  })
  return found
}

const hex = (bytes: Uint8Array) => Buffer.from(bytes).toString("hex")

/** Stores and deletes, some in transactions, so that free space and recovery areas lie anywhere. */
function age(db: Tdb, random: Random): void {
  for (let round = random.below(4); round > 0; round--) {
    const inTransaction = random.below(3) > 0
    if (inTransaction) db.startTransaction()
    for (let n = random.below(200); n > 0; n--) {
      const key = random.bytes(1 + random.below(3))
      if (random.below(3) === 0) db.delete(key)
      else db.store(key, random.bytes(random.below(random.below(10) === 0 ? 20_000 : 300)))
    }
    if (inTransaction) db.commit()
  }
}

for (let seed = firstSeed; seed < firstSeed + (soak ? 300 : 25); seed++) {
  test(`seed ${seed}: holds what was put in, and is sound`, () => {
    const random = new Random(seed)
    const path = join(folder, `${seed}.tdb`)
    const hashSize = 1 + random.below(50)
    const db = openTdb(path, { openFlags: 0o102, hashSize, flags: random.below(2) * INCOMPATIBLE_HASH })
    age(db, random)
    db.startTransaction()
    db.wipe()
    const filling = Filling.begin(db)!
    const expected = new Map<string, string>()
    for (let n = random.below(400); n > 0; n--) {
      const key = random.bytes(random.below(4))
      const data = random.bytes(random.below(random.below(20) === 0 ? 100_000 : 200))
      const front = random.below(8)
      const source = Buffer.concat([random.bytes(front), key, data])
      const known = expected.has(hex(key))
      const at = filling.add(source, front, key.length, data.length, db.hash(key))
      expect(at === 0).toBe(known)
      if (known) continue
      expected.set(hex(key), hex(data))
      expect(hex(db.b.subarray(at, at + data.length))).toBe(hex(data))
    }
    filling.end()
    db.commit()
    expect(contents(db)).toEqual(expected)
    expect(check(db)).toMatchObject({ ok: true, records: expected.size })
    age(db, random)
    expect(check(db).findings).toEqual([])
    db.close()
    if (!existsSync(TDBTOOL)) return
    expect(Bun.spawnSync([TDBTOOL, path, "check"]).stdout.toString()).toMatch(/integrity is OK/)
  })
}

test("a cancelled transaction leaves what was there; outside of one there is no filling", () => {
  const db = openMemory({ name: "cancelled", hashSize: 7 })
  const key = new Uint8Array([1])
  db.store(key, new Uint8Array([2]))
  expect(Filling.begin(db)).toBeUndefined()
  db.startTransaction()
  db.wipe()
  const filling = Filling.begin(db)!
  filling.add(new Uint8Array([3, 4]), 0, 1, 1, db.hash(new Uint8Array([3])))
  db.cancel()
  expect([...contents(db)]).toEqual([["01", "02"]])
  expect(check(db).findings).toEqual([])
})

test("a map that can grow no more says so, and the transaction can be cancelled", () => {
  const db = openMemory({ name: "full", hashSize: 1 })
  db.startTransaction()
  db.wipe()
  const filling = Filling.begin(db)!
  // 4 GB in one record: more than an offset can say.
  expect(() => filling.add(new Uint8Array(1), 0, 0, 0xfffffff0, 0)).toThrow(/cannot grow/)
  db.cancel()
  expect(check(db).findings).toEqual([])
})
