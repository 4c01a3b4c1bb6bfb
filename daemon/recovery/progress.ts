// How far a recovery has come: counted where the work is done, told to the log and, as a message, to whoever watches
// (`ctdb recover --watch`). Nothing depends on it.

import { pack, unpack } from "msgpackr"
import type { Session } from "../../lib/client/session.ts"
import type { Logger } from "../../lib/config/log.ts"
import type { Scheduler, Timer } from "../../lib/net/ports.ts"
import { BROADCAST_CONNECTED } from "../../lib/protocol/constants.ts"
import { word64 } from "../../lib/protocol/word64.ts"

/** Where the messages go: an id of ours, in a range that stock programs do not use (wire-protocol page 7). */
export const RECOVERY_PROGRESS = Object.freeze(word64(0xc7db0000, 1))

/** How often whoever watches is told, and the log, if there is news. */
const TELL_MS = 250
const LOG_MS = 1000

export interface RecoveryProgress {
  readonly leader: number
  readonly generation: number
  /** "preparing", "databases", "finishing", then "done" or "failed". */
  readonly phase: "preparing" | "databases" | "finishing" | "done" | "failed"
  readonly databases: number
  readonly frozen: number
  readonly recovered: number
  /** Given up in this recovery. */
  readonly failed: number
  readonly pulledRecords: number
  readonly pulledBytes: number
  readonly pushedRecords: number
  readonly pushedBytes: number
  /** Records that all nodes held alike and that did not travel. */
  readonly keptRecords: number
  readonly seconds: number
}

/** The payload of a progress message; undefined for anything else. */
export function readProgress(data: Uint8Array): RecoveryProgress | undefined {
  try {
    const value: unknown = unpack(data)
    return typeof value === "object" && value !== null && "phase" in value ? (value as RecoveryProgress) : undefined
  } catch {
    return undefined
  }
}

export function progressText(progress: RecoveryProgress): string {
  const { databases, frozen, recovered, failed, pushedRecords, pushedBytes, keptRecords, seconds } = progress
  const trouble = failed > 0 ? `, ${failed} given up` : ""
  return (
    `${frozen} of ${databases} databases frozen, ${recovered} recovered${trouble}, ` +
    `${pushedRecords} records sent (${pushedBytes} bytes), ${keptRecords} alike, ${seconds.toFixed(1)} s`
  )
}

export class ProgressReport {
  databases = 0
  frozen = 0
  recovered = 0
  failed = 0
  pulledRecords = 0
  pulledBytes = 0
  pushedRecords = 0
  pushedBytes = 0
  keptRecords = 0
  private readonly startedMs: number
  private timer: Timer | undefined
  private lastText = ""
  private loggedMs: number
  private stage: RecoveryProgress["phase"] = "preparing"

  constructor(
    private readonly session: Session,
    private readonly scheduler: Scheduler,
    private readonly log: Logger,
    private readonly leader: number,
    private readonly generation: number,
  ) {
    this.startedMs = scheduler.monotonicMs()
    this.loggedMs = this.startedMs
    this.next()
  }

  /** The next part of the recovery begins: told at once. */
  enter(phase: RecoveryProgress["phase"]): void {
    this.stage = phase
    this.tell()
  }

  now(): RecoveryProgress {
    const { leader, generation, stage: phase, databases, frozen, recovered, failed } = this
    const { pulledRecords, pulledBytes, pushedRecords, pushedBytes, keptRecords } = this
    const seconds = (this.scheduler.monotonicMs() - this.startedMs) / 1000
    const counts = { pulledRecords, pulledBytes, pushedRecords, pushedBytes, keptRecords }
    return { leader, generation, phase, databases, frozen, recovered, failed, ...counts, seconds }
  }

  /** The last report. */
  end(phase: "done" | "failed"): void {
    this.timer?.cancel()
    this.timer = undefined
    this.enter(phase)
  }

  private next(): void {
    this.timer = this.scheduler.setTimer(TELL_MS, () => {
      if (this.scheduler.monotonicMs() - this.loggedMs >= LOG_MS) this.write()
      this.tell()
      this.next()
    })
  }

  private write(): void {
    this.loggedMs = this.scheduler.monotonicMs()
    const progress = this.now()
    // The time alone is no news in the log.
    const text = progressText({ ...progress, seconds: 0 })
    if (text !== this.lastText) this.log.notice(`Recovery: ${progressText(progress)}`)
    this.lastText = text
  }

  private tell(): void {
    this.session.sendMessage(BROADCAST_CONNECTED, RECOVERY_PROGRESS, pack(this.now()))
  }
}
