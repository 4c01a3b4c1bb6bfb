// What volatile databases have besides moving records, in clusters of nodes of both kinds: read-only copies with the numbers that
// stock nodes give them, traverses that find what stock's find and show when they are cut, and vacuuming that leaves nothing.

import { afterAll, beforeAll, expect, test } from "bun:test"
import { attach } from "../../lib/client/attach.ts"
import type { Database } from "../../lib/client/database.ts"
import { CURRENT_NODE, RecordFlag } from "../../lib/protocol/constants.ts"
import { openTdb } from "../../lib/tdb/tdb.ts"
import { MixedCluster } from "./nodes.ts"
import { stockInstalled, waitUntil } from "./stock.ts"

const KINDS = ["ours", "stock", "ours", "stock"] as const
const cluster = new MixedCluster("127.56.41.", KINDS, { lock: true, tunables: ["VacuumInterval=1000"] })
const utf8 = new TextEncoder()
const text = new TextDecoder()

beforeAll(async () => {
  if (!stockInstalled) return
  await cluster.startTogether()
  await cluster.allOk()
}, 300_000)
afterAll(() => cluster.end(), 60_000)

async function everywhere(name: string): Promise<Database[]> {
  // The other nodes learn of it from the first.
  const databases: Database[] = []
  for (const pnn of cluster.pnns) databases.push(await attach(cluster.client(pnn), name))
  return databases
}

interface Copy {
  readonly rsn: number
  readonly dmaster: number
  readonly flags: number
  readonly data: string
}

/** What a node's own file has. */
async function copy(database: Database, key: Uint8Array): Promise<Copy | undefined> {
  const value = await database.localRecord(key)
  if (value === undefined) return undefined
  const view = new DataView(value.buffer, value.byteOffset, value.byteLength)
  return {
    rsn: Number(view.getBigUint64(0, true)),
    dmaster: view.getUint32(8, true),
    flags: view.getUint32(16, true),
    data: text.decode(value.subarray(24)),
  }
}

async function write(database: Database, key: Uint8Array, data: string): Promise<void> {
  const record = await database.fetchLock(key)
  record.store(utf8.encode(data))
  record.unlock()
}

async function read(database: Database, key: Uint8Array): Promise<string> {
  const record = await database.fetchLock(key, "read")
  const data = text.decode(record.copy())
  record.unlock()
  return data
}

test.skipIf(!stockInstalled)(
  "read-only copies: given, counted, taken back, by owners of both kinds",
  async () => {
    const databases = await everywhere("readonly.tdb")
    const dbId = databases[0]!.id
    for (const pnn of cluster.pnns) await cluster.client(pnn).control("SET_DB_READONLY", CURRENT_NODE, dbId)
    for (const owner of cluster.pnns) {
      const key = utf8.encode(`record of ${owner}`)
      const [first, second, writer] = [1, 2, 3].map((step) => (owner + step) % 4) as [number, number, number]
      await write(databases[owner]!, key, "old")
      const before = (await copy(databases[owner]!, key))!
      expect(before).toMatchObject({ dmaster: owner, data: "old" })
      for (const reader of [first, second]) {
        expect(await read(databases[reader]!, key)).toBe("old")
        const theirs = await copy(databases[reader]!, key)
        expect(theirs).toMatchObject({ rsn: before.rsn + 1, dmaster: owner, data: "old" })
        expect(theirs!.flags & RecordFlag.RO_FLAGS).toBe(RecordFlag.RO_HAVE_READONLY)
      }
      const owners = (await copy(databases[owner]!, key))!
      expect(owners.rsn).toBe(before.rsn + 3)
      expect(owners.flags & RecordFlag.RO_FLAGS).toBe(RecordFlag.RO_HAVE_DELEGATIONS)

      await write(databases[writer]!, key, "new")
      for (const reader of [first, second]) {
        const theirs = (await copy(databases[reader]!, key))!
        // One of them may be the lmaster, which has heard of the new owner since.
        expect(theirs.flags & RecordFlag.RO_FLAGS).toBe(0)
        expect(await read(databases[reader]!, key)).toBe("new")
      }
      // Revoked at +4, its flags cleared at +5, two for the migration; then new copies went out.
      const after = (await copy(databases[writer]!, key))!
      expect(after).toMatchObject({ dmaster: writer, data: "new", rsn: before.rsn + 7 + 3 })
    }
  },
  60_000,
)

/**
 * An empty record that its lmaster owns has a reader's copy elsewhere when a full vacuum comes by; then it is written, and a recovery
 * follows. What is in it on all nodes afterwards.
 */
async function vacuumedUnderReaders(owner: number, reader: number): Promise<string[]> {
  const databases = await everywhere(`readonly-vacuum-${owner}.tdb`)
  const dbId = databases[0]!.id
  for (const pnn of cluster.pnns) await cluster.client(pnn).control("SET_DB_READONLY", CURRENT_NODE, dbId)
  // One that was made on its lmaster and never moved: what has come from elsewhere has a higher rsn.
  let key: Uint8Array
  let n = 0
  do {
    if (n === 200) throw new Error(`no key has node ${owner} as lmaster`)
    key = utf8.encode(`empty ${n++}`)
    const record = await databases[owner]!.fetchLock(key)
    record.unlock()
  } while ((await copy(databases[owner]!, key))!.rsn > 2)
  expect(await read(databases[reader]!, key)).toBe("")
  expect((await copy(databases[reader]!, key))!.flags & RecordFlag.RO_HAVE_READONLY).not.toBe(0)
  expect(await cluster.client(owner).controlStatus("DB_VACUUM", CURRENT_NODE, { dbId, fullVacuumRun: true })).toBe(0)
  await write(databases[owner]!, key, "NEW")
  expect((await cluster.node(owner).tool("recover")).status).toBe(0)
  await cluster.allOk()
  const values: string[] = []
  for (const database of databases) values.push(await read(database, key))
  return values
}

test.skipIf(!stockInstalled)(
  "a full vacuum under readers' copies loses what is written next on stock nodes, not on ours",
  async () => {
    expect(await vacuumedUnderReaders(0, 1)).toEqual(["NEW", "NEW", "NEW", "NEW"])
    expect(await vacuumedUnderReaders(1, 0)).toEqual(["", "", "", ""])
  },
  60_000,
)

const recordsOf = (dump: string) =>
  dump
    .split("\n\n")
    .filter((part) => part.startsWith("key("))
    .toSorted()

test.skipIf(!stockInstalled)(
  "traverses of both kinds of nodes find the same; one that is cut says so",
  async () => {
    const databases = await everywhere("traverse.tdb")
    for (const pnn of cluster.pnns) {
      for (let i = 0; i < 250; i++) await write(databases[pnn]!, utf8.encode(`key ${pnn} ${i}`), `data ${i}`)
    }
    const dumps = await Promise.all(
      cluster.pnns.map(async (pnn) => recordsOf((await cluster.node(pnn).tool("catdb", "traverse.tdb")).stdout)),
    )
    for (const dump of dumps) {
      expect(dump.length).toBe(1000)
      expect(dump).toEqual(dumps[1]!)
    }
    // One node hangs: ours says so in its log and behind the end marker, and stock's tool ends as ever.
    await cluster.client(0).control("SET_TUNABLE", CURRENT_NODE, { name: "TraverseTimeout", value: 1 })
    const srvid = { hi: 0x7e570000, lo: 1 }
    let end: Uint8Array | undefined
    let seen = 0
    await cluster.client(0).onMessage(srvid, (data) => {
      if (new DataView(data.buffer, data.byteOffset).getUint32(8, true) !== 0) seen++
      else end = data.slice()
    })
    cluster.node(3).pause()
    try {
      await cluster.client(0).control("TRAVERSE_START", CURRENT_NODE, { dbId: databases[0]!.id, reqid: 7, srvid })
      await waitUntil("the end of the traverse", () => Promise.resolve(end !== undefined), 60_000)
    } finally {
      cluster.node(3).resume()
    }
    expect(seen).toBe(750)
    expect(text.decode(end!.subarray(16))).toBe("nothing came from node 3 for 1 s")
    expect(cluster.log(0)).toContain("Traverse of database traverse.tdb is not complete: nothing came from node 3")
    await cluster.allOk()
  },
  60_000,
)

test.skipIf(!stockInstalled)(
  "vacuuming of both kinds of nodes leaves nothing of deleted records, and all of the others",
  async () => {
    const databases = await everywhere("vacuum.tdb")
    const dbId = databases[0]!.id
    const keys = Array.from({ length: 60 }, (_, i) => utf8.encode(`vacuumed ${i}`))
    // Each goes round all nodes with data, so that every node has an old copy.
    for (const database of databases) for (const key of keys) await write(database, key, "data")
    for (const [i, key] of keys.entries()) {
      if (i % 2 === 0) continue
      const record = await databases[i % 4]!.fetchLock(key)
      await record.deleteConfirmed()
      record.unlock()
    }
    const left = async () => {
      const copies = await Promise.all(databases.flatMap((database) => keys.map((key) => copy(database, key))))
      return copies.filter((found, i) => found !== undefined && (i % keys.length) % 2 === 1).length
    }
    expect(await left()).toBeGreaterThanOrEqual(30)
    for (let round = 0; round < 6 && (await left()) > 0; round++) {
      for (const pnn of cluster.pnns) {
        await cluster.client(pnn).controlStatus("DB_VACUUM", CURRENT_NODE, { dbId, fullVacuumRun: false })
      }
    }
    expect(await left()).toBe(0)
    // No deleted record comes back, and no other one is gone.
    expect((await cluster.node(0).tool("recover")).status).toBe(0)
    await cluster.allOk()
    expect(await left()).toBe(0)
    for (const [i, key] of keys.entries()) if (i % 2 === 0) expect(await read(databases[3]!, key)).toBe("data")
  },
  60_000,
)

test.skipIf(!stockInstalled)(
  "sequence numbers of a file are spread to all nodes, and don't come back",
  async () => {
    const [{ id: dbId }] = (await everywhere("seqnum.tdb")) as [Database]
    for (const pnn of cluster.pnns) await cluster.client(pnn).control("ENABLE_SEQNUM", CURRENT_NODE, dbId)
    const files = await Promise.all(
      cluster.pnns.map(async (pnn) => {
        const path = (await cluster.client(pnn).control("GETDBPATH", CURRENT_NODE, dbId))!
        return openTdb(path, { flags: await cluster.client(pnn).control("DB_OPEN_FLAGS", CURRENT_NODE, dbId) })
      }),
    )
    try {
      for (const [writer, file] of files.entries()) {
        const before = files.map((each) => each.sequenceNumber())
        file.enableSequence()
        file.store(utf8.encode("counted"), new Uint8Array(24))
        const expected = before.map((number) => number + 1)
        await waitUntil(
          `node ${writer}'s change on all nodes`,
          () => Promise.resolve(files.every((each, pnn) => each.sequenceNumber() === expected[pnn])),
          5000,
        )
      }
      // What came from others is not sent on: two intervals later nothing has changed.
      const now = files.map((file) => file.sequenceNumber())
      await Bun.sleep(2200)
      expect(files.map((file) => file.sequenceNumber())).toEqual(now)
    } finally {
      for (const file of files) file.close()
    }
  },
  30_000,
)
