// Tokens that go round in messages: put in at the start, taken out at the end, and counted. When all workers are this program's, as many must
// come out as went in.

import type { LoadContext } from "./load.ts"

/** Between two looks whether the run is over: each wakes the process, which is then not there for a token (ms). */
const RUNNING_LOOK_MS = 50
/** Between two looks whether all tokens are out (ms). */
const LOOK_MS = 5
/** A token that has not come by this long after the end is lost (ms). */
const LOST_MS = 20_000
/** One that is there twice comes within this time after the last (ms). */
const TWICE_MS = 30

export class Tokens {
  constructor(
    private readonly context: LoadContext,
    readonly nodes: number,
  ) {}

  /** One goes in. */
  put(): void {
    this.context.arena.addMarks(this.context.plan.index, -1)
  }

  /** At the end of a run a token that comes goes no further: true. */
  swallow(): boolean {
    if (this.context.arena.running) return false
    this.context.arena.addMarks(this.context.plan.index, 1)
    return true
  }

  /** Waits until the run is over and all tokens are out. */
  async circulate(): Promise<void> {
    const { arena, plan } = this.context
    while (arena.running) await Bun.sleep(RUNNING_LOOK_MS)
    if (plan.shared) return
    const deadline = performance.now() + LOST_MS
    while (arena.allMarks < 0 && performance.now() < deadline) await Bun.sleep(LOOK_MS)
    await Bun.sleep(TWICE_MS)
    if (plan.index !== 0 || arena.allMarks === 0) return
    this.context.violation(
      arena.allMarks < 0
        ? `${-arena.allMarks} tokens were lost`
        : `${arena.allMarks} tokens too many came out of the ring`,
    )
  }
}
