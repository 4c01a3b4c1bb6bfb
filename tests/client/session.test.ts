// The session alone, on a connection and a clock that the test moves: what it sends to the byte, how replies find their
// requests, what fails how, and what happens to what comes too late.

import { describe, expect, test } from "bun:test"
import { readFileSync } from "node:fs"
import { join } from "node:path"
import { type ControlReply, Session } from "../../lib/client/session.ts"
import { type PacketConnection, Priority, type Scheduler, type Timer } from "../../lib/net/ports.ts"
import { CURRENT_NODE, Srvid } from "../../lib/protocol/constants.ts"
import {
  decodePacket,
  encodePacket,
  Operation,
  type Packet,
  type ReqControl,
  type ReqTunnel,
} from "../../lib/protocol/packet.ts"
import { type Word64, word64, ZERO64 } from "../../lib/protocol/word64.ts"

/** Time that stands still until advance(); timers in order of time. */
class VirtualTime implements Scheduler {
  now = 0
  private timers: { readonly at: number; readonly run: () => void }[] = []
  monotonicMs(): number {
    return this.now
  }
  setTimer(delayMs: number, run: () => void): Timer {
    const timer = { at: this.now + delayMs, run }
    this.timers.push(timer)
    return {
      cancel: () => {
        this.timers = this.timers.filter((other) => other !== timer)
      },
    }
  }
  nextTurn(run: () => void): void {
    this.setTimer(0, run)
  }
  workEndsMs(): number {
    return this.now + 1
  }
  advance(ms: number): void {
    const end = this.now + ms
    for (;;) {
      const due = this.timers.filter(({ at }) => at <= end).sort((a, b) => a.at - b.at)[0]
      if (due === undefined) break
      this.timers = this.timers.filter((other) => other !== due)
      this.now = due.at
      due.run()
    }
    this.now = end
  }
  get waiting(): number {
    return this.timers.length
  }
}

class Wire implements PacketConnection {
  readPriority: Priority = Priority.BULK
  readonly sent: Uint8Array[] = []
  closed = false
  readonly queuedBytes = 0
  readonly queuedPackets = 0
  send(packet: Uint8Array): void {
    this.sent.push(packet)
  }
  pause(): void {}
  resume(): void {}
  close(): void {
    this.closed = true
  }
  get last(): Packet {
    return decodePacket(this.sent.at(-1)!)
  }
}

function start() {
  const time = new VirtualTime()
  const session = new Session(time)
  const wire = new Wire()
  session.attach(wire)
  session.pnn = 2
  const receive = (packet: Packet): void => session.handler.onPacket(encodePacket(packet, "daemon"))
  const header = { generation: 77, destnode: 0, srcnode: 2 }
  const reply = (reqid: number, status = 0, data: Uint8Array = new Uint8Array(0), error = ""): void =>
    receive({ operation: Operation.REPLY_CONTROL, ...header, reqid, status, data, error })
  const message = (srvid: Word64, data: Uint8Array): void =>
    receive({ operation: Operation.REQ_MESSAGE, ...header, reqid: 0, srvid, data })
  return { time, session, wire, receive, header, reply, message }
}

const bytes = (...values: number[]): Uint8Array => new Uint8Array(values)

describe("requests", () => {
  test("the first packets of a client are the stock tool's, byte for byte", () => {
    const captured = JSON.parse(readFileSync(join(import.meta.dir, "../vectors/capture.json"), "utf8")) as {
      version: string
      command: string
      direction: string
      hex: string
    }[]
    const pnn = captured.filter((entry) => entry.version === "4.17.12" && entry.direction === "to-daemon")
    const [hello, leader] = pnn.map(({ hex }) => hex)
    const session = new Session(new VirtualTime())
    const wire = new Wire()
    session.attach(wire)
    session.request("GET_PNN", CURRENT_NODE, {}, () => {})
    // In the captures of 4.17 node 1 is the local one.
    session.pnn = 1
    session.onMessage(Srvid.LEADER, () => {})
    expect(wire.sent.map((packet) => Buffer.from(packet).toString("hex"))).toEqual([hello!, leader!])
  })

  test("ids start at 0x7FFFFF38, wrap to 0 after 0x7FFFFFFF and skip those in use (wire-protocol 2.6)", () => {
    const { session, wire, reply } = start()
    const send = (): number => {
      session.request("PING", 2, {}, () => {})
      return wire.last.reqid
    }
    const first = send()
    expect(first).toBe(0x7fffff38)
    const ids = Array.from({ length: 199 }, send)
    expect(ids.at(-1)).toBe(0x7fffffff)
    expect([send(), send(), send()]).toEqual([0, 1, 2])
    // Everything is answered but 0 and the first; after 2^31 more requests they would be met again.
    for (const id of [...ids, 1, 2]) reply(id)
    expect(session.pendingRequests).toBe(2)
    ;(session as unknown as { nextId: number }).nextId = 0x7fffff38
    expect(send()).toBe(0x7fffff39)
    ;(session as unknown as { nextId: number }).nextId = 0x7fffffff
    expect([send(), send()]).toEqual([0x7fffffff, 1])
    ;(session as unknown as { nextId: number }).nextId = 0x7fffffff
    // The last id, 0 and 1 are all in use.
    expect(send()).toBe(2)
  })

  test("replies in any order reach their own requests, each once", () => {
    const { session, reply } = start()
    const seen: string[] = []
    for (let i = 0; i < 4; i++) {
      session.request("GETDBPATH", 2, { request: i }, (answer) => seen.push(`${i}:${answer.ok && answer.data[0]}`))
    }
    for (const i of [2, 0, 3, 1, 2, 0]) reply(0x7fffff38 + i, 0, bytes(i))
    expect(seen).toEqual(["2:2", "0:0", "3:3", "1:1"])
    expect(session.pendingRequests).toBe(0)
  })

  test("a reply's bytes are the callback's own", () => {
    const { session } = start()
    let kept: Uint8Array | undefined
    session.request("DUMP_MEMORY", 2, {}, (answer) => {
      if (answer.ok) kept = answer.data
    })
    const packet = encodePacket(
      {
        operation: Operation.REPLY_CONTROL,
        generation: 1,
        destnode: 0,
        srcnode: 2,
        reqid: 0x7fffff38,
        status: 0,
        data: bytes(1, 2, 3),
        error: "",
      },
      "daemon",
    )
    session.handler.onPacket(packet)
    packet.fill(0)
    expect(kept).toEqual(bytes(1, 2, 3))
  })

  test("a status that is a value is a success from 0 on; elsewhere only 0 is", () => {
    const { session, reply } = start()
    const answers: ControlReply[] = []
    session.request("PING", 2, {}, (answer) => answers.push(answer))
    session.request("SET_DEBUG", 2, { request: 3 }, (answer) => answers.push(answer))
    session.request("PING", 9, {}, (answer) => answers.push(answer))
    reply(0x7fffff38, 5)
    reply(0x7fffff39, 5)
    reply(0x7fffff3a, -1, bytes(), "ctdb_control to disconnected node")
    expect(answers).toEqual([
      { ok: true, status: 5, data: bytes() },
      { ok: false, reason: "status", status: 5, error: "" },
      { ok: false, reason: "status", status: -1, error: "ctdb_control to disconnected node" },
    ])
  })

  test("a reply that does not decode fails its own request only", () => {
    const { session, reply } = start()
    const answers: ControlReply[] = []
    session.request("GET_DEBUG", 2, {}, (answer) => answers.push(answer))
    session.request("GET_DEBUG", 2, {}, (answer) => answers.push(answer))
    const packet = encodePacket(
      {
        operation: Operation.REPLY_CONTROL,
        generation: 1,
        destnode: 0,
        srcnode: 2,
        reqid: 0x7fffff38,
        status: 0,
        data: bytes(3, 0, 0, 0),
        error: "",
      },
      "daemon",
    )
    new DataView(packet.buffer).setUint32(36, 0xffffffff, true)
    session.handler.onPacket(packet)
    reply(0x7fffff39, 0, bytes(3, 0, 0, 0))
    expect(answers.map((answer) => (answer.ok ? "ok" : answer.reason))).toEqual(["protocol", "ok"])
    expect(answers[0]).toHaveProperty("cause.code", "EMSGSIZE")
  })

  test("time runs out at its moment; the late reply is dropped, and its id is free again", () => {
    const { time, session, reply } = start()
    const answers: ControlReply[] = []
    session.request("PING", 2, { timeoutMs: 1000 }, (answer) => answers.push(answer))
    time.advance(999)
    expect(answers).toEqual([])
    time.advance(1)
    expect(answers).toEqual([{ ok: false, reason: "timeout", status: -1, error: "no reply in 1000 ms" }])
    reply(0x7fffff38, 3)
    expect(answers.length).toBe(1)
    expect([session.pendingRequests, time.waiting]).toEqual([0, 0])
  })

  test("an answered request leaves no timer behind, and without a limit none is set", () => {
    const { time, session, reply } = start()
    session.request("PING", 2, { timeoutMs: 1000 }, () => {})
    session.request("PING", 2, { timeoutMs: 0 }, () => {})
    expect(time.waiting).toBe(1)
    reply(0x7fffff38)
    expect(time.waiting).toBe(0)
  })

  test("a cancelled request is never heard of again, and does not cancel the id's next user", () => {
    const { time, session, reply } = start()
    const heard: string[] = []
    const first = session.request("PING", 2, { timeoutMs: 100 }, () => heard.push("first"))
    first.cancel()
    ;(session as unknown as { nextId: number }).nextId = 0x7fffff38
    session.request("PING", 2, {}, () => heard.push("second"))
    first.cancel()
    time.advance(200)
    reply(0x7fffff38)
    expect(heard).toEqual(["second"])
  })

  test("without a reply wanted, NOREPLY is set and nothing waits", () => {
    const { session, wire } = start()
    session.sendControl("SHUTDOWN", 1, {})
    expect(wire.last).toMatchObject({ opcode: 36, destnode: 1, srcnode: 2, flags: 1, clientId: 0 })
    expect(session.pendingRequests).toBe(0)
  })

  test("what can't be encoded is thrown at the caller, and nothing is sent or waits", () => {
    const { session, wire } = start()
    expect(() => session.request("SET_DEBUG", 2, { request: 2 ** 40 }, () => {})).toThrow()
    expect(() => session.call({ dbId: 1, key: bytes(), callid: 0xff000001 }, () => {})).toThrow()
    expect([wire.sent.length, session.pendingRequests]).toEqual([0, 0])
  })
})

describe("calls", () => {
  test("go to the current node, and their replies are told from controls'", () => {
    const { session, wire, receive, header, reply } = start()
    const answers: ControlReply[] = []
    session.call({ dbId: 9, key: bytes(107), callid: 0xff000002 }, (answer) => answers.push(answer))
    expect(wire.last).toMatchObject({ operation: 0, destnode: CURRENT_NODE, srcnode: 2, dbId: 9, hopcount: 0 })
    const { reqid } = wire.last
    // A control's reply with a call's id can't be meant for it.
    reply(reqid, 0, bytes(1))
    expect(answers).toEqual([])
    receive({ operation: Operation.REPLY_CALL, ...header, reqid, status: 0, data: bytes(4, 5) })
    expect(answers).toEqual([{ ok: true, status: 0, data: bytes(4, 5) }])
  })

  test("an error packet ends a call", () => {
    const { session, wire, receive, header } = start()
    const answers: ControlReply[] = []
    session.call({ dbId: 9, key: bytes(107), callid: 0xff000001 }, (answer) => answers.push(answer))
    const { reqid } = wire.last
    receive({ operation: Operation.REPLY_ERROR, ...header, reqid, status: -1, message: "Unknown database" })
    expect(answers).toEqual([{ ok: false, reason: "status", status: -1, error: "Unknown database" }])
  })
})

describe("messages", () => {
  test("one registration serves all handlers of a srvid; the last one gone takes it back", () => {
    const { session, wire, message } = start()
    const srvid = word64(0xce010000, 7)
    const seen: string[] = []
    const first = session.onMessage(srvid, (data) => seen.push(`first ${data[0]}`))
    const second = session.onMessage(srvid, (data) => seen.push(`second ${data[0]}`))
    expect(wire.sent.length).toBe(1)
    expect(wire.last).toMatchObject({ opcode: 23, srvid, destnode: 2 })
    message(srvid, bytes(1))
    message(word64(0xce010000, 8), bytes(9))
    // The same words the other way round share the table's key.
    message(word64(7, 0xce010000), bytes(9))
    first.cancel()
    first.cancel()
    message(srvid, bytes(2))
    expect(wire.sent.length).toBe(1)
    second.cancel()
    message(srvid, bytes(3))
    expect(wire.last).toMatchObject({ opcode: 24, srvid, flags: 1 })
    expect(seen).toEqual(["first 1", "second 1", "second 2"])
  })

  test("a handler for all hears everything, with the srvid it was sent to", () => {
    const { session, message } = start()
    const seen: Word64[] = []
    session.onMessage(Srvid.ALL, (_data, srvid) => seen.push(srvid))
    message(word64(1, 2), bytes(1))
    message(ZERO64, bytes())
    expect(seen).toEqual([word64(1, 2), ZERO64])
  })

  test("handlers may come and go while a message is delivered", () => {
    const { session, message } = start()
    const seen: string[] = []
    const second = { cancel: () => {} }
    session.onMessage(ZERO64, () => {
      seen.push("first")
      second.cancel()
      session.onMessage(ZERO64, () => seen.push("third"))
    })
    second.cancel = session.onMessage(ZERO64, () => seen.push("second")).cancel
    message(ZERO64, bytes())
    expect(seen).toEqual(["first"])
  })

  test("truncated packets and operations that no daemon sends to clients are ignored", () => {
    const { session, wire, message, receive, header } = start()
    const seen: number[] = []
    session.onMessage(ZERO64, (data) => seen.push(data.length))
    const short = encodePacket(
      { operation: Operation.REQ_MESSAGE, ...header, reqid: 0, srvid: ZERO64, data: bytes(1, 2) },
      "client",
    )
    new DataView(short.buffer).setUint32(40, 5000, true)
    session.handler.onPacket(short)
    session.handler.onPacket(short.slice(0, 40))
    receive({ operation: Operation.REQ_KEEPALIVE, ...header, reqid: 0, version: 1, uptime: 1, hasVersion: true })
    receive(wire.last)
    expect(session.handler.onBadHeader("anything")).toBe("drop")
    message(ZERO64, bytes(1, 2, 3))
    expect(seen).toEqual([3])
  })
})

describe("tunnels", () => {
  const id = word64(0xffffffff, 0xf0f0f0f0)

  test("requests reach the handler, replies their request", () => {
    const { session, wire, receive, header } = start()
    const seen: number[][] = []
    const tunnel = session.onTunnel(id, ({ srcnode, flags, data }) => seen.push([srcnode, flags, ...data]))
    expect(wire.last).toMatchObject({ opcode: 152, srvid: id })
    receive({ operation: Operation.REQ_TUNNEL, ...header, reqid: 0, tunnelId: id, flags: 0x11, data: bytes(5) })
    receive({ operation: Operation.REQ_TUNNEL, ...header, reqid: 0, tunnelId: ZERO64, flags: 0x11, data: bytes(6) })
    receive({ operation: Operation.REQ_TUNNEL, ...header, reqid: 0, tunnelId: id, flags: 0, data: bytes(7) })
    expect(seen).toEqual([[2, 0x11, 5]])
    const answers: ControlReply[] = []
    session.requestTunnel(1, id, bytes(1), 1000, (answer) => answers.push(answer))
    const { reqid } = wire.last as ReqTunnel
    receive({ operation: Operation.REQ_TUNNEL, ...header, reqid, tunnelId: id, flags: 2, data: bytes(8) })
    expect(answers).toEqual([{ ok: true, status: 0, data: bytes(8) }])
    tunnel.cancel()
    expect(wire.last).toMatchObject({ opcode: 153, srvid: id })
  })
})

describe("the end of a connection", () => {
  test("fails what waits, then tells the owner, once", () => {
    const { time, session } = start()
    const heard: string[] = []
    session.onClosed = (reason) => heard.push(`closed: ${reason}`)
    session.request("PING", 2, { timeoutMs: 50 }, (answer) => heard.push(answer.ok ? "ok" : answer.reason))
    session.handler.onClose("end of file")
    session.handler.onClose("again")
    time.advance(100)
    expect(heard).toEqual(["closed", "closed: end of file"])
    expect(session.isOpen).toBe(false)
  })

  test("by close() fails what waits later, and keeps quiet", () => {
    const { time, session, wire } = start()
    const heard: string[] = []
    session.onClosed = () => heard.push("told")
    session.request("PING", 2, {}, (answer) => heard.push(answer.ok ? "ok" : answer.reason))
    session.close()
    expect([wire.closed, heard.length]).toEqual([true, 0])
    time.advance(0)
    expect(heard).toEqual(["closed"])
  })

  test("requests without a connection fail in a later turn, and messages go nowhere", () => {
    const time = new VirtualTime()
    const session = new Session(time)
    const heard: ControlReply[] = []
    session.sendMessage(1, ZERO64, bytes(1))
    session.request("PING", 0, { timeoutMs: 1000 }, (answer) => heard.push(answer))
    expect(heard).toEqual([])
    time.advance(0)
    expect(heard).toEqual([{ ok: false, reason: "closed", status: -1, error: "not connected" }])
  })

  test("a new connection gets the registrations again, and none of the old requests", () => {
    const { time, session } = start()
    const heard: string[] = []
    session.onMessage(word64(1, 1), () => {})
    session.onMessage(word64(1, 2), () => {}).cancel()
    session.onTunnel(word64(1, 3), () => {})
    session.request("PING", 2, {}, (answer) => heard.push(answer.ok ? "ok" : answer.reason))
    session.close()
    const wire = new Wire()
    session.attach(wire)
    session.request("PING", 2, {}, (answer) => heard.push(answer.ok ? "ok" : answer.reason))
    time.advance(10)
    expect(heard).toEqual(["closed"])
    const again = wire.sent.map((packet) => decodePacket(packet) as ReqControl)
    expect(again.map(({ opcode, srvid, flags }) => [opcode, srvid.lo, flags])).toEqual([
      [23, 1, 1],
      [152, 3, 1],
      [3, 0, 0],
    ])
  })
})
