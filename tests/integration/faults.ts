// What befalls single nodes of a cluster of three: killed, hung for a short or a long time, stopped and started again; and how
// long the cluster takes until everybody agrees again. The same stories for nodes of either kind: faults.test.ts holds ours
// to them, tests/bench/faults.ts puts the times of both kinds side by side.

import { RecoveryMode } from "../../lib/protocol/constants.ts"
import { type Expected, GONE, type Kind, MixedCluster } from "../peers/nodes.ts"
import { waitUntil } from "../peers/stock.ts"

/** How long something took (s), by what it was. */
export interface Timing {
  readonly what: string
  readonly seconds: number
}

export interface Story {
  readonly name: string
  tell(cluster: MixedCluster): Promise<Timing[]>
}

const NODES = 3
/** Agreement counts once it has lasted this long: a resumed node may look well for a moment before its timers fire. */
const STABLE_MS = 4000
/** Short enough that no keepalive limit is near, long enough that leader timers are overdue. */
const SHORT_HANG_MS = 5000
/** A node that hangs is given up after 25 to 30 s (cluster page 3.6). */
const LONG_HANG_MS = process.env.CTDB_SOAK === undefined ? 35_000 : 60_000
const SETTLE_MS = 60_000

export function newCluster(kind: Kind, prefix: string, lock: boolean): MixedCluster {
  return new MixedCluster(
    prefix,
    Array.from({ length: NODES }, () => kind),
    { lock },
  )
}

const everybody = (cluster: MixedCluster): Expected => ({ observers: cluster.pnns, flags: cluster.pnns.map(() => 0) })
const without = (cluster: MixedCluster, gone: number): Expected => ({
  observers: cluster.pnns.filter((pnn) => pnn !== gone),
  flags: cluster.pnns.map((pnn) => (pnn === gone ? GONE : 0)),
})

/** Seconds from `sinceMs` until the cluster was as expected and stayed so. */
async function agreement(cluster: MixedCluster, expected: Expected, sinceMs: number): Promise<number> {
  let agreedMs: number | undefined
  let why: string | undefined
  try {
    await waitUntil(
      "lasting agreement",
      async () => {
        const lookedMs = performance.now()
        why = await cluster.unsettled(expected)
        if (why !== undefined) agreedMs = undefined
        else agreedMs ??= lookedMs
        return agreedMs !== undefined && performance.now() - agreedMs >= STABLE_MS
      },
      SETTLE_MS,
    )
  } catch (error) {
    throw new Error(`${String(error)}: ${why}\n${cluster.logEnds()}`)
  }
  await cluster.checkWithStockTool(expected)
  return (agreedMs! - sinceMs) / 1000
}

/** Starts a node as soon as it can be started. Resolves with how often it refused. */
async function startPatiently(cluster: MixedCluster, pnn: number): Promise<number> {
  for (let refused = 0; ; refused++) {
    try {
      await cluster.start(pnn)
      return refused
    } catch (error) {
      if (refused === 30) throw error
      await Bun.sleep(200)
    }
  }
}

/** Leaders and other nodes fare differently, so their times are kept apart. */
const role = (cluster: MixedCluster, pnn: number): string => (cluster.leader(pnn) === pnn ? "leader" : "member")

/** A member first, the leader next, and the remaining node last; who they are shows only when it is their turn. */
function victim(cluster: MixedCluster, turn: number, before: readonly number[]): number {
  const left = cluster.pnns.filter((pnn) => !before.includes(pnn))
  const leader = cluster.leader(left[0]!)
  if (turn === 1 && left.includes(leader)) return leader
  return left.find((pnn) => pnn !== leader) ?? left[0]!
}

async function eachNode(
  cluster: MixedCluster,
  turns: number,
  tell: (pnn: number, who: string) => Promise<Timing[]>,
): Promise<Timing[]> {
  const timings: Timing[] = []
  const before: number[] = []
  for (let turn = 0; turn < turns; turn++) {
    const pnn = victim(cluster, turn, before)
    before.push(pnn)
    timings.push(...(await tell(pnn, role(cluster, pnn))))
  }
  return timings
}

const start: Story = {
  name: "three nodes start together",
  async tell(cluster) {
    const sinceMs = performance.now()
    await cluster.startTogether()
    return [{ what: "start of three: all OK", seconds: await agreement(cluster, everybody(cluster), sinceMs) }]
  },
}

const killed: Story = {
  name: "each node is killed, and started when the others have gone on without it",
  tell: (cluster) =>
    eachNode(cluster, NODES, async (pnn, who) => {
      const killedMs = performance.now()
      await cluster.kill(pnn)
      const others = await agreement(cluster, without(cluster, pnn), killedMs)
      const startedMs = performance.now()
      await startPatiently(cluster, pnn)
      const back = await agreement(cluster, everybody(cluster), startedMs)
      return [
        { what: `${who} killed: the others agree`, seconds: others },
        { what: "restart after a kill: all OK", seconds: back },
      ]
    }),
}

const killedAndRestarted: Story = {
  name: "a member and the leader are killed and started again at once",
  tell: (cluster) =>
    eachNode(cluster, 2, async (pnn, who) => {
      const killedMs = performance.now()
      await cluster.kill(pnn)
      await startPatiently(cluster, pnn)
      const seconds = await agreement(cluster, everybody(cluster), killedMs)
      return [{ what: `${who} killed and started at once: all OK`, seconds }]
    }),
}

const restarted: Story = {
  name: "each node is stopped in an orderly way and started again",
  tell: (cluster) =>
    eachNode(cluster, NODES, async (pnn, who) => {
      const stoppedMs = performance.now()
      await cluster.stop(pnn)
      const others = await agreement(cluster, without(cluster, pnn), stoppedMs)
      const startedMs = performance.now()
      await startPatiently(cluster, pnn)
      const back = await agreement(cluster, everybody(cluster), startedMs)
      return [
        { what: `${who} stopped: the others agree`, seconds: others },
        { what: "start after a stop: all OK", seconds: back },
      ]
    }),
}

const hungShortly: Story = {
  name: "a member and the leader hang for 5 s",
  tell: (cluster) =>
    eachNode(cluster, 2, async (pnn, who) => {
      const { observers } = without(cluster, pnn)
      cluster.node(pnn).pause()
      await Bun.sleep(SHORT_HANG_MS)
      for (const observer of observers) {
        const view = await cluster.view(observer)
        // Nobody takes it for dead yet; and a member that hangs is no reason for the others to stop.
        if (view?.flags[pnn] !== 0) throw new Error(`node ${observer} sees the hung node ${pnn} as ${view?.flags[pnn]}`)
        if (who === "member" && view.recoveryMode !== RecoveryMode.NORMAL) {
          throw new Error(`node ${observer} is in recovery`)
        }
      }
      const resumedMs = performance.now()
      cluster.node(pnn).resume()
      const seconds = await agreement(cluster, everybody(cluster), resumedMs)
      return [{ what: `${who} hung for 5 s: all OK after it goes on`, seconds }]
    }),
}

function hungLong(lock: boolean): Story {
  return {
    name: "a member and the leader hang until they are given up",
    tell: (cluster) =>
      eachNode(cluster, 2, async (pnn, who) => {
        const hungMs = performance.now()
        const expected = without(cluster, pnn)
        cluster.node(pnn).pause()
        const timings: Timing[] = []
        await waitUntil(
          "end of the hung node in the others' eyes",
          async () => {
            const views = await Promise.all(expected.observers.map((observer) => cluster.view(observer)))
            return views.every((view) => view?.flags[pnn] === GONE)
          },
          SETTLE_MS,
        )
        timings.push({ what: `${who} hangs: given up`, seconds: (performance.now() - hungMs) / 1000 })
        if (lock && who === "leader") {
          // The kernel keeps its lock for it: nobody can lead, and everybody knows that (cluster page 9.4).
          for (const observer of expected.observers) {
            const view = await cluster.view(observer)
            if (view?.recoveryMode !== RecoveryMode.ACTIVE) throw new Error(`node ${observer} goes on without a leader`)
          }
        } else {
          timings.push({ what: `${who} hangs: the others agree`, seconds: await agreement(cluster, expected, hungMs) })
        }
        await Bun.sleep(Math.max(0, LONG_HANG_MS - (performance.now() - hungMs)))
        const resumedMs = performance.now()
        cluster.node(pnn).resume()
        const seconds = await agreement(cluster, everybody(cluster), resumedMs)
        return [...timings, { what: `${who} given up: all OK after it goes on`, seconds }]
      }),
  }
}

/** In the order in which one cluster goes through them; the first starts it. */
export const stories = (lock: boolean): Story[] => [
  start,
  restarted,
  killed,
  killedAndRestarted,
  hungShortly,
  hungLong(lock),
]
