// Waiting for locks that real libtdb processes hold: the event loop goes on, requests are served in order, cancels work, a dead holder
// frees the lock, and ours exclude theirs in both directions. fcntl and mutex files.

import { afterAll, afterEach, expect, test } from "bun:test"
import { mkdtempSync, readdirSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { type Held, openTdb, type Tdb, WAITERS } from "../../../lib/tdb/tdb.ts"
import { Peer } from "./peer.ts"

const folder = mkdtempSync(join(tmpdir(), "ctdb-waits-"))
const FILES = [
  ["fcntl", 0x801],
  ["mutex", 0x1801],
] as const
let peers: Peer[] = []
let handles: Tdb[] = []
let files = 0

afterEach(async () => {
  for (const db of handles) db.close()
  await Promise.all(peers.map((peer) => peer.kill()))
  peers = []
  handles = []
})
afterAll(() => rmSync(folder, { recursive: true, force: true }))

async function together(flags: number, hashSize = 7): Promise<{ db: Tdb; peer: Peer; path: string }> {
  const path = join(folder, `w${files++}.tdb`)
  const db = openTdb(path, { flags, hashSize, openFlags: 0o102 })
  handles.push(db)
  const peer = new Peer()
  peers.push(peer)
  expect(await peer.call("open", path, 0, flags)).toBe(true)
  return { db, peer, path }
}

const grant = (db: Tdb, hash: number): Promise<Held> =>
  new Promise((resolve, reject) => {
    db.waitForChain(hash, (held, error) => {
      if (held === null) return reject(error)
      held.keep()
      resolve(held)
    })
  })

for (const [kind, flags] of FILES) {
  test(`${kind}: chain locks exclude each other in both directions`, async () => {
    const { db, peer } = await together(flags)
    const hash = db.hash(Buffer.from("a"))
    expect(await peer.call("lock", "a")).toBe(0)
    expect(db.tryLockChain(hash)).toBe(false)
    expect(db.tryLockAllrecord()).toBe(false)
    expect(await peer.call("unlock", "a")).toBe(0)
    expect(db.tryLockChain(hash)).toBe(true)
    expect(await peer.call("try", "a")).toBe(-1)
    expect(await peer.call("trylockall")).toBe(-1)
    db.unlockChain(hash)
    expect(await peer.call("try", "a")).toBe(0)
    expect(await peer.call("unlock", "a")).toBe(0)
    db.lockAllrecord()
    expect(await peer.call("try", "a")).toBe(-1)
    db.unlockAllrecord()
    expect(await peer.call("trylockall")).toBe(0)
    expect(db.tryLockChain(hash)).toBe(false)
    expect(await peer.call("unlockall")).toBe(0)
  })

  test(`${kind}: thousands of requests wait in order while the loop turns, without a thread each`, async () => {
    const { db, peer } = await together(flags)
    const key = Buffer.from("a")
    const hash = db.hash(key)
    expect(await peer.call("lock", "a")).toBe(0)
    const order: number[] = []
    const requests = 5000
    const all = new Promise<void>((resolve) => {
      for (let i = 0; i < requests; i++) {
        db.waitForChain(hash, (held, error) => {
          expect(error).toBeNull()
          expect(held).not.toBeNull()
          db.store(key, Buffer.from(String(i)), 1, hash)
          order.push(i)
          if (order.length === requests) resolve()
        })
      }
    })
    let turns = 0
    const ticking = setInterval(() => turns++, 1)
    while (turns < 50) await Bun.sleep(1)
    expect(order.length).toBe(0)
    expect(readdirSync("/proc/self/task").length).toBeLessThan(40)
    expect(db.tryLockChain(hash)).toBe(false)
    await peer.call("unlock", "a")
    await all
    clearInterval(ticking)
    expect(order).toEqual([...order.keys()])
    expect(await peer.call("fetch", "a")).toBe(String(requests - 1))
    expect(await peer.call("try", "a")).toBe(0)
    await peer.call("unlock", "a")
  })

  test(`${kind}: a peer gets its turn while our queue stays full`, async () => {
    const { db, peer } = await together(flags)
    const hash = db.hash(Buffer.from("a"))
    let served = 0
    let stop = false
    const again = (): void => {
      db.waitForChain(hash, () => {
        served++
        if (!stop) again()
      })
    }
    await peer.call("lock", "a")
    for (let i = 0; i < 200; i++) again()
    await peer.call("unlock", "a")
    // On a busy machine the waiting thread may be late for some rounds; never getting a turn is the test's time-out.
    for (let i = 0; i < 20 || served === 0; i++) {
      expect(await peer.call("lock", "a")).toBe(0)
      const before = served
      await peer.call("fetch", "a")
      expect(served).toBe(before)
      expect(await peer.call("unlock", "a")).toBe(0)
    }
    stop = true
    while (!db.tryLockChain(hash)) await Bun.sleep(1)
    db.unlockChain(hash)
  })

  test(`${kind}: a cancelled request is never called, and the lock is free afterwards`, async () => {
    const { db, peer } = await together(flags)
    const hash = db.hash(Buffer.from("a"))
    await peer.call("lock", "a")
    let called = 0
    const waits = Array.from({ length: 10 }, () => db.waitForChain(hash, () => called++))
    for (const wait of waits) wait.cancel()
    await peer.call("unlock", "a")
    expect(await peer.call("lock", "a")).toBe(0)
    await peer.call("unlock", "a")
    while (!db.tryLockChain(hash)) await Bun.sleep(1)
    db.unlockChain(hash)
    expect(called).toBe(0)
    // a thread is free again for the next one
    await peer.call("lock", "a")
    const next = grant(db, hash)
    await peer.call("unlock", "a")
    ;(await next).release()
    expect(await peer.call("lock", "a")).toBe(0)
  })

  test(`${kind}: more chains than threads are all served, whichever is freed first`, async () => {
    const { db, peer } = await together(flags, 101)
    const chains = WAITERS * 3
    const keyOf = new Map<number, string>()
    for (let i = 0; keyOf.size < chains; i++) {
      const name = `k${i}`
      const chain = db.chainOf(db.hash(Buffer.from(name)))
      if (!keyOf.has(chain)) keyOf.set(chain, name)
    }
    const names = [...keyOf.values()]
    for (const name of names) expect(await peer.call("lock", name)).toBe(0)
    const got: string[] = []
    const grants = names.map((name) =>
      grant(db, db.hash(Buffer.from(name))).then((held) => {
        got.push(name)
        return held
      }),
    )
    // the last one first: no thread waits for it yet
    for (const name of names.toReversed()) {
      await peer.call("unlock", name)
      const held = await grants[names.indexOf(name)]!
      held.release()
    }
    expect(got.toSorted()).toEqual(names.toSorted())
  })

  test(`${kind}: the holder is killed: the waiter gets the lock`, async () => {
    const { db, peer } = await together(flags)
    const hash = db.hash(Buffer.from("a"))
    await peer.call("store", "a", "1")
    await peer.call("lock", "a")
    const waiting = grant(db, hash)
    await peer.kill()
    ;(await waiting).release()
    expect(Buffer.from(db.fetch(Buffer.from("a"))!).toString()).toBe("1")
  })

  test(`${kind}: a kept lock shuts out peers until it is released, and operations nest in it`, async () => {
    const { db, peer } = await together(flags)
    const key = Buffer.from("a")
    const hash = db.hash(key)
    await peer.call("lock", "a")
    const waiting = grant(db, hash)
    await peer.call("unlock", "a")
    const held = await waiting
    expect(await peer.call("try", "a")).toBe(-1)
    db.store(key, Buffer.from("nested"), 1, hash)
    expect(await peer.call("try", "a")).toBe(-1)
    held.release()
    expect(await peer.call("lock", "a")).toBe(0)
    expect(await peer.call("fetch", "a")).toBe("nested")
  })

  test(`${kind}: blocking operations of this thread do not lock it up with its own queue`, async () => {
    const { db, peer } = await together(flags)
    const key = Buffer.from("a")
    const hash = db.hash(key)
    for (let round = 0; round < 30; round++) {
      await peer.call("lock", "a")
      let called = 0
      for (let i = 0; i < 3; i++) db.waitForChain(hash, () => called++)
      await peer.call("unlock", "a")
      // by now a thread may wait, hold, or have told us: blocking must work in all cases
      db.store(key, Buffer.from(String(round)))
      db.lockAllrecord()
      db.unlockAllrecord()
      while (called < 3) await Bun.sleep(1)
    }
    expect(await peer.call("lock", "a")).toBe(0)
  })

  test(`${kind}: the allrecord lock is waited for, shuts everybody out, and can be cancelled`, async () => {
    const { db, peer } = await together(flags, 1001)
    const hash = db.hash(Buffer.from("b"))
    await peer.call("lock", "a")
    let granted: Held | null = null
    db.waitForAllrecord(true, (held) => {
      held!.keep()
      granted = held
    })
    let chain = 0
    db.waitForChain(hash, () => chain++)
    while (db.tryLockChain(hash)) db.unlockChain(hash)
    await peer.call("fetch", "a")
    expect(granted).toBeNull()
    await peer.call("unlock", "a")
    while (granted === null) await Bun.sleep(1)
    expect(await peer.call("try", "b")).toBe(-1)
    db.store(Buffer.from("b"), Buffer.from("frozen"))
    expect(chain).toBe(0)
    ;(granted as Held).release()
    while (chain === 0) await Bun.sleep(1)
    expect(await peer.call("fetch", "b")).toBe("frozen")

    await peer.call("lock", "a")
    const wait = db.waitForAllrecord(true, () => chain++)
    await Bun.sleep(5)
    wait.cancel()
    expect(await peer.call("try", "b")).toBe(0)
    await peer.call("unlock", "b")
    await peer.call("unlock", "a")
    db.lockAllrecord()
    db.unlockAllrecord()
    expect(chain).toBe(1)
  })

  test(`${kind}: a file is closed while requests wait`, async () => {
    const { db, peer } = await together(flags)
    await peer.call("lock", "a")
    const failures: (string | undefined)[] = []
    db.waitForChain(db.hash(Buffer.from("a")), (_held, error) => failures.push(error?.code))
    db.waitForChain(db.hash(Buffer.from("a")), (_held, error) => failures.push(error?.code))
    await Bun.sleep(20)
    db.close()
    expect(failures).toEqual(["CANCELLED", "CANCELLED"])
    await peer.call("unlock", "a")
    expect(await peer.call("lock", "a")).toBe(0)
  })
}

test("the transaction lock is waited for", async () => {
  const { db, peer } = await together(0x801)
  await peer.call("start")
  await peer.call("store", "a", "theirs")
  expect(db.tryStartTransaction()).toBe(false)
  const held = new Promise<Held>((resolve) => {
    db.waitForTransaction((lock) => {
      lock!.keep()
      resolve(lock!)
    })
  })
  await peer.call("commit")
  const lock = await held
  db.startTransaction()
  expect(Buffer.from(db.fetch(Buffer.from("a"))!).toString()).toBe("theirs")
  db.store(Buffer.from("a"), Buffer.from("ours"))
  db.commit()
  lock.release()
  expect(await peer.call("fetch", "a")).toBe("ours")
  expect(await peer.call("start")).toBe(0)
})

for (const [kind, flags] of FILES) {
  test(`${kind}: a transaction in locks that were waited for commits without blocking for readers`, async () => {
    const { db, peer } = await together(flags)
    await peer.call("lock", "a")
    const lock = (wait: (granted: (held: Held | null) => void) => unknown): Promise<Held> =>
      new Promise((resolve) => {
        wait((held) => {
          held!.keep()
          resolve(held!)
        })
      })
    const transaction = await lock((granted) => db.waitForTransaction(granted))
    const waiting = lock((granted) => db.waitForAllrecord(true, granted))
    await peer.call("unlock", "a")
    const all = await waiting
    db.startTransaction()
    for (let i = 0; i < 50; i++) db.store(Buffer.from(`k${i}`), new Uint8Array(500))
    db.commit()
    expect(await peer.call("try", "a")).toBe(-1)
    all.release()
    transaction.release()
    expect(await peer.call("try", "a")).toBe(0)
    expect(await peer.call("unlock", "a")).toBe(0)
    expect(await peer.call("check")).toBe(0)
    if (kind === "fcntl") expect(await peer.call("start")).toBe(0)
  })
}
