// `ctdb sandbox`: a cluster to look at, load and break, on this machine and with nothing installed. Starts the nodes, shows
// who leads and how they are, prints the commands that reach them, and takes everything down again.

import { existsSync, mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { basename, join, resolve } from "node:path"
import { Client } from "../lib/client/client.ts"
import { decode, u32 } from "../lib/protocol/codec.ts"
import { NodeFlag, RecoveryMode, RunState, Srvid, UNKNOWN_PNN } from "../lib/protocol/constants.ts"
import { bold, faint, green, red, table, yellow } from "./admin/terminal.ts"
import {
  makeSandbox,
  nodeVariables,
  openSandbox,
  pidOf,
  SANDBOX_NODES_MAX,
  type Sandbox,
  type SandboxNode,
  startNode,
  stopSandbox,
} from "./sandbox-cluster.ts"

const REFRESH_MS = 1000
const DETACHED_DIRECTORY = "ctdb-sandbox"
/** A node that does not answer within this time is shown as such. */
const ANSWER_MS = 800

const usage = `Usage: ctdb sandbox [--nodes N] [--dir DIR] [--detach]
       ctdb sandbox stop [--dir DIR]
  Runs N nodes (default 3) on loopback and shows them until Ctrl-C.
  --nodes N   how many, 1 to ${SANDBOX_NODES_MAX}
  --dir DIR   keep files and logs in DIR (default: a temporary directory that is removed at the end)
  --detach    leave the nodes running and return; \`ctdb sandbox stop\` ends them
`

interface Options {
  readonly stop: boolean
  readonly detach: boolean
  readonly nodes: number
  readonly directory: string | undefined
}

function parse(argv: readonly string[]): Options | string {
  let stop = false
  let detach = false
  let nodes = 3
  let directory: string | undefined
  for (let at = 0; at < argv.length; at++) {
    const word = argv[at] ?? ""
    const [name, inline] = word.split("=", 2)
    const value = () => inline ?? argv[++at] ?? ""
    if (word === "stop") stop = true
    else if (word === "--detach") detach = true
    else if (name === "--nodes") nodes = Number(value())
    else if (name === "--dir") directory = resolve(value())
    else return `unknown argument ${word}`
  }
  if (!Number.isInteger(nodes) || nodes < 1 || nodes > SANDBOX_NODES_MAX) {
    return `--nodes takes a number from 1 to ${SANDBOX_NODES_MAX}`
  }
  return { stop, detach, nodes, directory }
}

export async function run(argv: readonly string[]): Promise<number> {
  if (argv.includes("--help") || argv.includes("-h")) {
    process.stdout.write(usage)
    return 0
  }
  const options = parse(argv)
  if (typeof options === "string") {
    process.stderr.write(`ctdb sandbox: ${options}\n${usage}`)
    return 1
  }
  const kept = options.directory ?? (options.detach || options.stop ? join(tmpdir(), DETACHED_DIRECTORY) : undefined)
  if (options.stop) return stop(kept ?? "")
  if (kept !== undefined && existsSync(join(kept, "node.0")) && openSandbox(kept).nodes.some(isRunning)) {
    process.stderr.write(`ctdb sandbox: nodes run in ${kept} already (ctdb sandbox stop --dir ${kept})\n`)
    return 1
  }
  const directory = kept ?? mkdtempSync(join(tmpdir(), "ctdb-sandbox-"))
  const sandbox = makeSandbox(directory, options.nodes, process.pid)
  try {
    await start(sandbox, !options.detach)
    if (options.detach) {
      process.stdout.write(commands(sandbox))
      process.stdout.write(
        `\nStop with: ${ourName()} sandbox stop${kept === join(tmpdir(), DETACHED_DIRECTORY) ? "" : ` --dir ${kept}`}\n`,
      )
      return 0
    }
    await watch(sandbox)
    return 0
  } catch (error) {
    process.stderr.write(`ctdb sandbox: ${error instanceof Error ? error.message : String(error)}\n`)
    await stopSandbox(sandbox)
    return 1
  } finally {
    if (kept === undefined) rmSync(directory, { recursive: true, force: true })
  }
}

function isRunning(node: SandboxNode): boolean {
  return pidOf(node) !== undefined
}

async function stop(directory: string): Promise<number> {
  if (!existsSync(join(directory, "node.0"))) {
    process.stderr.write(`ctdb sandbox: no sandbox in ${directory}\n`)
    return 1
  }
  const stopped = await stopSandbox(openSandbox(directory))
  process.stdout.write(`${stopped} nodes stopped; their files stay in ${directory}\n`)
  return 0
}

async function start(sandbox: Sandbox, tied: boolean): Promise<void> {
  const started = performance.now()
  await Promise.all(sandbox.nodes.map((node) => startNode(node, tied)))
  const seconds = ((performance.now() - started) / 1000).toFixed(1)
  process.stdout.write(`${sandbox.nodes.length} nodes started in ${seconds} s, files in ${sandbox.directory}\n\n`)
}

/** How this program was called, for commands that are to be copied. */
function ourName(): string {
  return Bun.main.startsWith("/$bunfs/") ? process.execPath : `bun ${Bun.main}`
}

function commands(sandbox: Sandbox): string {
  const lines = [bold("Talk to a node:")]
  for (const node of sandbox.nodes) {
    const variables = Object.entries(nodeVariables(node))
      .map(([name, value]) => `${name}=${value}`)
      .join(" ")
    lines.push(`  node ${node.pnn}   ${variables} ${ourName()} status`)
  }
  const stock = ["/usr/bin/ctdb"].filter(existsSync)
  const [first] = sandbox.nodes
  for (const tool of stock) {
    if (first === undefined || tool === process.execPath) continue
    lines.push(`  stock    CTDB_TEST_MODE=1 CTDB_BASE=${first.base} ${tool} status`)
  }
  lines.push(faint("  logs     DIR/node.N/log.ctdb"))
  return `${lines.join("\n")}\n`
}

// ---- the live view -----------------------------------------------------------------------------------------------

/** What one node says about itself. */
interface Seen {
  readonly node: SandboxNode
  client: Client | undefined
  leader: number
  state: string
  flags: number | undefined
  generation: string
  mode: string
  clients: string
}

async function watch(sandbox: Sandbox): Promise<void> {
  const seen: Seen[] = sandbox.nodes.map((node) => ({
    node,
    client: undefined,
    leader: UNKNOWN_PNN,
    state: "",
    flags: undefined,
    generation: "",
    mode: "",
    clients: "",
  }))
  let over = false
  const ended = new Promise<void>((end) => {
    const leave = () => {
      over = true
      end()
    }
    process.once("SIGINT", leave)
    process.once("SIGTERM", leave)
    process.once("SIGHUP", leave)
  })
  process.stdout.write(commands(sandbox))
  process.stdout.write(`${faint("Ctrl-C stops all nodes.")}\n\n`)
  let shown = ""
  while (!over) {
    await Promise.all(seen.map(look))
    const view = render(seen)
    if (process.stdout.isTTY) {
      const lines = shown.split("\n").length - 1
      process.stdout.write(`${lines > 0 ? `\x1b[${lines}A\x1b[J` : ""}${view}`)
    } else if (view !== shown) process.stdout.write(`${view}\n`)
    shown = view
    await Promise.race([ended, Bun.sleep(REFRESH_MS)])
  }
  process.stdout.write("\nStopping...\n")
  for (const { client } of seen) void client?.close()
  const stopped = await stopSandbox(sandbox)
  process.stdout.write(`${stopped} nodes stopped\n`)
}

async function look(seen: Seen): Promise<void> {
  const waiting = { timeoutMs: ANSWER_MS }
  try {
    seen.client ??= await connect(seen)
    const { client } = seen
    const [map, mode, runState, vnnMap, clients] = await Promise.all([
      client.control("GET_NODEMAP", client.pnn, undefined, waiting),
      client.controlStatus("GET_RECMODE", client.pnn, undefined, waiting),
      client.control("GET_RUNSTATE", client.pnn, undefined, waiting),
      client.control("GETVNNMAP", client.pnn, undefined, waiting),
      client.controlStatus("PING", client.pnn, undefined, waiting),
    ])
    seen.flags = map.find((node) => node.pnn === client.pnn)?.flags
    seen.mode = mode === RecoveryMode.NORMAL ? "NORMAL" : "RECOVERY"
    seen.state = Object.entries(RunState).find(([, value]) => value === runState)?.[0] ?? String(runState)
    seen.generation = vnnMap.generation === 1 ? "none" : String(vnnMap.generation)
    seen.clients = String(clients)
  } catch {
    if (seen.client?.isOpen !== true) {
      void seen.client?.close()
      seen.client = undefined
    }
    seen.state = pidOf(seen.node) === undefined ? "not running" : "no answer"
    seen.flags = undefined
    seen.generation = ""
    seen.mode = ""
    seen.clients = ""
    seen.leader = UNKNOWN_PNN
  }
}

async function connect(seen: Seen): Promise<Client> {
  const client = await Client.connect({ socket: seen.node.socket, timeoutMs: ANSWER_MS })
  await client.onMessage(
    Srvid.LEADER,
    (data) => {
      seen.leader = decode(u32, data)
    },
    { timeoutMs: ANSWER_MS },
  )
  return client
}

function render(seen: readonly Seen[]): string {
  const rows = seen.map(({ node, leader, state, flags, generation, mode, clients }) => [
    `${node.pnn}${leader === node.pnn ? yellow(" leader") : ""}`,
    node.address,
    flags === undefined ? red(state) : flagText(flags),
    flags === undefined ? "" : state,
    mode === "RECOVERY" ? yellow(mode) : mode,
    generation,
    clients,
    basename(node.base),
  ])
  return table(["Node", "Address", "Health", "Run state", "Recovery mode", "Generation", "Clients", "Directory"], rows)
}

function flagText(flags: number): string {
  if (flags === 0) return green("OK")
  const names = ["DISCONNECTED", "UNHEALTHY", "PERMANENTLY_DISABLED", "BANNED", "DELETED", "STOPPED"] as const
  const set = names.filter((name) => (flags & NodeFlag[name]) !== 0).map((name) => name.replace("PERMANENTLY_", ""))
  return yellow(set.join("|"))
}
