// Transactions larger than the memory they may take: what they have changed moves to a file without a name, and nothing else about
// them changes. The limit on memory, and random histories with a limit of none at all against a model.

import { afterAll, expect, test } from "bun:test"
import { mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { check, openTdb, type Tdb, traverseRead } from "../../lib/tdb/tdb.ts"
import { firstSeed, Random, soak } from "./random.ts"

const folder = mkdtempSync(join(tmpdir(), "ctdb-spill-"))
afterAll(() => rmSync(folder, { recursive: true, force: true }))
const NOSYNC = 0x40

/** Records by key: length and hash of the data. */
type Contents = Map<string, string>

const short = (data: Uint8Array): string => `${data.length} ${Bun.hash(data)}`

function contentsOf(db: Tdb): Contents {
  const contents: Contents = new Map()
  traverseRead(db, (bytes, keyStart, keyLength, dataStart, dataLength) => {
    const key = Buffer.from(bytes.subarray(keyStart, keyStart + keyLength)).toString()
    contents.set(key, short(bytes.subarray(dataStart, dataStart + dataLength)))
  })
  return contents
}

function history(random: Random, path: string): { spilled: number; moved: number } {
  rmSync(path, { force: true })
  const db = openTdb(path, { flags: NOSYNC, hashSize: random.pick([1, 131, 10007]), openFlags: 0o102 })
  db.transactionMemory_bytes_max = random.pick([0, 0, 1 << 20])
  let spilled = 0
  let moved = 0
  let model: Contents = new Map()
  try {
    for (let transaction = 0; transaction < 4; transaction++) {
      const next: Contents = new Map(model)
      db.startTransaction()
      const first = db.b.length
      const operations = 20 + random.below(60)
      for (let i = 0; i < operations; i++) {
        const name = `key${random.below(80)}`
        const key = Buffer.from(name)
        if (random.below(5) === 0) {
          db.delete(key)
          next.delete(name)
        } else {
          // Pages of one byte again and again, so that a wrong page shows.
          const data = Buffer.alloc(random.below(random.pick([20_000, 200_000, 1_000_000])), random.below(256))
          data.write(`${transaction} ${i}`)
          db.store(key, data)
          next.set(name, short(data))
        }
        if (random.below(20) === 0) {
          const data = db.fetch(key)
          expect(data === null ? undefined : short(data)).toBe(next.get(name))
        }
      }
      spilled = Math.max(spilled, db.transaction!.space.spilled.size)
      if (db.b.length > first && db.transaction!.space.spilled.size > 0) moved++
      expect(contentsOf(db)).toEqual(next)
      if (random.below(4) === 0) db.cancel()
      else {
        db.commit()
        model = next
      }
      expect(contentsOf(db)).toEqual(model)
      expect(check(db).findings.map(String)).toEqual([])
    }
  } finally {
    db.close()
  }
  return { spilled, moved }
}

test("random histories with nothing left in memory, window moved meanwhile", () => {
  let spilled = 0
  let moved = 0
  const rounds = process.env.CTDB_SEED ? 1 : soak ? 2000 : 25
  for (let seed = firstSeed; seed < firstSeed + rounds; seed++) {
    try {
      const one = history(new Random(seed), join(folder, "history.tdb"))
      spilled += one.spilled
      moved += one.moved
    } catch (error) {
      throw new Error(`CTDB_SEED=${seed} replays this: ${error instanceof Error ? error.stack : error}`)
    }
  }
  console.log(`${spilled} parts were spilled, ${moved} views moved with some`)
  if (process.env.CTDB_SEED) return
  expect(spilled).toBeGreaterThan(100)
  expect(moved).toBeGreaterThan(0)
  expect(readdirSync(folder)).toEqual(["history.tdb"])
}, 300_000)

const anonymousBytes = (): number =>
  Number(/RssAnon:\s+(\d+) kB/.exec(readFileSync("/proc/self/status", "utf8"))![1]) * 1024

test("400 MB changed in one transaction, in new space and in old, in less than 250 MB of memory", () => {
  const path = join(folder, "large.tdb")
  const db = openTdb(path, { flags: NOSYNC, hashSize: 10007, openFlags: 0o102 })
  db.autoRepack = false
  const value = Buffer.alloc(4000)
  for (let round = 1; round <= 2; round++) {
    Bun.gc(true)
    const before = anonymousBytes()
    db.startTransaction()
    for (let i = 0; i < 80_000; i++) {
      value.fill(round)
      db.store(Buffer.from(`key${i}`), value)
    }
    const inside = anonymousBytes() - before
    db.commit()
    console.log(`round ${round}: ${(inside / 1e6).toFixed(0)} MB`)
    expect(inside).toBeLessThan(250e6)
    expect(db.size).toBeGreaterThan(400e6)
    let right = 0
    traverseRead(db, (bytes, _keyStart, _keyLength, dataStart, dataLength) => {
      if (bytes[dataStart] === round && bytes[dataStart + dataLength - 1] === round) right++
    })
    expect(right).toBe(80_000)
  }
  expect(check(db).findings.map(String)).toEqual([])
  db.close()
}, 300_000)
