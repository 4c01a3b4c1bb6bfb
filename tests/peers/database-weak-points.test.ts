// Where a stock daemon's data path hurts (data path page 18.3), on running daemons: each test does the same to a node of either kind, and says
// what the stock one does wrong. Rows that need a packet of a peer, a commit or a recovery are in tests/daemon and tests/simulation.

import { afterAll, beforeAll, describe, expect, test } from "bun:test"
import { existsSync, readFileSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { attach } from "../../lib/client/attach.ts"
import { Client } from "../../lib/client/client.ts"
import type { Database } from "../../lib/client/database.ts"
import { connectUnix } from "../../lib/net/unix.ts"
import { CallId, CURRENT_NODE } from "../../lib/protocol/constants.ts"
import { controls } from "../../lib/protocol/controls.ts"
import { encodePacket, Operation } from "../../lib/protocol/packet.ts"
import { word64, ZERO64 } from "../../lib/protocol/word64.ts"
import { processExists } from "../../lib/sys/process.ts"
import { type Kind, MixedCluster } from "./nodes.ts"
import { processTree, stockInstalled, waitUntil } from "./stock.ts"

const KINDS: readonly (readonly [kind: Kind, prefix: string])[] = [
  ["ours", "127.61.41."],
  ["stock", "127.61.42."],
]
/** Long enough for an answer to come, if it ever does (ms). */
const SILENCE_MS = 1000
const utf8 = new TextEncoder()

describe.each(KINDS.filter(([kind]) => kind === "ours" || stockInstalled))("%s", (kind, prefix) => {
  const ours = kind === "ours"
  let cluster: MixedCluster
  let database: Database
  const node = () => cluster.node(0)
  const connect = () => Client.connect({ socket: node().socket, timeoutMs: 10_000 })

  beforeAll(async () => {
    cluster = new MixedCluster(prefix, [kind, kind], { lock: true })
    await cluster.startTogether()
    await cluster.allOk()
    database = await attach(cluster.client(0), "weak.tdb")
    const record = await database.fetchLock(utf8.encode("held"))
    record.store(utf8.encode("value"))
    record.unlock()
  }, 300_000)
  afterAll(() => cluster.end(), 60_000)

  /** Bytes of a control of a client to its own node. */
  function controlBytes(
    opcode: number,
    reqid: number,
    destnode = CURRENT_NODE,
    data = new Uint8Array(0),
    srvid = ZERO64,
  ) {
    const header = { generation: 0, destnode, srcnode: 0, reqid }
    return encodePacket(
      { operation: Operation.REQ_CONTROL, ...header, opcode, srvid, clientId: 0, flags: 0, data },
      "client",
    )
  }

  /** The most that `count` gives while it is watched; no longer than until it is `enough`. */
  async function most(count: () => number, enough: number): Promise<number> {
    let found = count()
    const limit = performance.now() + (ours ? 2 * SILENCE_MS : 60_000)
    while (found < enough && performance.now() < limit) {
      await Bun.sleep(20)
      found = Math.max(found, count())
    }
    return found
  }

  const residentKb = (pid: number) => Number(/^VmRSS:\s+(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"))![1])

  test(`row 1: a call for an unknown database ${ours ? "fails" : "is never answered"}`, async () => {
    const client = await connect()
    let ok: boolean | undefined
    client.session.call({ dbId: 0x12345678, key: utf8.encode("k"), callid: CallId.NULL }, (reply) => {
      ok = reply.ok
    })
    if (ours) await waitUntil("the answer", () => ok !== undefined, 60_000)
    else await Bun.sleep(SILENCE_MS)
    expect(ok).toBe(ours ? false : undefined)
    await client.close()
  })

  test(`row 9: sixty clients that wait for one record cost ${ours ? "no process" : "a process each"}`, async () => {
    const clients = await Promise.all(Array.from({ length: 60 }, connect))
    const before = processTree(node().pid).length
    const held = await database.fetchLock(utf8.encode("held"))
    let answered = 0
    for (const client of clients) {
      client.session.call({ dbId: database.id, key: utf8.encode("held"), callid: CallId.FETCH }, () => answered++)
    }
    const processes = () => processTree(node().pid).length - before
    if (ours) expect(await most(processes, 1)).toBe(0)
    else expect(await most(processes, 51)).toBeGreaterThan(50)
    expect(answered).toBe(0)
    held.unlock()
    await waitUntil("all answers", () => answered === 60, 60_000)
    await Promise.all(clients.map((client) => client.close()))
  }, 300_000)

  test(`row 10: 3,000 large replies that nobody reads ${ours ? "are not made" : "grow the daemon by 100 MB and more"}`, async () => {
    const { pid, socket } = node()
    const before = residentKb(pid)
    let replies = 0
    const connection = connectUnix(socket, { onPacket: () => replies++, onBadHeader: () => "close", onClose: () => {} })
    connection.pause()
    for (let i = 0; i < 3000; i++) connection.send(controlBytes(controls.GET_STAT_HISTORY.opcode, i + 1))
    const growth = () => residentKb(pid) - before
    if (ours) expect(await most(growth, 60_000)).toBeLessThan(60_000)
    else expect(await most(growth, 100_001)).toBeGreaterThan(100_000)
    // None is lost: they come when they are read.
    connection.resume()
    await waitUntil("all replies", () => replies === 3000, 60_000)
    connection.close()
  }, 300_000)

  test(`row 16: a client that goes on sending gets its replies ${ours ? "meanwhile" : "when it makes a pause"}`, async () => {
    const COUNT = 60_000
    let replies = 0
    const handler = { onPacket: () => replies++, onBadHeader: () => "close" as const, onClose: () => {} }
    const connection = connectUnix(node().socket, handler)
    const turn = () => new Promise((resolve) => setImmediate(resolve))
    for (let sent = 0; sent < COUNT; await turn()) {
      while (connection.queuedBytes < 200_000 && sent < COUNT) {
        connection.send(controlBytes(controls.PING.opcode, ++sent))
      }
    }
    while (connection.queuedBytes > 0) await turn()
    const meanwhile = replies / COUNT
    if (ours) expect(meanwhile).toBeGreaterThan(0.4)
    else expect(meanwhile).toBeLessThan(0.3)
    await waitUntil("all replies", () => replies === COUNT, 60_000)
    connection.close()
  }, 300_000)

  test(`row 20: a message right behind the registration for it ${ours ? "arrives" : "overtakes that, and is lost"}`, async () => {
    let messages = 0
    let replies = 0
    const connection = connectUnix(node().socket, {
      onPacket: (packet) => {
        if (packet[16] === Operation.REQ_MESSAGE) messages++
        else replies++
      },
      onBadHeader: () => "close",
      onClose: () => {},
    })
    const srvid = word64(0x4242, 1)
    const header = { generation: 0, destnode: CURRENT_NODE, srcnode: 0, reqid: 0 }
    connection.send(controlBytes(controls.REGISTER_SRVID.opcode, 1, CURRENT_NODE, new Uint8Array(0), srvid))
    connection.send(
      encodePacket({ operation: Operation.REQ_MESSAGE, ...header, srvid, data: utf8.encode("here") }, "client"),
    )
    await waitUntil("the registration's reply", () => replies === 1, 60_000)
    if (ours) await waitUntil("the message", () => messages === 1, 60_000)
    else await Bun.sleep(SILENCE_MS)
    expect(messages).toBe(ours ? 1 : 0)
    connection.close()
  })

  test(`row 21: a client that has the chain of the sequence number ${ours ? "holds up that question only" : "stops the daemon"}`, async () => {
    const [asking, other] = [await connect(), await connect()]
    const key = utf8.encode("__db_sequence_number__\0")
    const held = await database.fetchLock(key)
    let number = false
    let pong = false
    asking.session.request("GET_DB_SEQNUM", 0, { request: database.id }, () => {
      number = true
    })
    // The daemon has read that before it reads the next.
    await Bun.sleep(100)
    other.session.request("PING", 0, {}, () => {
      pong = true
    })
    if (ours) await waitUntil("another client's answer", () => pong, 60_000)
    else await Bun.sleep(SILENCE_MS)
    expect(pong).toBe(ours)
    held.unlock()
    await waitUntil("both answers", () => number && pong, 60_000)
    await Promise.all([asking.close(), other.close()])
  })

  test("8.4: a lock that stays busy for ten seconds is shown to the lock debug script", async () => {
    const told = join(cluster.directory, "debug-locks")
    const script = join(cluster.base(0), "debug_locks.sh")
    writeFileSync(script, `#!/bin/sh\necho "$@" >> ${told}\necho said by the script\n`, { mode: 0o755 })
    const client = await connect()
    const held = await database.fetchLock(utf8.encode("held"))
    let answered = false
    client.session.call({ dbId: database.id, key: utf8.encode("held"), callid: CallId.FETCH }, () => {
      answered = true
    })
    await waitUntil("the script", () => existsSync(told) && readFileSync(told, "utf8") !== "", 60_000)
    if (ours) await waitUntil("its words in the log", () => cluster.log(0).includes("said by the script"), 60_000)
    held.unlock()
    await waitUntil("the answer", () => answered, 60_000)
    const path = await client.control("GETDBPATH", 0, database.id)
    expect(readFileSync(told, "utf8")).toMatch(/^\d+ RECORD \S+ MUTEX\n$/)
    expect(readFileSync(told, "utf8")).toContain(` RECORD ${path} MUTEX`)
    await client.close()
  }, 300_000)

  // A stock node with public addresses dies of it, so this is ours alone.
  test.skipIf(!ours)(
    "row 7: controls about a client's TCP connections are refused when they come from another node",
    async () => {
      const client = await connect()
      for (const control of ["TCP_CLIENT", "TCP_CLIENT_DISCONNECTED", "TCP_CLIENT_PASSED"] as const) {
        let status: number | undefined
        const payload = new Uint8Array(56)
        // Two IPv4 addresses of 28 bytes: family, port, address.
        for (const at of [0, 28]) payload.set([2, 0, 1, 189, 127, 0, 0, 1], at)
        client.session.request(control, 1, { payload }, (reply) => {
          status = reply.status
        })
        await waitUntil("an answer", () => status !== undefined, 60_000)
        expect(status).toBe(-1)
      }
      expect(await cluster.client(1).controlStatus("PING", 1)).toBeGreaterThan(0)
      await client.close()
    },
    300_000,
  )

  // This ends a stock daemon, so it comes last.
  test(`row 8: a call that says it has a key of 1 GiB ${ours ? "is dropped" : "kills the daemon"}`, async () => {
    const { pid, socket } = node()
    let closed = false
    let replies = 0
    const connection = connectUnix(socket, {
      onPacket: () => replies++,
      onBadHeader: () => "drop",
      onClose: () => {
        closed = true
      },
    })
    const header = { generation: 0, destnode: CURRENT_NODE, srcnode: 0, reqid: 7 }
    const call = encodePacket(
      {
        operation: Operation.REQ_CALL,
        ...header,
        flags: 0,
        dbId: database.id,
        callid: CallId.NULL,
        hopcount: 0,
        key: utf8.encode("key12345"),
        data: new Uint8Array(0),
      },
      "client",
    )
    // The length of the key.
    new DataView(call.buffer).setUint32(48, 1 << 30, true)
    connection.send(call)
    connection.send(controlBytes(controls.PING.opcode, 8))
    await waitUntil("the next answer, or the node's end", () => replies > 0 || closed, 60_000)
    if (ours) {
      expect(closed).toBe(false)
      expect(processExists(pid)).toBe(true)
    } else await waitUntil("the node's end", () => !processExists(pid), 60_000)
    connection.close()
  }, 300_000)
})
