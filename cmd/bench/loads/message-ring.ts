// Messages round the nodes, through the daemons alone (load-generators 9): `depth` tokens in each direction, where the stock generator has one.
// As many must come out as went in. Rates are measured from when the tokens are under way, without the stock generator's idle first second.

import { ZERO64 } from "../../../lib/protocol/word64.ts"
import type { Histogram } from "../histogram.ts"
import type { Load, LoadContext } from "./load.ts"
import { Tokens } from "./tokens.ts"

const LOOK_MS = 1000

export async function messageRing(context: LoadContext): Promise<Load> {
  const { plan, client, arena } = context
  const { pnn } = client
  const tokens = new Tokens(context, plan.nodes)
  const forwards = new Uint8Array([1, 0, 0, 0])
  const backwards = new Uint8Array([255, 255, 255, 255])
  const next = (pnn + 1) % plan.nodes
  const previous = (pnn + plan.nodes - 1) % plan.nodes
  let latency: Histogram | undefined
  let done = 0
  const seen = [0, 0]
  /** When the last token left in each direction (ns): with one token, the time until it is back is one round. */
  const left = [0, 0]

  await client.onMessage(ZERO64, (data) => {
    if (data.length !== 4 || tokens.swallow()) return
    const direction = data[0] === 1 ? 0 : 1
    seen[direction]!++
    arena.setDone(plan.index, ++done)
    if (latency !== undefined && plan.depth === 1) {
      const now = Bun.nanoseconds()
      if (left[direction] !== 0) latency.record((now - left[direction]!) / plan.nodes)
      left[direction] = now
    }
    client.sendMessage(direction === 0 ? next : previous, ZERO64, direction === 0 ? forwards : backwards)
  })

  return {
    async run(into: Histogram | undefined) {
      latency = into
      left.fill(0)
      seen.fill(0)
      let timer: ReturnType<typeof setInterval> | undefined
      const start = (direction: 0 | 1): void => {
        for (let i = 0; i < plan.depth; i++) {
          if (!plan.shared) tokens.put()
          client.sendMessage(direction === 0 ? next : previous, ZERO64, direction === 0 ? forwards : backwards)
        }
      }
      if (pnn === 0) {
        start(0)
        start(1)
        // As in the stock generator: a first token that met nobody is sent again.
        if (plan.shared) {
          timer = setInterval(() => {
            if (seen[0] === 0) start(0)
            if (seen[1] === 0) start(1)
          }, LOOK_MS)
        }
      }
      await tokens.circulate()
      clearInterval(timer)
    },
    async settle() {
      return { counted: 0, violations: [] }
    },
  }
}
