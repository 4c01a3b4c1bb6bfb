// Starts the installed stock ctdbd in test mode, on a loopback address and in a directory of its own, and stops it and
// nothing else. Used by every test that compares with the real program, or joins it. nodes.ts starts ours the same way.

import { closeSync, existsSync, mkdirSync, openSync, readFileSync, unlinkSync, writeFileSync } from "node:fs"
import { join } from "node:path"

const CTDBD = "/usr/sbin/ctdbd"
const CTDB = "/usr/bin/ctdb"

/** Whether the stock programs are there at all. */
export const stockInstalled = existsSync(CTDBD) && existsSync(CTDB)

/**
 * A line of ctdb.tunables for clusters in which tables of the default size prove nothing: 100,001 chains are 4 MB of mutexes, which
 * each node makes and looks at for every database.
 */
export const SMALL_TABLES = "DatabaseHashSize=10007"

export interface StockOptions {
  /** The node's own CTDB_BASE: an existing, empty directory, or one that a node was stopped in. */
  readonly base: string
  /** Its address: one of `nodes`. */
  readonly address: string
  /** Addresses of all nodes by PNN; a deleted node as "#ADDRESS". */
  readonly nodes: readonly string[]
  /** Lines of ctdb.tunables, "NAME=VALUE". */
  readonly tunables?: readonly string[]
  /** `[cluster] recovery lock`: a path or "!COMMAND". None: elections without lock. */
  readonly clusterLock?: string
  /** More lines at the end of ctdb.conf, with their [section]. */
  readonly config?: readonly string[]
  readonly logLevel?: "ERROR" | "WARNING" | "NOTICE" | "INFO" | "DEBUG"
  readonly environment?: Readonly<Record<string, string>>
}

/** A program that is a node daemon, with what makes it stay in the foreground and log to standard error. */
export interface NodeProgram {
  readonly name: string
  readonly command: readonly string[]
}

const stockProgram: NodeProgram = { name: "stock ctdbd", command: [CTDBD, "-i"] }

export interface StockNode {
  readonly base: string
  readonly socket: string
  readonly pid: number
  readonly logFile: string
  /** What the stock tool's environment needs to reach this node. */
  readonly environment: Record<string, string>
  /** Runs the stock tool against it. */
  tool(...words: string[]): Promise<{ readonly status: number; readonly stdout: string; readonly stderr: string }>
  log(): string
  /** Orderly shutdown by the end of its standard input; SIGKILL if it takes longer than 10 s. Resolves with the status. */
  stop(): Promise<number>
  /** SIGKILL at once; its children notice by themselves. */
  kill(): Promise<void>
  /** SIGSTOP to all of its processes, and SIGCONT: a machine that hangs, and comes back. */
  pause(): void
  resume(): void
  readonly exited: Promise<number>
}

/** Waits for a condition, looking every 20 ms. @throws after `timeoutMs`, with what it waited for */
export async function waitUntil(
  what: string,
  condition: () => boolean | Promise<boolean>,
  timeoutMs = 60_000,
): Promise<void> {
  const deadline = performance.now() + timeoutMs
  while (!(await condition())) {
    if (performance.now() > deadline) throw new Error(`no ${what} within ${timeoutMs} ms`)
    await Bun.sleep(20)
  }
}

function writeBase(options: StockOptions): void {
  const { base } = options
  for (const directory of ["run", "var", "share", "events/legacy", "volatile", "persistent", "state"]) {
    mkdirSync(join(base, directory), { recursive: true })
  }
  writeFileSync(join(base, "nodes"), `${options.nodes.join("\n")}\n`)
  writeFileSync(join(base, "ctdb.tunables"), (options.tunables ?? []).map((line) => `${line}\n`).join(""))
  const lines = [
    "[logging]",
    `  location = file:${join(base, "log.ctdb")}`,
    `  log level = ${options.logLevel ?? "NOTICE"}`,
    "[cluster]",
    `  node address = ${options.address}`,
    ...(options.clusterLock === undefined ? [] : [`  recovery lock = ${options.clusterLock}`]),
    "[database]",
    `  volatile database directory = ${join(base, "volatile")}`,
    `  persistent database directory = ${join(base, "persistent")}`,
    `  state database directory = ${join(base, "state")}`,
    ...(options.config ?? []),
  ]
  writeFileSync(join(base, "ctdb.conf"), `${lines.join("\n")}\n`)
}

/** The process and all its descendants, parents first. */
export function processTree(pid: number): number[] {
  let children: string
  try {
    children = readFileSync(`/proc/${pid}/task/${pid}/children`, "utf8")
  } catch {
    return []
  }
  return [pid, ...children.split(" ").flatMap((child) => (child === "" ? [] : processTree(Number(child))))]
}

/** Starts a node and waits until its socket answers. It need not have recovered yet: see waitUntil and `ctdb status`. */
export const startStockNode = (options: StockOptions): Promise<StockNode> => startNode(options, stockProgram)

/** startStockNode() with another program. */
export async function startNode(options: StockOptions, program: NodeProgram): Promise<StockNode> {
  writeBase(options)
  const { base } = options
  const socket = join(base, "run", "ctdbd.socket")
  const logFile = join(base, "log.ctdb")
  const environment = {
    PATH: "/usr/sbin:/usr/bin:/sbin:/bin",
    CTDB_TEST_MODE: "1",
    CTDB_BASE: base,
    CTDB_SOCKET: socket,
    ...options.environment,
  }
  // Its standard input is a FIFO that only we hold: the node shuts down at its end (cluster-and-recovery 1.9), so also if
  // this process dies. Bun's own "pipe" is a socket, which the daemon does not watch.
  const fifo = join(base, "stdin")
  Bun.spawnSync(["mkfifo", fifo])
  const lifeline = openSync(fifo, "r+")
  const standardInput = openSync(fifo, "r")
  unlinkSync(fifo)
  // It logs to standard error, wherever ctdb.conf says. A node that is started again goes on in the same log.
  const standardError = openSync(logFile, "a")
  const daemon = Bun.spawn([...program.command], {
    env: environment,
    stdin: standardInput,
    stdout: "ignore",
    stderr: standardError,
  })
  closeSync(standardInput)
  closeSync(standardError)
  let held = true
  const letGo = (): void => {
    if (held) closeSync(lifeline)
    held = false
  }
  const log = (): string => (existsSync(logFile) ? readFileSync(logFile, "utf8") : "")

  async function tool(...words: string[]): Promise<{ status: number; stdout: string; stderr: string }> {
    const run = Bun.spawn([CTDB, ...words], { env: environment, stdin: "ignore", stdout: "pipe", stderr: "pipe" })
    const [stdout, stderr, status] = await Promise.all([
      new Response(run.stdout).text(),
      new Response(run.stderr).text(),
      run.exited,
    ])
    return { status, stdout, stderr }
  }

  const signalTree = (signal: NodeJS.Signals): void => {
    for (const pid of processTree(daemon.pid)) process.kill(pid, signal)
  }

  const node: StockNode = {
    base,
    socket,
    pid: daemon.pid,
    logFile,
    environment,
    tool,
    log,
    exited: daemon.exited,
    async stop() {
      letGo()
      const timer = setTimeout(() => daemon.kill("SIGKILL"), 10_000)
      const status = await daemon.exited
      clearTimeout(timer)
      return status
    },
    async kill() {
      daemon.kill("SIGKILL")
      await daemon.exited
      letGo()
    },
    pause: () => signalTree("SIGSTOP"),
    resume: () => signalTree("SIGCONT"),
  }
  try {
    await waitUntil(`answer from ${program.name}`, async () => {
      if (daemon.exitCode !== null) throw new Error(`${program.name} ended with ${daemon.exitCode}: ${log()}`)
      return existsSync(socket) && (await tool("-t", "2", "pnn")).status === 0
    })
  } catch (error) {
    await node.kill()
    throw error
  }
  return node
}

/** Waits until the stock tool finds the node's recovery mode NORMAL and its own flags OK. */
export async function waitUntilHealthy(node: StockNode, timeoutMs = 90_000): Promise<void> {
  await waitUntil(
    `healthy node in ${node.base}`,
    async () =>
      (await node.tool("-t", "5", "nodestatus")).status === 0 && /NORMAL/.test((await node.tool("status")).stdout),
    timeoutMs,
  )
}
