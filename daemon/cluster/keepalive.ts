// Keepalives: one timer for all peers, the packet that says "alive" with this node's version and uptime, and the rule
// by which nodes of different versions part (cluster page 3.6, 3.7). Judging a silent peer is the links' business.

import { Priority } from "../../lib/net/ports.ts"
import { encodePacket, Operation, type ReqKeepalive } from "../../lib/protocol/packet.ts"
import type { Complaints } from "../complaints.ts"
import type { NodeEnvironment } from "../environment.ts"
import { isConnected, type NodeEntry, type NodeState } from "../state.ts"
import type { Links } from "./links.ts"

/**
 * The version a keepalive announces: a fixed one, (major << 16) | minor, or "auto": whatever the peers announce. A stock
 * node leaves the cluster when a longer-running peer has another version; so a node on "auto" announces an uptime of 0,
 * which never makes anybody leave, until it has adopted its peers' version.
 */
export type AnnouncedVersion = number | "auto"

/** What "auto" announces while it knows no peer: Samba 4.17. */
export const DEFAULT_VERSION = (4 << 16) | 17

export class Keepalive {
  private version: number
  private adopted: { readonly pnn: number; readonly uptime: number } | undefined
  private readonly warned = new Set<number>()

  constructor(
    private readonly state: NodeState,
    private readonly environment: NodeEnvironment,
    private readonly links: Links,
    private readonly complaints: Complaints,
    private readonly announced: AnnouncedVersion,
    /** Ends this node in an orderly way: it must not stay in a cluster of another version. */
    private readonly leaveCluster: (reason: string) => void,
  ) {
    this.version = announced === "auto" ? DEFAULT_VERSION : announced
  }

  start(): void {
    // A tunable of 0 must not make the loop spin.
    this.environment.setTimer(Math.max(1, this.state.tunables.KeepaliveInterval) * 1000, () => this.tick())
  }

  /** Says "alive" to one node now, besides the regular ones. */
  send(pnn: number): void {
    const uptime = this.announced === "auto" && this.adopted === undefined ? 0 : this.uptime()
    const packet = encodePacket(
      {
        operation: Operation.REQ_KEEPALIVE,
        generation: this.state.generation,
        destnode: pnn,
        srcnode: this.state.pnn,
        reqid: 0,
        version: this.version,
        uptime,
        hasVersion: true,
      },
      "daemon",
    )
    this.links.send(pnn, packet, Priority.LIVENESS)
    this.state.statistics.now.keepalivePacketsSent++
  }

  receive(peer: NodeEntry, packet: ReqKeepalive): void {
    this.state.statistics.now.keepalivePacketsRecv++
    if (this.state.tunables.AllowMixedVersions !== 0) return
    if (!packet.hasVersion) {
      this.complaints.add(`version of ${peer.pnn}`, `Keepalive version missing from node ${peer.pnn}`)
      // A stock node shuts itself down here, and so one packet of an ancient peer ends a node. The peer is what is wrong.
      return
    }
    if (!isPlausible(packet.version)) {
      // Whoever follows it leaves the cluster of everybody else: stock nodes end when a peer's version is not theirs.
      this.complaints.add(
        `version of ${peer.pnn}`,
        `Keepalive of node ${peer.pnn} with version ${hex(packet.version)}, which is none: ignored`,
      )
      return
    }
    if (packet.version === this.version) {
      this.adopt(peer, packet)
      return
    }
    if (this.announced === "auto") {
      this.adopt(peer, packet)
      return
    }
    const uptime = this.uptime()
    if (packet.uptime > uptime || (packet.uptime === uptime && packet.version > this.version)) {
      this.environment.log.error(
        `Keepalive version mismatch ${hex(this.version)} != ${hex(packet.version)} from node ${peer.pnn}`,
      )
      this.leaveCluster("CTDB Cluster with mixed versions, cannot continue")
    }
  }

  private adopt(peer: NodeEntry, packet: ReqKeepalive): void {
    const { pnn } = peer
    // Uptime 0 says "I have adopted nothing yet": nobody to follow. Among others the longest-running one decides.
    // Nor is a peer that is not connected: its half of a link may be anybody's.
    if (this.announced !== "auto" || packet.uptime === 0 || !isConnected(peer)) return
    if (this.adopted !== undefined && this.adopted.pnn !== pnn && this.adopted.uptime > packet.uptime) {
      if (packet.version !== this.version && !this.warned.has(pnn)) {
        this.warned.add(pnn)
        this.environment.log.warning(
          `Node ${pnn} announces version ${hex(packet.version)}, node ${this.adopted.pnn} ${hex(this.version)}`,
        )
      }
      return
    }
    if (packet.version !== this.version) {
      this.environment.log.notice(`Announcing version ${hex(packet.version)} from now on, as node ${pnn} does`)
    }
    this.version = packet.version
    this.adopted = { pnn, uptime: packet.uptime }
  }

  private tick(): void {
    if (this.state.shuttingDown) return
    for (const pnn of this.links.keepaliveTick(this.state.tunables.KeepaliveLimit)) this.send(pnn)
    this.start()
  }

  private uptime(): number {
    return Math.floor((this.environment.monotonicMs() - this.state.startedMs) / 1000)
  }
}

/** MAJOR << 16 | MINOR of some Samba that there might be, now or in years. */
function isPlausible(version: number): boolean {
  const major = version >>> 16
  return major >= 1 && major < 100 && (version & 0xffff) < 1000
}

function hex(version: number): string {
  return `0x${version.toString(16)}`
}
