// Commands that set or clear a flag of a node and wait until the whole cluster sees it: disable, enable, stop, continue,
// ban, unban. Reference page "Admin tool", sections 6.6 and 8.6.

import { NodeFlag } from "../../lib/protocol/constants.ts"
import type { NodeMap } from "../../lib/protocol/structs.ts"
import type { Invocation } from "./invocation.ts"
import { findNode, tryNodeMap } from "./nodes.ts"
import { parseUint32 } from "./numbers.ts"
import { takeoverRun } from "./requests.ts"

interface FlagChange {
  readonly flag: number
  /** The state that is wanted. */
  readonly set: boolean
  /** "disabled", "stopped", "banned". */
  readonly word: string
  /** What is sent; throws Failure after printing why it did not work. */
  readonly send: () => Promise<unknown>
}

/** Pause between two looks at the node map, ms. */
const LOOK_MS = 1000

async function changeFlag(invocation: Invocation, change: FlagChange): Promise<number> {
  const { output, node } = invocation
  const { flag, set, word } = change
  const isReached = (map: NodeMap) => (((findNode(map, node)?.flags ?? 0) & flag) !== 0) === set
  const known = invocation.nodeMap ?? (await tryNodeMap(invocation))
  const report = (changed: boolean) => {
    if (output.mode === "json") output.json({ node, [word]: set, changed })
  }

  if (known !== undefined && isReached(known)) {
    output.warn(`Node ${node} is ${set ? "already" : "not"} ${word}`)
    report(false)
    return 0
  }
  await change.send()
  await invocation.waiting(`waiting for all nodes to see node ${node} ${set ? "" : "not "}${word}`, async () => {
    while (true) {
      const map = await tryNodeMap(invocation)
      if (map !== undefined && isReached(map)) return
      if (map === undefined) output.warn("Failed to get nodemap, trying again")
      await invocation.sleep(LOOK_MS)
    }
  })
  const result = await invocation.waiting("waiting for the leader to reassign public addresses", () =>
    takeoverRun(invocation),
  )
  if (result < 0) return result
  report(true)
  if (output.mode === "terminal") output.print(`Node ${node} is ${set ? "" : "no longer "}${word}\n`)
  return 0
}

export function disable(invocation: Invocation): Promise<number> {
  const { node } = invocation
  return changeFlag(invocation, {
    flag: NodeFlag.PERMANENTLY_DISABLED,
    set: true,
    word: "disabled",
    send: () => invocation.control("DISABLE_NODE", node, undefined, `Failed to disable node ${node}`),
  })
}

export function enable(invocation: Invocation): Promise<number> {
  const { node } = invocation
  return changeFlag(invocation, {
    flag: NodeFlag.PERMANENTLY_DISABLED,
    set: false,
    word: "disabled",
    send: () => invocation.control("ENABLE_NODE", node, undefined, `Failed to enable node ${node}`),
  })
}

export function stop(invocation: Invocation): Promise<number> {
  const { node } = invocation
  return changeFlag(invocation, {
    flag: NodeFlag.STOPPED,
    set: true,
    word: "stopped",
    send: () => invocation.control("STOP_NODE", node, undefined, `Failed to stop node ${node}`),
  })
}

export function continueNode(invocation: Invocation): Promise<number> {
  const { node } = invocation
  return changeFlag(invocation, {
    flag: NodeFlag.STOPPED,
    set: false,
    word: "stopped",
    send: () => invocation.control("CONTINUE_NODE", node, undefined, `Failed to continue stopped node ${node}`),
  })
}

const EINVAL = 22

export function ban(invocation: Invocation): Promise<number> {
  const { node } = invocation
  return changeFlag(invocation, {
    flag: NodeFlag.BANNED,
    set: true,
    word: "banned",
    send: async () => {
      const time = parseUint32(invocation.words[0] ?? "")
      if (!time.ok) return invocation.fail(invocation.badNumber(invocation.words[0] ?? "", time.errno))
      if (time.value === 0) return invocation.fail(EINVAL, "Ban time cannot be zero")
      const request = { pnn: node, time: time.value }
      return await invocation.control("SET_BAN_STATE", node, request, `Failed to ban node ${node}`)
    },
  })
}

export function unban(invocation: Invocation): Promise<number> {
  const { node } = invocation
  const send = () => invocation.control("SET_BAN_STATE", node, { pnn: node, time: 0 }, `Failed to unban node ${node}`)
  return changeFlag(invocation, { flag: NodeFlag.BANNED, set: false, word: "banned", send })
}
