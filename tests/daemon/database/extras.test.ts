// Read-only copies, sticky records, collapsed fetches, vacuuming, commits and traverses in the simulator, against the numbers,
// bytes and statuses that were seen on stock nodes (data path page), and what stock nodes do wrong there (page 18.3).

import { expect, test } from "bun:test"
import { encode } from "../../../lib/protocol/codec.ts"
import { CallFlag, CallId, RecordFlag, RecoveryMode } from "../../../lib/protocol/constants.ts"
import { controls } from "../../../lib/protocol/controls.ts"
import { operationName } from "../../../lib/protocol/packet.ts"
import { bytes, Cluster } from "./cluster.ts"

/** Its lmaster is node 1. */
const KEY = "a"
const MIGRATED = RecordFlag.MIGRATED_WITH_DATA

const traffic = (cluster: Cluster) =>
  cluster.packets.map(({ from, to, packet }) => `${operationName(packet.operation)} ${from}>${to}`)
const migrate = (cluster: Cluster, pnn: number, key = KEY) =>
  expect(cluster.answered(pnn, key, CallId.NULL, CallFlag.IMMEDIATE_MIGRATION).ok).toBe(true)
const readOnly = (cluster: Cluster) => {
  for (const { pnn } of cluster.world.hosts) expect(cluster.status(pnn, "SET_DB_READONLY", cluster.id)).toBe(0)
}
const vacuum = (cluster: Cluster, pnn: number, fullVacuumRun = false) =>
  cluster.status(pnn, "DB_VACUUM", { dbId: cluster.id, fullVacuumRun })

function header(rsn: number, dmaster: number, flags: number, data = new Uint8Array(0)): Uint8Array {
  const value = new Uint8Array(24 + data.length)
  const view = new DataView(value.buffer)
  view.setUint32(0, rsn, true)
  view.setUint32(8, dmaster, true)
  view.setUint32(16, flags, true)
  value.set(data, 24)
  return value
}

test("the reply to a read-only fetch has stock's bytes", () => {
  // Section 21: owner 0 at rsn 3, value "v1".
  const cluster = new Cluster(2)
  readOnly(cluster)
  migrate(cluster, 0, "key1")
  cluster.put(0, "key1", { rsn: 3, dmaster: 0, flags: 0, data: "v1" })
  const reply = cluster.answered(1, "key1", CallId.FETCH_WITH_HEADER, CallFlag.WANT_READONLY)
  if (!reply.ok) throw new Error("no reply")
  expect(Buffer.from(reply.data).toString("hex")).toBe("040000000000000000000000000000000000000200000000" + "7631")
  expect(cluster.copies("key1")).toBe("6/0 4/0")
  // FETCH gets the data alone.
  const plain = cluster.answered(1, "key1", CallId.FETCH, CallFlag.WANT_READONLY)
  expect(plain.ok && Buffer.from(plain.data).toString()).toBe("v1")
})

test("a revoke that nobody remembers is begun again: no abort, and the caller is served", () => {
  const cluster = new Cluster(3)
  readOnly(cluster)
  const flags = RecordFlag.RO_HAVE_DELEGATIONS | RecordFlag.RO_REVOKING_READONLY
  cluster.put(1, KEY, { rsn: 6, dmaster: 1, flags, data: "x" })
  cluster.put(2, KEY, { rsn: 4, dmaster: 1, flags: RecordFlag.RO_HAVE_READONLY, data: "x" })
  migrate(cluster, 0)
  // 7 when revoked, 8 when its flags were cleared, two for the migration; the copy of node 2 is none any more.
  expect(cluster.copy(0, KEY)).toEqual({ rsn: 10, dmaster: 0, flags: MIGRATED, data: "x" })
  expect(cluster.copy(2, KEY)).toEqual({ rsn: 5, dmaster: 1, flags: MIGRATED, data: "x" })
})

test("an update that comes late, from before a recovery, takes nobody's record away and ends a reader's copy", () => {
  const cluster = new Cluster(3)
  const late = { dbId: cluster.id, records: [{ reqid: 0, key: bytes(KEY), data: header(5, 2, MIGRATED, bytes("x")) }] }
  // A stock node puts the old header in its place, and the record belongs to node 2, which knows nothing of that.
  cluster.put(0, KEY, { rsn: 9, dmaster: 0, flags: MIGRATED, data: "x" })
  expect(cluster.status(0, "UPDATE_RECORD", late)).toBe(0)
  expect(cluster.copy(0, KEY)).toEqual({ rsn: 9, dmaster: 0, flags: MIGRATED, data: "x" })
  cluster.put(0, KEY, { rsn: 9, dmaster: 1, flags: RecordFlag.RO_HAVE_READONLY, data: "x" })
  expect(cluster.status(0, "UPDATE_RECORD", late)).toBe(0)
  expect(cluster.copy(0, KEY)).toEqual({ rsn: 9, dmaster: 1, flags: MIGRATED, data: "x" })
  cluster.put(0, KEY, { rsn: 9, dmaster: 0, flags: MIGRATED, data: "y" })
  expect(cluster.status(0, "UPDATE_RECORD", late)).toBe(1)
  expect(cluster.copy(0, KEY)).toEqual({ rsn: 9, dmaster: 0, flags: MIGRATED, data: "y" })
})

test("what was delegated and then deleted does not come back with a recovery", () => {
  const cluster = new Cluster(3)
  readOnly(cluster)
  migrate(cluster, 1)
  cluster.write(1, KEY, "delegated")
  expect(cluster.answered(2, KEY, CallId.FETCH, CallFlag.WANT_READONLY).ok).toBe(true)
  migrate(cluster, 1)
  cluster.write(1, KEY, "")
  for (const pnn of [1, 1]) expect(vacuum(cluster, pnn, true)).toBe(0)
  expect(cluster.copies(KEY)).toBe("- - -")
})

test("collapse: of five clients' calls for one record one is sent", () => {
  // With two nodes this key's lmaster is node 1.
  const cluster = new Cluster(2)
  const letGo = cluster.hold(1, "key1")
  const calls = Array.from({ length: 5 }, () => cluster.call(0, "key1", CallId.NULL, CallFlag.IMMEDIATE_MIGRATION))
  cluster.world.runFor(200)
  expect(traffic(cluster)).toEqual(["REQ_CALL 0>1"])
  letGo()
  cluster.until("all answers", () => calls.every(({ reply }) => reply?.ok === true))
  expect(traffic(cluster)).toEqual(["REQ_CALL 0>1", "REPLY_DMASTER 1>0"])
})

test("a sticky record stays with its owner for StickyPindown", () => {
  const cluster = new Cluster(2)
  for (const pnn of [0, 1]) {
    expect(cluster.status(pnn, "SET_DB_STICKY", cluster.id)).toBe(0)
    for (const [name, value] of [
      ["HopcountMakeSticky", 0],
      ["StickyPindown", 2000],
    ] as const) {
      expect(cluster.status(pnn, "SET_TUNABLE", { name, value })).toBe(0)
    }
  }
  // A mark is made where a call is served, and counts when the record comes back there.
  migrate(cluster, 0)
  migrate(cluster, 1)
  migrate(cluster, 0)
  const since = cluster.world.nowMs
  migrate(cluster, 1)
  expect(cluster.world.nowMs - since).toBeGreaterThanOrEqual(1900)
  expect(cluster.world.nowMs - since).toBeLessThan(2200)
})

test("vacuuming takes an empty record home and away", () => {
  const cluster = new Cluster(3)
  migrate(cluster, 0)
  expect(cluster.copies(KEY)).toBe("3/0 1/0 -")
  expect(vacuum(cluster, 0)).toBe(0)
  // VACUUM_FETCH has told node 1; its copy at node 0 goes with the migration, its own with the run.
  expect(vacuum(cluster, 1)).toBe(0)
  expect(cluster.copies(KEY)).toBe("- - -")
})

test("TRY_DELETE_RECORDS: request and refusal as on stock nodes, row by row of the table", () => {
  const cluster = new Cluster(3)
  const ask = (pnn: number, key: string, data: Uint8Array) => {
    const request = { dbId: cluster.id, records: [{ reqid: 0, key: bytes(key), data }] }
    const reply = cluster.control(pnn, "TRY_DELETE_RECORDS", request)
    if (!reply.ok) return reply.status
    const kept = encode(controls.TRY_DELETE_RECORDS.request, request)
    return Buffer.compare(reply.data, kept) === 0 ? "kept" : "gone"
  }
  const given = header(9, 0, MIGRATED)
  // "key1" has node 0 as lmaster, "a" node 1.
  expect(ask(0, "key1", given)).toBe("kept")
  expect(ask(2, "key1", header(9, 0, MIGRATED, bytes("x")))).toBe("kept")
  expect(ask(2, "key1", given.subarray(0, 20))).toBe(-1)
  expect(ask(2, "key1", given)).toBe("gone")
  const letGo = cluster.hold(2, "key1")
  expect(ask(2, "key1", given)).toBe("kept")
  letGo()
  const refused = [
    { rsn: 10, dmaster: 0, flags: MIGRATED, data: "" },
    { rsn: 9, dmaster: 0, flags: MIGRATED | RecordFlag.RO_HAVE_READONLY, data: "" },
    { rsn: 9, dmaster: 2, flags: MIGRATED, data: "" },
  ]
  for (const copy of refused) {
    cluster.put(2, "key1", copy)
    expect(ask(2, "key1", given)).toBe("kept")
    expect(cluster.copy(2, "key1")).toEqual(copy)
  }
  // A copy with data and an older number is an old one.
  cluster.put(2, "key1", { rsn: 8, dmaster: 0, flags: MIGRATED, data: "old" })
  expect(ask(2, "key1", given)).toBe("gone")
  expect(cluster.copy(2, "key1")).toBeUndefined()
})

test("a record that one node can't delete is tried again in the next run, not only in a full one", () => {
  const cluster = new Cluster(3)
  migrate(cluster, 2)
  cluster.write(2, KEY, "data")
  migrate(cluster, 1)
  cluster.write(1, KEY, "")
  migrate(cluster, 1)
  const letGo = cluster.hold(2, KEY)
  expect(vacuum(cluster, 1)).toBe(0)
  expect(cluster.copy(1, KEY)).toBeDefined()
  letGo()
  expect(vacuum(cluster, 1)).toBe(0)
  expect(cluster.copies(KEY)).toBe("- - -")
})

const SEQUENCE_KEY = bytes("__db_sequence_number__\0")
const commitOf = (dbId: number, rsn: number, data: string) => ({
  dbId,
  records: [
    { reqid: 0, key: bytes("key"), data: header(rsn, 0, 0, bytes(data)) },
    { reqid: 0, key: SEQUENCE_KEY, data: header(rsn, 0, 0, new Uint8Array([rsn, 0, 0, 0, 0, 0, 0, 0])) },
  ],
})

for (const kind of ["DB_ATTACH_PERSISTENT", "DB_ATTACH_REPLICATED"] as const) {
  test(`${kind}: a commit is on all nodes when it is answered; in a recovery there is none`, () => {
    const cluster = new Cluster(3, "p.tdb", kind)
    expect(cluster.status(0, "TRANS3_COMMIT", commitOf(cluster.id, 1, "one"))).toBe(0)
    for (const { pnn } of cluster.world.hosts) {
      expect(cluster.copy(pnn, "key")).toEqual({ rsn: 1, dmaster: 0, flags: 0, data: "one" })
    }
    expect(cluster.status(0, "UPDATE_RECORD", commitOf(cluster.id, 1, "two"))).toBe(1)
    expect(cluster.status(0, "UPDATE_RECORD", commitOf(cluster.id, 1, "one"))).toBe(0)
    cluster.node(0).state.recoveryMode = RecoveryMode.ACTIVE
    expect(cluster.status(0, "TRANS3_COMMIT", commitOf(cluster.id, 2, "two"))).toBe(-1)
    expect(cluster.status(0, "UPDATE_RECORD", commitOf(cluster.id, 2, "two"))).toBe(-1)
  })
}

test("a commit that one node refuses ends with a recovery, status 2, and all nodes have the same", () => {
  const cluster = new Cluster(3, "p.tdb", "DB_ATTACH_PERSISTENT")
  // Node 2 has something else under that number.
  cluster.put(2, "key", { rsn: 5, dmaster: 2, flags: 0, data: "other" })
  const reply = cluster.control(0, "TRANS3_COMMIT", commitOf(cluster.id, 1, "one"))
  expect(reply.ok).toBe(false)
  if (!reply.ok) expect([reply.status, reply.error]).toEqual([2, "trans3 commit ended by recovery"])
  cluster.until("normal mode", () =>
    cluster.world.hosts.every(({ pnn }) => cluster.node(pnn).state.recoveryMode === RecoveryMode.NORMAL),
  )
  for (const { pnn } of cluster.world.hosts) expect(cluster.copy(pnn, "key")?.data).toBe("one")
})

test("a commit that no node can store is refused without a recovery", () => {
  const cluster = new Cluster(3, "p.tdb", "DB_ATTACH_PERSISTENT")
  for (const pnn of [0, 1, 2]) cluster.put(pnn, "key", { rsn: 5, dmaster: 0, flags: 0, data: "newer" })
  const { generation } = cluster
  const reply = cluster.control(0, "TRANS3_COMMIT", commitOf(cluster.id, 1, "one"))
  expect(!reply.ok && reply.status).toBe(-1)
  expect(!reply.ok && reply.error).toContain("no node has stored it: ")
  cluster.world.runFor(5000)
  expect(cluster.generation).toBe(generation)
})

for (const busy of [0, 2]) {
  test(`a call of another node during a commit that waits on node ${busy}: both are answered, and so is the next commit`, () => {
    // A stock owner drops the call with the record's chain locked: its next commit hangs until ControlTimeout, then come recoveries.
    const cluster = new Cluster(3, "p.tdb", "DB_ATTACH_PERSISTENT")
    expect(cluster.status(0, "TRANS3_COMMIT", commitOf(cluster.id, 1, "one"))).toBe(0)
    const { generation } = cluster
    const letGo = cluster.hold(busy, "key")
    let committed: number | undefined
    cluster.session(0).request("TRANS3_COMMIT", 0, { request: commitOf(cluster.id, 2, "two") }, ({ status }) => {
      committed = status
    })
    cluster.world.runFor(50)
    const call = cluster.call(1, "key", CallId.FETCH)
    cluster.world.runFor(50)
    expect(committed).toBeUndefined()
    expect(call.reply === undefined).toBe(busy === 0)
    letGo()
    cluster.until("answers", () => committed !== undefined && call.reply !== undefined, 1000)
    expect(committed).toBe(0)
    expect(call.reply?.ok === true && Buffer.from(call.reply.data).toString()).toMatch(/^(one|two)$/)
    for (const rsn of [3, 4])
      expect(cluster.status(0, "TRANS3_COMMIT", commitOf(cluster.id, rsn, `commit ${rsn}`))).toBe(0)
    for (const { pnn } of cluster.world.hosts) expect(cluster.copy(pnn, "key")?.data).toBe("commit 4")
    expect(cluster.generation).toBe(generation)
  })
}

test("a chain, or a whole file, that a client keeps: logged and shown to the debug script every ten seconds", () => {
  const cluster = new Cluster(2)
  const shown = () =>
    cluster.world
      .traceText()
      .split("\n")
      .filter((line) => line.includes("debug_locks")).length
  const letGo = cluster.hold(1, KEY)
  const call = cluster.call(1, KEY, CallId.NULL)
  cluster.world.runFor(25_000)
  expect(shown()).toBe(2)
  expect(cluster.world.traceText()).toContain(`debug_locks RECORD /sim/${cluster.name}.1`)
  let frozen = false
  cluster.session(1).request("DB_FREEZE", 1, { request: cluster.id }, () => {
    frozen = true
  })
  cluster.world.runFor(11_000)
  expect(cluster.world.traceText()).toContain(`debug_locks DB /sim/${cluster.name}.1`)
  letGo()
  cluster.until("the freeze", () => frozen, 1000)
  const told = shown()
  // A freeze that stands is nobody's fault.
  cluster.world.runFor(15_000)
  expect(shown()).toBe(told)
  expect(cluster.status(1, "DB_THAW", cluster.id)).toBe(0)
  cluster.until("the call's answer", () => call.reply !== undefined, 1000)
})
