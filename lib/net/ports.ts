// The narrow ports between logic and the outside: packet connections, timers, randomness. Everything that speaks CTDB's
// protocol (client sessions, links between nodes, the daemon's client table) is written against these, so that the same
// code runs over Bun's sockets and inside the simulator. No implementation lives here.

/** A running timer. Cancelling a timer that has fired, or twice, does nothing. */
export interface Timer {
  cancel(): void
}

export interface Scheduler {
  /** Milliseconds on a clock that never jumps. Only differences mean anything. */
  monotonicMs(): number
  /** Calls `run` once, `delayMs` from now (at least in the next turn of the loop). */
  setTimer(delayMs: number, run: () => void): Timer
  /** Calls `run` in the next turn of the event loop, after what is queued already. */
  nextTurn(run: () => void): void
  /**
   * Until when (on the clock of monotonicMs) long work may go on in this turn, together with all other such work. Past it, one more piece is
   * right: everything must get on.
   */
  workEndsMs(): number
}

/** Which queued packets go first: design decision 3. Lower is more urgent. */
export const Priority = {
  /** Keepalive, leader broadcast, recovery controls: the cluster's life. */
  LIVENESS: 0,
  /** Record traffic between nodes. */
  RECORD: 1,
  /** Everything else. */
  BULK: 2,
} as const
export type Priority = (typeof Priority)[keyof typeof Priority]

/**
 * One stream of whole CTDB packets (header included). Packets of one priority keep their order; a more urgent one may
 * overtake less urgent ones that have not started on the wire.
 */
export interface PacketConnection {
  /** The class whose turns it reads in. May be changed at any time. */
  readPriority: Priority
  /**
   * Queues one whole packet. The bytes belong to the connection from now on: the caller must not change them, and of a large packet
   * nothing is left when it is written.
   * Everything queued in one loop turn leaves in one write. After close() it is dropped silently.
   */
  send(packet: Uint8Array, priority?: Priority): void
  /** Bytes accepted by send() that have not reached the kernel: what bounds and back-pressure are judged by. */
  readonly queuedBytes: number
  readonly queuedPackets: number
  /** Stops (and restarts) reading, for back-pressure towards the peer. */
  pause(): void
  resume(): void
  /** Closes at once; queued packets are lost; no callback comes afterwards. */
  close(): void
}

/** What a packet connection tells its owner. Callbacks never nest inside send() or close(). */
export interface PacketHandler {
  /**
   * One whole packet with a valid header. The view is valid only during the call: the reader reuses its buffer, so
   * whoever keeps bytes copies them.
   */
  onPacket(packet: Uint8Array): void
  /**
   * A header that can't be right, or a length of 0. "drop" skips the packet (the Unix socket's rule), "close" ends the
   * connection (the rule between nodes); see wire-protocol page 2.4. A connection that is closed reports onClose next.
   */
  onBadHeader(reason: string): "drop" | "close"
  /** The connection ended: end of file, an error, or a bad header. Called once, never after close(). */
  onClose(reason: string): void
  /** The queue went from above its high-water mark to empty. */
  onDrain?(): void
}

/** Credentials of the process at the other end of a Unix socket. */
export interface PeerCredentials {
  readonly pid: number
  readonly uid: number
  readonly gid: number
}
