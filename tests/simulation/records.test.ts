// The main test of how records move: many random histories of clients that write under fetch-lock or read delegated copies while nodes die,
// pause, lose links and recover (records.ts), with the invariants looked at after every event. Then each rule in turn is broken on
// purpose, in the running code, to see that the checker notices. CTDB_SOAK=N runs N histories, CTDB_SEED=N begins at another.

import { afterEach, expect, test } from "bun:test"
import { Calls } from "../../daemon/database/calls.ts"
import type { Database } from "../../daemon/database/database.ts"
import { ChainLocks } from "../../daemon/database/locks.ts"
import { Delegations } from "../../daemon/database/readonly.ts"
import { RecordHeader } from "../../daemon/database/record.ts"
import { Databases } from "../../daemon/database/registry.ts"
import { RecordFlag } from "../../lib/protocol/constants.ts"
import { type Plan, planOf, runPlan, shrink } from "./records.ts"

const soak = Number(process.env.CTDB_SOAK ?? 0)
const HISTORIES = soak > 1 ? soak : soak === 1 ? 20_000 : 1000
const FIRST = Number(process.env.CTDB_SEED ?? 1)
const BLOCK = 50
const TRACE_LINES = 60
/** Histories that a broken rule may survive. */
const SEEDS_MAX = 150

function report(seed: number): string {
  const { plan, failure, world } = shrink(planOf(seed))
  const trace = world.traceText().split("\n").slice(-TRACE_LINES).join("\n")
  return `${trace}\n\n${JSON.stringify(plan)}\n${failure}\n\nreplay with: bun tests/simulation/records.ts ${seed}\n`
}

let excluded = 0
let marks = 0
let copiesRead = 0
for (let from = FIRST; from < FIRST + HISTORIES; from += BLOCK) {
  const to = Math.min(from + BLOCK, FIRST + HISTORIES) - 1
  test(`histories ${from} to ${to}: no acknowledged mark is lost, one owner, no old copy, rsn grows, all calls answered`, () => {
    for (let seed = from; seed <= to; seed++) {
      const outcome = runPlan(planOf(seed))
      if (outcome.failure !== undefined) throw new Error(`history ${seed} failed\n${report(seed)}`)
      marks += outcome.marks
      copiesRead += outcome.copiesRead
      if (outcome.excluded) excluded++
    }
  }, 300_000)
}

test("most histories were judged to their end, and had much to judge", () => {
  // Where a recovery leaves out a node that lives, what its clients write meanwhile is in no order with the others' writes.
  expect(excluded).toBeLessThan(HISTORIES * 0.08)
  expect(marks).toBeGreaterThan(HISTORIES * 100)
  expect(copiesRead).toBeGreaterThan(HISTORIES * 30)
})

test("a seed gives the same history every time, to the last line", () => {
  for (const seed of [3, 4, 5]) {
    const first = runPlan(planOf(seed))
    const second = runPlan(planOf(seed))
    expect(first.marks).toBeGreaterThan(50)
    expect(second.world.events).toBe(first.world.events)
    expect(second.world.traceText()).toBe(first.world.traceText())
  }
})

test("the plans cover every kind of fault, and histories without any", () => {
  const kinds = new Map<string, number>()
  for (let seed = 1; seed <= 1000; seed++) {
    const { faults, nodes, keys, reading } = planOf(seed)
    const found = faults.length === 0 ? ["calm"] : faults.map(({ deed }) => deed.kind)
    for (const kind of [...found, `${nodes} nodes`, `${keys} keys`, `${reading} reading`])
      kinds.set(kind, (kinds.get(kind) ?? 0) + 1)
  }
  expect([...kinds].filter(([, count]) => count < 30)).toEqual([])
  // 10 kinds of fault, none, 3 sizes of cluster, 4 numbers of keys, 3 shares of reading.
  expect(kinds.size).toBe(21)
})

// ---- broken on purpose -------------------------------------------------------------------------------------------

type Method = (this: never, ...args: never[]) => unknown
let restore: () => void = () => {}
afterEach(() => restore())

function replace(room: { readonly prototype: object }, name: string, by: (original: Method) => Method): void {
  const methods = room.prototype as Record<string, Method>
  const original = methods[name]
  if (original === undefined) throw new Error(`there is no method ${name} to break`)
  methods[name] = by(original)
  restore = () => {
    methods[name] = original
  }
}

function firstFailure(changed: (plan: Plan) => Plan = (plan) => plan): string | undefined {
  for (let seed = 1; seed <= SEEDS_MAX; seed++) {
    const { failure } = runPlan(changed(planOf(seed)))
    if (failure !== undefined) return failure
  }
  return undefined
}

/** Changes the header of a record in a node's file. */
function rewrite(database: Database, key: Uint8Array, change: (header: RecordHeader) => void): void {
  const value = database.tdb.fetch(key)
  if (value === null) return
  const header = new RecordHeader().read(value)
  change(header)
  header.write(value)
  database.tdb.store(key, value)
}

interface Mutation {
  readonly rule: string
  readonly room: { readonly prototype: object }
  readonly method: string
  readonly by: (original: Method) => Method
  readonly found: RegExp
  /** Histories in which the rule matters often. */
  readonly plan?: (plan: Plan) => Plan
}

/** Clients also read, and write between. */
const withReaders = (plan: Plan): Plan => ({ ...plan, reading: 0.7 })

/** The same, and near the end two links are down when a recovery ends. */
function withoutLinks(plan: Plan): Plan {
  const cuts = [0, 1].flatMap((from) => {
    const to = (from + 1) % plan.nodes
    const atMs = plan.endMs - (from === 0 ? 500 : 800)
    return [
      { atMs, deed: { kind: "cut", from, to, forMs: 2500 } },
      { atMs: atMs + 200, deed: { kind: "reset", from, to } },
    ] as const
  })
  return { ...withReaders(plan), faults: [...plan.faults, ...cuts] }
}

const mutations: readonly Mutation[] = [
  {
    rule: "whoever hands a record over goes on owning it",
    room: Calls,
    method: "handOver",
    by: (original) =>
      function (this: never, database: Database, packet: { readonly key: Uint8Array }, ...rest: never[]) {
        const key = packet.key.slice()
        original.apply(this, [database, packet, ...rest] as never)
        rewrite(database, key, (header) => {
          header.dmaster = database.pnn
        })
      } as Method,
    found: /both own|has rsn|finds mark/,
  },
  {
    rule: "the new owner does not raise the rsn",
    room: Calls,
    method: "take",
    by: (original) =>
      function (this: never, database: Database, packet: { readonly key: Uint8Array }, ...rest: never[]) {
        const key = packet.key.slice()
        original.apply(this, [database, packet, ...rest] as never)
        rewrite(database, key, (header) => {
          header.rsnLo -= 2
        })
      } as Method,
    found: /has rsn|went from/,
  },
  {
    rule: "requests are served while a client has the chain",
    room: ChainLocks,
    method: "enter",
    by: () =>
      function (this: { files: { unlockChain: () => void } }) {
        this.files.unlockChain = () => {}
        return true
      } as unknown as Method,
    found: /finds mark|both own|vanished|released|not held/,
  },
  {
    rule: "calls are not asked again after a recovery",
    room: Calls,
    method: "resend",
    by: () => () => {},
    found: /calls wait|a client .* waits/,
  },
  {
    rule: "a broken link asks for no recovery",
    room: Calls,
    method: "nodeLost",
    by: () => () => {},
    found: /calls wait|a client .* waits|owns the record/,
  },
  {
    rule: "calls without a link are forgotten",
    room: Calls,
    method: "keepUnsent",
    by: () => () => {},
    found: /calls wait|a client .* waits|can't be read/,
    plan: withoutLinks,
  },
  {
    rule: "deferred attaches are never looked at again",
    room: Databases,
    method: "recovered",
    by: () => () => {},
    found: /a client .* waits|can't be read/,
  },
  {
    rule: "nobody is told that the copy is taken back",
    room: Delegations,
    method: "holders",
    by: () => () => [],
    found: /for readers|reader on node|has rsn/,
    plan: withReaders,
  },
  {
    rule: "one of those who have copies is forgotten",
    room: Delegations,
    method: "holders",
    by: (original) =>
      function (this: never, ...rest: never[]) {
        return (original.apply(this, rest) as number[]).slice(1)
      } as Method,
    found: /for readers|reader on node|has rsn/,
    plan: withReaders,
  },
  {
    rule: "copies that could not be taken back count as taken back",
    room: Delegations,
    method: "complete",
    by: (original) =>
      function (this: never, revoke: never, jenkins: never) {
        original.apply(this, [revoke, jenkins, undefined] as never)
      } as Method,
    found: /for readers|reader on node|has rsn/,
    plan: withReaders,
  },
  {
    rule: "a copy that comes late replaces what is newer",
    room: Delegations,
    method: "storeCopy",
    by: () =>
      function (this: never, database: Database, key: Uint8Array, _jenkins: number, value: Uint8Array) {
        database.tdb.store(key, value)
      } as unknown as Method,
    found: /for readers|reader on node|went from|has rsn/,
    plan: withReaders,
  },
  {
    rule: "the owner lets writers in while copies are out",
    room: Delegations,
    method: "meets",
    by: () =>
      function (this: never, database: Database, key: Uint8Array) {
        rewrite(database, key.slice(), (header) => {
          if (header.dmaster === database.pnn) header.flags &= ~RecordFlag.RO_FLAGS
        })
        return false
      } as unknown as Method,
    found: /for readers|reader on node|has rsn/,
    plan: withReaders,
  },
]

for (const { rule, room, method, by, found, plan } of mutations) {
  test(`found out: ${rule}`, () => {
    replace(room, method, by)
    const failure = firstFailure(plan)
    expect(failure ?? "not found").toMatch(found)
  }, 300_000)
}
