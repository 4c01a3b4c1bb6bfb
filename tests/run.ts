// Runs everything that `npm test` promises: system packages, type check, lint, build, and all tests, and closes with one
// line of totals. Tests run as jobs, a few side by side, each one `bun test`. `--soak` runs the long forms.

import { existsSync, readdirSync } from "node:fs"

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
  strace: "/usr/bin/strace",
}

/** One `bun test` of its own. */
interface Job {
  readonly name: string
  readonly paths: readonly string[]
  readonly environment?: Readonly<Record<string, string>>
}

/** Folders whose tests start real programs and clusters: each file is a job, as they mostly wait. */
const REAL = ["peers", "integration"]
/** Folders of logic that take a processor for more than a few seconds: a job each; the others are one together. */
const LONG = ["simulation", "fuzz"]
/** A simulation makes and drops databases in memory all the time: their pages need not go back to the kernel at once. */
const SIMULATION_ENVIRONMENT = { MIMALLOC_PURGE_DELAY: "10000" }
/** Not tests. */
const NO_TESTS = ["bench", "vectors"]
/** Jobs side by side. More than processors, since real clusters mostly wait for timers. */
const AT_ONCE = 4
/** The jobs that take longest begin first. */
const LONGEST_FIRST = [
  "recovery",
  "mixed",
  "faults",
  "simulation",
  "tool.test",
  "persistent",
  "database",
  "crowd",
  "kill",
]

function jobs(): Job[] {
  const folders = readdirSync(import.meta.dir, { withFileTypes: true })
    .filter((entry) => entry.isDirectory() && !NO_TESTS.includes(entry.name))
    .map((entry) => entry.name)
  const files = [...new Bun.Glob(`{${REAL.join(",")}}/**/*.test.ts`).scanSync(import.meta.dir)].sort()
  const short = folders.filter((name) => !REAL.includes(name) && !LONG.includes(name))
  const all: Job[] = [
    ...files.map((file) => ({ name: file, paths: [`./tests/${file}`] })),
    ...LONG.filter((name) => folders.includes(name)).map((name) => ({
      name,
      paths: [`./tests/${name}/`],
      ...(name === "simulation" ? { environment: SIMULATION_ENVIRONMENT } : {}),
    })),
    { name: "logic", paths: short.map((name) => `./tests/${name}/`) },
  ]
  const rank = ({ name }: Job) => {
    const place = LONGEST_FIRST.findIndex((word) => name.includes(word))
    return place < 0 ? LONGEST_FIRST.length : place
  }
  return all.sort((one, other) => rank(one) - rank(other))
}

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
  readonly status: number
  readonly passed: number
  readonly failed: number
  readonly skipped: number
}

async function runJob(job: Job): Promise<Outcome> {
  const started = performance.now()
  const child = Bun.spawn([process.execPath, "test", "--timeout", "300000", ...job.paths], {
    cwd: `${testsDirectory}/..`,
    env: { ...process.env, ...job.environment, ...(soak ? { CTDB_SOAK: "1" } : {}) },
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
  const outcome = { status, passed: count("pass"), failed: count("fail"), skipped: count("skip") }
  // A failure's text, without the lines of what passed.
  if (status !== 0) console.log(text.replace(/^\(pass\).*\n/gm, ""))
  const seconds = ((performance.now() - started) / 1000).toFixed(0)
  // The job's and its children's, as far as they were waited for: what a processor must do, however many jobs run beside it.
  const processor = (Number(child.resourceUsage()?.cpuTime.total ?? 0) / 1e6).toFixed(0)
  const verdict = status === 0 ? "" : ` (exit status ${status})`
  const counts = `${outcome.passed} passed, ${outcome.failed} failed`
  console.log(`${job.name}: ${counts} in ${seconds} s, ${processor} s of processor${verdict}`)
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
  const queue = jobs()
  const outcomes: Outcome[] = []
  const work = async () => {
    for (let job = queue.shift(); job !== undefined; job = queue.shift()) outcomes.push(await runJob(job))
  }
  await Promise.all(Array.from({ length: AT_ONCE }, work))
  const sum = (pick: (outcome: Outcome) => number) => outcomes.reduce((total, outcome) => total + pick(outcome), 0)
  const skipped = sum((outcome) => outcome.skipped)
  const closing = skipped === 0 ? "" : `, ${skipped} skipped`
  console.log(`${sum(({ passed }) => passed)} passed, ${sum(({ failed }) => failed)} failed${closing}`)
  return outcomes.every(({ status }) => status === 0) && outcomes.some(({ passed }) => passed > 0) ? 0 : 1
}

process.exit(await main())
