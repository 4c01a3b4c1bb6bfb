// What all loads have in common: what they are given, what they must offer, and the pace of a loop that never waits for anything.

import { attach } from "../../../lib/client/attach.ts"
import type { Client } from "../../../lib/client/client.ts"
import type { Database, LockedRecord } from "../../../lib/client/database.ts"
import { readU32 } from "../../../lib/protocol/header.ts"
import type { Arena } from "../arena.ts"
import type { Histogram } from "../histogram.ts"
import type { Settled, WorkerPlan } from "../plan.ts"

export interface LoadContext {
  readonly plan: WorkerPlan
  readonly client: Client
  readonly arena: Arena
  /** Notes something that must not be. The run goes on; it has failed. */
  violation(text: string): void
}

/** The work of one process. */
export interface Load {
  /** The database it works on, if any. */
  readonly database?: Database | undefined
  /** Works while the arena says so, and counts in it. With a histogram it notes how long each operation took. */
  run(latency: Histogram | undefined): Promise<void>
  /** Everybody has stopped: what the cluster says now. */
  settle(): Promise<Settled>
}

/** So many operations between two looks at the clock and the end. */
export const BATCH = 32
/** The event loop gets its turn this often (ms): messages for this client would wait for ever otherwise. */
const TURN_MS = 20

/** Lets the event loop have its turn now and then. */
export class Pace {
  private last = performance.now()

  /** Undefined: go on at once. */
  turn(): Promise<void> | undefined {
    const now = performance.now()
    if (now - this.last < TURN_MS) return undefined
    this.last = now
    return new Promise((resolve) => setImmediate(resolve))
  }
}

export function attached(context: LoadContext, readonly = false): Promise<Database> {
  const { client, plan } = context
  return attach(client, plan.database, { kind: plan.kind, ...(readonly ? { readonly: true } : {}) })
}

/** A value whose first four bytes are a counter, and whose last four are too where there is room, so that half a value shows. */
export class CounterValue {
  readonly bytes: Uint8Array
  private readonly view: DataView
  private readonly tail: number

  constructor(size: number) {
    this.bytes = new Uint8Array(Math.max(4, size)).fill(0x76)
    this.view = new DataView(this.bytes.buffer)
    this.tail = this.bytes.length >= 8 ? this.bytes.length - 4 : 0
  }

  set(counter: number): Uint8Array {
    this.view.setUint32(0, counter, true)
    if (this.tail > 0) this.view.setUint32(this.tail, counter, true)
    return this.bytes
  }
}

/** The counter in a value, -1 if the two ends of it differ. A record without data counts as 0, as in the stock generators. */
export function counterOf(bytes: Uint8Array, start: number, length: number): number {
  if (length < 4) return 0
  const counter = readU32(bytes, start)
  return length >= 8 && readU32(bytes, start + length - 4) !== counter ? -1 : counter
}

/** Reads a counter under its lock, from wherever the record is. */
export async function readCounter(database: Database, key: Uint8Array): Promise<number> {
  const locked = database.fetchLock(key, "write", { timeoutMs: 10_000 })
  const record: LockedRecord = locked instanceof Promise ? await locked : locked
  try {
    return record.parse(counterOf)
  } finally {
    record.unlock()
  }
}
