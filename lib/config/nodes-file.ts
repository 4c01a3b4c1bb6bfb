// The list of the cluster's nodes: a file, or the output of a command (`!command args`). One line a node, in PNN order, `#`
// lines are deleted nodes that keep their number. Source: reference pages "Configuration" section 10 and "Cluster and
// recovery" section 2.1. Parsing is pure; reading is below it. What a changed list means is the daemon's affair.

import { readFileSync } from "node:fs"
import { type Address, parseAddress } from "./address.ts"
import { errnoOf, type Fault, type Parsed } from "./fault.ts"

/** Port of the node-to-node links unless the services database names another for `ctdb/tcp`. */
export const DEFAULT_PORT = 4379

/** Node flags of a fresh entry (constants of the wire protocol page). */
const NEW_NODE_FLAGS = 0x1 | 0x2
const DELETED_NODE_FLAGS = 0x1 | 0x10

export interface ListedNode {
  readonly pnn: number
  /** Canonical literal; `0.0.0.0` of a deleted node. */
  readonly address: string
  readonly family: Address["family"]
  readonly port: number
  readonly deleted: boolean
  /** Initial node flags: DELETED|DISCONNECTED 0x11, or UNHEALTHY|DISCONNECTED 0x3. */
  readonly flags: number
  /** 1-based line of the source. */
  readonly line: number
}

/**
 * Parses a node list. Any bad line makes the whole list invalid; every bad line is reported. Duplicates are not faults:
 * the first entry wins when an address is looked up.
 */
export function parseNodes(text: string, source: string, port: number = DEFAULT_PORT): Parsed<readonly ListedNode[]> {
  const nodes: ListedNode[] = []
  const faults: Fault[] = []
  const lines = text.split("\n")
  for (const [index, rawLine] of lines.entries()) {
    const line = index + 1
    const content = lineText(rawLine)
    if (content === "") continue
    const pnn = nodes.length + faults.length
    if (content.startsWith("#")) {
      nodes.push({ pnn, address: "0.0.0.0", family: "inet", port, deleted: true, flags: DELETED_NODE_FLAGS, line })
      continue
    }
    const address = parseAddress(content)
    if (address === undefined) {
      faults.push({ source, line, cause: `invalid node address "${content}": expected one IPv4 or IPv6 literal` })
      continue
    }
    const { family, text: literal } = address
    nodes.push({ pnn, address: literal, family, port, deleted: false, flags: NEW_NODE_FLAGS, line })
  }
  return faults.length > 0 ? { ok: false, faults } : { ok: true, value: nodes }
}

/** A line ends at a CR or NUL too; blanks and tabs around the rest are removed. */
function lineText(rawLine: string): string {
  const end = rawLine.search(/[\r\0]/)
  const text = end < 0 ? rawLine : rawLine.slice(0, end)
  return text.replace(/^[ \t]+|[ \t]+$/g, "")
}

/** The node with this address (first wins), undefined if none has. Deleted nodes are never found. */
export function findNode(nodes: readonly ListedNode[], address: string): ListedNode | undefined {
  return nodes.find((node) => !node.deleted && node.address === address)
}

export type NodesSource =
  | { readonly kind: "file"; readonly path: string }
  | { readonly kind: "command"; readonly argv: readonly string[] }

/** Option `nodes list` if set (a path, or `!COMMAND ARG...` split at blanks and tabs, no quotes), else the nodes file. */
export function nodesSource(nodesList: string | undefined, nodesFile: string): NodesSource {
  if (nodesList === undefined) return { kind: "file", path: nodesFile }
  if (!nodesList.startsWith("!")) return { kind: "file", path: nodesList }
  return {
    kind: "command",
    argv: nodesList
      .slice(1)
      .split(/[ \t]+/)
      .filter((word) => word !== ""),
  }
}

/** How the source is named in messages: the path, or the option's text with its `!`. */
export function nodesSourceName(source: NodesSource): string {
  return source.kind === "file" ? source.path : `!${source.argv.join(" ")}`
}

/** Longest that a `!command` may run, ms. The daemon does not serve while it waits for it. */
export const NODES_COMMAND_TIMEOUT_MS = 30_000

/**
 * Reads and parses the list, blocking: at start nothing else is to be done. The exit status of a command is ignored, as
 * by the stock daemon; one that can't be started or exceeds {@link NODES_COMMAND_TIMEOUT_MS} is a fault.
 */
export function readNodes(source: NodesSource, port: number = DEFAULT_PORT): Parsed<readonly ListedNode[]> {
  const name = nodesSourceName(source)
  try {
    return parseNodes(source.kind === "file" ? readFileSync(source.path, "utf8") : runNow(source.argv), name, port)
  } catch (error) {
    return unreadable(name, error)
  }
}

/** The same without blocking the loop: for `reloadnodes` in a running daemon. */
export async function readNodesAsync(
  source: NodesSource,
  port: number = DEFAULT_PORT,
): Promise<Parsed<readonly ListedNode[]>> {
  const name = nodesSourceName(source)
  try {
    return parseNodes(source.kind === "file" ? await Bun.file(source.path).text() : await run(source.argv), name, port)
  } catch (error) {
    return unreadable(name, error)
  }
}

function unreadable(source: string, error: unknown): Parsed<never> {
  return { ok: false, faults: [{ source, line: 0, cause: `cannot read the node list: ${errnoOf(error)}` }] }
}

function runNow(argv: readonly string[]): string {
  if (argv.length === 0) throw new Error("no command after the exclamation mark")
  const child = Bun.spawnSync([...argv], {
    env: process.env,
    stdin: "ignore",
    stdout: "pipe",
    stderr: "inherit",
    timeout: NODES_COMMAND_TIMEOUT_MS,
  })
  if (child.exitedDueToTimeout) throw new Error(`the command took longer than ${NODES_COMMAND_TIMEOUT_MS / 1000} s`)
  return child.stdout.toString()
}

async function run(argv: readonly string[]): Promise<string> {
  if (argv.length === 0) throw new Error("no command after the exclamation mark")
  const child = Bun.spawn([...argv], {
    env: process.env,
    stdin: "ignore",
    stdout: "pipe",
    stderr: "inherit",
    timeout: NODES_COMMAND_TIMEOUT_MS,
    killSignal: "SIGKILL",
  })
  const text = await new Response(child.stdout).text()
  await child.exited
  if (child.signalCode === "SIGKILL") throw new Error(`the command was killed or took longer than its limit`)
  return text
}

/** The port of service `ctdb/tcp` in a services database (the text of /etc/services). */
export function servicePort(services: string): number | undefined {
  for (const rawLine of services.split("\n")) {
    const [name, protocol, ...aliases] = rawLine.replace(/#.*/, "").trim().split(/\s+/)
    if (name !== "ctdb" && !aliases.includes("ctdb")) continue
    const match = /^([0-9]+)\/tcp$/.exec(protocol ?? "")
    if (match !== null) return Number(match[1])
  }
  return undefined
}

/** The port that all nodes listen on: the host's services database, else {@link DEFAULT_PORT}. */
export function clusterPort(servicesFile = "/etc/services"): number {
  try {
    return servicePort(readFileSync(servicesFile, "utf8")) ?? DEFAULT_PORT
  } catch {
    return DEFAULT_PORT
  }
}
