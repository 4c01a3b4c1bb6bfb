// Our processes and libtdb processes on one file at the same time: no lost increment, no torn value, no half transaction,
// no failed check, no hang. Three minutes in all; CTDB_SOAK=1 makes it an hour.

import { afterAll, expect, test } from "bun:test"
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { check, openTdb } from "../../../lib/tdb/tdb.ts"
import { firstSeed, soak } from "../../tdb/random.ts"

const folder = mkdtempSync(join(tmpdir(), "ctdb-crowd-"))
afterAll(() => rmSync(folder, { recursive: true, force: true }))
const torture = join(import.meta.dir, "torture.ts")

const SECONDS = soak ? 900 : 46
const CROWDS = [
  ["fcntl, 2 chains, transactions", 0x841, 2],
  ["mutexes, 2 chains", 0x1841, 2],
  ["fcntl, 101 chains, transactions", 0x841, 101],
  ["mutexes, 101 chains", 0x1841, 101],
] as const

interface Done {
  done: { counters: number[]; pairs: number; operations: number; checks: number }
}

CROWDS.forEach(([name, flags, hashSize], n) => {
  test(
    `${name}: two of ours and two of libtdb's`,
    async () => {
      const path = join(folder, `crowd${n}.tdb`)
      // Keeps the file in use: its mutexes and contents stay when the crowd reopens it.
      const db = openTdb(path, { flags, hashSize, openFlags: 0o102 })
      const seed = firstSeed * 1000 + n * 10
      const crowd = ["ours", "libtdb", "ours", "libtdb"].map((engine, i) =>
        Bun.spawn(
          [
            process.execPath,
            torture,
            engine,
            path,
            String(flags),
            String(hashSize),
            String(seed + i),
            String(SECONDS),
            "mixed",
          ],
          { stdout: "pipe", stderr: "inherit" },
        ),
      )
      const outputs = await Promise.all(crowd.map((process) => new Response(process.stdout).text()))
      expect(await Promise.all(crowd.map((process) => process.exited))).toEqual([0, 0, 0, 0])
      const results = outputs.map((output) => (JSON.parse(output.trim().split("\n").pop()!) as Done).done)
      const read = (key: string): number => {
        const data = db.fetch(Buffer.from(key))
        return data === null ? 0 : Buffer.from(data).readUInt32LE(0)
      }
      for (let i = 0; i < 3; i++) {
        expect(read(`N${i}`)).toBe(results.reduce((sum, result) => sum + result.counters[i]!, 0))
      }
      const pairs = results.reduce((sum, result) => sum + result.pairs, 0)
      expect(read("T1")).toBe(pairs)
      expect(read("T2")).toBe(pairs)
      if ((flags & 0x1000) === 0) expect(pairs).toBeGreaterThan(100)
      for (const result of results) expect(result.operations).toBeGreaterThan(1000)
      expect(check(db).findings.map(String)).toEqual([])
      console.log(`seed ${seed}: ${JSON.stringify(results)}`)
      db.close()
      const said = Bun.spawnSync(["tdbtool", "-l", path, "check"]).stdout.toString()
      expect(said).toContain("Database integrity is OK")
    },
    (SECONDS + 60) * 1000,
  )
})
