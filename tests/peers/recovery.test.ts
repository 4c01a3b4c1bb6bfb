// The recovery helper under stock recovery daemons, on real stock nodes: what it makes of the databases is what the stock
// helper makes of the same ones, record by record and header by header; and each control of a recovery refused, unanswered
// and answered late has the documented outcome.

import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test"
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { binary } from "../binary.ts"
import { type StockCluster, startStockCluster } from "./cluster.ts"
import { contents, values } from "./database-contents.ts"
import type { Fault } from "./recovery-proxy.ts"
import { SMALL_TABLES, type StockNode, startStockNode, stockInstalled, waitUntil } from "./stock.ts"

setDefaultTimeout(180_000)

const directory = mkdtempSync(join(tmpdir(), "ctdb-recovery-"))
const helper = join(directory, "ctdb_recovery_helper")
const DATABASES = ["v.tdb", "p.tdb", "r.tdb"]
const TUNABLES = ["VacuumInterval=10000", "RerecoveryTimeout=1", SMALL_TABLES]

beforeAll(() => symlinkSync(binary, helper))
afterAll(() => rmSync(directory, { recursive: true, force: true }))

async function tool(node: StockNode, ...words: string[]): Promise<string> {
  const { status, stdout, stderr } = await node.tool("-t", "60", ...words)
  expect({ words, status, stderr }).toEqual({ words, status: 0, stderr: "" })
  return stdout
}

async function generation(node: StockNode): Promise<string> {
  const { stdout } = await node.tool("-t", "10", "status")
  return /Generation:(\d+)[\s\S]*Recovery mode:NORMAL/.exec(stdout)?.[1] ?? ""
}

/** Runs a recovery and waits until its end. */
async function recover(node: StockNode): Promise<void> {
  const before = await generation(node)
  // The tool waits by itself, but not for ever.
  await node.tool("-t", "60", "recover")
  await waitUntil("another generation", async () => !["", before].includes(await generation(node)), 60_000)
}

const attach = async (node: StockNode): Promise<void> => {
  await tool(node, "attach", "v.tdb")
  await tool(node, "attach", "p.tdb", "persistent")
  await tool(node, "attach", "r.tdb", "replicated")
}

/** Records of a database on all given nodes, by node number. */
function held(cluster: StockCluster, name: string, pnns: readonly number[]): Record<number, string[] | undefined> {
  return Object.fromEntries(pnns.map((pnn) => [pnn, contents(cluster.nodes[pnn]!.base, name, pnn)]))
}

describe.skipIf(!stockInstalled)("beside the stock helper", () => {
  let clusters: StockCluster[] = []

  beforeAll(async () => {
    const starts = [{ CTDB_RECOVERY_HELPER: helper }, {}].map((environment, index) =>
      startStockCluster(`127.71.${index + 1}.`, 3, { environment, tunables: TUNABLES, logLevel: "INFO", leader: 0 }),
    )
    clusters = await Promise.all(starts)
  }, 300_000)
  afterAll(() => Promise.all(clusters.map((cluster) => cluster.stop())), 60_000)

  /** Both clusters go through the same, then hold the same. */
  async function alike(pnns: readonly number[], story: (nodes: readonly StockNode[]) => Promise<void>): Promise<void> {
    await Promise.all(clusters.map(({ nodes }) => story(nodes)))
    const [ours, stock] = clusters
    for (const name of DATABASES) {
      const expected = held(stock!, name, pnns)
      expect({ name, ...held(ours!, name, pnns) }).toEqual({ name, ...expected })
      expect(Object.values(expected).every((records) => (records?.length ?? 0) > 0)).toBe(true)
    }
  }

  test("volatile records of every owner, deleted ones, persistent and replicated ones", async () => {
    await alike([0, 1, 2], async (nodes) => {
      await attach(nodes[0]!)
      for (let i = 0; i < 20; i++) await tool(nodes[i % 3]!, "writekey", "v.tdb", `key ${i}`, `value ${i}`)
      for (let i = 0; i < 20; i += 3) await tool(nodes[(i + 1) % 3]!, "writekey", "v.tdb", `key ${i}`, `again ${i}`)
      await tool(nodes[1]!, "deletekey", "v.tdb", "key 4")
      for (const name of ["p.tdb", "r.tdb"]) {
        for (let i = 0; i < 6; i++) await tool(nodes[i % 3]!, "pstore", name, `key ${i}`, `value ${i}`)
        await tool(nodes[2]!, "pdelete", name, "key 2")
      }
      await recover(nodes[0]!)
    })
    expect(clusters[0]!.nodes.some((node) => node.log().includes("3 of 3 databases recovered"))).toBe(false)
    expect(clusters[0]!.nodes.some((node) => node.log().includes("4 of 4 databases recovered"))).toBe(true)
  })

  test("a node is stopped, misses writes, and comes back", async () => {
    await alike([0, 1, 2], async (nodes) => {
      await tool(nodes[2]!, "stop")
      await waitUntil("recovery without it", async () => (await generation(nodes[0]!)) !== "", 60_000)
      for (let i = 0; i < 8; i++) await tool(nodes[i % 2]!, "writekey", "v.tdb", `key ${i}`, `without ${i}`)
      for (const name of ["p.tdb", "r.tdb"]) await tool(nodes[0]!, "pstore", name, "late", "value")
      await tool(nodes[2]!, "continue")
      await waitUntil("recovery with it", async () => (await generation(nodes[2]!)) !== "", 60_000)
    })
  })

  test("properties that only one node knows are set on all, which the stock helper leaves out", async () => {
    const [ours] = clusters
    const [first, second, third] = ours!.nodes
    await tool(first!, "setdbsticky", "v.tdb")
    expect(await tool(second!, "getdbmap")).not.toMatch(/v\.tdb.* STICKY/)
    await recover(first!)
    for (const node of [second!, third!]) expect(await tool(node, "getdbmap")).toMatch(/v\.tdb.* STICKY/)
  })
})

/** How long a control of a recovery may take. The short form makes nothing late, and a slow machine must not either. */
const LIMIT_S = process.env.CTDB_SOAK === undefined ? 6 : 2

describe.skipIf(!stockInstalled)("as helper of stock nodes", () => {
  let cluster: StockCluster
  const proxy = join(directory, "proxy")
  const plan = join(directory, "plan")

  beforeAll(async () => {
    const program = join(import.meta.dir, "recovery-proxy.ts")
    writeFileSync(proxy, `#!/bin/sh\nexec ${process.execPath} ${program} "$@"\n`, { mode: 0o755 })
    const environment = {
      CTDB_RECOVERY_HELPER: proxy,
      CTDB_TEST_HELPER: helper,
      CTDB_TEST_FAULTS: plan,
    }
    cluster = await startStockCluster("127.71.3.", 3, {
      environment,
      logLevel: "INFO",
      tunables: [...TUNABLES, `RecoverTimeout=${LIMIT_S}`],
    })
    await attach(cluster.nodes[0]!)
    for (let i = 0; i < 9; i++) await tool(cluster.nodes[i % 3]!, "writekey", "v.tdb", `key ${i}`, `value ${i}`)
    for (const name of ["p.tdb", "r.tdb"]) await tool(cluster.nodes[0]!, "pstore", name, "key", "value")
    await recover(cluster.nodes[0]!)
  }, 300_000)
  afterAll(() => cluster.stop(), 60_000)

  const first = () => cluster.nodes[0]!
  const expectIntact = async (): Promise<void> => {
    for (const pnn of [0, 1, 2]) {
      const { base } = cluster.nodes[pnn]!
      expect(values(base, "v.tdb", pnn)).toEqual(Array.from({ length: 9 }, (_, i) => `key ${i} = value ${i}`))
      for (const name of ["p.tdb", "r.tdb"]) expect(values(base, name, pnn)).toContain("key = value")
    }
    expect(await tool(first(), "status")).not.toMatch(/BANNED/)
  }

  /** Applies faults to one recovery. Returns the names of faults that were applied, and what the helper logged. */
  async function faulty(...faults: Fault[]): Promise<{ applied: string[]; log: string }> {
    rmSync(`${plan}.log`, { force: true })
    writeFileSync(plan, JSON.stringify(faults))
    // Any of them may be the leader.
    const logged = cluster.nodes.map((node) => node.log().length)
    const newLog = () => cluster.nodes.map((node, pnn) => node.log().slice(logged[pnn])).join("\n")
    await recover(first())
    // The cluster may be at the end of another recovery still: the one with the fault has left its trace.
    await waitUntil("a fault that was applied", () => existsSync(`${plan}.log`), 60_000)
    await waitUntil("the end of the recovery", () => newLog().includes("Recovery complete"), 60_000)
    const applied = readFileSync(`${plan}.log`, "utf8").trim().split("\n")
    rmSync(plan)
    return { applied, log: newLog() }
  }

  /** A database's own controls: the attempt fails, the next one of the same recovery succeeds. */
  const ofDatabase = [
    "GET_DBNAME",
    "DB_FREEZE",
    "DB_TRANSACTION_START",
    "DB_PULL",
    "GET_DB_SEQNUM",
    "WIPE_DATABASE",
    "DB_PUSH_START",
    "DB_PUSH_CONFIRM",
    "DB_TRANSACTION_COMMIT",
    "DB_THAW",
  ]
  /** The cluster's controls: this recovery fails, the next one succeeds. */
  const ofCluster = ["GET_CAPABILITIES", "GET_DBMAP", "SET_RECMODE", "START_RECOVERY", "SETVNNMAP", "END_RECOVERY"]

  // Time-outs and late answers take minutes all together.
  const ways = process.env.CTDB_SOAK === undefined ? (["refuse"] as const) : (["refuse", "swallow", "delay"] as const)
  for (const how of ways) {
    for (const control of ofDatabase) {
      test(`${control} once: ${how}`, async () => {
        const { applied, log } = await faulty({ control, node: 1, how, delayMs: 3000, times: 1 })
        expect(applied).toEqual([`${how} ${control} node 1`])
        expect(log).toMatch(new RegExp(`attempt 1 of 3: ${control} failed on node 1`))
        expect(log).not.toMatch(/attempt 2 of 3|Recovery failed/)
        await expectIntact()
      })
    }
    for (const control of ofCluster) {
      test(`${control} once: ${how}`, async () => {
        const { applied, log } = await faulty({ control, node: 1, how, delayMs: 6000, times: 1 })
        expect(applied).toEqual([`${how} ${control} node 1`])
        expect(log).toMatch(new RegExp(`Recovery failed: ${control} failed on node 1`))
        await expectIntact()
      })
    }
  }

  test("DB_PULL's reply garbled, its messages and a push's lost", async () => {
    const faults: Fault[] = [
      { control: "DB_PULL", node: 2, how: "garble", times: 1 },
      { control: "MESSAGE", node: 1, how: "drop message", times: 1 },
      { control: "PUSH", node: 2, how: "drop message", times: 1 },
    ]
    for (const fault of faults) {
      const { applied, log } = await faulty(fault)
      expect(applied).toEqual([`${fault.how} ${fault.control} node ${fault.node}`])
      expect(log).toMatch(/attempt 1 of 3/)
      expect(log).not.toMatch(/attempt 2 of 3/)
      await expectIntact()
    }
  })

  test("two nodes fail at once: both are named", async () => {
    const { log } = await faulty(
      { control: "WIPE_DATABASE", node: 1, how: "refuse", times: 1 },
      { control: "WIPE_DATABASE", node: 2, how: "refuse", times: 1 },
    )
    expect(log).toMatch(/WIPE_DATABASE failed on node/)
    await expectIntact()
  })

  test("nothing of a database is left in the state directory", () => {
    for (const { base } of cluster.nodes) {
      const left = readdirSync(join(base, "state")).filter((name) => !name.startsWith("persistent_health"))
      expect(left).toEqual([])
    }
  })

  test("a node that fails a commit each time is banned, and the others go on", async () => {
    rmSync(`${plan}.log`, { force: true })
    writeFileSync(plan, JSON.stringify([{ control: "DB_TRANSACTION_COMMIT", node: 2, how: "refuse", times: 100 }]))
    await first().tool("recover")
    await waitUntil("the ban", async () => /pnn:2 .*BANNED/.test((await first().tool("status")).stdout), 60_000)
    await waitUntil("recovery without it", async () => (await generation(first())) !== "", 60_000)
    rmSync(plan)
    expect(await tool(first(), "readkey", "v.tdb", "key 1")).toMatch(/value 1/)
    await tool(cluster.nodes[2]!, "unban")
    await waitUntil("recovery with it", async () => (await generation(cluster.nodes[2]!)) !== "", 60_000)
    await expectIntact()
  })
})

test.skipIf(!stockInstalled)("diverged persistent copies: the loser's records are kept and told", async () => {
  const base = mkdtempSync(join(directory, "split-"))
  const nodes = ["127.71.4.1", "127.71.4.2"]
  const environment = { CTDB_RECOVERY_HELPER: helper }
  const start = (pnn: number, alone: boolean) =>
    startStockNode({
      base: join(base, String(pnn)),
      address: nodes[pnn]!,
      nodes: nodes.map((address, other) => (alone && other !== pnn ? `#${address}` : address)),
      tunables: TUNABLES,
      environment,
    })
  const normal = (node: StockNode) => waitUntil("recovery", async () => (await generation(node)) !== "", 60_000)
  // Two histories: each node commits while it does not know of the other.
  for (const pnn of [0, 1]) {
    const node = await start(pnn, true)
    await normal(node)
    await tool(node, "attach", "p.tdb", "persistent")
    await tool(node, "pstore", "p.tdb", "common", "value")
    for (let i = 0; i <= pnn; i++) await tool(node, "pstore", "p.tdb", `of ${pnn}, ${i}`, `value ${pnn}`)
    await node.stop()
  }
  const both = await Promise.all([start(0, false), start(1, false)])
  try {
    await waitUntil("both nodes", async () => {
      const { stdout } = await both[0]!.tool("status")
      return /Size:2[\s\S]*NORMAL/.test(stdout)
    })
    const taken = ["common = value", "of 1, 0 = value 1", "of 1, 1 = value 1"]
    for (const pnn of [0, 1]) expect(values(both[pnn]!.base, "p.tdb", pnn).slice(1)).toEqual(taken)
    const led = both.find((node) => node.log().includes("are kept in"))!
    const path = /are kept in (\S+)/.exec(led.log())![1]!
    const dump = Bun.spawnSync(["tdbdump", path]).stdout.toString()
    expect(dump).toContain("of 0, 0")
    expect(dump).not.toContain("common")
  } finally {
    await Promise.all(both.map((node) => node.stop()))
  }
})
