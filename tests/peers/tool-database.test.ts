// The tool's database commands beside the stock tool's on three stock nodes, with data in volatile, read-only, sticky, persistent and
// replicated databases. Commands that read run on the same database; commands that write run on a pair of databases, one for each tool,
// after which both must hold the same records with the same headers on every node. Masked is only what differs by nature.

import { afterAll, beforeAll, describe, expect, test } from "bun:test"
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { binary } from "../binary.ts"
import { type StockCluster, startStockCluster } from "./cluster.ts"
import { stockInstalled, waitUntil } from "./stock.ts"

const STOCK = "/usr/bin/ctdb"
const ours = binary
const PREFIX = "127.61.2."
const TIMEOUT = 120_000

interface Run {
  readonly stdout: string
  readonly stderr: string
  readonly status: number
}

let directory: string
let cluster: StockCluster

async function run(tool: string, words: readonly string[], node = 0, stdin?: string): Promise<Run> {
  const child = Bun.spawn([tool, ...words], {
    env: { ...cluster.nodes[node]!.environment },
    stdin: stdin === undefined ? "ignore" : Buffer.from(stdin, "latin1"),
    stdout: "pipe",
    stderr: "pipe",
  })
  const [stdout, stderr, status] = await Promise.all([
    new Response(child.stdout).bytes(),
    new Response(child.stderr).bytes(),
    child.exited,
  ])
  return { stdout: Buffer.from(stdout).toString("latin1"), stderr: Buffer.from(stderr).toString("latin1"), status }
}

async function succeed(...words: string[]): Promise<string> {
  const { status, stdout, stderr } = await run(STOCK, words)
  if (status !== 0) throw new Error(`ctdb ${words.join(" ")}: ${status} ${stderr}`)
  return stdout
}

/** Ids of databases by the tool that they belong to, for masks. */
const pairIds: string[] = []

/** The pair's names, ids and files become the same text. */
const pair = (text: string): string => {
  let masked = text.replaceAll("/bin/ctdb", "CTDB").replace(/\b(ref|own)(?=-)/g, "TOOL")
  for (const id of pairIds) masked = masked.replaceAll(id, "0xID")
  return masked
}
/** A pair's two names have different lengths nowhere, so only the words differ. */
const dbOf = (tool: string, name: string): string => `${tool === STOCK ? "ref" : "own"}-${name}`

/** catdb gathers records of several nodes as they come. */
const unordered = (text: string): string => text.split("\n\n").sort().join("\n\n")

const times = (text: string): string => text.replace(/\d{4}\/\d\d\/\d\d \d\d:\d\d:\d\d/g, "TIME")

async function same(words: readonly string[], mask: (text: string) => string = (text) => text, node = 0): Promise<Run> {
  const stock = await run(STOCK, words, node)
  const own = await run(ours, words, node)
  const masked = ({ stdout, stderr, status }: Run) => ({ words, stdout: mask(stdout), stderr: mask(stderr), status })
  expect(masked(own)).toEqual(masked(stock))
  return stock
}

type Step = readonly [line: string, node?: number, stdin?: string]

/** Runs a sequence with each tool on its own database of the pair (`DB` in the line); all outputs and then all records must agree. */
async function sameOnPair(
  name: string,
  steps: readonly Step[],
  mask: (text: string) => string = (t) => t,
): Promise<void> {
  const told: unknown[][] = []
  for (const tool of [STOCK, ours]) {
    const runs: unknown[] = []
    for (const [line, node, stdin] of steps) {
      const words = line.split(" ").map((word) => word.replaceAll("DB", dbOf(tool, name)).replace("EMPTY", ""))
      const { stdout, stderr, status } = await run(tool, words, node, stdin)
      runs.push({ line, stdout: mask(pair(stdout)), stderr: mask(pair(stderr)), status })
    }
    told.push(runs)
  }
  expect(told[1]).toEqual(told[0]!)
  for (const node of [0, 1, 2]) {
    const [ref, own] = await Promise.all([STOCK, ours].map((tool) => run(STOCK, ["cattdb", dbOf(tool, name)], node)))
    expect({ node, text: own!.stdout }).toEqual({ node, text: ref!.stdout })
  }
}

beforeAll(async () => {
  if (!stockInstalled) return
  directory = mkdtempSync(join(tmpdir(), "ctdb-tool-database-"))
  // Vacuuming would take the empty records of one database of a pair before those of the other.
  cluster = await startStockCluster(PREFIX, 3, { tunables: ["VacuumInterval=3600"] })
  for (const prefix of ["all", "ref", "own"]) {
    await succeed("attach", `${prefix}-vol.tdb`)
    await succeed("attach", `${prefix}-per.tdb`, "persistent")
    await succeed("attach", `${prefix}-rep.tdb`, "replicated")
    await succeed("attach", `${prefix}-ro.tdb`, "readonly")
    await succeed("attach", `${prefix}-st.tdb`, "sticky")
    await succeed("attach", `${prefix}-full.tdb`)
  }
  const map = await succeed("getdbmap")
  for (const [, id, name] of map.matchAll(/dbid:(0x\w+) name:(\S+)/g)) if (/^(ref|own)-/.test(name!)) pairIds.push(id!)
  // Data for the commands that read.
  for (const [index, key] of ["k1", "k2", "a key", "0x00ff41", "long"].entries()) {
    const value = key === "long" ? "v".repeat(700) : `v"\\é${index}`
    await run(STOCK, ["writekey", "all-vol.tdb", key, value], index % 3)
    await run(STOCK, ["writekey", "all-ro.tdb", key, value], index % 3)
    await run(STOCK, ["pstore", "all-per.tdb", key, value], index % 3)
    await run(STOCK, ["pstore", "all-rep.tdb", key, value], index % 3)
  }
  await run(STOCK, ["deletekey", "all-vol.tdb", "k2"], 1)
  await run(STOCK, ["pdelete", "all-per.tdb", "k2"], 1)
  await run(STOCK, ["readkey", "all-ro.tdb", "k1", "readonly"], 2)
}, TIMEOUT)

afterAll(async () => {
  await cluster?.stop()
  if (directory !== undefined) rmSync(directory, { recursive: true, force: true })
}, 300_000)

describe.skipIf(!stockInstalled)("database commands beside the stock tool", () => {
  const reading = [
    "getdbmap",
    "-n 1 getdbmap",
    "-X getdbmap",
    "-Y -x, getdbmap",
    "-n 2 -X getdbmap",
    "getdbmap x",
    "-t 0 getdbmap",
    ...["vol", "per", "rep", "ro", "st"].flatMap((name) => [
      `getdbstatus all-${name}.tdb`,
      `-n 1 getdbstatus all-${name}.tdb`,
      `-X getdbstatus all-${name}.tdb`,
      `getdbseqnum all-${name}.tdb`,
      `cattdb all-${name}.tdb`,
      `attach all-${name}.tdb`,
      `attach all-${name}.tdb persistent`,
      `attach all-${name}.tdb replicated`,
    ]),
    "getdbstatus",
    "getdbstatus nosuch",
    "getdbstatus 0x1",
    "getdbstatus 0xZZ",
    "getdbstatus 0x",
    "getdbstatus ALL-VOL.TDB",
    "-t 0 getdbstatus all-vol.tdb",
    "getdbseqnum nosuch",
    "-n 1 getdbseqnum all-vol.tdb",
    "-t 0 getdbseqnum all-vol.tdb",
    "attach",
    "attach all-vol.tdb foo",
    "attach all-per.tdb sticky",
    "attach all-per.tdb readonly",
    "attach a/b.tdb",
    "-t 0 attach x.tdb",
    "-t 0 attach x.tdb persistent",
    "-t 0 attach x.tdb replicated",
    "-n 1 attach x.tdb",
    "catdb nosuch",
    "catdb",
    "-n 1 catdb all-vol.tdb",
    "-t 0 catdb all-vol.tdb",
    "catdb all-per.tdb",
    "catdb all-rep.tdb",
    "-X cattdb all-per.tdb",
    "readkey all-vol.tdb k1",
    "readkey all-vol.tdb 0x6b31",
    "readkey all-vol.tdb 0x00ff41",
    "readkey all-vol.tdb 0x",
    "readkey all-vol.tdb 0x1",
    "readkey all-vol.tdb 0x12zz",
    "readkey all-vol.tdb 0xz1",
    "readkey all-vol.tdb 0X31",
    "readkey all-vol.tdb long",
    "readkey all-vol.tdb nosuch",
    "readkey all-vol.tdb k2",
    "readkey all-vol.tdb k1 readonly",
    "readkey all-vol.tdb k1 foo",
    "readkey all-ro.tdb k1 readonly",
    "readkey all-ro.tdb k1",
    "readkey all-per.tdb k1",
    "readkey nosuch k1",
    "readkey all-vol.tdb",
    "-n 1 readkey all-vol.tdb k1",
    "writekey all-per.tdb k v",
    "writekey all-vol.tdb 0x v",
    "writekey all-vol.tdb k 0xabc",
    "writekey all-vol.tdb k 0xyz",
    "writekey all-vol.tdb k",
    "deletekey all-rep.tdb k",
    "deletekey all-vol.tdb 0x",
    "deletekey nosuch k",
    "pfetch all-vol.tdb k1",
    "pfetch all-per.tdb k1",
    "pfetch all-per.tdb 0x6b31",
    "pfetch all-per.tdb k2",
    "pfetch all-per.tdb nosuch",
    "pfetch all-per.tdb 0x1",
    "pfetch all-per.tdb 0x",
    "pfetch all-rep.tdb long",
    "pfetch all-rep.tdb",
    "pfetch nosuch k",
    "pstore all-vol.tdb k v",
    "pstore all-per.tdb k",
    "pstore all-per.tdb k1 0x1",
    "pdelete all-st.tdb k",
    "pdelete all-per.tdb nosuch",
    "ptrans all-vol.tdb",
    "ptrans all-per.tdb /nonexistent",
    "ptrans all-per.tdb",
    "ptrans nosuch",
    "detach",
    "detach all-vol.tdb",
    "detach nosuch",
    "-n 1 detach all-vol.tdb",
    "setdbreadonly all-per.tdb",
    "setdbsticky all-rep.tdb",
    "setdbreadonly nosuch",
    "setdbreadonly",
    "wipedb",
    "wipedb nosuch",
    "-n 1 wipedb all-vol.tdb",
    "backupdb all-vol.tdb",
    "backupdb nosuch /tmp/x",
    "backupdb all-vol.tdb /nonexistent/file",
    "restoredb",
    "restoredb /nonexistent",
    "restoredb /etc/passwd",
    "dumpdbbackup",
    "dumpdbbackup /nonexistent",
    "dumpdbbackup /etc/passwd",
    "-n 0 dumpdbbackup /etc/passwd",
    "tfetch",
    "tfetch /nonexistent k",
    "tfetch /etc/passwd k",
    "tstore /nonexistent k v",
    "tstore /nonexistent k v 1 2 3",
    "dbstatistics",
    "dbstatistics nosuch",
    "-t 0 dbstatistics all-vol.tdb",
  ]
  test.each(reading)("ctdb %s", async (line) => {
    await same(line.split(" "))
  })

  test("catdb of volatile databases, in whatever order the nodes answer", async () => {
    for (const name of ["vol", "ro", "st"]) {
      const stock = await same(["catdb", `all-${name}.tdb`], unordered)
      expect(stock.status).toBe(0)
    }
    const dumped = await run(ours, ["catdb", "all-vol.tdb"])
    expect(dumped.stdout).toContain('key(3) = "\\00\\FFA"')
    expect(dumped.stdout).toMatch(/Dumped \d records\n$/)
  })

  test("a database is found by its id", async () => {
    const [, id] = /dbid:(0x\w+) name:all-vol.tdb/.exec(await succeed("getdbmap"))!
    for (const words of [
      ["getdbstatus", id!],
      ["readkey", id!, "k1"],
      ["getdbstatus", id!.toUpperCase().replace("X", "x")],
    ]) {
      const { status } = await same(words)
      expect(status).toBe(0)
    }
  })

  test("words and records that are no text", async () => {
    await same(["readkey", "all-vol.tdb", ""])
    await same(["pfetch", "all-per.tdb", ""])
    await same(["readkey", "all-vol.tdb", "a key"])
    await sameOnPair("vol.tdb", [
      ["writekey DB EMPTY v"],
      ["writekey DB k EMPTY"],
      ["readkey DB k"],
      ["writekey DB 0x00 0x410042"],
      ["readkey DB 0x00"],
      ["writekey DB bin 0xfffe80"],
      ["readkey DB bin"],
    ])
  })

  test("dbstatistics", async () => {
    const counters = (text: string) => text.replace(/\d+\.\d{6}/g, "T").replace(/(out of|Count:) ?\d+/g, "$1 N")
    for (const name of ["vol", "per", "ro"]) {
      const { status } = await same(["dbstatistics", `all-${name}.tdb`], (text) => counters(text).replace(/\d+/g, "N"))
      expect(status).toBe(0)
    }
  })

  test("records of a volatile database move, change and go", async () => {
    await sameOnPair(
      "vol.tdb",
      [
        ["writekey DB k1 one"],
        ["writekey DB k1 two", 1],
        ["readkey DB k1", 2],
        ["writekey DB 0x6b32 0x00ff", 2],
        ["readkey DB k2"],
        ["deletekey DB k1"],
        ["readkey DB k1"],
        ["deletekey DB nosuch", 1],
        ["writekey DB k3 v3"],
        ["deletekey DB k3", 2],
        ["catdb DB"],
        ["cattdb DB", 2],
      ],
      unordered,
    )
  })

  test("read-only copies", async () => {
    await sameOnPair("ro.tdb", [
      ["writekey DB hot 1"],
      ["readkey DB hot readonly", 1],
      ["readkey DB hot readonly", 2],
      ["readkey DB hot readonly"],
      ["cattdb DB"],
      ["cattdb DB", 1],
      ["writekey DB hot 2"],
      ["cattdb DB", 1],
      ["readkey DB hot readonly", 1],
    ])
  })

  test.each(["per.tdb", "rep.tdb"])("transactions on %s", async (name) => {
    const lines = [
      '"a" "1"\n',
      '\t "b"\t"two" rest ignored\n',
      '"0x00ff" "0x4142"\n',
      "# comment\n",
      "\n",
      '"" "no key"\n',
      '"no value"\n',
      '"unterminated" "value\n',
      '"0x123" "odd"\n',
      '"x" "0xzz"\n',
      '"c" ""\n',
      " \t junk\n",
      '"k"  \t junk\n',
      '  "k" \t "open\n',
      '"0x414" \t "v"\n',
      '"k" "0x41zz42" rest\n',
      '"a" ""\n',
      '"a" "again"\n',
      '"last" "no newline"',
    ]
    await sameOnPair(name, [
      ["pstore DB k1 v1"],
      ["getdbseqnum DB"],
      ["pstore DB k1 v1"],
      ["getdbseqnum DB"],
      ["pfetch DB k1", 1],
      ["pstore DB k1 v2", 1],
      ["pstore DB 0x6b32 0x763200ff", 2],
      ["pfetch DB k2"],
      ["pstore DB k3 EMPTY"],
      ["pdelete DB k1"],
      ["pdelete DB k1", 1],
      ["pfetch DB k1"],
      ["ptrans DB", 0, lines.join("")],
      ["ptrans DB", 1, ""],
      ["ptrans DB", 1, '"a" "again"\n'],
      ["getdbseqnum DB", 2],
      ["catdb DB"],
    ])
  })

  test(
    "backup, dump, wipe and restore",
    async () => {
      for (const name of ["full.tdb", "per.tdb", "rep.tdb"]) {
        const files = new Map<string, Buffer>()
        for (const tool of [STOCK, ours]) {
          const file = join(directory, `backup-${dbOf(tool, name)}`)
          for (const key of ["f1", "f2", "f3"]) await succeed("writekey", dbOf(tool, "full.tdb"), key, "x".repeat(3000))
          await run(STOCK, ["ptrans", dbOf(tool, "per.tdb")], 0, manyLines())
          expect(await run(tool, ["backupdb", dbOf(tool, name), file])).toEqual({
            stdout: `Database backed up to ${file}\n`,
            stderr: "",
            status: 0,
          })
          files.set(tool, readFileSync(file))
          for (const dumper of [STOCK, ours]) {
            const dump = await run(dumper, ["dumpdbbackup", file])
            expect(dump.status).toBe(0)
            expect(dump.stdout).toBe((await run(STOCK, ["dumpdbbackup", file])).stdout)
          }
        }
        expect(comparable(files.get(ours)!)).toEqual(comparable(files.get(STOCK)!))
        // Each tool restores what the other has backed up, after a wipe.
        const before = await run(STOCK, ["cattdb", dbOf(STOCK, name)])
        const restored: Run[] = []
        for (const [tool, other] of [
          [STOCK, ours],
          [ours, STOCK],
        ] as const) {
          const file = join(directory, `backup-${dbOf(other, name)}`)
          const wiped = await run(tool, ["wipedb", dbOf(tool, name)])
          expect(wiped).toEqual({ stdout: `Database ${dbOf(tool, name)} wiped\n`, stderr: "", status: 0 })
          expect((await run(STOCK, ["cattdb", dbOf(tool, name)], 1)).stdout).toBe("Dumped 0 record(s)\n")
          restored.push(await run(tool, ["restoredb", file, dbOf(tool, name)]))
        }
        const masked = restored.map(({ stdout, stderr, status }) => ({ stdout: times(pair(stdout)), stderr, status }))
        expect(masked[1]).toEqual(masked[0]!)
        expect(masked[0]!.status).toBe(0)
        const after = await Promise.all([STOCK, ours].map((tool) => run(STOCK, ["cattdb", dbOf(tool, name)], 2)))
        expect(after[1]!.stdout).toBe(after[0]!.stdout)
        expect(after[0]!.stdout.split("\n").length).toBeGreaterThan(10)
        expect(before.status).toBe(0)
      }
    },
    TIMEOUT,
  )

  test("a backup with deleted volatile records restores, which with the stock tool it does not", async () => {
    await succeed("attach", "holes.tdb")
    for (let i = 0; i < 8; i++) await succeed("writekey", "holes.tdb", `empty ${i}`, "")
    await succeed("writekey", "holes.tdb", "k", "v")
    const file = join(directory, "holes")
    await succeed("backupdb", "holes.tdb", file)
    const own = await run(ours, ["restoredb", file])
    expect({ ...own, stdout: times(own.stdout) }).toEqual({
      stdout: "Restoring database holes.tdb from backup @ TIME\nDatabase holes.tdb restored\n",
      stderr: "",
      status: 0,
    })
    expect(await succeed("catdb", "holes.tdb")).toMatch(/^key\(1\) = "k"\n[\s\S]*Dumped 1 records\n$/)
    // Some node is neither the lmaster nor the dmaster of one of eight keys.
    const stock = await run(STOCK, ["restoredb", file])
    expect(stock.stderr).toMatch(/^Node \d received 0 of 9 records\n$/)
    await waitUntil("the recovery that puts it right", recovered, 60_000)
  }, 300_000)

  test(
    "a restore that fails half-way leaves the records as they were",
    async () => {
      const file = join(directory, "lies")
      await succeed("backupdb", "all-per.tdb", file)
      const before = await succeed("cattdb", "all-per.tdb")
      const bytes = readFileSync(file)
      // One record more than there are.
      bytes.writeUInt32LE(bytes.readUInt32LE(108) + 1, 108)
      writeFileSync(file, bytes)
      const { status } = await run(ours, ["restoredb", file])
      expect(status).not.toBe(0)
      await waitUntil("the recovery that puts it right", recovered, 60_000)
      const keys = (text: string) => [...text.matchAll(/^(key|data).*$/gm)].map(([line]) => line).sort()
      await waitUntil("the old records", async () => {
        const now = await run(STOCK, ["cattdb", "all-per.tdb"])
        // A recovery drops deleted records.
        return Bun.deepEquals(keys(now.stdout), keys(before.replace(/key.*\n.*\n.*\n.*\ndata\(0\).*\n/g, "")))
      })
    },
    TIMEOUT,
  )

  test("single records of files", async () => {
    for (const kind of ["per.tdb", "rep.tdb"]) {
      const paths = [STOCK, ours].map((tool) =>
        join(cluster.nodes[0]!.base, kind === "per.tdb" ? "persistent" : "volatile", `${dbOf(tool, kind)}.0`),
      )
      const copies = paths.map((path, index) => {
        const copy = join(directory, `${index === 0 ? "ref" : "own"}-${kind}`)
        writeFileSync(copy, readFileSync(path))
        return copy
      })
      const lines = [
        "tfetch FILE k2",
        "tfetch FILE nosuch",
        "tfetch FILE 0x1",
        "tstore FILE new 0x0001",
        "tfetch FILE new",
        "tstore FILE new data 0x10 3",
        "tfetch FILE new FILE.out",
        "tfetch FILE new /nonexistent/out",
        "tstore FILE new data x",
        "tstore FILE new data 1x -1",
        "tfetch FILE new",
        "tstore FILE 0x1 v",
        "tstore FILE k 0xz1",
      ]
      for (const line of lines) {
        const runs = await Promise.all(
          [STOCK, ours].map(async (tool, index) => {
            const words = line.split(" ").map((word) => word.replace("FILE", copies[index]!))
            const { stdout, stderr, status } = await run(tool, words[3]?.startsWith("-") ? ["--", ...words] : words)
            return { line, stdout: pair(stdout), stderr: pair(stderr), status }
          }),
        )
        expect(runs[1]).toEqual(runs[0]!)
      }
      expect(readFileSync(`${copies[1]}.out`)).toEqual(readFileSync(`${copies[0]}.out`))
    }
    // A file with mutexes is none for these two commands, with either tool.
    const path = join(cluster.nodes[0]!.base, "volatile", "all-vol.tdb.0")
    const { status } = await same(["tfetch", path, "k1"])
    expect(status).toBe(1)
  }, 300_000)

  test("properties and detaching", async () => {
    await sameOnPair("st.tdb", [["setdbsticky DB"], ["-n 1 setdbsticky DB"]])
    for (const tool of [STOCK, ours]) {
      const name = dbOf(tool, "late.tdb")
      await succeed("attach", name)
      expect(await run(tool, ["setdbreadonly", name])).toEqual({ stdout: "", stderr: "", status: 0 })
      expect(await run(tool, ["-n", "1", "setdbsticky", name])).toEqual({ stdout: "", stderr: "", status: 0 })
      const words = async (node: number) =>
        new RegExp(`name:${name} \\S+(.*)`).exec((await run(STOCK, ["getdbmap"], node)).stdout)![1]
      expect([await words(0), await words(1), await words(2)]).toEqual([" READONLY", " STICKY", ""])
    }
    for (const tool of [STOCK, ours]) await succeed("attach", dbOf(tool, "gone.tdb"))
    for (const node of [0, 1, 2]) await run(STOCK, ["setvar", "AllowClientDBAttach", "0"], node)
    const runs: unknown[] = []
    for (const tool of [STOCK, ours]) {
      const { stdout, stderr, status } = await run(tool, ["detach", "nosuch", dbOf(tool, "gone.tdb")])
      await waitUntil("detached everywhere", async () => {
        const maps = await Promise.all([0, 1, 2].map((node) => run(STOCK, ["getdbmap"], node)))
        return maps.every((map) => !map.stdout.includes(dbOf(tool, "gone.tdb")))
      })
      runs.push([stdout, stderr, status])
    }
    expect(runs[1]).toEqual(runs[0]!)
    await same(["detach", "all-per.tdb"])
    await same(["catdb", "all-vol.tdb"])
    for (const node of [0, 1, 2]) await run(STOCK, ["setvar", "AllowClientDBAttach", "1"], node)
  })

  test("JSON of every kind parses and says what the text says", async () => {
    const json = async (...words: string[]) =>
      JSON.parse((await run(ours, ["--json", ...words])).stdout) as Record<string, unknown>
    const map = (await json("getdbmap")) as { databases: { name: string; type: string; readonly: boolean }[] }
    expect(map.databases.find(({ name }) => name === "all-ro.tdb")).toMatchObject({ type: "volatile", readonly: true })
    expect(map.databases.find(({ name }) => name === "all-per.tdb")).toMatchObject({ type: "persistent" })
    expect(await json("getdbstatus", "all-rep.tdb")).toMatchObject({ type: "replicated", healthy: true })
    expect(await json("readkey", "all-vol.tdb", "0x00ff41")).toMatchObject({ key: { hex: "00ff41" } })
    const cat = (await json("cattdb", "all-per.tdb")) as { count: number; records: unknown[] }
    expect(cat.records.length).toBe(cat.count)
    expect(await json("pfetch", "all-per.tdb", "nosuch")).toMatchObject({ data: null })
    expect(await json("dbstatistics", "all-vol.tdb")).toHaveProperty("hot_keys")
    expect(await json("glock", "list")).toEqual({ locks: [] })
  })

  test("glock list shows holders and waiters", async () => {
    const { Client } = await import("../../lib/client/client.ts")
    const { GLock } = await import("../../lib/client/g-lock.ts")
    const clients = await Promise.all([0, 1].map((node) => Client.connect({ socket: cluster.nodes[node]!.socket })))
    const [, id] = /dbid:0x(\w+) name:all-per.tdb/.exec(await succeed("getdbmap"))!
    const name = `transaction_db_0x${id}`
    const held = await GLock.acquire(clients[0]!, { name, type: "write" })
    const waiting = GLock.acquire(clients[1]!, { name, type: "read" })
    await waitUntil("a waiter in the list", async () =>
      (await run(ours, ["-X", "glock", "list"])).stdout.includes("waiter"),
    )
    expect((await run(ours, ["-X", "glock", "list"], 2)).stdout).toBe(
      `|Name|Database|Format|Role|Type|Node|PID|State|\n` +
        `|${name}|all-per.tdb|ctdb|holder|write|0|${process.pid}|alive|\n` +
        `|${name}|all-per.tdb|ctdb|waiter|read|1|${process.pid}|waiting|\n`,
    )
    await held.release()
    await (await waiting).release()
    for (const client of clients) await client.close()
  })
})

/** Whether all nodes are in normal mode: the mode is set before the leader notices, so that a failed command shows. */
async function recovered(): Promise<boolean> {
  const all = await Promise.all([0, 1, 2].map((node) => run(STOCK, ["status"], node)))
  return all.every(({ stdout }) => stdout.includes("Recovery mode:NORMAL (0)"))
}

/** Records enough for more than one buffer of a backup. */
function manyLines(): string {
  let text = ""
  for (let i = 0; i < 250; i++) text += `"many ${i}" "${"y".repeat(900)}"\n`
  return text
}

/** A backup without what differs by nature: time, name, and the database ids that the stock tool leaves unset. */
function comparable(bytes: Buffer): { head: Buffer; buffers: Buffer[] } {
  const head = Buffer.from(bytes.subarray(0, 104))
  head.fill(0, 8, 16)
  head.fill(0, 40, 43)
  const buffers: Buffer[] = []
  for (let at = 104; at < bytes.length; ) {
    const length = Number(bytes.readBigUInt64LE(at + 8))
    buffers.push(bytes.subarray(at + 4, at + 16 + length))
    at += 16 + length
  }
  return { head, buffers }
}
