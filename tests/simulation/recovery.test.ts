// Recoveries of databases in which something happens at each of their steps: nodes die, stand still, are cut off or slow when
// a chosen control of a recovery arrives somewhere, and perhaps once more later. From a seed, on virtual time. Afterwards no
// record is missing that a survivor had, deleted ones stay deleted, persistent databases are the same everywhere and hold
// every acknowledged commit, and no healthy node was banned.

import { expect, setDefaultTimeout, test } from "bun:test"
import { Digest, GROUP_WORDS, Retain } from "../../daemon/database/alike.ts"
import type { Database } from "../../daemon/database/database.ts"
import type { Session } from "../../lib/client/session.ts"
import { encode } from "../../lib/protocol/codec.ts"
import { CallFlag, CallId, Operation, RecoveryMode, SEQNUM_KEY } from "../../lib/protocol/constants.ts"
import { type ControlName, controls } from "../../lib/protocol/controls.ts"
import { databaseId } from "../../lib/protocol/hash.ts"
import { controlOpcode, operationOf } from "../../lib/protocol/header.ts"
import { ltdbHeader, type RecData } from "../../lib/protocol/structs.ts"
import { word64 } from "../../lib/protocol/word64.ts"
import { keys as keysOf } from "../../lib/tdb/tdb.ts"
import { CONVERGENCE_MS, whole } from "./histories.ts"
import { type Host, Random, World } from "./world.ts"

setDefaultTimeout(600_000)

const SOAK = process.env.CTDB_SOAK !== undefined
const SEEDS = Number(process.env.CTDB_RECOVERY_SEEDS ?? (SOAK ? 5000 : 1000))
const FIRST = Number(process.env.CTDB_RECOVERY_SEED ?? 1)
const HEADER = 24
const VOLATILE = "v.tdb"
const TRANSACTIONAL = ["p.tdb", "r.tdb"]

/** Every control of a recovery, in its order. MESSAGE: record buffers on their way. */
const STEPS: readonly (ControlName | "MESSAGE")[] = [
  "GET_NODEMAP",
  "GET_DBMAP",
  "SET_RECMODE",
  "START_RECOVERY",
  "SETVNNMAP",
  "GET_DBNAME",
  "DB_FREEZE",
  "DB_TRANSACTION_START",
  "ALIKE_SKETCH",
  "ALIKE_DIGEST",
  "GET_DB_SEQNUM",
  "DB_PULL",
  "ALIKE_PULL",
  "WIPE_DATABASE",
  "ALIKE_RETAIN",
  "DB_PUSH_START",
  "MESSAGE",
  "DB_PUSH_CONFIRM",
  "DB_TRANSACTION_COMMIT",
  "DB_THAW",
  "END_RECOVERY",
]

type Deed = "kill" | "power loss" | "pause" | "cut" | "slow" | "lose"

const bytes = (text: string) => new TextEncoder().encode(text)
const SEQNUM = bytes(`${SEQNUM_KEY}\0`)

class Story {
  readonly world: World
  readonly random: Random
  /** Values that must be there in the end; undefined: deleted, and must not come back. */
  readonly volatile = new Map<string, string | undefined>()
  readonly committed = new Map<string, Map<string, string>>(TRANSACTIONAL.map((name) => [name, new Map()]))
  private readonly numbers = new Map<string, number>()
  /** Nodes that have died since the cluster was whole the last time: what a volatile database held is gone with the last one. */
  private readonly dead = new Set<number>()
  /** Nodes that something was done to. */
  readonly touched = new Set<number>()
  readonly told: string[] = []

  /** @param alike whether records that all nodes hold alike stay where they are */
  constructor(
    readonly seed: number,
    alike: boolean | undefined,
  ) {
    this.random = new Random(seed ^ 0x0ddb)
    // With the smallest buffers every database is worth comparing before it is sent.
    const RecBufferSizeLimit = (alike ?? this.random.chance(0.5)) ? 1 : 1_000_000
    const tunables = {
      RecBufferSizeLimit,
      RecoveryBanPeriod: 20,
      StatHistoryInterval: 3600,
      RerecoveryTimeout: 2,
      VacuumInterval: 100_000,
    }
    const nodes = 3 + this.random.below(3)
    this.world = new World({ seed, nodes, lock: this.random.chance(0.5), testMode: true, tunables })
  }

  get hosts(): readonly Host[] {
    return this.world.hosts
  }

  fail(what: string): never {
    const trace = this.world.traceText().split("\n").slice(-120).join("\n")
    throw new Error(`seed ${this.seed}: ${what}\n${this.told.join("\n")}\n${trace}`)
  }

  until(limitMs: number, what: string, holds: () => boolean): void {
    const endMs = this.world.nowMs + limitMs
    while (!holds()) {
      if (this.world.nowMs >= endMs) this.fail(`${what}: not within ${limitMs / 1000} s: ${whole(this.hosts)}`)
      this.world.runFor(20)
    }
  }

  private ask<N extends ControlName>(session: Session, control: N, options: Parameters<typeof session.request<N>>[2]) {
    let status: number | undefined
    session.request(control, session.pnn, options, (reply) => {
      status = reply.ok ? 0 : reply.status
    })
    this.until(130_000, control, () => status !== undefined)
    return status
  }

  private client(host: Host): Session {
    return host.client() ?? this.fail(`node ${host.pnn} serves no clients`)
  }

  start(): void {
    for (const host of this.hosts) host.start()
    this.until(60_000, "the cluster comes up", () => whole(this.hosts) === undefined)
    const session = this.client(this.hosts[0]!)
    for (const [control, name] of [
      ["DB_ATTACH", VOLATILE],
      ["DB_ATTACH_PERSISTENT", "p.tdb"],
      ["DB_ATTACH_REPLICATED", "r.tdb"],
    ] as const) {
      this.ask(session, control, { request: name })
    }
    session.close()
    this.until(5000, "databases are attached", () => this.hosts.every((host) => host.disk.files.size === 3))
    for (let n = 0; n < 10; n++) this.write(this.random.pick(this.hosts), `key ${n}`, `value ${n}`)
    for (const name of TRANSACTIONAL) for (let n = 0; n < 4; n++) this.commit(this.random.pick(this.hosts), name, n)
    this.recover()
    this.whole()
    // From here on every node has a copy of everything.
    for (let n = 0; n < 3; n++) this.write(this.random.pick(this.hosts), `key ${n}`, undefined)
    // An owner's own changes leave rsn and owner as they are: only the data tell that the copies are old.
    const owner = this.hosts.find(({ recovery }) => recovery?.standing().isLeader === true)
    for (let n = 3; n < 5; n++) this.write(owner ?? this.fail("nobody leads"), `key ${n}`, `changed in place ${n}`)
    this.recover()
    this.whole()
  }

  whole(): void {
    this.until(CONVERGENCE_MS, "the cluster is whole", () => whole(this.hosts) === undefined)
  }

  /** As smbd does: makes its node the owner, then changes the record in the file. */
  private write(host: Host, key: string, value: string | undefined): void {
    const session = this.client(host)
    const { tdb } = host.disk.files.get(VOLATILE)!
    let answered = false
    const call = {
      dbId: databaseId(VOLATILE),
      key: bytes(key),
      callid: CallId.NULL,
      flags: CallFlag.IMMEDIATE_MIGRATION,
    }
    session.call(call, () => {
      const old = tdb.fetch(bytes(key))
      if (old === null) this.fail(`record ${key} did not come`)
      const data = new Uint8Array([...old.subarray(0, HEADER), ...bytes(value ?? "")])
      tdb.store(bytes(key), data)
      answered = true
    })
    this.until(60_000, `record ${key}`, () => answered)
    session.close()
    this.volatile.set(key, value)
  }

  /** One transaction; what is acknowledged must never be lost. */
  private commit(host: Host, name: string, n: number): void {
    const number = (this.numbers.get(name) ?? 0) + 1
    const header = (rsn: number) =>
      encode(ltdbHeader, { rsn: word64(0, rsn), dmaster: host.pnn, reserved1: 0, flags: 0 })
    const data = (rsn: number, value: Uint8Array) => new Uint8Array([...header(rsn), ...value])
    const counter = new Uint8Array(8)
    counter[0] = number
    const records: RecData[] = [
      { reqid: 0, key: bytes(`key ${n}`), data: data(number, bytes(`commit ${number}`)) },
      { reqid: 0, key: SEQNUM, data: data(number, counter) },
    ]
    const session = this.client(host)
    const status = this.ask(session, "TRANS3_COMMIT", { request: { dbId: databaseId(name), records } })
    session.close()
    if (status !== 0) this.fail(`commit ${number} in ${name}: status ${status}`)
    this.numbers.set(name, number)
    this.committed.get(name)!.set(`key ${n}`, `commit ${number}`)
  }

  /** Asks for a recovery and waits for its beginning, not for its end. */
  recover(wait = true): void {
    const host = this.hosts.find(({ running, main }) => running && main?.frozen === false)
    const before = host?.node?.state.generation
    const session = host?.client()
    if (host === undefined || session === undefined) return
    session.request("SET_RECMODE", host.pnn, { request: RecoveryMode.ACTIVE }, () => {})
    if (wait) this.until(CONVERGENCE_MS, "a recovery", () => host.node?.state.generation !== before)
    session.close()
  }

  /** When that step is reached for the n-th time, something happens to a node, or to its links. */
  arm(step: (typeof STEPS)[number], count: number, then: (from: number, to: number) => boolean): void {
    let left = count
    const opcode = step === "MESSAGE" ? undefined : controls[step].opcode
    this.world.tap = (from, to, packet) => {
      const operation = operationOf(packet)
      const hit =
        opcode === undefined
          ? operation === Operation.REQ_MESSAGE && packet[39] === 0xf0 && packet[38] === 0x01
          : operation === Operation.REQ_CONTROL && controlOpcode(packet) === opcode
      if (!hit || from.host === to.host || --left > 0) return true
      this.world.tap = undefined
      this.told.push(`${(this.world.nowMs / 1000).toFixed(3)}: ${step} from ${from.host.pnn} to ${to.host.pnn}`)
      return then(from.host.pnn, to.host.pnn)
    }
  }

  /** @returns whether the packet still arrives */
  do(deed: Deed, pnn: number): boolean {
    const { world, random } = this
    const host = this.hosts[pnn]!
    if ((deed === "kill" || deed === "power loss") && !this.mayDie(pnn)) return true
    const forMs = random.between(200, deed === "pause" || deed === "cut" ? 40_000 : 8000)
    this.told.push(`${(world.nowMs / 1000).toFixed(3)}: ${deed} of node ${pnn} for ${Math.floor(forMs)} ms`)
    this.touched.add(pnn)
    const others = this.hosts.filter((other) => other !== host)
    // Not in the middle of the packet's own event.
    const later = (run: () => void, delayMs = 0) => world.at(world.nowMs + delayMs, undefined, run)
    switch (deed) {
      case "kill":
      case "power loss":
        later(() => host.crash(deed === "power loss"))
        later(() => host.start(), forMs)
        break
      case "pause":
        later(() => {
          for (const process of world.processesOf(host)) world.freeze(process)
        })
        later(() => {
          for (const process of world.processesOf(host)) world.thaw(process)
        }, forMs)
        break
      case "cut":
        later(() => {
          for (const other of others) world.cut(host, other)
        })
        later(() => {
          for (const other of others) world.heal(host, other)
        }, forMs)
        break
      case "slow":
        world.delayMaxMs = random.between(20, 400)
        later(() => {
          world.delayMaxMs = 1
        }, forMs)
        break
      case "lose":
        return false
    }
    return true
  }

  /** Whether records live on somewhere when this node dies too. */
  private mayDie(pnn: number): boolean {
    if (whole(this.hosts) === undefined) this.dead.clear()
    if (this.dead.size + (this.dead.has(pnn) ? 0 : 1) === this.hosts.length) return false
    this.dead.add(pnn)
    return true
  }

  /** What every node holds in the end, after one more recovery in peace. */
  judge(): void {
    this.world.tap = undefined
    this.world.runFor(41_000)
    this.whole()
    this.recover()
    this.world.runFor(1000)
    this.whole()
    const expected = [...this.volatile].flatMap(([key, value]) => (value === undefined ? [] : [`${key} = ${value}`]))
    for (const host of this.hosts) {
      const found = textOf(host, VOLATILE).filter((line) => !line.endsWith(" = "))
      if (found.join() !== expected.sort().join())
        this.fail(`${VOLATILE} of node ${host.pnn} holds ${found.join(", ")}`)
      for (const name of TRANSACTIONAL) {
        const mine = textOf(host, name)
        const first = textOf(this.hosts[0]!, name)
        if (mine.join() !== first.join()) this.fail(`${name} of node ${host.pnn} is not that of node 0: ${mine.join()}`)
        for (const [key, value] of this.committed.get(name)!) {
          if (!mine.includes(`${key} = ${value}`)) this.fail(`${name} of node ${host.pnn} lost ${key} = ${value}`)
        }
      }
    }
    const banned = [...this.world.traceText().matchAll(/Banning node (\d+) for/g)].map((match) => Number(match[1]))
    for (const pnn of banned) if (!this.touched.has(pnn)) this.fail(`healthy node ${pnn} was banned`)
  }
}

/** The records of a host's file, without headers. */
function textOf(host: Host, name: string): string[] {
  const file = host.disk.files.get(name)
  if (file === undefined) return []
  return keysOf(file.tdb)
    .map((key) => {
      const value = file.tdb.fetch(key)!.subarray(HEADER)
      return `${Buffer.from(key).toString("latin1")} = ${Buffer.from(value).toString("latin1")}`
    })
    .sort()
}

function run(seed: number, plan: (story: Story) => void, alike?: boolean): void {
  const story = new Story(seed, alike)
  story.start()
  plan(story)
  story.judge()
}

test("every step of a recovery, every kind of trouble, for leader and member", () => {
  let seed = 1
  const deeds: readonly Deed[] = ["kill", "power loss", "pause", "cut"]
  const reached = new Map<string, number>()
  for (const step of STEPS) {
    for (const deed of deeds) {
      for (const who of ["leader", "member"] as const) {
        const plan = (story: Story) => {
          story.arm(step, 1 + story.random.below(2), (from, to) => {
            reached.set(step, (reached.get(step) ?? 0) + 1)
            return story.do(deed, who === "leader" ? from : to)
          })
          story.recover(false)
          story.world.runFor(5000)
        }
        run(seed++, plan, step.startsWith("ALIKE"))
      }
    }
  }
  expect(Object.fromEntries(reached)).toEqual(Object.fromEntries(STEPS.map((step) => [step, deeds.length * 2])))
})

function atRandom(story: Story): void {
  const deeds: readonly Deed[] = ["kill", "power loss", "pause", "cut", "slow", "lose"]
  const { random, world, hosts } = story
  const troubles = 1 + random.below(3)
  for (let n = 0; n < troubles; n++) {
    const deed = random.pick(deeds)
    const victim = random.pick(["from", "to", "any", "two"] as const)
    story.arm(random.pick(STEPS), 1 + random.below(10), (from, to) => {
      const any = random.below(hosts.length)
      if (victim === "two" && deed !== "lose") story.do(deed, any)
      return story.do(deed, victim === "from" ? from : victim === "any" ? any : to)
    })
    story.recover(false)
    world.runFor(random.between(500, 12_000))
  }
}

test(`${SEEDS} histories at random`, () => {
  for (let seed = FIRST; seed < FIRST + SEEDS; seed++) run(seed, atRandom)
})

/** Is the net tight? Each breaks one rule about what may stay where it is, on purpose: a history must show it. */
const broken: readonly (readonly [rule: string, breakIt: () => () => void])[] = [
  [
    "a digest that tells numbers of records, not what they hold",
    () => {
      const room = Digest.prototype as unknown as { result(): Uint8Array }
      const { result } = room
      room.result = function () {
        const data = result.call(this)
        const words = new Uint32Array(data.buffer, data.byteOffset, data.byteLength >>> 2)
        for (let at = 0; at < words.length; at += GROUP_WORDS) words.fill(0, at, at + 2)
        return data
      }
      return () => {
        room.result = result
      }
    },
  ],
  [
    "what is not alike is left in the file all the same",
    () => {
      const room = Retain.prototype as unknown as { piece(): boolean; database: Database }
      const { piece } = room
      room.piece = function () {
        const { tdb } = this.database
        const remove = tdb.delete
        tdb.delete = () => true
        try {
          return piece.call(this)
        } finally {
          tdb.delete = remove
        }
      }
      return () => {
        room.piece = piece
      }
    },
  ],
]
for (const [rule, breakIt] of broken) {
  test(`${rule}: found out`, () => {
    const restore = breakIt()
    let found: string | undefined
    try {
      for (let seed = 1; seed <= 50 && found === undefined; seed++) {
        try {
          run(seed, atRandom, true)
        } catch (error) {
          found = String(error).split("\n")[0]
        }
      }
    } finally {
      restore()
    }
    expect(found).toMatch(/v\.tdb of node \d holds|lost|is not that of|not within/)
  })
}
