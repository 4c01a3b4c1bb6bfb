// The node map as the tool uses it, and what its flags are called. Reference page "Admin tool", sections 3 and 6.11.

import { BROADCAST_ALL, NodeFlag } from "../../lib/protocol/constants.ts"
import type { NodeAndFlags, NodeMap } from "../../lib/protocol/structs.ts"
import { Failure, type Invocation } from "./invocation.ts"
import { parseUnsigned } from "./numbers.ts"

/** Exists only inside the tool: a node about which the asked node can't know anything yet. */
export const UNKNOWN_FLAG = 0x40

/** The words of texts, in their order; INACTIVE is for any of its four flags. */
const flagWords: readonly (readonly [mask: number, word: string])[] = [
  [NodeFlag.DISCONNECTED, "DISCONNECTED"],
  [UNKNOWN_FLAG, "UNKNOWN"],
  [NodeFlag.PERMANENTLY_DISABLED, "DISABLED"],
  [NodeFlag.BANNED, "BANNED"],
  [NodeFlag.UNHEALTHY, "UNHEALTHY"],
  [NodeFlag.DELETED, "DELETED"],
  [NodeFlag.STOPPED, "STOPPED"],
  [NodeFlag.INACTIVE, "INACTIVE"],
]

/** `DISCONNECTED|INACTIVE`, or `OK`. */
export function flagText(flags: number): string {
  const words = flagWords.filter(([mask]) => (flags & mask) !== 0).map(([, word]) => word)
  return words.length === 0 ? "OK" : words.join("|")
}

/** The node map, fetched once a run. @throws Failure after printing why */
export async function nodeMap(invocation: Invocation): Promise<NodeMap> {
  return invocation.nodeMap ?? (await fetchNodeMap(invocation))
}

/**
 * The node map of the local node. One that is banned does not know the cluster: the next node that is connected is
 * asked instead, until one is found that is not banned in its own map.
 * @throws Failure after printing why
 */
export async function fetchNodeMap(invocation: Invocation): Promise<NodeMap> {
  const start = invocation.localNode
  let asked = start
  while (true) {
    const line = `Failed to get nodemap from node ${asked}`
    const outcome = await invocation.tryControl("GET_NODEMAP", asked)
    if (!outcome.ok) return invocation.fail(1, line)
    const map = outcome.reply
    const self = findNode(map, asked)
    if (self === undefined || (self.flags & NodeFlag.BANNED) === 0) {
      invocation.nodeMap = map
      return map
    }
    const next = nextConnected(map, asked)
    if (next === undefined || next === start) {
      return invocation.fail(1, "Warning: All nodes are banned.")
    }
    asked = next
  }
}

export function findNode(map: NodeMap, pnn: number): NodeAndFlags | undefined {
  return map.find((node) => node.pnn === pnn)
}

/** Cyclically the next node that is neither deleted nor disconnected; `after` itself when it is the only one. */
function nextConnected(map: NodeMap, after: number): number | undefined {
  const index = map.findIndex((node) => node.pnn === after)
  for (let step = 1; step <= map.length; step++) {
    const node = map[(index + step) % map.length]!
    if ((node.flags & (NodeFlag.DELETED | NodeFlag.DISCONNECTED)) === 0) return node.pnn
  }
  return undefined
}

/** PNNs of the nodes that can be talked to. */
export function connectedNodes(map: NodeMap): number[] {
  return map.filter((node) => (node.flags & (NodeFlag.DISCONNECTED | NodeFlag.DELETED)) === 0).map((node) => node.pnn)
}

/** PNNs of the nodes that take part in the cluster. */
export function activeNodes(map: NodeMap): number[] {
  return map.filter((node) => (node.flags & NodeFlag.INACTIVE) === 0).map((node) => node.pnn)
}

/**
 * A PNN-LIST: `all`, or numbers (strtoul, base 0) separated by commas; empty ones vanish; order and repetitions stay.
 * @throws Failure after printing which one is no good
 */
export function parseNodeList(invocation: Invocation, text: string, map: NodeMap): number[] {
  if (text === "all") return map.map((node) => node.pnn)
  const chosen: number[] = []
  for (const token of text.split(",")) {
    if (token === "") continue
    const parsed = parseUnsigned(token)
    if (!parsed.ok) return invocation.fail(1, `Invalid node ${token}`)
    const pnn = Number(BigInt.asUintN(32, parsed.value))
    if (findNode(map, pnn) === undefined) return invocation.fail(1, `Node ${pnn} does not exist`)
    chosen.push(pnn)
  }
  return chosen
}

/** The `-n` check: the node must be in the local node's map and reachable. @throws Failure after printing why */
export async function checkNode(invocation: Invocation, node: number): Promise<void> {
  const map = await nodeMap(invocation)
  const found = node < BROADCAST_ALL ? findNode(map, node) : undefined
  if (found === undefined) return invocation.fail(1, `Node ${node} does not exist`)
  if ((found.flags & (NodeFlag.DISCONNECTED | NodeFlag.DELETED)) !== 0) {
    return invocation.fail(1, `Node ${node} has status ${flagText(found.flags)}`)
  }
}

/** fetchNodeMap with the failure as a value: its texts have been printed. */
export async function tryNodeMap(invocation: Invocation): Promise<NodeMap | undefined> {
  try {
    return await fetchNodeMap(invocation)
  } catch (error) {
    if (error instanceof Failure) return undefined
    throw error
  }
}
