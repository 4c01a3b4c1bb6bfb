// What the daemon does to its own process that Bun has no call for: scheduling, locked memory, limits, its name in ps, a
// session of its own, a signal when the parent dies. Starting programs is Bun.spawn's affair, except for the detached copy
// of oneself, which stands in for fork(): a JavaScript runtime with threads can't fork.

import { dlopen, FFIType, type Pointer, ptr, read, toArrayBuffer } from "bun:ffi"
import { readFileSync } from "node:fs"
import { EPERM, SysError } from "./errno.ts"

const { i32, u64 } = FFIType
const { symbols: libc } = dlopen("libc.so.6", {
  prctl: { args: [i32, u64, u64, u64, u64], returns: i32 },
  sched_setscheduler: { args: [i32, i32, FFIType.ptr], returns: i32 },
  sched_getscheduler: { args: [i32], returns: i32 },
  mlock2: { args: [u64, u64, i32], returns: i32 },
  getrlimit: { args: [i32, FFIType.ptr], returns: i32 },
  setrlimit: { args: [i32, FFIType.ptr], returns: i32 },
  setsid: { args: [], returns: i32 },
  getsid: { args: [i32], returns: i32 },
  __errno_location: { args: [], returns: FFIType.ptr },
})

const PR_SET_PDEATHSIG = 1
const PR_SET_NAME = 15
const PR_SET_MM = 35
const PR_SET_MM_ARG_END = 9
const SCHED_OTHER = 0
const SCHED_FIFO = 1
const SCHED_RESET_ON_FORK = 0x40000000
const MLOCK_ONFAULT = 1
/** A line of /proc/PID/maps of a private mapping of a file (proc(5)). */
const PRIVATE_FILE = /^([0-9a-f]+)-([0-9a-f]+) r.[-x]p [0-9a-f]+ [0-9a-f]+:[0-9a-f]+ [1-9]/
/** Linux keeps 15 bytes of a thread's name (prctl(2)). */
const NAME_LENGTH = 15

function check(result: number, call: string, subject = ""): number {
  if (result < 0) throw new SysError(call, read.i32(libc.__errno_location()!, 0), subject)
  return result
}

/**
 * SCHED_FIFO for the event loop's thread, as the stock daemon (configuration 18: priority 1). Programs that it starts get
 * normal scheduling by themselves. @throws SysError EPERM without privilege
 */
export function setRealtimeScheduling(priority = 1): void {
  const parameter = new Int32Array([priority])
  check(libc.sched_setscheduler(0, SCHED_FIFO | SCHED_RESET_ON_FORK, ptr(parameter)), "sched_setscheduler")
}

export function setNormalScheduling(): void {
  check(libc.sched_setscheduler(0, SCHED_OTHER, ptr(new Int32Array(1))), "sched_setscheduler")
}

/** Whether a process (0: this thread) runs under SCHED_FIFO. */
export function hasRealtimeScheduling(pid = 0): boolean {
  return (check(libc.sched_getscheduler(pid), "sched_getscheduler", `pid ${pid}`) & 0xff) === SCHED_FIFO
}

/**
 * Keeps the program and its libraries from being paged out, each page from when it is first used: a node must not wait for its own code
 * to be read back while it owes the others a sign of life. Not the heap, as the stock daemon does with mlockall(): locked pages can't be
 * given back (madvise(2): EINVAL), so the process would for ever be as large as it once was, and its allocator try to the end of its
 * days. Without swap there is no difference.
 * @throws SysError EPERM, ENOMEM (RLIMIT_MEMLOCK)
 */
export function lockMemory(): void {
  for (const line of readFileSync("/proc/self/maps", "latin1").split("\n")) {
    const [, start, end] = PRIVATE_FILE.exec(line) ?? []
    if (start === undefined || end === undefined) continue
    const from = BigInt(`0x${start}`)
    check(libc.mlock2(from, BigInt(`0x${end}`) - from, MLOCK_ONFAULT), "mlock2")
  }
}

/** Resources of getrlimit(2), Linux numbers. */
export const Limit = { CORE: 4, OPEN_FILES: 7, LOCKED_MEMORY: 8 } as const
export type Limit = (typeof Limit)[keyof typeof Limit]

/** `Infinity` stands for no limit. */
export interface Limits {
  readonly soft: number
  readonly hard: number
}

const NO_LIMIT = 0xffff_ffff_ffff_ffffn

export function getLimit(limit: Limit): Limits {
  const pair = new BigUint64Array(2)
  check(libc.getrlimit(limit, ptr(pair)), "getrlimit")
  const number = (value: bigint): number => (value === NO_LIMIT ? Number.POSITIVE_INFINITY : Number(value))
  return { soft: number(pair[0]!), hard: number(pair[1]!) }
}

/** @throws SysError EPERM for a hard limit that is raised without privilege, EINVAL for soft above hard */
export function setLimit(limit: Limit, { soft, hard }: Limits): void {
  const value = (number: number): bigint => (number === Number.POSITIVE_INFINITY ? NO_LIMIT : BigInt(number))
  check(libc.setrlimit(limit, ptr(new BigUint64Array([value(soft), value(hard)]))), "setrlimit")
}

/**
 * Names the process as ps and top show it: the thread's name (15 bytes) and, as far as the command line that it was
 * started with has room, the command line itself.
 */
export function setProcessName(name: string): void {
  const bytes = new TextEncoder().encode(name)
  const short = new Uint8Array(NAME_LENGTH + 1)
  short.set(bytes.subarray(0, NAME_LENGTH))
  check(libc.prctl(PR_SET_NAME, ptr(short), 0, 0, 0), "prctl PR_SET_NAME")
  overwriteCommandLine(bytes)
}

/** The runtime has its copies of the command line once they were asked for; the kernel's is this process's own memory. */
function overwriteCommandLine(bytes: Uint8Array): void {
  void process.argv.length
  void process.execArgv.length
  void process.argv0
  void Bun.argv.length
  // Fields 48 and 49 of proc(5) stat, counted behind the program's name, which may hold anything.
  const stat = readFileSync("/proc/self/stat", "latin1")
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ")
  const start = Number(fields[45])
  const end = Number(fields[46])
  if (!(end > start)) return
  const area = new Uint8Array(toArrayBuffer(start as Pointer, 0, end - start))
  area.fill(0)
  const kept = bytes.subarray(0, area.length - 1)
  area.set(kept)
  // Cuts the zeros off; where that is not allowed they show as blanks.
  libc.prctl(PR_SET_MM, PR_SET_MM_ARG_END, start + kept.length + 1, 0, 0)
}

/** A new session, away from the terminal. @throws SysError EPERM if this process leads its group already */
export function newSession(): number {
  return check(libc.setsid(), "setsid")
}

/** Session of a process, 0: own. */
export function sessionOf(pid: number): number {
  return check(libc.getsid(pid), "getsid", `pid ${pid}`)
}

/** Asks the kernel for this signal when the process that started this one ends. 0 takes it back. */
export function signalOnParentDeath(signal: number): void {
  check(libc.prctl(PR_SET_PDEATHSIG, signal, 0, 0, 0), "prctl PR_SET_PDEATHSIG")
}

/** Whether a process of this pid exists (a zombie does), whoever owns it. */
export function processExists(pid: number): boolean {
  // kill(2) takes 0 and negative numbers for groups.
  if (!Number.isInteger(pid) || pid <= 0) return false
  try {
    process.kill(pid, 0)
    return true
  } catch (error) {
    const { errno } = error as { readonly errno?: number }
    return Math.abs(errno ?? 0) === EPERM
  }
}

export interface DetachedOptions {
  readonly environment: Readonly<Record<string, string | undefined>>
  /** What ps shows as the program's name. */
  readonly argv0?: string
  /** Where its errors go until it has a log of its own; default nowhere. */
  readonly stderr?: number
}

/**
 * Starts a program in a session of its own, with standard input and output on /dev/null, and does not wait for it: how a
 * daemon goes to the background, by running itself again. Returns its pid.
 */
export function spawnDetached(command: readonly string[], options: DetachedOptions): number {
  const child = Bun.spawn([...command], {
    env: options.environment,
    detached: true,
    stdin: "ignore",
    stdout: "ignore",
    stderr: options.stderr ?? "ignore",
    ...(options.argv0 === undefined ? {} : { argv0: options.argv0 }),
  })
  child.unref()
  return child.pid
}
