// `ctdb tdb` beside the real tdbdump, tdbrestore and tdbtool: the same text in both directions.

import { afterAll, expect, test } from "bun:test"
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"

const folder = mkdtempSync(join(tmpdir(), "ctdb-tdbcmd-"))
afterAll(() => rmSync(folder, { recursive: true, force: true }))
const vectors = join(import.meta.dir, "../../vectors/tdb")
const command = join(import.meta.dir, "../../../cmd/tdb.ts")

interface Said {
  out: string
  errors: string
  status: number | null
}

function ctdbTdb(args: string[], input = ""): Said {
  const script = `const { run } = await import(${JSON.stringify(command)}); process.exitCode = await run(process.argv.slice(1))`
  const said = Bun.spawnSync([process.execPath, "-e", script, ...args], { stdin: Buffer.from(input) })
  return { out: said.stdout.toString("latin1"), errors: said.stderr.toString(), status: said.exitCode }
}

function real(args: string[], input = ""): Said {
  const said = Bun.spawnSync(args, { stdin: Buffer.from(input) })
  return { out: said.stdout.toString("latin1"), errors: said.stderr.toString(), status: said.exitCode }
}

const sound = readdirSync(vectors).filter((name) =>
  /^(records|grown|deleted|dead|mutex-records|empty|ctdb-volatile|recovery).*\.tdb$/.test(name),
)

test("dump is tdbdump's", () => {
  expect(sound.length).toBeGreaterThan(8)
  for (const name of sound) {
    const path = join(vectors, name)
    const ours = ctdbTdb(["dump", path])
    expect(ours.errors).toBe("")
    expect(ours.out).toBe(real(["tdbdump", path]).out)
    expect(ours.status).toBe(0)
  }
})

test("dump -k is tdbdump's, and a missing key is a failure", () => {
  const path = join(vectors, "records-jenkins-5.tdb")
  expect(ctdbTdb(["dump", "-k", "nothing", path]).status).toBe(1)
  expect(ctdbTdb(["dump", "-k", "hello", path]).out).toContain('data(11) = "world,again"')
})

test("check says what tdbtool says", () => {
  for (const name of sound) {
    const path = join(folder, "copy.tdb")
    writeFileSync(path, readFileSync(join(vectors, name)))
    const said = real(["tdbtool", "-l", path, "check"]).out
    expect(ctdbTdb(["check", path]).out.trim()).toBe(said.trim())
  }
  const broken = ctdbTdb(["check", join(vectors, "corrupt-bad-tailer.tdb")])
  expect(broken.status).toBe(1)
  expect(broken.errors).toContain("offset 7756")
})

test("info agrees with tdbtool in every figure that both show", () => {
  for (const name of sound) {
    const path = join(folder, "copy.tdb")
    writeFileSync(path, readFileSync(join(vectors, name)))
    const figures = (text: string): Map<string, string> =>
      new Map(text.split("\n").flatMap((line) => (line.includes(": ") ? [line.split(": ") as [string, string]] : [])))
    const ours = figures(ctdbTdb(["info", path]).out)
    const theirs = figures(real(["tdbtool", "-l", path, "info"]).out)
    let compared = 0
    for (const [what, value] of theirs) {
      if (!ours.has(what)) continue
      expect(`${name} ${what}: ${ours.get(what)}`).toBe(`${name} ${what}: ${value}`)
      compared++
    }
    expect(compared).toBeGreaterThan(10)
  }
})

test("restore and dump go round, also through the real tools", () => {
  const dumped = ctdbTdb(["dump", join(vectors, "grown-oldhash-131.tdb")]).out
  const [mine, theirs] = [join(folder, "mine.tdb"), join(folder, "theirs.tdb")]
  expect(ctdbTdb(["restore", mine], dumped).status).toBe(0)
  expect(real(["tdbrestore", theirs], dumped).status).toBe(0)
  expect(real(["tdbdump", mine]).out).toBe(real(["tdbdump", theirs]).out)
  expect(real(["tdbtool", mine, "check"]).out).toContain("Database integrity is OK")
  expect(ctdbTdb(["dump", theirs]).out.split("{").length).toBe(dumped.split("{").length)
  const mutexes = join(folder, "mutexes.tdb")
  expect(ctdbTdb(["restore", "--mutexes", "--hash-size", "7", mutexes], dumped).status).toBe(0)
  expect(real(["tdbtool", "-l", mutexes, "check"]).out).toContain("Database integrity is OK")
})

test("restore replaces no file and leaves none behind after a bad dump", () => {
  const path = join(folder, "exists.tdb")
  writeFileSync(path, "precious")
  expect(ctdbTdb(["restore", path], "").status).toBe(1)
  expect(readFileSync(path, "utf8")).toBe("precious")
  const bad = join(folder, "bad.tdb")
  const said = ctdbTdb(["restore", bad], '{\nkey(3) = "abc"\ndata(2) = "x"\n}\n')
  expect(said.status).toBe(1)
  expect(said.errors).toContain("line 3")
  expect(existsSync(bad)).toBe(false)
  expect(readdirSync(folder).filter((name) => name.includes("restore"))).toEqual([])
})

test("files that cannot be read are named with the reason, and usage errors are told apart", () => {
  expect(ctdbTdb(["dump", join(folder, "nowhere.tdb")]).errors).toContain("ENOENT")
  expect(ctdbTdb(["check", join(vectors, "corrupt-bad-version.tdb")]).errors).toContain("unknown version")
  expect(ctdbTdb(["polish", "x"]).status).toBe(2)
  expect(ctdbTdb(["dump", "--nonsense", "x"]).status).toBe(2)
})
