// Random histories of a cluster: from a seed a plan (size, settings, a list of faults), from the plan a run in the simulator
// with the invariants looked at after every event, then the wait until the cluster is whole again. A plan is plain data, so
// a failing one can be run again with fewer faults until none can be left out. It only finds; cluster.test.ts asserts.

import { isActive } from "../../daemon/state.ts"
import type { Tunables } from "../../lib/config/tunables.ts"
import { encode, u32 } from "../../lib/protocol/codec.ts"
import {
  BROADCAST_CONNECTED,
  NodeFlag,
  RecoveryMode,
  RunState,
  Srvid,
  UNKNOWN_PNN,
} from "../../lib/protocol/constants.ts"
import type { ControlName, RequestOf } from "../../lib/protocol/controls.ts"
import { electionMessage } from "../../lib/protocol/structs.ts"
import { Invariants } from "./invariants.ts"
import { type Host, Random, type SimProcess, World } from "./world.ts"

/** RecoveryBanPeriod of the histories: 300 s, the default, would only be waited for. */
const BAN_S = 20

/**
 * How long after the last fault a cluster may need until it is whole (ms), in the worst order of all timers:
 *
 *   link      32 s  a silent half of a link dies of keepalives (KeepaliveLimit + 1 intervals of 5 s), 1 s retry, 1 s connect
 *   control   30 s  a recovery under way waits for its last control (RecoverTimeout)
 *   ban       30 s  links that stand again end a ban at once, any other ban after RecoveryBanPeriod (20 s here), after
 *                   which a leader may just have banned a second node for links cut before the end (10 s)
 *   leader    21 s  leader timeout 5 s, own answer 2 s, announcing 3 s, lock still held by an orphan 5 s, second round 6 s
 *                   (a vote without lock is shorter: 5 + 2 + 3 + 3.5 s)
 *   recovery  18 s  the pause after recoveries that failed 16 s (RerecoveryTimeout is less), next pass 1 s, recovery 1 s
 *   start     20 s  RerecoveryTimeout + 3 s without a recovery, 1 s, startup event, monitor event after 2 s, flags spread
 *   monitor   15 s  a node made unhealthy by its script looks again after MonitorInterval
 */
export const CONVERGENCE_MS = 170_000
/** Once whole, nothing may change for so long: no other leader, no recovery. */
const CALM_MS = 5000
const LOOK_MS = 500
/** From the healing of all links until operators put every node back in. */
const SETTLE_MS = 3000

type Pnn = number | "leader"
type Part = "main" | "recd" | "both"

export type Deed =
  | { readonly kind: "kill" | "power loss"; readonly pnn: Pnn; readonly downMs: number }
  | { readonly kind: "kill main" | "kill recd"; readonly pnn: Pnn }
  | { readonly kind: "freeze"; readonly pnn: Pnn; readonly part: Part; readonly forMs: number }
  | { readonly kind: "cut" | "cut one way"; readonly from: number; readonly to: number; readonly forMs: number }
  /** The nodes whose bit is set can not reach the others. */
  | { readonly kind: "partition"; readonly side: number; readonly forMs: number }
  | { readonly kind: "lose lock" }
  | { readonly kind: "loss"; readonly share: number; readonly forMs: number }
  | { readonly kind: "slow"; readonly delayMaxMs: number; readonly forMs: number }
  | { readonly kind: "unhealthy"; readonly pnn: Pnn; readonly forMs: number }
  | {
      readonly kind: "stop" | "continue" | "unban" | "disable" | "enable" | "recover"
      readonly pnn: Pnn
      readonly via: number
    }
  | { readonly kind: "ban"; readonly pnn: Pnn; readonly via: number; readonly seconds: number }
  | { readonly kind: "leader capability"; readonly pnn: Pnn; readonly via: number; readonly on: boolean }
  | { readonly kind: "shutdown"; readonly pnn: Pnn; readonly via: number; readonly downMs: number }
  /** A client says that an election begins, and nothing follows. */
  | { readonly kind: "leader unknown"; readonly pnn: Pnn; readonly via: number }
  /** A client sends every node an election message in the name of one of them: one that beats all others, or none. */
  | { readonly kind: "false election"; readonly from: number; readonly via: number; readonly beatsAll: boolean }

export interface Fault {
  readonly atMs: number
  readonly deed: Deed
}

export interface Plan {
  readonly seed: number
  readonly nodes: number
  readonly lock: boolean
  readonly testMode: boolean
  /** When each node starts (ms). */
  readonly startMs: readonly number[]
  readonly faults: readonly Fault[]
  readonly endMs: number
  /** The nodes of one side of a partition that stays when the faults stop, as bits; 0: none. */
  readonly lasting: number
}

export interface Outcome {
  readonly plan: Plan
  readonly world: World
  /** What went wrong; undefined if nothing did. */
  readonly failure: string | undefined
  /** From the last fault to the whole cluster (ms). */
  readonly convergedMs: number
}

export function planOf(seed: number): Plan {
  // Not the world's own stream: leaving a fault out must not change the other faults.
  const random = new Random(seed ^ 0x51ab)
  const nodes = 3 + random.below(5)
  const lock = random.chance(0.5)
  const testMode = random.chance(0.5)
  const together = random.chance(0.7)
  const startMs = Array.from({ length: nodes }, () => random.between(0, together ? 1000 : 20_000))
  const endMs = random.between(25_000, 80_000)
  const count = 1 + random.below(8)
  const quietMs = random.chance(0.5) ? 0 : Math.min(endMs * 0.7, testMode ? 12_000 : 25_000)
  const faults = Array.from({ length: count }, () => ({
    atMs: Math.floor(random.between(quietMs, endMs)),
    deed: deedOf(random, nodes, lock),
  })).sort((a, b) => a.atMs - b.atMs)
  const lasting = random.chance(0.15) ? 1 + random.below((1 << nodes) - 2) : 0
  return { seed, nodes, lock, testMode, startMs, faults, endMs, lasting }
}

function deedOf(random: Random, nodes: number, lock: boolean): Deed {
  const pnn: Pnn = random.chance(0.35) ? "leader" : random.below(nodes)
  const via = random.below(nodes)
  const downMs = Math.floor(random.between(100, random.chance(0.5) ? 3000 : 40_000))
  const forMs = Math.floor(random.between(100, random.chance(0.5) ? 6000 : 60_000))
  const from = random.below(nodes)
  const to = (from + 1 + random.below(nodes - 1)) % nodes
  const choice = random.below(lock ? 29 : 27)
  switch (choice) {
    case 0:
    case 1:
      return { kind: "kill", pnn, downMs }
    case 2:
    case 3:
      return { kind: "power loss", pnn, downMs }
    case 4:
      return { kind: "kill main", pnn }
    case 5:
      return { kind: "kill recd", pnn }
    case 6:
    case 7:
    case 8:
    case 9:
      return { kind: "freeze", pnn, part: random.pick(["main", "recd", "both", "both"] as const), forMs }
    case 10:
      return { kind: "cut", from, to, forMs }
    case 11:
      return { kind: "cut one way", from, to, forMs }
    case 12:
    case 13:
    case 14:
      return { kind: "partition", side: 1 + random.below((1 << nodes) - 2), forMs }
    case 15:
      return { kind: "loss", share: random.between(0.01, 0.3), forMs }
    case 16:
      return { kind: "slow", delayMaxMs: random.between(5, 400), forMs }
    case 17:
      return { kind: "unhealthy", pnn, forMs }
    case 18:
      return { kind: random.pick(["stop", "stop", "continue"] as const), pnn, via }
    case 19:
      return { kind: "stop", pnn, via }
    case 20:
      return { kind: "ban", pnn, via, seconds: 1 + random.below(BAN_S) }
    case 21:
      return { kind: random.pick(["unban", "enable", "continue"] as const), pnn, via }
    case 22:
      return { kind: random.pick(["disable", "recover"] as const), pnn, via }
    case 23:
      return { kind: "leader capability", pnn, via, on: random.chance(0.3) }
    case 24:
      return { kind: "shutdown", pnn, via, downMs }
    case 25:
      return { kind: "leader unknown", pnn, via }
    case 26:
      return { kind: "false election", from, via, beatsAll: random.chance(0.5) }
    default:
      return { kind: "lose lock" }
  }
}

class History {
  readonly world: World
  private readonly shuttingDown = new Set<number>()
  /** The faults have stopped; what would have ended one of them has nothing to do any more. */
  private over = false
  private unexpected: string | undefined

  constructor(readonly plan: Plan) {
    const tunables: Partial<Tunables> = {
      RecoveryBanPeriod: BAN_S,
      // One interval of the statistics' history costs more than all else in a quiet second.
      StatHistoryInterval: 3600,
    }
    const { seed, nodes, lock, testMode } = plan
    this.world = new World({ seed, nodes, lock, testMode, tunables })
    const invariants = new Invariants(this.world)
    this.world.check = (process) => invariants.check(process)
    for (const host of this.world.hosts) host.onExit = (status) => this.exited(host, status)
  }

  run(): Outcome {
    const { world, plan } = this
    let convergedMs = 0
    let failure: string | undefined
    try {
      for (const [pnn, atMs] of plan.startMs.entries()) world.at(atMs, undefined, () => world.hosts[pnn]!.start())
      for (const { atMs, deed } of plan.faults) world.at(atMs, undefined, () => this.do(deed))
      world.runFor(plan.endMs)
      this.stopFaults()
      if (plan.lasting !== 0) {
        failure = this.converge((hosts) => this.parted(hosts))
        this.healAll()
      }
      const sinceMs = world.nowMs
      failure ??= this.converge(() => whole(world.hosts))
      convergedMs = world.nowMs - sinceMs - CALM_MS
      failure ??= this.unexpected
    } catch (error) {
      failure = error instanceof Error ? (error.stack ?? error.message) : String(error)
    }
    return { plan, world, failure, convergedMs }
  }

  private exited(host: Host, status: number): void {
    if (!this.shuttingDown.delete(host.pnn))
      this.unexpected ??= `node ${host.pnn} ended by itself with status ${status}`
  }

  // ---- faults --------------------------------------------------------------------------------------------------

  private host(pnn: Pnn): Host | undefined {
    const { hosts } = this.world
    if (pnn !== "leader") return hosts[pnn]
    return hosts.find((host) => host.recd?.alive === true && host.recovery?.standing().isLeader === true)
  }

  private do(deed: Deed): void {
    const { world } = this
    world.trace("-->", Object.values(deed).map(String).join(" "))
    const target = "pnn" in deed ? this.host(deed.pnn) : undefined
    if ("pnn" in deed && target === undefined) return
    const host = target as Host
    switch (deed.kind) {
      case "kill":
      case "power loss":
        host.crash(deed.kind === "power loss")
        this.later(deed.downMs, () => host.start())
        return
      case "kill main":
        if (host.main !== undefined) world.end(host.main, false)
        this.later(2000, () => host.start())
        return
      case "kill recd":
        if (host.recd !== undefined) world.end(host.recd, false)
        return
      case "freeze":
        this.freeze(host, deed.part, deed.forMs)
        return
      case "cut":
      case "cut one way": {
        const [from, to] = [world.hosts[deed.from]!, world.hosts[deed.to]!]
        if (deed.kind === "cut") world.cut(from, to)
        else world.cutOneWay(from, to)
        this.later(deed.forMs, () => world.heal(from, to))
        return
      }
      case "partition":
        this.part(deed.side)
        this.later(deed.forMs, () => this.healAll())
        return
      case "lose lock":
        world.loseLock()
        return
      case "loss":
        world.loss = deed.share
        this.later(deed.forMs, () => {
          world.loss = 0
        })
        return
      case "slow":
        world.delayMaxMs = deed.delayMaxMs
        this.later(deed.forMs, () => {
          world.delayMaxMs = 1
        })
        return
      case "unhealthy":
        host.eventStatus = (event) => (event === "monitor" ? 1 : 0)
        this.later(deed.forMs, () => {
          host.eventStatus = () => 0
        })
        return
      case "stop":
        this.control(deed.via, host, "STOP_NODE")
        return
      case "continue":
        this.control(deed.via, host, "CONTINUE_NODE")
        return
      case "disable":
        this.control(deed.via, host, "DISABLE_NODE")
        return
      case "enable":
        this.control(deed.via, host, "ENABLE_NODE")
        return
      case "recover":
        this.control(deed.via, host, "SET_RECMODE", RecoveryMode.ACTIVE)
        return
      case "ban":
        this.control(deed.via, host, "SET_BAN_STATE", { pnn: host.pnn, time: deed.seconds })
        return
      case "unban":
        this.control(deed.via, host, "SET_BAN_STATE", { pnn: host.pnn, time: 0 })
        return
      case "leader capability":
        this.control(deed.via, host, "SET_RECMASTERROLE", deed.on ? 1 : 0)
        return
      case "shutdown":
        this.shutdown(deed.via, host, deed.downMs)
        return
      case "leader unknown":
        this.withClient(deed.via, (session) => session.sendMessage(host.pnn, Srvid.LEADER, encode(u32, UNKNOWN_PNN)))
        return
      case "false election": {
        const priorityTime = { sec: deed.beatsAll ? 1 : 0x7fff_ffff, usec: 0 }
        const message = encode(electionMessage, { numConnected: 1, priorityTime, pnn: deed.from, nodeFlags: 0 })
        this.withClient(deed.via, (session) => session.sendMessage(BROADCAST_CONNECTED, Srvid.ELECTION, message))
        return
      }
    }
  }

  private later(delayMs: number, run: () => void): void {
    this.world.at(this.world.nowMs + delayMs, undefined, () => {
      if (!this.over) run()
    })
  }

  private freeze(host: Host, part: Part, forMs: number): void {
    const { world } = this
    const chosen = [part === "recd" ? undefined : host.main, part === "main" ? undefined : host.recd]
    const processes = chosen.filter((process): process is SimProcess => process?.alive === true)
    for (const process of processes) world.freeze(process)
    this.later(forMs, () => {
      for (const process of processes) world.thaw(process)
    })
  }

  private part(side: number): void {
    const { hosts } = this.world
    for (const a of hosts) for (const b of hosts) if (isIn(side, a) && !isIn(side, b)) this.world.cut(a, b)
  }

  private healAll(): void {
    const { hosts } = this.world
    for (const a of hosts) for (const b of hosts) if (a.pnn < b.pnn) this.world.heal(a, b)
  }

  private withClient(via: number, use: (session: NonNullable<ReturnType<Host["client"]>>) => void): void {
    const session = this.world.hosts[via]!.client()
    if (session === undefined) return
    use(session)
    // Long enough for an answer from anywhere; the program ends then whatever it has heard.
    this.world.at(this.world.nowMs + 3000, undefined, () => session.close())
  }

  private control<N extends ControlName>(via: number, to: Host, control: N, request?: RequestOf<N>): void {
    this.withClient(via, (session) => session.request(control, to.pnn, { request }, () => {}))
  }

  private shutdown(via: number, host: Host, downMs: number): void {
    this.shuttingDown.add(host.pnn)
    this.withClient(via, (session) => session.sendControl("SHUTDOWN", host.pnn, {}))
    // The control may not arrive, and a node that stands still leaves later: the restart waits for the end.
    this.later(downMs, () => host.start())
  }

  /** Every node runs, every link stands but those of a lasting partition, and no operator keeps a node out. */
  private stopFaults(): void {
    const { world, plan } = this
    this.over = true
    world.trace("-->", "the faults stop")
    world.loss = 0
    world.delayMaxMs = 1
    for (const process of [...world.allProcesses]) world.thaw(process)
    this.healAll()
    for (const host of world.hosts) {
      host.eventStatus = () => 0
      // A shutdown that was asked of a node that stood still is only now under way.
      host.onExit = (status) => {
        this.exited(host, status)
        world.at(world.nowMs + 1000, undefined, () => host.start())
      }
      if (!host.running) host.start()
    }
    // What operators had said to nodes that could not be reached arrives now; what follows is their last word.
    world.runFor(SETTLE_MS)
    if (plan.lasting !== 0) this.part(plan.lasting)
    for (const host of world.hosts) {
      this.control(host.pnn, host, "CONTINUE_NODE")
      this.control(host.pnn, host, "ENABLE_NODE")
      this.control(host.pnn, host, "SET_RECMASTERROLE", 1)
    }
  }

  // ---- becoming whole ------------------------------------------------------------------------------------------

  /** Waits until `fault` finds nothing and nothing changes any more. The last thing it found if that takes too long. */
  private converge(fault: (hosts: readonly Host[]) => string | undefined): string | undefined {
    const { world } = this
    const deadlineMs = world.nowMs + CONVERGENCE_MS
    let goodSinceMs: number | undefined
    let picture = ""
    let change = ""
    for (;;) {
      const found = fault(world.hosts)
      const now = found === undefined ? world.hosts.map(pictureOf).join(" ") : ""
      if (found !== undefined) goodSinceMs = undefined
      else if (goodSinceMs === undefined) {
        goodSinceMs = world.nowMs
        picture = now
      } else if (now !== picture) {
        change = `changed from ${picture} to ${now}`
        goodSinceMs = world.nowMs
        picture = now
      } else if (world.nowMs - goodSinceMs >= CALM_MS) return undefined
      if (world.nowMs >= deadlineMs && (goodSinceMs === undefined || goodSinceMs > deadlineMs)) {
        return `not whole and calm ${CONVERGENCE_MS / 1000} s after the faults stopped: ${found ?? change}`
      }
      world.runFor(LOOK_MS)
    }
  }

  /** With a lock one side of a partition is whole and the other has no leader; without, both are whole. */
  private parted(hosts: readonly Host[]): string | undefined {
    const sides = [true, false].map((side) => hosts.filter((host) => isIn(this.plan.lasting, host) === side))
    if (!this.plan.lock) {
      return sides.map((side) => whole(side)).find((found) => found !== undefined)
    }
    const [holding, other] = sides[0]!.some((host) => host.recd !== undefined && this.world.holdsLock(host.recd))
      ? [sides[0]!, sides[1]!]
      : [sides[1]!, sides[0]!]
    const leader = other.find((host) => host.recovery?.standing().isLeader !== false)
    if (leader !== undefined) return `node ${leader.pnn} leads without the lock, or has no recovery daemon`
    return whole(holding)
  }
}

/** What keeps these nodes from being one whole cluster; undefined: nothing. */
export function whole(hosts: readonly Host[]): string | undefined {
  const pnns = hosts.map((host) => host.pnn)
  const first = hosts[0]?.node?.state
  if (first === undefined) return "node does not run"
  for (const { node, recovery, recd, pnn } of hosts) {
    if (node === undefined || recovery === undefined || recd?.alive !== true) return `node ${pnn} does not run`
    const { state } = node
    const say = (what: string) => `node ${pnn} ${what}`
    if (state.runState !== RunState.RUNNING) return say(`has run state ${state.runState}`)
    if (state.recoveryMode !== RecoveryMode.NORMAL) return say("is in recovery mode ACTIVE")
    if (state.generation !== first.generation) return say(`has generation ${state.generation}`)
    if (state.vnnMap.join(" ") !== pnns.join(" ")) return say(`has vnnmap ${state.vnnMap.join(" ")}`)
    const away = NodeFlag.DISCONNECTED | NodeFlag.UNHEALTHY
    for (const entry of state.nodes) {
      const expected = pnns.includes(entry.pnn) ? 0 : away
      if (expected === 0 ? entry.flags !== 0 : (entry.flags & NodeFlag.DISCONNECTED) === 0) {
        return say(`sees flags 0x${entry.flags.toString(16)} on node ${entry.pnn}`)
      }
    }
    const { leader } = recovery.standing()
    const expected = hosts[0]?.recovery?.standing().leader
    if (!pnns.includes(leader) || leader !== expected) return say(`follows leader ${leader}, not ${expected}`)
  }
  return undefined
}

function isIn(side: number, host: Host): boolean {
  return ((side >> host.pnn) & 1) === 1
}

function pictureOf(host: Host): string {
  const state = host.node?.state
  const leading = host.recovery?.standing().isLeader === true ? "*" : ""
  const generation = state !== undefined && isActive(state.self) && state.recoveryMode === 0 ? state.generation : "-"
  return `${host.pnn}${leading}:${generation}`
}

export function runPlan(plan: Plan): Outcome {
  return new History(plan).run()
}

/** Leaves faults out one by one as long as the plan still fails. */
export function shrink(plan: Plan): Outcome {
  let best = runPlan(plan)
  for (let index = 0; index < best.plan.faults.length; ) {
    const fewer = runPlan({ ...best.plan, faults: best.plan.faults.toSpliced(index, 1) })
    if (fewer.failure === undefined) index++
    else best = fewer
  }
  return best
}

export function planText(plan: Plan): string {
  const { nodes, lock, testMode, startMs, faults, endMs, lasting } = plan
  const head = `${nodes} nodes, ${lock ? "cluster lock" : "no cluster lock"}, ${testMode ? "test" : "normal"} mode`
  const starts = startMs.map((ms) => (ms / 1000).toFixed(1)).join(" ")
  const lines = faults.map(({ atMs, deed }) => `  ${(atMs / 1000).toFixed(3).padStart(8)} s  ${deedText(deed)}`)
  const sides = lasting === 0 ? "" : `, then partition 0b${lasting.toString(2)} stays`
  return [
    `${head}, started at ${starts} s`,
    ...lines,
    `  ${(endMs / 1000).toFixed(3).padStart(8)} s  faults stop${sides}`,
  ].join("\n")
}

function deedText(deed: Deed): string {
  const rest = Object.entries(deed).filter(([key]) => key !== "kind")
  return [deed.kind, ...rest.map(([key, value]) => `${key}=${key === "side" ? `0b${value.toString(2)}` : value}`)].join(
    " ",
  )
}
