// Every structure of wire-protocol.md section 5, in its order, each described once: size, encoding, decoding, validation
// and type follow from the description. Names are the page's in camel case. Packets are in packet.ts, the payloads of
// controls and messages in controls.ts and messages.ts.

import { type SockAddr, sockAddr } from "./address.ts"
import {
  array,
  arrayToEnd,
  bool,
  type Codec,
  chars,
  datan,
  f64,
  fixedArray,
  i32,
  padding,
  pid,
  type Reader,
  stringn,
  struct,
  timeval,
  u8,
  u16,
  u32,
  u64,
  type ValueOf,
  type Writer,
} from "./codec.ts"
import { textLength } from "./text.ts"

export type { Timeval } from "./codec.ts"
export { type SockAddr, sockAddr, timeval }

/** 5.1. Times in seconds. */
export const latencyCounter = struct("latency_counter", { num: i32, gap: padding(4), min: f64, max: f64, total: f64 })
export type LatencyCounter = ValueOf<typeof latencyCounter>

/** Count buckets of statistics (wire-protocol.md 8.7). */
const BUCKETS = 16

const packetCounts = struct("statistics.node", {
  reqCall: u32,
  replyCall: u32,
  reqDmaster: u32,
  replyDmaster: u32,
  replyError: u32,
  reqMessage: u32,
  reqControl: u32,
  replyControl: u32,
  reqTunnel: u32,
})

const lockStatistics = struct("statistics.locks", {
  numCalls: u32,
  numCurrent: u32,
  numPending: u32,
  numFailed: u32,
  latency: latencyCounter,
  buckets: fixedArray(u32, BUCKETS),
})

/** 5.2. `lastCounter` marks the end of the counters that are summed; 0. */
export const statistics = struct("statistics", {
  numClients: u32,
  frozen: u32,
  recovering: u32,
  clientPacketsSent: u32,
  clientPacketsRecv: u32,
  nodePacketsSent: u32,
  nodePacketsRecv: u32,
  keepalivePacketsSent: u32,
  keepalivePacketsRecv: u32,
  node: packetCounts,
  client: struct("statistics.client", { reqCall: u32, reqMessage: u32, reqControl: u32, reqTunnel: u32 }),
  timeouts: struct("statistics.timeouts", { call: u32, control: u32, traverse: u32 }),
  gap0: padding(4),
  reclock: struct("statistics.reclock", { ctdbd: latencyCounter, recd: latencyCounter }),
  locks: lockStatistics,
  totalCalls: u32,
  pendingCalls: u32,
  childwriteCalls: u32,
  pendingChildwriteCalls: u32,
  memoryUsed: u32,
  lastCounter: u32,
  maxHopCount: u32,
  hopCountBucket: fixedArray(u32, BUCKETS),
  gap1: padding(4),
  callLatency: latencyCounter,
  childwriteLatency: latencyCounter,
  numRecoveries: u32,
  gap2: padding(4),
  statisticsStartTime: timeval,
  statisticsCurrentTime: timeval,
  totalRoDelegations: u32,
  totalRoRevokes: u32,
})
export type Statistics = ValueOf<typeof statistics>

/** 5.3. The daemon answers with 100 entries, newest first, unused ones all zero. */
export const statisticsList = array(statistics, 4, "statistics_list")
export type StatisticsList = ValueOf<typeof statisticsList>

/** 5.4. `map[hash mod map.length]` is the PNN of a key's lmaster. */
export const vnnMap = struct("vnn_map", { generation: u32, map: array(u32) })
export type VnnMap = ValueOf<typeof vnnMap>

/** 5.5. `flags` are the database flags of constants.ts. */
export const dbid = struct("dbid", { dbId: u32, flags: u8, gap: padding(3) })
export type Dbid = ValueOf<typeof dbid>
export const dbidMap = array(dbid, 0, "dbid_map")
export type DbidMap = ValueOf<typeof dbidMap>

/** 5.6, of obsolete controls. */
export const pulldb = struct("pulldb", { dbId: u32, lmaster: u32 })
export type Pulldb = ValueOf<typeof pulldb>
/** 5.6. `lmaster` is garbage in DB_PUSH_START from a stock node: ignore it there. */
export const pulldbExt = struct("pulldb_ext", { dbId: u32, lmaster: u32, srvid: u64 })
export type PulldbExt = ValueOf<typeof pulldbExt>

/** 5.7 */
export const dbVacuum = struct("db_vacuum", { dbId: u32, fullVacuumRun: bool })
export type DbVacuum = ValueOf<typeof dbVacuum>

/** 5.8. `timeout` in milliseconds. */
export const echoData = struct("echo_data", { timeout: u32, buf: datan })
export type EchoData = ValueOf<typeof echoData>

/** 5.9. `tid` is the generation of the recovery. */
export const transdb = struct("transdb", { dbId: u32, tid: u32 })
export type Transdb = ValueOf<typeof transdb>

/** 5.10. The header in front of every record's data; `flags` are the record flags of constants.ts. */
export const ltdbHeader = struct("ltdb_header", {
  rsn: u64,
  dmaster: u32,
  reserved1: u32,
  flags: u32,
  gap: padding(4),
})
export type LtdbHeader = ValueOf<typeof ltdbHeader>

/** Bytes of an ltdb header. */
export const LTDB_HEADER_SIZE = ltdbHeader.minSize

/** 5.11. Whether `data` begins with an ltdb header depends on the use; see the page's table. */
export interface RecData {
  readonly reqid: number
  readonly key: Uint8Array
  readonly data: Uint8Array
}

/** Bytes of a rec_data before its key. */
export const REC_DATA_HEAD = 16

/** 5.11. Its own length is written from the contents; a reader steps by the length and checks it against them. */
export const recData: Codec<RecData> = {
  name: "rec_data",
  minSize: REC_DATA_HEAD,
  fixed: false,
  size: (value) => REC_DATA_HEAD + value.key.length + value.data.length,
  read: readRecData,
  write: (w: Writer, value: RecData) => {
    w.u32(REC_DATA_HEAD + value.key.length + value.data.length)
    w.u32(value.reqid)
    w.u32(value.key.length)
    w.u32(value.data.length)
    w.data(value.key)
    w.data(value.data)
  },
}

function readRecData(r: Reader): RecData {
  const outer = r.structure
  r.structure = "rec_data"
  const start = r.offset
  const left = r.remaining
  r.field = "length"
  const length = r.u32()
  if (length > left) r.fail("EMSGSIZE", `${length} bytes announced, ${left} left`, start)
  r.field = "reqid"
  const reqid = r.u32()
  r.field = "keylen"
  const keylen = r.u32()
  r.field = "datalen"
  const datalen = r.u32()
  if (REC_DATA_HEAD + keylen + datalen > length) {
    r.field = "length"
    r.fail("EMSGSIZE", `key of ${keylen} and data of ${datalen} bytes in a record of ${length}`, start)
  }
  r.field = "key"
  const key = r.take(keylen)
  r.field = "data"
  const data = r.take(datalen)
  r.offset = start + length
  r.structure = outer
  return { reqid, key, data }
}

/** 5.12 */
export const recBuffer = struct("rec_buffer", { dbId: u32, records: array(recData) })
export type RecBuffer = ValueOf<typeof recBuffer>

/** 5.13 */
export const traverseStart = struct("traverse_start", { dbId: u32, reqid: u32, srvid: u64 })
export type TraverseStart = ValueOf<typeof traverseStart>
export const traverseAll = struct("traverse_all", { dbId: u32, reqid: u32, pnn: u32, clientReqid: u32, srvid: u64 })
export type TraverseAll = ValueOf<typeof traverseAll>
export const traverseStartExt = struct("traverse_start_ext", {
  ...traverseStart.fields,
  withemptyrecords: bool,
  gap: padding(7),
})
export type TraverseStartExt = ValueOf<typeof traverseStartExt>
export const traverseAllExt = struct("traverse_all_ext", {
  ...traverseAll.fields,
  withemptyrecords: bool,
  gap: padding(7),
})
export type TraverseAllExt = ValueOf<typeof traverseAllExt>

/** 5.15. `src` is the client, `dst` the server with the public address, in every use of the page's table. */
export const connection = struct("connection", { src: sockAddr, dst: sockAddr })
export type Connection = ValueOf<typeof connection>
export const connectionList = array(connection, 0, "connection_list")
export type ConnectionList = ValueOf<typeof connectionList>

/** 5.16 */
export const tickleList = struct("tickle_list", { addr: sockAddr, connections: array(connection) })
export type TickleList = ValueOf<typeof tickleList>

/** 5.17. Names compare without regard to case. */
export const tunable = struct("tunable", { value: u32, name: stringn })
export type Tunable = ValueOf<typeof tunable>
/** 5.17, the request of GET_TUNABLE. */
export const tunableName = stringn

/**
 * 5.18. The elements between the separators, empty ones too (a stock daemon's list starts with one): skip those.
 * Written with at least one byte, as an empty list crashes the stock tool.
 */
export const varList: Codec<readonly string[]> = {
  name: "var_list",
  minSize: 4,
  fixed: false,
  size: (names) => 4 + Math.max(0, textLength(names.join(":"))) + 1,
  read: (r) => r.text(r.count(1)).split(":"),
  write: (w, names) => {
    if (names.some((name) => name.includes(":"))) w.fail("EINVAL", "a name contains the separator")
    const text = names.join(":")
    const length = textLength(text)
    if (length < 0) w.fail("EINVAL", "a name with a NUL or a stray surrogate")
    w.u32(length + 1)
    w.text(text)
    w.u8(0)
  },
}

/** 5.19 */
export const tunableList = struct("tunable_list", {
  maxRedirectCount: u32,
  seqnumInterval: u32,
  controlTimeout: u32,
  traverseTimeout: u32,
  keepaliveInterval: u32,
  keepaliveLimit: u32,
  recoverTimeout: u32,
  recoverInterval: u32,
  electionTimeout: u32,
  takeoverTimeout: u32,
  monitorInterval: u32,
  tickleUpdateInterval: u32,
  scriptTimeout: u32,
  monitorTimeoutCount: u32,
  scriptUnhealthyOnTimeout: u32,
  recoveryGracePeriod: u32,
  recoveryBanPeriod: u32,
  databaseHashSize: u32,
  databaseMaxDead: u32,
  rerecoveryTimeout: u32,
  enableBans: u32,
  deterministicPublicIps: u32,
  reclockPingPeriod: u32,
  noIpFailback: u32,
  disableIpFailover: u32,
  verboseMemoryNames: u32,
  recdPingTimeout: u32,
  recdPingFailcount: u32,
  logLatencyMs: u32,
  reclockLatencyMs: u32,
  recoveryDropAllIps: u32,
  verifyRecoveryLock: u32,
  vacuumInterval: u32,
  vacuumMaxRunTime: u32,
  repackLimit: u32,
  vacuumLimit: u32,
  maxQueueDepthDropMsg: u32,
  allowUnhealthyDbRead: u32,
  statHistoryInterval: u32,
  deferredAttachTimeout: u32,
  vacuumFastPathCount: u32,
  lcp2PublicIpAssignment: u32,
  allowClientDbAttach: u32,
  recoverPdbBySeqnum: u32,
  deferredRebalanceOnNodeAdd: u32,
  fetchCollapse: u32,
  hopcountMakeSticky: u32,
  stickyDuration: u32,
  stickyPindown: u32,
  noIpTakeover: u32,
  dbRecordCountWarn: u32,
  dbRecordSizeWarn: u32,
  dbSizeWarn: u32,
  pulldbPreallocationSize: u32,
  noIpHostOnAllDisabled: u32,
  samba3Hack: u32,
  mutexEnabled: u32,
  lockProcessesPerDb: u32,
  recBufferSizeLimit: u32,
  queueBufferSize: u32,
  ipAllocAlgorithm: u32,
  allowMixedVersions: u32,
})
export type TunableList = ValueOf<typeof tunableList>

/** 5.20 */
export const nodeFlagChange = struct("node_flag_change", { pnn: u32, newFlags: u32, oldFlags: u32 })
export type NodeFlagChange = ValueOf<typeof nodeFlagChange>

/** 5.21. `mask` is a prefix length; `iface` names interfaces separated by commas, or is null. */
export const addrInfo = struct("addr_info", { addr: sockAddr, mask: u32, iface: stringn })
export type AddrInfo = ValueOf<typeof addrInfo>

/** 5.22 */
export const uptime = struct("uptime", {
  currentTime: timeval,
  ctdbdStartTime: timeval,
  lastRecoveryStarted: timeval,
  lastRecoveryFinished: timeval,
})
export type Uptime = ValueOf<typeof uptime>

/** 5.23. `pnn` 0xFFFFFFFF: not hosted. */
export const publicIp = struct("public_ip", { pnn: u32, addr: sockAddr })
export type PublicIp = ValueOf<typeof publicIp>
export const publicIpList = array(publicIp, 0, "public_ip_list")
export type PublicIpList = ValueOf<typeof publicIpList>

/** 5.25. `linkState` 0 down, 1 up; `references` is the number of public addresses on it. */
export const iface = struct("iface", { name: chars(18), linkState: u16, references: u32 })
export type Iface = ValueOf<typeof iface>
export const ifaceList = array(iface, 0, "iface_list")
export type IfaceList = ValueOf<typeof ifaceList>

/** 5.24. `activeIdx` is an index into `ifaces`, 0xFFFFFFFF for none. */
export const publicIpInfo = struct("public_ip_info", { ip: publicIp, activeIdx: u32, ifaces: ifaceList })
export type PublicIpInfo = ValueOf<typeof publicIpInfo>

/** 5.26. `flags` are the node flags of constants.ts. */
export const nodeAndFlags = struct("node_and_flags", { pnn: u32, flags: u32, addr: sockAddr })
export type NodeAndFlags = ValueOf<typeof nodeAndFlags>
/** 5.26. In PNN order, deleted nodes included. */
export const nodeMap = array(nodeAndFlags, 0, "node_map")
export type NodeMap = ValueOf<typeof nodeMap>

/** 5.27. `time` in seconds; 0 is not banned. */
export const banState = struct("ban_state", { pnn: u32, time: u32 })
export type BanState = ValueOf<typeof banState>

/** 5.28 */
export const notifyData = struct("notify_data", { srvid: u64, data: datan })
export type NotifyData = ValueOf<typeof notifyData>

/** 5.29 */
export const keyData = struct("key_data", { dbId: u32, gap: padding(4), header: ltdbHeader, key: datan })
export type KeyData = ValueOf<typeof keyData>

export interface HotKey {
  readonly count: number
  readonly key: Uint8Array
}

/** Hot-key slots of db_statistics, always all present (wire-protocol.md 8.7). */
const HOT_KEYS = 10
const HOT_KEY_SLOT = 24

/** The end of 5.30: ten slots of count and size (each with a pointer that means nothing), then the keys' bytes. */
const hotKeys: Codec<readonly HotKey[]> = {
  name: "hot_keys",
  minSize: 8 + HOT_KEYS * HOT_KEY_SLOT,
  fixed: false,
  size: (keys) => {
    let size = 8 + HOT_KEYS * HOT_KEY_SLOT
    for (const { key } of keys) size += key.length
    return size
  },
  read: (r) => {
    const at = r.advance(8)
    const num = r.bytes[at]! | (r.bytes[at + 1]! << 8) | (r.bytes[at + 2]! << 16) | (r.bytes[at + 3]! << 24)
    if (num < 0 || num > HOT_KEYS) r.fail("EINVAL", `${num >>> 0} hot keys where ${HOT_KEYS} is the limit`, at)
    const counts: number[] = []
    const sizes: number[] = []
    for (let i = 0; i < HOT_KEYS; i++) {
      counts.push(r.u32())
      r.advance(12)
      const size = r.u64()
      if (size.hi !== 0 || size.lo > r.remaining) r.fail("EMSGSIZE", "key beyond the payload", r.offset - 8)
      sizes.push(size.lo)
    }
    return counts.map((count, i) => ({ count, key: r.take(sizes[i]!) }))
  },
  write: (w, keys) => {
    if (keys.length > HOT_KEYS) w.fail("EINVAL", `${keys.length} hot keys where ${HOT_KEYS} is the limit`)
    w.u32(HOT_KEYS)
    w.zeros(4)
    for (let i = 0; i < HOT_KEYS; i++) {
      const slot = keys[i]
      w.u32(slot?.count ?? 0)
      w.zeros(12)
      w.u32(slot?.key.length ?? 0)
      w.u32(0)
    }
    for (const { key } of keys) w.data(key)
  },
}

/** 5.30. Reading always gives ten hot keys, unused ones with count 0 and an empty key. */
export const dbStatistics = struct("db_statistics", {
  locks: lockStatistics,
  vacuum: struct("db_statistics.vacuum", { latency: latencyCounter }),
  dbRoDelegations: u32,
  dbRoRevokes: u32,
  hopCountBucket: fixedArray(u32, BUCKETS),
  hotKeys,
})
export type DbStatistics = ValueOf<typeof dbStatistics>

/** 5.31 */
export const pidSrvid = struct("pid_srvid", { pid, srvid: u64 })
export type PidSrvid = ValueOf<typeof pidSrvid>

/** 5.32 */
export const pushRecordData = struct("push_record_data", {
  generation: u32,
  dbId: u32,
  hdr: ltdbHeader,
  key: datan,
  value: datan,
})
export type PushRecordData = ValueOf<typeof pushRecordData>

/** 5.33. `priorityTime` is when the sender's recovery daemon started. */
export const electionMessage = struct("election_message", {
  numConnected: u32,
  gap: padding(4),
  priorityTime: timeval,
  pnn: u32,
  nodeFlags: u32,
})
export type ElectionMessage = ValueOf<typeof electionMessage>
/** 5.33. Where to send the answer: node and srvid. */
export const srvidMessage = struct("srvid_message", { pnn: u32, gap: padding(4), srvid: u64 })
export type SrvidMessage = ValueOf<typeof srvidMessage>
/** 5.33. `timeout` in seconds; 0 enables again. */
export const disableMessage = struct("disable_message", { ...srvidMessage.fields, timeout: u32, gap1: padding(4) })
export type DisableMessage = ValueOf<typeof disableMessage>

/** 5.34 */
export const serverId = struct("server_id", { pid: u64, taskId: u32, vnn: u32, uniqueId: u64 })
export type ServerId = ValueOf<typeof serverId>

/** 5.35: 0 read, 1 write. */
const gLockType: Codec<number> = {
  ...u32,
  name: "g_lock_type",
  read: (r) => {
    const type = r.u32()
    if (type > 1) r.fail("EPROTO", `lock type ${type}`, r.offset - 4)
    return type
  },
  write: (w, type) => {
    if (type !== 0 && type !== 1) w.fail("EPROTO", `lock type ${type}`)
    w.u32(type)
  },
}
/** 5.35 */
export const gLock = struct("g_lock", { type: gLockType, gap: padding(4), sid: serverId })
export type GLock = ValueOf<typeof gLock>
/** 5.35. No count: as many as fit. */
export const gLockList = arrayToEnd(gLock, "g_lock_list")
export type GLockList = ValueOf<typeof gLockList>

/** 5.36, obsolete */
export const script = struct("script", {
  name: chars(32),
  start: timeval,
  finished: timeval,
  status: i32,
  output: chars(512),
  gap: padding(4),
})
export type Script = ValueOf<typeof script>
export const scriptList = array(script, 4, "script_list")
export type ScriptList = ValueOf<typeof scriptList>

/** 2.1, for tools that print it; packet.ts reads headers in place. */
export const reqHeader = struct("req_header", {
  length: u32,
  ctdbMagic: u32,
  ctdbVersion: u32,
  generation: u32,
  operation: u32,
  destnode: u32,
  srcnode: u32,
  reqid: u32,
})
export type ReqHeader = ValueOf<typeof reqHeader>

/** 5.37 */
export const sockPacketHeader = struct("sock_packet_header", { length: u32, reqid: u32 })
export type SockPacketHeader = ValueOf<typeof sockPacketHeader>
