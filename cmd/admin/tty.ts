// Whether a descriptor is a terminal. In scripts it never is, and loading the module that can tell costs milliseconds;
// so the kind of file is looked at first.

import { fstatSync } from "node:fs"

/** Character devices of this major number are /dev/null and its like. */
const MEMORY_DEVICES = 1

export async function isTerminal(descriptor: number): Promise<boolean> {
  try {
    const file = fstatSync(descriptor)
    if (!file.isCharacterDevice() || ((file.rdev >> 8) & 0xfff) === MEMORY_DEVICES) return false
  } catch {
    return false
  }
  return (await import("node:tty")).isatty(descriptor)
}
