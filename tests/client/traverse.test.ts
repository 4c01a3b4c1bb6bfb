// The cluster-wide traverse against a scripted daemon: what is asked for, what comes back as which record, and how an end that is no
// complete one shows. Real nodes are in tests/peers.

import { afterEach, beforeEach, expect, test } from "bun:test"
import { Client } from "../../lib/client/client.ts"
import { traverse } from "../../lib/client/traverse.ts"
import type { SocketConnection } from "../../lib/net/connection.ts"
import { type Listener, listenUnix } from "../../lib/net/unix.ts"
import { encode } from "../../lib/protocol/codec.ts"
import { controlByOpcode } from "../../lib/protocol/controls.ts"
import { decodePacket, encodePacket, Operation, type ReqControl } from "../../lib/protocol/packet.ts"
import { recData } from "../../lib/protocol/structs.ts"
import { type Word64, word64 } from "../../lib/protocol/word64.ts"
import { temporaryDirectory } from "../net/streams.ts"

const NONE = new Uint8Array(0)
const HEADER = Buffer.from("0700000000000000000000000000000000000000" + "00000000", "hex")

let directory: ReturnType<typeof temporaryDirectory>
let listener: Listener
let client: Client
let controls: ReqControl[]
/** What the daemon does when a traverse starts. */
let onStart: (send: (data: Uint8Array) => void, connection: SocketConnection) => void
let startStatus = 0

beforeEach(async () => {
  directory = temporaryDirectory()
  controls = []
  startStatus = 0
  let srvid: Word64 = word64(0, 0)
  listener = listenUnix(directory.file("socket"), {
    mode: 0o700,
    backlog: 10,
    onAccept: (connection) => ({
      onPacket: (bytes) => {
        const packet = decodePacket(bytes.slice())
        if (packet.operation !== Operation.REQ_CONTROL) return
        controls.push(packet)
        const name = controlByOpcode(packet.opcode)?.name
        const header = { generation: 1, destnode: 0, srcnode: 0, reqid: packet.reqid }
        if (name === "REGISTER_SRVID") srvid = packet.srvid
        const data = name === "GET_TUNABLE" ? Uint8Array.of(20, 0, 0, 0) : NONE
        const status = name === "TRAVERSE_START_EXT" ? startStatus : 0
        if ((packet.flags & 1) === 0) {
          connection.send(
            encodePacket({ operation: Operation.REPLY_CONTROL, ...header, status, data, error: "" }, "daemon"),
          )
        }
        if (name !== "TRAVERSE_START_EXT") return
        const message = { generation: 1, destnode: 0, srcnode: 0, reqid: 0, srvid }
        onStart((content) => {
          connection.send(encodePacket({ operation: Operation.REQ_MESSAGE, ...message, data: content }, "daemon"))
        }, connection)
      },
      onBadHeader: () => "close",
      onClose: () => {},
    }),
  })
  client = await Client.connect({ socket: directory.file("socket"), timeoutMs: 1000 })
})

afterEach(async () => {
  await client.close()
  listener.close()
  directory[Symbol.dispose]()
})

const record = (key: string, data: string): Uint8Array =>
  encode(recData, { reqid: 0, key: Buffer.from(key), data: Buffer.concat([HEADER, Buffer.from(data)]) })
const END = encode(recData, { reqid: 0, key: NONE, data: NONE })

async function walk(options: { readonly empty?: boolean } = {}) {
  const seen: string[] = []
  const result = await traverse(
    client,
    0x1234,
    (bytes, keyStart, keyLength, dataStart, dataLength) => {
      const text = (from: number, to: number) => Buffer.from(bytes.subarray(from, to)).toString()
      seen.push(`${text(keyStart, keyStart + keyLength)}=${text(dataStart + 24, dataStart + dataLength)}`)
    },
    options,
  )
  return { seen, ...result }
}

test("asks as the stock client does, and deregisters", async () => {
  onStart = (send) => send(END)
  await walk()
  await client.controlStatus("GET_PNN", 0)
  const names = controls.map(({ opcode }) => controlByOpcode(opcode)?.name)
  expect(names.slice(1)).toEqual(["GET_TUNABLE", "REGISTER_SRVID", "TRAVERSE_START_EXT", "DEREGISTER_SRVID", "GET_PNN"])
  const start = controls[3]!
  const payload = Buffer.from(start.data)
  // Database, request id 0, the srvid of this process, no empty records (client-library 14).
  expect([payload.length, payload.readUInt32LE(0), payload.readUInt32LE(4), payload.readUInt32LE(8)]).toEqual([
    24,
    0x1234,
    0,
    process.pid,
  ])
  expect(payload.readUInt32LE(12) >>> 24).toBe(0xbe)
  expect(payload.subarray(16).every((byte) => byte === 0)).toBe(true)
})

test("records come in place; empty ones and nonsense are passed over, and nothing after the end counts", async () => {
  onStart = (send) => {
    send(record("a", "1"))
    send(record("empty", ""))
    send(Uint8Array.of(1, 2, 3))
    const lies = record("long", "data")
    new DataView(lies.buffer, lies.byteOffset).setUint32(8, 1000, true)
    send(lies)
    send(record("b", "2"))
    send(END)
    send(record("late", "3"))
  }
  expect(await walk()).toEqual({ seen: ["a=1", "b=2"], records: 2, cut: undefined, maybeCut: false })
  onStart = (send) => {
    send(record("empty", ""))
    send(END)
  }
  expect((await walk({ empty: true })).seen).toEqual(["empty="])
})

test("an end that is not complete says what is missing", async () => {
  onStart = (send) => {
    send(record("a", "1"))
    send(Buffer.concat([END, Buffer.from("nothing came from node 3 for 1 s")]))
  }
  expect(await walk()).toMatchObject({ seen: ["a=1"], cut: "nothing came from node 3 for 1 s" })
})

test("refused, lost, or too late", async () => {
  onStart = () => {}
  startStatus = -1
  expect(await walk().catch((error: unknown) => error)).toMatchObject({ control: "TRAVERSE_START_EXT", status: -1 })
  startStatus = 0
  const late = traverse(client, 1, () => {}, { timeoutMs: 20 })
  expect(await late.catch((error: unknown) => error)).toMatchObject({ reason: "timeout" })
  onStart = (_send, connection) => connection.close()
  expect(await walk().catch((error: unknown) => error)).toMatchObject({ reason: "closed" })
})
