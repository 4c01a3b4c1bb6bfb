// Which persistent databases can't be trusted, and why: marks that outlive the daemon (data path page 9.5, tdb-format page
// 9.8). It keeps them; what follows from a mark is decided where databases are used.

import { TdbError, traverseRead } from "../../lib/tdb/tdb.ts"
import type { NodeEnvironment } from "../environment.ts"
import type { HealthFile } from "./files.ts"

const text = new TextDecoder()
const bytes = new TextEncoder()
const NO_HEALTHY_NODES = "NO-HEALTHY-NODES - "

export class Health {
  private readonly reasons = new Map<string, string>()
  /** Databases whose mark in the file is not the one that counts. */
  private readonly unwritten = new Set<string>()
  private file: HealthFile | undefined
  /** Marks may have been lost with a damaged file: the path that it was moved to. */
  private lostIn: string | undefined

  constructor(
    private readonly environment: NodeEnvironment,
    private readonly pnn: number,
  ) {}

  /** Reads the marks. A damaged file is set aside, and then no persistent database of this start is trusted. */
  open(): void {
    const { databases, log } = this.environment
    try {
      this.read()
    } catch (error) {
      if (!(error instanceof TdbError)) throw error
      this.file?.close()
      this.reasons.clear()
      this.lostIn = databases.setHealthAside(this.pnn)
      log.error(`Health marks of persistent databases are damaged (${error.message}), set aside as ${this.lostIn}`)
      this.read()
    }
  }

  private read(): void {
    this.file = this.environment.databases.openHealth(this.pnn)
    traverseRead(this.file.tdb, (map, keyStart, keyLength, dataStart, dataLength) => {
      const name = text.decode(map.subarray(keyStart, keyStart + keyLength))
      const reason = text.decode(map.subarray(dataStart, dataStart + dataLength)).replace(/\0.*$/s, "")
      if (reason !== "") this.reasons.set(name, reason)
    })
  }

  /** A persistent database was found at start: it gets a mark if its own may have been lost. */
  found(name: string, path: string): void {
    if (this.lostIn === undefined || this.reasons.has(name)) return
    this.set(name, `WARNING - '${path}' was cleared after a failure - manual verification needed`)
  }

  /** Why the database is unhealthy; undefined if it is healthy. */
  reason(name: string): string | undefined {
    return this.reasons.get(name)
  }

  /** `done` in a later turn: the mark is on the disk, or can't be written. */
  set(name: string, reason: string, done: () => void = () => {}): void {
    this.reasons.set(name, reason)
    this.write(name, done)
    this.environment.log.error(`Database ${name} is unhealthy: ${reason}`)
  }

  /** true: it was unhealthy. */
  clear(name: string): boolean {
    if (!this.reasons.delete(name)) return false
    this.write(name)
    this.environment.log.notice(`Database ${name} is healthy again`)
    return true
  }

  /** A recovery has given the database new contents; `trusted`: some other healthy node took part in it. */
  recovered(name: string, trusted: boolean): void {
    const reason = this.reasons.get(name)
    if (reason === undefined) return
    if (trusted) this.clear(name)
    else if (!reason.startsWith(NO_HEALTHY_NODES)) this.set(name, NO_HEALTHY_NODES + reason)
  }

  /**
   * Has the mark of that database written, beside the loop, and what could not be written before. A mark counts from now on in
   * any case: the disk that it tells of may be the one that it can't be written to.
   */
  private write(name: string, done: () => void = () => {}): void {
    this.unwritten.add(name)
    const written = [...this.unwritten].map((each) => ({ name: each, reason: this.reasons.get(each) }))
    const marks = written.map(({ name, reason }) => ({
      key: bytes.encode(name),
      value: reason === undefined ? undefined : bytes.encode(reason),
    }))
    this.file?.write(marks, ({ outcome, reason: why }) => {
      if (outcome === "applied") {
        for (const { name, reason } of written) if (this.reasons.get(name) === reason) this.unwritten.delete(name)
      } else {
        this.environment.log.error(
          `Health mark of database ${name} can't be written and holds until this daemon ends: ${why}`,
        )
      }
      done()
    })
  }
}
