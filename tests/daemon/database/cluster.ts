// A small cluster in the simulator for tests that say what single packets and controls do: started, recovered, with one database
// attached, every packet between nodes on record.

import type { Database } from "../../../daemon/database/database.ts"
import { RecordHeader } from "../../../daemon/database/record.ts"
import type { Node } from "../../../daemon/node.ts"
import type { ControlReply, Session } from "../../../lib/client/session.ts"
import { RecoveryMode } from "../../../lib/protocol/constants.ts"
import type { ControlName, RequestOf } from "../../../lib/protocol/controls.ts"
import { databaseId } from "../../../lib/protocol/hash.ts"
import { operationOf } from "../../../lib/protocol/header.ts"
import { decodePacket, encodePacket, type Packet } from "../../../lib/protocol/packet.ts"
import { LTDB_HEADER_SIZE } from "../../../lib/protocol/structs.ts"
import { World } from "../../simulation/world.ts"

/** With the map 0,1,2 the lmasters of these keys are 0, 1 and 2 (data path page 4.2 names the first two). */
export const KEYS = ["key1", "a", "e"] as const
export const bytes = (text: string) => new TextEncoder().encode(text)
export const text = (data: Uint8Array) => new TextDecoder().decode(data)

export interface Copy {
  readonly rsn: number
  readonly dmaster: number
  readonly flags: number
  readonly data: string
}

export class Cluster {
  readonly world: World
  readonly id: number
  /** Record packets between nodes since the last forget(), and their lengths. */
  readonly packets: { readonly from: number; readonly to: number; readonly packet: Packet; readonly length: number }[] =
    []
  private readonly sessions: (Session | undefined)[] = []

  constructor(
    nodes: number,
    readonly name = "test.tdb",
    kind: "DB_ATTACH" | "DB_ATTACH_PERSISTENT" | "DB_ATTACH_REPLICATED" = "DB_ATTACH",
  ) {
    // Vacuuming would move records on its own.
    const tunables = { VacuumInterval: 3600, RerecoveryTimeout: 1 }
    this.world = new World({ seed: 7, nodes, lock: false, testMode: true, tunables })
    this.id = databaseId(name)
    this.world.tap = (from, to, packet) => {
      if (from.host !== to.host && operationOf(packet) <= 4) {
        this.packets.push({
          from: from.host.pnn,
          to: to.host.pnn,
          packet: decodePacket(packet.slice()),
          length: packet.length,
        })
      }
      return true
    }
    for (const host of this.world.hosts) host.start()
    this.until("a cluster", () =>
      this.world.hosts.every((host) => host.running && this.node(host.pnn).state.recoveryMode === RecoveryMode.NORMAL),
    )
    this.world.runFor(5000)
    this.control(0, kind, name)
    this.world.runFor(100)
    this.forget()
  }

  forget(): void {
    this.packets.length = 0
  }

  node(pnn: number): Node {
    const { node } = this.world.hosts[pnn]!
    if (node === undefined) throw new Error(`node ${pnn} does not run`)
    return node
  }

  database(pnn: number): Database {
    const database = this.node(pnn).databases.get(this.id)
    if (database === undefined) throw new Error(`${this.name} is not attached on node ${pnn}`)
    return database
  }

  until(what: string, condition: () => boolean, limitMs = 60_000): void {
    for (let waited = 0; !condition(); waited += 10) {
      if (waited > limitMs) throw new Error(`no ${what} within ${limitMs} ms`)
      this.world.runFor(10)
    }
  }

  session(pnn: number): Session {
    const known = this.sessions[pnn]
    if (known?.isOpen === true) return known
    const session = this.world.hosts[pnn]!.client()
    if (session === undefined) throw new Error(`node ${pnn} serves no clients`)
    this.sessions[pnn] = session
    return session
  }

  /** Asks node `to` through a client of the same node, and waits for the answer. */
  control<N extends ControlName>(to: number, control: N, request?: RequestOf<N>, flags = 0): ControlReply {
    let reply: ControlReply | undefined
    this.session(to).request(control, to, { request, flags }, (answer) => {
      reply = answer
    })
    this.until(`answer to ${control}`, () => reply !== undefined, 10_000)
    return reply!
  }

  status<N extends ControlName>(to: number, control: N, request?: RequestOf<N>): number {
    const reply = this.control(to, control, request)
    return reply.ok ? 0 : reply.status
  }

  /** A call of a client of that node; the answer comes into the object returned. */
  call(pnn: number, key: string, callid: number, flags = 0, dbId = this.id): { reply: ControlReply | undefined } {
    const result: { reply: ControlReply | undefined } = { reply: undefined }
    this.session(pnn).call({ dbId, key: bytes(key), callid, flags }, (reply) => {
      result.reply = reply.ok ? { ...reply, data: reply.data.slice() } : reply
    })
    return result
  }

  /** call() and its answer. */
  answered(pnn: number, key: string, callid: number, flags = 0, dbId = this.id): ControlReply {
    const result = this.call(pnn, key, callid, flags, dbId)
    this.until("answer to the call", () => result.reply !== undefined, 10_000)
    return result.reply!
  }

  copy(pnn: number, key: string): Copy | undefined {
    const value = this.database(pnn).tdb.fetch(bytes(key))
    if (value === null) return undefined
    const header = new RecordHeader().read(value)
    const { rsnLo: rsn, dmaster, flags } = header
    return { rsn, dmaster, flags, data: text(value.subarray(LTDB_HEADER_SIZE)) }
  }

  /** "rsn/dmaster" of the copies of all nodes, "-" where there is none, as the traces of data path page 5.11 write it. */
  copies(key: string): string {
    return this.world.hosts
      .map(({ pnn }) => {
        const copy = this.copy(pnn, key)
        return copy === undefined ? "-" : `${copy.rsn}/${copy.dmaster}`
      })
      .join(" ")
  }

  /** A client stores a value under the lock, header as it was read. */
  write(pnn: number, key: string, data: string): void {
    const { tdb } = this.database(pnn)
    const value = tdb.fetch(bytes(key))
    if (value === null) throw new Error(`no record ${key} on node ${pnn}`)
    tdb.store(bytes(key), Buffer.concat([value.subarray(0, LTDB_HEADER_SIZE), bytes(data)]))
  }

  /** Puts a copy into a node's file as it is. */
  put(pnn: number, key: string, { rsn, dmaster, flags, data }: Copy): void {
    const header = Object.assign(new RecordHeader(), { rsnLo: rsn, dmaster, flags })
    const head = new Uint8Array(LTDB_HEADER_SIZE)
    header.write(head)
    this.database(pnn).tdb.store(bytes(key), Buffer.concat([head, bytes(data)]))
  }

  /** A packet arrives at a node over the link from another one. */
  inject(from: number, to: number, packet: Packet): void {
    const node = this.node(to)
    node.router.receiveFromNode(node.state.nodes[from]!, encodePacket(packet, "daemon"))
    this.world.runFor(50)
  }

  /** Holds the chain of a key for a client of that node; the function lets it go. */
  hold(pnn: number, key: string): () => void {
    const { tdb, locks } = this.world.hosts[pnn]!.disk.files.get(this.name)!
    const chain = tdb.chainOf(tdb.hash(bytes(key)))
    const owner = {}
    if (!locks.try(owner, chain)) throw new Error("the chain is not free")
    return () => locks.release(owner, chain)
  }

  get generation(): number {
    return this.node(0).state.generation
  }
}
