// kill -9 at random moments of our and libtdb's processes that work on one file, hundreds of times. Whatever a process had announced
// as done is there afterwards, the others go on, and no value is torn. With transactions only, the file also checks clean at once;
// without them a kill between taking space and linking it leaves that space unlinked (or a tailer unset), with either engine, and
// nothing else. Outside of transactions a libtdb process is not killed while it changes the free list: what it leaves then, the next
// libtdb process makes worse (half-done.test.ts).

import { afterAll, expect, test } from "bun:test"
import { mkdtempSync, readFileSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { check, openTdb, type Tdb, traverseRead } from "../../../lib/tdb/tdb.ts"
import { firstSeed, Random, soak } from "../../tdb/random.ts"
import { waitUntil } from "../stock.ts"

const folder = mkdtempSync(join(tmpdir(), "ctdb-kill-"))
afterAll(() => rmSync(folder, { recursive: true, force: true }))
const torture = join(import.meta.dir, "torture.ts")
const KILLS = soak ? 2000 : 60

class Victim {
  /** The last value of its own counter that it said was committed. */
  announced = 0
  readonly process
  private readonly finished: Promise<void>
  private started!: () => void
  readonly ready = new Promise<void>((resolve) => {
    this.started = resolve
  })

  constructor(
    readonly seed: number,
    readonly engine: string,
    path: string,
    flags: number,
    hashSize: number,
    what: string,
  ) {
    this.process = Bun.spawn(
      [process.execPath, torture, engine, path, String(flags), String(hashSize), String(seed), "600", what],
      { stdout: "pipe", stderr: "inherit" },
    )
    this.finished = this.listen()
  }

  private async listen(): Promise<void> {
    let rest = ""
    const decoder = new TextDecoder()
    for await (const chunk of this.process.stdout) {
      rest += decoder.decode(chunk, { stream: true })
      const lines = rest.split("\n")
      rest = lines.pop()!
      for (const line of lines) {
        if (line.startsWith("{")) this.started()
        else this.announced = Number(line)
      }
    }
  }

  async kill(): Promise<void> {
    this.process.kill("SIGKILL")
    await this.gone()
  }

  /** Kills it where it does not have the free list's lock. */
  async killOutsideFreelist(db: Tdb): Promise<void> {
    for (;;) {
      this.process.kill("SIGSTOP")
      await waitUntil("its standstill", () => /^State:\s+[TZ]/m.test(this.status()))
      if (db.lockFreelist(false)) break
      this.process.kill("SIGCONT")
      await Bun.sleep(1)
    }
    try {
      this.process.kill("SIGKILL")
      await this.gone()
    } finally {
      db.unlockFreelist()
    }
  }

  private status(): string {
    return readFileSync(`/proc/${this.process.pid}/status`, "utf8")
  }

  private async gone(): Promise<void> {
    await this.process.exited
    await this.finished
    // Killed by us, not fallen over by itself.
    expect(this.process.signalCode).toBe("SIGKILL")
  }
}

const SCENES = [
  ["fcntl, transactions only", 0x841, 7, "transactions loud kill"],
  ["fcntl, everything", 0x841, 7, "mixed loud kill"],
  ["mutexes, everything", 0x1841, 7, "mixed loud kill"],
  ["mutexes, one chain", 0x1841, 1, "mixed loud kill"],
] as const

SCENES.forEach(([name, flags, hashSize, what], n) => {
  test(
    `${name}: ${KILLS} kills`,
    async () => {
      const random = new Random(firstSeed * 100 + n)
      const path = join(folder, `kill${n}.tdb`)
      const db = openTdb(path, { flags, hashSize, openFlags: 0o102 })
      let seed = firstSeed * 100_000 + n * 10_000
      const start = (): Victim => {
        seed++
        return new Victim(seed, seed % 2 === 0 ? "ours" : "libtdb", path, flags, hashSize, what)
      }
      const end = (victim: Victim) =>
        victim.engine === "ours" || what.startsWith("transactions") ? victim.kill() : victim.killOutsideFreelist(db)
      const crowd = [start(), start(), start()]
      const dead: Victim[] = []
      const value = (key: string): number => {
        const data = db.fetch(Buffer.from(key))
        return data === null ? 0 : Buffer.from(data).readUInt32LE(0)
      }
      try {
        for (let kill = 0; kill < KILLS; kill++) {
          const i = random.below(crowd.length)
          const victim = crowd[i]!
          await victim.ready
          // The moment is the point of this: anywhere in the next milliseconds.
          await Bun.sleep(random.below(25))
          await end(victim)
          dead.push(victim)
          crowd[i] = start()
          // Announced means there; one more may have been committed and not announced.
          const found = value(`P${victim.seed}`)
          expect(found).toBeGreaterThanOrEqual(victim.announced)
          if (what.startsWith("transactions")) expect(found - victim.announced).toBeLessThanOrEqual(1)
          if (kill % 10 === 0) expectSound(db, what.startsWith("transactions"))
        }
        for (const victim of crowd) {
          await victim.ready
          await end(victim)
          expect(value(`P${victim.seed}`)).toBeGreaterThanOrEqual(victim.announced)
        }
        for (const victim of dead) expect(value(`P${victim.seed}`)).toBeGreaterThanOrEqual(victim.announced)
        expect(value("T1")).toBe(value("T2"))
        expect(dead.some((victim) => victim.announced > 10)).toBe(true)
        expectSound(db, what.startsWith("transactions"))
        const left = check(db).findings.length
        // A repack leaves nothing of that.
        db.repack()
        expect(check(db).findings.map(String)).toEqual([])
        for (const victim of dead) expect(value(`P${victim.seed}`)).toBeGreaterThanOrEqual(victim.announced)
        console.log(`${name}: ${dead.length} kills, ${left} unlinked pieces before the repack`)
      } catch (error) {
        throw new Error(`CTDB_SEED=${firstSeed}: ${error instanceof Error ? error.stack : error}`)
      } finally {
        for (const victim of crowd) victim.process.kill("SIGKILL")
        db.close()
      }
      const said = Bun.spawnSync(["tdbtool", "-l", path, "check"]).stdout.toString()
      expect(said).toContain("Database integrity is OK")
    },
    KILLS * 3000 + 300_000,
  )
})

function expectSound(db: Tdb, clean: boolean): void {
  // The allrecord lock is ours for the length of the check: no change is half done but those of the dead.
  const findings = check(db).findings.map(String)
  // libtdb takes a free record that was made smaller with the lengths of what was in it once; in a chain it would end the walk.
  const leaked = /in no list|invalid tailer|Dead|dead|too short for contents/
  expect(findings.filter((text) => clean || !leaked.test(text))).toEqual([])
  traverseRead(db, () => {})
}
