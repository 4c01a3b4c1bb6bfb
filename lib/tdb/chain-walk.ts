// A read walk that pauses only between chains (tdb-format.md 6.12). While it pauses it holds nothing, so that transactions of others
// are not kept waiting by a walk that takes its time; for that, one piece is as long as the longest chain.

import type { Tdb } from "./database.ts"
import { AT_CHAINS, AT_DATA_LEN, AT_KEY_LEN, AT_MAGIC, AT_NEXT, LIVE, RECORD_HEADER } from "./format.ts"
import type { Visitor } from "./traverse.ts"

export type ChainWalkState = "more" | "locked" | "over"

export class ChainWalk {
  private chain = 0

  constructor(private readonly db: Tdb) {
    db.look()
  }

  /**
   * Visits whole chains until `records_max` records were visited. "locked": somebody has the next chain, nothing waited for it.
   * What the visitor returns is ignored. Raises CORRUPT, IO.
   */
  next(records_max: number, visitor: Visitor): ChainWalkState {
    const db = this.db
    let left = records_max
    for (; this.chain < db.hashSize; this.chain++) {
      const head = AT_CHAINS + 4 * this.chain
      // An unlocked look at the head passes by empty chains.
      if (db.w[head >>> 2] === 0) continue
      if (left <= 0) return "more"
      if (!db.lockList(this.chain + 1, false, false)) return "locked"
      try {
        left -= this.visitChain(head, visitor)
      } finally {
        db.locks.unlock(this.chain + 1)
      }
    }
    return "over"
  }

  private visitChain(head: number, visitor: Visitor): number {
    const db = this.db
    let visited = 0
    // A chain can't have more records than fit into the file: one that does is a loop.
    let steps = Math.floor(db.size / RECORD_HEADER)
    for (let offset = db.getUnsigned(head); offset !== 0; offset = db.getUnsigned(offset + AT_NEXT)) {
      if (steps-- === 0) throw db.fail("CORRUPT", "circular chain", offset)
      db.checkRecord(offset)
      if (db.get(offset + AT_MAGIC) !== LIVE) continue
      visited++
      const keyStart = offset + RECORD_HEADER
      const keyLength = db.getUnsigned(offset + AT_KEY_LEN)
      visitor(db.b, keyStart, keyLength, keyStart + keyLength, db.getUnsigned(offset + AT_DATA_LEN))
    }
    return visited
  }
}
