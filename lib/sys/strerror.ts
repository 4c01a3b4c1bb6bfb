// The C library's text of an errno number ("Is a directory"), for the messages that operators know from the stock programs.

import { CString, dlopen, FFIType } from "bun:ffi"
import { constants } from "node:os"

const { symbols: libc } = dlopen("libc.so.6", {
  strerror: { args: [FFIType.i32], returns: FFIType.ptr },
})

export function strerror(errno: number): string {
  const text = libc.strerror(errno)
  return text === null ? `Unknown error ${errno}` : new CString(text).toString()
}

const numbers: Readonly<Record<string, number>> = constants.errno

/** The same for an error of node:fs, by its `code`; the error's own text if it has none. */
export function strerrorOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error)
  const code = "code" in error && typeof error.code === "string" ? numbers[error.code] : undefined
  return code === undefined ? error.message : strerror(code)
}
