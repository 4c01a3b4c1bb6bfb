// `ctdb run` (stock name `ctdbd`): the node daemon. Takes the stock daemon's options and configuration, goes to the
// background unless told otherwise, and wires a Node to Bun's environment. The order of steps and the exit statuses are the
// stock daemon's (cluster page 1.1, 1.2; configuration page 18).

import { closeSync, fstatSync, openSync, statSync, unlinkSync } from "node:fs"
import type { AnnouncedVersion } from "../daemon/cluster/keepalive.ts"
import { nodeEnvironment } from "../daemon/environment-bun.ts"
import { LoopWatch } from "../daemon/loop-watch.ts"
import { Node } from "../daemon/node.ts"
import {
  type Configuration,
  clusterLock,
  loadConfigFile,
  missingDirectories,
  startConfiguration,
} from "../lib/config/config-file.ts"
import { faultText } from "../lib/config/fault.ts"
import { logLevelName, parseLogLevel } from "../lib/config/log.ts"
import { announceLocation, type LogFormat, logHost, openLogger, type SinkLogger } from "../lib/config/log-sinks.ts"
import { nodesSource, readNodes } from "../lib/config/nodes-file.ts"
import {
  BROKEN_SETUP_STATUS,
  BrokenSetupError,
  childEnvironment,
  type Paths,
  resolvePaths,
} from "../lib/config/paths.ts"
import { createPidFile, PID_FILE_EXIT_STATUS, type PidFile } from "../lib/config/pidfile.ts"
import { applyTunables, defaultTunables, loadTunables } from "../lib/config/tunables.ts"
import { realScheduler } from "../lib/net/scheduler.ts"
import { type Listener, listenUnix } from "../lib/net/unix.ts"
import { getLimit, Limit, lockMemory, setLimit, setProcessName, setRealtimeScheduling } from "../lib/sys/process.ts"
import { liveLong, longLived } from "../lib/sys/runtime.ts"
import { selfCommand } from "../lib/sys/self.ts"
import { type PoptOption, parsePopt } from "./popt.ts"
import { versionText } from "./version.ts" with { type: "macro" }

const SOCKET_EXIT_STATUS = 10
/** Test mode: the test framework at the other end of standard input has gone (EPIPE). */
const STDIN_CLOSED_STATUS = 32
const INTERNAL_ERROR_STATUS = 134
/** What the process in the background says to the one that started it when the node is up. */
const READY = "ready\n"
const BACKGROUND = "CTDB_RUN_IN_BACKGROUND"
/** As the stock daemon's (wire-protocol page 11). */
const SOCKET_MODE = 0o700
const SOCKET_BACKLOG = 100

const options: readonly PoptOption[] = [
  { long: "interactive", short: "i", takesValue: false },
  { long: "foreground", takesValue: false },
  { long: "log-format", takesValue: true },
  { long: "announce-version", takesValue: true },
  { long: "help", short: "?", takesValue: false, ends: true },
  { long: "usage", takesValue: false, ends: true },
]

const help = `Usage: [OPTION...]
  -i, --interactive            don't fork, log to stderr
      --foreground             don't fork, log as configured
      --log-format=FORMAT      stock (default) or json: one JSON object a line
      --announce-version=V     Samba version that keepalives announce: MAJOR.MINOR, or auto (default): the peers'

Help options:
  -?, --help                   Show this help message
      --usage                  Display brief usage message
`
const usage = `Usage: [-?i] [-?|--help] [--usage] [-i|--interactive] [--foreground]
        [--log-format=FORMAT] [--announce-version=V]
`

interface Options {
  readonly interactive: boolean
  readonly foreground: boolean
  readonly logFormat: LogFormat
  readonly announcedVersion: AnnouncedVersion
}

export async function run(argv: readonly string[]): Promise<number> {
  const parsed = parseOptions(argv)
  if (typeof parsed === "number") return parsed
  const inBackground = process.env[BACKGROUND] !== undefined
  if (parsed.foreground || inBackground) liveLong()
  let paths: Paths
  try {
    paths = resolvePaths(process.env)
  } catch (error) {
    if (!(error instanceof BrokenSetupError)) throw error
    process.stderr.write(`${error.message}\n`)
    return BROKEN_SETUP_STATUS
  }
  delete process.env[BACKGROUND]
  const loaded = loadConfigFile(paths.configFile, paths.etcDir)
  const start = startConfiguration(loaded)
  if (!start.ok) {
    for (const fault of start.faults) process.stderr.write(`${faultText(fault)}\n`)
    process.stderr.write(`Failed to load configuration file ${paths.configFile}\n`)
    return 1
  }
  const { configuration, logLevel, remarks } = start.value
  const location = parsed.interactive ? "file:-" : configuration.logging.location
  const logOptions = { location, level: logLevel, program: "ctdbd", format: parsed.logFormat, host: logHost(paths) }
  const log = openLogger(logOptions)
  if (!paths.testMode && !parsed.interactive && !inBackground) announceLocation(logOptions)
  process.env.CTDB_BASE ??= paths.base
  Object.assign(
    process.env,
    childEnvironment(paths, { location, levelName: logLevelName(logLevel), interactive: parsed.interactive }),
  )
  // The checks that need nothing but files run in the foreground, where their outcome is the command's.
  if (!inBackground) {
    for (const remark of remarks) log.warning(faultText(remark))
    const problem = checkFiles(log, paths, configuration)
    if (problem !== 0) return problem
    if (!parsed.foreground) return startInBackground(argv, paths)
  }
  return new Daemon(log, paths, configuration, parsed).live(inBackground)
}

function parseOptions(argv: readonly string[]): Options | number {
  const result = parsePopt(argv, options)
  if (result.kind === "error") {
    process.stderr.write(`Invalid option ${result.what}: ${result.why}\n`)
    return 1
  }
  const value = (long: string) => result.seen.findLast(({ option }) => option.long === long)?.value
  if (value("usage") !== undefined) {
    process.stdout.write(usage)
    return 0
  }
  if (value("help") !== undefined || result.words.length > 0) {
    process.stdout.write(help)
    return result.words.length > 0 ? 1 : 0
  }
  const logFormat = value("log-format") ?? "stock"
  if (logFormat !== "stock" && logFormat !== "json") {
    process.stderr.write(`Invalid option --log-format=${logFormat}: stock or json expected\n`)
    return 1
  }
  const announcedVersion = parseVersion(value("announce-version") ?? "auto", process.env.CTDB_TEST_SAMBA_VERSION)
  if (announcedVersion === undefined) {
    process.stderr.write(
      `Invalid option --announce-version=${value("announce-version")}: MAJOR.MINOR or auto expected\n`,
    )
    return 1
  }
  const interactive = value("interactive") !== undefined
  const foreground = interactive || value("foreground") !== undefined
  return { interactive, foreground, logFormat, announcedVersion }
}

/** `fromTest` is the stock daemon's override: a decimal number, not above 0 ignored (wire-protocol page 3.9). */
function parseVersion(text: string, fromTest: string | undefined): AnnouncedVersion | undefined {
  const forced = Number.parseInt(fromTest ?? "", 10)
  if (forced > 0) return forced >>> 0
  if (text === "auto") return "auto"
  const match = /^(\d{1,4})\.(\d{1,4})$/.exec(text)
  return match === null ? undefined : ((Number(match[1]) << 16) | Number(match[2])) >>> 0
}

function checkFiles(log: SinkLogger, paths: Paths, configuration: Configuration): number {
  log.notice("CTDB starting on node")
  if (clusterLock(configuration) === undefined) log.warning("Cluster lock not set")
  const nodes = readNodes(nodesSource(configuration.cluster.nodesList, paths.nodesFile))
  if (!nodes.ok) {
    for (const fault of nodes.faults) log.error(faultText(fault))
    log.error(`Failed to load nodes file "${configuration.cluster.nodesList ?? paths.nodesFile}"`)
    return 1
  }
  const missing = missingDirectories(configuration)
  for (const line of missing) log.error(line)
  return missing.length > 0 ? 1 : 0
}

/**
 * Runs this program again in a session of its own and waits until it is up or has failed, so that the exit status tells
 * the truth. (A stock daemon's parent says 0 before it knows.)
 */
async function startInBackground(argv: readonly string[], paths: Paths): Promise<number> {
  const { command, argv0 } = selfCommand("run", "ctdbd", argv)
  const child = Bun.spawn([...command], {
    env: { ...process.env, ...longLived(), [BACKGROUND]: "1" },
    // In test mode the end of standard input ends the daemon; it must stay this process's.
    stdin: paths.testMode ? "inherit" : "ignore",
    stdout: "pipe",
    stderr: "inherit",
    detached: !paths.testMode,
    ...(argv0 === undefined ? {} : { argv0 }),
  })
  let said = ""
  for await (const chunk of child.stdout) {
    said += new TextDecoder().decode(chunk)
    if (said.includes(READY)) {
      child.unref()
      return 0
    }
  }
  return await child.exited
}

/**
 * The runtime of a process that does much once in a while: what its last compiler would make of a recovery's code is ready when the recovery
 * is over, and takes processor time and memory from it. Its heap stays small between recoveries.
 */
const SELDOM_BUSY = { BUN_JSC_useFTLJIT: "0", BUN_OPTIONS: "--smol" }

class Daemon {
  private pidFile: PidFile | undefined
  private socket: Listener | undefined
  private node: Node | undefined
  private readonly tunables = defaultTunables()

  constructor(
    private readonly log: SinkLogger,
    private readonly paths: Paths,
    private readonly configuration: Configuration,
    private readonly options: Options,
  ) {}

  /** Runs until the process ends; resolves only with the status of a start that failed. */
  live(inBackground: boolean): Promise<number> {
    const { log, paths, configuration } = this
    this.loadTunables()
    process.on("uncaughtException", (error) => this.internalError(error))
    process.on("unhandledRejection", (error) => this.internalError(error))
    log.notice(`Starting CTDBD (Version ${versionText()}) as PID: ${process.pid}`)
    const pidFile = createPidFile(paths.daemonPidFile)
    if (!pidFile.ok) {
      log.error(pidFile.message)
      log.error(pidFile.reason)
      return Promise.resolve(PID_FILE_EXIT_STATUS)
    }
    this.pidFile = pidFile.pidFile
    log.notice(`Created PID file ${paths.daemonPidFile}`)
    if (!this.removeStaleSocket()) return Promise.resolve(this.leave(SOCKET_EXIT_STATUS))
    setProcessName("ctdbd")
    const fileLimit = getLimit(Limit.OPEN_FILES)
    setLimit(Limit.OPEN_FILES, { soft: fileLimit.hard, hard: fileLimit.hard })
    if (configuration.legacy.realtimeScheduling && !paths.testMode) {
      try {
        setRealtimeScheduling()
      } catch (error) {
        log.error(`Unable to set scheduler to SCHED_FIFO: ${String(error)}`)
        return Promise.resolve(this.leave(1))
      }
    }
    this.handleSignals()
    this.startNode(inBackground)
    return new Promise(() => {})
  }

  private loadTunables(): void {
    const loaded = loadTunables(this.paths.tunablesFile, this.paths.tunablesDir)
    for (const file of loaded.files) this.log.notice(`Loading tunables from ${file}`)
    for (const fault of loaded.faults) this.log.error(faultText(fault))
    applyTunables(this.tunables, loaded)
  }

  private removeStaleSocket(): boolean {
    const path = this.paths.daemonSocket
    if (statSync(path, { throwIfNoEntry: false }) === undefined) return true
    try {
      unlinkSync(path)
      this.log.warning(`Removed stale socket ${path}`)
      return true
    } catch (error) {
      this.log.error(`Failed to remove stale socket ${path}: ${String(error)}`)
      this.log.error("Cannot continue.  Exiting!")
      return false
    }
  }

  private startNode(inBackground: boolean): void {
    const { log, paths, configuration, options } = this
    const { cluster, legacy } = configuration
    const lock = clusterLock(configuration)
    const childLevel = parseLogLevel(legacy.scriptLogLevel) ?? 0
    const environment = nodeEnvironment({
      log,
      nodes: nodesSource(cluster.nodesList, paths.nodesFile),
      lockHelper: process.env.CTDB_CLUSTER_MUTEX_HELPER,
      onChildOutput: (line) => log.log(childLevel, line),
      exit: (status) => this.exit(status),
      databases: configuration.database,
      notifyScript: paths.notifyScript,
      lockDebugScript: configuration.database.lockDebugScript ?? process.env.CTDB_DEBUG_LOCKS ?? paths.debugLocksScript,
      acceptClients: () => this.acceptClients(inBackground),
      recoveryEnvironment: { ...SELDOM_BUSY },
      recoveryArguments: [
        `--socket=${paths.daemonSocket}`,
        `--log-format=${options.logFormat}`,
        `--main-pid=${process.pid}`,
      ],
    })
    this.node = new Node(
      {
        tunables: this.tunables,
        clusterLock: lock,
        leaderCapability: cluster.leaderCapability,
        lmasterCapability: legacy.lmasterCapability,
        startAsStopped: legacy.startAsStopped,
        startAsDisabled: legacy.startAsDisabled,
        testMode: paths.testMode,
        announcedVersion: options.announcedVersion,
        nodeAddress: cluster.nodeAddress,
      },
      environment,
    )
    new LoopWatch(realScheduler, log, this.node.router.handled).start()
    this.node.start()
  }

  private acceptClients(inBackground: boolean): void {
    const { log, paths, node } = this
    if (node === undefined) return
    try {
      this.socket = listenUnix(paths.daemonSocket, {
        mode: SOCKET_MODE,
        backlog: SOCKET_BACKLOG,
        onAccept: (connection, credentials) => node.acceptClient(connection, credentials),
      })
    } catch (error) {
      log.error(`Unable to bind on ctdb socket '${paths.daemonSocket}': ${String(error)}`)
      log.error("Cannot continue.  Exiting!")
      this.exit(SOCKET_EXIT_STATUS)
      return
    }
    log.notice(`Listening to ctdb socket ${paths.daemonSocket}`)
    try {
      lockMemory()
    } catch (error) {
      log.info(`Memory is not locked: ${String(error)}`)
    }
    if (inBackground) {
      process.stdout.write(READY, () => {
        // The pipe to the parent must not stay open; whatever is written to standard output from now on goes nowhere.
        closeSync(1)
        openSync("/dev/null", "w")
      })
    }
  }

  private handleSignals(): void {
    const shutdown = (signal: string) => () => this.node?.shutdown(0, `${signal} received`)
    process.on("SIGTERM", shutdown("SIGTERM"))
    process.on("SIGINT", shutdown("SIGINT"))
    process.on("SIGHUP", () => {
      this.log.reopen()
      this.node?.recoveryDaemon.reopenLog()
    })
    process.on("SIGUSR1", () => {})
    const stdin = fstatSync(0)
    if (!this.paths.testMode || !(stdin.isFIFO() || stdin.isSocket())) return
    process.stdin.on("end", () => this.node?.shutdown(STDIN_CLOSED_STATUS, "stdin closed, exiting"))
    process.stdin.resume()
  }

  private internalError(error: unknown): void {
    // Whatever state the node is in now, nobody has thought of it: it must not go on serving records from it.
    this.log.error(`ctdb fatal error: ${error instanceof Error ? error.stack : String(error)}`)
    this.exit(INTERNAL_ERROR_STATUS)
  }

  private exit(status: number): void {
    // One more turn lets the last packets and log lines leave.
    setTimeout(() => process.exit(this.leave(status)), 50)
  }

  private leave(status: number): number {
    this.log.notice("CTDB daemon shutting down")
    this.socket?.close()
    this.pidFile?.release()
    this.log.close()
    return status
  }
}
