// The promise level against a scripted daemon on a real socket: connecting, typed controls, many nodes, waiting, giving
// up, connecting again. The real daemon's turn is in tests/peers/client.test.ts.

import { afterEach, describe, expect, test } from "bun:test"
import { Client, ControlError } from "../../lib/client/client.ts"
import type { SocketConnection } from "../../lib/net/connection.ts"
import { type Listener, listenUnix } from "../../lib/net/unix.ts"
import { encode, ProtocolError } from "../../lib/protocol/codec.ts"
import { controls } from "../../lib/protocol/controls.ts"
import { decodePacket, encodePacket, Operation, type Packet, type ReqControl } from "../../lib/protocol/packet.ts"
import { vnnMap } from "../../lib/protocol/structs.ts"
import { type Word64, word64 } from "../../lib/protocol/word64.ts"
import { temporaryDirectory, until } from "../net/streams.ts"

const NONE = new Uint8Array(0)

interface Answer {
  readonly status?: number
  readonly data?: Uint8Array
  readonly error?: string
}

/** Answers controls as the test says: an answer, or undefined for silence. GET_PNN is answered with 4. */
class Daemon {
  readonly requests: ReqControl[] = []
  readonly others: Packet[] = []
  connections: SocketConnection[] = []
  answer: (request: ReqControl) => Answer | undefined = () => ({})
  private readonly directory = temporaryDirectory()
  readonly socket = this.directory.file("socket")
  private listener: Listener | undefined

  listen(): void {
    this.listener = listenUnix(this.socket, {
      mode: 0o700,
      backlog: 100,
      onAccept: (connection) => {
        this.connections.push(connection)
        return {
          onPacket: (bytes) => this.onPacket(connection, decodePacket(bytes.slice())),
          onBadHeader: () => "close",
          onClose: () => {
            this.connections = this.connections.filter((other) => other !== connection)
          },
        }
      },
    })
  }

  private onPacket(connection: SocketConnection, packet: Packet): void {
    if (packet.operation !== Operation.REQ_CONTROL) {
      this.others.push(packet)
      return
    }
    this.requests.push(packet)
    const answer = packet.opcode === controls.GET_PNN.opcode ? { status: 4 } : this.answer(packet)
    if (answer === undefined || (packet.flags & 1) !== 0) return
    const { status = 0, data = NONE, error = "" } = answer
    const header = { generation: 1, destnode: 0, srcnode: 4, reqid: packet.reqid }
    connection.send(encodePacket({ operation: Operation.REPLY_CONTROL, ...header, status, data, error }, "daemon"))
  }

  message(srvid: Word64, data: Uint8Array): void {
    const header = { generation: 1, destnode: 0, srcnode: 4, reqid: 0 }
    for (const connection of this.connections) {
      connection.send(encodePacket({ operation: Operation.REQ_MESSAGE, ...header, srvid, data }, "daemon"))
    }
  }

  stop(): void {
    this.listener?.close()
    this.listener = undefined
    for (const connection of this.connections) connection.close()
    this.connections = []
  }

  dispose(): void {
    this.stop()
    this.directory[Symbol.dispose]()
  }
}

let daemon: Daemon
let client: Client | undefined
afterEach(async () => {
  await client?.close()
  client = undefined
  daemon.dispose()
})

async function connected(answer?: Daemon["answer"]): Promise<Client> {
  daemon = new Daemon()
  daemon.listen()
  if (answer !== undefined) daemon.answer = answer
  client = await Client.connect({ socket: daemon.socket, timeoutMs: 1000 })
  return client
}

/** What a promise was rejected with. */
async function rejection(promise: Promise<unknown>): Promise<unknown> {
  try {
    await promise
  } catch (error) {
    return error
  }
  throw new Error("not rejected")
}

const opcode = (name: keyof typeof controls): number => controls[name].opcode
const u32 = (value: number): Uint8Array => new Uint8Array(new Uint32Array([value]).buffer)

describe("connecting", () => {
  test("asks for the node's number and nothing else, and sends it as its own from then on", async () => {
    const client = await connected()
    expect(client.pnn).toBe(4)
    expect(daemon.requests.map(({ opcode, srcnode }) => [opcode, srcnode])).toEqual([[35, 0xffffffff]])
    await client.control("SET_DEBUG", 1, 3)
    expect(daemon.requests.at(-1)).toMatchObject({ opcode: 8, destnode: 1, srcnode: 4 })
  })

  test("without a daemon fails at once with the errno's name", async () => {
    daemon = new Daemon()
    const error = await rejection(Client.connect({ socket: daemon.socket, timeoutMs: 5000 }))
    expect(error).toMatchObject({ name: "SysError", code: "ENOENT" })
  })

  test("to a daemon that accepts and never answers ends with the time", async () => {
    daemon = new Daemon()
    const silent = listenUnix(daemon.socket, {
      mode: 0o700,
      backlog: 10,
      onAccept: () => ({ onPacket() {}, onBadHeader: () => "close", onClose() {} }),
    })
    const error = await rejection(Client.connect({ socket: daemon.socket, timeoutMs: 50 }))
    expect(error).toMatchObject({ name: "ControlError", control: "GET_PNN", reason: "timeout" })
    silent.close()
  })

  test("can be given up by signal", async () => {
    daemon = new Daemon()
    const silent = listenUnix(daemon.socket, {
      mode: 0o700,
      backlog: 10,
      onAccept: () => ({ onPacket() {}, onBadHeader: () => "close", onClose() {} }),
    })
    const giveUp = new AbortController()
    const connecting = rejection(Client.connect({ socket: daemon.socket, signal: giveUp.signal }))
    giveUp.abort(new Error("enough"))
    expect(await connecting).toEqual(new Error("enough"))
    const reason = { name: "AbortError" }
    expect(await rejection(Client.connect({ socket: daemon.socket, signal: AbortSignal.abort() }))).toMatchObject(
      reason,
    )
    silent.close()
  })
})

describe("controls", () => {
  test("replies come typed, by the table of controls", async () => {
    const map = { generation: 99, map: [2, 0] }
    const client = await connected(({ opcode: asked }) =>
      asked === opcode("GETVNNMAP") ? { data: encode(vnnMap, map) } : { data: u32(12) },
    )
    expect(await client.control("GETVNNMAP", 0)).toEqual(map)
    expect(await client.control("GET_DEBUG", 0)).toBe(12)
    expect(await client.control("PROCESS_EXISTS", 0, 1)).toBeUndefined()
  })

  test("a refusal says which control, where, what status and the daemon's words", async () => {
    const client = await connected(() => ({ status: -1, error: "node is disconnected" }))
    const error = (await rejection(client.control("GET_DEBUG", 3))) as ControlError
    expect(error).toBeInstanceOf(ControlError)
    expect(error).toMatchObject({ control: "GET_DEBUG", destnode: 3, reason: "status", status: -1 })
    expect(error.text).toBe("node is disconnected")
    expect(error.message).toBe("control GET_DEBUG to node 3: status -1 (node is disconnected)")
    expect(await client.controlStatus("GET_DEBUG", 3)).toBe(-1)
  })

  test("a payload that does not decode is told with its cause", async () => {
    const client = await connected(() => ({ data: new Uint8Array(2) }))
    const error = await rejection(client.control("GET_DEBUG", 3))
    expect(error).toMatchObject({ name: "ControlError", reason: "protocol", status: 0 })
    expect((error as ControlError).cause).toBeInstanceOf(ProtocolError)
  })

  test("time-outs, signals and lost connections each reject in their own way", async () => {
    const client = await connected(() => undefined)
    const late = rejection(client.control("GET_DEBUG", 1, undefined, { timeoutMs: 20 }))
    expect(await late).toMatchObject({ reason: "timeout", destnode: 1 })
    const giveUp = new AbortController()
    const aborted = rejection(client.control("GET_DEBUG", 1, undefined, { signal: giveUp.signal }))
    giveUp.abort(new Error("enough"))
    expect(await aborted).toEqual(new Error("enough"))
    expect(client.session.pendingRequests).toBe(0)
    const lost = rejection(client.control("GET_DEBUG", 1))
    const reasons: string[] = []
    client.onClosed = (reason) => reasons.push(reason)
    const closed = client.waitForClose({ timeoutMs: 1000 })
    await until("the request", () => daemon.requests.length === 4)
    daemon.stop()
    expect(await lost).toMatchObject({ reason: "closed" })
    expect(await closed).toBe("end of file")
    expect(reasons).toEqual(["end of file"])
    expect(await rejection(client.control("GET_DEBUG", 1))).toMatchObject({ reason: "closed", text: "not connected" })
  })

  test("to many nodes run at once, and each node has its own result", async () => {
    const waiting: ReqControl[] = []
    const client = await connected((request) => {
      waiting.push(request)
      if (request.destnode === 1) return { status: -1, error: "no" }
      return request.destnode === 2 ? undefined : { data: u32(request.destnode * 10) }
    })
    const results = await client.controlAll("GET_DEBUG", [0, 1, 2, 3], undefined, { timeoutMs: 50 })
    expect([...results.keys()]).toEqual([0, 1, 2, 3])
    expect([results.get(0), results.get(3)]).toEqual([
      { ok: true, reply: 0 },
      { ok: true, reply: 30 },
    ])
    expect(results.get(1)).toMatchObject({ ok: false, error: { reason: "status", destnode: 1 } })
    expect(results.get(2)).toMatchObject({ ok: false, error: { reason: "timeout", destnode: 2 } })
  })

  test("close() sends first what is queued", async () => {
    const client = await connected()
    client.sendControl("SHUTDOWN", 4)
    client.sendMessage(0, word64(1, 2), new Uint8Array(3_000_000))
    await client.close()
    await until("everything", () => daemon.others.length === 1)
    expect(daemon.requests.at(-1)).toMatchObject({ opcode: 36, flags: 1 })
    expect(client.isOpen).toBe(false)
  })
})

describe("messages", () => {
  const srvid = word64(0xce010000, 5)

  test("come once the daemon has confirmed, until cancelled", async () => {
    const client = await connected()
    const seen: number[] = []
    const registration = await client.onMessage(srvid, (data) => seen.push(data[0]!))
    expect(daemon.requests.at(-1)).toMatchObject({ opcode: 23, srvid })
    daemon.message(srvid, new Uint8Array([1]))
    await until("message", () => seen.length === 1)
    registration.cancel()
    await until("deregistration", () => daemon.requests.at(-1)?.opcode === 24)
    daemon.message(srvid, new Uint8Array([2]))
    await client.control("PROCESS_EXISTS", 0, 1)
    expect(seen).toEqual([1])
  })

  test("a refused registration rejects and is forgotten", async () => {
    const client = await connected(() => ({ status: -1 }))
    expect(await rejection(client.onMessage(srvid, () => {}))).toMatchObject({ control: "REGISTER_SRVID", status: -1 })
    expect(await rejection(client.onTunnel(srvid, () => {}))).toMatchObject({ control: "TUNNEL_REGISTER" })
  })

  test("one can be waited for, with a taste and a limit; the registration goes with the wait", async () => {
    const client = await connected()
    const third = client.waitForMessage(srvid, { timeoutMs: 1000, accept: (data) => data[0] === 3 })
    await until("registration", () => daemon.requests.at(-1)?.opcode === 23)
    for (const value of [1, 2, 3, 4]) daemon.message(srvid, new Uint8Array([value]))
    expect(await third).toEqual(new Uint8Array([3]))
    await until("deregistration", () => daemon.requests.at(-1)?.opcode === 24)
    expect(await rejection(client.waitForMessage(srvid, { timeoutMs: 20 }))).toMatchObject({ reason: "timeout" })
    const giveUp = new AbortController()
    const aborted = rejection(client.waitForMessage(srvid, { signal: giveUp.signal }))
    giveUp.abort(new Error("enough"))
    expect(await aborted).toEqual(new Error("enough"))
  })
})

describe("waiting for the cluster", () => {
  test("a generation is valid when it is neither 1 nor the previous one", async () => {
    const generations = [1, 1, 50, 50, 60]
    const client = await connected(() => ({
      data: encode(vnnMap, { generation: generations.shift() ?? 60, map: [4] }),
    }))
    expect(await client.waitForGeneration({ timeoutMs: 5000, previous: 50 })).toEqual({ generation: 60, map: [4] })
    expect(daemon.requests.filter(({ opcode: asked }) => asked === opcode("GETVNNMAP")).length).toBe(5)
    expect(daemon.requests.at(-1)!.destnode).toBe(4)
  })

  test("a recovery is over when the mode is 0; the wait has a limit and a signal", async () => {
    let mode = 1
    const client = await connected(() => ({ status: mode }))
    const error = await rejection(client.waitForRecovery({ timeoutMs: 150 }))
    expect(error).toMatchObject({ name: "ControlError", reason: "timeout" })
    const giveUp = new AbortController()
    const aborted = rejection(client.waitForRecovery({ signal: giveUp.signal }))
    giveUp.abort(new Error("enough"))
    expect(await aborted).toEqual(new Error("enough"))
    const waiting = client.waitForRecovery({ timeoutMs: 5000 })
    mode = 0
    await waiting
  })
})

test("reconnect() waits for a daemon and registers again what was listened to", async () => {
  const client = await connected()
  const seen: number[] = []
  await client.onMessage(word64(3, 3), (data) => seen.push(data[0]!))
  const closed = client.waitForClose()
  daemon.stop()
  await closed
  const reconnecting = client.reconnect({ timeoutMs: 5000 })
  expect(await rejection(client.control("GET_DEBUG", 0))).toMatchObject({ reason: "closed" })
  daemon.requests.length = 0
  daemon.listen()
  await reconnecting
  expect(client.pnn).toBe(4)
  expect(daemon.requests.map(({ opcode: asked }) => asked).sort()).toEqual([
    opcode("REGISTER_SRVID"),
    opcode("GET_PNN"),
  ])
  daemon.message(word64(3, 3), new Uint8Array([7]))
  await until("message", () => seen.length === 1)
  daemon.stop()
  await client.waitForClose({ timeoutMs: 1000 })
  expect(await rejection(client.reconnect({ timeoutMs: 60 }))).toMatchObject({ code: "ENOENT" })
})
