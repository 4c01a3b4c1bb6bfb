// Commits as tests make and judge them: the bytes of a buffer that a client would send, transactions that raise a counter, and
// what a node's own copy has. Starts nothing.

import { attach } from "../../lib/client/attach.ts"
import type { Client } from "../../lib/client/client.ts"
import { Transaction } from "../../lib/client/transaction.ts"
import type { MixedCluster } from "./nodes.ts"

export const utf8 = new TextEncoder()
export const SEQUENCE_KEY = utf8.encode("__db_sequence_number__\0")
const HEADER_SIZE = 24

function value(rsn: number, data: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(HEADER_SIZE + data.length)
  new DataView(bytes.buffer).setUint32(0, rsn, true)
  bytes.set(data, HEADER_SIZE)
  return bytes
}

export function u64(number: number): Uint8Array {
  const bytes = new Uint8Array(8)
  new DataView(bytes.buffer).setBigUint64(0, BigInt(number), true)
  return bytes
}

export const numberOf = (bytes: Uint8Array | undefined): number =>
  bytes === undefined || bytes.length < 8
    ? 0
    : Number(new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(0, true))

/** A commit of one record and the sequence number, without any lock. */
export const commitOf = (dbId: number, rsn: number, data: string) => ({
  dbId,
  records: [
    { reqid: 0, key: utf8.encode("key"), data: value(rsn, utf8.encode(data)) },
    { reqid: 0, key: SEQUENCE_KEY, data: value(rsn, u64(rsn)) },
  ],
})

/** Raises the counters of these keys, which are equal, once in a transaction; the new number. */
export async function raise(
  client: Client,
  name: string,
  kind: "persistent" | "replicated",
  ...keys: Uint8Array[]
): Promise<number> {
  const database = await attach(client, name, { kind })
  const transaction = await Transaction.start(client, database)
  let next = 0
  for (const key of keys) {
    const before = numberOf(await transaction.fetch(key))
    if (next !== 0 && next !== before + 1) throw new Error(`half a commit: ${next - 1} beside ${before}`)
    next = before + 1
    await transaction.store(key, u64(next))
  }
  await transaction.commit()
  return next
}

/** A node's own copy of a record's number. */
export async function stored(cluster: MixedCluster, pnn: number, name: string, key: Uint8Array): Promise<number> {
  const database = await attach(cluster.client(pnn), name, { kind: "persistent", unhealthy: true })
  return numberOf((await database.localRecord(key))?.slice(HEADER_SIZE))
}
