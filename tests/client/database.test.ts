// Fetch-lock, store, delete and parse on a real TDB file with mutexes, with this test as the daemon: what is asked when, to the byte, what
// is not asked, and that no chain stays locked while an answer is awaited.

import { afterEach, beforeEach, describe, expect, test } from "bun:test"
import { Database, DatabaseError, type DatabaseKind, LockedRecord } from "../../lib/client/database.ts"
import { Session } from "../../lib/client/session.ts"
import { type PacketConnection, Priority } from "../../lib/net/ports.ts"
import { realScheduler } from "../../lib/net/scheduler.ts"
import { RecordFlag } from "../../lib/protocol/constants.ts"
import { decodePacket, encodePacket, Operation, type ReqCall } from "../../lib/protocol/packet.ts"
import { openTdb, type Tdb } from "../../lib/tdb/tdb.ts"
import { temporaryDirectory, until } from "../net/streams.ts"

const PNN = 1
const VOLATILE = 0x1c41
const OLD_KEY = Buffer.from("testkey")

class Wire implements PacketConnection {
  readPriority: Priority = Priority.BULK
  readonly sent: Uint8Array[] = []
  readonly queuedBytes = 0
  readonly queuedPackets = 0
  send(packet: Uint8Array): void {
    this.sent.push(packet)
  }
  pause(): void {}
  resume(): void {}
  close(): void {}
}

let directory: ReturnType<typeof temporaryDirectory>
let wire: Wire
let session: Session
/** The daemon's handle: it holds the ACTIVE lock, so that the client's open leaves the file alone. */
let daemon: Tdb
let database: Database

function open(kind: DatabaseKind = "volatile", flags = VOLATILE): void {
  directory = temporaryDirectory()
  const path = directory.file("db.tdb.1")
  daemon = openTdb(path, { flags, openFlags: 0o102, hashSize: 31 })
  wire = new Wire()
  session = new Session(realScheduler)
  session.attach(wire)
  session.pnn = PNN
  const tdb = openTdb(path, { flags })
  database = new Database({ session, scheduler: realScheduler, tdb, id: 0xd9fd18d0, name: "db.tdb", kind })
}

beforeEach(() => open())
afterEach(() => {
  database.close()
  daemon.close()
  directory[Symbol.dispose]()
})

function headerOf(dmaster: number, flags = 0, rsn = 7): Uint8Array {
  const header = Buffer.alloc(24)
  header.writeUInt32LE(rsn, 0)
  header.writeUInt32LE(dmaster, 8)
  header.writeUInt32LE(flags, 16)
  return header
}

const put = (dmaster: number, data = "", flags = 0, key: Uint8Array = OLD_KEY): void =>
  daemon.storeParts(key, [headerOf(dmaster, flags), Buffer.from(data)])

const lastCall = (): ReqCall => {
  const packet = decodePacket(wire.sent.at(-1)!)
  if (packet.operation !== Operation.REQ_CALL) throw new Error("no call")
  return packet
}

function reply(reqid: number, data: Uint8Array = new Uint8Array(0), status = 0): void {
  const header = { generation: 5, destnode: 0, srcnode: PNN, reqid }
  session.handler.onPacket(encodePacket({ operation: Operation.REPLY_CALL, ...header, status, data }, "daemon"))
}

const text = (record: LockedRecord): string => Buffer.from(record.copy()).toString()

describe("fetch-lock", () => {
  test("a record that is here and free comes back at once, without packet and promise", () => {
    put(PNN, "data")
    const record = database.fetchLock(OLD_KEY)
    expect(record).toBeInstanceOf(LockedRecord)
    if (!(record instanceof LockedRecord)) return
    expect([text(record), record.length, record.rsn.lo, record.dmaster, record.flags]).toEqual(["data", 4, 7, PNN, 0])
    expect(record.parse((bytes, start, length) => Buffer.from(bytes.slice(start, start + length)).toString())).toBe(
      "data",
    )
    // Locked for everybody else.
    expect(daemon.tryLockChain(daemon.hash(OLD_KEY))).toBe(false)
    record.unlock()
    record.unlock()
    expect(wire.sent).toEqual([])
    expect(daemon.tryLockChain(daemon.hash(OLD_KEY))).toBe(true)
    daemon.unlockChain(daemon.hash(OLD_KEY))
    expect(() => record.length).toThrow(DatabaseError)
    expect(() => record.store(OLD_KEY)).toThrow(DatabaseError)
  })

  test("one that is not is asked for as the stock client asks, with the chain unlocked, until it is here", async () => {
    const waiting = database.fetchLock(OLD_KEY)
    expect(waiting).toBeInstanceOf(Promise)
    await until("request 1", () => wire.sent.length === 1)
    // client-library 10, with the first request id of a conversation.
    expect(Buffer.from(wire.sent[0]!).toString("hex")).toBe(
      "40000000424454430100000000000000" +
        "00000000010000f00100000038ffff7f" +
        "01000000d018fdd9010000ff00000000" +
        "0700000000000000" +
        Buffer.from("testkey\0").toString("hex"),
    )
    expect(daemon.tryLockChain(daemon.hash(OLD_KEY))).toBe(true)
    daemon.unlockChain(daemon.hash(OLD_KEY))
    // The reply says nothing: the record went on to another node before we could look.
    put(2, "away")
    reply(lastCall().reqid)
    await until("request 2", () => wire.sent.length === 2)
    put(PNN, "here")
    reply(lastCall().reqid, Buffer.from("ignored"))
    const record = await waiting
    expect(text(record)).toBe("here")
    expect(database.counters.migrations).toBe(2)
    record.unlock()
  })

  test("a record without a header is none", async () => {
    daemon.store(OLD_KEY, Buffer.from("short"))
    const waiting = database.fetchLock(OLD_KEY)
    await until("request 1", () => wire.sent.length === 1)
    put(PNN)
    reply(lastCall().reqid)
    ;(await waiting).unlock()
  })

  const copy = RecordFlag.RO_HAVE_READONLY
  const delegated = RecordFlag.RO_HAVE_DELEGATIONS
  test.each([
    ["write", PNN, delegated, false],
    ["write", 2, copy, false],
    ["write", 2, 0, false],
    ["read", PNN, delegated, true],
    ["read", PNN, 0, true],
    ["read", 2, copy, true],
    ["read", 2, 0, false],
  ] as const)("to %s what node %d owns, with flags %d", async (mode, dmaster, flags, atOnce) => {
    put(dmaster, "v", flags)
    const locked = database.fetchLock(OLD_KEY, mode)
    expect(locked instanceof LockedRecord).toBe(atOnce)
    if (!atOnce) {
      await until("request 1", () => wire.sent.length === 1)
      expect(lastCall()).toMatchObject({ flags: mode === "read" ? 5 : 1, callid: 0xff000001 })
      put(PNN, "v")
      reply(lastCall().reqid)
    }
    const record = await locked
    expect(record.readOnly).toBe(mode === "read")
    if (mode === "read") expect(() => record.store(OLD_KEY)).toThrow("for reading only")
    record.unlock()
  })

  test("what goes wrong: refused, connection lost, too late, given up, the wrong kind", async () => {
    const failure = async (waiting: LockedRecord | Promise<LockedRecord>) =>
      await Promise.resolve(waiting).catch((error: unknown) => error)
    const refused = failure(database.fetchLock(OLD_KEY))
    await until("request 1", () => wire.sent.length === 1)
    reply(lastCall().reqid, undefined, -1)
    expect(await refused).toMatchObject({ name: "ControlError", control: "REQ_CALL", reason: "status", status: -1 })
    expect(await failure(database.fetchLock(OLD_KEY, "write", { timeoutMs: 20 }))).toMatchObject({ reason: "timeout" })
    const signal = AbortSignal.timeout(20)
    expect(await failure(database.fetchLock(OLD_KEY, "write", { signal }))).toMatchObject({ name: "TimeoutError" })
    const lost = failure(database.fetchLock(OLD_KEY))
    await until("request 4", () => wire.sent.length === 4)
    session.handler.onClose("gone")
    expect(await lost).toMatchObject({ reason: "closed" })
    database.close()
    daemon.close()
    directory[Symbol.dispose]()
    open("persistent", 0x400)
    expect(() => database.fetchLock(OLD_KEY)).toThrow("not locked one by one")
  })

  test("a chain that another handle has is waited for, and the event loop goes on meanwhile", async () => {
    put(PNN, "v")
    const hash = daemon.hash(OLD_KEY)
    daemon.lockChain(hash)
    const waiting = database.fetchLock(OLD_KEY)
    let turns = 0
    const counting = setInterval(() => turns++, 1)
    await until("turns of the loop", () => turns > 5)
    daemon.unlockChain(hash)
    ;(await waiting).unlock()
    clearInterval(counting)
    expect(wire.sent).toEqual([])
  })

  test("callers of one handle are served in their order, also when one of them gives up", async () => {
    put(PNN, "v")
    const first = database.fetchLock(OLD_KEY) as LockedRecord
    const order: string[] = []
    const caller = async (name: string, timeoutMs = 0) => {
      const record = await database.fetchLock(OLD_KEY, "write", { timeoutMs })
      order.push(name)
      await Bun.sleep(1)
      record.unlock()
    }
    const callers = [caller("a"), caller("b", 10).catch(() => order.push("b gives up")), caller("c")]
    await until("the one who gives up", () => order.length === 1)
    first.unlock()
    const late = database.tryFetchLock(OLD_KEY)
    expect(late).toBeUndefined()
    await Promise.all(callers)
    expect(order).toEqual(["b gives up", "a", "c"])
  })
})

describe("changing a record", () => {
  test("store keeps the header, also when the record has to move in the file", () => {
    put(PNN, "x", 0x10000)
    for (const data of ["y", "", "longer than before ".repeat(20), "short"]) {
      const record = database.fetchLock(OLD_KEY) as LockedRecord
      record.store(Buffer.from(data))
      expect(text(record)).toBe(data)
      record.unlock()
      expect(daemon.fetch(OLD_KEY)).toEqual(new Uint8Array(Buffer.concat([headerOf(PNN, 0x10000), Buffer.from(data)])))
    }
    expect(wire.sent).toEqual([])
  })

  test("delete leaves the header and gives the hint of client-library 11", () => {
    const key = Buffer.from("testlock\0")
    daemon.storeParts(key, [headerOf(PNN, 0, 2), Buffer.from("held")])
    const record = database.fetchLock(key) as LockedRecord
    record.delete()
    record.unlock()
    expect(daemon.fetch(key)).toEqual(new Uint8Array(headerOf(PNN, 0, 2)))
    const packet = decodePacket(wire.sent[0]!)
    expect(packet).toMatchObject({ opcode: 128, flags: 1, srvid: { hi: 0, lo: 0xd9fd18d0 } })
    const payload = Buffer.from((packet as { data: Uint8Array }).data).toString("hex")
    expect(payload).toBe(
      "d018fdd900000000" + "020000000000000001000000000000000000000000000000" + "09000000" + "746573746c6f636b00",
    )
  })
})

describe("parse", () => {
  const read = (bytes: Uint8Array, start: number, length: number) =>
    Buffer.from(bytes.slice(start, start + length)).toString()

  test("what is here is read at once, whatever its flags", () => {
    put(PNN, "mine", RecordFlag.RO_HAVE_DELEGATIONS)
    expect(database.parse(OLD_KEY, read)).toBe("mine")
    put(2, "copy", RecordFlag.RO_HAVE_READONLY)
    expect(database.parse(OLD_KEY, read)).toBe("copy")
    put(PNN, "")
    expect(database.parse(OLD_KEY, read)).toBeUndefined()
    expect(wire.sent).toEqual([])
  })

  test("what is elsewhere is asked for, with a wish for a copy if it has been here", async () => {
    const never = database.parse(Buffer.from("never"), read)
    await until("request 1", () => wire.sent.length === 1)
    expect(lastCall()).toMatchObject({ callid: 0xff000003, flags: 0, dbId: 0xd9fd18d0 })
    reply(lastCall().reqid, headerOf(2))
    expect(await never).toBeUndefined()
    put(2, "old")
    const moved = database.parse(OLD_KEY, read)
    await until("request 2", () => wire.sent.length === 2)
    expect(lastCall()).toMatchObject({ callid: 0xff000003, flags: 4 })
    reply(lastCall().reqid, Buffer.concat([headerOf(2), Buffer.from("new")]))
    expect(await moved).toBe("new")
  })

  test("other kinds are read locally", async () => {
    database.close()
    daemon.close()
    directory[Symbol.dispose]()
    open("persistent", 0x400)
    put(2, "everywhere the same")
    expect(database.parse(OLD_KEY, read)).toBe("everywhere the same")
    expect(database.parse(Buffer.from("missing"), read)).toBeUndefined()
    expect(await database.localRecord(Buffer.from("missing"))).toBeUndefined()
    expect((await database.localRecord(OLD_KEY))!.length).toBe(24 + 19)
    expect(wire.sent).toEqual([])
  })
})

test("a walk over the local file sees every record, and the loop goes on meanwhile", async () => {
  for (let i = 0; i < 9000; i++) daemon.store(Buffer.from(`key ${i}`), headerOf(i % 3))
  let turns = 0
  const counting = setImmediate(function again() {
    turns++
    immediate = setImmediate(again)
  })
  let immediate = counting
  let own = 0
  const seen = await database.traverseLocal((bytes, _keyStart, _keyLength, dataStart) => {
    if (bytes[dataStart + 8] === PNN) own++
  })
  clearImmediate(immediate)
  expect([seen, own]).toEqual([9000, 3000])
  expect(turns).toBeGreaterThan(2)
  let few = 0
  await database.traverseLocal(() => ++few === 10)
  expect(few).toBe(10)
})

test("closing unlocks: the chain of a handle that is gone is free", () => {
  put(PNN, "v")
  expect(database.fetchLock(OLD_KEY)).toBeInstanceOf(LockedRecord)
  database.close()
  expect(daemon.tryLockChain(daemon.hash(OLD_KEY))).toBe(true)
  daemon.unlockChain(daemon.hash(OLD_KEY))
})

test.each([
  ["volatile", VOLATILE],
  ["persistent", 0x400],
] as const)("closing ends what waits for a chain, before it touches what is no more (%s)", async (kind, flags) => {
  database.close()
  daemon.close()
  directory[Symbol.dispose]()
  open(kind, flags)
  daemon.store(OLD_KEY, Buffer.concat([headerOf(PNN), Buffer.from("data")]))
  daemon.tryLockChain(daemon.hash(OLD_KEY))
  const waits = [1, 2, 3].map(async () => await database.localRecord(OLD_KEY))
  const walk = database.traverseLocal(() => {})
  database.close()
  daemon.unlockChain(daemon.hash(OLD_KEY))
  for (const wait of [...waits, walk]) {
    const error = await wait.then(
      () => undefined,
      (reason: unknown) => reason,
    )
    expect(error).toMatchObject({ name: "DatabaseError", code: "EIO", reason: "it was closed meanwhile" })
  }
})
