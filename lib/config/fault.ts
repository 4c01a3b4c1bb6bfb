// What is wrong with a configuration file, as a value: where (source and line) and why. Parsers return faults, they never
// throw or print; whoever reads the file decides which faults stop it and on which stream they are told.

import { basename } from "node:path"

export interface Fault {
  /** File (or command) that was read. */
  readonly source: string
  /** 1-based physical line; 0 when the fault is the file's as a whole. */
  readonly line: number
  /** What is wrong and, where it helps, what would be right. No final stop. */
  readonly cause: string
}

/** `ctdb.conf line 12: CAUSE`, or `ctdb.conf: CAUSE` for the whole file. */
export function faultText(fault: Fault): string {
  const name = fault.source.startsWith("!") ? fault.source : basename(fault.source)
  return fault.line > 0 ? `${name} line ${fault.line}: ${fault.cause}` : `${name}: ${fault.cause}`
}

/** Either the value, or at least one fault. */
export type Parsed<T> =
  | { readonly ok: true; readonly value: T }
  | { readonly ok: false; readonly faults: readonly Fault[] }

/** The errno name of a failed file operation (`ENOENT`...), the error's text if it has none. */
export function errnoOf(error: unknown): string {
  if (error instanceof Error) return "code" in error && typeof error.code === "string" ? error.code : error.message
  return String(error)
}
