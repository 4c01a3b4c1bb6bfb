// The cluster-wide traverse: the daemon collects the records of all nodes and sends them as messages (client-library 14). Walks over
// the local file are Database.traverseLocal().

import { CURRENT_NODE, Srvid } from "../protocol/constants.ts"
import { readU32 } from "../protocol/header.ts"
import { REC_DATA_HEAD } from "../protocol/structs.ts"
import { type Word64, word64 } from "../protocol/word64.ts"
import { type Client, ControlError, cancellable, type Waiting } from "./client.ts"
import { HEADER_SIZE } from "./database.ts"
import type { Cancel } from "./session.ts"

export interface TraverseOptions extends Waiting {
  /** Empty and deleted records too. Default false. */
  readonly empty?: boolean
}

/**
 * Sees one record in place: `bytes` is a packet that is valid during the call; the data starts with its 24 header bytes.
 * Returns true to end the traverse.
 */
export type RecordSeen = (
  bytes: Uint8Array,
  keyStart: number,
  keyLength: number,
  dataStart: number,
  dataLength: number,
  // biome-ignore lint/suspicious/noConfusingVoidType: a visitor that never ends the walk returns nothing
) => boolean | void

export interface TraverseResult {
  /** Records that the visitor saw. */
  readonly records: number
  /** What is missing and why, in the daemon's words, from daemons of this project; undefined if nothing is, or a stock one does not say. */
  readonly cut: string | undefined
  /**
   * A stock daemon ends a traverse that takes longer than its TraverseTimeout as if all were there (daemon-data-path 11): true when it
   * took that long, so that nodes may be missing.
   */
  readonly maybeCut: boolean
}

let traverses = 0

/** The stock client's srvid for the first traverse of a process, so that what logs say stays the same; others beside it. */
function traverseSrvid(): Word64 {
  const srvid = word64(Srvid.CLIENT_RANGE.hi | (traverses & 0xffff), process.pid)
  traverses++
  return srvid
}

/**
 * Visits all records of a database on all nodes. Volatile: each node sends what it is dmaster of; a record that moves meanwhile may be
 * seen twice or not at all. Other kinds: one node's copy. Many traverses at once are fine.
 * @throws ControlError ("TRAVERSE_START_EXT" refused, or the connection lost; "timeout": no end within `timeoutMs`)
 */
export async function traverse(
  client: Client,
  dbId: number,
  visitor: RecordSeen,
  options: TraverseOptions = {},
): Promise<TraverseResult> {
  const { session } = client
  const srvid = traverseSrvid()
  const { timeoutMs = 0, signal } = options
  const limitMs = (await client.control("GET_TUNABLE", client.pnn, "TraverseTimeout", { signal })) * 1000
  const started = performance.now()
  let records = 0
  // What is already here when the end has come, or the visitor has had enough, does not count.
  let ended = false
  let cut: string | undefined
  let registration: Cancel | undefined
  let starting: Cancel | undefined
  let timer: ReturnType<typeof setTimeout> | undefined
  let onClosed: ((reason: string) => void) | undefined
  try {
    await cancellable<void>(signal, (resolve, reject) => {
      const onRecord = (data: Uint8Array): void => {
        if (ended || data.length < REC_DATA_HEAD) return
        const keyLength = readU32(data, 8)
        const dataLength = readU32(data, 12)
        if (keyLength === 0 && dataLength === 0) {
          if (data.length > REC_DATA_HEAD) cut = Buffer.from(data.subarray(REC_DATA_HEAD)).toString()
          ended = true
          resolve()
          return
        }
        if (REC_DATA_HEAD + keyLength + dataLength > data.length) return
        if (dataLength <= HEADER_SIZE && options.empty !== true) return
        records++
        try {
          const keyStart = REC_DATA_HEAD
          ended = visitor(data, keyStart, keyLength, keyStart + keyLength, dataLength) === true
          if (ended) resolve()
        } catch (error) {
          ended = true
          reject(error)
        }
      }
      const fail = (control: string, reason: ControlError["reason"], status: number, text: string): void =>
        reject(new ControlError(control, CURRENT_NODE, reason, status, text))
      // The controls of one connection are handled in order, so the registration is there before the first record.
      registration = session.onMessage(srvid, onRecord, (reply) => {
        if (!reply.ok) fail("REGISTER_SRVID", reply.reason, reply.status, reply.error)
      })
      const request = { dbId, reqid: 0, srvid, withemptyrecords: options.empty ?? false }
      starting = session.request("TRAVERSE_START_EXT", client.pnn, { request, timeoutMs }, (reply) => {
        if (!reply.ok) fail("TRAVERSE_START_EXT", reply.reason, reply.status, reply.error)
      })
      if (timeoutMs > 0) {
        timer = setTimeout(() => fail("TRAVERSE_START_EXT", "timeout", -1, `no end in ${timeoutMs} ms`), timeoutMs)
      }
      onClosed = (reason) => fail("TRAVERSE_START_EXT", "closed", -1, reason)
      client.closedWaiters.add(onClosed)
      return { cancel: () => {} }
    })
  } finally {
    clearTimeout(timer)
    starting?.cancel()
    registration?.cancel()
    if (onClosed !== undefined) client.closedWaiters.delete(onClosed)
  }
  return { records, cut, maybeCut: performance.now() - started >= limitMs }
}
