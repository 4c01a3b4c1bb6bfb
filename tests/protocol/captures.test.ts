// Every packet of the recorded conversations of real programs decodes and encodes again to the same bytes, payloads
// included. What may differ is stated here, field by field: nothing else is masked.

import { describe, expect, test } from "bun:test"
import { type Codec, decode, decodeExact, encode } from "../../lib/protocol/codec.ts"
import { controlByOpcode, controls } from "../../lib/protocol/controls.ts"
import { checkHeader } from "../../lib/protocol/framing.ts"
import { messageName, messages } from "../../lib/protocol/messages.ts"
import { decodePacket, encodePacket, type Layout, Operation, type Packet } from "../../lib/protocol/packet.ts"
import { recBuffer, recData } from "../../lib/protocol/structs.ts"
import type { Word64 } from "../../lib/protocol/word64.ts"
import { bytesOf, captureVectors, nodeCaptureVectors } from "./vectors.ts"

/** Recodes packets of one recording; requests are remembered so that replies can be told by their reqid. */
class Recoder {
  private readonly opcodes = new Map<string, number>()
  payloads = 0
  unknownReplies = 0

  /** `from` and `to` name the two ends, as far as reqids are unique between them. */
  check(hex: string, layout: Layout, from: string, to: string): void {
    const bytes = bytesOf(hex)
    expect(checkHeader(bytes, 0, bytes.length)).toBe(0)
    const packet = decodePacket(bytes)
    expect(encodePacket(packet, layout).toHex()).toBe(hex)
    this.checkPayload(packet, from, to)
  }

  private checkPayload(packet: Packet, from: string, to: string): void {
    if (packet.operation === Operation.REQ_CONTROL) {
      this.opcodes.set(`${from} ${to} ${packet.reqid}`, packet.opcode)
      const row = controlByOpcode(packet.opcode)
      // The tool probes a few opcodes that no version knows; there is nothing to decode in them.
      if (row === undefined) return
      this.recode(row.request, packet.data, row.name, row.exact)
    } else if (packet.operation === Operation.REPLY_CONTROL) {
      const opcode = this.opcodes.get(`${to} ${from} ${packet.reqid}`)
      const row = opcode === undefined ? undefined : controlByOpcode(opcode)
      if (row === undefined) this.unknownReplies++
      else if (packet.status >= 0 && packet.data.length > 0) this.recode(row.reply, packet.data, row.name, true)
    } else if (packet.operation === Operation.REQ_MESSAGE) {
      const codec = messageCodec(packet.srvid, packet.data.length)
      if (codec !== undefined) this.recode(codec, packet.data, "message", true)
    }
  }

  private recode(codec: Codec<unknown>, payload: Uint8Array, name: string, exact: boolean): void {
    const again = encode(codec, exact ? decodeExact(codec, payload) : decode(codec, payload))
    expect(again.toHex()).toBe(masked(name, payload).toHex())
    this.payloads++
  }
}

/** The only bytes that are not ours to reproduce: the pointers in the ten hot-key slots of db_statistics (5.30). */
function masked(name: string, payload: Uint8Array): Uint8Array {
  if (name !== "GET_DB_STATISTICS" || payload.length < controls.GET_DB_STATISTICS.reply.minSize) return payload
  const copy = payload.slice()
  for (let slot = 0; slot < 10; slot++) copy.fill(0, 224 + slot * 24 + 8, 224 + slot * 24 + 16)
  return copy
}

function messageCodec(srvid: Word64, length: number): Codec<unknown> | undefined {
  const name = messageName(srvid)
  if (name !== undefined) return messages[name].payload as Codec<unknown>
  // Records on the RECOVERY range; one record per message on the CLIENT range (traverse).
  if (srvid.hi >>> 16 === 0xf001) return recBuffer as Codec<unknown>
  return srvid.hi >>> 24 === 0xbe && length >= recData.minSize ? recData : undefined
}

describe("between clients and daemon", () => {
  for (const version of ["4.25.0pre1", "4.17.12"]) {
    test(version, () => {
      const recoder = new Recoder()
      const packets = captureVectors.filter((vector) => vector.version === version)
      for (const { connection, direction, hex } of packets) {
        const client = `client ${connection}`
        if (direction === "to-daemon") recoder.check(hex, "client", client, "daemon")
        else recoder.check(hex, "daemon", "daemon", client)
      }
      expect(packets.length).toBeGreaterThan(300)
      expect(recoder.payloads).toBeGreaterThan(packets.length / 4)
      expect(recoder.unknownReplies).toBe(0)
    })
  }
})

describe("between daemons", () => {
  const sections = new Set(nodeCaptureVectors.map(({ version, section }) => `${version}, ${section}`))
  for (const key of sections) {
    test(key, () => {
      const recoder = new Recoder()
      for (const vector of nodeCaptureVectors) {
        if (`${vector.version}, ${vector.section}` !== key) continue
        recoder.check(vector.hex, "daemon", `${vector.from_node}`, `${vector.to_node}`)
      }
      expect(recoder.payloads).toBeGreaterThan(0)
    })
  }
})
