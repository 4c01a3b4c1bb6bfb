// `ctdb reloadnodes`: checks that all nodes have the same nodes list, that it differs from the running cluster only in ways
// that a reload can follow, and then makes every node reload it. Reference page "Admin tool", section 8.7.

import type { ListedNode } from "../../lib/config/nodes-file.ts"
import { Errno, NodeFlag } from "../../lib/protocol/constants.ts"
import type { NodeMap } from "../../lib/protocol/structs.ts"
import type { Invocation } from "./invocation.ts"
import { connectedNodes, nodeMap } from "./nodes.ts"
import { readNodesList } from "./nodes-list.ts"
import { disableOperation } from "./requests.ts"

/** One node on which the running cluster and the list do not agree, or that needs a word. */
export interface Finding {
  readonly pnn: number
  readonly kind: "missing" | "disconnected" | "moved" | "deleted" | "still connected" | "undeleted" | "new"
  readonly stream: "stdout" | "stderr"
  readonly text: string
  readonly isError: boolean
}

/** Compares the running node map with the list, node by node. Further lines of the list count only without errors. */
export function compareWithList(map: NodeMap, listed: readonly ListedNode[]): Finding[] {
  const findings: Finding[] = []
  const note = (pnn: number, kind: Finding["kind"], text: string) =>
    findings.push({ pnn, kind, stream: "stdout", text, isError: false })
  const error = (pnn: number, kind: Finding["kind"], text: string) =>
    findings.push({ pnn, kind, stream: "stderr", text, isError: true })

  for (const [index, node] of map.entries()) {
    const { pnn } = node
    const address = node.addr.addr
    const line = listed[index]
    const connected = (node.flags & NodeFlag.DISCONNECTED) === 0
    const wasDeleted = (node.flags & NodeFlag.DELETED) !== 0
    if (line === undefined) {
      error(pnn, "missing", `Node ${pnn} (${address}) missing from nodes file`)
    } else if (wasDeleted) {
      if (!line.deleted) note(pnn, "undeleted", `Node ${pnn} is UNDELETED`)
    } else if (line.deleted) {
      note(pnn, "deleted", `Node ${pnn} is DELETED`)
      if (connected) error(pnn, "still connected", `ERROR: Node ${pnn} is still connected`)
    } else if (line.address !== address) {
      error(pnn, "moved", `Node ${pnn} has changed IP address (was ${address}, now ${line.address})`)
    } else if (!connected) {
      const text = `WARNING: Node ${pnn} is disconnected. You MUST fix this node manually!`
      findings.push({ pnn, kind: "disconnected", stream: "stderr", text, isError: false })
    }
  }
  if (!findings.some((finding) => finding.isError)) {
    for (const line of listed.slice(map.length)) note(line.pnn, "new", `Node ${line.pnn} is NEW`)
  }
  return findings
}

/** Whether another node's list says the same as this host's. */
function sameList(theirs: NodeMap, listed: readonly ListedNode[]): boolean {
  return (
    theirs.length === listed.length &&
    theirs.every((node, index) => {
      const line = listed[index]!
      const deleted = (node.flags & NodeFlag.DELETED) !== 0
      return node.pnn === line.pnn && deleted === line.deleted && node.addr.addr === line.address
    })
  )
}

/** Seconds that recoveries stay off when the tool dies half-way: twice the time limit of one request. */
const disableSeconds = (timeLimit: number) => 2 * timeLimit

export async function reloadnodes(invocation: Invocation): Promise<number> {
  const { output, localNode, options } = invocation
  const map = await nodeMap(invocation)
  const listed = readNodesList(output, process.env)
  if (listed === undefined) return 1
  const connected = connectedNodes(map)

  const lists = await invocation.controlAll("GET_NODES_FILE", connected)
  for (const [node, outcome] of lists) {
    if (!outcome.ok) return invocation.fail(outcome.error, `ERROR: Failed to get nodes file from node ${node}`)
    if (!sameList(outcome.reply, listed)) {
      return invocation.fail(1, `ERROR: Nodes file on node ${node} differs from current node (${localNode})`)
    }
  }

  const findings = compareWithList(map, listed)
  for (const { stream, text } of findings) {
    if (stream === "stderr") output.warn(text)
    else if (output.mode !== "json") output.print(`${text}\n`)
  }
  if (findings.some((finding) => finding.isError)) {
    return invocation.fail(1, "ERROR: Nodes will not be reloaded due to previous error")
  }
  const changes = findings.filter((finding) => finding.stream === "stdout")
  const report = (failed: readonly number[]) => {
    if (output.mode !== "json") return
    output.json({ changes: changes.map(({ pnn, kind }) => ({ pnn, change: kind })), failed })
  }
  if (changes.length === 0) {
    output.warn("No change in nodes file, skipping unnecessary reload")
    report([])
    return 0
  }

  const seconds = disableSeconds(options.timeLimit)
  const refused = await disableOperation(invocation, "recoveries", connected, seconds)
  if (refused !== undefined && refused !== Errno.ETIMEDOUT)
    return invocation.fail(refused, "Failed to disable recoveries")
  const reloaded = await invocation.controlAll("RELOAD_NODES_FILE", connected)
  const failed = [...reloaded].filter(([, outcome]) => !outcome.ok).map(([node]) => node)
  for (const node of failed) output.warn(`Node ${node} failed to reload nodes`)
  if (failed.length > 0) output.warn("You MUST fix failed nodes manually!")
  const kept = await disableOperation(invocation, "recoveries", connected, 0)
  if (kept !== undefined && kept !== Errno.ETIMEDOUT) return invocation.fail(kept, "Failed to enable recoveries")
  report(failed)
  return 0
}
