// Makes docs/performance.md: every speed target with our figure, stock's beside it in the same run, the ratio, and whether it holds. Runs
// `ctdb bench` on sandboxes of both kinds, the published algorithms in C as a yardstick for its clients, and the other programs of this folder.
//
//   bun tests/bench/table.ts [PART...]     parts: generators, memory traverse clients engine recovery start (default: all; half an hour)
//
// What a part finds is kept in dist/performance/PART.json, so that one part can be measured again without the others.

import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { cpus, loadavg, tmpdir, totalmem } from "node:os"
import { join } from "node:path"
import { type Result, violationsOf } from "../../cmd/bench/output.ts"
import { figure } from "../../cmd/bench/progress.ts"
import { ratios, spread } from "../../cmd/bench/statistics.ts"
import { attach } from "../../lib/client/attach.ts"
import { traverse } from "../../lib/client/traverse.ts"
import { binary } from "../binary.ts"
import { type Kind, MixedCluster } from "../peers/nodes.ts"
import { populate } from "./recovery.ts"

const root = join(import.meta.dir, "../..")
const kept = join(root, "dist", "performance")
const PREFIX = "127.81."
const ROUNDS = 5
const TRAVERSED = 500_000

interface Line {
  readonly section: string
  readonly what: string
  readonly ours: string
  readonly stock: string
  /** How many times better ours is; the spread of the turns, where there are turns. */
  readonly ratio: number
  readonly least?: number
  readonly most?: number
}

/** What the checks of the part that runs found. */
let complaints: string[] = []

interface Part {
  readonly complaints?: readonly string[]
  readonly lines: readonly Line[]
  readonly load: number
}

/** The least ratio that is wanted of a row, by the beginning of its name. No entry: told, not asked for. */
const TARGETS: readonly (readonly [start: RegExp, ratio: number])[] = [
  [/^single record/, 1],
  [/^contention/, 1],
  [/^g_lock/, 1.5],
  [/^persistent transactions from 1 node/, 1.2],
  [/^persistent transactions from 3 nodes/, 2],
  [/^persistent transactions on 8/, 3],
  [/^replicated transactions from 1 node/, 1.5],
  [/^replicated transactions from 3 nodes/, 3],
  [/^1 record round/, 2],
  [/records under 12 clients/, 1.5],
  [/^read-only locks/, 1],
  [/^message ring/, 2],
  [/^control round trip/, 1],
  [/^traverse of 500 000 records/, 1.5],
  [/5000 idle clients/, 1],
  [/^locked fetch\+store, fcntl/, 0.9],
  [/^(locked fetch|the same, \d|insert|traverse of a million|commit of)/, 1],
  [/^recovery helper.*time/, 2],
  [/^recovery helper.*1 000 000.*memory/, 4],
  [/^kill -9/, 1],
  [/^(start of three|ctdb version)/, 1],
]

/** Why a row is below its target, where that is known; printed beside those that are. */
const REASONS: readonly (readonly [start: RegExp, reason: string])[] = [
  [
    /^(message ring.* 2 messages|1 record round)/,
    "One token: each message wakes a sleeping process, and only one is awake at a time. Both kinds of daemon wake as often (5.4 times a migration), send as many packets (6.6), and make no more system calls than wait, receive and send for each. Processor time of a migration, three daemons together, cold: kernel 112 us (stock 77), own code 158 us (stock 28); six processes share two processors' caches. With 64 messages under way the same daemons are bound by work, and ours do more of it.",
  ],
  [
    /records under 12 clients/,
    "Processor time: kernel 19 us a record on either side, own code 21 us after 40 s of load (63 us after 6 s, while the compiler works) beside stock's 8 us, for the same 5 packets. Two processors serve three daemons and twelve clients, so that shows in full.",
  ],
  [
    /^contention|^single record/,
    "The client and the kernel's locks alone: the daemons use less than 0.05 us an operation, whichever they are, and the client is the same. Ratios are noise around 1.",
  ],
  [
    /^g_lock from 1/,
    "A lock that nobody else wants is local work of the client, the same on both sides; the daemon hears of it once a second. Stock's own algorithm on stock nodes, one round trip a lock, is a row of the client's own cost.",
  ],
  [
    /^g_lock from/,
    "The same client on both sides waits in a queue instead of polling; what is left is the lock's record changing nodes: see the record's ring. Stock's own algorithm on stock nodes is a row of the client's own cost.",
  ],
  [
    /^control round trip/,
    "A client, a daemon and a wake-up each way; ours and stock's daemon use as much processor time (9.7 us each). Noise around 1.",
  ],
  [/^read-only/, "Local reads of the client between two revokes: the daemon is hardly involved."],
  [
    /idle clients$/,
    "The runtime's heap grows in large steps: 107 MB with 1000 clients, 111 MB with 5000. A client itself costs 1 kB, stock's 3.",
  ],
]

function better(
  ours: readonly number[],
  stock: readonly number[],
  way: "more" | "less",
): Pick<Line, "ratio" | "least" | "most"> {
  const { median, least, most } = ratios(ours, stock, way)
  return { ratio: median, least, most }
}

/** @param accepted a status besides 0 that comes with output */
async function output(command: readonly string[], accepted = 0): Promise<string> {
  const child = Bun.spawn([...command], { cwd: root, stdin: "ignore", stdout: "pipe", stderr: "inherit" })
  const text = await new Response(child.stdout).text()
  const status = await child.exited
  if (status !== 0 && status !== accepted) throw new Error(`${command.slice(0, 4).join(" ")} ended with ${status}`)
  return text
}

async function bench(section: string, ...words: string[]): Promise<Line[]> {
  const text = await output([binary, "bench", ...words, "--compare", "stock", "--json"], 1)
  const result = JSON.parse(text) as Result
  complaints.push(...violationsOf(result), ...result.failures.map(({ title, reason }) => `${title}: ${reason}`))
  return result.rows.map((row): Line => {
    const [ours, stock] = row.targets
    const value = (side: typeof ours): string => `${figure(side!.value.median)} ${row.unit}`
    const ratio = row.ratio!
    return {
      section,
      what: row.title,
      ours: value(ours),
      stock: value(stock),
      ratio: ratio.median,
      least: ratio.least,
      most: ratio.most,
    }
  })
}

// ---- parts

const GENERATORS = ["single-record", "contention", "g-lock", "persistent", "ring", "spread", "readonly", "messages"]

/**
 * Seconds of load before measuring. A daemon runs for months, and what its compiler does in its first half minute is not asked for: moving
 * records cost it three times as much then.
 */
const WARMUP: Readonly<Record<string, number>> = { "g-lock": 20, ring: 25, spread: 25, messages: 20 }

const cluster = (generator: string) => () =>
  bench(
    "Clusters of three nodes",
    generator,
    "--sandbox",
    "3",
    "--seconds",
    "4",
    "--warmup",
    String(WARMUP[generator] ?? 5),
  )

async function memory(): Promise<Line[]> {
  const lines: Line[] = []
  for (const count of ["1000", "5000"]) {
    lines.push(
      ...(await bench(
        "One node under many clients",
        "clients",
        "--sandbox",
        "1",
        "--clients",
        count,
        "--seconds",
        "5",
        "--warmup",
        "1",
      )),
    )
  }
  return lines
}

/** All nodes of a kind, started and healthy. */
async function withClusters(
  prefix: number,
  use: (clusters: Readonly<Record<Kind, MixedCluster>>) => Promise<void>,
): Promise<void> {
  const make = (kind: Kind, index: number) =>
    new MixedCluster(`${PREFIX}${prefix + index}.`, [kind, kind, kind], { lock: true })
  const both = { ours: make("ours", 0), stock: make("stock", 1) }
  try {
    await Promise.all(Object.values(both).map((cluster) => cluster.startTogether()))
    await Promise.all(Object.values(both).map((cluster) => cluster.allOk()))
    await use(both)
  } finally {
    await Promise.all(Object.values(both).map((cluster) => cluster.end()))
  }
}

async function traverses(): Promise<Line[]> {
  const seconds: Record<Kind, number[]> = { ours: [], stock: [] }
  await withClusters(60, async (both) => {
    const ids: Partial<Record<Kind, number>> = {}
    for (const kind of ["ours", "stock"] as const) {
      const cluster = both[kind]
      for (const pnn of cluster.pnns) {
        ids[kind] = (await attach(cluster.client(pnn), "walk.tdb")).id
      }
      for (const pnn of cluster.pnns) populate(cluster.node(pnn), pnn, "walk.tdb", TRAVERSED)
    }
    for (let round = -1; round < ROUNDS; round++) {
      for (const kind of ["ours", "stock"] as const) {
        const begun = performance.now()
        const { records } = await traverse(both[kind].client(0), ids[kind]!, () => {})
        if (records !== TRAVERSED) throw new Error(`${kind}: ${records} of ${TRAVERSED} records traversed`)
        if (round >= 0) seconds[kind].push((performance.now() - begun) / 1000)
      }
    }
  })
  const text = (kind: Kind) => `${figure(TRAVERSED / spread(seconds[kind]).median)} records/s`
  return [
    {
      section: "Clusters of three nodes",
      what: "traverse of 500 000 records",
      ours: text("ours"),
      stock: text("stock"),
      ...better(seconds.ours, seconds.stock, "less"),
    },
  ]
}

/** Our generators' clients beside the published algorithms in C, both on the same stock nodes. */
async function clientCost(): Promise<Line[]> {
  const directory = mkdtempSync(join(tmpdir(), "ctdb-published-"))
  const published = join(directory, "published")
  const built = Bun.spawnSync(["gcc", "-O2", "-o", published, join(import.meta.dir, "published.c"), "-ldl"])
  if (!built.success) throw new Error(built.stderr.toString())
  const section = "The client's own cost: our generators beside the published algorithms in C, both on stock nodes"
  const lines: Line[] = []
  try {
    await withClusters(70, async ({ stock }) => {
      const sockets = stock.pnns.map((pnn) => stock.node(pnn).socket)
      const seconds = 4
      /** Sum over the nodes of what a pattern finds in each program's output. */
      const inC = async (nodes: number, mode: string, pattern: RegExp, ...words: string[]): Promise<number> => {
        const texts = await Promise.all(
          sockets
            .slice(0, nodes)
            .map((socket) =>
              output([published, mode, "-s", socket, "-n", String(nodes), "-t", String(seconds), ...words]),
            ),
        )
        return texts.reduce((sum, text) => sum + Number(pattern.exec(text)?.[1] ?? Number.NaN), 0)
      }
      const inOurs = async (nodes: number, generator: string, row: number, ...words: string[]): Promise<number> => {
        const command = [
          binary,
          "bench",
          generator,
          "--socket",
          sockets.slice(0, nodes).join(","),
          "--seconds",
          "3",
          "--warmup",
          "1",
          ...words,
          "--json",
        ]
        return (JSON.parse(await output(command)) as Result).rows[row]!.targets[0]!.value.median
      }
      const steady = (text: string): number => {
        const counts = [...text.matchAll(/Locks:(\d+)/g)].map((found) => Number(found[1]))
        return (counts.at(-1)! - counts[0]!) / (counts.length - 1)
      }
      let key = 0
      const cases: readonly (readonly [
        what: string,
        unit: string,
        ours: () => Promise<number>,
        c: () => Promise<number>,
      ])[] = [
        [
          "single record",
          "locks/s",
          () => inOurs(1, "single-record", 0),
          async () =>
            steady(
              await output([
                published,
                "fetch_loop_key",
                "-s",
                sockets[0]!,
                "-t",
                String(seconds),
                "-D",
                "c.tdb",
                "-k",
                `k${key++}`,
              ]),
            ),
        ],
        // The first second of the published ring is idle, and counts (load-generators 9).
        [
          "message ring, 2 under way",
          "messages/s",
          () => inOurs(3, "messages", 0, "--depth", "1"),
          async () => (await inC(3, "message_ring", /\]: ([\d.]+)/)) * (seconds / (seconds - 1)),
        ],
        [
          "1 record round 3 nodes",
          "migrations/s",
          () => inOurs(3, "ring", 0, "--depth", "1"),
          () => inC(3, "fetch_ring", /\]: ([\d.]+)/, "-D", "c.tdb", "-k", `r${key++}`),
        ],
        [
          "g_lock from 1 node",
          "locks/s",
          () => inOurs(1, "g-lock", 0),
          async () => (await inC(1, "g_lock_loop", /counter:(\d+)/)) / seconds,
        ],
        [
          "g_lock from 3 nodes",
          "locks/s",
          () => inOurs(3, "g-lock", 1),
          async () => (await inC(3, "g_lock_loop", /counter:(\d+)/)) / seconds,
        ],
      ]
      for (const [what, unit, ours, c] of cases) {
        const [mine, theirs]: [number[], number[]] = [[], []]
        for (let round = 0; round < ROUNDS; round++) {
          mine.push(await ours())
          theirs.push(await c())
        }
        const text = (values: readonly number[]) => `${figure(spread(values).median)} ${unit}`
        lines.push({ section, what, ours: text(mine), stock: text(theirs), ...better(mine, theirs, "more") })
      }
    })
  } finally {
    rmSync(directory, { recursive: true, force: true })
  }
  return lines
}

async function engine(): Promise<Line[]> {
  const text = await output([process.execPath, join(import.meta.dir, "tdb.ts")])
  return [...text.matchAll(/^(.+?) +libtdb +(\S+ \S+) +ours +(\S+ \S+) +ratio ([\d.]+)$/gm)].map(
    ([, what, stock, ours, ratio]) => ({
      section: "The TDB engine beside libtdb, one operation",
      what: what!,
      ours: ours!,
      stock: stock!,
      ratio: Number(ratio),
    }),
  )
}

type Numbers = Readonly<Record<string, number>>

async function recoveries(): Promise<Line[]> {
  const section = "Recovery"
  const lines: Line[] = []
  const script = join(import.meta.dir, "recovery.ts")
  const parsed = (text: string) =>
    text
      .split("\n")
      .flatMap((line) =>
        line.startsWith("{")
          ? [JSON.parse(line) as { records: number; databases: number; ours: Numbers; stock: Numbers }]
          : [],
      )
  const pair = (what: string, unit: string, ours: number, stock: number): Line => ({
    section,
    what,
    ours: `${figure(ours)} ${unit}`,
    stock: `${figure(stock)} ${unit}`,
    ratio: stock / ours,
  })
  const helpers = ["10000x1", "10000x50", "100000x1", "100000x10", "100000x50", "1000000x10"]
  for (const { records, databases, ours, stock } of parsed(await output([process.execPath, script, ...helpers]))) {
    const what = `recovery helper, ${figure(records)} records in ${databases} databases`
    lines.push(pair(`${what}, time`, "s", ours.seconds!, stock.seconds!))
    lines.push(pair(`${what}, memory`, "MB", ours.megabytes!, stock.megabytes!))
  }
  for (const { records, databases, ours, stock } of parsed(
    await output([process.execPath, script, "nodes", "10000x10", "100000x10"]),
  )) {
    lines.push(
      pair(
        `kill -9 of a member until NORMAL, ${figure(records)} records in ${databases} databases`,
        "s",
        ours.killed!,
        stock.killed!,
      ),
    )
  }
  return lines
}

async function starts(): Promise<Line[]> {
  const text = await output([process.execPath, join(import.meta.dir, "cluster.ts"), "3"])
  return [...text.matchAll(/^(.+) \((\S+)\) +([\d.]+) +([\d.]+) {2}([\d.]+)$/gm)].flatMap(
    ([, what, unit, stock, ours, ratio]) =>
      // The others are rows of `ctdb bench` already.
      /ring|round trip/.test(what!)
        ? []
        : [
            {
              section: "Start and rest",
              what: what!,
              ours: `${ours} ${unit}`,
              stock: `${stock} ${unit}`,
              ratio: Number(ratio),
            },
          ],
  )
}

const PARTS: Readonly<Record<string, () => Promise<Line[]>>> = {
  ...Object.fromEntries(GENERATORS.map((name) => [name, cluster(name)])),
  memory,
  traverse: traverses,
  clients: clientCost,
  engine,
  recovery: recoveries,
  start: starts,
}

// ---- the page

const targetOf = (line: Line): number | undefined =>
  line.section.startsWith("The client") ? undefined : TARGETS.find(([start]) => start.test(line.what))?.[1]
const reasonOf = (line: Line): string | undefined => REASONS.find(([start]) => start.test(line.what))?.[1]

function page(parts: readonly Part[]): string {
  const lines = parts.flatMap((part) => part.lines)
  const cells = (line: Line): string => {
    const target = targetOf(line)
    const range = line.least === undefined ? "" : ` (${line.least.toFixed(2)} .. ${line.most!.toFixed(2)})`
    const holds = target === undefined ? "" : line.ratio >= target ? "yes" : "**no**"
    return `| ${line.what} | ${line.ours} | ${line.stock} | ${line.ratio.toFixed(2)}${range} | ${target === undefined ? "" : `>= ${target}`} | ${holds} |`
  }
  const sections = [...new Set(lines.map(({ section }) => section))].map((section) => {
    const rows = lines.filter((line) => line.section === section)
    const [first, second] = section.startsWith("The client")
      ? ["Ours", "In C"]
      : section.startsWith("The TDB")
        ? ["Ours", "libtdb"]
        : ["Ours", "Stock"]
    return `## ${section}\n\n| What | ${first} | ${second} | Ratio | Target | Holds |\n| --- | --- | --- | --- | --- | --- |\n${rows.map(cells).join("\n")}\n`
  })
  const below = lines.filter((line) => (targetOf(line) ?? 0) > line.ratio)
  const because = new Map<string, string[]>()
  for (const line of below) {
    const reason = reasonOf(line) ?? "Not yet looked into."
    because.set(reason, [...(because.get(reason) ?? []), line.what])
  }
  const wrong = parts.flatMap((part) => part.complaints ?? [])
  const checks =
    wrong.length === 0
      ? "Every check of the generators held."
      : `Checks that failed:\n\n${wrong.map((text) => `- ${text}`).join("\n")}`
  const reasons = [...because].map(([reason, names]) => `- ${names.join("; ")}: ${reason}`).join("\n")
  const asked = lines.filter((line) => targetOf(line) !== undefined)
  const [processor] = cpus()
  const loads = parts.map(({ load }) => load)
  return `# Performance

Made by \`bun tests/bench/table.ts\`; \`ctdb bench all --sandbox 3 --compare stock --report FILE.html\` shows the part about clusters with charts.

Every figure of ours has the stock 4.17 daemon's (or libtdb's) beside it, measured in the same run by turns with the same clients. Ratios say how
many times better ours is, as median (least .. most) of the turns; above 1 ours is better. Only ratios mean something on another machine. Of
${asked.length} rows with a target ${asked.length - below.length} hold.

${cpus().length} processors (${processor?.model}), ${Math.round(totalmem() / 2 ** 30)} GB, shared with other work: the load average was ${Math.min(...loads).toFixed(1)} to ${Math.max(...loads).toFixed(1)} when the parts ended.
Three nodes and their clients share the processors, so a row that crosses nodes measures how fast processes are woken as much as the daemon.

${sections.join("\n")}
## Checks

${checks}

## Rows below their target

${reasons === "" ? "None." : reasons}
`
}

mkdirSync(kept, { recursive: true })
const chosen = process.argv.slice(2)
for (const [name, measure] of Object.entries(PARTS)) {
  if (chosen.length > 0 && !chosen.includes(name)) continue
  console.error(`${new Date().toISOString()} ${name}`)
  try {
    complaints = []
    const lines = await measure()
    const part: Part = { lines, complaints, load: loadavg()[0] ?? 0 }
    writeFileSync(join(kept, `${name}.json`), JSON.stringify(part, null, 1))
  } catch (error) {
    console.error(`${name}: ${error instanceof Error ? error.message : String(error)}`)
  }
}
const files = Object.keys(PARTS)
  .map((name) => join(kept, `${name}.json`))
  .filter(existsSync)
mkdirSync(join(root, "docs"), { recursive: true })
writeFileSync(
  join(root, "docs", "performance.md"),
  page(files.map((file) => JSON.parse(readFileSync(file, "utf8")) as Part)),
)
console.log("docs/performance.md")
process.exit(0)
