// Clusters that `ctdb bench --sandbox` brings along: nodes of this binary, and for a comparison nodes of the installed stock daemon with the same
// files, in the environment that a row asks for. Each is made when it is first wanted and goes before another environment comes.

import { appendFileSync, existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { Client } from "../../lib/client/client.ts"
import { INVALID_GENERATION, RecoveryMode } from "../../lib/protocol/constants.ts"
import {
  makeSandbox,
  nodeVariables,
  type Sandbox,
  type SandboxNode,
  startNode,
  stopSandbox,
} from "../sandbox-cluster.ts"
import type { Environment } from "./generators.ts"
import { placeOf } from "./machine.ts"
import type { Target } from "./measure.ts"

const STOCK_DAEMON = "/usr/sbin/ctdbd"
/** From the start of its last node until a cluster must be ready (ms). */
const READY_MS = 60_000
const MEMORY = "/dev/shm"

type Kind = "ours" | "stock"

/** Where a cluster's files are to lie. @throws Error if this machine has no such place */
function rootFor(where: Environment["where"]): string {
  const candidates = where === "tmpfs" ? [MEMORY, tmpdir()] : [tmpdir(), "/var/tmp", process.cwd()]
  const found = candidates.find((path) => existsSync(path) && placeOf(path) === where)
  if (found === undefined)
    throw new Error(`no ${where === "tmpfs" ? "file system in memory" : "disk"} among ${candidates.join(", ")}`)
  return found
}

class OwnCluster {
  private readonly stocks: {
    kill(signal: "SIGKILL"): void
    readonly stdin: { end(): void }
    readonly exited: Promise<number>
  }[] = []

  private constructor(
    readonly kind: Kind,
    private readonly sandbox: Sandbox,
  ) {}

  static async start(kind: Kind, count: number, { where, locks }: Environment, seed: number): Promise<OwnCluster> {
    if (kind === "stock" && !existsSync(STOCK_DAEMON)) throw new Error(`no stock daemon is installed (${STOCK_DAEMON})`)
    const directory = mkdtempSync(join(rootFor(where), "ctdb-bench-"))
    const cluster = new OwnCluster(kind, makeSandbox(directory, count, seed))
    try {
      for (const node of cluster.sandbox.nodes) {
        if (locks === "fcntl") appendFileSync(join(node.base, "ctdb.conf"), "\ttdb mutexes = false\n")
        // Recoveries that are asked for begin at once.
        writeFileSync(join(node.base, "ctdb.tunables"), "RerecoveryTimeout=1\n")
      }
      await Promise.all(
        cluster.sandbox.nodes.map((node) => (kind === "ours" ? startNode(node, true) : cluster.startStock(node))),
      )
      await Promise.all(cluster.sandbox.nodes.map((node) => ready(node, count)))
      return cluster
    } catch (error) {
      await cluster.end()
      throw error
    }
  }

  private async startStock(node: SandboxNode): Promise<void> {
    const child = Bun.spawn([STOCK_DAEMON, "-i"], {
      env: { ...process.env, ...nodeVariables(node) },
      // In test mode it ends with its standard input.
      stdin: "pipe",
      stdout: "ignore",
      stderr: "ignore",
      detached: true,
    })
    this.stocks.push(child)
  }

  get target(): Target {
    return { name: this.kind, sockets: this.sandbox.nodes.map(({ socket }) => socket) }
  }

  async end(): Promise<void> {
    if (this.kind === "ours") await stopSandbox(this.sandbox)
    await Promise.all(
      this.stocks.map(async (child) => {
        child.stdin.end()
        const timer = setTimeout(() => child.kill("SIGKILL"), 10_000)
        await child.exited
        clearTimeout(timer)
      }),
    )
    rmSync(this.sandbox.directory, { recursive: true, force: true })
  }
}

/** Waits until a node sees all others in one generation and recovery mode NORMAL. */
async function ready(node: SandboxNode, count: number): Promise<void> {
  const deadline = performance.now() + READY_MS
  let client: Client | undefined
  try {
    for (;;) {
      try {
        client ??= await Client.connect({ socket: node.socket, timeoutMs: 1000 })
        const limits = { timeoutMs: 2000 }
        const [map, vnn, mode] = await Promise.all([
          client.control("GET_NODEMAP", client.pnn, undefined, limits),
          client.control("GETVNNMAP", client.pnn, undefined, limits),
          client.controlStatus("GET_RECMODE", client.pnn, undefined, limits),
        ])
        const healthy = map.length === count && map.every(({ flags }) => flags === 0)
        const settled =
          vnn.generation !== INVALID_GENERATION && vnn.map.length === count && mode === RecoveryMode.NORMAL
        if (healthy && settled) return
      } catch {
        // Not there yet.
        if (client?.isOpen !== true) client = undefined
      }
      if (performance.now() > deadline)
        throw new Error(`node ${node.pnn} was not ready in ${READY_MS / 1000} s (log: ${node.base})`)
      await Bun.sleep(50)
    }
  } finally {
    await client?.close()
  }
}

/** A network of 127.0.0.0/8 for each cluster, see makeSandbox(): these are all in 127.81. */
const seedOf = (number: number): number => 17 + 128 * (number % 256)

/** Gives the clusters for a row's environment. */
export class Clusters {
  private current: { readonly key: string; readonly clusters: readonly OwnCluster[] } | undefined
  private made = 0

  constructor(
    private readonly nodes: number,
    private readonly kinds: readonly Kind[],
  ) {}

  /** @throws Error when a cluster does not start */
  async targets(environment: Environment): Promise<readonly Target[]> {
    const key = `${environment.where} ${environment.locks}`
    if (this.current?.key !== key) {
      await this.end()
      const starting = this.kinds.map((kind) =>
        OwnCluster.start(kind, this.nodes, environment, seedOf(process.pid + this.made++)),
      )
      const started = await Promise.allSettled(starting)
      const clusters = started.flatMap((outcome) => (outcome.status === "fulfilled" ? [outcome.value] : []))
      this.current = { key, clusters }
      for (const outcome of started) if (outcome.status === "rejected") throw outcome.reason
    }
    return this.current!.clusters.map(({ target }) => target)
  }

  async end(): Promise<void> {
    const clusters = this.current?.clusters ?? []
    this.current = undefined
    await Promise.all(clusters.map((cluster) => cluster.end()))
  }
}
