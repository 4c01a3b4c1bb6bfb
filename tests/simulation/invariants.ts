// What must never be true of a cluster, looked at after every single event of a simulated history. Each rule names the page
// of the reference that it comes from, or the decision of ours. Whether the cluster becomes whole again in time is not
// here: histories.ts waits for that.

import type { Node } from "../../daemon/node.ts"
import { isActive } from "../../daemon/state.ts"
import { INVALID_GENERATION, NodeFlag, Operation, RecoveryMode, RunState } from "../../lib/protocol/constants.ts"
import { controls } from "../../lib/protocol/controls.ts"
import { operationOf } from "../../lib/protocol/header.ts"
import type { Host, SimProcess, World } from "./world.ts"

/** A rule is broken. The message says which, on which node. */
export class Violation extends Error {
  override readonly name = "Violation"
}

/** How long an inactive node's recovery daemon may take to notice: its loop and its broadcast timer, 1 s each, and delays. */
const INACTIVE_LEADER_MS = 4000
/** Bound of what may wait in one recovery daemon: a pass asks at most a dozen questions a node. */
const PENDING_REQUESTS_MAX = 200
/** Events of a node and virtual second, on average since the start: an idle cluster of 7 has 50, a stormy history 100. */
const EVENTS_MAX = 400
/** Recovery daemon, a client of the test or two, and those that are just leaving. */
const CLIENTS_MAX = 12

/** What the last look at a node saw. */
interface Seen {
  readonly node: Node
  runState: number
  flags: number
  generation: number
  inactiveSinceMs: number | undefined
}

const FLAG_CONTROLS: readonly (readonly [flag: number, opcodes: readonly number[], byTimer: boolean])[] = [
  [NodeFlag.STOPPED, [controls.STOP_NODE.opcode, controls.CONTINUE_NODE.opcode], false],
  [NodeFlag.PERMANENTLY_DISABLED, [controls.DISABLE_NODE.opcode, controls.ENABLE_NODE.opcode], false],
  [NodeFlag.BANNED, [controls.SET_BAN_STATE.opcode], true],
  // Monitoring alone decides on it, and its answer comes from a script, never from a packet.
  [NodeFlag.UNHEALTHY, [], true],
]

export class Invariants {
  private readonly seen = new Map<number, Seen>()
  /** Generation -> vnnmap: a generation is one recovery's, and a recovery has one map. */
  private readonly maps = new Map<number, string>()

  constructor(private readonly world: World) {}

  /** Looks at what the event can have changed: its process's host; undefined: all. */
  check(process: SimProcess | undefined): void {
    const { events, nowMs, hosts } = this.world
    if (events > (nowMs / 1000 + 60) * hosts.length * EVENTS_MAX) {
      throw new Violation(`a storm: ${events} events in ${(nowMs / 1000).toFixed(1)} s`)
    }
    if (process === undefined) {
      for (const host of this.world.hosts) this.checkNode(host)
      this.checkLeaders()
    } else if (process.recovery !== undefined) {
      this.checkRecoveryDaemon(process)
      if (process.recovery.standing().isLeader) this.checkLeaders()
    } else {
      this.checkNode(process.host)
    }
  }

  private checkNode(host: Host): void {
    const { node, main } = host
    if (node === undefined || main?.alive !== true || node.state.runState < RunState.SETUP) return
    const { state } = node
    const seen = this.seen.get(host.pnn)
    const { flags } = state.self
    if (seen === undefined || seen.node !== node) {
      const inactiveSinceMs = isActive(state.self) ? undefined : this.world.nowMs
      this.seen.set(host.pnn, { node, runState: state.runState, flags, generation: -1, inactiveSinceMs })
      return
    }
    const broken = (rule: string) => new Violation(`node ${host.pnn}: ${rule}`)

    // 1.6: the run state may only grow.
    if (state.runState < seen.runState) throw broken(`run state went from ${seen.runState} to ${state.runState}`)
    seen.runState = state.runState

    // 4.1: a node is the authority for its own flags, and is never disconnected from itself or deleted.
    if (flags !== seen.flags) {
      this.checkFlagChange(broken, seen.flags, flags)
      seen.flags = flags
      seen.inactiveSinceMs = isActive(state.self) ? undefined : (seen.inactiveSinceMs ?? this.world.nowMs)
    }
    if ((flags & NodeFlag.UNHEALTHY) === 0 && state.runState < RunState.RUNNING) {
      throw broken("healthy before it runs")
    }

    const normal = state.recoveryMode === RecoveryMode.NORMAL
    const valid = state.generation !== INVALID_GENERATION
    if (isActive(state.self)) {
      // 3 and 4.3: NORMAL means that a recovery has given this node a generation.
      if (normal && !valid) throw broken("recovery mode NORMAL without a valid generation")
    } else if (normal || valid || !node.freeze.frozen) {
      // 4.3, steps 1 to 3.
      throw broken(`inactive with generation ${state.generation}, mode ${state.recoveryMode}`)
    }
    if (state.generation !== seen.generation) {
      seen.generation = state.generation
      if (valid) {
        const map = state.vnnMap.join(" ")
        const known = this.maps.get(state.generation)
        if (known === undefined) this.maps.set(state.generation, map)
        else if (known !== map) throw broken(`generation ${state.generation} has vnnmaps ${known} and ${map}`)
        // 7.3, phase 7: all nodes here are lmasters, so who takes part in a recovery is in its map.
        if (!state.vnnMap.includes(host.pnn)) throw broken(`not in its own vnnmap ${map}`)
      }
    }
    if (node.clients.count > CLIENTS_MAX) throw broken(`${node.clients.count} clients are connected`)
  }

  private checkFlagChange(broken: (rule: string) => Violation, before: number, now: number): void {
    const changed = before ^ now
    if ((now & (NodeFlag.DISCONNECTED | NodeFlag.DELETED)) !== 0) throw broken(`own flags 0x${now.toString(16)}`)
    const packet = this.world.arrived
    // REQ_CONTROL: the opcode follows the 32 bytes of the header (wire-protocol page 3.7).
    const opcode =
      packet !== undefined && operationOf(packet) === Operation.REQ_CONTROL
        ? new DataView(packet.buffer, packet.byteOffset).getUint32(32, true)
        : undefined
    for (const [flag, opcodes, byTimer] of FLAG_CONTROLS) {
      if ((changed & flag) === 0) continue
      if (packet === undefined ? byTimer : opcode !== undefined && opcodes.includes(opcode)) continue
      throw broken(
        `own flag 0x${flag.toString(16)} changed by ${packet === undefined ? "itself" : `control ${opcode}`}`,
      )
    }
  }

  private checkRecoveryDaemon(process: SimProcess): void {
    const standing = process.recovery?.standing()
    if (standing === undefined || !process.alive) return
    const broken = (rule: string) => new Violation(`recovery daemon of node ${process.host.pnn}: ${rule}`)
    if (standing.pendingRequests > PENDING_REQUESTS_MAX) throw broken(`${standing.pendingRequests} requests wait`)
    // Section 7: only the leader recovers.
    if (standing.recovering && !standing.isLeader) throw broken("runs a recovery without being leader")
    if (standing.isLeader) {
      const since = this.seen.get(process.host.pnn)?.inactiveSinceMs
      const { main } = process.host
      if (
        since !== undefined &&
        main?.alive === true &&
        !main.frozen &&
        this.world.nowMs - since > INACTIVE_LEADER_MS
      ) {
        if (this.world.nowMs - process.runsSinceMs > INACTIVE_LEADER_MS) throw broken("leads although inactive")
      }
    }
    // The end of its lock may be among what it has not read yet.
    if (!this.world.options.lock || process.catchingUp) return
    // Checklist 22: hold the lock before leading; and what it believes to hold, it holds.
    if (standing.isLeader && !standing.electionInProgress && !standing.holdsLock) throw broken("leads without the lock")
    if (standing.holdsLock && !this.world.holdsLock(process))
      throw broken("believes to hold a lock that it does not hold")
    if (!standing.holdsLock && !standing.electionInProgress && this.world.holdsLock(process)) {
      throw broken("holds the lock and does not know it")
    }
  }

  /** Never two that lead and hold the cluster lock. One that stands still leads nobody. */
  private checkLeaders(): void {
    if (!this.world.options.lock) return
    let leader: SimProcess | undefined
    for (const process of this.world.allProcesses) {
      if (process.frozen || process.catchingUp) continue
      const standing = process.recovery?.standing()
      if (standing === undefined || !standing.isLeader || !standing.holdsLock) continue
      if (leader !== undefined) {
        throw new Violation(`nodes ${leader.host.pnn} and ${process.host.pnn} both lead and hold the cluster lock`)
      }
      leader = process
    }
  }
}
