// The numbers of wire-protocol.md sections 2, 3, 7 and 8: magic, special nodes, flags, srvids, modes, states, limits.
// Control opcodes are in controls.ts, the event daemon's numbers in eventd.ts.

import { type Word64, word64 } from "./word64.ts"

/** 2.1: "BDTC" on the wire. */
export const CTDB_MAGIC = 0x43544442
/** 2.1 */
export const CTDB_VERSION = 1
/** 2.2: bytes. */
export const HEADER_SIZE = 32
/** 2.2: packets between nodes are multiples of this many bytes. */
export const ALIGNMENT = 8
/** 8.7: the port when the services database has no ctdb/tcp. */
export const DEFAULT_PORT = 4379

/** 2.1: the operations. 6 is unused. */
export const Operation = {
  REQ_CALL: 0,
  REPLY_CALL: 1,
  REQ_DMASTER: 2,
  REPLY_DMASTER: 3,
  REPLY_ERROR: 4,
  REQ_MESSAGE: 5,
  REQ_CONTROL: 7,
  REPLY_CONTROL: 8,
  REQ_KEEPALIVE: 9,
  REQ_TUNNEL: 10,
} as const
export type Operation = (typeof Operation)[keyof typeof Operation]

/** 2.1: special values of destnode and srcnode. */
export const CURRENT_NODE = 0xf0000001
export const BROADCAST_ALL = 0xf0000002
export const BROADCAST_ACTIVE = 0xf0000003
export const BROADCAST_CONNECTED = 0xf0000004
/** Never sent: "a list of nodes" inside clients. */
export const MULTICAST = 0xf0000005
export const UNKNOWN_PNN = 0xffffffff

/** 3.1: REQ_CALL flags. */
export const CallFlag = { IMMEDIATE_MIGRATION: 0x1, VACUUM_MIGRATION: 0x2, WANT_READONLY: 0x4 } as const
/** 3.1: functions that a REQ_CALL runs on its record. */
export const CallId = { NULL: 0xff000001, FETCH: 0xff000002, FETCH_WITH_HEADER: 0xff000003 } as const

/** 3.7: REQ_CONTROL flags; the upper half depends on the opcode. */
export const ControlFlag = {
  NOREPLY: 0x1,
  OPCODE_SPECIFIC: 0xffff0000,
  PUBLIC_IP_FLAGS_ONLY_AVAILABLE: 0x10000,
  ATTACH_RECOVERY: 0x20000,
} as const

/** 3.10 */
export const TunnelFlag = { REQUEST: 0x1, REPLY: 0x2, NOREPLY: 0x10 } as const

/** 5.10 */
export const RecordFlag = {
  PERSISTENT: 0x1,
  PERSISTENT_IN_PROGRESS: 0x2,
  MIGRATED_WITH_DATA: 0x10000,
  VACUUM_MIGRATED: 0x20000,
  AUTOMATIC: 0x40000,
  RO_HAVE_DELEGATIONS: 0x1000000,
  RO_HAVE_READONLY: 0x2000000,
  RO_REVOKING_READONLY: 0x4000000,
  RO_REVOKE_COMPLETE: 0x8000000,
  RO_FLAGS: 0xf000000,
} as const

/** 8.1 */
export const NodeFlag = {
  DISCONNECTED: 0x1,
  UNHEALTHY: 0x2,
  PERMANENTLY_DISABLED: 0x4,
  BANNED: 0x8,
  DELETED: 0x10,
  STOPPED: 0x20,
  /** UNHEALTHY or PERMANENTLY_DISABLED */
  DISABLED: 0x6,
  /** DELETED, DISCONNECTED, BANNED or STOPPED */
  INACTIVE: 0x39,
} as const

/** 8.2 */
export const Capability = {
  RECMASTER: 0x1,
  LMASTER: 0x2,
  LVS: 0x4,
  NATGW: 0x8,
  PARALLEL_RECOVERY: 0x10000,
  FRAGMENTED_CONTROLS: 0x20000,
  DEFAULT: 0x30003,
} as const

/** 8.3. Volatile: neither PERSISTENT nor REPLICATED. */
export const DbFlag = { PERSISTENT: 0x1, READONLY: 0x2, STICKY: 0x4, REPLICATED: 0x8 } as const

/** 8.4 */
export const RecoveryMode = { NORMAL: 0, ACTIVE: 1 } as const
export const INVALID_GENERATION = 1
export const LMASTER_ANY = 0xffffffff
/** 8.4: the key of a persistent database's sequence number; on the wire and in files with its NUL. */
export const SEQNUM_KEY = "__db_sequence_number__"

/** 8.5 */
export const RunState = {
  UNKNOWN: 0,
  INIT: 1,
  SETUP: 2,
  FIRST_RECOVERY: 3,
  STARTUP: 4,
  RUNNING: 5,
  SHUTDOWN: 6,
} as const

/** 8.6 */
export const DebugLevel = { ERROR: 0, WARNING: 1, NOTICE: 3, INFO: 5, DEBUG: 10 } as const

/** 8.7 */
export const STATISTICS_HISTORY = 100
export const HOT_KEYS_MAX = 10
export const COUNT_BUCKETS = 16
/** 8.7: upper bounds in seconds of the first ten lock buckets; the eleventh is open, the others stay 0. */
export const LOCK_BUCKET_SECONDS = [0.001, 0.01, 0.1, 1, 2, 4, 8, 16, 32, 64] as const

/** 8.8: the event names by number. */
export const EVENT_NAMES = [
  "init",
  "setup",
  "startup",
  "startrecovery",
  "recovered",
  "takeip",
  "releaseip",
  "stopped",
  "monitor",
  "status",
  "shutdown",
  "reload",
  "updateip",
  "ipreallocated",
  "startipreallocate",
] as const

/** 8.9: Linux x86-64 errno values that appear on the wire. */
export const Errno = {
  ENOENT: 2,
  EINTR: 4,
  EIO: 5,
  ENOEXEC: 8,
  EINVAL: 22,
  ENOMSG: 42,
  EPROTO: 71,
  EMSGSIZE: 90,
  ETIMEDOUT: 110,
  ECANCELED: 125,
} as const

const wellKnown = (hi: number): Word64 => Object.freeze(word64(hi, 0))

/** 7.1 and 7.2. Those named in 7.2 are bases of ranges: the top 8 bits count, the rest is the user's. */
export const Srvid = {
  ALL: Object.freeze(word64(0xffffffff, 0xffffffff)),
  RECOVERY: wellKnown(0xf0010000),
  BANNING: wellKnown(0xf0020000),
  ELECTION: wellKnown(0xf1000000),
  LEADER: wellKnown(0xf1010000),
  RECONFIGURE: wellKnown(0xf2000000),
  RELEASE_IP: wellKnown(0xf3000000),
  TAKE_IP: wellKnown(0xf3010000),
  IPREALLOCATED: wellKnown(0xf3020000),
  START_IPREALLOCATE: wellKnown(0xf3030000),
  SET_NODE_FLAGS: wellKnown(0xf4000000),
  RECD_UPDATE_IP: wellKnown(0xf5000000),
  VACUUM_FETCH: wellKnown(0xf7000000),
  DETACH_DATABASE: wellKnown(0xf7010000),
  MEM_DUMP: wellKnown(0xf8000000),
  GETLOG: wellKnown(0xf8010000),
  CLEARLOG: wellKnown(0xf8020000),
  PUSH_NODE_FLAGS: wellKnown(0xf9000000),
  RELOAD_NODES: wellKnown(0xfa000000),
  TAKEOVER_RUN: wellKnown(0xfb000000),
  REBALANCE_NODE: wellKnown(0xfb010000),
  DISABLE_TAKEOVER_RUNS: wellKnown(0xfb030000),
  DISABLE_RECOVERIES: wellKnown(0xfb040000),
  DISABLE_IP_CHECK: wellKnown(0xfc000000),
  /** Ranges of 7.2 */
  SERVER_RANGE: wellKnown(0x9e000000),
  TEST_RANGE: wellKnown(0xae000000),
  CLIENT_RANGE: wellKnown(0xbe000000),
  TOOL_RANGE: wellKnown(0xce000000),
  ISCSID_RANGE: wellKnown(0xde000000),
  NFSD_RANGE: wellKnown(0xee000000),
  SAMBA_RANGE: wellKnown(0xfe000000),
  SAMBA_NOTIFY: wellKnown(0xfe000000),
  SAMBA_NOTIFY_PROXY: Object.freeze(word64(0xfe000000, 1)),
  SAMBA_PROCESS: Object.freeze(word64(0xfe000000, 2)),
} as const
