// The databases of a node and their properties: getdbmap, getdbstatus, getdbseqnum, dbstatistics, attach, detach, setdbreadonly,
// setdbsticky. What is in them is in records.ts. Reference page "Admin tool", sections 8.3 and 8.8.

import { DbFlag, NodeFlag, RecoveryMode } from "../../lib/protocol/constants.ts"
import { toBigInt, toDecimal } from "../../lib/protocol/word64.ts"
import { attachDatabase, findDatabase, hexId, isVolatile, lookForDatabase, notFound } from "./databases.ts"
import { type Invocation, UsageError } from "./invocation.ts"
import { fetchNodeMap } from "./nodes.ts"
import { bucketLine, counterLine, groupedCounterLine, latencyLine } from "./statistics.ts"

interface Entry {
  readonly id: number
  readonly name: string
  readonly path: string
  readonly flags: number
  /** Null: healthy. */
  readonly health: string | null
}

const has = (flag: number) => (entry: Entry) => (entry.flags & flag) !== 0

/** The words of the text in their order, and the columns of the machine form in theirs. */
const isPersistent = has(DbFlag.PERSISTENT)
const isSticky = has(DbFlag.STICKY)
const isReadonly = has(DbFlag.READONLY)
const isReplicated = has(DbFlag.REPLICATED)
const isUnhealthy = ({ health }: Entry) => health !== null
const words: readonly (readonly [string, (entry: Entry) => boolean])[] = [
  ["PERSISTENT", isPersistent],
  ["STICKY", isSticky],
  ["READONLY", isReadonly],
  ["REPLICATED", isReplicated],
  ["UNHEALTHY", isUnhealthy],
]
const columns = [isPersistent, isSticky, isUnhealthy, isReadonly, isReplicated] as const

const wordsOf = (entry: Entry) => words.filter(([, holds]) => holds(entry)).map(([word]) => word)

function entryJson(entry: Entry) {
  return {
    id: hexId(entry.id),
    name: entry.name,
    path: entry.path,
    type: isPersistent(entry) ? "persistent" : isReplicated(entry) ? "replicated" : "volatile",
    sticky: isSticky(entry),
    readonly: isReadonly(entry),
    healthy: !isUnhealthy(entry),
    health: entry.health,
  }
}

export async function getdbmap(invocation: Invocation): Promise<number> {
  const { output, node } = invocation
  const map = await invocation.control("GET_DBMAP", node)
  const head =
    output.mode === "machine"
      ? output.machineLine(["ID", "Name", "Path", "Persistent", "Sticky", "Unhealthy", "Readonly", "Replicated"])
      : `Number of databases:${map.length}\n`
  const streamed = output.mode === "text" || output.mode === "machine"
  if (streamed) output.print(head)
  const entries: Entry[] = []
  for (const { dbId, flags } of map) {
    const name = (await invocation.control("GET_DBNAME", node, dbId)) ?? ""
    const path = (await invocation.control("GETDBPATH", node, dbId)) ?? ""
    const health = await invocation.control("DB_GET_HEALTH", node, dbId)
    const entry = { id: dbId, name, path, flags, health }
    entries.push(entry)
    if (!streamed) continue
    if (output.mode === "machine") {
      const id = `0x${dbId.toString(16).toUpperCase().padStart(8, "0")}`
      output.print(output.machineLine([id, name, path, ...columns.map((holds) => (holds(entry) ? 1 : 0))]))
    } else
      output.print(
        `dbid:${hexId(dbId)} name:${name} path:${path}${wordsOf(entry)
          .map((word) => ` ${word}`)
          .join("")}\n`,
      )
  }
  if (streamed) return 0
  await output.show({
    text: () => "",
    json: () => ({ node, databases: entries.map(entryJson) }),
    terminal: async () => {
      const { faint, red, table } = await import("./terminal.ts")
      return table(
        ["Id", "Name", "Type", "Properties", "Path"],
        entries.map((entry) => {
          const { type } = entryJson(entry)
          const properties = wordsOf(entry)
            .filter((word) => word !== "PERSISTENT" && word !== "REPLICATED")
            .map((word) => (word === "UNHEALTHY" ? red("unhealthy") : word.toLowerCase()))
          return [hexId(entry.id), entry.name, type, properties.join(", "), faint(entry.path)]
        }),
      )
    },
  })
  return 0
}

export async function getdbstatus(invocation: Invocation): Promise<number> {
  const { output, node } = invocation
  const found = await findDatabase(invocation, invocation.words[0] ?? "")
  const path = (await invocation.control("GETDBPATH", node, found.id)) ?? ""
  const health = await invocation.control("DB_GET_HEALTH", node, found.id)
  const entry: Entry = { ...found, path, health }
  const yes = (holds: boolean) => (holds ? "yes" : "no")
  const rows = [
    ["dbid", hexId(found.id)],
    ["name", found.name],
    ["path", path],
    ["PERSISTENT", yes(isPersistent(entry))],
    ["REPLICATED", yes(isReplicated(entry))],
    ["STICKY", yes(isSticky(entry))],
    ["READONLY", yes(isReadonly(entry))],
    ["HEALTH", health ?? "OK"],
  ] as const
  await output.show({
    text: () => rows.map(([name, value]) => `${name}: ${value}\n`).join(""),
    json: () => ({ node, ...entryJson(entry) }),
    terminal: async () => {
      const { green, list, red } = await import("./terminal.ts")
      return list([...rows.slice(0, -1), ["HEALTH", health === null ? green("OK") : red(health)]])
    },
  })
  return 0
}

export async function getdbseqnum(invocation: Invocation): Promise<number> {
  const { output, node } = invocation
  const found = await findDatabase(invocation, invocation.words[0] ?? "")
  const line = `Failed to get sequence number for DB ${found.name}`
  const number = await invocation.control("GET_DB_SEQNUM", node, found.id, line)
  await output.show({
    text: () => `0x${toBigInt(number).toString(16)}\n`,
    json: () => ({ node, database: found.name, sequence_number: toDecimal(number) }),
  })
  return 0
}

export async function dbstatistics(invocation: Invocation): Promise<number> {
  const { output, node } = invocation
  const { id, name } = await findDatabase(invocation, invocation.words[0] ?? "")
  const counted = await invocation.control("GET_DB_STATISTICS", node, id, `Failed to get statistics for DB ${name}`)
  const { locks, vacuum, hotKeys } = counted
  const hex = (key: Uint8Array) => Buffer.from(key).toString("hex")
  const latency = ({ num, min, max, total }: typeof locks.latency) => ({
    num,
    min,
    average: num === 0 ? 0 : total / num,
    max,
  })
  await output.show({
    text: () =>
      [
        `DB Statistics ${name}\n`,
        counterLine("db_ro_delegations", counted.dbRoDelegations),
        counterLine("db_ro_revokes", counted.dbRoRevokes),
        " locks\n",
        groupedCounterLine("num_calls", locks.numCalls),
        groupedCounterLine("num_current", locks.numCurrent),
        groupedCounterLine("num_pending", locks.numPending),
        groupedCounterLine("num_failed", locks.numFailed),
        bucketLine("hop_count_buckets", counted.hopCountBucket),
        bucketLine("lock_buckets", locks.buckets),
        latencyLine("locks_latency", locks.latency),
        latencyLine("vacuum_latency", vacuum.latency),
        ` Num Hot Keys:     ${hotKeys.length}\n`,
        ...hotKeys.map(({ count, key }) => `     Count:${count} Key:${hex(key)}\n`),
      ].join(""),
    json: () => ({
      node,
      database: name,
      db_ro_delegations: counted.dbRoDelegations,
      db_ro_revokes: counted.dbRoRevokes,
      locks: {
        num_calls: locks.numCalls,
        num_current: locks.numCurrent,
        num_pending: locks.numPending,
        num_failed: locks.numFailed,
        buckets: locks.buckets,
        latency: latency(locks.latency),
      },
      hop_count_buckets: counted.hopCountBucket,
      vacuum_latency: latency(vacuum.latency),
      hot_keys: hotKeys.filter(({ count }) => count > 0).map(({ count, key }) => ({ count, key: hex(key) })),
    }),
  })
  return 0
}

const attachWords: Readonly<Record<string, number>> = {
  persistent: DbFlag.PERSISTENT,
  readonly: DbFlag.READONLY,
  sticky: DbFlag.STICKY,
  replicated: DbFlag.REPLICATED,
}

export async function attach(invocation: Invocation): Promise<number> {
  const [name = "", word] = invocation.words
  const flags = word === undefined ? 0 : attachWords[word]
  if (flags === undefined) throw new UsageError()
  const database = await attachDatabase(invocation, name, flags)
  const { output } = invocation
  if (output.mode === "json") output.json({ database: name, id: hexId(database.id), path: database.tdb.path })
  return 0
}

export async function detach(invocation: Invocation): Promise<number> {
  const { client, output, node, localNode } = invocation
  const mode = await invocation.controlStatus("GET_RECMODE", node)
  if (mode < 0) return invocation.fail(invocation.controlRefused("GET_RECMODE", mode))
  if (mode === RecoveryMode.ACTIVE) {
    return invocation.fail(1, "Database cannot be detached when recovery is active")
  }
  for (const { pnn, flags } of await fetchNodeMap(invocation)) {
    if ((flags & (NodeFlag.DISCONNECTED | NodeFlag.DELETED)) !== 0) continue
    if ((flags & (NodeFlag.BANNED | NodeFlag.STOPPED)) !== 0) {
      return invocation.fail(1, `Database cannot be detached on inactive (stopped or banned) node ${pnn}`)
    }
    const line = `Unable to get tunable AllowClientDBAttach from node ${pnn}`
    if ((await invocation.control("GET_TUNABLE", pnn, "AllowClientDBAttach", line)) === 1) {
      const text = `Database access is still active on node ${pnn}. Set AllowclientDBAttach=0 on all nodes.`
      return invocation.fail(1, text)
    }
  }
  let status = 0
  const detached: string[] = []
  for (const word of invocation.words) {
    const found = await lookForDatabase(invocation, word)
    if (found === undefined) {
      output.warn(notFound(word))
      continue
    }
    if (!isVolatile(found.flags)) return invocation.fail(1, "Only volatile databases can be detached")
    // The stock tool asks for the name once more and takes a refusal of that for one of the detaching.
    const answer = await client.controlStatus("DB_DETACH", localNode, found.id, { timeoutMs: invocation.timeoutMs })
    if (answer === 0) {
      detached.push(found.name)
      continue
    }
    output.warn(`detach: ${found.name} DB_DETACH failed, ret=${answer}`)
    output.warn(`Database ${found.name} detach failed`)
    status = answer
  }
  if (output.mode === "json") output.json({ detached })
  return status
}

async function setProperty(invocation: Invocation, property: "READONLY" | "STICKY"): Promise<number> {
  const { output, node } = invocation
  const { id, name, flags } = await findDatabase(invocation, invocation.words[0] ?? "")
  if (!isVolatile(flags)) return invocation.fail(1, `${property} can be set only on volatile DB`)
  await invocation.control(`SET_DB_${property}`, node, id)
  if (output.mode === "json") output.json({ node, database: name, [property.toLowerCase()]: true })
  return 0
}

export const setdbreadonly = (invocation: Invocation): Promise<number> => setProperty(invocation, "READONLY")
export const setdbsticky = (invocation: Invocation): Promise<number> => setProperty(invocation, "STICKY")
