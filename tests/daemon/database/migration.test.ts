// How records move, packet by packet: the traces that were seen on stock nodes (data path page 5.11), and the packets that a stock
// node dies of, never answers, or loses newer data by (page 18.3), which must do no harm here.

import { beforeEach, expect, test } from "bun:test"
import { CallFlag, CallId, RecoveryMode } from "../../../lib/protocol/constants.ts"
import { decodePacket, encodePacket, Operation, operationName, type ReplyError } from "../../../lib/protocol/packet.ts"
import { bytes, Cluster, text } from "./cluster.ts"

/** Its lmaster is node 1. */
const KEY = "a"
const MIGRATED = 0x10000
const { IMMEDIATE_MIGRATION } = CallFlag

let cluster: Cluster
beforeEach(() => {
  cluster = new Cluster(3)
})

/** "REQ_CALL 0>1" and so on, in order of arrival. */
const traffic = () => cluster.packets.map(({ from, to, packet }) => `${operationName(packet.operation)} ${from}>${to}`)
const migrate = (pnn: number, key = KEY) =>
  expect(cluster.answered(pnn, key, CallId.NULL, IMMEDIATE_MIGRATION).ok).toBe(true)
const mode = (pnn: number) => cluster.node(pnn).state.recoveryMode

test("the worked trace of an empty record, as seen on stock nodes", () => {
  migrate(0)
  expect(cluster.copies(KEY)).toBe("3/0 1/0 -")
  expect(traffic()).toEqual(["REQ_CALL 0>1", "REPLY_DMASTER 1>0"])
  cluster.forget()

  // As in 5.11, where vacuuming had raised it by one in between: each migration adds 2, and the giver keeps nothing.
  migrate(2)
  expect(cluster.copies(KEY)).toBe("- 3/2 5/2")
  expect(traffic()).toEqual(["REQ_CALL 2>1", "REQ_CALL 1>0", "REQ_DMASTER 0>1", "REPLY_DMASTER 1>2"])
  cluster.forget()

  migrate(0)
  expect(cluster.copies(KEY)).toBe("7/0 5/0 -")
  expect(traffic()).toEqual(["REQ_CALL 0>1", "REQ_CALL 1>2", "REQ_DMASTER 2>1", "REPLY_DMASTER 1>0"])
  cluster.forget()

  migrate(1)
  expect(cluster.copies(KEY)).toBe("- 9/1 -")
  expect(traffic()).toEqual(["REQ_CALL 1>0", "REQ_DMASTER 0>1"])
})

test("packet lengths are a stock node's", () => {
  migrate(0, "a-key-08")
  // 5.11, with a key of 8 bytes.
  expect(cluster.packets.map(({ length }) => length)).toEqual([64, 72])
})

test("a record with data leaves copies, marked as migrated", () => {
  migrate(0)
  cluster.write(0, KEY, "hello")
  cluster.forget()
  const reply = cluster.answered(2, KEY, CallId.FETCH)
  expect(reply.ok && text(reply.data)).toBe("hello")
  expect(traffic()).toEqual(["REQ_CALL 2>1", "REQ_CALL 1>0", "REQ_DMASTER 0>1", "REPLY_DMASTER 1>2"])
  expect(cluster.copies(KEY)).toBe("3/2 3/2 5/2")
  for (const pnn of [0, 1, 2]) expect(cluster.copy(pnn, KEY)).toMatchObject({ flags: MIGRATED, data: "hello" })
})

test("a missing record comes into being on its lmaster with the rsn of a stock node", () => {
  migrate(1)
  // 4.3 and 4.5: created with 1, raised by the call.
  expect(cluster.copies(KEY)).toBe("- 2/1 -")
  expect(traffic()).toEqual([])
})

test("a call for a record that is here does not write it again", () => {
  migrate(1)
  cluster.write(1, KEY, "here")
  const before = cluster.database(1).tdb.b.slice(0, cluster.database(1).tdb.size)
  for (const callid of [CallId.NULL, CallId.FETCH, CallId.FETCH_WITH_HEADER]) {
    expect(cluster.answered(1, KEY, callid).ok).toBe(true)
  }
  expect(Buffer.compare(cluster.database(1).tdb.b.subarray(0, before.length), before)).toBe(0)
})

test("an unknown function moves the record and gives nothing", () => {
  migrate(0)
  cluster.write(0, KEY, "x")
  const reply = cluster.answered(2, KEY, 0x1234)
  expect(reply).toMatchObject({ ok: true, status: 0 })
  expect(reply.ok && reply.data.length).toBe(0)
  // 4.5: no second store, so one less than with a function.
  expect(cluster.copies(KEY)).toBe("3/2 3/2 4/2")
})

test("a stock daemon leaves a call for an unknown database unanswered; here it fails", () => {
  expect(cluster.answered(0, KEY, CallId.NULL, 0, 0x12345678)).toMatchObject({ ok: false, status: -1 })
})

const header = (from: number, to: number, reqid = 77) => ({
  generation: cluster.generation,
  destnode: to,
  srcnode: from,
  reqid,
})

test("a call of a node for an unknown database gets the stock node's error", () => {
  const call = { flags: 0, callid: CallId.NULL, hopcount: 0, key: bytes(KEY), data: new Uint8Array(0) }
  cluster.inject(0, 1, { operation: Operation.REQ_CALL, ...header(0, 1), dbId: 0x12345678, ...call })
  const error = cluster.packets.find(({ packet }) => packet.operation === Operation.REPLY_ERROR)
  expect(error).toMatchObject({ from: 1, to: 0 })
  expect((error?.packet as ReplyError | undefined)?.message).toBe("Unknown database in request. db_id==0x12345678")
  expect(mode(1)).toBe(RecoveryMode.NORMAL)
})

test("a record for an unknown database has lost its owner: the node asks for a recovery", () => {
  cluster.inject(0, 1, {
    operation: Operation.REPLY_DMASTER,
    ...header(0, 1),
    dbId: 0x12345678,
    rsn: { hi: 0, lo: 5 },
    recordFlags: 0,
    key: bytes(KEY),
    data: bytes("x"),
  })
  expect(mode(1)).toBe(RecoveryMode.ACTIVE)
})

const dmaster = (from: number, to: number, rsn: number, owner: number, data = "new", key = KEY) => ({
  operation: Operation.REQ_DMASTER,
  ...header(from, to),
  dbId: cluster.id,
  rsn: { hi: 0, lo: rsn },
  dmaster: owner,
  recordFlags: 0,
  key: bytes(key),
  data: bytes(data),
})

test("REQ_DMASTER to a node that is not the lmaster: a stock node aborts, this one asks for a recovery", () => {
  const before = cluster.copies(KEY)
  cluster.inject(0, 2, dmaster(0, 2, 9, 0))
  expect(cluster.world.hosts[2]!.running).toBe(true)
  expect(cluster.copies(KEY)).toBe(before)
  expect(mode(2)).toBe(RecoveryMode.ACTIVE)
  cluster.until("recovery", () => mode(2) === RecoveryMode.NORMAL)
})

test("REQ_DMASTER from a node that does not own the record changes nothing and asks for a recovery", () => {
  migrate(0)
  cluster.write(0, KEY, "kept")
  cluster.inject(2, 1, dmaster(2, 1, 50, 2))
  expect(cluster.copies(KEY)).toBe("3/0 1/0 -")
  expect(mode(1)).toBe(RecoveryMode.ACTIVE)
  cluster.until("recovery", () => mode(1) === RecoveryMode.NORMAL)
  const reply = cluster.answered(2, KEY, CallId.FETCH)
  expect(reply.ok && text(reply.data)).toBe("kept")
})

test("REQ_DMASTER that is older than the lmaster's copy does not overwrite it", () => {
  cluster.put(1, KEY, { rsn: 20, dmaster: 0, flags: MIGRATED, data: "newest" })
  cluster.inject(0, 1, dmaster(0, 1, 10, 2, "old"))
  expect(cluster.copy(1, KEY)).toMatchObject({ rsn: 20, data: "newest" })
  expect(mode(1)).toBe(RecoveryMode.ACTIVE)
})

test("REPLY_DMASTER that is older than the copy of its receiver does not overwrite it", () => {
  migrate(0)
  cluster.write(0, KEY, "newest")
  const { dmaster: _, ...old } = dmaster(1, 0, 2, 0, "old")
  cluster.inject(1, 0, { ...old, operation: Operation.REPLY_DMASTER })
  expect(cluster.copy(0, KEY)).toMatchObject({ rsn: 3, dmaster: 0, data: "newest" })
  // It owns the record: nothing is wrong with it.
  expect(mode(0)).toBe(RecoveryMode.NORMAL)

  cluster.put(2, KEY, { rsn: 30, dmaster: 0, flags: MIGRATED, data: "newer" })
  cluster.inject(1, 2, { ...old, ...header(1, 2), operation: Operation.REPLY_DMASTER })
  expect(cluster.copy(2, KEY)).toMatchObject({ rsn: 30, dmaster: 0, data: "newer" })
  expect(mode(2)).toBe(RecoveryMode.ACTIVE)
})

test("a read-only copy that is left over from an earlier life of the record gives way", () => {
  cluster.put(2, KEY, { rsn: 30, dmaster: 0, flags: 0x02000000, data: "stale" })
  const { dmaster: _, ...fresh } = dmaster(1, 2, 1, 2, "fresh")
  cluster.inject(1, 2, { ...fresh, operation: Operation.REPLY_DMASTER })
  expect(cluster.copy(2, KEY)).toMatchObject({ rsn: 2, dmaster: 2, data: "fresh" })
})

test("a record without a caller stays with its new owner", () => {
  const { dmaster: _, ...reply } = dmaster(1, 2, 5, 2)
  cluster.inject(1, 2, { ...reply, operation: Operation.REPLY_DMASTER })
  // One store only: no function was run (5.6, rows 4 and 6).
  expect(cluster.copy(2, KEY)).toMatchObject({ rsn: 6, dmaster: 2, data: "new" })
})

test("a call in the name of a node that is gone does not take the record away", () => {
  migrate(0)
  cluster.write(0, KEY, "kept")
  const call = { flags: 0, callid: CallId.NULL, key: bytes(KEY), data: new Uint8Array(0), dbId: cluster.id }
  for (const gone of [99, 0xfffffff0]) {
    cluster.inject(1, 0, { operation: Operation.REQ_CALL, ...header(gone, 0), hopcount: 1, ...call })
  }
  expect(cluster.copy(0, KEY)).toMatchObject({ rsn: 3, dmaster: 0, data: "kept" })
})

test("packets of another generation are dropped", () => {
  const { dmaster: _, ...reply } = dmaster(1, 2, 5, 2)
  cluster.inject(1, 2, { ...reply, operation: Operation.REPLY_DMASTER, generation: cluster.generation + 1 })
  expect(cluster.copies(KEY)).toBe("- - -")
})

test("calls that wait for a client's lock are served in order when it goes, and hold up no control", () => {
  migrate(1)
  cluster.write(1, KEY, "v")
  const letGo = cluster.hold(1, KEY)
  const waiting = [0, 2, 1].map((pnn) => cluster.call(pnn, KEY, CallId.FETCH))
  cluster.world.runFor(3000)
  expect(waiting.map(({ reply }) => reply)).toEqual([undefined, undefined, undefined])
  expect(cluster.database(1).locks.waitingCount).toBeGreaterThanOrEqual(2)
  expect(cluster.control(1, "GET_PNN")).toMatchObject({ status: 1 })
  expect(cluster.node(1).state.statistics.now.pendingCalls).toBe(1)
  letGo()
  cluster.until("answers", () => waiting.every(({ reply }) => reply !== undefined), 1000)
  for (const { reply } of waiting) expect(reply?.ok && text(reply.data)).toBe("v")
})

test("a waiting call survives the recovery; its packet of the old generation does not count twice", () => {
  migrate(0)
  cluster.write(0, KEY, "v")
  const letGo = cluster.hold(0, KEY)
  const waiting = cluster.call(2, KEY, CallId.FETCH)
  cluster.world.runFor(100)
  const { generation } = cluster
  cluster.control(1, "SET_RECMODE", RecoveryMode.ACTIVE)
  cluster.world.runFor(2000)
  // The freeze waits for the client, too.
  expect(waiting.reply).toBeUndefined()
  letGo()
  cluster.until("answer", () => waiting.reply !== undefined)
  expect(cluster.node(2).databases.get(cluster.id)?.generation).not.toBe(generation)
  expect(waiting.reply?.ok && text(waiting.reply.data)).toBe("v")
  cluster.until("recovery", () => [0, 1, 2].every((pnn) => mode(pnn) === RecoveryMode.NORMAL))
  const owners = [0, 1, 2].filter((pnn) => cluster.copy(pnn, KEY)?.dmaster === pnn)
  expect(owners).toEqual([2])
})

test("lengths that do not fit are refused before anything is read by them", () => {
  const call = {
    flags: 0,
    callid: CallId.NULL,
    hopcount: 0,
    key: bytes(KEY),
    data: new Uint8Array(0),
    dbId: cluster.id,
  }
  const packet = { operation: Operation.REQ_CALL, ...header(0, 1), ...call }
  const node = cluster.node(1)
  for (const [offset, length] of [
    [48, 0x40000000],
    [52, 0xffffffff],
    [48, 100],
  ] as const) {
    const whole = encodePacket(packet, "daemon")
    new DataView(whole.buffer).setUint32(offset, length, true)
    expect(() => decodePacket(whole)).toThrow()
    node.router.receiveFromNode(node.state.nodes[0]!, whole)
  }
  cluster.world.runFor(100)
  expect(cluster.copies(KEY)).toBe("- - -")
  expect(cluster.control(1, "GET_PNN")).toMatchObject({ status: 1 })
})

test("detaching answers who waits", () => {
  for (const pnn of [0, 1, 2]) cluster.control(pnn, "SET_TUNABLE", { name: "AllowClientDBAttach", value: 0 })
  migrate(1)
  const letGo = cluster.hold(1, KEY)
  const local = cluster.call(1, KEY, CallId.NULL)
  cluster.world.runFor(100)
  expect(cluster.status(1, "DB_DETACH", cluster.id)).toBe(0)
  cluster.until("answer", () => local.reply !== undefined, 1000)
  expect(local.reply).toMatchObject({ ok: false, status: -1 })
  letGo()
  for (const pnn of [0, 1, 2]) expect(cluster.node(pnn).databases.get(cluster.id)).toBeUndefined()
})
