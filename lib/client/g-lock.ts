// Cluster-wide named locks in records of g_lock.tdb (client-library 16 to 18), in the stock client's format or Samba's, whichever a
// record is in: taking, releasing, waiting, holders that died, and who holds and waits for what. The bytes are in g-lock-record.ts, waiting
// between clients of this project in g-lock-waiters.ts. Transactions use these locks (transaction.ts).

import { ProtocolError } from "../protocol/codec.ts"
import { writeU32 } from "../protocol/header.ts"
import type { ServerId } from "../protocol/structs.ts"
import { equal, fromNumber, type Word64, word64 } from "../protocol/word64.ts"
import { attach } from "./attach.ts"
import { type Client, ControlError, cancellable, type Waiting } from "./client.ts"
import { type Database, DatabaseError } from "./database.ts"
import {
  type GLockFormat,
  type GLockHolder,
  type GLockRecord,
  type GLockType,
  holdersOf,
  readGLock,
  type SambaLock,
  sameServer,
  type Watcher,
  withHolder,
  withoutHolder,
  writeGLock,
} from "./g-lock-record.ts"
import { idOf, type LockKey, lockKey, type Waited, type WaiterPlace, WaitingDesk } from "./g-lock-waiters.ts"
import type { Cancel } from "./session.ts"
import { traverse } from "./traverse.ts"

export type { GLockFormat, GLockHolder, GLockType } from "./g-lock-record.ts"

export const G_LOCK_DATABASE = "g_lock.tdb"

/** Between two looks at a lock whose holder tells nobody when it lets go: the stock client's, which may be waiting beside us (ms). */
const POLL_MS = 1
/** After so many looks the holder is one that keeps it, and is looked at less often (ms). */
const POLLS = 250
const POLL_LATE_MS = 10
/** A holder of this project that has not answered a waiter by now is looked at again (ms). */
const DEAF_MS = 50
/** While in its queue we look this often whether it still lives (ms). */
const QUEUED_MS = 1000
/** A watcher of Samba's looks this often whether the holder lives (ms; client-library 17). */
const WATCH_MS = 500
/** Whether a process exists is answered at once or, by a node that hangs, not at all: taken for alive then (ms). */
const EXISTS_MS = 5000
/** So many releases without a turn of the event loop at most: a loop over a lock that is always free must not shut out messages. */
const RELEASES_PER_TURN = 32
/** A record that is emptied over and over is suggested for deletion once in this time (ms). */
const HINT_MS = 1000

/** Samba's "do not verify": its holders look for the process only. */
const UNVERIFIED: Word64 = word64(0xffffffff, 0xffffffff)
/** Samba's message for a watcher (client-library 15). */
const RECORD_MODIFIED = 4003

export interface GLockOptions extends Waiting {
  /** Without its NUL. */
  readonly name: string
  readonly type: GLockType
  /** Goes into the holder's entry; transactions give the database id. Default 0. */
  readonly taskId?: number
  /** How to write into a record that is free; a record that is not stays what it is. Default "ctdb". */
  readonly format?: GLockFormat
}

/** A lock that is held. */
export class GLock {
  private released = false

  private constructor(
    readonly name: string,
    readonly type: GLockType,
    private readonly client: Client,
    private readonly database: Database,
    private readonly key: LockKey,
    /** The holder's entry. */
    readonly id: ServerId,
    private readonly desk: WaitingDesk,
    private readonly ticket: number,
  ) {}

  /**
   * Takes a lock, waiting for its holders without limit unless told otherwise. Two locks of one process exclude each other like any two.
   * @throws DatabaseError ETIMEDOUT, EIO for a record that is in neither format; AttachError, ControlError, the signal's reason
   */
  static async acquire(client: Client, options: GLockOptions): Promise<GLock> {
    const { timeoutMs, signal } = options
    const database = await attach(client, G_LOCK_DATABASE, { timeoutMs, signal })
    const desk = await WaitingDesk.of(client)
    const taking = new Taking(client, database, desk, options)
    desk.onUnwanted = (waiter, queue, key) => giveBack(client, database, desk, waiter, queue, key)
    desk.starts(taking.ticket)
    try {
      await taking.run()
    } finally {
      desk.ends(taking.ticket)
    }
    return new GLock(options.name, options.type, client, database, taking.key, taking.id, desk, taking.ticket)
  }

  /** Whether the record names us still. A node that was banned or stopped comes back to a cluster that has gone on without it. @throws as acquire() */
  async isHeld(waiting: Waiting = {}): Promise<boolean> {
    const locked = this.database.fetchLock(this.key.bytes, "write", waiting)
    const record = locked instanceof Promise ? await locked : locked
    try {
      return holdersOf(parse(this.database, record.copy())).some(({ id }) => sameServer(id, this.id))
    } finally {
      record.unlock()
    }
  }

  /** Lets go; who waits is woken or has it now. A second call does nothing. @throws as acquire() */
  async release(waiting: Waiting = {}): Promise<void> {
    if (this.released) return
    this.released = true
    // While it is held still: after the release a turn of the loop would end the client's turn with the lock.
    if (++releases % RELEASES_PER_TURN === 0) await new Promise<void>((resolve) => setImmediate(resolve))
    const { database, key, desk, ticket } = this
    const left = await removeHolder(this.client, database, desk, ticket, key, this.id, waiting)
    if (left.format === "samba" && left.watchers.length > 0) {
      await wakeWatcher(this.client, database, key.bytes, left, this.id)
    }
  }
}

let releases = 0

/** Takes a holder out of the record, hands over to its queue or wakes it, and returns the record as it was without the holder. */
async function removeHolder(
  client: Client,
  database: Database,
  desk: WaitingDesk,
  ticket: number,
  key: LockKey,
  id: ServerId,
  waiting: Waiting,
): Promise<GLockRecord> {
  const { migrations } = database.counters
  const locked = database.fetchLock(key.bytes, "write", waiting)
  const record = locked instanceof Promise ? await locked : locked
  // Somebody who looked had the record come to him, and has not put himself into the queue.
  const outsider = database.counters.migrations !== migrations && !desk.hasArrivals(ticket)
  let left: GLockRecord
  let step: ReturnType<WaitingDesk["nextStep"]> = "free"
  const next = desk.next(ticket)
  try {
    left = withoutHolder(parse(database, record.copy()), id)
    if (left.format === "free") step = desk.nextStep(key, ticket, outsider)
    if (step === "granted") record.store(grantedTo(next))
    else {
      const bytes = writeGLock(left)
      if (bytes.length === 0 && next.length === 0 && deletionDue(client, database, key)) record.delete()
      else record.store(bytes)
    }
  } finally {
    record.unlock()
  }
  const goOn = () => desk.released(ticket, grant(database, desk, ticket, key), key)
  if (step === "linger") desk.linger(ticket, key, goOn)
  else if (step === "pause") desk.pause(ticket, key, goOn)
  else desk.released(ticket, step === "granted", key)
  return left
}

/** The record of a lock that its next holders get from the last one's hand. */
function grantedTo(next: readonly WaiterPlace[]): Uint8Array {
  const holders = next.map((waiter): GLockHolder => ({ type: waiter.reading ? "read" : "write", id: idOf(waiter) }))
  return writeGLock({ format: "ctdb", holders })
}

/** Hands over a lock that is free still, and whose record is here still. */
function grant(database: Database, desk: WaitingDesk, ticket: number, key: LockKey): boolean {
  const next = desk.next(ticket)
  const record = next.length === 0 || database.isClosed ? undefined : database.tryFetchLock(key.bytes)
  if (record === undefined) return false
  try {
    if (record.length !== 0) return false
    record.store(grantedTo(next))
    return true
  } finally {
    record.unlock()
  }
}

/** A lock was granted to an attempt that has given up: the next one gets it. */
function giveBack(
  client: Client,
  database: Database,
  desk: WaitingDesk,
  waiter: WaiterPlace,
  queue: readonly WaiterPlace[],
  key: LockKey,
): void {
  if (!client.isOpen || database.isClosed) return
  desk.holds(waiter.ticket, queue)
  // Who can't be given back now: the waiters look for themselves in a while, and find it when this process has ended.
  removeHolder(client, database, desk, waiter.ticket, key, idOf(waiter), { timeoutMs: EXISTS_MS }).catch(() => {
    desk.released(waiter.ticket, false, key)
  })
}

/** One attempt to get a lock. */
class Taking {
  readonly key: LockKey
  /** Our entry, as the format of the record wants it. */
  id: ServerId
  readonly ticket: number
  private readonly deadline: number
  /** Waiters whom the last holder has handed to us. */
  private queue: readonly WaiterPlace[] = []
  /** Holders in whose queues we may be. */
  private readonly asked: ServerId[] = []
  private readonly since = performance.now()
  /** Our entry in a record of Samba's. */
  private watcher: Watcher | undefined
  private readonly dead: ServerId[] = []
  private readonly ctdbId: ServerId
  private readonly sambaId: ServerId

  constructor(
    private readonly client: Client,
    private readonly database: Database,
    private readonly desk: WaitingDesk,
    private readonly options: GLockOptions,
  ) {
    this.key = lockKey(Buffer.from(`${options.name}\0`))
    const uniqueId = desk.newUniqueId()
    this.ticket = uniqueId.lo
    const owner = { pid: fromNumber(process.pid), vnn: client.pnn }
    this.ctdbId = { ...owner, taskId: options.taskId ?? 0, uniqueId }
    // Samba looks for a verified id in places that only its own processes have.
    this.sambaId = { ...owner, taskId: uniqueId.lo, uniqueId: UNVERIFIED }
    this.id = this.ctdbId
    const { timeoutMs = 0 } = options
    this.deadline = timeoutMs > 0 ? performance.now() + timeoutMs : Number.POSITIVE_INFINITY
  }

  async run(): Promise<void> {
    try {
      await this.desk.pausing(this.key)
      const successor = this.desk.successor(this.key)
      // Whom we gave it to has it, or knows who does: no need to look, and to have the record come here for that.
      if (successor !== undefined) await this.queueAt(successor)
      for (let looks = 0; ; looks++) {
        this.options.signal?.throwIfAborted()
        if (performance.now() > this.deadline) {
          throw new DatabaseError(this.database.name, "ETIMEDOUT", `lock ${this.options.name} was not free in time`)
        }
        const pausing = looks === 0 ? undefined : this.desk.pausing(this.key)
        if (pausing !== undefined) await pausing
        // Also one that was granted: the record with our entry is on the last holder's node, and would be lost with it. Here it is as safe
        // as we are, since every later copy names us.
        const record = await this.look()
        if (record === undefined) {
          this.desk.takes(this.key, this.ticket, this.queue)
          return
        }
        // Who was handed to us waits for somebody else now, and has to find out whom.
        this.desk.wakeAll(this.queue)
        this.queue = []
        this.desk.released(this.ticket, false, this.key)
        await this.wait(record, looks)
      }
    } catch (error) {
      this.desk.wakeAll(this.queue)
      for (const holder of this.asked) this.desk.leave(holder, this.ticket)
      // A lock may have been granted to us just now.
      if (this.watcher !== undefined || this.asked.length > 0) await this.withdraw()
      this.desk.released(this.ticket, false, this.key)
      throw error
    }
  }

  private blockers(record: GLockRecord): readonly GLockHolder[] {
    return holdersOf(record).filter((holder) => this.options.type === "write" || holder.type === "write")
  }

  /** Takes the lock if nobody is in the way; else returns the record, and in Samba's format leaves word that we wait. */
  private async look(): Promise<GLockRecord | undefined> {
    const { type, format = "ctdb", signal } = this.options
    const timeoutMs = Number.isFinite(this.deadline) ? Math.max(1, this.deadline - performance.now()) : 0
    const locked = this.database.fetchLock(this.key.bytes, "write", { timeoutMs, signal })
    const record = locked instanceof Promise ? await locked : locked
    try {
      const found = parse(this.database, record.copy())
      let now = found
      for (const id of this.dead) now = withoutHolder(now, id)
      this.dead.length = 0
      this.id = (now.format === "free" ? format : now.format) === "samba" ? this.sambaId : this.ctdbId
      // Granted.
      if (holdersOf(now).some(({ id }) => sameServer(id, this.id))) return undefined
      if (this.blockers(now).length === 0) {
        if (now.format === "samba") now = this.withoutWatcher(now)
        record.store(writeGLock(withHolder(now, { type, id: this.id }, format)))
        return undefined
      }
      if (now.format === "samba" && this.watcher === undefined) {
        this.watcher = { id: this.id, instance: word64(0, this.ticket) }
        now = { ...now, watchers: [...now.watchers, this.watcher] }
      }
      if (now !== found) record.store(writeGLock(now))
      return now
    } finally {
      record.unlock()
    }
  }

  private withoutWatcher(record: SambaLock): SambaLock {
    const own = this.watcher
    this.watcher = undefined
    if (own === undefined) return record
    return { ...record, watchers: record.watchers.filter((watcher) => !sameWatcher(watcher, own)) }
  }

  /** Takes out of the record whatever of us is in it. */
  private async withdraw(): Promise<void> {
    const record = await this.database.fetchLock(this.key.bytes, "write", { timeoutMs: EXISTS_MS })
    try {
      const found = parse(this.database, record.copy())
      const held = holdersOf(found).some(({ id }) => sameServer(id, this.id))
      const left = held ? withoutHolder(found, this.id) : found
      if (left.format === "samba") record.store(writeGLock(this.withoutWatcher(left)))
      else if (held) record.store(writeGLock(left))
    } finally {
      record.unlock()
    }
  }

  /** Waits in the queue of a holder of this project, which hands over to us or wakes us. */
  private async queueAt(holder: ServerId): Promise<Waited["end"]> {
    const { ticket, since, ctdbId, options } = this
    const limit = Math.min(QUEUED_MS, Math.max(1, this.deadline - performance.now()))
    const self = { ticket, taskId: ctdbId.taskId, reading: options.type === "read", since }
    if (!this.asked.some((id) => sameServer(id, holder))) this.asked.push(holder)
    const waited = await this.desk.waitFor(holder, self, Math.min(DEAF_MS, limit), limit, options.signal)
    if (waited.end === "granted" || waited.end === "woken") this.queue = waited.queue
    return waited.end
  }

  /** Waits until another look is worth while: a blocker has died, or may have released. */
  private async wait(record: GLockRecord, looks: number): Promise<void> {
    const { signal } = this.options
    const left = Math.max(1, this.deadline - performance.now())
    const blockers = this.blockers(record)
    const first = blockers[0]!.id
    if (record.format === "ctdb" && WaitingDesk.knows(first)) {
      // It answers for itself that it lives.
      const end = await this.queueAt(first)
      if (end === "granted" || end === "woken") return
    }
    // The stock client asks this with the chain locked, where a node that hangs holds up everybody: the next look takes out the dead.
    const living = await Promise.all(blockers.map(({ id }) => exists(this.client, id, record.format === "samba")))
    blockers.forEach(({ id }, index) => {
      if (!living[index]) this.dead.push(id)
    })
    if (this.dead.length > 0) return
    if (this.watcher !== undefined) {
      await messageToWatcher(this.client, this.watcher, Math.min(WATCH_MS, left), signal)
    } else if (!WaitingDesk.knows(first)) {
      await cancellable<void>(signal, (resolve) => {
        const timer = setTimeout(resolve, looks < POLLS ? POLL_MS : POLL_LATE_MS)
        return { cancel: () => clearTimeout(timer) }
      })
    }
  }
}

function parse(database: Database, data: Uint8Array): GLockRecord {
  try {
    return readGLock(data)
  } catch (error) {
    if (!(error instanceof ProtocolError)) throw error
    throw new DatabaseError(database.name, "EIO", `invalid lock data: ${error.message}`)
  }
}

const sameWatcher = (a: Watcher, b: Watcher): boolean => sameServer(a.id, b.id) && equal(a.instance, b.instance)

/**
 * Whether a holder or watcher lives: its node is asked. A node that is gone makes it dead, one that does not answer does not. Samba's ids
 * name a registration of the process besides, so that another process with its number does not count.
 */
async function exists(client: Client, id: ServerId, isSamba: boolean): Promise<boolean> {
  const verified = isSamba && !equal(id.uniqueId, UNVERIFIED)
  try {
    const waiting = { timeoutMs: EXISTS_MS }
    const status = verified
      ? await client.controlStatus("CHECK_PID_SRVID", id.vnn, { pid: id.pid.lo | 0, srvid: id.uniqueId }, waiting)
      : await client.controlStatus("PROCESS_EXISTS", id.vnn, id.pid.lo | 0, waiting)
    return status === 0
  } catch (error) {
    if (error instanceof ControlError && error.reason === "timeout") return true
    throw error
  }
}

// Deletion hints. Stock clients give one for every unlock; a queue full of one name is work for the daemon and tells it nothing new.

const hints = new WeakMap<Client, Set<string>>()

/** Whether to suggest the emptied record for deletion now; if not, that happens by itself, if it is empty then. */
function deletionDue(client: Client, database: Database, { bytes, name }: LockKey): boolean {
  let recent = hints.get(client)
  if (recent === undefined) {
    recent = new Set()
    hints.set(client, recent)
  }
  if (recent.has(name)) return false
  recent.add(name)
  const timer = setTimeout(() => {
    recent.delete(name)
    if (!client.isOpen || database.isClosed) return
    const record = database.tryFetchLock(bytes)
    if (record === undefined) return
    try {
      if (record.length === 0) record.delete()
    } finally {
      record.unlock()
    }
  }, HINT_MS)
  timer.unref()
  return true
}

// Samba's watchers.

/** Wakes the first watcher that lives, and drops the dead before it from the record. */
async function wakeWatcher(
  client: Client,
  database: Database,
  key: Uint8Array,
  record: SambaLock,
  sender: ServerId,
): Promise<void> {
  const dead: Watcher[] = []
  for (const watcher of record.watchers) {
    if (await exists(client, watcher.id, true)) {
      client.sendMessage(watcher.id.vnn, watcher.id.pid, wakeUp(watcher, sender))
      break
    }
    dead.push(watcher)
  }
  if (dead.length === 0) return
  const locked = await database.fetchLock(key)
  try {
    const found = parse(database, locked.copy())
    if (found.format !== "samba") return
    const watchers = found.watchers.filter((watcher) => !dead.some((other) => sameWatcher(watcher, other)))
    const bytes = writeGLock({ ...found, watchers })
    if (bytes.length > 0) locked.store(bytes)
    else locked.delete()
  } finally {
    locked.unlock()
  }
}

function wakeUp(watcher: Watcher, sender: ServerId): Uint8Array {
  const bytes = new Uint8Array(60)
  const server = (at: number, id: ServerId): void => {
    writeU32(bytes, at, id.pid.lo)
    writeU32(bytes, at + 4, id.pid.hi)
    writeU32(bytes, at + 8, id.taskId)
    writeU32(bytes, at + 12, id.vnn)
    writeU32(bytes, at + 16, id.uniqueId.lo)
    writeU32(bytes, at + 20, id.uniqueId.hi)
  }
  server(0, watcher.id)
  server(24, sender)
  writeU32(bytes, 48, RECORD_MODIFIED)
  writeU32(bytes, 52, watcher.instance.lo)
  writeU32(bytes, 56, watcher.instance.hi)
  return bytes
}

/** Waits for the message to our own watcher entry, at most `limitMs`. */
async function messageToWatcher(
  client: Client,
  watcher: Watcher,
  limitMs: number,
  signal: AbortSignal | undefined,
): Promise<void> {
  const expected = wakeUp(watcher, watcher.id)
  let listening: Cancel | undefined
  try {
    await cancellable<void>(signal, (resolve) => {
      const timer = setTimeout(resolve, limitMs)
      listening = client.session.onMessage(watcher.id.pid, (data) => {
        if (data.length < 60) return
        for (let at = 48; at < 60; at++) if (data[at] !== expected[at]) return
        clearTimeout(timer)
        resolve()
      })
      return { cancel: () => clearTimeout(timer) }
    })
  } finally {
    listening?.cancel()
  }
}

// Looking at locks.

export interface GLockWaiter {
  readonly pnn: number
  readonly pid: number
  readonly type: GLockType | undefined
}

export interface GLockState {
  /** Without its NUL. */
  readonly name: Uint8Array
  readonly format: GLockFormat
  readonly holders: readonly (GLockHolder & { readonly lives: boolean })[]
  /** Those that the protocol lets us see: Samba's watchers, and who waits for a holder of this project. */
  readonly waiters: readonly GLockWaiter[]
  readonly userData: Uint8Array
}

/** All locks of the cluster with their holders and waiters. Records in neither format are left out, and named in `unreadable`. */
export async function listGLocks(
  client: Client,
  waiting: Waiting = {},
): Promise<{ readonly locks: readonly GLockState[]; readonly unreadable: readonly Uint8Array[] }> {
  const database = await attach(client, G_LOCK_DATABASE, waiting)
  const desk = await WaitingDesk.of(client)
  const records: { name: Uint8Array; record: GLockRecord }[] = []
  const unreadable: Uint8Array[] = []
  await traverse(
    client,
    database.id,
    (bytes, keyStart, keyLength, dataStart, dataLength) => {
      const end = keyLength > 0 && bytes[keyStart + keyLength - 1] === 0 ? keyLength - 1 : keyLength
      const name = bytes.slice(keyStart, keyStart + end)
      try {
        records.push({ name, record: readGLock(bytes.slice(dataStart + 24, dataStart + dataLength)) })
      } catch (error) {
        if (!(error instanceof ProtocolError)) throw error
        unreadable.push(name)
      }
    },
    waiting,
  )
  const states = records.map(async ({ name, record }): Promise<GLockState | undefined> => {
    if (record.format === "free") return undefined
    const holders = await Promise.all(
      holdersOf(record).map(async (holder) => ({
        ...holder,
        lives: await exists(client, holder.id, record.format === "samba"),
      })),
    )
    const watchers = record.format === "samba" ? record.watchers : []
    const queues = await Promise.all(
      holders.filter(({ id, lives }) => lives && WaitingDesk.knows(id)).map(({ id }) => desk.waitersOf(id, 500)),
    )
    const waiters: GLockWaiter[] = [
      ...watchers.map(({ id }): GLockWaiter => ({ pnn: id.vnn, pid: id.pid.lo, type: undefined })),
      ...queues.flatMap((queue) =>
        (queue ?? []).map(({ pnn, pid, reading }): GLockWaiter => ({ pnn, pid, type: reading ? "read" : "write" })),
      ),
    ]
    const userData = record.format === "samba" ? record.userData : new Uint8Array(0)
    return { name, format: record.format, holders, waiters, userData }
  })
  return { locks: (await Promise.all(states)).filter((state) => state !== undefined), unreadable }
}
