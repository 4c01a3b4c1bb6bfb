// Waiting for a holder of a g_lock without asking all the time: between clients of this project a waiter tells the holder where it is,
// and the holder passes the lock's queue to the first of it on release. Messages of our own beside the protocol (client-library 15: any
// srvid that nobody registered is dropped); holders of other kinds never see them. What a lock is, is in g-lock.ts.

import { pack, unpack } from "msgpackr"
import type { ServerId } from "../protocol/structs.ts"
import { type Word64, word64 } from "../protocol/word64.ts"
import type { Client } from "./client.ts"

/** Upper half of the unique id in our holders' entries, with the client's number in this process below. Tells whom to ask. */
const OWN_MARK = 0xc7db0000
/** Upper half of the srvid on which a client hears of waiters, in the client library's range; the lower half is the pid. */
const SRVID_MARK = 0xbe470000

const WAIT = 1
const QUEUED = 2
const WAKE = 3
const ASK = 4
const WAITERS = 5

/** Where a waiter is, and how it knows what a message to it is about. */
export interface WaiterPlace {
  readonly pnn: number
  readonly pid: number
  /** Which client of that process. */
  readonly client: number
  readonly token: number
  readonly reading: boolean
}

type Place = [pnn: number, pid: number, client: number, token: number, reading: boolean]

const toPlace = (waiter: WaiterPlace): Place => [waiter.pnn, waiter.pid, waiter.client, waiter.token, waiter.reading]

function isPlace(value: unknown): value is Place {
  return (
    Array.isArray(value) &&
    value.length === 5 &&
    value.slice(0, 4).every((part) => typeof part === "number") &&
    typeof value[4] === "boolean"
  )
}

function fromPlaces(value: unknown): WaiterPlace[] {
  if (!Array.isArray(value)) return []
  return value.filter(isPlace).map(([pnn, pid, client, token, reading]) => ({ pnn, pid, client, token, reading }))
}

/**
 * How a wait ended. "woken": the holder has released, and hands over the queue behind us. "late": we are in its queue, but it takes long.
 * "deaf": no answer, so it may be dead.
 */
export type Waited =
  | { readonly end: "woken"; readonly queue: readonly WaiterPlace[] }
  | { readonly end: "late" }
  | { readonly end: "deaf" }

let clients = 0
const desks = new WeakMap<Client, WaitingDesk>()

/** One client's part: the queues of the locks that it holds, and its own waits. */
export class WaitingDesk {
  private readonly number = ++clients & 0xffff
  private tokens = 0
  /** Queues of locks held, by ticket. */
  private readonly held = new Map<number, WaiterPlace[]>()
  private readonly waits = new Map<number, { queued(): void; wake(queue: readonly WaiterPlace[]): void }>()
  private readonly questions = new Map<number, (waiters: readonly WaiterPlace[]) => void>()

  private constructor(private readonly client: Client) {}

  static async of(client: Client): Promise<WaitingDesk> {
    const known = desks.get(client)
    if (known !== undefined) return known
    const desk = new WaitingDesk(client)
    desks.set(client, desk)
    await client.onMessage(srvidOf(process.pid, desk.number), (data) => desk.onMessage(data))
    return desk
  }

  /** A unique id for a new holder of this client, from which others know whom to ask. Its lower half is the ticket of that lock. */
  newUniqueId(): Word64 {
    return word64(OWN_MARK | this.number, ++this.tokens)
  }

  /** Whether a holder is a client of this project. */
  static knows(id: ServerId): boolean {
    return (id.uniqueId.hi & 0xffff0000) >>> 0 === OWN_MARK
  }

  /** The lock is held from now on: who asks is put into this queue. */
  holds(ticket: number, queue: readonly WaiterPlace[]): void {
    this.held.set(ticket, [...queue])
  }

  hasWaiters(ticket: number): boolean {
    return (this.held.get(ticket)?.length ?? 0) > 0
  }

  /** The lock is free: wakes the first in the queue, and readers behind a reader; the rest of the queue goes with the first. */
  released(ticket: number): void {
    const queue = this.held.get(ticket) ?? []
    this.held.delete(ticket)
    let first = 1
    if (queue[0]?.reading === true) while (queue[first]?.reading === true) first++
    queue.slice(0, first).forEach((waiter, index) => {
      this.wake(waiter, index === 0 ? queue.slice(first) : [])
    })
  }

  /** Wakes all: for a queue that can't be kept. */
  wakeAll(queue: readonly WaiterPlace[]): void {
    for (const waiter of queue) this.wake(waiter, [])
  }

  /**
   * Tells a holder that is of this project that we wait, and waits: until it releases, or for `deafMs` without any answer from it, or for
   * `limitMs` after it has put us into its queue.
   */
  waitFor(holder: ServerId, reading: boolean, deafMs: number, limitMs: number, signal?: AbortSignal): Promise<Waited> {
    const token = ++this.tokens
    return new Promise<Waited>((resolve, reject) => {
      let timer = setTimeout(() => settle({ end: "deaf" }), deafMs)
      const onAbort = (): void => {
        finish()
        reject(signal?.reason)
      }
      const finish = (): void => {
        clearTimeout(timer)
        this.waits.delete(token)
        signal?.removeEventListener("abort", onAbort)
      }
      const settle = (waited: Waited): void => {
        finish()
        resolve(waited)
      }
      this.waits.set(token, {
        queued: () => {
          clearTimeout(timer)
          timer = setTimeout(() => settle({ end: "late" }), limitMs)
        },
        wake: (queue) => settle({ end: "woken", queue }),
      })
      signal?.addEventListener("abort", onAbort, { once: true })
      const place = toPlace({ pnn: this.client.pnn, pid: process.pid, client: this.number, token, reading })
      this.send(holder.vnn, holder.pid.lo, holder.uniqueId.hi & 0xffff, [WAIT, holder.uniqueId.lo, place])
    })
  }

  /** Who waits for a holder that is of this project; undefined if it does not say within `limitMs`. */
  waitersOf(holder: ServerId, limitMs: number): Promise<readonly WaiterPlace[] | undefined> {
    const token = ++this.tokens
    return new Promise((resolve) => {
      const timer = setTimeout(() => {
        this.questions.delete(token)
        resolve(undefined)
      }, limitMs)
      this.questions.set(token, (waiters) => {
        clearTimeout(timer)
        this.questions.delete(token)
        resolve(waiters)
      })
      const place = toPlace({ pnn: this.client.pnn, pid: process.pid, client: this.number, token, reading: false })
      this.send(holder.vnn, holder.pid.lo, holder.uniqueId.hi & 0xffff, [ASK, holder.uniqueId.lo, place])
    })
  }

  private wake(waiter: WaiterPlace, queue: readonly WaiterPlace[]): void {
    this.send(waiter.pnn, waiter.pid, waiter.client, [WAKE, waiter.token, queue.map(toPlace)])
  }

  private send(pnn: number, pid: number, client: number, message: unknown[]): void {
    this.client.sendMessage(pnn, srvidOf(pid, client), pack(message))
  }

  private onMessage(data: Uint8Array): void {
    const message = read(data)
    if (message === undefined) return
    const [kind, subject, rest] = message
    switch (kind) {
      case WAIT: {
        const [waiter] = fromPlaces([rest])
        if (waiter === undefined) return
        const queue = this.held.get(subject)
        // Released meanwhile: it may try at once.
        if (queue === undefined) this.wake(waiter, [])
        else {
          queue.push(waiter)
          this.send(waiter.pnn, waiter.pid, waiter.client, [QUEUED, waiter.token, null])
        }
        break
      }
      case QUEUED:
        this.waits.get(subject)?.queued()
        break
      case WAKE: {
        const wait = this.waits.get(subject)
        // Who does not wait any more passes it on.
        if (wait === undefined) this.wakeAll(fromPlaces(rest))
        else wait.wake(fromPlaces(rest))
        break
      }
      case ASK: {
        const [asker] = fromPlaces([rest])
        if (asker === undefined) return
        const waiters = (this.held.get(subject) ?? []).map(toPlace)
        this.send(asker.pnn, asker.pid, asker.client, [WAITERS, asker.token, waiters])
        break
      }
      case WAITERS:
        this.questions.get(subject)?.(fromPlaces(rest))
    }
  }
}

function srvidOf(pid: number, client: number): Word64 {
  return word64(SRVID_MARK | client, pid)
}

function read(data: Uint8Array): [kind: number, subject: number, rest: unknown] | undefined {
  try {
    const message: unknown = unpack(data)
    if (!Array.isArray(message) || message.length !== 3) return undefined
    const [kind, subject, rest] = message as unknown[]
    return typeof kind === "number" && typeof subject === "number" ? [kind, subject, rest] : undefined
  } catch {
    // Not ours: dropped, as anybody may send anything to any srvid.
    return undefined
  }
}
