// ctdb-config and ctdb-path beside the stock programs: the same arguments and files, byte for byte the same output, errors and
// statuses; and the start of a daemon on broken files, where stock's messages are what our faults carry. Skipped on hosts
// without Debian's ctdb. No daemon started here outlives its test.

import { afterAll, beforeAll, describe, expect, test } from "bun:test"
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join, resolve } from "node:path"
import { dumpConfiguration, loadConfigFile, missingDirectories, parseConfig } from "../../lib/config/config-file.ts"
import { readNodes } from "../../lib/config/nodes-file.ts"
import { createPidFile, PID_FILE_EXIT_STATUS } from "../../lib/config/pidfile.ts"
import { loadTunables } from "../../lib/config/tunables.ts"

const helpers = "/usr/libexec/ctdb"
const ctdbd = "/usr/sbin/ctdbd"
const installed = existsSync(`${helpers}/ctdb-config`) && existsSync(ctdbd)
const entry = resolve(import.meta.dir, "../../cmd/main.ts")

interface Outcome {
  readonly out: string
  readonly err: string
  readonly status: number | null
}

let base = ""
beforeAll(() => {
  base = mkdtempSync(join(tmpdir(), "ctdb-config-"))
  for (const name of ["run", "var", "db/v", "db/p", "db/s", "events/legacy", "events/notification", "share"]) {
    mkdirSync(join(base, name), { recursive: true })
  }
})
afterAll(() => rmSync(base, { recursive: true, force: true }))

/** `null` removes a variable. Latin-1 so that every byte of the output counts. */
function outcome(argv: readonly string[], extra: Record<string, string | null> = {}): Outcome {
  const env: Record<string, string> = { PATH: process.env.PATH ?? "", CTDB_TEST_MODE: "1", CTDB_BASE: base }
  for (const [name, value] of Object.entries(extra)) {
    if (value === null) delete env[name]
    else env[name] = value
  }
  const child = Bun.spawnSync([...argv], { env, stdin: "ignore", stdout: "pipe", stderr: "pipe", timeout: 20_000 })
  const aborted = child.signalCode === "SIGABRT"
  return {
    out: child.stdout.toString("latin1"),
    err: child.stderr.toString("latin1"),
    status: aborted ? 134 : child.exitCode,
  }
}

function compare(program: "path" | "config", words: readonly string[], env: Record<string, string | null> = {}): void {
  const stock = outcome([`${helpers}/ctdb-${program}`, ...words], env)
  const ours = outcome([process.execPath, entry, program, ...words], env)
  expect(ours).toEqual(stock)
}

const config = (text: string | Uint8Array) => writeFileSync(join(base, "ctdb.conf"), text)

describe.skipIf(!installed)("ctdb-path answers as the stock program", () => {
  const lines = [
    "",
    "config",
    "config x",
    "pidfile",
    "pidfile x",
    "pidfile x y",
    "socket ctdbd",
    "socket eventd",
    "datadir",
    "datadir x",
    "datadir append",
    "datadir append /a",
    "etcdir append a b",
    "rundir",
    "vardir append x",
    "vardir appen x",
    "nosuch",
    "--help",
    "-h",
    "--help config",
    "config -h",
    "-?",
    "--usage",
    "--help=3",
    "-hx",
    "-xh",
    "pidfile -- -x",
    "-- -x",
  ]
  for (const line of lines) {
    test(`"${line}"`, () => {
      compare("path", line === "" ? [] : line.split(" "))
    })
  }
  test("outside test mode, without a base, with an empty base, with another socket", () => {
    const normal = { CTDB_TEST_MODE: null, CTDB_BASE: null }
    for (const word of ["config", "etcdir", "datadir", "rundir", "vardir"]) compare("path", [word], normal)
    compare("path", ["socket", "ctdbd"], normal)
    compare("path", ["socket", "ctdbd"], { ...normal, CTDB_SOCKET: "/tmp/other" })
    compare("path", ["socket", "eventd"], { CTDB_SOCKET: "/tmp/other" })
    compare("path", ["config"], { CTDB_BASE: null })
    compare("path", ["config"], { CTDB_BASE: "" })
    compare("path", ["rundir"], { CTDB_BASE: "rel//" })
  }, 300_000)
})

describe.skipIf(!installed)("ctdb-config answers as the stock program", () => {
  const lines = [
    "",
    "--help",
    "-h dump",
    "-?",
    "--usage",
    "dump --usage",
    "--foo",
    "-x",
    "-d",
    "--debug",
    "--deb x",
    "--help=3",
    "-hx",
    "get a",
    "dump x",
    "validate x",
    "get a b c",
    "get a b",
    "get a b -d ERROR",
    "-dDEBUG validate",
    "-d=DEBUG validate",
    "--debug=DEBUG dump",
    "--debug NOTICE validate",
    "-d foo dump",
    "-- dump",
    "nosuch",
  ]
  for (const line of lines) {
    test(`"${line}"`, () => {
      config("[cluster]\nleader timeout = 7\nrecovery lock = /a/b\n[legacy]\nrealtime scheduling = NO\n")
      compare("config", line === "" ? [] : line.split(" "))
    })
  }

  const files: Record<string, string | Uint8Array> = {
    empty: "",
    "bad values": "[failover]\ndisabled = maybe\n[cluster]\ntransport = ib\nleader timeout = x\nnode address = [::1]\n",
    "unknown names": "a = 1\n[cluster]\nfoo = 1\n[nosuch]\nx = 1\n[failover]\ndisabled = 1\n",
    "syntax error": "[cluster]\nleader timeout = 9\n[x\n",
    "syntax error after a bad value": "[failover]\ndisabled = 1\n = 3\n",
    "empty value": "[cluster]\ncluster lock =\n",
    "missing directories": "[database]\nstate database directory = /nope\n[logging]\nlocation = file:/nope/x\n",
    scripts: "[database]\nlock debug script = nope\n[event]\ndebug script = ctdb.conf\n",
    "a key twice, back to its default": "[cluster]\nleader timeout = 8\nleader timeout = 5\n",
    "CRLF, blanks, continuation": "[CLUSTER]\r\n\tcluster lock\t=  !/x   y \\\r\n  z\r\n",
    "bytes that are no UTF-8": Uint8Array.from(Buffer.from("[cluster]\ncluster lock = /\xff\xe9\n", "latin1")),
  }
  for (const [name, text] of Object.entries(files)) {
    test(name, () => {
      config(text)
      compare("config", ["dump"])
      compare("config", ["validate"])
      compare("config", ["-d", "DEBUG", "get", "CLUSTER", "cluster lock"])
      compare("config", ["-d", "DEBUG", "validate"])
    }, 300_000)
  }
  test("no file", () => {
    rmSync(join(base, "ctdb.conf"))
    compare("config", ["dump"])
    compare("config", ["validate"])
    compare("config", ["-d", "INFO", "get", "cluster", "leader timeout"])
  })

  const values: Record<string, readonly string[]> = {
    "logging/log level": ["e", "0", "10", "11", "-1", "010", "011", "0x1", "1x", "ERRORS", "notice", "W"],
    "logging/location": [
      "file",
      "file:",
      "file:-",
      "file:x",
      "file:/nope/x",
      "file:/",
      "syslog",
      "syslog:",
      "syslog:udp",
      ":syslog",
      "::",
      "file:/tmp/x:/nope/y",
      "syslog::x",
    ],
    "cluster/leader timeout": ["08", "0x1f", "1e3", "2147483647", "2147483648", "-0", "+7", "99999999999999999999"],
    "cluster/node address": ["1.2.3.4", "01.2.3.4", "::1", "[::1]", "::ffff:1.2.3.4", "fe80::1%lo", "a", "1::2::3"],
    "failover/disabled": ["TRUE", "Yes", "no", "n", "on", "1", "true x"],
    "legacy/script log level": ["err", "foo", "11"],
  }
  for (const [name, texts] of Object.entries(values)) {
    test(`values of ${name}`, () => {
      const [section = "", key = ""] = name.split("/")
      for (const text of texts) {
        config(`[${section}]\n${key} = ${text}\n`)
        const stock = outcome([`${helpers}/ctdb-config`, "get", section, key])
        const file = loadConfigFile(join(base, "ctdb.conf"), base)
        const accepted = !file.faults.some((fault) => fault.kind === "invalid")
        expect(`${text}: ${accepted ? 0 : 22}`).toBe(`${text}: ${stock.status}`)
        if (!accepted) continue
        const line = dumpConfiguration(file.configuration)
          .split("\n")
          .find((candidate) => candidate.replace(/^\t(# )?/, "").startsWith(`${key} = `))
        expect(`${line?.split(" = ")[1]}\n`).toBe(stock.out)
      }
    })
  }

  test("300 random files mean the same to both", () => {
    let state = 20261124
    const random = (below: number) => {
      state = (Math.imul(state, 1664525) + 1013904223) >>> 0
      return Math.floor((state / 2 ** 32) * below)
    }
    const atoms = [
      "[",
      "]",
      "=",
      "#",
      ";",
      "\\",
      " ",
      "\t",
      "\n",
      "\n",
      "\r",
      "\v",
      "a",
      "b/",
      "cluster",
      "[cluster]\n",
    ]
    atoms.push(
      "[legacy]\n",
      "cluster lock = ",
      "recovery lock=",
      "cluster lock",
      "leader timeout = ",
      "5",
      "7",
      "0x",
      "1",
    )
    atoms.push("disabled = ", "true", "no", "[x]\n", "[FAILOVER]\n", "\\\n", " \\ \n ", "start as stopped = yes\n", "é")
    for (let round = 0; round < 300; round++) {
      let text = random(2) === 0 ? "" : "[cluster]\n"
      for (let left = 1 + random(14); left > 0; left--) text += atoms[random(atoms.length)]
      config(text)
      const stock = [outcome([`${helpers}/ctdb-config`, "dump"]), outcome([`${helpers}/ctdb-config`, "validate"])]
      const { configuration, faults } = parseConfig(Buffer.from(text).toString("latin1"), "ctdb.conf", base)
      const failed = `Failed to load config file ${base}/ctdb.conf\n`
      const expected = [["invalid"], ["invalid", "unknown"]].map((kinds, index): Outcome => {
        const told = faults.filter((fault) => kinds.includes(fault.kind)).flatMap((fault) => fault.stock)
        if (told.length > 0) return { out: "", err: `${told.join("\n")}\n${failed}`, status: 22 }
        return { out: index === 0 ? dumpConfiguration(configuration) : "", err: "", status: 0 }
      })
      expect({ text, outcomes: expected }).toEqual({ text, outcomes: stock })
    }
  }, 300_000)
})

describe.skipIf(!installed)("node lists mean the same to the stock tool", () => {
  const lists = [
    "127.0.0.1\n",
    " #x\n\t1.1.1.1 \r\n",
    "1.1.1.1\r\n\r\n2.2.2.2",
    "[::1]\n2001:DB8:0:0::1\n::ffff:1.2.3.4\n1:0:0:2:0:0:0:3\n1:2:3:4:5:6:1.2.3.4\n::1.2.3.4\n",
    "\n\n# gone\n10.0.0.3\n",
    "1.1.1.1\r2.2.2.2\n",
    "1.1.1.1\n1.1.1.1",
    "",
  ]
  for (const list of lists) {
    test(JSON.stringify(list), () => {
      writeFileSync(join(base, "nodes"), list)
      const parsed = readNodes({ kind: "file", path: join(base, "nodes") })
      if (!parsed.ok) throw new Error(JSON.stringify(parsed.faults))
      const ours = parsed.value.filter((node) => !node.deleted).map((node) => `|${node.pnn}|${node.address}|\n`)
      expect(ours.join("")).toBe(outcome(["ctdb", "-X", "listnodes"]).out)
    })
  }
  test("addresses that the stock tool refuses are refused", () => {
    const bad = ["127.1", "10.0.0.01", "256.1.1.1", "fe80::1%lo", "1.2.3.4:99", "1.2.3.4 # c", "localhost", "1::2::3"]
    bad.push("12345::", "::ffff:0:0", "\v1.1.1.1", "+1.2.3.4", "1:2:3:4:5:6:7:8:9")
    for (const text of bad) {
      writeFileSync(join(base, "nodes"), `10.0.0.1\n${text}\n`)
      const stock = outcome(["ctdb", "listnodes"])
      const ours = readNodes({ kind: "file", path: join(base, "nodes") })
      expect(`${text}: ${stock.status}`).toBe(`${text}: 1`)
      expect(ours.ok ? [] : ours.faults.map((fault) => fault.line)).toEqual([2])
    }
  })
})

/** Good files for a daemon on this test's own address. */
function daemonFiles(): void {
  const database = ["volatile", "persistent", "state"].map(
    (name) => `${name} database directory = ${base}/db/${name[0]}`,
  )
  config(`[cluster]\nnode address = 127.90.17.1\n[database]\n${database.join("\n")}\n`)
  writeFileSync(join(base, "nodes"), "127.90.17.1\n")
  rmSync(join(base, "ctdb.tunables"), { force: true })
  for (const name of ["v", "p", "s"]) mkdirSync(join(base, "db", name), { recursive: true })
}

describe.skipIf(!installed)("a start that the stock daemon refuses", () => {
  test("bad values in ctdb.conf: the faults carry its messages", () => {
    daemonFiles()
    config("[database]\ntdb mutexes = 1\n[cluster]\nleader timeout = 0\nfoo = 1\nnode address = here\n")
    const stock = outcome([ctdbd, "-i"])
    const file = loadConfigFile(join(base, "ctdb.conf"), base)
    const told = file.faults.filter((fault) => fault.kind === "invalid").flatMap((fault) => fault.stock)
    told.push(`Failed to load configuration file ${base}/ctdb.conf`, "")
    expect(stock).toEqual({ out: "", err: told.join("\n"), status: 1 })
  })
  test("a database directory that is gone", () => {
    daemonFiles()
    rmSync(join(base, "db/s"), { recursive: true })
    const file = loadConfigFile(join(base, "ctdb.conf"), base)
    const told = file.faults.flatMap((fault) => fault.stock)
    const stock = outcome([ctdbd, "-i"])
    expect(stock.err).toBe(`${told.join("\n")}\nFailed to load configuration file ${base}/ctdb.conf\n`)
    expect(stock.status).toBe(1)
    expect(missingDirectories(file.configuration).every((line) => line.endsWith("does not exist"))).toBe(true)
  })
  test("no node list, and a bad one", () => {
    daemonFiles()
    writeFileSync(join(base, "nodes"), "127.90.17.1\nfoo\n")
    const bad = outcome([ctdbd, "-i"])
    expect(bad.status).toBe(1)
    expect(bad.err).toEndWith(`Failed to load nodes file "${base}/nodes"\n`)
    rmSync(join(base, "nodes"))
    expect(readNodes({ kind: "file", path: join(base, "nodes") }).ok).toBe(false)
    const missing = outcome([ctdbd, "-i"])
    expect(missing.status).toBe(1)
    expect(missing.err).toEndWith(
      `Failed to read nodes file "${base}/nodes"\nFailed to load nodes file "${base}/nodes"\n`,
    )
  })
  test("our pid file keeps it out, and bad tunables do not", () => {
    daemonFiles()
    const text =
      "foo = 1\nMaxRedirectCount=7\nmonitorinterval = abc\nkeepalivelimit = -1\nrecovertimeout\n[x]\n[y\na=1\n"
    writeFileSync(join(base, "ctdb.tunables"), text)
    const path = join(base, "run/ctdbd.pid")
    const result = createPidFile(path)
    if (!result.ok) throw new Error(result.message)
    const stock = outcome([ctdbd, "-i"])
    expect(readFileSync(path, "latin1")).toBe(`${process.pid}\n`)
    result.pidFile.release()
    expect(stock.status).toBe(PID_FILE_EXIT_STATUS)
    expect(stock.err).toEndWith(`Failed to create PID file ${path}\n`)
    const told = stock.err.split("\n").filter((line) => line.startsWith("ctdb_tunable_load_file: "))
    const { faults } = loadTunables(join(base, "ctdb.tunables"))
    expect(faults.map((fault) => `ctdb_tunable_load_file: ${fault.stock}`)).toEqual(told)
    expect(existsSync(path)).toBe(false)
  })
})
