// Banning credits: the leader's memory of which nodes made trouble (cluster page 6.5). A node with too many is banned by
// whoever asks here; this only counts.

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
