// `ctdb bench` on real clusters: every generator's checks hold on stock nodes and ours, a broken count ends with status 1, and our generators
// start together and work with the published algorithms (tests/bench/published.c) through the stock start barrier.

import { afterAll, beforeAll, describe, expect, test } from "bun:test"
import { mkdtempSync, readFileSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import type { Result } from "../../cmd/bench/output.ts"
import { attach, forgetDatabases } from "../../lib/client/attach.ts"
import { Client } from "../../lib/client/client.ts"
import { binary } from "../binary.ts"
import { type Kind, MixedCluster } from "./nodes.ts"
import { stockInstalled, waitUntil } from "./stock.ts"

const NODES = 2
const QUICK = ["--seconds", "0.5", "--warmup", "0.2"]
const directory = mkdtempSync(join(tmpdir(), "ctdb-bench-test-"))
const published = join(directory, "published")

interface Ran {
  readonly status: number
  readonly stdout: string
  readonly stderr: string
}

async function ran(command: readonly string[]): Promise<Ran> {
  const child = Bun.spawn([...command], { stdin: "ignore", stdout: "pipe", stderr: "pipe" })
  const [stdout, stderr, status] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
    child.exited,
  ])
  return { status, stdout, stderr }
}

const bench = (...words: string[]): Promise<Ran> => ran([binary, "bench", ...words])

async function rowsOf(...words: string[]): Promise<Result["rows"]> {
  const { status, stdout, stderr } = await bench(...words, "--json")
  expect({ status, stderr }).toEqual({ status: 0, stderr: "" })
  return (JSON.parse(stdout) as Result).rows
}

beforeAll(() => {
  const source = join(import.meta.dir, "../bench/published.c")
  const built = Bun.spawnSync(["gcc", "-O2", "-o", published, source, "-ldl"])
  if (!built.success) throw new Error(built.stderr.toString())
})
afterAll(() => rmSync(directory, { recursive: true, force: true }))

describe.skipIf(!stockInstalled).each<[Kind, string]>([
  ["stock", "127.64.1."],
  ["ours", "127.64.2."],
])("on %s nodes", (kind, prefix) => {
  const cluster = new MixedCluster(prefix, [kind, kind], { lock: true, tunables: ["RerecoveryTimeout=1"] })
  let sockets: readonly string[] = []
  beforeAll(async () => {
    await cluster.startTogether()
    await cluster.allOk()
    sockets = cluster.pnns.map((pnn) => cluster.node(pnn).socket)
  }, 300_000)
  afterAll(() => cluster.end(), 30_000)
  const all = () => ["--socket", sockets.join(",")]

  test.each(["single-record", "contention", "g-lock", "persistent", "ring", "spread", "readonly", "messages"])(
    "%s does work, and its checks hold",
    async (generator) => {
      const rows = await rowsOf(generator, ...all(), ...QUICK)
      expect(rows.length).toBeGreaterThan(0)
      for (const { title, targets } of rows) {
        expect({ title, violations: targets[0]!.violations }).toEqual({ title, violations: [] })
        expect(targets[0]!.samples.length).toBe(5)
        expect(Math.max(...targets[0]!.samples)).toBeGreaterThan(0)
      }
    },
    100_000,
  )

  test("clients and recoveries", async () => {
    const clients = await rowsOf("clients", ...all(), ...QUICK, "--clients", "50", "--rate", "500")
    expect(clients.flatMap(({ targets }) => targets[0]!.violations)).toEqual([])
    const recoveries = await rowsOf("recovery", ...all(), ...QUICK, "--records", "500")
    expect(recoveries.flatMap(({ targets }) => targets[0]!.violations)).toEqual([])
    expect(recoveries[0]!.targets[0]!.samples.length).toBe(5)
  }, 300_000)

  test("a record that somebody sets back is an error, not a slower number", async () => {
    const running = bench(
      "single-record",
      ...all(),
      "--db",
      "victim.tdb",
      "--key",
      "k",
      "--seconds",
      "2",
      "--warmup",
      "0.1",
    )
    const client = await Client.connect({ socket: sockets[0]! })
    try {
      const database = await attach(client, "victim.tdb")
      const counter = async (): Promise<number> => {
        const record = await database.fetchLock(Buffer.from("k"))
        const value = record.length < 4 ? 0 : Buffer.from(record.copy()).readUInt32LE(0)
        if (value > 1000) record.store(new Uint8Array([7, 0, 0, 0]))
        record.unlock()
        return value
      }
      await waitUntil("a counter above 1000", async () => (await counter()) > 1000)
    } finally {
      await forgetDatabases(client)
      await client.close()
    }
    const { status, stderr } = await running
    expect(status).toBe(1)
    expect(stderr).toContain("record k went back from")
    expect(stderr).toContain("the clients counted")
  }, 300_000)

  test.each([
    ["messages", [], "message_ring", [], /^Waiting for cluster\nRing\[0\]: [\d.]+ msgs\/sec \(\+ve=\d+ -ve=\d+\)\n$/],
    [
      "ring",
      ["--db", "ring.tdb", "--key", "meet"],
      "fetch_ring",
      ["-D", "ring.tdb", "-k", "meet"],
      /^Waiting for cluster\nFetch\[0\]: [\d.]+ msgs\/sec\n$/,
    ],
    ["g-lock", [], "g_lock_loop", [], /^Waiting for cluster\nPNN:0 counter:\d+\n$/],
    ["contention", [], "fetch_loop", [], /^Waiting for cluster\nLocks:\d+\n$/],
    [
      "readonly",
      [],
      "fetch_readonly_loop",
      ["-D", "fetch_readonly_loop.tdb", "-k", "testkey"],
      /^Waiting for cluster\nLocks:\d+\n$/,
    ],
    // Whoever polls for the lock of a stock client may find it taken every time, here as among stock clients: only that the
    // stock one works, and that nothing is wrong, can be asked.
    [
      "persistent",
      ["--kind", "persistent", "--db", "meet.tdb"],
      "transaction_loop",
      ["-D", "meet.tdb", "-k", "testkey", "-T", "persistent"],
      /^Waiting for cluster\nTransaction\[0\]: +[1-9]\d* +\d+ \n$/,
    ],
  ] as const)(
    "%s %j and a published %s start together and work with each other",
    async (ours, names, theirs, words, line) => {
      const [mine, other] = await Promise.all([
        bench(ours, "--socket", sockets[1]!, "--nodes", "2", ...names, "--seconds", "1", "--warmup", "1.5", "--json"),
        ran([published, theirs, "-s", sockets[0]!, "-n", "2", "-t", "4", ...words]),
      ])
      expect({ status: mine.status, stderr: mine.stderr }).toEqual({ status: 0, stderr: "" })
      expect(other.status).toBe(0)
      expect(other.stdout).toMatch(line)
      const result = JSON.parse(mine.stdout) as Result
      expect(result.rows[0]!.targets[0]!.violations).toEqual([])
      if (theirs !== "transaction_loop") expect(Math.max(...result.rows[0]!.targets[0]!.samples)).toBeGreaterThan(0)
    },
    300_000,
  )

  test("a generator alone gives up waiting and says who is missing", async () => {
    const { status, stderr } = await bench("g-lock", "--socket", sockets[0]!, "--nodes", "2", ...QUICK)
    expect(status).toBe(1)
    expect(stderr).toContain("no generator came on node 1")
  }, 300_000)
})

test("a sandbox of its own, a report that is one page", async () => {
  const report = join(directory, "report.html")
  const { status, stdout, stderr } = await bench(
    "messages",
    "--sandbox",
    String(NODES),
    "--depth",
    "4",
    ...QUICK,
    "--report",
    report,
  )
  expect({ status, stderr }).toEqual({ status: 0, stderr: "" })
  expect(stdout).toContain("message ring of 2 nodes, 8 messages under way")
  const page = readFileSync(report, "utf8")
  expect(page).toStartWith("<!doctype html>")
  expect(page).toContain("<svg")
  expect(page).toContain("Every check held")
  // Nothing is fetched from anywhere.
  expect(page).not.toMatch(/(?:src|href)=|@import|url\(/)
  expect(page).not.toMatch(/NaN|undefined|Infinity/)
}, 300_000)

test("a daemon that is not there is an error with status 1", async () => {
  const { status, stderr } = await bench("messages", "--socket", join(directory, "nobody"), ...QUICK)
  expect(status).toBe(1)
  expect(stderr).toContain("ENOENT")
})
