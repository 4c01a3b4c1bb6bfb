// Traverses: a client gets all records of a database as messages (data path page 11). The node it is connected to asks the
// others, each walks its own file in short pieces and sends what it owns, and the last one's end ends the traverse. No more is
// read than is taken: a sender asks now and then for an answer, which its receiver gives when the client has read.
//
// A traverse that could not see everything is visible as such: its end marker, which is empty, is followed by a text. Stock
// programs don't look there, ours do.

import type { Timer } from "../../lib/net/ports.ts"
import { encode } from "../../lib/protocol/codec.ts"
import { BROADCAST_CONNECTED, ControlFlag } from "../../lib/protocol/constants.ts"
import { controls } from "../../lib/protocol/controls.ts"
import { readU32, writeU32 } from "../../lib/protocol/header.ts"
import { LTDB_HEADER_SIZE, REC_DATA_HEAD } from "../../lib/protocol/structs.ts"
import { equal, type Word64, ZERO64 } from "../../lib/protocol/word64.ts"
import { ChainWalk, TdbError } from "../../lib/tdb/tdb.ts"
import type { NodeEnvironment } from "../environment.ts"
import type { Answer, LocalClient, Router } from "../routing.ts"
import { isActive, type NodeState } from "../state.ts"
import type { Database } from "./database.ts"
import type { Databases } from "./registry.ts"

/** All walks together get so much of one turn of the loop (ms), looked at after so many records. */
const PIECE_MS = 4
const RECORDS_PER_LOOK = 128
/** A walk pauses while its receiver has not taken so many bytes, and looks again after so long (ms). */
const QUEUED_BYTES_MAX = 2 << 20
const RETRY_MS = 2
/** A remote receiver is asked for an answer after so many bytes; so many unanswered ones at most are on the way. */
const WINDOW_BYTES = 256 << 10
const WINDOWS_MAX = 4
/** One client may have so many traverses under way, and a node so many walks. */
const TRAVERSES_PER_CLIENT_MAX = 64
const WALKS_MAX = 1024

const utf8 = new TextEncoder()

export interface TraverseRequest {
  readonly dbId: number
  readonly reqid: number
  readonly srvid: Word64
}

export interface TraverseOrder extends TraverseRequest {
  readonly pnn: number
  readonly clientReqid: number
}

/** A traverse of a client of this node. */
interface Traverse {
  readonly id: number
  readonly database: Database
  readonly client: LocalClient
  readonly reqid: number
  readonly srvid: Word64
  /** Nodes that have not sent their end. */
  readonly missing: Set<number>
  readonly cuts: string[]
  lastMs: number
  timer: Timer
  /** Senders whose answer waits until the client has read. */
  held: (() => void)[]
  look: Timer | undefined
}

/** Where a walk's records go. */
interface Sink {
  /** A whole rec_data, the walk's own bytes, valid only during the call. */
  send(record: Uint8Array): void
  /** May it send more? */
  ready(): boolean
}

/** This node's part in a traverse. */
interface Walking {
  readonly database: Database
  readonly walk: ChainWalk
  readonly withEmpty: boolean
  readonly sink: Sink
  /** Who asked: for TRAVERSE_KILL. */
  readonly origin: number
  readonly clientReqid: number
  readonly srvid: Word64
  readonly reqid: number
  over: boolean
}

export class Traverses {
  private readonly traverses = new Map<number, Traverse>()
  private nextId = 1
  private walks: Walking[] = []
  private scheduled = false
  private buffer = new Uint8Array(4096)

  constructor(
    private readonly state: NodeState,
    private readonly environment: NodeEnvironment,
    private readonly router: Router,
    private readonly databases: Databases,
  ) {}

  // ---- for a client of this node -------------------------------------------------------------------------------

  /** TRAVERSE_START and TRAVERSE_START_EXT. */
  start(request: TraverseRequest, withEmpty: boolean, client: LocalClient | undefined, answer: Answer): void {
    const { state, environment } = this
    const database = this.databases.get(request.dbId)
    const refusal = this.refuses(database, client)
    if (refusal !== undefined || database === undefined || client === undefined) {
      environment.log.error(`Traverse refused: ${refusal}`)
      answer({ status: -1, ...(refusal === undefined ? {} : { error: refusal }) })
      return
    }
    const nodes = database.volatile ? state.nodes.filter(isActive).map(({ pnn }) => pnn) : [this.holderOf()]
    const id = this.nextId
    this.nextId = (this.nextId % 0x7fffffff) + 1
    const traverse: Traverse = {
      id,
      database,
      client,
      reqid: request.reqid,
      srvid: request.srvid,
      missing: new Set(nodes),
      cuts: [],
      lastMs: environment.monotonicMs(),
      timer: this.watch(id, this.limitMs()),
      held: [],
      look: undefined,
    }
    this.traverses.set(id, traverse)
    // Before the first record: Samba's client has nobody yet who takes one.
    answer({ status: 0 })
    for (const pnn of nodes) {
      if (pnn === state.pnn) this.walkHere(traverse, withEmpty)
      else this.ask(pnn, traverse, withEmpty)
    }
    if (nodes.length === 0) this.finish(traverse)
  }

  private refuses(database: Database | undefined, client: LocalClient | undefined): string | undefined {
    if (client === undefined) return "not from a client of this node"
    if (database === undefined) return "database is not attached"
    if (!this.databases.isHealthy(database) && this.state.tunables.AllowUnhealthyDBRead !== 1) {
      return `database ${database.name} is unhealthy`
    }
    let own = 0
    for (const traverse of this.traverses.values()) if (traverse.client === client) own++
    return own >= TRAVERSES_PER_CLIENT_MAX ? `this client has ${own} traverses under way` : undefined
  }

  /** The node whose copy of a database that all have is read. */
  private holderOf(): number {
    const { vnnMap, pnn } = this.state
    return vnnMap.includes(pnn) ? pnn : (vnnMap[0] ?? pnn)
  }

  private ask(pnn: number, { id, database, reqid, srvid }: Traverse, withEmpty: boolean): void {
    const order = { dbId: database.id, reqid: id, pnn: this.state.pnn, clientReqid: reqid, srvid }
    const { TRAVERSE_ALL, TRAVERSE_ALL_EXT } = controls
    if (withEmpty) {
      const data = encode(TRAVERSE_ALL_EXT.request, { ...order, withemptyrecords: true })
      this.router.sendControl(pnn, TRAVERSE_ALL_EXT.opcode, data)
    } else this.router.sendControl(pnn, TRAVERSE_ALL.opcode, encode(TRAVERSE_ALL.request, order))
  }

  private walkHere(traverse: Traverse, withEmpty: boolean): void {
    const { id, srvid, reqid } = traverse
    this.begin({
      database: traverse.database,
      walk: new ChainWalk(traverse.database.tdb),
      withEmpty,
      sink: {
        send: (record) => this.take(id, this.state.pnn, record),
        ready: () => this.router.srvids.queuedBytes(srvid) < QUEUED_BYTES_MAX,
      },
      origin: this.state.pnn,
      clientReqid: reqid,
      srvid,
      reqid: id,
      over: false,
    })
  }

  private limitMs(): number {
    return Math.max(1, this.state.tunables.TraverseTimeout) * 1000
  }

  /** The time of a traverse is over when nothing has come for TraverseTimeout. */
  private watch(id: number, delayMs: number): Timer {
    return this.environment.setTimer(delayMs, () => {
      const traverse = this.traverses.get(id)
      if (traverse === undefined) return
      const limitMs = this.limitMs()
      const leftMs = traverse.lastMs + limitMs - this.environment.monotonicMs()
      if (leftMs > 1) {
        traverse.timer = this.watch(id, leftMs)
        return
      }
      this.state.statistics.now.timeouts.traverse++
      const nodes = [...traverse.missing].join(", ")
      traverse.cuts.push(`nothing came from node ${nodes} for ${limitMs / 1000} s`)
      this.kill(traverse)
      this.finish(traverse)
    })
  }

  /** TRAVERSE_DATA: false, nobody waits for it. The answer comes when the client has room for more. */
  receive(bytes: Uint8Array, srcnode: number, flags: number, answer: Answer): void {
    const id = readU32(bytes, 4)
    const traverse = this.traverses.get(id)
    if (traverse === undefined) {
      answer({ status: -1 })
      return
    }
    this.take(id, srcnode, bytes)
    if ((flags & ControlFlag.NOREPLY) !== 0) return
    if (!this.traverses.has(id) || this.hasRoom(traverse)) {
      answer({ status: 0 })
      return
    }
    traverse.held.push(() => answer({ status: 0 }))
    traverse.look ??= this.environment.setTimer(RETRY_MS, () => this.lookForRoom(traverse))
  }

  private hasRoom({ srvid }: Traverse): boolean {
    return this.router.srvids.queuedBytes(srvid) < QUEUED_BYTES_MAX
  }

  private lookForRoom(traverse: Traverse): void {
    if (this.traverses.has(traverse.id) && !this.hasRoom(traverse)) {
      traverse.look = this.environment.setTimer(RETRY_MS, () => this.lookForRoom(traverse))
      return
    }
    this.release(traverse)
  }

  private release(traverse: Traverse): void {
    traverse.look?.cancel()
    traverse.look = undefined
    const { held } = traverse
    traverse.held = []
    for (const go of held) go()
  }

  /** A record, or the end of what a node has. */
  private take(id: number, srcnode: number, record: Uint8Array): void {
    const traverse = this.traverses.get(id)
    if (traverse === undefined) return
    traverse.lastMs = this.environment.monotonicMs()
    if (readU32(record, 8) === 0 && readU32(record, 12) === 0) {
      if (record.length > REC_DATA_HEAD) traverse.cuts.push(new TextDecoder().decode(record.subarray(REC_DATA_HEAD)))
      traverse.missing.delete(srcnode)
      if (traverse.missing.size === 0) this.finish(traverse)
      return
    }
    writeU32(record, 4, traverse.reqid)
    this.router.srvids.deliverOnly(traverse.srvid, record)
  }

  private finish(traverse: Traverse): void {
    traverse.timer.cancel()
    this.traverses.delete(traverse.id)
    this.release(traverse)
    const cut = traverse.cuts.join("; ")
    if (cut !== "") {
      this.environment.log.error(`Traverse of database ${traverse.database.name} is not complete: ${cut}`)
    }
    this.router.srvids.deliverOnly(traverse.srvid, endMarker(traverse.reqid, cut))
  }

  private kill({ database, reqid, srvid, id }: Traverse): void {
    const { opcode, request } = controls.TRAVERSE_KILL
    this.router.sendControl(BROADCAST_CONNECTED, opcode, encode(request, { dbId: database.id, reqid, srvid }))
    this.stop((walking) => walking.origin === this.state.pnn && walking.reqid === id)
  }

  clientGone(client: LocalClient): void {
    for (const traverse of [...this.traverses.values()]) {
      if (traverse.client !== client) continue
      traverse.timer.cancel()
      this.traverses.delete(traverse.id)
      this.release(traverse)
      this.kill(traverse)
    }
  }

  /** What a node that has gone had not sent is missing; nobody waits for it, and nothing is sent to it. */
  nodeGone(pnn: number): void {
    for (const traverse of [...this.traverses.values()]) {
      if (!traverse.missing.delete(pnn)) continue
      traverse.cuts.push(`node ${pnn} has gone`)
      if (traverse.missing.size === 0) this.finish(traverse)
    }
    this.stop((walking) => walking.origin === pnn)
  }

  detached(database: Database): void {
    for (const walking of this.walks) {
      if (walking.database === database) this.end(walking, "database was detached")
    }
    for (const traverse of [...this.traverses.values()]) {
      if (traverse.database !== database) continue
      traverse.cuts.push("database was detached")
      this.kill(traverse)
      this.finish(traverse)
    }
  }

  // ---- this node's part ----------------------------------------------------------------------------------------

  /** TRAVERSE_ALL and TRAVERSE_ALL_EXT; false: there is no such database, or too much is under way. */
  all(order: TraverseOrder, withEmpty: boolean): boolean {
    const database = this.databases.get(order.dbId)
    const refusal =
      database === undefined
        ? `database 0x${order.dbId.toString(16)} is not attached`
        : this.walks.length >= WALKS_MAX
          ? `${WALKS_MAX} traverses are under way`
          : undefined
    if (database === undefined || refusal !== undefined) {
      // A stock node says nothing, and the client waits for the time limit.
      const { opcode } = controls.TRAVERSE_DATA
      this.router.sendControl(order.pnn, opcode, endMarker(order.reqid, `node ${this.state.pnn}: ${refusal}`))
      return false
    }
    this.begin({
      database,
      walk: new ChainWalk(database.tdb),
      withEmpty,
      sink: new RemoteSink(this.router, order.pnn, () => this.stop((walking) => isFor(walking, order))),
      origin: order.pnn,
      clientReqid: order.clientReqid,
      srvid: order.srvid,
      reqid: order.reqid,
      over: false,
    })
    return true
  }

  /** TRAVERSE_KILL from a node. */
  killed({ dbId, reqid, srvid }: TraverseRequest, srcnode: number): void {
    this.stop(
      (walking) =>
        walking.origin === srcnode &&
        walking.database.id === dbId &&
        walking.clientReqid === reqid &&
        equal(walking.srvid, srvid),
    )
  }

  private stop(match: (walking: Walking) => boolean): void {
    for (const walking of this.walks) if (match(walking)) walking.over = true
  }

  private begin(walking: Walking): void {
    this.walks.push(walking)
    this.schedule()
  }

  private schedule(): void {
    if (this.scheduled) return
    this.scheduled = true
    this.environment.nextTurn(() => this.turn())
  }

  /** All walks get their share of one piece. */
  private turn(): void {
    this.scheduled = false
    const deadlineMs = this.environment.monotonicMs() + PIECE_MS
    let busy = true
    while (busy && this.environment.monotonicMs() < deadlineMs) {
      busy = false
      for (const walking of this.walks) {
        if (!walking.over && this.piece(walking)) busy = true
      }
      this.walks = this.walks.filter((walking) => !walking.over)
    }
    if (this.walks.length === 0) return
    if (busy) this.schedule()
    else {
      this.scheduled = true
      this.environment.setTimer(RETRY_MS, () => this.turn())
    }
  }

  /** Some records of one walk; false: it must wait, for its receiver or for a lock. */
  private piece(walking: Walking): boolean {
    const { database, walk, sink } = walking
    // What a recovery writes is seen when it is done.
    if (database.frozen || !sink.ready()) return false
    const { pnn, volatile } = database
    const { withEmpty, reqid } = walking
    let records = 0
    try {
      const state = walk.next(RECORDS_PER_LOOK, (map, keyStart, keyLength, dataStart, dataLength) => {
        if (volatile) {
          if (dataLength < LTDB_HEADER_SIZE || (dataLength === LTDB_HEADER_SIZE && !withEmpty)) return
          if (readU32(map, dataStart + 8) !== pnn) return
        }
        records++
        sink.send(this.record(map, keyStart, keyLength, dataStart, dataLength, reqid))
      })
      if (state === "over") this.end(walking, "")
      return state !== "locked" || records > 0
    } catch (error) {
      if (!(error instanceof TdbError)) throw error
      database.onDamaged(error.message)
      this.end(walking, error.message)
      return true
    }
  }

  private end(walking: Walking, cut: string): void {
    if (walking.over) return
    walking.over = true
    walking.sink.send(endMarker(walking.reqid, cut === "" ? "" : `node ${this.state.pnn}: ${cut}`))
  }

  private record(
    map: Uint8Array,
    keyStart: number,
    keyLength: number,
    dataStart: number,
    dataLength: number,
    reqid: number,
  ): Uint8Array {
    const size = REC_DATA_HEAD + keyLength + dataLength
    if (this.buffer.length < size) this.buffer = new Uint8Array(size * 2)
    const { buffer } = this
    writeU32(buffer, 0, size)
    writeU32(buffer, 4, reqid)
    writeU32(buffer, 8, keyLength)
    writeU32(buffer, 12, dataLength)
    buffer.set(map.subarray(keyStart, keyStart + keyLength), REC_DATA_HEAD)
    buffer.set(map.subarray(dataStart, dataStart + dataLength), REC_DATA_HEAD + keyLength)
    return buffer.subarray(0, size)
  }
}

function isFor(walking: Walking, { pnn, reqid }: TraverseOrder): boolean {
  return walking.origin === pnn && walking.reqid === reqid
}

/** An empty record; with a text behind it, the end of a traverse that has not seen everything. */
function endMarker(reqid: number, cut: string): Uint8Array {
  const text = utf8.encode(cut)
  const marker = new Uint8Array(REC_DATA_HEAD + text.length)
  writeU32(marker, 0, marker.length)
  writeU32(marker, 4, reqid)
  marker.set(text, REC_DATA_HEAD)
  return marker
}

/** Records for another node's client, as controls; every WINDOW_BYTES one that wants an answer. */
class RemoteSink implements Sink {
  private bytes = 0
  private unanswered = 0

  constructor(
    private readonly router: Router,
    private readonly pnn: number,
    private readonly unwanted: () => void,
  ) {}

  ready(): boolean {
    return this.unanswered < WINDOWS_MAX && this.router.queuedBytes(this.pnn, ZERO64) < QUEUED_BYTES_MAX
  }

  send(record: Uint8Array): void {
    const { opcode } = controls.TRAVERSE_DATA
    this.bytes += record.length
    if (this.bytes < WINDOW_BYTES) {
      this.router.sendControl(this.pnn, opcode, record)
      return
    }
    this.bytes = 0
    this.unanswered++
    const control = { opcode, srvid: ZERO64, clientId: 0, flags: 0, data: record }
    this.router.request(this.pnn, control, undefined, ({ status }) => {
      this.unanswered--
      if (status !== 0) this.unwanted()
    })
  }
}
