// The counters of a node: since start or reset, and a history of the last hundred intervals (data path page 17). Rooms
// count on `now`, plain fields without a call; the history is made of differences, so that counting costs once.

import { decode } from "../lib/protocol/codec.ts"
import { COUNT_BUCKETS, STATISTICS_HISTORY } from "../lib/protocol/constants.ts"
import { type LatencyCounter, type Statistics, statistics, type Timeval } from "../lib/protocol/structs.ts"

type Mutable<T> = { -readonly [K in keyof T]: T[K] extends number | Timeval ? T[K] : Mutable<T[K]> }

export type MutableStatistics = Mutable<Statistics>
export type MutableLatency = Mutable<LatencyCounter>

function zero(): MutableStatistics {
  return decode(statistics, new Uint8Array(statistics.minSize)) as MutableStatistics
}

/** Adds one sample, in seconds. */
export function addLatency(counter: MutableLatency, seconds: number): void {
  if (counter.num === 0 || seconds < counter.min) counter.min = seconds
  if (seconds > counter.max) counter.max = seconds
  counter.total += seconds
  counter.num++
}

/** Index into a hop count histogram: the number of significant bits, at most 15 (data path page 17.2). */
export function hopBucket(hops: number): number {
  return Math.min(32 - Math.clz32(hops), COUNT_BUCKETS - 1)
}

/** Gauges: what is now, not what has happened since; a difference of two of them means nothing. */
const gauges = new Set(["numCurrent", "numPending", "pendingCalls", "pendingChildwriteCalls", "memoryUsed"])

export class NodeStatistics {
  now: MutableStatistics = zero()
  private previous: MutableStatistics = zero()
  private history: Statistics[] = []

  reset(at: Timeval): void {
    const { locks, pendingCalls, pendingChildwriteCalls } = this.now
    this.now = zero()
    this.now.statisticsStartTime = at
    // What is under way now will be counted down when it ends.
    this.now.locks.numCurrent = locks.numCurrent
    this.now.locks.numPending = locks.numPending
    this.now.pendingCalls = pendingCalls
    this.now.pendingChildwriteCalls = pendingChildwriteCalls
    this.previous = zero()
    this.previous.statisticsStartTime = at
  }

  /** Ends an interval: its differences become the newest entry of the history. */
  endInterval(at: Timeval): void {
    const entry = difference(this.now, this.previous) as unknown as MutableStatistics
    entry.statisticsStartTime = this.previous.statisticsCurrentTime
    entry.statisticsCurrentTime = at
    this.previous = structuredClone(this.now)
    this.previous.statisticsCurrentTime = at
    this.history.unshift(entry)
    if (this.history.length > STATISTICS_HISTORY) this.history.pop()
  }

  /** Always a hundred entries, newest first, unused ones zero. */
  historyList(): Statistics[] {
    const empty = zero()
    return Array.from({ length: STATISTICS_HISTORY }, (_, index) => this.history[index] ?? empty)
  }
}

type Tree = { [key: string]: number | undefined | Tree | readonly number[] }

function difference(now: object, before: object): Tree {
  const result: Tree = {}
  const old = before as Record<string, unknown>
  for (const [key, value] of Object.entries(now)) {
    const then = old[key]
    if (Array.isArray(value) && Array.isArray(then)) result[key] = value.map((count, i) => count - then[i])
    else if (typeof value === "number") result[key] = gauges.has(key) ? value : value - Number(then)
    else if (typeof value === "object" && value !== null && typeof then === "object" && then !== null) {
      result[key] =
        "num" in value ? latencyDifference(value as LatencyCounter, then as LatencyCounter) : difference(value, then)
    } else result[key] = undefined
  }
  return result
}

/** Smallest and largest of one interval are not kept apart: an interval with samples shows those since the start. */
function latencyDifference(now: LatencyCounter, before: LatencyCounter): Tree {
  const num = now.num - before.num
  if (num === 0) return { num: 0, gap: undefined, min: 0, max: 0, total: 0 }
  return { num, gap: undefined, min: now.min, max: now.max, total: now.total - before.total }
}
