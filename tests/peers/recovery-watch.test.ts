// `ctdb recover --watch` on a pipe: what a leader of ours tells, line by line up to the end, and silence beside a stock leader,
// which tells nothing.

import { afterEach, expect, setDefaultTimeout, test } from "bun:test"
import { binary } from "../binary.ts"
import { type Kind, MixedCluster } from "./nodes.ts"
import { stockInstalled } from "./stock.ts"

setDefaultTimeout(90_000)

let cluster: MixedCluster | undefined
afterEach(async () => {
  await cluster?.end()
}, 300_000)

async function start(prefix: string, kinds: readonly Kind[]): Promise<void> {
  cluster = new MixedCluster(prefix, kinds, { lock: true })
  // Who is there first leads.
  await cluster.start(0)
  await cluster.allOk()
  await cluster.start(1)
  await cluster.allOk()
  for (const name of ["a.tdb", "b.tdb"]) expect((await cluster.node(0).tool("attach", name)).status).toBe(0)
}

async function watch(pnn: number, ...options: string[]): Promise<string[]> {
  const child = Bun.spawn([binary, ...options, "recover", "--watch"], {
    env: { ...process.env, CTDB_TEST_MODE: "1", CTDB_BASE: cluster!.base(pnn) },
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
  })
  const [stdout, stderr] = await Promise.all([new Response(child.stdout).text(), new Response(child.stderr).text()])
  expect({ stderr, status: await child.exited }).toEqual({ stderr: "", status: 0 })
  return stdout.split("\n").slice(0, -1)
}

test.skipIf(!stockInstalled)("a leader of ours tells, also through a stock member's node, how far it is", async () => {
  await start("127.62.40.", ["ours", "stock"])
  for (const pnn of cluster!.pnns) {
    const lines = await watch(pnn)
    const shape =
      /^Recovery by node 0, (databases|finishing|done): \d+ of \d+ databases frozen, \d+ recovered, \d+ records sent \(\d+ bytes\), \d+ alike, \d+\.\d s$/
    for (const line of lines) expect(line).toMatch(shape)
    expect(lines[0]).toContain("databases: 0 of ")
    expect(lines.at(-1)).toMatch(/ done: (\d+) of \1 databases frozen, \1 recovered/)
  }
  const [first] = await watch(0, "--json")
  expect(JSON.parse(first!)).toMatchObject({ leader: 0, phase: "databases", recovered: 0, failed: 0 })
})

test.skipIf(!stockInstalled)("a stock leader tells nothing: the command ends all the same", async () => {
  await start("127.62.41.", ["stock", "ours"])
  expect(cluster!.leader(1)).toBe(0)
  expect(await watch(1)).toEqual([])
})
