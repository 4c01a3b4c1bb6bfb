// A node under pressure, ours beside stock's, each as leader of three nodes, in one run. Prints one line of JSON for each.
//
//   bun tests/bench/pressure.ts stampede   one process holds the lock of a whole database for 5 s while 1,000 requests a second for its records
//                                          arrive at the node
//   bun tests/bench/pressure.ts flood      1,000 clients of the node send 100 messages a second each
//   bun tests/bench/pressure.ts recovery   100,000 records in 50 databases are recovered, while a client of each node asks it something every 5 ms
//
// In the first two a client of another node asks this one something every 10 ms (that goes between nodes, like keepalives), the leader's broadcasts
// are timed where they arrive, and the node's child processes are counted.

import { readFileSync } from "node:fs"
import { attach } from "../../lib/client/attach.ts"
import { Client } from "../../lib/client/client.ts"
import { CallId } from "../../lib/protocol/constants.ts"
import { openTdb } from "../../lib/tdb/tdb.ts"
import { binary } from "../binary.ts"
import { type Kind, MixedCluster } from "../peers/nodes.ts"
import { waitUntil } from "../peers/stock.ts"
import { populate } from "./recovery.ts"

const PREFIX = "127.64."
const CLIENTS = 20
const REQUESTS_PER_SECOND = 1000
const HELD_MS = 5000
const RECORDS = 500
const PROBE_MS = 10
const FLOOD_SECONDS = 4
const FLOOD_CLIENTS = 1000
const FLOOD_RATE = 100_000
const RECOVERED_RECORDS = 100_000
const RECOVERED_DATABASES = 50
const RECOVERY_PROBE_MS = 5
/** All must be answered by then (ms after the unlock). */
const PATIENCE_MS = 60_000

export interface StampedeFigures {
  readonly requests: number
  readonly answered: number
  /** Last answer after the unlock (ms). */
  readonly last: number
  /** Most child processes of the daemon beyond those it had before. */
  readonly children: number
  readonly nodes: Waits
}

export interface FloodFigures {
  /** Control round trip of one more client of the node (us). */
  readonly p50: number
  readonly p99: number
  readonly nodes: Waits
}

/** Traffic between nodes meanwhile (ms). */
export interface Waits {
  /** Round trip between nodes. */
  readonly median: number
  readonly worst: number
  /** By how much a leader broadcast came late, the worst. */
  readonly broadcast: number
}

const sorted = (values: readonly number[]): number[] => values.toSorted((a, b) => a - b)
const at = (values: readonly number[], share: number): number =>
  sorted(values)[Math.min(values.length - 1, Math.floor(values.length * share))] ?? Number.NaN

function descendants(pid: number): number {
  try {
    const children = readFileSync(`/proc/${pid}/task/${pid}/children`, "utf8").split(" ").filter(Boolean).map(Number)
    return children.length + children.reduce((sum, child) => sum + descendants(child), 0)
  } catch {
    return 0
  }
}

/** Watches node 0 from node 1 until stopped. */
class Between {
  /** When each probe was due, and how long its answer took (ms). */
  private readonly waits: (readonly [due: number, took: number])[] = []
  private timer: Timer | undefined
  private readonly begun = performance.now()
  private children = 0
  private readonly childrenBefore: number

  constructor(
    private readonly cluster: MixedCluster,
    private readonly observer: Client,
  ) {
    const { pid } = cluster.node(0)
    this.childrenBefore = descendants(pid)
    let due = this.begun
    const look = (): void => {
      // From when each was due: a probe that this process was too late to send has waited too.
      for (; due <= performance.now(); due += PROBE_MS) {
        const asked = due
        const answered = () => this.waits.push([asked, performance.now() - asked])
        this.observer.control("GET_PNN", 0).then(answered, answered)
      }
      this.children = Math.max(this.children, descendants(pid) - this.childrenBefore)
      this.timer = setTimeout(look, Math.max(0, due - performance.now()))
    }
    look()
  }

  /** @param lastMs only this much of the end counts */
  stop(lastMs = Number.POSITIVE_INFINITY): { readonly nodes: Waits; readonly children: number } {
    clearTimeout(this.timer)
    const from = performance.now() - lastMs
    const waits = this.waits.flatMap(([due, took]) => (due >= from ? [took] : []))
    const heard = this.cluster.leaders(1).filter(({ atMs }) => atMs > this.begun - 1500)
    const gaps = heard.slice(1).map(({ atMs }, index) => atMs - heard[index]!.atMs - 1000)
    // The last one may be missing still.
    const open = performance.now() - (heard.at(-1)?.atMs ?? this.begun) - 1000
    const broadcast = Math.max(0, open, ...gaps)
    return {
      nodes: { median: at(waits, 0.5), worst: Math.max(...waits), broadcast },
      children: this.children,
    }
  }
}

async function withCluster<T>(kind: Kind, use: (cluster: MixedCluster) => Promise<T>): Promise<T> {
  const cluster = new MixedCluster(`${PREFIX}${kind === "ours" ? 90 : 91}.`, [kind, kind, kind], { lock: true })
  try {
    // Node 0 is the leader: it has the cluster lock before the others run.
    await cluster.start(0)
    await cluster.allOk()
    await Promise.all([cluster.start(1), cluster.start(2)])
    await cluster.allOk()
    return await use(cluster)
  } finally {
    await cluster.end()
  }
}

export const stampede = (kind: Kind): Promise<StampedeFigures> =>
  withCluster(kind, async (cluster) => {
    const node = cluster.node(0)
    const connect = (socket: string) => Client.connect({ socket, timeoutMs: 10_000 })
    const clients = await Promise.all(Array.from({ length: CLIENTS }, () => connect(node.socket)))
    const observer = await connect(cluster.node(1).socket)
    const database = await attach(clients[0]!, "stampede.tdb")
    const path = (await clients[0]!.control("GETDBPATH", 0, database.id)) ?? ""
    const keys = Array.from({ length: RECORDS }, (_, index) => Buffer.from(`record ${index}`))
    for (const key of keys) {
      const record = await database.fetchLock(key)
      record.store(Buffer.from("value"))
      record.unlock()
    }
    const holder = openTdb(path, { flags: await clients[0]!.control("DB_OPEN_FLAGS", 0, database.id) })
    const between = new Between(cluster, observer)
    holder.lockAllrecord()
    const begun = performance.now()
    let sent = 0
    let answered = 0
    let last = 0
    await new Promise<void>((resolve) => {
      const timer = setInterval(() => {
        const now = performance.now()
        for (; sent < (Math.min(now - begun, HELD_MS) * REQUESTS_PER_SECOND) / 1000; sent++) {
          const request = {
            dbId: database.id,
            key: keys[sent % RECORDS]!,
            callid: CallId.FETCH,
            flags: 0,
            timeoutMs: 0,
          }
          clients[sent % CLIENTS]!.session.call(request, (reply) => {
            if (reply.ok) answered++
            last = performance.now()
          })
        }
        if (now - begun < HELD_MS) return
        clearInterval(timer)
        resolve()
      }, 2)
    })
    holder.unlockAllrecord()
    const unlocked = performance.now()
    while (answered < sent && performance.now() - unlocked < PATIENCE_MS) await Bun.sleep(5)
    // One more broadcast, so that a late one shows.
    await Bun.sleep(1200)
    const { nodes, children } = between.stop()
    holder.close()
    await Promise.all([...clients, observer].map((client) => client.close()))
    return { requests: sent, answered, last: last - unlocked, children, nodes }
  })

export const flood = (kind: Kind): Promise<FloodFigures> =>
  withCluster(kind, async (cluster) => {
    const observer = await Client.connect({ socket: cluster.node(1).socket, timeoutMs: 10_000 })
    const words = ["--clients", String(FLOOD_CLIENTS), "--rate", String(FLOOD_RATE), "--seconds", String(FLOOD_SECONDS)]
    const load = Bun.spawn([binary, "bench", "clients", "--socket", cluster.node(0).socket, ...words, "--json"], {
      stdin: "ignore",
      stdout: "pipe",
      stderr: "inherit",
    })
    const between = new Between(cluster, observer)
    const text = await new Response(load.stdout).text()
    // The flood is the last phase of that.
    const { nodes } = between.stop(FLOOD_SECONDS * 1000)
    await observer.close()
    const { rows } = JSON.parse(text) as {
      rows: { title: string; targets: { latency: { p50: number; p99: number } }[] }[]
    }
    const { p50, p99 } = rows.find(({ title }) => title.includes("sending"))!.targets[0]!.latency
    return { p50, p99, nodes }
  })

export interface RecoveryFigures {
  /** From the request until all nodes are NORMAL in a new generation (s). */
  readonly seconds: number
  /** Worst round trip of a client to its own node meanwhile (ms): no shorter than the longest stall of a node's loop. */
  readonly worst: number
}

export const recovery = (kind: Kind): Promise<RecoveryFigures> =>
  withCluster(kind, async (cluster) => {
    for (let index = 0; index < RECOVERED_DATABASES; index++) {
      const name = `recovered${index}.tdb`
      for (const pnn of cluster.pnns) await attach(cluster.client(pnn), name)
      const records = RECOVERED_RECORDS / RECOVERED_DATABASES
      for (const pnn of cluster.pnns) populate(cluster.node(pnn), pnn, name, records)
    }
    const clients = await Promise.all(
      cluster.pnns.map((pnn) => Client.connect({ socket: cluster.node(pnn).socket, timeoutMs: 10_000 })),
    )
    let worst = 0
    const timer = setInterval(() => {
      const asked = performance.now()
      const answered = () => {
        worst = Math.max(worst, performance.now() - asked)
      }
      for (const client of clients) client.control("GET_PNN", client.pnn).then(answered, answered)
    }, RECOVERY_PROBE_MS)
    const before = (await cluster.view(0))!.generation
    const begun = performance.now()
    // Its end is awaited here, as the stock tool looks once a second.
    const asking = cluster.node(0).tool("-t", "120", "recover")
    await waitUntil(
      "recovery",
      async () => {
        const views = await Promise.all(cluster.pnns.map((pnn) => cluster.view(pnn)))
        return views.every((view) => view !== undefined && view.generation !== before && view.recoveryMode === 0)
      },
      120_000,
    )
    const seconds = (performance.now() - begun) / 1000
    clearInterval(timer)
    await asking
    await Promise.all(clients.map((client) => client.close()))
    return { seconds, worst }
  })

if (import.meta.main) {
  const measure = { stampede, flood, recovery }[process.argv[2] ?? ""] ?? stampede
  for (const kind of ["ours", "stock"] as const) console.log(JSON.stringify({ kind, ...(await measure(kind)) }))
  process.exit(0)
}
