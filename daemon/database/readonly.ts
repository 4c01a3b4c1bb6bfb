// Read-only copies of records (data path page, section 6): the owner gives copies away and remembers to whom, and before
// anybody writes it takes all of them back. A revoke is a state machine of requests and locks, without a process of its own
// that could die half way; one that nobody remembers is begun again. Which calls come here is decided in calls.ts.

import { encode } from "../../lib/protocol/codec.ts"
import { RecordFlag } from "../../lib/protocol/constants.ts"
import { controls } from "../../lib/protocol/controls.ts"
import { LTDB_HEADER_SIZE } from "../../lib/protocol/structs.ts"
import { ZERO64 } from "../../lib/protocol/word64.ts"
import { TdbError } from "../../lib/tdb/tdb.ts"
import type { NodeEnvironment } from "../environment.ts"
import type { Router } from "../routing.ts"
import { isActive, type NodeState } from "../state.ts"
import type { Database } from "./database.ts"
import { type Found, fetchRecord, RecordHeader, storeRecord } from "./record.ts"

/** The owner's rsn is so much higher once copies are out (section 6). */
const DELEGATION_RSN = 3
/** Copies have that rsn less this. */
const COPY_RSN_BELOW = 2
/** A call that only wants to read waits so long after a revoke (ms), and after a failed one every call does. */
const PAUSE_MS = 1000

const HAVE_COPIES = RecordFlag.RO_HAVE_DELEGATIONS | RecordFlag.RO_HAVE_READONLY

interface Parked {
  readonly wantsReadOnly: boolean
  readonly again: () => void
}

interface Revoke {
  readonly database: Database
  readonly key: Uint8Array
  readonly name: string
  /** Of the owner's record when it began. */
  readonly header: RecordHeader
  readonly parked: Parked[]
  over: boolean
}

export class Delegations {
  /** Who has copies of a record: nodes by key, by database. */
  private readonly copies = new Map<Database, Map<string, Set<number>>>()
  private readonly revokes = new Map<Database, Map<string, Revoke>>()

  constructor(
    private readonly state: NodeState,
    private readonly environment: NodeEnvironment,
    private readonly router: Router,
  ) {}

  attached(database: Database): void {
    this.copies.set(database, new Map())
    this.revokes.set(database, new Map())
    database.onDelegationsVoid = () => this.forget(database)
  }

  detached(database: Database): void {
    this.forget(database)
    this.copies.delete(database)
    this.revokes.delete(database)
  }

  /** A recovery has made all copies void, and all revokes with them. */
  forget(database: Database): void {
    this.copies.get(database)?.clear()
    const revokes = this.revokes.get(database)
    for (const revoke of [...(revokes?.values() ?? [])]) this.release(revoke, true)
  }

  /**
   * A call has met a record with flags of this room; its chain is locked. True: the call is parked, and what `again` gives will be
   * called. False: it goes on, with `found` as it is now (5.1 rows 6 to 8, 5.2 rows 6 and 8).
   */
  meets(
    database: Database,
    key: Uint8Array,
    jenkins: number,
    found: Found,
    wantsReadOnly: boolean,
    again: () => () => void,
  ): boolean {
    const { header } = found
    if ((header.flags & RecordFlag.RO_FLAGS) === 0) return false
    if ((header.flags & RecordFlag.RO_REVOKE_COMPLETE) !== 0) {
      // Where copies were there is data now that is not readers' any more: a deletion must go there. (Stock lets it lie, and
      // the next recovery finds a record that was deleted.)
      header.flags = (header.flags & ~RecordFlag.RO_FLAGS) | RecordFlag.MIGRATED_WITH_DATA
      storeRecord(database, key, jenkins, jenkins, header, found.data)
      this.copies.get(database)?.delete(nameOf(key))
      this.state.statistics.now.totalRoRevokes++
      database.counters.dbRoRevokes++
      return false
    }
    const revoking = (header.flags & RecordFlag.RO_REVOKING_READONLY) !== 0
    if (header.dmaster !== database.pnn) return false
    if (!revoking && (wantsReadOnly || (header.flags & HAVE_COPIES) === 0)) return false
    const name = nameOf(key)
    const running = this.revokes.get(database)?.get(name)
    const parked = { wantsReadOnly, again: again() }
    if (running !== undefined) running.parked.push(parked)
    else this.revoke(database, key, jenkins, found, parked)
    return true
  }

  /** The header for a copy that goes to `pnn`, after the owner's own was changed for it; the chain is locked. */
  grant(database: Database, key: Uint8Array, jenkins: number, { header, data }: Found, pnn: number): RecordHeader {
    if ((header.flags & RecordFlag.RO_HAVE_DELEGATIONS) === 0) {
      header.addRsn(DELEGATION_RSN)
      header.flags |= RecordFlag.RO_HAVE_DELEGATIONS
      storeRecord(database, key, jenkins, jenkins, header, data)
    }
    const copies = this.copies.get(database)
    const name = nameOf(key)
    const nodes = copies?.get(name)
    if (nodes === undefined) copies?.set(name, new Set([pnn]))
    else nodes.add(pnn)
    this.state.statistics.now.totalRoDelegations++
    database.counters.dbRoDelegations++
    const copy = copyOf(header)
    subtract(copy, COPY_RSN_BELOW)
    copy.flags = (copy.flags | RecordFlag.RO_HAVE_READONLY) & ~RecordFlag.RO_HAVE_DELEGATIONS
    return copy
  }

  /** A copy has come, as an answer to a call: stored if it is newer than what is here; the chain is locked (5.7). */
  storeCopy(database: Database, key: Uint8Array, jenkins: number, value: Uint8Array): void {
    const theirs = new RecordHeader().read(value)
    const { header } = fetchRecord(database, key, jenkins, jenkins)
    if (header.dmaster === database.pnn || header.compareRsn(theirs.rsnHi, theirs.rsnLo) >= 0) return
    storeRecord(database, key, jenkins, jenkins, theirs, value.subarray(LTDB_HEADER_SIZE))
  }

  // ---- taking copies back --------------------------------------------------------------------------------------

  private revoke(database: Database, key: Uint8Array, jenkins: number, { header, data }: Found, first: Parked): void {
    header.flags |= RecordFlag.RO_REVOKING_READONLY
    storeRecord(database, key, jenkins, jenkins, header, data)
    const name = nameOf(key)
    const revoke: Revoke = {
      database,
      key: key.slice(),
      name,
      header: copyOf(header),
      parked: [first],
      over: false,
    }
    this.revokes.get(database)?.set(name, revoke)
    const newer = copyOf(header)
    subtract(newer, 1)
    newer.flags = (newer.flags & ~RecordFlag.RO_FLAGS) | RecordFlag.MIGRATED_WITH_DATA
    const value = new Uint8Array(LTDB_HEADER_SIZE + data.length)
    newer.write(value)
    value.set(data, LTDB_HEADER_SIZE)
    const { opcode, request } = controls.UPDATE_RECORD
    const buffer = encode(request, { dbId: database.id, records: [{ reqid: 0, key, data: value }] })
    const nodes = this.holders(database, name)
    let pending = nodes.length
    let failed: string | undefined
    const answered = () => {
      if (--pending > 0 || revoke.over) return
      this.lock(revoke, jenkins, () => this.complete(revoke, jenkins, failed))
    }
    for (const pnn of nodes) {
      const control = { opcode, srvid: ZERO64, clientId: 0, flags: 0, data: buffer }
      this.router.request(pnn, control, undefined, ({ status, error }) => {
        if (status !== 0) failed = `node ${pnn}: ${error || `status ${status}`}`
        answered()
      })
    }
    if (nodes.length === 0)
      this.environment.nextTurn(() => this.lock(revoke, jenkins, () => this.complete(revoke, jenkins, undefined)))
  }

  /** If it is not known who has copies, any other node may: one that has none answers that all is well. */
  private holders(database: Database, name: string): number[] {
    const known = this.copies.get(database)?.get(name)
    if (known !== undefined) return [...known].filter((pnn) => pnn !== this.state.pnn)
    return this.state.nodes.filter((node) => isActive(node) && node.pnn !== this.state.pnn).map(({ pnn }) => pnn)
  }

  private lock(revoke: Revoke, jenkins: number, locked: () => void): void {
    const { locks } = revoke.database
    if (revoke.over) return
    if (locks.enter(jenkins)) {
      try {
        locked()
      } finally {
        locks.leave(jenkins)
      }
    } else {
      locks.wait(jenkins, () => {
        if (!revoke.over && !revoke.database.closed) locked()
      })
    }
  }

  /** All have answered; the chain is locked. */
  private complete(revoke: Revoke, jenkins: number, failure: string | undefined): void {
    const { database, key } = revoke
    const revoking = RecordFlag.RO_REVOKING_READONLY | RecordFlag.RO_HAVE_DELEGATIONS
    let failed = failure
    try {
      const { header, data } = fetchRecord(database, key, jenkins, jenkins)
      const ours = header.dmaster === database.pnn && (header.flags & revoking) === revoking
      if (!ours || header.compareRsn(revoke.header.rsnHi, revoke.header.rsnLo) > 0) failed ??= "the record has changed"
      else {
        if (failed === undefined) {
          header.addRsn(1)
          header.flags |= RecordFlag.RO_REVOKE_COMPLETE
        } else header.flags &= ~RecordFlag.RO_REVOKING_READONLY
        storeRecord(database, key, jenkins, jenkins, header, data)
      }
    } catch (error) {
      if (!(error instanceof TdbError)) throw error
      failed = error.message
    }
    if (failed !== undefined) {
      this.environment.log.warning(
        `Revoke all delegations failed, retrying. database=${database.name} key=0x${jenkins.toString(16)} ${failed}`,
      )
    }
    this.release(revoke, failed === undefined)
  }

  /** Its calls go on: those that want to write first. */
  private release(revoke: Revoke, ok: boolean): void {
    if (revoke.over) return
    revoke.over = true
    this.revokes.get(revoke.database)?.delete(revoke.name)
    const now = ok ? revoke.parked.filter(({ wantsReadOnly }) => !wantsReadOnly) : []
    const later = ok ? revoke.parked.filter(({ wantsReadOnly }) => wantsReadOnly) : revoke.parked
    for (const { again } of now) this.environment.nextTurn(again)
    if (later.length === 0) return
    this.environment.setTimer(PAUSE_MS, () => {
      for (const { again } of later) again()
    })
  }
}

function nameOf(key: Uint8Array): string {
  return Buffer.from(key.buffer, key.byteOffset, key.byteLength).toString("latin1")
}

function copyOf({ rsnHi, rsnLo, dmaster, reserved, flags }: RecordHeader): RecordHeader {
  return Object.assign(new RecordHeader(), { rsnHi, rsnLo, dmaster, reserved, flags })
}

/** rsn -= count; it is never below. */
function subtract(header: RecordHeader, count: number): void {
  const lo = header.rsnLo - count
  header.rsnLo = lo >>> 0
  if (lo < 0) header.rsnHi = (header.rsnHi - 1) >>> 0
}
