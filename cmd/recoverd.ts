// `ctdb recoverd` (in the process list `ctdb_recoverd`): the recovery daemon of a node. Started by the node daemon, never by
// hand; it takes its configuration from the same files and ends with the daemon that started it.

import { recoveryEnvironment } from "../daemon/environment-bun.ts"
import { RecoveryDaemon } from "../daemon/recovery/recovery-daemon.ts"
import { clusterLock, loadConfigFile, startConfiguration } from "../lib/config/config-file.ts"
import { faultText } from "../lib/config/fault.ts"
import { parseLogLevel } from "../lib/config/log.ts"
import { logHost, openLogger } from "../lib/config/log-sinks.ts"
import { nodesSource } from "../lib/config/nodes-file.ts"
import { resolvePaths } from "../lib/config/paths.ts"
import { setProcessName } from "../lib/sys/process.ts"
import { liveLong } from "../lib/sys/runtime.ts"
import { type PoptOption, parsePopt } from "./popt.ts"

const options: readonly PoptOption[] = [
  { long: "socket", takesValue: true },
  { long: "log-format", takesValue: true },
  { long: "main-pid", takesValue: true },
]
const INTERNAL_ERROR_STATUS = 134

export async function run(argv: readonly string[]): Promise<number> {
  liveLong()
  const parsed = parsePopt(argv, options)
  const value = (long: string) =>
    parsed.kind === "options" ? parsed.seen.find(({ option }) => option.long === long)?.value : undefined
  const socket = value("socket")
  const mainPid = Number(value("main-pid"))
  if (socket === undefined || !Number.isInteger(mainPid)) {
    process.stderr.write("ctdb recoverd is started by ctdb run, with --socket and --main-pid\n")
    return 1
  }
  const paths = resolvePaths(process.env)
  const start = startConfiguration(loadConfigFile(paths.configFile, paths.etcDir))
  if (!start.ok) {
    for (const fault of start.faults) process.stderr.write(`${faultText(fault)}\n`)
    return 1
  }
  const { configuration, logLevel } = start.value
  const log = openLogger({
    location: process.env.CTDB_LOGGING ?? configuration.logging.location,
    level: logLevel,
    program: "ctdb-recoverd",
    format: value("log-format") === "json" ? "json" : "stock",
    host: logHost(paths),
  })
  setProcessName("ctdb_recoverd")
  const exit = (status: number) => {
    setTimeout(() => {
      log.close()
      process.exit(status)
    }, 50)
  }
  const fail = (error: unknown) => {
    log.error(`recovery daemon: ${error instanceof Error ? error.stack : String(error)}`)
    exit(INTERNAL_ERROR_STATUS)
  }
  process.on("uncaughtException", fail)
  process.on("unhandledRejection", fail)
  const childLevel = parseLogLevel(configuration.legacy.scriptLogLevel) ?? 0
  const environment = recoveryEnvironment(
    {
      log,
      nodes: nodesSource(configuration.cluster.nodesList, paths.nodesFile),
      lockHelper: process.env.CTDB_CLUSTER_MUTEX_HELPER,
      onChildOutput: (line) => log.log(childLevel, line),
      exit,
    },
    socket,
    configuration.database.stateDirectory,
  )
  const daemon = new RecoveryDaemon(
    {
      clusterLock: clusterLock(configuration),
      leaderTimeoutS: configuration.cluster.leaderTimeout,
      testMode: paths.testMode,
    },
    environment,
  )
  process.on("SIGTERM", () => daemon.stop())
  // A terminal's Ctrl-C reaches the whole group: the node daemon decides when this process ends.
  process.on("SIGINT", () => {})
  process.on("SIGHUP", () => log.reopen())
  process.on("SIGUSR1", () => {})
  daemon.start()
  return new Promise(() => {})
}
