// Requests that are messages with an answer, as the recovery side of the daemons serves them: takeover runs, and switching
// takeover runs or recoveries off for a while. Reference page "Admin tool", sections 6.7 and 6.8.

import { decode, encode } from "../../lib/protocol/codec.ts"
import { BROADCAST_CONNECTED, Errno, RecoveryMode, Srvid } from "../../lib/protocol/constants.ts"
import { ack } from "../../lib/protocol/messages.ts"
import { disableMessage, srvidMessage } from "../../lib/protocol/structs.ts"
import { type Word64, word64 } from "../../lib/protocol/word64.ts"
import type { Invocation } from "./invocation.ts"

let replySrvids = 0

/** A SRVID of this process's own that was not used before, for answers to one request. */
export function newReplySrvid(): Word64 {
  replySrvids++
  return word64(0xce01_0000, (((process.pid & 0xffff) << 16) | replySrvids) >>> 0)
}

/** How often a waiting takeover request looks whether a recovery has ended, ms. */
const RECOVERY_LOOK_MS = 1000

/**
 * Asks for a takeover run and waits until the leader has done one, without limit but `-T`. The request is lost when there
 * is no leader or a recovery runs; so it is sent again when a new leader is heard or a recovery has ended, and after
 * the time limit as the stock tool does.
 * @returns the leader's PNN, or a negative error number
 */
export async function takeoverRun(invocation: Invocation): Promise<number> {
  const { client, localNode, timeoutMs } = invocation
  const srvid = newReplySrvid()
  const request = encode(srvidMessage, { pnn: localNode, srvid })
  const send = () => client.sendMessage(BROADCAST_CONNECTED, Srvid.TAKEOVER_RUN, request)

  let answered: (result: number) => void = () => {}
  const answer = new Promise<number>((resolve) => {
    answered = resolve
  })
  const registration = await client.onMessage(srvid, (payload) => {
    if (payload.length === 4) answered(decode(ack, payload))
  })
  const stopFollowing = invocation.onNewLeader(send)
  let sinceSent = 0
  let recovering = false
  const timer = setInterval(async () => {
    sinceSent += RECOVERY_LOOK_MS
    const mode = await client.controlStatus("GET_RECMODE", localNode, undefined, { timeoutMs: 5000 }).catch(() => -1)
    const ended = recovering && mode === RecoveryMode.NORMAL
    recovering = mode === RecoveryMode.ACTIVE
    if (!ended && sinceSent < timeoutMs) return
    sinceSent = 0
    send()
  }, RECOVERY_LOOK_MS)
  try {
    send()
    invocation.output.flush()
    return await answer
  } finally {
    clearInterval(timer)
    stopFollowing()
    registration.cancel()
  }
}

/** What can be switched off for a time on all connected nodes. */
export type Operation = "takeover runs" | "recoveries"

/**
 * Switches an operation off for `seconds` on each of `nodes` (0: on again), and waits until all have agreed.
 * @returns undefined when all agreed; else an error number, with ETIMEDOUT for nodes that did not answer in time
 */
export async function disableOperation(
  invocation: Invocation,
  operation: Operation,
  nodes: readonly number[],
  seconds: number,
): Promise<number | undefined> {
  const { client, output, localNode, timeoutMs } = invocation
  const srvid = newReplySrvid()
  const waitingFor = new Set(nodes)
  let finish: (result: number | undefined) => void = () => {}
  const finished = new Promise<number | undefined>((resolve) => {
    finish = resolve
  })
  const registration = await client.onMessage(srvid, (payload) => {
    if (payload.length !== 4) return
    const result = decode(ack, payload)
    if (result < 0) finish(result)
    waitingFor.delete(result)
    if (waitingFor.size === 0) finish(undefined)
  })
  // The stock tool means to report this and passes it over instead; scripts see no text, people do.
  const timer = setTimeout(() => {
    const left = [...waitingFor].join(", ")
    const what = seconds > 0 ? "disable" : "enable"
    if (output.mode === "terminal") output.warn(`No answer from node ${left} to the request to ${what} ${operation}`)
    finish(Errno.ETIMEDOUT)
  }, timeoutMs)
  try {
    const target = operation === "takeover runs" ? Srvid.DISABLE_TAKEOVER_RUNS : Srvid.DISABLE_RECOVERIES
    const request = encode(disableMessage, { pnn: localNode, srvid, timeout: seconds })
    for (const node of nodes) client.sendMessage(node, target, request)
    return await finished
  } finally {
    clearTimeout(timer)
    registration.cancel()
  }
}
