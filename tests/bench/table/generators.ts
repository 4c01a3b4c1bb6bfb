// The rows that `ctdb bench` measures on three nodes: our client on nodes of both kinds by turns, and before and after it the published
// algorithm of the same load in C on the stock nodes.

import type { Row } from "../../../cmd/bench/measure.ts"
import { bench, type Environment, type Instance, type Pair, publishedRates, socketsOf, withPair } from "./clusters.ts"
import { compared, type Decides, type Line } from "./lines.ts"

const SECTION = "Clusters of three nodes"
/** Of the measured time of each row and side: five samples. */
const SECONDS = 2.5
/** Of a run of the published program: three samples, and the first one only gets it under way. */
const PUBLISHED_SECONDS = 2.3

/** A published load for a row: what runs where. */
interface Published {
  readonly mode: string
  readonly instances: readonly Instance[]
  readonly skip?: number
}

interface Generator {
  readonly environments: readonly Environment[]
  /**
   * Seconds of each row's load on our nodes before anything is measured. A daemon runs for months, and what its compiler does in its first half
   * minute is not asked for.
   */
  readonly warmup: number
  /** Whether the row's name tells where its environment. */
  readonly tells: "all" | "where" | "nothing"
  rule(title: string): { readonly least?: number; readonly decides?: Decides }
  published(row: Row, sockets: readonly string[]): Published | undefined
}

const FAST: Environment = { where: "tmpfs", locks: "mutex" }
const FCNTL: Environment = { where: "tmpfs", locks: "fcntl" }
const DISK: Environment = { where: "disk", locks: "mutex" }

let keys = 0
const freshKey = () => `published.${process.pid}.${keys++}`
const each = (sockets: readonly string[], words: readonly string[], times = 1): Instance[] =>
  sockets.flatMap((socket) => Array.from({ length: times }, () => ({ socket, words })))
const nodesOf = (title: string): number => Number(/from (\d+) node/.exec(title)?.[1] ?? 3)

const GENERATORS: Readonly<Record<string, Generator>> = {
  "single-record": {
    environments: [FAST, FCNTL, DISK],
    warmup: 0,
    tells: "all",
    rule: () => ({ least: 1, decides: "whole" }),
    published: (_, sockets) => ({
      mode: "fetch_loop_key",
      instances: each(sockets.slice(0, 1), ["-D", "published.tdb", "-k", freshKey()]),
    }),
  },
  contention: {
    environments: [FAST, FCNTL],
    warmup: 0,
    tells: "all",
    rule: () => ({ least: 1, decides: "whole" }),
    published: ({ title }, sockets) => ({
      mode: "fetch_loop_key",
      instances: each(
        sockets.slice(0, 1),
        ["-D", "published.tdb", "-k", freshKey()],
        Number(/(\d+) processes/.exec(title)?.[1]),
      ),
    }),
  },
  "g-lock": {
    environments: [FAST],
    warmup: 7,
    tells: "nothing",
    rule: () => ({ least: 1.5, decides: "whole" }),
    published: ({ title }, sockets) => {
      const nodes = nodesOf(title)
      return { mode: "g_lock_loop", instances: each(sockets.slice(0, nodes), ["-n", String(nodes)]) }
    },
  },
  persistent: {
    environments: [FAST, DISK],
    warmup: 3,
    tells: "where",
    rule: (title) => ({
      decides: "whole",
      least: /^replicated.* 1 node/.test(title)
        ? 1.5
        : / 1 node/.test(title)
          ? 1.2
          : /^persistent.* 3 /.test(title)
            ? 2
            : 3,
    }),
    published: ({ title }, sockets) => {
      const kind = /^\w+/.exec(title)![0]
      const words = (database: string, nodes: number) => [
        "-D",
        database,
        "-k",
        "testkey",
        "-T",
        kind,
        "-n",
        String(nodes),
      ]
      if (title.includes("8 databases")) {
        // As many as `ctdb bench` starts: three a node, and the ninth shares the first one's database.
        const instances = Array.from({ length: 9 }, (_, index) => ({
          socket: sockets[Math.floor(index / 3)]!,
          words: words(`published_8.${index % 8}.tdb`, 1),
        }))
        return { mode: "transaction_loop", instances }
      }
      const nodes = nodesOf(title)
      return {
        mode: "transaction_loop",
        instances: each(sockets.slice(0, nodes), words(`published_${kind}.tdb`, nodes)),
      }
    },
  },
  ring: {
    environments: [FAST],
    warmup: 10,
    tells: "nothing",
    rule: (title) => (title.startsWith("1 record ") ? { least: 2, decides: "whole" } : {}),
    published: ({ title }, sockets) =>
      title.startsWith("1 record ")
        ? { mode: "fetch_ring", instances: each(sockets, ["-n", "3", "-D", "published.tdb", "-k", freshKey()]) }
        : undefined,
  },
  spread: {
    environments: [FAST],
    warmup: 20,
    tells: "nothing",
    rule: () => ({ least: 1.5, decides: "whole" }),
    published: (_, sockets) => ({
      mode: "spread",
      instances: each(sockets, ["-D", "published.tdb", "-k", "many", "-c", "1000"], 4),
    }),
  },
  readonly: {
    environments: [FAST],
    warmup: 3,
    tells: "nothing",
    rule: () => ({ least: 1, decides: "whole" }),
    published: (_, sockets) => ({
      mode: "fetch_readonly_loop",
      instances: each(sockets, ["-n", "3", "-D", "published_ro.tdb", "-k", freshKey(), "-r", "10"]),
    }),
  },
  messages: {
    environments: [FAST],
    warmup: 6,
    tells: "nothing",
    rule: (title) => ({ least: title.startsWith("message ring") ? 2 : 1, decides: "daemon" }),
    published: ({ title }, sockets) =>
      title.startsWith("control")
        ? { mode: "control", instances: each(sockets.slice(0, 1), []) }
        : {
            mode: "message_ring",
            instances: each(sockets, ["-n", "3", "-q", String(Number(/(\d+) messages/.exec(title)?.[1] ?? 2) / 2)]),
            // The published ring begins after a second (load-generators 9).
            skip: 1.75,
          },
  },
}

export const GENERATOR_NAMES: readonly string[] = Object.keys(GENERATORS)

/** Lines by generator. Each environment's clusters are made once, whatever runs on them. */
export async function generatorLines(
  names: readonly string[],
  done: (name: string, lines: readonly Line[], complaints: readonly string[]) => void,
): Promise<void> {
  const lines = new Map(names.map((name) => [name, [] as Line[]]))
  const complaints = new Map(names.map((name) => [name, [] as string[]]))
  for (const environment of [FAST, FCNTL, DISK]) {
    const wanted = names.filter((name) => GENERATORS[name]!.environments.includes(environment))
    if (wanted.length === 0) continue
    await withPair(environment, async (pair) => {
      for (const name of wanted) {
        lines.get(name)!.push(...(await linesOf(name, environment, pair, complaints.get(name)!)))
        done(name, lines.get(name)!, complaints.get(name)!)
      }
    })
  }
}

async function linesOf(name: string, environment: Environment, pair: Pair, complaints: string[]): Promise<Line[]> {
  const generator = GENERATORS[name]!
  const [ours, stock] = [socketsOf(pair.ours), socketsOf(pair.stock)]
  const inMemoryOnly = environment.where === "disk" && name === "persistent" ? ["--kind", "persistent"] : []
  const words = [name, ...inMemoryOnly]
  if (generator.warmup > 0) {
    const warmup = String(generator.warmup)
    await bench(complaints, ...words, "--socket", ours.join(","), "--seconds", "0.5", "--warmup", warmup)
  }
  const result = await bench(
    complaints,
    ...words,
    ...["--socket", ours.join(","), "--compare", stock.join(","), "--seconds", String(SECONDS)],
  )
  const lines: Line[] = []
  for (const row of result.rows) {
    const load = generator.published(row, stock)
    const published: number[] = []
    if (load !== undefined) {
      for (let run = 0; run < 2; run++) {
        const seconds = PUBLISHED_SECONDS + Math.floor(load.skip ?? 0)
        published.push(...(await publishedRates(load.mode, load.instances, seconds, load.skip)))
      }
    }
    const { where, locks } = environment
    const suffix = { all: `, ${locks} locks, ${where}`, where: `, ${where}`, nothing: "" }[generator.tells]
    const [mine, theirs] = row.targets
    lines.push(
      compared(
        {
          section: SECTION,
          what: `${row.title}${suffix}`,
          unit: row.unit,
          better: "more",
          ...generator.rule(row.title),
        },
        mine!.samples,
        theirs!.samples,
        load === undefined ? undefined : published,
      ),
    )
  }
  return lines
}
