// Recoveries of databases in clusters of our nodes and stock ones, led by either: what the nodes hold afterwards, when nodes
// are killed and come back, and when a client holds a lock that a recovery waits for.

import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test"
import { join } from "node:path"
import { attach, forgetDatabases } from "../../lib/client/attach.ts"
import { Client } from "../../lib/client/client.ts"
import { CallFlag, CallId } from "../../lib/protocol/constants.ts"
import { databaseId } from "../../lib/protocol/hash.ts"
import { INCOMPATIBLE_HASH, MUTEX_LOCKING, NOSYNC } from "../../lib/tdb/format.ts"
import { openTdb } from "../../lib/tdb/tdb.ts"
import { values } from "./database-contents.ts"
import { type Kind, MixedCluster } from "./nodes.ts"
import { SMALL_TABLES, stockInstalled } from "./stock.ts"

setDefaultTimeout(400_000)

const compositions: readonly (readonly Kind[])[] = [
  ["ours", "ours", "ours"],
  ["ours", "stock", "stock"],
  ["stock", "ours", "ours"],
]
const SOAK = process.env.CTDB_SOAK !== undefined
const COUNTING_MS = SOAK ? 180_000 : 15_000
const BIG = 64 * 1024 * 1024

const numberIn = (data: Uint8Array): number => (data.length < 4 ? 0 : Buffer.from(data).readUInt32LE())
const TUNABLES = ["VacuumInterval=10000", "RerecoveryTimeout=2", SMALL_TABLES]

for (const [index, kinds] of compositions.entries()) {
  describe.skipIf(!stockInstalled)(kinds.join(", "), () => {
    const cluster = new MixedCluster(`127.71.${20 + index}.`, kinds, { lock: true, tunables: TUNABLES })
    beforeAll(async () => {
      await cluster.startAll()
      await cluster.allOk()
    }, 300_000)
    afterAll(() => cluster.end(), 60_000)

    const tool = async (pnn: number, ...words: string[]): Promise<string> => {
      const { status, stdout, stderr } = await cluster.node(pnn).tool("-t", "30", ...words)
      expect({ words, status, stderr }).toEqual({ words, status: 0, stderr: "" })
      return stdout
    }
    const running = () => cluster.pnns.filter((pnn) => cluster.nodes[pnn] !== undefined)
    const write = async (name: string, expected: Map<string, string>, round: string): Promise<void> => {
      const nodes = running()
      const command = name === "v.tdb" ? "writekey" : "pstore"
      for (let i = 0; i < 9; i++) {
        await tool(nodes[i % nodes.length]!, command, name, `key ${i}`, `${round} ${i}`)
        expected.set(`key ${i}`, `${round} ${i}`)
      }
    }
    /** A stock node's event daemon outlives it by up to 5 s and keeps it from starting again. */
    const restart = async (pnn: number): Promise<void> => {
      for (let attempt = 1; ; attempt++) {
        try {
          await cluster.start(pnn)
          return
        } catch (error) {
          if (attempt === 10 || !String(error).includes("Failed to initialize event daemon")) throw error
          await Bun.sleep(1000)
        }
      }
    }
    /** A recovery now, and its end. */
    const recover = async (): Promise<void> => {
      const node = running()[0]!
      const before = (await cluster.view(node))!.generation
      await cluster.node(node).tool("-t", "60", "recover")
      const deadline = performance.now() + 60_000
      for (;;) {
        const now = await cluster.view(node)
        if (now !== undefined && now.generation !== before && now.recoveryMode === 0) break
        if (performance.now() > deadline) throw new Error(`no recovery\n${cluster.logEnds()}`)
        await Bun.sleep(50)
      }
      await cluster.allOk()
    }
    const hold = (name: string, expected: ReadonlyMap<string, string>): void => {
      const lines = [...expected].map(([key, value]) => `${key} = ${value}`).sort()
      for (const pnn of running()) {
        const held = values(cluster.base(pnn), name, pnn).filter((line) => !line.startsWith("__db_sequence"))
        expect({ name, pnn, held }).toEqual({ name, pnn, held: lines })
      }
    }

    const volatile = new Map<string, string>()
    const persistent = new Map<string, string>()
    const replicated = new Map<string, string>()

    test("after a recovery every node holds every record", async () => {
      await tool(0, "attach", "v.tdb")
      await tool(1, "attach", "p.tdb", "persistent")
      await tool(2, "attach", "r.tdb", "replicated")
      await write("v.tdb", volatile, "first")
      await write("p.tdb", persistent, "first")
      await write("r.tdb", replicated, "first")
      await tool(1, "deletekey", "v.tdb", "key 3")
      volatile.delete("key 3")
      await recover()
      hold("v.tdb", volatile)
      hold("p.tdb", persistent)
      hold("r.tdb", replicated)
    })

    test("a node that is killed, and comes back to databases it has missed", async () => {
      await cluster.kill(2)
      await cluster.allOk()
      hold("v.tdb", volatile)
      await write("v.tdb", volatile, "without 2")
      await write("p.tdb", persistent, "without 2")
      await tool(0, "attach", "late.tdb")
      await tool(0, "writekey", "late.tdb", "key", "value")
      await restart(2)
      await cluster.allOk()
      hold("v.tdb", volatile)
      hold("p.tdb", persistent)
      hold("r.tdb", replicated)
      hold("late.tdb", new Map([["key", "value"]]))
    })

    test("the leader is killed, then two nodes at once", async () => {
      // What was written since the last recovery would die with its writer.
      await recover()
      const leader = cluster.leader(1)
      await cluster.kill(leader)
      await cluster.allOk()
      hold("v.tdb", volatile)
      hold("p.tdb", persistent)
      await restart(leader)
      await cluster.allOk()
      await Promise.all([1, 2].map((pnn) => cluster.kill(pnn)))
      await cluster.allOk()
      hold("v.tdb", volatile)
      hold("p.tdb", persistent)
      hold("r.tdb", replicated)
      for (const pnn of [1, 2]) await restart(pnn)
      await cluster.allOk()
      for (const [name, expected] of [
        ["v.tdb", volatile],
        ["p.tdb", persistent],
        ["r.tdb", replicated],
      ] as const) {
        hold(name, expected)
      }
    })

    test(`a recovery every 2 s under counting clients for ${COUNTING_MS / 1000} s: counts are exact`, async () => {
      const clients = await Promise.all(
        cluster.pnns.map((pnn) => Client.connect({ socket: cluster.node(pnn).socket, timeoutMs: 5000 })),
      )
      const endMs = performance.now() + COUNTING_MS
      const counts = await Promise.all([
        ...clients.map(async (client) => {
          const database = await attach(client, "count.tdb")
          let done = 0
          for (; performance.now() < endMs; done++) {
            const record = await database.fetchLock(Buffer.from(`counter ${done % 3}`))
            const next = Buffer.alloc(4)
            next.writeUInt32LE(numberIn(record.copy()) + 1)
            record.store(next)
            record.unlock()
            await Bun.sleep(1)
          }
          return done
        }),
        (async () => {
          let recoveries = 0
          for (; performance.now() < endMs; recoveries++) {
            await cluster.node(0).tool("-t", "60", "recover")
            await Bun.sleep(2000)
          }
          expect(recoveries).toBeGreaterThanOrEqual(3)
          return 0
        })(),
      ])
      const database = await attach(clients[0]!, "count.tdb")
      let found = 0
      for (let n = 0; n < 3; n++) {
        const record = await database.fetchLock(Buffer.from(`counter ${n}`))
        found += numberIn(record.copy())
        record.unlock()
      }
      expect(found).toBe(counts.reduce((sum, count) => sum + count))
      expect(found).toBeGreaterThan(100)
      // A stock node aborts at its next start if a program still has a volatile file of the old one open.
      await Promise.all(clients.map((client) => forgetDatabases(client)))
      await Promise.all(clients.map((client) => client.close()))
      await cluster.allOk()
    })

    test("a member stands still for 30 s: it is left out, comes back, and nothing is lost", async () => {
      await write("v.tdb", volatile, "before the pause")
      await recover()
      const member = cluster.pnns.find((pnn) => pnn !== cluster.leader(0))!
      cluster.node(member).pause()
      await Bun.sleep(30_000)
      cluster.node(member).resume()
      await Bun.sleep(2000)
      await cluster.allOk(60_000)
      hold("v.tdb", volatile)
      hold("p.tdb", persistent)
      for (const pnn of running()) expect(cluster.log(pnn)).not.toMatch(/Banning node \d/)
    })

    test("a client holds a record of one database and waits for one whose owner has died", async () => {
      await tool(0, "attach", "held.tdb")
      await tool(0, "writekey", "held.tdb", "record", "value")
      await tool(2, "writekey", "v.tdb", "key 0", "of 2")
      const client = await Client.connect({ socket: cluster.node(0).socket, timeoutMs: 5000 })
      const file = openTdb(join(cluster.base(0), "volatile", "held.tdb.0"), {
        flags: MUTEX_LOCKING | INCOMPATIBLE_HASH | NOSYNC,
      })
      const hash = file.hash(Buffer.from("record"))
      file.lockChain(hash)
      let holding = true
      try {
        await cluster.kill(2)
        const call = client.call({
          dbId: databaseId("v.tdb"),
          key: Buffer.from("key 0"),
          callid: CallId.NULL,
          flags: CallFlag.IMMEDIATE_MIGRATION,
          timeoutMs: 20_000,
        })
        // Answered while the lock is still held: a recovery that froze all first would wait for it.
        await call
        file.unlockChain(hash)
        holding = false
      } finally {
        if (holding) file.unlockChain(hash)
        file.close()
        await client.close()
      }
      await cluster.allOk()
      await restart(2)
      await cluster.allOk()
    })

    // A stock node starts a process for each of them: that takes minutes of processor time.
    const many = SOAK || !kinds.includes("stock") ? 200 : 50
    test(`${many} databases, and a record of 64 MB`, async () => {
      const client = await Client.connect({ socket: cluster.node(1).socket, timeoutMs: 5000 })
      for (let n = 0; n < many; n++) await attach(client, `many${n}.tdb`)
      const database = await attach(client, "big.tdb")
      const record = await database.fetchLock(Buffer.from("big"))
      record.store(Buffer.alloc(BIG, "x"))
      record.unlock()
      for (let n = 0; n < many; n += 10) {
        const one = await (await attach(client, `many${n}.tdb`)).fetchLock(Buffer.from("key"))
        one.store(Buffer.from(`value ${n}`))
        one.unlock()
      }
      await forgetDatabases(client)
      await client.close()
      await recover()
      for (let n = 0; n < many; n += 10) hold(`many${n}.tdb`, new Map([["key", `value ${n}`]]))
      for (const pnn of running()) expect(values(cluster.base(pnn), "big.tdb", pnn)[0]!.length).toBe(BIG + 6)
    })
  })
}
