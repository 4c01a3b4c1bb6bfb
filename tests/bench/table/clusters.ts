// The pairs of clusters that the table's rows are measured on, three nodes of ours and three stock ones, and the programs that are
// run on them: `ctdb bench` on both by turns, and the published algorithms in C on the stock one.

import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { type Result, violationsOf } from "../../../cmd/bench/output.ts"
import { binary } from "../../binary.ts"
import { type Kind, MixedCluster } from "../../peers/nodes.ts"

/** Rows of many clients' commands on one pair share these. */
export interface Environment {
  readonly where: "tmpfs" | "disk"
  readonly locks: "mutex" | "fcntl"
}

export type Pair = Readonly<Record<Kind, MixedCluster>>

const PREFIX = "127.64."
const NODES = 3
let made = 0

const root = join(import.meta.dir, "../../..")
let published: string | undefined

/** All nodes of both kinds, started and healthy, while `use` runs. */
export async function withPair({ where, locks }: Environment, use: (pair: Pair) => Promise<void>): Promise<void> {
  const config = locks === "fcntl" ? ["[database]", "  tdb mutexes = false"] : []
  const before = process.env.TMPDIR
  // Where a cluster makes its directory.
  process.env.TMPDIR = where === "tmpfs" ? "/dev/shm" : tmpdir()
  const make = (kind: Kind) =>
    new MixedCluster(`${PREFIX}${100 + (made++ % 100)}.`, new Array<Kind>(NODES).fill(kind), { lock: true, config })
  const pair = { ours: make("ours"), stock: make("stock") }
  if (before === undefined) delete process.env.TMPDIR
  else process.env.TMPDIR = before
  try {
    await Promise.all(Object.values(pair).map((cluster) => cluster.startTogether()))
    await Promise.all(Object.values(pair).map((cluster) => cluster.allOk()))
    await use(pair)
  } finally {
    await Promise.all(Object.values(pair).map((cluster) => cluster.end()))
  }
}

export const socketsOf = (cluster: MixedCluster): string[] => cluster.pnns.map((pnn) => cluster.node(pnn).socket)

/** Standard output. @param accepted a status besides 0 that comes with output @throws Error when a program fails */
export async function output(command: readonly string[], accepted = 0): Promise<string> {
  const child = Bun.spawn([...command], { cwd: root, stdin: "ignore", stdout: "pipe", stderr: "inherit" })
  const text = await new Response(child.stdout).text()
  const status = await child.exited
  if (status !== 0 && status !== accepted) throw new Error(`${command.slice(0, 4).join(" ")} ended with ${status}`)
  return text
}

/** `ctdb bench` with these words. What its checks find is added to `complaints`. */
export async function bench(complaints: string[], ...words: string[]): Promise<Result> {
  const result = JSON.parse(await output([binary, "bench", ...words, "--json"], 1)) as Result
  complaints.push(...violationsOf(result), ...result.failures.map(({ title, reason }) => `${title}: ${reason}`))
  return result
}

/** The program of published.c, compiled once. */
function publishedProgram(): string {
  if (published !== undefined) return published
  const directory = mkdtempSync(join(tmpdir(), "ctdb-published-"))
  process.on("exit", () => rmSync(directory, { recursive: true, force: true }))
  published = join(directory, "published")
  const source = join(import.meta.dir, "..", "published.c")
  const built = Bun.spawnSync(["gcc", "-O2", "-o", published, source, "-ldl"])
  if (!built.success) throw new Error(built.stderr.toString())
  return published
}

/** What each instance of the published program is given, by its socket. */
export interface Instance {
  readonly socket: string
  readonly words: readonly string[]
}

const SAMPLE_MS = 750

/**
 * Instances of one published load, started together: operations a second of all, in each sample but those before `skip`.
 * @param skip seconds in which it only gets under way
 */
export async function publishedRates(
  mode: string,
  instances: readonly Instance[],
  seconds: number,
  skip = 0.75,
): Promise<number[]> {
  const texts = await Promise.all(
    instances.map(({ socket, words }) =>
      output([
        publishedProgram(),
        mode,
        "-s",
        socket,
        "-t",
        String(seconds),
        "-w",
        String(SAMPLE_MS),
        ...words.map(String),
      ]),
    ),
  )
  const rates: number[] = []
  for (const text of texts) {
    const samples = [...text.matchAll(/^Sample:([\d.]+):(\d+)$/gm)].map(
      ([, at, count]) => [Number(at), Number(count)] as const,
    )
    let index = 0
    for (const [step, [at, count]] of samples.entries()) {
      const [fromAt, from] = samples[step - 1] ?? [0, 0]
      if (at < skip) continue
      rates[index] = (rates[index] ?? 0) + (count - from) / (at - fromAt)
      index++
    }
  }
  return rates
}

export const publishedOnce = (...words: string[]): Promise<string> => output([publishedProgram(), ...words])
