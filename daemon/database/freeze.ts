// The node-wide freeze and the invalid mark: what happens to all databases at once when a node becomes inactive or a
// recovery ends (data path page 10.1, 10.6). One database's own freeze, and the databases themselves, are elsewhere.

import { INVALID_GENERATION } from "../../lib/protocol/constants.ts"

/** A database as the whole node's freeze sees it. */
export interface Freezable {
  readonly name: string
  readonly generation: number
  /** Takes all locks; `done` comes once, also if it was frozen already. */
  freeze(done: (ok: boolean) => void): void
  thaw(): void
  readonly frozen: boolean
  /** Generation 1, and volatile records no longer count in a recovery. */
  invalidate(generation: number): void
}

export class NodeFreeze {
  private waiting: ((ok: boolean) => void)[] = []
  private state: "none" | "pending" | "frozen" = "none"

  constructor(private readonly databases: () => Iterable<Freezable>) {}

  get frozen(): boolean {
    return this.state === "frozen"
  }

  /** Freezes every database. Who asks while that is under way waits for the same end. */
  freeze(done: (ok: boolean) => void): void {
    if (this.state === "frozen") {
      done(true)
      return
    }
    this.waiting.push(done)
    if (this.state === "pending") return
    this.state = "pending"
    let left = 1
    let good = true
    const one = (ok: boolean) => {
      good &&= ok
      if (--left > 0 || this.state !== "pending") return
      this.state = good ? "frozen" : "none"
      this.tell(good)
    }
    for (const database of this.databases()) {
      left++
      database.freeze(one)
    }
    one(true)
  }

  thaw(): void {
    const was = this.state
    this.state = "none"
    if (was === "none") return
    for (const database of this.databases()) database.thaw()
    this.tell(false)
  }

  /** What a node does that becomes inactive: its records must not compete with what the others do from now on. */
  invalidate(): void {
    for (const database of this.databases()) database.invalidate(INVALID_GENERATION)
  }

  /** The databases that a recovery has left behind on another generation. */
  others(generation: number): Freezable[] {
    return [...this.databases()].filter((database) => database.generation !== generation)
  }

  get allFrozen(): boolean {
    for (const database of this.databases()) if (!database.frozen) return false
    return this.state === "frozen"
  }

  private tell(ok: boolean): void {
    const waiting = this.waiting
    this.waiting = []
    for (const done of waiting) done(ok)
  }
}
