// Runs everything that `npm test` promises: system packages, type check, lint, build, and all tests, and closes with one
// line of totals. Tests run in two lanes side by side, each one `bun test`: logic needs a processor, real clusters mostly
// wait. `--soak` runs the long forms.

import { existsSync, readdirSync } from "node:fs"
import { cpus } from "node:os"

/** Debian packages that tests need, each with a file that shows it is there. */
const PACKAGES: Readonly<Record<string, string>> = {
  ctdb: "/usr/sbin/ctdbd",
  "tdb-tools": "/usr/bin/tdbtool",
  "libtdb-dev": "/usr/include/tdb.h",
  samba: "/usr/sbin/smbd",
  smbclient: "/usr/bin/smbclient",
  "samba-testsuite": "/usr/bin/smbtorture",
  gcc: "/usr/bin/gcc",
  iproute2: "/usr/sbin/ip",
  hyperfine: "/usr/bin/hyperfine",
}

interface Lane {
  readonly name: string
  readonly paths: readonly string[]
}

/** Folders whose tests start real programs and clusters. */
const REAL = ["peers", "integration"]
/** Not tests. */
const NO_TESTS = ["bench", "vectors"]

const folders = readdirSync(import.meta.dir, { withFileTypes: true })
  .filter((entry) => entry.isDirectory() && !NO_TESTS.includes(entry.name))
  .map((entry) => entry.name)
const LANES: readonly Lane[] = [
  { name: "logic", paths: folders.filter((name) => !REAL.includes(name)) },
  { name: "real", paths: folders.filter((name) => REAL.includes(name)) },
]

const soak = process.argv.includes("--soak")
const testsDirectory = import.meta.dir

async function command(words: readonly string[], environment: Record<string, string> = {}): Promise<number> {
  const child = Bun.spawn([...words], {
    cwd: `${testsDirectory}/..`,
    env: { ...process.env, ...environment },
    stdin: "ignore",
    stdout: "inherit",
    stderr: "inherit",
  })
  return child.exited
}

/** Installs missing packages where that is possible. false: some are missing and stay so. */
async function installPackages(): Promise<boolean> {
  const missing = Object.entries(PACKAGES).flatMap(([name, file]) => (existsSync(file) ? [] : [name]))
  if (missing.length === 0) return true
  const wanted = missing.join(" ")
  if (process.getuid?.() !== 0 || !existsSync("/usr/bin/apt-get")) {
    console.error(`Tests against the real programs need: ${wanted}. As root: apt-get install ${wanted}`)
    return false
  }
  console.log(`Installing ${wanted}`)
  const quiet = { DEBIAN_FRONTEND: "noninteractive" }
  await command(["apt-get", "-qq", "update"], quiet)
  // The services that come with the packages are not to run; tests start their own.
  const status = await command(
    ["apt-get", "-qq", "-y", "--no-install-recommends", "-o", "Dpkg::Use-Pty=0", "install", ...missing],
    { ...quiet, RUNLEVEL: "1" },
  )
  return status === 0
}

interface Outcome {
  readonly lane: string
  readonly status: number
  readonly passed: number
  readonly failed: number
  readonly skipped: number
  readonly seconds: number
}

async function runLane(lane: Lane): Promise<Outcome> {
  const started = performance.now()
  const paths = lane.paths.filter((path) => existsSync(`${testsDirectory}/${path}`)).map((path) => `./tests/${path}/`)
  const nothing = { lane: lane.name, status: 0, passed: 0, failed: 0, skipped: 0, seconds: 0 }
  if (paths.length === 0) return nothing
  const child = Bun.spawn([process.execPath, "test", "--timeout", "120000", ...paths], {
    cwd: `${testsDirectory}/..`,
    env: { ...process.env, ...(soak ? { CTDB_SOAK: "1" } : {}) },
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
  })
  const [output, errors, status] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
    child.exited,
  ])
  const text = output + errors
  const count = (word: string) => Number(new RegExp(`^ *(\\d+) ${word}$`, "m").exec(text)?.[1] ?? 0)
  const outcome: Outcome = {
    lane: lane.name,
    status,
    passed: count("pass"),
    failed: count("fail"),
    skipped: count("skip"),
    seconds: (performance.now() - started) / 1000,
  }
  if (status !== 0) console.log(text)
  console.log(`${lane.name}: ${outcome.passed} passed, ${outcome.failed} failed in ${outcome.seconds.toFixed(0)} s`)
  return outcome
}

async function main(): Promise<number> {
  const complete = await installPackages()
  if (!complete && process.env.CI !== undefined) return 1
  for (const step of [
    ["tsc", "--noEmit"],
    ["biome", "ci", "--colors=off", "."],
  ]) {
    const [name = "", ...rest] = step
    if ((await command([`node_modules/.bin/${name}`, ...rest])) !== 0) return 1
  }
  if ((await command([process.execPath, "build.ts"])) !== 0) return 1
  const outcomes: Outcome[] = []
  if (cpus().length > 1) outcomes.push(...(await Promise.all(LANES.map(runLane))))
  else for (const lane of LANES) outcomes.push(await runLane(lane))
  const sum = (pick: (outcome: Outcome) => number) => outcomes.reduce((total, outcome) => total + pick(outcome), 0)
  const skipped = sum(({ skipped }) => skipped)
  console.log(
    `${sum(({ passed }) => passed)} passed, ${sum(({ failed }) => failed)} failed${skipped === 0 ? "" : `, ${skipped} skipped`}`,
  )
  return outcomes.every(({ status }) => status === 0) && outcomes.some(({ passed }) => passed > 0) ? 0 : 1
}

process.exit(await main())
