// Clusters of our nodes and stock ones, with and without a cluster lock: whatever happens, all nodes of both kinds agree.
// Four clusters go through each story side by side. How single commands print is tool.test.ts's affair.

import { afterAll, beforeAll, expect, test } from "bun:test"
import { NodeFlag } from "../../lib/protocol/constants.ts"
import { binary } from "../binary.ts"
import { GONE, type Kind, MixedCluster, NO_LEADER } from "./nodes.ts"
import { stockInstalled, waitUntil } from "./stock.ts"

const ORDERS = [
  [0, 1, 2],
  [0, 2, 1],
  [1, 0, 2],
  [1, 2, 0],
  [2, 0, 1],
  [2, 1, 0],
]
/** A banned or stopped node is left out, or taken back, within this time after the 10 s between two recoveries. */
const CHANGE_MS = 25_000
/** Leader broadcasts, one a second, that a minute brings. */
const MINUTE_BROADCASTS = 60

const compositions: readonly (readonly Kind[])[] = [
  ["ours", "stock", "stock"],
  ["stock", "ours", "ours"],
]
let clusters: MixedCluster[] = []

beforeAll(() => {
  clusters = [true, false].flatMap((lock, which) =>
    compositions.map((kinds, index) => new MixedCluster(`127.21.${10 + 2 * which + index}.`, kinds, { lock })),
  )
})
afterAll(async () => {
  await Promise.all(clusters.map((cluster) => cluster.end()))
}, 300_000)

const all = async (story: (cluster: MixedCluster) => Promise<void>): Promise<void> => {
  const outcomes = await Promise.allSettled(clusters.map(story))
  const failed = outcomes.find((outcome) => outcome.status === "rejected")
  if (failed !== undefined) throw failed.reason
}

const running = (cluster: MixedCluster) => cluster.pnns.filter((pnn) => cluster.nodes[pnn] !== undefined)
const ofKind = (cluster: MixedCluster, kind: Kind) => running(cluster).filter((pnn) => cluster.kinds[pnn] === kind)
const other = (kind: Kind): Kind => (kind === "ours" ? "stock" : "ours")

/** All nodes that run are OK, says lib/client, and then the stock tool. */
async function allOk(cluster: MixedCluster, timeoutMs?: number): Promise<void> {
  await cluster.allOk(timeoutMs)
  const observers = running(cluster)
  const flags = cluster.pnns.map((pnn) => (observers.includes(pnn) ? 0 : GONE))
  await cluster.checkWithStockTool({ observers, flags })
}

/** All nodes run; that one has these flags, and everybody knows. */
async function flagged(cluster: MixedCluster, pnn: number, flags: number): Promise<void> {
  const expected = { observers: cluster.pnns, flags: cluster.pnns.map((other) => (other === pnn ? flags : 0)) }
  await cluster.settled(expected, CHANGE_MS)
  await cluster.checkWithStockTool(expected)
}

/** The tool of the node's own kind, talking to it. */
async function command(cluster: MixedCluster, pnn: number, ...words: string[]): Promise<void> {
  const node = cluster.node(pnn)
  if (node.kind === "stock") {
    expect(await node.tool(...words)).toMatchObject({ status: 0 })
    return
  }
  const tool = Bun.spawn([binary, ...words], {
    env: node.environment,
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
  })
  const [status, errors] = await Promise.all([tool.exited, new Response(tool.stderr).text()])
  expect({ words, status, errors }).toEqual({ words, status: 0, errors: "" })
}

/** Makes a node of that kind leader, by taking the right to lead away from all others for a moment. */
async function lead(cluster: MixedCluster, kind: Kind): Promise<number> {
  const others = ofKind(cluster, other(kind))
  for (const pnn of others) await cluster.node(pnn).tool("setleaderrole", "off")
  await waitUntil(
    `leader that is ${kind}`,
    () => running(cluster).every((pnn) => cluster.kinds[cluster.leader(pnn)] === kind),
    300_000,
  )
  for (const pnn of others) await cluster.node(pnn).tool("setleaderrole", "on")
  await allOk(cluster)
  return cluster.leader(ofKind(cluster, kind)[0]!)
}

const story = test.skipIf(!stockInstalled)

story(
  "all are OK in every start order",
  async () => {
    await all(async (cluster) => {
      for (const order of ORDERS) {
        await cluster.startAll(order)
        await allOk(cluster)
        // The last cluster is the one that the other stories go on with.
        if (order !== ORDERS.at(-1)) await Promise.all(cluster.pnns.map((pnn) => cluster.stop(pnn)))
      }
    })
  },
  240_000,
)

story(
  "a killed leader, whichever kind it is, is replaced, and comes back",
  async () => {
    await all(async (cluster) => {
      for (const kind of ["ours", "stock"] as const) {
        const leader = await lead(cluster, kind)
        await cluster.kill(leader)
        await allOk(cluster)
        await cluster.start(leader)
        await allOk(cluster)
      }
    })
  },
  240_000,
)

story(
  "a node is banned and unbanned by one of the other kind, and a ban ends by itself",
  async () => {
    await all(async (cluster) => {
      for (const kind of ["ours", "stock"] as const) {
        const banned = ofKind(cluster, kind)[0]!
        const judge = ofKind(cluster, other(kind))[0]!
        await command(cluster, judge, "ban", "300", "-n", String(banned))
        await flagged(cluster, banned, NodeFlag.BANNED)
        await command(cluster, judge, "unban", "-n", String(banned))
        await flagged(cluster, banned, 0)
        await command(cluster, judge, "ban", "2", "-n", String(banned))
        await waitUntil("end of the ban", () => /Banning timed out/.test(cluster.log(banned)))
        await flagged(cluster, banned, 0)
      }
    })
  },
  240_000,
)

story(
  "a node is stopped and continued, disabled and enabled by one of the other kind",
  async () => {
    await all(async (cluster) => {
      for (const kind of ["ours", "stock"] as const) {
        const node = ofKind(cluster, kind)[0]!
        const operator = ofKind(cluster, other(kind))[0]!
        await command(cluster, operator, "stop", "-n", String(node))
        await flagged(cluster, node, NodeFlag.STOPPED)
        await command(cluster, operator, "continue", "-n", String(node))
        await flagged(cluster, node, 0)
        await command(cluster, operator, "disable", "-n", String(node))
        await flagged(cluster, node, NodeFlag.PERMANENTLY_DISABLED)
        await command(cluster, operator, "enable", "-n", String(node))
        await flagged(cluster, node, 0)
      }
    })
  },
  240_000,
)

story(
  "stock nodes led by ours for a minute see no election",
  async () => {
    await all(async (cluster) => {
      const leader = await lead(cluster, "ours")
      const before = running(cluster).map((pnn) => ({
        pnn,
        heard: cluster.leaders(pnn).length,
        logged: cluster.log(pnn).length,
      }))
      const generations = async () =>
        await Promise.all(running(cluster).map(async (pnn) => (await cluster.view(pnn))?.generation))
      const generationsBefore = await generations()
      await waitUntil(
        "a minute of leader broadcasts",
        () => before.every(({ pnn, heard }) => cluster.leaders(pnn).length - heard >= MINUTE_BROADCASTS),
        75_000,
      )
      for (const { pnn, heard, logged } of before) {
        const messages = cluster.leaders(pnn).slice(heard)
        expect(messages.filter((message) => message.leader !== leader)).toEqual([])
        const gaps = messages.slice(1).map(({ atMs }, index) => atMs - messages[index]!.atMs)
        expect(Math.max(...gaps)).toBeLessThan(4000)
        expect(cluster.log(pnn).slice(logged)).not.toMatch(/[Ee]lection|Leader broadcast timeout|cluster lock|recovery/)
      }
      expect(await generations()).toEqual(generationsBefore)
      expect(cluster.leader(leader)).not.toBe(NO_LEADER)
    })
  },
  120_000,
)

story(
  "a node is added to a running cluster, and deleted from it, by nodes of both kinds",
  async () => {
    await all(async (cluster) => {
      // The new node is of the kind that the cluster has fewer of; a node of the other kind adds it, one of its own deletes it.
      const kind: Kind = ofKind(cluster, "ours").length > 1 ? "stock" : "ours"
      const added = cluster.add(kind)
      await command(cluster, ofKind(cluster, other(kind))[0]!, "reloadnodes")
      await waitUntil("four nodes in every list", async () => {
        const views = await Promise.all(running(cluster).map((pnn) => cluster.view(pnn)))
        return views.every((view) => view?.flags.length === 4)
      })
      await cluster.start(added)
      await allOk(cluster)
      await cluster.stop(added)
      await allOk(cluster)
      cluster.comment(added, true)
      await command(cluster, ofKind(cluster, kind)[0]!, "reloadnodes")
      await cluster.allOk()
      const observers = running(cluster)
      await cluster.checkWithStockTool({
        observers,
        flags: cluster.pnns.map((pnn) => (pnn === added ? NodeFlag.DELETED | NodeFlag.DISCONNECTED : 0)),
      })
    })
  },
  180_000,
)
