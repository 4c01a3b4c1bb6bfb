// The databases of this node: attach and detach, ids, names, properties, health marks, sequence numbers (data path page,
// section 9), and the recovery controls that name one of them. A database's own state is in database.ts; records that move
// between nodes are calls.ts's business.

import type { Timer } from "../../lib/net/ports.ts"
import { encode } from "../../lib/protocol/codec.ts"
import {
  BROADCAST_ACTIVE,
  BROADCAST_CONNECTED,
  ControlFlag,
  DbFlag,
  RecoveryMode,
  RunState,
  SEQNUM_KEY,
} from "../../lib/protocol/constants.ts"
import { controls } from "../../lib/protocol/controls.ts"
import { databaseId } from "../../lib/protocol/hash.ts"
import type { AlikeRetain } from "../../lib/protocol/own-structs.ts"
import type { DbidMap, PulldbExt, Transdb } from "../../lib/protocol/structs.ts"
import { LTDB_HEADER_SIZE } from "../../lib/protocol/structs.ts"
import { SysError } from "../../lib/sys/errno.ts"
import { checkInPieces, TdbError, type Underway } from "../../lib/tdb/tdb.ts"
import type { NodeEnvironment } from "../environment.ts"
import type { Answer, LocalClient, Router } from "../routing.ts"
import { isActive, type NodeState } from "../state.ts"
import { Digest, GROUPS, Retain, sketch } from "./alike.ts"
import { Database } from "./database.ts"
import type { DatabaseKind, OpenedFile } from "./files.ts"
import type { NodeFreeze } from "./freeze.ts"
import { Health } from "./health.ts"
import { Push, pull } from "./pull-push.ts"

const ATTACH: Readonly<Record<DatabaseKind, number>> = {
  volatile: controls.DB_ATTACH.opcode,
  persistent: controls.DB_ATTACH_PERSISTENT.opcode,
  replicated: controls.DB_ATTACH_REPLICATED.opcode,
}
const KIND_FLAG: Readonly<Record<DatabaseKind, number>> = {
  volatile: 0,
  persistent: DbFlag.PERSISTENT,
  replicated: DbFlag.REPLICATED,
}
/** Beginning of the mark of a database whose file has a defect. */
const DAMAGED = "ERROR - damaged: "
/** Clients whose attach waits for the end of a recovery. */
const DEFERRED_MAX = 20_000
/** So that a name with its node number and the suffix of a tracking database is a file name (bytes). */
const NAME_BYTES_MAX = 240

const utf8 = new TextEncoder()
const seqnumKey = utf8.encode(`${SEQNUM_KEY}\0`)

interface DeferredAttach {
  readonly client: LocalClient
  readonly run: () => void
  readonly fail: () => void
  readonly timer: Timer
}

/** A file of a persistent database that is being checked, before the database is one of this node's. */
interface Attaching {
  readonly name: string
  readonly file: OpenedFile
  /** Who waits for the end, in the order in which they came: told what went wrong, or null. */
  readonly waiting: ((error: unknown) => void)[]
  checking: Underway | undefined
}

/** A file that can't be used, and why. */
export class AttachError extends Error {
  override readonly name = "AttachError"
}

interface SeqnumWatch {
  last: number
  timer: Timer
}

export class Databases {
  private readonly byId = new Map<number, Database>()
  private readonly attaching = new Map<number, Attaching>()
  private readonly deferred = new Set<DeferredAttach>()
  private readonly pushes = new Map<Database, Push>()
  private readonly seqnums = new Map<Database, SeqnumWatch>()
  private readonly steps: (() => void)[] = []
  /** Databases whose damage is being noted, and who waits for that. */
  private readonly noting = new Map<Database, (() => void)[]>()
  private health: Health | undefined

  constructor(
    private readonly state: NodeState,
    private readonly environment: NodeEnvironment,
    private readonly router: Router,
    private readonly freeze: () => NodeFreeze,
    /** A database was attached, and is about to be forgotten: for the rooms that keep something for it. */
    private readonly events: { attached(database: Database): void; detached(database: Database): void },
  ) {}

  get(id: number): Database | undefined {
    return this.byId.get(id)
  }

  /** Oldest first. */
  all(): IterableIterator<Database> {
    return this.byId.values()
  }

  /** GET_DBMAP: newest attached first (9.4). */
  map(): DbidMap {
    return [...this.byId.values()].reverse().map((database) => ({ dbId: database.id, flags: database.flags }))
  }

  // ---- attach --------------------------------------------------------------------------------------------------

  /**
   * Attaches what lies in the persistent directory, one file after the other; a damaged file is set aside, and its database starts empty and
   * marked. `done` in this turn or a later one, with what went wrong or null. @throws Error
   */
  attachPersistent(done: (error: unknown) => void): void {
    const { environment, state } = this
    const health = new Health(environment, state.pnn)
    health.open()
    this.health = health
    const names = [...environment.databases.persistentNames(state.pnn)]
    const next = (): void => {
      const name = names.shift()
      if (name === undefined) {
        done(null)
        return
      }
      const attached = (error: unknown): void => {
        if (error === null) {
          health.found(name, this.byId.get(databaseId(name))?.path ?? name)
          environment.nextTurn(next)
        } else if (error instanceof TdbError || error instanceof AttachError) replace(name, error)
        else done(error)
      }
      this.attachLocal(name, "persistent", attached)
    }
    const replace = (name: string, { message }: Error): void => {
      let aside: string
      try {
        aside = environment.databases.setAside(name, state.pnn)
      } catch (error) {
        done(error)
        return
      }
      environment.log.error(
        `Persistent database ${name} is damaged and was set aside as ${aside}: ${message}. ` +
          "It starts empty and unhealthy, until a recovery with another healthy node fills it",
      )
      this.attachLocal(name, "persistent", (error) => {
        if (error === null) {
          health.set(name, `ERROR - Backup of corrupted TDB in '${aside}'`)
          environment.nextTurn(next)
        } else done(error)
      })
    }
    next()
  }

  /** DB_ATTACH and its variants (9.1). */
  attach(
    kind: DatabaseKind,
    name: string | null,
    control: { readonly flags: number; readonly srcnode: number },
    client: LocalClient | undefined,
    answer: Answer,
  ): void {
    const { state, environment } = this
    const refuse = (error: string) => {
      environment.log.error(`Attach of database ${name ?? "without a name"} refused: ${error}`)
      answer({ status: -1, error })
    }
    if (name === null || !isName(name)) {
      refuse("not a database name")
      return
    }
    const inRecovery = (control.flags & ControlFlag.ATTACH_RECOVERY) !== 0
    // A recovery's attach is no client's wish: a node that refused it would be banned for a setting (cluster page 10.3, row 27).
    const ofRecovery = inRecovery && state.recoveryMode === RecoveryMode.ACTIVE
    if (state.tunables.AllowClientDBAttach === 0 && !ofRecovery) {
      refuse("AllowClientDBAttach is 0")
      return
    }
    if (client !== undefined) {
      if (!isActive(state.self)) {
        refuse("this node is inactive")
        return
      }
      if (inRecovery && state.recoveryMode !== RecoveryMode.ACTIVE) {
        refuse("attach for a recovery while there is none")
        return
      }
      if (!inRecovery && (state.recoveryMode === RecoveryMode.ACTIVE || state.runState < RunState.STARTUP)) {
        this.defer(
          client,
          () => this.attach(kind, name, control, client, answer),
          () => refuse("the recovery has not ended in time"),
        )
        return
      }
    }
    let id: number
    try {
      id = databaseId(name)
    } catch {
      refuse("not a database name")
      return
    }
    const known = this.byId.get(id)
    const data = encode(controls.DB_ATTACH.reply, id)
    if (known !== undefined) {
      if (known.name !== name) refuse(`its id 0x${hex(id)} is that of ${known.name}`)
      else if ((KIND_FLAG[kind] & ~known.flags) !== 0) refuse(`it is attached as ${known.kind}, not ${kind}`)
      else answer({ status: 0, data })
      return
    }
    const attached = (error: unknown): boolean => {
      if (error === null) return true
      if (!(error instanceof TdbError || error instanceof AttachError || error instanceof SysError)) throw error
      refuse(error.message)
      return false
    }
    const begun = this.attaching.get(id)
    if (begun !== undefined) {
      if (begun.name !== name) refuse(`its id 0x${hex(id)} is that of ${begun.name}`)
      else if (kind === "replicated") refuse(`it is attached as persistent, not ${kind}`)
      else
        begun.waiting.push((error) => {
          if (attached(error)) answer({ status: 0, data })
        })
      return
    }
    this.attachLocal(name, kind, (error) => {
      if (!attached(error)) return
      this.router.sendControl(BROADCAST_CONNECTED, ATTACH[kind], utf8.encode(`${name}\0`))
      answer({ status: 0, data })
    })
  }

  private defer(client: LocalClient, run: () => void, fail: () => void): void {
    if (this.deferred.size >= DEFERRED_MAX) {
      fail()
      return
    }
    const timer = this.environment.setTimer(this.state.tunables.DeferredAttachTO * 1000, () => {
      this.deferred.delete(entry)
      fail()
    })
    const entry: DeferredAttach = { client, run, fail, timer }
    this.deferred.add(entry)
  }

  /** Recovery mode is NORMAL: what was deferred is looked at again. */
  recovered(): void {
    const deferred = [...this.deferred]
    this.deferred.clear()
    for (const { timer, run } of deferred) {
      timer.cancel()
      run()
    }
  }

  clientGone(client: LocalClient): void {
    for (const entry of this.deferred) {
      if (entry.client !== client) continue
      entry.timer.cancel()
      this.deferred.delete(entry)
    }
  }

  /**
   * Opens the file and takes the database into the node. What a persistent one has in it is checked first, between the turns of the loop. `done`
   * in this turn or a later one, with what went wrong (TdbError, SysError, AttachError) or null.
   */
  private attachLocal(name: string, kind: DatabaseKind, done: (error: unknown) => void): void {
    const { environment, state } = this
    let file: OpenedFile
    try {
      file = environment.databases.open({
        kind,
        name,
        pnn: state.pnn,
        hashSize: state.tunables.DatabaseHashSize,
        maxDead: state.tunables.DatabaseMaxDead,
      })
    } catch (error) {
      done(error)
      return
    }
    if (kind !== "persistent") {
      this.enter(name, kind, file)
      done(null)
      return
    }
    const id = databaseId(name)
    const attaching: Attaching = { name, file, waiting: [done], checking: undefined }
    this.attaching.set(id, attaching)
    attaching.checking = checkInPieces(file.tdb, environment, (result) => {
      this.attaching.delete(id)
      const error =
        result instanceof Error
          ? result
          : result.ok
            ? null
            : new AttachError(`check of ${file.path} failed: ${result.findings[0]?.message ?? "unknown reason"}`)
      if (error === null) this.enter(name, kind, file)
      else closeFile(file)
      for (const each of attaching.waiting) each(error)
    })
  }

  private enter(name: string, kind: DatabaseKind, file: OpenedFile): void {
    const { environment, state } = this
    const database = new Database(databaseId(name), name, kind, file, state, environment)
    this.byId.set(database.id, database)
    database.onDamaged = (reason) => this.damaged(database, reason)
    environment.log.notice(`Attached to database '${file.path}' with flags 0x${file.tdb.flags.toString(16)}`)
    this.events.attached(database)
    // A node that takes no part in the cluster keeps all of its databases locked, the new one too.
    if (this.freeze().frozen) database.freeze(() => {})
  }

  /** Runs it now, or when the attach that is under way for that database is over, well or not. */
  whenAttached(id: number, run: () => void): void {
    const attaching = this.attaching.get(id)
    if (attaching === undefined) run()
    else attaching.waiting.push(run)
  }

  /** DB_DETACH (9.3): a client's is only spread, this node itself included; a daemon's is done. */
  detach(id: number, client: LocalClient | undefined): boolean {
    const { environment, state } = this
    const database = this.byId.get(id)
    const refuse = (why: string) => {
      environment.log.error(`Detach of database ${database?.name ?? `0x${hex(id)}`} refused: ${why}`)
      return false
    }
    if (database === undefined) return refuse("not attached")
    if (state.tunables.AllowClientDBAttach === 1) return refuse("AllowClientDBAttach is 1")
    if (!database.volatile) return refuse(`it is ${database.kind}`)
    if (state.recoveryMode === RecoveryMode.ACTIVE) return refuse("recovery is active")
    if (client !== undefined) {
      this.router.sendControl(BROADCAST_CONNECTED, controls.DB_DETACH.opcode, encode(controls.DB_DETACH.request, id))
      return true
    }
    this.events.detached(database)
    this.seqnums.get(database)?.timer.cancel()
    this.seqnums.delete(database)
    this.pushes.delete(database)
    this.byId.delete(id)
    database.close()
    environment.log.notice(`Detached from database '${database.name}'`)
    return true
  }

  // ---- properties and health -----------------------------------------------------------------------------------

  setProperty(id: number, property: number): boolean {
    const database = this.byId.get(id)
    if (database === undefined || !database.volatile) return false
    database.properties |= property
    return true
  }

  /** The reason why it is unhealthy, null if it is healthy; undefined if there is no such database. */
  healthReason(id: number): string | null | undefined {
    const database = this.byId.get(id)
    return database === undefined ? undefined : (this.health?.reason(database.name) ?? null)
  }

  isHealthy(database: Database): boolean {
    return this.health?.reason(database.name) === undefined
  }

  /** Its contents can't be trusted, or not be changed, from now on; `done` when the mark is on the disk, if it can be. */
  setUnhealthy(database: Database, reason: string, done: () => void): void {
    if (this.health === undefined || this.health.reason(database.name) === reason) done()
    else this.health.set(database.name, reason, done)
  }

  /**
   * A defect was met in the file: from now on this copy counts for nothing, until a recovery has brought another node's. `done` when the
   * mark is on the disk, and beside it a copy of the file as it is.
   */
  damaged(database: Database, reason: string, done: () => void = () => {}): void {
    const { environment } = this
    const waiting = this.noting.get(database)
    if (waiting !== undefined) {
      waiting.push(done)
      return
    }
    if (database.volatile || this.isDamaged(database)) {
      environment.log.error(`Database ${database.name} is damaged: ${reason}`)
      done()
      return
    }
    this.noting.set(database, [done])
    let left = 2
    const noted = () => {
      if (--left > 0) return
      const waited = this.noting.get(database) ?? []
      this.noting.delete(database)
      for (const each of waited) each()
    }
    this.setUnhealthy(database, `${DAMAGED}${reason}`, noted)
    environment.databases.copyAside(database.path, (copy) => {
      if (copy instanceof Error) environment.log.error(`Damaged ${database.path} can't be copied: ${copy.message}`)
      else environment.log.error(`Damaged ${database.path} is kept as ${copy}`)
      noted()
    })
  }

  private isDamaged(database: Database): boolean {
    return this.health?.reason(database.name)?.startsWith(DAMAGED) === true
  }

  /** undefined: no such database; else whether it was unhealthy. */
  setHealthy(id: number): boolean | undefined {
    const database = this.byId.get(id)
    return database === undefined ? undefined : (this.health?.clear(database.name) ?? false)
  }

  // ---- recovery ------------------------------------------------------------------------------------------------

  freezeOne(id: number, answer: Answer): void {
    const database = this.byId.get(id)
    if (database === undefined) answer({ status: -1 })
    else database.freeze((ok) => answer({ status: ok ? 0 : -1 }))
  }

  thawOne(id: number): boolean {
    const database = this.byId.get(id)
    database?.thaw()
    return database !== undefined
  }

  startTransaction({ dbId, tid }: Transdb, answer: Answer): void {
    const known = this.byId.get(dbId)
    const noting = known && this.noting.get(known)
    if (noting !== undefined) {
      // The file gets other contents in this transaction.
      noting.push(() => this.startTransaction({ dbId, tid }, answer))
      return
    }
    this.work(answer, dbId, "start the transaction of", (database) => {
      if (database.startTransaction(tid)) return true
      this.environment.log.error(`DB_TRANSACTION_START of ${database.name}, which is not frozen`)
      return false
    })
  }

  commitTransaction({ dbId, tid }: Transdb, answer: Answer): void {
    this.queue(() => {
      const database = this.byId.get(dbId)
      if (database === undefined || !this.isInTransaction(database, tid, "DB_TRANSACTION_COMMIT")) {
        answer({ status: -1 })
        return
      }
      database.commitTransaction((error) => {
        const good = this.attempt(dbId, "commit", () => {
          if (error !== null) throw error
          // Others that are healthy have brought what this node may have lost; its own word on that counts for nothing.
          const trusted = this.state.nodes.some((node) => node.flags === 0 && node.pnn !== this.state.pnn)
          this.health?.recovered(database.name, trusted)
          return true
        })
        answer({ status: good ? 0 : -1 })
      })
    })
  }

  cancelTransaction(id: number): boolean {
    return this.attempt(id, "cancel the transaction of", (database) => {
      database.cancelTransaction()
      return true
    })
  }

  wipe({ dbId, tid }: Transdb, answer: Answer): void {
    this.work(answer, dbId, "wipe", (database) => {
      if (!this.isInTransaction(database, tid, "WIPE_DATABASE")) return false
      database.wipe()
      return true
    })
  }

  private isInTransaction(database: Database, tid: number, control: string): boolean {
    if (database.inTransaction(tid)) return true
    const state = database.frozen ? `its transaction is ${database.transaction ?? "none"}` : "it is not frozen"
    this.environment.log.error(`${control} of ${database.name} for transaction ${tid}: ${state}`)
    return false
  }

  /**
   * A step of a recovery that takes milliseconds. A leader asks for it in all databases at once; here they share the turns of
   * the loop, in the order in which they were asked for.
   */
  private work(answer: Answer, id: number, what: string, step: (database: Database) => boolean): void {
    this.queue(() => answer({ status: this.attempt(id, what, step) ? 0 : -1 }))
  }

  private queue(step: () => void): void {
    this.steps.push(step)
    if (this.steps.length === 1) this.environment.nextTurn(() => this.takeSteps())
  }

  private takeSteps(): void {
    const untilMs = this.environment.workEndsMs()
    do this.steps[0]?.()
    while (this.steps.shift() !== undefined && this.steps.length > 0 && this.environment.monotonicMs() < untilMs)
    if (this.steps.length > 0) this.environment.nextTurn(() => this.takeSteps())
  }

  /** A failing file makes the control fail, not the node. */
  private attempt(id: number, what: string, step: (database: Database) => boolean): boolean {
    const database = this.byId.get(id)
    if (database === undefined) return false
    try {
      return step(database)
    } catch (error) {
      if (!(error instanceof TdbError || error instanceof SysError)) throw error
      this.environment.log.error(`Failed to ${what} database ${database.name}: ${error.message}`)
      return false
    }
  }

  /** ALIKE_DIGEST. Database 0 asks only whether this node knows such things. */
  digest({ dbId, tid }: Transdb, answer: Answer): void {
    const database = this.byId.get(dbId)
    if (database === undefined || database.invalid || this.isDamaged(database)) answer({ status: 0 })
    else if (!this.isInTransaction(database, tid, "ALIKE_DIGEST")) answer({ status: -1 })
    else new Digest(database, this.state.tunables.RecBufferSizeLimit, this.environment, answer).step()
  }

  /** ALIKE_SKETCH: nothing, where there is nothing worth comparing. */
  sketch({ dbId, tid }: Transdb, answer: Answer): void {
    const database = this.byId.get(dbId)
    if (database === undefined || database.invalid || this.isDamaged(database)) answer({ status: 0 })
    else if (!this.isInTransaction(database, tid, "ALIKE_SKETCH")) answer({ status: -1 })
    else answer({ status: 0, data: sketch(database, this.state.tunables.RecBufferSizeLimit) })
  }

  retain({ dbId, tid, leader, keep }: AlikeRetain, answer: Answer): void {
    const database = this.byId.get(dbId)
    const good = database !== undefined && keep.length === GROUPS / 8 && !database.invalid
    if (!good || !this.isInTransaction(database, tid, "ALIKE_RETAIN")) answer({ status: -1 })
    else new Retain(database, keep.slice(), leader, this.environment, answer).step()
  }

  pull(request: PulldbExt, srcnode: number, answer: Answer, keep?: Uint8Array): void {
    const database = this.byId.get(request.dbId)
    if (database === undefined) {
      answer({ status: -1 })
      return
    }
    if (!this.isHealthy(database)) this.environment.log.warning(`db(${database.name}) is unhealthy, but is pulled`)
    const limit = Math.max(1, this.state.tunables.RecBufferSizeLimit)
    pull(database, request, srcnode, this.router, this.environment, limit, answer, keep)
  }

  pushStart(request: PulldbExt): boolean {
    const database = this.byId.get(request.dbId)
    if (database === undefined) return false
    this.pushes.get(database)?.abort("another one was started")
    const push = Push.start(database, request, this.router, this.environment)
    if (push === undefined) return false
    this.pushes.set(database, push)
    return true
  }

  pushConfirm(id: number, answer: Answer): void {
    const database = this.byId.get(id)
    const push = database === undefined ? undefined : this.pushes.get(database)
    if (database === undefined || push === undefined || !push.active || !database.frozen) {
      this.environment.log.error(`DB_PUSH_CONFIRM of ${database?.name ?? `0x${hex(id)}`} without a push`)
      answer({ status: -1 })
      return
    }
    push.confirmed((result) => {
      this.pushes.delete(database)
      answer(result)
    })
  }

  /** GET_DB_SEQNUM (10.1), without holding up the loop for a client that has the chain. In a recovery a damaged copy has none. */
  recordSeqnum(id: number, answer: Answer): void {
    const database = this.byId.get(id)
    if (database === undefined) {
      answer({ status: -1 })
      return
    }
    const hash = database.tdb.hash(seqnumKey)
    const read = () => {
      if (database.closed) {
        answer({ status: -1 })
        return
      }
      const inRecovery = database.transaction !== undefined
      const data = new Uint8Array(8)
      let value: Uint8Array | null = null
      try {
        if (!inRecovery || !this.isDamaged(database)) value = database.tdb.fetch(seqnumKey, hash)
      } catch (error) {
        if (!(error instanceof TdbError)) throw error
        this.damaged(database, error.message)
        if (!inRecovery || database.volatile) {
          answer({ status: -1, error: error.message })
          return
        }
      }
      if (value?.length === LTDB_HEADER_SIZE + 8) data.set(value.subarray(LTDB_HEADER_SIZE))
      answer({ status: 0, data })
    }
    if (database.frozen) {
      if (database.transaction === undefined) answer({ status: -1 })
      else read()
    } else if (database.locks.enter(hash)) {
      try {
        read()
      } finally {
        database.locks.leave(hash)
      }
    } else database.locks.wait(hash, read)
  }

  // ---- the TDB's own sequence number (9.6) ---------------------------------------------------------------------

  enableSeqnum(id: number): boolean {
    const database = this.byId.get(id)
    if (database === undefined) return false
    database.tdb.enableSequence()
    if (!this.seqnums.has(database)) {
      this.seqnums.set(database, { last: database.tdb.sequenceNumber(), timer: this.watchSeqnum(database) })
    }
    return true
  }

  private watchSeqnum(database: Database): Timer {
    const intervalMs = Math.max(1, this.state.tunables.SeqnumInterval)
    return this.environment.setTimer(intervalMs, () => {
      const watch = this.seqnums.get(database)
      if (watch === undefined) return
      const now = database.tdb.sequenceNumber()
      if (now !== watch.last) {
        watch.last = now
        const { opcode, request } = controls.UPDATE_SEQNUM
        this.router.sendControl(BROADCAST_ACTIVE, opcode, encode(request, database.id))
      }
      watch.timer = this.watchSeqnum(database)
    })
  }

  updateSeqnum(id: number, srcnode: number): boolean {
    if (srcnode === this.state.pnn) return true
    const database = this.byId.get(id)
    if (database === undefined || !this.isHealthy(database)) return false
    database.tdb.incrementSequence()
    const watch = this.seqnums.get(database)
    // So that it does not go back to where it came from.
    if (watch !== undefined) watch.last = database.tdb.sequenceNumber()
    return true
  }

  // ---- the rest ------------------------------------------------------------------------------------------------

  resetStatistics(): void {
    for (const database of this.byId.values()) database.resetStatistics()
  }

  close(): void {
    for (const { checking, file } of this.attaching.values()) {
      checking?.abandon()
      closeFile(file)
    }
    this.attaching.clear()
    for (const database of this.byId.values()) database.close()
    this.byId.clear()
  }
}

function closeFile({ tdb, updates }: OpenedFile): void {
  updates.close()
  tdb.close()
}

/** A name becomes a file name, and must stay in its directory. */
function isName(name: string): boolean {
  return (
    name !== "" && name !== "." && name !== ".." && !/[/\0]/.test(name) && utf8.encode(name).length <= NAME_BYTES_MAX
  )
}

function hex(id: number): string {
  return id.toString(16).padStart(8, "0")
}
