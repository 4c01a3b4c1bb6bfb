// `ctdb sandbox` as the compiled binary alone: its load moves records, notices what is lost, outlives a node, and ends with the sandbox.

import { afterEach, expect, test } from "bun:test"
import { mkdtempSync, readFileSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { LOAD_DATABASE, LOAD_RECORDS, type LoadReport, readReport } from "../../cmd/sandbox-load.ts"
import { processExists } from "../../lib/sys/process.ts"
import { binary } from "../binary.ts"
import { waitUntil } from "../peers/stock.ts"

const TIMEOUT_MS = 60_000
const directories: string[] = []
function newDirectory(): string {
  const directory = mkdtempSync(join(tmpdir(), "ctdb-sandbox-test-"))
  directories.push(directory)
  return directory
}

async function ctdb(words: readonly string[], env: Record<string, string> = {}) {
  const child = Bun.spawn([binary, ...words], {
    env: { ...process.env, ...env },
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
  })
  const [stdout, stderr] = await Promise.all([new Response(child.stdout).text(), new Response(child.stderr).text()])
  return { status: await child.exited, stdout, stderr }
}

afterEach(async () => {
  for (const directory of directories.splice(0)) {
    await ctdb(["sandbox", "stop", "--dir", directory])
    rmSync(directory, { recursive: true, force: true })
  }
}, TIMEOUT_MS)

const pidIn = (...path: string[]): number => Number(readFileSync(join(...path), "utf8"))

async function report(directory: string, what: string, holds: (report: LoadReport) => boolean): Promise<LoadReport> {
  let last: LoadReport | undefined
  await waitUntil(
    what,
    () => {
      last = readReport(directory)
      return last !== undefined && holds(last)
    },
    300_000,
  )
  return last!
}

const heldBy = ({ nodes }: LoadReport): number => nodes.reduce((sum, { held }) => sum + (held ?? 0), 0)

test(
  "detached with --load: records move between the nodes, are all there, and stop ends it all",
  async () => {
    const directory = newDirectory()
    const started = await ctdb(["sandbox", "--detach", "--load", "--dir", directory])
    expect({ ...started, stdout: "" }).toEqual({ status: 0, stdout: "", stderr: "" })
    const moving = await report(directory, "all nodes at work", ({ nodes }) =>
      nodes.every(({ counts }) => counts > 100),
    )
    for (const { migrations } of moving.nodes) expect(migrations).toBeGreaterThan(10)
    // Each record has one owner; one that is on its way has none for a moment.
    await report(directory, "an owner for each record", (seen) => heldBy(seen) === LOAD_RECORDS)

    // A node dies: the others go on, and what it had counts as lost with it, not as wrong.
    const before = readReport(directory)!
    process.kill(pidIn(directory, "node.2", "run", "ctdbd.pid"), "SIGKILL")
    const after = await report(
      directory,
      "the survivors at work, owning everything",
      (seen) =>
        seen.nodes[2]!.held === undefined &&
        [0, 1].every((pnn) => seen.nodes[pnn]!.counts > before.nodes[pnn]!.counts + 300) &&
        heldBy(seen) === LOAD_RECORDS,
    )
    expect({ wrong: after.wrong }).toEqual({ wrong: [] })

    // Somebody sets a record back: that is noticed.
    const env = { CTDB_TEST_MODE: "1", CTDB_BASE: join(directory, "node.0") }
    expect(await ctdb(["writekey", LOAD_DATABASE, "record 3", "1"], env)).toMatchObject({ status: 0 })
    const caught = await report(directory, "the record that was set back", ({ wrong }) => wrong.length > 0)
    expect(caught.wrong[0]).toMatch(/^node \d found 1 in record 3, where \d+ was written$/)

    const load = pidIn(directory, "load.pid")
    expect(processExists(load)).toBe(true)
    expect((await ctdb(["sandbox", "stop", "--dir", directory])).stdout).toStartWith("2 nodes stopped")
    expect(processExists(load)).toBe(false)
  },
  2 * TIMEOUT_MS,
)

test.each([
  ["on its own", [], true],
  ["with --no-load", ["--no-load"], false],
] as const)(
  "in the foreground %s: the nodes are shown, the check with the load, and an interrupt ends everything",
  async (_, words, loads) => {
    const directory = newDirectory()
    const child = Bun.spawn([binary, "sandbox", "--dir", directory, ...words], {
      stdin: "ignore",
      stdout: "pipe",
      stderr: "pipe",
    })
    let said = ""
    const reading = (async () => {
      const decoder = new TextDecoder()
      for await (const chunk of child.stdout) said += decoder.decode(chunk, { stream: true })
    })()
    await waitUntil("all nodes well", () => (said.match(/ OK +RUNNING/g) ?? []).length >= 3, 60_000)
    if (loads) await waitUntil("the check", () => said.includes("Counter check: exact ("), 60_000)
    const pids = [0, 1, 2].map((pnn) => pidIn(directory, `node.${pnn}`, "run", "ctdbd.pid"))
    if (loads) pids.push(pidIn(directory, "load.pid"))
    else expect(readReport(directory)).toBeUndefined()
    child.kill("SIGINT")
    await reading
    expect(await child.exited).toBe(0)
    expect(said).toContain("3 nodes stopped")
    expect(pids.filter(processExists)).toEqual([])
  },
  TIMEOUT_MS,
)

test(
  "a sandbox that is killed takes its load and its nodes with it",
  async () => {
    const directory = newDirectory()
    const child = Bun.spawn([binary, "sandbox", "--dir", directory], {
      stdin: "ignore",
      stdout: "ignore",
      stderr: "ignore",
    })
    await report(directory, "some counts", ({ counts }) => counts > 10)
    const pids = [
      ...[0, 1, 2].map((pnn) => pidIn(directory, `node.${pnn}`, "run", "ctdbd.pid")),
      pidIn(directory, "load.pid"),
    ]
    child.kill("SIGKILL")
    await child.exited
    await waitUntil("nothing of it running", () => !pids.some(processExists), 60_000)
  },
  TIMEOUT_MS,
)
