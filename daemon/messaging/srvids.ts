// Who listens to which srvid on this node: clients by registration, the daemon's own rooms by handler. Delivers a
// message to all of them, newest registration first, then to those registered for all messages (data path page 14).

import { Srvid } from "../../lib/protocol/constants.ts"
import { equal, type Word64 } from "../../lib/protocol/word64.ts"

/** Gets the payload of a message and the srvid that it was sent to; the view is valid only during the call. */
export interface MessageHandler<Owner> {
  readonly owner: Owner
  deliver(data: Uint8Array, srvid: Word64): void
  /** Bytes that the owner has not taken yet, of anything. */
  queuedBytes?(): number
}

/** A client that registers more srvids than this is refused: each costs memory, and nobody needs them. */
export const SRVIDS_PER_OWNER_MAX = 100_000

export class SrvidTable<Owner> {
  // Two 32-bit levels, so that looking one up per message builds no key.
  private readonly byHigh = new Map<number, Map<number, MessageHandler<Owner>[]>>()
  /** What each owner has registered, so that its going costs what it registered, not what all did. */
  private readonly byOwner = new Map<Owner, Word64[]>()

  /** false: the owner has reached its limit. Registering one srvid several times delivers several times. */
  register(srvid: Word64, handler: MessageHandler<Owner>): boolean {
    const owned = this.byOwner.get(handler.owner)
    if (owned === undefined) this.byOwner.set(handler.owner, [srvid])
    else if (owned.length >= SRVIDS_PER_OWNER_MAX) return false
    else owned.push(srvid)
    let byLow = this.byHigh.get(srvid.hi)
    if (byLow === undefined) {
      byLow = new Map()
      this.byHigh.set(srvid.hi, byLow)
    }
    // A new array each time: a delivery that is walking the old one is not disturbed by who comes and goes in it.
    byLow.set(srvid.lo, [handler, ...(byLow.get(srvid.lo) ?? [])])
    return true
  }

  /** Removes the owner's newest registration of that srvid; false if it has none. */
  deregister(srvid: Word64, owner: Owner): boolean {
    const handlers = this.byHigh.get(srvid.hi)?.get(srvid.lo)
    const index = handlers?.findIndex((handler) => handler.owner === owner) ?? -1
    if (handlers === undefined || index < 0) return false
    this.set(srvid.hi, srvid.lo, handlers.toSpliced(index, 1))
    const owned = this.byOwner.get(owner)
    owned?.splice(
      owned.findLastIndex((other) => equal(other, srvid)),
      1,
    )
    return true
  }

  isRegistered(srvid: Word64, owner: Owner): boolean {
    return (
      this.byHigh
        .get(srvid.hi)
        ?.get(srvid.lo)
        ?.some((handler) => handler.owner === owner) ?? false
    )
  }

  /** The most that anybody who listens to that srvid has not taken yet. */
  queuedBytes(srvid: Word64): number {
    let most = 0
    for (const handler of this.byHigh.get(srvid.hi)?.get(srvid.lo) ?? []) {
      most = Math.max(most, handler.queuedBytes?.() ?? 0)
    }
    return most
  }

  removeOwner(owner: Owner): void {
    for (const { hi, lo } of this.byOwner.get(owner) ?? []) {
      const handlers = this.byHigh.get(hi)?.get(lo) ?? []
      this.set(
        hi,
        lo,
        handlers.filter((handler) => handler.owner !== owner),
      )
    }
    this.byOwner.delete(owner)
  }

  deliver(srvid: Word64, data: Uint8Array): void {
    const handlers = this.byHigh.get(srvid.hi)?.get(srvid.lo)
    if (handlers !== undefined) for (const handler of handlers) handler.deliver(data, srvid)
    if (equal(srvid, Srvid.ALL)) return
    const forAll = this.byHigh.get(Srvid.ALL.hi)?.get(Srvid.ALL.lo)
    if (forAll !== undefined) for (const handler of forAll) handler.deliver(data, srvid)
  }

  /** The same without those who are registered for all messages: the records of a traverse are for nobody else. */
  deliverOnly(srvid: Word64, data: Uint8Array): void {
    for (const handler of this.byHigh.get(srvid.hi)?.get(srvid.lo) ?? []) handler.deliver(data, srvid)
  }

  private set(hi: number, lo: number, handlers: MessageHandler<Owner>[]): void {
    const byLow = this.byHigh.get(hi)
    if (byLow === undefined) return
    if (handlers.length > 0) byLow.set(lo, handlers)
    else {
      byLow.delete(lo)
      if (byLow.size === 0) this.byHigh.delete(hi)
    }
  }
}
