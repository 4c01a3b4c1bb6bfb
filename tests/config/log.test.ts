// The loggers on real files, sockets and pipes: the stock line formats, levels, reopening, bounds; and the pid file's lock as
// another process sees it.

import { afterAll, beforeAll, describe, expect, test } from "bun:test"
import { existsSync, mkdtempSync, readFileSync, renameSync, rmSync, statSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join, resolve } from "node:path"
import { LogLevel } from "../../lib/config/log.ts"
import { cutLongLines, formatLogTime, type LogOptions, logHost, openLogger } from "../../lib/config/log-sinks.ts"
import { createPidFile } from "../../lib/config/pidfile.ts"

let directory = ""
beforeAll(() => {
  directory = mkdtempSync(join(tmpdir(), "ctdb-log-"))
})
afterAll(() => rmSync(directory, { recursive: true, force: true }))

const options = (location: string, extra: Partial<LogOptions> = {}): LogOptions => ({
  location,
  level: LogLevel.NOTICE,
  program: "ctdbd",
  host: "node1.example",
  pid: 4711,
  ...extra,
})

describe("file", () => {
  test("stock lines; what is above the level is left out; only the first line of a message has the prefix", () => {
    const path = join(directory, "stock")
    const logger = openLogger(options(`file:${path}`))
    logger.notice("Set runstate to INIT (1)")
    logger.info("not this")
    logger.setLevel(LogLevel.DEBUG)
    logger.child("node 2").debug("two\nlines")
    logger.forProgram("ctdb-recoverd").error("x")
    logger.close()
    const lines = readFileSync(path, "utf8").split("\n")
    const stamp = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}[+-]\d\d:\d\d /
    expect(lines.map((line) => line.replace(stamp, "TIME "))).toEqual([
      "TIME node1.example ctdbd[4711]: Set runstate to INIT (1)",
      "TIME node1.example ctdbd[4711]: node 2: two",
      "lines",
      "TIME node1.example ctdb-recoverd[4711]: x",
      "",
    ])
    expect(statSync(path).mode & 0o777 & ~0o644).toBe(0)
  })
  test("reopen writes to a new file after a rotation", () => {
    const path = join(directory, "rotated")
    const logger = openLogger(options(`file:${path}`))
    logger.error("one")
    renameSync(path, `${path}.1`)
    logger.error("two")
    logger.reopen()
    logger.error("three")
    logger.close()
    const texts = (file: string) => readFileSync(file, "utf8").match(/: \w+$/gm)
    expect([texts(`${path}.1`), texts(path)]).toEqual([[": one", ": two"], [": three"]])
  })
  test("JSON lines", () => {
    const path = join(directory, "json")
    const logger = openLogger(options(`file:${path}`, { format: "json" }))
    logger.warning('a "quoted"\nmessage')
    logger.close()
    const { time, ...rest } = JSON.parse(readFileSync(path, "utf8")) as Record<string, unknown>
    expect(rest).toEqual({
      level: "WARNING",
      host: "node1.example",
      program: "ctdbd",
      pid: 4711,
      message: 'a "quoted"\nmessage',
    })
    expect(Math.abs(Date.parse(String(time)) - Date.now())).toBeLessThan(60_000)
  })
  test("time has microseconds and the zone's offset", () => {
    const text = formatLogTime(Date.UTC(2026, 10, 23, 16, 48, 22) + 92.989)
    expect(Date.parse(text.replace(/\.\d+/, ""))).toBe(Date.UTC(2026, 10, 23, 16, 48, 22))
    expect(text).toMatch(/\.09298[89][+-]\d\d:\d\d$/)
  })
  test("long lines are cut at 4095 bytes", () => {
    const cut = cutLongLines(`short\n${"x".repeat(4095 * 2 + 1)}`).split("\n")
    expect(cut.map((line) => line.length)).toEqual([5, 4098, 4098, 1])
    expect(cut[1]).toEndWith("x +>")
  })
})

test("in test mode the host is the base's last component", () => {
  expect(logHost({ testMode: true, base: "/tmp/x/node.2/" })).toBe("node.2")
})

describe("syslog over UDP", () => {
  async function received(location: string, speak: (location: LogOptions) => void, count: number): Promise<string[]> {
    const texts: string[] = []
    const { promise, resolve: done } = Promise.withResolvers<void>()
    const server = await Bun.udpSocket({
      hostname: "127.0.0.1",
      port: 0,
      socket: {
        data(_socket, data) {
          texts.push(data.toString())
          if (texts.length === count) done()
        },
      },
    })
    speak(options(location, { syslogPort: server.port }))
    await promise
    server.close()
    return texts
  }
  test("priority, program and pid; each line is a message; INFO has NOTICE's priority", async () => {
    const texts = await received(
      "syslog:udp",
      (where) => {
        const logger = openLogger({ ...where, level: LogLevel.DEBUG })
        logger.error("one\ntwo")
        logger.info("three")
        logger.debug("x".repeat(2000))
        logger.close()
      },
      4,
    )
    expect(texts.slice(0, 3)).toEqual(["<27>ctdbd[4711]: one", "<27>ctdbd[4711]: two", "<29>ctdbd[4711]: three"])
    expect([texts[3]?.length, texts[3]?.slice(0, 18)]).toEqual([1024, "<31>ctdbd[4711]: x"])
  })
  test("RFC 5424", async () => {
    const [text] = await received("syslog:udp-rfc5424", (where) => openLogger(where).notice("hello"), 1)
    expect(text?.replace(/\d{4}-\S+/, "TIME")).toBe("<29>1 TIME node1 ctdbd 4711 - - hello")
  })
})

/** A Unix datagram receiver of another make, that stops reading between its two orders. */
const receiver = `
import socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.bind(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
s.settimeout(0.3)
n = 0
last = b""
while True:
    try: last = s.recv(65536)
    except TimeoutError: break
    if n == 0: print(last.decode(), flush=True)
    n += 1
print(n, flush=True)
sys.stdin.readline()
s.settimeout(5)
for _ in range(2): print(s.recv(65536).decode(), flush=True)
`

const python = Bun.which("python3")

test.skipIf(python === null)("syslog that nobody reads drops and counts, and never waits", async () => {
  const path = join(directory, "dev-log")
  const child = Bun.spawn([python!, "-c", receiver, path], { stdin: "pipe", stdout: "pipe" })
  const reader = child.stdout.getReader()
  let pending = ""
  const line = async () => {
    while (!pending.includes("\n")) {
      const { value, done } = await reader.read()
      if (done) throw new Error(`receiver ended: ${pending}`)
      pending += new TextDecoder().decode(value)
    }
    const text = pending.slice(0, pending.indexOf("\n"))
    pending = pending.slice(pending.indexOf("\n") + 1)
    return text
  }
  expect(await line()).toBe("ready")
  const logger = openLogger(options("syslog", { syslogPath: path }))
  const before = performance.now()
  const sent = 20_000
  for (let number = 0; number < sent; number++) logger.error(`line ${number}`)
  expect(performance.now() - before).toBeLessThan(5000)
  child.stdin.write("read\n")
  child.stdin.flush()
  expect(await line()).toMatch(/^<27>[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d ctdbd\[4711\]: line 0$/)
  const arrived = Number(await line())
  expect(arrived).toBeLessThan(sent)
  logger.notice("again")
  child.stdin.write("read\n")
  child.stdin.flush()
  expect(await line()).toEndWith(`[Dropped ${sent - arrived} log messages]`)
  expect(await line()).toEndWith("ctdbd[4711]: again")
  child.kill()
  logger.close()
})

const script = (body: string) => {
  const path = join(directory, "program.ts")
  const root = resolve(import.meta.dir, "../../lib/config")
  writeFileSync(
    path,
    `import { openLogger } from "${root}/log-sinks.ts"\nimport { createPidFile } from "${root}/pidfile.ts"\n${body}\n`,
  )
  return [process.execPath, path]
}

describe("stderr", () => {
  test("text and newline only, all of it in order", () => {
    const argv = script(`
      const logger = openLogger({ location: "file:-", level: 3, program: "ctdbd" })
      logger.notice("a"); logger.debug("b"); logger.error("c"); logger.close()`)
    expect(Bun.spawnSync(argv, { stderr: "pipe" }).stderr.toString()).toBe("a\nc\n")
  })
  test("a reader that sleeps does not stop the writer, and gets what was kept", async () => {
    const argv = script(`
      const logger = openLogger({ location: "file:-", level: 3, program: "ctdbd" })
      for (let number = 0; number < 10000; number++) logger.notice("line " + number + " " + "x".repeat(20))
      await Bun.write(process.argv[2], "done")
      setInterval(() => {}, 1000)`)
    const mark = join(directory, "written")
    const child = Bun.spawn([...argv, mark], { stderr: "pipe", stdin: "ignore" })
    const until = performance.now() + 10_000
    while (!existsSync(mark)) {
      if (performance.now() > until) throw new Error("the writer waits for its reader")
      await Bun.sleep(10)
    }
    let text = ""
    for await (const chunk of child.stderr) {
      text += new TextDecoder().decode(chunk)
      if (text.includes("line 9999 ")) break
    }
    child.kill()
    expect(text.split("\n").filter((line) => line.startsWith("line ")).length).toBe(10_000)
  })
  test("a log file that can't be opened: stderr says so and gets the lines", () => {
    const argv = script(`
      const logger = openLogger({ location: "file:${directory}", level: 3, program: "ctdbd", host: "h", pid: 1 })
      logger.notice("on"); logger.close()`)
    const text = Bun.spawnSync(argv, { stderr: "pipe" }).stderr.toString().replace(/^\S+ /gm, "")
    const opened = `reopen_one_log: Unable to open new log file '${directory}': Is a directory`
    expect(text).toBe(`h ctdbd[1]: ${opened}\nh ctdbd[1]: on\n`)
  })
})

describe("pid file", () => {
  test("a second process is refused and told by whom; a left-over file is taken over", () => {
    const path = join(directory, "ctdbd.pid")
    writeFileSync(path, "999999 and more\n")
    const first = createPidFile(path)
    if (!first.ok) throw new Error(first.message)
    expect(readFileSync("/proc/locks", "latin1")).toMatch(
      new RegExp(`POSIX +ADVISORY +WRITE ${process.pid} \\S+:${statSync(path).ino} 0 EOF`),
    )
    const second = script(`console.log(JSON.stringify(createPidFile(${JSON.stringify(path)})))`)
    const result = JSON.parse(Bun.spawnSync(second, { stdout: "pipe" }).stdout.toString()) as Record<string, unknown>
    expect(result).toEqual({
      ok: false,
      held: true,
      message: `Failed to create PID file ${path}`,
      reason: `process ${process.pid} holds it: another daemon runs on this base, stop it first`,
    })
    const text = Bun.spawnSync(["cat", path], { stdout: "pipe" }).stdout.toString()
    expect(text).toBe(`${process.pid}\n`)
    first.pidFile.release()
    expect(existsSync(path)).toBe(false)
    const third = JSON.parse(Bun.spawnSync(second, { stdout: "pipe" }).stdout.toString()) as Record<string, unknown>
    expect(third.ok).toBe(true)
  })
  test("a directory that is missing is named", () => {
    const result = createPidFile(join(directory, "none/ctdbd.pid"))
    expect(result.ok ? "" : result.reason).toEndWith("none/ctdbd.pid: No such file or directory")
  })
})
