// Both tools against made-up clusters that are hard to get in reality: every flag, deleted nodes, IPv6, invalid
// generations, links down, odd counters. The expected texts are the reference page's; the stock tool confirms them.

import { afterAll, beforeAll, describe, expect, test } from "bun:test"
import { existsSync, mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { sockAddrFrom } from "../../../lib/protocol/address.ts"
import { type Codec, encode } from "../../../lib/protocol/codec.ts"
import { Operation, Srvid } from "../../../lib/protocol/constants.ts"
import { type ControlName, controls, type ReplyOf } from "../../../lib/protocol/controls.ts"
import { encodePacket } from "../../../lib/protocol/packet.ts"
import { type Answer, OPCODE, OURS, REQID, runTool, STOCK } from "./answering.ts"

/** What the daemon of node 0 says to each control: a reply, or a status alone. */
type Script = { readonly [N in ControlName]?: ReplyOf<N> | { readonly status: number } }

const NO_DATA = new Uint8Array(0)

function reply(reqid: number, status: number, data: Uint8Array, error = ""): Uint8Array {
  return encodePacket(
    { operation: Operation.REPLY_CONTROL, generation: 7, destnode: 0, srcnode: 0, reqid, status, data, error },
    "client",
  )
}

function answers(script: Script, leader: number | null): Answer {
  const rows = Object.entries(controls) as [ControlName, (typeof controls)[ControlName]][]
  return (request) => {
    const opcode = request.readUInt32LE(OPCODE)
    const reqid = request.readUInt32LE(REQID)
    const name = rows.find(([, row]) => row.opcode === opcode)?.[0]
    if (name === "GET_PNN") return [reply(reqid, 0, NO_DATA)]
    if (name === "REGISTER_SRVID") {
      const registered = reply(reqid, 0, NO_DATA)
      if (leader === null) return [registered]
      const data = new Uint8Array(new Uint32Array([leader]).buffer)
      const header = { generation: 7, destnode: 0, srcnode: leader, reqid: 0 }
      const message = { operation: Operation.REQ_MESSAGE, ...header, srvid: Srvid.LEADER, data }
      return [registered, encodePacket(message, "client")]
    }
    const said = name === undefined ? undefined : script[name]
    if (name === undefined || said === undefined) return [reply(reqid, -1, NO_DATA, "no such thing in this script")]
    if (typeof said === "object" && said !== null && "status" in said) return [reply(reqid, said.status, NO_DATA)]
    return [reply(reqid, 0, encode(controls[name].reply as Codec<unknown>, said))]
  }
}

let directory: string
let counter = 0
beforeAll(() => {
  directory = mkdtempSync(join(tmpdir(), "ctdb-scripted-"))
})
afterAll(() => rmSync(directory, { recursive: true, force: true }))

const stockInstalled = existsSync(STOCK[0])

/** Runs ours, and the stock tool if it is there, which must say the same. */
async function tool(line: string, script: Script, leader: number | null = 0) {
  const words = line.split(" ")
  const run = (which: readonly string[]) =>
    runTool(which, words, join(directory, `${++counter}.socket`), answers(script, leader))
  const own = await run(OURS)
  if (stockInstalled && !line.includes("--json")) expect(own).toEqual(await run(STOCK))
  return own
}

const node = (pnn: number, address: string, flags: number) => ({ pnn, flags, addr: sockAddrFrom(address)! })
const iface = (linkState: number) => ({ name: "eth2", linkState, references: 1 })

/** The cluster of the reference page's example. */
const example: Script = {
  GET_NODEMAP: [
    node(0, "192.168.20.41", 0),
    node(1, "192.168.20.42", 0x1),
    node(2, "192.168.20.43", 0x2),
    node(3, "192.168.20.44", 0x4),
    node(4, "192.168.20.45", 0x8),
    node(5, "192.168.20.46", 0x11),
    node(6, "192.168.20.47", 0x20),
    node(7, "0.0.0.0", 0x11),
  ],
  GET_RUNSTATE: 5,
  GETVNNMAP: { generation: 654321, map: [0] },
  GET_RECMODE: { status: 0 },
  GET_IFACES: [iface(0)],
}

const exampleNodes = `pnn:0 192.168.20.41    PARTIALLYONLINE (THIS NODE)
pnn:1 192.168.20.42    DISCONNECTED|INACTIVE
pnn:2 192.168.20.43    UNHEALTHY
pnn:3 192.168.20.44    DISABLED
pnn:4 192.168.20.45    BANNED|INACTIVE
pnn:6 192.168.20.47    STOPPED|INACTIVE
`

describe("status", () => {
  test("every flag, deleted nodes, an interface down", async () => {
    const run = await tool("status", example)
    expect(run.stdout).toBe(
      `Number of nodes:8 (including 2 deleted nodes)\n${exampleNodes}Generation:654321\nSize:1\nhash:0 lmaster:0\nRecovery mode:NORMAL (0)\nLeader:0\n`,
    )
    expect(run.status).toBe(0)
  })

  test("machine form", async () => {
    const run = await tool("-X status", example)
    const lines = run.stdout.split("\n")
    expect(lines[0]).toBe(
      "|Node|IP|Disconnected|Unknown|Banned|Disabled|Unhealthy|Stopped|Inactive|PartiallyOnline|ThisNode|",
    )
    expect(lines[1]).toBe("|0|192.168.20.41|0|0|0|0|0|0|0|1|Y|")
    expect(lines[2]).toBe("|1|192.168.20.42|1|0|0|0|0|0|1|0|N|")
    expect(lines[5]).toBe("|4|192.168.20.45|0|0|1|0|0|0|1|0|N|")
    expect(lines.length).toBe(8)
  })

  test("JSON has the newest release's layout", async () => {
    const script = { ...example, GET_NODEMAP: [node(0, "192.168.20.41", 0)], GET_IFACES: [] }
    const run = await tool("--json status", script)
    expect(run.stdout).toBe(`{
  "node_status": {
    "node_count": 1,
    "deleted_node_count": 0,
    "nodes": {
      "0": {
        "pnn": 0,
        "address": "192.168.20.41",
        "partially_online": false,
        "flags_raw": 0,
        "flags_ok": true,
        "flags": {
          "disconnected": false,
          "unknown": false,
          "disabled": false,
          "banned": false,
          "unhealthy": false,
          "deleted": false,
          "stopped": false,
          "inactive": false
        },
        "this_node": true
      }
    }
  },
  "vnn_status": {
    "generation": 654321,
    "size": 1,
    "vnn_map": [
      {
        "hash": 0,
        "lmaster": 0
      }
    ]
  },
  "recovery_mode": "NORMAL",
  "recovery_mode_raw": 0,
  "leader": 0
}
`)
  })

  test("no recovery yet: invalid generation, recovery mode, other nodes unknown", async () => {
    const script: Script = {
      ...example,
      GET_NODEMAP: [
        node(0, "192.168.20.41", 0x2),
        node(1, "192.168.20.42", 0x1),
        node(2, "fd00:1234:5678:9abc:def0:1234:5678:9abc", 0x2),
        node(3, "192.168.20.44", 0),
      ],
      GET_RUNSTATE: 3,
      GETVNNMAP: { generation: 1, map: [] },
      GET_RECMODE: { status: 1 },
    }
    const run = await tool("status", script, 0)
    expect(run.stdout).toBe(`Number of nodes:4
pnn:0 192.168.20.41    UNHEALTHY (THIS NODE)
pnn:1 192.168.20.42    DISCONNECTED|INACTIVE
pnn:2 fd00:1234:5678:9abc:def0:1234:5678:9abc UNKNOWN
pnn:3 192.168.20.44    UNKNOWN
Generation:INVALID
Size:0
Recovery mode:RECOVERY (1)
Leader:0
`)
    const json = JSON.parse((await tool("--json status", script, 0)).stdout)
    expect([json.vnn_status.generation, json.vnn_status.vnn_map, json.node_status.nodes[3].flags_raw]).toEqual([
      null,
      [],
      64,
    ])
    expect((await tool("nodestatus all", script, 0)).status).toBe(0x40 | 0x2 | 0x1)
    for (const state of [1, 2, 4, 6, 9]) await tool("-X nodestatus all", { ...script, GET_RUNSTATE: state })
  })

  test("nobody leads: UNKNOWN after the time limit", async () => {
    const run = await tool("-t 1 status", example, null)
    expect(run.stdout).toEndWith("Leader:UNKNOWN\n")
    expect((await tool("-t 1 leader", example, null)).stdout).toBe("UNKNOWN\n")
    expect(JSON.parse((await tool("-t 1 --json status", example, null)).stdout).leader).toBe(0xffffffff)
    // Three time limits of a second each.
  }, 300_000)

  test("replies that fail at each step", async () => {
    for (const name of ["GET_NODEMAP", "GET_RUNSTATE", "GETVNNMAP", "GET_IFACES"] as const) {
      for (const status of [-1, 1, 22, -22]) {
        const script = { ...example, [name]: { status } }
        for (const line of ["status", "-X status", "nodestatus all", "-n 2 status", "nodestatus 1,2"])
          await tool(line, script)
      }
    }
    for (const status of [2, -1, 255]) await tool("status", { ...example, GET_RECMODE: { status } })
  }, 300_000)
})

describe("nodestatus", () => {
  test("the exit status is all flags together", async () => {
    const all = await tool("nodestatus all", example)
    expect(all.stdout).toBe(`Number of nodes:8 (including 2 deleted nodes)\n${exampleNodes}`)
    expect(all.status).toBe(47)
    expect((await tool("nodestatus 1,4", example)).status).toBe(9)
    expect(await tool("nodestatus 5", example)).toMatchObject({ stdout: "", status: 0 })
    expect(await tool("nodestatus 99", example)).toMatchObject({ stderr: "Node 99 does not exist\n", status: 1 })
  })
})

describe("choosing a node", () => {
  test("-n of nodes in every state", async () => {
    for (const pnn of [0, 1, 2, 3, 4, 5, 6, 7, 8, 0x10]) await tool(`-n ${pnn} runstate`, example)
    const run = await tool("-n 5 ping", example)
    expect(run).toMatchObject({ stderr: "Node 5 has status DISCONNECTED|DELETED|INACTIVE\n", status: 1 })
    for (const line of ["-n 1 pnn", "-n 2 pnn", "-n 2 reloadnodes", "-n 0 pnn", "-n 4 catdb x"])
      await tool(line, example)
  })

  test("a banned local node: the next one that is connected is asked, until all are banned", async () => {
    const banned = (...flags: number[]): Script => ({
      ...example,
      GET_NODEMAP: flags.map((flag, pnn) => node(pnn, `192.168.20.${41 + pnn}`, flag)),
    })
    for (const map of [
      banned(0x8, 0, 0),
      banned(0x8, 0x1, 0x8),
      banned(0x8, 0x8),
      banned(0x8),
      banned(0x8, 0x11, 0x20),
    ]) {
      for (const line of ["status", "nodestatus 0", "-n 1 runstate"]) await tool(line, map)
    }
  })
})

describe("one question each", () => {
  const cases: readonly (readonly [string, Script])[] = [
    ...[0, 1, 2, 3, 0x30003, 0x10000].flatMap((bits): [string, Script][] => [
      ["getcapabilities", { GET_CAPABILITIES: bits }],
      ["-X getcapabilities", { GET_CAPABILITIES: bits }],
    ]),
    ...[-1, 0, 1, 2, 3, 4, 5, 6, 9, 10, 11, 1000].map((level): [string, Script] => ["getdebug", { GET_DEBUG: level }]),
    ...[0, 1, 2, 3, 4, 5, 6, 7, 1000].map((state): [string, Script] => ["runstate", { GET_RUNSTATE: state }]),
    ...["", "/x/lock", "!helper arg"].map((text): [string, Script] => ["getreclock", { GET_RECLOCK_FILE: text }]),
    ["getreclock", { GET_RECLOCK_FILE: null }],
    ...[6628, 0, -1, 0x7fffffff].map((status): [string, Script] => ["getpid", { GET_PID: { status } }]),
    ...[2, 0, -1, 1000].map((status): [string, Script] => ["ping", { PING: { status } }]),
    ...[0, -1, 1, 3, 300].map((status): [string, Script] => ["process-exists 77", { PROCESS_EXISTS: { status } }]),
    ...[0, -1, 1].map((status): [string, Script] => ["process-exists 77 0x4d2", { CHECK_PID_SRVID: { status } }]),
    ...[0, -1, 1, 22].map((status): [string, Script] => [
      "setvar Some 5",
      { LIST_TUNABLES: ["Other", "Some"], SET_TUNABLE: { status } },
    ]),
    ["getvar some", { LIST_TUNABLES: ["Other", "Some"], GET_TUNABLE: 4294967295 }],
    ["getvar some", { LIST_TUNABLES: ["Other", "Some"], GET_TUNABLE: { status: -1 } }],
    ["getvar some", { LIST_TUNABLES: { status: -1 } }],
    ["setvar some 1", { LIST_TUNABLES: { status: -1 } }],
    ["setdebug 4", { SET_DEBUG: { status: 0 } }],
    ["setdebug DEBUG", { SET_DEBUG: { status: 5 } }],
    ["statisticsreset", { STATISTICS_RESET: { status: -1 } }],
    ["statistics", { STATISTICS: { status: -1 } }],
    ["uptime", { UPTIME: { status: -1 } }],
    ["setlmasterrole on", { SET_LMASTERROLE: { status: 0 } }],
    ["setleaderrole off", { SET_RECMASTERROLE: { status: 0 } }],
    ["setleaderrole off", { SET_RECMASTERROLE: { status: -1 } }],
    ["ifaces", { GET_IFACES: [iface(0), iface(1)] }],
    ["-X ifaces", { GET_IFACES: [iface(0), iface(1)] }],
    ["dumpmemory", { DUMP_MEMORY: "two\nlines\n" }],
    ["dumpmemory", { DUMP_MEMORY: "no newline" }],
  ]
  test.each(cases.map(([line, script], index) => [index, line, script] as const))(
    "%d: %s",
    async (_index, line, script) => {
      await tool(line, script)
    },
  )

  test("commands that change a flag: refused, already so, bad numbers", async () => {
    const flagged = (flags: number): Script => ({
      GET_NODEMAP: [node(0, "192.168.20.41", 0), node(1, "192.168.20.42", flags)],
    })
    const refused = { status: -1 }
    const lines: readonly (readonly [string, Script])[] = [
      ["-n 1 disable", { ...flagged(0), DISABLE_NODE: refused }],
      ["-n 1 disable", flagged(0x4)],
      ["-n 1 enable", { ...flagged(0x4), ENABLE_NODE: refused }],
      ["-n 1 enable", flagged(0x2)],
      ["-n 1 stop", { ...flagged(0), STOP_NODE: { status: 3 } }],
      ["-n 1 stop", flagged(0x20)],
      ["-n 1 continue", { ...flagged(0x20), CONTINUE_NODE: refused }],
      ["-n 1 continue", flagged(0x8)],
      ["-n 1 ban 60", { ...flagged(0), SET_BAN_STATE: refused }],
      ["-n 1 ban 0", flagged(0)],
      ["-n 1 ban zz", flagged(0)],
      ["-n 1 ban 99999999999999999999", flagged(0)],
      ["-n 1 ban zz", flagged(0x8)],
      ["-n 1 unban", { ...flagged(0x8), SET_BAN_STATE: refused }],
      ["-n 1 unban", flagged(0x20)],
      ["disable", { GET_NODEMAP: refused, DISABLE_NODE: refused }],
      ["unban", { GET_NODEMAP: [node(0, "192.168.20.41", 0x8)], SET_BAN_STATE: refused }],
    ]
    for (const [line, script] of lines) await tool(line, script)
  }, 300_000)

  test("recover: each step may fail", async () => {
    const normal: Script = { GET_RECMODE: { status: 0 }, GETVNNMAP: { generation: 5, map: [0] } }
    const refused = { status: -1 }
    await tool("recover", { ...normal, SET_RECMODE: refused })
    await tool("recover", { ...normal, GETVNNMAP: refused })
    await tool("recover", { ...normal, GET_RECMODE: refused })
    await tool("-t 1 recover", { ...normal, SET_RECMODE: refused }, null)
    // The generation never changes: only the time limit of the run ends it.
    const run = await tool("recover", { ...normal, SET_RECMODE: { status: 0 } })
    expect(run).toMatchObject({ stderr: "Maximum runtime exceeded - exiting\n", status: 1 })
  }, 300_000)

  test("uptime: days, and a recovery that still runs", async () => {
    const time = (sec: number, usec: number) => ({ sec, usec })
    const run = await tool("uptime", {
      UPTIME: {
        currentTime: time(1795452544, 0),
        ctdbdStartTime: time(1795452544 - (3 * 86400 + 2 * 3600 + 61), 5),
        lastRecoveryStarted: time(1795452543, 500000),
        lastRecoveryFinished: time(1795452542, 250000),
      },
    })
    expect(run.stdout).toContain("Ctdbd start time              : (003 02:01:01) ")
    expect(run.stdout).toContain("Duration of last recovery/failover: -1.250000 seconds\n")
    expect(run.stdout).toStartWith("Current time of node 0        :                Mon Nov 23 16:49:04 2026\n")
  })
})
