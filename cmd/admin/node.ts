// Commands that ask one daemon one thing about itself, or set one: ping, uptime, runstate, capabilities and roles, debug
// level, pids, cluster lock, memory. Reference page "Admin tool", sections 8.1, 8.2 and 8.13.

import { encode } from "../../lib/protocol/codec.ts"
import { Capability, RunState, Srvid } from "../../lib/protocol/constants.ts"
import { srvidMessage, type Timeval } from "../../lib/protocol/structs.ts"
import { fromBigInt, toHex } from "../../lib/protocol/word64.ts"
import { type Invocation, UsageError } from "./invocation.ts"
import { atoi, ctime, elapsed, parseUnsigned } from "./numbers.ts"
import { newReplySrvid } from "./requests.ts"

export async function pnn({ output, localNode }: Invocation): Promise<number> {
  await output.show({ text: () => `${localNode}\n`, json: () => ({ pnn: localNode }) })
  return 0
}

export async function ping(invocation: Invocation): Promise<number> {
  const { output, node } = invocation
  const started = performance.now()
  const clients = await invocation.controlValue("PING", node)
  const seconds = (performance.now() - started) / 1000
  await output.show({
    text: () => `response from ${node} time=${seconds.toFixed(6)} sec  (${clients} clients)\n`,
    json: () => ({ node, time_seconds: Number(seconds.toFixed(6)), clients }),
  })
  return 0
}

const inSeconds = (time: Timeval) => time.sec + time.usec / 1e6

export async function uptime(invocation: Invocation): Promise<number> {
  const { output, node } = invocation
  const reply = await invocation.control("UPTIME", node)
  const { currentTime, ctdbdStartTime, lastRecoveryStarted, lastRecoveryFinished } = reply
  const now = currentTime.sec
  const duration = inSeconds(lastRecoveryFinished) - inSeconds(lastRecoveryStarted)
  const since = (time: Timeval) => `${elapsed(now - time.sec)} ${ctime(time.sec)}`
  await output.show({
    text: () =>
      `Current time of node ${String(node).padEnd(4)}     :                ${ctime(now)}\n` +
      `Ctdbd start time              : ${since(ctdbdStartTime)}\n` +
      `Time of last recovery/failover: ${since(lastRecoveryFinished)}\n` +
      `Duration of last recovery/failover: ${duration.toFixed(6)} seconds\n`,
    json: () => ({
      node,
      current_time: inSeconds(currentTime),
      start_time: inSeconds(ctdbdStartTime),
      last_recovery_started: inSeconds(lastRecoveryStarted),
      last_recovery_finished: inSeconds(lastRecoveryFinished),
      last_recovery_duration: Number(duration.toFixed(6)),
    }),
    terminal: async () => {
      const terminal = await import("./terminal.ts")
      const ago = (time: Timeval) => `${ctime(time.sec)}  (${terminal.duration(now - time.sec)} ago)`
      return terminal.list([
        [`Time on node ${node}`, ctime(now)],
        ["Daemon started", ago(ctdbdStartTime)],
        ["Last recovery", ago(lastRecoveryFinished)],
        ["It took", duration < 0 ? terminal.yellow("still running") : terminal.duration(duration)],
      ])
    },
  })
  return 0
}

const runStateNames = new Map<string, number>(Object.entries(RunState))

export async function runstate(invocation: Invocation): Promise<number> {
  const { output, node, words } = invocation
  const state = await invocation.control("GET_RUNSTATE", node)
  const name = [...runStateNames].find(([, value]) => value === state)?.[0] ?? "UNKNOWN"
  const show = () =>
    output.show({ text: () => `${name}\n`, json: () => ({ node, runstate: name, runstate_raw: state }) })
  if (words.length === 0) {
    await show()
    return 0
  }
  for (const word of words) {
    const wanted = runStateNames.get(word.toUpperCase())
    if (wanted === undefined || wanted === RunState.UNKNOWN) {
      output.print(`Invalid run state (${word})\n`)
      return 1
    }
    if (wanted === state) {
      await show()
      return 0
    }
  }
  output.print(`CTDB not in required run state (got ${name})\n`)
  return 1
}

/** Levels by name, in the order in which a prefix finds them, each with the number that is sent. */
const levels: readonly (readonly [name: string, number: number])[] = [
  ["ERROR", 0],
  ["WARNING", 1],
  ["NOTICE", 3],
  ["INFO", 5],
  ["DEBUG", 10],
]

function levelName(level: number): string {
  if (level < 0 || level > 10) return "UNKNOWN"
  return levels.findLast(([name, first]) => level >= first && (name !== "DEBUG" || level === 10))?.[0] ?? "UNKNOWN"
}

/** A number 0..10 (by its first digits), or the beginning of a name in any case. */
function parseLevel(text: string): number | undefined {
  if (/^[0-9]/.test(text)) {
    const level = atoi(text)
    return level >= 0 && level <= 10 ? level : undefined
  }
  return levels.find(([name]) => name.startsWith(text.toUpperCase()))?.[1]
}

export async function getdebug(invocation: Invocation): Promise<number> {
  const { output, node } = invocation
  const level = await invocation.control("GET_DEBUG", node)
  const name = levelName(level)
  await output.show({ text: () => `${name}\n`, json: () => ({ node, level: name, level_raw: level }) })
  return 0
}

export async function setdebug(invocation: Invocation): Promise<number> {
  const { output, node, words } = invocation
  const text = words[0] ?? ""
  const level = parseLevel(text)
  if (level === undefined) {
    output.warn(`Invalid debug level '${text}'. Valid levels are:`)
    output.warn(`\t${levels.map(([name]) => name).join(" | ")}`)
    return 1
  }
  await invocation.control("SET_DEBUG", node, level)
  if (output.mode === "json") output.json({ node, level: levelName(level), level_raw: level })
  return 0
}

export async function getpid(invocation: Invocation): Promise<number> {
  const { output, node } = invocation
  const pid = (await invocation.controlStatus("GET_PID", node)) >>> 0
  await output.show({ text: () => `${pid}\n`, json: () => ({ node, pid }) })
  return 0
}

export async function getreclock(invocation: Invocation): Promise<number> {
  const { output, node } = invocation
  const file = await invocation.control("GET_RECLOCK_FILE", node)
  await output.show({
    text: () => (file === null ? "" : `${file}\n`),
    json: () => ({ node, cluster_lock: file }),
    terminal: () => (file === null ? `Node ${node} has no cluster lock configured\n` : `${file}\n`),
  })
  return 0
}

export async function getcapabilities(invocation: Invocation): Promise<number> {
  const { output, node } = invocation
  const capabilities = await invocation.control("GET_CAPABILITIES", node)
  const leader = (capabilities & Capability.RECMASTER) !== 0
  const lmaster = (capabilities & Capability.LMASTER) !== 0
  const word = (value: boolean) => (value ? "YES" : "NO")
  await output.show({
    text: () => `LEADER: ${word(leader)}\nLMASTER: ${word(lmaster)}\n`,
    machine: () => output.machineLine(["LEADER", "LMASTER"]) + output.machineLine([leader ? 1 : 0, lmaster ? 1 : 0]),
    json: () => ({ node, leader, lmaster, capabilities_raw: capabilities }),
  })
  return 0
}

async function setRole(invocation: Invocation, control: "SET_LMASTERROLE" | "SET_RECMASTERROLE"): Promise<number> {
  const { output, node, words } = invocation
  const word = words[0]
  if (word !== "on" && word !== "off") throw new UsageError()
  await invocation.control(control, node, word === "on" ? 1 : 0)
  if (output.mode === "json")
    output.json({ node, role: control === "SET_LMASTERROLE" ? "lmaster" : "leader", set: word })
  return 0
}

export function setlmasterrole(invocation: Invocation): Promise<number> {
  return setRole(invocation, "SET_LMASTERROLE")
}

export function setleaderrole(invocation: Invocation): Promise<number> {
  return setRole(invocation, "SET_RECMASTERROLE")
}

/** "Exists" means: is a client of that daemon (with a SRVID: and has registered it). */
export async function processExists(invocation: Invocation): Promise<number> {
  const { output, node, words } = invocation
  const pid = atoi(words[0] ?? "")
  let srvid = 0n
  if (words[1] !== undefined) {
    const parsed = parseUnsigned(words[1])
    if (!parsed.ok) return invocation.badNumber(words[1], parsed.errno)
    srvid = parsed.value
  }
  const status =
    srvid === 0n
      ? await invocation.controlStatus("PROCESS_EXISTS", node, pid)
      : await invocation.controlStatus("CHECK_PID_SRVID", node, { pid, srvid: fromBigInt(srvid) })
  const what = srvid === 0n ? `PID ${pid}` : `PID ${pid} with SRVID 0x${srvid.toString(16)}`
  await output.show({
    text: () => `${what} ${status === 0 ? "exists" : "does not exist"}\n`,
    json: () => ({ node, pid, srvid: srvid === 0n ? null : toHex(fromBigInt(srvid)), exists: status === 0 }),
  })
  return status
}

export async function dumpmemory(invocation: Invocation): Promise<number> {
  const { output, node } = invocation
  const text = await invocation.control("DUMP_MEMORY", node)
  await output.show({ text: () => text, json: () => ({ node, report: text }) })
  return 0
}

/** Asks the recovery side of the daemon; no limit but `-T`. */
export async function rddumpmemory(invocation: Invocation): Promise<number> {
  const { client, output, node, localNode } = invocation
  const srvid = newReplySrvid()
  let received: (text: string) => void = () => {}
  const reply = new Promise<string>((resolve) => {
    received = resolve
  })
  await client.onMessage(srvid, (payload) => received(new TextDecoder().decode(payload).replace(/\0+$/, "")))
  client.sendMessage(node, Srvid.MEM_DUMP, encode(srvidMessage, { pnn: localNode, srvid }))
  const text = await reply
  await output.show({ text: () => text, json: () => ({ node, report: text }) })
  return 0
}
