// How a row is measured: warm-up, samples of the targets by turns, a run of its own for latencies, and the checks at the end. Nothing is
// printed here; progress is told to whoever wants to know.

import { Crew, type Task } from "./crew.ts"
import type { RateRow, RowPlan } from "./generators.ts"
import { Histogram } from "./histogram.ts"
import { cpuOf, loadAverage, Surroundings } from "./machine.ts"
import { ratios, type Spread, spread } from "./statistics.ts"

/** A cluster that is driven: sockets of its nodes, node 0 first. */
export interface Target {
  readonly name: string
  readonly sockets: readonly string[]
}

export interface Settings {
  readonly seconds: number
  readonly samples: number
  readonly warmup: number
  readonly valueSize: number
  readonly database: string | undefined
  readonly key: string | undefined
  /** Others take part (see WorkerPlan). */
  readonly shared: boolean
}

/** Durations in microseconds. */
export interface Latency {
  readonly p50: number
  readonly p90: number
  readonly p99: number
  readonly p999: number
  readonly max: number
}

/** One target's side of a row. */
export interface Measured {
  readonly target: string
  readonly samples: readonly number[]
  readonly value: Spread
  /** Of one operation, with what a closed loop does not see put back in. */
  readonly latency: Latency | undefined
  /** Processor time of one operation in the clients and in the daemons (us); undefined where there is no such operation. */
  readonly clientUs: number | undefined
  readonly daemonUs: number | undefined
  /** Throughput over time: seconds since the row began, and the rate then. */
  readonly series: readonly (readonly [number, number])[]
  readonly violations: readonly string[]
}

export interface Row {
  readonly generator: string
  readonly title: string
  readonly unit: string
  readonly better: "more" | "less"
  readonly targets: readonly Measured[]
  /** How many times better the first target is than the second, turn by turn. */
  readonly ratio: Spread | undefined
  /** Load average of the last minute, at the end, and the share of the machine that others used meanwhile (NaN: not known). */
  readonly load: number
  readonly foreign: number
}

/** What is going on: a share of the row (0 to 1), and the rate of the moment. */
export type Progress = (share: number, target: string, rate: number, unit: string) => void

/** Between two looks at how far the workers are (ms). */
const LOOK_MS = 100
/** After a start, until rings are full and records where they are wanted (ms). */
const RAMP_MS = 150

let keys = 0

/** A row's result from its targets' sides. */
export function rowOf(
  plan: Pick<RowPlan, "generator" | "title">,
  unit: string,
  better: Row["better"],
  targets: readonly Measured[],
  foreign: number,
): Row {
  const [first, second] = targets
  const ratio = first === undefined || second === undefined ? undefined : ratios(first.samples, second.samples, better)
  return { generator: plan.generator, title: plan.title, unit, better, targets, ratio, load: loadAverage(), foreign }
}

export function latencyOf(histogram: Histogram): Latency {
  const us = (share: number): number => histogram.percentile(share) / 1000
  return { p50: us(0.5), p90: us(0.9), p99: us(0.99), p999: us(0.999), max: histogram.max / 1000 }
}

/** A key that no earlier run has used. */
export function freshKey(): string {
  return `bench.${process.pid}.${keys++}`
}

function tasks(plan: RateRow, target: Target, settings: Settings): Task[] {
  const { shared } = settings
  const key = settings.key ?? (shared ? "testkey" : freshKey())
  const usual =
    plan.kind === "volatile" ? (plan.load === "readonly" ? "bench_ro.tdb" : "bench.tdb") : `bench_${plan.kind}.tdb`
  const database = settings.database ?? (shared ? (plan.stockDatabase ?? usual) : usual)
  const sockets = shared ? target.sockets : target.sockets.slice(0, plan.nodes)
  return sockets.flatMap((socket) =>
    Array.from({ length: plan.processes }, () => ({
      load: plan.load,
      socket,
      nodes: plan.nodes,
      shared,
      database,
      kind: plan.kind,
      key,
      records: plan.records,
      valueSize: settings.valueSize,
      depth: plan.depth,
      rate: plan.rate,
      clients: 1,
    })),
  )
}

/** One target while its row is measured. */
class Side {
  readonly samples: number[] = []
  readonly series: [number, number][] = []
  readonly violations: string[] = []
  private readonly latency = new Histogram()
  private operations = 0
  private clientUs = 0
  private daemonUs = 0

  constructor(
    readonly target: Target,
    readonly crew: Crew,
    private readonly begun: number,
    private readonly tell: (rate: number) => void,
  ) {}

  private daemonCpu(): number {
    return this.crew.daemons.reduce((sum, pid) => sum + cpuOf(pid), 0)
  }

  /** Lets `ms` pass while the workers work. Returns the operations a second. */
  async window(ms: number): Promise<number> {
    const start = performance.now()
    const first = this.crew.done
    let [lastTime, lastDone] = [start, first]
    for (let left = ms; left >= 1; left = ms - (performance.now() - start)) {
      // A rest that is too short for a rate of its own goes with the one before.
      await Bun.sleep(Math.ceil(left < LOOK_MS * 1.5 ? left : LOOK_MS))
      const [now, done] = [performance.now(), this.crew.done]
      const rate = ((done - lastDone) / (now - lastTime)) * 1000
      this.series.push([(now - this.begun) / 1000, rate])
      this.tell(rate)
      ;[lastTime, lastDone] = [now, done]
    }
    return ((lastDone - first) / (lastTime - start)) * 1000
  }

  /** Starts, waits until it goes, measures windows, stops. */
  async run(windows: number, windowMs: number, counts: boolean): Promise<void> {
    const daemonBefore = this.daemonCpu()
    const doneBefore = this.crew.done
    this.crew.start(false)
    if (counts) await Bun.sleep(RAMP_MS)
    for (let window = 0; window < windows; window++) {
      const rate = await this.window(windowMs)
      if (counts) this.samples.push(rate)
    }
    const { cpuUs, violations } = await this.crew.stop()
    this.violations.push(...violations)
    if (!counts) return
    this.clientUs += cpuUs
    this.daemonUs += this.daemonCpu() - daemonBefore
    this.operations += this.crew.done - doneBefore
  }

  async latencies(ms: number): Promise<void> {
    this.crew.start(true)
    await this.window(ms)
    const { latency, violations } = await this.crew.stop()
    this.latency.addNumbers(latency.toNumbers())
    this.violations.push(...violations)
  }

  /** Processor time of clients and daemons so far (us). */
  get cpuUs(): number {
    return this.clientUs + this.daemonUs
  }

  measured(): Measured {
    const value = spread(this.samples)
    // How often one is begun when nothing stands still: the rate would not do, as it has the standstills in it.
    const interval = this.latency.percentile(0.5)
    return {
      target: this.target.name,
      samples: this.samples,
      value,
      latency: this.latency.max > 0 ? latencyOf(this.latency.corrected(interval)) : undefined,
      clientUs: this.operations > 0 ? this.clientUs / this.operations : undefined,
      daemonUs: this.operations > 0 ? this.daemonUs / this.operations : undefined,
      series: this.series,
      violations: this.violations,
    }
  }
}

/** @throws Error when a target can't be driven at all */
export async function measureRate(
  plan: RateRow,
  targets: readonly Target[],
  settings: Settings,
  progress: Progress,
): Promise<Row> {
  const sides: Side[] = []
  const begun = performance.now()
  let share = 0
  let foreign = Number.NaN
  try {
    for (const target of targets) {
      const crew = await Crew.open(tasks(plan, target, settings))
      sides.push(new Side(target, crew, begun, (rate) => progress(share, target.name, rate, plan.unit)))
    }
    const sampleMs = (settings.seconds * 1000) / settings.samples
    const warmupMs = settings.warmup * 1000
    // Rings have no latency of more than one token that would mean anything.
    const wantsLatency = !settings.shared && !(plan.load === "message-ring" && plan.depth > 1)
    const latencyMs = wantsLatency ? sampleMs * 2 : 0
    const wholeMs = targets.length * (warmupMs + settings.samples * sampleMs + latencyMs)
    const pass = (ms: number): void => {
      share = Math.min(1, share + ms / wholeMs)
    }
    if (settings.shared) {
      // Everybody's run is one, from the barrier to the end: the first of the windows warm up.
      const side = sides[0]!
      await side.crew.barrier()
      side.crew.start(false)
      await side.window(warmupMs)
      pass(warmupMs)
      for (let sample = 0; sample < settings.samples; sample++) {
        side.samples.push(await side.window(sampleMs))
        pass(sampleMs)
      }
      side.violations.push(...(await side.crew.stop()).violations)
    } else {
      for (const side of sides) {
        if (warmupMs > 0) await side.run(1, warmupMs, false)
        pass(warmupMs)
      }
      const surroundings = new Surroundings()
      if (sides.length === 1) {
        await sides[0]!.run(settings.samples, sampleMs, true)
        pass(settings.samples * sampleMs)
      } else {
        for (let sample = 0; sample < settings.samples; sample++) {
          // Who is first changes, so that whatever the machine does meets both.
          for (const side of sample % 2 === 0 ? sides : sides.toReversed()) {
            await side.run(1, sampleMs, true)
            pass(sampleMs)
          }
        }
      }
      foreign = surroundings.foreignShare(sides.reduce((sum, side) => sum + side.cpuUs, 0))
      if (latencyMs > 0) {
        for (const side of sides) {
          await side.latencies(latencyMs)
          pass(latencyMs)
        }
      }
    }
    for (const side of sides) side.violations.push(...(await side.crew.settle(!settings.shared)))
    return rowOf(
      settings.shared ? { ...plan, title: `${plan.title}, this node's share` } : plan,
      plan.unit,
      "more",
      sides.map((side) => side.measured()),
      foreign,
    )
  } finally {
    await Promise.all(sides.map(({ crew }) => crew.close()))
  }
}
