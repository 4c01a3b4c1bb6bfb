// Settings of the language runtime for processes that live long: its compilers and its allocator read them from the environment, once, before
// any of our code runs. So whoever starts such a process gives them along, and one that was started by somebody else puts itself in the
// place of itself.

import { dlopen, FFIType, ptr } from "bun:ffi"
import { readFileSync } from "node:fs"

const { symbols: libc } = dlopen("libc.so.6", {
  execve: { args: [FFIType.ptr, FFIType.ptr, FFIType.ptr], returns: FFIType.i32 },
})

/**
 * The allocator gives memory back after a second without use, and looks for whole pages only: by default it goes through all of the heap ten
 * times a second, for 3 to 4 ms in which the event loop often waits for the same processor, and what it gives back is used again at once.
 * The optimizing compilers take code on later: on a machine with few processors they worked for as long as a whole recovery did.
 */
const SETTINGS: Readonly<Record<string, string>> = {
  MIMALLOC_PURGE_DELAY: "1000",
  MIMALLOC_PURGE_HOLES: "0",
  BUN_JSC_thresholdForOptimizeAfterWarmUp: "4000",
  BUN_JSC_thresholdForOptimizeAfterLongWarmUp: "4000",
  BUN_JSC_thresholdForFTLOptimizeAfterWarmUp: "300000",
}

/** Says that the settings were made; who sees it takes it away, with the settings. */
const MADE = "CTDB_RUNTIME_SETTINGS"

/** What goes into the environment of a process that lives long. What an administrator has set stays as it is. */
export function longLived(): Record<string, string> {
  const made = Object.entries(SETTINGS).filter(([name]) => process.env[name] === undefined)
  return { ...Object.fromEntries(made), [MADE]: made.map(([name]) => name).join(" ") }
}

/**
 * Called first by a program whose process lives long: the same process begins anew with the settings, if it has not got them. Where that is
 * not possible it goes on without. What the process starts does not inherit them.
 */
export function liveLong(): void {
  const made = process.env[MADE]
  if (made === undefined) {
    replaceSelf(longLived())
    return
  }
  for (const name of [MADE, ...made.split(" ")]) delete process.env[name]
}

/** The same program with the same arguments and more in its environment. Comes back only if that failed. */
function replaceSelf(more: Readonly<Record<string, string>>): void {
  const words = (file: string) => readFileSync(file, "latin1").split("\0").slice(0, -1)
  const added = Object.entries(more).map(([name, value]) => `${name}=${value}`)
  const argv = texts(words("/proc/self/cmdline"))
  const environment = texts([...words("/proc/self/environ"), ...added])
  libc.execve(ptr(Buffer.from("/proc/self/exe\0")), ptr(argv.pointers), ptr(environment.pointers))
}

/** A list of C strings, ended by a null; `bytes` must live as long as it. */
function texts(list: readonly string[]): { readonly pointers: BigUint64Array; readonly bytes: Buffer } {
  const bytes = Buffer.from(list.map((text) => `${text}\0`).join(""), "latin1")
  const pointers = new BigUint64Array(list.length + 1)
  const start = BigInt(ptr(bytes))
  let at = 0
  for (const [index, text] of list.entries()) {
    pointers[index] = start + BigInt(at)
    at += text.length + 1
  }
  return { pointers, bytes }
}
