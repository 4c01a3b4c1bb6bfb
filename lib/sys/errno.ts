// Linux errno numbers by name, and the error that every failed libc call becomes. Numbers are those of x86-64 and arm64
// Linux (asm-generic/errno.h).

import { constants } from "node:os"

const nameOf = new Map<number, string>(Object.entries(constants.errno).map(([name, code]) => [code, name]))
nameOf.set(130, "EOWNERDEAD")
nameOf.set(131, "ENOTRECOVERABLE")

export const EPERM = 1
export const ENOENT = 2
export const EINTR = 4
export const EIO = 5
export const EAGAIN = 11
export const ENOMEM = 12
export const EACCES = 13
export const EBUSY = 16
export const EEXIST = 17
export const EINVAL = 22
export const EDEADLK = 35
export const ENOSPC = 28
export const EOWNERDEAD = 130
export const ENOTRECOVERABLE = 131

/** The symbolic name of an errno number, `errno N` for one that Linux does not define. */
export function errnoName(errno: number): string {
  return nameOf.get(errno) ?? `errno ${errno}`
}

/** A libc call that failed: which call, on what, and the errno with its name. */
export class SysError extends Error {
  constructor(
    readonly call: string,
    readonly errno: number,
    readonly subject: string = "",
  ) {
    super(`${call}${subject === "" ? "" : ` ${subject}`}: ${errnoName(errno)}`)
    this.name = "SysError"
  }
  get code(): string {
    return errnoName(this.errno)
  }
}
