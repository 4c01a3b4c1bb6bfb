// Every crash point of a commit: the file as it is before each single store, growth and sync (what a kill leaves), recovered by our
// engine and by libtdb. Both must find the old or the new records, never a mixture, and a file that passes both checks and takes
// further commits. Recovery itself is interrupted at each of its stores, too.

import { afterAll, expect, test } from "bun:test"
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { check, openMemory, openTdb, summary, type Tdb, traverseRead } from "../../../lib/tdb/tdb.ts"
import { firstSeed, Random, soak } from "../../tdb/random.ts"
import { LibTdb } from "./libtdb.ts"

const folder = mkdtempSync(join(tmpdir(), "ctdb-crash-"))
afterAll(() => rmSync(folder, { recursive: true, force: true }))
const NOSYNC = 0x40

let deadSpaces = 0

type Contents = Map<string, string>

function contentsOf(db: Tdb): Contents {
  const contents: Contents = new Map()
  traverseRead(db, (bytes, keyStart, keyLength, dataStart, dataLength) => {
    const text = (start: number, length: number) =>
      Buffer.from(bytes.subarray(start, start + length)).toString("latin1")
    contents.set(text(keyStart, keyLength), text(dataStart, dataLength))
  })
  return contents
}

function contentsOfLib(db: LibTdb): Contents {
  const records = db.records()
  if (records === null) throw new Error("libtdb cannot walk it")
  return new Map(records.map(({ key, data }) => [key.toString("latin1"), data.toString("latin1")]))
}

const isSame = (a: Contents, b: Contents): boolean =>
  a.size === b.size && [...a].every(([key, value]) => b.get(key) === value)

/** One image, recovered by `recover`, must be old or new. Returns which. */
function judge(what: string, contents: Contents, before: Contents, after: Contents): "old" | "new" {
  if (isSame(contents, before)) return "old"
  if (isSame(contents, after)) return "new"
  throw new Error(`${what}: a mixture of old and new`)
}

function recoverOurs(image: Uint8Array, what: string, before: Contents, after: Contents): "old" | "new" {
  const db = openMemory({ contents: image, name: what })
  const result = judge(what, contentsOf(db), before, after)
  expect(check(db).findings.map(String)).toEqual([])
  // It goes on: another commit with growth.
  db.startTransaction()
  db.store(Buffer.from("afterwards"), new Uint8Array(2_000))
  db.commit()
  expect(check(db).findings.map(String)).toEqual([])
  db.close()
  return result
}

function recoverTheirs(image: Uint8Array, what: string, before: Contents, after: Contents): "old" | "new" {
  const path = join(folder, "theirs.tdb")
  writeFileSync(path, image)
  const db = LibTdb.open(path, 0, NOSYNC, 2)
  if (db === null) throw new Error(`${what}: libtdb cannot open it`)
  try {
    const result = judge(`${what} (libtdb)`, contentsOfLib(db), before, after)
    if (db.check() !== 0) throw new Error(`${what}: libtdb's check fails after recovery`)
    expect(db.start()).toBe(0)
    expect(db.store(Buffer.from("afterwards"), new Uint8Array(2_000))).toBe(0)
    expect(db.commit()).toBe(0)
    // libtdb takes dead space, which a crash between growth and use leaves, to reach to the end of the file: after further growth its
    // check complains, whoever wrote the file. Ours knows better.
    const now = openMemory({ contents: new Uint8Array(readFileSync(path)) })
    expect(check(now).findings.map(String)).toEqual([])
    if (summary(now).deadSpace > 0) {
      deadSpaces++
      return result
    }
    if (db.check() !== 0) throw new Error(`${what}: libtdb's check fails after its next commit`)
    return result
  } finally {
    db.close()
  }
}

/** Recovery stopped at each of its own stores and begun again gives the old state as well. */
function interruptRecovery(image: Uint8Array, what: string, before: Contents, after: Contents): number {
  const path = join(folder, "interrupted.tdb")
  let stops = 0
  for (let stop = 0; ; stop += 1 + (stop >> 2)) {
    writeFileSync(path, image)
    let step = 0
    let stopped: Uint8Array | null = null
    const db = openTdb(path, {
      flags: NOSYNC,
      step: () => {
        if (step++ === stop) stopped = new Uint8Array(readFileSync(path))
      },
    })
    db.close()
    if (stopped === null) return stops
    stops++
    recoverOurs(stopped, `${what}, recovery stopped at its store ${stop}`, before, after)
    recoverTheirs(stopped, `${what}, recovery stopped at its store ${stop}`, before, after)
  }
}

interface Scene {
  hashSize: number
  flags: number
  /** Records before, in how many commits (each may move or make the recovery area). */
  commits: number
  records: number
  size: number
}

/** Commit in pieces, each in a turn of its own, to the end. Returns how many turns it took. */
function commitByTurns(db: Tdb): number {
  const turns: (() => void)[] = []
  let clock = 0
  let ended = false
  const turnsOf = { nextTurn: (run: () => void) => void turns.push(run), monotonicMs: () => (clock += 10) }
  db.commitInPieces(turnsOf, (error) => {
    ended = true
    if (error !== null) throw error
  })
  let count = 0
  for (let turn = turns.shift(); turn !== undefined; turn = turns.shift()) {
    count++
    turn()
  }
  if (!ended) throw new Error("the commit waits for something")
  return count
}

function change(random: Random, db: Tdb, scene: Scene): void {
  const operations = 1 + random.below(12)
  for (let i = 0; i < operations; i++) {
    const key = Buffer.from(`key${random.below(scene.records + 5)}`)
    if (random.below(4) === 0) db.delete(key)
    else db.store(key, random.bytes(random.below(3) === 0 ? random.below(scene.size * 8) : random.below(scene.size)))
  }
}

test.each([false, true])(
  "every store of a commit, in pieces: %p",
  (inPieces) => {
    let turns = 0
    const seeds = process.env.CTDB_SEED ? 1 : soak ? 1000 : 20
    let points = 0
    let recoveries = 0
    for (let seed = firstSeed; seed < firstSeed + seeds; seed++) {
      const random = new Random(seed)
      const scene: Scene = {
        hashSize: random.pick([1, 5, 131, 3001]),
        flags: NOSYNC | random.pick([0, 0x800]),
        commits: random.below(3),
        records: random.pick([0, 3, 60]),
        size: random.pick([20, 100, 300]),
      }
      const path = join(folder, "scene.tdb")
      rmSync(path, { force: true })
      const db = openTdb(path, { flags: scene.flags, hashSize: scene.hashSize, openFlags: 0o102 })
      db.autoRepack = false
      db.maxDead = random.pick([0, 5])
      try {
        for (let i = 0; i < scene.records; i++) db.store(Buffer.from(`key${i}`), random.bytes(random.below(scene.size)))
        for (let i = 0; i < scene.commits; i++) {
          db.startTransaction()
          change(random, db, scene)
          db.commit()
        }
        const before = contentsOf(db)
        const images: { what: string; image: Uint8Array }[] = []
        db.startTransaction()
        change(random, db, scene)
        const after = contentsOf(db)
        db.step = (what) => {
          const image = new Uint8Array(readFileSync(path))
          // Equal images need not be recovered twice.
          const last = images[images.length - 1]
          if (last === undefined || Buffer.compare(last.image, image) !== 0)
            images.push({ what: `before ${what}`, image })
        }
        if (inPieces) turns += commitByTurns(db)
        else db.commit()
        db.step = null
        expect(isSame(contentsOf(db), after)).toBe(true)
        let becameNew = false
        images.forEach(({ what, image }, i) => {
          const name = `seed ${seed}, crash point ${i} of ${images.length}, ${what}`
          points++
          const ours = recoverOurs(image, name, before, after)
          const theirs = recoverTheirs(image, name, before, after)
          expect(ours).toBe(theirs)
          if (ours === "new" && !isSame(before, after)) becameNew = true
          // Once new, always new.
          else expect(becameNew && !isSame(before, after)).toBe(false)
          if (i % 7 === seed % 7) recoveries += interruptRecovery(image, name, before, after)
        })
      } catch (error) {
        throw new Error(`CTDB_SEED=${seed} replays this: ${error instanceof Error ? error.stack : error}`)
      } finally {
        db.close()
      }
    }
    console.log(`${points} crash points, ${recoveries} interrupted recoveries, ${deadSpaces} of all with dead space`)
    // That the pieces were pieces: more turns than commits.
    if (inPieces) expect(turns).toBeGreaterThan(seeds === 1 ? 1 : 3 * seeds)
    expect(points).toBeGreaterThan(seeds === 1 ? 5 : 10 * seeds)
    expect(recoveries).toBeGreaterThan(seeds === 1 ? -1 : seeds)
  },
  300_000,
)

test("a commit cancelled after its preparation leaves the old state, at every store", () => {
  for (let seed = firstSeed; seed < firstSeed + 10; seed++) {
    const random = new Random(seed)
    const path = join(folder, "cancelled.tdb")
    rmSync(path, { force: true })
    const db = openTdb(path, { flags: NOSYNC, hashSize: 7, openFlags: 0o102 })
    for (let i = 0; i < 20; i++) db.store(Buffer.from(`key${i}`), random.bytes(50))
    const before = contentsOf(db)
    db.startTransaction()
    for (let i = 0; i < 5 + random.below(200); i++) db.store(Buffer.from(`new${i}`), random.bytes(300))
    db.prepareCommit()
    db.cancel()
    expect(isSame(contentsOf(db), before)).toBe(true)
    expect(check(db).findings.map(String)).toEqual([])
    db.close()
    recoverTheirs(new Uint8Array(readFileSync(path)), `cancel, seed ${seed}`, before, before)
  }
}, 300_000)
