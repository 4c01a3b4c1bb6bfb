// The stock generators' start barrier (load-generators 2): the instance on node 0 collects the numbers of the others and says when all are
// there. Stock instances and ours start together by it.

import type { Client } from "../../lib/client/client.ts"
import { decode, encode, u32 } from "../../lib/protocol/codec.ts"
import { BROADCAST_CONNECTED } from "../../lib/protocol/constants.ts"
import { word64 } from "../../lib/protocol/word64.ts"

const JOIN = word64(0xae000000, 1)
const SYNC = word64(0xae000000, 2)
const AGAIN_MS = 1000
/** The stock generators give up after this. */
const LIMIT_MS = 30_000

/** Resolves when the instances on nodes 0 to `nodes` - 1 are all here. @throws Error after 30 s, naming who is missing if that is known */
export async function clusterWait(client: Client, nodes: number): Promise<void> {
  const { pnn } = client
  if (pnn >= nodes) throw new Error(`this is node ${pnn}, and nodes 0 to ${nodes - 1} take part`)
  const ready = new Set<number>()
  const registrations: { cancel(): void }[] = []
  if (pnn === 0) {
    let said = false
    registrations.push(
      await client.onMessage(JOIN, (data) => {
        if (data.length !== 4) return
        const other = decode(u32, data)
        if (other < nodes) ready.add(other)
        if (ready.size < nodes || said) return
        said = true
        client.sendMessage(BROADCAST_CONNECTED, SYNC, new Uint8Array(0))
      }),
    )
  }
  let opened: () => void = () => {}
  const open = new Promise<void>((resolve) => {
    opened = resolve
  })
  registrations.push(await client.onMessage(SYNC, () => opened()))
  const join = () => client.sendMessage(0, JOIN, encode(u32, pnn))
  join()
  const timer = setInterval(join, AGAIN_MS)
  const late = Bun.sleep(LIMIT_MS).then(() => {
    const missing = Array.from({ length: nodes }, (_, node) => node).filter((node) => !ready.has(node))
    throw new Error(
      pnn === 0 ? `no generator came on node ${missing.join(", ")}` : "the generator on node 0 never said go",
    )
  })
  try {
    await Promise.race([open, late])
  } finally {
    late.catch(() => {})
    clearInterval(timer)
    for (const registration of registrations) registration.cancel()
  }
}
