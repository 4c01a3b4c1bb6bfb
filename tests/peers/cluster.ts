// A cluster of stock nodes in test mode on consecutive loopback addresses, in one directory of its own.

import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { type StockNode, type StockOptions, startStockNode, waitUntilHealthy } from "./stock.ts"

export interface StockCluster {
  readonly directory: string
  readonly nodes: readonly StockNode[]
  /** Stops every node that still runs and removes the directory. */
  stop(): Promise<void>
}

/**
 * Starts `count` nodes on `prefix`1, `prefix`2 ... (a prefix like "127.41.1.") and waits until all of them are healthy.
 * Node N's base is `DIRECTORY/N`.
 */
export async function startStockCluster(
  prefix: string,
  count: number,
  options: Omit<Partial<StockOptions>, "base" | "address" | "nodes"> & {
    /** The one node that may lead: of two clusters that are compared, the same one must. None: any. */
    readonly leader?: number
  } = {},
): Promise<StockCluster> {
  const directory = mkdtempSync(join(tmpdir(), "ctdb-stock-"))
  const addresses = Array.from({ length: count }, (_, index) => `${prefix}${index + 1}`)
  const nodes: StockNode[] = []
  const stop = async () => {
    await Promise.all(nodes.map((node) => node.stop()))
    rmSync(directory, { recursive: true, force: true })
  }
  try {
    const { leader = -1, config = [], ...common } = options
    const follower = [...config, "[cluster]", "leader capability = false"]
    const starting = addresses.map((address, index) =>
      startStockNode({
        ...common,
        base: join(directory, String(index)),
        address,
        nodes: addresses,
        config: leader === -1 || leader === index ? config : follower,
      }),
    )
    for (const start of starting) nodes.push(await start)
    await Promise.all(nodes.map((node) => waitUntilHealthy(node)))
  } catch (error) {
    await stop()
    throw error
  }
  return { directory, nodes, stop }
}
