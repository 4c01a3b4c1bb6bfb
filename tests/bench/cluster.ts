// Our node beside the stock one, measured in the same run on this machine, as ratios: message ring over three nodes, control
// round trip, memory of idle clients, start of a cluster, start of the program. Not part of the tests' verdict. The load
// comes from load.c, the same for both kinds of daemon.
//
//   bun tests/bench/cluster.ts [ROUNDS]     ROUNDS clusters of each kind, by turns; medians are compared (default 3)

import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { RecoveryMode } from "../../lib/protocol/constants.ts"
import { binary } from "../binary.ts"
import { type Kind, MixedCluster } from "../peers/nodes.ts"
import { waitUntil } from "../peers/stock.ts"

const NODES = 3
const SECONDS = 4
/** Tokens in each direction: one as in the original program, which waits for wake-ups; many, which keeps daemons busy. */
const RING_TOKENS = [1, 5, 50]
/** The first ones make the daemon grow to what it then keeps, the further ones show what one costs. */
const IDLE_CLIENTS = 1000
const FURTHER_CLIENTS = 4000

const rounds = Number(process.argv[2] ?? 3)
const kinds: readonly Kind[] = ["stock", "ours"]

interface Row {
  readonly what: string
  readonly unit: string
  /** Whether more is better. */
  readonly more: boolean
  readonly values: Record<Kind, number[]>
}

const rows: Row[] = []
function note(kind: Kind, what: string, unit: string, more: boolean, value: number): void {
  let row = rows.find((other) => other.what === what)
  if (row === undefined) {
    row = { what, unit, more, values: { stock: [], ours: [] } }
    rows.push(row)
  }
  row.values[kind].push(value)
}

function spawn(load: string, ...words: (string | number)[]) {
  return Bun.spawn([load, ...words.map(String)], { stdin: "pipe", stdout: "pipe", stderr: "inherit" })
}

async function figures(process: ReturnType<typeof spawn>): Promise<number[]> {
  const text = await new Response(process.stdout).text()
  if ((await process.exited) !== 0) throw new Error("the load program failed")
  return text.trim().split(" ").map(Number)
}

async function ring(load: string, cluster: MixedCluster, tokens: number): Promise<number> {
  const directory = mkdtempSync(join(cluster.directory, "ring-"))
  const ready = (pnn: number) => join(directory, `ready.${pnn}`)
  const go = join(directory, "go")
  const members = cluster.pnns.map((pnn) =>
    spawn(load, "ring", cluster.node(pnn).socket, pnn, NODES, SECONDS, tokens, ready(pnn), go),
  )
  await waitUntil("ring members", () => cluster.pnns.every((pnn) => existsSync(ready(pnn))))
  await Bun.write(go, "")
  const rates = await Promise.all(members.map(figures))
  return rates.flat().reduce((sum, rate) => sum + rate, 0)
}

/** Resident memory of a process (KB). */
function residentKb(pid: number): number {
  return Number(/^VmRSS:\s+(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1])
}

/** CPU time of a process so far (ms); the clock tick is 10 ms on every Linux that this runs on. */
function cpuMs(pid: number): number {
  const fields = readFileSync(`/proc/${pid}/stat`, "utf8").split(") ")[1]!.split(" ")
  return (Number(fields[11]) + Number(fields[12])) * 10
}

async function idleClients(kind: Kind, load: string, cluster: MixedCluster): Promise<void> {
  // A node that has not been under load: memory left from that would take the clients in for nothing.
  const node = cluster.node(2)
  const held: ReturnType<typeof spawn>[] = []
  for (const [which, count] of Object.entries({ first: IDLE_CLIENTS, further: FURTHER_CLIENTS })) {
    const before = residentKb(node.pid)
    const clients = spawn(load, "idle", node.socket, count)
    held.push(clients)
    await clients.stdout.getReader().read()
    const each = (residentKb(node.pid) - before) / count
    note(kind, `memory of one of the ${which} ${count} idle clients`, "KB", false, each)
  }
  for (const clients of held) {
    clients.stdin.end()
    await clients.exited
  }
}

async function start(kind: Kind, cluster: MixedCluster): Promise<void> {
  const begun = performance.now()
  const starting = cluster.startTogether()
  await starting
  await waitUntil("NORMAL", async () => {
    const views = await Promise.all(cluster.pnns.map((pnn) => cluster.view(pnn)))
    return views.every((view) => view?.recoveryMode === RecoveryMode.NORMAL && view.vnnMap.length === NODES)
  })
  note(kind, "start of three nodes to NORMAL", "s", false, (performance.now() - begun) / 1000)
  await cluster.allOk()
  note(kind, "start of three nodes to all OK", "s", false, (performance.now() - begun) / 1000)
}

async function measure(kind: Kind, load: string): Promise<void> {
  const three = Array.from({ length: NODES }, () => kind)
  const cluster = new MixedCluster(kind === "ours" ? "127.21.40." : "127.21.41.", three, { lock: true })
  try {
    await start(kind, cluster)
    await idleClients(kind, load, cluster)
    for (const tokens of RING_TOKENS) {
      const rate = await ring(load, cluster, tokens)
      note(kind, `message ring, ${2 * tokens} messages under way`, "messages/s", true, rate)
    }
    const node = cluster.node(1)
    const [p50 = 0, p99 = 0, rate = 0] = await figures(spawn(load, "control", node.socket, SECONDS))
    note(kind, "control round trip, median", "us", false, p50)
    note(kind, "control round trip, 99th percentile", "us", false, p99)
    note(kind, "control round trips", "1/s", true, rate)
    const cpuBefore = cpuMs(node.pid)
    const broadcasts = cluster.leaders(1).length
    await waitUntil("some idle seconds", () => cluster.leaders(1).length >= broadcasts + 5)
    note(kind, "CPU time of an idle node's daemon", "ms/s", false, (cpuMs(node.pid) - cpuBefore) / 5)
    note(kind, "resident memory of a node's daemon", "MB", false, residentKb(node.pid) / 1024)
  } finally {
    await cluster.end()
  }
}

function programStart(directory: string): void {
  const json = join(directory, "hyperfine.json")
  const commands = ["/usr/bin/ctdb version", `${binary} version`]
  Bun.spawnSync(["hyperfine", "-N", "--warmup", "10", "--runs", "100", "--export-json", json, ...commands], {
    stdout: "ignore",
    stderr: "ignore",
  })
  const { results } = JSON.parse(readFileSync(json, "utf8")) as { results: { mean: number; median: number }[] }
  for (const [index, kind] of kinds.entries()) {
    note(kind, "ctdb version", "ms", false, results[index]!.median * 1000)
  }
}

function median(values: readonly number[]): number {
  return values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)] ?? Number.NaN
}

function print(): void {
  console.log(`${"".padEnd(50)}${"stock".padStart(12)}${"ours".padStart(12)}  ratio (above 1: ours is better)`)
  for (const { what, unit, more, values } of rows) {
    const stock = median(values.stock)
    const ours = median(values.ours)
    const ratio = more ? ours / stock : stock / ours
    // Times of 0 are below the clock's tick.
    const shown = Number.isFinite(ratio) && ratio > 0 ? ratio.toFixed(2) : "-"
    const number = (value: number) => value.toFixed(value < 100 ? 2 : 0).padStart(12)
    console.log(`${`${what} (${unit})`.padEnd(50)}${number(stock)}${number(ours)}  ${shown}`)
  }
}

const directory = mkdtempSync(join(tmpdir(), "ctdb-bench-"))
try {
  const load = join(directory, "load")
  const compiled = Bun.spawnSync(["gcc", "-O2", "-o", load, join(import.meta.dir, "load.c")])
  if (!compiled.success) throw new Error(compiled.stderr.toString())
  for (let round = 0; round < rounds; round++) for (const kind of kinds) await measure(kind, load)
  programStart(directory)
  print()
} finally {
  rmSync(directory, { recursive: true, force: true })
}
process.exit(0)
