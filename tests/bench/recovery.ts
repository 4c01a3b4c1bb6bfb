// How long a recovery takes and how much memory it needs, ours beside stock with the same records. Prints one line of JSON for
// each measurement, with ratios ours / stock. RECORDS are in total.
//   bun tests/bench/recovery.ts [RECORDS[xDATABASES]...]         both helpers by turns on the same three stock nodes, medians
//   bun tests/bench/recovery.ts nodes [RECORDS[xDATABASES]...]   three nodes of ours, then three stock ones: the first recovery
//       of records that only their owners hold, one when all hold the same, and kill -9 of a member until NORMAL

import { mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { Client } from "../../lib/client/client.ts"
import { encode } from "../../lib/protocol/codec.ts"
import { CURRENT_NODE } from "../../lib/protocol/constants.ts"
import { databaseId } from "../../lib/protocol/hash.ts"
import { ltdbHeader } from "../../lib/protocol/structs.ts"
import { word64 } from "../../lib/protocol/word64.ts"
import { INCOMPATIBLE_HASH, MUTEX_LOCKING, NOSYNC } from "../../lib/tdb/format.ts"
import { openTdb, REPLACE } from "../../lib/tdb/tdb.ts"
import { binary } from "../binary.ts"
import { startStockCluster } from "../peers/cluster.ts"
import { type Kind, MixedCluster } from "../peers/nodes.ts"
import { processTree, type StockNode, type StockOptions, waitUntil } from "../peers/stock.ts"

const PREFIX = "127.71.9."
const STOCK_HELPER = "/usr/libexec/ctdb/ctdb_recovery_helper"
const ROUNDS = 3
/** Bytes of a value. */
const VALUE = 100

const directory = mkdtempSync(join(tmpdir(), "ctdb-bench-recovery-"))
const ours = join(directory, "ctdb_recovery_helper")
const which = join(directory, "which")
const times = join(directory, "times")

/** Each node owns a third of the records, as after migrations; the others have nothing of them yet. */
export function populate(node: StockNode, pnn: number, database: string, records: number): void {
  const tdb = openTdb(join(node.base, "volatile", `${database}.${pnn}`), {
    flags: MUTEX_LOCKING | INCOMPATIBLE_HASH | NOSYNC,
  })
  const value = Buffer.alloc(24 + VALUE, "v")
  value.set(encode(ltdbHeader, { rsn: word64(0, 4), dmaster: pnn, reserved1: 0, flags: 0x10000 }))
  tdb.lockAllrecord()
  for (let index = pnn; index < records; index += 3) tdb.store(Buffer.from(`record ${index}`), value, REPLACE)
  tdb.unlockAllrecord()
  tdb.close()
}

/** Attaches databases on all nodes, and fills them. The first node tells the others, which are awaited. */
export async function populateAll(nodes: readonly StockNode[], records: number, databases: number): Promise<void> {
  const clients = await Promise.all(nodes.map(({ socket }) => Client.connect({ socket, timeoutMs: 60_000 })))
  for (let index = 0; index < databases; index++) {
    const name = `bench${index}.tdb`
    await clients[0]!.control("DB_ATTACH", CURRENT_NODE, name)
    for (const [pnn, node] of nodes.entries()) {
      await waitUntil(`${name} on node ${pnn}`, () =>
        clients[pnn]!.control("GETDBPATH", CURRENT_NODE, databaseId(name)).then(
          () => true,
          () => false,
        ),
      )
      populate(node, pnn, name, Math.ceil(records / databases))
    }
  }
  await Promise.all(clients.map((client) => client.close()))
}

async function generationOf(node: StockNode): Promise<string> {
  const { stdout } = await node.tool("-t", "10", "status")
  return /Generation:(\d+)[\s\S]*Recovery mode:NORMAL/.exec(stdout)?.[1] ?? ""
}

interface Sample {
  readonly seconds: number
  readonly megabytes: number
}

async function recovery(node: StockNode, helper: string): Promise<Sample> {
  writeFileSync(which, helper)
  rmSync(times, { force: true })
  const before = await generationOf(node)
  await node.tool("-t", "300", "recover")
  await waitUntil("recovery", async () => !["", before].includes(await generationOf(node)), 600_000)
  const [seconds, bytes] = readFileSync(times, "utf8").split(" ")
  return { seconds: Number(seconds), megabytes: Number(bytes) / 1e6 }
}

const median = (values: number[]): number => values.sort((a, b) => a - b)[values.length >> 1]!

async function measure(records: number, databases: number): Promise<void> {
  const wrapper = join(directory, "helper")
  const self = `exec ${process.execPath} ${import.meta.path} --helper ${which} ${times} "$@"`
  writeFileSync(wrapper, `#!/bin/sh\n${self}\n`, { mode: 0o755 })
  writeFileSync(which, STOCK_HELPER)
  const cluster = await startStockCluster(PREFIX, 3, {
    environment: { CTDB_RECOVERY_HELPER: wrapper },
    tunables: ["VacuumInterval=100000", "RerecoveryTimeout=1", "RecoverTimeout=120"],
  })
  try {
    const [leader] = cluster.nodes
    await populateAll(cluster.nodes, records, databases)
    await recovery(leader!, STOCK_HELPER)
    const samples: Record<"ours" | "stock", Sample[]> = { ours: [], stock: [] }
    for (let round = 0; round < ROUNDS; round++) {
      samples.ours.push(await recovery(leader!, ours))
      samples.stock.push(await recovery(leader!, STOCK_HELPER))
    }
    const of = (kind: "ours" | "stock") => ({
      seconds: Number(median(samples[kind].map(({ seconds }) => seconds)).toFixed(3)),
      megabytes: Math.round(median(samples[kind].map(({ megabytes }) => megabytes))),
    })
    const [mine, theirs] = [of("ours"), of("stock")]
    const ratio = {
      time: Number((mine.seconds / theirs.seconds).toFixed(2)),
      memory: Number((mine.megabytes / theirs.megabytes).toFixed(2)),
    }
    console.log(JSON.stringify({ records, databases, ours: mine, stock: theirs, ratio }))
  } finally {
    await cluster.stop()
  }
}

export interface NodeTimes {
  /** Seconds of the recovery itself, as the leader tells them. */
  readonly first: number
  readonly alike: number
  /** From kill -9 of a member to recovery mode NORMAL without it (s). */
  readonly killed: number
  /** Peak memory of the leader's recovery processes, all together, that is theirs alone (MB). */
  readonly megabytes: number
  /** By how much that of its main daemon grew meanwhile, at its peak (MB). */
  readonly daemonMegabytes: number
}

/** @param look called with the cluster before it ends */
export async function nodeTimes(
  kind: Kind,
  records: number,
  databases: number,
  options: Partial<StockOptions> = {},
  look: (cluster: MixedCluster) => void = () => {},
): Promise<NodeTimes> {
  const tunables = ["VacuumInterval=100000", "RerecoveryTimeout=1", "RecoverTimeout=120"]
  const cluster = new MixedCluster(`127.71.${kind === "ours" ? 10 : 11}.`, [kind, kind, kind], {
    lock: true,
    tunables,
    ...options,
  })
  const settled = async (from: number, before: number) => {
    await waitUntil(
      "recovery",
      async () => {
        const view = await cluster.view(from)
        return view !== undefined && view.generation !== before && view.recoveryMode === 0
      },
      600_000,
    )
  }
  /** When the leader began and ended its last recovery (us). */
  const recoveryTimes = async (): Promise<readonly [begun: number, ended: number]> => {
    const { lastRecoveryStarted, lastRecoveryFinished } = await cluster.client(0).control("UPTIME", CURRENT_NODE)
    const us = ({ sec, usec }: { readonly sec: number; readonly usec: number }) => sec * 1e6 + usec
    return [us(lastRecoveryStarted), us(lastRecoveryFinished)]
  }
  const recoveryOnce = async (): Promise<number> => {
    const before = (await cluster.view(0))!.generation
    const [last] = await recoveryTimes()
    await cluster.node(0).tool("-t", "300", "recover")
    await settled(0, before)
    // Its end is told after the mode.
    let seconds = 0
    await waitUntil("end of the recovery", async () => {
      const [begun, ended] = await recoveryTimes()
      seconds = (ended - begun) / 1e6
      return begun > last && ended >= begun
    })
    return seconds
  }
  try {
    // Node 0 is the leader: it has the cluster lock before the others run.
    await cluster.start(0)
    await cluster.allOk()
    await Promise.all([cluster.start(1), cluster.start(2)])
    await cluster.allOk()
    await populateAll(
      cluster.pnns.map((pnn) => cluster.node(pnn)),
      records,
      databases,
    )
    const memory = new PrivateMemory(cluster.node(0).pid)
    const first = await recoveryOnce()
    const { megabytes, daemonMegabytes } = memory.stop()
    const alike = await recoveryOnce()
    const before = (await cluster.view(0))!.generation
    const startedMs = performance.now()
    await cluster.kill(1)
    await settled(0, before)
    const killed = (performance.now() - startedMs) / 1000
    look(cluster)
    return { first, alike, killed, megabytes, daemonMegabytes }
  } finally {
    await cluster.end()
  }
}

const MEMORY_LOOK_MS = 10

/**
 * Looks at the memory of a daemon and its descendants again and again. What counts are pages of their own (RssAnon): those of programs and
 * of database files are in memory once, whoever maps them.
 */
class PrivateMemory {
  private readonly timer: Timer
  private readonly before: number
  private most = 0
  private daemonMost = 0

  constructor(private readonly pid: number) {
    this.before = privateBytes(pid)
    this.timer = setInterval(() => this.look(), MEMORY_LOOK_MS)
  }

  private look(): void {
    const [daemon = 0, ...others] = processTree(this.pid)
    this.daemonMost = Math.max(this.daemonMost, privateBytes(daemon))
    this.most = Math.max(
      this.most,
      others.reduce((sum, pid) => sum + privateBytes(pid), 0),
    )
  }

  stop(): Pick<NodeTimes, "megabytes" | "daemonMegabytes"> {
    clearInterval(this.timer)
    this.look()
    const mega = (bytes: number) => Number((bytes / 1e6).toFixed(1))
    return { megabytes: mega(this.most), daemonMegabytes: mega(this.daemonMost - this.before) }
  }
}

/** 0 for a process that is no more. */
function privateBytes(pid: number): number {
  try {
    return Number(/RssAnon:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1] ?? 0) * 1024
  } catch {
    return 0
  }
}

async function measureNodes(records: number, databases: number): Promise<void> {
  const ours = await nodeTimes("ours", records, databases)
  const stock = await nodeTimes("stock", records, databases)
  const ratio = (of: keyof NodeTimes) => Number((ours[of] / stock[of]).toFixed(2))
  const ratios = {
    first: ratio("first"),
    alike: ratio("alike"),
    killed: ratio("killed"),
    memory: ratio("megabytes"),
    daemonMemory: ratio("daemonMegabytes"),
  }
  console.log(JSON.stringify({ nodes: 3, records, databases, ours, stock, ratio: ratios }))
}

/** In a helper's place: runs the wanted one, notes what it took, and only then passes its answer on. */
function standIn([whichPath = "", timesPath = "", output = "", socket = "", generation = ""]: string[]): never {
  const program = readFileSync(whichPath, "utf8")
  const startedMs = performance.now()
  const run = Bun.spawnSync([program, "1", socket, generation], { stdout: "pipe", stderr: "inherit", stdin: "ignore" })
  const seconds = (performance.now() - startedMs) / 1000
  writeFileSync(timesPath, `${seconds} ${run.resourceUsage.maxRSS}`)
  if (run.stdout.length > 0) writeFileSync(Number(output), run.stdout)
  process.exit(run.exitCode)
}

if (import.meta.main && process.argv[2] === "--helper") standIn(process.argv.slice(3))
if (import.meta.main) {
  symlinkSync(binary, ours)
  const ofNodes = process.argv[2] === "nodes"
  const wanted = process.argv.slice(ofNodes ? 3 : 2)
  for (const word of wanted.length > 0 ? wanted : ["10000", "100000x1", "100000x10"]) {
    const [records = 0, databases = 1] = word.split("x").map(Number)
    await (ofNodes ? measureNodes : measure)(records, databases)
  }
  rmSync(directory, { recursive: true, force: true })
  process.exit(0)
}
