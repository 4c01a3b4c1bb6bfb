// Random numbers that replay from a seed. Every test that uses them prints its seed when it fails.

export class Random {
  private state: number
  constructor(readonly seed: number) {
    this.state = seed >>> 0
  }
  /** An integer in [0, bound). */
  below(bound: number): number {
    // mulberry32
    this.state = (this.state + 0x6d2b79f5) >>> 0
    let t = this.state
    t = Math.imul(t ^ (t >>> 15), t | 1)
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61)
    return Math.floor((((t ^ (t >>> 14)) >>> 0) / 0x100000000) * bound)
  }
  pick<T>(items: readonly T[]): T {
    return items[this.below(items.length)]!
  }
  bytes(length: number): Buffer {
    const bytes = Buffer.alloc(length)
    for (let i = 0; i < length; i++) bytes[i] = this.below(256)
    return bytes
  }
}

/** The seed to start from: CTDB_SEED replays a failure. */
export const firstSeed = Number(process.env.CTDB_SEED ?? 1)
/** True when the long forms of tests are wanted. */
export const soak = process.env.CTDB_SOAK === "1"
