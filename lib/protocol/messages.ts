// The well-known messages of wire-protocol.md 7.1: srvid and payload of each. Who sends and who acts on them is the
// page's third column and the daemon's business. Ranges (7.2) have payloads of their users and are not here.

import { type Codec, data, i32, none, string, struct, u32, type ValueOf } from "./codec.ts"
import { Srvid } from "./constants.ts"
import {
  disableMessage,
  electionMessage,
  nodeFlagChange,
  publicIp,
  recBuffer,
  serverId,
  srvidMessage,
} from "./structs.ts"
import type { Word64 } from "./word64.ts"

export interface Message<Payload = unknown> {
  readonly srvid: Word64
  readonly payload: Codec<Payload>
  readonly obsolete: boolean
}

function message<Payload>(srvid: Word64, payload: Codec<Payload>, obsolete = false): Message<Payload> {
  return { srvid, payload, obsolete }
}

export const messages = {
  BANNING: message(Srvid.BANNING, u32),
  ELECTION: message(Srvid.ELECTION, electionMessage),
  LEADER: message(Srvid.LEADER, u32),
  RECONFIGURE: message(Srvid.RECONFIGURE, none),
  RELEASE_IP: message(Srvid.RELEASE_IP, string),
  TAKE_IP: message(Srvid.TAKE_IP, string),
  IPREALLOCATED: message(Srvid.IPREALLOCATED, none),
  START_IPREALLOCATE: message(Srvid.START_IPREALLOCATE, none),
  SET_NODE_FLAGS: message(Srvid.SET_NODE_FLAGS, nodeFlagChange, true),
  RECD_UPDATE_IP: message(Srvid.RECD_UPDATE_IP, publicIp, true),
  VACUUM_FETCH: message(Srvid.VACUUM_FETCH, recBuffer, true),
  DETACH_DATABASE: message(Srvid.DETACH_DATABASE, u32, true),
  MEM_DUMP: message(Srvid.MEM_DUMP, srvidMessage),
  GETLOG: message(Srvid.GETLOG, none, true),
  CLEARLOG: message(Srvid.CLEARLOG, none, true),
  PUSH_NODE_FLAGS: message(Srvid.PUSH_NODE_FLAGS, nodeFlagChange),
  RELOAD_NODES: message(Srvid.RELOAD_NODES, none),
  TAKEOVER_RUN: message(Srvid.TAKEOVER_RUN, srvidMessage),
  REBALANCE_NODE: message(Srvid.REBALANCE_NODE, u32),
  DISABLE_TAKEOVER_RUNS: message(Srvid.DISABLE_TAKEOVER_RUNS, disableMessage),
  DISABLE_RECOVERIES: message(Srvid.DISABLE_RECOVERIES, disableMessage),
  DISABLE_IP_CHECK: message(Srvid.DISABLE_IP_CHECK, u32),
} as const

export type MessageName = keyof typeof messages
export type PayloadOf<N extends MessageName> = ValueOf<(typeof messages)[N]["payload"]>

/** 7.1, "Ack": own PNN on success, a negative errno on failure. */
export const ack: Codec<number> = i32

/** The well-known message of exactly this srvid, or undefined. */
export function messageName(srvid: Word64): MessageName | undefined {
  for (const name of Object.keys(messages) as MessageName[]) {
    const known = messages[name].srvid
    if (known.hi === srvid.hi && known.lo === srvid.lo) return name
  }
  return undefined
}

/** 7.3: what smbd processes send each other; a node passes it on without looking at it. */
export const sambaMessage = struct("samba_message", {
  destination: serverId,
  source: serverId,
  type: u32,
  payload: data,
})
export type SambaMessage = ValueOf<typeof sambaMessage>
