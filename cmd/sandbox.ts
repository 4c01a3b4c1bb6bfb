// `ctdb sandbox`: a cluster to look at, load and break, on this machine and with nothing installed. Starts the nodes, shows
// who leads, how they are and how records move between them, prints the commands that reach them, and takes everything down again.
// The load itself is sandbox-load.ts.

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
  startLoad,
  startNode,
  stopSandbox,
} from "./sandbox-cluster.ts"
import { LOAD_DATABASE, LOAD_RECORDS, type LoadReport, readReport, runLoad } from "./sandbox-load.ts"

const REFRESH_MS = 1000
const DETACHED_DIRECTORY = "ctdb-sandbox"
/** Between two looks at the load where they stay on the page (ms). */
const LOAD_LINES_MS = 10_000
/** A node that does not answer within this time is shown as such. */
const ANSWER_MS = 800

const usage = `Usage: ctdb sandbox [--nodes N] [--dir DIR] [--no-load]
       ctdb sandbox --detach [--nodes N] [--dir DIR] [--load]
       ctdb sandbox watch|stop [--dir DIR]
  Runs N nodes (default 3) on loopback with a small load, and shows them until Ctrl-C.
  --nodes N   how many, 1 to ${SANDBOX_NODES_MAX}
  --dir DIR   keep files and logs in DIR (default: a temporary directory that is removed at the end)
  --no-load   no load: nothing happens on the nodes but what you do
  --detach    leave the nodes running and return, without a load unless --load says so;
              \`ctdb sandbox watch\` shows them, \`ctdb sandbox stop\` ends them
`

interface Options {
  readonly what: "start" | "stop" | "watch"
  readonly detach: boolean
  readonly load: boolean
  readonly nodes: number
  readonly directory: string | undefined
}

function parse(argv: readonly string[]): Options | string {
  let what: Options["what"] = "start"
  let detach = false
  let load: boolean | undefined
  let nodes = 3
  let directory: string | undefined
  for (let at = 0; at < argv.length; at++) {
    const word = argv[at] ?? ""
    const [name, inline] = word.split("=", 2)
    const value = () => inline ?? argv[++at] ?? ""
    if (word === "stop" || word === "watch") what = word
    else if (word === "--detach") detach = true
    else if (word === "--load" || word === "--no-load") load = word === "--load"
    else if (name === "--nodes") nodes = Number(value())
    else if (name === "--dir") directory = resolve(value())
    else return `unknown argument ${word}`
  }
  if (!Number.isInteger(nodes) || nodes < 1 || nodes > SANDBOX_NODES_MAX) {
    return `--nodes takes a number from 1 to ${SANDBOX_NODES_MAX}`
  }
  // Who detaches a cluster brings a load of their own, or wants none.
  return { what, detach, load: load ?? !detach, nodes, directory }
}

export async function run(argv: readonly string[]): Promise<number> {
  if (argv[0] === "_load") return await runLoad(argv[1] ?? "", argv[2] === "tied")
  if (argv.includes("--help") || argv.includes("-h")) {
    process.stdout.write(usage)
    return 0
  }
  const options = parse(argv)
  if (typeof options === "string") {
    process.stderr.write(`ctdb sandbox: ${options}\n${usage}`)
    return 1
  }
  const running = options.detach || options.what !== "start"
  const kept = options.directory ?? (running ? join(tmpdir(), DETACHED_DIRECTORY) : undefined)
  if (options.what === "stop") return stop(kept ?? "")
  if (options.what === "watch") return watchDetached(kept ?? "")
  if (kept !== undefined && existsSync(join(kept, "node.0")) && openSandbox(kept).nodes.some(isRunning)) {
    process.stderr.write(`ctdb sandbox: nodes run in ${kept} already (ctdb sandbox stop --dir ${kept})\n`)
    return 1
  }
  const directory = kept ?? mkdtempSync(join(tmpdir(), "ctdb-sandbox-"))
  const sandbox = makeSandbox(directory, options.nodes, process.pid)
  try {
    await start(sandbox, !options.detach)
    if (options.load) startLoad(sandbox, !options.detach)
    if (options.detach) {
      process.stdout.write(commands(sandbox))
      const where = kept === join(tmpdir(), DETACHED_DIRECTORY) ? "" : ` --dir ${kept}`
      process.stdout.write(`\nWatch with: ${ourName()} sandbox watch${where}\n`)
      process.stdout.write(`Stop with:  ${ourName()} sandbox stop${where}\n`)
      return 0
    }
    process.stdout.write(commands(sandbox))
    process.stdout.write(`${faint("Ctrl-C stops all nodes.")}\n\n`)
    await watch(sandbox)
    process.stdout.write("\nStopping...\n")
    const stopped = await stopSandbox(sandbox)
    process.stdout.write(`${stopped} nodes stopped\n`)
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

/** Shows a detached sandbox until Ctrl-C, and leaves it running. */
async function watchDetached(directory: string): Promise<number> {
  if (!existsSync(join(directory, "node.0"))) {
    process.stderr.write(`ctdb sandbox: no sandbox in ${directory}\n`)
    return 1
  }
  await watch(openSandbox(directory))
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
  /** Since its start; undefined while it does not answer. */
  traffic: Traffic | undefined
}

interface Traffic {
  /** Calls on records by clients. */
  readonly calls: number
  /** Packets from other nodes. */
  readonly packets: number
}

/** What the load and the nodes have done until a moment. */
interface Sample {
  readonly atMs: number
  readonly load: LoadReport | undefined
  readonly traffic: readonly (Traffic | undefined)[]
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
    traffic: undefined,
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
  const terminal = process.stdout.isTTY
  let shown = ""
  let loadShownMs = Number.NEGATIVE_INFINITY
  let before: Sample | undefined
  while (!over) {
    await Promise.all(seen.map(look))
    const now: Sample = {
      atMs: performance.now(),
      load: readReport(sandbox.directory),
      traffic: seen.map(({ traffic }) => traffic),
    }
    const nodes = render(seen)
    const load = before === undefined ? "" : renderLoad(before, now)
    if (terminal) {
      const view = load === "" ? nodes : `${nodes}\n${load}`
      const lines = shown.split("\n").length - 1
      process.stdout.write(`${lines > 0 ? `\x1b[${lines}A\x1b[J` : ""}${view}`)
      shown = view
    } else {
      // In a file or a pipe a line stands for ever: nodes when they change, the load now and then.
      if (nodes !== shown) process.stdout.write(`${nodes}\n`)
      shown = nodes
      if (load !== "" && now.atMs - loadShownMs >= LOAD_LINES_MS) {
        process.stdout.write(`${load}\n`)
        loadShownMs = now.atMs
      }
    }
    before = now
    await Promise.race([ended, Bun.sleep(REFRESH_MS)])
  }
  for (const { client } of seen) void client?.close()
}

/** How the records of the load move, a node a line, and whether all that was counted is there. Empty without a load. */
function renderLoad(before: Sample, now: Sample): string {
  const { load } = now
  if (load === undefined || before.load === undefined) return ""
  const seconds = (now.atMs - before.atMs) / 1000
  const rate = (last: number | undefined, first: number | undefined) =>
    last === undefined || first === undefined || last < first ? "" : String(Math.round((last - first) / seconds))
  const rows = load.nodes.map(({ pnn, counts, migrations, held }, at) => {
    const first = before.load?.nodes[at]
    const [traffic, earlier] = [now.traffic[at], before.traffic[at]]
    return [
      pnn,
      held ?? "",
      rate(counts, first?.counts),
      rate(migrations, first?.migrations),
      rate(traffic?.calls, earlier?.calls),
      rate(traffic?.packets, earlier?.packets),
    ]
  })
  const head = ["Node", "Records held", "Locks/s", "Migrations/s", "Calls/s", "Node packets/s"]
  return `${table(head, rows)}${verdict(load)}\n`
}

function verdict({ counts, lost, wrong }: LoadReport): string {
  const [worst] = wrong
  if (worst !== undefined) return red(`Counter check: WRONG ${wrong.length} times, first: ${worst}`)
  const gone = lost === 0 ? "" : yellow(`, ${lost} of them lost with nodes that died or left`)
  const what = `${counts} counts in ${LOAD_RECORDS} records of ${LOAD_DATABASE}`
  return `${green("Counter check: exact")} (${what}${gone})`
}

async function look(seen: Seen): Promise<void> {
  const waiting = { timeoutMs: ANSWER_MS }
  try {
    seen.client ??= await connect(seen)
    const { client } = seen
    const [map, mode, runState, vnnMap, clients, statistics] = await Promise.all([
      client.control("GET_NODEMAP", client.pnn, undefined, waiting),
      client.controlStatus("GET_RECMODE", client.pnn, undefined, waiting),
      client.control("GET_RUNSTATE", client.pnn, undefined, waiting),
      client.control("GETVNNMAP", client.pnn, undefined, waiting),
      client.controlStatus("PING", client.pnn, undefined, waiting),
      client.control("STATISTICS", client.pnn, undefined, waiting),
    ])
    seen.flags = map.find((node) => node.pnn === client.pnn)?.flags
    seen.mode = mode === RecoveryMode.NORMAL ? "NORMAL" : "RECOVERY"
    seen.state = Object.entries(RunState).find(([, value]) => value === runState)?.[0] ?? String(runState)
    seen.generation = vnnMap.generation === 1 ? "none" : String(vnnMap.generation)
    seen.clients = String(clients)
    seen.traffic = { calls: statistics.client.reqCall, packets: statistics.nodePacketsRecv }
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
    seen.traffic = undefined
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
