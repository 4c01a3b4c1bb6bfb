// A check between the turns of a loop: the same as one in one go, whatever it finds; it waits for others, and can be given up.

import { afterAll, expect, test } from "bun:test"
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { AT_CHAINS, RECORD_HEADER } from "../../lib/tdb/format.ts"
import { type CheckResult, check, checkInPieces, openTdb, type Tdb } from "../../lib/tdb/tdb.ts"
import { Random } from "./random.ts"

const folder = mkdtempSync(join(tmpdir(), "ctdb-check-"))
afterAll(() => rmSync(folder, { recursive: true, force: true }))

const NOSYNC = 0x40
const HASH_SIZE = 1009
const RECORDS = 10_000
let files = 0

function populated(): { readonly path: string; readonly db: Tdb } {
  const path = join(folder, `${files++}.tdb`)
  const db = openTdb(path, { flags: NOSYNC, openFlags: 0o102, hashSize: HASH_SIZE })
  for (let index = 0; index < RECORDS; index++) db.store(Buffer.from(`key ${index}`), new Uint8Array(index % 300))
  for (let index = 0; index < RECORDS; index += 7) db.delete(Buffer.from(`key ${index}`))
  return { path, db }
}

/** Turns that are taken only when they are asked for. */
class Turns {
  taken = 0
  private readonly waiting: (() => void)[] = []
  readonly nextTurn = (run: () => void): void => void this.waiting.push(run)
  /** Every look at the clock is a second later: each piece ends its turn. */
  private now_ms = 0
  readonly monotonicMs = (): number => {
    this.now_ms += 1000
    return this.now_ms
  }
  take(): boolean {
    const run = this.waiting.shift()
    if (run === undefined) return false
    this.taken++
    run()
    return true
  }
}

const plain = (result: CheckResult | Error) =>
  result instanceof Error ? result : { ...result, findings: result.findings.map(String) }

function inPieces(db: Tdb): { readonly result: CheckResult | Error; readonly turns: number } {
  const turns = new Turns()
  let result: CheckResult | Error | undefined
  checkInPieces(db, turns, (end) => {
    result = end
  })
  while (turns.take());
  return { result: result!, turns: turns.taken }
}

test("takes a turn for every few hundred records, and finds what a check in one go finds (seeds 1 to 30)", () => {
  const { db } = populated()
  const whole = inPieces(db)
  expect(plain(whole.result)).toEqual(plain(check(db)))
  expect(whole.result).toMatchObject({ ok: true, records: RECORDS - Math.ceil(RECORDS / 7) })
  // Lists, file and comparison: each record is looked at in all three.
  expect(whole.turns).toBeGreaterThan((3 * RECORDS) / 512)
  const kinds = new Set<string>()
  for (let seed = 1; seed <= 30; seed++) {
    const random = new Random(seed)
    // The head of a chain, or a word of its first record's header.
    const head = AT_CHAINS + 4 * random.below(HASH_SIZE)
    const at = random.below(4) === 0 ? head : db.getUnsigned(head) + 4 * random.below(RECORD_HEADER / 4)
    const before = db.b.slice(at, at + 4)
    db.b.set(random.bytes(4), at)
    const { result } = inPieces(db)
    const expected = check(db)
    expect(plain(result), `seed ${seed}`).toEqual(plain(expected))
    kinds.add(expected.findings[0]?.reason.replace(/\d+/g, "N") ?? "sound")
    db.b.set(before, at)
  }
  expect(kinds.size).toBeGreaterThan(3)
  db.close()
})

test("given up in the middle it gives its lock back, and tells nobody", () => {
  const { path, db } = populated()
  const other = openTdb(path, { flags: NOSYNC })
  const turns = new Turns()
  let told = 0
  const underway = checkInPieces(db, turns, () => told++)
  expect([turns.take(), turns.take(), told]).toEqual([true, true, 0])
  expect(other.tryLockAllrecord()).toBe(false)
  underway.abandon()
  expect(other.tryLockAllrecord()).toBe(true)
  while (turns.take());
  expect(told).toBe(0)
  other.close()
  db.close()
})

test("waits for who changes the file, while the loop turns", async () => {
  const { path, db } = populated()
  const other = openTdb(path, { flags: NOSYNC })
  other.lockAllrecord()
  const loop = { nextTurn: (run: () => void) => void setImmediate(run), monotonicMs: () => performance.now() }
  let over = false
  const result = new Promise<CheckResult | Error>((resolve) => {
    checkInPieces(db, loop, (end) => {
      over = true
      resolve(end)
    })
  })
  for (let turn = 0; turn < 100; turn++) await new Promise((resolve) => setImmediate(resolve))
  expect(over).toBe(false)
  other.unlockAllrecord()
  expect(await result).toMatchObject({ ok: true, findings: [] })
  // Nothing stays locked.
  expect(other.tryLockAllrecord()).toBe(true)
  other.close()
  db.close()
})
