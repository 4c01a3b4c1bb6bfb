// The logger that everything in a node writes to, and the levels and locations that the configuration names. Only the
// interface and the texts: the implementations are in log-sinks.ts (files, syslog, stderr) and in the simulator.
// Source: reference page "Configuration", section 16.

/** Numbers of the stock levels; a message is written if its level's number is not above the logger's. */
export const LogLevel = { ERROR: 0, WARNING: 1, NOTICE: 3, INFO: 5, DEBUG: 10 } as const
export type LogLevelName = keyof typeof LogLevel

export interface Logger {
  error(message: string): void
  warning(message: string): void
  notice(message: string): void
  info(message: string): void
  debug(message: string): void
  /** 0 to 10. A child follows its parent's. */
  readonly level: number
  /** Changes the level of this logger, its parents and all their children. */
  setLevel(level: number): void
  /** Opens a log file anew, as HUP asks for after a rotation. */
  reopen(): void
  /** A logger that puts `prefix: ` before each text. */
  child(prefix: string): Logger
}

const levelNames: readonly LogLevelName[] = ["ERROR", "WARNING", "NOTICE", "INFO", "DEBUG"]

/**
 * The number of a level text: a decimal number 0 to 10 (text behind the digits is ignored), or a name or its beginning in any case (the first in the order
 * ERROR WARNING NOTICE INFO DEBUG wins). Undefined for anything else.
 */
export function parseLogLevel(text: string): number | undefined {
  if (/^[0-9]/.test(text)) {
    const number = Number.parseInt(text, 10)
    return number <= LogLevel.DEBUG ? number : undefined
  }
  if (text === "") return undefined
  const name = levelNames.find((candidate) => candidate.startsWith(text.toUpperCase()))
  return name === undefined ? undefined : LogLevel[name]
}

/** The name under which a level number 0 to 10 is shown: 2 is WARNING, 4 NOTICE, 6 to 9 INFO. */
export function logLevelName(level: number): LogLevelName {
  if (level >= 10) return "DEBUG"
  if (level >= 5) return "INFO"
  if (level >= 3) return "NOTICE"
  return level >= 1 ? "WARNING" : "ERROR"
}

export type LogLocation =
  | { readonly kind: "file"; readonly path: string }
  | { readonly kind: "stderr" }
  | { readonly kind: "syslog"; readonly transport: "libc" | "nonblocking" | "udp" | "udp-rfc5424" }

/** A location text of `[logging] location`, undefined if it has none of the forms. Looks at no file. */
export function parseLogLocation(text: string): LogLocation | undefined {
  // Parts between runs of colons, the third and later ones ignored: a log file's path can't hold a colon (observed).
  const [kind, option] = text.split(":").filter((part) => part !== "")
  if (kind === "file") {
    return option === undefined || option === "-" ? { kind: "stderr" } : { kind: "file", path: option }
  }
  if (kind !== "syslog") return undefined
  if (option === undefined) return { kind: "syslog", transport: "libc" }
  if (option === "nonblocking" || option === "udp" || option === "udp-rfc5424") {
    return { kind: "syslog", transport: option }
  }
  return undefined
}
