// Database files that something is wrong with when a node of ours starts: a damaged persistent one is set aside and reported,
// never emptied in silence; a volatile one that a program still has open does not keep the node from starting.

import { afterEach, expect, test } from "bun:test"
import { readdirSync, readFileSync, writeFileSync } from "node:fs"
import { basename, dirname } from "node:path"
import { attach } from "../../lib/client/attach.ts"
import { CURRENT_NODE } from "../../lib/protocol/constants.ts"
import { openTdb } from "../../lib/tdb/tdb.ts"
import { MixedCluster } from "./nodes.ts"
import { stockInstalled } from "./stock.ts"

let cluster: MixedCluster | undefined
afterEach(async () => {
  await cluster?.end()
}, 300_000)

async function start(prefix: string): Promise<MixedCluster> {
  const made = new MixedCluster(prefix, ["ours"], { lock: false })
  cluster = made
  await made.start(0)
  await made.allOk()
  return made
}

for (const [damage, spoil] of [
  ["without a TDB header", (file: Buffer) => file.fill("garbage ", 0, 168)],
  ["with a broken chain", (file: Buffer) => file.fill(0xee, 172, 172 + 4 * 100_001)],
] as const) {
  test.skipIf(!stockInstalled)(
    `a persistent database ${damage} is set aside, and its database is unhealthy`,
    async () => {
      const node = await start(damage.startsWith("with a") ? "127.51.31." : "127.51.32.")
      expect((await node.node(0).tool("attach", "p.tdb", "persistent")).status).toBe(0)
      expect((await node.node(0).tool("pstore", "p.tdb", "key", "value")).status).toBe(0)
      const dbId = (await node.client(0).control("GET_DBMAP", CURRENT_NODE)).find(({ flags }) => flags === 1)!.dbId
      const path = (await node.client(0).control("GETDBPATH", CURRENT_NODE, dbId))!
      await node.stop(0)
      const spoilt = spoil(readFileSync(path))
      writeFileSync(path, spoilt)

      await node.start(0)
      await node.allOk()
      const aside = readdirSync(dirname(path)).filter((name) => name.startsWith(`${basename(path)}.corrupted.`))
      expect(aside).toHaveLength(1)
      expect(aside[0]).toMatch(/\.corrupted\.\d{14}\.0Z$/)
      expect(readFileSync(`${dirname(path)}/${aside[0]}`).equals(spoilt)).toBe(true)
      const health = await node.client(0).control("DB_GET_HEALTH", CURRENT_NODE, dbId)
      expect(health).toContain(`ERROR - Backup of corrupted TDB in '${dirname(path)}/${aside[0]}'`)
      expect((await node.node(0).tool("getdbstatus", "p.tdb")).stdout).toContain("HEALTH: NO-HEALTHY-NODES - ERROR")
      expect(node.log(0)).toContain("is damaged and was set aside")

      // An operator who knows better says so, and the mark outlives a restart until then.
      await node.stop(0)
      await node.start(0)
      await node.allOk()
      expect(await node.client(0).control("DB_GET_HEALTH", CURRENT_NODE, dbId)).toBe(health)
      await node.client(0).control("DB_SET_HEALTHY", CURRENT_NODE, dbId)
      expect(await node.client(0).control("DB_GET_HEALTH", CURRENT_NODE, dbId)).toBeNull()
    },
    300_000,
  )
}

test.skipIf(!stockInstalled)(
  "a volatile file that a program has kept open: the node starts, with an empty one of its own",
  async () => {
    const node = await start("127.51.33.")
    const first = await attach(node.client(0), "v.tdb")
    const path = first.tdb.path
    const kept = openTdb(path, { flags: first.tdb.flags })
    const record = await first.fetchLock(Buffer.from("key"))
    record.store(Buffer.from("of the life before"))
    record.unlock()
    await node.kill(0)

    await node.start(0)
    await node.allOk()
    const again = await attach(node.client(0), "v.tdb")
    const locked = await again.fetchLock(Buffer.from("key"))
    expect(locked.length).toBe(0)
    locked.unlock()
    // The old program's file is its own affair.
    expect(kept.fetch(Buffer.from("key"))?.subarray(24).toString()).toBe(
      new TextEncoder().encode("of the life before").toString(),
    )
    kept.close()
  },
  60_000,
)
