// The loggers of a real process: lines to a file, to stderr or to syslog, in the stock line formats or as JSON lines.
// Source: reference page "Configuration", sections 16 and 17. Nothing here waits for a reader: a line that can't be written
// now is kept within a bound or dropped and counted, because a stalled log must not stall a cluster node.

import { closeSync, constants, fstatSync, openSync, writeSync } from "node:fs"
import { hostname } from "node:os"
import { type Datagrams, udpDatagrams, unixDatagrams } from "../sys/datagram.ts"
import { EAGAIN } from "../sys/errno.ts"
import { strerrorOf } from "../sys/strerror.ts"
import { errnoOf } from "./fault.ts"
import { type Logger, LogLevel, type LogLocation, logLevelName, parseLogLocation } from "./log.ts"

export type LogFormat = "stock" | "json"

export interface LogOptions {
  /** As in ctdb.conf; `file:-` for `--interactive`. One that has no known form is an error of the caller. */
  readonly location: string
  readonly level: number
  /** Name in each line: `ctdbd`, `ctdb-recoverd`, `ctdb-eventd`... */
  readonly program: string
  readonly format?: LogFormat
  readonly host?: string
  readonly pid?: number
  /** Where syslog datagrams go; for tests. */
  readonly syslogPath?: string
  readonly syslogPort?: number
}

/** Lines longer than this are cut (bytes). */
const LINE_BYTES_MAX = 4095
/** Datagrams of the syslog forms other than libc's are cut at this (bytes). */
const DATAGRAM_BYTES_MAX = 1024
/** What stderr's reader may lag behind before lines are dropped (bytes). */
const PENDING_BYTES_MAX = 1024 * 1024
/** Pause before a pipe that was full is tried again, and before a lost syslog is looked for again (ms). */
const RETRY_MS = 100
const FACILITY_DAEMON = 24
const SYSLOG_PATH = "/dev/log"
const SYSLOG_PORT = 514

const utf8 = new TextEncoder()

/** The host in log lines: the complete host name, in test mode the last component of CTDB_BASE. */
export function logHost(paths: { readonly testMode: boolean; readonly base: string }): string {
  if (!paths.testMode) return hostname()
  const trimmed = paths.base.replace(/\/+$/, "")
  return trimmed.slice(trimmed.lastIndexOf("/") + 1)
}

// ---------------------------------------------------------------------------------------------------------------- time

let anchorWallMs = 0
let anchorMonotonicMs = 0

/** Wall-clock time in ms with a fraction of microseconds; never further than 1 ms from Date.now(), also after a jump. */
function preciseNowMs(): number {
  const wallMs = Date.now()
  const monotonicMs = performance.now()
  const estimate = anchorWallMs + (monotonicMs - anchorMonotonicMs)
  if (estimate >= wallMs && estimate < wallMs + 1) return estimate
  anchorWallMs = wallMs
  anchorMonotonicMs = monotonicMs
  return wallMs
}

const two = (number: number) => String(number).padStart(2, "0")

/** `2026-11-23T16:48:22.092989+00:00`: local time, microseconds, offset. */
export function formatLogTime(epochMs: number): string {
  const date = new Date(epochMs)
  const micros = Math.floor((epochMs - Math.floor(epochMs / 1000) * 1000) * 1000)
  const offsetMin = -date.getTimezoneOffset()
  const sign = offsetMin < 0 ? "-" : "+"
  const offset = `${sign}${two(Math.floor(Math.abs(offsetMin) / 60))}:${two(Math.abs(offsetMin) % 60)}`
  const day = `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())}`
  const time = `${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}`
  return `${day}T${time}.${String(micros).padStart(6, "0")}${offset}`
}

const months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]

/** `Nov 23 16:48:22`: what the C library puts into its datagrams. */
function formatSyslogTime(epochMs: number): string {
  const date = new Date(epochMs)
  const day = String(date.getDate()).padStart(2, " ")
  const time = `${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}`
  return `${months[date.getMonth()]} ${day} ${time}`
}

/** Syslog priority of a stock level. */
export function syslogPriority(level: number): number {
  if (level <= 0) return 3
  if (level === 1) return 4
  if (level <= 5) return 5
  return level <= 9 ? 6 : 7
}

// ------------------------------------------------------------------------------------------------------------- origins

/** Who speaks: what a line carries besides its text. */
interface Origin {
  readonly host: string
  readonly program: string
  readonly pid: number
}

interface Sink {
  write(origin: Origin, level: number, message: string): void
  reopen(): void
  close(): void
}

/** The message with over-long lines cut: ` +>` and a newline after each piece but the last. */
export function cutLongLines(message: string): string {
  if (message.length * 3 <= LINE_BYTES_MAX) return message
  return message
    .split("\n")
    .map((line) => {
      const bytes = Buffer.from(line)
      if (bytes.length <= LINE_BYTES_MAX) return line
      const pieces: string[] = []
      for (let at = 0; at < bytes.length; at += LINE_BYTES_MAX) {
        pieces.push(bytes.toString("utf8", at, at + LINE_BYTES_MAX))
      }
      return pieces.join(" +>\n")
    })
    .join("\n")
}

function stockLine(origin: Origin, message: string): string {
  const { host, program, pid } = origin
  return `${formatLogTime(preciseNowMs())} ${host} ${program}[${pid}]: ${cutLongLines(message)}\n`
}

/** One JSON object: time, level (name), host, program, pid, message. */
function jsonText(origin: Origin, level: number, message: string): string {
  const { host, program, pid } = origin
  return JSON.stringify({
    time: formatLogTime(preciseNowMs()),
    level: logLevelName(level),
    host,
    program,
    pid,
    message,
  })
}

// --------------------------------------------------------------------------------------------------------- file, stderr

/** A descriptor that is written to without ever waiting: what does not fit is kept up to a bound, then dropped. */
class PatientWriter {
  private pending: Uint8Array[] = []
  private pendingBytes = 0
  private dropped = 0
  private retry: ReturnType<typeof setTimeout> | undefined

  constructor(private readonly fd: number) {}

  write(line: string): void {
    const bytes = utf8.encode(line)
    if (this.pending.length === 0) this.tryWrite(bytes)
    else if (this.pendingBytes + bytes.length > PENDING_BYTES_MAX) this.dropped++
    else this.keep(bytes)
  }

  /** One last try; what the reader does not take now is lost. */
  close(): void {
    this.drain()
    clearTimeout(this.retry)
  }

  /** True if nothing of it has to be kept: written whole, or hopeless. */
  private tryWrite(bytes: Uint8Array): boolean {
    try {
      const written = writeSync(this.fd, bytes)
      if (written === bytes.length) return true
      this.keep(bytes.subarray(written))
    } catch (error) {
      if (errnoOf(error) !== "EAGAIN") return true
      this.keep(bytes)
    }
    return false
  }

  private keep(bytes: Uint8Array): void {
    this.pending.push(bytes)
    this.pendingBytes += bytes.length
    if (this.retry !== undefined) return
    this.retry = setTimeout(() => {
      this.retry = undefined
      this.drain()
    }, RETRY_MS)
    this.retry.unref()
  }

  private drain(): void {
    const waiting = this.pending
    this.pending = []
    this.pendingBytes = 0
    for (const [index, bytes] of waiting.entries()) {
      if (this.tryWrite(bytes)) continue
      for (const later of waiting.slice(index + 1)) this.keep(later)
      return
    }
    if (this.dropped === 0) return
    const note = `[Dropped ${this.dropped} log messages]\n`
    this.dropped = 0
    this.tryWrite(utf8.encode(note))
  }
}

/**
 * A descriptor of our own for stderr. A pipe or terminal is opened anew, non-blocking, so that the flag does not spread to
 * those who share it; a regular file keeps its descriptor, whose offset is shared.
 */
function ownStderr(): number {
  try {
    if (fstatSync(2).isFile()) return 2
    return openSync("/proc/self/fd/2", constants.O_WRONLY | constants.O_NONBLOCK | constants.O_NOCTTY)
  } catch {
    return 2
  }
}

class StderrSink implements Sink {
  private readonly fd = ownStderr()
  private readonly writer = new PatientWriter(this.fd)
  constructor(private readonly format: LogFormat) {}
  write(origin: Origin, level: number, message: string): void {
    const text = this.format === "json" ? jsonText(origin, level, message) : cutLongLines(message)
    this.writer.write(`${text}\n`)
  }
  reopen(): void {}
  close(): void {
    this.writer.close()
    if (this.fd !== 2) closeSync(this.fd)
  }
}

/** Non-blocking for the sake of a FIFO, which would stop the node until somebody reads it. */
const LOG_FILE_FLAGS =
  constants.O_WRONLY | constants.O_APPEND | constants.O_CREAT | constants.O_NONBLOCK | constants.O_NOCTTY

class FileSink implements Sink {
  private fd: number | undefined
  private fallback: PatientWriter | undefined

  constructor(
    private readonly path: string,
    private readonly format: LogFormat,
    private readonly origin: Origin,
  ) {
    this.open()
  }

  write(origin: Origin, level: number, message: string): void {
    this.writeLine(this.format === "json" ? `${jsonText(origin, level, message)}\n` : stockLine(origin, message))
  }

  private writeLine(line: string): void {
    if (this.fd === undefined) {
      this.fallback?.write(line)
      return
    }
    try {
      writeSync(this.fd, line)
    } catch {
      // A full disk: there is nowhere to say it that would not fail too, and the node must go on.
    }
  }

  /** If the new file can't be opened the old one stays in use; without an old one lines go to stderr. */
  reopen(): void {
    this.open()
  }

  private open(): void {
    try {
      const fd = openSync(this.path, LOG_FILE_FLAGS, 0o644)
      if (this.fd !== undefined) closeSync(this.fd)
      this.fd = fd
      this.fallback?.close()
      this.fallback = undefined
    } catch (error) {
      if (this.fd === undefined) this.fallback ??= new PatientWriter(ownStderr())
      const text = `reopen_one_log: Unable to open new log file '${this.path}': ${strerrorOf(error)}`
      this.write(this.origin, LogLevel.ERROR, text)
    }
  }

  close(): void {
    if (this.fd !== undefined) closeSync(this.fd)
    this.fd = undefined
    this.fallback?.close()
  }
}

// -------------------------------------------------------------------------------------------------------------- syslog

type SyslogTransport = Extract<LogLocation, { kind: "syslog" }>["transport"]

class SyslogSink implements Sink {
  private socket: Datagrams | undefined
  private nextConnectMs = 0
  private dropped = 0

  constructor(
    private readonly transport: SyslogTransport,
    private readonly format: LogFormat,
    private readonly path: string,
    private readonly port: number,
  ) {}

  write(origin: Origin, level: number, message: string): void {
    if (this.format === "json") {
      this.sendLine(origin, level, jsonText(origin, level, message))
      return
    }
    for (const line of cutLongLines(message).split("\n")) this.sendLine(origin, level, line)
  }

  private sendLine(origin: Origin, level: number, line: string): void {
    if (this.dropped > 0) {
      const note = `[Dropped ${this.dropped} log messages]`
      if (this.send(this.datagram(origin, LogLevel.ERROR, note)) !== 0) {
        this.dropped++
        return
      }
      this.dropped = 0
    }
    if (this.send(this.datagram(origin, level, line)) === EAGAIN) this.dropped++
  }

  private datagram(origin: Origin, level: number, line: string): Uint8Array {
    const { host, program, pid } = origin
    const priority = FACILITY_DAEMON + syslogPriority(level)
    if (this.transport === "libc") {
      return utf8.encode(`<${priority}>${formatSyslogTime(Date.now())} ${program}[${pid}]: ${line}`)
    }
    const text =
      this.transport === "udp-rfc5424"
        ? `<${priority}>1 ${formatLogTime(preciseNowMs())} ${host.split(".")[0]} ${program} ${pid} - - ${line}`
        : `<${priority}>${program}[${pid}]: ${line}`
    return utf8.encode(text).subarray(0, DATAGRAM_BYTES_MAX)
  }

  /** 0 or an errno. A receiver that went away is looked for again, at most every RETRY_MS. */
  private send(bytes: Uint8Array): number {
    const socket = this.connected()
    if (socket === undefined) return -1
    const errno = socket.send(bytes)
    if (errno === 0 || errno === EAGAIN) return errno
    if (this.transport === "udp" || this.transport === "udp-rfc5424") return errno
    this.close()
    return this.connected()?.send(bytes) ?? errno
  }

  private connected(): Datagrams | undefined {
    if (this.socket !== undefined || performance.now() < this.nextConnectMs) return this.socket
    try {
      const overUdp = this.transport === "udp" || this.transport === "udp-rfc5424"
      this.socket = overUdp ? udpDatagrams("127.0.0.1", this.port) : unixDatagrams(this.path)
    } catch {
      this.nextConnectMs = performance.now() + RETRY_MS
    }
    return this.socket
  }

  reopen(): void {}

  close(): void {
    this.socket?.close()
    this.socket = undefined
  }
}

// -------------------------------------------------------------------------------------------------------------- logger

interface Shared {
  readonly sink: Sink
  level: number
}

/** A logger over a sink. All loggers that come from one by child() and forProgram() share its level and its sink. */
export class SinkLogger implements Logger {
  constructor(
    private readonly shared: Shared,
    private readonly origin: Origin,
    private readonly prefix: string,
  ) {}

  get level(): number {
    return this.shared.level
  }
  setLevel(level: number): void {
    this.shared.level = level
  }
  error(message: string): void {
    this.write(LogLevel.ERROR, message)
  }
  warning(message: string): void {
    this.write(LogLevel.WARNING, message)
  }
  notice(message: string): void {
    this.write(LogLevel.NOTICE, message)
  }
  info(message: string): void {
    this.write(LogLevel.INFO, message)
  }
  debug(message: string): void {
    this.write(LogLevel.DEBUG, message)
  }
  reopen(): void {
    this.shared.sink.reopen()
  }
  child(prefix: string): SinkLogger {
    return new SinkLogger(this.shared, this.origin, `${this.prefix}${prefix}: `)
  }
  /** The same log under another program name: for the parts that are processes of their own in a stock node. */
  forProgram(program: string): SinkLogger {
    return new SinkLogger(this.shared, { ...this.origin, program }, "")
  }
  /** A line at a level known only at run time (children's output at `script log level`). */
  log(level: number, message: string): void {
    this.write(level, message)
  }
  /** Writes what is still kept, as far as the reader takes it now, and closes. */
  close(): void {
    this.shared.sink.close()
  }

  private write(level: number, message: string): void {
    if (level > this.shared.level) return
    this.shared.sink.write(this.origin, level, this.prefix === "" ? message : this.prefix + message)
  }
}

/**
 * Opens a log. A file that can't be opened is no failure: stderr says so and gets the lines, as with the stock daemon.
 * @throws Error if the location has none of the known forms (the configuration's check has refused it before)
 */
export function openLogger(options: LogOptions): SinkLogger {
  const location = parseLogLocation(options.location)
  if (location === undefined) throw new Error(`log location "${options.location}" has no known form`)
  const { program, level, format = "stock", host = hostname(), pid = process.pid } = options
  const origin: Origin = { host, program, pid }
  return new SinkLogger({ sink: openSink(location, format, origin, options), level }, origin, "")
}

function openSink(location: LogLocation, format: LogFormat, origin: Origin, options: LogOptions): Sink {
  if (location.kind === "stderr") return new StderrSink(format)
  if (location.kind === "file") return new FileSink(location.path, format, origin)
  const { syslogPath = SYSLOG_PATH, syslogPort = SYSLOG_PORT } = options
  return new SyslogSink(location.transport, format, syslogPath, syslogPort)
}

/**
 * The one line that a daemon outside test mode sends to the system's syslog at start, unless its own location is exactly
 * `syslog`, so that an administrator who looks there finds the log.
 */
export function announceLocation(options: LogOptions): void {
  if (options.location === "syslog") return
  const logger = openLogger({ ...options, location: "syslog", format: "stock", level: LogLevel.NOTICE })
  logger.notice(`CTDB logging to location ${options.location}`)
  logger.close()
}
