// `glock list`: who holds and who waits for the cluster's named locks, transactions' among them. Not a command of the stock tool.

import { type GLockState, listGLocks } from "../../lib/client/g-lock.ts"
import { toDecimal, toHex } from "../../lib/protocol/word64.ts"
import { quoteBytes } from "../../lib/tdb/tdb.ts"
import { recordWork } from "./databases.ts"
import { type Invocation, UsageError } from "./invocation.ts"

export async function glock(invocation: Invocation): Promise<number> {
  const { client, output, words } = invocation
  if (words[0] !== "list") throw new UsageError()
  const { locks, unreadable } = await recordWork(invocation, "Failed to list locks", () =>
    invocation.waiting("Asking holders", () => listGLocks(client, { timeoutMs: invocation.timeoutMs })),
  )
  const databases = await databaseNames(invocation)
  const sorted = [...locks].sort((a, b) => Buffer.compare(a.name, b.name))
  const describe = (lock: GLockState) => {
    const name = quoteBytes(lock.name)
    const database = /^transaction_db_0x([0-9a-f]{8})$/.exec(name)?.[1]
    return { name, database: database === undefined ? undefined : databases.get(Number.parseInt(database, 16)) }
  }
  const rows = sorted.flatMap((lock) => {
    const { name, database } = describe(lock)
    const holders = lock.holders.map(({ type, id, lives }) => ({
      name,
      database,
      format: lock.format,
      role: "holder",
      type,
      node: id.vnn,
      pid: toDecimal(id.pid),
      state: lives ? "alive" : "dead",
    }))
    const waiters = lock.waiters.map(({ pnn, pid, type }) => ({
      name,
      database,
      format: lock.format,
      role: "waiter",
      type: type ?? "unknown",
      node: pnn,
      pid: String(pid),
      state: "waiting",
    }))
    return [...holders, ...waiters]
  })
  for (const name of unreadable) output.warn(`Record "${quoteBytes(name)}" is in no known format`)
  await output.show({
    text: () =>
      `Number of locks:${sorted.length}\n` +
      rows
        .map(
          (row) =>
            `name:${row.name} ${row.role}:${row.node}:${row.pid} type:${row.type} state:${row.state} format:${row.format}` +
            `${row.database === undefined ? "" : ` database:${row.database}`}\n`,
        )
        .join(""),
    machine: () =>
      output.machineLine(["Name", "Database", "Format", "Role", "Type", "Node", "PID", "State"]) +
      rows
        .map((row) =>
          output.machineLine([
            row.name,
            row.database ?? "",
            row.format,
            row.role,
            row.type,
            row.node,
            row.pid,
            row.state,
          ]),
        )
        .join(""),
    json: () => ({
      locks: sorted.map((lock) => ({
        ...describe(lock),
        format: lock.format,
        holders: lock.holders.map(({ type, id, lives }) => ({
          type,
          node: id.vnn,
          pid: toDecimal(id.pid),
          task: id.taskId,
          unique_id: toHex(id.uniqueId),
          alive: lives,
        })),
        waiters: lock.waiters.map(({ pnn, pid, type }) => ({ node: pnn, pid, type: type ?? null })),
        data: Buffer.from(lock.userData).toString("hex"),
      })),
    }),
    terminal: async () => {
      const { bold, faint, green, red, table } = await import("./terminal.ts")
      if (rows.length === 0) return "No locks are held.\n"
      return table(
        ["Lock", "Database", "Who", "Node", "PID", "Type", "State"],
        rows.map((row) => [
          bold(row.name),
          row.database ?? faint("-"),
          row.role,
          row.node,
          row.pid,
          row.type,
          row.state === "alive" ? green(row.state) : row.state === "dead" ? red(row.state) : row.state,
        ]),
      )
    },
  })
  return 0
}

/** Names of databases by id, for the locks of transactions. */
async function databaseNames(invocation: Invocation): Promise<Map<number, string>> {
  const { client, localNode } = invocation
  const map = await invocation.control("GET_DBMAP", localNode)
  const named = map.map(async ({ dbId }): Promise<[number, string]> => {
    return [dbId, (await client.control("GET_DBNAME", localNode, dbId)) ?? ""]
  })
  return new Map(await Promise.all(named))
}
