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
 * How a wait ended. "granted": the record names us. "woken": the holder has released. With both comes the queue behind us. "late": we are in
 * its queue, but it takes long. "deaf": no answer, so it may be dead.
 */
export type Waited =
  | { readonly end: "granted" | "woken"; readonly queue: readonly WaiterPlace[] }
  | { readonly end: "late" | "deaf" }

/** A lock's key in g_lock.tdb, and the same for maps, which take no bytes. */
export interface LockKey {
  readonly bytes: Uint8Array
  readonly name: string
}

export function lockKey(bytes: Uint8Array): LockKey {
  return { bytes, name: Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString("latin1") }
}

/** How a client came to a lock that it has, or had until now. */
interface Turn {
  /** Got it from somebody else then; all times by the clock of this process (ms). */
  readonly since: number
  /** It went from hand to hand since then, and was never left free. */
  readonly stretchSince: number
  /** Free since then, if it has not been taken again. */
  freeSince: number
}

/** A client keeps a lock that others wait for so long, if it takes it again and again; then the next one gets it from its hand (ms). */
const TURN_MS = 10
/** Passed on from hand to hand, or taken again at once, a lock is never free; after so long it is, for those who only look now and then (ms). */
const STRETCH_MS = 100
/** So long: more than a stock client's pause between two looks (ms). */
const FREE_MS = 2
/** So many locks are remembered. What is known of them matters for milliseconds, so that all of it may be forgotten when there are more. */
const KEPT_MAX = 1000
/** Whom a lock was given to is asked first for so long (ms). */
const SUCCESSOR_MS = 1000

let clients = 0
const desks = new WeakMap<Client, WaitingDesk>()

/** One client's part: the queues of the locks that it holds, and its own waits. */
export class WaitingDesk {
  private readonly number = ++clients & 0xffff
  private tokens = 0
  /** Queues of locks held, by ticket. */
  private readonly held = new Map<number, WaiterPlace[]>()
  /** Tickets whose queues have got somebody since that was asked last. */
  private readonly arrived = new Set<number>()
  /** Locks just released whose queues wait for this client to lock again, or to go on: by key, with what ends that. */
  private readonly lingering = new Map<string, { readonly ticket: number; readonly end: () => void }>()
  /** Those of this turn of the event loop that are to end with it. */
  private recent = new Set<{ readonly end: () => void }>()
  private sweeping = false
  /** By the locks' names, as the two after it. */
  private readonly turns = new Map<string, Turn>()
  private readonly successors = new Map<string, { readonly id: ServerId; readonly since: number }>()
  private readonly pauses = new Map<string, Promise<void>>()
  private readonly waits = new Map<number, { queued(): void; end(waited: Waited): void }>()
  /** The wait of an attempt, by ticket: it may stand in a queue with an earlier one, too. */
  private readonly waitOf = new Map<number, { end(waited: Waited): void }>()
  /** Tickets of attempts under way: a lock that is granted to one of them between two waits is found at its next look. */
  private readonly takings = new Set<number>()
  /** Called with a lock that was granted to an attempt that is over. */
  onUnwanted: (waiter: WaiterPlace, queue: readonly WaiterPlace[], key: LockKey) => void = () => {}
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

  /** The same for one that was taken by looking or as a gift: who lingered for it, or has asked already, is in its queue, too. */
  takes(key: LockKey, ticket: number, queue: readonly WaiterPlace[]): void {
    const lingered = this.adopt(key)
    this.successors.delete(key.name)
    const turn = this.turns.get(key.name)
    if (turn === undefined || performance.now() - turn.freeSince > FREE_MS) this.beginTurn(key, 0)
    else turn.freeSince = Number.POSITIVE_INFINITY
    const early = this.held.get(ticket)
    this.held.set(ticket, early === undefined ? [...lingered, ...queue] : [...lingered, ...queue, ...early])
  }

  private beginTurn(key: LockKey, stretchMs: number): void {
    const since = performance.now()
    if (this.turns.size >= KEPT_MAX) this.turns.clear()
    this.turns.set(key.name, { since, stretchSince: since - stretchMs, freeSince: Number.POSITIVE_INFINITY })
  }

  /** What is to become of a lock that is released now, and that nobody else holds. */
  nextStep(key: LockKey, ticket: number, outsider: boolean): "free" | "granted" | "linger" | "pause" {
    const turn = this.turns.get(key.name)
    const now = performance.now()
    if (turn !== undefined) turn.freeSince = now
    const isOver = turn === undefined || now - turn.since > TURN_MS
    if ((turn !== undefined && now - turn.stretchSince > STRETCH_MS) || (outsider && isOver)) return "pause"
    if (this.next(ticket).length === 0) return "free"
    return isOver ? "granted" : "linger"
  }

  /** Whether somebody has joined the queue since this was asked last. */
  hasArrivals(ticket: number): boolean {
    return this.arrived.delete(ticket)
  }

  /** Whom this client has given the lock to just now, if it has not had it since. */
  successor({ name }: LockKey): ServerId | undefined {
    const successor = this.successors.get(name)
    this.successors.delete(name)
    return successor !== undefined && performance.now() - successor.since < SUCCESSOR_MS ? successor.id : undefined
  }

  /** As linger(), but the lock is left free for FREE_MS, in which this client does not take it. */
  pause(ticket: number, key: LockKey, end: () => void): void {
    this.turns.delete(key.name)
    const lingering = this.lingers(ticket, key, end)
    const pause = new Promise<void>((resolve) => {
      setTimeout(() => {
        this.pauses.delete(key.name)
        lingering.end()
        resolve()
      }, FREE_MS)
    })
    this.pauses.set(key.name, pause)
  }

  /** Until the pause of a lock is over, if there is one. */
  pausing({ name }: LockKey): Promise<void> | undefined {
    return this.pauses.size === 0 ? undefined : this.pauses.get(name)
  }

  /**
   * The lock is free, but the client's turn is not over: a program that takes it again at once gets it without a record going round. If
   * nothing comes of that in this turn of the event loop, `end` is called, which has to let the queue go on.
   */
  linger(ticket: number, key: LockKey, end: () => void): void {
    this.recent.add(this.lingers(ticket, key, end))
    // One immediate for all of a turn: a loop over a lock releases it hundreds of times in one.
    if (this.sweeping) return
    this.sweeping = true
    setImmediate(() => {
      this.sweeping = false
      const { recent } = this
      this.recent = new Set()
      for (const lingering of recent) lingering.end()
    })
  }

  private lingers(ticket: number, { name }: LockKey, end: () => void): { readonly end: () => void } {
    const lingering = {
      ticket,
      end: () => {
        if (this.lingering.get(name) !== lingering) return
        this.lingering.delete(name)
        end()
      },
    }
    this.lingering.set(name, lingering)
    return lingering
  }

  /** The queue of a lock that lingers, for whom of this client has it now. */
  private adopt({ name }: LockKey): readonly WaiterPlace[] {
    const lingering = this.lingering.get(name)
    if (lingering === undefined) return []
    this.lingering.delete(name)
    this.recent.delete(lingering)
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
    return nextOf(this.held.get(ticket) ?? [])
  }

  /** The lock is free: wakes those who are next. With `granted` the record names them as holders already. The first gets the queue. */
  released(ticket: number, granted: boolean, key: LockKey): void {
    const queue = this.held.get(ticket) ?? []
    this.held.delete(ticket)
    this.arrived.delete(ticket)
    if (queue.length === 0) return
    const next = nextOf(queue)
    const turn = this.turns.get(key.name)
    this.turns.delete(key.name)
    const stretchMs = granted && turn !== undefined ? performance.now() - turn.stretchSince : 0
    if (granted && next.length === 1 && !next[0]!.reading) {
      if (this.successors.size >= KEPT_MAX) this.successors.clear()
      this.successors.set(key.name, { id: idOf(next[0]!), since: performance.now() })
    }
    next.forEach((waiter, index) => {
      this.wake(waiter, index === 0 ? queue.slice(next.length) : [], granted, key.bytes, stretchMs)
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
        this.waitOf.delete(self.ticket)
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
      this.waitOf.set(self.ticket, { end })
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

  private wake(
    waiter: WaiterPlace,
    queue: readonly WaiterPlace[],
    granted: boolean,
    key: Uint8Array,
    stretchMs = 0,
  ): void {
    const content = [toPlace(waiter), granted, key, queue.map(toPlace), stretchMs]
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
          this.arrived.add(subject)
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
    if (!Array.isArray(content) || content.length !== 5) return
    const [self] = fromPlaces([content[0]])
    const [, granted, key, , stretchMs] = content as unknown[]
    const queue = fromPlaces(content[3])
    if (self === undefined || typeof granted !== "boolean" || typeof stretchMs !== "number") return
    if (!(key instanceof Uint8Array)) return
    if (!granted) {
      const wait = this.waits.get(token)
      if (wait === undefined) this.wakeAll(queue)
      else wait.end({ end: "woken", queue })
      return
    }
    const lock = lockKey(key)
    if (!this.takings.has(self.ticket)) {
      const held = this.held.get(self.ticket)
      if (held === undefined) {
        this.onUnwanted(self, queue, lock)
        return
      }
      // It was found in the record before this came, and is in use: only who waits behind it is news.
      const earlier = queue.map((waiter) => held.find((other) => sameLock(other, waiter)) ?? waiter)
      const later = held.filter((waiter) => !earlier.includes(waiter))
      this.holds(self.ticket, [...earlier, ...later])
      return
    }
    // It is ours from now on, and the next packet may be somebody who asks for it. Between two waits it is found in the record.
    this.holds(self.ticket, queue)
    this.beginTurn(lock, stretchMs)
    this.waitOf.get(self.ticket)?.end({ end: "granted", queue: [] })
  }
}

const NO_KEY = new Uint8Array(0)

function nextOf(queue: readonly WaiterPlace[]): readonly WaiterPlace[] {
  let count = Math.min(1, queue.length)
  if (queue[0]?.reading === true) while (queue[count]?.reading === true) count++
  return queue.slice(0, count)
}

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
