// libtdb processes that read and write the file with pread and pwrite (flag NOMMAP, smb.conf's `use mmap = no`) beside ours, which map it
// with that flag too: neither side notices, growth and transactions of both included.

import { afterAll, expect, test } from "bun:test"
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { check, openTdb, TdbError } from "../../../lib/tdb/tdb.ts"
import { firstSeed, soak } from "../../tdb/random.ts"
import { Peer } from "./peer.ts"

const folder = mkdtempSync(join(tmpdir(), "ctdb-nommap-"))
afterAll(() => rmSync(folder, { recursive: true, force: true }))

const NOMMAP = 0x8
const SECONDS = soak ? 300 : 8

test("the flag is taken and shown; with mutexes it is refused, as by libtdb", async () => {
  const path = join(folder, "flags.tdb")
  const db = openTdb(path, { flags: NOMMAP, openFlags: 0o102 })
  expect(db.flags & NOMMAP).toBe(NOMMAP)
  db.close()
  expect(() => openTdb(path, { flags: NOMMAP | 0x1000, openFlags: 0o102 })).toThrow(TdbError)
  const peer = new Peer()
  expect(await peer.call("open", path, 131, NOMMAP | 0x1000)).toBe(false)
  await peer.kill()
})

test("what one side stores the other one sees at once, in space that either has just added", async () => {
  const path = join(folder, "turns.tdb")
  const db = openTdb(path, { flags: NOMMAP, hashSize: 7, openFlags: 0o102 })
  const peer = new Peer()
  expect(await peer.call("open", path, 7, NOMMAP)).toBe(true)
  const text = (key: string): string => Buffer.from(db.fetch(Buffer.from(key)) ?? "none").toString()
  for (let turn = 1; turn <= 12; turn++) {
    const [ours, theirs] = [`ours ${turn} `.repeat(300 * turn), `theirs ${turn} `.repeat(300 * turn)]
    const size = db.size
    // Odd turns in transactions.
    if (turn % 2 === 1) {
      db.startTransaction()
      db.store(Buffer.from(`ours${turn}`), Buffer.from(ours))
      db.commit()
      expect(await peer.call("start")).toBe(0)
      expect(await peer.call("store", `theirs${turn}`, theirs)).toBe(0)
      expect(text(`theirs${turn}`)).toBe("none")
      expect(await peer.call("commit")).toBe(0)
    } else {
      db.store(Buffer.from(`ours${turn}`), Buffer.from(ours))
      expect(await peer.call("store", `theirs${turn}`, theirs)).toBe(0)
    }
    expect(await peer.call("fetch", `ours${turn}`)).toBe(ours)
    expect(text(`theirs${turn}`)).toBe(theirs)
    if (turn === 1) expect(db.size).toBeGreaterThan(size)
  }
  expect(check(db).findings.map(String)).toEqual([])
  expect(await peer.call("check")).toBe(0)
  await peer.kill()
  db.close()
})

interface Done {
  done: { counters: number[]; pairs: number; operations: number }
}

test(
  "a crowd: two of ours, one libtdb process that maps and two that don't",
  async () => {
    const path = join(folder, "crowd.tdb")
    const flags = 0x841
    const db = openTdb(path, { flags, hashSize: 7, openFlags: 0o102 })
    const crowd = ["ours", "libtdb", "ours", "libtdb", "libtdb"].map((engine, i) => {
      const own = i === 1 ? flags : flags | NOMMAP
      const words = [engine, path, String(own), "7", String(firstSeed * 1000 + i), String(SECONDS), "mixed"]
      return Bun.spawn([process.execPath, join(import.meta.dir, "torture.ts"), ...words], {
        stdout: "pipe",
        stderr: "inherit",
      })
    })
    const outputs = await Promise.all(crowd.map((process) => new Response(process.stdout).text()))
    expect(await Promise.all(crowd.map((process) => process.exited))).toEqual([0, 0, 0, 0, 0])
    const results = outputs.map((output) => (JSON.parse(output.trim().split("\n").pop()!) as Done).done)
    const read = (key: string): number => Buffer.from(db.fetch(Buffer.from(key))!).readUInt32LE(0)
    for (let i = 0; i < 3; i++) {
      expect(read(`N${i}`)).toBe(results.reduce((sum, result) => sum + result.counters[i]!, 0))
    }
    const pairs = results.reduce((sum, result) => sum + result.pairs, 0)
    expect([read("T1"), read("T2")]).toEqual([pairs, pairs])
    for (const result of results) expect(result.pairs).toBeGreaterThan(0)
    expect(check(db).findings.map(String)).toEqual([])
    db.close()
  },
  (SECONDS + 120) * 1000,
)
