// Is the net tight? Each test breaks one rule of the cluster on purpose, in the running code, and looks how many histories
// it takes until the simulator finds out. A rule whose loss nobody notices would be untested.

import { afterEach, expect, test } from "bun:test"
import { Flags } from "../../daemon/cluster/flags.ts"
import { Leadership } from "../../daemon/cluster/leader.ts"
import { RecoveryDaemon } from "../../daemon/recovery/recovery-daemon.ts"
import { Watch } from "../../daemon/recovery/watch.ts"
import { planOf, runPlan } from "./histories.ts"

/** Histories that a broken rule may survive. */
const SEEDS_MAX = 150

type Method = (this: Record<string, never>, ...args: never[]) => unknown
let restore: () => void = () => {}
afterEach(() => restore())

/** Replaces a method of the daemon, private or not, until the test has ended. */
function replace(room: { readonly prototype: object }, name: string, by: (original: Method) => Method): void {
  const methods = room.prototype as Record<string, Method>
  const original = methods[name]
  if (original === undefined) throw new Error(`there is no method ${name} to break`)
  methods[name] = by(original)
  restore = () => {
    methods[name] = original
  }
}

function firstFailure(): { readonly seed: number; readonly failure: string } | undefined {
  for (let seed = 1; seed <= SEEDS_MAX; seed++) {
    const { failure } = runPlan(planOf(seed))
    if (failure !== undefined) return { seed, failure }
  }
  return undefined
}

interface Mutation {
  readonly rule: string
  readonly room: { readonly prototype: object }
  readonly method: string
  readonly by: (original: Method) => Method
  readonly found: RegExp
}

const anything = /./

const mutations: readonly Mutation[] = [
  {
    rule: "a leader whose lock is lost goes on leading",
    room: Leadership,
    method: "lockLost",
    by: () => () => {},
    found: /believes to hold a lock|both lead/,
  },
  {
    rule: "whoever gives up the lock only forgets it",
    room: Leadership,
    method: "releaseLock",
    by: () =>
      function (this: { held: unknown }) {
        this.held = undefined
      } as unknown as Method,
    found: /holds the lock and does not know it/,
  },
  {
    rule: "a node that can not get the lock leads all the same",
    room: Leadership,
    method: "race",
    by: () =>
      function (this: { lead: () => void }) {
        this.lead()
      } as unknown as Method,
    found: /leads without the lock/,
  },
  {
    rule: "an inactive node may lead",
    room: Leadership,
    method: "canLead",
    by: () => () => true,
    found: /leads although inactive|not whole/,
  },
  {
    rule: "node 0 reads election messages the wrong way round",
    room: Leadership,
    method: "wins",
    by: (original) =>
      function (this: { port: { pnn: () => number } }, ...args: never[]) {
        const wins = original.apply(this as never, args) as boolean
        return this.port.pnn() === 0 ? !wins : wins
      } as unknown as Method,
    found: anything,
  },
  {
    rule: "of two leaders that meet neither gives way",
    room: Leadership,
    method: "prevailsOver",
    by: () => () => true,
    found: /not whole/,
  },
  {
    rule: "nobody watches for the leader's broadcasts",
    room: Leadership,
    method: "leaderTimedOut",
    by: () => () => {},
    found: /not whole/,
  },
  {
    rule: "a recovery goes on after its leader has lost the leadership",
    room: RecoveryDaemon,
    method: "leaderChanged",
    by: () => () => {},
    found: /without being leader/,
  },
  {
    rule: "all recoveries have the same generation",
    room: Watch,
    method: "newGeneration",
    by: () => () => 7,
    found: /has vnnmaps/,
  },
  {
    rule: "flags are not spread",
    room: Watch,
    method: "spreadFlags",
    by: () =>
      function* () {
        yield* []
        return true
      } as unknown as Method,
    found: /sees flags/,
  },
  {
    rule: "a node believes what others say of its own flags",
    room: Flags,
    method: "modify",
    by: (original) =>
      function (this: { state: { pnn: number; self: { flags: number } } }, change: { pnn: number; newFlags: number }) {
        if (change.pnn === this.state.pnn) this.state.self.flags = change.newFlags
        return original.call(this as never, change as never)
      } as unknown as Method,
    found: /own flag/,
  },
]

for (const { rule, room, method, by, found } of mutations) {
  test(`found out: ${rule}`, () => {
    replace(room, method, by)
    const failing = firstFailure()
    expect(failing?.failure).toMatch(found)
  }, 300_000)
}
