// Records that go round the nodes (load-generators 5): whoever gets the message fetch-locks the record, adds a line to it and tells the next
// node. The last line must be the one that the node before wrote, and no token may be lost or doubled. One token is the stock generator's;
// with more, a message names its record.

import { word64, ZERO64 } from "../../../lib/protocol/word64.ts"
import type { Histogram } from "../histogram.ts"
import { attached, type Load, type LoadContext } from "./load.ts"
import { Tokens } from "./tokens.ts"

/** Longer texts are thrown away (load-generators 5). */
const TEXT_MAX = 1000
const NEW_TEXT = Buffer.from("Test data\n")
const LINE_END = 10

interface Line {
  readonly count: number
  readonly node: number
}

/** The last line of the text, which ends with a line's end. Looks at no other: the whole text is a thousand bytes. */
function lastLine(text: Buffer, length: number): Line | undefined {
  const before = length < 2 ? -1 : text.lastIndexOf(LINE_END, length - 2)
  const line = text.toString("latin1", before + 1, length - 1)
  const found = /^msg_count=(\d+) on node (\d+)$/.exec(line)
  return found === null ? undefined : { count: Number(found[1]), node: Number(found[2]) }
}

export async function recordRing(context: LoadContext): Promise<Load> {
  const { plan, client, arena } = context
  const { pnn } = client
  const database = await attached(context)
  const stock = plan.depth === 1
  const keys = Array.from({ length: plan.depth }, (_, index) => Buffer.from(stock ? plan.key : `${plan.key}.${index}`))
  const counts = new Uint32Array(plan.depth)
  /** What the node before wrote last; -1 as long as that is not known. */
  const before = new Int32Array(plan.depth).fill(-1)
  const previous = (pnn + plan.nodes - 1) % plan.nodes
  const text = Buffer.alloc(2 * TEXT_MAX)
  const tokens = new Tokens(context, plan.nodes)
  let latency: Histogram | undefined
  let done = 0

  async function update(index: number): Promise<void> {
    const begun = latency === undefined ? 0 : Bun.nanoseconds()
    const locked = database.fetchLock(keys[index]!)
    const record = locked instanceof Promise ? await locked : locked
    let length = record.parse((bytes, start, size) => {
      const taken = Math.min(size, text.length)
      text.set(bytes.subarray(start, start + taken))
      return taken > 0 && text[taken - 1] === 0 ? taken - 1 : taken
    })
    if (length > 0) check(index, lastLine(text, length))
    if (length === 0 || length >= TEXT_MAX) {
      text.set(NEW_TEXT)
      length = NEW_TEXT.length
    }
    length += text.write(`msg_count=${counts[index]} on node ${pnn}\n\0`, length, "latin1")
    record.store(text.subarray(0, length))
    record.unlock()
    if (latency !== undefined) latency.record(Bun.nanoseconds() - begun)
    client.sendMessage((pnn + 1) % plan.nodes, ZERO64, stock ? NOTHING : new Uint8Array([index, index >> 8, 0, 0]))
  }

  function check(index: number, line: Line | undefined): void {
    if (line === undefined || plan.nodes === 1) return
    const expected = before[index]!
    if (line.node === previous) {
      if (expected >= 0 && line.count !== expected + 1) {
        context.violation(`record of token ${index}: node ${previous} wrote ${expected + 1}, found ${line.count}`)
      }
      before[index] = line.count
    } else if (expected >= 0) context.violation(`record of token ${index}: the last line is node ${line.node}'s`)
  }

  await client.onMessage(word64(0, 0), (data) => {
    const index = data.length >= 2 ? data[0]! | (data[1]! << 8) : 0
    if (index >= plan.depth || (stock && data.length > 0) || tokens.swallow()) return
    counts[index]!++
    arena.setDone(plan.index, ++done)
    update(index).catch((error: unknown) => context.violation(String(error)))
  })

  return {
    database,
    async run(into: Histogram | undefined) {
      latency = into
      before.fill(-1)
      if (pnn === plan.nodes - 1) {
        // All are there before the first can be out again: a run may be over by then.
        for (let index = 0; index < plan.depth; index++) tokens.put()
        for (let index = 0; index < plan.depth; index++) await update(index)
      }
      await tokens.circulate()
    },
    async settle() {
      return { counted: 0, violations: [] }
    },
  }
}

const NOTHING = new Uint8Array(0)
