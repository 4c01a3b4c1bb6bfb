// The small load on a sandbox: a few clients on each node count records up under fetch-lock, so that records move between the nodes all the
// time. Runs in a process of its own, beside whatever shows it, and checks that nothing that was counted is lost. It measures nothing: its
// pace is fixed, and low (`ctdb bench` measures).

import { readFileSync, renameSync, writeFileSync } from "node:fs"
import { attach, forgetDatabases } from "../lib/client/attach.ts"
import { Client } from "../lib/client/client.ts"
import type { Database } from "../lib/client/database.ts"
import { readU32 } from "../lib/protocol/header.ts"
import { loadReportFile, openSandbox, type SandboxNode } from "./sandbox-cluster.ts"

export const LOAD_DATABASE = "sandbox.tdb"
export const LOAD_RECORDS = 24
const CLIENTS_PER_NODE = 2
/** All clients together: a laptop's fan must not hear of it. */
const COUNTS_PER_SECOND = 240
const REPORT_MS = 1000
/** A node that hangs holds up its clients for so long, then they ask again. */
const WAIT_MS = 5000
/** Between two tries to reach a node that does not answer. */
const RETRY_MS = 500
/** In dmaster's place in a record's header (tdb-format page 9.4). */
const AT_DMASTER = 8

/** What the load of one node has done since it began. */
export interface NodeLoad {
  readonly pnn: number
  readonly counts: number
  /** Calls to the daemon to bring a record here. */
  readonly migrations: number
  /** Records of the load that this node owns now; undefined while it does not answer. */
  readonly held: number | undefined
}

export interface LoadReport {
  readonly nodes: readonly NodeLoad[]
  /** Of all nodes since the load began. */
  readonly counts: number
  /** Counts that went with the node that had the only copy of their record. */
  readonly lost: number
  /** What must not be: counts that are gone or doubled though their node lives. */
  readonly wrong: readonly string[]
}

/** The last report, if the load of that sandbox has made one. */
export function readReport(directory: string): LoadReport | undefined {
  try {
    return JSON.parse(readFileSync(loadReportFile(directory), "utf8")) as LoadReport
  } catch {
    return undefined
  }
}

interface Counter {
  readonly key: Uint8Array
  /** What the record must say, as all who count it are in this process; undefined before the first look. */
  value: number | undefined
  /** How many nodes had left the cluster when it was last counted. */
  departures: number
}

/** A record that says something else than was written. */
interface Surprise {
  readonly counter: Counter
  readonly found: number
  readonly expected: number
  readonly departures: number
}

class Load {
  private readonly counters: readonly Counter[] = Array.from({ length: LOAD_RECORDS }, (_, index) => ({
    key: Buffer.from(`record ${index}`),
    value: undefined,
    departures: 0,
  }))
  private readonly pauseMs: number
  private readonly clients = new Set<Client>()
  private readonly databases: (Database | undefined)[]
  private readonly counts: number[]
  private readonly migrations: number[]
  private readonly wrong: string[] = []
  /** Nodes that were in the vnn map when it was last looked at. */
  private members: readonly number[] = []
  /** How often a node died or left the map: the records that it owned then may be older afterwards. */
  private departures = 0
  private lost = 0
  private over = false

  constructor(
    private readonly directory: string,
    private readonly nodes: readonly SandboxNode[],
  ) {
    this.pauseMs = (nodes.length * CLIENTS_PER_NODE * 1000) / COUNTS_PER_SECOND
    this.databases = nodes.map(() => undefined)
    this.counts = nodes.map(() => 0)
    this.migrations = nodes.map(() => 0)
  }

  /** Counts until end(). */
  async run(): Promise<void> {
    const reporting = setInterval(() => void this.report(), REPORT_MS)
    await Promise.all(
      this.nodes.flatMap((node) => Array.from({ length: CLIENTS_PER_NODE }, () => this.keepCounting(node))),
    )
    clearInterval(reporting)
    await this.report()
  }

  end(): void {
    this.over = true
    for (const client of this.clients) void client.close()
  }

  /** One client of a node, and its successor whenever the node has gone. */
  private async keepCounting(node: SandboxNode): Promise<void> {
    while (!this.over) {
      let client: Client | undefined
      try {
        client = await Client.connect({ socket: node.socket, timeoutMs: WAIT_MS })
        this.clients.add(client)
        client.onClosed = () => {
          this.departures++
        }
        await this.count(node, client)
      } catch {
        // The node is down, leaves, or takes no part now: the cluster view says so.
        if (!this.over) await Bun.sleep(RETRY_MS)
      }
      if (client === undefined) continue
      this.clients.delete(client)
      this.databases[node.pnn] = undefined
      await forgetDatabases(client)
      await client.close()
    }
  }

  private async count(node: SandboxNode, client: Client): Promise<void> {
    const database = await attach(client, LOAD_DATABASE, { timeoutMs: WAIT_MS })
    let migrations = 0
    while (!this.over && client.isOpen) {
      this.databases[node.pnn] = database
      const counter = this.counters[Math.floor(Math.random() * LOAD_RECORDS)]!
      const locked = database.fetchLock(counter.key, "write", { timeoutMs: WAIT_MS })
      const record = locked instanceof Promise ? await locked : locked
      let surprise: Surprise | undefined
      try {
        const found = Number(Buffer.from(record.copy()).toString())
        surprise = this.surpriseOf(counter, found)
        counter.value = found + 1
        counter.departures = this.departures
        record.store(Buffer.from(String(counter.value)))
        this.counts[node.pnn]!++
      } finally {
        record.unlock()
      }
      if (surprise !== undefined) await this.judge(surprise, client)
      this.migrations[node.pnn]! += database.counters.migrations - migrations
      migrations = database.counters.migrations
      await Bun.sleep(this.pauseMs * (0.5 + Math.random()))
    }
  }

  private surpriseOf(counter: Counter, found: number): Surprise | undefined {
    const { value, departures } = counter
    return value === undefined || value === found ? undefined : { counter, found, expected: value, departures }
  }

  /** A node that dies, is stopped or banned takes the newest of its records with it. Whatever else is missing must not be. */
  private async judge({ counter, found, expected, departures }: Surprise, client: Client): Promise<void> {
    await this.lookAtMap(client)
    if (found < expected && this.departures > departures) {
      this.lost += expected - found
      return
    }
    const name = Buffer.from(counter.key).toString()
    this.wrong.push(`node ${client.pnn} found ${found} in ${name}, where ${expected} was written`)
  }

  private async lookAtMap(client: Client): Promise<void> {
    const { map } = await client.control("GETVNNMAP", client.pnn, undefined, { timeoutMs: WAIT_MS })
    this.departures += this.members.filter((pnn) => !map.includes(pnn)).length
    this.members = map
  }

  private async report(): Promise<void> {
    const client = [...this.clients].find(({ isOpen }) => isOpen)
    if (client !== undefined && !this.over) await this.lookAtMap(client).catch(() => {})
    const nodes = await Promise.all(
      this.nodes.map(async ({ pnn }) => ({
        pnn,
        counts: this.counts[pnn]!,
        migrations: this.migrations[pnn]!,
        held: await this.heldBy(pnn),
      })),
    )
    const counts = this.counts.reduce((sum, count) => sum + count, 0)
    const report: LoadReport = { nodes, counts, lost: this.lost, wrong: this.wrong }
    const file = loadReportFile(this.directory)
    writeFileSync(`${file}.new`, JSON.stringify(report))
    renameSync(`${file}.new`, file)
  }

  /** How many of the records a node owns, by its own file. */
  private async heldBy(pnn: number): Promise<number | undefined> {
    const database = this.databases[pnn]
    if (database === undefined) return undefined
    let held = 0
    for (const { key } of this.counters) {
      if (database.isClosed) return undefined
      const value = await database.localRecord(key)
      if (value !== undefined && readU32(value, AT_DMASTER) === pnn) held++
    }
    return held
  }
}

/** `ctdb sandbox _load DIR`: counts until standard input ends, or a signal. */
export async function runLoad(directory: string, tied: boolean): Promise<number> {
  const load = new Load(directory, openSandbox(directory).nodes)
  process.on("SIGTERM", () => load.end())
  // Ctrl-C is for the sandbox, which ends its load.
  process.on("SIGINT", () => {})
  if (tied) {
    process.stdin.on("end", () => load.end())
    process.stdin.resume()
  }
  await load.run()
  return 0
}
