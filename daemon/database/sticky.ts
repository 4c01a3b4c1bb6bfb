// Sticky records (data path page 7.1): a record that is fought over by many nodes stays a moment with each, so that the calls
// of that node are served at once. It marks records and holds up calls; how records move is in calls.ts.

import type { NodeEnvironment } from "../environment.ts"
import type { NodeState } from "../state.ts"
import type { Database } from "./database.ts"

/** So many records of a database may be marked at a time. */
const MARKS_MAX = 10_000

export class Sticky {
  private readonly marks = new Map<Database, Map<string, number>>()
  private readonly pins = new Map<Database, Map<string, (() => void)[]>>()

  constructor(
    private readonly state: NodeState,
    private readonly environment: NodeEnvironment,
  ) {}

  attached(database: Database): void {
    this.marks.set(database, new Map())
    this.pins.set(database, new Map())
  }

  detached(database: Database): void {
    this.marks.delete(database)
    const pinned = this.pins.get(database)
    this.pins.delete(database)
    for (const deferred of pinned?.values() ?? []) for (const again of deferred) again()
  }

  /** True: the record is pinned down here, and what `again` gives is called when that ends. */
  holdsUp(database: Database, key: Uint8Array, again: () => () => void): boolean {
    const pins = this.pins.get(database)
    if (pins === undefined || pins.size === 0) return false
    const deferred = pins.get(nameOf(key))
    if (deferred === undefined) return false
    this.environment.log.info(`Defer request for pinned down record in ${database.name}`)
    deferred.push(again())
    return true
  }

  /** A call that has come a long way was served. */
  served(database: Database, key: Uint8Array, jenkins: number, hops: number): void {
    if (hops < this.state.tunables.HopcountMakeSticky) return
    const marks = this.marks.get(database)
    if (marks === undefined) return
    const name = nameOf(key)
    const nowMs = this.environment.monotonicMs()
    const untilMs = marks.get(name)
    if (untilMs !== undefined && untilMs > nowMs) return
    if (marks.size >= MARKS_MAX) for (const [other, endMs] of marks) if (endMs <= nowMs) marks.delete(other)
    if (marks.size >= MARKS_MAX) return
    const durationS = this.state.tunables.StickyDuration
    marks.set(name, nowMs + durationS * 1000)
    const at = jenkins.toString(16).padStart(8, "0")
    this.environment.log.error(`Make record sticky for ${durationS} seconds in db ${database.name} key:0x${at}.`)
  }

  /** The record has come to this node. */
  arrived(database: Database, key: Uint8Array): void {
    const marks = this.marks.get(database)
    if (marks === undefined || marks.size === 0) return
    const name = nameOf(key)
    const untilMs = marks.get(name)
    if (untilMs === undefined) return
    if (untilMs <= this.environment.monotonicMs()) {
      marks.delete(name)
      return
    }
    const pins = this.pins.get(database)
    if (pins === undefined || pins.has(name)) return
    const pinMs = this.state.tunables.StickyPindown
    this.environment.log.info(`Pinning down record in ${database.name} for ${pinMs} ms`)
    pins.set(name, [])
    this.environment.setTimer(pinMs, () => {
      const deferred = pins.get(name) ?? []
      pins.delete(name)
      this.environment.log.info(`Pindown timeout db:${database.name}  unstick record`)
      for (const again of deferred) again()
    })
  }
}

function nameOf(key: Uint8Array): string {
  return Buffer.from(key.buffer, key.byteOffset, key.byteLength).toString("latin1")
}
