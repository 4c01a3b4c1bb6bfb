// How long a recovery takes and how much memory its helper needs, ours beside the stock one: on the same three stock nodes
// with the same records, by turns. `bun tests/bench/recovery.ts [RECORDS[xDATABASES]...]`; RECORDS in total. Prints one line
// of JSON for each, with ratios ours / stock of the medians.

import { mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { encode } from "../../lib/protocol/codec.ts"
import { ltdbHeader } from "../../lib/protocol/structs.ts"
import { word64 } from "../../lib/protocol/word64.ts"
import { INCOMPATIBLE_HASH, MUTEX_LOCKING, NOSYNC } from "../../lib/tdb/format.ts"
import { openTdb, REPLACE } from "../../lib/tdb/tdb.ts"
import { binary } from "../binary.ts"
import { startStockCluster } from "../peers/cluster.ts"
import { type StockNode, waitUntil } from "../peers/stock.ts"

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
    for (let index = 0; index < databases; index++) {
      const name = `bench${index}.tdb`
      await leader!.tool("attach", name)
      for (const [pnn, node] of cluster.nodes.entries()) populate(node, pnn, name, Math.ceil(records / databases))
    }
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
  const wanted = process.argv.slice(2)
  for (const word of wanted.length > 0 ? wanted : ["10000", "100000x1", "100000x10"]) {
    const [records = 0, databases = 1] = word.split("x").map(Number)
    await measure(records, databases)
  }
  rmSync(directory, { recursive: true, force: true })
  process.exit(0)
}
