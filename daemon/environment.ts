// The ports through which a node touches the world: clock, timers, random numbers, sockets, files, processes, log. The
// daemon's rooms know nothing else, so the same state machines run on Bun (environment-bun.ts) and, on virtual time and
// from a seed, in the simulator (tests/simulation). No behaviour lives here.

import type { Parsed } from "../lib/config/fault.ts"
import type { Logger } from "../lib/config/log.ts"
import type { ListedNode } from "../lib/config/nodes-file.ts"
import type { PacketConnection, PacketHandler, Scheduler } from "../lib/net/ports.ts"
import type { Timeval } from "../lib/protocol/structs.ts"
import type { DatabaseFiles } from "./database/files.ts"
import type { RecoveryFiles } from "./recovery/files.ts"

/** What both processes of a node, the main daemon and its recovery daemon, need. */
export interface ProcessEnvironment extends Scheduler {
  /** Wall clock: for what travels (uptimes, priority times) and is printed. Never for intervals: it may jump. */
  wallClock(): Timeval
  /** A uniformly distributed unsigned 32-bit number. */
  randomU32(): number
  readonly log: Logger
  /**
   * Reads the nodes list afresh, without holding up the loop: it may be the output of a command. An unreadable or wrong
   * list is a value, since a reload must survive it. `done` is called once, in this turn or later.
   */
  readNodes(done: (nodes: Parsed<readonly ListedNode[]>) => void): void
  readonly clusterLock: ClusterLockPort
  /** Ends this process with that status, after what was queued to sockets and logs has left. */
  exit(status: number): void
}

/** Result of one try to take the cluster lock; the characters of the helper protocol (cluster page 5.6). */
export type LockOutcome = "taken" | "contention" | "timeout" | "error"

export interface HeldLock {
  /** Gives the lock up; onLost is not called for it. */
  release(): void
}

export interface ClusterLockPort {
  /**
   * Starts one try. `done` is called once, with the held lock if the outcome is "taken". `onLost` is called once if a
   * held lock goes away by itself. The function returned gives up a try that has not ended; `done` is not called then.
   */
  take(
    lock: string,
    timeoutMs: number,
    done: (outcome: LockOutcome, held: HeldLock | undefined) => void,
    onLost: () => void,
  ): () => void
}

export interface Listener {
  close(): void
}

/** Links between nodes. Addresses are literals without port (`127.0.0.1`, `fd00::1`). */
export interface Transport {
  /** Throws an Error that names the address if it can't be bound. */
  listen(
    address: string,
    port: number,
    /** undefined refuses the connection: it is closed at once. */
    onAccept: (connection: PacketConnection, remoteAddress: string) => PacketHandler | undefined,
  ): Listener
  /**
   * One attempt to connect, bound to `localAddress`. The connection is for writing only: anything that becomes readable
   * on it, even data, ends it (cluster page 3.2). The function returned gives the attempt up.
   */
  connect(
    localAddress: string,
    remoteAddress: string,
    port: number,
    timeoutMs: number,
    onConnected: (connection: PacketConnection) => PacketHandler,
    onFailed: (reason: string) => void,
  ): () => void
}

/** The child process that watches and repairs the cluster. */
export interface RecoveryProcess {
  readonly pid: number
  /** Asks it to give up leadership and the cluster lock, and to end. */
  terminate(): void
  /** Ends it at once, even when it is stopped. */
  kill(): void
  /** Tells it that the log was rotated. */
  reopenLog(): void
}

/** What only the main daemon of a node needs. */
export interface NodeEnvironment extends ProcessEnvironment {
  readonly transport: Transport
  readonly databases: DatabaseFiles
  /** Process id of the daemon, what GET_PID answers. */
  readonly pid: number
  /** Whether a process of that id exists on this machine. */
  processExists(pid: number): boolean
  /** Starts the recovery daemon; `onExit` is called once when it has ended, for whatever reason. */
  startRecoveryDaemon(onExit: (reason: string) => void): RecoveryProcess
  /** Runs an event's scripts; the status is the event daemon's result (events page, section 6): 0, or a positive errno. */
  runEvent(event: string, argument: string, timeoutS: number, done: (status: number) => void): void
  /** Tells the notification script; fire and forget (events page, section 15). */
  notify(event: string): void
  /** Runs the script that shows who holds up a lock of that file (data path page 8.4); fire and forget. */
  debugLocks(what: "RECORD" | "DB", path: string, mutexes: boolean): void
  /** Opens the client socket: from now on clients are served (wire-protocol page, section 11). */
  acceptClients(): void
  /** Bytes the process holds, for statistics. */
  memoryUsed(): number
}

/** What only the recovery daemon needs: its one conversation with the main daemon. */
export interface RecoveryEnvironment extends ProcessEnvironment {
  /** Connects to the local daemon's client socket, or throws. */
  connectLocal(handler: PacketHandler): PacketConnection
  /** Where a recovery keeps records: in the state directory. */
  readonly recoveryFiles: RecoveryFiles
}
