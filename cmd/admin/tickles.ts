// The connections that a node tickles when it takes over an address: gettickles, addtickle, deltickle. Reference page
// "Admin tool", section 8.5. Sending a tickle oneself (`tickle`) is not here.

import { readFileSync } from "node:fs"
import { type SockAddr, sockAddrFrom } from "../../lib/protocol/address.ts"
import { Errno } from "../../lib/protocol/constants.ts"
import type { Connection } from "../../lib/protocol/structs.ts"
import { addressWord } from "./addresses.ts"
import { type Invocation, UsageError } from "./invocation.ts"
import { parseUint32 } from "./numbers.ts"

/** `IP:PORT` or `[IP]:PORT`; without brackets the last colon separates the port. */
export function parseEndpoint(text: string): SockAddr | undefined {
  const match = /^\[(.*)\]:([0-9]+)$/.exec(text) ?? /^(.*):([0-9]+)$/.exec(text)
  if (match === null) return undefined
  // A port beyond 65535 is cut, as a C variable cuts it.
  return sockAddrFrom(match[1]!, Number(match[2]) & 0xffff)
}

/** Connections from standard input, one a line. Undefined: a line is no good. */
export function parseConnections(text: string): Connection[] | undefined {
  const connections: Connection[] = []
  for (const line of text.split("\n")) {
    const words = line.split(/[ \t]+/).filter((word) => word !== "")
    if (words.length === 0 || line.startsWith("#")) continue
    const src = parseEndpoint(words[0]!)
    const dst = parseEndpoint(words[1] ?? "")
    if (src === undefined || dst === undefined || src.family !== dst.family) return undefined
    connections.push({ src, dst })
  }
  return connections
}

export async function gettickles(invocation: Invocation): Promise<number> {
  const { output, node, words } = invocation
  const address = addressWord(invocation, words[0] ?? "")
  let port = 0
  if (words[1] !== undefined) {
    const parsed = parseUint32(words[1], 10)
    if (!parsed.ok) return invocation.badNumber(words[1], parsed.errno)
    port = parsed.value & 0xffff
  }
  const request = { ...address, port }
  const list = await invocation.control("GET_TCP_TICKLE_LIST", node, request, "Failed to get list of connections")
  const { connections } = list
  await output.show({
    text: () =>
      `Connections for IP: ${address.addr}\nNum connections: ${connections.length}\n` +
      connections.map(({ src, dst }) => `SRC: ${src.addr}:${src.port}   DST: ${dst.addr}:${dst.port}\n`).join(""),
    // The third column's name is spelled so by the release that this tool stands in for.
    machine: () =>
      output.machineLine(["Source IP", "Port", "Destiation IP", "Port"]) +
      connections.map(({ src, dst }) => output.machineLine([src.addr, src.port, dst.addr, dst.port])).join(""),
    json: () => ({ node, address: address.addr, connections }),
    terminal: async () => {
      const { table } = await import("./terminal.ts")
      return table(
        ["Client", "Server"],
        connections.map(({ src, dst }) => [`${src.addr}:${src.port}`, `${dst.addr}:${dst.port}`]),
      )
    },
  })
  return 0
}

interface Change {
  readonly control: "TCP_ADD_DELAYED_UPDATE" | "TCP_REMOVE"
  /** "register" and "add": the words of its failures. */
  readonly one: string
  readonly many: string
}

async function change(invocation: Invocation, { control, one, many }: Change): Promise<number> {
  const { output, node, words } = invocation
  if (words.length === 1) throw new UsageError()
  const report = (connections: readonly Connection[]) => {
    if (output.mode === "json") output.json({ node, connections })
    return 0
  }
  if (words.length === 2) {
    const [src, dst] = words.map((word) => parseEndpoint(word) ?? invocation.fail(1, `Invalid IP address ${word}`))
    const connection = { src: src!, dst: dst! }
    await invocation.control(control, node, connection, `Failed to ${one} connection`)
    return report([connection])
  }
  const connections = parseConnections(readFileSync(0, "utf8"))
  if (connections === undefined) return Errno.EINVAL
  const outcomes = await Promise.all(
    connections.map(async (connection) => (await invocation.controlAll(control, [node], connection)).get(node)!),
  )
  const failed = outcomes.filter((outcome) => !outcome.ok).length
  if (failed > 0) return invocation.fail(1, `Failed to ${many} ${failed} tickles`)
  return report(connections)
}

export function addtickle(invocation: Invocation): Promise<number> {
  return change(invocation, { control: "TCP_ADD_DELAYED_UPDATE", one: "register", many: "add" })
}

export function deltickle(invocation: Invocation): Promise<number> {
  return change(invocation, { control: "TCP_REMOVE", one: "unregister", many: "remove" })
}
