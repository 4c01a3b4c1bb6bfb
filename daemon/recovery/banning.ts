// Banning credits: the leader's memory of which nodes made trouble (cluster page 6.5). A node with too many is banned by
// whoever asks here; this only counts.

/**
 * Which of the nodes that failed may be banned, worst first: never the only active one, nor so many that fewer than half of
 * the nodes that are here would be left; and nobody for what all active nodes share, the asking one included. A cause that
 * most nodes share is none of theirs: banning one after the other would end the cluster and leave the cause.
 * @param active nodes that take part now
 * @param banned nodes that are connected, and banned already
 */
export function bannable(faulty: readonly number[], active: readonly number[], banned: number): readonly number[] {
  const candidates = faulty.filter((pnn) => active.includes(pnn))
  if (candidates.length >= active.length) return []
  const fewest = Math.max(1, Math.ceil((active.length + banned) / 2))
  return candidates.slice(0, Math.max(0, active.length - fewest))
}

export class BanningCredits {
  private readonly credits = new Map<number, { count: number; lastMs: number }>()

  /**
   * Adds to a node's count; after more than `graceMs` without an addition the count starts again.
   * @param graceMs RecoveryGracePeriod in milliseconds
   */
  add(pnn: number, count: number, nowMs: number, graceMs: number): void {
    const entry = this.credits.get(pnn)
    if (entry === undefined || nowMs - entry.lastMs > graceMs) this.credits.set(pnn, { count, lastMs: nowMs })
    else {
      entry.count += count
      entry.lastMs = nowMs
    }
  }

  count(pnn: number): number {
    return this.credits.get(pnn)?.count ?? 0
  }

  /** The nodes with at least `limit` credits. */
  reached(limit: number): number[] {
    return [...this.credits].filter(([, { count }]) => count >= limit).map(([pnn]) => pnn)
  }

  forget(pnn: number): void {
    this.credits.delete(pnn)
  }

  reset(): void {
    this.credits.clear()
  }
}
