// Packet connections over real Unix and TCP sockets: splits, coalescing, back-pressure, fairness, ends and refusals.

import { afterEach, describe, expect, test } from "bun:test"
import { existsSync, statSync } from "node:fs"
import type { SocketConnection } from "../../lib/net/connection.ts"
import { type PacketHandler, Priority } from "../../lib/net/ports.ts"
import { connectTcp, listenTcp } from "../../lib/net/tcp.ts"
import { connectUnix, listenUnix } from "../../lib/net/unix.ts"
import { peerCredentials, socketBuffers } from "../../lib/sys/socket.ts"
import { address, concat, markOf, packetOf, RawPeer, Recorder, temporaryDirectory, until } from "./streams.ts"

const cleanups: (() => void)[] = []
afterEach(() => {
  for (const cleanup of cleanups.splice(0).reverse()) cleanup()
})

interface Accepted<Handler> {
  readonly connection: SocketConnection
  readonly handler: Handler
}

/** A Unix listener whose connections are all kept, each with a handler of its own. */
function unixServer<Handler extends PacketHandler>(
  make: (connection: SocketConnection) => Handler,
  options: Partial<Parameters<typeof listenUnix>[1]> = {},
): { readonly path: string; readonly accepted: Accepted<Handler>[] } {
  const directory = temporaryDirectory()
  const path = directory.file("socket")
  const accepted: Accepted<Handler>[] = []
  const listener = listenUnix(path, {
    mode: 0o700,
    backlog: 100,
    ...options,
    onAccept(connection) {
      const handler = make(connection)
      accepted.push({ connection, handler })
      return handler
    },
  })
  cleanups.push(() => {
    listener.close()
    for (const { connection } of accepted) connection.close()
    directory[Symbol.dispose]()
  })
  return { path, accepted }
}

describe("a Unix listener", () => {
  test("makes its file with the mode asked for, and takes it away at the end", () => {
    using directory = temporaryDirectory()
    const path = directory.file("socket")
    const umask = process.umask(0)
    const listener = listenUnix(path, { mode: 0o700, backlog: 77, onAccept: () => undefined })
    // ss shows a listener's backlog as its send queue.
    expect(Bun.spawnSync(["ss", "-xlH", "src", path]).stdout.toString().trim().split(/ +/)[3]).toBe("77")
    expect(process.umask(umask)).toBe(0)
    expect(statSync(path).mode & 0o777).toBe(0o700)
    expect(() => listenUnix(path, { mode: 0o700, backlog: 100, onAccept: () => undefined })).toThrow()
    expect(existsSync(path)).toBe(true)
    listener.close()
    expect(existsSync(path)).toBe(false)
  })

  test("tells the credentials of who connects", async () => {
    using directory = temporaryDirectory()
    const pids: number[] = []
    const listener = listenUnix(directory.file("socket"), {
      mode: 0o700,
      backlog: 100,
      onAccept(_connection, credentials) {
        pids.push(credentials.pid)
        expect([credentials.uid, credentials.gid]).toEqual([process.getuid!(), process.getgid!()])
        return undefined
      },
    })
    const script = `const s = await Bun.connect({ unix: ${JSON.stringify(directory.file("socket"))}, socket: { data() {}, close() { process.exit(0) } } })`
    // Refused so early that its own connect() may count as failed: what matters is that it was seen.
    const other = Bun.spawn(["bun", "-e", script], { stderr: "ignore" })
    await other.exited
    expect(pids).toEqual([other.pid])
    listener.close()
  })

  test("refuses by closing at once when no handler is given", async () => {
    using directory = temporaryDirectory()
    const listener = listenUnix(directory.file("socket"), { mode: 0o700, backlog: 1, onAccept: () => undefined })
    const recorder = new Recorder()
    connectUnix(directory.file("socket"), recorder)
    await until("close", () => recorder.closes.length === 1)
    expect(recorder.closes).toEqual(["end of file"])
    listener.close()
  })

  test("a path that can't be connected to says why, by name", () => {
    using directory = temporaryDirectory()
    const code = (path: string): string => {
      try {
        connectUnix(path, new Recorder())
      } catch (error) {
        return (error as { code: string }).code
      }
      return "connected"
    }
    expect(code(directory.file("missing"))).toBe("ENOENT")
    expect(code(directory.path)).toBe("ECONNREFUSED")
    expect(code(`/tmp/${"x".repeat(108)}`)).toBe("ENAMETOOLONG")
  })
})

describe("packets over a real socket", () => {
  const packets = [packetOf(32, 1), packetOf(45, 2), packetOf(128, 3)]

  test("arrive whole, split at every byte", async () => {
    const { path, accepted } = unixServer(() => new Recorder())
    const bytes = concat(...packets)
    for (let split = 0; split <= bytes.length; split++) {
      const peer = await RawPeer.connect(path)
      await until("accept", () => accepted.length === split + 1)
      const { handler } = accepted[split]!
      const whole = packets.filter((_, i) => concat(...packets.slice(0, i + 1)).length <= split).length
      if (split > 0) await peer.write(bytes.subarray(0, split))
      // The first part is seen by itself: its whole packets have come before the rest is written.
      await until("first part", () => handler.packets.length === whole)
      await peer.write(bytes.subarray(split))
      await until("all packets", () => handler.packets.length === packets.length)
      expect(handler.packets).toEqual(packets)
      peer.socket.end()
    }
  })

  test("arrive in order and complete when ten thousand share few chunks", async () => {
    const { path, accepted } = unixServer(() => new Recorder())
    const peer = await RawPeer.connect(path)
    await peer.write(concat(...Array.from({ length: 10_000 }, (_, i) => packetOf(32 + (i % 50), i))))
    await until("all packets", () => accepted[0]?.handler.packets.length === 10_000)
    expect(accepted[0]!.handler.packets.every((packet, i) => markOf(packet) === i)).toBe(true)
  })

  test("of one turn leave in one write, urgent ones first", async () => {
    const { path, accepted } = unixServer(() => new Recorder())
    const peer = await RawPeer.connect(path)
    await until("accept", () => accepted.length === 1)
    const { connection } = accepted[0]!
    connection.send(packetOf(40, 1))
    connection.send(packetOf(40, 2), Priority.RECORD)
    connection.send(packetOf(40, 3), Priority.LIVENESS)
    connection.send(packetOf(40, 4), Priority.RECORD)
    connection.send(packetOf(40, 5))
    expect([connection.queuedPackets, connection.queuedBytes]).toEqual([5, 200])
    await until("packets", () => peer.bytes.length === 200)
    expect(peer.received.length).toBe(1)
    const marks = [0, 1, 2, 3, 4].map((i) => markOf(peer.bytes.subarray(40 * i, 40 * i + 40)))
    expect(marks).toEqual([3, 2, 4, 1, 5])
    expect([connection.queuedPackets, connection.queuedBytes]).toEqual([0, 0])
  })
})

test("passing on much takes little memory, however much the runtime believes to be in use", async () => {
  // Counted as memory, as views of database files are, and never touched.
  const script = `
    import { readFileSync } from "node:fs"
    import { listenUnix, connectUnix } from ${JSON.stringify(require.resolve("../../lib/net/unix.ts"))}
    import { packetOf } from ${JSON.stringify(require.resolve("./streams.ts"))}
    const mapped = Array.from({ length: 4 }, () => new ArrayBuffer(2 ** 30))
    const used = () => Number(/RssAnon:\\s*(\\d+) kB/.exec(readFileSync("/proc/self/status", "utf8"))[1]) * 1024
    const silent = { onPacket() {}, onBadHeader: () => "close", onClose() {} }
    const SIZE = 60_000, COUNT = 6000
    let got = 0, sent = 0, most = 0
    const before = used()
    const send = () => {
      while (sent < COUNT && sent - got < 32) client.send(packetOf(SIZE, sent++))
    }
    listenUnix(process.argv.at(-1), { mode: 0o700, backlog: 10, onAccept: () => ({ ...silent, onPacket() {
      if (++got % 50 === 0) most = Math.max(most, used() - before)
      if (got < COUNT) return send()
      console.log(most, mapped.length)
      process.exit(0)
    } }) })
    const client = connectUnix(process.argv.at(-1), silent)
    send()`
  using directory = temporaryDirectory()
  const child = Bun.spawnSync(["bun", "-e", script, directory.file("socket")])
  const [most] = child.stdout.toString().split(" ").map(Number)
  expect(child.stderr.toString()).toBe("")
  // 32 packets on the way, in sockets and buffers, and the runtime's own.
  expect(most).toBeGreaterThan(0)
  expect(most).toBeLessThan(40e6)
})

describe("a peer that does not read", () => {
  test("makes the queue grow to its bound and then ends the connection, with memory bounded", async () => {
    const limit = 8 * 1024 * 1024
    const { path, accepted } = unixServer(() => new Recorder(), { connection: { maxQueuedBytes: limit } })
    const peer = await RawPeer.connect(path)
    peer.socket.pause()
    await until("accept", () => accepted.length === 1)
    const { connection, handler } = accepted[0]!
    let sent = 0
    while (handler.closes.length === 0 && sent < 10 * limit) {
      connection.send(packetOf(65_536, sent))
      sent += 65_536
      if (sent % (1024 * 1024) === 0) await Bun.sleep(0)
    }
    await until("close", () => handler.closes.length === 1)
    expect(handler.closes[0]).toStartWith("peer does not read: ")
    expect(sent).toBeLessThan(limit + 4 * 1024 * 1024)
    expect([connection.queuedBytes, connection.queuedPackets]).toEqual([0, 0])
  })

  test("gets everything, in order, once it reads again; then onDrain comes, once", async () => {
    const { path, accepted } = unixServer(() => new Recorder(), { connection: { highWaterBytes: 1024 * 1024 } })
    const recorder = new Recorder()
    const client = connectUnix(path, recorder)
    client.pause()
    await until("accept", () => accepted.length === 1)
    const { connection, handler } = accepted[0]!
    for (let i = 0; i < 5000; i++) connection.send(packetOf(1000 + (i % 100), i))
    connection.send(packetOf(300_000, 5000))
    const total = connection.queuedBytes
    await until("a full kernel", () => connection.queuedBytes < total)
    const stuck = connection.queuedBytes
    await Bun.sleep(20)
    expect(connection.queuedBytes).toBe(stuck)
    expect([recorder.packets.length, handler.drains]).toEqual([0, 0])
    // Overtakes what has not started.
    connection.send(packetOf(40, 9999), Priority.LIVENESS)
    client.resume()
    await until("all packets", () => recorder.packets.length === 5002)
    const marks = recorder.packets.map(markOf)
    expect(marks.filter((mark) => mark !== 9999)).toEqual(Array.from({ length: 5001 }, (_, i) => i))
    expect(marks.indexOf(9999)).toBeLessThan(2500)
    await until("drain", () => handler.drains > 0)
    // What never filled the queue drains without a word.
    connection.send(packetOf(40, 1))
    await until("one more", () => recorder.packets.length === 5003)
    expect(handler.drains).toBe(1)
    expect([connection.queuedBytes, connection.queuedPackets]).toEqual([0, 0])
    client.close()
  })
})

test("what two stuck peers have not got yet is not mixed up", async () => {
  const { path, accepted } = unixServer(() => new Recorder())
  const recorders = [new Recorder(), new Recorder()]
  const clients = recorders.map((recorder) => connectUnix(path, recorder))
  for (const client of clients) client.pause()
  await until("accepts", () => accepted.length === 2)
  for (let i = 0; i < 1000; i++) {
    for (const [who, { connection }] of accepted.entries()) connection.send(packetOf(1000, 2 * i + who))
    if (i % 100 === 0) await Bun.sleep(0)
  }
  await Bun.sleep(5)
  for (const client of clients) client.resume()
  await until("all packets", () => recorders.every(({ packets }) => packets.length === 1000))
  for (const [who, { packets, faults }] of recorders.entries()) {
    expect(faults).toEqual([])
    for (const [i, packet] of packets.entries()) {
      expect(Buffer.compare(packet, packetOf(1000, 2 * i + who))).toBe(0)
    }
  }
  for (const client of clients) client.close()
})

describe("a paused connection", () => {
  test("hands out nothing, holds its peer back, and loses nothing", async () => {
    const { path, accepted } = unixServer(() => new Recorder())
    const peer = await RawPeer.connect(path)
    await until("accept", () => accepted.length === 1)
    const { connection, handler } = accepted[0]!
    connection.pause()
    const bytes = concat(...Array.from({ length: 20_000 }, (_, i) => packetOf(1000, i)))
    const writing = peer.write(bytes)
    const done = await Promise.race([writing.then(() => true), Bun.sleep(200).then(() => false)])
    // 20 MB do not fit into the kernel's buffers: the writer waits.
    expect(done).toBe(false)
    expect(handler.packets.length).toBe(0)
    connection.resume()
    await writing
    await until("all packets", () => handler.packets.length === 20_000)
    expect(handler.packets.every((packet, i) => markOf(packet) === i)).toBe(true)
  })

  test("may be paused from its own onPacket, packet by packet", async () => {
    const seen: number[] = []
    const { path } = unixServer((connection) => ({
      onPacket(packet: Uint8Array) {
        seen.push(markOf(packet))
        connection.pause()
        setTimeout(() => connection.resume(), 1)
      },
      onBadHeader: () => "close" as const,
      onClose() {},
    }))
    const peer = await RawPeer.connect(path)
    await peer.write(concat(...Array.from({ length: 20 }, (_, i) => packetOf(64, i))))
    await until("first", () => seen.length >= 1)
    await until("all", () => seen.length === 20)
    expect(seen).toEqual(Array.from({ length: 20 }, (_, i) => i))
  })

  test("does not spin when its peer goes away meanwhile, and learns of it afterwards", async () => {
    const { path, accepted } = unixServer(() => new Recorder())
    const peer = await RawPeer.connect(path)
    await until("accept", () => accepted.length === 1)
    const { connection, handler } = accepted[0]!
    connection.pause()
    await peer.write(packetOf(64, 1))
    peer.socket.end()
    const before = process.cpuUsage()
    await Bun.sleep(200)
    const { user, system } = process.cpuUsage(before)
    expect((user + system) / 1000).toBeLessThan(60)
    expect(handler.closes).toEqual([])
    connection.resume()
    await until("end", () => handler.closes.length === 1)
    expect(handler.packets.map(markOf)).toEqual([1])
  })
})

describe("turns", () => {
  /** Notes who was served, in order. */
  function serverOfTurns(cost: () => void = () => {}) {
    const served: string[] = []
    const names = new Map<number, string>()
    const server = unixServer((connection) => ({
      onPacket(packet: Uint8Array) {
        const mark = markOf(packet)
        if (mark === 0xfff0) connection.readPriority = Priority.LIVENESS
        if (mark >= 0xff00) names.set(mark, "urgent")
        served.push(mark >= 0xff00 ? "urgent" : `client ${mark}`)
        cost()
      },
      onBadHeader: () => "close" as const,
      onClose() {},
    }))
    return { ...server, served }
  }

  test("floods do not keep a quiet client from its own, nor do they grow without bound", async () => {
    const { path, accepted, served } = serverOfTurns()
    const flooders: RawPeer[] = []
    for (let i = 0; i < 8; i++) flooders.push(await RawPeer.connect(path))
    const quiet = await RawPeer.connect(path)
    await until("accepts", () => accepted.length === 9)
    const burst = concat(...Array.from({ length: 2000 }, () => packetOf(64, 1)))
    let flooding = true
    let written = 0
    const floods = flooders.map(async (flooder) => {
      while (flooding) {
        await flooder.write(burst)
        written += 2000
        await Bun.sleep(0)
      }
    })
    await until("the floods", () => served.length > 20_000)
    const waits: number[] = []
    for (let i = 0; i < 20; i++) {
      const before = served.length
      quiet.socket.write(packetOf(64, 2))
      await until("the quiet one", () => served.includes("client 2", before))
      waits.push(served.indexOf("client 2", before) - before)
    }
    flooding = false
    await Promise.all(floods)
    // A turn's class budget is 256 KiB of cost, 1,024 packets of this size; the packet is seen in the next turn or in the
    // one after it. Without a budget the eight backlogs come first: several times 3,400 packets each.
    expect(Math.max(...waits)).toBeLessThan(4096)
    await until("the rest", () => served.length === written + 20)
  })

  test("what a slow owner leaves unread stays in the kernel", async () => {
    let most = 0
    let packets = 0
    const listener = listenTcp({
      address: address(9),
      port: 0,
      onAccept: (connection) => ({
        onPacket() {
          packets++
          most = Math.max(most, connection.waitingBytes)
          const end = performance.now() + 0.5
          while (performance.now() < end);
        },
        onBadHeader: () => "close",
        onClose() {},
      }),
    })
    const peer = await RawPeer.connect({ hostname: address(9), port: listener.port })
    await peer.write(concat(...Array.from({ length: 1000 }, (_, i) => packetOf(20_000, i))))
    await until("all packets", () => packets === 1000)
    // 1 MiB and the chunk that went over it (Bun reads half a MiB at a time).
    expect(most).toBeLessThanOrEqual(1024 * 1024 + 512 * 1024)
    peer.socket.end()
    listener.close()
  })

  test("the urgent connection is served before a backlog of clients, who take turns by bytes", async () => {
    const { path, accepted, served } = serverOfTurns()
    const clients: RawPeer[] = []
    for (let i = 0; i < 10; i++) clients.push(await RawPeer.connect(path))
    const urgent = await RawPeer.connect(path)
    await urgent.write(packetOf(64, 0xfff0))
    await until("the urgent one known", () => served.length === 1 && accepted.length === 11)
    // The kernel reports first who was heard last: that must not be the urgent one.
    for (const [i, client] of clients.entries()) {
      await client.write(packetOf(64, i + 1))
      await until("every client heard", () => served.length === i + 2)
    }
    served.length = 0
    for (const [i, client] of clients.entries()) {
      client.socket.write(concat(...Array.from({ length: 2000 }, () => packetOf(64, i + 1))))
    }
    urgent.socket.write(packetOf(64, 0xfff1))
    await until("all", () => served.length === 20_001)
    // Only what was served at once on the idle loop may come before it: one quantum, 64 packets of this size.
    expect(served.indexOf("urgent")).toBeLessThanOrEqual(64)
    const seen = Array.from({ length: 10 }, () => 0)
    for (const name of served.slice(0, 10_000)) if (name !== "urgent") seen[Number(name.slice(7)) - 1]!++
    // At any time nobody is further than two quanta ahead of another.
    expect(Math.max(...seen) - Math.min(...seen)).toBeLessThanOrEqual(128)
  })

  test("what comes for the urgent connection in the middle of a long turn is served in it", async () => {
    let urgent: RawPeer | undefined
    let handled = 0
    const { path, accepted, served } = serverOfTurns(() => {
      // Every packet takes a millisecond; the urgent one is sent while the tenth is handled.
      if (++handled === 11) urgent!.socket.write(packetOf(64, 0xfff1))
      const end = performance.now() + 1
      while (performance.now() < end);
    })
    const clients: RawPeer[] = []
    for (let i = 0; i < 40; i++) clients.push(await RawPeer.connect(path))
    urgent = await RawPeer.connect(path)
    await urgent.write(packetOf(64, 0xfff0))
    await until("the urgent one known", () => served.length === 1 && accepted.length === 41)
    for (const [i, client] of clients.entries()) client.socket.write(packetOf(64, i + 1))
    await until("all", () => served.length === 42)
    // It is looked for after 2 ms; packets are not interrupted. At the end of the turn it would be the last of all.
    const at = served.indexOf("urgent", 1)
    expect(at).toBeGreaterThan(10)
    expect(at).toBeLessThanOrEqual(16)
  })

  test("an error thrown by one handler does not reach another connection", async () => {
    const script = `
      import { listenUnix, connectUnix } from ${JSON.stringify(require.resolve("../../lib/net/unix.ts"))}
      import { packetOf, markOf } from ${JSON.stringify(require.resolve("./streams.ts"))}
      process.on("uncaughtException", (error) => console.log("uncaught", error.message))
      const path = process.argv.at(-1)
      let seen = 0
      const silent = { onPacket() {}, onBadHeader: () => "close", onClose() {} }
      listenUnix(path, { mode: 0o700, backlog: 10, onAccept: () => ({ ...silent, onPacket(packet) {
        if (markOf(packet) === 1) throw new Error("handler")
        console.log("served", markOf(packet))
        if (++seen === 2) setTimeout(() => process.exit(0), 20)
      } }) })
      const first = connectUnix(path, silent), second = connectUnix(path, silent)
      first.send(packetOf(40, 1)); first.send(packetOf(40, 2)); second.send(packetOf(40, 3))`
    using directory = temporaryDirectory()
    const child = Bun.spawnSync(["bun", "-e", script, directory.file("socket")])
    const lines = child.stdout.toString().trim().split("\n")
    expect(lines.sort()).toEqual(["served 2", "served 3", "uncaught handler"])
  })
})

describe("bad input", () => {
  const broken = packetOf(40, 1)
  broken[4] = 0

  test("is dropped or ends the connection, as the owner says, after one report", async () => {
    const policies: ("drop" | "close")[] = ["drop", "close"]
    const { path, accepted } = unixServer(() => new Recorder(policies.shift()!))
    const dropper = await RawPeer.connect(path)
    await until("first accept", () => accepted.length === 1)
    const closer = await RawPeer.connect(path)
    await until("second accept", () => accepted.length === 2)
    const bytes = concat(packetOf(40, 5), broken, packetOf(40, 6))
    await dropper.write(bytes)
    await closer.write(bytes)
    await until("both", () => accepted[0]!.handler.packets.length === 2 && accepted[1]!.handler.closes.length === 1)
    expect(accepted[0]!.handler.faults).toEqual(["wrong magic 0x43544400"])
    expect(accepted[0]!.handler.closes).toEqual([])
    expect(accepted[1]!.handler.packets.map(markOf)).toEqual([5])
    expect(accepted[1]!.handler.closes).toEqual(["wrong magic 0x43544400"])
    await until("close at the peer", () => closer.isClosed)
    expect(dropper.isClosed).toBe(false)
  })

  test("a flood of it takes turns like packets", async () => {
    const reports: number[] = []
    let other = 0
    const { path, accepted } = unixServer(() => ({
      onPacket() {
        other = reports.length
      },
      onBadHeader() {
        reports.push(1)
        return "drop" as const
      },
      onClose() {},
    }))
    const flooder = await RawPeer.connect(path)
    const quiet = await RawPeer.connect(path)
    await until("accepts", () => accepted.length === 2)
    const junk = new Uint8Array(new Uint32Array(30_000).fill(4).buffer)
    expect(flooder.socket.write(junk)).toBe(junk.length)
    quiet.socket.write(packetOf(40, 1))
    await until("all reports", () => reports.length === 30_000)
    // A class's budget is 256 KiB of cost, at 192 a report.
    expect(other).toBeGreaterThan(0)
    expect(other).toBeLessThan(3000)
  })

  test("an owner that throws over it loses the connection, once", async () => {
    const script = `
      import { listenUnix } from ${JSON.stringify(require.resolve("../../lib/net/unix.ts"))}
      process.on("uncaughtException", (error) => console.log("uncaught", error.message))
      const path = process.argv.at(-1)
      listenUnix(path, { mode: 0o700, backlog: 10, onAccept: () => ({
        onPacket() {},
        onBadHeader() { throw new Error("owner") },
        onClose(reason) { console.log("closed", reason); setTimeout(() => process.exit(0), 20) },
      }) })
      const peer = await Bun.connect({ unix: path, socket: { data() {} } })
      peer.write(new Uint8Array(64).fill(1))`
    using directory = temporaryDirectory()
    const child = Bun.spawnSync(["bun", "-e", script, directory.file("socket")])
    const lines = child.stdout.toString().trim().split("\n")
    expect(lines).toEqual(["uncaught owner", "closed wrong magic 0x1010101"])
  })

  test("a length of 0 ends the connection even where bad headers are dropped", async () => {
    const { path, accepted } = unixServer(() => new Recorder("drop"))
    const peer = await RawPeer.connect(path)
    await peer.write(new Uint8Array(4))
    await until("close", () => peer.isClosed)
    expect(accepted[0]!.handler.closes).toEqual(["length 0 is shorter than a header"])
  })

  test("a thousand clients that announce 256 MiB each and send little cost little", async () => {
    const { path, accepted } = unixServer(() => new Recorder())
    const announce = packetOf(100, 1)
    new DataView(announce.buffer).setUint32(0, 256 * 1024 * 1024, true)
    Bun.gc(true)
    const before = process.memoryUsage().rss
    const peers: RawPeer[] = []
    for (let i = 0; i < 1000; i++) {
      const peer = await RawPeer.connect(path)
      await peer.write(announce)
      peers.push(peer)
    }
    await until("accepts", () => accepted.length === 1000)
    await Bun.sleep(50)
    expect(process.memoryUsage().rss - before).toBeLessThan(150 * 1024 * 1024)
    expect(accepted.every(({ handler }) => handler.faults.length === 0 && handler.closes.length === 0)).toBe(true)
    for (const peer of peers) peer.socket.end()
    await until("closes", () => accepted.every(({ handler }) => handler.closes.length === 1))
  })
})

describe("the end", () => {
  test("of the listener is not that of its connections", async () => {
    using directory = temporaryDirectory()
    const server = new Recorder()
    const listener = listenUnix(directory.file("socket"), { mode: 0o700, backlog: 10, onAccept: () => server })
    const recorder = new Recorder()
    const client = connectUnix(directory.file("socket"), recorder)
    client.send(packetOf(40, 1))
    await until("packet", () => server.packets.length === 1)
    listener.close()
    client.send(packetOf(40, 2))
    await until("packet", () => server.packets.length === 2)
    expect(recorder.closes).toEqual([])
    client.close()
    await until("end", () => server.closes.length === 1)
  })

  test("is told after the packets that came before it, once", async () => {
    const { path, accepted } = unixServer(() => new Recorder())
    const peer = await RawPeer.connect(path)
    await peer.write(concat(...Array.from({ length: 5000 }, (_, i) => packetOf(64, i))))
    peer.socket.end()
    await until("end", () => accepted[0]?.handler.closes.length === 1)
    expect(accepted[0]!.handler.packets.length).toBe(5000)
    accepted[0]!.connection.send(packetOf(40, 1))
    await Bun.sleep(10)
    expect(accepted[0]!.handler.closes).toEqual(["end of file"])
  })

  test("close() sends no more, tells nothing, and the peer sees the end", async () => {
    const { path, accepted } = unixServer(() => new Recorder())
    const peer = await RawPeer.connect(path)
    await until("accept", () => accepted.length === 1)
    const { connection, handler } = accepted[0]!
    connection.send(packetOf(40, 1))
    connection.close()
    connection.close()
    connection.send(packetOf(40, 2))
    expect([connection.queuedBytes, connection.queuedPackets]).toEqual([0, 0])
    await until("end at the peer", () => peer.isClosed)
    expect(peer.bytes.length).toBe(0)
    expect(handler.closes).toEqual([])
  })

  test("flushNow() lets a program send its last words", async () => {
    const { path, accepted } = unixServer(() => new Recorder())
    const client = connectUnix(path, new Recorder())
    client.send(packetOf(40, 77))
    client.flushNow()
    client.close()
    await until("words", () => accepted[0]?.handler.closes.length === 1)
    expect(accepted[0]!.handler.packets.map(markOf)).toEqual([77])
  })
})

describe("TCP", () => {
  test("comes from the address it was bound to, without delay, kept alive, both ways", async () => {
    const recorder = new Recorder()
    let from = ""
    let server: SocketConnection | undefined
    const listener = listenTcp({
      address: address(1),
      port: 0,
      onAccept(connection, remoteAddress) {
        from = remoteAddress
        server = connection
        return recorder
      },
    })
    const client = new Recorder()
    let link: SocketConnection | undefined
    connectTcp({
      localAddress: address(2),
      remoteAddress: address(1),
      port: listener.port,
      timeoutMs: 1000,
      onConnected(connection) {
        link = connection
        connection.send(packetOf(40, 1))
        return client
      },
      onFailed: (reason) => expect(reason).toBe(""),
    })
    expect(link).toBeUndefined()
    await until("packet", () => recorder.packets.length === 1)
    expect(from).toBe(address(2))
    const ss = Bun.spawnSync(["ss", "-tnoH", "src", address(2), "and", "dport", "=", `:${listener.port}`])
    expect(ss.stdout.toString()).toContain("timer:(keepalive")
    server!.send(packetOf(48, 2))
    await until("answer", () => client.packets.length === 1)
    server!.close()
    await until("end", () => client.closes.length === 1)
    listener.close()
  })

  test("refusal, a wrong local address and silence are told with their reasons, never from within the call", async () => {
    const attempt = (localAddress: string, remote: string, port: number): { reasons: string[]; cancel(): void } => {
      const reasons: string[] = []
      const { cancel } = connectTcp({
        localAddress,
        remoteAddress: remote,
        port,
        timeoutMs: 150,
        onConnected() {
          reasons.push("connected")
          return new Recorder()
        },
        onFailed: (reason) => reasons.push(reason),
      })
      expect(reasons).toEqual([])
      return { reasons, cancel }
    }
    // A listener that never accepts, its backlog filled: what comes after hangs.
    const script = `
import socket, sys
s = socket.socket(); s.bind(("${address(3)}", 0)); s.listen(0)
c = [socket.socket() for _ in range(3)]
for x in c: x.setblocking(False); x.connect_ex(s.getsockname())
print(s.getsockname()[1], flush=True); sys.stdin.read()`
    const deaf = Bun.spawn(["python3", "-c", script], { stdin: "pipe", stdout: "pipe" })
    const { value } = await deaf.stdout.getReader().read()
    const port = Number(new TextDecoder().decode(value))
    const refused = attempt(address(2), address(4), 1)
    const foreign = attempt("192.0.2.1", address(4), 1)
    const nonsense = attempt("not an address", address(4), 1)
    const silent = attempt(address(2), address(3), port)
    const cancelled = attempt(address(2), address(3), port)
    cancelled.cancel()
    await until("answers", () => [refused, foreign, nonsense, silent].every(({ reasons }) => reasons.length === 1))
    expect(refused.reasons).toEqual(["ECONNREFUSED"])
    expect(foreign.reasons).toEqual(["EADDRNOTAVAIL"])
    expect(nonsense.reasons).toEqual(["EINVAL"])
    expect(silent.reasons).toEqual(["timed out"])
    expect(cancelled.reasons).toEqual([])
    deaf.kill()
    await deaf.exited
  })

  test("a link that is only written to ends at the first byte or end of file from its peer", async () => {
    const servers: SocketConnection[] = []
    const listener = listenTcp({
      address: address(5),
      port: 0,
      onAccept(connection) {
        servers.push(connection)
        return new Recorder()
      },
    })
    const links: Recorder[] = []
    for (let i = 0; i < 2; i++) {
      connectTcp({
        localAddress: address(6),
        remoteAddress: address(5),
        port: listener.port,
        timeoutMs: 1000,
        connection: { writeOnly: true },
        onConnected() {
          const recorder = new Recorder()
          links.push(recorder)
          return recorder
        },
        onFailed: (reason) => expect(reason).toBe(""),
      })
      await until("link", () => links.length === i + 1 && servers.length === i + 1)
    }
    servers[0]!.send(packetOf(40, 1))
    servers[1]!.close()
    await until("ends", () => links.every(({ closes }) => closes.length === 1))
    expect(links[0]!.closes).toEqual(["data on a connection that is only written to"])
    expect(links[0]!.packets).toEqual([])
    expect(links[1]!.closes).toEqual(["end of file"])
    listener.close()
    servers[0]!.close()
  })

  test("unaligned lengths are bad headers between nodes", async () => {
    const recorder = new Recorder()
    const listener = listenTcp({ address: address(7), port: 0, onAccept: () => recorder })
    const peer = await RawPeer.connect({ hostname: address(7), port: listener.port })
    await peer.write(packetOf(44, 1))
    await until("end", () => peer.isClosed)
    expect(recorder.closes).toEqual(["length 44 is not a multiple of 8"])
    listener.close()
  })

  test("a restart may listen where connections of the last run linger", async () => {
    // Refusing closes first on this side, which is the one that lingers.
    const first = listenTcp({ address: address(8), port: 0, onAccept: () => undefined })
    const peer = await RawPeer.connect({ hostname: address(8), port: first.port })
    await until("end", () => peer.isClosed)
    first.close()
    const second = listenTcp({ address: address(8), port: first.port, onAccept: () => undefined })
    expect(second.port).toBe(first.port)
    expect(() => listenTcp({ address: address(8), port: first.port, onAccept: () => undefined })).toThrow()
    second.close()
  })

  test("IPv6 works like IPv4", async () => {
    let from = ""
    const recorder = new Recorder()
    const listener = listenTcp({
      address: "::1",
      port: 0,
      onAccept(_connection, remoteAddress) {
        from = remoteAddress
        return recorder
      },
    })
    connectTcp({
      localAddress: "::1",
      remoteAddress: "::1",
      port: listener.port,
      timeoutMs: 1000,
      onConnected(connection) {
        connection.send(packetOf(40, 6))
        setTimeout(() => connection.close(), 50)
        return new Recorder()
      },
      onFailed: (reason) => expect(reason).toBe(""),
    })
    await until("packet", () => recorder.packets.length === 1)
    expect(from).toBe("::1")
    listener.close()
  })
})

test("descriptors that are no sockets fail with the errno's name", () => {
  expect(() => peerCredentials(0)).toThrow(/SO_PEERCRED fd 0: (ENOTSOCK|EBADF)/)
  expect(() => socketBuffers(-1)).toThrow("EBADF")
})
