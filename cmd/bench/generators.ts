// The generators: for each its name and the rows that it has, from what the command line asked for. How a row is measured is in measure.ts and
// its companions; what the clients do in loads/.

import type { DatabaseKind } from "../../lib/client/database.ts"
import type { Options } from "./options.ts"
import type { LoadName } from "./plan.ts"

/** What a row needs of a cluster that this program makes. */
export interface Environment {
  readonly where: "tmpfs" | "disk"
  readonly locks: "mutex" | "fcntl"
}

interface RowBase {
  readonly generator: string
  readonly title: string
  readonly environment: Environment
}

/** A row that is a rate: some clients do the same over and over. */
export interface RateRow extends RowBase {
  readonly type: "rate"
  readonly load: LoadName
  readonly unit: string
  /** Nodes with clients, and client processes on each. */
  readonly nodes: number
  readonly processes: number
  /** With stock generators: the database and key that they use; undefined where they take them as options. */
  readonly stockDatabase: string | undefined
  readonly kind: DatabaseKind
  readonly records: number
  readonly depth: number
  readonly rate: number
}

export interface RecoveryRow extends RowBase {
  readonly type: "recovery"
  readonly records: number
}

export interface ClientsRow extends RowBase {
  readonly type: "clients"
  readonly clients: number
  readonly rate: number
}

export type RowPlan = RateRow | RecoveryRow | ClientsRow

export interface Generator {
  readonly name: string
  readonly summary: string
  rows(options: Options): RowPlan[]
}

type Parts = Partial<Omit<RateRow, "type" | "environment">> & Pick<RateRow, "title" | "load" | "unit">

/** Rows in the environments that were asked for; the others of `environments` only when nothing was asked for. */
function inEnvironments(options: Options, environments: readonly Environment[]): readonly Environment[] {
  const { where, locks, sandbox } = options
  if (sandbox === undefined) return [environments[0]!]
  const fitting = environments.filter(
    (environment) =>
      (where ?? environment.where) === environment.where && (locks ?? environment.locks) === environment.locks,
  )
  const first = environments[0]!
  return fitting.length > 0 ? fitting : [{ where: where ?? first.where, locks: locks ?? first.locks }]
}

const FAST: Environment = { where: "tmpfs", locks: "mutex" }
const FCNTL: Environment = { where: "tmpfs", locks: "fcntl" }
const DISK: Environment = { where: "disk", locks: "mutex" }
const DISK_FCNTL: Environment = { where: "disk", locks: "fcntl" }

function rate(generator: string, options: Options, environment: Environment, parts: Parts): RateRow {
  return {
    type: "rate",
    generator,
    environment,
    nodes: options.nodes,
    processes: options.processes ?? 1,
    stockDatabase: undefined,
    kind: "volatile",
    records: options.records ?? 1,
    depth: options.depth ?? 1,
    rate: options.rate ?? 0,
    ...parts,
  }
}

const named = (options: Options, { locks, where }: Environment): string =>
  options.sandbox === undefined ? "" : `, ${locks} locks, ${where}`
const plural = (count: number, word: string): string => `${count} ${word}${count === 1 ? "" : "s"}`

/** Depths of a ring: the stock generator's one token, bound by how fast processes are woken, and enough to keep daemons busy. */
const depths = (options: Options): readonly number[] => (options.depth === undefined ? [1, 32] : [options.depth])

export const GENERATORS: readonly Generator[] = [
  {
    name: "single-record",
    summary: "fetch-lock, store and unlock of one record by one process",
    rows: (options) =>
      inEnvironments(options, [FAST, FCNTL, DISK, DISK_FCNTL]).map((environment) =>
        rate("single-record", options, environment, {
          title: `single record${named(options, environment)}`,
          load: "counter",
          unit: "locks/s",
          nodes: 1,
          processes: 1,
        }),
      ),
  },
  {
    name: "contention",
    summary: "the same record by several processes at once",
    rows: (options) =>
      inEnvironments(options, [FAST, FCNTL]).flatMap((environment) =>
        (options.processes === undefined
          ? options.nodes > (options.sandbox ?? options.sockets.length)
            ? [1]
            : [2, 4, 8]
          : [options.processes]
        ).map((processes) =>
          rate("contention", options, environment, {
            title: `contention, ${processes} ${processes === 1 ? "process" : "processes"}${named(options, environment)}`,
            load: "counter",
            unit: "locks/s",
            nodes: isShared(options) ? options.nodes : 1,
            processes,
            stockDatabase: "fetch_loop.tdb",
          }),
        ),
      ),
  },
  {
    name: "g-lock",
    summary: "taking and releasing a cluster-wide lock",
    rows: (options) =>
      inEnvironments(options, [FAST]).flatMap((environment) =>
        onOneAndAll(options).map((nodes) =>
          rate("g-lock", options, environment, {
            title: `g_lock from ${plural(nodes, "node")}`,
            load: "g-lock",
            unit: "locks/s",
            nodes,
            stockDatabase: "g_lock.tdb",
          }),
        ),
      ),
  },
  {
    name: "persistent",
    summary: "transactions on persistent and replicated databases",
    rows: (options) =>
      inEnvironments(options, [FAST, DISK]).flatMap((environment) =>
        (options.kind === undefined ? (["persistent", "replicated"] as const) : [options.kind]).flatMap((kind) => {
          // Memory only, wherever its file is.
          if (kind === "replicated" && environment.where === "disk" && options.where === undefined) return []
          const rows = onOneAndAll(options).map((nodes) =>
            rate("persistent", options, environment, {
              title: `${kind} transactions from ${plural(nodes, "node")}${options.sandbox === undefined ? "" : `, ${environment.where}`}`,
              load: "transactions",
              unit: "commits/s",
              kind,
              nodes,
            }),
          )
          if (kind === "persistent" && options.records === undefined && !isShared(options)) {
            rows.push(
              rate("persistent", options, environment, {
                title: `persistent transactions on 8 databases${options.sandbox === undefined ? "" : `, ${environment.where}`}`,
                load: "transactions",
                unit: "commits/s",
                kind,
                records: 8,
                nodes: Math.min(options.nodes, 8),
                processes: Math.ceil(8 / Math.min(options.nodes, 8)),
              }),
            )
          }
          return rows
        }),
      ),
  },
  {
    name: "ring",
    summary: "one record, or several, going round the nodes",
    rows: (options) =>
      inEnvironments(options, [FAST]).flatMap((environment) =>
        (isShared(options) ? [options.depth ?? 1] : depths(options)).map((depth) =>
          rate("ring", options, environment, {
            title: `${plural(depth, "record")} round ${plural(options.nodes, "node")}`,
            load: "record-ring",
            unit: "migrations/s",
            processes: 1,
            depth,
          }),
        ),
      ),
  },
  {
    name: "spread",
    summary: "many records under many clients of all nodes",
    rows: (options) =>
      inEnvironments(options, [FAST]).map((environment) => {
        const processes = options.processes ?? Math.ceil(12 / options.nodes)
        const records = options.records ?? 1000
        return rate("spread", options, environment, {
          title: `${records} records under ${plural(processes * options.nodes, "client")} of ${plural(options.nodes, "node")}`,
          load: "spread",
          unit: "records/s",
          processes,
          records,
        })
      }),
  },
  {
    name: "readonly",
    summary: "read-only locks of one hot record on all nodes, while it is written now and then",
    rows: (options) =>
      inEnvironments(options, [FAST]).map((environment) => {
        const writes = options.rate ?? 10
        return rate("readonly", options, environment, {
          title: `read-only locks of a hot record, ${writes} writes/s, ${plural(options.nodes, "node")}`,
          load: "readonly",
          unit: "reads/s",
          stockDatabase: "fetch_readonly_loop.tdb",
          rate: writes,
        })
      }),
  },
  {
    name: "messages",
    summary: "messages round the nodes, and control round trips",
    rows: (options) =>
      inEnvironments(options, [FAST]).flatMap((environment) => [
        ...(isShared(options) ? [options.depth ?? 1] : depths(options)).map((depth) =>
          rate("messages", options, environment, {
            title: `message ring of ${plural(options.nodes, "node")}, ${plural(2 * depth, "message")} under way`,
            load: "message-ring",
            unit: "messages/s",
            processes: 1,
            depth,
          }),
        ),
        ...(isShared(options)
          ? []
          : [
              rate("messages", options, environment, {
                title: "control round trips",
                load: "control",
                unit: "controls/s",
                nodes: 1,
                processes: 1,
              }),
            ]),
      ]),
  },
  {
    name: "clients",
    summary: "memory of idle clients, and control latency while clients send messages",
    rows: (options) =>
      inEnvironments(options, [FAST]).map((environment) => ({
        type: "clients",
        generator: "clients",
        title: plural(options.clients, "client"),
        environment,
        clients: options.clients,
        rate: options.rate ?? 10_000,
      })),
  },
  {
    name: "recovery",
    summary: "how long a recovery takes, and how long clients stand still meanwhile",
    rows: (options) =>
      inEnvironments(options, [FAST]).map((environment) => ({
        type: "recovery",
        generator: "recovery",
        title: `recovery with ${options.records ?? 10_000} records`,
        environment,
        records: options.records ?? 10_000,
      })),
  },
]

/** Whether generators that this program does not start take part. */
export function isShared(options: Options): boolean {
  return options.nodes > (options.sandbox ?? options.sockets.length)
}

function onOneAndAll(options: Options): readonly number[] {
  return isShared(options) || options.nodes === 1 ? [options.nodes] : [1, options.nodes]
}
