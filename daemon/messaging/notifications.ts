// What a client wants said when it leaves: one message a srvid, sent to all connected nodes (data path page 14.3).

import { equal, type Word64 } from "../../lib/protocol/word64.ts"

export interface Notification {
  readonly srvid: Word64
  readonly data: Uint8Array
}

/** Bytes of notifications that one client may leave with the daemon. */
const NOTIFICATION_BYTES_MAX = 16 << 20

export class Notifications {
  private list: Notification[] = []
  private bytes = 0

  /** false: the client has one for that srvid, or too much data. `data` is kept. */
  add(srvid: Word64, data: Uint8Array): boolean {
    if (this.list.some((entry) => equal(entry.srvid, srvid))) return false
    if (this.bytes + data.length + 64 > NOTIFICATION_BYTES_MAX) return false
    this.bytes += data.length + 64
    this.list.push({ srvid, data })
    return true
  }

  /** false: there is none for that srvid. */
  remove(srvid: Word64): boolean {
    const index = this.list.findIndex((entry) => equal(entry.srvid, srvid))
    const entry = this.list[index]
    if (entry === undefined) return false
    this.bytes -= entry.data.length + 64
    this.list.splice(index, 1)
    return true
  }

  /** All of them, last registered first, which is the order they are sent in; the list is empty afterwards. */
  takeAll(): Notification[] {
    const all = this.list.reverse()
    this.list = []
    this.bytes = 0
    return all
  }
}
