// `ctdb status` and `ctdb nodestatus`: the nodes with their flags, and the cluster's generation, vnn map, recovery mode and
// leader. Reference page "Admin tool", section 8.1.

import { INVALID_GENERATION, NodeFlag, RecoveryMode, RunState, UNKNOWN_PNN } from "../../lib/protocol/constants.ts"
import type { NodeAndFlags, NodeMap, VnnMap } from "../../lib/protocol/structs.ts"
import type { Invocation } from "./invocation.ts"
import { findNode, flagText, nodeMap, parseNodeList, UNKNOWN_FLAG } from "./nodes.ts"

/**
 * The node map as node N can vouch for it: as long as N is starting it has seen no recovery, and says nothing about
 * nodes that it is connected to.
 */
async function judged(invocation: Invocation, map: NodeMap): Promise<NodeMap> {
  const outcome = await invocation.tryControl("GET_RUNSTATE", invocation.node)
  if (!outcome.ok) {
    invocation.output.print("Unable to get runstate")
    return invocation.fail(1)
  }
  const starting: readonly number[] = [RunState.INIT, RunState.SETUP, RunState.FIRST_RECOVERY]
  if (!starting.includes(outcome.reply)) return map
  const excluded = NodeFlag.DISCONNECTED | NodeFlag.DELETED
  return map.map((node) =>
    node.pnn === invocation.node || (node.flags & excluded) !== 0 ? node : { ...node, flags: UNKNOWN_FLAG },
  )
}

/** A node without any flag has an interface whose link is down. Errors mean no. */
async function isPartiallyOnline(invocation: Invocation, node: NodeAndFlags): Promise<boolean> {
  if (node.flags !== 0) return false
  const outcome = await invocation.tryControl("GET_IFACES", node.pnn)
  return outcome.ok && outcome.reply.some((iface) => iface.linkState === 0)
}

const isSet = (flags: number, mask: number) => ((flags & mask) !== 0 ? 1 : 0)

function nodeLine(invocation: Invocation, node: NodeAndFlags, partial: boolean): string {
  const flags = partial ? "PARTIALLYONLINE" : flagText(node.flags)
  const mark = node.pnn === invocation.node ? " (THIS NODE)" : ""
  return `pnn:${node.pnn} ${node.addr.addr.padEnd(16)} ${flags}${mark}\n`
}

const machineHead = [
  "Node",
  "IP",
  "Disconnected",
  "Unknown",
  "Banned",
  "Disabled",
  "Unhealthy",
  "Stopped",
  "Inactive",
  "PartiallyOnline",
  "ThisNode",
] as const

function machineFields(invocation: Invocation, node: NodeAndFlags, partial: boolean): (string | number)[] {
  const { flags } = node
  return [
    node.pnn,
    node.addr.addr,
    isSet(flags, NodeFlag.DISCONNECTED),
    isSet(flags, UNKNOWN_FLAG),
    isSet(flags, NodeFlag.BANNED),
    isSet(flags, NodeFlag.PERMANENTLY_DISABLED),
    isSet(flags, NodeFlag.UNHEALTHY),
    isSet(flags, NodeFlag.STOPPED),
    isSet(flags, NodeFlag.INACTIVE),
    partial ? 1 : 0,
    node.pnn === invocation.node ? "Y" : "N",
  ]
}

function jsonNode(invocation: Invocation, node: NodeAndFlags, partial: boolean) {
  const has = (mask: number) => (node.flags & mask) !== 0
  return {
    pnn: node.pnn,
    address: node.addr.addr,
    partially_online: partial,
    flags_raw: node.flags,
    flags_ok: node.flags === 0,
    flags: {
      disconnected: has(NodeFlag.DISCONNECTED),
      unknown: has(UNKNOWN_FLAG),
      disabled: has(NodeFlag.PERMANENTLY_DISABLED),
      banned: has(NodeFlag.BANNED),
      unhealthy: has(NodeFlag.UNHEALTHY),
      deleted: has(NodeFlag.DELETED),
      stopped: has(NodeFlag.STOPPED),
      inactive: has(NodeFlag.INACTIVE),
    },
    this_node: node.pnn === invocation.node,
  }
}

function countLine(map: NodeMap): string {
  const deleted = map.filter((node) => (node.flags & NodeFlag.DELETED) !== 0).length
  const note = deleted === 0 ? "" : ` (including ${deleted} deleted nodes)`
  return `Number of nodes:${map.length}${note}\n`
}

const present = (nodes: readonly NodeAndFlags[]) => nodes.filter((node) => (node.flags & NodeFlag.DELETED) === 0)

/** Prints text or machine lines node by node, as each node's interfaces are known. */
async function printNodes(invocation: Invocation, nodes: readonly NodeAndFlags[]): Promise<void> {
  const { output } = invocation
  if (output.mode === "machine") output.print(output.machineLine(machineHead))
  for (const node of present(nodes)) {
    const partial = await isPartiallyOnline(invocation, node)
    output.print(
      output.mode === "machine"
        ? output.machineLine(machineFields(invocation, node, partial))
        : nodeLine(invocation, node, partial),
    )
  }
}

/** All nodes' interfaces at once: for the forms that need no stock order of requests. */
async function partialOnes(invocation: Invocation, nodes: readonly NodeAndFlags[]): Promise<Set<number>> {
  const asked = await Promise.all(nodes.map((node) => isPartiallyOnline(invocation, node)))
  return new Set(nodes.filter((_, index) => asked[index]).map((node) => node.pnn))
}

async function jsonNodes(invocation: Invocation, nodes: readonly NodeAndFlags[]) {
  const partial = await partialOnes(invocation, nodes)
  return Object.fromEntries(nodes.map((node) => [node.pnn, jsonNode(invocation, node, partial.has(node.pnn))]))
}

function jsonHead(map: NodeMap) {
  return { node_count: map.length, deleted_node_count: map.length - present(map).length }
}

async function nodeTable(invocation: Invocation, nodes: readonly NodeAndFlags[], leader: number | undefined) {
  const { bold, faint, green, red, table, yellow } = await import("./terminal.ts")
  const partial = await partialOnes(invocation, nodes)
  const state = (node: NodeAndFlags) => {
    if (partial.has(node.pnn)) return yellow("PARTIALLY ONLINE")
    if (node.flags === 0) return green("OK")
    const bad = NodeFlag.DISCONNECTED | NodeFlag.BANNED | NodeFlag.UNHEALTHY
    return ((node.flags & bad) !== 0 ? red : yellow)(flagText(node.flags).replaceAll("|", " "))
  }
  const remarks = (node: NodeAndFlags) => {
    const leads = node.pnn === leader ? [bold("leader")] : []
    return [...leads, ...(node.pnn === invocation.node ? [faint("this node")] : [])].join(", ")
  }
  return table(
    ["Node", "Address", "State", ""],
    nodes.map((node) => [node.pnn, node.addr.addr, state(node), remarks(node)]),
  )
}

interface ClusterState {
  readonly map: NodeMap
  readonly vnnMap: VnnMap
  readonly recoveryMode: number
  readonly leader: number
}

function clusterLines({ vnnMap, recoveryMode, leader }: ClusterState): string {
  const slots = vnnMap.map.map((lmaster, hash) => `hash:${hash} lmaster:${lmaster}\n`).join("")
  const mode = recoveryMode === RecoveryMode.NORMAL ? "NORMAL" : "RECOVERY"
  return (
    `Generation:${vnnMap.generation === INVALID_GENERATION ? "INVALID" : vnnMap.generation}\n` +
    `Size:${vnnMap.map.length}\n${slots}` +
    `Recovery mode:${mode} (${recoveryMode})\n` +
    `Leader:${leader === UNKNOWN_PNN ? "UNKNOWN" : leader}\n`
  )
}

async function jsonStatus(invocation: Invocation, state: ClusterState) {
  const { map, vnnMap, recoveryMode, leader } = state
  return {
    node_status: { ...jsonHead(map), nodes: await jsonNodes(invocation, present(map)) },
    vnn_status: {
      generation: vnnMap.generation === INVALID_GENERATION ? null : vnnMap.generation,
      size: vnnMap.map.length,
      vnn_map: vnnMap.map.map((lmaster, hash) => ({ hash, lmaster })),
    },
    recovery_mode: recoveryMode === RecoveryMode.NORMAL ? "NORMAL" : "RECOVERY",
    recovery_mode_raw: recoveryMode,
    leader,
  }
}

async function terminalStatus(invocation: Invocation, state: ClusterState): Promise<string> {
  const { bold, green, list, red } = await import("./terminal.ts")
  const { map, vnnMap, recoveryMode, leader } = state
  const address = findNode(map, leader)?.addr.addr
  const deleted = map.length - present(map).length
  const facts = list([
    ["Leader", leader === UNKNOWN_PNN ? red("none heard") : `${bold(String(leader))} (${address ?? "not in the map"})`],
    ["Recovery mode", recoveryMode === RecoveryMode.NORMAL ? green("NORMAL") : red("RECOVERY")],
    ["Generation", vnnMap.generation === INVALID_GENERATION ? red("INVALID") : vnnMap.generation],
    ["Location masters", vnnMap.map.join(", ")],
  ])
  const note = deleted === 0 ? "" : `${deleted} deleted node${deleted === 1 ? "" : "s"} not shown\n`
  return `${await nodeTable(invocation, present(map), leader)}${note}\n${facts}`
}

export async function status(invocation: Invocation): Promise<number> {
  const { output } = invocation
  const map = await judged(invocation, await nodeMap(invocation))
  if (output.mode === "machine") {
    await printNodes(invocation, map)
    return 0
  }
  const vnnMap = await invocation.control("GETVNNMAP", invocation.node)
  const recoveryMode = await invocation.controlValue("GET_RECMODE", invocation.node)
  const state = { map, vnnMap, recoveryMode, leader: await invocation.leader() }
  if (output.mode === "json") {
    output.json(await jsonStatus(invocation, state))
  } else if (output.mode === "terminal") {
    output.print(await terminalStatus(invocation, state))
  } else {
    output.print(countLine(map))
    await printNodes(invocation, map)
    output.print(clusterLines(state))
  }
  return 0
}

/** Exit status: all flags of the listed nodes together. */
export async function nodestatus(invocation: Invocation): Promise<number> {
  const { output } = invocation
  const known = await nodeMap(invocation)
  const word = invocation.words[0]
  const chosen = word === undefined ? [invocation.node] : parseNodeList(invocation, word, known)
  const map = await judged(invocation, known)
  const nodes = present(chosen.map((pnn) => findNode(map, pnn)!).filter((node) => node !== undefined))
  if (output.mode === "json") {
    output.json({ ...jsonHead(map), nodes: await jsonNodes(invocation, nodes) })
  } else if (output.mode === "terminal") {
    output.print(await nodeTable(invocation, nodes, undefined))
  } else {
    if (word === "all" && output.mode === "text") output.print(countLine(map))
    await printNodes(invocation, nodes)
  }
  return nodes.reduce((all, node) => all | node.flags, 0)
}
