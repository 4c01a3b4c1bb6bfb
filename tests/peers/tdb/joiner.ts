// Joins a running tdbtorture with our engine until stdin ends: joiner.ts FILE FLAGS SEED. Same kind of keys and values, every value
// read is verified, and the whole file is checked under the allrecord lock from time to time.

import { check, openTdb, traverse, traverseRead } from "../../../lib/tdb/tdb.ts"
import { Random } from "../../tdb/random.ts"

const [path, flagsText, seed] = process.argv.slice(2) as [string, string, string]
const flags = Number(flagsText)
const random = new Random(Number(seed))
let db = openTdb(path, { flags, openFlags: 2 })
let stopped = false
void (async () => {
  for await (const _ of Bun.stdin.stream()) {
    // only its end counts
  }
  stopped = true
})()

const letters = (length: number): Buffer =>
  Buffer.from(`${Array.from({ length }, () => String.fromCharCode(97 + random.below(26))).join("")}\0`)

function verify(data: Uint8Array): void {
  if (!/^([a-z]+\0)*$/.test(Buffer.from(data).toString("latin1"))) throw new Error("torn value")
}

function step(): void {
  const key = letters(1 + random.below(3))
  const dice = random.below(400)
  if (dice < 100) db.store(key, letters(1 + random.below(99)))
  else if (dice < 160) db.append(key, letters(1 + random.below(99)))
  else if (dice < 230) db.delete(key)
  else if (dice < 300) {
    const hash = db.hash(key)
    db.lockChain(hash)
    const data = db.fetch(key, hash)
    if (data !== null) verify(data)
    db.store(key, data ?? new Uint8Array(0), 1, hash)
    db.unlockChain(hash)
  } else if (dice < 310) {
    traverseRead(db, (bytes, _keyStart, _keyLength, dataStart, dataLength) => {
      verify(bytes.subarray(dataStart, dataStart + dataLength))
    })
  } else if (dice < 314) {
    traverse(db, (found, data) => {
      verify(data)
      if (random.below(5) === 0) db.delete(found)
    })
  } else if (dice < 320 && (flags & 0x1000) === 0) {
    db.startTransaction()
    for (let i = random.below(10); i > 0; i--) db.store(letters(2), letters(50))
    if (random.below(3) === 0) db.cancel()
    else db.commit()
  } else if (dice < 323) {
    const result = check(db)
    if (!result.ok) throw new Error(result.findings.slice(0, 3).map(String).join("\n"))
  } else if (dice < 326) {
    db.close()
    db = openTdb(path, { flags, openFlags: 2 })
  } else {
    const data = db.fetch(key)
    if (data !== null) verify(data)
  }
}

while (!stopped) {
  for (let i = 0; i < 50; i++) step()
  await new Promise((resolve) => setImmediate(resolve))
}
db.close()
process.exit(0)
