// Clusters of nodes of both kinds, ours and stock, in test mode on loopback addresses: starts, stops, kills and hangs single
// nodes, and says what each of them believes. Conditions are awaited through lib/client; what the stock tool says about a
// settled cluster is what counts in the end (checkWithStockTool).

import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { Client } from "../../lib/client/client.ts"
import { CURRENT_NODE, INVALID_GENERATION, NodeFlag, RecoveryMode, Srvid } from "../../lib/protocol/constants.ts"
import { binary } from "../binary.ts"
import { type NodeProgram, type StockNode, type StockOptions, startNode, startStockNode, waitUntil } from "./stock.ts"

export type Kind = "ours" | "stock"

export interface TestNode extends StockNode {
  readonly kind: Kind
  readonly pnn: number
}

const ourProgram: NodeProgram = { name: "our ctdbd", command: [binary, "run", "--interactive"] }

/** startStockNode() for a node of ours. */
export const startOurNode = (options: StockOptions): Promise<StockNode> => startNode(options, ourProgram)

/** What a node believes; flags by node number. */
export interface View {
  readonly flags: readonly number[]
  readonly recoveryMode: number
  readonly generation: number
  readonly vnnMap: readonly number[]
}

/** A LEADER message as a node's clients saw it: 0xffffffff says that an election begins. */
export interface LeaderMessage {
  readonly atMs: number
  readonly leader: number
}

export interface MixedOptions extends Omit<Partial<StockOptions>, "base" | "address" | "nodes" | "clusterLock"> {
  /** With a cluster lock on a file of the cluster's directory, or without. */
  readonly lock: boolean
}

/** Settled: every node that runs agrees on this. */
export interface Expected {
  /** Nodes whose views count. */
  readonly observers: readonly number[]
  /** Flags of every node number, DELETED ones included. */
  readonly flags: readonly number[]
}

const LOOK_MS = 1000
export const NO_LEADER = 0xffffffff
/** How a node that has died, or was never seen, looks. */
export const GONE = NodeFlag.DISCONNECTED | NodeFlag.UNHEALTHY
/** INACTIVE: takes no part in recoveries (cluster page 4.1). */
const INACTIVE = NodeFlag.DISCONNECTED | NodeFlag.BANNED | NodeFlag.STOPPED | NodeFlag.DELETED

class Watched {
  readonly leaders: LeaderMessage[] = []
  private constructor(readonly client: Client) {}

  static async open(socket: string): Promise<Watched> {
    const watched = new Watched(await Client.connect({ socket, timeoutMs: 10_000 }))
    await watched.client.onMessage(Srvid.LEADER, (data) => {
      const leader = new DataView(data.buffer, data.byteOffset, data.byteLength).getUint32(0, true)
      watched.leaders.push({ atMs: performance.now(), leader })
    })
    return watched
  }

  async view(): Promise<View | undefined> {
    const limits = { timeoutMs: LOOK_MS }
    try {
      const [map, recoveryMode, vnn] = await Promise.all([
        this.client.control("GET_NODEMAP", CURRENT_NODE, undefined, limits),
        this.client.controlStatus("GET_RECMODE", CURRENT_NODE, undefined, limits),
        this.client.control("GETVNNMAP", CURRENT_NODE, undefined, limits),
      ])
      return { flags: map.map(({ flags }) => flags), recoveryMode, generation: vnn.generation, vnnMap: vnn.map }
    } catch {
      return undefined
    }
  }
}

export class MixedCluster {
  readonly directory = mkdtempSync(join(tmpdir(), "ctdb-mixed-"))
  readonly nodes: (TestNode | undefined)[] = []
  readonly kinds: Kind[]
  private addresses: string[]
  private readonly watched: (Watched | undefined)[] = []

  /** Node N is to be of kinds[N], on `prefix` N+1 (a prefix like "127.21.1."). Nothing runs yet. */
  constructor(
    private readonly prefix: string,
    kinds: readonly Kind[],
    private readonly options: MixedOptions,
  ) {
    this.kinds = [...kinds]
    this.addresses = kinds.map((_, pnn) => `${prefix}${pnn + 1}`)
  }

  get pnns(): number[] {
    return this.kinds.map((_, pnn) => pnn)
  }

  node(pnn: number): TestNode {
    const node = this.nodes[pnn]
    if (node === undefined) throw new Error(`node ${pnn} is not running`)
    return node
  }

  client(pnn: number): Client {
    const watched = this.watched[pnn]
    if (watched === undefined) throw new Error(`node ${pnn} is not running`)
    return watched.client
  }

  leaders(pnn: number): readonly LeaderMessage[] {
    return this.watched[pnn]?.leaders ?? []
  }

  /** The leader that the last broadcast seen by that node's clients named; NO_LEADER during an election or before. */
  leader(pnn: number): number {
    return this.leaders(pnn).at(-1)?.leader ?? NO_LEADER
  }

  base(pnn: number): string {
    return join(this.directory, String(pnn))
  }

  /** Starts it and waits until it answers. Whether it has joined the others is for settled(). */
  async start(pnn: number): Promise<TestNode> {
    const { lock, ...rest } = this.options
    const kind = this.kinds[pnn]!
    const options: StockOptions = {
      ...rest,
      ...(lock ? { clusterLock: join(this.directory, "cluster.lock") } : {}),
      base: this.base(pnn),
      address: this.addresses[pnn]!.replace(/^#/, ""),
      nodes: this.addresses,
    }
    const started = kind === "ours" ? await startOurNode(options) : await startStockNode(options)
    const node = { ...started, kind, pnn }
    this.nodes[pnn] = node
    this.watched[pnn] = await Watched.open(node.socket)
    return node
  }

  async startAll(order: readonly number[] = this.pnns): Promise<void> {
    for (const pnn of order) await this.start(pnn)
  }

  /** Starts all at the same moment. */
  async startTogether(): Promise<void> {
    await Promise.all(this.pnns.map((pnn) => this.start(pnn)))
  }

  async stop(pnn: number): Promise<number> {
    const node = this.node(pnn)
    this.forget(pnn)
    return await node.stop()
  }

  async kill(pnn: number): Promise<void> {
    const node = this.node(pnn)
    this.forget(pnn)
    await node.kill()
  }

  private forget(pnn: number): void {
    void this.watched[pnn]?.client.close()
    this.watched[pnn] = undefined
    this.nodes[pnn] = undefined
  }

  /** Ends every node that runs and removes the directory. */
  async end(): Promise<void> {
    const running = this.nodes.flatMap((node) => (node === undefined ? [] : [node]))
    for (const { pnn } of running) this.forget(pnn)
    await Promise.all(running.map((node) => node.stop()))
    rmSync(this.directory, { recursive: true, force: true })
  }

  /** Rewrites the nodes file of every node, running or not; nobody reads it by himself. */
  writeNodes(addresses: readonly string[]): void {
    this.addresses = [...addresses]
    for (const pnn of this.pnns) {
      try {
        writeFileSync(join(this.base(pnn), "nodes"), `${addresses.join("\n")}\n`)
      } catch {
        // A node that never ran has no directory yet: its start writes the file.
      }
    }
  }

  /** One more node at the end of the list, in the nodes file of all. */
  add(kind: Kind): number {
    const pnn = this.kinds.length
    this.kinds.push(kind)
    this.writeNodes([...this.addresses, `${this.prefix}${pnn + 1}`])
    return pnn
  }

  comment(pnn: number, deleted: boolean): void {
    this.writeNodes(
      this.addresses.map((address, index) =>
        index === pnn ? `${deleted ? "#" : ""}${address.replace(/^#/, "")}` : address,
      ),
    )
  }

  view(pnn: number): Promise<View | undefined> {
    return this.watched[pnn]?.view() ?? Promise.resolve(undefined)
  }

  /** What keeps the cluster from being as expected; undefined if nothing does. */
  async unsettled({ observers, flags }: Expected): Promise<string | undefined> {
    const views = await Promise.all(observers.map((pnn) => this.view(pnn)))
    const active = flags.flatMap((value, pnn) => ((value & INACTIVE) === 0 ? [pnn] : []))
    const first = views[observers.findIndex((pnn) => active.includes(pnn))]
    const leaders = observers.filter((pnn) => active.includes(pnn)).map((pnn) => this.leader(pnn))
    for (const [index, pnn] of observers.entries()) {
      const view = views[index]
      if (view === undefined || first === undefined) return `node ${pnn} does not answer`
      // What a node with other views of the links says of itself is all that is asked of an inactive one.
      if (!active.includes(pnn)) {
        if (view.flags[pnn] !== flags[pnn]) return `node ${pnn} says of itself ${hex(view.flags[pnn])}`
        continue
      }
      if (view.flags.length !== flags.length) return `node ${pnn} knows ${view.flags.length} nodes`
      for (const [other, value] of flags.entries()) {
        if (view.flags[other] !== value) {
          return `node ${pnn} sees node ${other} as ${hex(view.flags[other])}, expected ${hex(value)}`
        }
      }
      if (view.recoveryMode !== RecoveryMode.NORMAL) return `node ${pnn} is in recovery`
      if (view.generation === INVALID_GENERATION) return `node ${pnn} has no generation`
      if (view.generation !== first.generation) return `node ${pnn} has another generation`
      if (view.vnnMap.toSorted().join() !== active.join()) return `vnnmap of node ${pnn} is ${view.vnnMap.join()}`
    }
    if (leaders.some((leader) => leader !== leaders[0] || !active.includes(leader))) {
      return `leaders are ${leaders.map(hex).join()}`
    }
    return undefined
  }

  /** Waits until everybody agrees on the expected. Resolves with the time that took (ms). */
  async settled(expected: Expected, timeoutMs = 90_000): Promise<number> {
    const started = performance.now()
    let why: string | undefined
    try {
      await waitUntil(
        "settled cluster",
        async () => {
          why = await this.unsettled(expected)
          return why === undefined
        },
        timeoutMs,
      )
    } catch (error) {
      throw new Error(`${String(error)}: ${why}\n${this.logEnds()}`)
    }
    return performance.now() - started
  }

  /** settled() with all nodes that run, all of them OK, and the others gone. */
  async allOk(timeoutMs?: number): Promise<number> {
    const observers = this.pnns.filter((pnn) => this.nodes[pnn] !== undefined)
    const flags = this.pnns.map((pnn) =>
      observers.includes(pnn)
        ? 0
        : this.addresses[pnn]!.startsWith("#")
          ? NodeFlag.DELETED | NodeFlag.DISCONNECTED
          : GONE,
    )
    return await this.settled({ observers, flags }, timeoutMs)
  }

  /**
   * Asks every observer with the stock tool until all say the same: these flags, NORMAL, the leader, one generation. A leader that looked
   * at a node just before its flags changed spreads the old ones once more. @throws the last complaint
   */
  async checkWithStockTool(expected: Expected): Promise<void> {
    let complaint: unknown
    const agreed = async () => {
      complaint = undefined
      await this.lookWithStockTool(expected).catch((error: unknown) => {
        complaint = error
      })
      return complaint === undefined
    }
    await waitUntil("agreement", agreed, 30_000).catch((error: unknown) => {
      throw complaint ?? error
    })
  }

  private async lookWithStockTool({ observers, flags }: Expected): Promise<void> {
    const generations = new Set<string>()
    for (const pnn of observers) {
      const [machine, plain] = await Promise.all([this.node(pnn).tool("-X", "status"), this.node(pnn).tool("status")])
      const complaint = (what: string) =>
        new Error(`${what} on node ${pnn} (${this.kinds[pnn]}):\n${machine.stdout}${plain.stdout}${plain.stderr}`)
      const rows = new Map(machine.stdout.split("\n").slice(1).flatMap(statusRow))
      for (const [other, value] of flags.entries()) {
        if ((value & NodeFlag.DELETED) !== 0) {
          if (rows.has(other)) throw complaint(`deleted node ${other} is listed`)
        } else if (rows.get(other) !== value) {
          throw complaint(`node ${other} has flags ${hex(rows.get(other))}, expected ${hex(value)}`)
        }
      }
      if ((flags[pnn]! & INACTIVE) !== 0) continue
      if (!plain.stdout.includes("Recovery mode:NORMAL (0)")) throw complaint("recovery mode is not NORMAL")
      generations.add(/^Generation:(\d+)$/m.exec(plain.stdout)?.[1] ?? "INVALID")
      const leader = Number(/^Leader:(\d+)$/m.exec(plain.stdout)?.[1] ?? -1)
      if (leader !== this.leader(pnn)) throw complaint(`leader is ${leader}, broadcasts say ${this.leader(pnn)}`)
    }
    if (generations.size > 1 || generations.has("INVALID")) {
      throw new Error(`generations: ${[...generations].join(" ")}`)
    }
  }

  logEnds(): string {
    return this.pnns
      .map((pnn) => {
        const lines = this.log(pnn).split("\n")
        return `--- node ${pnn} (${this.kinds[pnn]})\n${lines.slice(-25).join("\n")}`
      })
      .join("\n")
  }

  log(pnn: number): string {
    try {
      return readFileSync(join(this.base(pnn), "log.ctdb"), "utf8")
    } catch {
      return ""
    }
  }
}

const hex = (value: number | undefined): string => (value === undefined ? "nothing" : `0x${value.toString(16)}`)

/** A line of `ctdb -X status`: |Node|IP|Disconnected|Unknown|Banned|Disabled|Unhealthy|Stopped|Inactive|...|ThisNode| */
function statusRow(line: string): [number, number][] {
  const [, pnn, , disconnected, , banned, disabled, unhealthy, stopped] = line.split("|")
  if (pnn === undefined) return []
  const bit = (column: string | undefined, flag: number) => (column === "1" ? flag : 0)
  return [
    [
      Number(pnn),
      bit(disconnected, NodeFlag.DISCONNECTED) |
        bit(banned, NodeFlag.BANNED) |
        bit(disabled, NodeFlag.PERMANENTLY_DISABLED) |
        bit(unhealthy, NodeFlag.UNHEALTHY) |
        bit(stopped, NodeFlag.STOPPED),
    ],
  ]
}
