// Process attributes as the kernel and ps report them, each set in a child of its own.

import { expect, test } from "bun:test"
import { join } from "node:path"
import { getLimit, Limit, processExists, sessionOf, spawnDetached } from "../../lib/sys/process.ts"
import { waitUntil } from "../peers/stock.ts"

const MODULE = JSON.stringify(join(import.meta.dir, "../../lib/sys/process.ts"))
const isRoot = process.getuid?.() === 0

/** Runs a script with everything of lib/sys/process.ts in `p`, and returns what it printed. */
function inChild(script: string, ...words: string[]): string {
  const child = Bun.spawnSync(["bun", "-e", `import * as p from ${MODULE}\n${script}`, ...words])
  expect(child.stderr.toString()).toBe("")
  return child.stdout.toString()
}

test("ps shows the name that a process gave itself, as name and as command line", () => {
  const shown = inChild(
    `p.setProcessName("ctdb_recoverd")
     console.log(Bun.spawnSync(["ps", "-o", "comm=,args=", "-p", String(process.pid)]).stdout.toString().trim())
     console.log(process.argv.at(-1))`,
    "a long enough command line",
  )
  expect(shown.replace(/ +/g, " ")).toBe("ctdb_recoverd ctdb_recoverd\na long enough command line\n")
})

test("a name longer than the kernel keeps is cut for the name only", () => {
  const shown = inChild(
    `p.setProcessName("ctdb_a_name_of_26_letters_")
     const fs = require("node:fs")
     console.log(fs.readFileSync("/proc/self/comm", "utf8").trim(), fs.readFileSync("/proc/self/cmdline", "latin1").split("\\0")[0])`,
    "x".repeat(40),
  )
  expect(shown).toBe("ctdb_a_name_of_ ctdb_a_name_of_26_letters_\n")
})

test.skipIf(!isRoot)("real-time scheduling is the loop's own, not that of programs it starts", () => {
  const shown = inChild(
    `p.setRealtimeScheduling(1)
     const policy = (pid) => Bun.spawnSync(["chrt", "-p", String(pid)]).stdout.toString().split("\\n")[0].split(": ")[1]
     const child = Bun.spawn(["sleep", "5"])
     console.log(policy(process.pid), policy(child.pid), p.hasRealtimeScheduling(), p.hasRealtimeScheduling(child.pid))
     child.kill()
     p.setNormalScheduling()
     console.log(policy(process.pid), p.hasRealtimeScheduling())`,
  )
  expect(shown).toBe("SCHED_FIFO|SCHED_RESET_ON_FORK SCHED_OTHER true false\nSCHED_OTHER false\n")
})

test.skipIf(!isRoot)(
  "the program is locked in memory; what is freed of the heap goes back to the system",
  () => {
    const shown = inChild(
      `const status = () => require("node:fs").readFileSync("/proc/self/status", "utf8")
     const kilobytes = (name) => Number(new RegExp(name + ":\\\\s*(\\\\d+) kB").exec(status())[1])
     p.lockMemory()
     console.log(kilobytes("VmLck") > 10000, kilobytes("VmRSS") < 400000)
     let kept = Array.from({ length: 200 }, () => new Uint8Array(1 << 20).fill(1))
     const most = kilobytes("VmRSS")
     kept = undefined
     Bun.gc(true)
     for (const end = performance.now() + 5000; performance.now() < end && kilobytes("VmRSS") > most - 150000; ) {
       await Bun.sleep(50)
     }
     console.log(kept, kilobytes("VmRSS") < most - 150000)`,
    )
    expect(shown).toBe("true true\nundefined true\n")
  },
  20_000,
)

test("limits are read and set, without limit too", () => {
  const { hard } = getLimit(Limit.OPEN_FILES)
  expect(inChild(`console.log(p.getLimit(p.Limit.OPEN_FILES).hard)`)).toBe(`${hard}\n`)
  const shown = inChild(
    `p.setLimit(p.Limit.OPEN_FILES, { soft: 333, hard: p.getLimit(p.Limit.OPEN_FILES).hard })
     console.log(Bun.spawnSync(["sh", "-c", "ulimit -Sn"]).stdout.toString().trim())
     try { p.setLimit(p.Limit.OPEN_FILES, { soft: 2, hard: 1 }) } catch (error) { console.log(error.code) }`,
  )
  expect(shown).toBe("333\nEINVAL\n")
})

test("a detached program has its own session, the given name, and outlives nobody's wait", async () => {
  const pid = spawnDetached(["sleep", "30"], { environment: process.env, argv0: "ctdbd" })
  try {
    await waitUntil("the program's name", () =>
      Bun.spawnSync(["ps", "-o", "args=", "-p", String(pid)])
        .stdout.toString()
        .startsWith("ctdbd 30"),
    )
    expect(sessionOf(pid)).toBe(pid)
    expect(processExists(pid)).toBe(true)
  } finally {
    process.kill(pid, "SIGKILL")
  }
  await waitUntil("its end", () => !processExists(pid))
})

test("a child that asked for it gets its signal when the parent dies", async () => {
  const script = `
    const child = Bun.spawn(["bun", "-e", 'import * as p from ${MODULE.replaceAll('"', '\\"')}; p.signalOnParentDeath(15); console.log(process.pid); setInterval(() => {}, 1000)'], { stdout: "inherit" })
    setInterval(() => {}, 1000)`
  const parent = Bun.spawn(["bun", "-e", script], { stdout: "pipe" })
  const { value } = await parent.stdout.getReader().read()
  const child = Number(new TextDecoder().decode(value))
  expect(processExists(child)).toBe(true)
  parent.kill("SIGKILL")
  await parent.exited
  await waitUntil("the child's end", () => !processExists(child))
})

test("pids that can't be are nobody's; another user's process exists", () => {
  expect([0, -1, 1.5, Number.NaN, 2 ** 22 + 1].map(processExists)).toEqual([false, false, false, false, false])
  expect(processExists(1)).toBe(true)
})
