// Tunable variables: getvar, setvar, listvars. Reference page "Admin tool", section 8.2.

import type { Invocation } from "./invocation.ts"
import { parseUint32 } from "./numbers.ts"

/** The variables of the node, in its order (the list that it sends starts with an empty name). @throws Failure */
async function listNames(invocation: Invocation, line?: string): Promise<readonly string[]> {
  const names = await invocation.control("LIST_TUNABLES", invocation.node, undefined, line)
  return names.filter((name) => name !== "")
}

const noList = (node: number) => `Failed to get list of variables from node ${node}`

function isKnown(names: readonly string[], name: string): boolean {
  return names.some((known) => known.toLowerCase() === name.toLowerCase())
}

function refuse(invocation: Invocation, name: string): number {
  invocation.output.print(`No such tunable ${name}\n`)
  return 1
}

const line = (name: string, value: number) => `${name.padEnd(26)} = ${value}\n`

export async function getvar(invocation: Invocation): Promise<number> {
  const { output, node, words } = invocation
  const name = words[0] ?? ""
  if (!isKnown(await listNames(invocation, noList(node)), name)) return refuse(invocation, name)
  const value = await invocation.control("GET_TUNABLE", node, name)
  await output.show({ text: () => line(name, value), json: () => ({ node, name, value }) })
  return 0
}

export async function setvar(invocation: Invocation): Promise<number> {
  const { output, node, words } = invocation
  const [name = "", text = ""] = words
  if (!isKnown(await listNames(invocation, noList(node)), name)) return refuse(invocation, name)
  const parsed = parseUint32(text)
  if (!parsed.ok) return invocation.badNumber(text, parsed.errno)
  const status = await invocation.controlStatus("SET_TUNABLE", node, { value: parsed.value, name })
  if (status !== 0) invocation.controlRefused("SET_TUNABLE", status)
  if (status === OBSOLETE) output.warn(`Setting obsolete tunable variable '${name}'`)
  else if (status !== 0) return status
  if (output.mode === "json") output.json({ node, name, value: parsed.value, obsolete: status === OBSOLETE })
  return 0
}

/** SET_TUNABLE's status for a variable that is set but has no meaning any more. */
const OBSOLETE = 1

/** All values at once; the stock tool asks two requests for each, with the same lines as the result. */
export async function listvars(invocation: Invocation): Promise<number> {
  const { output, node } = invocation
  const names = await listNames(invocation)
  const values = await Promise.all(names.map((name) => invocation.tryControl("GET_TUNABLE", node, name)))
  const known = names.flatMap((name, index) => {
    const outcome = values[index]!
    return outcome.ok ? [{ name, value: outcome.reply }] : []
  })
  await output.show({
    text: () => known.map(({ name, value }) => line(name, value)).join(""),
    json: () => ({ node, variables: Object.fromEntries(known.map(({ name, value }) => [name, value])) }),
    terminal: async () => {
      const { table } = await import("./terminal.ts")
      return table(
        ["Variable", "Value"],
        known.map(({ name, value }) => [name, value]),
      )
    },
  })
  return 0
}
