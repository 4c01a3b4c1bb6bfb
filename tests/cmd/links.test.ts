// `ctdb links` and the names that the binary goes by, on the compiled binary.

import { afterAll, beforeAll, expect, test } from "bun:test"
import { lstatSync, mkdtempSync, readdirSync, readlinkSync, rmSync, symlinkSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"

let directory: string
let binary: string

beforeAll(() => {
  directory = mkdtempSync(join(tmpdir(), "ctdb-links-"))
  binary = join(directory, "build", "ctdb")
  const build = Bun.spawnSync([process.execPath, "build.ts", binary], {
    cwd: join(import.meta.dir, "../.."),
    stdout: "ignore",
  })
  expect(build.exitCode).toBe(0)
}, 300_000)
afterAll(() => rmSync(directory, { recursive: true, force: true }))

function run(program: string, ...words: string[]) {
  const child = Bun.spawnSync([program, ...words], { env: { PATH: "/usr/bin:/bin" } })
  return { status: child.exitCode, stdout: child.stdout.toString(), stderr: child.stderr.toString() }
}

test("the build leaves one file", () => {
  expect(readdirSync(join(directory, "build"))).toEqual(["ctdb"])
})

test("links are made, kept, and nothing else is replaced", () => {
  const target = join(directory, "bin")
  expect(run(binary, "links", target)).toEqual({ status: 0, stdout: "", stderr: "" })
  const names = readdirSync(target)
  expect(names).toContain("ctdb")
  expect(names).toContain("ctdbd")
  expect(names).toContain("ctdb-path")
  for (const name of names) expect(readlinkSync(join(target, name))).toBe(binary)
  expect(run(binary, "links", target).status).toBe(0)

  rmSync(join(target, "ctdbd"))
  writeFileSync(join(target, "ctdbd"), "somebody's program")
  rmSync(join(target, "ctdb-path"))
  symlinkSync("/elsewhere", join(target, "ctdb-path"))
  const refused = run(binary, "links", target)
  expect(refused.status).toBe(1)
  expect(refused.stderr).toContain("ctdbd exists and is not a link")
  expect(refused.stderr).toContain("points to /elsewhere")
  expect(run(binary, "links", "--force", target).status).toBe(1)
  expect(lstatSync(join(target, "ctdbd")).isFile()).toBe(true)
  expect(readlinkSync(join(target, "ctdb-path"))).toBe(binary)
})

test("the name that it is called by picks the program", () => {
  const target = join(directory, "names")
  run(binary, "links", target)
  expect(run(join(target, "ctdb"), "version").stdout).toMatch(/^4\.17\.\d+-ctdb-\d+\.\d+\.\d+\n$/)
  expect(run(join(target, "ctdb-path"), "etcdir").stdout).toBe("/etc/ctdb\n")
  expect(run(binary, "path", "etcdir").stdout).toBe("/etc/ctdb\n")
  expect(run(join(target, "ctdbd"), "--nonsense").stderr).toContain("--nonsense")
  expect(run(binary, "links").status).toBe(1)
})
