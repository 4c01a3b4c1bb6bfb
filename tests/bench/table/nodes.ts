// Rows about nodes that `ctdb bench` has no generator for, or that need more than it brings: walks through a large database, memory and
// latency with many clients, pressure, syncs of a commit, an import by Samba's tools.

import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { figure } from "../../../cmd/bench/progress.ts"
import { attach } from "../../../lib/client/attach.ts"
import { traverse } from "../../../lib/client/traverse.ts"
import type { Kind, MixedCluster } from "../../peers/nodes.ts"
import { waitUntil } from "../../peers/stock.ts"
import { flood, recovery, stampede } from "../pressure.ts"
import { populate } from "../recovery.ts"
import { bench, type Pair, publishedOnce, withPair } from "./clusters.ts"
import { compared, type Line, limited } from "./lines.ts"

const kinds = ["ours", "stock"] as const
type Samples = Record<Kind, number[]>
const none = (): Samples => ({ ours: [], stock: [] })

const TRAVERSED = 500_000
const TRAVERSES = 5

/** Seconds that the published client takes for a traverse; undefined for one that was cut. */
async function publishedTraverse(socket: string): Promise<number | undefined> {
  const [, count, seconds] = /^Traversed:(\d+):([\d.]+)$/m.exec(
    await publishedOnce("traverse", "-s", socket, "-D", "walk.tdb"),
  )!
  return Number(count) === TRAVERSED ? Number(seconds) : undefined
}

export async function traverseLines(complaints: string[]): Promise<Line[]> {
  const rates = none()
  const published: number[] = []
  await withPair({ where: "tmpfs", locks: "mutex" }, async (pair) => {
    const ids: Partial<Record<Kind, number>> = {}
    for (const kind of kinds) {
      const cluster = pair[kind]
      for (const pnn of cluster.pnns) ids[kind] = (await attach(cluster.client(pnn), "walk.tdb")).id
      for (const pnn of cluster.pnns) populate(cluster.node(pnn), pnn, "walk.tdb", TRAVERSED)
    }
    for (let round = -1; round < TRAVERSES; round++) {
      for (const kind of kinds) {
        const begun = performance.now()
        const { records } = await traverse(pair[kind].client(0), ids[kind]!, () => {})
        if (records !== TRAVERSED) {
          // A stock node says nothing of what it leaves out: that turn does not count.
          complaints.push(`traverse, ${kind}: ${records} of ${TRAVERSED} records came`)
        } else if (round >= 0) rates[kind].push(TRAVERSED / ((performance.now() - begun) / 1000))
      }
      const seconds = await publishedTraverse(pair.stock.node(0).socket)
      if (seconds === undefined)
        complaints.push(`traverse, published client on stock: not all of ${TRAVERSED} records came`)
      else if (round >= 0) published.push(TRAVERSED / seconds)
    }
  })
  const what = "traverse of 500 000 records"
  return [
    compared(
      { section: "Clusters of three nodes", what, unit: "records/s", better: "more", least: 1.5, decides: "whole" },
      rates.ours,
      rates.stock,
      published,
    ),
  ]
}

/** Memory of a node's daemon and control round trips, alone, with idle clients, and with clients that send. */
export async function memoryLines(complaints: string[]): Promise<Line[]> {
  const lines: Line[] = []
  for (const count of ["1000", "5000"]) {
    const words = ["clients", "--sandbox", "1", "--compare", "stock", "--clients", count, "--seconds", "2.5"]
    for (const row of (await bench(complaints, ...words)).rows) {
      // Once is enough of what has nothing to do with the number of clients.
      if (count !== "1000" && /no other clients|^resident/.test(row.title)) continue
      const least = row.title.startsWith("control") || row.title.includes("5000 idle clients") ? 1 : undefined
      const what = row.title.startsWith("the same with")
        ? row.title.replace("the same", "resident memory of a node's daemon")
        : row.title
      const [ours, stock] = row.targets.map(({ samples }) => samples)
      const asked = { section: "One node under many clients", what, unit: row.unit, better: row.better }
      lines.push(compared({ ...asked, ...(least === undefined ? {} : { least }) }, ours!, stock!))
    }
  }
  return lines
}

export async function pressureLines(): Promise<Line[]> {
  const section = "A node under pressure"
  const [ours, stock] = [await stampede("ours"), await stampede("stock")]
  const held = "a database locked for 5 s, 1 000 requests/s for it"
  const ms = (value: number) => `${figure(value)} ms`
  const lines = [
    limited(
      section,
      `${held}: answered`,
      [`${ours.answered} of ${ours.requests}`, `${stock.answered} of ${stock.requests}`],
      {
        text: "all",
        holds: ours.answered === ours.requests,
      },
    ),
    limited(section, `${held}: last answer after the unlock`, [ms(ours.last), ms(stock.last)], {
      text: "<= 1 s",
      holds: ours.last <= 1000,
    }),
    limited(section, `${held}: processes forked`, [String(ours.children), String(stock.children)], {
      text: "0",
      holds: ours.children === 0,
    }),
    limited(section, `${held}: a leader's broadcast late by`, [ms(ours.nodes.broadcast), ms(stock.nodes.broadcast)], {
      text: "<= 100 ms",
      holds: ours.nodes.broadcast <= 100,
    }),
    limited(section, `${held}: round trip between nodes, worst`, [ms(ours.nodes.worst), ms(stock.nodes.worst)], {
      text: "<= 100 ms",
      holds: ours.nodes.worst <= 100,
    }),
  ]
  const [ourFlood, stockFlood] = [await flood("ours"), await flood("stock")]
  const sending = "1 000 clients sending 100 messages/s each"
  return [
    ...lines,
    limited(section, `${sending}: control round trip, median`, [ms(ourFlood.p50 / 1000), ms(stockFlood.p50 / 1000)]),
    limited(section, `${sending}: control round trip, p99`, [ms(ourFlood.p99 / 1000), ms(stockFlood.p99 / 1000)]),
    limited(section, `${sending}: round trip between nodes, median`, [
      ms(ourFlood.nodes.median),
      ms(stockFlood.nodes.median),
    ]),
    limited(section, `${sending}: round trip between nodes, worst`, [
      ms(ourFlood.nodes.worst),
      ms(stockFlood.nodes.worst),
    ]),
    limited(section, `${sending}: a leader's broadcast late by`, [
      ms(ourFlood.nodes.broadcast),
      ms(stockFlood.nodes.broadcast),
    ]),
  ]
}

/** How late nodes answer their clients while they recover. */
export async function stallLines(): Promise<Line[]> {
  const [ours, stock] = [await recovery("ours"), await recovery("stock")]
  const what = "recovery of 100 000 records in 50 databases: worst answer of a node to its client meanwhile"
  const limit = { text: "<= 50 ms", holds: ours.worst <= 50 }
  return [limited("Recovery", what, [`${figure(ours.worst)} ms`, `${figure(stock.worst)} ms`], limit)]
}

/** Sync calls that a commit from node 0 costs another node, all its processes together. */
async function syncsOf(pair: Pair, kind: Kind): Promise<number> {
  const cluster = pair[kind]
  const directory = mkdtempSync(join(tmpdir(), "ctdb-syncs-"))
  const [trace, socket] = [join(directory, "trace"), cluster.node(0).socket]
  const run = (seconds: number) =>
    publishedOnce(
      ...[
        "transaction_loop",
        "-s",
        socket,
        "-t",
        String(seconds),
        "-D",
        "syncs.tdb",
        "-k",
        "testkey",
        "-T",
        "persistent",
      ],
    )
  // The database is there on all nodes.
  const before = Number(/Transaction\[0\]: +(\d+)/.exec(await run(1))?.[1])
  const calls = "fdatasync,fsync,msync,sync_file_range"
  const words = ["-f", "-q", "-e", `trace=${calls}`, "-o", trace, "-p", String(cluster.node(1).pid)]
  const strace = Bun.spawn(["strace", ...words], { stdin: "ignore", stdout: "ignore", stderr: "ignore" })
  try {
    await waitUntil("strace", () =>
      /TracerPid:\s+[1-9]/.test(readFileSync(`/proc/${cluster.node(1).pid}/status`, "utf8")),
    )
    const after = Number(/Transaction\[0\]: +(\d+)/.exec(await run(2))?.[1])
    strace.kill("SIGINT")
    await strace.exited
    const syncs = readFileSync(trace, "utf8")
      .split("\n")
      .filter((line) => /^\d+ +(?:fdatasync|fsync|msync|sync_file_range)\(/.test(line)).length
    return syncs / (after - before)
  } finally {
    strace.kill("SIGKILL")
    rmSync(directory, { recursive: true, force: true })
  }
}

export async function syncLines(): Promise<Line[]> {
  const counts: Partial<Record<Kind, number>> = {}
  await withPair({ where: "disk", locks: "mutex" }, async (pair) => {
    for (const kind of kinds) counts[kind] = await syncsOf(pair, kind)
  })
  const text = (kind: Kind) => `${counts[kind]!.toFixed(2)} calls`
  return [limited("Clusters of three nodes", "sync calls of a commit on each node", [text("ours"), text("stock")])]
}

const SHARES = 200
const IMPORTS = 3

/** `net conf import` of many shares into the registry database of a cluster (s). */
export async function importLines(): Promise<Line[]> {
  const seconds = none()
  await withPair({ where: "disk", locks: "mutex" }, async (pair) => {
    for (let round = 0; round < IMPORTS; round++) {
      for (const kind of round % 2 === 0 ? kinds : kinds.toReversed())
        seconds[kind].push(await importShares(pair[kind]))
    }
  })
  const what = `net conf import of ${SHARES} shares`
  return [
    compared({ section: "Clusters of three nodes", what, unit: "s", better: "less" }, seconds.ours, seconds.stock),
  ]
}

async function importShares(cluster: MixedCluster): Promise<number> {
  const base = join(cluster.directory, "samba")
  const settings = [
    "private dir",
    "state directory",
    "lock directory",
    "cache directory",
    "pid directory",
    "ncalrpc dir",
  ]
  const directories = settings.map((setting) => {
    const path = join(base, setting.replaceAll(" ", "-"))
    mkdirSync(path, { recursive: true })
    return `${setting} = ${path}`
  })
  const socket = `ctdbd socket = ${cluster.node(0).socket}`
  const lines = ["[global]", "clustering = yes", socket, "include = registry", `log file = ${base}/log`, ...directories]
  writeFileSync(join(base, "smb.conf"), `${lines.join("\n")}\n`)
  const shares = Array.from({ length: SHARES }, (_, index) => `[share${index}]\npath = /srv/${index}\nread only = no\n`)
  writeFileSync(join(base, "shares.conf"), shares.join(""))
  const net = async (...words: string[]): Promise<string> => {
    const child = Bun.spawn(["net", "-s", join(base, "smb.conf"), "conf", ...words], { stdout: "pipe", stderr: "pipe" })
    const text = (await new Response(child.stdout).text()) + (await new Response(child.stderr).text())
    if ((await child.exited) !== 0) throw new Error(`net conf ${words[0]}: ${text}`)
    return text
  }
  await net("drop")
  const begun = performance.now()
  await net("import", join(base, "shares.conf"))
  const taken = (performance.now() - begun) / 1000
  const listed = (await net("listshares")).split("\n").filter((line) => line.startsWith("share")).length
  if (listed !== SHARES) throw new Error(`net conf import: ${listed} of ${SHARES} shares are there`)
  return taken
}
