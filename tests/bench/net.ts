// How fast packets go through lib/net and lib/client, without a daemon's logic: an echo over one Unix socket, and the message
// ring of three nodes through bare relays, beside the same ring through stock daemons. Not part of the tests' verdict.
//
//   bun tests/bench/net.ts echo [SECONDS]        round trips a second, one and 64 at a time
//   bun tests/bench/net.ts ring [SECONDS [TOKENS]]   messages a second, relays and stock ctdbd; TOKENS in each direction
//   bun tests/bench/net.ts control [SECONDS]     GET_PNN-like round trips against stock ctdbd and an answering relay
//   bun tests/bench/net.ts idle                  memory of 1,000 idle clients

import { mkdtempSync, rmSync } from "node:fs"
import { join } from "node:path"
import { Client } from "../../lib/client/client.ts"
import type { SocketConnection } from "../../lib/net/connection.ts"
import type { PacketHandler } from "../../lib/net/ports.ts"
import { connectTcp, listenTcp } from "../../lib/net/tcp.ts"
import { connectUnix, listenUnix } from "../../lib/net/unix.ts"
import { CURRENT_NODE } from "../../lib/protocol/constants.ts"
import { encodePacket, Operation } from "../../lib/protocol/packet.ts"
import { ZERO64 } from "../../lib/protocol/word64.ts"
import { type StockNode, startStockNode, stockInstalled, waitUntil } from "../peers/stock.ts"

const [mode = "", ...words] = process.argv.slice(2)
const seconds = Number(words[0] ?? 3)
const tokens = Number(words[1] ?? 1)
const NODES = 3
const address = (pnn: number): string => `127.31.50.${pnn + 1}`
const u32 = (bytes: Uint8Array, at: number): number =>
  (bytes[at]! | (bytes[at + 1]! << 8) | (bytes[at + 2]! << 16) | (bytes[at + 3]! << 24)) >>> 0

function putU32(bytes: Uint8Array, at: number, value: number): void {
  bytes[at] = value
  bytes[at + 1] = value >> 8
  bytes[at + 2] = value >> 16
  bytes[at + 3] = value >> 24
}

const quiet = { onBadHeader: () => "close" as const, onClose() {} }

// One process of each kind.

/** Sends every packet back. */
function echo(path: string): void {
  listenUnix(path, {
    mode: 0o700,
    backlog: 1024,
    onAccept: (connection) => ({ ...quiet, onPacket: (packet) => connection.send(packet.slice()) }),
  })
  console.log("ready")
}

/** A node without logic: answers every control with its number, passes messages by destnode, delivers to all clients. */
function relay(pnn: number, base: string): void {
  const clients = new Set<SocketConnection>()
  const links: (SocketConnection | undefined)[] = []
  const deliver = (packet: Uint8Array): void => {
    putU32(packet, 24, pnn)
    putU32(packet, 20, 0)
    for (const client of clients) client.send(packet)
  }
  listenUnix(join(base, `${pnn}.socket`), {
    mode: 0o700,
    backlog: 1024,
    onAccept(connection): PacketHandler {
      return {
        ...quiet,
        onPacket(packet) {
          if (u32(packet, 16) === Operation.REQ_CONTROL) {
            // REGISTER_SRVID makes it one of those that messages go to.
            if (u32(packet, 32) === 23) clients.add(connection)
            connection.send(
              encodePacket(
                {
                  operation: Operation.REPLY_CONTROL,
                  generation: 1,
                  destnode: 0,
                  srcnode: pnn,
                  reqid: u32(packet, 28),
                  status: u32(packet, 32) === 35 ? pnn : 0,
                  data: new Uint8Array(0),
                  error: "",
                },
                "daemon",
              ),
            )
            return
          }
          const destnode = u32(packet, 20)
          const copy = packet.slice()
          if (destnode === pnn) deliver(copy)
          else links[destnode]?.send(copy)
        },
        onClose: () => void clients.delete(connection),
      }
    },
  })
  listenTcp({
    address: address(pnn),
    port: 4379,
    onAccept: () => ({ ...quiet, onPacket: (packet) => deliver(packet.slice()) }),
  })
  for (let other = 0; other < NODES; other++) if (other !== pnn) link(other)
  function link(other: number): void {
    connectTcp({
      localAddress: address(pnn),
      remoteAddress: address(other),
      port: 4379,
      timeoutMs: 1000,
      connection: { writeOnly: true },
      onConnected(connection) {
        links[other] = connection
        if (links.filter((known) => known !== undefined).length === NODES - 1) console.log("ready")
        return { ...quiet, onPacket() {} }
      },
      onFailed: () => setTimeout(() => link(other), 20),
    })
  }
}

/** One member of the message ring (load-generators 9), measured from its first message on. Prints messages a second. */
async function ringMember(socket: string, seconds: number, tokens: number, base: string): Promise<void> {
  const client = await Client.connect({ socket, timeoutMs: 5000 })
  const { pnn } = client
  let count = 0
  let first = 0
  await client.onMessage(ZERO64, (data) => {
    count++
    if (first === 0) first = performance.now()
    const increment = u32(data, 0) | 0
    client.sendMessage((pnn + NODES + increment) % NODES, ZERO64, data.slice())
  })
  await Bun.write(join(base, `member.${pnn}`), "")
  for (let other = 0; other < NODES; other++) {
    await waitUntil("ring", () => Bun.file(join(base, `member.${other}`)).exists())
  }
  if (pnn === 0) {
    for (let i = 0; i < tokens; i++) {
      client.sendMessage(1, ZERO64, new Uint8Array([1, 0, 0, 0]))
      client.sendMessage(NODES - 1, ZERO64, new Uint8Array([255, 255, 255, 255]))
    }
  }
  await Bun.sleep(seconds * 1000)
  console.log(count / ((performance.now() - first) / 1000))
  process.exit(0)
}

// The measurements.

const children: ReturnType<typeof Bun.spawn>[] = []
function run(...args: string[]) {
  const child = Bun.spawn(["bun", import.meta.path, ...args], { stdout: "pipe", stderr: "inherit" })
  children.push(child)
  return child
}

async function firstLine(child: ReturnType<typeof run>): Promise<string> {
  const { value } = await child.stdout.getReader().read()
  return new TextDecoder().decode(value).trim()
}

async function measureEcho(base: string, seconds: number): Promise<void> {
  const path = join(base, "echo.socket")
  await firstLine(run("_echo", path))
  const packet = new Uint8Array(64)
  packet.set(
    encodePacket(
      {
        operation: Operation.REQ_MESSAGE,
        generation: 0,
        destnode: 0,
        srcnode: 0,
        reqid: 0,
        srvid: ZERO64,
        data: new Uint8Array(16),
      },
      "client",
    ),
  )
  putU32(packet, 0, 64)
  for (const depth of [1, 64]) {
    let count = 0
    const connection = connectUnix(path, {
      ...quiet,
      onPacket(received) {
        count++
        connection.send(received.slice())
      },
    })
    const start = performance.now()
    for (let i = 0; i < depth; i++) connection.send(packet.slice())
    await Bun.sleep(seconds * 1000)
    console.log(`echo, ${depth} at a time: ${Math.round(count / ((performance.now() - start) / 1000))} round trips/s`)
    connection.close()
  }
}

async function ring(base: string, name: string, seconds: number, sockets: readonly string[]): Promise<number> {
  for (let pnn = 0; pnn < NODES; pnn++) rmSync(join(base, `member.${pnn}`), { force: true })
  const members = sockets.map((socket) => run("_member", socket, String(seconds), String(tokens), base))
  const rates = await Promise.all(members.map(async (member) => Number(await firstLine(member))))
  const total = rates.reduce((sum, rate) => sum + rate, 0)
  console.log(`${name}: ${Math.round(total)} messages/s`)
  return total
}

async function stockCluster(base: string): Promise<StockNode[]> {
  const nodes = Array.from({ length: NODES }, (_, pnn) => `127.31.51.${pnn + 1}`)
  const started = nodes.map((node, pnn) => {
    const own = join(base, `stock${pnn}`)
    Bun.spawnSync(["mkdir", own])
    return startStockNode({ base: own, address: node, nodes })
  })
  const cluster = await Promise.all(started)
  await waitUntil(
    "stock cluster",
    async () => ((await cluster[0]!.tool("status")).stdout.match(/ OK/g) ?? []).length === NODES,
    60_000,
  )
  return cluster
}

async function measureRing(base: string, seconds: number): Promise<void> {
  const relays = Array.from({ length: NODES }, (_, pnn) => run("_relay", String(pnn), base))
  await Promise.all(relays.map(firstLine))
  const own = await ring(
    base,
    "ring through relays",
    seconds,
    relays.map((_, pnn) => join(base, `${pnn}.socket`)),
  )
  for (const one of relays) one.kill()
  if (!stockInstalled) return
  const cluster = await stockCluster(base)
  try {
    const stock = await ring(
      base,
      "ring through stock ctdbd",
      seconds,
      cluster.map((node) => node.socket),
    )
    console.log(`ratio: ${(own / stock).toFixed(2)}`)
  } finally {
    await Promise.all(cluster.map((node) => node.stop()))
  }
}

async function roundTrips(name: string, socket: string, seconds: number): Promise<number> {
  const client = await Client.connect({ socket, timeoutMs: 5000 })
  const { session } = client
  let count = 0
  const again = (): void => {
    session.request("GET_PNN", CURRENT_NODE, { timeoutMs: 10_000 }, () => {
      count++
      again()
    })
  }
  const start = performance.now()
  again()
  await Bun.sleep(seconds * 1000)
  const rate = count / ((performance.now() - start) / 1000)
  console.log(`${name}: ${Math.round(rate)} control round trips/s`)
  await client.close()
  return rate
}

async function measureControl(base: string, seconds: number): Promise<void> {
  const relays = Array.from({ length: NODES }, (_, pnn) => run("_relay", String(pnn), base))
  await Promise.all(relays.map(firstLine))
  const own = await roundTrips("answering relay", join(base, "0.socket"), seconds)
  for (const one of relays) one.kill()
  if (!stockInstalled) return
  Bun.spawnSync(["mkdir", join(base, "stock0")])
  const node = await startStockNode({ base: join(base, "stock0"), address: "127.31.51.1", nodes: ["127.31.51.1"] })
  try {
    const stock = await roundTrips("stock ctdbd", node.socket, seconds)
    console.log(`ratio: ${(own / stock).toFixed(2)}`)
  } finally {
    await node.stop()
  }
}

async function measureIdle(base: string): Promise<void> {
  const path = join(base, "echo.socket")
  const server = run("_echo", path)
  await firstLine(server)
  const rss = (): number => {
    const status = Bun.spawnSync(["cat", `/proc/${server.pid}/status`]).stdout.toString()
    return Number(/VmRSS:\s*(\d+)/.exec(status)![1])
  }
  const warm = connectUnix(path, { ...quiet, onPacket() {} })
  await Bun.sleep(200)
  const before = rss()
  const connections = Array.from({ length: 1000 }, () => connectUnix(path, { ...quiet, onPacket() {} }))
  await Bun.sleep(500)
  console.log(`1000 idle clients: ${(rss() - before).toFixed(0)} kB, ${((rss() - before) / 1000).toFixed(2)} kB each`)
  for (const connection of connections) connection.close()
  warm.close()
}

if (mode === "_echo") echo(words[0]!)
else if (mode === "_relay") relay(Number(words[0]), words[1]!)
else if (mode === "_member") await ringMember(words[0]!, Number(words[1]), Number(words[2]), words[3]!)
else {
  const base = mkdtempSync("/tmp/bench-net-")
  try {
    if (mode === "echo") await measureEcho(base, seconds)
    else if (mode === "ring") await measureRing(base, seconds)
    else if (mode === "control") await measureControl(base, seconds)
    else if (mode === "idle") await measureIdle(base)
    else console.log("usage: net.ts echo | ring | control | idle [SECONDS]")
  } finally {
    for (const child of children) child.kill()
    rmSync(base, { recursive: true, force: true })
  }
  process.exit(0)
}
