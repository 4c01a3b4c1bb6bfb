// The programs connected to this node's client socket: what each has registered, what is done for it when it leaves, and
// the bounds that keep one of them from hurting the others (data path page, section 2). Where its packets go is the
// router's business.

import { type PacketConnection, type PacketHandler, type PeerCredentials, Priority } from "../lib/net/ports.ts"
import { ProtocolError } from "../lib/protocol/codec.ts"
import { BROADCAST_CONNECTED } from "../lib/protocol/constants.ts"
import { controls } from "../lib/protocol/controls.ts"
import { operationOf } from "../lib/protocol/header.ts"
import { decodePacket, Operation, type Packet } from "../lib/protocol/packet.ts"
import type { NodeEnvironment } from "./environment.ts"
import type { IdTable } from "./ids.ts"
import { Notifications } from "./messaging/notifications.ts"
import type { IdEntry, LocalClient, Router } from "./routing.ts"
import type { NodeState } from "./state.ts"

/** Above this many unread bytes a client's requests are not read, so that its replies can't pile up. */
const PAUSE_BYTES = 4 << 20
/** Above this many unread bytes, which only messages can bring about, a client is disconnected. */
const QUEUE_BYTES_MAX = 256 << 20
/** So many clients at most; more are turned away, as every one costs a descriptor and memory. */
export const CLIENTS_MAX = 20_000

/** Who asks for one of these is a recovery daemon or works for one, and the cluster waits for it. */
const RECOVERY_SIDE: ReadonlySet<number> = new Set([controls.RECD_PING.opcode, controls.SET_RECMODE.opcode])

/** Stands in the id table for the moment between an id and the client that gets it. */
const NOBODY: LocalClient = { id: 0, pid: 0, pendingIds: new Set(), send: () => {} }

/** One connection. Most clients of a node are idle, so one holds nothing that it has not needed yet. */
export class Client implements LocalClient, PacketHandler {
  private notes: Notifications | undefined
  private waiting: Set<number> | undefined
  /** It is being disconnected because it does not read; what else comes for it is lost. */
  condemned = false
  /** START_PERSISTENT_UPDATE controls without their end. */
  persistentUpdates = 0
  private paused = false
  /** It is read from however much of what was sent to it waits: in a long pull its pings would wait with it. */
  private raised = false

  constructor(
    readonly id: number,
    readonly pid: number,
    private readonly connection: PacketConnection,
    private readonly state: NodeState,
    private readonly clients: Clients,
  ) {}

  get notifications(): Notifications {
    this.notes ??= new Notifications()
    return this.notes
  }

  get pendingIds(): Set<number> {
    this.waiting ??= new Set()
    return this.waiting
  }

  onPacket(packet: Uint8Array): void {
    this.clients.receive(this, packet)
  }

  onBadHeader(reason: string): "drop" {
    this.state.statistics.now.clientPacketsRecv++
    this.clients.complain(this, reason)
    return "drop"
  }

  onClose(): void {
    this.clients.gone(this)
  }

  onDrain(): void {
    if (!this.paused) return
    this.paused = false
    this.connection.resume()
  }

  send(packet: Uint8Array): void {
    this.state.statistics.now.clientPacketsSent++
    this.connection.send(packet, Priority.BULK)
    if (!this.paused && !this.raised && this.connection.queuedBytes > PAUSE_BYTES) {
      this.paused = true
      this.connection.pause()
    }
  }

  /** Bytes sent to it that it has not read. */
  get queuedBytes(): number {
    return this.connection.queuedBytes
  }

  /** From now on its packets go before other clients'. */
  raise(): void {
    this.connection.readPriority = Priority.LIVENESS
    this.raised = true
    this.onDrain()
  }

  overfull(): boolean {
    const { queuedPackets, queuedBytes } = this.connection
    return queuedPackets > this.state.tunables.MaxQueueDropMsg || queuedBytes > QUEUE_BYTES_MAX
  }

  close(): void {
    this.connection.close()
  }
}

export class Clients {
  private readonly all = new Set<Client>()
  private turnedAway = 0
  /** Rooms that keep something for a client, called when it has gone. */
  readonly onGone: ((client: LocalClient) => void)[] = []

  constructor(
    private readonly state: NodeState,
    private readonly environment: NodeEnvironment,
    private readonly ids: IdTable<IdEntry>,
    private readonly router: Router,
    /** The node asks for a recovery by going into recovery mode itself. */
    private readonly askForRecovery: (reason: string) => void,
  ) {}

  get count(): number {
    return this.all.size
  }

  /** A new connection on the client socket; undefined turns it away. */
  accept(connection: PacketConnection, credentials: PeerCredentials): PacketHandler | undefined {
    if (this.all.size >= CLIENTS_MAX) {
      if (this.turnedAway++ === 0) {
        this.environment.log.error(`${CLIENTS_MAX} clients are connected: further ones are turned away`)
      }
      return undefined
    }
    this.turnedAway = 0
    const entry: { kind: "client"; client: LocalClient } = { kind: "client", client: NOBODY }
    const client = new Client(this.ids.add(entry), credentials.pid, connection, this.state, this)
    entry.client = client
    this.all.add(client)
    return client
  }

  /** The clients whose process has that id, newest first. */
  ofProcess(pid: number): Client[] {
    return [...this.all].filter((client) => client.pid === pid).reverse()
  }

  /** Ends a connection from this side; its registrations go as if it had left. */
  disconnect(client: Client): void {
    client.close()
    this.gone(client)
  }

  /** Hands a message to a client, and disconnects it if it has not read what it got for too long. */
  deliver(client: Client, packet: Uint8Array): void {
    if (client.condemned) return
    if (client.overfull()) {
      client.condemned = true
      this.environment.log.error(`CTDB_REQ_MESSAGE queue full - killing client connection.`)
      this.environment.nextTurn(() => this.disconnect(client))
      return
    }
    client.send(packet)
  }

  receive(client: Client, bytes: Uint8Array): void {
    this.state.statistics.now.clientPacketsRecv++
    let packet: Packet
    try {
      packet = decodePacket(bytes)
    } catch (error) {
      if (!(error instanceof ProtocolError)) throw error
      this.complain(client, operationOf(bytes) > Operation.REQ_TUNNEL ? unrecognized(bytes) : error.message)
      return
    }
    this.router.handled.operation = packet.operation
    const counters = this.state.statistics.now.client
    switch (packet.operation) {
      case Operation.REQ_CONTROL:
        counters.reqControl++
        if (RECOVERY_SIDE.has(packet.opcode)) client.raise()
        this.router.controlFromClient(packet, client)
        return
      case Operation.REQ_MESSAGE:
        counters.reqMessage++
        this.router.messageFromClient(packet)
        return
      case Operation.REQ_TUNNEL:
        counters.reqTunnel++
        this.router.tunnelFromClient(packet)
        return
      case Operation.REQ_CALL:
        counters.reqCall++
        this.router.callFromClient(packet, client)
        return
      default:
        this.complain(client, unrecognized(bytes))
    }
  }

  complain(client: Client, reason: string): void {
    this.router.complaints.add(
      `client ${client.pid}`,
      `Bad packet from client with pid ${client.pid}, dropped: ${reason}`,
    )
  }

  gone(client: Client): void {
    if (!this.all.delete(client)) return
    this.ids.remove(client.id)
    this.router.clientGone(client)
    for (const gone of this.onGone) gone(client)
    this.router.srvids.removeOwner(client)
    this.router.tunnels.removeOwner(client)
    if (client.persistentUpdates > 0) {
      this.askForRecovery(`client with pid ${client.pid} left during a persistent update`)
    }
    for (const { srvid, data } of client.notifications.takeAll()) {
      this.router.sendMessage(BROADCAST_CONNECTED, srvid, data)
    }
  }
}

function unrecognized(bytes: Uint8Array): string {
  return `unrecognized operation ${operationOf(bytes)}`
}
