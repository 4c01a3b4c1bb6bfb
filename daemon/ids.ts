// Request ids and client ids of the main daemon, from one table as on the wire (wire-protocol page 2.6). It only hands
// out numbers and finds what stands behind them.

const FIRST_ID = 0x7fffff38
const LAST_ID = 0x7fffffff

/**
 * Ids are 31 bits. After the last one the table goes on from 1 and keeps counting, so that an id comes back only after
 * two thousand million others: a late reply then meets nobody instead of a stranger's request. 0 is never handed out.
 */
export class IdTable<T> {
  private readonly entries = new Map<number, T>()
  private next = FIRST_ID

  add(value: T): number {
    let id = this.next
    while (this.entries.has(id)) id = id === LAST_ID ? 1 : id + 1
    this.entries.set(id, value)
    this.next = id === LAST_ID ? 1 : id + 1
    return id
  }

  get(id: number): T | undefined {
    return this.entries.get(id)
  }

  remove(id: number): void {
    this.entries.delete(id)
  }

  /** All entries; adding and removing while walking is allowed. */
  all(): IterableIterator<[number, T]> {
    return this.entries.entries()
  }

  get size(): number {
    return this.entries.size
  }
}
