// Attaching and detaching databases: the controls in the order of client-library 8, then the daemon's own file opened with the
// daemon's own flags. What can be done with an attached database is in database.ts.

import { realScheduler } from "../net/scheduler.ts"
import { NodeFlag } from "../protocol/constants.ts"
import { openTdb, type Tdb } from "../tdb/tdb.ts"
import { type Client, ControlError, type Waiting } from "./client.ts"
import { Database, type DatabaseKind, kindOf } from "./database.ts"

export interface AttachOptions extends Waiting {
  /** What to make of a new database; an existing one keeps its kind. Default "volatile". */
  readonly kind?: DatabaseKind
  /** Switch on read-only delegation on all connected nodes. Volatile databases only. */
  readonly readonly?: boolean
  /** Switch on sticky records on all connected nodes. Volatile databases only. */
  readonly sticky?: boolean
  /** Attach it even when the daemon calls it unhealthy. */
  readonly unhealthy?: boolean
}

/** The steps of attaching, named by their control; "open" is opening the file. */
export type AttachStep =
  | "DB_ATTACH"
  | "GETDBPATH"
  | "DB_GET_HEALTH"
  | "GET_NODEMAP"
  | "SET_DB_READONLY"
  | "SET_DB_STICKY"
  | "DB_OPEN_FLAGS"
  | "open"

/** Which step of attaching failed, and why. */
export class AttachError extends Error {
  override readonly name = "AttachError"
  constructor(
    readonly database: string,
    readonly step: AttachStep,
    /** ControlError, SysError or TdbError; none for an unhealthy database, whose `reason` is the daemon's. */
    override readonly cause: unknown,
    readonly reason: string,
    /** The database's id, once known. */
    readonly id?: number,
  ) {
    super(`attach ${database}: ${step}: ${reason}`)
  }
}

const attachControls = {
  volatile: "DB_ATTACH",
  persistent: "DB_ATTACH_PERSISTENT",
  replicated: "DB_ATTACH_REPLICATED",
} as const

/** What each client has attached, by name. */
const attached = new WeakMap<Client, Map<string, Promise<Database>>>()

/**
 * Attaches a database, creating it if need be, and opens its file (client-library 8). The daemon defers its answer during a recovery, so
 * this may take long. A second attach of the same name on one client returns the same Database. After reconnect() everything must be
 * attached again: see forgetDatabases().
 * @throws AttachError, or the signal's reason
 */
export function attach(client: Client, name: string, options: AttachOptions = {}): Promise<Database> {
  let known = attached.get(client)
  if (known === undefined) {
    known = new Map()
    attached.set(client, known)
  }
  const earlier = known.get(name)
  if (earlier !== undefined) return earlier
  const attaching = attachAnew(client, name, options)
  known.set(name, attaching)
  attaching.catch(() => {
    if (known.get(name) === attaching) known.delete(name)
  })
  return attaching
}

/** Closes the files of everything that the client has attached, unlocking what is locked. */
export async function forgetDatabases(client: Client): Promise<void> {
  const known = attached.get(client)
  attached.delete(client)
  for (const database of known?.values() ?? []) {
    await database.then(
      (open) => open.close(),
      () => undefined,
    )
  }
}

async function attachAnew(client: Client, name: string, options: AttachOptions): Promise<Database> {
  const { timeoutMs, signal } = options
  const waiting: Waiting = { timeoutMs, signal }
  const node = client.pnn
  const kind = options.kind ?? "volatile"
  const step = async <T>(which: AttachStep, run: () => Promise<T>): Promise<T> => {
    try {
      return await run()
    } catch (cause) {
      if (!(cause instanceof ControlError)) throw cause
      throw new AttachError(name, which, cause, cause.message)
    }
  }

  const id = await step("DB_ATTACH", () => client.control(attachControls[kind], node, name, waiting))
  const path = await step("GETDBPATH", () => client.control("GETDBPATH", node, id, waiting))
  if (options.unhealthy !== true) {
    const health = await step("DB_GET_HEALTH", () => client.control("DB_GET_HEALTH", node, id, waiting))
    if (health !== null) throw new AttachError(name, "DB_GET_HEALTH", undefined, `database unhealthy (${health})`)
  }
  if (options.readonly === true || options.sticky === true) {
    const map = await step("GET_NODEMAP", () => client.control("GET_NODEMAP", node, undefined, waiting))
    const connected = map.filter((entry) => (entry.flags & NodeFlag.DISCONNECTED) === 0).map((entry) => entry.pnn)
    for (const which of ["SET_DB_READONLY", "SET_DB_STICKY"] as const) {
      if (which === "SET_DB_READONLY" ? options.readonly !== true : options.sticky !== true) continue
      for (const result of (await client.controlAll(which, connected, id, waiting)).values()) {
        if (!result.ok) throw new AttachError(name, which, result.error, result.error.message, id)
      }
    }
  }
  const flags = await step("DB_OPEN_FLAGS", () => client.control("DB_OPEN_FLAGS", node, id, waiting))
  const tdb = open(name, path ?? "", flags)
  // What a database is now, as it may have been there with more properties than were asked for: persistent files are told by
  // their flags (tdb-format 9.1), replicated ones by the daemon's map only.
  return new Database({
    session: client.session,
    scheduler: realScheduler,
    tdb,
    id,
    name,
    kind: await actualKind(client, id, kind, waiting),
  })
}

function open(name: string, path: string, flags: number): Tdb {
  try {
    // Without O_CREAT: the daemon has made it, and holds the lock that keeps CLEAR_IF_FIRST from wiping it.
    return openTdb(path, { flags })
  } catch (cause) {
    if (!(cause instanceof Error)) throw cause
    throw new AttachError(name, "open", cause, cause.message)
  }
}

async function actualKind(client: Client, id: number, asked: DatabaseKind, waiting: Waiting): Promise<DatabaseKind> {
  if (asked !== "volatile") return asked
  const map = await client.control("GET_DBMAP", client.pnn, undefined, waiting)
  const entry = map.find(({ dbId }) => dbId === id)
  return entry === undefined ? asked : kindOf(entry.flags)
}

/**
 * Detaches a volatile database from all nodes and closes the local file. The daemon refuses unless AllowClientDBAttach is 0 on all.
 * @throws ControlError
 */
export async function detach(client: Client, database: Database, waiting: Waiting = {}): Promise<void> {
  await client.control("DB_DETACH", client.pnn, database.id, waiting)
  attached.get(client)?.delete(database.name)
  database.close()
}
