// The commands that need no daemon: version, listnodes, checktcpport. Reference page "Admin tool", sections 8.1 and 8.13.

import { versionText } from "../version.ts" with { type: "macro" }
import type { Invocation } from "./invocation.ts"
import { readNodesList } from "./nodes-list.ts"
import { atoi } from "./numbers.ts"

export async function version({ output }: Invocation): Promise<number> {
  const version = versionText()
  await output.show({ text: () => `${version}\n`, json: () => ({ version }) })
  return 0
}

export async function listnodes({ output }: Invocation): Promise<number> {
  const list = readNodesList(output, process.env)
  if (list === undefined) return 1
  const nodes = list.filter((node) => !node.deleted)
  await output.show({
    text: () => nodes.map(({ address }) => `${address}\n`).join(""),
    machine: () => nodes.map(({ pnn, address }) => output.machineLine([pnn, address])).join(""),
    json: () => ({ nodes: nodes.map(({ pnn, address }) => ({ pnn, address })) }),
    terminal: async () => {
      const { table } = await import("./terminal.ts")
      return table(
        ["Node", "Address"],
        nodes.map(({ pnn, address }) => [pnn, address]),
      )
    },
  })
  return 0
}

const EADDRINUSE = 98

/** Free: silence and 0. The port of one address is enough to be in use. */
export async function checktcpport({ words, output }: Invocation): Promise<number> {
  const port = atoi(words[0] ?? "") & 0xffff
  const errno = bindErrno(port)
  if (errno !== 0) output.warn(`Failed to bind to TCP port ${port}`)
  if (output.mode === "json") output.json({ port, free: errno === 0 })
  return errno
}

function bindErrno(port: number): number {
  try {
    Bun.listen({ hostname: "0.0.0.0", port, socket: { data() {} } }).stop(true)
    return 0
  } catch (error) {
    return error instanceof Error && "errno" in error && typeof error.errno === "number"
      ? Math.abs(error.errno)
      : EADDRINUSE
  }
}
