// Counts of durations in buckets that get wider as the values do, 3% wide at most; and the correction for what a closed loop does not see:
// while one operation stands still, those that would have been begun meanwhile wait too (coordinated omission).

/** Buckets for each doubling of the value. */
const STEPS = 32
/** Up to 2^44 ns, close to five hours. */
const DOUBLINGS = 44

/** Lowest value of a bucket. */
function floorOf(bucket: number): number {
  return 2 ** Math.floor(bucket / STEPS) * (1 + (bucket % STEPS) / STEPS)
}

export class Histogram {
  private readonly counts = new Float64Array(STEPS * DOUBLINGS)
  /** Largest value (ns), exactly. */
  max = 0

  /** @param value nanoseconds */
  record(value: number): void {
    if (value > this.max) this.max = value
    const whole = Math.max(value, 1)
    const doubling = 31 - Math.clz32(whole < 0x7fffffff ? whole : whole / 0x10000) + (whole < 0x7fffffff ? 0 : 16)
    const step = Math.floor((whole / 2 ** doubling - 1) * STEPS)
    this.counts[Math.min(doubling * STEPS + Math.min(step, STEPS - 1), STEPS * DOUBLINGS - 1)]!++
  }

  get count(): number {
    return this.counts.reduce((sum, count) => sum + count, 0)
  }

  /** The value (ns) that this share of all is not above; 0 of none. @param share 0 to 1 */
  percentile(share: number): number {
    const wanted = this.count * share
    if (wanted === 0) return 0
    let seen = 0
    for (let bucket = 0; bucket < this.counts.length; bucket++) {
      seen += this.counts[bucket]!
      if (seen >= wanted) return Math.min(this.max, (floorOf(bucket) + floorOf(bucket + 1)) / 2)
    }
    return this.max
  }

  /**
   * With every operation that took longer than `interval` (ns; how often one is begun when nothing stands still) come the ones that would have
   * been begun during it: they take from `interval` less, down to `interval`.
   */
  corrected(interval: number): Histogram {
    const result = new Histogram()
    result.max = this.max
    result.counts.set(this.counts)
    if (!(interval > 0)) return result
    for (let bucket = 0; bucket < this.counts.length; bucket++) {
      const count = this.counts[bucket]!
      const top = floorOf(bucket) - interval
      if (count === 0 || top <= interval) continue
      for (let below = 0; below <= bucket; below++) {
        const overlap = Math.min(floorOf(below + 1), top) - Math.max(floorOf(below), interval)
        if (overlap > 0) result.counts[below]! += (count * overlap) / interval
      }
    }
    return result
  }

  /** What goes through a pipe: bucket and count by turns, and the largest value first. */
  toNumbers(): number[] {
    const numbers = [this.max]
    this.counts.forEach((count, bucket) => {
      if (count > 0) numbers.push(bucket, count)
    })
    return numbers
  }

  addNumbers(numbers: readonly number[]): void {
    this.max = Math.max(this.max, numbers[0] ?? 0)
    for (let at = 1; at + 1 < numbers.length; at += 2) this.counts[numbers[at]!]! += numbers[at + 1]!
  }
}
