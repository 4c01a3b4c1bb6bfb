// One process of a mixed crowd on one file, with our engine or with libtdb, for concurrency.test.ts and kill.test.ts.
// torture.ts ENGINE FILE FLAGS HASHSIZE SEED SECONDS WHAT
// WHAT is mixed, or transactions (nothing outside of transactions). It prints a line {"ready":true}, with `loud` in WHAT a line for
// every committed private counter value, and at the end what it has done.

import { check, openTdb, type Tdb, traverse, traverseRead } from "../../../lib/tdb/tdb.ts"
import { Random } from "../../tdb/random.ts"
import { LibTdb } from "./libtdb.ts"

const [engineName, file, flagsText, hashSize, seed, seconds, what] = process.argv.slice(2) as [
  string,
  string,
  string,
  string,
  string,
  string,
  string,
]
const flags = Number(flagsText)
const mutexes = (flags & 0x1000) !== 0
const random = new Random(Number(seed))
const until = performance.now() + Number(seconds) * 1000

interface Engine {
  lock(key: Buffer): void
  unlock(key: Buffer): void
  fetch(key: Buffer): Uint8Array | null
  store(key: Buffer, data: Buffer): void
  delete(key: Buffer): void
  append(key: Buffer, data: Buffer): void
  walk(visit: (key: Uint8Array, data: Uint8Array) => void): void
  deleteWalk(): void
  start(): void
  prepare(): void
  commit(): void
  cancel(): void
  check(): boolean
  close(): void
}

function openOurs(): Engine {
  const db: Tdb = openTdb(file, { flags, hashSize: Number(hashSize), openFlags: 0o102 })
  return {
    lock: (key) => db.lockChain(db.hash(key)),
    unlock: (key) => db.unlockChain(db.hash(key)),
    fetch: (key) => db.fetch(key),
    store: (key, data) => db.store(key, data),
    delete: (key) => void db.delete(key),
    append: (key, data) => db.append(key, data),
    walk: (visit) =>
      void traverseRead(db, (bytes, keyStart, keyLength, dataStart, dataLength) => {
        visit(bytes.subarray(keyStart, keyStart + keyLength), bytes.subarray(dataStart, dataStart + dataLength))
      }),
    deleteWalk: () =>
      void traverse(db, (key) => {
        if (random.below(4) === 0 && isPlain(key)) db.delete(key)
      }),
    start: () => db.startTransaction(),
    prepare: () => db.prepareCommit(),
    commit: () => db.commit(),
    cancel: () => db.cancel(),
    check() {
      const result = check(db)
      if (!result.ok) console.error(result.findings.slice(0, 4).map(String).join("\n"))
      return result.ok
    },
    close: () => db.close(),
  }
}

/** libtdb's number of a write lock that may not be taken (TDB_ERR_RDONLY). */
const RDONLY = 10

function openTheirs(): Engine {
  const db = LibTdb.open(file, Number(hashSize), flags, 0o102)
  if (db === null) throw new Error("libtdb cannot open it")
  const must = (result: number, name: string): void => {
    if (result !== 0) throw new Error(`libtdb: ${name} failed with error ${db.error()}`)
  }
  return {
    lock: (key) => must(db.lockChain(key), "chainlock"),
    unlock: (key) => must(db.unlockChain(key), "chainunlock"),
    fetch: (key) => db.fetch(key),
    store: (key, data) => must(db.store(key, data), "store"),
    delete: (key) => void db.delete(key),
    append: (key, data) => must(db.append(key, data), "append"),
    walk(visit) {
      let records = db.records()
      // Somebody was killed in a commit: a read traverse may not take the lock that undoing it needs; a chain lock does that first.
      for (let attempt = 0; records === null && db.error() === RDONLY && attempt < 10; attempt++) {
        const key = Buffer.from("recovery")
        must(db.lockChain(key), "chainlock")
        must(db.unlockChain(key), "chainunlock")
        records = db.records()
      }
      if (records === null) throw new Error(`libtdb: traverse failed with error ${db.error()}`)
      for (const { key, data } of records) visit(key, data)
    },
    deleteWalk: () => {},
    start: () => must(db.start(), "transaction_start"),
    prepare: () => must(db.prepare(), "prepare"),
    commit: () => must(db.commit(), "commit"),
    cancel: () => must(db.cancel(), "cancel"),
    check: () => db.check() === 0,
    close: () => void db.close(),
  }
}

const isPlain = (key: Uint8Array): boolean => key[0]! >= 97 && key[0]! <= 122
const COUNTERS = 3
const counterKey = (i: number): Buffer => Buffer.from(`N${i}`)
const word = (): Buffer =>
  Buffer.from(
    `${Array.from({ length: 1 + random.below(100) }, () => String.fromCharCode(97 + random.below(26))).join("")}\0`,
  )
const plainKey = (): Buffer =>
  Buffer.from(`${random.pick(["a", "bc", "xyz"])}${String.fromCharCode(97 + random.below(26))}\0`)

// Every value is a sequence of words that somebody stored whole.
function verify(key: Uint8Array, data: Uint8Array): void {
  if (!isPlain(key)) return
  let previous = 0
  for (const byte of data) {
    const letter = byte >= 97 && byte <= 122
    if (!letter && (byte !== 0 || previous === 0))
      throw new Error(`torn value: ${Buffer.from(data).toString("latin1")}`)
    previous = byte
  }
  if (data.length > 0 && data[data.length - 1] !== 0) throw new Error("torn value: no end")
}

function increment(engine: Engine, key: Buffer): number {
  const old = engine.fetch(key)
  const value = Buffer.alloc(4)
  value.writeUInt32LE(old === null ? 1 : Buffer.from(old).readUInt32LE(0) + 1)
  engine.store(key, value)
  return value.readUInt32LE(0)
}

let engine = engineName === "ours" ? openOurs() : openTheirs()
const reopen = (): void => {
  engine.close()
  engine = engineName === "ours" ? openOurs() : openTheirs()
}
const done = { counters: new Array<number>(COUNTERS).fill(0), pairs: 0, operations: 0, checks: 0 }
const own = Buffer.from(`P${seed}`)
const loud = what.includes("loud")

function transaction(): void {
  engine.start()
  const pairs = ["T1", "T2"].map((name) => increment(engine, Buffer.from(name)))
  if (pairs[0] !== pairs[1]) throw new Error(`half a transaction: ${pairs.join(" ")}`)
  const value = increment(engine, own)
  for (let i = random.below(8); i > 0; i--) {
    if (random.below(3) === 0) engine.delete(plainKey())
    else engine.store(plainKey(), word())
  }
  if (random.below(4) === 0) {
    engine.cancel()
    return
  }
  if (random.below(2) === 0) engine.prepare()
  engine.commit()
  done.pairs++
  if (loud) console.log(value)
}

function locked(): void {
  const i = random.below(COUNTERS)
  const key = counterKey(i)
  engine.lock(key)
  increment(engine, key)
  engine.unlock(key)
  done.counters[i]!++
}

function mixed(): void {
  const dice = random.below(200)
  if (dice < 80) locked()
  else if (dice < 110) engine.store(plainKey(), word())
  else if (dice < 130) engine.append(plainKey(), word())
  else if (dice < 155) engine.delete(plainKey())
  else if (dice < 180) {
    const key = plainKey()
    const data = engine.fetch(key)
    if (data !== null) verify(key, data)
  } else if (dice < 186) engine.walk(verify)
  else if (dice < 188) engine.deleteWalk()
  else if (dice < 196) {
    if (!mutexes) transaction()
  } else if (dice < 198) {
    if (!what.includes("kill")) {
      if (!engine.check()) throw new Error("check failed")
      done.checks++
    }
  } else reopen()
}

console.log('{"ready":true}')
while (performance.now() < until) {
  for (let i = 0; i < 20; i++) {
    if (what.includes("transactions")) transaction()
    else mixed()
    done.operations++
  }
  if (loud && !what.includes("transactions")) {
    engine.lock(own)
    const value = increment(engine, own)
    engine.unlock(own)
    console.log(value)
  }
}
engine.close()
console.log(JSON.stringify({ done }))
