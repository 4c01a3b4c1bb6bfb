// What people see and scripts never do: tables, the question before a destructive command, hints. Runs our tool on a
// pseudo-terminal against an answering daemon.

import { afterAll, beforeAll, expect, test } from "bun:test"
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { sockAddrFrom } from "../../../lib/protocol/address.ts"
import { encode } from "../../../lib/protocol/codec.ts"
import { Operation } from "../../../lib/protocol/constants.ts"
import { controls } from "../../../lib/protocol/controls.ts"
import { encodePacket } from "../../../lib/protocol/packet.ts"
import { nodeMap } from "../../../lib/protocol/structs.ts"
import { type Answer, OPCODE, OURS, REQID, startAnswering } from "./answering.ts"

let directory: string
let counter = 0
beforeAll(() => {
  directory = mkdtempSync(join(tmpdir(), "ctdb-terminal-"))
})
afterAll(() => rmSync(directory, { recursive: true, force: true }))

const nodes = [
  { pnn: 0, flags: 0, addr: sockAddrFrom("192.168.20.41")! },
  { pnn: 1, flags: 0x8, addr: sockAddrFrom("192.168.20.42")! },
]

/** Node 0's daemon: knows the node map, refuses every change. */
const answer: Answer = (request) => {
  const opcode = request.readUInt32LE(OPCODE)
  const replies = new Map<number, Uint8Array>([
    [controls.GET_PNN.opcode, new Uint8Array(0)],
    [controls.REGISTER_SRVID.opcode, new Uint8Array(0)],
    [controls.GET_NODEMAP.opcode, encode(nodeMap, nodes)],
    [controls.GET_RUNSTATE.opcode, new Uint8Array([5, 0, 0, 0])],
    [controls.GET_IFACES.opcode, new Uint8Array(4)],
  ])
  const data = replies.get(opcode)
  const header = { generation: 7, destnode: 0, srcnode: 0, reqid: request.readUInt32LE(REQID) }
  const outcome =
    data === undefined ? { status: -1, data: new Uint8Array(0), error: "not today" } : { status: 0, data, error: "" }
  return [encodePacket({ operation: Operation.REPLY_CONTROL, ...header, ...outcome }, "client")]
}

/** Runs the tool on a terminal; `type` is typed as soon as the screen shows `when`. */
async function onTerminal(words: readonly string[], typing?: { readonly when: string; readonly type: string }) {
  const socket = join(directory, `${++counter}.socket`)
  const daemon = startAnswering(socket, answer)
  let screen = ""
  let typed = false
  const child = Bun.spawn([...OURS, ...words], {
    env: { PATH: "/usr/bin:/bin", CTDB_SOCKET: socket, CTDB_BASE: directory, NO_COLOR: "1", TERM: "xterm" },
    terminal: {
      cols: 100,
      rows: 30,
      data(terminal, bytes) {
        screen += new TextDecoder().decode(bytes)
        if (typing === undefined || typed || !screen.includes(typing.when)) return
        typed = true
        terminal.write(typing.type)
      },
    },
  })
  try {
    const status = await child.exited
    const opcodes = daemon.requests.map((request) => request.readUInt32LE(OPCODE))
    return { status, screen: screen.replaceAll("\r\n", "\n"), opcodes }
  } finally {
    child.terminal?.close()
    daemon.stop()
  }
}

const question = "Stop node 0?"
const stop = controls.STOP_NODE.opcode

test("no is the answer that changes nothing", async () => {
  for (const type of ["n", "\r", "\x03", "\x1b"]) {
    const run = await onTerminal(["stop"], { when: question, type })
    expect(run.status).toBe(1)
    expect(run.opcodes).not.toContain(stop)
  }
}, 300_000)

test("yes goes on, and the daemon's own words are shown", async () => {
  const run = await onTerminal(["stop"], { when: question, type: "y" })
  expect(run.opcodes).toContain(stop)
  expect(run.screen).toContain("Control STOP_NODE failed, ret=-1\n")
  expect(run.screen).toContain("not today")
}, 300_000)

test("--yes and every machine form ask nothing", async () => {
  for (const words of [
    ["--yes", "stop"],
    ["-X", "stop"],
    ["-Y", "stop"],
    ["--json", "stop"],
  ]) {
    const run = await onTerminal(words)
    expect(run.screen).not.toContain(question)
    expect(run.opcodes).toContain(stop)
  }
}, 300_000)

test("a table on a terminal, the stock lines with -X", async () => {
  const table = await onTerminal(["nodestatus", "all"])
  expect(table.screen).toContain("Node")
  expect(table.screen).toMatch(/1 +192\.168\.20\.42 +BANNED INACTIVE/)
  expect(table.status).toBe(8)
  const machine = await onTerminal(["-X", "nodestatus", "1"])
  expect(machine.screen).toContain("|1|192.168.20.42|0|0|1|0|0|0|1|0|N|\n")
}, 300_000)

test("former names and near misses get a hint", async () => {
  expect((await onTerminal(["recmaster"])).screen).toBe(
    `Unknown command 'recmaster'\n  It is called "ctdb leader" now.\n`,
  )
  expect((await onTerminal(["nodestat"])).screen).toContain("Did you mean: nodestatus?")
  expect((await onTerminal(["--help"])).screen).toContain("--yes")
}, 300_000)
