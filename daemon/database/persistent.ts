// Databases whose contents all nodes have: a client's transaction is spread to the nodes (TRANS3_COMMIT), and what another
// node spreads is taken in (UPDATE_RECORD), by data path page 12. What is stored, and how it gets to the disk, is in update.ts
// and commits.ts. Nothing is acknowledged that is not on the disk of every node that counts; what went wrong on some of them
// is put right by a recovery.

import type { Timer } from "../../lib/net/ports.ts"
import { decode } from "../../lib/protocol/codec.ts"
import { RecordFlag, RecoveryMode } from "../../lib/protocol/constants.ts"
import { controls } from "../../lib/protocol/controls.ts"
import { readU32 } from "../../lib/protocol/header.ts"
import {
  LTDB_HEADER_SIZE,
  type PushRecordData,
  type RecBuffer,
  type RecData,
  recBuffer,
} from "../../lib/protocol/structs.ts"
import { ZERO64 } from "../../lib/protocol/word64.ts"
import { TdbError } from "../../lib/tdb/tdb.ts"
import type { NodeEnvironment } from "../environment.ts"
import type { Answer, ControlAnswer, LocalClient, Router } from "../routing.ts"
import { isActive, type NodeState } from "../state.ts"
import { addLatency } from "../statistics.ts"
import type { Database } from "./database.ts"
import type { UpdateResult } from "./files.ts"
import { keyHash, RecordHeader, storedHeader, storeRecord } from "./record.ts"
import type { Databases } from "./registry.ts"
import { isOlder, olderThan, sameData, wrongRecords } from "./update.ts"

/** Status of an UPDATE_RECORD that was refused or failed: nothing of it was stored (12.3). */
const NOT_STORED = 1
/** Statuses of TRANS3_COMMIT (12.2). */
const TIMED_OUT = 1
const ENDED_BY_RECOVERY = 2
/**
 * A commit that no node has stored is answered after this time (ms): stock clients send it again at once, and go on so for
 * as long as a disk is full.
 */
const REFUSAL_MS = 1000
/** How often a commit whose time is over looks whether the recovery that will end it has ended (ms). */
const LATE_LOOK_MS = 1000
/** Beginning of the mark of a database that can be used again as soon as there is space. */
const FULL = "WARNING - no space on the disk: "

interface Commit {
  readonly database: Database
  readonly client: LocalClient
  readonly answer: Answer
  /** Of the recovery before it: when it is another one, the recovery has decided what became of it. */
  readonly generation: number
  /** Nodes that have not answered. */
  pending: number
  stored: number
  /** Node and text of those that certainly have not stored it. */
  readonly refusals: string[]
  recoveryAsked: boolean
  timer: Timer
}

export class Persistent {
  private readonly commits = new Map<Database, Commit>()

  constructor(
    private readonly state: NodeState,
    private readonly environment: NodeEnvironment,
    private readonly router: Router,
    private readonly databases: Databases,
    private readonly askForRecovery: (reason: string) => void,
  ) {}

  // ---- TRANS3_COMMIT -------------------------------------------------------------------------------------------

  /** `bytes` is the request as it came; it is valid only during the call. */
  commit(request: RecBuffer, bytes: Uint8Array, client: LocalClient | undefined, answer: Answer): void {
    const { environment, state } = this
    const database = this.databases.get(request.dbId)
    const refusal = this.refusesCommit(request, database, client)
    if (refusal !== undefined || database === undefined || client === undefined) {
      environment.log.error(`TRANS3_COMMIT refused: ${refusal}`)
      answer({ status: -1 })
      return
    }
    const nodes = new Set(
      state.vnnMap.filter((pnn) => pnn !== state.pnn && isActive(state.nodes[pnn] ?? { flags: -1 })),
    )
    const commit: Commit = {
      database,
      client,
      answer,
      generation: state.generation,
      pending: nodes.size + 1,
      stored: 0,
      refusals: [],
      recoveryAsked: false,
      timer: this.startTimer(() => this.timedOut(commit)),
    }
    this.commits.set(database, commit)
    const data = bytes.slice()
    const { opcode } = controls.UPDATE_RECORD
    // The others first: their disks work while this one's does.
    for (const pnn of nodes) {
      this.router.request(pnn, { opcode, srvid: ZERO64, clientId: 0, flags: 0, data }, undefined, (reply) =>
        this.answered(commit, pnn, reply),
      )
    }
    // What this node refuses before it begins it certainly has not stored; of others that can't be told from their status.
    const own = this.refusesUpdate(request, database)
    if (own === undefined) this.update(data, (reply) => this.answered(commit, state.pnn, reply))
    else environment.nextTurn(() => this.answered(commit, state.pnn, { status: NOT_STORED, error: own }))
  }

  private refusesCommit(
    request: RecBuffer,
    database: Database | undefined,
    client: LocalClient | undefined,
  ): string | undefined {
    if (this.state.recoveryMode !== RecoveryMode.NORMAL) return "recovery is active"
    if (client === undefined) return "not from a client of this node"
    for (const commit of this.commits.values()) {
      if (commit.client === client) return `this client has one under way, for ${commit.database.name}`
    }
    if (database === undefined) return `database 0x${request.dbId.toString(16).padStart(8, "0")} is not attached`
    if (this.commits.has(database)) return `another client has one under way for ${database.name}`
    return wrongRecords(request)
  }

  private answered(commit: Commit, pnn: number, { status, error }: ControlAnswer): void {
    if (this.commits.get(commit.database) !== commit || this.isRecoveries(commit)) return
    commit.pending--
    if (status === 0) commit.stored++
    else {
      const text = `node ${pnn}: ${error === undefined || error === "" ? `status ${status}` : error}`
      if (status === NOT_STORED) commit.refusals.push(text)
      else this.recover(commit, text)
    }
    if (commit.stored > 0 && commit.refusals.length > 0) this.recover(commit, commit.refusals.join(", "))
    if (commit.pending > 0 || commit.recoveryAsked) return
    if (commit.refusals.length === 0) this.finish(commit, { status: 0 })
    else this.refused(commit)
  }

  /** A recovery has begun since, or is over: what it finds counts, not what nodes had answered before. */
  private isRecoveries(commit: Commit): boolean {
    return this.state.recoveryMode !== RecoveryMode.NORMAL || this.state.generation !== commit.generation
  }

  /** Some nodes may have stored it and some have not: only a recovery makes them equal. */
  private recover(commit: Commit, why: string): void {
    if (commit.recoveryAsked) return
    commit.recoveryAsked = true
    this.askForRecovery(`Commit of database ${commit.database.name} failed on ${why}`)
  }

  /** No node has stored it: nothing to recover from, and nothing to hope for from a recovery. */
  private refused(commit: Commit): void {
    commit.timer.cancel()
    const error = `no node has stored it: ${commit.refusals.join(", ")}`
    this.environment.log.error(`Commit of database ${commit.database.name} failed, ${error}`)
    commit.timer = this.environment.setTimer(REFUSAL_MS, () => this.finish(commit, { status: -1, error }))
  }

  private finish(commit: Commit, result: ControlAnswer): void {
    if (this.commits.get(commit.database) !== commit) return
    commit.timer.cancel()
    this.commits.delete(commit.database)
    commit.answer(result)
  }

  private timedOut(commit: Commit): void {
    if (this.state.recoveryMode !== RecoveryMode.NORMAL || commit.recoveryAsked) {
      commit.timer = this.environment.setTimer(LATE_LOOK_MS, () => this.timedOut(commit))
    } else if (this.state.generation !== commit.generation) this.endByRecovery(commit)
    else this.finish(commit, { status: TIMED_OUT, error: "timeout in ctdb_persistent_state" })
  }

  private startTimer(over: () => void): Timer {
    const timeoutS = this.state.tunables.ControlTimeout
    return this.environment.setTimer(timeoutS === 0 ? 0x7fffffff : timeoutS * 1000, over)
  }

  /** END_RECOVERY: the recovery has decided on all commits that were under way when it began. */
  recoveryEnded(): void {
    if (this.state.recoveryMode !== RecoveryMode.NORMAL) return
    for (const commit of [...this.commits.values()]) {
      if (commit.generation !== this.state.generation) this.endByRecovery(commit)
    }
  }

  private endByRecovery(commit: Commit): void {
    this.finish(commit, { status: ENDED_BY_RECOVERY, error: "trans3 commit ended by recovery" })
  }

  clientGone(client: LocalClient): void {
    for (const commit of [...this.commits.values()]) {
      if (commit.client !== client) continue
      commit.timer.cancel()
      this.commits.delete(commit.database)
      this.askForRecovery("client exit while transaction commit active. Forcing recovery")
    }
  }

  // ---- UPDATE_RECORD -------------------------------------------------------------------------------------------

  /** Answers UPDATE_RECORD; `bytes` is the request as it came, valid only during the call. */
  updateRecord(bytes: Uint8Array, answer: Answer): void {
    const own = bytes.slice()
    // The node that commits may have attached the database before this one: its file is checked first.
    if (own.length < 4) this.update(own, answer)
    else this.databases.whenAttached(readU32(own, 0), () => this.update(own, answer))
  }

  private update(bytes: Uint8Array, answer: Answer): void {
    const { environment, state } = this
    const request = decode(recBuffer, bytes)
    const database = this.databases.get(request.dbId)
    const refusal = this.refusesUpdate(request, database)
    if (refusal !== undefined || database === undefined) {
      environment.log.error(`UPDATE_RECORD refused: ${refusal}`)
      answer(refusal === undefined ? { status: -1 } : { status: -1, error: refusal })
      return
    }
    state.statistics.now.childwriteCalls++
    state.statistics.now.pendingChildwriteCalls++
    const sinceMs = environment.monotonicMs()
    let over = false
    const finish = (result: ControlAnswer) => {
      if (over) return
      over = true
      timer.cancel()
      const counters = state.statistics.now
      counters.pendingChildwriteCalls = Math.max(0, counters.pendingChildwriteCalls - 1)
      addLatency(counters.childwriteLatency, (environment.monotonicMs() - sinceMs) / 1000)
      answer(result)
    }
    const timer = this.startTimer(() => {
      cancel()
      finish({ status: -1, error: "timeout in ctdb_persistent_lock" })
    })
    const cancel = database.volatile
      ? this.updateVolatile(database, request.records, finish)
      : database.updates.apply(bytes, (result) => this.written(database, result, finish))
  }

  private refusesUpdate(request: RecBuffer, database: Database | undefined): string | undefined {
    if (this.state.recoveryMode !== RecoveryMode.NORMAL) return "recovery is active"
    if (database === undefined) return `database 0x${request.dbId.toString(16).padStart(8, "0")} is not attached`
    const unhealthy = this.databases.healthReason(database.id)
    if (typeof unhealthy === "string" && !unhealthy.startsWith(FULL)) {
      return `database ${database.name} is unhealthy: ${unhealthy}`
    }
    return wrongRecords(request)
  }

  /** Answers when what the outcome says of the database is noted. */
  private written(
    database: Database,
    { outcome, reason }: UpdateResult,
    answer: (result: ControlAnswer) => void,
  ): void {
    const { databases, environment } = this
    const failed = () => answer({ status: NOT_STORED, error: reason })
    if (outcome !== "applied") environment.log.error(`Update of database ${database.name}: ${reason}`)
    switch (outcome) {
      case "applied":
        if (databases.healthReason(database.id)?.startsWith(FULL)) databases.setHealthy(database.id)
        answer({ status: 0 })
        break
      case "dropped":
        answer({ status: -1, error: reason })
        break
      case "refused":
        failed()
        break
      case "full":
        databases.setUnhealthy(database, `${FULL}${reason}`, failed)
        break
      case "broken":
        databases.setUnhealthy(database, `ERROR - write failed: ${reason}`, failed)
        break
      case "damaged":
        databases.damaged(database, reason, failed)
    }
  }

  /**
   * Records of a volatile database, which only copies of them get (a revoked delegation is spread like this): one after the
   * other, each under its chain's lock.
   */
  private updateVolatile(
    database: Database,
    records: readonly RecData[],
    finish: (result: ControlAnswer) => void,
  ): () => void {
    let cancelled = false
    let next = 0
    const step = (locked: boolean): void => {
      for (; next < records.length; next++, locked = false) {
        const { key, data } = records[next]!
        const jenkins = keyHash(key)
        if (!locked && !database.locks.enter(jenkins)) {
          database.locks.wait(jenkins, () => {
            if (!cancelled) step(true)
          })
          return
        }
        let refused: string | undefined
        try {
          refused = replaceCopy(database, key, jenkins, data)
        } catch (error) {
          if (!(error instanceof TdbError)) throw error
          refused = error.message
        } finally {
          if (!locked) database.locks.leave(jenkins)
        }
        if (refused !== undefined) {
          this.environment.log.error(`Update of database ${database.name}: ${refused}`)
          finish({ status: NOT_STORED, error: refused })
          return
        }
      }
      finish({ status: 0 })
    }
    this.environment.nextTurn(() => {
      if (!cancelled) step(false)
    })
    return () => {
      cancelled = true
    }
  }

  // ---- PUSH_RECORD ---------------------------------------------------------------------------------------------

  /**
   * PUSH_RECORD: a copy of a volatile record that is to survive its owner (12.4). A copy that is newer stays, which a stock node
   * would overwrite. Valid only during the call.
   */
  pushRecord({ generation, dbId, hdr, key, value }: PushRecordData, answer: Answer): void {
    const database = this.databases.get(dbId)
    if (database === undefined || !database.volatile || key.length === 0) {
      answer({ status: -1 })
      return
    }
    if (generation !== this.state.generation || hdr.dmaster === this.state.pnn) {
      answer({ status: 0 })
      return
    }
    const header = new RecordHeader()
    header.rsnHi = hdr.rsn.hi
    header.rsnLo = hdr.rsn.lo
    header.dmaster = hdr.dmaster
    header.flags = hdr.flags | RecordFlag.MIGRATED_WITH_DATA
    const jenkins = keyHash(key)
    const store = (ownKey: Uint8Array, data: Uint8Array): void => {
      const local = storedHeader(database.tdb, ownKey, jenkins)
      const newer =
        local !== undefined && (local.dmaster === database.pnn || local.compareRsn(header.rsnHi, header.rsnLo) > 0)
      if (newer || database.closed || database.generation !== generation) answer({ status: 0 })
      else {
        try {
          storeRecord(database, ownKey, jenkins, jenkins, header, data)
        } catch (error) {
          if (!(error instanceof TdbError)) throw error
          answer({ status: -1, error: error.message })
          return
        }
        database.updates.sync(({ outcome, reason }) =>
          answer(outcome === "applied" ? { status: 0 } : { status: -1, error: reason }),
        )
      }
    }
    if (database.locks.enter(jenkins)) {
      try {
        store(key, value)
      } finally {
        database.locks.leave(jenkins)
      }
      return
    }
    const ownKey = key.slice()
    const data = value.slice()
    database.locks.wait(jenkins, () => store(ownKey, data))
  }
}

const ours = new RecordHeader()

/**
 * A newer record takes the place of the copy that is here; where there is none, none is made (12.3). One that is not newer, with the same
 * data, was late: from before a recovery, if a link was slow. A stock node takes its header, and with it an owner of the past; here it
 * only ends what readers have.
 */
function replaceCopy(database: Database, key: Uint8Array, jenkins: number, data: Uint8Array): string | undefined {
  const theirs = new RecordHeader().read(data)
  const value = database.tdb.fetch(key, jenkins)
  if (value === null || value.length === 0) return undefined
  if (value.length >= LTDB_HEADER_SIZE) {
    ours.read(value)
    if (isOlder(ours, theirs)) {
      if (!sameData(value, 0, value.length, data)) return olderThan(ours, theirs)
      if ((ours.flags & RecordFlag.RO_HAVE_READONLY) === 0) return undefined
      ours.flags = (ours.flags & ~RecordFlag.RO_FLAGS) | RecordFlag.MIGRATED_WITH_DATA
      ours.write(value)
      database.tdb.store(key, value)
      return undefined
    }
  }
  const { tdb, volatile, pnn } = database
  const store = { tdb, volatile, pnn, lmasterOf: (hash: number) => database.lmasterOf(hash), deletions: undefined }
  storeRecord(store, key, jenkins, jenkins, theirs, data.subarray(LTDB_HEADER_SIZE))
  return undefined
}
