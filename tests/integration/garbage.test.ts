// Nonsense and floods against a cluster of three real nodes, on the client socket and on the port between nodes: what is bad
// is dropped with a line in the log, and nothing else notices. A fourth address of the nodes list is this test's: it speaks
// to node 0 as a peer would.

import { afterAll, afterEach, beforeAll, expect, test } from "bun:test"
import { readFileSync } from "node:fs"
import { connect, createServer, type Socket } from "node:net"
import { Client } from "../../lib/client/client.ts"
import { CURRENT_NODE } from "../../lib/protocol/constants.ts"
import { controls } from "../../lib/protocol/controls.ts"
import { encodePacket, Operation } from "../../lib/protocol/packet.ts"
import { ZERO64 } from "../../lib/protocol/word64.ts"
import { GONE, MixedCluster } from "../peers/nodes.ts"
import { waitUntil } from "../peers/stock.ts"

const PREFIX = "127.21.50."
const PEER = `${PREFIX}4`
const STRANGER = "127.21.51.9"
const PORT = 4379
const PEER_PNN = 3
const UNKNOWN_OPCODE = 100_000
const FLOOD = 3000
/** Connections that are being opened at the same time in a flood. */
const ABREAST = 16
/** A client that has nothing to do with all this gets its answers within this time. */
const PING_MS = 1000
/** What a flood may leave behind in a daemon (KB). */
const GROWTH_KB = 96 * 1024
/** A complaint is repeated with a count after ten seconds, so a flood may be worth two or three lines, never one a packet. */
const LINES_MAX = 3

const expected = { observers: [0, 1, 2], flags: [0, 0, 0, GONE] }
const cluster = new MixedCluster(PREFIX, ["ours", "ours", "ours", "ours"], { lock: true })
let generation = 0
let leader = 0
/** Leader broadcasts that each node's clients have seen when the cluster had settled. */
let heard: number[] = []
let bystander: Client
let pinging = true
let pings = 0
let slowestMs = 0

async function ping(): Promise<void> {
  while (pinging) {
    const sentMs = performance.now()
    await bystander.controlStatus("PING", CURRENT_NODE, undefined, { timeoutMs: 10_000 })
    slowestMs = Math.max(slowestMs, performance.now() - sentMs)
    pings++
    await Bun.sleep(5)
  }
}
let pingsEnd: Promise<void> = Promise.resolve()

beforeAll(async () => {
  await Promise.all(expected.observers.map((pnn) => cluster.start(pnn)))
  await cluster.settled(expected)
  generation = (await cluster.view(0))?.generation ?? 0
  leader = cluster.leader(0)
  heard = expected.observers.map((pnn) => cluster.leaders(pnn).length)
  bystander = await Client.connect({ socket: cluster.node(0).socket })
  pingsEnd = ping()
}, 300_000)

afterAll(async () => {
  await waitUntil("one more broadcast of the leader", () => cluster.leaders(0).length > heard[0]! + 1)
  expect(cluster.leader(0)).toBe(leader)
  pinging = false
  await pingsEnd
  await bystander.close()
  await cluster.end()
}, 300_000)

/** Nobody else was disturbed: no election, no recovery, no pause for other clients. */
afterEach(async () => {
  expect(await cluster.unsettled(expected)).toBeUndefined()
  expect((await cluster.view(0))?.generation).toBe(generation)
  for (const pnn of expected.observers) {
    const broadcasts = cluster.leaders(pnn).slice(heard[pnn])
    expect(broadcasts.filter((message) => message.leader !== leader)).toEqual([])
  }
  await waitUntil("answer to a bystander", () => pings > 0)
  expect(slowestMs).toBeLessThan(PING_MS)
  pings = 0
  slowestMs = 0
})

// Bytes.

function header(fields: { length: number; magic?: number; version?: number; operation?: number }, size = 32): Buffer {
  const bytes = Buffer.alloc(Math.max(size, 32))
  bytes.writeUInt32LE(fields.length, 0)
  bytes.writeUInt32LE(fields.magic ?? 0x43544442, 4)
  bytes.writeUInt32LE(fields.version ?? 1, 8)
  bytes.writeUInt32LE(generation, 12)
  bytes.writeUInt32LE(fields.operation ?? Operation.REQ_MESSAGE, 16)
  bytes.writeUInt32LE(0, 20)
  bytes.writeUInt32LE(PEER_PNN, 24)
  return bytes.subarray(0, size)
}

/** Numbers from a seed (xorshift32), so that a failure comes again. */
function random(seed: number): (below: number) => number {
  let state = seed
  return (below) => {
    state ^= state << 13
    state ^= state >>> 17
    state ^= state << 5
    return (state >>> 0) % below
  }
}

function noise(next: (below: number) => number, size: number): Buffer {
  return Buffer.from(Uint8Array.from({ length: size }, () => next(256)))
}

/** A packet of that operation whose inside is noise. */
function nonsense(next: (below: number) => number, operation: number): Buffer {
  const length = 32 + 8 * next(12)
  const bytes = Buffer.concat([header({ length, operation }), noise(next, length - 32)])
  // The request ids of this node begin high: replies are to meet nobody.
  bytes.writeUInt32LE(next(1000), 28)
  // A control of noise would do what it says: only numbers that are none. The fuzz tests have the rest.
  if (operation === Operation.REQ_CONTROL && length >= 36) bytes.writeUInt32LE(UNKNOWN_OPCODE + next(1000), 32)
  return bytes
}

const getPnn = (reqid: number) =>
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
      data: new Uint8Array(0),
    },
    "client",
  )

/** REQ_MESSAGE or REQ_CONTROL whose data is said to be longer than the packet. */
function tooLongInside(operation: number): Buffer {
  const bytes = header({ length: 64, operation }, 64)
  bytes.writeUInt32LE(0x7fffffff, operation === Operation.REQ_MESSAGE ? 40 : 56)
  return bytes
}

// Connections.

/** Raw bytes to node 0, over its client socket or from an address to its port. */
class Wire {
  private received = Buffer.alloc(0)
  closed = false
  private onChange: () => void = () => {}
  private constructor(readonly socket: Socket) {
    socket.on("data", (chunk: Buffer) => {
      this.received = Buffer.concat([this.received, chunk])
      this.onChange()
    })
    socket.on("close", () => {
      this.closed = true
      this.onChange()
    })
    socket.on("error", () => {})
  }

  private until(what: string, condition: () => boolean): Promise<void> {
    return new Promise((resolve, reject) => {
      const late = setTimeout(() => reject(new Error(`no ${what} in 10 s`)), 10_000)
      this.onChange = () => {
        if (!condition()) return
        clearTimeout(late)
        resolve()
      }
      this.onChange()
    })
  }

  static async open(from: "client" | string): Promise<Wire> {
    for (;;) {
      try {
        return await Wire.dial(from)
      } catch (error) {
        // The kernel's queue of clients that wait to be accepted is full.
        if (from !== "client" || (error as NodeJS.ErrnoException).code !== "ECONNREFUSED") throw error
        await Bun.sleep(1)
      }
    }
  }

  private static dial(from: "client" | string): Promise<Wire> {
    const options =
      from === "client"
        ? { path: cluster.node(0).socket }
        : { host: `${PREFIX}1`, port: PORT, localAddress: from, family: 4 }
    return new Promise((resolve, reject) => {
      const socket = connect(options)
      const wire = new Wire(socket)
      socket.once("connect", () => resolve(wire))
      socket.once("error", reject)
    })
  }

  send(...packets: Uint8Array[]): this {
    this.socket.write(Buffer.concat(packets))
    return this
  }

  /** What came before is dealt with: the answer to one more request is here. */
  async answered(reqid: number): Promise<void> {
    this.send(getPnn(reqid))
    await this.until(`answer to request ${reqid}`, () => this.repliesTo(reqid) > 0)
  }

  private repliesTo(reqid: number): number {
    let count = 0
    for (let at = 0; at + 32 <= this.received.length; ) {
      const length = this.received.readUInt32LE(at)
      if (this.received.readUInt32LE(at + 28) === reqid) count++
      at += length
    }
    return count
  }

  async ends(): Promise<void> {
    await this.until("end of the connection", () => this.closed)
  }

  async close(): Promise<void> {
    this.socket.destroy()
    await this.ends()
  }
}

async function flood(count: number, one: (index: number) => Promise<void>): Promise<void> {
  let next = 0
  const worker = async () => {
    while (next < count) await one(next++)
  }
  await Promise.all(Array.from({ length: ABREAST }, worker))
}

/** A line that counts further complaints of one kind, some time after the first (daemon/complaints.ts). */
const COUNTED = / \(the last of \d+ more like it\)$/
const beginning = (line: string): string => line.slice(0, 20)

/** What `run` made node 0 log: without takeover runs, which come by themselves, and the counts of what earlier tests did. */
async function logged(run: () => Promise<void>): Promise<string[]> {
  const before = cluster.log(0).length
  await run()
  const lines = cluster
    .log(0)
    .slice(before)
    .split("\n")
    .filter((line) => line !== "" && !line.includes("takeover run"))
  const own = new Set(lines.filter((line) => !COUNTED.test(line)).map(beginning))
  return lines.filter((line) => !COUNTED.test(line) || own.has(beginning(line)))
}

function residentKb(): number {
  return Number(/^VmRSS:\s+(\d+)/m.exec(readFileSync(`/proc/${cluster.node(0).pid}/status`, "utf8"))?.[1])
}

// The client socket.

const clientNonsense: readonly [string, Buffer][] = [
  ["a length of 8", header({ length: 8 }, 8)],
  ["a length of 31", header({ length: 31 }, 31)],
  ["wrong magic", header({ length: 32, magic: 0x12345678 })],
  ["wrong version", header({ length: 32, version: 2 })],
  ["a message longer inside than outside", tooLongInside(Operation.REQ_MESSAGE)],
  ["a control longer inside than outside", tooLongInside(Operation.REQ_CONTROL)],
  ["a header alone", header({ length: 32, operation: Operation.REQ_CALL })],
]

test("bad packets of a client are dropped, and its next request is answered", async () => {
  const lines = await logged(async () => {
    const wire = await Wire.open("client")
    let reqid = 1000
    for (const [, bytes] of clientNonsense) await wire.send(bytes).answered(reqid++)
    await wire.close()
  })
  expect(lines.length).toBeGreaterThan(0)
  expect(lines.length).toBeLessThanOrEqual(LINES_MAX)
  expect(lines[0]).toContain(
    `Bad packet from client with pid ${process.pid}, dropped: length 8 is shorter than a header`,
  )
})

test("a length of 0 ends the client's connection", async () => {
  const wire = await Wire.open("client")
  await wire.send(header({ length: 0 })).ends()
})

test("a client sends every operation with noise inside", async () => {
  const next = random(1)
  const lines = await logged(async () => {
    const wire = await Wire.open("client")
    for (let operation = 0; operation < 256; operation++) {
      for (let i = 0; i < 20; i++) wire.send(nonsense(next, operation))
    }
    await wire.answered(2000)
    await wire.close()
  })
  expect(lines.length).toBeLessThanOrEqual(LINES_MAX)
}, 300_000)

test("absurd lengths and half packets of thousands of clients cost no memory", async () => {
  const before = residentKb()
  const lines = await logged(async () => {
    const wires: Wire[] = []
    await flood(FLOOD, async (index) => {
      const wire = await Wire.open("client")
      wires.push(wire)
      // Not more than may be (200 MB), more than may be, and the beginning of a header.
      const length = index % 3 === 0 ? 200 << 20 : 0xfffffff8
      wire.send(
        index % 3 === 2
          ? header({ length: 64 }).subarray(0, 20)
          : Buffer.concat([header({ length }), noise(random(index + 1), 100)]),
      )
    })
    await waitUntil("all of them", async () => (await bystander.controlStatus("PING", CURRENT_NODE)) >= FLOOD)
    expect(residentKb() - before).toBeLessThan(GROWTH_KB)
    await Promise.all(wires.map((wire) => wire.close()))
    await waitUntil("the end of all of them", async () => (await bystander.controlStatus("PING", CURRENT_NODE)) < 20)
  })
  expect(lines.length).toBeLessThanOrEqual(LINES_MAX)
  expect(residentKb() - before).toBeLessThan(GROWTH_KB)
}, 300_000)

test("thousands of clients come, ask and go", async () => {
  const before = residentKb()
  const lines = await logged(async () => {
    await flood(FLOOD, async (index) => {
      const wire = await Wire.open("client")
      await wire.answered(3000 + index)
      await wire.close()
    })
    await waitUntil("the end of all of them", async () => (await bystander.controlStatus("PING", CURRENT_NODE)) < 20)
  })
  // That the loop stood still may be the machine's doing.
  expect(lines.filter((line) => !line.includes("The event loop stood still"))).toEqual([])
  expect(residentKb() - before).toBeLessThan(GROWTH_KB)
}, 300_000)

// The port between nodes.

const peerNonsense: readonly [string, Buffer][] = [
  ["length 0", header({ length: 0 })],
  ["a length of 31", header({ length: 31 })],
  ["a length of 36", header({ length: 36 }, 36)],
  ["wrong magic", header({ length: 32, magic: 1 })],
  ["wrong version", header({ length: 32, version: 2 })],
  ["an absurd length", header({ length: 0xfffffff8 })],
  ["a request for a web page", Buffer.from("GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: */*\r\n\r\n")],
  ["noise", noise(random(7), 4096)],
]

test("bad packets of a peer end its connection, with a line", async () => {
  const lines = await logged(async () => {
    for (const [, bytes] of peerNonsense) {
      const wire = await Wire.open(PEER)
      await wire.send(bytes).ends()
    }
  })
  expect(lines[0]).toContain("Tearing down connection to dead node :3 (bad packet: length 0 is shorter than a header)")
  expect(lines.length).toBeLessThanOrEqual(LINES_MAX)
})

/** Waits until node 0 has handled what the peer sent: a message to a client of node 0 comes behind it. */
async function handled(wire: Wire, mark: number): Promise<void> {
  const srvid = { hi: 0x0a0b0c0d, lo: mark }
  const arrival = bystander.waitForMessage(srvid, { timeoutMs: 10_000 })
  // The registration is on its way before the message that it is for: another connection brings that.
  await bystander.controlStatus("PING", CURRENT_NODE)
  const packet = { operation: Operation.REQ_MESSAGE, generation, destnode: 0, srcnode: PEER_PNN, reqid: 0 } as const
  wire.send(encodePacket({ ...packet, srvid, data: new Uint8Array(4) }, "daemon"))
  await arrival
}

test("a peer sends every operation with noise inside, in whole packets and in pieces", async () => {
  const next = random(2)
  const lines = await logged(async () => {
    const wire = await Wire.open(PEER)
    for (let operation = 0; operation < 256; operation++) {
      for (let i = 0; i < 20; i++) {
        const packet = nonsense(next, operation)
        const cut = next(packet.length)
        wire.socket.write(packet.subarray(0, cut))
        wire.socket.write(packet.subarray(cut))
      }
    }
    wire.send(tooLongInside(Operation.REQ_MESSAGE), tooLongInside(Operation.REQ_CONTROL))
    await handled(wire, 1)
    expect(wire.closed).toBe(false)
    await wire.close()
  })
  // Of bad records, unknown operations, bad packets and keepalives there are many; each is one kind.
  expect(lines.length).toBeLessThanOrEqual(4 * LINES_MAX)
}, 300_000)

test("a peer that claims to be another node is not believed", async () => {
  const lines = await logged(async () => {
    const wire = await Wire.open(PEER)
    for (let i = 0; i < 1000; i++) {
      const forged = header({ length: 32, operation: Operation.REQ_KEEPALIVE })
      forged.writeUInt32LE(1, 24)
      wire.send(forged)
    }
    await handled(wire, 2)
    await wire.close()
  })
  expect(lines.filter((line) => line.includes("claims to come from node 1")).length).toBe(1)
  expect(lines.length).toBeLessThanOrEqual(LINES_MAX)
})

test("data on the connection that a node opened ends it, and brings no storm of new ones", async () => {
  const accepted: number[] = []
  const server = createServer((socket) => {
    accepted.push(performance.now())
    socket.on("error", () => {})
    socket.write(noise(random(3), 64))
  })
  const lines = await logged(async () => {
    await new Promise<void>((resolve) => server.listen(PORT, PEER, resolve))
    await waitUntil("several rounds of connections", () => accepted.length >= 9, 60_000)
    await new Promise<void>((resolve) => server.close(() => resolve()))
  })
  // Three nodes, each once a second.
  expect(accepted[8]! - accepted[0]!).toBeGreaterThan(1500)
  expect(lines.length).toBeLessThanOrEqual(LINES_MAX)
}, 300_000)

test("thousands of connections from an address that is not in the list", async () => {
  const before = residentKb()
  const lines = await logged(async () => {
    await flood(FLOOD, async () => {
      await (await Wire.open(STRANGER)).ends()
    })
  })
  expect(lines[0]).toContain(`Refused connection from unknown node ${STRANGER}`)
  expect(lines.length).toBeLessThanOrEqual(LINES_MAX)
  expect(residentKb() - before).toBeLessThan(GROWTH_KB)
}, 300_000)

test("thousands of second connections of a peer", async () => {
  const first = await Wire.open(PEER)
  const lines = await logged(async () => {
    await flood(FLOOD, async () => {
      await (await Wire.open(PEER)).ends()
    })
    await handled(first, 3)
  })
  expect(first.closed).toBe(false)
  expect(lines[0]).toContain(`Incoming queue active, rejecting connection from ${PEER}`)
  expect(lines.length).toBeLessThanOrEqual(LINES_MAX)
  await first.close()
}, 300_000)
