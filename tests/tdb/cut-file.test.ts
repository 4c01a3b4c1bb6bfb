// A file that somebody cuts under an open handle, ignoring locks: from the next look at its size on that is a typed error. (Between
// two looks it is a SIGBUS, for libtdb too: see FileBacking.) Every scene runs in a process of its own, as a SIGBUS would end it.

import { afterAll, expect, test } from "bun:test"
import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"

const folder = mkdtempSync(join(tmpdir(), "ctdb-cut-"))
afterAll(() => rmSync(folder, { recursive: true, force: true }))

const engine = join(import.meta.dir, "../../lib/tdb/tdb.ts")

/** Runs a scene with `db` (1000 records, flag NOSYNC), `key`, `cut(bytes)`; returns what it printed and how it ended. */
function scene(name: string, code: string): string {
  const path = join(folder, `${name}.tdb`)
  const program = `
    import { truncateSync } from "node:fs"
    import { check, openTdb, TdbError, traverseRead, Walk } from ${JSON.stringify(engine)}
    const path = ${JSON.stringify(path)}
    const key = (n) => Buffer.from("key " + n)
    const cut = (bytes) => truncateSync(path, bytes)
    const db = openTdb(path, { openFlags: 0o102, flags: 0x40 })
    for (let i = 0; i < 1000; i++) db.store(key(i), new Uint8Array(500))
    try { ${code}; console.log("no error") } catch (error) {
      console.log(error instanceof TdbError ? error.code : String(error))
    }
    db.close()`
  const ran = Bun.spawnSync([process.execPath, "-e", program], { stderr: "inherit" })
  return `${ran.stdout.toString().trim()}, ${ran.signalCode ?? ran.exitCode}`
}

test("at the start of a transaction", () => {
  expect(scene("start", "cut(100); db.startTransaction()")).toBe("IO, 0")
  expect(scene("nothing", "cut(0); db.startTransaction()")).toBe("IO, 0")
  expect(scene("stores", "cut(8192); db.startTransaction(); for (let i = 0; i < 1000; i++) db.fetch(key(i))")).toBe(
    "IO, 0",
  )
})

test("between the start of a transaction and its commit", () => {
  expect(scene("commit", 'db.startTransaction(); db.store(key("new"), key(1)); cut(8192); db.commit()')).toBe("IO, 0")
  const inPieces = `db.startTransaction(); db.store(key("new"), key(1)); cut(8192)
    let result = null
    db.commitInPieces({ nextTurn: setImmediate, monotonicMs: () => 0 }, (error) => { result = error })
    throw result`
  expect(scene("pieces", inPieces)).toBe("IO, 0")
})

test("at the start of a walk, and in a check", () => {
  expect(scene("walk", "cut(8192); traverseRead(db, () => {})")).toBe("IO, 0")
  expect(scene("empty", "cut(0); traverseRead(db, () => {})")).toBe("IO, 0")
  expect(scene("check", "cut(8192); if (!check(db).ok) throw new TdbError('CORRUPT', path, 'found')")).toBe(
    "CORRUPT, 0",
  )
  expect(scene("everything", "cut(0); if (!check(db).ok) throw new TdbError('CORRUPT', path, 'found')")).toBe(
    "CORRUPT, 0",
  )
})
