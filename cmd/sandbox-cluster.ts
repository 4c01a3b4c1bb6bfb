// A test cluster on this machine: N nodes of this binary on loopback addresses of their own, in one directory. Makes the
// directory, starts and stops the nodes; used by `ctdb sandbox` and whatever else brings its own cluster. Prints nothing.

import { mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { connectUnix } from "../lib/net/unix.ts"
import { processExists } from "../lib/sys/process.ts"
import { selfCommand } from "../lib/sys/self.ts"

/** Node addresses of one sandbox differ in the last number. */
export const SANDBOX_NODES_MAX = 64
/** A node that serves no clients after this time has failed to start. */
const START_MS = 10_000
/** An orderly stop may take this long; then the processes are killed. */
const STOP_MS = 10_000

export interface SandboxNode {
  readonly pnn: number
  readonly address: string
  readonly base: string
  readonly socket: string
}

export interface Sandbox {
  readonly directory: string
  readonly nodes: readonly SandboxNode[]
}

/** 127.A.B: a network that no other sandbox of this machine is likely to use; `seed` is any number. */
function loopbackNetwork(seed: number): string {
  return `127.${64 + (seed % 128)}.${Math.floor(seed / 128) % 256}`
}

function nodeOf(directory: string, pnn: number, address: string): SandboxNode {
  const base = join(directory, `node.${pnn}`)
  return { pnn, address, base, socket: join(base, "run", "ctdbd.socket") }
}

/** Makes the directories and files of a new cluster. The files of one that is there already are written again. */
export function makeSandbox(directory: string, count: number, seed: number): Sandbox {
  const network = loopbackNetwork(seed)
  const addresses = Array.from({ length: count }, (_, pnn) => `${network}.${pnn + 1}`)
  const nodes = addresses.map((address, pnn) => nodeOf(directory, pnn, address))
  for (const { base, address } of nodes) {
    const databases = join(base, "db")
    for (const name of ["run", "var", "share", "events/legacy", "db/volatile", "db/persistent", "db/state"]) {
      mkdirSync(join(base, name), { recursive: true })
    }
    writeFileSync(join(base, "nodes"), `${addresses.join("\n")}\n`)
    writeFileSync(
      join(base, "ctdb.conf"),
      `[logging]
	location = file:${join(base, "log.ctdb")}
	log level = NOTICE
[cluster]
	node address = ${address}
	cluster lock = ${join(directory, "cluster.lock")}
[database]
	volatile database directory = ${join(databases, "volatile")}
	persistent database directory = ${join(databases, "persistent")}
	state database directory = ${join(databases, "state")}
`,
    )
  }
  return { directory, nodes }
}

/** The cluster that lies in a directory. Throws if there is none. */
export function openSandbox(directory: string): Sandbox {
  const list = readFileSync(join(directory, "node.0", "nodes"), "utf8")
  const addresses = list.split("\n").filter((line) => line !== "")
  return { directory, nodes: addresses.map((address, pnn) => nodeOf(directory, pnn, address)) }
}

/** What a shell needs in front of a command that is to reach this node. */
export function nodeVariables(node: SandboxNode): Record<string, string> {
  return { CTDB_TEST_MODE: "1", CTDB_BASE: node.base }
}

/**
 * Starts one node and waits until it serves clients. `tied`: it ends with this process, however that ends. Throws with the
 * end of its log if it does not start.
 */
export async function startNode(node: SandboxNode, tied: boolean): Promise<void> {
  const { command, argv0 } = selfCommand("run", "ctdbd", tied ? ["--foreground"] : [])
  const child = Bun.spawn([...command], {
    env: { ...process.env, ...nodeVariables(node) },
    // In test mode a daemon ends with its standard input; nobody ever writes to this one.
    stdin: tied ? "pipe" : "ignore",
    stdout: "ignore",
    stderr: "pipe",
    // Ctrl-C is for the sandbox, which stops its nodes in order.
    detached: true,
    ...(argv0 === undefined ? {} : { argv0 }),
  })
  const stderr = new Response(child.stderr).text()
  let ended: number | undefined
  void child.exited.then((status) => {
    ended = status
  })
  const deadline = performance.now() + START_MS
  while (pidOf(node) === undefined && performance.now() < deadline) {
    if (ended !== undefined && (tied || ended !== 0)) break
    await Bun.sleep(10)
  }
  if (pidOf(node) !== undefined) {
    child.unref()
    return
  }
  const why = ended === undefined ? `within ${START_MS / 1000} s` : `(status ${ended})`
  throw new Error(`node ${node.pnn} did not start ${why}\n${ended === undefined ? "" : await stderr}${logEnd(node)}`)
}

/** What the load says of itself (sandbox-load.ts). */
export const loadReportFile = (directory: string): string => join(directory, "load.json")
/** The file that names the load's process. */
const loadPidFile = (directory: string): string => join(directory, "load.pid")

/** Starts the load of a sandbox. `tied`: it ends with this process, however that ends. */
export function startLoad({ directory }: Sandbox, tied: boolean): void {
  // A sandbox that was here before has its load's last words left.
  rmSync(loadReportFile(directory), { force: true })
  const { command, argv0 } = selfCommand("sandbox", "ctdb", [])
  const child = Bun.spawn(
    [...command, ...(argv0 === undefined ? [] : ["sandbox"]), "_load", directory, tied ? "tied" : ""],
    {
      stdin: tied ? "pipe" : "ignore",
      stdout: "ignore",
      stderr: "ignore",
      detached: true,
      ...(argv0 === undefined ? {} : { argv0 }),
    },
  )
  writeFileSync(loadPidFile(directory), `${child.pid}\n`)
  child.unref()
}

/** The load's process id, undefined if none runs. */
function loadPid(directory: string): number | undefined {
  try {
    const pid = Number(readFileSync(loadPidFile(directory), "utf8"))
    // The number may be another program's by now.
    return readFileSync(`/proc/${pid}/cmdline`, "latin1").split("\0").includes(directory) ? pid : undefined
  } catch {
    return undefined
  }
}

function logEnd(node: SandboxNode): string {
  try {
    return readFileSync(join(node.base, "log.ctdb"), "utf8").split("\n").slice(-12).join("\n")
  } catch {
    return ""
  }
}

/** The daemon's process id, undefined if the node is not running. */
export function pidOf(node: SandboxNode): number | undefined {
  try {
    const pid = Number(readFileSync(join(node.base, "run", "ctdbd.pid"), "utf8"))
    // A pid file outlives a killed daemon, and its number may be another's by now: only a socket that answers counts.
    if (!processExists(pid)) return undefined
    connectUnix(node.socket, { onPacket: () => {}, onBadHeader: () => "drop", onClose: () => {} }).close()
    return pid
  } catch {
    return undefined
  }
}

/** Stops the load and all nodes in an orderly way, and waits for their ends. Returns how many nodes were running. */
export async function stopSandbox(sandbox: Sandbox): Promise<number> {
  const load = loadPid(sandbox.directory)
  if (load !== undefined) await endAll([load])
  const pids = sandbox.nodes.map(pidOf).filter((pid) => pid !== undefined)
  await endAll(pids)
  return pids.length
}

async function endAll(pids: readonly number[]): Promise<void> {
  for (const pid of pids) process.kill(pid, "SIGTERM")
  const deadline = performance.now() + STOP_MS
  while (pids.some(processExists)) {
    if (performance.now() > deadline) {
      for (const pid of pids.filter(processExists)) process.kill(pid, "SIGKILL")
      break
    }
    await Bun.sleep(50)
  }
}
