// A disk that is full: every way to need more space gives the typed error, leaves the file sound for us and for libtdb, and goes on
// when there is space again. On a small tmpfs of its own, which takes root.

import { afterAll, beforeAll, describe, expect, test } from "bun:test"
import { mkdirSync, mkdtempSync, rmSync, statSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { check, openTdb, type Tdb, TdbError, traverseRead } from "../../../lib/tdb/tdb.ts"
import { Random } from "../../tdb/random.ts"
import { Peer } from "./peer.ts"

const folder = mkdtempSync(join(tmpdir(), "ctdb-full-"))
const disk = join(folder, "disk")
mkdirSync(disk)
const mount = Bun.spawnSync(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", disk])
const mounted = mount.exitCode === 0
if (!mounted) console.log(`no tmpfs of our own: ${mount.stderr.toString().trim()}`)

const NOSYNC = 0x40
const MUTEXES = 0x1801
const ballast = join(disk, "ballast")
const key = (text: string | number): Uint8Array => Buffer.from(String(text))
const turns = { nextTurn: (run: () => void) => void setImmediate(run), monotonicMs: () => performance.now() }

/** Leave about so many bytes free. */
function leave(bytes: number): void {
  rmSync(ballast, { force: true })
  const free = Number(Bun.spawnSync(["stat", "-f", "-c", "%a", disk]).stdout.toString()) * 4096
  writeFileSync(ballast, new Uint8Array(Math.max(0, free - bytes)))
}

function codeOf(run: () => void): string {
  try {
    run()
  } catch (error) {
    if (error instanceof TdbError) return error.code
    throw error
  }
  return "no error"
}

function contents(db: Tdb): Map<string, string> {
  const found = new Map<string, string>()
  traverseRead(db, (bytes, keyStart, keyLength, dataStart, dataLength) => {
    const data = bytes.subarray(dataStart, dataStart + dataLength)
    found.set(Buffer.from(bytes.subarray(keyStart, keyStart + keyLength)).toString(), Bun.hash(data).toString())
  })
  return found
}

async function libtdbIsContent(path: string, flags: number): Promise<void> {
  const peer = new Peer()
  expect(await peer.call("open", path, 0, flags)).toBe(true)
  expect(await peer.call("check")).toBe(0)
  await peer.kill()
}

describe.skipIf(!mounted)("a full disk", () => {
  beforeAll(() => leave(24 << 20))

  for (const [name, flags] of [
    ["fcntl", 0],
    ["mutex", MUTEXES],
  ] as const) {
    test(`${name}: stores end with NOSPACE, and go on after a delete or with more disk`, async () => {
      const path = join(disk, `${name}.tdb`)
      leave(1 << 20)
      const db = openTdb(path, { openFlags: 0o102, flags, hashSize: 101 })
      let stored = 0
      let code = "no error"
      while (code === "no error" && stored < 10_000) {
        code = codeOf(() => db.store(key(stored), new Uint8Array(1000).fill(stored)))
        if (code === "no error") stored++
      }
      expect(code).toBe("NOSPACE")
      expect(stored).toBeGreaterThan(100)
      const size = statSync(path).size
      expect(check(db).findings.map(String)).toEqual([])
      expect(contents(db).size).toBe(stored)
      // Replacing by something larger takes the old one away first, as libtdb does; the others stay.
      expect(db.delete(key(3))).toBe(true)
      db.store(key("in its place"), new Uint8Array(900).fill(1))
      expect(codeOf(() => db.store(key("too large"), new Uint8Array(3 << 20)))).toBe("NOSPACE")
      expect(statSync(path).size).toBe(size)
      expect(check(db).findings.map(String)).toEqual([])
      await libtdbIsContent(path, flags)
      leave(8 << 20)
      db.store(key("too large"), new Uint8Array(1 << 20).fill(7))
      expect(db.fetch(key("too large"))![5]).toBe(7)
      expect(check(db).findings.map(String)).toEqual([])
      db.close()
      rmSync(path)
    })
  }

  test("a new file that does not fit is an error, and is no half-made database afterwards", () => {
    leave(1 << 20)
    const path = join(disk, "new.tdb")
    expect(codeOf(() => openTdb(path, { openFlags: 0o102, flags: MUTEXES, hashSize: 100_001 }))).toBe("NOSPACE")
    expect(statSync(path).size).toBe(0)
    leave(8 << 20)
    const db = openTdb(path, { openFlags: 0o102, flags: MUTEXES, hashSize: 100_001 })
    db.store(key("a"), key("b"))
    expect(check(db).ok).toBe(true)
    db.close()
    rmSync(path)
  })

  test("commits, plain and in pieces, at every amount of free space: the old or the new records, and the file goes on", async () => {
    const path = join(disk, "commits.tdb")
    leave(24 << 20)
    let db = openTdb(path, { openFlags: 0o102, flags: NOSYNC, hashSize: 101 })
    const random = new Random(1)
    let full = 0
    let done = 0
    for (let round = 0; round < 120; round++) {
      leave(random.below(4 << 20))
      const before = contents(db)
      const size = statSync(path).size
      db.startTransaction()
      let code = codeOf(() => {
        const count = 1 + random.below(300)
        for (let i = 0; i < count; i++) db.store(key(random.below(400)), random.bytes(random.below(6000)))
      })
      const after = contents(db)
      if (code === "no error") {
        if (round % 2 === 0) code = codeOf(() => db.commit())
        else {
          const error = await new Promise((resolve) => db.commitInPieces(turns, resolve))
          if (error !== null) code = error instanceof TdbError ? error.code : String(error)
        }
      } else db.cancel()
      expect(db.transaction).toBe(null)
      if (code === "no error") done++
      else {
        full++
        expect(code).toBe("NOSPACE")
        expect(statSync(path).size).toBe(size)
      }
      expect(contents(db)).toEqual(code === "no error" ? after : before)
      expect(check(db).findings.map(String)).toEqual([])
      if (round % 4 === 3) {
        // Anew, as a file that has grown needs nothing.
        db.close()
        if (round % 20 === 19) await libtdbIsContent(path, 0)
        rmSync(path)
        leave(24 << 20)
        db = openTdb(path, { openFlags: 0o102, flags: NOSYNC, hashSize: 101 })
      }
    }
    console.log(`${done} commits, ${full} times no space`)
    expect(done).toBeGreaterThan(20)
    expect(full).toBeGreaterThan(10)
    db.close()
    rmSync(path)
  }, 300_000)

  test("growth that fails after its first pieces gives all of it back", async () => {
    const path = join(disk, "large.tdb")
    leave(24 << 20)
    const db = openTdb(path, { openFlags: 0o102, flags: NOSYNC, hashSize: 101 })
    // Needs 21 MB more, in pieces of 16.
    leave(18 << 20)
    const size = statSync(path).size
    db.startTransaction()
    for (let i = 0; i < 100; i++) db.store(key(i), new Uint8Array(190_000).fill(i))
    const error = await new Promise((resolve) => db.commitInPieces(turns, resolve))
    expect((error as TdbError).code).toBe("NOSPACE")
    expect(statSync(path).size).toBe(size)
    expect(contents(db).size).toBe(0)
    expect(check(db).findings.map(String)).toEqual([])
    db.close()
    await libtdbIsContent(path, 0)
    rmSync(path)
  })
})

afterAll(() => {
  // Lazily: a test that failed may have left a file open.
  if (mounted) Bun.spawnSync(["umount", "-l", disk])
  rmSync(folder, { recursive: true, force: true })
})
