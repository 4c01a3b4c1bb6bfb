// The daemon's counters: statistics, stats (a history, one entry a second), statisticsreset. One list of fields gives the
// text, the machine columns and the JSON. Reference page "Admin tool", section 8.3.

import { CTDB_VERSION } from "../../lib/protocol/constants.ts"
import type { LatencyCounter, Statistics } from "../../lib/protocol/structs.ts"
import type { Invocation } from "./invocation.ts"
import { atoi, ctime, elapsed } from "./numbers.ts"

type Field = readonly [name: string, value: (statistics: Statistics) => number]

/** Counters in print order; a group has a title and its fields are indented. */
const counters: readonly (Field | { readonly group: string; readonly fields: readonly Field[] })[] = [
  ["num_clients", (s) => s.numClients],
  ["frozen", (s) => s.frozen],
  ["recovering", (s) => s.recovering],
  ["num_recoveries", (s) => s.numRecoveries],
  ["client_packets_sent", (s) => s.clientPacketsSent],
  ["client_packets_recv", (s) => s.clientPacketsRecv],
  ["node_packets_sent", (s) => s.nodePacketsSent],
  ["node_packets_recv", (s) => s.nodePacketsRecv],
  ["keepalive_packets_sent", (s) => s.keepalivePacketsSent],
  ["keepalive_packets_recv", (s) => s.keepalivePacketsRecv],
  {
    group: "node",
    fields: [
      ["req_call", (s) => s.node.reqCall],
      ["reply_call", (s) => s.node.replyCall],
      ["req_dmaster", (s) => s.node.reqDmaster],
      ["reply_dmaster", (s) => s.node.replyDmaster],
      ["reply_error", (s) => s.node.replyError],
      ["req_message", (s) => s.node.reqMessage],
      ["req_control", (s) => s.node.reqControl],
      ["reply_control", (s) => s.node.replyControl],
      ["req_tunnel", (s) => s.node.reqTunnel],
    ],
  },
  {
    group: "client",
    fields: [
      ["req_call", (s) => s.client.reqCall],
      ["req_message", (s) => s.client.reqMessage],
      ["req_control", (s) => s.client.reqControl],
      ["req_tunnel", (s) => s.client.reqTunnel],
    ],
  },
  {
    group: "timeouts",
    fields: [
      ["call", (s) => s.timeouts.call],
      ["control", (s) => s.timeouts.control],
      ["traverse", (s) => s.timeouts.traverse],
    ],
  },
  {
    group: "locks",
    fields: [
      ["num_calls", (s) => s.locks.numCalls],
      ["num_current", (s) => s.locks.numCurrent],
      ["num_pending", (s) => s.locks.numPending],
      ["num_failed", (s) => s.locks.numFailed],
    ],
  },
  ["total_calls", (s) => s.totalCalls],
  ["pending_calls", (s) => s.pendingCalls],
  ["childwrite_calls", (s) => s.childwriteCalls],
  ["pending_childwrite_calls", (s) => s.pendingChildwriteCalls],
  ["memory_used", (s) => s.memoryUsed],
  ["max_hop_count", (s) => s.maxHopCount],
  ["total_ro_delegations", (s) => s.totalRoDelegations],
  ["total_ro_revokes", (s) => s.totalRoRevokes],
]

/** Latencies: the name in the text, the name in the machine columns, and where it is. Orders differ, so both are kept. */
const textLatencies: readonly (readonly [string, (s: Statistics) => LatencyCounter])[] = [
  ["locks_latency", (s) => s.locks.latency],
  ["reclock_ctdbd", (s) => s.reclock.ctdbd],
  ["reclock_recd", (s) => s.reclock.recd],
  ["call_latency", (s) => s.callLatency],
  ["childwrite_latency", (s) => s.childwriteLatency],
]
const machineLatencies: readonly (readonly [string, (s: Statistics) => LatencyCounter])[] = [
  ["reclock_ctdbd_latency", (s) => s.reclock.ctdbd],
  ["reclock_recd_latency", (s) => s.reclock.recd],
  ["call_latency", (s) => s.callLatency],
  ["lockwait_latency", (s) => s.locks.latency],
  ["childwrite_latency", (s) => s.childwriteLatency],
]

const average = ({ num, total }: LatencyCounter) => (num === 0 ? 0 : total / num)

/** Also used by the statistics of one database. */
export function latencyLine(name: string, latency: LatencyCounter): string {
  const label = `${name.padEnd(18)} MIN/AVG/MAX`
  const numbers = [latency.min, average(latency), latency.max].map((value) => value.toFixed(6)).join("/")
  return ` ${label.padEnd(30)}     ${numbers} sec out of ${latency.num}\n`
}

export function counterLine(name: string, value: number): string {
  return ` ${name.padEnd(22)}    ${String(value).padStart(10)}\n`
}

export function groupedCounterLine(name: string, value: number): string {
  return `     ${name.padEnd(22)}${String(value).padStart(10)}\n`
}

export function bucketLine(name: string, buckets: readonly number[]): string {
  return ` ${name}: ${buckets.join(" ")}\n`
}

/** The whole block of text for one set of counters. */
export function statisticsText(s: Statistics): string {
  const now = s.statisticsCurrentTime.sec
  const since = s.statisticsStartTime.sec
  const lines = [
    `CTDB version ${CTDB_VERSION}\n`,
    `Current time of statistics  :                ${ctime(now)}\n`,
    `Statistics collected since  : ${elapsed(now - since)} ${ctime(since)}\n`,
  ]
  for (const counter of counters) {
    if ("group" in counter) {
      lines.push(` ${counter.group}\n`)
      for (const [name, value] of counter.fields) lines.push(groupedCounterLine(name, value(s)))
    } else lines.push(counterLine(counter[0], counter[1](s)))
  }
  lines.push(bucketLine("hop_count_buckets", s.hopCountBucket), bucketLine("lock_buckets", s.locks.buckets))
  for (const [name, latency] of textLatencies) lines.push(latencyLine(name, latency(s)))
  return lines.join("")
}

/** Columns in order; unlike everywhere else there is no separator in front of a line. */
const columns: readonly (readonly [name: string, value: (s: Statistics) => string | number])[] = [
  ["CTDB version", () => CTDB_VERSION],
  ["Current time of statistics", (s) => s.statisticsCurrentTime.sec],
  ["Statistics collected since", (s) => s.statisticsStartTime.sec],
  ...counters.flatMap((counter) =>
    "group" in counter ? counter.fields.map(([name, value]): Field => [`${counter.group}.${name}`, value]) : [counter],
  ),
  ...machineLatencies.flatMap(
    ([name, of]) =>
      [
        [`num_${name}`, (s: Statistics) => of(s).num],
        [`min_${name}`, (s: Statistics) => of(s).min.toFixed(6)],
        [`avg_${name}`, (s: Statistics) => average(of(s)).toFixed(6)],
        [`max_${name}`, (s: Statistics) => of(s).max.toFixed(6)],
      ] as const,
  ),
]

export function statisticsHead(separator: string): string {
  return `${columns.map(([name]) => name + separator).join("")}\n`
}

export function statisticsLine(s: Statistics, separator: string): string {
  return `${columns.map(([, value]) => value(s) + separator).join("")}\n`
}

/** Every counter, the buckets too, which the machine columns lack. */
function statisticsJson(s: Statistics) {
  const fields = counters.map((counter): [string, unknown] =>
    "group" in counter
      ? [counter.group, Object.fromEntries(counter.fields.map(([name, value]) => [name, value(s)]))]
      : [counter[0], counter[1](s)],
  )
  const latency = (counter: LatencyCounter) => ({
    num: counter.num,
    min: counter.min,
    average: average(counter),
    max: counter.max,
  })
  return {
    current_time: s.statisticsCurrentTime.sec,
    collected_since: s.statisticsStartTime.sec,
    ...Object.fromEntries(fields),
    hop_count_buckets: s.hopCountBucket,
    lock_buckets: s.locks.buckets,
    latencies: Object.fromEntries(machineLatencies.map(([name, of]) => [name, latency(of(s))])),
  }
}

export async function statistics(invocation: Invocation): Promise<number> {
  const { output, node } = invocation
  const { separator } = output
  const counted = await invocation.control("STATISTICS", node)
  await output.show({
    text: () => statisticsText(counted),
    machine: () => statisticsHead(separator) + statisticsLine(counted, separator),
    json: () => ({ node, ...statisticsJson(counted) }),
    terminal: () => terminalStatistics([counted]),
  })
  return 0
}

/** COUNT entries and one more, as the stock tool does; none or 0: all. */
export async function stats(invocation: Invocation): Promise<number> {
  const { output, node, words } = invocation
  const { separator } = output
  const history = await invocation.control("GET_STAT_HISTORY", node)
  const count = atoi(words[0] ?? "0")
  const used = history.filter((entry) => entry.statisticsStartTime.sec !== 0)
  const shown = count > 0 ? used.slice(0, count + 1) : used
  await output.show({
    text: () => shown.map(statisticsText).join(""),
    machine: () => statisticsHead(separator) + shown.map((entry) => statisticsLine(entry, separator)).join(""),
    json: () => ({ node, history: shown.map(statisticsJson) }),
    terminal: () => terminalStatistics(shown),
  })
  return 0
}

/** Entries side by side would not fit: one column each for at most six, newest first, else the plain blocks. */
async function terminalStatistics(entries: readonly Statistics[]): Promise<string> {
  if (entries.length === 0 || entries.length > 6) return entries.map(statisticsText).join("\n")
  const { duration, table } = await import("./terminal.ts")
  const span = (s: Statistics) => duration(s.statisticsCurrentTime.sec - s.statisticsStartTime.sec)
  const head = ["Counter", ...entries.map((s) => `in ${span(s)}`)]
  const rows = columns.slice(3).map(([name, value]) => [name, ...entries.map((s) => value(s))])
  return table(head, rows)
}

export async function statisticsreset(invocation: Invocation): Promise<number> {
  const { output, node } = invocation
  await invocation.control("STATISTICS_RESET", node)
  if (output.mode === "json") output.json({ node, reset: true })
  return 0
}
