// Recoveries of nodes that are played by a few lines: they answer controls as cluster page 7.3 and 7.4 have them, and refuse what
// each kind of node does not know. For what no real program at hand does: members of Samba 4.4 (PULL_DB, PUSH_DB), a pull
// that never ends, a database that appears meanwhile, a wrong name.

import { expect, test } from "bun:test"
import { RecoveryFailure, recover } from "../../../daemon/recovery/recover.ts"
import { run } from "../../../daemon/recovery/task.ts"
import { socketAddress } from "../../../daemon/state.ts"
import type { ControlReply, Session } from "../../../lib/client/session.ts"
import { defaultTunables, type Tunables } from "../../../lib/config/tunables.ts"
import { decode, encode, u32 } from "../../../lib/protocol/codec.ts"
import { Capability } from "../../../lib/protocol/constants.ts"
import { type ControlName, controls } from "../../../lib/protocol/controls.ts"
import { databaseId } from "../../../lib/protocol/hash.ts"
import { ltdbHeader, type RecData, recBuffer } from "../../../lib/protocol/structs.ts"
import { type Word64, word64 } from "../../../lib/protocol/word64.ts"
import { World } from "../../simulation/world.ts"

const NAME = "v.tdb"
const ID = databaseId(NAME)
const LATE = "late.tdb"
const LEADER = 0
const bytes = (text: string) => new TextEncoder().encode(text)
const text = (data: Uint8Array) => new TextDecoder().decode(data)
const NEW = Capability.PARALLEL_RECOVERY | Capability.FRAGMENTED_CONTROLS | Capability.LMASTER

class Peer {
  readonly asked: string[] = []
  /** What it holds: key = value, rsn. */
  readonly records = new Map<string, { readonly value: string; readonly rsn: number }>()
  pushed = 0
  /** Sends empty record buffers for ever instead of an answer to DB_PULL. */
  endless = false
  /** What it calls the database. */
  name = NAME
  /** Databases that it has attached: more of them with each look. */
  maps: (readonly number[])[] = [[ID]]

  constructor(
    readonly pnn: number,
    readonly capabilities: number,
  ) {}

  get chunks(): boolean {
    return (this.capabilities & Capability.FRAGMENTED_CONTROLS) !== 0
  }

  buffer(): Uint8Array {
    const records: RecData[] = [...this.records].map(([key, { value, rsn }]) => ({
      reqid: 0,
      key: bytes(key),
      data: new Uint8Array([
        ...encode(ltdbHeader, { rsn: word64(0, rsn), dmaster: this.pnn, reserved1: 0, flags: 0 }),
        ...bytes(value),
      ]),
    }))
    return encode(recBuffer, { dbId: ID, records })
  }

  store(records: readonly RecData[]): void {
    for (const { key, data } of records) {
      const { rsn, dmaster } = decode(ltdbHeader, data.slice(0, 24))
      expect(dmaster).toBe(LEADER)
      this.records.set(text(key), { value: text(data.subarray(24)), rsn: rsn.lo })
      this.pushed++
    }
  }
}

/** The conversation of one recovery with these peers. */
function session(peers: readonly Peer[], world: World, nextTurn: (run: () => void) => void): Session {
  const handlers = new Map<number, (data: Uint8Array) => void>()
  const pushIds = new Map<number, Peer[]>()
  const nodeMap = peers.map(({ pnn }) => ({
    pnn,
    flags: 0,
    addr: socketAddress({ address: `10.0.0.${pnn + 1}`, port: 4379 }),
  }))
  const feed = (srvid: Word64): void => {
    handlers.get(srvid.lo)?.(encode(recBuffer, { dbId: ID, records: [] }))
    world.at(world.nowMs + 400, undefined, () => feed(srvid))
  }
  const answer = (peer: Peer, control: ControlName, request: unknown): Uint8Array | number | undefined => {
    peer.asked.push(control)
    switch (control) {
      case "GET_NODEMAP":
        return encode(controls.GET_NODEMAP.reply, nodeMap as never)
      case "GET_CAPABILITIES":
        return encode(u32, peer.capabilities)
      case "GET_DBMAP":
        return encode(
          controls.GET_DBMAP.reply,
          (peer.maps.length > 1 ? peer.maps.shift()! : peer.maps[0]!).map((dbId) => ({ dbId, flags: 0 })),
        )
      case "GET_DBNAME":
        return encode(controls.GET_DBNAME.reply, request === ID ? peer.name : LATE)
      case "DB_ATTACH":
        return encode(u32, databaseId(request as string))
      case "PULL_DB":
        return peer.chunks ? -1 : peer.buffer()
      case "PUSH_DB":
        if (peer.chunks) return -1
        peer.store((request as { records: RecData[] }).records)
        return new Uint8Array(0)
      case "WIPE_DATABASE":
        peer.records.clear()
        return new Uint8Array(0)
      case "DB_PULL":
        if (!peer.chunks) return -1
        if (peer.endless) {
          feed((request as { srvid: Word64 }).srvid)
          return undefined
        }
        if ((request as { dbId: number }).dbId !== ID) return encode(u32, 0)
        handlers.get((request as { srvid: Word64 }).srvid.lo)?.(peer.buffer())
        return encode(u32, decode(recBuffer, peer.buffer()).records.length)
      case "DB_PUSH_START": {
        if (!peer.chunks) return -1
        const { lo } = (request as { srvid: Word64 }).srvid
        pushIds.set(lo, [...(pushIds.get(lo) ?? []), peer])
        return new Uint8Array(0)
      }
      case "DB_PUSH_CONFIRM":
        return peer.chunks ? encode(u32, request === ID ? peer.pushed : 0) : -1
      case "ALIKE_DIGEST":
      case "GETVNNMAP":
        return -1
      default:
        return new Uint8Array(0)
    }
  }
  const fake = {
    pnn: LEADER,
    request(control: ControlName, pnn: number, options: { request?: unknown }, done: (reply: ControlReply) => void) {
      nextTurn(() => {
        const data = answer(peers[pnn]!, control, options.request)
        if (data === undefined) return
        if (typeof data === "number") done({ ok: false, reason: "status", status: data, error: "" })
        else done({ ok: true, status: 0, data })
      })
      return { cancel: () => {} }
    },
    onMessage(srvid: Word64, handler: (data: Uint8Array) => void, registered: (reply: ControlReply) => void) {
      handlers.set(srvid.lo, handler)
      nextTurn(() => registered({ ok: true, status: 0, data: new Uint8Array(0) }))
      return { cancel: () => handlers.delete(srvid.lo) }
    },
    sendMessage(pnn: number, srvid: Word64, data: Uint8Array) {
      for (const peer of pushIds.get(srvid.lo) ?? []) {
        if (peer.pnn === pnn) peer.store(decode(recBuffer, data.slice()).records)
      }
    },
  }
  return fake as unknown as Session
}

function recovery(peers: readonly Peer[], tunables: Partial<Tunables> = {}): unknown {
  const world = new World({ seed: 1, nodes: 1, lock: false, testMode: true })
  let ended: unknown = "not at its end"
  const nextTurn = (then: () => void) => void world.at(world.nowMs, undefined, then)
  const order = {
    session: session(peers, world, nextTurn),
    scheduler: {
      monotonicMs: () => world.nowMs,
      nextTurn,
      setTimer: (delayMs: number, then: () => void) => world.at(world.nowMs + delayMs, undefined, then),
    },
    log: { error: () => {}, warning: () => {}, notice: () => {}, info: () => {}, debug: () => {} },
    files: { openScratch: () => expect.unreachable(), openAside: () => expect.unreachable() },
    pnn: LEADER,
    tunables: { ...defaultTunables(), ...tunables },
    generation: 4711,
    excluded: new Set<number>(),
    firstSrvid: 1,
  }
  run(
    recover(order as unknown as Parameters<typeof recover>[0]),
    () => {
      ended = "done"
    },
    (error) => {
      ended = error
    },
  )
  world.runFor(60_000)
  return ended
}

test("a member without chunks: its records count, and it gets all others' in one packet", () => {
  const old = new Peer(2, Capability.PARALLEL_RECOVERY | Capability.LMASTER)
  const peers = [new Peer(0, NEW), new Peer(1, NEW), old]
  peers[0]!.records.set("a", { value: "old", rsn: 3 }).set("b", { value: "of 0", rsn: 1 })
  peers[1]!.records.set("c", { value: "of 1", rsn: 9 })
  old.records.set("a", { value: "newest", rsn: 7 }).set("d", { value: "of 2", rsn: 2 })
  expect(recovery(peers)).toBe("done")
  for (const peer of peers) {
    expect([...peer.records].map(([key, { value, rsn }]) => `${key} = ${value} (${rsn})`).sort()).toEqual([
      "a = newest (7)",
      "b = of 0 (1)",
      "c = of 1 (9)",
      "d = of 2 (2)",
    ])
  }
  const moves = (peer: Peer) => peer.asked.filter((control) => /PULL|PUSH/.test(control))
  expect(moves(old)).toEqual(["PULL_DB", "PUSH_DB"])
  expect(moves(peers[1]!)).toEqual(["DB_PULL", "DB_PUSH_START", "DB_PUSH_CONFIRM"])
})

test("a member that freezes everything or nothing is named, and nothing is begun", () => {
  const serial = new Peer(1, Capability.LMASTER)
  const peers = [new Peer(0, NEW), serial]
  const ended = recovery(peers)
  expect(ended).toBeInstanceOf(RecoveryFailure)
  expect((ended as RecoveryFailure).pnns).toEqual([1])
  expect(serial.asked).not.toContain("SET_RECMODE")
})

test("row 15: a recovery in which something moves for ever ends at its bound (stock: has none)", () => {
  const peers = [new Peer(0, NEW), new Peer(1, NEW)]
  peers[1]!.endless = true
  const ended = recovery(peers, { RecoverTimeout: 1 })
  expect(String(ended)).toContain("not finished after 20 s")
})

test("row 24: a database that is attached meanwhile is recovered in the same recovery (stock: costs another)", () => {
  const peers = [new Peer(0, NEW), new Peer(1, NEW), new Peer(2, NEW)]
  peers[1]!.maps = [[ID], [ID, databaseId(LATE)]]
  expect(recovery(peers)).toBe("done")
  for (const peer of peers) {
    expect(peer.asked.filter((control) => control === "DB_TRANSACTION_COMMIT").length).toBe(2)
    expect(peer.asked.filter((control) => control === "SET_RECMODE").length).toBe(2)
  }
  expect(peers[0]!.asked).toContain("DB_ATTACH")
  expect(peers[1]!.asked).not.toContain("DB_ATTACH")
})

test("row 26: of three names for a database the wrong one is at fault, wherever its node stands (stock: bans by position)", () => {
  for (const wrong of [0, 1, 2]) {
    const peers = [new Peer(0, NEW), new Peer(1, NEW), new Peer(2, NEW)]
    peers[wrong]!.name = "another.tdb"
    const ended = recovery(peers)
    expect(ended).toBeInstanceOf(RecoveryFailure)
    expect((ended as RecoveryFailure).pnns).toEqual([wrong])
    for (const peer of peers) expect(peer.asked.includes("SET_BAN_STATE")).toBe(peer.pnn === wrong)
  }
})
