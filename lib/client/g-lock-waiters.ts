// Waiting for a holder of a g_lock without asking all the time: between clients of this project a waiter tells the holder where it is,
// and on release the holder wakes the first of its queue, or hands the lock over to it, and the queue with it. Messages of our own beside
// the protocol (client-library 15: what comes for a srvid that nobody registered is dropped); holders of other kinds never see them. What
// a lock is, is in g-lock.ts.

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
const LEAVE = 6

/** Where a waiter is, how it knows what a message to it is about, and what its entry in the record would be. */
export interface WaiterPlace {
  readonly pnn: number
  readonly pid: number
  /** Which client of that process. */
  readonly client: number
  /** Which wait of that client. */
  readonly token: number
  /** Which lock of that client, or lock to be. */
  readonly ticket: number
  readonly taskId: number
  readonly reading: boolean
  /** Waits since then, by the clock of the process that has the place (ms). */
  readonly since: number
}

type Place = [
  pnn: number,
  pid: number,
  client: number,
  token: number,
  ticket: number,
  taskId: number,
  reading: boolean,
  age: number,
]

const toPlace = (waiter: WaiterPlace): Place => [
  waiter.pnn,
  waiter.pid,
  waiter.client,
  waiter.token,
  waiter.ticket,
  waiter.taskId,
  waiter.reading,
  performance.now() - waiter.since,
]

function isPlace(value: unknown): value is Place {
  return (
    Array.isArray(value) &&
    value.length === 8 &&
    value.every((part, index) => typeof part === (index === 6 ? "boolean" : "number"))
  )
}

function fromPlaces(value: unknown): WaiterPlace[] {
  if (!Array.isArray(value)) return []
  const now = performance.now()
  return value.filter(isPlace).map(([pnn, pid, client, token, ticket, taskId, reading, age]) => ({
    pnn,
    pid,
    client,
    token,
    ticket,
    taskId,
    reading,
    since: now - age,
  }))
}

/** A waiter's entry in the record. */
export function idOf(waiter: WaiterPlace): ServerId {
  return {
    pid: word64(0, waiter.pid),
    taskId: waiter.taskId,
    vnn: waiter.pnn,
    uniqueId: word64(OWN_MARK | waiter.client, waiter.ticket),
  }
}

/**
 * How a wait ended. "granted": the lock is ours. "woken": the holder has released. With both comes the queue behind us. "late": we are in
 * its queue, but it takes long. "deaf": no answer, so it may be dead.
 */
export type Waited =
  | { readonly end: "granted" | "woken"; readonly queue: readonly WaiterPlace[] }
  | { readonly end: "late" | "deaf" }

let clients = 0
const desks = new WeakMap<Client, WaitingDesk>()

/** One client's part: the queues of the locks that it holds, and its own waits. */
export class WaitingDesk {
  private readonly number = ++clients & 0xffff
  private tokens = 0
  /** Queues of locks held, by ticket. */
  private readonly held = new Map<number, WaiterPlace[]>()
  /** Locks just released whose queues wait for this client to lock again, or to go on: by key, with what ends that. */
  private readonly lingering = new Map<string, { readonly ticket: number; readonly end: () => void }>()
  private readonly waits = new Map<number, { queued(): void; end(waited: Waited): void }>()
  /** Tickets of attempts under way: a lock that is granted to one of them between two waits is found at its next look. */
  private readonly takings = new Set<number>()
  /** Called with a lock that was granted to an attempt that is over. */
  onUnwanted: (waiter: WaiterPlace, queue: readonly WaiterPlace[], key: Uint8Array) => void = () => {}
  private readonly questions = new Map<number, (waiters: readonly WaiterPlace[]) => void>()

  private constructor(private readonly client: Client) {}

  static async of(client: Client): Promise<WaitingDesk> {
    const known = desks.get(client)
    if (known !== undefined) return known
    const desk = new WaitingDesk(client)
    desks.set(client, desk)
    client.closing.add(() => desk.endLingering())
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

  /**
   * The lock is free, but its queue is young: a program that takes it again at once gets it without a record going round the cluster. If
   * nothing comes of that in this turn of the event loop, `end` is called, which has to let the queue go on.
   */
  linger(ticket: number, key: Uint8Array, end: () => void): void {
    const name = nameOf(key)
    const lingering = {
      ticket,
      end: () => {
        if (this.lingering.get(name) !== lingering) return
        this.lingering.delete(name)
        end()
      },
    }
    this.lingering.set(name, lingering)
    setImmediate(lingering.end)
  }

  /** The queue of a lock that lingers, for whom of this client has it now. */
  adopt(key: Uint8Array): readonly WaiterPlace[] {
    const name = nameOf(key)
    const lingering = this.lingering.get(name)
    if (lingering === undefined) return []
    this.lingering.delete(name)
    const queue = this.held.get(lingering.ticket) ?? []
    this.held.delete(lingering.ticket)
    return queue
  }

  private endLingering(): void {
    for (const { end } of [...this.lingering.values()]) end()
  }

  starts(ticket: number): void {
    this.takings.add(ticket)
  }

  /** The attempt is over, whatever came of it. */
  ends(ticket: number): void {
    this.takings.delete(ticket)
  }

  /** Those who get a lock next, in their order: one writer, or the readers up to the first writer. */
  next(ticket: number): readonly WaiterPlace[] {
    const queue = this.held.get(ticket) ?? []
    let count = Math.min(1, queue.length)
    if (queue[0]?.reading === true) while (queue[count]?.reading === true) count++
    return queue.slice(0, count)
  }

  /** The lock is free: wakes those who are next. With `granted` the record names them as holders already. The first gets the queue. */
  released(ticket: number, granted: boolean, key: Uint8Array): void {
    const queue = this.held.get(ticket) ?? []
    const next = this.next(ticket)
    this.held.delete(ticket)
    next.forEach((waiter, index) => {
      this.wake(waiter, index === 0 ? queue.slice(next.length) : [], granted, key)
    })
  }

  /** Wakes all: for a queue that can't be kept. */
  wakeAll(queue: readonly WaiterPlace[]): void {
    for (const waiter of queue) this.wake(waiter, [], false, NO_KEY)
  }

  /**
   * Tells a holder that is of this project that we wait, and waits: until it releases, or for `deafMs` without any answer from it, or for
   * `limitMs` after it has put us into its queue.
   */
  waitFor(
    holder: ServerId,
    self: Pick<WaiterPlace, "ticket" | "taskId" | "reading" | "since">,
    deafMs: number,
    limitMs: number,
    signal?: AbortSignal,
  ): Promise<Waited> {
    const token = ++this.tokens
    return new Promise<Waited>((resolve, reject) => {
      let timer = setTimeout(() => end({ end: "deaf" }), deafMs)
      const onAbort = (): void => {
        finish()
        reject(signal?.reason)
      }
      const finish = (): void => {
        clearTimeout(timer)
        this.waits.delete(token)
        signal?.removeEventListener("abort", onAbort)
      }
      const end = (waited: Waited): void => {
        finish()
        resolve(waited)
      }
      this.waits.set(token, {
        queued: () => {
          clearTimeout(timer)
          timer = setTimeout(() => end({ end: "late" }), limitMs)
        },
        end,
      })
      signal?.addEventListener("abort", onAbort, { once: true })
      this.tell(holder, WAIT, { ...this.place(token), ...self })
    })
  }

  /** Takes this client's attempt out of a holder's queue. */
  leave(holder: ServerId, ticket: number): void {
    this.tell(holder, LEAVE, { ...this.place(0), ticket })
  }

  private place(token: number): WaiterPlace {
    const { pnn } = this.client
    const { number: client } = this
    return { pnn, pid: process.pid, client, token, ticket: 0, taskId: 0, reading: false, since: performance.now() }
  }

  private tell(holder: ServerId, kind: number, place: WaiterPlace): void {
    this.send(holder.vnn, holder.pid.lo, holder.uniqueId.hi & 0xffff, [kind, holder.uniqueId.lo, toPlace(place)])
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
      this.tell(holder, ASK, this.place(token))
    })
  }

  private wake(waiter: WaiterPlace, queue: readonly WaiterPlace[], granted: boolean, key: Uint8Array): void {
    const content = [toPlace(waiter), granted, key, queue.map(toPlace)]
    this.send(waiter.pnn, waiter.pid, waiter.client, [WAKE, waiter.token, content])
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
        if (queue === undefined) this.wake(waiter, [], false, NO_KEY)
        else {
          const earlier = queue.findIndex((other) => sameLock(other, waiter))
          if (earlier >= 0) queue[earlier] = waiter
          else queue.push(waiter)
          this.send(waiter.pnn, waiter.pid, waiter.client, [QUEUED, waiter.token, null])
        }
        break
      }
      case QUEUED:
        this.waits.get(subject)?.queued()
        break
      case WAKE:
        this.onWake(subject, rest)
        break
      case LEAVE: {
        const [waiter] = fromPlaces([rest])
        const queue = this.held.get(subject)
        if (waiter === undefined || queue === undefined) return
        const at = queue.findIndex((other) => sameLock(other, waiter))
        if (at >= 0) queue.splice(at, 1)
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

  private onWake(token: number, content: unknown): void {
    if (!Array.isArray(content) || content.length !== 4) return
    const [self] = fromPlaces([content[0]])
    const [, granted, key] = content as unknown[]
    const queue = fromPlaces(content[3])
    if (self === undefined || typeof granted !== "boolean" || !(key instanceof Uint8Array)) return
    const wait = this.waits.get(token)
    if (wait !== undefined) wait.end({ end: granted ? "granted" : "woken", queue })
    // Between two waits it finds the lock in the record; who waits behind it has to look, too.
    else if (!granted || this.takings.has(self.ticket)) this.wakeAll(queue)
    else this.onUnwanted(self, queue, key)
  }
}

const NO_KEY = new Uint8Array(0)

/** Maps take no bytes as keys. */
const nameOf = (key: Uint8Array): string => Buffer.from(key.buffer, key.byteOffset, key.length).toString("latin1")

const sameLock = (a: WaiterPlace, b: WaiterPlace): boolean =>
  a.pnn === b.pnn && a.pid === b.pid && a.client === b.client && a.ticket === b.ticket

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
