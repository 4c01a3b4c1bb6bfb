// Locked files against a real lock in another process, and against the stock fcntl helper in both directions.

import { afterAll, describe, expect, test } from "bun:test"
import { existsSync, mkdtempSync, readFileSync, rmSync, unlinkSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { FIRST_BYTE, FileLock, lockHolder, WHOLE_FILE } from "../../lib/sys/filelock.ts"

const HELPER = "/usr/libexec/ctdb/ctdb_mutex_fcntl_helper"
const base = mkdtempSync("/tmp/filelock-")
afterAll(() => rmSync(base, { recursive: true }))

/** A helper process and the one character that it writes. */
async function stockHelper(path: string) {
  const helper = Bun.spawn([HELPER, path], { stdout: "pipe", stderr: "inherit", stdin: "ignore" })
  const { value } = await helper.stdout.getReader().read()
  return { helper, verdict: new TextDecoder().decode(value) }
}

describe.skipIf(!existsSync(HELPER))("the stock fcntl helper", () => {
  test("can't take what we hold, and can after we let go", async () => {
    const path = join(base, "ours")
    const lock = FileLock.tryLock(path, 0o600, FIRST_BYTE)!
    const refused = await stockHelper(path)
    expect(refused.verdict).toBe("1")
    await refused.helper.exited
    lock.release()
    const taken = await stockHelper(path)
    expect(taken.verdict).toBe("0")
    taken.helper.kill()
    await taken.helper.exited
  })

  test("keeps us out while it holds the lock, and is named as its holder", async () => {
    const path = join(base, "theirs")
    const { helper, verdict } = await stockHelper(path)
    expect(verdict).toBe("0")
    expect(FileLock.tryLock(path, 0o600, FIRST_BYTE)).toBeUndefined()
    expect(lockHolder(path, FIRST_BYTE)).toBe(helper.pid)
    helper.kill()
    await helper.exited
    expect(lockHolder(path, FIRST_BYTE)).toBeUndefined()
    const lock = FileLock.tryLock(path, 0o600, FIRST_BYTE)
    expect(lock).toBeDefined()
    lock!.release()
  })
})

test("a removed or replaced file is noticed, and not removed again", () => {
  const path = join(base, "moved")
  const lock = FileLock.tryLock(path, 0o600, FIRST_BYTE)!
  expect(lock.isInPlace()).toBe(true)
  unlinkSync(path)
  expect(lock.isInPlace()).toBe(false)
  writeFileSync(path, "another's")
  expect(lock.isInPlace()).toBe(false)
  lock.remove()
  expect(readFileSync(path, "utf8")).toBe("another's")
})

test("nobody holds a file that is free or missing; a directory is an error", () => {
  writeFileSync(join(base, "free"), "")
  expect(lockHolder(join(base, "free"), WHOLE_FILE)).toBeUndefined()
  expect(lockHolder(join(base, "missing"), WHOLE_FILE)).toBeUndefined()
  expect(() => FileLock.tryLock(base, 0o600, FIRST_BYTE)).toThrow("EISDIR")
})
