// Views that transactions leave behind for the next one, with more changed pages than are kept in any case: what others have stored
// meanwhile shows, what was cancelled does not, and nothing is mixed up when the views of many databases share what may be kept.

import { afterAll, expect, test } from "bun:test"
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { check, Filling, openTdb, type Tdb } from "../../lib/tdb/tdb.ts"
import { firstSeed, Random } from "./random.ts"

const folder = mkdtempSync(join(tmpdir(), "ctdb-kept-"))
afterAll(() => rmSync(folder, { recursive: true, force: true }))

const NOSYNC = 0x40
const RECORDS = 400
const SIZE = 3000

/** A database that two handles have open, and what must be in it. */
class Subject {
  readonly model = new Map<number, number>()
  private readonly one: Tdb
  private readonly other: Tdb

  constructor(n: number) {
    const open = (): Tdb => openTdb(join(folder, `${n}.tdb`), { flags: NOSYNC, hashSize: 1009, openFlags: 0o102 })
    this.one = open()
    this.other = open()
  }

  private store(db: Tdb, key: number, fill: number): void {
    db.store(Buffer.from(`key ${key}`), Buffer.alloc(SIZE, fill))
  }

  /** A transaction that stores `count` records from `from` on; without `keep` it is cancelled. */
  transaction(from: number, count: number, fill: number, keep: boolean): void {
    const { one, model } = this
    one.startTransaction()
    this.compare(one)
    for (let key = from; key < from + count; key++) {
      this.store(one, key, fill)
      if (keep) model.set(key, fill)
    }
    if (keep) one.commit()
    else one.cancel()
  }

  /** A transaction that empties the database and fills it, as a recovery does. */
  fill(count: number, fill: number): void {
    const { one, model } = this
    one.startTransaction()
    one.wipe()
    const filling = Filling.begin(one)!
    model.clear()
    for (let key = 0; key < count; key++) {
      const name = Buffer.from(`key ${key}`)
      filling.add(Buffer.concat([name, Buffer.alloc(SIZE, fill)]), 0, name.length, SIZE, one.hash(name))
      model.set(key, fill)
    }
    filling.end()
    one.commit()
  }

  elsewhere(key: number, fill: number): void {
    this.store(this.other, key, fill)
    this.model.set(key, fill)
  }

  compare(db = this.one): void {
    for (const [key, fill] of this.model) {
      const data = db.fetch(Buffer.from(`key ${key}`))
      if (data === null || data.some((byte) => byte !== fill)) throw new Error(`key ${key} is not ${fill}`)
    }
  }

  end(): void {
    this.compare()
    this.compare(this.other)
    expect(check(this.one).findings.map(String)).toEqual([])
    this.one.close()
    this.other.close()
  }
}

test.each([1, 12])(
  "transactions on %d databases by turns",
  (databases) => {
    const random = new Random(firstSeed)
    const subjects = Array.from({ length: databases }, (_, n) => new Subject(databases * 100 + n))
    for (const subject of subjects) subject.transaction(0, RECORDS, 1, true)
    for (let step = 0; step < 60; step++) {
      const subject = random.pick(subjects)
      // Large ones mostly; small ones in between give up what large ones have left.
      const count = random.below(4) === 0 ? 1 + random.below(3) : 100 + random.below(RECORDS - 100)
      const from = random.below(RECORDS - count + 1)
      subject.transaction(from, count, 2 + step, random.below(4) !== 0)
      for (let n = random.below(20); n > 0; n--) subject.elsewhere(random.below(RECORDS), 100 + step)
    }
    for (const subject of subjects) subject.end()
  },
  60_000,
)

test("what is made ready for records that do not come shows what others store there", () => {
  const subject = new Subject(1)
  subject.transaction(0, RECORDS, 1, true)
  // The first one grows the file, and its view is not used again.
  for (const fill of [2, 3]) {
    subject.fill(RECORDS / 2, fill)
    for (let key = RECORDS / 2; key < RECORDS; key++) subject.elsewhere(key, 10 + fill)
    subject.transaction(0, 1, 20 + fill, true)
  }
  subject.end()
})
