// Where a stock cluster hurts, and ours must not: one scenario for each row of the reference's list of weak points (cluster
// page 10.3) that shows in the simulator. Times are virtual; the stock figures in the names are those of that page.

import { expect, test } from "bun:test"
import { encode, u32 } from "../../lib/protocol/codec.ts"
import { NodeFlag, Operation, RecoveryMode, Srvid, UNKNOWN_PNN } from "../../lib/protocol/constants.ts"
import { type ControlName, controls, type RequestOf } from "../../lib/protocol/controls.ts"
import { operationOf } from "../../lib/protocol/header.ts"
import { whole } from "./histories.ts"
import { type Host, type SimProcess, World, type WorldOptions } from "./world.ts"

const LOCKS = [true, false]
const lockText = (lock: boolean) => (lock ? "with a cluster lock" : "without a cluster lock")

/** A cluster of so many nodes that has come up and is calm. */
function cluster(nodes: number, lock: boolean, options: Partial<WorldOptions> = {}): World {
  const world = new World({ seed: 42 + nodes, nodes, lock, testMode: true, ...options })
  for (const host of world.hosts) host.start()
  until(world, 40_000, "the cluster comes up", () => whole(world.hosts) === undefined)
  world.runFor(12_000)
  return world
}

/** Lets time pass until something is true, and returns how long that took (ms). Fails with the trace if it takes longer. */
function until(world: World, limitMs: number, what: string, holds: () => boolean): number {
  const startMs = world.nowMs
  while (!holds()) {
    if (world.nowMs - startMs > limitMs) {
      const trace = world.traceText().split("\n").slice(-40).join("\n")
      throw new Error(`${what}: not within ${limitMs / 1000} s\n${trace}`)
    }
    world.runFor(20)
  }
  return world.nowMs - startMs
}

function leaders(world: World): Host[] {
  return world.hosts.filter((host) => {
    if (host.recd?.alive !== true || host.recd.frozen) return false
    const standing = host.recovery?.standing()
    return standing?.isLeader === true && !standing.electionInProgress
  })
}

function leaderOf(world: World): Host {
  const [leader, ...others] = leaders(world)
  if (leader === undefined || others.length > 0) throw new Error(`${others.length} leaders besides one`)
  return leader
}

function others(world: World, ...known: readonly Host[]): Host[] {
  return world.hosts.filter((host) => !known.includes(host))
}

/** Asks a node something as a program on that host would; the status, or undefined without an answer in 10 s. */
function ask<N extends ControlName>(host: Host, control: N, request?: RequestOf<N>): number | undefined {
  let status: number | undefined
  const session = host.client()
  session?.request(control, host.pnn, { request, timeoutMs: 10_000 }, (reply) => {
    status = reply.status
  })
  until(host.world, 11_000, `${control} is answered`, () => status !== undefined)
  session?.close()
  return status
}

/** These nodes are in one recovered cluster, and nobody else is in it. */
function together(hosts: readonly Host[]): boolean {
  const map = hosts.map((host) => host.pnn).join(" ")
  return hosts.every(({ node }) => {
    const first = hosts[0]?.node?.state
    return (
      node !== undefined &&
      node.state.recoveryMode === RecoveryMode.NORMAL &&
      node.state.vnnMap.join(" ") === map &&
      node.state.generation === first?.generation
    )
  })
}

function flagged(host: Host, flag: number): boolean {
  return ((host.node?.state.self.flags ?? 0) & flag) !== 0
}

/** Lines of the trace from a moment on that hold a text. */
function said(world: World, sinceMs: number, text: string): string[] {
  return world
    .traceText()
    .split("\n")
    .filter((line) => Number(line.slice(0, 9)) * 1000 >= sinceMs - 1 && line.includes(text))
}

function opcodeOf(packet: Uint8Array): number | undefined {
  if (operationOf(packet) !== Operation.REQ_CONTROL) return undefined
  return new DataView(packet.buffer, packet.byteOffset).getUint32(32, true)
}

const betweenNodes = (from: SimProcess, to: SimProcess) => from.host !== to.host

for (const lock of LOCKS) {
  test(`row 6, ${lockText(lock)}: two members that can't reach each other: one is banned, until the link is back`, () => {
    const world = cluster(4, lock)
    const [a, b] = others(world, leaderOf(world)) as [Host, Host]
    world.cut(a, b)
    // 25 to 30 s until keepalives miss the link (stock: and then nothing, for ever), 10 s of patience, 1 s for the recovery.
    until(world, 45_000, "one of the two is banned", () => flagged(a, NodeFlag.BANNED) || flagged(b, NodeFlag.BANNED))
    const banned = flagged(a, NodeFlag.BANNED) ? a : b
    until(world, 5000, "the rest goes on", () => together(others(world, banned)))
    expect(world.hosts.filter((host) => flagged(host, NodeFlag.BANNED))).toEqual([banned])
    world.heal(a, b)
    until(world, 10_000, "the ban is lifted", () => !flagged(banned, NodeFlag.BANNED))
    until(world, 15_000, "all are back", () => whole(world.hosts) === undefined)
  })

  test(`row 7, ${lockText(lock)}: a member stands still: another's death is handled within 20 s (stock: 30 s)`, () => {
    const world = cluster(5, lock)
    const [hung, dead] = others(world, leaderOf(world)) as [Host, Host]
    for (const process of [hung.main, hung.recd]) world.freeze(process!)
    world.runFor(1000)
    dead.crash(false)
    until(world, 20_000, "the cluster goes on", () => together(others(world, hung, dead)))
  })

  test(`row 7, ${lockText(lock)}: a member sends keepalives but answers nothing: left out (stock: nothing for ever)`, () => {
    const world = cluster(5, lock)
    const [mute, dead] = others(world, leaderOf(world)) as [Host, Host]
    world.tap = (from, to, packet) =>
      !(from === mute.main && betweenNodes(from, to) && operationOf(packet) === Operation.REPLY_CONTROL)
    world.runFor(1000)
    dead.crash(false)
    until(world, 20_000, "the cluster goes on", () => together(others(world, mute, dead)))
    world.runFor(60_000)
    expect(together(others(world, mute, dead))).toBe(true)
    world.tap = undefined
    dead.start()
    until(world, 60_000, "all are back", () => whole(world.hosts) === undefined)
  })

  test(`row 8, ${lockText(lock)}: back from a pause of 60 s: one recovery takes it in, no election`, () => {
    const world = cluster(3, lock)
    const leader = leaderOf(world)
    const [paused, witness] = others(world, leader) as [Host, Host]
    for (const process of [paused.main, paused.recd]) world.freeze(process!)
    world.runFor(60_000)
    const backMs = world.nowMs
    const before = witness.node!.state.statistics.now.numRecoveries
    let activeMs = 0
    for (const process of [paused.main, paused.recd]) world.thaw(process!)
    for (let i = 0; i < 1500; i++) {
      world.runFor(20)
      if (witness.node!.state.recoveryMode === RecoveryMode.ACTIVE) activeMs += 20
    }
    expect(whole(world.hosts)).toBeUndefined()
    expect(said(world, backMs, "Start election")).toEqual([])
    expect(leaderOf(world)).toBe(leader)
    expect(witness.node!.state.statistics.now.numRecoveries - before).toBe(1)
    // A stock cluster is in recovery mode from the node's election until the leader's next turn: 3.8 s observed.
    expect(activeMs).toBeLessThan(1000)
  })

  test(`row 8, ${lockText(lock)}: a leader that comes back from a pause of 60 s ends in one cluster`, () => {
    const world = cluster(3, lock)
    const old = leaderOf(world)
    for (const process of [old.main, old.recd]) world.freeze(process!)
    world.runFor(60_000)
    // With a lock nobody else can lead: the kernel keeps the lock of a stopped process. Without, another leads already.
    expect(leaders(world).length).toBe(lock ? 0 : 1)
    for (const process of [old.main, old.recd]) world.thaw(process!)
    until(world, 10_000, "one leader", () => leaders(world).length === 1 && together(world.hosts))
    until(world, 20_000, "all are whole", () => whole(world.hosts) === undefined)
  })
}

/** Nobody leads from now on: what is sent to a node is all that changes its recovery mode. */
function leaderless(world: World): void {
  for (const { recd } of world.hosts) if (recd !== undefined) world.freeze(recd)
}

for (const before of ["the node's own wish", "the start", "an earlier recovery"] as const) {
  test(`row 9: in a recovery that never ends addresses are dropped, also when ${before} made the mode ACTIVE (stock: never)`, () => {
    const tunables = { RecoveryDropAllIPs: 6 }
    const world = cluster(3, true, { tunables })
    const host = world.hosts[1]!
    const { recovery, state } = host.node!
    leaderless(world)
    if (before === "the node's own wish") recovery.ask("A commit failed")
    // A node that starts is ACTIVE before anybody says so.
    if (before === "the start") state.recoveryMode = RecoveryMode.ACTIVE
    const sinceMs = world.nowMs
    // Once a second a recovery begins and fails at its end.
    for (let round = 0; round < 8; round++) {
      expect(ask(host, "SET_RECMODE", RecoveryMode.ACTIVE)).toBe(0)
      const { generation } = state
      state.generation = 1
      expect(ask(host, "SET_RECMODE", RecoveryMode.NORMAL)).toBe(-1)
      state.generation = generation
      world.runFor(1000)
    }
    expect(said(world, sinceMs, "Been in recovery mode for too long. Dropping all IPS").length).toBe(1)
  })
}

test("row 10: ACTIVE that comes while NORMAL is still checking the lock stays (stock: overwritten by NORMAL)", () => {
  const world = cluster(3, true)
  const host = world.hosts[1]!
  const { recovery, state } = host.node!
  leaderless(world)
  const statuses: [string, number][] = []
  recovery.setMode(RecoveryMode.ACTIVE, ({ status }) => statuses.push(["ACTIVE", status]))
  recovery.setMode(RecoveryMode.NORMAL, ({ status }) => statuses.push(["NORMAL", status]))
  expect(statuses).toEqual([["ACTIVE", 0]])
  recovery.setMode(RecoveryMode.ACTIVE, ({ status }) => statuses.push(["again", status]))
  // The check of the lock takes 5 s at most.
  world.runFor(6000)
  expect(statuses.slice(1).sort()).toEqual([
    ["NORMAL", -1],
    ["again", 0],
  ])
  expect(state.recoveryMode).toBe(RecoveryMode.ACTIVE)
  recovery.setMode(RecoveryMode.NORMAL, ({ status }) => statuses.push(["at last", status]))
  world.runFor(6000)
  expect(statuses.at(-1)).toEqual(["at last", 0])
  expect(state.recoveryMode).toBe(RecoveryMode.NORMAL)
})

test("row 11: a peer that refuses every connection is tried once a second (stock: 2000 times)", () => {
  const world = cluster(3, true)
  const [refusing, refused] = [world.hosts[0]!, world.hosts[2]!]
  // Node 0 forgets node 2, which goes on calling it.
  world.lists.set(
    refusing,
    world
      .commonList()
      .map((node) => (node.pnn === refused.pnn ? { ...node, address: "0.0.0.0", deleted: true, flags: 0x11 } : node)),
  )
  expect(ask(refusing, "RELOAD_NODES_FILE")).toBe(0)
  world.runFor(2000)
  let attempts = 0
  const connect = world.connect.bind(world)
  world.connect = (...call) => {
    if (call[0].host === refused && call[1] === refusing.address) attempts++
    return connect(...call)
  }
  const sinceMs = world.nowMs
  world.runFor(30_000)
  expect(attempts).toBeGreaterThan(10)
  expect(attempts).toBeLessThanOrEqual(31)
  expect(said(world, sinceMs, "Refused connection from unknown node").length).toBeLessThanOrEqual(4)
})

test("row 11: a packet that claims to come from another node than its link's is dropped", () => {
  const world = cluster(3, true)
  const leader = leaderOf(world)
  const [liar, victim] = others(world, leader) as [Host, Host]
  let forged = 0
  world.tap = (from, to, packet) => {
    if (from === liar.main && to === victim.main && opcodeOf(packet) === controls.STOP_NODE.opcode) {
      new DataView(packet.buffer, packet.byteOffset).setUint32(24, leader.pnn, true)
      forged++
    }
    return true
  }
  liar.client()?.sendControl("STOP_NODE", victim.pnn, {})
  world.runFor(2000)
  expect(forged).toBe(1)
  expect(flagged(victim, NodeFlag.STOPPED)).toBe(false)
  expect(said(world, 0, "that claims to come from node").length).toBe(1)
  expect(whole(world.hosts)).toBeUndefined()
})

test("row 12: a nodes list that can't be read at a reload changes nothing (stock: the daemon ends)", () => {
  const world = cluster(3, true)
  const host = world.hosts[1]!
  const { generation } = host.node!.state
  world.lists.set(host, undefined)
  expect(ask(host, "RELOAD_NODES_FILE")).toBe(-1)
  world.runFor(20_000)
  expect(host.running).toBe(true)
  expect(whole(world.hosts)).toBeUndefined()
  expect(host.node!.state.generation).toBe(generation)
  world.lists.delete(host)
  expect(ask(host, "RELOAD_NODES_FILE")).toBe(0)
  expect(whole(world.hosts)).toBeUndefined()
})

test("row 12: nodes whose lists differ say so when they meet", () => {
  const world = new World({ seed: 12, nodes: 3, lock: true, testMode: true })
  const odd = world.hosts[2]!
  world.lists.set(
    odd,
    world.commonList().map((node) => (node.pnn === 1 ? { ...node, address: "10.0.0.99" } : node)),
  )
  for (const host of world.hosts) host.start()
  world.runFor(20_000)
  expect(said(world, 0, "Nodes list of node 2 differs for node 1: 10.0.0.99 there, 10.0.0.2 here").length).toBe(1)
})

for (const lock of LOCKS) {
  for (const way of ["stop", "ban", "shutdown"] as const) {
    test(`row 16, ${lockText(lock)}: ${way} of the leader: another leads within 2 s (stock: 5 to 8 s)`, () => {
      const world = cluster(5, lock)
      const old = leaderOf(world)
      const session = old.client()
      if (way === "stop") session?.sendControl("STOP_NODE", old.pnn, {})
      else if (way === "ban") session?.sendControl("SET_BAN_STATE", old.pnn, { request: { pnn: old.pnn, time: 300 } })
      else session?.sendControl("SHUTDOWN", old.pnn, {})
      until(world, 2000, "another leads", () => leaders(world).length === 1 && leaders(world)[0] !== old)
      until(world, 3000, "the rest goes on", () => together(others(world, old)))
      expect(said(world, world.nowMs - 5000, "Leader broadcast timeout")).toEqual([])
    })
  }

  test(`row 17, ${lockText(lock)}: the leader's recovery daemon hangs: a new one within 13 s (stock: 660 s)`, () => {
    const world = cluster(3, lock)
    const host = leaderOf(world)
    const hung = host.recd
    world.freeze(hung!)
    until(world, 13_000, "a new recovery daemon runs", () => host.recd !== hung && host.recd?.alive === true)
    expect(hung?.alive).toBe(false)
    until(world, 12_000, "somebody leads", () => leaders(world).length === 1)
    until(world, 15_000, "the cluster is whole", () => whole(world.hosts) === undefined)
  })

  test(`row 18, ${lockText(lock)}: LEADER UNKNOWN with nothing after it stops nobody (stock: for ever)`, () => {
    const world = cluster(3, lock)
    const leader = leaderOf(world)
    const [victim] = others(world, leader) as [Host]
    const session = victim.client()
    for (const { pnn } of world.hosts) session?.sendMessage(pnn, Srvid.LEADER, encode(u32, UNKNOWN_PNN))
    world.runFor(10)
    leader.crash(false)
    // 2 s of waiting for what does not follow, 5 s leader timeout, then lock of an orphan (5 s and another round) or vote.
    until(world, lock ? 19_000 : 13_000, "another leads", () => leaders(world).length === 1)
    until(world, 3000, "the rest goes on", () => together(others(world, leader)))
  })
}

test("row 18: LEADER UNKNOWN leaves a healthy cluster with its leader", () => {
  for (const lock of LOCKS) {
    const world = cluster(3, lock)
    const leader = leaderOf(world)
    const session = leader.client()
    for (const { pnn } of world.hosts) session?.sendMessage(pnn, Srvid.LEADER, encode(u32, UNKNOWN_PNN))
    world.runFor(10_000)
    expect(leaderOf(world)).toBe(leader)
    expect(whole(world.hosts)).toBeUndefined()
  }
})

test("row 20: a node with another lock string leaves at once, and the cluster recovers without it (stock: 10 s)", () => {
  const world = new World({ seed: 20, nodes: 4, lock: true, testMode: true })
  const odd = world.hosts[3]!
  const rest = others(world, odd)
  odd.lockString = "/elsewhere/lock"
  for (const host of rest) host.start()
  until(world, 40_000, "three are in one cluster", () => whole(rest) === undefined)
  odd.start()
  until(world, 5000, "it is asked to recover", () => said(world, 0, "lock configuration inconsistent").length > 0)
  const taken = until(world, 4000, "it has left, and the others are one cluster", () => !odd.running && together(rest))
  expect(odd.exitStatus).toBe(1)
  expect(taken).toBeLessThan(3000)
})

test("row 21: a node that was killed starts again at once (stock: not within 5 s)", () => {
  const world = cluster(3, true)
  const [host] = others(world, leaderOf(world)) as [Host]
  host.crash(false)
  host.start()
  expect(until(world, 10_000, "all are back", () => whole(world.hosts) === undefined)).toBeLessThan(10_000)
  expect(host.exitStatus).toBeUndefined()
})

for (const lock of LOCKS) {
  test(`row 25, ${lockText(lock)}: a second death right after a recovery is handled within 2 s (stock: up to 10 s)`, () => {
    const world = cluster(5, lock)
    const [first, second] = others(world, leaderOf(world)) as [Host, Host]
    first.crash(false)
    until(world, 2000, "the others go on", () => together(others(world, first)))
    world.runFor(500)
    second.crash(false)
    until(world, 2000, "the rest goes on", () => together(others(world, first, second)))
  })
}

test("row 23: seven idle nodes ask for capabilities 6 times a second (stock: 42 times)", () => {
  const world = cluster(7, true)
  const counts = new Map<number, number>()
  world.tap = (from, to, packet) => {
    const opcode = betweenNodes(from, to) ? opcodeOf(packet) : undefined
    if (opcode !== undefined) counts.set(opcode, (counts.get(opcode) ?? 0) + 1)
    return true
  }
  world.runFor(60_000)
  const perSecond = (counts.get(controls.GET_CAPABILITIES.opcode) ?? 0) / 60
  expect(perSecond).toBeGreaterThan(5)
  expect(perSecond).toBeLessThanOrEqual(6.2)
})
