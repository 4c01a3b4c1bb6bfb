// What the recovery daemon last learned of its node and, as leader, of the others; and who has not answered for how long.
// Pure bookkeeping: asking and judging are in watch.ts.

import { defaultTunables, type Tunables } from "../../lib/config/tunables.ts"
import { NodeFlag, RecoveryMode, RunState } from "../../lib/protocol/constants.ts"
import type { NodeMap, VnnMap } from "../../lib/protocol/structs.ts"
import { isActive, isConnected } from "../state.ts"

export interface OwnView {
  tunables: Tunables
  runState: number
  /** Own node map; empty before the first answer. */
  nodeMap: NodeMap
  recoveryMode: number
  capabilities: number
  vnnMap: VnnMap | undefined
}

export function newOwnView(): OwnView {
  return {
    tunables: defaultTunables(),
    runState: RunState.UNKNOWN,
    nodeMap: [],
    recoveryMode: RecoveryMode.ACTIVE,
    capabilities: 0,
    vnnMap: undefined,
  }
}

/** One other node as the leader sees it. */
export interface MemberView {
  nodeMap: NodeMap
  recoveryMode: number
  capabilities: number
  vnnMap: VnnMap
}

/**
 * A member is silent from the first question it did not answer in time until it answers one. After `excludeAfterMs` it is
 * left out: the cluster goes on without it, as without a dead one, until it answers again.
 */
export class Silence {
  private readonly since = new Map<number, number>()

  answered(pnn: number): void {
    this.since.delete(pnn)
  }

  missed(pnn: number, nowMs: number): void {
    if (!this.since.has(pnn)) this.since.set(pnn, nowMs)
  }

  silentMs(pnn: number, nowMs: number): number {
    const since = this.since.get(pnn)
    return since === undefined ? 0 : nowMs - since
  }

  /** Forgets nodes that are not connected: their links tell their fate. */
  keepOnly(pnns: readonly number[]): void {
    for (const pnn of this.since.keys()) if (!pnns.includes(pnn)) this.since.delete(pnn)
  }
}

export function connectedPnns(nodeMap: NodeMap): number[] {
  return nodeMap.filter(isConnected).map((node) => node.pnn)
}

export function activePnns(nodeMap: NodeMap): number[] {
  return nodeMap.filter(isActive).map((node) => node.pnn)
}

/** Connected nodes that are banned. */
export function countBanned(nodeMap: NodeMap): number {
  return nodeMap.filter((node) => isConnected(node) && (node.flags & NodeFlag.BANNED) !== 0).length
}

export function flagsOf(nodeMap: NodeMap, pnn: number): number | undefined {
  return nodeMap.find((node) => node.pnn === pnn)?.flags
}
