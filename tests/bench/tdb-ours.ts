// Our side of tests/bench/tdb.ts: the operations of tdb-libtdb.c, with the same arguments and output.

import { dlopen, type Pointer, ptr } from "bun:ffi"
import { unlinkSync } from "node:fs"
import {
  AT_DATA_LEN,
  AT_RECOVERY_START,
  INSERT,
  openTdb,
  RECORD_HEADER,
  REPLACE,
  traverseRead,
} from "../../lib/tdb/tdb.ts"

const [file, operation, countText, flags, hashSize, keysText, startAt_ms] = process.argv.slice(2) as [
  string,
  string,
  string,
  string,
  string,
  string,
  string,
]
const count = Number(countText)
const keyCount = Number(keysText)
let db = openTdb(file, { flags: Number(flags), hashSize: Number(hashSize), openFlags: 0o102 })
if (process.env.CTDB_BENCH_MSYNC !== undefined) {
  // After each fdatasync also the msync that libtdb makes, of the same bytes, which finds nothing left to write: the recovery record,
  // its header, everything, its header.
  const { msync } = dlopen("libc.so.6", { msync: { args: ["ptr", "u64", "i32"], returns: "i32" } }).symbols
  const { backing } = db
  const sync = backing.sync.bind(backing)
  let syncs = 0
  backing.sync = () => {
    sync()
    const area = backing.words[AT_RECOVERY_START >>> 2]!
    const record = RECORD_HEADER + backing.words[(area + AT_DATA_LEN) >>> 2]!
    const turn = syncs++ % 4
    const from = turn === 2 ? 0 : area & ~4095
    const end = turn === 2 ? backing.size : area + (turn === 0 ? record : RECORD_HEADER)
    if (msync((ptr(backing.bytes) + from) as Pointer, end - from, 4) !== 0) throw new Error("msync failed")
  }
}
const value = new Uint8Array(100).fill(118)
const keyOf = (i: number): Uint8Array => Buffer.from(`bench-key-${String(i).padStart(10, "0")}`)
const list: Uint8Array[] = []
for (let i = 0; i < keyCount; i++) list.push(keyOf(i))

function fill(n: number): void {
  for (let i = 0; i < n; i++) db.store(keyOf(i), value)
}

/** Operations before the clock starts: so many that the compiler is done. tdb-libtdb.c does as many. */
const WARM_UP = 300_000
const record = new Uint8Array(4096)
const exact = record.subarray(0, 100)
function fetchStore(n: number): void {
  let next = 0
  for (let i = 0; i < n; i++) {
    next += 7919
    if (next >= keyCount) next %= keyCount
    const key = list[next]!
    const hash = db.hash(key)
    db.lockChain(hash)
    if (db.fetchInto(key, record, 0, hash) !== 100) throw new Error("lost")
    record[0]!++
    db.store(key, exact, REPLACE, hash)
    db.unlockChain(hash)
  }
}

function insertDelete(n: number): void {
  for (let done = 0; done < n; done += 2 * keyCount) {
    for (let i = 0; i < keyCount; i++) db.store(list[i]!, value, INSERT)
    for (let i = 0; i < keyCount; i++) if (!db.delete(list[i]!)) throw new Error("lost")
  }
}

let sum = 0
function walk(): void {
  const visited = traverseRead(db, (bytes, keyStart, _keyLength, _dataStart, dataLength) => {
    sum += bytes[keyStart]! + dataLength
  })
  if (visited !== count || sum < count) throw new Error(`visited ${visited}`)
}

function commit(n: number): void {
  for (let i = 0; i < n; i++) {
    db.startTransaction()
    for (let j = 0; j < keyCount; j++) {
      value[0] = i + j
      db.store(list[j]!, value)
    }
    db.commit()
  }
}

// The compiler is part of neither engine: a daemon runs for months. So the work is done on another file first.
const WARM_UP_MS = 800
if (operation === "insertdelete" || operation === "commit") {
  const real = db
  db = openTdb(`${file}.warm`, { flags: Number(flags) | 0x40, hashSize: Number(hashSize), openFlags: 0o102 })
  const until = performance.now() + WARM_UP_MS
  while (performance.now() < until) {
    if (operation === "commit") commit(1)
    else insertDelete(2)
  }
  db.close()
  unlinkSync(`${file}.warm`)
  db = real
}

// Both sides commit a few times before the clock starts: the file has its recovery area.
if (operation === "commit") commit(3)
if (operation === "fetchstore") {
  for (const key of list) db.store(key, value)
  fetchStore(WARM_UP)
}
// All processes begin together; until then nobody is kept from getting ready.
const early_ms = Number(startAt_ms) - Date.now() - 5
if (early_ms > 0) Bun.sleepSync(early_ms)
while (performance.timeOrigin + performance.now() < Number(startAt_ms)) {
  // the last moments exactly
}
const start = Bun.nanoseconds()
if (operation === "fill") fill(count)
else if (operation === "fetchstore") fetchStore(count)
else if (operation === "insertdelete") insertDelete(count)
else if (operation === "traverse") walk()
else if (operation === "commit") commit(count)
else throw new Error(`no operation ${operation}`)
console.log(String(Bun.nanoseconds() - start))
db.close()
