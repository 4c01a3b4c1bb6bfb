// Where everything of a node lives: directories, sockets, pid files, configuration files, in normal and in test mode, with
// Debian's compiled-in places. Source: reference page "Configuration", sections 1 to 3. Pure: reads nothing but the
// environment record it is given, and creates nothing.

/** The compiled-in places of Debian's package. */
export const compiledIn = {
  etcDir: "/etc/ctdb",
  dataDir: "/usr/share/ctdb",
  helperDir: "/usr/libexec/ctdb",
  varDir: "/var/lib/ctdb",
  runDir: "/run/ctdb",
  logFile: "/var/log/ctdb/log.ctdb",
} as const

/** What `process.env` is, and what a test makes up. */
export type EnvironmentVariables = Readonly<Record<string, string | undefined>>

/** Test mode without CTDB_BASE. Stock programs print the message and abort: shell status {@link BROKEN_SETUP_STATUS}. */
export class BrokenSetupError extends Error {
  constructor() {
    super("Broken CTDB setup, CTDB_BASE not set in test mode")
    this.name = "BrokenSetupError"
  }
}
export const BROKEN_SETUP_STATUS = 134

export interface Paths {
  /** CTDB_TEST_MODE exists, with any value. */
  readonly testMode: boolean
  /** CTDB_BASE, else the etc directory: what scripts see as CTDB_BASE. `nodes`, `public_addresses` and scripts are here. */
  readonly base: string
  readonly etcDir: string
  readonly dataDir: string
  /** Pid files, sockets and locks (the newest version's piddir, socketdir and lockdir are all this). */
  readonly runDir: string
  readonly varDir: string
  readonly helperDir: string

  readonly configFile: string
  readonly tunablesFile: string
  /** Newest only: `*.tunables` in here are read after tunablesFile, in name order. */
  readonly tunablesDir: string
  readonly nodesFile: string
  readonly publicAddressesFile: string
  readonly homeNodesFile: string
  readonly scriptOptionsFile: string
  readonly notifyScript: string
  readonly debugLocksScript: string
  /** Enabled scripts: `COMPONENT/NN.name.script`. */
  readonly eventsDir: string
  /** Installed scripts. */
  readonly dataEventsDir: string
  readonly scriptStateDir: string

  readonly daemonSocket: string
  readonly daemonPidFile: string
  readonly eventSocket: string
  readonly eventPidFile: string
  /** fcntl lock (byte 0) held only while a daemon without `node address` looks for an address that it can bind. */
  readonly listenLockFile: string
}

/**
 * The paths of one node.
 * @throws BrokenSetupError in test mode without CTDB_BASE (an empty one counts as set, as with the stock programs)
 */
export function resolvePaths(env: EnvironmentVariables): Paths {
  const testMode = env.CTDB_TEST_MODE !== undefined
  if (testMode && env.CTDB_BASE === undefined) throw new BrokenSetupError()
  const base = env.CTDB_BASE ?? compiledIn.etcDir
  const etcDir = testMode ? base : compiledIn.etcDir
  const dataDir = testMode ? `${base}/share` : compiledIn.dataDir
  const runDir = testMode ? `${base}/run` : compiledIn.runDir
  const varDir = testMode ? `${base}/var` : compiledIn.varDir
  return {
    testMode,
    base,
    etcDir,
    dataDir,
    runDir,
    varDir,
    helperDir: (testMode ? env.CTDB_TEST_HELPER_BINDIR : undefined) ?? compiledIn.helperDir,
    configFile: `${etcDir}/ctdb.conf`,
    tunablesFile: `${etcDir}/ctdb.tunables`,
    tunablesDir: `${etcDir}/tunables.d`,
    nodesFile: `${base}/nodes`,
    publicAddressesFile: `${base}/public_addresses`,
    homeNodesFile: `${base}/home_nodes`,
    scriptOptionsFile: `${base}/script.options`,
    notifyScript: `${base}/notify.sh`,
    debugLocksScript: `${base}/debug_locks.sh`,
    eventsDir: `${etcDir}/events`,
    dataEventsDir: `${dataDir}/events`,
    scriptStateDir: `${varDir}/scripts`,
    daemonSocket: env.CTDB_SOCKET ?? `${runDir}/ctdbd.socket`,
    daemonPidFile: pidFile(runDir, "ctdbd"),
    eventSocket: socketFile(runDir, "eventd"),
    eventPidFile: pidFile(runDir, "eventd"),
    listenLockFile: `${runDir}/.socket_lock`,
  }
}

export function pidFile(runDir: string, daemon: string): string {
  return `${runDir}/${daemon}.pid`
}

export function socketFile(runDir: string, daemon: string): string {
  return `${runDir}/${daemon}.socket`
}

/** The program that a variable of 4.17 replaces, by the helper's installed name. */
export const helperVariables = {
  "ctdb-eventd": "CTDB_EVENTD",
  ctdb_takeover_helper: "CTDB_TAKEOVER_HELPER",
  ctdb_recovery_helper: "CTDB_RECOVERY_HELPER",
  ctdb_lock_helper: "CTDB_LOCK_HELPER",
  ctdb_mutex_fcntl_helper: "CTDB_CLUSTER_MUTEX_HELPER",
  ctdb_event_helper: "CTDB_EVENT_HELPER",
  ctdb_natgw: "CTDB_NATGW_HELPER",
  ctdb_lvs: "CTDB_LVS_HELPER",
} as const

/** Full path of a helper program: its variable if set, else the helper directory. */
export function helperPath(name: keyof typeof helperVariables, paths: Paths, env: EnvironmentVariables): string {
  return env[helperVariables[name]] ?? `${paths.helperDir}/${name}`
}

/** The environment that children (scripts, helpers) of a daemon see on top of its own. */
export function childEnvironment(
  paths: Paths,
  logging: { readonly location: string; readonly levelName: string; readonly interactive: boolean },
): Record<string, string> {
  return {
    CTDB_BASE: paths.base,
    CTDB_LOGGING: logging.location,
    CTDB_DEBUGLEVEL: logging.levelName,
    ...(logging.interactive ? { CTDB_INTERACTIVE: "true" } : {}),
  }
}
