// What a node knows about itself and its cluster, in one record that all rooms of the daemon share: identity, node map,
// generation, recovery mode, run state, tunables, counters. It holds state and the small rules that keep it consistent;
// reacting to changes is the business of whoever subscribes.

import type { ListedNode } from "../lib/config/nodes-file.ts"
import type { Tunables } from "../lib/config/tunables.ts"
import { INVALID_GENERATION, NodeFlag, RecoveryMode, RunState, UNKNOWN_PNN } from "../lib/protocol/constants.ts"
import type { NodeAndFlags, Timeval } from "../lib/protocol/structs.ts"
import { NodeStatistics } from "./statistics.ts"

/** One line of the nodes list as this node sees it now. */
export interface NodeEntry {
  readonly pnn: number
  /** Address literal, `0.0.0.0` for a deleted node. */
  readonly address: string
  readonly port: number
  flags: number
}

export function isActive(node: { readonly flags: number }): boolean {
  return (node.flags & NodeFlag.INACTIVE) === 0
}

export function isConnected(node: { readonly flags: number }): boolean {
  return (node.flags & (NodeFlag.DISCONNECTED | NodeFlag.DELETED)) === 0
}

/** A fresh entry with the initial flags of its line (cluster page 2.1). */
export function newEntry(node: ListedNode): NodeEntry {
  return { pnn: node.pnn, address: node.address, port: node.port, flags: node.flags }
}

export class NodeState {
  /** Physical node number of this node; UNKNOWN_PNN until the nodes list was read. */
  pnn: number = UNKNOWN_PNN
  nodes: NodeEntry[] = []
  generation: number = INVALID_GENERATION
  /** PNNs of the location masters, index = hash mod length. */
  vnnMap: readonly number[] = []
  recoveryMode: number = RecoveryMode.ACTIVE
  runState: number = RunState.UNKNOWN
  capabilities: number
  readonly tunables: Tunables
  /** Wall-clock times that UPTIME answers. */
  startTime: Timeval = { sec: 0, usec: 0 }
  lastRecoveryStarted: Timeval = { sec: 0, usec: 0 }
  lastRecoveryFinished: Timeval = { sec: 0, usec: 0 }
  /** The same moments on the monotonic clock, for intervals. */
  startedMs = 0
  lastRecoveryFinishedMs = Number.NEGATIVE_INFINITY
  /** The string of the cluster lock option, undefined if none is configured. */
  readonly clusterLock: string | undefined
  readonly statistics = new NodeStatistics()
  shuttingDown = false

  constructor(settings: {
    readonly tunables: Tunables
    readonly clusterLock: string | undefined
    readonly capabilities: number
  }) {
    this.tunables = settings.tunables
    this.clusterLock = settings.clusterLock
    this.capabilities = settings.capabilities
  }

  get self(): NodeEntry {
    const entry = this.nodes[this.pnn]
    if (entry === undefined) throw new Error(`own node ${this.pnn} is not in the nodes list`)
    return entry
  }

  /** The node map as GET_NODEMAP sends it: PNN order, deleted nodes included. */
  nodeMap(): NodeAndFlags[] {
    return this.nodes.map((node) => ({ pnn: node.pnn, flags: node.flags, addr: socketAddress(node) }))
  }
}

/** A node's address with its port. */
export function socketAddress(node: { readonly address: string; readonly port: number }): NodeAndFlags["addr"] {
  const family = node.address.includes(":") ? "inet6" : "inet"
  return { family, addr: node.address, port: node.port, scopeId: 0 }
}
