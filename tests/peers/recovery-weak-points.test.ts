// Weak points of stock recoveries (cluster page 10.3) that need real nodes to show: a damaged persistent file at start (row 22),
// and nodes that deny attaches (row 27), with our nodes and stock ones as leader and as member.

import { afterEach, expect, setDefaultTimeout, test } from "bun:test"
import { readdirSync, readFileSync, writeFileSync } from "node:fs"
import { basename, dirname } from "node:path"
import { CURRENT_NODE } from "../../lib/protocol/constants.ts"
import { values } from "./database-contents.ts"
import { type Kind, MixedCluster } from "./nodes.ts"
import { stockInstalled } from "./stock.ts"

setDefaultTimeout(120_000)

let cluster: MixedCluster | undefined
afterEach(async () => {
  await cluster?.end()
}, 300_000)

async function tool(pnn: number, ...words: string[]): Promise<string> {
  const { status, stdout, stderr } = await cluster!.node(pnn).tool("-t", "30", ...words)
  expect({ words, status, stderr }).toEqual({ words, status: 0, stderr: "" })
  return stdout
}

for (const [index, leader] of (["ours", "stock"] as const).entries()) {
  test.skipIf(!stockInstalled)(
    `row 22: a damaged persistent file comes back from the others, ${leader} leading`,
    async () => {
      cluster = new MixedCluster(`127.62.${10 + index}.`, [leader, "ours", "stock"], { lock: true })
      // Who is there first leads.
      await cluster.start(0)
      await cluster.allOk()
      for (const pnn of [1, 2]) await cluster.start(pnn)
      await cluster.allOk()
      expect(cluster.leader(0)).toBe(0)
      await tool(0, "attach", "p.tdb", "persistent")
      for (let i = 0; i < 6; i++) await tool(i % 3, "pstore", "p.tdb", `key ${i}`, `value ${i}`)
      const dbId = (await cluster.client(1).control("GET_DBMAP", CURRENT_NODE)).find(({ flags }) => flags === 1)!.dbId
      const path = (await cluster.client(1).control("GETDBPATH", CURRENT_NODE, dbId))!
      await cluster.stop(1)
      await cluster.allOk()
      const spoilt = readFileSync(path).fill(0xee, 172, 172 + 4 * 100)
      writeFileSync(path, spoilt)
      await tool(0, "pstore", "p.tdb", "key 0", "written meanwhile")

      await cluster.start(1)
      await cluster.allOk()
      const expected = ["key 0 = written meanwhile", ...[1, 2, 3, 4, 5].map((i) => `key ${i} = value ${i}`)]
      for (const pnn of cluster.pnns) {
        const held = values(cluster.base(pnn), "p.tdb", pnn).filter((line) => !line.startsWith("__db_sequence"))
        expect({ pnn, held }).toEqual({ pnn, held: expected })
      }
      expect(cluster.log(1)).toContain("is damaged and was set aside")
      const aside = readdirSync(dirname(path)).filter((name) => name.startsWith(`${basename(path)}.corrupted.`))
      expect(aside).toHaveLength(1)
      expect(readFileSync(`${dirname(path)}/${aside[0]}`).equals(spoilt)).toBe(true)
      // The others' copies are healthy: what came from them is.
      expect(await tool(1, "getdbstatus", "p.tdb")).toContain("HEALTH: OK")
    },
  )
}

const kinds: readonly (readonly Kind[])[] = [
  ["ours", "stock", "ours"],
  ["stock", "ours", "ours"],
]
for (const [index, mix] of kinds.entries()) {
  test.skipIf(!stockInstalled)(
    `row 27: ${mix.join(", ")}: nodes that deny attaches and lack databases join, and nobody is banned`,
    async () => {
      const tunables = ["AllowClientDBAttach=0", "RerecoveryTimeout=2"]
      cluster = new MixedCluster(`127.62.${20 + index}.`, mix, { lock: true, tunables })
      await cluster.start(0)
      await cluster.allOk()
      await tool(0, "setvar", "AllowClientDBAttach", "1")
      for (const [name, ...kind] of [["v.tdb"], ["p.tdb", "persistent"], ["r.tdb", "replicated"]] as const) {
        await tool(0, "attach", name, ...kind)
      }
      await tool(0, "pstore", "p.tdb", "key", "value")
      await tool(0, "setvar", "AllowClientDBAttach", "0")
      // A stock leader bans a stock node for this: only ours join it.
      for (const pnn of [1, 2]) await cluster.start(pnn)
      await cluster.allOk()
      for (const pnn of cluster.pnns) {
        const map = await tool(pnn, "getdbmap")
        for (const name of ["v.tdb", "p.tdb", "r.tdb"]) expect(map).toContain(name)
        expect(values(cluster.base(pnn), "p.tdb", pnn)).toContain("key = value")
        expect(await tool(pnn, "getvar", "AllowClientDBAttach")).toMatch(/= 0\s*$/)
        expect(cluster.log(pnn)).not.toMatch(/Banning node \d|BANNED|banned/)
      }
    },
  )
}
