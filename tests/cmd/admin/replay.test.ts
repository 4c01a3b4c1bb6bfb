// Both tools against recorded answers of real daemons: a server replays what a daemon said in a captured conversation, to
// the stock tool and to ours. Their requests must be the same bytes in the same order, and their outputs the same text.
// Nothing needs a mask but the time that a ping takes, as both see the same replies.

import { afterAll, beforeAll, describe, expect, test } from "bun:test"
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { type Answer, OPERATION, OURS, REQID, runTool, STOCK, withoutId } from "./answering.ts"

const VECTORS = join(import.meta.dir, "../../vectors")

interface Frame {
  readonly version: string
  readonly command: string
  readonly connection: number
  readonly direction: "to-daemon" | "to-client"
  readonly hex: string
}

const frames: readonly Frame[] = JSON.parse(readFileSync(join(VECTORS, "capture.json"), "utf8"))

/** The operation of a message (wire-protocol 2.3). */
const REQ_MESSAGE = 5

const u32 = (bytes: Buffer, at: number) => bytes.readUInt32LE(at)

/** One recorded conversation: requests with their replies, and what the daemon sent unasked. */
function conversation(version: string, command: string) {
  const own = frames.filter((frame) => frame.version === version && frame.command === command)
  const packets = own
    .filter((frame) => frame.connection === own[0]?.connection)
    .map(({ direction, hex }) => ({ direction, bytes: Buffer.from(hex, "hex") }))
  const replies = packets.filter(
    ({ direction, bytes }) => direction === "to-client" && u32(bytes, OPERATION) !== REQ_MESSAGE,
  )
  const requests = packets.filter(({ direction }) => direction === "to-daemon").map(({ bytes }) => bytes)
  return {
    answers: requests.map((request) => ({
      key: withoutId(request),
      reply: replies.find(({ bytes }) => u32(bytes, REQID) === u32(request, REQID))?.bytes,
    })),
    messages: packets
      .filter(({ direction, bytes }) => direction === "to-client" && u32(bytes, OPERATION) === REQ_MESSAGE)
      .map(({ bytes }) => bytes),
  }
}

/** Answers each request that was recorded (the same one again with the next recorded reply, then with the last). */
function replay(version: string, command: string): Answer {
  const { answers, messages } = conversation(version, command)
  const used = new Map<string, number>()
  return (request, index) => {
    const key = withoutId(request)
    const matching = answers.filter((answer) => answer.key === key)
    const turn = used.get(key) ?? 0
    used.set(key, turn + 1)
    const recorded = matching[Math.min(turn, matching.length - 1)]?.reply
    if (recorded === undefined) return []
    const reply = Buffer.from(recorded)
    reply.writeUInt32LE(u32(request, REQID), REQID)
    // The second request registers for leader broadcasts; from then on the daemon speaks unasked.
    return index === 1 ? [reply, ...messages] : [reply]
  }
}

let directory: string
let counter = 0

beforeAll(() => {
  directory = mkdtempSync(join(tmpdir(), "ctdb-replay-"))
})
afterAll(() => rmSync(directory, { recursive: true, force: true }))

function runAgainst(tool: readonly string[], words: readonly string[], version: string, command: string) {
  return runTool(tool, words, join(directory, `${++counter}.socket`), replay(version, command))
}

/** Recorded commands whose requests hold no process id, and that our tool asks in the stock order. */
const recorded: readonly (readonly [version: string, command: string])[] = [
  "status",
  "nodestatus",
  "nodestatus all",
  "pnn",
  "getpid",
  "ping",
  "runstate",
  "uptime",
  "getcapabilities",
  "leader",
  "getdebug",
  "setdebug NOTICE",
  "getreclock",
  "statistics",
  "getvar MonitorInterval",
  "getvar NoSuchVariable",
  "setvar MonitorInterval 15",
  "setvar NoSuchVariable 1",
  "setvar MaxRedirectCount 3",
  "ip",
  "ipinfo 192.168.100.1",
  "ifaces",
  "gettickles 192.168.100.1",
  "process-exists 1",
  "getvar MonitorInterval -n 1",
  "setifacelink lo up",
  "statisticsreset",
  "addtickle 10.1.1.1:50001 192.168.100.1:445",
  "deltickle 10.1.1.1:50001 192.168.100.1:445",
].flatMap((words) =>
  ["4.25.0pre1", "4.17.12"]
    .filter((version) => frames.some((frame) => frame.version === version && frame.command === `ctdb ${words}`))
    .map((version): [string, string] => [version, `ctdb ${words}`]),
)

describe.skipIf(!existsSync(STOCK[0]))("recorded conversations", () => {
  test("there are some of both releases", () => {
    expect(new Set(recorded.map(([version]) => version)).size).toBe(2)
    expect(recorded.length).toBeGreaterThan(30)
  })

  test.each(recorded)(
    "%s: %s",
    async (version, command) => {
      const words = command.split(" ").slice(1)
      for (const options of [[], ["-X"], ["-Y", "-x:"]]) {
        const stock = await runAgainst(STOCK, [...options, ...words], version, command)
        const own = await runAgainst(OURS, [...options, ...words], version, command)
        expect(own).toEqual(stock)
        expect(stock.requests.length).toBeGreaterThan(1)
      }
    },
    300_000,
  )

  test("JSON has the same figures as the text", async () => {
    const text = await runAgainst(OURS, ["statistics"], "4.17.12", "ctdb statistics")
    const json = await runAgainst(OURS, ["--json", "statistics"], "4.17.12", "ctdb statistics")
    const value = JSON.parse(json.stdout)
    for (const name of ["num_clients", "num_recoveries", "client_packets_sent", "memory_used"]) {
      expect(text.stdout).toContain(` ${name.padEnd(22)}    ${String(value[name]).padStart(10)}\n`)
    }
    expect(text.stdout).toContain(` hop_count_buckets: ${value.hop_count_buckets.join(" ")}\n`)
    expect(text.stdout).toContain(`     ${"req_control".padEnd(22)}${String(value.node.req_control).padStart(10)}\n`)
  })
})
