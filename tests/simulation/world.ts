// The simulator: a whole cluster in one process, on virtual time, from one seed. It gives the nodes their environments
// (daemon/environment.ts), carries packets between them with delays, cuts and losses, and lets processes crash, stand still
// and start again. The same seed gives the same history to the last event. It judges nothing: histories.ts does.

import type { HeldLock, LockOutcome, NodeEnvironment, RecoveryEnvironment } from "../../daemon/environment.ts"
import { Node } from "../../daemon/node.ts"
import { RecoveryDaemon } from "../../daemon/recovery/recovery-daemon.ts"
import { Session } from "../../lib/client/session.ts"
import type { Parsed } from "../../lib/config/fault.ts"
import type { Logger } from "../../lib/config/log.ts"
import type { ListedNode } from "../../lib/config/nodes-file.ts"
import { defaultTunables, type Tunables } from "../../lib/config/tunables.ts"
import { type PacketConnection, type PacketHandler, Priority, type Scheduler, type Timer } from "../../lib/net/ports.ts"
import { SimDisk } from "./files.ts"
import { type Kept, memoryFiles } from "./recovery-files.ts"

/** Virtual wall clock at the beginning (s since 1970); only differences matter. */
const EPOCH_S = 1_700_000_000
/** A lost segment comes again after this time (ms), as TCP's first retransmission. */
const RETRANSMIT_MS = 200
/** How many trace lines are kept for the report of a failure. */
const TRACE_LINES = 4000

/** Marsaglia's xorshift32, enough for schedules and the same everywhere. */
export class Random {
  private state: number
  constructor(seed: number) {
    this.state = (Math.imul(seed, 0x9e3779b1) ^ 0x5bd1e995) >>> 0 || 1
    for (let i = 0; i < 8; i++) this.u32()
  }
  u32(): number {
    let x = this.state
    x ^= x << 13
    x ^= x >>> 17
    x ^= x << 5
    this.state = x >>> 0
    return this.state
  }
  /** 0 <= result < limit */
  below(limit: number): number {
    return Math.floor((this.u32() / 0x1_0000_0000) * limit)
  }
  between(low: number, high: number): number {
    return low + (this.u32() / 0x1_0000_0000) * (high - low)
  }
  chance(probability: number): boolean {
    return this.u32() / 0x1_0000_0000 < probability
  }
  pick<T>(items: readonly T[]): T {
    return items[this.below(items.length)] as T
  }
}

interface Event {
  readonly atMs: number
  readonly order: number
  readonly process: SimProcess | undefined
  run: (() => void) | undefined
}

/** A binary heap by time, then by order of making: no two events are ever equal. */
class EventQueue {
  private readonly heap: Event[] = []

  get size(): number {
    return this.heap.length
  }

  push(event: Event): void {
    const { heap } = this
    let at = heap.push(event) - 1
    while (at > 0) {
      const parent = (at - 1) >> 1
      if (!before(event, heap[parent]!)) break
      heap[at] = heap[parent]!
      at = parent
    }
    heap[at] = event
  }

  peek(): Event | undefined {
    return this.heap[0]
  }

  pop(): Event | undefined {
    const { heap } = this
    const first = heap[0]
    const last = heap.pop()
    if (first === undefined || last === undefined || heap.length === 0) return first
    let at = 0
    for (;;) {
      let child = at * 2 + 1
      if (child >= heap.length) break
      if (child + 1 < heap.length && before(heap[child + 1]!, heap[child]!)) child++
      if (!before(heap[child]!, last)) break
      heap[at] = heap[child]!
      at = child
    }
    heap[at] = last
    return first
  }
}

function before(a: Event, b: Event): boolean {
  return a.atMs < b.atMs || (a.atMs === b.atMs && a.order < b.order)
}

/** Something that runs on a host and can die or stand still: a main daemon or a recovery daemon. */
export class SimProcess {
  alive = true
  frozen = false
  /** It goes on after a pause, and has not yet read all that came meanwhile, in one turn of its loop. */
  catchingUp = false
  /** What came while it stood still; it happens all at once when it goes on. */
  readonly backlog: (() => void)[] = []
  readonly connections = new Set<SimConnection>()
  readonly locks = new Set<LockHolding>()
  /** The recovery daemon that this process is, if it is one. */
  recovery: RecoveryDaemon | undefined
  /** Since when it runs without having stood still. */
  runsSinceMs: number
  onExit: (reason: string) => void = () => {}

  constructor(
    readonly world: World,
    readonly name: string,
    readonly host: Host,
  ) {
    this.runsSinceMs = world.nowMs
    world.born(this)
  }

  scheduler(): Scheduler {
    const { world } = this
    return {
      monotonicMs: () => world.nowMs,
      setTimer: (delayMs, run) => world.at(world.nowMs + Math.max(0, delayMs), this, run),
      nextTurn: (run) => {
        world.at(world.nowMs, this, run)
      },
      // The clock stands still in a turn.
      workEndsMs: () => world.nowMs + 1,
    }
  }
}

interface LockHolding extends HeldLock {
  readonly lock: string
  readonly onLost: () => void
  readonly process: SimProcess
}

/** One end of a simulated connection. Packets arrive whole, in order, each after its own delay. */
export class SimConnection implements PacketConnection {
  readPriority: Priority = Priority.BULK
  queuedBytes = 0
  queuedPackets = 0
  handler: PacketHandler | undefined
  peer: SimConnection | undefined
  open = true
  /** Nothing overtakes on one connection. */
  private arrivesMs = 0

  constructor(
    readonly process: SimProcess,
    readonly local: boolean,
  ) {
    process.connections.add(this)
  }

  send(packet: Uint8Array): void {
    if (!this.open) return
    this.carry(() => this.peer?.receive(packet))
  }

  pause(): void {}
  resume(): void {}

  close(): void {
    if (!this.open) return
    this.forget()
    this.carry(() => this.peer?.ended("end of file"))
  }

  /** The process is gone. `silently`: the host has lost power, and nobody is told. */
  die(silently: boolean): void {
    if (!this.open) return
    this.forget()
    if (!silently) this.carry(() => this.peer?.ended("connection reset"))
  }

  /** The connection breaks: both ends hear of it, and what is on its way is lost. */
  breakOff(): void {
    const { peer } = this
    const { world } = this.process
    for (const end of [this, peer]) {
      if (end?.open !== true) continue
      const { handler } = end
      end.forget()
      world.at(world.nowMs, end.process, () => handler?.onClose("connection reset"))
    }
  }

  /** Hands something over to the other end, once the network lets it through. */
  private carry(arrive: () => void): void {
    const { world, host } = this.process
    const other = this.peer?.process
    if (other === undefined) return
    const delayMs = this.local ? 0.02 : world.delay(host, other.host)
    this.arrivesMs = Math.max(this.arrivesMs, world.nowMs + delayMs)
    world.transfer(this.local ? undefined : [host, other.host], this.arrivesMs, other, arrive)
  }

  private receive(packet: Uint8Array): void {
    if (!this.open) {
      this.reset()
      return
    }
    const { world } = this.process
    if (world.tap !== undefined && !world.tap(this.peer!.process, this.process, packet)) return
    world.arrived = packet
    this.handler?.onPacket(packet)
  }

  /** A host that is up knows nothing of this connection and says so; one without power says nothing. */
  private reset(): void {
    const { peer } = this
    const { world, host } = this.process
    if (peer === undefined || !host.powered) return
    const between: [Host, Host] | undefined = this.local ? undefined : [host, peer.process.host]
    world.transfer(between, world.nowMs + 0.1, peer.process, () => peer.ended("connection reset"))
  }

  private ended(reason: string): void {
    if (!this.open) return
    this.forget()
    this.handler?.onClose(reason)
  }

  private forget(): void {
    this.open = false
    this.process.connections.delete(this)
  }
}

/** Waits for a cut link to heal. */
interface Held {
  readonly from: Host
  readonly process: SimProcess
  readonly arrive: () => void
}

interface SimListener {
  readonly process: SimProcess
  readonly accept: (connection: PacketConnection, remote: string) => PacketHandler | undefined
}

/** A machine with one node on it. */
export class Host {
  /** Records that recoveries led from here kept aside. */
  readonly kept: Kept = new Map()
  main: SimProcess | undefined
  recd: SimProcess | undefined
  node: Node | undefined
  recovery: RecoveryDaemon | undefined
  exitStatus: number | undefined
  powered = true
  /** The main daemon has ended by itself, in an orderly way or not. */
  onExit: (status: number) => void = () => {}
  /** What the scripts of an event answer. */
  eventStatus: (event: string) => number = () => 0
  /** The cluster lock of this node's configuration, where it is not the common one. */
  lockString: string | undefined
  private acceptClients = false
  readonly disk = new SimDisk((run) => {
    this.world.at(this.world.nowMs, this.main, run)
  })
  readonly tunables: Tunables

  constructor(
    readonly world: World,
    readonly pnn: number,
    readonly address: string,
  ) {
    this.tunables = { ...world.tunables }
  }

  get running(): boolean {
    return this.main?.alive === true
  }

  start(): void {
    if (this.running) return
    const { world } = this
    const main = new SimProcess(world, `${this.pnn}`, this)
    this.main = main
    this.powered = true
    this.acceptClients = false
    this.exitStatus = undefined
    this.disk.restart()
    this.node = new Node(
      {
        tunables: { ...this.tunables },
        clusterLock: this.clusterLock(),
        leaderCapability: true,
        lmasterCapability: true,
        startAsStopped: false,
        startAsDisabled: false,
        testMode: world.options.testMode,
        announcedVersion: "auto",
        nodeAddress: this.address,
      },
      this.nodeEnvironment(main),
    )
    world.trace(this.pnn, "START")
    this.node.start()
  }

  private clusterLock(): string | undefined {
    return this.world.options.lock ? (this.lockString ?? "/cluster/lock") : undefined
  }

  /** The whole host goes. `power`: without a word to anybody, else as after kill -9 of all processes. */
  crash(power: boolean): void {
    this.world.trace(this.pnn, power ? "POWER LOSS" : "KILL -9")
    for (const process of this.world.processesOf(this)) this.world.end(process, power)
    if (power) {
      this.powered = false
      this.world.forgetHeld(this)
    }
    this.main = undefined
    this.recd = undefined
    this.node = undefined
    this.recovery = undefined
  }

  private common(process: SimProcess): Omit<NodeEnvironment & RecoveryEnvironment, "connectLocal"> {
    const { world } = this
    return {
      ...process.scheduler(),
      wallClock: () => world.wallClock(),
      randomU32: () => world.random.u32(),
      log: world.logger(process.name),
      readNodes: (done) => done(world.nodesList(this)),
      recoveryFiles: memoryFiles(this.kept),
      clusterLock: {
        take: (lock, timeoutMs, done, onLost) => world.takeLock(process, lock, timeoutMs, done, onLost),
      },
      exit: (status) => {
        world.trace(process.name, `EXIT ${status}`)
        world.end(process, false)
        if (process !== this.main) return
        this.exitStatus = status
        this.onExit(status)
      },
      transport: {
        listen: (address, port, onAccept) => world.listen(process, address, port, onAccept),
        connect: (_local, remote, port, timeoutMs, onConnected, onFailed) =>
          world.connect(process, remote, port, timeoutMs, onConnected, onFailed),
      },
      databases: this.disk,
      pid: 1000 + this.pnn,
      processExists: () => true,
      startRecoveryDaemon: (onExit) => this.startRecoveryDaemon(onExit),
      runEvent: (event, _argument, _timeoutS, done) => {
        world.at(world.nowMs + world.random.between(1, 30), process, () => done(this.eventStatus(event)))
      },
      notify: () => {},
      debugLocks: (what, path) => world.trace(process.name, `debug_locks ${what} ${path}`),
      acceptClients: () => {
        this.acceptClients = true
      },
      memoryUsed: () => 0,
    }
  }

  private nodeEnvironment(process: SimProcess): NodeEnvironment {
    return this.common(process)
  }

  private startRecoveryDaemon(onExit: (reason: string) => void) {
    const { world } = this
    const process = new SimProcess(world, `${this.pnn}r`, this)
    const parent = this.main
    process.onExit = (reason) => {
      world.at(world.nowMs + 1, parent, () => onExit(reason))
    }
    this.recd = process
    const recovery = new RecoveryDaemon(
      {
        clusterLock: this.clusterLock(),
        leaderTimeoutS: 5,
        testMode: world.options.testMode,
      },
      { ...this.common(process), connectLocal: (handler) => this.connectLocal(process, handler) },
    )
    this.recovery = recovery
    process.recovery = recovery
    world.at(world.nowMs + world.random.between(5, 60), process, () => {
      try {
        recovery.start()
      } catch {
        // The main daemon has gone meanwhile.
        world.end(process, false)
      }
    })
    return {
      terminate: () => {
        world.at(world.nowMs, process, () => recovery.stop())
      },
      kill: () => world.end(process, false),
      pid: 2000 + this.pnn,
      reopenLog: () => {},
    }
  }

  /** A client of the node, as recovery daemon or test. */
  connectLocal(process: SimProcess, handler: PacketHandler): PacketConnection {
    const { main, node } = this
    if (main === undefined || node === undefined || !main.alive || !this.acceptClients) {
      throw new Error("connect: connection refused")
    }
    const mine = new SimConnection(process, true)
    const theirs = new SimConnection(main, true)
    mine.peer = theirs
    theirs.peer = mine
    mine.handler = handler
    theirs.handler = node.acceptClient(theirs, { pid: 1, uid: 0, gid: 0 })
    return mine
  }

  /** A program on this host that is a client of its node. undefined: the node serves no clients now. */
  client(): Session | undefined {
    const process = new SimProcess(this.world, `${this.pnn}c`, this)
    const session = new Session(process.scheduler())
    session.pnn = this.pnn
    try {
      session.attach(this.connectLocal(process, session.handler))
    } catch {
      this.world.end(process, false)
      return undefined
    }
    return session
  }
}

export interface WorldOptions {
  readonly seed: number
  readonly nodes: number
  /** With a cluster lock, or without. */
  readonly lock: boolean
  readonly testMode: boolean
  /** Changed tunables. */
  readonly tunables?: Partial<Tunables>
}

export class World {
  nowMs = 0
  readonly random: Random
  readonly hosts: Host[]
  readonly tunables: Tunables
  events = 0
  /** Called after each event with the process it was for; undefined: something outside the nodes has happened. */
  check: ((process: SimProcess | undefined) => void) | undefined
  /** Sees every packet that arrives on any connection; false loses it. */
  tap: ((from: SimProcess, to: SimProcess, packet: Uint8Array) => boolean) | undefined
  /** The packet that the present event has brought, if it is the arrival of one. */
  arrived: Uint8Array | undefined
  private readonly queue = new EventQueue()
  private order = 0
  private readonly processes = new Set<SimProcess>()
  private readonly lines: [atMs: number, who: string | number, text: string][] = []
  private readonly listeners = new Map<string, SimListener>()
  private readonly cuts = new Set<number>()
  private readonly heldBack = new Map<number, Held[]>()
  /** Who holds which lock. */
  private readonly lockHolders = new Map<string, LockHolding>()
  /** What a host reads as its nodes list, where that is not the common one; undefined: it can't be read. */
  readonly lists = new Map<Host, readonly ListedNode[] | undefined>()
  /** Share of segments that are lost, and come again. */
  loss = 0
  /** Delays between hosts are drawn from 0.05 ms to this. */
  delayMaxMs = 1

  constructor(readonly options: WorldOptions) {
    this.random = new Random(options.seed)
    this.tunables = { ...defaultTunables(), ...options.tunables }
    this.hosts = Array.from({ length: options.nodes }, (_, pnn) => new Host(this, pnn, `10.0.0.${pnn + 1}`))
  }

  // ---- time ----------------------------------------------------------------------------------------------------

  at(atMs: number, process: SimProcess | undefined, run: () => void): Timer {
    const event: Event = { atMs, order: this.order++, process, run }
    this.queue.push(event)
    return {
      cancel: () => {
        event.run = undefined
      },
    }
  }

  /** Lets time pass, and everything that happens in it. */
  runFor(durationMs: number): void {
    const untilMs = this.nowMs + durationMs
    for (;;) {
      const next = this.queue.peek()
      if (next === undefined || next.atMs > untilMs) break
      this.queue.pop()
      this.nowMs = next.atMs
      this.dispatch(next)
    }
    this.nowMs = untilMs
  }

  private dispatch(event: Event): void {
    const { process } = event
    if (event.run === undefined) return
    if (process !== undefined && !process.alive) return
    if (process?.frozen === true) {
      process.backlog.push(() => event.run?.())
      return
    }
    this.events++
    this.arrived = undefined
    event.run()
    this.check?.(process)
  }

  wallClock(): { readonly sec: number; readonly usec: number } {
    const usec = Math.floor(this.nowMs * 1000)
    return { sec: EPOCH_S + Math.floor(usec / 1_000_000), usec: usec % 1_000_000 }
  }

  // ---- processes -----------------------------------------------------------------------------------------------

  born(process: SimProcess): void {
    this.processes.add(process)
  }

  get allProcesses(): ReadonlySet<SimProcess> {
    return this.processes
  }

  processesOf(host: Host): SimProcess[] {
    return [...this.processes].filter((process) => process.host === host)
  }

  end(process: SimProcess, silently: boolean): void {
    if (!process.alive) return
    process.alive = false
    this.processes.delete(process)
    for (const connection of [...process.connections]) connection.die(silently && !connection.local)
    for (const holding of [...process.locks]) this.freeLockLater(holding)
    for (const [key, listener] of this.listeners) if (listener.process === process) this.listeners.delete(key)
    process.onExit("killed")
  }

  freeze(process: SimProcess): void {
    if (process.frozen || !process.alive) return
    this.trace(process.name, "STOP")
    process.frozen = true
  }

  thaw(process: SimProcess): void {
    if (!process.frozen) return
    this.trace(process.name, "CONT")
    process.frozen = false
    process.runsSinceMs = this.nowMs
    process.catchingUp = true
    for (const run of process.backlog.splice(0)) {
      if (!process.alive) break
      this.arrived = undefined
      run()
      this.check?.(process)
    }
    process.catchingUp = false
    this.check?.(process)
  }

  // ---- network -------------------------------------------------------------------------------------------------

  private way(from: Host, to: Host): number {
    return from.pnn * 64 + to.pnn
  }

  isCut(from: Host, to: Host): boolean {
    return this.cuts.size > 0 && this.cuts.has(this.way(from, to))
  }

  cut(a: Host, b: Host): void {
    this.cutOneWay(a, b)
    this.cutOneWay(b, a)
  }

  /** Nothing gets from `from` to `to` any more; the other way stays open. */
  cutOneWay(from: Host, to: Host): void {
    if (from === to || this.isCut(from, to)) return
    this.trace("net", `CUT ${from.pnn} -> ${to.pnn}`)
    this.cuts.add(this.way(from, to))
  }

  /** What was sent while the link was cut comes through now, as TCP sends it again. */
  heal(a: Host, b: Host): void {
    for (const [from, to] of [
      [a, b],
      [b, a],
    ] as const) {
      const way = this.way(from, to)
      if (!this.cuts.delete(way)) continue
      this.trace("net", `HEAL ${from.pnn} -> ${to.pnn}`)
      const held = this.heldBack.get(way) ?? []
      this.heldBack.delete(way)
      let arrivesMs = this.nowMs
      for (const { process, arrive } of held) {
        arrivesMs = Math.max(arrivesMs, this.nowMs + this.delay(from, to))
        this.transfer([from, to], arrivesMs, process, arrive)
      }
    }
  }

  /** A host without power sends nothing again. */
  forgetHeld(host: Host): void {
    for (const [way, held] of this.heldBack) {
      this.heldBack.set(
        way,
        held.filter(({ from }) => from !== host),
      )
    }
  }

  delay(a: Host, b: Host): number {
    if (a === b) return 0.02
    const lost = this.loss > 0 && this.random.chance(this.loss)
    return this.random.between(0.05, this.delayMaxMs) + (lost ? RETRANSMIT_MS : 0)
  }

  transfer(between: readonly [Host, Host] | undefined, atMs: number, process: SimProcess, arrive: () => void): void {
    if (between === undefined) {
      this.at(atMs, process, arrive)
      return
    }
    const [from, to] = between
    this.at(atMs, undefined, () => {
      if (!this.isCut(from, to)) {
        this.dispatch({ atMs, order: 0, process: process.alive ? process : undefined, run: arrive })
        return
      }
      const way = this.way(from, to)
      const held = this.heldBack.get(way)
      if (held === undefined) this.heldBack.set(way, [{ from, process, arrive }])
      else held.push({ from, process, arrive })
    })
  }

  listen(process: SimProcess, address: string, port: number, accept: SimListener["accept"]): { close(): void } {
    const key = `${address}:${port}`
    if (this.listeners.has(key)) throw new Error(`bind ${key}: EADDRINUSE`)
    const listener = { process, accept }
    this.listeners.set(key, listener)
    return {
      close: () => {
        if (this.listeners.get(key) === listener) this.listeners.delete(key)
      },
    }
  }

  connect(
    process: SimProcess,
    remote: string,
    port: number,
    timeoutMs: number,
    onConnected: (connection: PacketConnection) => PacketHandler,
    onFailed: (reason: string) => void,
  ): () => void {
    const target = this.hosts.find((host) => host.address === remote)
    let over = false
    const once = (run: () => void) => () => {
      if (over) return
      over = true
      run()
    }
    this.at(
      this.nowMs + timeoutMs,
      process,
      once(() => onFailed("timed out")),
    )
    if (target === undefined) return once(() => {})
    this.at(this.nowMs + this.delay(process.host, target), undefined, () => {
      const listener = this.listeners.get(`${remote}:${port}`)
      const through = !this.isCut(process.host, target) && !this.isCut(target, process.host) && target.powered
      if (over || !process.alive || !through) return
      if (listener === undefined) {
        this.dispatch({ atMs: 0, order: 0, process, run: once(() => onFailed("connection refused")) })
        return
      }
      const near = new SimConnection(process, false)
      const far = new SimConnection(listener.process, false)
      near.peer = far
      far.peer = near
      // The kernel accepts for a process that stands still; it sees the connection when it goes on.
      this.dispatch({
        atMs: 0,
        order: 0,
        process: listener.process,
        run: () => {
          const handler = listener.accept(far, process.host.address)
          if (handler === undefined) far.close()
          else far.handler = handler
        },
      })
      this.dispatch({
        atMs: 0,
        order: 0,
        process,
        run: () => {
          if (over) {
            near.close()
            return
          }
          over = true
          near.handler = onConnected(near)
        },
      })
    })
    return once(() => {})
  }

  // ---- cluster lock --------------------------------------------------------------------------------------------

  takeLock(
    process: SimProcess,
    lock: string,
    _timeoutMs: number,
    done: (outcome: LockOutcome, held: HeldLock | undefined) => void,
    onLost: () => void,
  ): () => void {
    let cancelled = false
    let taken: LockHolding | undefined
    this.at(this.nowMs + this.random.between(1, 20), undefined, () => {
      if (cancelled || !process.alive) return
      if (!this.lockHolders.has(lock)) {
        const holding: LockHolding = { lock, process, onLost, release: () => this.free(holding) }
        this.lockHolders.set(lock, holding)
        process.locks.add(holding)
        taken = holding
        this.trace(process.name, "LOCK TAKEN")
      }
      this.dispatch({
        atMs: 0,
        order: 0,
        process,
        run: () => {
          if (cancelled) taken?.release()
          else done(taken === undefined ? "contention" : "taken", taken)
        },
      })
    })
    return () => {
      cancelled = true
      taken?.release()
    }
  }

  private free(holding: LockHolding): void {
    holding.process.locks.delete(holding)
    if (this.lockHolders.get(holding.lock) === holding) this.lockHolders.delete(holding.lock)
  }

  /** The lock's helper ends by itself: the file was removed, say. The holder hears of it, if it can hear. */
  loseLock(lock = "/cluster/lock"): void {
    const holding = this.lockHolders.get(lock)
    if (holding === undefined) return
    const { process } = holding
    this.trace(process.name, "LOCK LOST")
    this.free(holding)
    if (process.alive) this.dispatch({ atMs: 0, order: 0, process, run: holding.onLost })
  }

  holdsLock(process: SimProcess): boolean {
    return process.locks.size > 0
  }

  lockHeldBy(lock = "/cluster/lock"): SimProcess | undefined {
    return this.lockHolders.get(lock)?.process
  }

  /** The helper of a process that died notices that up to five seconds later (cluster page 5.7). */
  private freeLockLater(holding: LockHolding): void {
    holding.process.locks.delete(holding)
    this.at(this.nowMs + this.random.between(0, 5000), undefined, () => this.free(holding))
  }

  // ---- the rest ------------------------------------------------------------------------------------------------

  /** The list as all hosts have it, unless a test gave one of them another. */
  commonList(): ListedNode[] {
    return this.hosts.map((host) => ({
      pnn: host.pnn,
      address: host.address,
      family: "inet",
      port: 4379,
      deleted: false,
      flags: 0x3,
      line: host.pnn + 1,
    }))
  }

  nodesList(host: Host): Parsed<readonly ListedNode[]> {
    const list = this.lists.has(host) ? this.lists.get(host) : this.commonList()
    if (list !== undefined) return { ok: true, value: list }
    return { ok: false, faults: [{ source: "nodes", line: 2, cause: "Invalid node address x" }] }
  }

  trace(who: string | number, text: string): void {
    this.lines.push([this.nowMs, who, text])
    if (this.lines.length > TRACE_LINES * 2) this.lines.splice(0, TRACE_LINES)
  }

  traceText(): string {
    const lines = this.lines.slice(-TRACE_LINES)
    return lines
      .map(([at, who, text]) => `${(at / 1000).toFixed(3).padStart(9)} ${String(who).padEnd(3)} ${text}`)
      .join("\n")
  }

  logger(name: string): Logger {
    const write = (message: string) => this.trace(name, message)
    let level = 3
    const logger: Logger = {
      error: (message) => write(`E ${message}`),
      warning: (message) => write(`W ${message}`),
      notice: (message) => write(message),
      info: () => {},
      debug: () => {},
      get level() {
        return level
      },
      setLevel: (next) => {
        level = next
      },
      reopen: () => {},
      child: () => logger,
    }
    return logger
  }
}
