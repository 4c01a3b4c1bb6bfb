// Nodes that are killed, one or all of them, at random moments of commits, recoveries and starts, and started again: no acknowledged
// commit is lost, none is half done or done twice, and both libraries find the files whole. CTDB_SEED replays the moments;
// CTDB_SOAK=1 kills all nodes a hundred times, CTDB_ROUNDS so many times.

import { expect, test } from "bun:test"
import { copyFileSync, existsSync, readdirSync, readFileSync } from "node:fs"
import { attach, forgetDatabases } from "../../lib/client/attach.ts"
import { Client } from "../../lib/client/client.ts"
import { check, openTdb } from "../../lib/tdb/tdb.ts"
import { firstSeed, Random, soak } from "../tdb/random.ts"
import { raise, SEQUENCE_KEY, stored, utf8 } from "./commits.ts"
import { type Kind, MixedCluster } from "./nodes.ts"
import { stockInstalled, waitUntil } from "./stock.ts"

const ROUNDS = Number(process.env.CTDB_ROUNDS ?? (soak ? 100 : 4))
/** Of so many rounds one kills a single node only, and one kills all again while they start. */
const SINGLE = 4
const AGAIN = 3
/** One database whose file stays small, and one that others write at the same time. */
const NAMES = ["killed.tdb", "besides.tdb"] as const
const CLIENTS = [0, 1, 2].flatMap((pnn) => NAMES.map((name) => ({ pnn, name })))
/** Every commit writes both, or none. */
const keysOf = (pnn: number) => [utf8.encode(`counter ${pnn}`), utf8.encode(`mirror ${pnn}`)]

/** Counts in transactions until its node dies or it is over, and says each number that was acknowledged. */
async function count(
  socket: string,
  pnn: number,
  name: string,
  over: () => boolean,
  acknowledged: (number: number) => void,
): Promise<void> {
  let client: Client
  try {
    client = await Client.connect({ socket, timeoutMs: 20_000 })
  } catch {
    return
  }
  try {
    while (!over()) acknowledged(await raise(client, name, "persistent", ...keysOf(pnn)))
  } catch (error) {
    if (client.isOpen && !over()) throw error
  }
  // A stock node aborts at its next start if a program still has the volatile file of the old one open.
  await forgetDatabases(client)
  await client.close().catch(() => {})
}

/** A stock node ends soon after its start while the event daemon of the killed one is still about. */
async function startAgain(cluster: MixedCluster, pnn: number): Promise<void> {
  const pidfile = `${cluster.base(pnn)}/run/eventd.pid`
  if (cluster.kinds[pnn] === "stock" && existsSync(pidfile)) {
    const pid = Number.parseInt(readFileSync(pidfile, "utf8"), 10)
    await waitUntil("the old event daemon to end", () => Promise.resolve(!existsSync(`/proc/${pid}`)), 60_000)
  }
  await cluster.start(pnn)
}

/** What a killed daemon left on the disk, by the judgement of both libraries: each recovers an interrupted transaction first. */
function filesAreWhole(cluster: MixedCluster, pnn: number): void {
  const base = cluster.base(pnn)
  const files = [
    ...readdirSync(`${base}/persistent`).map((name) => `${base}/persistent/${name}`),
    ...readdirSync(`${base}/state`).map((name) => `${base}/state/${name}`),
  ].filter((path) => path.endsWith(`.tdb.${pnn}`))
  expect(files.length).toBeGreaterThan(1)
  for (const file of files) {
    const copy = `${cluster.directory}/copy.tdb`
    copyFileSync(file, copy)
    const { stdout } = Bun.spawnSync(["tdbtool", copy, "check"])
    expect(`${file}: ${stdout}`).toContain("Database integrity is OK")
    const tdb = openTdb(file)
    expect(check(tdb).ok).toBe(true)
    tdb.close()
  }
}

class Ledger {
  /** By client: what it was told is done, or was found done at a look. */
  private readonly numbers = CLIENTS.map(() => 0)

  acknowledged(index: number, number: number): void {
    this.numbers[index] = Math.max(this.numbers[index]!, number)
  }

  get least(): number {
    return Math.min(...this.numbers)
  }

  /** How many commits were acknowledged or found. */
  get total(): number {
    return this.numbers.reduce((sum, number) => sum + number, 0)
  }

  /**
   * All copies have the same; nothing acknowledged is missing; of what was not answered any more, each client's last one at
   * most is there; the sequence number is the number of commits.
   */
  async compare(cluster: MixedCluster, interrupted: number): Promise<void> {
    const sums = new Map<string, number>()
    for (const [index, { pnn, name }] of CLIENTS.entries()) {
      const copies = await Promise.all(
        cluster.pnns.flatMap((of) => keysOf(pnn).map((key) => stored(cluster, of, name, key))),
      )
      expect(new Set(copies).size, `${name}, counter ${pnn}: ${copies}`).toBe(1)
      const ahead = copies[0]! - this.numbers[index]!
      expect(ahead, `${name}, counter ${pnn}, found less acknowledged`).toBeGreaterThanOrEqual(0)
      expect(ahead, `${name}, counter ${pnn}, found less acknowledged`).toBeLessThanOrEqual(interrupted)
      this.numbers[index] = copies[0]!
      sums.set(name, (sums.get(name) ?? 0) + copies[0]!)
    }
    for (const [name, sum] of sums) {
      for (const pnn of cluster.pnns) expect(await stored(cluster, pnn, name, SEQUENCE_KEY)).toBe(sum)
    }
  }
}

async function killRounds(kinds: readonly Kind[], prefix: string): Promise<void> {
  const random = new Random(firstSeed)
  const cluster = new MixedCluster(prefix, kinds, { lock: true })
  const ledger = new Ledger()
  /** Commits until `over`, on the nodes that run. */
  const counting = (over: () => boolean) =>
    CLIENTS.map(async ({ pnn, name }, index) => {
      if (cluster.nodes[pnn] !== undefined) {
        await count(cluster.node(pnn).socket, pnn, name, over, (number) => ledger.acknowledged(index, number))
      }
    })
  /** Kills them at moments of their own within `withinMs`, while their clients and the others' commit. */
  const killDuring = async (victims: readonly number[], withinMs: number) => {
    let over = false
    const clients = counting(() => over)
    // All nodes run the first time, when nobody has committed yet.
    await waitUntil("a commit of each client", () => ledger.least > 0, 60_000)
    await Bun.sleep(random.below(withinMs))
    const spreadMs = random.pick([0, 0, 5, 50])
    await Promise.all(
      victims.map(async (pnn) => {
        await Bun.sleep(random.below(spreadMs + 1))
        await cluster.kill(pnn)
      }),
    )
    over = true
    await Promise.all(clients)
    for (const pnn of victims) filesAreWhole(cluster, pnn)
  }
  const begun = performance.now()
  let allKilled = 0
  try {
    await cluster.startTogether()
    await cluster.allOk()
    for (const name of NAMES) await attach(cluster.client(0), name, { kind: "persistent" })
    for (let round = 1; allKilled < ROUNDS; round++) {
      const single = round % SINGLE === 0
      const victims = single ? [random.below(3)] : cluster.pnns
      await killDuring(victims, 1200)
      let interrupted = 1
      await Promise.all(victims.map((pnn) => startAgain(cluster, pnn)))
      if (!single) {
        allKilled++
        if (round % AGAIN === 0 && allKilled < ROUNDS) {
          await killDuring(victims, 6000)
          allKilled++
          interrupted++
          await Promise.all(victims.map((pnn) => startAgain(cluster, pnn)))
        }
      }
      await cluster.allOk(60_000)
      for (const name of NAMES) await attach(cluster.client(0), name, { kind: "persistent" })
      await ledger.compare(cluster, interrupted)
    }
    const seconds = ((performance.now() - begun) / 1000).toFixed(0)
    if (ROUNDS > 4) console.log(`${kinds}: all killed ${allKilled} times in ${seconds} s, ${ledger.total} commits`)
  } catch (error) {
    const text = error instanceof Error ? error.stack : error
    throw new Error(`CTDB_SEED=${firstSeed}, all killed ${allKilled} times: ${text}\n${cluster.logEnds()}`)
  } finally {
    await cluster.end()
  }
}

const compositions: readonly (readonly Kind[])[] = [
  ["ours", "ours", "ours"],
  ["ours", "stock", "ours"],
]
for (const [index, kinds] of compositions.entries()) {
  test.skipIf(!stockInstalled)(
    `${kinds.join()}: kill -9 of nodes during commits, one or all: nothing acknowledged is lost`,
    () => killRounds(kinds, `127.63.${52 + index}.`),
    60_000 + ROUNDS * 60_000,
  )
}
