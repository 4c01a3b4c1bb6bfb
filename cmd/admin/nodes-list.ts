// The list of nodes as the tool reads it on this host, without the daemon: for `listnodes`, for `reloadnodes`, and for what
// a failed connection says about this host. Reference page "Admin tool", sections 2 and 6.10.

import { readFileSync } from "node:fs"
import { faultText } from "../../lib/config/fault.ts"
import { type ListedNode, nodesSource, readNodes } from "../../lib/config/nodes-file.ts"
import { compiledIn, type EnvironmentVariables } from "../../lib/config/paths.ts"
import type { Output } from "./output.ts"

/** The nodes in PNN order, deleted ones included. Undefined after the reason has been printed. */
export function readNodesList(output: Output, env: EnvironmentVariables): readonly ListedNode[] | undefined {
  // Not resolvePaths(): the stock tool finds this one file in test mode even without CTDB_BASE.
  const path = `${env.CTDB_BASE ?? compiledIn.etcDir}/nodes`
  const parsed = readNodes(nodesSource(undefined, path))
  if (parsed.ok) return parsed.value
  const fault = parsed.faults[0]!
  // The stock line has the words of the file and neither place nor cause; people get those as well.
  if (fault.line > 0) {
    const words = readFileSync(path, "utf8").split("\n")[fault.line - 1] ?? ""
    output.warn(`Invalid IP address ${words.trim()}`)
  }
  if (output.mode === "terminal") output.warn(`  ${faultText(fault)}`)
  output.warn(`Failed to read nodes file "${path}"`)
  return undefined
}

/** After a failed connection: whether this host is in the list at all. */
export function explainMembership(output: Output, env: EnvironmentVariables): void {
  const nodes = readNodesList(output, env)
  if (nodes !== undefined) {
    if (nodes.some((node) => !node.deleted && isLocal(node.address))) return
    output.warn("Failed to detect PNN of the current node.")
  }
  output.warn("Is this node part of CTDB cluster?")
}

/** An address is this host's if a socket can be bound to it. */
function isLocal(address: string): boolean {
  try {
    Bun.listen({ hostname: address, port: 0, socket: { data() {} } }).stop(true)
    return true
  } catch {
    return false
  }
}
