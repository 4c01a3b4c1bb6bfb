// What the machine says about a measurement: processor time and memory of processes, how busy it is with other things, and on what kind of
// file system a file lies.

import { readFileSync, statfsSync } from "node:fs"
import { cpus, loadavg, release, totalmem } from "node:os"

/** Clock ticks of /proc/PID/stat are 10 ms on every Linux that this runs on. */
const TICK_US = 10_000
/** statfs(2) types of file systems that live in memory. */
const IN_MEMORY = new Set([0x01021994, 0x858458f6])

function statOf(pid: number): readonly string[] | undefined {
  try {
    return readFileSync(`/proc/${pid}/stat`, "utf8").split(") ")[1]?.split(" ")
  } catch {
    return undefined
  }
}

/** Direct children of a process. */
function childrenOf(pid: number): number[] {
  try {
    return readFileSync(`/proc/${pid}/task/${pid}/children`, "utf8").trim().split(" ").filter(Boolean).map(Number)
  } catch {
    return []
  }
}

/** Processor time so far (us) of a process, its children that have ended, and its children that live. */
export function cpuOf(pid: number): number {
  const fields = statOf(pid)
  if (fields === undefined) return 0
  const own = [11, 12, 13, 14].reduce((sum, at) => sum + Number(fields[at]), 0) * TICK_US
  return childrenOf(pid).reduce((sum, child) => sum + cpuOf(child), own)
}

/** Resident memory (bytes); 0 if the process is gone. */
export function residentOf(pid: number): number {
  try {
    return Number(/^VmRSS:\s+(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1] ?? 0) * 1024
  } catch {
    return 0
  }
}

/** "tmpfs" or "disk". */
export function placeOf(path: string): "tmpfs" | "disk" {
  return IN_MEMORY.has(statfsSync(path).type) ? "tmpfs" : "disk"
}

export interface Machine {
  readonly processors: number
  readonly model: string
  readonly memoryGb: number
  readonly kernel: string
}

export function machine(): Machine {
  const all = cpus()
  return {
    processors: all.length,
    model: all[0]?.model ?? "unknown",
    memoryGb: Math.round(totalmem() / 2 ** 30),
    kernel: release(),
  }
}

/** Busy time of all processors so far (us), and what passed on them. */
function processorTime(): { readonly busy: number; readonly all: number } {
  const fields = readFileSync("/proc/stat", "utf8").split("\n")[0]!.split(/\s+/).slice(1, 9).map(Number)
  const all = fields.reduce((sum, value) => sum + value, 0)
  return { busy: (all - fields[3]! - fields[4]!) * TICK_US, all: all * TICK_US }
}

/** How busy the machine was with other things than the measurement: a share of all its processors. */
export class Surroundings {
  private readonly before = processorTime()

  /** @param ownUs processor time of the measured processes since this was made */
  foreignShare(ownUs: number): number {
    const now = processorTime()
    return Math.max(0, Math.min(1, (now.busy - this.before.busy - ownUs) / Math.max(1, now.all - this.before.all)))
  }
}

/** Load average of the last minute. */
export const loadAverage = (): number => loadavg()[0] ?? 0
