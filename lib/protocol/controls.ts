// The table of controls (wire-protocol.md 6.3): opcode, request and reply payload, and how the payload's size is checked.
// Types of requests and replies follow from it. What a control does is the daemon's business, not this table's.

import {
  type Codec,
  decode,
  decodeExact,
  f64,
  i32,
  none,
  pid,
  string,
  text,
  u32,
  u32AndZero,
  u64,
  type ValueOf,
} from "./codec.ts"
import { alikePull, alikeRetain } from "./own-structs.ts"
import {
  addrInfo,
  banState,
  connection,
  dbidMap,
  dbStatistics,
  dbVacuum,
  echoData,
  iface,
  ifaceList,
  keyData,
  nodeFlagChange,
  nodeMap,
  notifyData,
  pidSrvid,
  publicIp,
  publicIpInfo,
  publicIpList,
  pulldb,
  pulldbExt,
  pushRecordData,
  recBuffer,
  recData,
  scriptList,
  sockAddr,
  statistics,
  statisticsList,
  tickleList,
  transdb,
  traverseAll,
  traverseAllExt,
  traverseStart,
  traverseStartExt,
  tunable,
  tunableList,
  tunableName,
  uptime,
  varList,
  vnnMap,
} from "./structs.ts"

/** Properties that most controls don't have. */
interface Traits {
  /** "=" in the page's table: a request of any other size is answered with -1. */
  readonly exact?: true
  /** The reply's status is the result, not only an error indicator (6.2). */
  readonly statusIsValue?: true
  /** Answered with -1 by both stock versions (81 and 82: accepted, payload ignored). */
  readonly obsolete?: true
  /** Not known to 4.17.12, which answers -1. */
  readonly newest?: true
  /** The header's `srvid` field carries the argument. */
  readonly srvid?: true
  /** Acts on the requesting client of the receiving daemon: useless on any other node (6.1). */
  readonly usesClient?: true
  /** Stock senders always set NOREPLY. */
  readonly noreply?: true
  /** Answered when an event script, a lock or a child process has finished. */
  readonly async?: true
}

/** One row of the table. A trait that is not set is false. */
export interface Control<Request = unknown, Reply = unknown> {
  readonly opcode: number
  readonly request: Codec<Request>
  readonly reply: Codec<Reply>
  readonly exact: boolean
  readonly statusIsValue: boolean
  readonly obsolete: boolean
  readonly newest: boolean
  readonly srvid: boolean
  readonly usesClient: boolean
  readonly noreply: boolean
  readonly async: boolean
}

function control<Request, Reply>(
  opcode: number,
  request: Codec<Request>,
  reply: Codec<Reply>,
  traits: Traits = {},
): Control<Request, Reply> {
  return {
    opcode,
    request,
    reply,
    exact: traits.exact ?? false,
    statusIsValue: traits.statusIsValue ?? false,
    obsolete: traits.obsolete ?? false,
    newest: traits.newest ?? false,
    srvid: traits.srvid ?? false,
    usesClient: traits.usesClient ?? false,
    noreply: traits.noreply ?? false,
    async: traits.async ?? false,
  }
}

/** Opcodes from here on are ours: a stock node answers them, as all that it does not know, with -1. */
export const FIRST_OWN_OPCODE = 4096

/** Opcodes that are missing here were removed or never used; both stock versions answer them with -1. */
export const controls = {
  PROCESS_EXISTS: control(0, pid, none, { exact: true }),
  STATISTICS: control(1, none, statistics, { exact: true }),
  PING: control(3, none, none, { exact: true, statusIsValue: true }),
  GETDBPATH: control(4, u32, string, { exact: true }),
  GETVNNMAP: control(5, none, vnnMap, { exact: true }),
  SETVNNMAP: control(6, vnnMap, none),
  GET_DEBUG: control(7, none, i32, { exact: true }),
  SET_DEBUG: control(8, i32, none, { exact: true }),
  GET_DBMAP: control(9, none, dbidMap, { exact: true }),
  GET_NODEMAPv4: control(10, none, none, { obsolete: true }),
  SET_DMASTER: control(11, none, none, { obsolete: true }),
  PULL_DB: control(13, pulldb, none, { obsolete: true }),
  PUSH_DB: control(14, recBuffer, none, { obsolete: true }),
  GET_RECMODE: control(15, none, none, { statusIsValue: true }),
  SET_RECMODE: control(16, u32, none, { exact: true, async: true }),
  STATISTICS_RESET: control(17, none, none, { exact: true }),
  DB_ATTACH: control(18, string, u32),
  SET_CALL: control(19, none, none, { obsolete: true }),
  TRAVERSE_START: control(20, traverseStart, none, { exact: true, usesClient: true }),
  TRAVERSE_ALL: control(21, traverseAll, none, { exact: true, noreply: true }),
  TRAVERSE_DATA: control(22, recData, none, { noreply: true }),
  REGISTER_SRVID: control(23, none, none, { srvid: true, usesClient: true }),
  DEREGISTER_SRVID: control(24, none, none, { srvid: true, usesClient: true }),
  GET_DBNAME: control(25, u32, string, { exact: true }),
  ENABLE_SEQNUM: control(26, u32, none, { exact: true }),
  UPDATE_SEQNUM: control(27, u32, none, { exact: true, noreply: true }),
  DUMP_MEMORY: control(29, none, text, { exact: true }),
  GET_PID: control(30, none, none, { statusIsValue: true }),
  GET_RECMASTER: control(31, none, none, { obsolete: true }),
  SET_RECMASTER: control(32, u32, none, { obsolete: true }),
  FREEZE: control(33, none, none, { exact: true, async: true }),
  THAW: control(34, none, none, { obsolete: true }),
  GET_PNN: control(35, none, none, { statusIsValue: true }),
  SHUTDOWN: control(36, none, none, { noreply: true }),
  GET_MONMODE: control(37, none, none, { obsolete: true }),
  TAKEOVER_IPv4: control(42, none, none, { obsolete: true }),
  RELEASE_IPv4: control(43, none, none, { obsolete: true }),
  TCP_CLIENT: control(44, connection, none, { exact: true, usesClient: true }),
  TCP_ADD: control(45, connection, none, { exact: true, noreply: true }),
  TCP_REMOVE: control(46, connection, none, { exact: true, noreply: true }),
  STARTUP: control(47, none, none, { exact: true, noreply: true }),
  SET_TUNABLE: control(48, tunable, none),
  GET_TUNABLE: control(49, tunableName, u32),
  LIST_TUNABLES: control(50, none, varList),
  GET_PUBLIC_IPSv4: control(51, none, none, { obsolete: true }),
  MODIFY_FLAGS: control(52, nodeFlagChange, none, { exact: true }),
  GET_ALL_TUNABLES: control(53, none, tunableList, { exact: true }),
  KILL_TCP: control(54, connection, none, { obsolete: true }),
  GET_TCP_TICKLE_LIST: control(55, sockAddr, tickleList, { exact: true }),
  SET_TCP_TICKLE_LIST: control(56, tickleList, none, { noreply: true }),
  REGISTER_SERVER_ID: control(57, none, none, { obsolete: true }),
  UNREGISTER_SERVER_ID: control(58, none, none, { obsolete: true }),
  CHECK_SERVER_ID: control(59, none, none, { obsolete: true }),
  GET_SERVER_ID_LIST: control(60, none, none, { obsolete: true }),
  DB_ATTACH_PERSISTENT: control(61, string, u32),
  PERSISTENT_STORE: control(62, none, none, { obsolete: true }),
  UPDATE_RECORD: control(63, recBuffer, none, { async: true }),
  SEND_GRATUITOUS_ARP: control(64, addrInfo, none, { exact: true }),
  TRANSACTION_START: control(65, u32, none, { obsolete: true }),
  TRANSACTION_COMMIT: control(66, u32, none, { obsolete: true }),
  WIPE_DATABASE: control(67, transdb, none, { exact: true }),
  UPTIME: control(69, none, uptime),
  START_RECOVERY: control(70, none, none, { async: true }),
  END_RECOVERY: control(71, none, none, { async: true }),
  RELOAD_NODES_FILE: control(72, none, none, { exact: true }),
  TRY_DELETE_RECORDS: control(74, recBuffer, recBuffer),
  ENABLE_MONITOR: control(75, none, none, { obsolete: true }),
  DISABLE_MONITOR: control(76, none, none, { obsolete: true }),
  ADD_PUBLIC_IP: control(77, addrInfo, none, { exact: true }),
  DEL_PUBLIC_IP: control(78, addrInfo, none, { exact: true }),
  RUN_EVENTSCRIPTS: control(79, string, none, { obsolete: true }),
  GET_CAPABILITIES: control(80, none, u32),
  START_PERSISTENT_UPDATE: control(81, none, none, { obsolete: true, usesClient: true }),
  CANCEL_PERSISTENT_UPDATE: control(82, none, none, { obsolete: true, usesClient: true }),
  TRANS2_COMMIT: control(83, none, none, { obsolete: true }),
  TRANS2_FINISHED: control(84, none, none, { obsolete: true }),
  TRANS2_ERROR: control(85, none, none, { obsolete: true }),
  TRANS2_COMMIT_RETRY: control(86, none, none, { obsolete: true }),
  RECD_PING: control(87, none, none, { exact: true }),
  RELEASE_IP: control(88, publicIp, none, { exact: true, async: true }),
  TAKEOVER_IP: control(89, publicIp, none, { exact: true, async: true }),
  GET_PUBLIC_IPS: control(90, none, publicIpList, { exact: true }),
  GET_NODEMAP: control(91, none, nodeMap, { exact: true }),
  GET_EVENT_SCRIPT_STATUS: control(96, u32, scriptList, { obsolete: true }),
  TRAVERSE_KILL: control(97, traverseStart, none, { exact: true, noreply: true }),
  RECD_RECLOCK_LATENCY: control(98, f64, none, { exact: true }),
  GET_RECLOCK_FILE: control(99, none, string, { exact: true }),
  SET_RECLOCK_FILE: control(100, string, none, { obsolete: true }),
  STOP_NODE: control(101, none, none, { exact: true }),
  CONTINUE_NODE: control(102, none, none, { exact: true }),
  SET_NATGWSTATE: control(103, u32, none, { obsolete: true }),
  SET_LMASTERROLE: control(104, u32, none, { exact: true }),
  SET_RECMASTERROLE: control(105, u32, none, { exact: true }),
  ENABLE_SCRIPT: control(107, string, none, { obsolete: true }),
  DISABLE_SCRIPT: control(108, string, none, { obsolete: true }),
  SET_BAN_STATE: control(109, banState, none, { exact: true }),
  GET_BAN_STATE: control(110, none, banState, { exact: true }),
  SET_DB_PRIORITY: control(111, none, none, { obsolete: true }),
  GET_DB_PRIORITY: control(112, none, none, { obsolete: true }),
  TRANSACTION_CANCEL: control(113, none, none, { obsolete: true }),
  REGISTER_NOTIFY: control(114, notifyData, none, { exact: true, usesClient: true }),
  DEREGISTER_NOTIFY: control(115, u64, none, { exact: true, usesClient: true }),
  TRANS2_ACTIVE: control(116, u32, none, { obsolete: true }),
  GET_LOG: control(117, none, none, { obsolete: true }),
  CLEAR_LOG: control(118, none, none, { obsolete: true }),
  TRANS3_COMMIT: control(119, recBuffer, none, { async: true, usesClient: true }),
  GET_DB_SEQNUM: control(120, u32AndZero, u64, { exact: true }),
  DB_SET_HEALTHY: control(121, u32, none, { exact: true }),
  DB_GET_HEALTH: control(122, u32, string, { exact: true }),
  GET_PUBLIC_IP_INFO: control(123, sockAddr, publicIpInfo, { exact: true }),
  GET_IFACES: control(124, none, ifaceList, { exact: true }),
  SET_IFACE_LINK_STATE: control(125, iface, none, { exact: true }),
  TCP_ADD_DELAYED_UPDATE: control(126, connection, none, { exact: true }),
  GET_STAT_HISTORY: control(127, none, statisticsList, { exact: true }),
  SCHEDULE_FOR_DELETION: control(128, keyData, none, { exact: true }),
  SET_DB_READONLY: control(129, u32, none, { exact: true }),
  CHECK_SRVIDS: control(130, none, none, { obsolete: true }),
  TRAVERSE_START_EXT: control(131, traverseStartExt, none, { exact: true, usesClient: true }),
  GET_DB_STATISTICS: control(132, u32, dbStatistics, { exact: true }),
  SET_DB_STICKY: control(133, u32, none, { exact: true }),
  RELOAD_PUBLIC_IPS: control(134, none, none, { exact: true, async: true }),
  TRAVERSE_ALL_EXT: control(135, traverseAllExt, none, { exact: true, noreply: true }),
  RECEIVE_RECORDS: control(136, recBuffer, none, { obsolete: true }),
  IPREALLOCATED: control(137, none, none, { exact: true, async: true }),
  GET_RUNSTATE: control(138, none, u32, { exact: true }),
  DB_DETACH: control(139, u32, none),
  GET_NODES_FILE: control(140, none, nodeMap, { exact: true }),
  DB_FREEZE: control(141, u32, none, { exact: true, async: true }),
  DB_THAW: control(142, u32, none, { exact: true }),
  DB_TRANSACTION_START: control(143, transdb, none, { exact: true }),
  DB_TRANSACTION_COMMIT: control(144, transdb, none, { exact: true }),
  DB_TRANSACTION_CANCEL: control(145, u32, none, { exact: true }),
  DB_PULL: control(146, pulldbExt, u32, { exact: true }),
  DB_PUSH_START: control(147, pulldbExt, none, { exact: true }),
  DB_PUSH_CONFIRM: control(148, u32, u32, { exact: true }),
  DB_OPEN_FLAGS: control(149, u32, i32, { exact: true }),
  DB_ATTACH_REPLICATED: control(150, string, u32),
  CHECK_PID_SRVID: control(151, pidSrvid, none, { exact: true }),
  TUNNEL_REGISTER: control(152, none, none, { srvid: true, usesClient: true }),
  TUNNEL_DEREGISTER: control(153, none, none, { srvid: true, usesClient: true }),
  VACUUM_FETCH: control(154, recBuffer, none),
  DB_VACUUM: control(155, dbVacuum, none, { exact: true, async: true }),
  ECHO_DATA: control(156, echoData, echoData),
  DISABLE_NODE: control(157, none, none, { exact: true }),
  ENABLE_NODE: control(158, none, none, { exact: true }),
  TCP_CLIENT_DISCONNECTED: control(159, connection, none, { exact: true, usesClient: true, newest: true }),
  TCP_CLIENT_PASSED: control(160, connection, none, { exact: true, usesClient: true, newest: true }),
  START_IPREALLOCATE: control(161, none, none, { exact: true, async: true, newest: true }),
  PUSH_RECORD: control(162, pushRecordData, none, { newest: true }),
  // Ours (daemon/database/alike.ts, pull-push.ts).
  // The digest's words are read in place.
  ALIKE_DIGEST: control(4096, transdb, none, { exact: true, async: true }),
  ALIKE_RETAIN: control(4097, alikeRetain, u32, { async: true }),
  ALIKE_PULL: control(4098, alikePull, u32, { async: true }),
  ALIKE_SKETCH: control(4099, transdb, none, { exact: true }),
  SRVID_BACKLOG: control(4100, none, u32, { srvid: true }),
} as const

export type ControlName = keyof typeof controls
export type RequestOf<N extends ControlName> = ValueOf<(typeof controls)[N]["request"]>
export type ReplyOf<N extends ControlName> = ValueOf<(typeof controls)[N]["reply"]>

const names: (ControlName | undefined)[] = []
for (const name of Object.keys(controls) as ControlName[]) names[controls[name].opcode] = name

/** The name of an opcode, or undefined for one that was removed or never existed. */
export function controlName(opcode: number): ControlName | undefined {
  return names[opcode]
}

/** The row of an opcode with its name, or undefined. */
export function controlByOpcode(opcode: number): (Control & { readonly name: ControlName }) | undefined {
  return rows[opcode]
}

const rows: ((Control & { readonly name: ControlName }) | undefined)[] = names.map((name) =>
  name === undefined ? undefined : { ...controls[name], name },
)

/**
 * The request payload of a control, checked as its row says: exact size, or leftovers ignored.
 * @throws ProtocolError
 */
export function decodeRequest<N extends ControlName>(name: N, payload: Uint8Array): RequestOf<N> {
  const row: Control = controls[name]
  return (row.exact ? decodeExact(row.request, payload) : decode(row.request, payload)) as RequestOf<N>
}

/** The reply payload of a control; leftovers are ignored, as by every stock client. @throws ProtocolError */
export function decodeReply<N extends ControlName>(name: N, payload: Uint8Array): ReplyOf<N> {
  const row: Control = controls[name]
  return decode(row.reply, payload) as ReplyOf<N>
}
