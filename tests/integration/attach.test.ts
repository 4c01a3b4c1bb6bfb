// A large file of a persistent database is attached while the node goes on: it is checked between the turns of the loop. Everything here
// holds in the same way for a small one, whose check is over in the turn in which it begins.

import { afterAll, expect, test } from "bun:test"
import { copyFileSync, mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { Client } from "../../lib/client/client.ts"
import { encode } from "../../lib/protocol/codec.ts"
import { CURRENT_NODE } from "../../lib/protocol/constants.ts"
import { databaseId } from "../../lib/protocol/hash.ts"
import { ltdbHeader } from "../../lib/protocol/structs.ts"
import { word64 } from "../../lib/protocol/word64.ts"
import { DISALLOW_NESTING, NOSYNC } from "../../lib/tdb/format.ts"
import { check, openTdb } from "../../lib/tdb/tdb.ts"
import { startOurNode } from "../peers/nodes.ts"
import { type StockNode, waitUntilHealthy } from "../peers/stock.ts"

const ADDRESS = "127.71.5.1"
const RECORDS = 200_000
const VALUE = 960
const LIMIT_MS = 120_000
/** Exit status of a node of a test that has let it go: an orderly end. */
const LET_GO = 32
/** While a file was checked in one go, one or two of these were answered until the attach was. */
const ANSWERS_MIN = 30

const base = mkdtempSync(join(tmpdir(), "ctdb-attach-"))
let node: StockNode | undefined
afterAll(async () => {
  await node?.stop()
  rmSync(base, { recursive: true, force: true })
})

const start = async (): Promise<StockNode> => {
  node = await startOurNode({ base, address: ADDRESS, nodes: [ADDRESS] })
  await waitUntilHealthy(node)
  return node
}
const connect = ({ socket }: StockNode): Promise<Client> => Client.connect({ socket, timeoutMs: LIMIT_MS })
const attach = (client: Client, name: string): Promise<unknown> =>
  client.control("DB_ATTACH_PERSISTENT", CURRENT_NODE, name)
const pathOf = (name: string): string => join(base, "persistent", `${name}.0`)

/** 200 MB of records as a node's clients leave them. */
function create(path: string): void {
  const tdb = openTdb(path, { flags: DISALLOW_NESTING | NOSYNC, openFlags: 0o102, hashSize: 100_001 })
  const value = Buffer.alloc(VALUE, "v")
  value.set(encode(ltdbHeader, { rsn: word64(0, 1), dmaster: 0, reserved1: 0, flags: 0 }))
  for (let index = 0; index < RECORDS; index++) tdb.store(Buffer.from(`record ${index}`), value)
  tdb.close()
}

function isSound(path: string): boolean {
  const tdb = openTdb(path, { flags: DISALLOW_NESTING })
  const { ok, records } = check(tdb)
  tdb.close()
  return ok && records === RECORDS
}

test(
  "a node that ends while it attaches a large file leaves the file as it was, and attaches it when it starts",
  async () => {
    const first = await start()
    create(pathOf("first.tdb"))
    const client = await connect(first)
    const attached = attach(client, "first.tdb").catch(() => {})
    expect(await first.stop()).toBe(LET_GO)
    await attached
    await client.close()
    expect(isSound(pathOf("first.tdb"))).toBe(true)
    const second = await start()
    const again = await connect(second)
    const map = await again.control("GET_DBMAP", CURRENT_NODE)
    expect(map.map(({ dbId }) => dbId)).toContain(databaseId("first.tdb"))
    expect(await again.control("DB_GET_HEALTH", CURRENT_NODE, databaseId("first.tdb"))).toBeNull()
    await again.close()
  },
  LIMIT_MS,
)

test(
  "while a large file is attached others are answered, who attaches it too waits for the same end, and what is stored in it comes after",
  async () => {
    copyFileSync(pathOf("first.tdb"), pathOf("second.tdb"))
    const [one, two, other] = await Promise.all([connect(node!), connect(node!), connect(node!)])
    let answers = 0
    let over = false
    let warm: () => void = () => {}
    const warmed = new Promise<void>((resolve) => {
      warm = resolve
    })
    const asking = (async () => {
      while (!over) {
        await other.controlStatus("GET_PNN", CURRENT_NODE)
        if (++answers === 100) warm()
      }
    })()
    await warmed
    const dbId = databaseId("second.tdb")
    const data = new Uint8Array(VALUE)
    data.set(encode(ltdbHeader, { rsn: word64(0, 2), dmaster: 0, reserved1: 0, flags: 0 }))
    const records = [{ reqid: 0, key: Buffer.from("record 7"), data }]
    const before = answers
    let during = 0
    const order: string[] = []
    await Promise.all([
      attach(one, "second.tdb").then(() => {
        during = answers - before
        order.push("attach")
      }),
      attach(two, "second.tdb").then(() => order.push("attach")),
      one.control("UPDATE_RECORD", CURRENT_NODE, { dbId, records }).then(() => order.push("update")),
    ])
    over = true
    await asking
    expect(order).toEqual(["attach", "attach", "update"])
    console.log(`${during} answers while 200 MB were attached`)
    expect(during).toBeGreaterThan(ANSWERS_MIN)
    expect(
      node!
        .log()
        .split("\n")
        .filter((line) => line.includes("Attached to database") && line.includes("second.tdb")),
    ).toHaveLength(1)
    const tdb = openTdb(pathOf("second.tdb"), { flags: DISALLOW_NESTING })
    expect(Buffer.compare(tdb.fetch(Buffer.from("record 7"))!, data)).toBe(0)
    tdb.close()
    await Promise.all([one, two, other].map((client) => client.close()))
  },
  LIMIT_MS,
)

test(
  "a large file with a defect near its end is refused to who attaches it, and set aside when the node starts",
  async () => {
    copyFileSync(pathOf("first.tdb"), pathOf("third.tdb"))
    const tdb = openTdb(pathOf("third.tdb"), { flags: DISALLOW_NESTING | NOSYNC })
    const data = tdb.fetch(Buffer.from(`record ${RECORDS - 1}`))!
    const at = Buffer.from(tdb.b.buffer, tdb.b.byteOffset, tdb.size).lastIndexOf(`record ${RECORDS - 1}`)
    expect([data.length, at > tdb.size / 2]).toEqual([VALUE, true])
    tdb.b[at] = 0
    tdb.close()
    const client = await connect(node!)
    await expect(attach(client, "third.tdb")).rejects.toThrow("incorrect hash")
    // Both times: nothing is left of the first.
    await expect(attach(client, "third.tdb")).rejects.toThrow("incorrect hash")
    await client.close()
    expect(await node!.stop()).toBe(LET_GO)
    for (const name of ["first.tdb", "second.tdb"]) rmSync(pathOf(name))
    const again = await connect(await start())
    expect(await again.control("DB_GET_HEALTH", CURRENT_NODE, databaseId("third.tdb"))).toContain(
      "ERROR - Backup of corrupted TDB in ",
    )
    await again.close()
  },
  LIMIT_MS,
)
