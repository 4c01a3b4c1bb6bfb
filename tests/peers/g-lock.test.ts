// Who gets a g_lock when several want it all the time: clients of ours that keep it while they work and take it again at once, beside each
// other and beside the stock client's algorithm (tests/bench/published.c), which only looks now and then. Nobody is left out.

import { afterAll, beforeAll, describe, expect, test } from "bun:test"
import { join } from "node:path"
import { attach } from "../../lib/client/attach.ts"
import { Client } from "../../lib/client/client.ts"
import { GLock, type GLockOptions, listGLocks } from "../../lib/client/g-lock.ts"
import { Transaction } from "../../lib/client/transaction.ts"
import { GONE, MixedCluster } from "./nodes.ts"
import { stockInstalled, waitUntil } from "./stock.ts"

/** The lock of the stock generator. */
const NAME = "testkey"
const TASK_ID = 1
const SECONDS = 6
/** Nobody waits for most of the time while the others go on (ms). On a machine with nothing else to do it is a tenth of this. */
const LONGEST_MS = 5000
const SAMPLE_MS = 500

interface Loop {
  /** Taken so often. */
  readonly locks: number
  /** The longest time between two (ms). */
  readonly longestMs: number
}

/** Takes the lock, works for so long, and lets it go, again and again. */
async function loop(socket: string, workMs: number): Promise<Loop> {
  const client = await Client.connect({ socket, timeoutMs: 10_000 })
  const begun = performance.now()
  let last = begun
  let locks = 0
  let longestMs = 0
  while (last - begun < 1000 * SECONDS) {
    const lock = await GLock.acquire(client, { name: NAME, type: "write", taskId: TASK_ID })
    const taken = performance.now()
    longestMs = Math.max(longestMs, taken - last)
    last = taken
    locks++
    if (workMs > 0) await Bun.sleep(workMs)
    await lock.release()
  }
  await client.close()
  return { locks, longestMs }
}

/** The same by the stock algorithm, without any work: its counts every SAMPLE_MS. */
async function published(program: string, socket: string): Promise<Loop> {
  const words = ["g_lock_loop", "-s", socket, "-t", String(SECONDS), "-n", "1", "-w", String(SAMPLE_MS)]
  const child = Bun.spawn([program, ...words], { stdin: "ignore", stdout: "pipe", stderr: "inherit" })
  const samples = [...(await new Response(child.stdout).text()).matchAll(/^Sample:([\d.]+):(\d+)$/gm)]
  let since = 0
  let count = 0
  let longestMs = 0
  for (const [, seconds, operations] of samples) {
    longestMs = Math.max(longestMs, 1000 * Number(seconds) - since)
    if (Number(operations) > count) since = 1000 * Number(seconds)
    count = Number(operations)
  }
  return { locks: count, longestMs }
}

/** A lock that one client holds for longer than a turn with it, with another in its queue: its release is a grant. */
async function aboutToBeGranted(
  wanted: GLockOptions,
  holder: Client,
  waiter: Client,
  looker: Client,
): Promise<{ readonly held: GLock; readonly waiting: Promise<GLock> }> {
  const held = await GLock.acquire(holder, wanted)
  const waiting = GLock.acquire(waiter, wanted)
  await waitUntil("the waiter", async () => {
    const { locks } = await listGLocks(looker)
    return locks.find(({ name }) => Buffer.from(name).toString() === wanted.name)?.waiters.length === 1
  })
  await Bun.sleep(50)
  return { held, waiting }
}

describe.skipIf(!stockInstalled)("one lock that all want", () => {
  const cluster = new MixedCluster("127.73.20.", ["ours", "ours", "stock"], { lock: true })
  const program = join(cluster.directory, "published")
  beforeAll(async () => {
    const source = join(import.meta.dir, "../bench/published.c")
    const built = Bun.spawnSync(["gcc", "-O2", "-o", program, source, "-ldl"])
    if (!built.success) throw new Error(built.stderr.toString())
    await cluster.startTogether()
    await cluster.allOk()
  }, 300_000)
  afterAll(() => cluster.end(), 60_000)

  for (const [what, ours, stock, workMs] of [
    ["clients of ours on three nodes", [0, 1, 2], [], 0],
    ["clients of ours on one node, which work with it", [0, 0, 0], [], 2],
    ["one of ours that works with it, and a stock client of the same node", [0], [0], 2],
    ["one of ours that works with it, and a stock client of another node", [0], [1], 2],
    ["two of ours, which pass it from hand to hand, and a stock client", [0, 1], [2], 2],
    ["two of ours that take it again at once, and a stock client", [0, 1], [1], 0],
  ] as const) {
    test(what, async () => {
      const sockets = (pnns: readonly number[]) => pnns.map((pnn) => cluster.node(pnn).socket)
      const loops = await Promise.all([
        ...sockets(ours).map((socket) => loop(socket, workMs)),
        ...sockets(stock).map((socket) => published(program, socket)),
      ])
      for (const { locks, longestMs } of loops) {
        expect(locks, JSON.stringify(loops)).toBeGreaterThan(SECONDS)
        expect(longestMs, JSON.stringify(loops)).toBeLessThan(LONGEST_MS)
      }
      console.log(what, JSON.stringify(loops))
    }, 300_000)
  }

  test("a lock that was found granted is not given back when word of the grant comes late", async () => {
    const clients = await Promise.all(cluster.pnns.map((pnn) => Client.connect({ socket: cluster.node(pnn).socket })))
    const [giver, taker, third] = clients as [Client, Client, Client]
    try {
      const wanted = { name: "late", type: "write" } as const
      const { held, waiting } = await aboutToBeGranted(wanted, giver, taker, third)
      const late: (() => void)[] = []
      const send = giver.sendMessage.bind(giver)
      giver.sendMessage = (...message) => {
        late.push(() => send(...message))
      }
      await held.release()
      const taken = await waiting
      giver.sendMessage = send
      expect(late.length).toBe(1)
      for (const each of late) each()
      // This asks the taker, which answers after it has had the message.
      await listGLocks(giver)
      const tried = await GLock.acquire(third, { ...wanted, timeoutMs: 300 }).then(() => "it has two holders", String)
      expect(tried).toContain("was not free in time")
      await taken.release()
      await (await GLock.acquire(third, wanted)).release()
    } finally {
      await Promise.all(clients.map((client) => client.close()))
    }
  }, 300_000)

  test("a transaction whose node was out of the cluster meanwhile commits nothing", async () => {
    const clients = await Promise.all([0, 1].map((pnn) => Client.connect({ socket: cluster.node(pnn).socket })))
    const name = "left-out.tdb"
    const [there, out] = await Promise.all(clients.map((client) => attach(client, name, { kind: "persistent" })))
    const key = (text: string) => Buffer.from(text)
    try {
      const cut = await Transaction.start(clients[1]!, out!)
      await cut.store(key("a"), key("of the cut one"))
      expect((await cluster.node(1).tool("stop")).status).toBe(0)
      const other = await Transaction.start(clients[0]!, there!)
      await other.store(key("b"), key("of the other"))
      await other.commit()
      expect((await cluster.node(1).tool("continue")).status).toBe(0)
      await cluster.allOk()
      expect(await cut.commit().catch(String)).toContain("nothing was committed")
      for (const database of [there!, out!]) {
        expect(await database.fetch(key("a"))).toBeUndefined()
        expect(Buffer.from((await database.fetch(key("b")))!).toString()).toBe("of the other")
      }
    } finally {
      await Promise.all(clients.map((client) => client.close()))
    }
  }, 300_000)

  test("a lock that a node handed over before it died has one holder", async () => {
    const clients = await Promise.all(cluster.pnns.map((pnn) => Client.connect({ socket: cluster.node(pnn).socket })))
    const [third, giver, taker] = clients as [Client, Client, Client]
    try {
      const wanted = { name: "handed over", type: "write" } as const
      const { held, waiting } = await aboutToBeGranted(wanted, giver, taker, third)
      const killed = waiting.then(() => cluster.kill(1))
      await held.release()
      const taken = await waiting
      await killed
      await cluster.settled({ observers: [0, 2], flags: [0, GONE, 0] })
      const tried = await GLock.acquire(third, { ...wanted, timeoutMs: 2000 }).then(() => "it has two holders", String)
      expect(tried).toContain("was not free in time")
      await taken.release()
      await (await GLock.acquire(third, wanted)).release()
    } finally {
      await Promise.all(clients.map((client) => client.close()))
    }
  }, 300_000)
})
