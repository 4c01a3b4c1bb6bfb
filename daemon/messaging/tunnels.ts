// Tunnel ids that clients of this node have registered: at most one client an id (data path page 14.4).

import { toHex, type Word64 } from "../../lib/protocol/word64.ts"

export class TunnelTable<Owner> {
  // Tunnels are set up rarely and few; a string key costs nothing that matters.
  private readonly owners = new Map<string, Owner>()

  /** false: a client of this node has that id. */
  register(id: Word64, owner: Owner): boolean {
    const key = toHex(id)
    if (this.owners.has(key)) return false
    this.owners.set(key, owner)
    return true
  }

  /** false: that client has not registered it. */
  deregister(id: Word64, owner: Owner): boolean {
    const key = toHex(id)
    if (this.owners.get(key) !== owner) return false
    this.owners.delete(key)
    return true
  }

  owner(id: Word64): Owner | undefined {
    return this.owners.get(toHex(id))
  }

  removeOwner(owner: Owner): void {
    for (const [key, other] of this.owners) if (other === owner) this.owners.delete(key)
  }
}
