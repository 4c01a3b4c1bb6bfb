// The real world behind the ports of environment.ts: Bun's sockets, timers and processes. Nothing decides here; what a
// process of a node may do is wired to what does it.

import { randomFillSync } from "node:crypto"
import { accessSync, constants, statSync } from "node:fs"
import type { Logger } from "../lib/config/log.ts"
import { clusterPort, type NodesSource, readNodesAsync } from "../lib/config/nodes-file.ts"
import { realScheduler } from "../lib/net/scheduler.ts"
import { connectTcp, listenTcp } from "../lib/net/tcp.ts"
import { connectUnix } from "../lib/net/unix.ts"
import type { Timeval } from "../lib/protocol/structs.ts"
import { processExists } from "../lib/sys/process.ts"
import { longLived } from "../lib/sys/runtime.ts"
import { selfCommand } from "../lib/sys/self.ts"
import { lockHelper } from "./cluster/lock-helper.ts"
import { type DatabaseDirectories, databaseFiles } from "./database/files-disk.ts"
import type { NodeEnvironment, ProcessEnvironment, RecoveryEnvironment, RecoveryProcess } from "./environment.ts"
import { readLines } from "./lines.ts"
import { diskFiles } from "./recovery/files.ts"

export interface ProcessSettings {
  readonly log: Logger
  readonly nodes: NodesSource
  /** Program for a cluster lock that is a plain path, instead of the one in this binary. */
  readonly lockHelper: string | undefined
  /** A line that a child of this process wrote to its standard error. */
  readonly onChildOutput: (line: string) => void
  /** Ends the process, once what waits in sockets and logs has left. */
  readonly exit: (status: number) => void
}

export interface NodeProcessSettings extends ProcessSettings {
  readonly databases: DatabaseDirectories
  readonly notifyScript: string
  readonly lockDebugScript: string
  readonly acceptClients: () => void
  /** Variables for the recovery daemon on top of this process's own. */
  readonly recoveryEnvironment: Readonly<Record<string, string>>
  readonly recoveryArguments: readonly string[]
}

const port = clusterPort()
const random = new Uint32Array(1)

function wallClock(): Timeval {
  const ms = performance.timeOrigin + performance.now()
  return { sec: Math.floor(ms / 1000), usec: Math.floor((ms % 1000) * 1000) }
}

function common(settings: ProcessSettings): ProcessEnvironment {
  return {
    ...realScheduler,
    wallClock: () => {
      // The monotonic clock has the microseconds, the wall clock the time: a jump of it must show.
      const fine = wallClock()
      const now = Date.now()
      return Math.abs(fine.sec * 1000 - now) < 2000 ? fine : { sec: Math.floor(now / 1000), usec: (now % 1000) * 1000 }
    },
    randomU32: () => {
      randomFillSync(random)
      return random[0] ?? 0
    },
    log: settings.log,
    readNodes: (done) => {
      void readNodesAsync(settings.nodes, port).then(done)
    },
    clusterLock: lockHelper({ helper: settings.lockHelper, onOutput: settings.onChildOutput }),
    exit: settings.exit,
  }
}

export function nodeEnvironment(settings: NodeProcessSettings): NodeEnvironment {
  return {
    ...common(settings),
    transport: {
      listen: (address, portOf, onAccept) => listenTcp({ address, port: portOf, onAccept }),
      connect: (localAddress, remoteAddress, portOf, timeoutMs, onConnected, onFailed) => {
        const connection = { writeOnly: true }
        const options = { localAddress, remoteAddress, port: portOf, timeoutMs, connection, onConnected, onFailed }
        const attempt = connectTcp(options)
        return () => attempt.cancel()
      },
    },
    databases: databaseFiles(settings.databases, realScheduler),
    pid: process.pid,
    processExists,
    startRecoveryDaemon: (onExit) => startRecoveryDaemon(settings, onExit),
    runEvent: (_event, _argument, _timeoutS, done) => {
      // Without event scripts an event is over as soon as it began, with success, as on a stock node without any.
      setImmediate(() => done(0))
    },
    notify: (event) => notify(settings, event),
    debugLocks: lockDebugger(settings),
    acceptClients: settings.acceptClients,
    memoryUsed: () => process.memoryUsage.rss(),
  }
}

export function recoveryEnvironment(
  settings: ProcessSettings,
  socket: string,
  stateDirectory: string,
): RecoveryEnvironment {
  return {
    ...common(settings),
    connectLocal: (handler) => connectUnix(socket, handler),
    recoveryFiles: diskFiles(stateDirectory),
  }
}

function startRecoveryDaemon(settings: NodeProcessSettings, onExit: (reason: string) => void): RecoveryProcess {
  const { command, argv0 } = selfCommand("recoverd", "ctdb_recoverd", settings.recoveryArguments)
  const child = Bun.spawn([...command], {
    env: { ...process.env, ...longLived(), ...settings.recoveryEnvironment },
    stdin: "ignore",
    stdout: "inherit",
    stderr: "inherit",
    ...(argv0 === undefined ? {} : { argv0 }),
    onExit: (_child, status, signal) => onExit(signal === null ? `exit status ${status}` : `signal ${signal}`),
  })
  return {
    pid: child.pid,
    terminate: () => child.kill("SIGTERM"),
    kill: () => child.kill("SIGKILL"),
    reopenLog: () => child.kill("SIGHUP"),
  }
}

/** Runs `notify.sh EVENT` and does not wait for it (events page, section 15). */
function notify(settings: NodeProcessSettings, event: string): void {
  const path = settings.notifyScript
  if (statSync(path, { throwIfNoEntry: false }) === undefined) {
    settings.log.info(`Could not stat notification script ${path}. Can not send notifications.`)
    return
  }
  try {
    accessSync(path, constants.X_OK)
  } catch {
    settings.log.error(`Notification script ${path} is not executable.`)
    return
  }
  const child = Bun.spawn([path, event], {
    env: process.env,
    stdin: "ignore",
    stdout: "inherit",
    stderr: "inherit",
  })
  void child.exited.then((status) => {
    if (status !== 0) settings.log.error(`Notification script ${path} failed for event ${event}: status ${status}`)
  })
}

/**
 * Runs `SCRIPT PID RECORD|DB PATH MUTEX|FCNTL` (data path page 8.4), where PID is this process: its threads wait for locks, and no helper of
 * its own. What it says goes to the log. Not while an earlier one runs: a lock that stays busy must not cost more and more processes.
 */
function lockDebugger({
  lockDebugScript: script,
  log,
  onChildOutput,
}: NodeProcessSettings): NodeEnvironment["debugLocks"] {
  let running = false
  return (what, path, mutexes) => {
    if (running) return
    try {
      const child = Bun.spawn([script, String(process.pid), what, path, mutexes ? "MUTEX" : "FCNTL"], {
        argv0: "debug_locks",
        env: process.env,
        stdin: "ignore",
        stdout: "pipe",
        stderr: "pipe",
      })
      running = true
      void readLines(child.stdout, onChildOutput)
      void readLines(child.stderr, onChildOutput)
      void child.exited.then(() => {
        running = false
      })
    } catch (error) {
      log.error(`Failed to run lock debug script ${script}: ${error instanceof Error ? error.message : String(error)}`)
    }
  }
}
