// `ctdb bench`: load on a cluster, checked and measured. Reads the command line, finds or makes the clusters, has the rows measured one after
// the other, and prints. The generators are in generators.ts, measuring in measure.ts, the clients' work in loads/.

import { writeFileSync } from "node:fs"
import { basename } from "node:path"
import { isTerminal } from "../admin/tty.ts"
import { versionText } from "../version.ts" with { type: "macro" }
import { Clusters } from "./clusters.ts"
import { GENERATORS, isShared, type RowPlan } from "./generators.ts"
import { machine } from "./machine.ts"
import { measureRate, type Progress, type Row, type Settings, type Target } from "./measure.ts"
import { measureClients, measureRecovery } from "./measure-daemon.ts"
import { type Options, parseOptions, USAGE } from "./options.ts"
import { fitted, footnotes, plainTable, type Result, tableOf, violationsOf } from "./output.ts"
import { pageOf } from "./page.ts"
import { ProgressLine } from "./progress.ts"

const WRONG_USAGE = 2
/** A stock message ring is idle for a second after the barrier (load-generators 9), so those who join it do not measure before (s). */
const SHARED_WARMUP = 1.5
/** So many violations are printed; --json and --report have all. */
const TOLD = 10

export async function run(argv: readonly string[]): Promise<number> {
  if (argv[0] === "_worker") return await (await import("./worker.ts")).work()
  const options = parseOptions(argv)
  if (options === "help") {
    process.stdout.write(USAGE)
    return 0
  }
  if ("fault" in options) {
    process.stderr.write(`ctdb bench: ${options.fault}\n${USAGE}`)
    return WRONG_USAGE
  }
  let interrupted = false
  const interrupt = (): void => {
    interrupted = true
  }
  process.on("SIGINT", interrupt)
  process.on("SIGTERM", interrupt)
  const result = await measureAll(options, ["ctdb bench", ...argv].join(" "), () => interrupted)
  await print(options, result)
  const wrong = [...violationsOf(result), ...result.failures.map(({ title, reason }) => `${title}: ${reason}`)]
  for (const text of wrong.slice(0, TOLD)) process.stderr.write(`ctdb bench: ${text}\n`)
  if (wrong.length > TOLD) process.stderr.write(`ctdb bench: and ${wrong.length - TOLD} more\n`)
  if (interrupted) process.stderr.write("ctdb bench: interrupted\n")
  return wrong.length > 0 || interrupted ? 1 : 0
}

function settingsOf(options: Options): Settings {
  const { seconds, samples, valueSize, database, key } = options
  const shared = isShared(options)
  const warmup = shared ? Math.max(options.warmup, SHARED_WARMUP) : options.warmup
  return { seconds, samples, warmup, valueSize, database, key, shared }
}

/** The rows in such an order that each environment comes once. */
function plansOf(options: Options): readonly RowPlan[] {
  const plans = GENERATORS.filter(({ name }) => options.generators.includes(name)).flatMap((generator) =>
    generator.rows(options),
  )
  const key = ({ environment }: RowPlan): string => `${environment.where} ${environment.locks}`
  const order = [...new Set(plans.map(key))]
  return options.sandbox === undefined ? plans : plans.toSorted((a, b) => order.indexOf(key(a)) - order.indexOf(key(b)))
}

function measure(plan: RowPlan, targets: readonly Target[], settings: Settings, progress: Progress): Promise<Row[]> {
  switch (plan.type) {
    case "rate":
      return measureRate(plan, targets, settings, progress).then((row) => [row])
    case "clients":
      return measureClients(plan, targets, settings, progress)
    case "recovery":
      return measureRecovery(plan, targets, settings, progress)
  }
}

async function measureAll(options: Options, command: string, interrupted: () => boolean): Promise<Result> {
  const plans = plansOf(options)
  const settings = settingsOf(options)
  const line = new ProgressLine(await isTerminal(2))
  const clusters =
    options.sandbox === undefined
      ? undefined
      : new Clusters(options.sandbox, options.compareStock ? ["ours", "stock"] : ["ours"])
  const rows: Row[] = []
  const failures: { title: string; reason: string }[] = []
  try {
    for (const [index, plan] of plans.entries()) {
      if (interrupted()) break
      const progress: Progress = (share, target, rate, unit) =>
        line.draw(plan.title, index, plans.length, share, target, rate, unit)
      progress(0, "", 0, "")
      try {
        const targets = clusters === undefined ? givenTargets(options) : await clusters.targets(plan.environment)
        const measured = await measure(plan, targets, settings, progress)
        rows.push(...measured)
      } catch (error) {
        failures.push({ title: plan.title, reason: error instanceof Error ? error.message : String(error) })
      }
    }
  } finally {
    line.clear()
    await clusters?.end()
  }
  return {
    when: new Date().toISOString(),
    version: versionText(),
    machine: machine(),
    command,
    targets:
      clusters === undefined
        ? givenTargets(options).map(({ name }) => name)
        : options.compareStock
          ? ["ours", "stock"]
          : ["ours"],
    seconds: settings.seconds,
    samples: settings.samples,
    warmup: settings.warmup,
    rows,
    failures,
  }
}

function givenTargets({ sockets, compare }: Options): Target[] {
  const first: Target = { name: compare.length === 0 ? "cluster" : nameOf(sockets), sockets }
  if (compare.length === 0) return [first]
  const second: Target = { name: nameOf(compare), sockets: compare }
  return first.name === second.name
    ? [
        { ...first, name: "first" },
        { ...second, name: "second" },
      ]
    : [first, second]
}

/** A name for a column: the last part of the path that is not the same for everybody. */
function nameOf(sockets: readonly string[]): string {
  const parts = (sockets[0] ?? "")
    .split("/")
    .filter((part) => !["run", "ctdb", "ctdbd.socket", "0", "node.0", ""].includes(part))
  return parts.at(-1) ?? basename(sockets[0] ?? "cluster")
}

async function print(options: Options, result: Result): Promise<void> {
  if (options.report !== undefined) writeFileSync(options.report, pageOf(result))
  if (options.json) {
    process.stdout.write(`${JSON.stringify(result, null, 1)}\n`)
    return
  }
  const cells = tableOf(result)
  if (await isTerminal(1)) {
    const { table } = await import("../admin/terminal.ts")
    const { head, rows, left } = fitted(cells, process.stdout.columns ?? 80)
    process.stdout.write(table(head, rows))
    if (left.length > 0)
      process.stdout.write(`Left out for lack of room: ${left.join(", ")}; --report and --json have all.\n`)
  } else process.stdout.write(plainTable(cells))
  process.stdout.write(`\n${footnotes(result)}`)
}
