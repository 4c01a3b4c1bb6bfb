// Transactions and locks against a scripted daemon with real TDB files: what a commit sends, to the byte, and the retry rules of client-library
// 19 on every answer that a daemon may give.

import { afterEach, beforeEach, describe, expect, test } from "bun:test"
import { socketAddress } from "../../daemon/state.ts"
import { attach, forgetDatabases } from "../../lib/client/attach.ts"
import { Client } from "../../lib/client/client.ts"
import { GLock } from "../../lib/client/g-lock.ts"
import { Transaction } from "../../lib/client/transaction.ts"
import type { SocketConnection } from "../../lib/net/connection.ts"
import { type Listener, listenUnix } from "../../lib/net/unix.ts"
import { decode, encode } from "../../lib/protocol/codec.ts"
import { NodeFlag } from "../../lib/protocol/constants.ts"
import { controlByOpcode, controls } from "../../lib/protocol/controls.ts"
import { databaseId } from "../../lib/protocol/hash.ts"
import { decodePacket, encodePacket, Operation, type Packet, type ReqControl } from "../../lib/protocol/packet.ts"
import { recBuffer } from "../../lib/protocol/structs.ts"
import { openTdb, type Tdb } from "../../lib/tdb/tdb.ts"
import { temporaryDirectory } from "../net/streams.ts"

const PNN = 0
const NONE = new Uint8Array(0)
const SEQUENCE_KEY = Buffer.from("__db_sequence_number__\0")

const u32 = (value: number): Uint8Array => new Uint8Array(new Uint32Array([value]).buffer)
const string = (text: string): Uint8Array => Buffer.from(`${text}\0`)
const files = { "g_lock.tdb": 0x1c41, "db.tdb": 0x400 } as const

/** Attaches the two databases, migrates whatever is asked for at once, and answers commits as the test says. */
class Daemon {
  private readonly directory = temporaryDirectory()
  readonly socket = this.directory.file("socket")
  readonly tdbs = new Map<number, { readonly tdb: Tdb; readonly path: string; readonly flags: number }>()
  readonly controls: ReqControl[] = []
  /** Called for each commit with its payload; the status to answer, or nothing for no answer at all. */
  onCommit: (payload: Uint8Array) => number | undefined = () => 0
  /** Its own, as it says. */
  flags = 0
  private readonly connections: SocketConnection[] = []
  private readonly listener: Listener

  constructor() {
    for (const [name, flags] of Object.entries(files)) {
      const path = this.directory.file(`${name}.0`)
      this.tdbs.set(databaseId(name), { tdb: openTdb(path, { flags, openFlags: 0o102, hashSize: 31 }), path, flags })
    }
    this.listener = listenUnix(this.socket, {
      mode: 0o700,
      backlog: 10,
      onAccept: (connection) => {
        this.connections.push(connection)
        return {
          onPacket: (bytes) => this.onPacket(connection, decodePacket(bytes.slice())),
          onBadHeader: () => "close",
          onClose: () => {},
        }
      },
    })
  }

  get database(): Tdb {
    return this.tdbs.get(databaseId("db.tdb"))!.tdb
  }

  get locks(): Tdb {
    return this.tdbs.get(databaseId("g_lock.tdb"))!.tdb
  }

  setSequence(number: number): void {
    const value = Buffer.alloc(32)
    value.writeUInt32LE(number, 0)
    value.writeUInt32LE(number, 24)
    this.database.store(SEQUENCE_KEY, value)
  }

  private onPacket(connection: SocketConnection, packet: Packet): void {
    const header = { generation: 1, destnode: 0, srcnode: PNN, reqid: packet.reqid }
    if (packet.operation === Operation.REQ_CALL) {
      this.tdbs.get(packet.dbId)!.tdb.store(packet.key, new Uint8Array(24))
      connection.send(encodePacket({ operation: Operation.REPLY_CALL, ...header, status: 0, data: NONE }, "daemon"))
    }
    if (packet.operation !== Operation.REQ_CONTROL) return
    this.controls.push(packet)
    const [status, data] = this.answer(packet)
    if (status === undefined || (packet.flags & 1) !== 0) return
    connection.send(encodePacket({ operation: Operation.REPLY_CONTROL, ...header, status, data, error: "" }, "daemon"))
  }

  private answer({ opcode, data }: ReqControl): [status: number | undefined, data: Uint8Array] {
    const id = data.length >= 4 ? Buffer.from(data).readUInt32LE() : 0
    switch (controlByOpcode(opcode)?.name) {
      case "GET_PNN":
        return [PNN, NONE]
      case "DB_ATTACH":
      case "DB_ATTACH_PERSISTENT":
        return [0, u32(databaseId(Buffer.from(data.subarray(0, -1)).toString()))]
      case "GETDBPATH":
        return [0, string(this.tdbs.get(id)!.path)]
      case "DB_OPEN_FLAGS":
        return [0, u32(this.tdbs.get(id)!.flags)]
      case "GET_NODEMAP": {
        const addr = socketAddress({ address: "127.0.0.1", port: 4379 })
        return [0, encode(controls.GET_NODEMAP.reply, [{ pnn: PNN, flags: this.flags, addr }])]
      }
      case "GET_DBMAP":
        return [0, u32(0)]
      case "TRANS3_COMMIT":
        return [this.onCommit(data), NONE]
      default:
        return [0, NONE]
    }
  }

  dispose(): void {
    this.listener.close()
    for (const connection of this.connections) connection.close()
    for (const { tdb } of this.tdbs.values()) tdb.close()
    this.directory[Symbol.dispose]()
  }
}

let daemon: Daemon
let client: Client

beforeEach(async () => {
  daemon = new Daemon()
  client = await Client.connect({ socket: daemon.socket, timeoutMs: 1000 })
})
afterEach(async () => {
  await forgetDatabases(client)
  await client.close()
  daemon.dispose()
})

const start = async (): Promise<Transaction> =>
  Transaction.start(client, await attach(client, "db.tdb", { kind: "persistent" }))
const lockKey = (): Uint8Array =>
  Buffer.from(`transaction_db_0x${databaseId("db.tdb").toString(16).padStart(8, "0")}\0`)
const lockRecord = (): string => Buffer.from(daemon.locks.fetch(lockKey()) ?? NONE).toString("hex")

describe("commit", () => {
  test("sends the changed records and the sequence number with their next rsn", async () => {
    // As in the example of client-library 19, without its fetched-only record.
    const commits: string[] = []
    daemon.onCommit = (payload) => {
      commits.push(Buffer.from(payload).toString("hex"))
      return 0
    }
    const transaction = await start()
    expect(await transaction.fetch(Buffer.from("testkey"))).toBeUndefined()
    await transaction.store(Buffer.from("testkey"), u32(1))
    await transaction.commit()
    const id = Buffer.from(u32(databaseId("db.tdb"))).toString("hex")
    const zeros = (count: number) => "00".repeat(count)
    expect(commits).toEqual([
      `${id}02000000` +
        `33000000${zeros(4)}070000001c000000${Buffer.from("testkey").toString("hex")}01${zeros(23)}01000000` +
        `47000000${zeros(4)}1700000020000000${SEQUENCE_KEY.toString("hex")}01${zeros(23)}0100000000000000`,
    ])
  })

  test("holds the stock client's lock meanwhile, and empties its record afterwards", async () => {
    let during = ""
    daemon.onCommit = () => {
      during = lockRecord()
      return 0
    }
    const transaction = await start()
    await transaction.store(Buffer.from("k"), u32(1))
    await transaction.commit()
    const entry = Buffer.from(during, "hex").subarray(24)
    expect(entry.length).toBe(32)
    expect([entry.readUInt32LE(0), entry.readUInt32LE(8), entry.readUInt32LE(16), entry.readUInt32LE(20)]).toEqual([
      1,
      process.pid,
      databaseId("db.tdb"),
      PNN,
    ])
    expect(lockRecord()).toBe("00".repeat(24))
  })

  test("failed and nothing changed: the same buffer again, with pauses, until it is done", async () => {
    daemon.setSequence(41)
    const commits: string[] = []
    const times: number[] = []
    daemon.onCommit = (payload) => {
      commits.push(Buffer.from(payload).toString("hex"))
      times.push(performance.now())
      return [-1, 1, -1, 0][commits.length - 1]!
    }
    const transaction = await start()
    await transaction.store(Buffer.from("k"), u32(1))
    await transaction.commit()
    expect(new Set(commits).size).toBe(1)
    expect(commits.length).toBe(4)
    expect(times[3]! - times[0]!).toBeGreaterThan(65)
    expect(commits[0]!.endsWith("2a00000000000000")).toBe(true)
  })

  test("ended by a recovery that has kept it: done", async () => {
    daemon.setSequence(41)
    let commits = 0
    daemon.onCommit = (payload) => {
      commits++
      for (const { key, data } of decode(recBuffer, payload).records) daemon.database.store(key, data)
      return 2
    }
    const transaction = await start()
    await transaction.store(Buffer.from("k"), u32(1))
    await transaction.delete(Buffer.from("missing"))
    await transaction.commit()
    expect(commits).toBe(1)
    expect(lockRecord()).toBe("00".repeat(24))
  })

  test("ended with the number of another's commit, which is one more, too: an error, and the lock is free", async () => {
    daemon.setSequence(41)
    daemon.onCommit = () => {
      daemon.setSequence(42)
      return 2
    }
    const transaction = await start()
    await transaction.store(Buffer.from("k"), u32(1))
    expect(await transaction.commit().catch(String)).toContain("another commit came between")
    expect(lockRecord()).toBe("00".repeat(24))
  })

  test("ended with another's number: an error, and the lock is free", async () => {
    daemon.setSequence(41)
    daemon.onCommit = () => {
      daemon.setSequence(43)
      return 2
    }
    const transaction = await start()
    await transaction.store(Buffer.from("k"), u32(1))
    expect(await transaction.commit().catch((error: unknown) => error)).toMatchObject({ code: "EIO" })
    expect(lockRecord()).toBe("00".repeat(24))
  })

  test("never answered, because the node was banned meanwhile: an error that leaves it open, and the lock is free", async () => {
    daemon.onCommit = () => {
      daemon.flags = NodeFlag.BANNED
      return undefined
    }
    const transaction = await start()
    await transaction.store(Buffer.from("k"), u32(1))
    const error = await transaction.commit().catch((reason: unknown) => reason)
    expect(error).toMatchObject({
      code: "EIO",
      reason: "node 0 is banned: whether it was committed shows when it is back",
    })
    expect(lockRecord()).toBe("00".repeat(24))
  })

  test("nothing stored, equal data stored, or a missing record deleted: nothing is sent", async () => {
    daemon.database.store(Buffer.from("k"), Buffer.concat([new Uint8Array(24), Buffer.from("same")]))
    let commits = 0
    daemon.onCommit = () => {
      commits++
      return 0
    }
    const transaction = await start()
    await transaction.fetch(Buffer.from("k"))
    await transaction.store(Buffer.from("k"), Buffer.from("same"))
    await transaction.delete(Buffer.from("missing"))
    expect(transaction.changed).toBe(0)
    await transaction.commit()
    expect(commits).toBe(0)
    expect(lockRecord()).toBe("00".repeat(24))
  })
})

describe("a lock", () => {
  test("that is taken and released over and over gives few deletion hints", async () => {
    for (let i = 0; i < 100; i++) await (await GLock.acquire(client, { name: "often", type: "write" })).release()
    const hints = () =>
      daemon.controls.filter(({ opcode }) => controlByOpcode(opcode)?.name === "SCHEDULE_FOR_DELETION")
    await client.controlStatus("GET_PNN", PNN)
    expect(hints().length).toBe(1)
    expect(daemon.locks.fetch(Buffer.from("often\0"))).toEqual(new Uint8Array(24))
  })

  test("in neither format is an error, and stays as it is", async () => {
    const rubbish = Buffer.concat([new Uint8Array(24), Buffer.from("ffffffffff", "hex")])
    daemon.locks.store(Buffer.from("odd\0"), rubbish)
    const failed = await GLock.acquire(client, { name: "odd", type: "write" }).catch((error: unknown) => error)
    expect(failed).toMatchObject({ name: "DatabaseError", code: "EIO" })
    expect(daemon.locks.fetch(Buffer.from("odd\0"))).toEqual(new Uint8Array(rubbish))
  })
})
