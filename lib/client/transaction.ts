// Transactions on persistent and replicated databases (client-library 19): the cluster-wide lock, changes collected in memory, one
// TRANS3_COMMIT that all nodes apply or none, and the sequence number that tells how a commit ended that a recovery cut off. The lock is
// g-lock.ts's affair; what the nodes do is the daemon's.

import { encode } from "../protocol/codec.ts"
import { CURRENT_NODE, NodeFlag, SEQNUM_KEY } from "../protocol/constants.ts"
import { readU32, writeU32 } from "../protocol/header.ts"
import { type RecData, recBuffer } from "../protocol/structs.ts"
import { add, equal, type Word64, word64, ZERO64 } from "../protocol/word64.ts"
import { type Client, ControlError, cancellable, type Waiting } from "./client.ts"
import { type Database, DatabaseError, HEADER_SIZE } from "./database.ts"
import { GLock, type GLockFormat } from "./g-lock.ts"
import type { ControlReply } from "./session.ts"

/** Key of the sequence number record, with its NUL. */
const SEQUENCE_KEY: Uint8Array = Buffer.from(`${SEQNUM_KEY}\0`)
/** After a commit that failed and changed nothing: Samba's pauses; the stock client makes none (ms). */
const RETRY_FIRST_MS = 10
const RETRY_MAX_MS = 1000
/** While something of a commit is awaited, the own node is asked so often whether it still takes part in the cluster (ms). */
const ACTIVE_LOOK_MS = 2000
/** On a node with one of these nothing is answered, and no file is readable, before it is back. */
const INACTIVE = NodeFlag.BANNED | NodeFlag.STOPPED | NodeFlag.DELETED

export interface TransactionOptions extends Waiting {
  /** Takes the lock for reading: others may read at the same time, stores are refused. */
  readonly readonly?: boolean
  /** How to write a lock record that is free: see GLockOptions. */
  readonly format?: GLockFormat
}

interface Change {
  readonly key: Uint8Array
  /** Header and data. */
  readonly value: Uint8Array
}

/** The name of the g_lock that guards a database's transactions, without its NUL. */
export function transactionLockName(dbId: number): string {
  return `transaction_db_0x${dbId.toString(16).padStart(8, "0")}`
}

const EMPTY = new Uint8Array(0)

/** Maps take no bytes as keys. */
const textOf = (key: Uint8Array): string => Buffer.from(key.buffer, key.byteOffset, key.length).toString("latin1")

function sameData(value: Uint8Array | undefined, data: Uint8Array): boolean {
  if (value === undefined) return data.length === 0
  return Buffer.compare(value.subarray(HEADER_SIZE), data) === 0
}

export class Transaction {
  private readonly changes = new Map<string, Change>()
  private ended = false

  private constructor(
    private readonly client: Client,
    readonly database: Database,
    readonly readonly: boolean,
    private readonly lock: GLock,
  ) {}

  /**
   * Starts a transaction, waiting without limit, unless told otherwise, for others on the same database. Nobody may hold a record lock of a
   * volatile database meanwhile: a recovery would wait for that, and the transaction for the recovery.
   * @throws DatabaseError EINVAL for a volatile database, and what GLock.acquire() raises
   */
  static async start(client: Client, database: Database, options: TransactionOptions = {}): Promise<Transaction> {
    if (database.kind === "volatile") {
      throw new DatabaseError(database.name, "EINVAL", "volatile databases have no transactions")
    }
    const { readonly = false, format, timeoutMs, signal } = options
    const lock = await GLock.acquire(client, {
      name: transactionLockName(database.id),
      type: readonly ? "read" : "write",
      taskId: database.id,
      timeoutMs,
      signal,
      ...(format === undefined ? {} : { format }),
    })
    return new Transaction(client, database, readonly, lock)
  }

  /** A record's data as this transaction sees it; undefined for a missing, empty or deleted one. */
  async fetch(key: Uint8Array): Promise<Uint8Array | undefined> {
    this.refuseEnded()
    const value = this.changes.get(textOf(key))?.value ?? (await this.database.localRecord(key))
    return value === undefined || value.length <= HEADER_SIZE ? undefined : value.slice(HEADER_SIZE)
  }

  /** Stores when committed. Data that is there already is no change; the last of several stores is the one that counts. @throws DatabaseError EINVAL in a readonly one */
  async store(key: Uint8Array, data: Uint8Array): Promise<void> {
    this.refuseEnded()
    if (this.readonly) throw new DatabaseError(this.database.name, "EINVAL", "the transaction is for reading only")
    const text = textOf(key)
    const before = this.changes.get(text)?.value ?? (await this.database.localRecord(key))
    if (sameData(before, data)) return
    this.changes.set(text, { key: key.slice(), value: this.nextValue(before, data) })
  }

  /** Stores an empty record: clients never remove one. */
  delete(key: Uint8Array): Promise<void> {
    return this.store(key, EMPTY)
  }

  /**
   * Visits all records as this transaction sees them, in no order, without empty ones and the sequence number. The visitor returns
   * true to end it, and may store.
   */
  async traverse(
    // biome-ignore lint/suspicious/noConfusingVoidType: a visitor that never ends the walk returns nothing
    visitor: (key: Uint8Array, data: Uint8Array) => boolean | void | Promise<boolean | void>,
  ): Promise<void> {
    this.refuseEnded()
    const seen = new Map<string, { key: Uint8Array; data: Uint8Array }>()
    await this.database.traverseLocal((bytes, keyStart, keyLength, dataStart, dataLength) => {
      if (dataLength <= HEADER_SIZE) return
      const key = bytes.slice(keyStart, keyStart + keyLength)
      seen.set(textOf(key), { key, data: bytes.slice(dataStart + HEADER_SIZE, dataStart + dataLength) })
    })
    for (const [text, { key, value }] of this.changes) {
      if (value.length <= HEADER_SIZE) seen.delete(text)
      else seen.set(text, { key, data: value.slice(HEADER_SIZE) })
    }
    seen.delete(textOf(SEQUENCE_KEY))
    for (const { key, data } of seen.values()) if ((await visitor(key, data)) === true) break
  }

  /** How many records a commit would change. */
  get changed(): number {
    return this.changes.size
  }

  /**
   * Makes all changes, on all nodes, and releases the lock. When it resolves they are there; a commit that fails while a recovery runs is
   * tried again for as long as it takes. With nothing changed it is cancel().
   * @throws DatabaseError EIO: somebody else's commit came between, or the node is or was banned or stopped: the message says whether the
   *   outcome is known, and the lock is released when the node is back. ControlError "closed": the outcome is not known
   */
  async commit(): Promise<void> {
    this.refuseEnded()
    if (this.changes.size === 0) return await this.cancel()
    this.ended = true
    const { database } = this
    const local = await this.whileActive("nothing was committed", (signal) =>
      database.localRecord(SEQUENCE_KEY, { signal }),
    )
    const before = this.sequenceOf(local)
    const after = add(before, 1)
    const number = new Uint8Array(8)
    writeU32(number, 0, after.lo)
    writeU32(number, 4, after.hi)
    const records: RecData[] = [...this.changes.values()].map(({ key, value }) => ({ reqid: 0, key, data: value }))
    records.push({ reqid: 0, key: SEQUENCE_KEY, data: this.nextValue(local, number) })
    await this.send(encode(recBuffer, { dbId: database.id, records }), before, after)
    await this.lock.release()
  }

  /** Forgets all changes and releases the lock. */
  async cancel(): Promise<void> {
    this.refuseEnded()
    this.ended = true
    await this.lock.release()
  }

  private async send(payload: Uint8Array, before: Word64, after: Word64): Promise<void> {
    const { session } = this.client
    for (let pauseMs = RETRY_FIRST_MS; ; pauseMs = Math.min(2 * pauseMs, RETRY_MAX_MS)) {
      if (!(await this.whileActive("nothing was committed", (signal) => this.lock.isHeld({ signal })))) {
        throw new DatabaseError(
          this.database.name,
          "EIO",
          "the cluster went on without this node: nothing was committed",
        )
      }
      const reply = await this.whileActive(UNKNOWN, (signal) =>
        cancellable<ControlReply>(signal, (resolve) =>
          session.request("TRANS3_COMMIT", session.pnn, { payload }, resolve),
        ),
      )
      if (reply.ok) return
      if (reply.reason !== "status") {
        throw new ControlError("TRANS3_COMMIT", session.pnn, reply.reason, reply.status, reply.error, reply.cause)
      }
      // The recovery that cut it off has given all nodes the old state or the new one: the number says which.
      const local = await this.whileActive(UNKNOWN, (signal) => this.database.localRecord(SEQUENCE_KEY, { signal }))
      const now = this.sequenceOf(local)
      if (equal(now, after) && (await this.whileActive(UNKNOWN, (signal) => this.isThere(signal)))) return
      if (!equal(now, before)) {
        await this.lock.release()
        throw new DatabaseError(this.database.name, "EIO", "another commit came between: sequence number mismatch")
      }
      await Bun.sleep(pauseMs)
    }
  }

  /** Whether the local file has all that this transaction changes: the number alone does not tell whose commit it counts. */
  private async isThere(signal: AbortSignal): Promise<boolean> {
    for (const { key, value } of this.changes.values()) {
      if (!sameData(await this.database.localRecord(key, { signal }), value.subarray(HEADER_SIZE))) return false
    }
    return true
  }

  /** What comes of `work`, unless the node turns out to be banned or stopped: that may last, and a stock client waits for its end. */
  private async whileActive<T>(outcome: string, work: (signal: AbortSignal) => T | Promise<T>): Promise<T> {
    const stop = new AbortController()
    const look = async (): Promise<void> => {
      const flags = await ownFlags(this.client)
      if (over) return
      if ((flags & INACTIVE) === 0) {
        timer = setTimeout(look, ACTIVE_LOOK_MS)
        return
      }
      const why = (flags & NodeFlag.BANNED) !== 0 ? "banned" : "stopped"
      stop.abort(new DatabaseError(this.database.name, "EIO", `node ${this.client.pnn} is ${why}: ${outcome}`))
    }
    let over = false
    let timer = setTimeout(look, ACTIVE_LOOK_MS)
    try {
      return await work(stop.signal)
    } catch (error) {
      // Not before the node is back, and then nobody else should have to wait for this.
      if (stop.signal.aborted) this.lock.release().catch(() => {})
      throw error
    } finally {
      over = true
      clearTimeout(timer)
    }
  }

  private sequenceOf(value: Uint8Array | undefined): Word64 {
    if (value === undefined || value.length === HEADER_SIZE) return ZERO64
    if (value.length !== HEADER_SIZE + 8) {
      throw new DatabaseError(this.database.name, "EINVAL", `a sequence number of ${value.length - HEADER_SIZE} bytes`)
    }
    return word64(readU32(value, HEADER_SIZE + 4), readU32(value, HEADER_SIZE))
  }

  /** Header and data of the next version of a record: rsn one up for each store, this node its dmaster. */
  private nextValue(before: Uint8Array | undefined, data: Uint8Array): Uint8Array {
    const value = new Uint8Array(HEADER_SIZE + data.length)
    if (before !== undefined) value.set(before.subarray(0, HEADER_SIZE))
    const rsn = add(word64(readU32(value, 4), readU32(value, 0)), 1)
    writeU32(value, 0, rsn.lo)
    writeU32(value, 4, rsn.hi)
    writeU32(value, 8, this.client.pnn)
    value.set(data, HEADER_SIZE)
    return value
  }

  private refuseEnded(): void {
    if (this.ended) throw new DatabaseError(this.database.name, "EINVAL", "the transaction has ended")
  }
}

const UNKNOWN = "whether it was committed shows when it is back"

/** Flags of the client's node, as far as it answers. */
async function ownFlags(client: Client): Promise<number> {
  try {
    const map = await client.control("GET_NODEMAP", CURRENT_NODE, undefined, { timeoutMs: ACTIVE_LOOK_MS })
    return map.find(({ pnn }) => pnn === client.pnn)?.flags ?? 0
  } catch {
    // Whoever waits learns by himself when the connection is gone.
    return 0
  }
}

/** The sequence number of a persistent or replicated database in the local file: how many transactions it has seen. */
export async function sequenceNumber(database: Database, waiting: Waiting = {}): Promise<Word64> {
  const value = await database.localRecord(SEQUENCE_KEY, waiting)
  if (value === undefined || value.length !== HEADER_SIZE + 8) return ZERO64
  return word64(readU32(value, HEADER_SIZE + 4), readU32(value, HEADER_SIZE))
}
