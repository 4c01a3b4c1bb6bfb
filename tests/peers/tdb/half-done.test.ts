// Every store of libtdb's operations outside of transactions, one by one: a kill may leave the file like that. Whatever was left half done,
// our engine hands no byte out twice from then on; what may remain is space in no list, and a tailer that was not written.

import { afterAll, expect, test } from "bun:test"
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { AT_FREELIST, AT_MAGIC, AT_NEXT, AT_REC_LEN, FREE, RECORD_HEADER } from "../../../lib/tdb/format.ts"
import { freelistSize } from "../../../lib/tdb/freelist.ts"
import { check, openMemory, type Tdb, traverseRead } from "../../../lib/tdb/tdb.ts"
import { firstSeed, Random } from "../../tdb/random.ts"
import { LibTdb } from "./libtdb.ts"

const folder = mkdtempSync(join(tmpdir(), "ctdb-half-"))
afterAll(() => rmSync(folder, { recursive: true, force: true }))
const NOLOCK = 0x4

function everyStore(script: string): Uint8Array[] {
  const [path, out] = [join(folder, "stores.tdb"), join(folder, "stores.out")]
  rmSync(path, { force: true })
  const words = [join(import.meta.dir, "stores.ts"), path, "1", String(NOLOCK), out, script]
  expect(Bun.spawnSync([process.execPath, ...words], { stderr: "inherit" }).exitCode).toBe(0)
  const bytes = readFileSync(out)
  const images: Uint8Array[] = []
  for (let at = 0; at < bytes.length; ) {
    const end = at + 4 + bytes.readUInt32LE(at)
    images.push(new Uint8Array(bytes.subarray(at + 4, end)))
    at = end
  }
  return images
}

type Contents = Map<string, string>

function contentsOf(db: Tdb): Contents {
  const contents: Contents = new Map()
  const text = (bytes: Uint8Array, start: number, length: number) =>
    Buffer.from(bytes.subarray(start, start + length)).toString("latin1")
  traverseRead(db, (bytes, keyStart, keyLength, dataStart, dataLength) => {
    contents.set(text(bytes, keyStart, keyLength), text(bytes, dataStart, dataLength))
  })
  return contents
}

const entries = (contents: Contents): [string, string][] => [...contents].sort(([a], [b]) => (a < b ? -1 : 1))

/** A random history on the file; its contents stay what they must be, and nothing but lost space is found in it. */
function goOn(what: string, db: Tdb, random: Random, sizes: readonly number[]): void {
  const model = contentsOf(db)
  for (let step = 0; step < 60; step++) {
    const key = random.pick(["a", "b", "c", "d", "e", "f", "g", "h"])
    if (random.below(3) === 0) expect(db.delete(Buffer.from(key))).toBe(model.delete(key))
    else {
      const data = Buffer.alloc(random.pick(sizes) + random.below(8), 97 + random.below(26))
      db.store(Buffer.from(key), data)
      model.set(key, data.toString("latin1"))
    }
    if (step % 7 === 0) freelistSize(db)
    const now = contentsOf(db)
    if (!Bun.deepEquals(entries(now), entries(model)))
      throw new Error(`${what}, step ${step}: records are not what they were`)
  }
  const grave = check(db)
    .findings.map(String)
    .filter((text) => !/in no list|invalid tailer/.test(text))
  expect([what, ...grave]).toEqual([what])
}

const FOUR = "store a 100\nstore b 100\nstore c 100\nstore d 100\n"
const SCENES: readonly (readonly [what: string, script: string])[] = [
  ["first store, which makes the map larger", "watch\nstore a 100"],
  ["store from the end of a free record", `${FOUR}watch\nstore e 60`],
  ["store that takes a whole free record", `${FOUR}delete b\nwatch\nstore e 100`],
  ["store that meets free neighbours", `${FOUR}delete b\ndelete c\nwatch\nstore e 100`],
  ["store that meets three free neighbours", `${FOUR}delete a\ndelete b\ndelete c\nwatch\nstore e 300`],
  ["store into a larger map whose last record is free", "store a 100\nstore b 12000\ndelete a\nwatch\nstore e 700"],
  ["store that moves the record", `${FOUR}watch\nstore b 150`],
  ["delete beside used records", `${FOUR}watch\ndelete b`],
  ["delete beside a free record", `${FOUR}delete c\nwatch\ndelete b`],
  ["delete of the last record of the chain", `${FOUR}watch\ndelete a`],
  ["store into a dead record", `maxdead 5\n${FOUR}delete b\nwatch\nstore e 90`],
  ["delete that leaves dead records", `maxdead 1\n${FOUR}delete b\nwatch\ndelete c`],
  ["freelist_size that merges", `${FOUR}delete b\ndelete c\nwatch\nfreelist`],
  ["freelist_size that merges several", `${FOUR}delete a\ndelete b\ndelete c\nwatch\nfreelist`],
]

test.each(SCENES)(
  "%s",
  (what, script) => {
    const images = everyStore(script)
    expect(images.length).toBeGreaterThan(2)
    const [before, after] = [images[0]!, images.at(-1)!].map((contents) => contentsOf(openMemory({ contents })))
    images.forEach((contents, i) => {
      const where = `${what}, store ${i} of ${images.length}`
      // Large ones take their time.
      const runs = contents.length > 65536 ? 2 : 25
      for (let run = 0; run < runs; run++) {
        const random = new Random(firstSeed * 10_000 + run)
        const db = openMemory({ contents, name: where })
        // What the operation was not about is there.
        const found = contentsOf(db)
        for (const [key, data] of before!) if (after!.get(key) === data) expect(found.get(key)).toBe(data)
        goOn(where, db, random, random.pick([[100], [60, 100, 150], [20, 280, 600]]))
      }
    })
  },
  120_000,
)

// ---- the same by hand, without libtdb's timing

/** Four records and then two free neighbours, right one first in the file's list; the merge of them has stopped after `stores` stores. */
function halfMerged(stores: 1 | 2): { contents: Uint8Array; left: number; right: number } {
  const db = openMemory({ hashSize: 1 })
  for (const key of ["a", "b", "c", "d"]) db.store(Buffer.from(key), Buffer.alloc(100, key))
  // Records are handed out from the end: c lies left of b. So b has no free left neighbour when it is freed.
  db.delete(Buffer.from("b"))
  db.delete(Buffer.from("c"))
  const left = db.getUnsigned(AT_FREELIST)
  const right = db.getUnsigned(left + AT_NEXT)
  expect(left + RECORD_HEADER + db.getUnsigned(left + AT_REC_LEN)).toBe(right)
  expect(db.get(right + AT_MAGIC)).toBe(FREE)
  const merged = db.getUnsigned(left + AT_REC_LEN) + RECORD_HEADER + db.getUnsigned(right + AT_REC_LEN)
  db.put(left + AT_REC_LEN, merged)
  if (stores === 2) db.put(left + RECORD_HEADER + merged - 4, RECORD_HEADER + merged)
  return { contents: db.b.slice(0, db.size), left, right }
}

test.each([1, 2] as const)("a merge that stopped after %d stores is finished by who walks the free list", (stores) => {
  const { contents, left, right } = halfMerged(stores)
  const db = openMemory({ contents })
  expect(check(db).ok).toBe(false)
  freelistSize(db)
  expect(check(db).findings.map(String)).toEqual([])
  expect(db.getUnsigned(left + AT_NEXT)).not.toBe(right)
  expect([...contentsOf(db)].map(([key, data]) => [key, data === key.repeat(100)])).toEqual([
    ["d", true],
    ["a", true],
  ])
})

test.each([1, 2] as const)("after %d stores of a merge its left part is handed out first", (stores) => {
  const { contents, left, right } = halfMerged(stores)
  // Exactly the right part, the right part with some of the left one, all of it.
  for (const [length, taken] of [
    [100, right],
    [160, 0],
    [225, left],
  ] as const) {
    const db = openMemory({ contents })
    db.store(Buffer.from("e"), Buffer.alloc(length, "e"))
    if (taken !== 0) expect(db.find(Buffer.from("e"), db.hash(Buffer.from("e")))).toBe(taken)
    goOn(`${length} bytes`, db, new Random(length), [100])
  }
})

test("libtdb merges it a second time, over the record that follows", () => {
  const path = join(folder, "theirs.tdb")
  writeFileSync(path, halfMerged(2).contents)
  const db = LibTdb.open(path, 0, NOLOCK, 2)!
  expect(db.fetch(Buffer.from("a"))).toEqual(new Uint8Array(100).fill(97))
  db.freelistSize()
  for (const key of ["e", "f", "g"]) db.store(Buffer.from(key), Buffer.alloc(100))
  expect(db.fetch(Buffer.from("a"))).toBeNull()
  db.close()
})
