// The contents of a database on their way to and from the node that runs a recovery: DB_PULL sends all records as messages,
// DB_PUSH_START and DB_PUSH_CONFIRM take new ones in (data path page 10.2, 10.3). Both work in short pieces, one a turn of
// the loop, and a pull waits while what it has sent is not taken. They end with the transaction they belong to.

import { DbFlag, RecordFlag } from "../../lib/protocol/constants.ts"
import { controls } from "../../lib/protocol/controls.ts"
import { jenkinsHash } from "../../lib/protocol/hash.ts"
import { readU32, writeU32 } from "../../lib/protocol/header.ts"
import { LTDB_HEADER_SIZE, type PulldbExt, REC_DATA_HEAD } from "../../lib/protocol/structs.ts"
import type { Word64 } from "../../lib/protocol/word64.ts"
import { SysError } from "../../lib/sys/errno.ts"
import { copyBytes, dropBuffer } from "../../lib/sys/memory.ts"
import { TdbError, Walk } from "../../lib/tdb/tdb.ts"
import type { NodeEnvironment } from "../environment.ts"
import type { Answer, Router } from "../routing.ts"
import { groupOf, isKept, storedHash } from "./alike.ts"
import type { Database, Passage } from "./database.ts"
import { decide, RecordHeader, storeRecord } from "./record.ts"

/** Records of one piece of work. */
const RECORDS_PER_LOOK = 256
/** Bytes of a record buffer of a pull: with its header a packet that every reader has a buffer for, over and over the same. */
const PULL_BYTES = 60 * 1024
/** A pull stops while this many bytes of anything wait for the node it goes to. */
const QUEUED_BYTES_MAX = 2 << 20
/** And looks again after this time. */
const RETRY_MS = 2
/** After so many bytes the other node is asked what of them its client has not taken yet; until it answers, no more than as many. */
const WINDOW_BYTES = 2 << 20
/** Buffers of a push that wait to be stored: a sender that knows no bound meets this one. */
const PUSH_BYTES_MAX = 1 << 30
/** db_id and count in front of the records (wire-protocol page 5.12). */
const BUFFER_HEAD = 8

/** A record buffer that grows. */
class RecordBuffer {
  private bytes: Uint8Array
  private length = BUFFER_HEAD
  count = 0

  constructor(
    private readonly dbId: number,
    private readonly limit: number,
  ) {
    // The last record goes over the limit.
    this.bytes = new Uint8Array(limit + 1024)
  }

  get full(): boolean {
    return this.length >= this.limit
  }

  add(map: Uint8Array, keyStart: number, keyLength: number, dataStart: number, dataLength: number): void {
    const size = REC_DATA_HEAD + keyLength + dataLength
    if (this.length + size > this.bytes.length) {
      const larger = new Uint8Array(Math.max(this.bytes.length * 2, this.length + size))
      larger.set(this.bytes.subarray(0, this.length))
      this.bytes = larger
    }
    const { bytes, length: at } = this
    writeU32(bytes, at, size)
    writeU32(bytes, at + 4, 0)
    writeU32(bytes, at + 8, keyLength)
    writeU32(bytes, at + 12, dataLength)
    // A record's data follows its key in the file (tdb-format page 4).
    copyBytes.call(map, bytes, at + REC_DATA_HEAD, keyStart, dataStart + dataLength)
    this.length = at + size
    this.count++
  }

  /** The buffer's bytes; it is empty afterwards. */
  take(): Uint8Array {
    const { bytes } = this
    writeU32(bytes, 0, this.dbId)
    writeU32(bytes, 4, this.count)
    const taken = bytes.subarray(0, this.length)
    this.length = BUFFER_HEAD
    this.count = 0
    return taken
  }
}

/** Answers DB_PULL, and ALIKE_PULL with `keep`. */
export function pull(
  database: Database,
  { srvid }: PulldbExt,
  srcnode: number,
  router: Router,
  environment: NodeEnvironment,
  limit: number,
  answer: Answer,
  keep?: Uint8Array,
): void {
  const { log } = environment
  // Without a transaction a stock node fails too, and can't start one for this database ever after (10.5).
  if (!database.frozen || database.transaction === undefined) {
    log.error(`DB_PULL of ${database.name}, which is not frozen and in a transaction`)
    answer({ status: -1 })
    return
  }
  if (database.invalid) {
    answer({ status: 0, data: new Uint8Array(4) })
    return
  }
  new Pull(database, srvid, srcnode, router, environment, limit, answer, keep).step()
}

class Pull implements Passage {
  private readonly walk: Walk
  private readonly buffer: RecordBuffer
  private count = 0
  private ended = false
  /** Bytes sent since the other node was asked for its backlog, and what it has said. */
  private unasked = 0
  private asking = false
  private backlog = 0
  /** It does not know the question: a stock node. */
  private knowsNone = false

  constructor(
    private readonly database: Database,
    private readonly srvid: Word64,
    private readonly srcnode: number,
    private readonly router: Router,
    private readonly environment: NodeEnvironment,
    limit: number,
    private readonly answer: Answer,
    /** Groups of which nothing is sent (alike.ts). */
    private readonly keep: Uint8Array | undefined,
  ) {
    this.walk = new Walk(database.tdb)
    this.buffer = new RecordBuffer(database.id, Math.min(limit, PULL_BYTES))
    database.addPassage(this)
  }

  abort(reason: string): void {
    if (this.ended) return
    this.end()
    this.answer({ status: -1, error: `pull of ${this.database.name}: ${reason}` })
  }

  private end(): void {
    this.ended = true
    this.walk.close()
    this.database.removePassage(this)
  }

  step(): void {
    if (this.ended) return
    try {
      this.piece()
    } catch (error) {
      if (!(error instanceof TdbError)) throw error
      this.database.onDamaged(error.message)
      this.abort(error.message)
    }
  }

  private piece(): void {
    const { environment, buffer } = this
    const deadlineMs = environment.workEndsMs()
    do {
      if (this.isHeldUp()) {
        environment.setTimer(RETRY_MS, () => this.step())
        return
      }
      const more = this.walk.next(RECORDS_PER_LOOK, this.visit)
      if (buffer.full) this.send()
      if (!more) {
        if (buffer.count > 0) this.send()
        this.end()
        const data = new Uint8Array(4)
        writeU32(data, 0, this.count)
        // Buffers to this node itself are delivered in the next turn: the answer must not overtake them.
        environment.nextTurn(() => this.answer({ status: 0, data }))
        return
      }
    } while (environment.monotonicMs() < deadlineMs)
    environment.nextTurn(() => this.step())
  }

  private readonly visit = (
    map: Uint8Array,
    keyStart: number,
    keyLength: number,
    dataStart: number,
    dataLength: number,
  ): void => {
    // Less than a header is no record (tdb-format page 9.4), and would spoil the whole buffer for the leader.
    if (dataLength < LTDB_HEADER_SIZE) return
    const { keep } = this
    if (keep !== undefined && isKept(keep, groupOf(storedHash(this.database.tdb.w, keyStart)))) return
    this.buffer.add(map, keyStart, keyLength, dataStart, dataLength)
    this.count++
    if (this.buffer.full) this.send()
  }

  private send(): void {
    const bytes = this.buffer.take()
    this.unasked += bytes.length
    this.router.sendMessage(this.srcnode, this.srvid, bytes)
    if (this.unasked >= WINDOW_BYTES) this.ask()
  }

  private isHeldUp(): boolean {
    const { router, srcnode, srvid } = this
    if (router.queuedBytes(srcnode, srvid) > QUEUED_BYTES_MAX) return true
    if (this.knowsNone) return false
    if (this.backlog > QUEUED_BYTES_MAX) this.ask()
    return this.backlog > QUEUED_BYTES_MAX || (this.asking && this.unasked >= WINDOW_BYTES)
  }

  /**
   * A link takes what its node's client does not: that node would have to keep all of it. So it is asked, with a question that does
   * not overtake what was sent before.
   */
  private ask(): void {
    if (this.asking || this.knowsNone || this.srcnode === this.database.pnn) return
    this.asking = true
    this.unasked = 0
    const { opcode } = controls.SRVID_BACKLOG
    const question = { opcode, srvid: this.srvid, clientId: 0, flags: 0, data: new Uint8Array(0) }
    this.router.request(this.srcnode, question, undefined, ({ status, data }) => {
      this.asking = false
      this.knowsNone = status !== 0 || data?.length !== 4
      this.backlog = this.knowsNone ? 0 : readU32(data!, 0)
    })
  }
}

/** A push that was started: takes buffers in until it is confirmed. */
export class Push implements Passage {
  private stored = 0
  private failed: string | undefined
  private readonly queue: Uint8Array[] = []
  private queuedBytes = 0
  /** Where the buffer in front is to go on, and how many of its records are left. */
  private at = 0
  private left = 0
  private working = false
  private confirm: Answer | undefined
  private ended = false
  private readonly header = new RecordHeader()

  private constructor(
    private readonly database: Database,
    private readonly router: Router,
    private readonly environment: NodeEnvironment,
  ) {}

  /** Answers DB_PUSH_START; undefined if it is refused. A push that runs already is dropped. */
  static start(
    database: Database,
    { srvid }: PulldbExt,
    router: Router,
    environment: NodeEnvironment,
  ): Push | undefined {
    if (!database.frozen || database.transaction === undefined) {
      environment.log.error(`DB_PUSH_START of ${database.name}, which is not frozen and in a transaction`)
      return undefined
    }
    const push = new Push(database, router, environment)
    router.srvids.register(srvid, { owner: push, deliver: (data) => push.receive(data) })
    database.addPassage(push)
    return push
  }

  get active(): boolean {
    return !this.ended
  }

  abort(reason: string): void {
    if (this.ended) return
    this.end()
    this.confirm?.({ status: -1, error: `push of ${this.database.name}: ${reason}` })
  }

  private end(): void {
    this.ended = true
    this.router.srvids.removeOwner(this)
    this.database.removePassage(this)
    this.queue.length = 0
  }

  private receive(data: Uint8Array): void {
    if (this.failed !== undefined || this.ended) return
    // Where it is, if it can be stored at once: the view is gone when this turn is over.
    if (!this.working && this.store(data, this.environment.workEndsMs())) return
    this.queuedBytes += data.length
    if (this.queuedBytes > PUSH_BYTES_MAX) {
      this.fail(`${this.queuedBytes} bytes wait to be stored`)
      return
    }
    this.queue.push(data.slice())
    if (this.working) return
    this.working = true
    this.environment.nextTurn(() => this.step())
  }

  private fail(reason: string): void {
    this.environment.log.error(`Push of database ${this.database.name} failed: ${reason}`)
    this.failed = reason
    this.queue.length = 0
    this.queuedBytes = 0
    this.at = 0
  }

  /** Stores records as long as work may go on in this turn. */
  private step(): void {
    this.working = false
    if (this.ended) return
    const deadlineMs = this.environment.workEndsMs()
    for (;;) {
      const buffer = this.queue[0]
      if (buffer === undefined) break
      if (!this.store(buffer, deadlineMs)) {
        this.working = true
        this.environment.nextTurn(() => this.step())
        return
      }
      // One that failed has emptied the queue.
      if (this.queue.shift() !== undefined) this.queuedBytes -= buffer.length
      dropBuffer(buffer)
    }
    if (this.confirm === undefined) return
    this.end()
    const data = new Uint8Array(4)
    writeU32(data, 0, this.stored)
    this.confirm({ status: 0, data })
  }

  /** Goes on with the buffer at hand, the one in front if any wait; true when it is done with, stored or not. */
  private store(buffer: Uint8Array, deadlineMs: number): boolean {
    if (this.at === 0) {
      const count = buffer.length < BUFFER_HEAD ? -1 : readU32(buffer, 4)
      if (count < 0 || count * REC_DATA_HEAD > buffer.length - BUFFER_HEAD) {
        this.fail(`record buffer of ${buffer.length} bytes with ${count} records`)
        return true
      }
      if (readU32(buffer, 0) !== this.database.id) {
        this.fail(`record buffer of database 0x${readU32(buffer, 0).toString(16).padStart(8, "0")}`)
        return true
      }
      this.at = BUFFER_HEAD
      this.left = count
    }
    for (let stored = 0; this.left > 0; stored++) {
      const look = stored > 0 && stored % RECORDS_PER_LOOK === 0
      if (look && this.environment.monotonicMs() >= deadlineMs) return false
      const wrong = this.attemptOne(buffer)
      if (wrong !== undefined) {
        this.fail(wrong)
        return true
      }
      this.left--
    }
    this.stored += readU32(buffer, 4)
    this.at = 0
    return true
  }

  /** A file that takes no more fails the push, not the node. */
  private attemptOne(buffer: Uint8Array): string | undefined {
    try {
      return this.storeOne(buffer)
    } catch (error) {
      if (!(error instanceof TdbError || error instanceof SysError)) throw error
      return error.message
    }
  }

  private storeOne(buffer: Uint8Array): string | undefined {
    const { at, database, header } = this
    const available = buffer.length - at
    if (available < REC_DATA_HEAD) return `record at ${at} is cut off`
    const size = readU32(buffer, at)
    const keyLength = readU32(buffer, at + 8)
    const dataLength = readU32(buffer, at + 12)
    if (size > available || REC_DATA_HEAD + keyLength + dataLength > size) {
      return `record at ${at} of ${size} bytes with key of ${keyLength} and data of ${dataLength}`
    }
    if (dataLength < LTDB_HEADER_SIZE) return `record at ${at} has data of ${dataLength} bytes`
    this.at = at + size
    const keyStart = at + REC_DATA_HEAD
    const dataStart = keyStart + keyLength
    header.read(buffer, dataStart)
    // Whatever copies were out: a recovery ends all delegations.
    header.flags &= ~RecordFlag.RO_FLAGS
    const jenkins = jenkinsHash(buffer, keyStart, dataStart)
    const hash = database.volatile ? jenkins : database.tdb.hash(buffer.subarray(keyStart, dataStart))
    if (dataLength > LTDB_HEADER_SIZE) {
      const place = database.fill(buffer, keyStart, keyLength, dataLength, hash)
      if (place !== 0) {
        // A record with data is kept, and what the rules change is its header.
        decide(database, jenkins, header, dataLength - LTDB_HEADER_SIZE)
        header.write(database.tdb.b, place)
        return undefined
      }
    }
    database.endFilling()
    const key = buffer.subarray(keyStart, dataStart)
    const data = buffer.subarray(dataStart + LTDB_HEADER_SIZE, dataStart + dataLength)
    storeRecord(database, key, jenkins, hash, header, data)
    return undefined
  }

  /** Answers DB_PUSH_CONFIRM, when all that was sent before it is stored: how many records of complete buffers. */
  confirmed(answer: Answer): void {
    if (this.confirm !== undefined) {
      answer({ status: -1, error: "push is being confirmed already" })
      return
    }
    // With the delegations go the copies that they allowed; whether the property stays is the read-only room's business.
    if ((this.database.flags & DbFlag.READONLY) !== 0) this.database.onDelegationsVoid()
    this.confirm = answer
    if (!this.working) this.step()
  }
}
