// A million mutated files, opened, walked and changed in memory: every end is a result or a TdbError, never another exception, an
// access outside the file, or a loop. CTDB_SEED=N replays one; CTDB_SOAK=1 runs fifty million.

import { expect, test } from "bun:test"
import { readdirSync, readFileSync } from "node:fs"
import { join } from "node:path"
import {
  check,
  freelistSize,
  keys,
  openMemory,
  rescue,
  summary,
  type Tdb,
  TdbError,
  traverse,
  Walk,
} from "../../lib/tdb/tdb.ts"
import { firstSeed, Random, soak } from "../tdb/random.ts"

const folder = join(import.meta.dir, "../vectors/tdb")
const FILES = process.env.CTDB_SEED ? 1 : soak ? 50_000_000 : 1_000_000

// Small ones for most rounds; a larger one, and those that need recovery, now and then.
const small: Uint8Array[] = []
const large: Uint8Array[] = []
for (const name of readdirSync(folder)) {
  if (!/\.tdb(\.gz)?$/.test(name)) continue
  const bytes = readFileSync(join(folder, name))
  const image = new Uint8Array(name.endsWith(".gz") ? Bun.gunzipSync(bytes) : bytes)
  if (image.length <= 12288) small.push(image)
  else if (image.length <= 100_000) large.push(image)
}

const WORDS = [
  0, 1, 3, 4, 24, 0x26011999, 0xd9fee666, 0xfee1dead, 0xf53bc0e7, 0x42424242, 0x7fffffff, 0x80000000, 0xffffffff,
]

// Offsets where structure is likely: header, heads, and words that look like it.
function interesting(random: Random, image: Uint8Array): number {
  const dice = random.below(10)
  if (dice < 1) return random.below(Math.min(image.length, 240)) & ~3
  if (dice < 4) return random.below(image.length) & ~3
  for (let tries = 0; tries < 40; tries++) {
    const at = random.below(image.length - 4) & ~3
    if ((image[at]! | image[at + 1]! | image[at + 2]! | image[at + 3]!) !== 0) return at
  }
  return random.below(image.length) & ~3
}

function mutate(random: Random, original: Uint8Array): Uint8Array {
  let image = original.slice()
  const view = new DataView(image.buffer)
  for (let count = 1 + random.below(5); count > 0; count--) {
    const at = interesting(random, image)
    if (at + 4 > image.length) continue
    const dice = random.below(10)
    if (dice < 3) view.setUint32(at, random.pick(WORDS), true)
    else if (dice < 5) view.setUint32(at, random.below(image.length) & ~3, true)
    else if (dice < 6) view.setUint32(at, view.getUint32(at, true) + random.pick([-4, 4, 1, -1, 24, 28]), true)
    else if (dice < 7) image[at + random.below(4)] = random.below(256)
    // One structure's word into another's place: loops and crossed lists.
    else view.setUint32(at, view.getUint32(interesting(random, image) & (~3 % (image.length - 4)), true), true)
  }
  if (random.below(40) === 0) image = image.slice(0, random.below(image.length))
  return image
}

function use(random: Random, db: Tdb): void {
  const key = Buffer.from(random.pick(["hello", "key000000", "a", "", "k1", "nothing"]))
  const data = new Uint8Array(random.pick([0, 5, 30, 500, 9000]))
  switch (random.below(14)) {
    case 0:
      return void check(db)
    case 1:
      return void summary(db)
    case 2:
      return void rescue(db, () => {})
    case 3:
    case 4:
      return void db.store(key, data)
    case 5:
      return void db.delete(key)
    case 6:
      return void freelistSize(db)
    case 7:
      return void db.append(key, data)
    case 8:
      db.maxDead = 5
      db.delete(key)
      return void db.store(key, data)
    case 9: {
      db.startTransaction()
      try {
        db.store(key, data)
        db.store(Buffer.from("other"), data)
      } catch (error) {
        db.cancel()
        throw error
      }
      return void db.commit()
    }
    case 10:
      return void db.wipe()
    case 11: {
      const walk = new Walk(db)
      try {
        for (let chunks = 0; walk.next(2, () => {}); chunks++) if (chunks > 10_000) throw new Error("walks for ever")
      } finally {
        walk.close()
      }
      return
    }
    case 12:
      return void traverse(db, (found) => {
        if (random.below(3) === 0) db.delete(found)
      })
    default:
      db.fetch(key)
      db.parse(key, (bytes, start, length) => bytes[start + length])
      return void db.repack()
  }
}

test(
  `${FILES} mutated files`,
  () => {
    let opened = 0
    let refused = 0
    let defects = 0
    let slowest_ms = 0
    for (let seed = firstSeed; seed < firstSeed + FILES; seed++) {
      const random = new Random(seed)
      const original = random.below(200) === 0 ? random.pick(large) : random.pick(small)
      const image = mutate(random, original)
      const start = performance.now()
      try {
        let db: Tdb
        try {
          db = openMemory({ name: "fuzz", contents: image })
        } catch (error) {
          if (!(error instanceof TdbError)) throw error
          refused++
          continue
        }
        opened++
        try {
          if (random.below(2) === 0) keys(db)
          use(random, db)
        } catch (error) {
          if (!(error instanceof TdbError)) throw error
          expect(error.file).toBe("fuzz")
          defects++
        } finally {
          db.close()
        }
      } catch (error) {
        throw new Error(`CTDB_SEED=${seed} replays this: ${error instanceof Error ? error.stack : error}`)
      }
      const took_ms = performance.now() - start
      if (took_ms > slowest_ms) slowest_ms = took_ms
      if (took_ms > 5000) throw new Error(`CTDB_SEED=${seed}: took ${took_ms} ms`)
    }
    console.log(`${opened} opened, ${refused} refused, ${defects} defects met, slowest ${slowest_ms.toFixed(0)} ms`)
    if (FILES === 1) return
    expect(opened).toBeGreaterThan(FILES / 3)
    expect(defects).toBeGreaterThan(FILES / 20)
  },
  soak ? 7_200_000 : 300_000,
)
