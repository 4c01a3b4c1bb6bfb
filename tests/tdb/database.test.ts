// What an open TDB does that histories and samples do not show: flags at open, nesting and refusals of locks, read-only handles, walks
// that pause, transactions that nest, files of the other byte order, files that others make longer.

import { afterAll, afterEach, expect, test } from "bun:test"
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import {
  CLEAR_IF_FIRST,
  CONVERT,
  check,
  DISALLOW_NESTING,
  INSERT,
  keys,
  MODIFY,
  MUTEX_LOCKING,
  type OpenOptions,
  openMemory,
  openTdb,
  REPLACE,
  rescue,
  SEQNUM,
  type Tdb,
  TdbError,
  type TdbErrorCode,
  traverse,
  traverseRead,
  Walk,
} from "../../lib/tdb/tdb.ts"

const folder = mkdtempSync(join(tmpdir(), "ctdb-database-"))
let handles: Tdb[] = []
let files = 0
afterEach(() => {
  for (const db of handles) db.close()
  handles = []
})
afterAll(() => rmSync(folder, { recursive: true, force: true }))

const O_RDONLY = 0
const O_RDWR = 2
const O_CREAT = 0o102
const bytes = (text: string): Uint8Array => new TextEncoder().encode(text)
const text = (data: Uint8Array | null): string | null => (data === null ? null : new TextDecoder().decode(data))
const newPath = (): string => join(folder, `d${files++}.tdb`)
function open(path: string, options: OpenOptions = {}): Tdb {
  const db = openTdb(path, { openFlags: O_CREAT, ...options })
  handles.push(db)
  return db
}
function refusal(action: () => unknown): TdbErrorCode {
  try {
    action()
  } catch (error) {
    if (error instanceof TdbError) return error.code
    throw error
  }
  throw new Error("was not refused")
}

test("store modes, empty keys and empty data", () => {
  const db = open(newPath())
  db.store(bytes(""), bytes("empty key"))
  db.store(bytes("k"), bytes(""))
  expect(text(db.fetch(bytes("")))).toBe("empty key")
  expect(db.fetch(bytes("k"))).toEqual(new Uint8Array(0))
  expect(db.fetch(bytes("absent"))).toBeNull()
  expect(db.exists(bytes("k"))).toBe(true)
  expect(refusal(() => db.store(bytes("k"), bytes("x"), INSERT))).toBe("EXISTS")
  expect(refusal(() => db.store(bytes("absent"), bytes("x"), MODIFY))).toBe("NOEXIST")
  db.storeParts(bytes("k"), [bytes("a"), bytes("bc"), bytes("d")])
  db.append(bytes("k"), bytes("!"))
  expect(text(db.fetch(bytes("k")))).toBe("abcd!")
  const target = new Uint8Array(7).fill(46)
  expect(db.fetchInto(bytes("k"), target, 1)).toBe(5)
  expect(text(target)).toBe(".abcd!.")
  expect(db.fetchInto(bytes("k"), target, 4)).toBe(5)
  expect(text(target)).toBe(".abcd!.")
  expect(db.fetchInto(bytes("absent"), target)).toBe(-1)
  expect(db.parse(bytes("k"), (map, start, length) => `${length}${String.fromCharCode(map[start]!)}`)).toBe("5a")
  expect(db.delete(bytes("k"))).toBe(true)
  expect(db.delete(bytes("k"))).toBe(false)
})

test("a key buffer may be reused for another key between locked operations", () => {
  const db = open(newPath(), { flags: CLEAR_IF_FIRST | MUTEX_LOCKING, hashSize: 1 })
  const key = bytes("k1")
  db.store(key, bytes("one"))
  db.store(bytes("k2"), bytes("two"))
  db.lockChain(db.hash(key))
  expect(text(db.fetch(key))).toBe("one")
  key[1] = 50
  expect(text(db.fetch(key))).toBe("two")
  db.delete(key)
  expect(db.fetch(key)).toBeNull()
  key[1] = 49
  db.store(key, new Uint8Array(500).fill(65))
  expect(db.fetch(key)?.length).toBe(500)
  db.unlockChain(db.hash(key))
  expect(check(db).ok).toBe(true)
})

test("CLEAR_IF_FIRST clears only for the first user, with both kinds of locks", () => {
  for (const more of [0, MUTEX_LOCKING]) {
    const path = newPath()
    const flags = CLEAR_IF_FIRST | more
    const first = open(path, { flags })
    first.store(bytes("k"), bytes("v"))
    const second = open(path, { flags })
    expect(text(second.fetch(bytes("k")))).toBe("v")
    first.close()
    const third = open(path, { flags })
    expect(text(third.fetch(bytes("k")))).toBe("v")
    second.close()
    third.close()
    const fourth = open(path, { flags, hashSize: 7 })
    expect(fourth.fetch(bytes("k"))).toBeNull()
    expect(fourth.hashSize).toBe(7)
  }
})

test("a file that is no TDB is refused, with O_CREAT too, and stays as it is", () => {
  for (const contents of ["not a database", "x".repeat(5000), "TDB file\n"]) {
    const path = newPath()
    writeFileSync(path, contents)
    expect(refusal(() => open(path))).toBe("FORMAT")
    expect(readFileSync(path, "utf8")).toBe(contents)
  }
  const empty = newPath()
  writeFileSync(empty, "")
  expect(refusal(() => open(empty, { openFlags: O_RDWR }))).toBe("FORMAT")
  expect(open(empty).hashSize).toBe(131)
})

test("mutex files need the flag or no locks; without another user their mutexes start anew", () => {
  const sample = readFileSync(join(import.meta.dir, "../vectors/tdb/mutex-dead-allrecord-owner-5.tdb"))
  const path = newPath()
  writeFileSync(path, sample)
  expect(refusal(() => open(path, { openFlags: O_RDWR }))).toBe("FORMAT")
  const reader = open(path, { openFlags: O_RDONLY })
  expect(keys(reader).length).toBeGreaterThan(0)
  const db = open(path, { openFlags: O_RDWR, flags: MUTEX_LOCKING })
  expect(keys(db).length).toBe(keys(reader).length)
  db.lockAllrecord()
  db.unlockAllrecord()
  const plain = newPath()
  open(plain).store(bytes("k"), bytes("v"))
  expect(text(open(plain, { flags: MUTEX_LOCKING }).fetch(bytes("k")))).toBe("v")
})

test("flags that do not go together are refused", () => {
  expect(refusal(() => open(newPath(), { openFlags: 1 }))).toBe("EINVAL")
  expect(refusal(() => open(newPath(), { flags: 0x200 | 0x400 }))).toBe("EINVAL")
  expect(refusal(() => open(newPath(), { flags: MUTEX_LOCKING | 2 }))).toBe("EINVAL")
  expect(refusal(() => open(newPath(), { flags: MUTEX_LOCKING | 8 }))).toBe("EINVAL")
})

test("a read-only handle reads and refuses everything else", () => {
  const path = newPath()
  open(path).store(bytes("k"), bytes("v"))
  const db = open(path, { openFlags: O_RDONLY })
  expect(text(db.fetch(bytes("k")))).toBe("v")
  expect(check(db).ok).toBe(true)
  expect(refusal(() => db.store(bytes("k"), bytes("x")))).toBe("RDONLY")
  expect(refusal(() => db.delete(bytes("k")))).toBe("RDONLY")
  expect(refusal(() => db.wipe())).toBe("RDONLY")
  expect(refusal(() => db.startTransaction())).toBe("EINVAL")
})

for (const [kind, flags] of [
  ["fcntl", CLEAR_IF_FIRST],
  ["mutex", CLEAR_IF_FIRST | MUTEX_LOCKING],
] as const) {
  test(`${kind}: locks nest, exclude another handle, and are refused where they would deadlock`, () => {
    const path = newPath()
    const db = open(path, { flags, hashSize: 3 })
    const other = open(path, { flags })
    const hash = db.hash(bytes("k"))
    db.lockChain(hash)
    db.lockChain(hash)
    db.unlockChain(hash)
    expect(other.tryLockChain(hash)).toBe(false)
    expect(other.tryLockAllrecord()).toBe(false)
    expect(refusal(() => db.lockAllrecord())).toBe("LOCK")
    db.unlockChain(hash)
    expect(refusal(() => db.unlockChain(hash))).toBe("LOCK")
    expect(other.tryLockAllrecord()).toBe(true)
    expect(db.tryLockChain(hash)).toBe(false)
    expect(db.tryLockAllrecord(false)).toBe(false)
    expect(other.tryLockChain(hash)).toBe(true)
    other.unlockChain(hash)
    other.unlockAllrecord()
    expect(db.tryLockAllrecord(false)).toBe(true)
    expect(refusal(() => db.store(bytes("k"), bytes("v")))).toBe("LOCK")
    expect(refusal(() => db.lockAllrecord(true))).toBe("LOCK")
    expect(other.tryLockChain(hash, true)).toBe(false)
    expect(other.tryLockChain(hash, false)).toBe(true)
    other.unlockChain(hash)
    db.unlockAllrecord()
    expect(other.tryLockChain(hash)).toBe(true)
    other.unlockChain(hash)
  })

  test(`${kind}: a marked lock counts as held without being taken`, () => {
    const path = newPath()
    const db = open(path, { flags, hashSize: 3 })
    const holder = open(path, { flags })
    const hash = db.hash(bytes("k"))
    holder.lockChain(hash)
    db.markChain(hash)
    db.store(bytes("k"), bytes("marked"))
    db.unmarkChain(hash)
    expect(db.tryLockChain(hash)).toBe(false)
    expect(holder.tryLockChain(hash)).toBe(true)
    holder.unlockChain(hash)
    holder.unlockChain(hash)
    holder.lockAllrecord()
    db.markAllrecord()
    db.store(bytes("other"), bytes("marked"))
    db.wipe()
    db.unmarkAllrecord()
    expect(db.tryLockAllrecord()).toBe(false)
    holder.unlockAllrecord()
    expect(keys(db).length).toBe(0)
  })
}

test("the sequence number counts as libtdb's does", () => {
  const db = open(newPath(), { flags: SEQNUM })
  db.store(bytes("k"), bytes("v"))
  db.store(bytes("k"), bytes("v"))
  expect(db.sequenceNumber()).toBe(2)
  db.store(bytes("k"), new Uint8Array(1000))
  expect(db.sequenceNumber()).toBe(4)
  db.delete(bytes("k"))
  db.wipe()
  expect(db.sequenceNumber()).toBe(6)
})

test("growth by another handle is noticed", () => {
  const path = newPath()
  const db = open(path)
  const other = open(path)
  db.store(bytes("k"), bytes("v"))
  other.store(bytes("large"), new Uint8Array(40_000_000).fill(7))
  expect(db.fetch(bytes("large"))?.length).toBe(40_000_000)
  expect(check(db).ok).toBe(true)
})

test("a file that was cut is an error, not a crash", () => {
  const path = newPath()
  const db = open(path, { hashSize: 3 })
  for (let i = 0; i < 100; i++) db.store(bytes(`k${i}`), new Uint8Array(1000))
  const image = readFileSync(path)
  const cut = newPath()
  writeFileSync(cut, image.subarray(0, 8192))
  const broken = open(cut, { openFlags: O_RDWR })
  expect(check(broken).ok).toBe(false)
  expect(["IO", "CORRUPT"]).toContain(refusal(() => traverseRead(broken, () => {})))
})

test("walks pause anywhere, see every record that stays, and keep it from being freed", () => {
  for (const flags of [CLEAR_IF_FIRST, CLEAR_IF_FIRST | MUTEX_LOCKING]) {
    for (const maxDead of [0, 5]) {
      const path = newPath()
      const db = open(path, { flags, hashSize: 3, maxDead })
      const other = open(path, { flags, maxDead })
      for (let i = 0; i < 300; i++) db.store(bytes(`k${i}`), bytes(`v${i}`))
      const walk = new Walk(db)
      const seen = new Set<string>()
      let round = 0
      while (
        walk.next(7, (map, keyStart, keyLength) => {
          seen.add(new TextDecoder().decode(map.slice(keyStart, keyStart + keyLength)))
        })
      ) {
        // Others go on between chunks, right where the walk stands too.
        for (let i = 0; i < 300; i += 3) if (i % 30 === (round * 3) % 30) other.delete(bytes(`k${i}`))
        other.store(bytes(`new${round++}`), bytes("x"))
      }
      for (let i = 0; i < 300; i++) if (i % 3 !== 0) expect(seen.has(`k${i}`)).toBe(true)
      expect(db.standing).toEqual([])
      expect(check(db).findings.map(String)).toEqual([])
    }
  }
})

test("a write walk may delete and store; a read walk may not", () => {
  const db = open(newPath(), { hashSize: 5 })
  for (let i = 0; i < 100; i++) db.store(bytes(`k${i}`), bytes("v"))
  expect(traverse(db, (key) => void db.delete(key))).toBe(100)
  expect(keys(db).length).toBe(0)
  db.store(bytes("k"), bytes("v"))
  expect(refusal(() => traverseRead(db, () => db.store(bytes("l"), bytes("v"))))).toBe("RDONLY")
  db.store(bytes("l"), bytes("v"))
  let count = 0
  traverse(db, () => ++count === 1)
  expect(count).toBe(1)
  expect(refusal(() => traverse(db, () => db.startTransaction()))).toBe("LOCK")
  db.store(bytes("m"), bytes("v"))
  expect(check(db).ok).toBe(true)
})

test("transactions nest, are invisible until committed, and shut other writers out", () => {
  const path = newPath()
  const db = open(path)
  const other = open(path)
  db.store(bytes("k"), bytes("old"))
  db.startTransaction()
  db.store(bytes("k"), bytes("new"))
  expect(text(db.fetch(bytes("k")))).toBe("new")
  expect(text(other.fetch(bytes("k")))).toBe("old")
  expect(other.tryStartTransaction()).toBe(false)
  expect(other.tryLockChain(other.hash(bytes("k")))).toBe(false)
  db.startTransaction()
  db.commit()
  expect(text(other.fetch(bytes("k")))).toBe("old")
  db.commit()
  expect(text(other.fetch(bytes("k")))).toBe("new")
  db.startTransaction()
  db.store(bytes("k"), bytes("never"))
  db.startTransaction()
  db.cancel()
  expect(refusal(() => db.commit())).toBe("IO")
  expect(text(db.fetch(bytes("k")))).toBe("new")
  db.flags |= DISALLOW_NESTING
  db.startTransaction()
  expect(refusal(() => db.startTransaction())).toBe("NESTING")
  db.cancel()
  db.lockChain(1)
  expect(refusal(() => db.startTransaction())).toBe("LOCK")
  db.unlockChain(1)
  db.startTransaction()
  db.store(bytes("k"), bytes("lost"))
  db.close()
  expect(text(other.fetch(bytes("k")))).toBe("new")
  expect(other.tryStartTransaction()).toBe(true)
})

test("large transactions grow beyond what was mapped", () => {
  const db = open(newPath(), { flags: 0x40 })
  db.startTransaction()
  for (let i = 0; i < 40; i++) db.store(bytes(`k${i}`), new Uint8Array(1_000_000).fill(i))
  db.commit()
  for (let i = 0; i < 40; i++) expect(db.fetch(bytes(`k${i}`))?.[999_999]).toBe(i)
  expect(check(db).findings.map(String)).toEqual([])
  db.repack()
  expect(keys(db).length).toBe(40)
})

test("memory databases know transactions, too", () => {
  const db = openMemory({ hashSize: 3 })
  db.startTransaction()
  for (let i = 0; i < 100; i++) db.store(bytes(`k${i}`), new Uint8Array(100))
  db.cancel()
  expect(keys(db).length).toBe(0)
  db.startTransaction()
  for (let i = 0; i < 100; i++) db.store(bytes(`k${i}`), new Uint8Array(100))
  db.commit()
  expect(keys(db).length).toBe(100)
  expect(check(db).findings.map(String)).toEqual([])
})

test("files of the other byte order are created, read and changed", () => {
  const path = newPath()
  const db = open(path, { flags: CONVERT | SEQNUM, hashSize: 3 })
  expect(db.swapped).toBe(true)
  for (let i = 0; i < 50; i++) db.store(bytes(`k${i}`), new Uint8Array(i * 10))
  for (let i = 0; i < 50; i += 2) db.delete(bytes(`k${i}`))
  db.startTransaction()
  db.store(bytes("t"), bytes("v"))
  db.commit()
  expect(check(db).findings.map(String)).toEqual([])
  const tool = Bun.spawnSync(["tdbtool", path, "check"]).stdout.toString()
  expect(tool).toContain("Database integrity is OK and has 26 records")
  expect(open(path).swapped).toBe(true)
})

test("rescue finds what the lists have lost, and not what was deleted", () => {
  const db = openMemory({ contents: readFileSync(join(import.meta.dir, "../vectors/tdb/corrupt-leaked-record.tdb")) })
  const found: string[] = []
  rescue(db, (key) => found.push(new TextDecoder().decode(key)))
  expect(found).toContain("hello")
  const deleted = openMemory({ hashSize: 3 })
  for (let i = 0; i < 20; i++) deleted.store(bytes(`k${i}`), bytes("v"), REPLACE)
  deleted.wipe()
  expect(rescue(deleted, () => {})).toBe(0)
})
