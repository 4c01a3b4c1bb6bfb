// The controls that concern databases, with the preconditions and statuses of the reference (data path page, sections 9 and 10,
// cluster page 7.4 to 7.8): attach and its refusals, properties, freeze, the recovery's transaction, pull and push.

import { expect, test } from "bun:test"
import { RecordHeader } from "../../../daemon/database/record.ts"
import { decode, encode } from "../../../lib/protocol/codec.ts"
import { ControlFlag, DbFlag, RecordFlag, RecoveryMode } from "../../../lib/protocol/constants.ts"
import { controls, decodeReply } from "../../../lib/protocol/controls.ts"
import { databaseId } from "../../../lib/protocol/hash.ts"
import { LTDB_HEADER_SIZE, type RecBuffer, recBuffer } from "../../../lib/protocol/structs.ts"
import { word64 } from "../../../lib/protocol/word64.ts"
import { bytes, Cluster, text } from "./cluster.ts"

const TID = 4711

test("attach: type bits of the request must be a subset of the database's", () => {
  const cluster = new Cluster(2)
  const attach = (control: "DB_ATTACH" | "DB_ATTACH_PERSISTENT" | "DB_ATTACH_REPLICATED", name: string) =>
    cluster.status(0, control, name)
  expect(attach("DB_ATTACH_PERSISTENT", "p.tdb")).toBe(0)
  expect(attach("DB_ATTACH_REPLICATED", "r.tdb")).toBe(0)
  expect(attach("DB_ATTACH", "test.tdb")).toBe(0)
  // 9.1, row 5, observed: volatile to persistent is fine, persistent to volatile and replicated to persistent are not.
  expect(attach("DB_ATTACH", "p.tdb")).toBe(0)
  expect(attach("DB_ATTACH_PERSISTENT", "test.tdb")).toBe(-1)
  expect(attach("DB_ATTACH_REPLICATED", "p.tdb")).toBe(-1)
  expect(attach("DB_ATTACH_PERSISTENT", "r.tdb")).toBe(-1)
})

test("attach: names that are no file names, and a request without one, are refused", () => {
  const cluster = new Cluster(2)
  for (const name of ["", ".", "..", "../escape.tdb", "a/b", "x".repeat(300)]) {
    expect(cluster.status(0, "DB_ATTACH", name)).toBe(-1)
  }
  expect(cluster.status(0, "DB_ATTACH", null)).toBe(-1)
})

test("attach: spread to all connected nodes; GET_DBMAP is newest first with the flags of the wire", () => {
  const cluster = new Cluster(3)
  cluster.status(1, "DB_ATTACH_PERSISTENT", "p.tdb")
  cluster.status(1, "DB_ATTACH_REPLICATED", "r.tdb")
  cluster.world.runFor(100)
  cluster.status(2, "SET_DB_READONLY", cluster.id)
  cluster.status(2, "SET_DB_STICKY", cluster.id)
  const map = (pnn: number) => {
    const reply = cluster.control(pnn, "GET_DBMAP")
    return reply.ok ? decodeReply("GET_DBMAP", reply.data).map(({ dbId, flags }) => [dbId, flags]) : []
  }
  expect(map(0)).toEqual([
    [databaseId("r.tdb"), DbFlag.REPLICATED],
    [databaseId("p.tdb"), DbFlag.PERSISTENT],
    [cluster.id, 0],
  ])
  // Properties are a node's own (9.4).
  expect(map(2)[2]).toEqual([cluster.id, DbFlag.READONLY | DbFlag.STICKY])
  expect(cluster.status(2, "SET_DB_READONLY", databaseId("p.tdb"))).toBe(-1)
  expect(cluster.status(2, "SET_DB_STICKY", databaseId("r.tdb"))).toBe(-1)
})

test("attach: refused by AllowClientDBAttach, outside of a recovery with the recovery's flag, and on an inactive node", () => {
  const cluster = new Cluster(2)
  expect(cluster.control(0, "DB_ATTACH", "x.tdb", ControlFlag.ATTACH_RECOVERY)).toMatchObject({ ok: false, status: -1 })
  cluster.control(0, "SET_TUNABLE", { name: "AllowClientDBAttach", value: 0 })
  expect(cluster.status(0, "DB_ATTACH", cluster.name)).toBe(-1)
  expect(cluster.control(0, "DB_ATTACH", "x.tdb", ControlFlag.ATTACH_RECOVERY)).toMatchObject({ ok: false, status: -1 })
  // Row 27 of the weak points: what a recovery attaches is no client's wish.
  cluster.node(0).recovery.ask("test")
  expect(cluster.control(0, "DB_ATTACH", "x.tdb", ControlFlag.ATTACH_RECOVERY)).toMatchObject({ ok: true })
  cluster.until("recovery", () => cluster.node(0).state.recoveryMode === RecoveryMode.NORMAL)
  cluster.control(0, "SET_TUNABLE", { name: "AllowClientDBAttach", value: 1 })
  cluster.control(1, "STOP_NODE")
  expect(cluster.status(1, "DB_ATTACH", cluster.name)).toBe(-1)
})

test("attach: a client's waits for the end of a recovery", () => {
  const cluster = new Cluster(2)
  cluster.node(0).recovery.ask("test")
  let status: number | undefined
  cluster.session(0).request("DB_ATTACH", 0, { request: "later.tdb" }, (reply) => {
    status = reply.ok ? 0 : reply.status
  })
  cluster.world.runFor(50)
  expect(status).toBeUndefined()
  cluster.until("recovery", () => cluster.node(0).state.recoveryMode === RecoveryMode.NORMAL)
  cluster.world.runFor(100)
  expect(status).toBe(0)
})

test("detach: only where AllowClientDBAttach is 0, only volatile, only known", () => {
  const cluster = new Cluster(2)
  cluster.control(0, "DB_ATTACH_PERSISTENT", "p.tdb")
  expect(cluster.status(0, "DB_DETACH", cluster.id)).toBe(-1)
  cluster.control(0, "SET_TUNABLE", { name: "AllowClientDBAttach", value: 0 })
  expect(cluster.status(0, "DB_DETACH", databaseId("p.tdb"))).toBe(-1)
  expect(cluster.status(0, "DB_DETACH", 0x1234)).toBe(-1)
  expect(cluster.status(0, "DB_DETACH", cluster.id)).toBe(0)
  cluster.world.runFor(100)
  expect(cluster.node(0).databases.get(cluster.id)).toBeUndefined()
  // 9.3: nodes with the tunable at 1 keep it.
  expect(cluster.node(1).databases.get(cluster.id)).toBeDefined()
})

test("unknown databases: -1 from every control that names one", () => {
  const cluster = new Cluster(2)
  const id = 0x1234
  const transaction = { dbId: id, tid: TID }
  const transfer = { dbId: id, lmaster: 0xffffffff, srvid: word64(0xf0010000, 1) }
  const statuses = [
    cluster.status(0, "GETDBPATH", id),
    cluster.status(0, "GET_DBNAME", id),
    cluster.status(0, "DB_OPEN_FLAGS", id),
    cluster.status(0, "GET_DB_STATISTICS", id),
    cluster.status(0, "SET_DB_READONLY", id),
    cluster.status(0, "SET_DB_STICKY", id),
    cluster.status(0, "DB_GET_HEALTH", id),
    cluster.status(0, "DB_SET_HEALTHY", id),
    cluster.status(0, "ENABLE_SEQNUM", id),
    cluster.status(0, "GET_DB_SEQNUM", id),
    cluster.status(0, "DB_FREEZE", id),
    cluster.status(0, "DB_THAW", id),
    cluster.status(0, "DB_TRANSACTION_START", transaction),
    cluster.status(0, "DB_TRANSACTION_COMMIT", transaction),
    cluster.status(0, "DB_TRANSACTION_CANCEL", id),
    cluster.status(0, "WIPE_DATABASE", transaction),
    cluster.status(0, "DB_PULL", transfer),
    cluster.status(0, "DB_PUSH_START", transfer),
    cluster.status(0, "DB_PUSH_CONFIRM", id),
  ]
  expect(statuses).toEqual(statuses.map(() => -1))
})

test("freeze, transaction, commit, thaw: what each needs", () => {
  const cluster = new Cluster(2)
  const { id } = cluster
  const start = (tid = TID) => cluster.status(0, "DB_TRANSACTION_START", { dbId: id, tid })
  const commit = (tid = TID) => cluster.status(0, "DB_TRANSACTION_COMMIT", { dbId: id, tid })
  const wipe = (tid = TID) => cluster.status(0, "WIPE_DATABASE", { dbId: id, tid })
  expect(cluster.status(0, "DB_THAW", id)).toBe(0)
  expect(cluster.status(0, "DB_TRANSACTION_CANCEL", id)).toBe(0)
  expect([start(), commit(), wipe()]).toEqual([-1, -1, -1])
  expect(cluster.status(0, "GET_DB_SEQNUM", id)).toBe(0)

  expect(cluster.status(0, "DB_FREEZE", id)).toBe(0)
  expect(cluster.status(0, "DB_FREEZE", id)).toBe(0)
  expect(cluster.status(0, "GET_DB_SEQNUM", id)).toBe(-1)
  expect([commit(), wipe()]).toEqual([-1, -1])
  expect(start()).toBe(0)
  expect(cluster.status(0, "GET_DB_SEQNUM", id)).toBe(0)
  expect([commit(TID + 1), wipe(TID + 1)]).toEqual([-1, -1])
  expect([wipe(), commit()]).toEqual([0, 0])
  expect(cluster.database(0).generation).toBe(TID)
  expect(commit()).toBe(-1)
  // A running transaction is cancelled by the next start.
  expect([start(), start(TID + 1), commit()]).toEqual([0, 0, -1])
  expect(cluster.status(0, "DB_THAW", id)).toBe(0)
  expect(cluster.database(0).transaction).toBeUndefined()
})

test("what a transaction wiped or pushed is gone when it is cancelled, by whatever ends it", () => {
  const cluster = new Cluster(2)
  const { id } = cluster
  cluster.put(0, "k", { rsn: 5, dmaster: 0, flags: RecordFlag.MIGRATED_WITH_DATA, data: "old" })
  for (const end of ["DB_TRANSACTION_CANCEL", "DB_THAW"] as const) {
    cluster.status(0, "DB_FREEZE", id)
    cluster.status(0, "DB_TRANSACTION_START", { dbId: id, tid: TID })
    cluster.status(0, "WIPE_DATABASE", { dbId: id, tid: TID })
    expect(cluster.copy(0, "k")).toBeUndefined()
    expect(cluster.status(0, end, id)).toBe(0)
    expect(cluster.copy(0, "k")).toMatchObject({ rsn: 5, data: "old" })
  }
})

const SRVID = word64(0xf0010000, 99)

/** All record buffers that a pull sends to a client of the node. */
function pulled(cluster: Cluster, pnn: number): { status: number; count: number; buffers: RecBuffer[] } {
  const buffers: RecBuffer[] = []
  cluster.session(pnn).onMessage(SRVID, (data) => {
    buffers.push(decode(recBuffer, data.slice()))
  })
  cluster.world.runFor(10)
  const reply = cluster.control(pnn, "DB_PULL", { dbId: cluster.id, lmaster: 0xffffffff, srvid: SRVID })
  const count = reply.ok ? decodeReply("DB_PULL", reply.data) : -1
  return { status: reply.ok ? 0 : reply.status, count, buffers }
}

test("pull and push without a transaction are refused, and later recoveries work (trap 10.5)", () => {
  const cluster = new Cluster(2)
  cluster.status(0, "DB_FREEZE", cluster.id)
  expect(pulled(cluster, 0).status).toBe(-1)
  const transfer = { dbId: cluster.id, lmaster: 0, srvid: SRVID }
  expect(cluster.status(0, "DB_PUSH_START", transfer)).toBe(-1)
  expect(cluster.status(0, "DB_PUSH_CONFIRM", cluster.id)).toBe(-1)
  // A stock node could never start one again.
  expect(cluster.status(0, "DB_TRANSACTION_START", { dbId: cluster.id, tid: TID })).toBe(0)
  cluster.status(0, "DB_THAW", cluster.id)
  cluster.control(0, "SET_RECMODE", RecoveryMode.ACTIVE)
  cluster.world.runFor(3000)
  cluster.until("recovery", () => cluster.node(0).state.recoveryMode === RecoveryMode.NORMAL)
})

test("pull: all records with headers, in buffers that end where the limit is passed, then their number", () => {
  const cluster = new Cluster(2)
  cluster.control(0, "SET_TUNABLE", { name: "RecBufferSizeLimit", value: 1000 })
  const expected = new Map<string, string>()
  for (let n = 0; n < 100; n++) {
    const data = n % 7 === 0 ? "" : `value ${n}`
    cluster.put(0, `key ${n}`, { rsn: n, dmaster: n % 2, flags: 0, data })
    expected.set(`key ${n}`, `${n}/${n % 2}/${data}`)
  }
  // Shorter than a header: no record.
  cluster.database(0).tdb.store(bytes("stub"), bytes("x"))
  cluster.status(0, "DB_FREEZE", cluster.id)
  cluster.status(0, "DB_TRANSACTION_START", { dbId: cluster.id, tid: TID })
  const { status, count, buffers } = pulled(cluster, 0)
  expect({ status, count }).toEqual({ status: 0, count: 100 })
  const found = new Map<string, string>()
  for (const [index, { dbId, records }] of buffers.entries()) {
    expect(dbId).toBe(cluster.id)
    const size = encode(recBuffer, { dbId, records }).length
    if (index < buffers.length - 1) {
      const last = records.at(-1)!
      expect(size).toBeGreaterThanOrEqual(1000)
      expect(size - (16 + last.key.length + last.data.length)).toBeLessThan(1000)
    }
    for (const { key, data } of records) {
      const { rsnLo, dmaster } = new RecordHeader().read(data)
      found.set(text(key), `${rsnLo}/${dmaster}/${text(data.subarray(LTDB_HEADER_SIZE))}`)
    }
  }
  expect(found).toEqual(expected)
})

test("pull: records of a node that was inactive count for nothing", () => {
  const cluster = new Cluster(2)
  cluster.put(1, "k", { rsn: 5, dmaster: 1, flags: 0, data: "stale" })
  cluster.control(1, "STOP_NODE")
  cluster.world.runFor(100)
  cluster.status(1, "DB_TRANSACTION_START", { dbId: cluster.id, tid: TID })
  expect(pulled(cluster, 1)).toEqual({ status: 0, count: 0, buffers: [] })
})

interface Pushed {
  readonly key: string
  readonly rsn: number
  readonly dmaster: number
  readonly flags: number
  readonly data: string
}

function bufferOf(id: number, records: readonly Pushed[]): Uint8Array {
  return encode(recBuffer, {
    dbId: id,
    records: records.map(({ key, rsn, dmaster, flags, data }) => {
      const head = new Uint8Array(LTDB_HEADER_SIZE)
      Object.assign(new RecordHeader(), { rsnLo: rsn, dmaster, flags }).write(head)
      return { reqid: 0, key: bytes(key), data: Buffer.concat([head, bytes(data)]) }
    }),
  })
}

/** A push of these buffers to node 0 as a leader does it; the number it confirms. */
function push(cluster: Cluster, buffers: readonly Uint8Array[]): number {
  const { id } = cluster
  cluster.status(0, "DB_FREEZE", id)
  cluster.status(0, "DB_TRANSACTION_START", { dbId: id, tid: TID })
  cluster.status(0, "WIPE_DATABASE", { dbId: id, tid: TID })
  expect(cluster.status(0, "DB_PUSH_START", { dbId: id, lmaster: 0x7fff, srvid: SRVID })).toBe(0)
  for (const buffer of buffers) cluster.session(0).sendMessage(0, SRVID, buffer)
  const reply = cluster.control(0, "DB_PUSH_CONFIRM", id)
  expect(reply.ok).toBe(true)
  return reply.ok ? decodeReply("DB_PUSH_CONFIRM", reply.data) : -1
}

test("push: stored by the rules of any store, delegations ended", () => {
  const cluster = new Cluster(2)
  const { RO_HAVE_DELEGATIONS, RO_HAVE_READONLY, MIGRATED_WITH_DATA } = RecordFlag
  const flags = MIGRATED_WITH_DATA | RO_HAVE_DELEGATIONS | RO_HAVE_READONLY
  const count = push(cluster, [
    bufferOf(cluster.id, [
      { key: "mine", rsn: 7, dmaster: 0, flags, data: "a" },
      { key: "theirs", rsn: 7, dmaster: 1, flags: MIGRATED_WITH_DATA, data: "b" },
    ]),
    bufferOf(cluster.id, []),
  ])
  expect(count).toBe(2)
  cluster.status(0, "DB_TRANSACTION_COMMIT", { dbId: cluster.id, tid: TID })
  cluster.status(0, "DB_THAW", cluster.id)
  // 10.3: its own records rise by one.
  expect(cluster.copy(0, "mine")).toEqual({ rsn: 8, dmaster: 0, flags: MIGRATED_WITH_DATA, data: "a" })
  expect(cluster.copy(0, "theirs")).toEqual({ rsn: 7, dmaster: 1, flags: MIGRATED_WITH_DATA, data: "b" })
})

test("push: a buffer that is wrong anywhere shows in the number confirmed, and kills nothing", () => {
  const good = (id: number) => bufferOf(id, [{ key: "k", rsn: 1, dmaster: 1, flags: 0, data: "v" }])
  const broken: readonly ((id: number) => Uint8Array)[] = [
    (id) => good(id).subarray(0, 5),
    // 4 thousand million records announced.
    (id) => withWord(good(id), 4, 0xffffffff),
    // The record's length, its key's, its data's.
    (id) => withWord(good(id), 8, 0xfffffff0),
    (id) => withWord(good(id), 16, 0x7fffffff),
    (id) => withWord(good(id), 20, 0xffffffff),
    // Less than a header.
    (id) => withWord(good(id), 20, 10),
    (id) => withWord(good(id), 0, id ^ 1),
  ]
  for (const make of broken) {
    const cluster = new Cluster(2)
    expect(push(cluster, [good(cluster.id), make(cluster.id), good(cluster.id)])).toBe(1)
    expect(cluster.control(0, "GET_PNN")).toMatchObject({ status: 0 })
  }
}, 300_000)

function withWord(buffer: Uint8Array, at: number, value: number): Uint8Array {
  new DataView(buffer.buffer, buffer.byteOffset).setUint32(at, value, true)
  return buffer
}

test("push: a second start takes the place of the first", () => {
  const cluster = new Cluster(2)
  const { id } = cluster
  const old = word64(0xf0010000, 5)
  cluster.status(0, "DB_FREEZE", id)
  cluster.status(0, "DB_TRANSACTION_START", { dbId: id, tid: TID })
  cluster.status(0, "DB_PUSH_START", { dbId: id, lmaster: 0, srvid: old })
  cluster.session(0).sendMessage(0, old, bufferOf(id, [{ key: "k", rsn: 1, dmaster: 1, flags: 0, data: "v" }]))
  expect(push(cluster, [])).toBe(0)
  cluster.session(0).sendMessage(0, old, bufferOf(id, [{ key: "k", rsn: 1, dmaster: 1, flags: 0, data: "v" }]))
  cluster.world.runFor(50)
  expect(cluster.copy(0, "k")).toBeUndefined()
})

test("push: 30,000 records in 30 buffers", () => {
  const cluster = new Cluster(2)
  const buffers = Array.from({ length: 30 }, (_, part) =>
    bufferOf(
      cluster.id,
      Array.from({ length: 1000 }, (__, n) => ({ key: `k${part}/${n}`, rsn: 1, dmaster: 1, flags: 0, data: "v" })),
    ),
  )
  expect(push(cluster, buffers)).toBe(30_000)
  expect(pulled(cluster, 0).count).toBe(30_000)
}, 300_000)

test("sequence number of a persistent database: 0 without the record, and read under the client's nose without blocking", () => {
  const cluster = new Cluster(2, "p.tdb", "DB_ATTACH_PERSISTENT")
  const seqnum = () => {
    const reply = cluster.control(0, "GET_DB_SEQNUM", cluster.id)
    return reply.ok ? decodeReply("GET_DB_SEQNUM", reply.data) : undefined
  }
  expect(seqnum()).toEqual(word64(0, 0))
  const key = "__db_sequence_number__\0"
  cluster.put(0, key, { rsn: 1, dmaster: 0, flags: 0, data: "\x2a\0\0\0\0\0\0\0" })
  expect(seqnum()).toEqual(word64(0, 42))

  const letGo = cluster.hold(0, key)
  let answered = false
  cluster.session(0).request("GET_DB_SEQNUM", 0, { request: cluster.id }, () => {
    answered = true
  })
  // A stock daemon answers nobody now.
  expect(cluster.control(0, "GET_PNN")).toMatchObject({ status: 0 })
  expect(answered).toBe(false)
  letGo()
  cluster.until("answer", () => answered, 1000)
})

test("a change of the TDB's sequence number on one node reaches the others once, and does not come back", () => {
  const cluster = new Cluster(3)
  for (const pnn of [0, 1, 2]) expect(cluster.status(pnn, "ENABLE_SEQNUM", cluster.id)).toBe(0)
  const numbers = () => [0, 1, 2].map((pnn) => cluster.database(pnn).tdb.sequenceNumber())
  const before = numbers()
  // 9.6, observed: two changes on one node are one on the others.
  cluster.put(0, "x", { rsn: 1, dmaster: 0, flags: 0, data: "1" })
  cluster.put(0, "x", { rsn: 1, dmaster: 0, flags: 0, data: "2" })
  cluster.world.runFor(5000)
  expect(numbers().map((now, pnn) => now - before[pnn]!)).toEqual([2, 1, 1])
})

test("replies have the wire's form: path and name with NUL, flags, health", () => {
  const cluster = new Cluster(2)
  const raw = (control: "GETDBPATH" | "GET_DBNAME" | "DB_GET_HEALTH" | "DB_OPEN_FLAGS") => {
    const reply = cluster.control(0, control, cluster.id)
    return reply.ok ? text(reply.data) : undefined
  }
  expect(raw("GETDBPATH")).toBe("/sim/test.tdb.0\0")
  expect(raw("GET_DBNAME")).toBe("test.tdb\0")
  expect(raw("DB_GET_HEALTH")).toBe("")
  expect(raw("DB_OPEN_FLAGS")?.length).toBe(controls.DB_OPEN_FLAGS.reply.minSize)
})
