// Commits and recoveries in pieces: the loop turns while a large transaction is written, synced, or held up by others, and beside
// libtdb's processes it means the same as an ordinary commit. Its crash points are in crash.test.ts.

import { afterAll, expect, test } from "bun:test"
import { copyFileSync, mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { check, openTdb, type Tdb, TdbError, traverseRead } from "../../../lib/tdb/tdb.ts"
import { Peer } from "./peer.ts"

const folder = mkdtempSync(join(tmpdir(), "ctdb-pieces-"))
afterAll(() => rmSync(folder, { recursive: true, force: true }))

const NOSYNC = 0x40
const turns = { nextTurn: (run: () => void) => void setImmediate(run), monotonicMs: () => performance.now() }
const key = (text: string | number): Uint8Array => Buffer.from(String(text))
let files = 0
const newPath = (): string => join(folder, `${files++}.tdb`)

function commit(db: Tdb): Promise<void> {
  return new Promise((resolve, reject) => {
    db.commitInPieces(turns, (error) => (error === null ? resolve() : reject(error)))
  })
}

/** Watches the turns of the loop. A busy machine stretches all of them, so they are compared with the whole. */
class LoopWatch {
  private readonly since_ms = performance.now()
  private readonly turns_ms: number[] = []
  private last = performance.now()
  private running = true

  constructor() {
    const turn = (): void => {
      const now = performance.now()
      this.turns_ms.push(now - this.last)
      this.last = now
      if (this.running) setImmediate(turn)
    }
    setImmediate(turn)
  }

  /** The turns of 1 ms and more, which had work in them: how many, and which part of all the time the longest one took. */
  stop(): { count: number; longest: number } {
    this.running = false
    const whole_ms = performance.now() - this.since_ms
    const long = this.turns_ms.filter((ms) => ms >= 1).sort((a, b) => a - b)
    const [most_ms, longest_ms] = [long[Math.floor(long.length * 0.9)] ?? 0, long[long.length - 1] ?? 0]
    console.log(
      `${long.length} turns of work, nine of ten below ${most_ms.toFixed(1)} ms, all ${longest_ms.toFixed(1)} ms`,
    )
    return { count: long.length, longest: longest_ms / whole_ms }
  }
}

const RECORDS = 16_000
const SIZE = 3_000

function replaceAll(db: Tdb, mark: number): void {
  const data = new Uint8Array(SIZE).fill(mark)
  for (let i = 0; i < RECORDS; i++) db.store(key(`record ${i}`), data)
}

function marks(db: Tdb): Set<number> {
  const found = new Set<number>()
  let count = 0
  traverseRead(db, (bytes, _keyStart, _keyLength, dataStart, dataLength) => {
    if (dataLength !== SIZE) return
    count++
    found.add(bytes[dataStart]!)
    found.add(bytes[dataStart + dataLength - 1]!)
  })
  if (count !== RECORDS) throw new Error(`${count} records`)
  return found
}

test("64 MB replaced in one synced transaction: the loop turns throughout, and libtdb reads the new records", async () => {
  const path = newPath()
  const db = openTdb(path, { openFlags: 0o102, hashSize: 10007 })
  for (let mark = 1; mark <= 3; mark++) {
    db.startTransaction()
    if (mark !== 2) db.wipe()
    replaceAll(db, mark)
    const watch = new LoopWatch()
    await commit(db)
    const { count, longest } = watch.stop()
    // About 130 pieces of a megabyte: in one go they were one turn.
    expect(count).toBeGreaterThan(8)
    expect(longest).toBeLessThan(0.6)
    expect(marks(db)).toEqual(new Set([mark]))
  }
  expect(check(db).findings.map(String)).toEqual([])
  const peer = new Peer()
  expect(await peer.call("open", path, 0, 0)).toBe(true)
  expect(await peer.call("check")).toBe(0)
  expect(await peer.call("fetch", "record 7")).toBe(String.fromCharCode(3).repeat(SIZE))
  await peer.kill()
  db.close()
}, 300_000)

test("a commit waits for a reader while the loop turns", async () => {
  const path = newPath()
  const db = openTdb(path, { openFlags: 0o102 })
  db.store(key("a"), key("old"))
  const peer = new Peer()
  expect(await peer.call("open", path, 0, 0)).toBe(true)
  expect(await peer.call("lockallread")).toBe(0)
  db.startTransaction()
  db.store(key("a"), key("new"))
  let done = false
  const committed = commit(db).then(() => {
    done = true
  })
  // The peer answers, so turns pass; it holds its lock, so the commit does not.
  for (let i = 0; i < 20; i++) expect(await peer.call("fetch", "a")).toBe("old")
  expect(done).toBe(false)
  expect(new TextDecoder().decode(db.fetch(key("a"))!)).toBe("new")
  expect(() => db.store(key("b"), key("x"))).toThrow("not writable")
  expect(() => db.commit()).toThrow("being committed")
  expect(await peer.call("unlockallread")).toBe(0)
  await committed
  expect(await peer.call("fetch", "a")).toBe("new")
  // And it is the handle it was.
  db.store(key("b"), key("x"))
  expect(await peer.call("fetch", "b")).toBe("x")
  await peer.kill()
  db.close()
}, 300_000)

test("while it runs nobody opens the file, even if the handle takes no locks; finish ends it at once", () => {
  const path = newPath()
  const db = openTdb(path, { openFlags: 0o102, flags: NOSYNC })
  for (let i = 0; i < 2000; i++) db.store(key(i), new Uint8Array(2000).fill(1))
  db.lockAllrecord()
  db.setNoLock(true)
  db.startTransaction()
  for (let i = 0; i < 2000; i++) db.store(key(i), new Uint8Array(2000).fill(2))
  const waiting: (() => void)[] = []
  let ended = 0
  const byHand = { nextTurn: (run: () => void) => void waiting.push(run), monotonicMs: () => Number.POSITIVE_INFINITY }
  const underway = db.commitInPieces(byHand, () => ended++)
  expect(ended).toBe(0)
  waiting.shift()!()
  let busy: unknown
  try {
    openTdb(path, { wait: false })
  } catch (error) {
    busy = error
  }
  expect(busy).toBeInstanceOf(TdbError)
  expect((busy as TdbError).code).toBe("BUSY")
  underway.finish()
  expect(ended).toBe(1)
  underway.finish()
  for (const late of waiting) late()
  expect(ended).toBe(1)
  db.setNoLock(false)
  db.unlockAllrecord()
  expect(db.fetch(key(1999))![0]).toBe(2)
  const other = openTdb(path, { wait: false })
  expect(other.fetch(key(1))![0]).toBe(2)
  expect(check(other).ok).toBe(true)
  other.close()
  db.close()
}, 300_000)

test("no piece of a commit copies more than a megabyte", () => {
  const path = newPath()
  const db = openTdb(path, { openFlags: 0o102, flags: NOSYNC, hashSize: 10007 })
  for (let mark = 1; mark <= 2; mark++) {
    db.startTransaction()
    replaceAll(db, mark)
    const waiting: (() => void)[] = []
    // Time flies: every pause ends a turn.
    let clock = 0
    const byHand = { nextTurn: (run: () => void) => void waiting.push(run), monotonicMs: () => (clock += 1000) }
    let result: unknown = "none"
    db.commitInPieces(byHand, (error) => {
      result = error
    })
    let count = 0
    for (let turn = waiting.shift(); turn !== undefined; turn = waiting.shift()) {
      count++
      turn()
      // Whoever reads in between finds the new state, in every part of the file.
      for (let i = 0; i < RECORDS; i += 1000) {
        const data = db.fetch(key(`record ${i}`))
        if (data?.length !== SIZE || data[SIZE - 1] !== mark) throw new Error(`record ${i} after piece ${count}`)
      }
    }
    expect(result).toBe(null)
    // The old contents are saved, the new ones written.
    expect(count).toBeGreaterThan((mark * RECORDS * SIZE) / (1 << 20))
    expect(marks(db)).toEqual(new Set([mark]))
  }
  db.close()
}, 300_000)

test("a handle that is closed in the middle has committed", async () => {
  const path = newPath()
  const db = openTdb(path, { openFlags: 0o102, hashSize: 10007 })
  db.startTransaction()
  replaceAll(db, 1)
  let result: unknown = "none"
  db.commitInPieces(turns, (error) => {
    result = error
  })
  await new Promise(setImmediate)
  expect(result).toBe("none")
  db.close()
  expect(result).toBe(null)
  const again = openTdb(path)
  expect(marks(again)).toEqual(new Set([1]))
  expect(check(again).ok).toBe(true)
  again.close()
}, 300_000)

/** A file of RECORDS records with mark 1, as a kill in the middle of a commit of mark 2 leaves it. */
function halfCommitted(path: string): void {
  const made = newPath()
  const db = openTdb(made, { openFlags: 0o102, hashSize: 10007, flags: NOSYNC })
  db.startTransaction()
  replaceAll(db, 1)
  db.commit()
  db.startTransaction()
  replaceAll(db, 2)
  let writes = 0
  db.step = (what) => {
    if (what.startsWith("write ") && ++writes === 5000) copyFileSync(made, path)
  }
  db.commit()
  db.close()
  if (writes < 5000) throw new Error(`${writes} writes`)
}

test("a large commit that somebody died in is undone between turns of the loop, by whoever comes for a chain", async () => {
  const dead = newPath()
  halfCommitted(dead)
  const path = newPath()
  // Two handles are open when it happens: the file's contents are replaced under them, as by a peer that dies.
  const first = openTdb(path, { openFlags: 0o102, hashSize: 10007, flags: NOSYNC })
  first.close()
  const db = openTdb(path)
  const image = new Uint8Array(await Bun.file(dead).arrayBuffer())
  db.backing.grow(image.length)
  db.backing.refresh()
  db.adopt()
  db.b.set(image, 0)
  expect(db.needsRecovery()).toBe(true)

  const hash = db.hash(key("record 3"))
  expect(db.tryLockChain(hash)).toBe(false)
  expect(db.needsRecovery()).toBe(true)
  expect(db.tryLockAllrecord()).toBe(false)
  const watch = new LoopWatch()
  const mark = await new Promise<number>((resolve, reject) => {
    db.waitForChain(hash, (held, error) => {
      if (held === null) reject(error)
      else resolve(db.fetch(key("record 3"))![0]!)
    })
  })
  const { count, longest } = watch.stop()
  expect(mark).toBe(1)
  expect(count).toBeGreaterThan(3)
  expect(longest).toBeLessThan(0.6)
  expect(db.needsRecovery()).toBe(false)
  expect(marks(db)).toEqual(new Set([1]))
  expect(check(db).findings.map(String)).toEqual([])
  const peer = new Peer()
  expect(await peer.call("open", path, 0, 0)).toBe(true)
  expect(await peer.call("check")).toBe(0)
  expect(await peer.call("store", "record 3", "theirs")).toBe(0)
  await peer.kill()
  db.close()
}, 300_000)

test("a handle that is closed before and during such a repair leaves a file that the next one repairs", async () => {
  const dead = newPath()
  halfCommitted(dead)
  for (const turnsBefore of [0, 1, 3, 6]) {
    const db = openTdb(newPath(), { openFlags: 0o102, hashSize: 10007, flags: NOSYNC })
    const image = new Uint8Array(await Bun.file(dead).arrayBuffer())
    db.backing.grow(image.length)
    db.adopt()
    db.b.set(image, 0)
    expect(db.tryLockChain(1)).toBe(false)
    let told: string | undefined
    db.waitForChain(1, (held, error) => {
      told = held === null ? error?.code : "held"
    })
    for (let i = 0; i < turnsBefore; i++) await new Promise((resolve) => setTimeout(resolve, 1))
    db.close()
    if (told !== "held") expect(told).toBe("CANCELLED")
    const again = openTdb(db.path)
    expect(marks(again)).toEqual(new Set([1]))
    expect(check(again).findings.map(String)).toEqual([])
    again.close()
  }
}, 300_000)

test("a commit whose recovery record is broken: whoever waits is told, and nobody loops", async () => {
  const path = newPath()
  halfCommitted(path)
  const db = openTdb(newPath(), { openFlags: 0o102, hashSize: 10007, flags: NOSYNC })
  const image = new Uint8Array(await Bun.file(path).arrayBuffer())
  const words = new Uint32Array(image.buffer)
  const start = words[44 / 4]!
  words[(start + 4) / 4] = 0xfffffff0
  db.backing.grow(image.length)
  db.adopt()
  db.b.set(image, 0)
  const error = await new Promise<TdbError | null>((resolve) => {
    db.waitForChain(1, (_held, failure) => resolve(failure))
  })
  expect(error?.code).toBe("CORRUPT")
  db.close()
}, 300_000)
