// Links to the other nodes: for each peer one connection that this node opened and only writes, and one that the peer
// opened and this node only reads. Decides when a peer counts as connected and when as dead (cluster page, section 3).
// Knows packets only as bytes with a source node; what they mean is the router's business.

import type { PacketConnection, PacketHandler, Priority, Timer } from "../../lib/net/ports.ts"
import { NodeFlag, Operation } from "../../lib/protocol/constants.ts"
import { hopcountOf, operationOf, srcnodeOf } from "../../lib/protocol/header.ts"
import type { Complaints } from "../complaints.ts"
import type { Listener, NodeEnvironment } from "../environment.ts"
import { isConnected, type NodeEntry, type NodeState } from "../state.ts"

/** One attempt to connect may take this long, and a failed one is repeated after this time (cluster page 3.2). */
const CONNECT_MS = 1000
/** A link that stood for less than this is retried after CONNECT_MS, so that a peer that refuses us makes no storm. */
const STABLE_MS = 1000
/**
 * A peer that takes no data while this much waits for it is as good as dead: at this bound the link is torn down, as
 * keepalives would not get through either. What waited is lost as with any dead node, and resent by the recovery.
 */
const QUEUE_BYTES_MAX = 1 << 30

type Outgoing =
  | { readonly state: "waiting"; readonly timer: Timer }
  | { readonly state: "connecting"; readonly cancel: () => void }
  | { readonly state: "up"; readonly connection: PacketConnection; readonly sinceMs: number }

class Link {
  outgoing: Outgoing | undefined
  incoming: PacketConnection | undefined
  /** Packets counted as life since the last keepalive tick. */
  received = 0
  /** Keepalive ticks in a row without a counted packet. */
  deadCount = 0
  constructor(readonly node: NodeEntry) {}
}

export interface LinkEvents {
  /** A packet from a peer; the view is valid only during the call. */
  onPacket(peer: NodeEntry, packet: Uint8Array): void
  onConnected(node: NodeEntry): void
  onDisconnected(node: NodeEntry): void
  /** The queue towards this node has drained from above its high-water mark. */
  onDrain(pnn: number): void
}

export class Links {
  private links: (Link | undefined)[] = []
  private listener: Listener | undefined
  /** This node connects to others, and connects again. */
  private connecting = false
  private stopped = false

  constructor(
    private readonly state: NodeState,
    private readonly environment: NodeEnvironment,
    private readonly complaints: Complaints,
    private readonly events: LinkEvents,
  ) {}

  /**
   * Listens on the own address; peers may connect from now on, though this node does not connect back yet. Throws if the
   * address can't be bound.
   */
  listen(): void {
    const own = this.state.self
    this.listener = this.environment.transport.listen(own.address, own.port, (connection, remote) =>
      this.accept(connection, remote),
    )
    this.links = []
    for (const node of this.state.nodes) this.add(node)
  }

  /** Starts connecting to every other node that is not deleted. */
  connectAll(): void {
    this.connecting = true
    for (const link of this.links) if (link !== undefined && link.outgoing === undefined) this.connect(link)
  }

  /** Takes over a changed nodes list: entries that are the same object keep their link, all others start afresh. */
  reload(): void {
    const old = this.links
    this.links = []
    for (const link of old) {
      if (link === undefined) continue
      if (this.state.nodes[link.node.pnn] === link.node) this.links[link.node.pnn] = link
      else this.drop(link)
    }
    for (const node of this.state.nodes) {
      const link = this.links[node.pnn] === undefined ? this.add(node) : undefined
      if (link !== undefined) this.connect(link)
    }
  }

  /** Closes everything; peers see the end of the links at once. */
  stop(): void {
    this.stopped = true
    this.listener?.close()
    for (const link of this.links) if (link !== undefined) this.drop(link)
  }

  /**
   * Queues a packet, which belongs to the link from now on. false: there is no outgoing connection, and the packet is
   * gone, as on a stock node.
   */
  send(pnn: number, packet: Uint8Array, priority: Priority): boolean {
    const link = this.links[pnn]
    if (link?.outgoing?.state !== "up") return false
    const connection = link.outgoing.connection
    if (connection.queuedBytes > QUEUE_BYTES_MAX) {
      this.dead(link, `${connection.queuedBytes} bytes wait for it`)
      return false
    }
    connection.send(packet, priority)
    return true
  }

  /** Bytes that wait in the queue to a node. */
  queuedBytes(pnn: number): number {
    const outgoing = this.links[pnn]?.outgoing
    return outgoing?.state === "up" ? outgoing.connection.queuedBytes : 0
  }

  /**
   * One keepalive period is over: counts silent peers, declares dead those that reach the limit, and names the ones
   * that want a keepalive packet (cluster page 3.6).
   */
  keepaliveTick(limit: number): number[] {
    const alive: number[] = []
    for (const link of this.links) {
      if (link === undefined || !isConnected(link.node)) continue
      link.deadCount = link.received === 0 ? link.deadCount + 1 : 0
      link.received = 0
      if (link.deadCount >= limit) {
        this.environment.log.notice(`dead count reached for node ${link.node.pnn}`)
        this.dead(link, `silent for ${link.deadCount} keepalive intervals`)
      } else {
        alive.push(link.node.pnn)
      }
    }
    return alive
  }

  private add(node: NodeEntry): Link | undefined {
    if (node.pnn === this.state.pnn || (node.flags & NodeFlag.DELETED) !== 0) return undefined
    const link = new Link(node)
    this.links[node.pnn] = link
    return link
  }

  private connect(link: Link): void {
    if (this.stopped) return
    const { transport } = this.environment
    const cancel = transport.connect(
      this.state.self.address,
      link.node.address,
      link.node.port,
      CONNECT_MS,
      (connection) => this.connected(link, connection),
      () => this.retryLater(link),
    )
    link.outgoing = { state: "connecting", cancel }
  }

  private retryLater(link: Link): void {
    const timer = this.environment.setTimer(CONNECT_MS, () => this.connect(link))
    link.outgoing = { state: "waiting", timer }
  }

  private connected(link: Link, connection: PacketConnection): PacketHandler {
    link.outgoing = { state: "up", connection, sinceMs: this.environment.monotonicMs() }
    this.judge(link)
    return {
      // Peers never write on a connection that this node opened.
      onPacket: () => this.dead(link, "it wrote on a connection that this node opened"),
      onBadHeader: () => "close",
      onClose: (reason) => {
        if (link.outgoing?.state === "up" && link.outgoing.connection === connection) this.dead(link, reason)
      },
      onDrain: () => this.events.onDrain(link.node.pnn),
    }
  }

  private accept(connection: PacketConnection, remote: string): PacketHandler | undefined {
    const node = this.state.nodes.find((entry) => (entry.flags & NodeFlag.DELETED) === 0 && entry.address === remote)
    const link = node === undefined ? undefined : this.links[node.pnn]
    if (node === undefined || link === undefined) {
      this.complaints.add(`unknown node ${remote}`, `Refused connection from unknown node ${remote}`)
      return undefined
    }
    if (link.incoming !== undefined) {
      this.complaints.add(
        `second connection of ${node.pnn}`,
        `Incoming queue active, rejecting connection from ${remote}`,
      )
      return undefined
    }
    link.incoming = connection
    this.judge(link)
    return {
      onPacket: (packet) => this.receive(link, packet),
      onBadHeader: (reason) => {
        this.dead(link, `bad packet: ${reason}`)
        return "close"
      },
      onClose: (reason) => {
        if (link.incoming === connection) this.dead(link, reason)
      },
    }
  }

  private receive(link: Link, packet: Uint8Array): void {
    const redirected = operationOf(packet) === Operation.REQ_CALL && hopcountOf(packet) !== 0
    if (!redirected) {
      // Only a redirected call carries another node's number (wire-protocol page 2.5); anything else is forged or lost.
      if (srcnodeOf(packet) !== link.node.pnn) {
        this.complaints.add(
          `source of ${link.node.pnn}`,
          `Dropped a packet from node ${link.node.pnn} that claims to come from node ${srcnodeOf(packet)}`,
        )
        return
      }
      link.received++
    }
    this.events.onPacket(link.node, packet)
  }

  /** A peer is connected when both connections stand (cluster page 3.4). */
  private judge(link: Link): void {
    const { node } = link
    if (link.outgoing?.state !== "up" || link.incoming === undefined || isConnected(node)) return
    node.flags &= ~NodeFlag.DISCONNECTED
    link.deadCount = 0
    link.received = 0
    const own = this.state.self
    this.environment.log.notice(
      `${own.address}:${own.port}: connected to ${node.address}:${node.port} - ${this.countConnected()} connected`,
    )
    this.events.onConnected(node)
  }

  private countConnected(): number {
    return this.state.nodes.filter((node) => node.pnn !== this.state.pnn && isConnected(node)).length
  }

  private dead(link: Link, reason: string): void {
    if (this.stopped) return
    const { node } = link
    const outgoing = link.outgoing
    const stable =
      outgoing?.state === "up" ? this.environment.monotonicMs() - outgoing.sinceMs >= STABLE_MS : isConnected(node)
    const line = `Tearing down connection to dead node :${node.pnn} (${reason})`
    if (isConnected(node)) this.environment.log.notice(line)
    else this.complaints.add(`half a link of ${node.pnn}`, line)
    this.drop(link)
    if (isConnected(node)) {
      node.flags |= NodeFlag.DISCONNECTED | NodeFlag.UNHEALTHY
      const own = this.state.self
      this.environment.log.notice(
        `${own.address}:${own.port}: node ${node.address}:${node.port} is dead: ${this.countConnected()} connected`,
      )
      this.events.onDisconnected(node)
    }
    if (!this.connecting || this.links[node.pnn] !== link) return
    if (stable) this.connect(link)
    else this.retryLater(link)
  }

  private drop(link: Link): void {
    if (link.outgoing?.state === "waiting") link.outgoing.timer.cancel()
    else if (link.outgoing?.state === "connecting") link.outgoing.cancel()
    else if (link.outgoing?.state === "up") link.outgoing.connection.close()
    link.outgoing = undefined
    link.incoming?.close()
    link.incoming = undefined
  }
}
