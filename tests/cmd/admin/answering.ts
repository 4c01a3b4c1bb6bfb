// A daemon's socket that answers what a test tells it to, and a run of a tool against it. Knows packets by their length
// word only; what they mean is the test's.

import { join } from "node:path"

export const STOCK = ["/usr/bin/ctdb"] as const
export const OURS = [process.execPath, join(import.meta.dir, "../../../cmd/main.ts")] as const

/** Header fields by their offset (wire-protocol 2.2) and those of REQ_CONTROL (3.7). */
export const OPERATION = 16
export const DESTNODE = 20
export const REQID = 28
export const OPCODE = 32

/** Packets to send back for the `index`th request (from 0) of the connection. */
export type Answer = (request: Buffer, index: number) => readonly Uint8Array[]

export interface Answering {
  /** All requests in the order of their arrival. */
  readonly requests: readonly Buffer[]
  stop(): void
}

export function startAnswering(socket: string, answer: Answer): Answering {
  const requests: Buffer[] = []
  let received = Buffer.alloc(0)
  const listener = Bun.listen({
    unix: socket,
    socket: {
      data(peer, chunk) {
        received = Buffer.concat([received, chunk])
        while (received.length >= 4 && received.length >= received.readUInt32LE(0)) {
          const request = Buffer.from(received.subarray(0, received.readUInt32LE(0)))
          received = received.subarray(request.length)
          requests.push(request)
          for (const packet of answer(request, requests.length - 1)) peer.write(packet)
        }
      },
    },
  })
  return { requests, stop: () => listener.stop(true) }
}

export interface ToolRun {
  readonly stdout: string
  readonly stderr: string
  readonly status: number
  /** What was asked, without request ids. */
  readonly requests: readonly string[]
}

/** A request as text, whatever its id. */
export function withoutId(packet: Buffer): string {
  const copy = Buffer.from(packet)
  copy.writeUInt32LE(0, REQID)
  return copy.toString("hex")
}

/** Runs a tool against an answering daemon on `socket`, in UTC and with a nodes list of nobody's. */
export async function runTool(
  tool: readonly string[],
  words: readonly string[],
  socket: string,
  answer: Answer,
): Promise<ToolRun> {
  const daemon = startAnswering(socket, answer)
  try {
    const child = Bun.spawn([...tool, "-T", "3", ...words], {
      // In test mode the stock tool's time limit kills its own process group only, and not that of the tests.
      env: { CTDB_TEST_MODE: "1", PATH: "/usr/bin:/bin", CTDB_SOCKET: socket, CTDB_BASE: "/nonexistent", TZ: "UTC" },
      stdin: "ignore",
      stdout: "pipe",
      stderr: "pipe",
    })
    const [stdout, stderr, status] = await Promise.all([
      new Response(child.stdout).text(),
      new Response(child.stderr).text(),
      child.exited,
    ])
    const requests = daemon.requests.map(withoutId)
    return { stdout: stdout.replace(/time=\d+\.\d{6}/, "time=T"), stderr, status, requests }
  } finally {
    daemon.stop()
  }
}
