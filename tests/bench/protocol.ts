// Packets a second for the packets of the hot paths, on one core: decoding to values, decoding in place, encoding. Run it
// with `bun tests/bench/protocol.ts`; it prints figures and passes no judgement.

import { Operation } from "../../lib/protocol/constants.ts"
import { checkHeader } from "../../lib/protocol/framing.ts"
import { jenkinsHash } from "../../lib/protocol/hash.ts"
import {
  callCallid,
  callDataLength,
  callDbId,
  callFlags,
  callKeyLength,
  checkBody,
  controlClientId,
  controlDataLength,
  controlFlags,
  controlOpcode,
  controlSrvidHi,
  controlSrvidLo,
  destnodeOf,
  generationOf,
  hopcountOf,
  lengthOf,
  messageDataLength,
  messageSrvidHi,
  messageSrvidLo,
  operationOf,
  REQ_CALL_KEY,
  replyCallDataLength,
  replyCallStatus,
  reqidOf,
  srcnodeOf,
} from "../../lib/protocol/header.ts"
import { decodePacket, encodePacket, type Packet, packetSize, writePacket } from "../../lib/protocol/packet.ts"

const MEASURE_MS = 1000
const WARM_UP_MS = 300
/** A read chunk holds many packets; decoding walks it as a connection does. */
const PACKETS_IN_CHUNK = 512

const head = { generation: 0x57d7f562, destnode: 1, srcnode: 0, reqid: 57 }
const key = new Uint8Array(24).fill(0x6b)
const record = new Uint8Array(120).fill(0x64)
const none = new Uint8Array(0)

const samples: readonly Packet[] = [
  {
    operation: Operation.REQ_CALL,
    ...head,
    flags: 1,
    dbId: 0xf97286a2,
    callid: 0xff000001,
    hopcount: 0,
    key,
    data: none,
  },
  { operation: Operation.REPLY_CALL, ...head, status: 0, data: record },
  {
    operation: Operation.REQ_CONTROL,
    ...head,
    opcode: 80,
    srvid: { hi: 0, lo: 0 },
    clientId: 7,
    flags: 0,
    data: none,
  },
  { operation: Operation.REQ_MESSAGE, ...head, srvid: { hi: 0xf1010000, lo: 0 }, data: new Uint8Array(4) },
]

/** The fields of one packet, read where it lies; their sum, so that nothing is optimised away. */
function readInPlace(bytes: Uint8Array, at: number): number {
  const sum = generationOf(bytes, at) ^ destnodeOf(bytes, at) ^ srcnodeOf(bytes, at) ^ reqidOf(bytes, at)
  switch (operationOf(bytes, at)) {
    case Operation.REQ_CALL:
      return (
        sum ^
        callFlags(bytes, at) ^
        callDbId(bytes, at) ^
        callCallid(bytes, at) ^
        hopcountOf(bytes, at) ^
        callKeyLength(bytes, at) ^
        callDataLength(bytes, at)
      )
    case Operation.REPLY_CALL:
      return sum ^ replyCallStatus(bytes, at) ^ replyCallDataLength(bytes, at)
    case Operation.REQ_MESSAGE:
      return sum ^ messageSrvidLo(bytes, at) ^ messageSrvidHi(bytes, at) ^ messageDataLength(bytes, at)
    default:
      return (
        sum ^
        controlOpcode(bytes, at) ^
        controlSrvidLo(bytes, at) ^
        controlSrvidHi(bytes, at) ^
        controlClientId(bytes, at) ^
        controlFlags(bytes, at) ^
        controlDataLength(bytes, at)
      )
  }
}

let sink = 0

/** Packets a second of `walk`, which treats PACKETS_IN_CHUNK packets. */
function measure(walk: () => void): number {
  for (const end = performance.now() + WARM_UP_MS; performance.now() < end; ) walk()
  const start = performance.now()
  let chunks = 0
  while (performance.now() - start < MEASURE_MS) {
    walk()
    chunks++
  }
  return (chunks * PACKETS_IN_CHUNK * 1000) / (performance.now() - start)
}

/** Calls `each` with the offset of every packet of the chunk, headers and bodies checked. */
function walkChunk(bytes: Uint8Array, each: (at: number) => void): void {
  for (let at = 0; at < bytes.length; at += lengthOf(bytes, at)) {
    if (checkHeader(bytes, at, bytes.length - at) !== 0 || !checkBody(bytes, at)) throw new Error("bad packet")
    each(at)
  }
}

const million = (rate: number) => `${(rate / 1e6).toFixed(2).padStart(7)} M/s`

console.log("packets a second on one core".padEnd(30), "in place   values     encode     into a buffer")
for (const packet of samples) {
  const name = Object.entries(Operation).find(([, operation]) => operation === packet.operation)![0]
  const size = packetSize(packet, "daemon")
  const chunk = new Uint8Array(size * PACKETS_IN_CHUNK)
  for (let i = 0; i < PACKETS_IN_CHUNK; i++) writePacket(packet, "daemon", chunk, i * size, size)

  const inPlace = measure(() =>
    walkChunk(chunk, (at) => {
      sink ^= readInPlace(chunk, at)
    }),
  )
  const values = measure(() => {
    for (let at = 0; at < chunk.length; at += size) sink ^= decodePacket(chunk, at, at + size).reqid
  })
  const fresh = measure(() => {
    for (let i = 0; i < PACKETS_IN_CHUNK; i++) sink ^= encodePacket(packet, "daemon").length
  })
  const target = new Uint8Array(chunk.length)
  const into = measure(() => {
    for (let at = 0; at < target.length; at += size) writePacket(packet, "daemon", target, at, size)
  })
  console.log(`${name} (${size} bytes)`.padEnd(30), million(inPlace), million(values), million(fresh), million(into))

  if (packet.operation !== Operation.REQ_CALL) continue
  const hashed = measure(() =>
    walkChunk(chunk, (at) => {
      const start = at + REQ_CALL_KEY
      sink ^= readInPlace(chunk, at) ^ jenkinsHash(chunk, start, start + callKeyLength(chunk, at))
    }),
  )
  console.log("  and the key's hash".padEnd(30), million(hashed))
}
if (sink === 0.5) console.log(sink)
