// Commands that concern the cluster as a whole or end a node: leader, recover, ipreallocate (and its old name sync),
// shutdown. Reference page "Admin tool", sections 6.5, 6.7, 8.6 and 8.7.

import { INVALID_GENERATION, RecoveryMode, UNKNOWN_PNN } from "../../lib/protocol/constants.ts"
import { Failure, type Invocation } from "./invocation.ts"
import { takeoverRun } from "./requests.ts"

export async function leader(invocation: Invocation): Promise<number> {
  const { output } = invocation
  const pnn = await invocation.leader()
  const known = pnn !== UNKNOWN_PNN
  await output.show({ text: () => `${known ? pnn : "UNKNOWN"}\n`, json: () => ({ leader: known ? pnn : null }) })
  return 0
}

/** Pause between two looks at a cluster that is not there yet, ms. */
const LOOK_MS = 1000

/** The generation that the leader has, once it is valid and no recovery runs. @throws Failure after printing why */
export async function currentGeneration(invocation: Invocation): Promise<number> {
  while (true) {
    const leader = await invocation.leader()
    const mode = await recoveryMode(invocation, leader)
    if (mode === RecoveryMode.NORMAL) {
      const line = `Failed to get generation from node ${leader}`
      const { generation } = await invocation.control("GETVNNMAP", leader, undefined, line)
      if (generation !== INVALID_GENERATION) return generation
    }
    await invocation.sleep(LOOK_MS)
  }
}

async function recoveryMode(invocation: Invocation, node: number): Promise<number> {
  try {
    return await invocation.controlValue("GET_RECMODE", node)
  } catch (error) {
    if (error instanceof Failure) invocation.output.warn(`Failed to get recovery mode from node ${node}`)
    throw error
  }
}

export async function recover(invocation: Invocation): Promise<number> {
  const { output, node } = invocation
  const before = await currentGeneration(invocation)
  const watched = invocation.options.watch
    ? await (await import("./recovery-progress.ts")).watchRecovery(invocation)
    : undefined
  await invocation.control("SET_RECMODE", node, RecoveryMode.ACTIVE, "Failed to set recovery mode active")
  const wait = async () => {
    try {
      while (true) {
        const generation = await currentGeneration(invocation)
        if (generation !== before) return generation
        await invocation.sleep(LOOK_MS)
      }
    } catch (error) {
      if (error instanceof Failure) output.warn("Failed to confirm end of recovery")
      throw error
    }
  }
  const after = await (watched?.until(wait) ?? invocation.waiting("waiting for the recovery to end", wait))
  if (output.mode === "json") output.json({ generation_before: before, generation: after })
  if (output.mode === "terminal") output.print(`Recovered: generation ${after}\n`)
  return 0
}

export async function ipreallocate(invocation: Invocation): Promise<number> {
  const { output } = invocation
  const result = await invocation.waiting("waiting for the leader to reassign public addresses", () =>
    takeoverRun(invocation),
  )
  if (result < 0) return result
  if (output.mode === "json") output.json({ leader: result })
  if (output.mode === "terminal") output.print(`Public addresses reassigned by node ${result}\n`)
  return 0
}

/** A remote daemon is only told; the end of the local one shows as the end of the connection. */
export async function shutdown(invocation: Invocation): Promise<number> {
  const { client, output, node, localNode } = invocation
  const ended = node === localNode ? client.waitForClose() : undefined
  client.sendControl("SHUTDOWN", node)
  if (ended !== undefined) {
    await invocation.waiting(`waiting for the daemon of node ${node} to end`, () => ended)
  }
  await client.close()
  if (output.mode === "json") output.json({ node, shutdown: ended === undefined ? "requested" : "done" })
  if (output.mode === "terminal")
    output.print(`Node ${node} ${ended === undefined ? "was told to shut down" : "is down"}\n`)
  return 0
}
