// The command line of `ctdb bench`: what may be said, and what is wrong with it. What a generator does is in generators.ts.

import { parseArgs } from "node:util"
import { resolvePaths } from "../../lib/config/paths.ts"
import { GENERATORS } from "./generators.ts"

export const USAGE = `Usage: ctdb bench GENERATOR [OPTIONS]
  Drives the node behind --socket or CTDB_BASE, ours or stock, checks what it does, and says how fast it is.
  Exit status: 0; 1 when a check failed or the run did; 2 for a wrong command line.

Generators
${GENERATORS.map(({ name, summary }) => `  ${name.padEnd(14)} ${summary}\n`).join("")}  all            all of these, as one table

Target
  --socket FILE[,FILE...]    sockets of the nodes to drive, node 0 first (default: CTDB_SOCKET, or the one below CTDB_BASE)
  --sandbox N                a cluster of its own with N nodes; nothing needs to run or be installed
  --compare FILE[,FILE...]   a second cluster, driven by turns with the first; "stock" with --sandbox: the installed ctdbd
  --nodes N                  nodes that take part (default: as many as sockets). More than sockets: start the same on the others,
                             or a stock generator; they wait for each other through the daemons
  --locks mutex|fcntl        with --sandbox: locks of its databases (default: all that a generator has rows for)
  --where tmpfs|disk         with --sandbox: where its databases are (default: likewise)

Load
  --processes N              client processes on each node
  --records N                records, or databases of \`persistent\`
  --value-size BYTES         size of a value (default 4, the stock generators')
  --depth N                  tokens in a ring, each way
  --clients N                clients of \`clients\` (default 1000)
  --rate N                   messages a second of \`clients\`; writes a second of \`readonly\`
  --kind persistent|replicated   databases of \`persistent\` (default: rows for both)
  --db NAME, --key NAME      database and record (default: own ones; with stock generators: theirs)

Measuring
  --seconds N                measured time of each row and target (default 5; of \`all\`: 1)
  --samples N                parts of that time, of which median and spread are told (default 5, the least)
  --warmup SECONDS           before that (default 1; of \`all\`: 0.5)

Result
  --json                     everything as JSON on standard output
  --report FILE.html         everything as one page with charts
`

export interface Options {
  readonly generators: readonly string[]
  readonly sockets: readonly string[]
  readonly compare: readonly string[]
  readonly compareStock: boolean
  readonly sandbox: number | undefined
  readonly nodes: number
  readonly processes: number | undefined
  readonly records: number | undefined
  readonly valueSize: number
  readonly depth: number | undefined
  readonly clients: number
  readonly rate: number | undefined
  readonly kind: "persistent" | "replicated" | undefined
  readonly locks: "mutex" | "fcntl" | undefined
  readonly where: "tmpfs" | "disk" | undefined
  readonly database: string | undefined
  readonly key: string | undefined
  readonly seconds: number
  readonly samples: number
  readonly warmup: number
  readonly json: boolean
  readonly report: string | undefined
}

const SAMPLES_LEAST = 5
const NODES_MAX = 64

const OPTIONS = {
  socket: { type: "string", multiple: true },
  compare: { type: "string", multiple: true },
  sandbox: { type: "string" },
  nodes: { type: "string" },
  processes: { type: "string" },
  records: { type: "string" },
  "value-size": { type: "string" },
  depth: { type: "string" },
  clients: { type: "string" },
  rate: { type: "string" },
  kind: { type: "string" },
  locks: { type: "string" },
  where: { type: "string" },
  db: { type: "string" },
  key: { type: "string" },
  seconds: { type: "string" },
  samples: { type: "string" },
  warmup: { type: "string" },
  json: { type: "boolean" },
  report: { type: "string" },
  help: { type: "boolean", short: "h" },
} as const

/** The options, "help", or what is wrong. */
export function parseOptions(argv: readonly string[]): Options | "help" | { readonly fault: string } {
  let parsed: ReturnType<typeof parseArgs<{ options: typeof OPTIONS; allowPositionals: true; strict: true }>>
  try {
    parsed = parseArgs({ args: [...argv], options: OPTIONS, allowPositionals: true, strict: true })
  } catch (error) {
    return { fault: error instanceof Error ? error.message : String(error) }
  }
  const { values, positionals } = parsed
  if (values.help === true) return "help"
  const faults: string[] = []
  function number(name: keyof typeof OPTIONS, least: number, most: number, whole = true): number | undefined {
    const text = values[name]
    if (typeof text !== "string") return undefined
    const value = Number(text)
    if (text.trim() !== "" && value >= least && value <= most && (!whole || Number.isInteger(value))) return value
    faults.push(`--${name} takes a ${whole ? "whole " : ""}number from ${least} to ${most}`)
    return undefined
  }
  function oneOf<T extends string>(name: keyof typeof OPTIONS, words: readonly T[]): T | undefined {
    const text = values[name]
    if (text === undefined) return undefined
    const word = words.find((known) => known === text)
    if (word === undefined) faults.push(`--${name} takes ${words.join(" or ")}`)
    return word
  }
  const list = (words: readonly string[] | undefined) =>
    (words ?? []).flatMap((word) => word.split(",")).filter(Boolean)

  const [generator, ...more] = positionals
  const names = GENERATORS.map(({ name }) => name)
  if (generator === undefined) faults.push("which generator?")
  else if (generator !== "all" && !names.includes(generator)) faults.push(`there is no generator ${generator}`)
  if (more.length > 0) faults.push(`${more[0]} is one word too many`)

  const sandbox = number("sandbox", 1, NODES_MAX)
  const compare = list(values.compare)
  const compareStock = compare.length === 1 && compare[0] === "stock"
  if (compareStock && sandbox === undefined) faults.push("--compare stock goes with --sandbox")
  if (sandbox !== undefined && !compareStock && compare.length > 0) faults.push("--sandbox compares with stock only")
  let sockets = list(values.socket)
  if (sandbox !== undefined && sockets.length > 0) faults.push("--sandbox brings its own sockets")
  if (sandbox === undefined && (values.locks ?? values.where) !== undefined) {
    faults.push("--locks and --where are for a sandbox: a running node has what it has")
  }
  if (sandbox === undefined && sockets.length === 0 && faults.length === 0) {
    try {
      sockets = [resolvePaths(process.env).daemonSocket]
    } catch (error) {
      faults.push(error instanceof Error ? error.message : String(error))
    }
  }
  const here = sandbox ?? sockets.length
  const nodes = number("nodes", 1, NODES_MAX) ?? here
  if (nodes < here && sandbox === undefined) sockets = sockets.slice(0, nodes)
  if (nodes > here && (generator === "all" || sandbox !== undefined))
    faults.push(`there are ${here} nodes, not ${nodes}`)
  if (nodes > here && compare.length > 0) faults.push("--compare needs the sockets of all nodes")
  if (compare.length > 0 && !compareStock && compare.length < Math.min(nodes, here)) {
    faults.push(`--compare has ${compare.length} sockets, and ${nodes} nodes take part`)
  }
  const options: Options = {
    generators: generator === "all" ? names : [generator ?? ""],
    sockets,
    compare: compareStock ? [] : compare.slice(0, nodes),
    compareStock,
    sandbox,
    nodes,
    processes: number("processes", 1, 1000),
    records: number("records", 1, 100_000_000),
    valueSize: number("value-size", 4, 16_000_000) ?? 4,
    depth: number("depth", 1, 65_535),
    clients: number("clients", 1, 60_000) ?? 1000,
    rate: number("rate", 0, 10_000_000),
    kind: oneOf("kind", ["persistent", "replicated"]),
    locks: oneOf("locks", ["mutex", "fcntl"]),
    where: oneOf("where", ["tmpfs", "disk"]),
    database: values.db,
    key: values.key,
    seconds: number("seconds", 0.1, 86_400, false) ?? (generator === "all" ? 1 : 5),
    samples: number("samples", SAMPLES_LEAST, 1000) ?? SAMPLES_LEAST,
    warmup: number("warmup", 0, 3600, false) ?? (generator === "all" ? 0.5 : 1),
    json: values.json === true,
    report: values.report,
  }
  return faults.length > 0 ? { fault: faults[0]! } : options
}
