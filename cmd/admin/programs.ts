// Commands that another program does: event and scriptstatus (ctdb-event), natgw and lvs. The tool starts it with its own
// streams and turns its end into an exit status. Reference page "Admin tool", sections 6.9, 8.11 and 8.12.

import { resolvePaths } from "../../lib/config/paths.ts"
import type { Invocation } from "./invocation.ts"

interface HelperProgram {
  /** File in the helper directory. */
  readonly file: string
  /** Environment variable that names another file. */
  readonly variable: string
  /** What messages call it. */
  readonly name: string
}

const eventHelper: HelperProgram = { file: "ctdb-event", variable: "CTDB_EVENT_HELPER", name: "event daemon helper" }
const natgwHelper: HelperProgram = { file: "ctdb_natgw", variable: "CTDB_NATGW_HELPER", name: "NAT gateway helper" }
const lvsHelper: HelperProgram = { file: "ctdb_lvs", variable: "CTDB_LVS_HELPER", name: "LVS helper" }

/** A helper reports an errno by exiting with it plus this; also a program that can't be started does. */
const ERRNO_BASE = 64
const EINTR = 4

async function runHelper(invocation: Invocation, helper: HelperProgram, words: readonly string[]): Promise<number> {
  const { output } = invocation
  output.flush()
  const path = process.env[helper.variable] ?? `${resolvePaths(process.env).helperDir}/${helper.file}`
  let status: number
  try {
    const child = Bun.spawn([path, ...words], { stdin: "inherit", stdout: "inherit", stderr: "inherit" })
    status = await child.exited
    if (child.signalCode !== null) {
      output.warn(`${helper.name} terminated with signal ${status - 128}`)
      return EINTR
    }
  } catch (error) {
    const errno = error instanceof Error && "errno" in error && typeof error.errno === "number" ? error.errno : 2
    status = ERRNO_BASE + Math.abs(errno)
    if (output.mode === "terminal") output.warn(`  ${path} can't be started; ${helper.variable} may name another file`)
  }
  if (status < ERRNO_BASE || status === 255) return status
  output.warn(`${helper.name} failed with error ${status - ERRNO_BASE}`)
  return status - ERRNO_BASE
}

export function event(invocation: Invocation): Promise<number> {
  return runHelper(invocation, eventHelper, invocation.words)
}

/** Exit 0 whatever the scripts' results are. */
export async function scriptstatus(invocation: Invocation): Promise<number> {
  await runHelper(invocation, eventHelper, ["status", "legacy", invocation.words[0] ?? "monitor"])
  return 0
}

export function natgw(invocation: Invocation): Promise<number> {
  return runHelper(invocation, natgwHelper, invocation.words)
}

export function lvs(invocation: Invocation): Promise<number> {
  return runHelper(invocation, lvsHelper, invocation.words)
}
