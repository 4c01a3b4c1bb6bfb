// How a node daemon starts, refuses to start, and ends: exit statuses as the stock daemon's on the same files, texts that name
// file and line; and where the stock daemon is weak (cluster page 10.3 rows 11, 12, 21) what ours does instead.

import { afterAll, afterEach, beforeAll, describe, expect, test } from "bun:test"
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { Client } from "../../lib/client/client.ts"
import { binary } from "../binary.ts"
import { GONE, MixedCluster } from "../peers/nodes.ts"
import { stockInstalled, waitUntil } from "../peers/stock.ts"

const ADDRESS = "127.21.70.1"
const STOCK_CTDBD = "/usr/sbin/ctdbd"
const STARTED = 0

interface Outcome {
  readonly status: number
  readonly text: string
}

interface Files {
  readonly config?: string
  readonly nodes?: string | null
  readonly environment?: Readonly<Record<string, string | undefined>>
  prepare?(base: string): void
}

const bases: string[] = []
afterEach(() => {
  for (const base of bases.splice(0)) rmSync(base, { recursive: true, force: true })
})

function newBase({ config = "", nodes = `${ADDRESS}\n`, prepare }: Files): string {
  const base = mkdtempSync(join(tmpdir(), "ctdb-start-"))
  bases.push(base)
  for (const name of ["run", "var", "share", "events/legacy", "v", "p", "s"]) {
    mkdirSync(join(base, name), { recursive: true })
  }
  const usual = [
    "[logging]",
    `location = file:${base}/log`,
    "[database]",
    `volatile database directory = ${base}/v`,
    `persistent database directory = ${base}/p`,
    `state database directory = ${base}/s`,
    "",
  ]
  writeFileSync(join(base, "ctdb.conf"), usual.join("\n") + config)
  if (nodes !== null) writeFileSync(join(base, "nodes"), nodes)
  prepare?.(base)
  return base
}

/** Lines that newBase() puts in front of `config`. */
const USUAL_LINES = 6

async function answers(socket: string): Promise<boolean> {
  try {
    const client = await Client.connect({ socket, timeoutMs: 200 })
    await client.close()
    return true
  } catch {
    return false
  }
}

/** Runs a daemon in the foreground until it ends. One that comes up in spite of all is ended: status STARTED. */
async function start(command: readonly string[], base: string, files: Files): Promise<Outcome> {
  const daemon = Bun.spawn([...command], {
    env: { PATH: "/usr/sbin:/usr/bin:/sbin:/bin", CTDB_TEST_MODE: "1", CTDB_BASE: base, ...files.environment },
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
  })
  const output = Promise.all([new Response(daemon.stdout).text(), new Response(daemon.stderr).text()])
  let up = false
  await waitUntil("end of the start", async () => {
    if (daemon.exitCode !== null || daemon.signalCode !== null) return true
    up = await answers(join(base, "run", "ctdbd.socket"))
    return up
  })
  if (up) daemon.kill("SIGKILL")
  await daemon.exited
  const status = up ? STARTED : daemon.signalCode === "SIGABRT" ? 134 : (daemon.exitCode ?? -1)
  return { status, text: (await output).join("") }
}

const ours = (base: string, files: Files, ...words: string[]) => start([binary, "run", "-i", ...words], base, files)
const stock = (base: string, files: Files, ...words: string[]) => {
  // Without a node address it looks for one under a lock in this directory, which its service makes at a boot.
  mkdirSync("/run/ctdb", { recursive: true })
  return start([STOCK_CTDBD, "-i", ...words], base, files)
}

describe.skipIf(!stockInstalled)("a start with something wrong ends as the stock daemon's, and says what", () => {
  const cases: readonly [name: string, files: Files, words: string[], says: (base: string) => string][] = [
    ["an unknown option", {}, ["--nonsense"], () => "Invalid option --nonsense: unknown option"],
    ["a word", {}, ["word"], () => "Usage:"],
    [
      "a bad value in ctdb.conf",
      { config: "[cluster]\nleader timeout = 0\n" },
      [],
      () => `ctdb.conf line ${USUAL_LINES + 2}: `,
    ],
    [
      "an unknown option in ctdb.conf",
      { config: "[cluster]\nfoo = 1\n" },
      [],
      () => `ctdb.conf line ${USUAL_LINES + 2}: `,
    ],
    [
      "a node address that is none",
      { config: "[cluster]\nnode address = here\n" },
      [],
      () => `ctdb.conf line ${USUAL_LINES + 2}: `,
    ],
    [
      "a database directory that is gone",
      { prepare: (base) => rmSync(join(base, "s"), { recursive: true }) },
      [],
      () => `ctdb.conf line 6: `,
    ],
    ["a bad line in the nodes file", { nodes: `${ADDRESS}\nfoo\n` }, [], () => `nodes line 2: `],
    ["no nodes file", { nodes: null }, [], (base) => `${base}/nodes`],
    [
      "a node address that is not in the list",
      { config: "[cluster]\nnode address = 127.21.70.9\n" },
      [],
      () => "Can not determine PNN - unknown node address",
    ],
    [
      "no address of the list is here",
      { nodes: "198.51.100.7\n" },
      [],
      () => "Unable to bind to any node address - giving up",
    ],
    [
      "a client socket that can't be replaced",
      { prepare: (base) => mkdirSync(join(base, "run", "ctdbd.socket", "x"), { recursive: true }) },
      [],
      (base) => `${base}/run/ctdbd.socket`,
    ],
    [
      "no base in test mode",
      { environment: { CTDB_BASE: undefined } },
      [],
      () => "Broken CTDB setup, CTDB_BASE not set in test mode",
    ],
  ]
  for (const [name, files, words, says] of cases) {
    test(name, async () => {
      const base = newBase(files)
      const own = await ours(base, files, ...words)
      const reference = await stock(newBase(files), files, ...words)
      expect(own.status, `${own.text}\nstock: ${reference.text}`).toBe(reference.status)
      expect(own.text).toContain(says(base))
      if (own.status !== STARTED) expect(existsSync(join(base, "run", "ctdbd.pid"))).toBe(false)
    })
  }

  test("in the background too the exit status says it", () => {
    const base = newBase({ nodes: "198.51.100.7\n" })
    const environment = { PATH: "/usr/bin:/bin", CTDB_TEST_MODE: "1", CTDB_BASE: base }
    const own = Bun.spawnSync([binary, "run"], { env: environment, stdin: "ignore" })
    expect(own.exitCode).toBe(1)
    expect(readFileSync(join(base, "log"), "utf8")).toContain("Unable to bind to any node address - giving up")
  })
})

test("a node's process has the runtime's settings, an administrator's first; what it starts has only his", async () => {
  const notify = (base: string) =>
    writeFileSync(join(base, "notify.sh"), `#!/bin/sh\nenv > ${base}/environment.$1\n`, { mode: 0o755 })
  const base = newBase({ prepare: notify })
  const daemon = Bun.spawn([binary, "run", "-i"], {
    env: { PATH: "/usr/bin:/bin", CTDB_TEST_MODE: "1", CTDB_BASE: base, MIMALLOC_PURGE_DELAY: "5000" },
    stdin: "ignore",
    stdout: "ignore",
    stderr: "ignore",
  })
  try {
    const seen = join(base, "environment.init")
    await waitUntil("its notification", () => existsSync(seen) && readFileSync(seen, "utf8").includes("CTDB_BASE"))
    const settings = (text: string) => text.split(/[\0\n]/).filter((line) => /^(MIMALLOC|BUN_JSC)_/.test(line))
    // It is the process that was started, begun anew.
    const own = settings(readFileSync(`/proc/${daemon.pid}/environ`, "utf8"))
    expect(own).toContain("MIMALLOC_PURGE_DELAY=5000")
    expect(own).toContain("MIMALLOC_PURGE_HOLES=0")
    expect(own.length).toBeGreaterThan(3)
    expect(settings(readFileSync(seen, "utf8"))).toEqual(["MIMALLOC_PURGE_DELAY=5000"])
  } finally {
    daemon.kill("SIGKILL")
    await daemon.exited
  }
}, 60_000)

describe("a node of a running cluster", () => {
  const cluster = new MixedCluster("127.21.71.", ["ours", "ours", "ours"], { lock: true })
  beforeAll(async () => {
    await cluster.startTogether()
    await cluster.allOk()
  }, 300_000)
  afterAll(() => cluster.end(), 60_000)

  const pidFile = (pnn: number) => join(cluster.base(pnn), "run", "ctdbd.pid")

  /** The others see it go, in milliseconds from `sinceMs`. */
  async function missedAfter(pnn: number, sinceMs: number): Promise<number> {
    const others = cluster.pnns.filter((other) => other !== pnn)
    await waitUntil("the others missing it", async () => {
      const views = await Promise.all(others.map((other) => cluster.view(other)))
      return views.every((view) => view?.flags[pnn] === GONE)
    })
    return performance.now() - sinceMs
  }

  for (const signal of ["SIGTERM", "SIGINT"] as const) {
    test(`${signal} is an orderly end: status 0, no pid file, and the others know at once`, async () => {
      const node = cluster.node(2)
      const sinceMs = performance.now()
      process.kill(node.pid, signal)
      // A lost node would be missed after 25 s.
      expect(await missedAfter(2, sinceMs)).toBeLessThan(10_000)
      expect(await node.exited).toBe(0)
      expect(existsSync(pidFile(2))).toBe(false)
      expect(cluster.log(2)).toContain("Shutdown sequence complete, exiting.")
      await cluster.kill(2)
      await cluster.start(2)
      await cluster.allOk()
    }, 300_000)
  }

  test("the end of standard input is one as well in test mode, with a status of its own", async () => {
    expect(await cluster.stop(1)).toBe(32)
    expect(existsSync(pidFile(1))).toBe(false)
    await cluster.start(1)
    await cluster.allOk()
  }, 300_000)

  test("a restart right after a kill works at once", async () => {
    const killedMs = performance.now()
    await cluster.kill(2)
    expect(existsSync(pidFile(2))).toBe(true)
    await cluster.start(2)
    // It answers: a stock node can't for 5 s, while the event daemon of its former life holds on.
    expect(performance.now() - killedMs).toBeLessThan(5000)
    await cluster.allOk()
  }, 300_000)

  test("a second daemon on the same base refuses to start, and the first does not notice", async () => {
    const before = await cluster.view(0)
    const pid = readFileSync(pidFile(0), "utf8")
    const second = Bun.spawnSync([binary, "run", "-i"], { env: cluster.node(0).environment, stdin: "ignore" })
    expect(second.exitCode).toBe(11)
    expect(second.stderr.toString()).toContain(`Failed to create PID file ${pidFile(0)}`)
    expect(readFileSync(pidFile(0), "utf8")).toBe(pid)
    expect(await cluster.view(0)).toEqual(before!)
    expect((await cluster.node(0).tool("pnn")).status).toBe(0)
  }, 300_000)

  test("a nodes file that can't be read at a reload changes nothing", async () => {
    const path = join(cluster.base(0), "nodes")
    const good = readFileSync(path, "utf8")
    const before = await cluster.view(0)
    const reload = () => cluster.client(0).controlStatus("RELOAD_NODES_FILE", 0, undefined, { timeoutMs: 5000 })
    writeFileSync(path, `${good}nonsense\n`)
    expect(await reload()).toBe(-1)
    expect(cluster.log(0)).toContain("nodes line 4: ")
    rmSync(path)
    expect(await reload()).toBe(-1)
    expect(await cluster.view(0)).toEqual(before!)
    writeFileSync(path, good)
    expect(await reload()).toBe(0)
    await cluster.allOk()
    expect(await cluster.view(0)).toEqual(before!)
  }, 300_000)
})
