// Threads of this process as the kernel sees them: who we are, and waking one out of a blocking system call with a signal that does
// nothing else. No scheduling, no other processes.

import { dlopen, type Pointer, ptr } from "bun:ffi"
import { SysError } from "./errno.ts"
import { lastErrno } from "./memory.ts"

const libc = dlopen("libc.so.6", {
  gettid: { args: [], returns: "i32" },
  tgkill: { args: ["i32", "i32", "i32"], returns: "i32" },
  sigaction: { args: ["i32", "ptr", "ptr"], returns: "i32" },
  dlsym: { args: ["u64", "ptr"], returns: "ptr" },
}).symbols

/** A real-time signal that neither glibc nor the JavaScript engine uses. */
const WAKE_SIGNAL = 42

export function threadId(): number {
  return libc.gettid()
}

let prepared = false

// The handler is a libc function that does nothing harmful with one integer argument; without SA_RESTART the interrupted call fails
// with EINTR.
function prepare(): void {
  if (prepared) return
  const handler = libc.dlsym(0, ptr(Buffer.from("htonl\0"))) as Pointer | null
  if (handler === null) throw new SysError("dlsym", 0, "htonl")
  // struct sigaction of x86-64 and arm64 glibc: handler, 128 bytes of mask, flags, restorer
  const action = new Float64Array(new ArrayBuffer(152))
  const words = new Uint32Array(action.buffer)
  words[0] = Number(handler) % 0x100000000
  words[1] = Math.floor(Number(handler) / 0x100000000)
  if (libc.sigaction(WAKE_SIGNAL, ptr(action), null) !== 0) throw new SysError("sigaction", lastErrno())
  prepared = true
}

/** Interrupt whatever system call the thread blocks in: it fails with EINTR. A thread that blocks a moment later is not woken. */
export function interruptThread(tid: number): void {
  prepare()
  libc.tgkill(process.pid, tid, WAKE_SIGNAL)
}
