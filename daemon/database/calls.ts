// How records move to where they are used: the state machine of REQ_CALL, REQ_DMASTER, REPLY_DMASTER, REPLY_CALL and
// REPLY_ERROR (data path page, section 5). Each step is one function that runs under the lock of the record's chain, decides
// and acts in one go, and waits for nothing. What is between two steps is in the packets, and in the table of calls that
// wait for a record.
//
// Where a stock node dies of a packet, forgets a caller, or overwrites newer data, this one asks for a recovery, which puts
// every record right; each such place says so.

import { Priority } from "../../lib/net/ports.ts"
import { ProtocolError } from "../../lib/protocol/codec.ts"
import { CallFlag, CallId, DbFlag, NodeFlag, RecordFlag, RecoveryMode } from "../../lib/protocol/constants.ts"
import { putDestnode, putHopcount } from "../../lib/protocol/header.ts"
import {
  decodePacket,
  encodePacket,
  Operation,
  type Packet,
  type ReplyDmaster,
  type ReqCall,
  type ReqDmaster,
} from "../../lib/protocol/packet.ts"
import { LTDB_HEADER_SIZE } from "../../lib/protocol/structs.ts"
import { TdbError } from "../../lib/tdb/tdb.ts"
import type { NodeEnvironment } from "../environment.ts"
import type { IdTable } from "../ids.ts"
import type { IdEntry, LocalClient, PendingRecordCall, RecordTraffic, Router } from "../routing.ts"
import { isActive, type NodeState } from "../state.ts"
import { addLatency, hopBucket } from "../statistics.ts"
import type { Collapse } from "./collapse.ts"
import type { Database } from "./database.ts"
import type { Delegations } from "./readonly.ts"
import { decide, type Found, fetchRecord, keyHash, RecordHeader, settle, storedHeader, storeRecord } from "./record.ts"
import type { Sticky } from "./sticky.ts"

/** Requests that may wait for locks of one database; the next ones are refused. */
const WAITING_MAX = 1_000_000
/** Calls that wait for the link to one node; what is more waits for a recovery. */
const UNSENT_MAX = 100_000
/** A call that was sent on so often goes round between nodes that each name the other: the record has no owner. */
const HOPS_MAX = 2000
/** In a hundred hops, those for which a call is reported (5.3). */
const HOPS_REPORTED = 95

const NO_DATA = new Uint8Array(0)
const CALL_FAILED = -1

/** A call as a client of this node made it. */
export interface ClientCall {
  readonly database: Database
  readonly client: LocalClient
  /** The client's own. */
  readonly reqid: number
  readonly flags: number
  readonly callid: number
  readonly key: Uint8Array
  readonly data: Uint8Array
  readonly jenkins: number
  /** The hash by which the file places the key. */
  readonly hash: number
  readonly sinceMs: number
}

/** A call of a client that waits for its record to come to this node. */
interface PendingCall extends PendingRecordCall {
  readonly call: ClientCall
  /** A read-only copy will do. */
  readonly readOnly: boolean
  reqid: number
}

/** A packet about one record. */
type RecordPacket = ReqCall | ReqDmaster | ReplyDmaster

export class Calls implements RecordTraffic {
  private readonly pending = new Map<Database, Set<PendingCall>>()
  /** Databases in use again while the recovery goes on with others. */
  private readonly thawed = new Set<Database>()
  /** Why one more recovery has to follow the one under way. */
  private owed: string | undefined
  /** REQ_CALLs that had to go to a node without a link, by its number. */
  private readonly unsent = new Map<number, Uint8Array[]>()

  constructor(
    private readonly state: NodeState,
    private readonly environment: NodeEnvironment,
    private readonly router: Router,
    private readonly ids: IdTable<IdEntry>,
    private readonly find: (dbId: number) => Database | undefined,
    private readonly askForRecovery: (reason: string) => void,
    private readonly delegations: Delegations,
    private readonly sticky: Sticky,
    private readonly collapse: Collapse,
  ) {}

  attached(database: Database): void {
    this.pending.set(database, new Set())
    database.onThaw = () => this.resend(database)
  }

  /** Whoever waits for a record of the database is told that it won't come. */
  detached(database: Database): void {
    for (const pending of this.pending.get(database) ?? []) this.complete(pending, CALL_FAILED, NO_DATA)
    this.pending.delete(database)
    this.thawed.delete(database)
  }

  /**
   * A link to an active node has broken, and record packets may have been lost with it, a record's only naming of its owner
   * among them. If the node is back before the leader notices, nobody else would put that right.
   */
  nodeLost(pnn: number): void {
    const volatile = [...this.pending.keys()].some((database) => database.volatile)
    if (volatile) this.needRecovery(`link to node ${pnn} has broken`)
  }

  /** The link to a node stands again: what could not be sent to it goes now, as far as it still means something. */
  nodeConnected(pnn: number): void {
    const packets = this.unsent.get(pnn) ?? []
    this.unsent.delete(pnn)
    for (const bytes of packets) this.environment.nextTurn(() => this.receive(bytes))
  }

  /**
   * A call can't go where it has to. A stock node forgets it, and the caller waits for the next recovery, which nobody need
   * have: it is served anew when the link stands.
   */
  private keepUnsent(pnn: number, bytes: Uint8Array): void {
    const packets = this.unsent.get(pnn)
    if (packets === undefined) this.unsent.set(pnn, [bytes.slice()])
    else if (packets.length < UNSENT_MAX) packets.push(bytes.slice())
  }

  /** Calls that wait for records of that database. */
  pendingCount(database: Database): number {
    return this.pending.get(database)?.size ?? 0
  }

  private needRecovery(reason: string): void {
    if (!isActive(this.state.self)) return
    if (this.state.recoveryMode === RecoveryMode.NORMAL) this.askForRecovery(reason)
    // The recovery under way is over for some databases, and can't put right what goes wrong with their records now.
    else if ([...this.thawed].some((database) => !database.frozen)) this.owed ??= reason
  }

  /** Recovery mode is NORMAL again. */
  recovered(): void {
    const { owed } = this
    this.thawed.clear()
    this.owed = undefined
    if (owed !== undefined) this.needRecovery(owed)
  }

  // ---- calls of clients (5.1) ----------------------------------------------------------------------------------

  callFromClient(packet: ReqCall, client: LocalClient): void {
    const { now } = this.state.statistics
    now.totalCalls++
    now.pendingCalls++
    const database = this.find(packet.dbId)
    const call = this.callOf(packet, database, client)
    if (database === undefined || call === undefined || database.locks.waitingCount >= WAITING_MAX) {
      // A stock node says nothing, and the client waits for ever.
      const why = database === undefined ? "unknown database" : call === undefined ? "empty key" : "too many calls wait"
      this.environment.log.error(`Call from client refused, db_id==0x${hex(packet.dbId)}: ${why}`)
      now.pendingCalls--
      this.reply(client, packet.reqid, CALL_FAILED, NO_DATA)
      return
    }
    this.begin(call)
  }

  private begin(call: ClientCall): void {
    const { locks } = call.database
    if (locks.enter(call.hash)) {
      try {
        this.serveClient(call)
      } finally {
        locks.leave(call.hash)
      }
      return
    }
    const parked = kept(call)
    locks.wait(call.hash, () => this.goOn(parked, () => this.serveClient(parked)))
  }

  /** A call that has waited, if anybody still waits for it. */
  private goOn(call: ClientCall, go: () => void): void {
    if (!this.isHere(call.client)) this.state.statistics.now.pendingCalls--
    else if (call.database.closed) this.answer(call, CALL_FAILED, NO_DATA)
    else go()
  }

  /** A client has gone: what waits behind its calls goes on by itself. */
  clientGone(client: LocalClient): void {
    for (const [database, pending] of this.pending) {
      for (const { call } of pending)
        if (call.client === client) this.collapse.release(database, call.key, call.jenkins)
    }
  }

  private callOf(packet: ReqCall, database: Database | undefined, client: LocalClient): ClientCall | undefined {
    const { key, data, reqid, flags, callid } = packet
    if (database === undefined || key.length === 0) return undefined
    const jenkins = keyHash(key)
    const hash = database.volatile ? jenkins : database.tdb.hash(key)
    const sinceMs = this.environment.monotonicMs()
    return { database, client, reqid, flags, callid, key, data, jenkins, hash, sinceMs }
  }

  private isHere(client: LocalClient): boolean {
    const entry = this.ids.get(client.id)
    return entry?.kind === "client" && entry.client === client
  }

  /** The chain is locked. */
  private serveClient(call: ClientCall): void {
    const { database } = call
    let found: Found
    try {
      found = fetchRecord(database, call.key, call.jenkins, call.hash)
    } catch (error) {
      if (!(error instanceof TdbError)) throw error
      this.environment.log.error(`Record of database ${database.name} can't be read: ${error.message}`)
      this.answer(call, CALL_FAILED, NO_DATA)
      return
    }
    const again = () => {
      const parked = kept(call)
      return () => this.goOn(parked, () => this.begin(parked))
    }
    const collapses = this.state.tunables.FetchCollapse === 1
    if (collapses && this.collapse.has(database, call.key, call.jenkins)) {
      this.collapse.join(database, call.key, call.jenkins, again())
      return
    }
    const readOnly = wantsReadOnly(database, call.flags)
    const { key, jenkins } = call
    if (this.delegations.meets(database, key, jenkins, found, readOnly, again)) return
    if (found.header.dmaster === database.pnn) {
      const callid = readOnly ? CallId.FETCH_WITH_HEADER : call.callid
      const reply = this.runLocally(database, { ...call, callid }, found)
      this.answer(call, 0, readOnly ? asAskedFor(call, reply) : reply)
      return
    }
    const sent = kept(call)
    if (collapses) this.collapse.begin(database, sent.key, jenkins)
    this.sendCall(sent, found.header.dmaster, readOnly)
  }

  /** Asks the node that the local copy names for the record; it may know better by now. The call is this room's own. */
  private sendCall(call: ClientCall, destnode: number, readOnly: boolean): void {
    const { database } = call
    const pending: PendingCall = { kind: "call", call, readOnly, reqid: 0 }
    pending.reqid = this.ids.add(pending)
    this.pending.get(database)?.add(pending)
    const bytes = encodePacket(this.requestOf(pending, destnode), "daemon")
    // A link that comes up would find the record's way here from the beginning.
    if (!this.router.send(bytes, Priority.RECORD)) this.keepUnsent(destnode, bytes)
    this.checkOwner(database, destnode)
  }

  private requestOf(pending: PendingCall, destnode: number): ReqCall {
    const { call, reqid, readOnly } = pending
    const { database, key, data } = call
    const flags = readOnly ? call.flags : call.flags & ~CallFlag.WANT_READONLY
    const callid = functionOf(pending)
    return {
      operation: Operation.REQ_CALL,
      generation: database.generation,
      destnode,
      srcnode: this.state.pnn,
      reqid,
      flags,
      dbId: database.id,
      callid,
      hopcount: 0,
      key,
      data,
    }
  }

  /**
   * Runs a call's function on a record that this node owns (4.5), and gives its reply. A stock node writes the record back
   * each time; that only counts where the record has just come into being.
   */
  private runLocally(database: Database, call: Pick<ClientCall, "callid" | "key" | "jenkins" | "hash">, found: Found) {
    const { header, data } = found
    const reply = resultOf(call.callid, header, data)
    if (reply === undefined) return NO_DATA
    if (!found.stored && database.volatile) storeRecord(database, call.key, call.jenkins, call.hash, header, data)
    else if (database.volatile && data.length === 0 && (header.flags & RecordFlag.RO_FLAGS) === 0) {
      database.deletions?.schedule(call.hash, call.key, header)
    }
    return reply
  }

  private answer(call: ClientCall, status: number, data: Uint8Array): void {
    const { now } = this.state.statistics
    now.pendingCalls--
    const seconds = (this.environment.monotonicMs() - call.sinceMs) / 1000
    addLatency(now.callLatency, seconds)
    const limitMs = this.state.tunables.LogLatencyMs
    if (limitMs !== 0 && seconds * 1000 > limitMs) {
      const operation = `call_from_client_cb ${status === 0 ? 3 : 1}`
      this.environment.log.warning(
        `High latency ${seconds.toFixed(6)}s for operation ${operation} on database ${call.database.name}`,
      )
    }
    if (this.isHere(call.client)) this.reply(call.client, call.reqid, status, data)
  }

  private reply(client: LocalClient, reqid: number, status: number, data: Uint8Array): void {
    client.send(encodePacket(this.router.packet(Operation.REPLY_CALL, 0, { status, data }, reqid), "daemon"))
  }

  /** A pending call has its result. */
  private complete(pending: PendingCall, status: number, data: Uint8Array): void {
    this.ids.remove(pending.reqid)
    const { call } = pending
    this.pending.get(call.database)?.delete(pending)
    this.collapse.release(call.database, call.key, call.jenkins)
    this.answer(call, status, pending.readOnly ? asAskedFor(call, data) : data)
  }

  private pendingOf(reqid: number): PendingCall | undefined {
    const entry = this.ids.get(reqid)
    // Every entry of that kind was made here; the table knows less of it.
    return entry?.kind === "call" ? (entry as PendingCall) : undefined
  }

  /** The database may be used again, possibly in another generation: all that wait for a record ask once more (5.9). */
  private resend(database: Database): void {
    if (this.state.recoveryMode === RecoveryMode.ACTIVE) this.thawed.add(database)
    const all = [...(this.pending.get(database) ?? [])]
    let count = 0
    for (const pending of all) {
      this.ids.remove(pending.reqid)
      if (!this.isHere(pending.call.client)) {
        this.pending.get(database)?.delete(pending)
        this.state.statistics.now.pendingCalls--
        continue
      }
      pending.reqid = this.ids.add(pending)
      this.send(this.requestOf(pending, this.state.pnn))
      count++
    }
    if (count === 0) return
    this.environment.log.notice(
      `Resent calls for database=${database.name}, generation=${database.generation}, count=${count}`,
    )
  }

  // ---- packets of nodes ----------------------------------------------------------------------------------------

  receive(bytes: Uint8Array): void {
    let packet: Packet
    try {
      packet = decodePacket(bytes)
    } catch (error) {
      if (!(error instanceof ProtocolError)) throw error
      this.router.complaints.add("record packet", `Invalid record packet dropped: ${error.message}`)
      return
    }
    switch (packet.operation) {
      case Operation.REQ_CALL:
      case Operation.REQ_DMASTER:
      case Operation.REPLY_DMASTER:
        this.receiveRecord(packet, bytes)
        return
      case Operation.REPLY_CALL: {
        const pending = this.pendingOf(packet.reqid)
        if (pending === undefined) this.environment.log.debug(`reqid ${packet.reqid} not found`)
        else this.replied(pending, packet.status, packet.data.slice())
        return
      }
      case Operation.REPLY_ERROR: {
        const pending = this.pendingOf(packet.reqid)
        this.router.complaints.add(
          `refusal of ${packet.srcnode}`,
          `Node ${packet.srcnode} refused call ${packet.reqid}: ${packet.message}`,
        )
        // A stock node leaves the client without an answer.
        if (pending !== undefined) this.complete(pending, CALL_FAILED, NO_DATA)
        return
      }
      default:
        return
    }
  }

  /** A copy that came with the answer is for the clients that look into the file themselves (5.7). */
  private replied(pending: PendingCall, status: number, data: Uint8Array): void {
    const { database, key, jenkins, hash } = pending.call
    const isCopy =
      pending.readOnly &&
      data.length >= LTDB_HEADER_SIZE &&
      (new RecordHeader().read(data).flags & RecordFlag.RO_HAVE_READONLY) !== 0
    if (!isCopy) {
      this.complete(pending, status, data)
      return
    }
    const { generation } = database
    const { reqid } = pending
    const store = () => {
      // A recovery has made it void, and has sent the call anew.
      if (database.closed || database.generation !== generation || pending.reqid !== reqid) return
      this.delegations.storeCopy(database, key, jenkins, data)
      this.complete(pending, status, data)
    }
    if (!database.locks.enter(hash)) {
      database.locks.wait(hash, store)
      return
    }
    try {
      store()
    } finally {
      database.locks.leave(hash)
    }
  }

  private receiveRecord(packet: RecordPacket, bytes: Uint8Array): void {
    const database = this.find(packet.dbId)
    if (database === undefined) {
      this.refuseUnknown(packet)
      return
    }
    const { key } = packet
    if (key.length === 0) {
      this.environment.log.error(`Record packet without a key from node ${packet.srcnode} dropped`)
      return
    }
    const jenkins = keyHash(key)
    const hash = database.volatile ? jenkins : database.tdb.hash(key)
    if (database.locks.enter(hash)) {
      try {
        this.serve(database, packet, bytes, jenkins, hash)
      } finally {
        database.locks.leave(hash)
      }
      return
    }
    // Only a call can be asked again; whatever carries a record must not be lost.
    if (packet.operation === Operation.REQ_CALL && database.locks.waitingCount >= WAITING_MAX) {
      this.sendError(packet.srcnode, packet.reqid, `Too many calls wait for database ${database.name}`)
      return
    }
    const copy = bytes.slice()
    const parked = decodePacket(copy) as RecordPacket
    database.locks.wait(hash, () => {
      if (database.closed) this.refuseUnknown(parked)
      else this.serve(database, parked, copy, jenkins, hash)
    })
  }

  /** The chain is locked. Packets that waited through a recovery belong to the past (5.9). */
  private serve(database: Database, packet: RecordPacket, bytes: Uint8Array, jenkins: number, hash: number): void {
    if (packet.generation !== database.generation) {
      this.environment.log.debug("Discarding previous generation packet")
      return
    }
    switch (packet.operation) {
      case Operation.REQ_CALL:
        this.serveNode(database, packet, bytes, jenkins, hash)
        return
      case Operation.REQ_DMASTER:
        this.passOn(database, packet, jenkins, hash)
        return
      case Operation.REPLY_DMASTER:
        this.take(database, packet, packet.recordFlags, jenkins, hash)
        return
    }
  }

  private refuseUnknown(packet: RecordPacket): void {
    const text = `Unknown database in request. db_id==0x${hex(packet.dbId)}`
    this.environment.log.error(`${text} (from node ${packet.srcnode})`)
    if (packet.operation !== Operation.REPLY_DMASTER) this.sendError(packet.srcnode, packet.reqid, text)
    // The packet carried a record, which has no owner now. The recovery attaches the database here, too.
    if (packet.operation !== Operation.REQ_CALL) this.needRecovery("a record of an unknown database has lost its owner")
  }

  private sendError(destnode: number, reqid: number, message: string): void {
    const body = { status: -1, message }
    this.router.send(
      encodePacket(this.router.packet(Operation.REPLY_ERROR, destnode, body, reqid), "daemon"),
      Priority.RECORD,
    )
  }

  private send(packet: ReqCall | ReqDmaster | ReplyDmaster): boolean {
    return this.router.send(encodePacket(packet, "daemon"), Priority.RECORD)
  }

  // ---- REQ_CALL (5.2) ------------------------------------------------------------------------------------------

  private serveNode(database: Database, packet: ReqCall, bytes: Uint8Array, jenkins: number, hash: number): void {
    const requester = packet.srcnode
    const again = () => {
      const copy = bytes.slice()
      return () => this.receive(copy)
    }
    if (this.sticky.holdsUp(database, packet.key, again)) return
    let found: Found
    try {
      found = fetchRecord(database, packet.key, jenkins, hash)
    } catch (error) {
      if (!(error instanceof TdbError)) throw error
      this.environment.log.error(`Record of database ${database.name} can't be read: ${error.message}`)
      this.sendError(requester, packet.reqid, "ltdb fetch failed in ctdb_request_call")
      return
    }
    const readOnly = wantsReadOnly(database, packet.flags)
    if (this.delegations.meets(database, packet.key, jenkins, found, readOnly, again)) return
    if (found.header.dmaster !== database.pnn) {
      this.redirect(database, packet, bytes, jenkins, found.header.dmaster)
      return
    }
    if (readOnly && packet.callid === CallId.FETCH_WITH_HEADER && requester !== database.pnn) {
      this.delegate(database, packet, bytes, found, jenkins)
      return
    }
    this.countHops(database, packet.hopcount)
    if ((database.properties & DbFlag.STICKY) !== 0) {
      this.sticky.served(database, packet.key, jenkins, packet.hopcount)
    }
    if (requester !== database.pnn) {
      this.handOver(database, packet, bytes, found, jenkins, hash)
      return
    }
    const pending = this.pendingOf(packet.reqid)
    const data = this.runLocally(database, { callid: packet.callid, key: packet.key, jenkins, hash }, found)
    if (pending !== undefined) this.complete(pending, 0, data)
  }

  /** Gives the requester a copy, and stays owner (section 6). */
  private delegate(database: Database, packet: ReqCall, bytes: Uint8Array, found: Found, jenkins: number): void {
    const { srcnode: requester, reqid, key } = packet
    if (!this.isReachable(requester)) {
      this.keepUnsent(requester, bytes)
      return
    }
    const data = withHeader(this.delegations.grant(database, key, jenkins, found, requester), found.data)
    const reply = this.router.packet(Operation.REPLY_CALL, requester, { status: 0, data }, reqid)
    const sent = this.router.send(
      encodePacket({ ...reply, generation: database.generation }, "daemon"),
      Priority.RECORD,
    )
    if (!sent) this.keepUnsent(requester, bytes)
  }

  private countHops(database: Database, hops: number): void {
    const { now } = this.state.statistics
    const bucket = hopBucket(hops)
    if (hops > now.maxHopCount) now.maxHopCount = hops
    now.hopCountBucket[bucket]!++
    database.counters.hopCountBucket[bucket]!++
  }

  /** The record is elsewhere: its lmaster knows where, and on the lmaster the header says it (5.3). */
  private redirect(database: Database, packet: ReqCall, bytes: Uint8Array, jenkins: number, dmaster: number): void {
    const lmaster = database.lmasterOf(jenkins)
    const next = lmaster === database.pnn ? dmaster : lmaster
    const hops = packet.hopcount + 1
    if (hops % 100 > HOPS_REPORTED) {
      this.environment.log.warning(
        `High hopcount ${hops} dbid:0x${hex(database.id)} key:0x${hex(jenkins)} reqid=${packet.reqid} ` +
          `pnn:${database.pnn} src:${packet.srcnode} lmaster:${lmaster} header->dmaster:${dmaster} dst:${next}`,
      )
    }
    if (hops > HOPS_MAX) this.needRecovery(`a record of database ${database.name} has no owner`)
    const copy = bytes.slice()
    putHopcount(copy, hops)
    putDestnode(copy, next)
    if (!this.router.send(copy, Priority.RECORD)) this.keepUnsent(next, bytes)
    if (lmaster === database.pnn) this.checkOwner(database, dmaster)
  }

  /**
   * A record whose owner takes no part in the cluster stays out of reach until the next recovery: it had better come. (A node
   * that is only disconnected has brought that about already, or will be back.)
   */
  private checkOwner(database: Database, dmaster: number): void {
    const owner = this.state.nodes[dmaster]
    if (owner !== undefined && (owner.flags & (NodeFlag.BANNED | NodeFlag.STOPPED | NodeFlag.DELETED)) === 0) return
    this.needRecovery(`a record of database ${database.name} is owned by node ${dmaster}, which is not active`)
  }

  /** Gives the record to the requester (5.4): through the lmaster, which must know, or directly if this is it. */
  private handOver(
    database: Database,
    packet: ReqCall,
    bytes: Uint8Array,
    found: Found,
    jenkins: number,
    hash: number,
  ): void {
    const { header, data } = found
    const { key, srcnode: requester, reqid } = packet
    // A record sent to a node that isn't there would belong to nobody.
    if (!this.isReachable(requester)) {
      this.keepUnsent(requester, bytes)
      return
    }
    if (data.length > 0) header.flags |= RecordFlag.MIGRATED_WITH_DATA
    const lmaster = database.lmasterOf(jenkins)
    const flags = header.flags & ~(RecordFlag.AUTOMATIC | RecordFlag.VACUUM_MIGRATED)
    const common = {
      generation: database.generation,
      srcnode: database.pnn,
      reqid,
      dbId: database.id,
      recordFlags: flags,
    }
    const rsn = { hi: header.rsnHi, lo: header.rsnLo }
    const sent =
      lmaster === database.pnn
        ? this.send({ operation: Operation.REPLY_DMASTER, destnode: requester, ...common, rsn, key, data })
        : this.send({
            operation: Operation.REQ_DMASTER,
            destnode: lmaster,
            dmaster: requester,
            ...common,
            rsn,
            key,
            data,
          })
    // Not on its way: it stays here.
    if (!sent) {
      this.keepUnsent(lmaster === database.pnn ? requester : lmaster, bytes)
      return
    }
    header.dmaster = requester
    storeRecord(database, key, jenkins, hash, header, data)
  }

  private isReachable(pnn: number): boolean {
    const node = this.state.nodes[pnn]
    return node !== undefined && (node.flags & (NodeFlag.DISCONNECTED | NodeFlag.DELETED)) === 0
  }

  // ---- REQ_DMASTER (5.5) ---------------------------------------------------------------------------------------

  /** At the lmaster: `old` gives the record up for another node, which may be this one. */
  private passOn(database: Database, packet: ReqDmaster, jenkins: number, hash: number): void {
    const { log } = this.environment
    const { key, data, srcnode: old, reqid } = packet
    if (database.lmasterOf(jenkins) !== database.pnn) {
      // A stock node ends here. The record lies with its old owner, and a recovery finds it.
      log.error(`ctdb_req_dmaster to non-lmaster from node ${old}, db_id==0x${hex(database.id)} key=0x${hex(jenkins)}`)
      this.needRecovery("REQ_DMASTER to a node that is not the lmaster")
      return
    }
    const { header } = fetchRecord(database, key, jenkins, hash)
    if (header.dmaster !== old) {
      log.error(
        `pnn ${database.pnn} dmaster request for new-dmaster ${packet.dmaster} from non-master ${old} ` +
          `real-dmaster=${header.dmaster} key 0x${hex(jenkins)} db 0x${hex(database.id)}`,
      )
      if (header.rsnHi !== 0 || header.rsnLo !== 0 || header.dmaster !== database.pnn) {
        this.needRecovery("ctdb_req_dmaster from non-master. Force a recovery.")
        return
      }
    }
    if (header.compareRsn(packet.rsn.hi, packet.rsn.lo) > 0) {
      // A stock node goes on, and what is newer is lost.
      log.error(`REQ_DMASTER from node ${old} is older than the copy here, key 0x${hex(jenkins)} db ${database.name}`)
      this.needRecovery("REQ_DMASTER with an old rsn")
      return
    }
    if (packet.dmaster === database.pnn) {
      this.take(database, packet, packet.recordFlags, jenkins, hash)
      return
    }
    const forward: ReplyDmaster = {
      operation: Operation.REPLY_DMASTER,
      generation: database.generation,
      destnode: packet.dmaster,
      srcnode: database.pnn,
      reqid,
      dbId: database.id,
      rsn: packet.rsn,
      recordFlags: packet.recordFlags,
      key,
      data,
    }
    header.rsnHi = packet.rsn.hi
    header.rsnLo = packet.rsn.lo
    header.flags = packet.recordFlags
    const sent = this.isReachable(packet.dmaster) && this.send(forward)
    // If the new owner can't be reached the record stays at its lmaster, instead of nowhere, until the owner can be.
    header.dmaster = sent ? packet.dmaster : database.pnn
    if (!sent) this.keepUnsent(packet.dmaster, encodePacket(callFor(packet), "daemon"))
    storeRecord(database, key, jenkins, hash, header, data)
  }

  // ---- REPLY_DMASTER, and the lmaster as new owner (5.6) -------------------------------------------------------

  /** The record is this node's from now on. */
  private take(
    database: Database,
    packet: ReqDmaster | ReplyDmaster,
    flags: number,
    jenkins: number,
    hash: number,
  ): void {
    const { log } = this.environment
    const { key, data, rsn, reqid, srcnode } = packet
    const waiting = this.pendingOf(reqid)
    const pending = waiting !== undefined && this.isFor(waiting, database, key) ? waiting : undefined
    const local = storedHeader(database.tdb, key, hash)
    const newer = local !== undefined && local.compareRsn(rsn.hi, rsn.lo) > 0
    // A read-only copy may be newer than a record that was deleted and made again: it counts for nothing.
    if (newer && (local.flags & RecordFlag.RO_HAVE_READONLY) === 0) {
      log.error(`Record from node ${srcnode} is older than the copy here, key 0x${hex(jenkins)} db ${database.name}`)
      if (local.dmaster !== database.pnn) this.needRecovery("REPLY_DMASTER with an old rsn")
      else if (pending !== undefined) {
        const found = fetchRecord(database, key, jenkins, hash)
        const call = { ...pending.call, callid: functionOf(pending) }
        this.complete(pending, 0, this.runLocally(database, call, found))
      }
      return
    }
    const header = new RecordHeader()
    header.rsnHi = rsn.hi
    header.rsnLo = rsn.lo
    header.flags = flags
    header.dmaster = database.pnn
    if (pending !== undefined && (pending.call.flags & CallFlag.VACUUM_MIGRATION) !== 0) {
      header.flags |= RecordFlag.VACUUM_MIGRATED
    }
    // A stock node stores twice, for becoming owner and for the function. The rules are applied twice; the file sees the end.
    let fate = decide(database, jenkins, header, data.length)
    if (pending === undefined) {
      settle(database, key, hash, header, data, fate)
      log.debug(`pnn ${database.pnn} Invalid reqid ${reqid} in ctdb_become_dmaster from node ${srcnode}`)
      if (waiting !== undefined) {
        log.error(
          `Got bogus DMASTER packet reqid:${reqid} from node ${srcnode}. Key does not match key held in matching idr.`,
        )
      }
      return
    }
    const reply = resultOf(functionOf(pending), header, data)
    if (reply !== undefined) fate = decide(database, jenkins, header, data.length)
    settle(database, key, hash, header, data, fate)
    if (database.volatile) database.hotKeys.count(key, jenkins, this.environment.monotonicMs())
    this.sticky.arrived(database, key)
    this.complete(pending, 0, reply ?? NO_DATA)
  }

  private isFor({ call }: PendingCall, database: Database, key: Uint8Array): boolean {
    return call.database === database && Buffer.compare(call.key, key) === 0
  }
}

/** The call that a REQ_DMASTER answers, as far as whoever hands the record over has to know it. */
function callFor({ generation, dmaster, destnode, reqid, dbId, key }: ReqDmaster): ReqCall {
  const call = { flags: 0, callid: CallId.NULL, hopcount: 1, dbId, key, data: NO_DATA }
  return { operation: Operation.REQ_CALL, generation, destnode, srcnode: dmaster, reqid, ...call }
}

/** What a call's function gives for a record; undefined for a function that there is not (4.5). */
function resultOf(callid: number, header: RecordHeader, data: Uint8Array): Uint8Array | undefined {
  switch (callid) {
    case CallId.NULL:
      return NO_DATA
    case CallId.FETCH:
      return data
    case CallId.FETCH_WITH_HEADER:
      return withHeader(header, data)
    default:
      return undefined
  }
}

function withHeader(header: RecordHeader, data: Uint8Array): Uint8Array {
  const whole = new Uint8Array(LTDB_HEADER_SIZE + data.length)
  header.write(whole)
  whole.set(data, LTDB_HEADER_SIZE)
  return whole
}

/** A read-only copy is enough, and this node gives and takes such copies of that database. */
function wantsReadOnly(database: Database, flags: number): boolean {
  return (flags & CallFlag.WANT_READONLY) !== 0 && (database.properties & DbFlag.READONLY) !== 0
}

/** Read-only calls get the record with its header, whatever the client has asked for (5.1). */
function functionOf({ call, readOnly }: PendingCall): number {
  return readOnly ? CallId.FETCH_WITH_HEADER : call.callid
}

function asAskedFor({ callid }: ClientCall, data: Uint8Array): Uint8Array {
  return callid === CallId.FETCH && data.length >= LTDB_HEADER_SIZE ? data.subarray(LTDB_HEADER_SIZE) : data
}

/** The call with key and data of its own: those of the packet are gone when its turn is over. */
function kept({ database, client, reqid, flags, callid, key, data, jenkins, hash, sinceMs }: ClientCall): ClientCall {
  const ownData = data.length === 0 ? NO_DATA : data.slice()
  return { database, client, reqid, flags, callid, key: key.slice(), data: ownData, jenkins, hash, sinceMs }
}

function hex(word: number): string {
  return (word >>> 0).toString(16).padStart(8, "0")
}
