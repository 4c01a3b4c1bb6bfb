// What the parsers of a node's files make of a text: values, and faults that name source, line and cause.

import { describe, expect, test } from "bun:test"
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import {
  clusterLock,
  type FileProbe,
  loadConfigFile,
  optionDescriptions,
  parseConfig,
  reloadConfiguration,
  startConfiguration,
} from "../../lib/config/config-file.ts"
import { faultText } from "../../lib/config/fault.ts"
import { LogLevel, logLevelName, parseLogLevel } from "../../lib/config/log.ts"
import { nodesSource, parseNodes, readNodes, readNodesAsync, servicePort } from "../../lib/config/nodes-file.ts"
import { BrokenSetupError, helperPath, resolvePaths } from "../../lib/config/paths.ts"
import { parsePublicAddresses } from "../../lib/config/public-addresses.ts"
import {
  applyTunables,
  defaultTunables,
  findTunable,
  loadTunables,
  parseTunables,
  parseTunableValue,
  TUNABLE_COUNT,
  tunableListText,
  tunablesFromWords,
  tunablesToWords,
} from "../../lib/config/tunables.ts"

const everythingThere: FileProbe = { kind: () => "directory", executable: () => true }
const parse = (text: string) => parseConfig(text, "/etc/ctdb/ctdb.conf", "/etc/ctdb", everythingThere)

describe("ctdb.conf", () => {
  test("a bad value is told with its line, and stops a start", () => {
    const file = parse("# comment\n[cluster]\n\ttransport = tcp\n\n\tleader timeout = five\n")
    expect(file.faults.map(faultText)).toEqual(["ctdb.conf line 5: Invalid value for [cluster] -> leader timeout = 0"])
    expect(startConfiguration(file).ok).toBe(false)
  })
  test("lines are counted through continuations", () => {
    const file = parse("[cluster]\ncluster lock = !a \\\n  b\ntransport = ib\n")
    expect(file.faults.map((fault) => fault.line)).toEqual([4])
    expect(file.configuration.cluster.clusterLock).toBe("!a b")
  })
  test("unknown names do not stop a start, but are told", () => {
    const start = startConfiguration(parse("[cluster]\ntransprot = tcp\n[nosuch]\n"))
    if (!start.ok) throw new Error("refused")
    expect(start.value.remarks.map(faultText)).toEqual([
      'ctdb.conf line 2: unknown option [cluster] -> "transprot"',
      "ctdb.conf line 3: unknown section [nosuch]",
    ])
  })
  test("a syntax error stops a start: all defaults would mean no cluster lock", () => {
    const file = parse("[cluster]\ncluster lock = /x\n[database\n")
    expect(file.configuration.cluster.clusterLock).toBeUndefined()
    const start = startConfiguration(file)
    expect(start.ok ? [] : start.faults.map(faultText)).toEqual(['ctdb.conf line 3: a section without "]"'])
  })
  test("the level of the main daemon is NOTICE unless the file says otherwise, ERROR included", () => {
    const levels = ["", "log level = ERROR\n", "log level = debug\n"].map((line) => {
      const start = startConfiguration(parse(`[logging]\n${line}`))
      return start.ok ? start.value.logLevel : undefined
    })
    expect(levels).toEqual([LogLevel.NOTICE, LogLevel.ERROR, LogLevel.DEBUG])
  })
  test("the old name of the cluster lock counts only without the new one", () => {
    expect(clusterLock(parse("[cluster]\nrecovery lock = /old\n").configuration)).toBe("/old")
    expect(clusterLock(parse("[cluster]\nrecovery lock = /old\ncluster lock = /new\n").configuration)).toBe("/new")
  })
  test("the newest version's options are known", () => {
    const { configuration, faults } = parse("[cluster]\nnodes list = !x y\n[failover]\nshutdown failover timeout = 0\n")
    expect(faults).toEqual([])
    expect(configuration.cluster.nodesList).toBe("!x y")
    expect(configuration.failover.shutdownFailoverTimeout).toBe(0)
  })
  test("a reload takes what may change, names what may not, and is idempotent", () => {
    const current = parse("[logging]\nlocation = syslog\n[cluster]\ncluster lock = /a\n").configuration
    const file = parse("[logging]\nlocation = syslog\nlog level = DEBUG\n[cluster]\ncluster lock = /b\n")
    const reload = reloadConfiguration(current, file)
    if (!reload.ok) throw new Error("refused")
    expect(reload.value.ignored).toEqual(["Ignoring update of [cluster] -> cluster lock"])
    expect(reload.value.configuration.logging.logLevel).toBe("DEBUG")
    expect(reload.value.configuration.cluster.clusterLock).toBe("/a")
    expect(reloadConfiguration(reload.value.configuration, file)).toEqual(reload)
  })
  test("a bad file changes nothing at a reload", () => {
    expect(reloadConfiguration(parse("").configuration, parse("[failover]\ndisabled = 1\n")).ok).toBe(false)
  })
  test("a missing file is all defaults, an unreadable one a fault", () => {
    const missing = loadConfigFile("/nonexistent/ctdb.conf", "/etc/ctdb")
    expect(missing.missing).toBe(true)
    expect(missing.faults).toEqual([])
    expect(loadConfigFile("/", "/etc/ctdb").faults.map((fault) => fault.kind)).toEqual(["unreadable"])
  })
  test("no two options share section and key", () => {
    const names = optionDescriptions.map(({ section, key }) => `${section}/${key}`)
    expect(new Set(names).size).toBe(names.length)
  })
})

describe("node list", () => {
  test("comments keep a number, empty lines use none", () => {
    const parsed = parseNodes("10.0.0.1\n\n#10.0.0.2\n10.0.0.3\n", "/x/nodes")
    if (!parsed.ok) throw new Error("refused")
    expect(parsed.value.map(({ pnn, address, deleted, flags, line }) => [pnn, address, deleted, flags, line])).toEqual([
      [0, "10.0.0.1", false, 0x3, 1],
      [1, "0.0.0.0", true, 0x11, 3],
      [2, "10.0.0.3", false, 0x3, 4],
    ])
  })
  test("every bad line is told", () => {
    const parsed = parseNodes("10.0.0.1\nhost\n10.0.0.3:4379\n", "/x/nodes")
    expect(parsed.ok ? [] : parsed.faults.map(faultText)).toEqual([
      'nodes line 2: invalid node address "host": expected one IPv4 or IPv6 literal',
      'nodes line 3: invalid node address "10.0.0.3:4379": expected one IPv4 or IPv6 literal',
    ])
  })
  test("a command's output counts, its status does not; one that does not exist is a fault", async () => {
    const directory = mkdtempSync(join(tmpdir(), "ctdb-nodes-"))
    const script = join(directory, "list")
    writeFileSync(script, "#!/bin/sh\necho 10.0.0.$1\necho 10.0.0.2\nexit 3\n", { mode: 0o755 })
    const source = nodesSource(`!${script}  9`, "/x/nodes")
    for (const parsed of [readNodes(source), await readNodesAsync(source)]) {
      expect(parsed.ok ? parsed.value.map((node) => node.address) : parsed.faults).toEqual(["10.0.0.9", "10.0.0.2"])
    }
    const gone = nodesSource("!/nonexistent/list", "/x/nodes")
    for (const parsed of [readNodes(gone), await readNodesAsync(gone), readNodes(nodesSource("!", "/x"))]) {
      expect(parsed.ok).toBe(false)
    }
    rmSync(directory, { recursive: true })
  })
  test("the port is that of the services database", () => {
    expect(servicePort("ssh 22/tcp\nctdb 9999/udp\nctdb 4379/tcp # node links\n")).toBe(4379)
    expect(servicePort("x 77/tcp ctdb\n")).toBe(77)
    expect(servicePort("# ctdb 1/tcp\n")).toBeUndefined()
  })
})

describe("public addresses", () => {
  const interfaces = (name: string) => name === "eth0" || name === "eth1"
  const told = (text: string) => {
    const parsed = parsePublicAddresses(text, "/x/public_addresses", interfaces)
    return parsed.ok ? [] : parsed.faults.flatMap((fault) => fault.stock)
  }
  test("address, mask and interfaces in order", () => {
    const text = "# all\n \t10.1.1.1/24 \t eth0,eth1 rest\r\n\nfd00::1/64 eth1\n::ffff:10.1.1.2/24 eth0"
    const parsed = parsePublicAddresses(text, "x", interfaces)
    if (!parsed.ok) throw new Error(JSON.stringify(parsed.faults))
    expect(parsed.value).toEqual([
      { address: "10.1.1.1", family: "inet", maskBits: 24, interfaces: ["eth0", "eth1"], line: 2 },
      { address: "fd00::1", family: "inet6", maskBits: 64, interfaces: ["eth1"], line: 4 },
      { address: "10.1.1.2", family: "inet", maskBits: 24, interfaces: ["eth0"], line: 5 },
    ])
  })
  test("the stock messages name the line", () => {
    expect(told("10.1.1.1/24\n")).toEqual(["No interface specified at line 1 of public addresses file"])
    expect(told("\n10.1.1.1 eth0\n")).toEqual(["Badly formed line 2 in public address list"])
    expect(told("10.1.1.1/x eth0\n")).toEqual(["Badly formed line 1 in public address list"])
    expect(told("10.1.1.1/24 eth0\n10.1.1.1/16 eth1\n")).toEqual([
      "Duplicate public IP address '10.1.1.1'",
      "Failed to add line 2 to the public address list",
    ])
    expect(told("10.1.1.1/24 eth9\n")).toEqual([
      "Unknown interface eth9 for public address 10.1.1.1",
      "Failed to add line 1 to the public address list",
    ])
  })
})

describe("tunables", () => {
  test("the table has 62 places, each taken once", () => {
    expect(TUNABLE_COUNT).toBe(62)
    const words = tunablesToWords(defaultTunables())
    expect(words.length).toBe(62)
    expect(words.every((word) => Number.isInteger(word))).toBe(true)
    expect([words[0], words[17], words[41], words[61]]).toEqual([3, 100001, 1, 0])
    const changed = words.map((word, index) => word + index)
    expect(tunablesToWords(tunablesFromWords(changed))).toEqual(changed)
  })
  test("names are found in any case, the list leaves the obsolete out", () => {
    expect(findTunable("keepaliveINTERVAL")?.name).toBe("KeepaliveInterval")
    expect(tunableListText()).toStartWith(":SeqnumInterval:ControlTimeout:")
    expect(tunableListText()).toEndWith(":AllowMixedVersions")
    expect(tunableListText()).not.toContain("MaxRedirectCount")
  })
  test("numbers are C's, whole, 32 bits", () => {
    const texts = ["12", "0x10", "010", "4294967297", "99999999999", "+5", "-1", "1 2", "", "x", "18446744073709551616"]
    expect(texts.map(parseTunableValue)).toEqual([
      12,
      16,
      8,
      1,
      1215752191,
      5,
      undefined,
      undefined,
      undefined,
      undefined,
      undefined,
    ])
  })
  test("bad lines are told, good ones apply, nothing after a syntax error", () => {
    const settings = parseTunables("keepalivelimit = 9\nfoo = 1\n[x\nRecoverTimeout = 7\n", "/x/ctdb.tunables")
    const tunables = defaultTunables()
    applyTunables(tunables, settings)
    expect([tunables.KeepaliveLimit, tunables.RecoverTimeout]).toEqual([9, 30])
    expect(settings.faults.map(faultText)).toEqual([
      'ctdb.tunables line 2: unknown tunable "foo"',
      'ctdb.tunables line 3: a section without "]"; the rest is ignored',
    ])
  })
  test("later files win", () => {
    const directory = mkdtempSync(join(tmpdir(), "ctdb-tunables-"))
    mkdirSync(join(directory, "d"))
    writeFileSync(join(directory, "main"), "KeepaliveLimit = 1\nRecoverTimeout = 1\n")
    writeFileSync(join(directory, "d/b.tunables"), "KeepaliveLimit = 3\n")
    writeFileSync(join(directory, "d/a.tunables"), "KeepaliveLimit = 2\n")
    writeFileSync(join(directory, "d/c.old"), "KeepaliveLimit = 4\n")
    const { values, files, missing } = loadTunables(join(directory, "main"), join(directory, "d"))
    expect([values.get("KeepaliveLimit"), values.get("RecoverTimeout"), files.length, missing]).toEqual([
      3,
      1,
      3,
      false,
    ])
    expect(loadTunables(join(directory, "none"), join(directory, "d")).missing).toBe(true)
    rmSync(directory, { recursive: true })
  })
})

describe("paths", () => {
  test("test mode without a base is broken, an empty base is not", () => {
    expect(() => resolvePaths({ CTDB_TEST_MODE: "" })).toThrow(BrokenSetupError)
    expect(resolvePaths({ CTDB_TEST_MODE: "", CTDB_BASE: "" }).daemonPidFile).toBe("/run/ctdbd.pid")
  })
  test("outside test mode the base moves the node list, not ctdb.conf", () => {
    const paths = resolvePaths({ CTDB_BASE: "/x" })
    expect([paths.nodesFile, paths.configFile]).toEqual(["/x/nodes", "/etc/ctdb/ctdb.conf"])
  })
  test("helpers can be replaced one by one", () => {
    const env = { CTDB_RECOVERY_HELPER: "/y/helper" }
    const paths = resolvePaths(env)
    expect(helperPath("ctdb_recovery_helper", paths, env)).toBe("/y/helper")
    expect(helperPath("ctdb_lock_helper", paths, env)).toBe("/usr/libexec/ctdb/ctdb_lock_helper")
  })
})

test("log levels: names, beginnings, numbers, and the names numbers are shown under", () => {
  const texts = ["ERROR", "err", "w", "no", "Info", "d", "0", "10", "010", "11", "foo", "", "-1"]
  expect(texts.map(parseLogLevel)).toEqual([0, 0, 1, 3, 5, 10, 0, 10, 10, undefined, undefined, undefined, undefined])
  expect([0, 1, 2, 3, 4, 5, 9, 10].map(logLevelName).join(" ")).toBe(
    "ERROR WARNING WARNING NOTICE NOTICE INFO INFO DEBUG",
  )
})
