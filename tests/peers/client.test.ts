// Our client against one real stock ctdbd: what it says to hello, controls, messages, tunnels, bad input, and when it goes
// away and comes back. The expected values are the stock tool's own words or the reference's observations.

import { afterAll, beforeAll, describe, expect, test } from "bun:test"
import { mkdtempSync, rmSync } from "node:fs"
import { Client, type ControlError } from "../../lib/client/client.ts"
import { connectUnix } from "../../lib/net/unix.ts"
import { BROADCAST_ALL, BROADCAST_CONNECTED, CURRENT_NODE, Srvid } from "../../lib/protocol/constants.ts"
import { controls } from "../../lib/protocol/controls.ts"
import { encodePacket, Operation } from "../../lib/protocol/packet.ts"
import { toHex, word64, ZERO64 } from "../../lib/protocol/word64.ts"
import { markOf, until } from "../net/streams.ts"
import { type StockNode, startStockNode, stockInstalled, waitUntilHealthy } from "./stock.ts"

const NONE = new Uint8Array(0)
let base: string
let node: StockNode
let client: Client

beforeAll(async () => {
  if (!stockInstalled) return
  base = mkdtempSync("/tmp/stock-client-")
  node = await startStockNode({ base, address: "127.31.0.1", nodes: ["127.31.0.1"], tunables: ["MonitorInterval=5"] })
  await waitUntilHealthy(node)
  client = await Client.connect({ socket: node.socket, timeoutMs: 5000 })
}, 300_000)

afterAll(async () => {
  await client?.close()
  await node?.stop()
  if (base !== undefined) rmSync(base, { recursive: true, force: true })
}, 300_000)

async function rejection(promise: Promise<unknown>): Promise<ControlError> {
  try {
    await promise
  } catch (error) {
    return error as ControlError
  }
  throw new Error("not rejected")
}

describe.skipIf(!stockInstalled)("a stock daemon", () => {
  test("tells what the stock tool prints", async () => {
    const status = (await node.tool("status")).stdout
    expect(client.pnn).toBe(0)
    const map = await client.control("GETVNNMAP", client.pnn)
    expect(status).toContain(`Generation:${map.generation}\n`)
    const nodes = await client.control("GET_NODEMAP", client.pnn)
    expect(nodes).toMatchObject([{ pnn: 0, flags: 0, addr: { family: "inet", addr: "127.31.0.1", port: 4379 } }])
    expect(await client.controlStatus("GET_PID", client.pnn)).toBe(node.pid)
    expect(await client.control("GET_RUNSTATE", CURRENT_NODE)).toBe(5)
    // PING: the number of connected clients; ours and the recovery daemon's.
    expect(await client.controlStatus("PING", client.pnn)).toBe(2)
    await client.waitForRecovery({ timeoutMs: 5000 })
    expect((await client.waitForGeneration({ timeoutMs: 5000 })).generation).toBe(map.generation)
  })

  test("answers every control that only asks, in a form that decodes", async () => {
    const asking = (Object.keys(controls) as (keyof typeof controls)[]).filter(
      (name) => /^(GET_|LIST_|STATISTICS$|UPTIME|DUMP)/.test(name) && controls[name].request.name === "none",
    )
    expect(asking.length).toBeGreaterThan(15)
    for (const name of asking) {
      const { obsolete, statusIsValue } = controls[name]
      if (statusIsValue) expect(await client.controlStatus(name, client.pnn)).toBeGreaterThanOrEqual(0)
      else if (obsolete) expect((await rejection(client.control(name, client.pnn))).status).toBe(-1)
      else await client.control(name, client.pnn, undefined, { timeoutMs: 5000 })
    }
  })

  test("refuses with the statuses and words of the reference", async () => {
    const away = await rejection(client.control("GET_DEBUG", 7))
    expect([away.reason, away.status, away.text]).toEqual(["status", -1, "ctdb_control to disconnected node"])
    expect((await rejection(client.control("PROCESS_EXISTS", client.pnn, 1))).status).toBe(-1)
    expect(await client.controlStatus("PROCESS_EXISTS", client.pnn, process.pid)).toBe(0)
    expect(await client.controlStatus("DEREGISTER_SRVID", client.pnn, undefined, { srvid: word64(9, 9) })).toBe(2)
    expect(await client.controlStatus("GET_TUNABLE", client.pnn, "NoSuchTunable")).toBe(-22)
    expect(await client.control("GET_TUNABLE", client.pnn, "monitorinterval")).toBe(5)
  })

  test("answers many at once, to several nodes, each with its own", async () => {
    const results = await client.controlAll("GET_DEBUG", [0, 5, CURRENT_NODE], undefined, { timeoutMs: 5000 })
    expect(results.get(0)).toMatchObject({ ok: true })
    expect(results.get(CURRENT_NODE)).toEqual(results.get(0)!)
    expect(results.get(5)).toMatchObject({ ok: false, error: { status: -1 } })
    const many = Array.from({ length: 2000 }, (_, i) =>
      client.control("ECHO_DATA", client.pnn, { timeout: 0, buf: new Uint8Array([i & 0xff, i >> 8]) }),
    )
    const echoes = await Promise.all(many)
    expect(echoes.every(({ buf }, i) => buf[0] === (i & 0xff) && buf[1] === i >> 8)).toBe(true)
  })

  test("carries a megabyte there and back", async () => {
    const large = new Uint8Array(1_000_000).map((_, i) => (i * 31) >> 3)
    const { buf } = await client.control("ECHO_DATA", client.pnn, { timeout: 0, buf: large })
    expect(Buffer.compare(buf, large)).toBe(0)
  })

  test("never answers a call to an unknown database: the time limit does", async () => {
    const call = { dbId: 0x12345678, key: new Uint8Array([1]), callid: 0xff000002, timeoutMs: 300 }
    expect((await rejection(client.call(call))).reason).toBe("timeout")
    expect(await client.controlStatus("GET_PNN", CURRENT_NODE)).toBe(0)
  })
})

describe.skipIf(!stockInstalled)("messages through a stock daemon", () => {
  test("come back to the sender by number, current node and broadcast, once each however many handlers", async () => {
    const srvid = word64(0xae000000, 77)
    const first: number[] = []
    const second: number[] = []
    const one = await client.onMessage(srvid, (data) => first.push(data[0]!))
    const two = await client.onMessage(srvid, (data) => second.push(data[0]!))
    const destinations = [client.pnn, CURRENT_NODE, BROADCAST_ALL, BROADCAST_CONNECTED]
    for (const [i, destnode] of destinations.entries()) client.sendMessage(destnode, srvid, new Uint8Array([i]))
    await until("messages", () => first.length >= 4 && second.length >= 4)
    one.cancel()
    client.sendMessage(client.pnn, srvid, new Uint8Array([4]))
    await until("the fifth", () => second.length >= 5)
    expect([first, second]).toEqual([
      [0, 1, 2, 3],
      [0, 1, 2, 3, 4],
    ])
    two.cancel()
    // The registration is gone: another one of this client is not there to be removed.
    expect(await client.controlStatus("DEREGISTER_SRVID", client.pnn, undefined, { srvid })).toBe(2)
  })

  test("the leader speaks every second", async () => {
    expect(await client.waitForMessage(Srvid.LEADER, { timeoutMs: 5000 })).toEqual(new Uint8Array(4))
  })

  test("a handler for all hears what another client sends", async () => {
    const other = await Client.connect({ socket: node.socket, timeoutMs: 5000 })
    const heard: string[] = []
    const all = await client.onMessage(Srvid.ALL, (_data, srvid) => heard.push(toHex(srvid)))
    other.sendMessage(0, word64(0xae000000, 0xffffffff), NONE)
    await other.close()
    await until("message", () => heard.includes("ae000000ffffffff"))
    all.cancel()
  })

  test("a tunnel carries one way, without origin, and belongs to one client", async () => {
    const id = word64(0xffffffff, 0xf0f0f0f0)
    const seen: unknown[] = []
    const tunnel = await client.onTunnel(id, ({ srcnode, reqid, flags, data }) =>
      seen.push([srcnode, reqid, flags, data[0]]),
    )
    const other = await Client.connect({ socket: node.socket, timeoutMs: 5000 })
    expect((await rejection(other.onTunnel(id, () => {}))).status).toBe(-1)
    client.sendTunnel(0, id, new Uint8Array([42]))
    await until("tunnel packet", () => seen.length === 1)
    expect(seen).toEqual([[0, 0, 0x11, 42]])
    tunnel.cancel()
    await other.close()
  })
})

describe.skipIf(!stockInstalled)("bad input to a stock daemon", () => {
  test("wrong magic and version are dropped, the connection lives; a length of 0 ends it", async () => {
    const replies: number[] = []
    const ends: string[] = []
    const connection = connectUnix(node.socket, {
      onPacket: (packet) => replies.push(markOf(packet)),
      onBadHeader: () => "close",
      onClose: (reason) => ends.push(reason),
    })
    const request = (reqid: number): Uint8Array =>
      encodePacket(
        {
          operation: Operation.REQ_CONTROL,
          generation: 0,
          destnode: CURRENT_NODE,
          srcnode: 0,
          reqid,
          opcode: controls.GET_PNN.opcode,
          srvid: ZERO64,
          clientId: 0,
          flags: 0,
          data: NONE,
        },
        "client",
      )
    const magic = request(1)
    magic[4] = 0
    const version = request(2)
    version[8] = 9
    for (const packet of [magic, version, request(0), request(0xffffffff)]) connection.send(packet)
    await until("replies", () => replies.length === 2)
    expect(replies).toEqual([0, 0xffffffff])
    expect(ends).toEqual([])
    connection.send(new Uint8Array(4))
    await until("end", () => ends.length === 1)
  })
})

describe.skipIf(!stockInstalled)("a stock daemon that goes away", () => {
  test("fails what waits; a new one is found again, with the messages", async () => {
    const own = await Client.connect({ socket: node.socket, timeoutMs: 5000 })
    const leaders: number[] = []
    await own.onMessage(Srvid.LEADER, (data) => leaders.push(data.length))
    const waiting = rejection(own.call({ dbId: 1, key: new Uint8Array([1]), callid: 0xff000002 }))
    const closed = own.waitForClose({ timeoutMs: 10_000 })
    own.sendControl("SHUTDOWN", CURRENT_NODE)
    expect(await closed).toMatch(/end of file|connection closed|ECONNRESET/)
    expect((await waiting).reason).toBe("closed")
    expect(await node.exited).toBe(0)
    const reconnecting = own.reconnect({ timeoutMs: 20_000 })
    node = await startStockNode({ base, address: "127.31.0.1", nodes: ["127.31.0.1"] })
    await reconnecting
    const before = leaders.length
    await until("a leader's word", () => leaders.length > before)
    await own.waitForRecovery({ timeoutMs: 10_000 })
    await own.close()
  }, 300_000)
})
