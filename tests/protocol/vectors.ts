// The golden vectors and the way from their JSON to the values of lib/protocol. The values are made from the listed
// fields alone, never by decoding, so that a test can compare both directions with something independent.

import { join } from "node:path"
import type { Codec } from "../../lib/protocol/codec.ts"
import * as codec from "../../lib/protocol/codec.ts"
import * as structs from "../../lib/protocol/structs.ts"
import { fromBigInt } from "../../lib/protocol/word64.ts"

const DIRECTORY = join(import.meta.dir, "..", "vectors")

export type Json = null | boolean | number | string | readonly Json[] | { readonly [key: string]: Json }
export type JsonObject = { readonly [key: string]: Json }

export interface StructVector {
  readonly name: string
  readonly type: string
  readonly fields: Json
  readonly length: number
  readonly hex: string
}

export interface PacketVector {
  readonly name: string
  readonly layout: "client library" | "daemon"
  readonly fields: JsonObject & { readonly hdr: { readonly [key: string]: number } }
  readonly unpadded_length?: number
  readonly hex: string
}

export interface ControlVector {
  readonly name: string
  readonly control: string
  readonly kind: "request" | "reply"
  readonly opcode: number
  readonly fields: JsonObject & { readonly payload: JsonObject }
  readonly payload_hex: string
  readonly generation: number
  readonly destnode: number
  readonly srcnode: number
  readonly reqid: number
  readonly hex: string
}

export interface EventdVector {
  readonly name: string
  readonly fields: JsonObject
  readonly hex: string
}

export interface CaptureVector {
  readonly version: string
  readonly command: string
  readonly connection: number
  readonly direction: "to-daemon" | "to-client"
  readonly hex: string
}

export interface NodeCaptureVector {
  readonly version: string
  readonly section: string
  readonly from_node: number
  readonly to_node: number
  readonly hex: string
}

export interface EventdCaptureVector {
  readonly client: string
  readonly direction: "to-eventd" | "to-client"
  readonly hex: string
}

async function load<T>(file: string): Promise<readonly T[]> {
  return (await Bun.file(join(DIRECTORY, file)).json()) as readonly T[]
}

export const structVectors = await load<StructVector>("structs.json")
export const packetVectors = await load<PacketVector>("packets.json")
export const controlVectors = await load<ControlVector>("controls.json")
export const eventdVectors = await load<EventdVector>("eventd.json")
export const captureVectors = await load<CaptureVector>("capture.json")
export const nodeCaptureVectors = await load<NodeCaptureVector>("node_capture.json")
export const eventdCaptureVectors = await load<EventdCaptureVector>("eventd_capture.json")

interface HashVectors {
  readonly vectors: readonly { readonly key_hex: string; readonly jenkins: string }[]
}
interface DbidVectors {
  readonly vectors: readonly { readonly name: string; readonly db_id: string }[]
}
export const hashVectors = ((await Bun.file(join(DIRECTORY, "tdb/hash-vectors.json")).json()) as HashVectors).vectors
export const dbidVectors = ((await Bun.file(join(DIRECTORY, "tdb/dbid-vectors.json")).json()) as DbidVectors).vectors

export const bytesOf = (hex: string): Uint8Array => Uint8Array.fromHex(hex)

/** The vectors' type names and the codecs that are theirs. */
export const codecsByType: Readonly<Record<string, Codec<unknown>>> = {
  ctdb_uint8: codec.u8,
  ctdb_uint16: codec.u16,
  ctdb_int32: codec.i32,
  ctdb_uint32: codec.u32,
  ctdb_uint64: codec.u64,
  ctdb_double: codec.f64,
  ctdb_bool: codec.bool,
  ctdb_string: codec.string,
  ctdb_stringn: codec.stringn,
  ctdb_pid: codec.pid,
  ctdb_timeval: codec.timeval,
  ctdb_tdb_data: codec.data,
  ctdb_tdb_datan: codec.datan,
  ctdb_latency_counter: structs.latencyCounter,
  ctdb_statistics: structs.statistics,
  ctdb_statistics_list: structs.statisticsList,
  ctdb_vnn_map: structs.vnnMap,
  ctdb_dbid: structs.dbid,
  ctdb_dbid_map: structs.dbidMap,
  ctdb_pulldb: structs.pulldb,
  ctdb_pulldb_ext: structs.pulldbExt,
  ctdb_db_vacuum: structs.dbVacuum,
  ctdb_echo_data: structs.echoData,
  ctdb_ltdb_header: structs.ltdbHeader,
  ctdb_rec_data: structs.recData,
  ctdb_rec_buffer: structs.recBuffer,
  ctdb_traverse_start: structs.traverseStart,
  ctdb_traverse_all: structs.traverseAll,
  ctdb_traverse_start_ext: structs.traverseStartExt,
  ctdb_traverse_all_ext: structs.traverseAllExt,
  ctdb_sock_addr: structs.sockAddr,
  ctdb_connection: structs.connection,
  ctdb_connection_list: structs.connectionList,
  ctdb_tunable: structs.tunable,
  ctdb_node_flag_change: structs.nodeFlagChange,
  ctdb_var_list: structs.varList,
  ctdb_tunable_list: structs.tunableList,
  ctdb_tickle_list: structs.tickleList,
  ctdb_addr_info: structs.addrInfo,
  ctdb_transdb: structs.transdb,
  ctdb_uptime: structs.uptime,
  ctdb_public_ip: structs.publicIp,
  ctdb_public_ip_list: structs.publicIpList,
  ctdb_node_and_flags: structs.nodeAndFlags,
  ctdb_node_map: structs.nodeMap,
  ctdb_script: structs.script,
  ctdb_script_list: structs.scriptList,
  ctdb_ban_state: structs.banState,
  ctdb_notify_data: structs.notifyData,
  ctdb_iface: structs.iface,
  ctdb_iface_list: structs.ifaceList,
  ctdb_public_ip_info: structs.publicIpInfo,
  ctdb_key_data: structs.keyData,
  ctdb_db_statistics: structs.dbStatistics,
  ctdb_pid_srvid: structs.pidSrvid,
  ctdb_election_message: structs.electionMessage,
  ctdb_srvid_message: structs.srvidMessage,
  ctdb_disable_message: structs.disableMessage,
  ctdb_server_id: structs.serverId,
  ctdb_g_lock: structs.gLock,
  ctdb_g_lock_list: structs.gLockList,
  ctdb_push_record_data: structs.pushRecordData,
  ctdb_req_header: structs.reqHeader,
  sock_packet_header: structs.sockPacketHeader,
}

/** Fields that hold a 64-bit number (a decimal string in the vectors) and those that hold bytes (hex). */
const WORDS = new Set(["rsn", "srvid", "unique_id", "seqnum", "tunnel_id", "pid", "ctdb_uint64"])
const BYTES = new Set(["key", "data", "calldata", "buf", "value", "ctdb_tdb_data", "ctdb_tdb_datan"])
/** Element counts, which the codecs take from the arrays. */
const COUNTS = new Set(["num", "size", "count", "num_scripts", "num_hot_keys_on_wire"])

function camel(name: string): string {
  return name.replace(/^_+/, "").replace(/_([a-z0-9])/g, (_, letter: string) => letter.toUpperCase())
}

function isObject(json: Json): json is JsonObject {
  return typeof json === "object" && json !== null && !Array.isArray(json)
}

/** The value that lib/protocol should give for what a vector calls `name`. */
export function expectedValue(name: string, json: Json): unknown {
  if (typeof json === "string") {
    if (WORDS.has(name)) return fromBigInt(BigInt(json))
    return BYTES.has(name) ? bytesOf(json) : json
  }
  if (Array.isArray(json)) return (json as readonly Json[]).map((element) => expectedValue("", element))
  if (!isObject(json)) return json
  if ("family" in json) {
    const { family, addr = "", port = 0, scope_id: scopeId = 0 } = json
    return { family, addr, port, scopeId }
  }
  if ("sec" in json) return { sec: Number(json.sec), usec: Number(json.usec) }
  if ("header" in json) return recDataOf(json)

  const entries = Object.entries(json)
  const hasList = entries.some(([, field]) => Array.isArray(field))
  const kept = entries.filter(([key]) => !(hasList && COUNTS.has(key)))
  const only = kept[0]
  // A list: a count and the elements, or (g_lock_list) the elements alone.
  if (kept.length === 1 && only !== undefined && Array.isArray(only[1])) return expectedValue(only[0], only[1])

  const value: Record<string, unknown> = {}
  for (const [key, field] of kept) {
    const path = key.split(".")
    let into = value
    for (const group of path.slice(0, -1)) {
      into[camel(group)] ??= {}
      into = into[camel(group)] as Record<string, unknown>
    }
    const last = path.at(-1)!
    into[last === "conn" && "num" in json ? "connections" : camel(last)] = expectedValue(last, field)
  }
  return value
}

/** The vectors list a record's ltdb header apart; on the wire it is the beginning of the data (5.10, 5.11). */
function recDataOf(json: JsonObject): unknown {
  if (!("reqid" in json)) {
    const { header, ...rest } = json
    return { ...(expectedValue("", rest) as object), header: expectedValue("header", header!) }
  }
  const data = bytesOf(json.data as string)
  const header = json.header
  return {
    reqid: json.reqid,
    key: bytesOf(json.key as string),
    data: isObject(header!) ? new Uint8Array([...headerBytes(header), ...data]) : data,
  }
}

function headerBytes(header: JsonObject): Uint8Array {
  const view = new DataView(new ArrayBuffer(24))
  view.setBigUint64(0, BigInt(header.rsn as string), true)
  view.setUint32(8, header.dmaster as number, true)
  view.setUint32(12, header.reserved1 as number, true)
  view.setUint32(16, header.flags as number, true)
  return new Uint8Array(view.buffer)
}
