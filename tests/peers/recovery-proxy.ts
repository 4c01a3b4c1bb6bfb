// Stands between a recovery helper and its node: started by a recovery daemon in the helper's place, it starts the real one on
// a socket of its own and passes packets both ways, except for the controls that the plan tells it to refuse, swallow or
// answer late. `bun recovery-proxy.ts OUTPUT_FD SOCKET GENERATION`, with CTDB_TEST_HELPER (the helper's path) and
// CTDB_TEST_FAULTS (the plan's path, JSON lines; each used up once it was applied so often, over all runs).

import { appendFileSync, existsSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import type { SocketConnection } from "../../lib/net/connection.ts"
import { connectUnix, listenUnix } from "../../lib/net/unix.ts"
import { controlName } from "../../lib/protocol/controls.ts"
import { decodePacket, encodePacket, Operation } from "../../lib/protocol/packet.ts"

/** One fault: the control to that node (any, if left out) fails, gets no answer, or a late one. */
export interface Fault {
  readonly control: string
  readonly node?: number
  readonly how: "refuse" | "swallow" | "delay" | "garble" | "drop message"
  readonly delayMs?: number
  times: number
}

function readPlan(path: string): Fault[] {
  return existsSync(path) ? (JSON.parse(readFileSync(path, "utf8")) as Fault[]) : []
}

/** A record buffer without records, as every push of an empty database has one, is missed by nobody. */
const hasRecords = (buffer: Uint8Array): boolean => buffer.length >= 8 && Buffer.from(buffer).readUInt32LE(4) > 0

if (import.meta.main) {
  const [output = "", socket = "", generation = ""] = process.argv.slice(2)
  const { CTDB_TEST_HELPER: helper = "", CTDB_TEST_FAULTS: planPath = "" } = process.env
  const plan = readPlan(planPath)
  const own = `${planPath}.${process.pid}.socket`
  /** Which node a pull's messages come from, by their id: a daemon tells its clients of no sender but itself. */
  const pulls = new Map<number, number>()
  /** Faults to apply to replies, by reqid. */
  const replies = new Map<number, Fault>()

  const take = (control: string, node: number): Fault | undefined => {
    const fault = plan.find((one) => one.times > 0 && one.control === control && (one.node ?? node) === node)
    if (fault === undefined) return undefined
    fault.times--
    writeFileSync(planPath, JSON.stringify(plan))
    appendFileSync(`${planPath}.log`, `${fault.how} ${control} node ${node}\n`)
    return fault
  }

  let client: SocketConnection | undefined
  const daemon = connectUnix(socket, {
    onPacket: (bytes) => {
      const packet = decodePacket(bytes)
      const fault = packet.operation === Operation.REPLY_CONTROL ? replies.get(packet.reqid) : undefined
      const copy = bytes.slice()
      if (packet.operation === Operation.REQ_MESSAGE) {
        const node = pulls.get(packet.srvid.lo)
        if (node !== undefined && hasRecords(packet.data) && take("MESSAGE", node) !== undefined) return
      }
      if (fault === undefined || packet.operation !== Operation.REPLY_CONTROL) client?.send(copy)
      else if (fault.how === "delay") setTimeout(() => client?.send(copy), fault.delayMs)
      else if (fault.how === "garble") {
        client?.send(encodePacket({ ...packet, data: new Uint8Array([7, 7]) }, "daemon"))
      }
    },
    onBadHeader: () => "close",
    onClose: () => process.exit(1),
  })
  const listener = listenUnix(own, {
    mode: 0o700,
    backlog: 1,
    onAccept: (connection) => {
      client = connection
      return {
        onPacket: (bytes) => {
          const packet = decodePacket(bytes)
          if (packet.operation === Operation.REQ_MESSAGE) {
            if (!hasRecords(packet.data) || take("PUSH", packet.destnode) === undefined) daemon.send(bytes.slice())
            return
          }
          if (packet.operation !== Operation.REQ_CONTROL) {
            daemon.send(bytes.slice())
            return
          }
          const name = controlName(packet.opcode) ?? ""
          // Its srvid stands behind db_id and lmaster.
          if (name === "DB_PULL") pulls.set(Buffer.from(packet.data).readUInt32LE(8), packet.destnode)
          const fault = take(name, packet.destnode)
          if (fault?.how === "refuse") {
            const { reqid, generation: of, destnode, srcnode } = packet
            const header = { generation: of, destnode: srcnode, srcnode: destnode, reqid }
            const error = "fault injected"
            const reply = { operation: Operation.REPLY_CONTROL, ...header, status: -1, data: new Uint8Array(0), error }
            connection.send(encodePacket(reply as Parameters<typeof encodePacket>[0], "daemon"))
            return
          }
          if (fault?.how === "swallow") return
          if (fault !== undefined) replies.set(packet.reqid, fault)
          daemon.send(bytes.slice())
        },
        onBadHeader: () => "close",
        onClose: () => {},
      }
    },
  })
  const child = Bun.spawn([helper, "1", own, generation], {
    stdio: ["ignore", "pipe", "inherit"],
    env: process.env,
    argv0: "ctdb_recovery_helper",
  })
  // A recovery daemon ends its helper with SIGKILL, which this process can not pass on: the socket's end does.
  const answer = new Uint8Array(await new Response(child.stdout).arrayBuffer())
  const status = await child.exited
  listener.close()
  rmSync(own, { force: true })
  if (answer.length > 0) writeFileSync(Number(output), answer)
  process.exit(status)
}
