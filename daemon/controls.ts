// One table: opcode -> what this node does. Payloads are decoded and checked by the protocol's own table; here is only the
// effect and the answer (data path page, section 16). Controls that are not in it are answered as unknown ones.

import { logLevelName } from "../lib/config/log.ts"
import { findTunable, tunableListText, tunablesToWords } from "../lib/config/tunables.ts"
import { type Codec, decode, decodeExact, encode, ProtocolError } from "../lib/protocol/codec.ts"
import { Capability, DbFlag, Errno, NodeFlag, RunState, Srvid } from "../lib/protocol/constants.ts"
import { type ControlName, controlByOpcode, controls, type ReplyOf, type RequestOf } from "../lib/protocol/controls.ts"
import type { ReqControl } from "../lib/protocol/packet.ts"
import type { Word64 } from "../lib/protocol/word64.ts"
import type { Client } from "./clients.ts"
import { GROUPS } from "./database/alike.ts"
import type { DatabaseKind } from "./database/files.ts"
import type { Node } from "./node.ts"
import type { Answer, LocalClient } from "./routing.ts"
import { isActive, socketAddress } from "./state.ts"
import { addLatency } from "./statistics.ts"

interface Context<N extends ControlName> {
  readonly node: Node
  readonly request: RequestOf<N>
  readonly control: ReqControl
  /** The client of this node that sent it; undefined if it came from elsewhere. */
  readonly client: Client | undefined
  /** For answers that come later. */
  readonly answer: Answer
}

/** A status alone, a status of 0 with a payload, or "later": the handler answers itself. */
type Result<N extends ControlName> = number | { readonly reply: ReplyOf<N> } | "later"

type Handlers = { readonly [N in ControlName]?: (context: Context<N>) => Result<N> }

const UNKNOWN_TUNABLE = -Errno.EINVAL
const OBSOLETE_TUNABLE = 1
const NOT_PUBLIC = 1

const handlers: Handlers = {
  PROCESS_EXISTS: ({ node, request: pid }) => {
    const client = node.clients.ofProcess(pid)[0]
    if (client === undefined) return -1
    if (!isActive(node.state.self)) {
      node.environment.log.notice(`Node is inactive: disconnecting client with pid ${pid}`)
      node.environment.nextTurn(() => node.clients.disconnect(client))
      return -1
    }
    return node.environment.processExists(pid) ? 0 : -1
  },
  STATISTICS: ({ node }) => ({ reply: node.statistics() }),
  STATISTICS_RESET: ({ node }) => {
    node.state.statistics.reset(node.environment.wallClock())
    node.databases.resetStatistics()
    return 0
  },
  GET_STAT_HISTORY: ({ node }) => ({ reply: node.state.statistics.historyList() }),
  PING: ({ node }) => node.clients.count,
  GETVNNMAP: ({ node }) => ({ reply: { generation: node.state.generation, map: node.state.vnnMap } }),
  SETVNNMAP: ({ node, request }) => (node.recovery.setVnnMap(request) ? 0 : -1),
  GET_DEBUG: ({ node }) => ({ reply: node.environment.log.level }),
  SET_DEBUG: ({ node, request: level }) => {
    if (level < 0 || level > 10) return -1
    node.environment.log.setLevel(level)
    node.environment.log.notice(`Debug level set to ${logLevelName(level)}`)
    return 0
  },
  GET_DBMAP: ({ node }) => ({ reply: node.databases.map() }),
  GET_RECMODE: ({ node }) => node.state.recoveryMode,
  SET_RECMODE: ({ node, request, answer }) => {
    node.recovery.setMode(request, answer)
    return "later"
  },
  REGISTER_SRVID: ({ node, client, control }) => {
    if (client === undefined) return -1
    const deliver = (data: Uint8Array, srvid: Word64) =>
      node.clients.deliver(client, node.router.messageToClient(srvid, data))
    const queuedBytes = () => client.queuedBytes
    return node.router.srvids.register(control.srvid, { owner: client, deliver, queuedBytes }) ? 0 : -1
  },
  DEREGISTER_SRVID: ({ node, client, control }) => {
    if (client === undefined) return -1
    return node.router.srvids.deregister(control.srvid, client) ? 0 : Errno.ENOENT
  },
  DUMP_MEMORY: ({ node }) => ({ reply: node.memoryReport() }),
  GET_PID: ({ node }) => node.environment.pid,
  FREEZE: ({ node, answer }) => {
    node.freeze.invalidate()
    node.freeze.freeze((ok) => answer({ status: ok ? 0 : -1 }))
    return "later"
  },
  GET_PNN: ({ node }) => node.state.pnn,
  SHUTDOWN: ({ node }) => {
    if (!node.state.shuttingDown) node.shutdown(0, "SHUTDOWN control received")
    return 0
  },
  TCP_CLIENT: ({ client }) => (client === undefined ? -1 : 0),
  TCP_ADD: () => -1,
  TCP_ADD_DELAYED_UPDATE: () => -1,
  TCP_REMOVE: () => 0,
  TCP_CLIENT_DISCONNECTED: ({ client }) => (client === undefined ? -1 : 0),
  TCP_CLIENT_PASSED: ({ client }) => (client === undefined ? -1 : 0),
  GET_TCP_TICKLE_LIST: () => NOT_PUBLIC,
  SET_TCP_TICKLE_LIST: () => NOT_PUBLIC,
  STARTUP: () => 0,
  SET_TUNABLE: ({ node, request: { name, value } }) => {
    const tunable = name === null ? undefined : findTunable(name)
    if (tunable === undefined) return -1
    node.state.tunables[tunable.name] = value
    if (!tunable.obsolete) return 0
    node.environment.log.warning(`Setting obsolete tunable "${tunable.name}"`)
    return OBSOLETE_TUNABLE
  },
  GET_TUNABLE: ({ node, request: name }) => {
    const tunable = name === null ? undefined : findTunable(name)
    return tunable === undefined ? UNKNOWN_TUNABLE : { reply: node.state.tunables[tunable.name] }
  },
  LIST_TUNABLES: () => ({ reply: tunableListText().split(":") }),
  GET_ALL_TUNABLES: ({ node }) => ({ reply: decode(controls.GET_ALL_TUNABLES.reply, tunableWords(node)) }),
  MODIFY_FLAGS: ({ node, request }) => (node.flags.modify(request) ? 0 : -1),
  UPTIME: ({ node }) => ({
    reply: {
      currentTime: node.environment.wallClock(),
      ctdbdStartTime: node.state.startTime,
      lastRecoveryStarted: node.state.lastRecoveryStarted,
      lastRecoveryFinished: node.state.lastRecoveryFinished,
    },
  }),
  START_RECOVERY: ({ node, control, answer }) => {
    node.recovery.start(control.srcnode, answer)
    return "later"
  },
  END_RECOVERY: ({ node, answer }) => {
    node.persistent.recoveryEnded()
    node.recovery.end(answer)
    return "later"
  },
  RELOAD_NODES_FILE: ({ node, answer }) => {
    node.reloadNodes((ok) => answer({ status: ok ? 0 : -1 }))
    return "later"
  },
  GET_NODES_FILE: ({ node, answer }) => {
    node.environment.readNodes((nodes) => {
      if (!nodes.ok) {
        node.logFaults(nodes.faults)
        answer({ status: -1 })
        return
      }
      // As the file has it: that of a running node would make the stock tool see two different files.
      const list = nodes.value.map((entry) => ({
        pnn: entry.pnn,
        flags: entry.deleted ? NodeFlag.DELETED : 0,
        addr: socketAddress(entry),
      }))
      answer({ status: 0, data: encode(controls.GET_NODES_FILE.reply, list) })
    })
    return "later"
  },
  GET_CAPABILITIES: ({ node }) => ({ reply: node.state.capabilities }),
  SET_LMASTERROLE: ({ node, request }) => node.setCapability(Capability.LMASTER, request !== 0),
  SET_RECMASTERROLE: ({ node, request }) => node.setCapability(Capability.RECMASTER, request !== 0),
  START_PERSISTENT_UPDATE: ({ client }) => {
    if (client === undefined) return -1
    client.persistentUpdates++
    return 0
  },
  CANCEL_PERSISTENT_UPDATE: ({ client }) => {
    if (client === undefined || client.persistentUpdates === 0) return -1
    client.persistentUpdates--
    return 0
  },
  RECD_PING: ({ node }) => {
    node.recoveryDaemon.pinged()
    return 0
  },
  RECD_RECLOCK_LATENCY: ({ node, request: seconds }) => {
    addLatency(node.state.statistics.now.reclock.recd, seconds)
    const limitMs = node.state.tunables.RecLockLatencyMs
    if (limitMs !== 0 && seconds * 1000 > limitMs) {
      node.environment.log.warning(`High RECLOCK latency ${seconds.toFixed(6)}s for operation recd reclock`)
    }
    return 0
  },
  // A node without public addresses knows none, holds none and is told of none.
  RELEASE_IP: () => 0,
  TAKEOVER_IP: ({ node, request }) => (request.pnn === node.state.pnn ? 0 : -1),
  GET_PUBLIC_IPS: () => ({ reply: [] }),
  GET_PUBLIC_IP_INFO: () => -1,
  GET_IFACES: () => ({ reply: [] }),
  SET_IFACE_LINK_STATE: () => -1,
  DEL_PUBLIC_IP: () => -1,
  IPREALLOCATED: ({ node, answer }) => {
    node.environment.runEvent("ipreallocated", "", node.state.tunables.EventScriptTimeout, (status) => {
      if (status === 0) node.tellClients(Srvid.IPREALLOCATED)
      answer({ status })
    })
    return "later"
  },
  START_IPREALLOCATE: ({ node, answer }) => {
    if (node.state.runState < RunState.RUNNING) return 0
    node.environment.runEvent("startipreallocate", "", node.state.tunables.EventScriptTimeout, (status) => {
      if (status === 0) node.tellClients(Srvid.START_IPREALLOCATE)
      answer({ status })
    })
    return "later"
  },
  GET_NODEMAP: ({ node }) => ({ reply: node.state.nodeMap() }),
  GET_RECLOCK_FILE: ({ node }) => ({ reply: node.state.clusterLock ?? null }),
  STOP_NODE: ({ node }) => {
    node.flags.stop()
    return 0
  },
  CONTINUE_NODE: ({ node }) => {
    node.flags.continue()
    return 0
  },
  DISABLE_NODE: ({ node }) => {
    node.flags.disable()
    return 0
  },
  ENABLE_NODE: ({ node }) => {
    node.flags.enable()
    return 0
  },
  SET_BAN_STATE: ({ node, request }) => (node.flags.setBanState(request) ? 0 : -1),
  GET_BAN_STATE: ({ node }) => ({ reply: node.flags.banState() }),
  REGISTER_NOTIFY: ({ client, request: { srvid, data } }) =>
    client?.notifications.add(srvid, data.slice()) === true ? 0 : -1,
  DEREGISTER_NOTIFY: ({ client, request }) => (client?.notifications.remove(request) === true ? 0 : -1),
  GET_RUNSTATE: ({ node }) => ({ reply: node.state.runState }),
  CHECK_PID_SRVID: ({ node, request: { pid, srvid } }) =>
    node.clients.ofProcess(pid).some((client) => node.router.srvids.isRegistered(srvid, client)) ? 0 : -1,
  TUNNEL_REGISTER: ({ node, client, control }) =>
    client !== undefined && node.router.tunnels.register(control.srvid, client) ? 0 : -1,
  TUNNEL_DEREGISTER: ({ node, client, control }) =>
    client !== undefined && node.router.tunnels.deregister(control.srvid, client) ? 0 : -1,
  ECHO_DATA: ({ request }) => ({ reply: request }),

  DB_ATTACH: attach("volatile"),
  DB_ATTACH_PERSISTENT: attach("persistent"),
  DB_ATTACH_REPLICATED: attach("replicated"),
  DB_DETACH: ({ node, request: id, client }) => (node.databases.detach(id, client) ? 0 : -1),
  GETDBPATH: ({ node, request: id }) => orFail(node.databases.get(id)?.path),
  GET_DBNAME: ({ node, request: id }) => orFail(node.databases.get(id)?.name),
  DB_OPEN_FLAGS: ({ node, request: id }) => orFail(node.databases.get(id)?.openFlags),
  GET_DB_STATISTICS: ({ node, request: id }) => orFail(node.databases.get(id)?.statistics()),
  SET_DB_READONLY: ({ node, request: id }) => (node.databases.setProperty(id, DbFlag.READONLY) ? 0 : -1),
  SET_DB_STICKY: ({ node, request: id }) => (node.databases.setProperty(id, DbFlag.STICKY) ? 0 : -1),
  DB_GET_HEALTH: ({ node, request: id }) => orFail(node.databases.healthReason(id)),
  DB_SET_HEALTHY: ({ node, request: id }) => {
    const wasUnhealthy = node.databases.setHealthy(id)
    if (wasUnhealthy === undefined) return -1
    if (wasUnhealthy && node.state.runState === RunState.STARTUP) node.recovery.ask("A database was set healthy")
    return 0
  },
  ENABLE_SEQNUM: ({ node, request: id }) => (node.databases.enableSeqnum(id) ? 0 : -1),
  UPDATE_SEQNUM: ({ node, request: id, control }) => (node.databases.updateSeqnum(id, control.srcnode) ? 0 : -1),
  GET_DB_SEQNUM: ({ node, request: id, answer }) => {
    node.databases.recordSeqnum(id, answer)
    return "later"
  },
  DB_FREEZE: ({ node, request: id, answer }) => {
    node.databases.freezeOne(id, answer)
    return "later"
  },
  DB_THAW: ({ node, request: id }) => (node.databases.thawOne(id) ? 0 : -1),
  DB_TRANSACTION_START: ({ node, request, answer }) => {
    node.databases.startTransaction(request, answer)
    return "later"
  },
  DB_TRANSACTION_COMMIT: ({ node, request, answer }) => {
    node.databases.commitTransaction(request, answer)
    return "later"
  },
  DB_TRANSACTION_CANCEL: ({ node, request: id }) => (node.databases.cancelTransaction(id) ? 0 : -1),
  WIPE_DATABASE: ({ node, request, answer }) => {
    node.databases.wipe(request, answer)
    return "later"
  },
  DB_PULL: ({ node, request, control, answer }) => {
    node.databases.pull(request, control.srcnode, answer)
    return "later"
  },
  ALIKE_DIGEST: ({ node, request, answer }) => {
    node.databases.digest(request, answer)
    return "later"
  },
  ALIKE_SKETCH: ({ node, request, answer }) => {
    node.databases.sketch(request, answer)
    return "later"
  },
  ALIKE_RETAIN: ({ node, request, answer }) => {
    node.databases.retain(request, answer)
    return "later"
  },
  ALIKE_PULL: ({ node, request, control, answer }) => {
    if (request.keep.length === GROUPS / 8) {
      node.databases.pull(request, control.srcnode, answer, request.keep.slice())
    } else answer({ status: -1 })
    return "later"
  },
  // What was sent to the srvid and not taken yet (bytes): the sender of a pull waits by it.
  SRVID_BACKLOG: ({ node, control }) => ({ reply: node.router.srvids.queuedBytes(control.srvid) }),
  DB_PUSH_START: ({ node, request }) => (node.databases.pushStart(request) ? 0 : -1),
  DB_PUSH_CONFIRM: ({ node, request: id, answer }) => {
    node.databases.pushConfirm(id, answer)
    return "later"
  },
  TRAVERSE_START: ({ node, request, client, answer }) => {
    node.traverses.start(request, false, client, answer)
    return "later"
  },
  TRAVERSE_START_EXT: ({ node, request, client, answer }) => {
    node.traverses.start(request, request.withemptyrecords, client, answer)
    return "later"
  },
  TRAVERSE_ALL: ({ node, request }) => (node.traverses.all(request, false) ? 0 : -1),
  TRAVERSE_ALL_EXT: ({ node, request }) => (node.traverses.all(request, request.withemptyrecords) ? 0 : -1),
  TRAVERSE_DATA: ({ node, control, answer }) => {
    node.traverses.receive(control.data, control.srcnode, control.flags, answer)
    return "later"
  },
  TRAVERSE_KILL: ({ node, request, control }) => {
    node.traverses.killed(request, control.srcnode)
    return 0
  },
  SCHEDULE_FOR_DELETION: ({ node, request }) => (node.vacuum.schedule(request) ? 0 : -1),
  VACUUM_FETCH: ({ node, request }) => (node.vacuum.fetch(request) ? 0 : -1),
  TRY_DELETE_RECORDS: ({ node, request, answer }) => {
    node.vacuum.tryDelete(request, answer)
    return "later"
  },
  DB_VACUUM: ({ node, request, answer }) => {
    node.vacuum.runNow(request.dbId, request.fullVacuumRun, answer)
    return "later"
  },
  UPDATE_RECORD: ({ node, control, answer }) => {
    node.persistent.updateRecord(control.data, answer)
    return "later"
  },
  PUSH_RECORD: ({ node, request, answer }) => {
    node.persistent.pushRecord(request, answer)
    return "later"
  },
  TRANS3_COMMIT: ({ node, request, control, client, answer }) => {
    node.persistent.commit(request, control.data, client, answer)
    return "later"
  },
}

type AttachControl = "DB_ATTACH" | "DB_ATTACH_PERSISTENT" | "DB_ATTACH_REPLICATED"

function attach(kind: DatabaseKind) {
  return ({ node, request, control, client, answer }: Context<AttachControl>): "later" => {
    node.databases.attach(kind, request, control, client, answer)
    return "later"
  }
}

/** A status of 0 with that payload, or -1: there is no such database. */
function orFail<T>(reply: T | undefined): -1 | { readonly reply: T } {
  return reply === undefined ? -1 : { reply }
}

/** Controls that this node answers with something of its own; the rest are refused as unknown ones. */
export const implemented: ReadonlySet<ControlName> = new Set(Object.keys(handlers) as ControlName[])

/** Runs a control on this node; `answer` is called once, now or later. */
export function execute(node: Node, control: ReqControl, client: LocalClient | undefined, answer: Answer): void {
  node.router.handled.opcode = control.opcode
  const row = controlByOpcode(control.opcode)
  const handler = row === undefined ? undefined : handlers[row.name]
  if (row === undefined || handler === undefined) {
    node.environment.log.info(
      row === undefined
        ? `Unknown CTDB control opcode ${control.opcode}`
        : `Control ${row.name} is not implemented${row.obsolete ? " any more" : ""}`,
    )
    answer({ status: -1 })
    return
  }
  let request: unknown
  try {
    request = row.exact ? decodeExact(row.request, control.data) : decode(row.request, control.data)
  } catch (error) {
    if (!(error instanceof ProtocolError)) throw error
    node.router.complaints.add(`control ${row.name}`, `Invalid data in control ${row.name}: ${error.message}`)
    answer({ status: -1 })
    return
  }
  // The row and the handler have the same name, so their types belong together; TypeScript can't follow the index.
  const run = handler as (context: Context<ControlName>) => Result<ControlName>
  const context = { node, request, control, client: node.clientOf(client), answer } as Context<ControlName>
  const result = run(context)
  if (result === "later") return
  if (typeof result === "number") answer({ status: result })
  else answer({ status: 0, data: encode(row.reply as Codec<unknown>, result.reply) })
}

function tunableWords(node: Node): Uint8Array {
  return new Uint8Array(Uint32Array.from(tunablesToWords(node.state.tunables)).buffer)
}
