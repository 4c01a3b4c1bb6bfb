// Rows that are no rates: what idle clients cost a daemon, how late it answers under load, and how long recoveries take. Rates are in
// measure.ts.

import { Client } from "../../lib/client/client.ts"
import { decode, u32 } from "../../lib/protocol/codec.ts"
import { INVALID_GENERATION, RecoveryMode, Srvid } from "../../lib/protocol/constants.ts"
import { Crew, type Task } from "./crew.ts"
import type { ClientsRow, RecoveryRow } from "./generators.ts"
import type { Histogram } from "./histogram.ts"
import { residentOf } from "./machine.ts"
import {
  freshKey,
  latencyOf,
  type Measured,
  type Progress,
  type Row,
  rowOf,
  type Settings,
  type Target,
} from "./measure.ts"
import type { LoadName } from "./plan.ts"
import { spread } from "./statistics.ts"

/** Bytes of a value of the records that a recovery collects. */
const RECOVERED_VALUE = 100
const CONNECT_MS = 10_000
/** A recovery that takes longer has failed (ms). */
const RECOVERY_MS = 120_000
/** Between two looks whether a recovery has ended (ms). */
const LOOK_MS = 4
/** After a recovery, until another is allowed to begin at once: see RerecoveryTimeout (ms). */
const BETWEEN_MS = 1500

function task(load: LoadName, socket: string, parts: Partial<Task>): Task {
  return {
    load,
    socket,
    nodes: 1,
    shared: false,
    database: "bench.tdb",
    kind: "volatile",
    key: "",
    records: 1,
    valueSize: 4,
    depth: 1,
    rate: 0,
    clients: 1,
    ...parts,
  }
}

interface Sampled {
  readonly target: Target
  readonly samples: number[]
  readonly violations: string[]
  histogram?: Histogram
}

function measuredOf({ target, samples, violations, histogram }: Sampled): Measured {
  const latency = histogram === undefined || histogram.max === 0 ? undefined : latencyOf(histogram)
  const none = { clientUs: undefined, daemonUs: undefined, series: [] }
  return { target: target.name, samples, value: spread(samples), latency, ...none, violations }
}

const sampled = (targets: readonly Target[]): Sampled[] =>
  targets.map((target) => ({ target, samples: [], violations: [] }))

/** Memory with and without clients, and control latency without load, with all those clients idle, and while they send messages. */
export async function measureClients(
  plan: ClientsRow,
  targets: readonly Target[],
  settings: Settings,
  progress: Progress,
): Promise<Row[]> {
  const alone = sampled(targets)
  const crowded = sampled(targets)
  const phases = [
    { title: "control round trip, no other clients", values: sampled(targets), load: undefined },
    { title: `control round trip, ${plan.clients} idle clients`, values: sampled(targets), load: "idle" as const },
    {
      title: `control round trip, ${plan.clients} clients sending ${plan.rate} messages/s`,
      values: sampled(targets),
      load: "flood" as const,
    },
  ]
  const delivery = sampled(targets)
  const sampleMs = (settings.seconds * 1000) / settings.samples
  for (const [phaseIndex, phase] of phases.entries()) {
    for (const [index, target] of targets.entries()) {
      const socket = target.sockets[0]!
      const probe = await Crew.open([task("control", socket, {})])
      const [daemon = 0] = probe.daemons
      let crowd: Crew | undefined
      try {
        if (phase.load !== undefined) {
          crowd = await Crew.open([task(phase.load, socket, { clients: plan.clients, rate: plan.rate })])
        }
        const resident = residentOf(daemon) / 2 ** 20
        if (phase.load === "idle") crowded[index]!.samples.push(resident)
        else if (phase.load === undefined) alone[index]!.samples.push(resident)
        crowd?.start(true)
        const side = phase.values[index]!
        for (let sample = -1; sample < settings.samples; sample++) {
          probe.start(true)
          const ms = sample < 0 ? settings.warmup * 1000 : sampleMs
          const done = probe.done
          await Bun.sleep(ms)
          const rate = ((probe.done - done) / ms) * 1000
          const share =
            (phaseIndex + (sample + 2) / (settings.samples + 1) / targets.length + index / targets.length) / 3
          progress(share, target.name, rate, "controls/s")
          const worked = await probe.stop()
          side.violations.push(...worked.violations)
          if (sample < 0) continue
          const latency = worked.latency.corrected(worked.latency.percentile(0.5))
          side.samples.push(latency.percentile(0.5) / 1000)
          if (side.histogram === undefined) side.histogram = latency
          else side.histogram.addNumbers(latency.toNumbers())
        }
        if (crowd === undefined) continue
        const worked = await crowd.stop()
        side.violations.push(...worked.violations, ...(await crowd.settle(true)))
        if (phase.load === "flood") {
          delivery[index]!.histogram = worked.latency
          delivery[index]!.samples.push(worked.latency.percentile(0.5) / 1000)
        }
      } finally {
        await Promise.all([probe.close(), crowd?.close()])
      }
    }
  }
  // What is this measurement's own and what is others' is not told apart here.
  const foreign = Number.NaN
  const { generator } = plan
  return [
    ...phases.map(({ title, values }) => rowOf({ generator, title }, "us", "less", values.map(measuredOf), foreign)),
    rowOf({ generator, title: `delivery of one of those messages` }, "us", "less", delivery.map(measuredOf), foreign),
    ...[
      { title: "resident memory of a node's daemon", values: alone },
      { title: `the same with ${plan.clients} idle clients`, values: crowded },
    ].map(({ title, values }) => rowOf({ generator, title }, "MB", "less", values.map(measuredOf), foreign)),
  ]
}

/** The clients that watch a recovery, one of each node. */
class Watchers {
  private constructor(private readonly clients: readonly Client[]) {}

  static async open(target: Target): Promise<Watchers> {
    return new Watchers(
      await Promise.all(target.sockets.map((socket) => Client.connect({ socket, timeoutMs: CONNECT_MS }))),
    )
  }

  /** The node that the others follow, as its next broadcast says. */
  private async leader(): Promise<number> {
    return decode(u32, await this.clients[0]!.waitForMessage(Srvid.LEADER, { timeoutMs: CONNECT_MS }))
  }

  /** Makes the cluster recover. Resolves with the seconds until all nodes have the new generation and are NORMAL. */
  async recovery(): Promise<number> {
    const [first] = this.clients
    const leader = await this.leader()
    const before = (await first!.control("GETVNNMAP", leader)).generation
    const begun = performance.now()
    await first!.control("SET_RECMODE", leader, RecoveryMode.ACTIVE)
    const over = async (client: Client): Promise<boolean> => {
      const [map, mode] = await Promise.all([
        client.control("GETVNNMAP", client.pnn),
        client.controlStatus("GET_RECMODE", client.pnn),
      ])
      return mode === RecoveryMode.NORMAL && map.generation !== before && map.generation !== INVALID_GENERATION
    }
    while (!(await Promise.all(this.clients.map(over))).every(Boolean)) {
      if (performance.now() - begun > RECOVERY_MS) throw new Error(`no end of a recovery in ${RECOVERY_MS / 1000} s`)
      await Bun.sleep(LOOK_MS)
    }
    return (performance.now() - begun) / 1000
  }

  async close(): Promise<void> {
    await Promise.all(this.clients.map((client) => client.close()))
  }
}

/** Recoveries of a cluster with records, while a client counts a record of its own up: their time, and the client's longest standstill. */
export async function measureRecovery(
  plan: RecoveryRow,
  targets: readonly Target[],
  settings: Settings,
  progress: Progress,
): Promise<Row[]> {
  const times = sampled(targets)
  const standstills = sampled(targets)
  const sides: { filler: Crew; counter: Crew; watchers: Watchers }[] = []
  try {
    for (const target of targets) {
      const key = freshKey()
      const records = { database: settings.database ?? "bench_recovery.tdb", key, records: plan.records }
      const filler = await Crew.open(
        target.sockets.map((socket) => task("fill", socket, { ...records, valueSize: RECOVERED_VALUE })),
      )
      const counter = await Crew.open([task("counter", target.sockets[0]!, { key: freshKey() })])
      sides.push({ filler, counter, watchers: await Watchers.open(target) })
      filler.start(false)
      const filled = await filler.stop(true)
      times[sides.length - 1]!.violations.push(...filled.violations)
    }
    for (let sample = -1; sample < settings.samples; sample++) {
      for (const [index, { counter, watchers }] of sides.entries()) {
        await Bun.sleep(BETWEEN_MS)
        counter.start(true)
        const seconds = await watchers.recovery()
        await Bun.sleep(50)
        const worked = await counter.stop()
        times[index]!.violations.push(...worked.violations)
        progress((sample + 1 + (index + 1) / sides.length) / (settings.samples + 1), targets[index]!.name, seconds, "s")
        if (sample < 0) continue
        times[index]!.samples.push(seconds)
        standstills[index]!.samples.push(worked.latency.max / 1e6)
      }
    }
    for (const [index, { filler, counter }] of sides.entries()) {
      times[index]!.violations.push(...(await filler.settle(true)), ...(await counter.settle(true)))
    }
  } finally {
    await Promise.all(sides.flatMap((side) => [side.filler.close(), side.counter.close(), side.watchers.close()]))
  }
  const foreign = Number.NaN
  const { generator, title } = plan
  return [
    rowOf({ generator, title: `${title}, until NORMAL` }, "s", "less", times.map(measuredOf), foreign),
    rowOf(
      { generator, title: `${title}, longest standstill of a client` },
      "ms",
      "less",
      standstills.map(measuredOf),
      foreign,
    ),
  ]
}
