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
  options: Omit<Partial<StockOptions>, "base" | "address" | "nodes"> = {},
): Promise<StockCluster> {
  const directory = mkdtempSync(join(tmpdir(), "ctdb-stock-"))
  const addresses = Array.from({ length: count }, (_, index) => `${prefix}${index + 1}`)
  const nodes: StockNode[] = []
  const stop = async () => {
    await Promise.all(nodes.map((node) => node.stop()))
    rmSync(directory, { recursive: true, force: true })
  }
  try {
    const starting = addresses.map((address, index) =>
      startStockNode({ ...options, base: join(directory, String(index)), address, nodes: addresses }),
    )
    for (const start of starting) nodes.push(await start)
    await Promise.all(nodes.map((node) => waitUntilHealthy(node)))
  } catch (error) {
    await stop()
    throw error
  }
  return { directory, nodes, stop }
}
