// The event daemon's protocol (wire-protocol.md section 9): requests and replies between ctdb-eventd and its clients.
// Sockets, queues and what the commands do are elsewhere.

import { array, type Codec, i32, Reader, stringn, struct, timeval, u32, type ValueOf, Writer } from "./codec.ts"

/** 9.1: bytes of the header. */
export const EVENTD_HEADER_SIZE = 12

/** 9.2 */
export const EventdCommand = { RUN: 1, STATUS: 2, SCRIPT: 3 } as const
/** 9.2: flags of RUN. */
export const EventdRunFlag = { RUN_ALL: 1 } as const

/** 9.2. `timeout` in seconds; `args` null or words separated by blanks. */
export const eventdRun = struct("eventd_run", {
  component: stringn,
  event: stringn,
  args: stringn,
  timeout: u32,
  flags: u32,
})
/** 9.2 */
export const eventdStatus = struct("eventd_status", { component: stringn, event: stringn })

/** 9.2: 0 disable, 1 enable. */
const scriptAction: Codec<number> = {
  ...u32,
  name: "action",
  read: (r) => {
    const action = r.u32()
    if (action > 1) r.fail("EPROTO", `action ${action}`, r.offset - 4)
    return action
  },
  write: (w, action) => {
    if (action !== 0 && action !== 1) w.fail("EPROTO", `action ${action}`)
    w.u32(action)
  },
}
/** 9.2 */
export const eventdScript = struct("eventd_script", { component: stringn, script: stringn, action: scriptAction })

/** 9.3: `result` as the page lists; times are zero for scripts that did not run. */
export const scriptResult = struct("script_result", {
  name: stringn,
  begin: timeval,
  end: timeval,
  result: i32,
  output: stringn,
})
export type ScriptResult = ValueOf<typeof scriptResult>

/** 9.3. A count above INT32_MAX (negative to a stock reader) never fits in the bytes that are there. */
export const statusReply = struct("eventd_status_reply", { summary: i32, scripts: array(scriptResult) })
export type StatusReply = ValueOf<typeof statusReply>

export type EventdRequest =
  | { readonly reqid: number; readonly cmd: typeof EventdCommand.RUN; readonly run: ValueOf<typeof eventdRun> }
  | { readonly reqid: number; readonly cmd: typeof EventdCommand.STATUS; readonly status: ValueOf<typeof eventdStatus> }
  | { readonly reqid: number; readonly cmd: typeof EventdCommand.SCRIPT; readonly script: ValueOf<typeof eventdScript> }

/** `status` is there exactly in a reply to STATUS with result 0. `result` is 0 or a positive errno. */
export interface EventdReply {
  readonly reqid: number
  readonly cmd: number
  readonly result: number
  readonly status?: StatusReply
}

interface Head {
  readonly r: Reader
  readonly reqid: number
  readonly cmd: number
}

/** Length, version (0 on the wire, not checked), reqid and command. */
function readHead(bytes: Uint8Array, structure: string): Head {
  const r = new Reader(bytes, structure)
  r.field = "length"
  const length = r.u32()
  if (length < EVENTD_HEADER_SIZE || length > bytes.length) {
    r.fail("EMSGSIZE", `length ${length}, ${bytes.length} bytes there`, 0)
  }
  r.end = length
  r.field = "version"
  r.u32()
  r.field = "reqid"
  const reqid = r.u32()
  r.field = "cmd"
  return { r, reqid, cmd: r.u32() }
}

/** Bytes after a complete request are ignored. @throws ProtocolError; a stock eventd then closes the connection */
export function decodeEventdRequest(bytes: Uint8Array): EventdRequest {
  const { r, reqid, cmd } = readHead(bytes, "eventd_request")
  switch (cmd) {
    case EventdCommand.RUN:
      return { reqid, cmd, run: eventdRun.read(r) }
    case EventdCommand.STATUS:
      return { reqid, cmd, status: eventdStatus.read(r) }
    case EventdCommand.SCRIPT:
      return { reqid, cmd, script: eventdScript.read(r) }
    default:
      return r.fail("EPROTO", `command ${cmd}`, EVENTD_HEADER_SIZE)
  }
}

/** @throws ProtocolError */
export function decodeEventdReply(bytes: Uint8Array): EventdReply {
  const { r, reqid, cmd } = readHead(bytes, "eventd_reply")
  if (cmd < EventdCommand.RUN || cmd > EventdCommand.SCRIPT) r.fail("EPROTO", `command ${cmd}`, EVENTD_HEADER_SIZE)
  r.field = "result"
  const result = r.i32()
  if (cmd !== EventdCommand.STATUS || result !== 0) return { reqid, cmd, result }
  return { reqid, cmd, result, status: statusReply.read(r) }
}

function writeHead(structure: string, bodySize: number, reqid: number, cmd: number): Writer {
  const size = EVENTD_HEADER_SIZE + 4 + bodySize
  const w = new Writer(new Uint8Array(size), structure)
  w.u32(size)
  w.u32(0)
  w.field = "reqid"
  w.u32(reqid)
  w.field = "cmd"
  w.u32(cmd)
  return w
}

function finish<T>(structure: string, codec: Codec<T>, body: T, reqid: number, cmd: number): Uint8Array {
  const w = writeHead(structure, codec.size(body), reqid, cmd)
  codec.write(w, body)
  return w.bytes
}

/** @throws ProtocolError EINVAL for a value that does not fit its field */
export function encodeEventdRequest(request: EventdRequest): Uint8Array {
  switch (request.cmd) {
    case EventdCommand.RUN:
      return finish("eventd_request", eventdRun, request.run, request.reqid, request.cmd)
    case EventdCommand.STATUS:
      return finish("eventd_request", eventdStatus, request.status, request.reqid, request.cmd)
    case EventdCommand.SCRIPT:
      return finish("eventd_request", eventdScript, request.script, request.reqid, request.cmd)
  }
}

/** @throws ProtocolError EINVAL, also when `status` is missing or there without being due */
export function encodeEventdReply(reply: EventdReply): Uint8Array {
  const { status } = reply
  const w = writeHead("eventd_reply", 4 + (status === undefined ? 0 : statusReply.size(status)), reply.reqid, reply.cmd)
  w.field = "status"
  const due = reply.cmd === EventdCommand.STATUS && reply.result === 0
  if (due !== (status !== undefined)) w.fail("EINVAL", due ? "status missing" : "status without being due")
  w.field = "result"
  w.i32(reply.result)
  if (status !== undefined) statusReply.write(w, status)
  return w.bytes
}
