// Random histories of records: from a seed a plan (nodes, keys, clients, faults), from the plan a run in which the clients of
// every node add their mark to records under fetch-lock, as smbd would, or read delegated copies of them, while nodes die, stand still, lose
// links and recover.
// The checker knows every mark that was acknowledged. It only finds; records.test.ts asserts.

import type { Database } from "../../daemon/database/database.ts"
import { RecordHeader } from "../../daemon/database/record.ts"
import { isActive } from "../../daemon/state.ts"
import { Session } from "../../lib/client/session.ts"
import {
  CallFlag,
  CallId,
  INVALID_GENERATION,
  RecordFlag,
  RecoveryMode,
  RunState,
} from "../../lib/protocol/constants.ts"
import { databaseId } from "../../lib/protocol/hash.ts"
import { readU32, writeU32 } from "../../lib/protocol/header.ts"
import { LTDB_HEADER_SIZE } from "../../lib/protocol/structs.ts"
import type { SimFile } from "./files.ts"
import { type Host, Random, SimProcess, World } from "./world.ts"

const DATABASE = "records.tdb"
const ID = databaseId(DATABASE)
/** Clients count from here on; before, the cluster forms. */
const START_MS = 6000
/** After the last fault everything that was asked must be answered within this time (ms): see CONVERGENCE_MS. */
const QUIET_MS = 170_000
/** After that, reading all records may take so long. */
const READ_MS = 20_000
/** Bytes of a value: the mark of who wrote it. */
const VALUE_BYTES = 8

export type Deed =
  | { readonly kind: "kill" | "kill main"; readonly pnn: number; readonly downMs: number }
  | { readonly kind: "pause"; readonly pnn: number; readonly forMs: number }
  | { readonly kind: "recover"; readonly pnn: number }
  | { readonly kind: "stop"; readonly pnn: number; readonly forMs: number }
  | { readonly kind: "reset"; readonly from: number; readonly to: number }
  | { readonly kind: "cut"; readonly from: number; readonly to: number; readonly forMs: number }
  | { readonly kind: "loss"; readonly share: number; readonly forMs: number }
  | { readonly kind: "slow"; readonly delayMaxMs: number; readonly forMs: number }
  /** A client dies with the locks that it holds. */
  | { readonly kind: "kill client"; readonly client: number }

export interface Plan {
  readonly seed: number
  readonly nodes: number
  readonly lock: boolean
  readonly keys: number
  readonly clientsPerNode: number
  /** Clients wait up to so long between two marks, and hold a lock up to so long (ms). */
  readonly thinkMs: number
  readonly holdMs: number
  /** This share of what clients do is reading, for which a delegated copy is enough; 0: the database gives none. */
  readonly reading: number
  readonly faults: readonly { readonly atMs: number; readonly deed: Deed }[]
  readonly endMs: number
}

export interface Outcome {
  readonly plan: Plan
  readonly world: World
  readonly failure: string | undefined
  /** Acknowledged marks. */
  readonly marks: number
  /** Looks at delegated copies, each of which had the last mark. */
  readonly copiesRead: number
  /** Marks that went with the only node that had them. */
  readonly lost: number
  /** A living node was left out of a recovery: what its clients wrote meanwhile is in no order with the others' writes. */
  readonly excluded: boolean
}

export function planOf(seed: number): Plan {
  const random = new Random(seed ^ 0x7ec0)
  const nodes = 2 + random.below(3)
  const endMs = START_MS + random.between(1000, 5000)
  const count = random.chance(0.25) ? 0 : 1 + random.below(5)
  const faults = Array.from({ length: count }, () => ({
    atMs: Math.floor(random.between(START_MS + 200, endMs)),
    deed: deedOf(random, nodes),
  })).sort((a, b) => a.atMs - b.atMs)
  return {
    seed,
    nodes,
    lock: random.chance(0.5),
    keys: random.pick([1, 1, 2, 5, 9]),
    clientsPerNode: 1 + random.below(3),
    thinkMs: random.pick([10, 40, 100]),
    holdMs: random.pick([0.5, 5, 40]),
    reading: random.pick([0, 0, 0.3, 0.7]),
    faults,
    endMs,
  }
}

function deedOf(random: Random, nodes: number): Deed {
  const pnn = random.below(nodes)
  const from = random.below(nodes)
  const to = (from + 1 + random.below(nodes - 1)) % nodes
  switch (random.below(12)) {
    case 0:
    case 1:
      return { kind: random.pick(["kill", "kill main"] as const), pnn, downMs: Math.floor(random.between(200, 4000)) }
    case 2:
    case 3:
      return { kind: "pause", pnn, forMs: Math.floor(random.between(50, 2500)) }
    case 4:
    case 5:
      return { kind: "recover", pnn }
    case 6:
      return { kind: "stop", pnn, forMs: Math.floor(random.between(500, 4000)) }
    case 7:
    case 8:
      return { kind: "reset", from, to }
    case 9:
      return { kind: "cut", from, to, forMs: Math.floor(random.between(50, 3000)) }
    case 10:
      return random.chance(0.5)
        ? { kind: "loss", share: random.between(0.01, 0.3), forMs: 2000 }
        : { kind: "slow", delayMaxMs: random.between(2, 80), forMs: 3000 }
    default:
      return { kind: "kill client", client: random.below(100) }
  }
}

/** A broken rule. */
export class Violation extends Error {
  override readonly name = "Violation"
}

interface Mark {
  readonly id: number
  readonly pnn: number
  readonly atMs: number
}

/** What all clients together know of one key: its marks in order, and what may be gone. */
class KeyHistory {
  /** Acknowledged, in the order in which each read the one before. */
  readonly marks: Mark[] = []
  /** At the last death, some node that lived on had the mark of this index; what is before it can't be lost. */
  floor = -1
  lost = 0

  constructor(
    readonly name: string,
    readonly key: Uint8Array,
  ) {}

  indexOf(id: number): number | undefined {
    if (id === 0) return -1
    for (let index = this.marks.length - 1; index >= 0; index--) if (this.marks[index]!.id === id) return index
    return undefined
  }
}

interface Death {
  readonly pnn: number
  readonly atMs: number
}

/** What the last look at a node's file saw of a key. */
interface Seen {
  generation: number
  rsn: number
}

const header = new RecordHeader()

/** The mark in a record's value, 0 for an empty one. */
function markIn(value: Uint8Array): number {
  return value.length >= LTDB_HEADER_SIZE + VALUE_BYTES ? readU32(value, LTDB_HEADER_SIZE) : 0
}

class Client {
  readonly process: SimProcess
  readonly session: Session
  private file: SimFile | undefined
  private readonly wish = { stopped: false }
  busy = false

  constructor(
    private readonly history: History,
    readonly host: Host,
    private readonly random: Random,
  ) {
    this.process = new SimProcess(history.world, `${host.pnn}c`, host)
    this.session = new Session(this.process.scheduler())
    this.session.pnn = host.pnn
    this.session.onClosed = () => this.end()
    this.process.onExit = () => this.end()
  }

  /** false: the node serves no clients now. */
  start(): boolean {
    try {
      this.session.attach(this.host.connectLocal(this.process, this.session.handler))
    } catch {
      this.history.world.end(this.process, false)
      return false
    }
    this.busy = true
    this.session.request("DB_ATTACH", this.host.pnn, { request: DATABASE }, (reply) => {
      if (!reply.ok) {
        this.later(100, () => this.session.close())
        return
      }
      this.file = this.host.disk.files.get(DATABASE)
      if (this.history.plan.reading === 0) this.think()
      else
        this.session.request("SET_DB_READONLY", this.host.pnn, { request: ID }, (set) => {
          if (set.ok) this.think()
          else this.later(100, () => this.session.close())
        })
    })
    return true
  }

  get alive(): boolean {
    return this.process.alive && this.session.isOpen
  }

  stop(): void {
    this.wish.stopped = true
  }

  private end(): void {
    this.file?.locks.died(this)
    this.busy = false
    if (this.process.alive) this.history.world.end(this.process, false)
  }

  private later(delayMs: number, run: () => void): void {
    const { world } = this.history
    world.at(world.nowMs + delayMs, this.process, () => {
      if (this.session.isOpen) run()
    })
  }

  private think(): void {
    this.busy = false
    this.later(this.random.between(0.1, this.history.plan.thinkMs), () => {
      if (this.wish.stopped) return
      this.busy = true
      this.lock(this.random.pick(this.history.keys), this.random.chance(this.history.plan.reading))
    })
  }

  private lock(key: KeyHistory, reading: boolean): void {
    const { tdb, locks } = this.file!
    const chain = tdb.chainOf(tdb.hash(key.key))
    locks.wait(this, chain, () => this.later(0.01, () => this.locked(key, chain, reading)))
  }

  private locked(key: KeyHistory, chain: number, reading: boolean): void {
    const { tdb, locks } = this.file!
    const value = tdb.fetch(key.key)
    if (value !== null && value.length >= LTDB_HEADER_SIZE) {
      header.read(value)
      if (reading) {
        const isCopy = header.dmaster !== this.host.pnn
        if (!isCopy || (header.flags & RecordFlag.RO_HAVE_READONLY) !== 0) {
          this.history.read(key, markIn(value), this.host, isCopy)
          locks.release(this, chain)
          this.think()
          return
        }
      } else if (header.dmaster === this.host.pnn && (header.flags & RecordFlag.RO_HAVE_DELEGATIONS) === 0) {
        this.later(this.random.between(0.01, this.history.plan.holdMs), () => this.write(key, chain))
        return
      }
    }
    locks.release(this, chain)
    const flags = CallFlag.IMMEDIATE_MIGRATION | (reading ? CallFlag.WANT_READONLY : 0)
    this.session.call({ dbId: ID, key: key.key, callid: CallId.NULL, flags }, (reply) => {
      if (reply.ok) this.lock(key, reading)
      else if (this.session.isOpen) this.later(20, () => this.lock(key, reading))
    })
  }

  private write(key: KeyHistory, chain: number): void {
    const { tdb, locks } = this.file!
    const value = tdb.fetch(key.key)
    if (value === null) throw new Violation(`record of ${key.name} vanished under a lock`)
    const before = markIn(value)
    const written = new Uint8Array(LTDB_HEADER_SIZE + VALUE_BYTES)
    written.set(value.subarray(0, LTDB_HEADER_SIZE))
    writeU32(written, LTDB_HEADER_SIZE, this.history.mark(key, before, this.host))
    tdb.store(key.key, written)
    locks.release(this, chain)
    this.think()
  }
}

class History {
  readonly world: World
  readonly keys: KeyHistory[]
  private readonly clients = new Set<Client>()
  private readonly deaths: Death[] = []
  private readonly seen = new Map<string, Seen>()
  private readonly random: Random
  private nextMark = 1
  private copiesRead = 0
  private stopping = false
  private over = false
  excluded = false

  constructor(readonly plan: Plan) {
    const { seed, nodes, lock } = plan
    const tunables = { RecoveryBanPeriod: 20, StatHistoryInterval: 3600, RerecoveryTimeout: 2, DeferredAttachTO: 1000 }
    this.world = new World({ seed, nodes, lock, testMode: true, tunables })
    this.random = new Random(seed ^ 0x33)
    this.keys = Array.from({ length: plan.keys }, (_, n) => `key ${n}`).map(
      (name) => new KeyHistory(name, new TextEncoder().encode(name)),
    )
    this.world.check = (process) => {
      if (process !== undefined && process === process.host.main) this.look(process.host)
    }
  }

  run(): Outcome {
    const { world, plan } = this
    let failure: string | undefined
    try {
      for (const host of world.hosts) {
        world.at(host.pnn * 20, undefined, () => host.start())
        for (let n = 0; n < plan.clientsPerNode; n++) this.keepClient(host, START_MS - 1000 + n * 10)
      }
      for (const { atMs, deed } of plan.faults) world.at(atMs, undefined, () => this.do(deed))
      world.runFor(plan.endMs)
      failure = this.becomeQuiet()
    } catch (error) {
      failure = error instanceof Error ? (error.stack ?? error.message) : String(error)
    }
    const lost = this.keys.reduce((sum, key) => sum + key.lost, 0)
    return {
      plan,
      world,
      failure,
      marks: this.nextMark - 1,
      copiesRead: this.copiesRead,
      lost,
      excluded: this.excluded,
    }
  }

  // ---- clients -------------------------------------------------------------------------------------------------

  /** From `atMs` on there is always one more client on that host, as long as the history lasts. */
  private keepClient(host: Host, atMs: number): void {
    let client: Client | undefined
    const look = () => {
      if (this.stopping) return
      if (client === undefined || !client.alive) {
        if (client !== undefined) this.clients.delete(client)
        client = new Client(this, host, this.random)
        if (client.start()) this.clients.add(client)
      }
      this.world.at(this.world.nowMs + 300, undefined, look)
    }
    this.world.at(atMs, undefined, look)
  }

  /** A client writes its mark after it has read `before` under the lock; the write is acknowledged with this. */
  mark(key: KeyHistory, before: number, host: Host): number {
    const id = this.nextMark++
    const { nowMs } = this.world
    this.world.trace(`${host.pnn}c`, `${key.name}: mark ${id} after ${before}`)
    this.expect(key, before, `a client on node ${host.pnn}`)
    key.marks.push({ id, pnn: host.pnn, atMs: nowMs })
    const state = host.node?.state
    // Its node has left the cluster and waits for this client's lock to freeze: nobody will see what is written now.
    if (state !== undefined && state.runState >= RunState.SETUP && !isActive(state.self)) this.died(host)
    return id
  }

  /** A client reads a mark under the lock: in the record itself, or in a copy, which nobody may have left behind. */
  read(key: KeyHistory, mark: number, host: Host, isCopy: boolean): void {
    this.world.trace(`${host.pnn}c`, `${key.name}: reads mark ${mark}${isCopy ? " in a copy" : ""}`)
    this.expect(key, mark, `a reader on node ${host.pnn}`)
    if (isCopy) this.copiesRead++
  }

  /** Somebody who owns the record, or has a copy that is good for reading, finds that mark as the last one. */
  private expect(key: KeyHistory, found: number, who: string): void {
    if (this.excluded) return
    const index = key.indexOf(found)
    if (index === undefined) throw new Violation(`${who} finds mark ${found} of ${key.name}, which was lost before`)
    if (index === key.marks.length - 1) return
    const lost = key.marks.slice(index + 1)
    for (const mark of lost) {
      if (this.deaths.some(({ pnn, atMs }) => pnn === mark.pnn && atMs >= mark.atMs)) continue
      throw new Violation(
        `${who} finds mark ${found} of ${key.name}, and not ${mark.id}, written later on node ${mark.pnn}, which lives`,
      )
    }
    if (index < key.floor) {
      throw new Violation(
        `${who} finds mark ${found} of ${key.name}, but a living node had ${key.marks[key.floor]!.id}`,
      )
    }
    key.lost += lost.length
    key.marks.length = index + 1
  }

  // ---- faults --------------------------------------------------------------------------------------------------

  private do(deed: Deed): void {
    const { world } = this
    world.trace("-->", Object.values(deed).map(String).join(" "))
    switch (deed.kind) {
      case "kill":
      case "kill main": {
        const host = world.hosts[deed.pnn]!
        if (!host.running) return
        if (deed.kind === "kill") host.crash(false)
        else if (host.main !== undefined) world.end(host.main, false)
        this.died(host)
        this.later(deed.downMs, () => host.start())
        return
      }
      case "pause": {
        const main = world.hosts[deed.pnn]!.main
        if (main?.alive !== true) return
        world.freeze(main)
        world.at(world.nowMs + deed.forMs, undefined, () => world.thaw(main))
        return
      }
      case "recover":
        this.control(world.hosts[deed.pnn]!, (session, pnn) =>
          session.request("SET_RECMODE", pnn, { request: RecoveryMode.ACTIVE }, () => {}),
        )
        return
      case "stop": {
        const host = world.hosts[deed.pnn]!
        this.control(host, (session, pnn) => session.request("STOP_NODE", pnn, {}, () => {}))
        world.at(world.nowMs + deed.forMs, undefined, () => this.continue(host))
        return
      }
      case "reset": {
        for (const connection of [...(world.hosts[deed.from]!.main?.connections ?? [])]) {
          if (connection.peer?.process.host.pnn === deed.to && !connection.local) connection.breakOff()
        }
        return
      }
      case "cut": {
        const [from, to] = [world.hosts[deed.from]!, world.hosts[deed.to]!]
        world.cut(from, to)
        world.at(world.nowMs + deed.forMs, undefined, () => world.heal(from, to))
        return
      }
      case "loss":
        world.loss = deed.share
        this.later(deed.forMs, () => {
          world.loss = 0
        })
        return
      case "slow":
        world.delayMaxMs = deed.delayMaxMs
        this.later(deed.forMs, () => {
          world.delayMaxMs = 1
        })
        return
      case "kill client": {
        const all = [...this.clients].filter((client) => client.alive)
        const victim = all[deed.client % Math.max(1, all.length)]
        if (victim !== undefined) world.end(victim.process, false)
        return
      }
    }
  }

  private continue(host: Host): void {
    const state = host.running ? host.node?.state : undefined
    // What its clients wrote until its freeze counts for nothing, though the daemon may have had no event since.
    if (state !== undefined && state.runState >= RunState.SETUP && !isActive(state.self)) this.died(host)
    this.control(host, (session, pnn) => session.request("CONTINUE_NODE", pnn, {}, () => {}))
  }

  private later(delayMs: number, run: () => void): void {
    this.world.at(this.world.nowMs + delayMs, undefined, () => {
      if (!this.over) run()
    })
  }

  private control(host: Host, ask: (session: Session, pnn: number) => void): void {
    const session = host.client()
    if (session === undefined) return
    ask(session, host.pnn)
    this.world.at(this.world.nowMs + 3000, undefined, () => session.close())
  }

  /** What only that node has is gone; what others have is not. */
  private died(host: Host): void {
    this.deaths.push({ pnn: host.pnn, atMs: this.world.nowMs })
    for (const key of this.keys) {
      key.floor = -1
      for (const other of this.world.hosts) {
        const database = databaseOf(other)
        if (other === host || database === undefined || database.frozen || database.invalid) continue
        const value = database.tdb.fetch(key.key)
        if (value === null || value.length < LTDB_HEADER_SIZE + VALUE_BYTES) continue
        const index = key.indexOf(markIn(value))
        if (index !== undefined) key.floor = Math.max(key.floor, index)
      }
    }
  }

  // ---- after every event of a daemon ---------------------------------------------------------------------------

  private look(host: Host): void {
    const { node } = host
    const database = databaseOf(host)
    if (node === undefined || database === undefined || node.state.runState < RunState.SETUP) return
    if (!isActive(node.state.self)) {
      // Nothing that this node has counts any more.
      if (this.deaths.at(-1)?.pnn !== host.pnn || this.deaths.at(-1)?.atMs !== this.world.nowMs) this.died(host)
      return
    }
    if (node.state.generation !== INVALID_GENERATION && !node.state.vnnMap.includes(host.pnn)) this.leaveOut(host)
    for (const other of this.world.hosts) {
      const state = other.node?.state
      if (
        other.running &&
        state !== undefined &&
        state.runState >= RunState.SETUP &&
        state.generation !== node.state.generation
      ) {
        if (isActive(state.self) && state.generation !== INVALID_GENERATION && !node.state.vnnMap.includes(other.pnn)) {
          if (node.state.generation !== INVALID_GENERATION) this.leaveOut(other)
        }
      }
    }
    if (database.frozen || this.excluded) return
    for (const key of this.keys) this.lookAt(host, database, key)
  }

  private leaveOut(host: Host): void {
    if (!this.excluded) this.world.trace("-->", `node ${host.pnn} lives, and a recovery goes on without it`)
    this.excluded = true
  }

  private lookAt(host: Host, database: Database, key: KeyHistory): void {
    const value = database.tdb.fetch(key.key)
    if (value === null || value.length < LTDB_HEADER_SIZE) return
    header.read(value)
    const rsn = header.rsnHi * 0x1_0000_0000 + header.rsnLo
    const place = `${host.pnn} ${key.name}`
    const seen = this.seen.get(place)
    if (seen?.generation === database.generation && rsn < seen.rsn) {
      throw new Violation(`rsn of ${key.name} on node ${host.pnn} went from ${seen.rsn} to ${rsn}`)
    }
    if (seen === undefined) this.seen.set(place, { generation: database.generation, rsn })
    else {
      seen.generation = database.generation
      seen.rsn = rsn
    }
    if (header.dmaster !== host.pnn) return
    const mark = markIn(value)
    this.expect(key, mark, `node ${host.pnn}, which owns the record,`)
    for (const other of this.world.hosts) {
      const theirs = databaseOf(other)
      if (other === host || theirs === undefined || theirs.frozen || theirs.generation !== database.generation) continue
      const copy = theirs.tdb.fetch(key.key)
      if (copy === null || copy.length < LTDB_HEADER_SIZE) continue
      header.read(copy)
      if (header.dmaster === other.pnn) {
        throw new Violation(`nodes ${host.pnn} and ${other.pnn} both own ${key.name}`)
      }
      if ((header.flags & RecordFlag.RO_HAVE_READONLY) !== 0 && markIn(copy) !== mark) {
        throw new Violation(
          `node ${other.pnn} has mark ${markIn(copy)} of ${key.name} for readers, its owner has ${mark}`,
        )
      }
      const copyRsn = header.rsnHi * 0x1_0000_0000 + header.rsnLo
      if (copyRsn >= rsn) {
        throw new Violation(`node ${other.pnn} has rsn ${copyRsn} of ${key.name}, its owner ${host.pnn} has rsn ${rsn}`)
      }
    }
  }

  // ---- the end -------------------------------------------------------------------------------------------------

  /** Every request is answered, and every record holds the last mark. */
  private becomeQuiet(): string | undefined {
    const { world } = this
    this.over = true
    world.trace("-->", "the faults stop")
    world.loss = 0
    world.delayMaxMs = 1
    for (const process of [...world.allProcesses]) world.thaw(process)
    for (const a of world.hosts) for (const b of world.hosts) if (a.pnn < b.pnn) world.heal(a, b)
    for (const host of world.hosts) if (!host.running) host.start()
    world.runFor(500)
    for (const host of world.hosts) this.continue(host)
    this.stopping = true
    for (const client of this.clients) client.stop()
    const deadlineMs = world.nowMs + QUIET_MS
    for (;;) {
      const busy = this.unanswered()
      if (busy === undefined) break
      if (world.nowMs > deadlineMs) return `not quiet ${QUIET_MS / 1000} s after the faults stopped: ${busy}`
      world.runFor(250)
    }
    for (const host of world.hosts) {
      const pending = host.node?.state.statistics.now.pendingCalls
      if (pending !== 0) return `node ${host.pnn} counts ${pending} pending calls when all are answered`
    }
    return this.readAll()
  }

  private unanswered(): string | undefined {
    for (const host of this.world.hosts) {
      const { node } = host
      if (node === undefined || !host.running || node.state.runState < RunState.SETUP)
        return `node ${host.pnn} does not run`
      if (!isActive(node.state.self)) return `node ${host.pnn} has flags ${node.state.self.flags}`
      if (node.state.recoveryMode !== RecoveryMode.NORMAL) return `node ${host.pnn} is in recovery`
      const database = databaseOf(host)
      if (database === undefined) continue
      if (database.frozen) return `node ${host.pnn} is frozen`
      const { waitingCount } = database.locks
      if (waitingCount > 0) return `${waitingCount} requests wait for locks on node ${host.pnn}`
      const pending = node.calls.pendingCount(database)
      if (pending > 0) return `${pending} calls wait for records on node ${host.pnn}`
    }
    for (const client of this.clients) {
      if (client.alive && client.busy) return `a client on node ${client.host.pnn} waits`
    }
    return undefined
  }

  private readAll(): string | undefined {
    const { world } = this
    const host = world.hosts[0]!
    const session = host.client()
    if (session === undefined) return "node 0 serves no clients"
    const found = new Map<KeyHistory, number>()
    session.request("DB_ATTACH", host.pnn, { request: DATABASE }, () => {
      for (const key of this.keys) {
        session.call({ dbId: ID, key: key.key, callid: CallId.FETCH }, (reply) => {
          if (reply.ok) found.set(key, reply.data.length >= VALUE_BYTES ? readU32(reply.data, 0) : 0)
        })
      }
    })
    // Links may still be on their way up.
    for (let waitedMs = 0; waitedMs < READ_MS && found.size < this.keys.length; waitedMs += 100) world.runFor(100)
    for (const key of this.keys) {
      const mark = found.get(key)
      if (mark === undefined) return `${key.name} can't be read at the end`
      try {
        this.expect(key, mark, "the last reader")
      } catch (error) {
        if (!(error instanceof Violation)) throw error
        return error.message
      }
    }
    return undefined
  }
}

function databaseOf(host: Host): Database | undefined {
  return host.running ? host.node?.databases.get(ID) : undefined
}

export function runPlan(plan: Plan): Outcome {
  return new History(plan).run()
}

/** Leaves out faults as long as the history still fails. */
export function shrink(plan: Plan): Outcome {
  let best = runPlan(plan)
  for (let again = true; again; ) {
    again = false
    for (let index = 0; index < best.plan.faults.length; index++) {
      const faults = best.plan.faults.toSpliced(index, 1)
      const outcome = runPlan({ ...best.plan, faults })
      if (outcome.failure === undefined) continue
      best = outcome
      again = true
      break
    }
  }
  return best
}

if (import.meta.main) {
  const [from, to] = [Number(process.argv[2] ?? 1), Number(process.argv[3] ?? process.argv[2] ?? 1)]
  let [marks, copiesRead, lost, excluded, failed, events] = [0, 0, 0, 0, 0, 0]
  const began = performance.now()
  for (let seed = from; seed <= to; seed++) {
    const outcome = runPlan(planOf(seed))
    marks += outcome.marks
    copiesRead += outcome.copiesRead
    lost += outcome.lost
    events += outcome.world.events
    if (outcome.excluded) excluded++
    if (outcome.failure === undefined) continue
    failed++
    console.log(`seed ${seed}: ${outcome.failure.split("\n")[0]}`)
    if (from !== to) continue
    const shrunk = shrink(planOf(seed))
    console.log(
      shrunk.world
        .traceText()
        .split("\n")
        .slice(-Number(process.argv[4] ?? 60))
        .join("\n"),
    )
    console.log(JSON.stringify(shrunk.plan, undefined, 1), shrunk.failure)
  }
  const seconds = ((performance.now() - began) / 1000).toFixed(1)
  console.log({ seeds: to - from + 1, failed, marks, copiesRead, lost, excluded, events, seconds })
}
