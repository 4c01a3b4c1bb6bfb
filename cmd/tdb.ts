// `ctdb tdb dump|check|info|restore FILE`: looking into a TDB file without a daemon, in the text format of tdbdump and tdbrestore. It
// opens files read-only and without locks (restore creates one); nothing here talks to a node.

import { linkSync, unlinkSync } from "node:fs"
import { parseArgs } from "node:util"
import { SysError } from "../lib/sys/errno.ts"
import {
  CLEAR_IF_FIRST,
  check,
  DumpError,
  formatRecord,
  INCOMPATIBLE_HASH,
  INSERT,
  MUTEX_LOCKING,
  openMemory,
  openTdb,
  parseDump,
  rescue,
  type Summary,
  summary,
  type Tally,
  type Tdb,
  TdbError,
  Walk,
} from "../lib/tdb/tdb.ts"

const USAGE = `Usage: ctdb tdb dump [-e] [-k KEY] FILE       records in tdbdump's format; -e: rescue a broken file
       ctdb tdb check [--lock] FILE          whether the file is sound; all findings
       ctdb tdb info [--lock] FILE           figures about the file
       ctdb tdb restore [OPTIONS] FILE       create FILE from a dump on stdin
                --hash-size N   number of chains, default 131
                --jenkins       the hash function of volatile databases
                --mutexes       with robust mutexes (implies --jenkins)
`

const OPTIONS = {
  emergency: { type: "boolean", short: "e" },
  key: { type: "string", short: "k" },
  lock: { type: "boolean" },
  "hash-size": { type: "string" },
  jenkins: { type: "boolean" },
  mutexes: { type: "boolean" },
  help: { type: "boolean", short: "h" },
} as const

type Values = ReturnType<typeof parse>["values"]

function parse(argv: readonly string[]) {
  return parseArgs({ args: [...argv], options: OPTIONS, allowPositionals: true, strict: true })
}

/** Run one of the commands; `argv` begins with its name. Resolves to the exit status: 0, 1 for a failure, 2 for wrong usage. */
export async function run(argv: readonly string[]): Promise<number> {
  let values: Values
  let positionals: string[]
  try {
    ;({ values, positionals } = parse(argv))
  } catch (error) {
    process.stderr.write(`${error instanceof Error ? error.message : error}\n${USAGE}`)
    return 2
  }
  if (values.help) {
    process.stdout.write(USAGE)
    return 0
  }
  const [command, file, ...more] = positionals
  const action = command === undefined ? undefined : COMMANDS[command]
  if (action === undefined || file === undefined || more.length > 0) {
    process.stderr.write(USAGE)
    return 2
  }
  try {
    return await action(file, values)
  } catch (error) {
    if (error instanceof TdbError || error instanceof SysError || error instanceof DumpError) {
      process.stderr.write(`ctdb tdb ${command}: ${error.message}\n`)
      return 1
    }
    throw error
  }
}

const COMMANDS: Record<string, (file: string, values: Values) => Promise<number> | number> = {
  dump,
  check: checkFile,
  info,
  restore,
}

// A file that needs recovery is shown as recovery would leave it, from a copy in memory: the file itself is not touched.
async function openToRead(file: string): Promise<Tdb> {
  try {
    return openTdb(file, { openFlags: 0 })
  } catch (error) {
    if (!(error instanceof TdbError) || error.code !== "CORRUPT") throw error
    process.stderr.write(`${file}: a commit died in it; showing the state before that commit\n`)
    return openMemory({ name: file, contents: await Bun.file(file).bytes() })
  }
}

function openLocked(file: string): Tdb {
  try {
    return openTdb(file, { flags: 0 })
  } catch (error) {
    if (!(error instanceof TdbError) || error.errno !== 22) throw error
    return openTdb(file, { flags: MUTEX_LOCKING | INCOMPATIBLE_HASH })
  }
}

// Write without building the whole dump in memory, and wait when the reader is slow.
class Output {
  private text: string[] = []
  private length = 0
  private readonly sink = Bun.stdout.writer({ highWaterMark: 1 << 20 })

  add(text: string): void {
    this.text.push(text)
    this.length += text.length
  }
  get full(): boolean {
    return this.length > 1 << 18
  }
  async flush(): Promise<void> {
    this.sink.write(this.text.join(""))
    this.text = []
    this.length = 0
    await this.sink.flush()
  }
}

async function dump(file: string, values: Values): Promise<number> {
  const db = await openToRead(file)
  const output = new Output()
  try {
    if (values.key !== undefined) {
      const key = Buffer.from(values.key, "latin1")
      const data = db.fetch(key)
      if (data === null) {
        process.stderr.write(`${file}: no record with this key\n`)
        return 1
      }
      output.add(formatRecord(key, data))
    } else if (values.emergency) rescue(db, (key, data) => output.add(formatRecord(key, data)))
    else {
      const walk = new Walk(db)
      while (
        walk.next(1000, (bytes, keyStart, keyLength, dataStart, dataLength) => {
          const key = bytes.subarray(keyStart, keyStart + keyLength)
          output.add(formatRecord(key, bytes.subarray(dataStart, dataStart + dataLength)))
        })
      ) {
        if (output.full) await output.flush()
      }
    }
  } finally {
    await output.flush()
    db.close()
  }
  return 0
}

async function checkFile(file: string, values: Values): Promise<number> {
  const db = values.lock ? openLocked(file) : await openToRead(file)
  try {
    const result = check(db)
    for (const finding of result.findings) process.stderr.write(`${finding.message}\n`)
    if (result.ok) process.stdout.write(`Database integrity is OK and has ${result.records} records.\n`)
    else process.stdout.write("Integrity check for the opened database failed.\n")
    return result.ok ? 0 : 1
  } finally {
    db.close()
  }
}

async function info(file: string, values: Values): Promise<number> {
  const db = values.lock ? openLocked(file) : await openToRead(file)
  try {
    process.stdout.write(formatSummary(summary(db)))
    return 0
  } finally {
    db.close()
  }
}

function formatSummary(s: Summary): string {
  const spread = (tally: Tally): string =>
    `${tally.smallest}/${tally.count === 0 ? 0 : Math.floor(tally.total / tally.count)}/${tally.largest}`
  return [
    `Size of file/data: ${s.fileSize}/${s.dataSize}`,
    `Header offset/logical size: ${s.mapOffset}/${s.mapSize}`,
    `Number of records: ${s.keys.count}`,
    `Hash function: ${s.hash}`,
    `Robust mutexes locking: ${s.mutexes ? "yes" : "no"}`,
    `Byte order: ${s.swapped ? "not this machine's" : "this machine's"}`,
    `Sequence number: ${s.sequenceNumber}`,
    `Smallest/average/largest keys: ${spread(s.keys)}`,
    `Smallest/average/largest data: ${spread(s.data)}`,
    `Smallest/average/largest padding: ${spread(s.padding)}`,
    `Number of dead records: ${s.dead.count}`,
    `Smallest/average/largest dead records: ${spread(s.dead)}`,
    `Number of free records: ${s.free.count}`,
    `Smallest/average/largest free records: ${spread(s.free)}`,
    `Number of hash chains: ${s.hashSize}`,
    `Smallest/average/largest hash chains: ${spread(s.chains)}`,
    `Number of uncoalesced records: ${s.uncoalesced.count}`,
    `Smallest/average/largest uncoalesced runs: ${spread(s.uncoalesced)}`,
    `Recovery area: ${s.recoveryArea} bytes`,
    `Dead space: ${s.deadSpace} bytes`,
    "",
  ].join("\n")
}

async function restore(file: string, values: Values): Promise<number> {
  const hashSize = values["hash-size"] === undefined ? 131 : Number(values["hash-size"])
  if (!Number.isInteger(hashSize) || hashSize < 1 || hashSize > 10_000_000) {
    process.stderr.write(`--hash-size ${values["hash-size"]}: needs a number from 1 to 10000000\n`)
    return 2
  }
  // Under another name until it is complete, then linked: an existing file is never replaced.
  const partial = `${file}.restore.${process.pid}`
  const flags = (values.jenkins ? INCOMPATIBLE_HASH : 0) | (values.mutexes ? MUTEX_LOCKING | CLEAR_IF_FIRST : 0)
  const db = openTdb(partial, { flags, hashSize, openFlags: 0o302 })
  let records = 0
  try {
    const text = await Bun.stdin.text()
    for (const { key, data } of parseDump(text)) {
      db.store(key, data, INSERT)
      records++
    }
    db.backing.sync()
    linkSync(partial, file)
  } catch (error) {
    if (error instanceof Error && "code" in error && error.code === "EEXIST" && !(error instanceof TdbError)) {
      process.stderr.write(`${file}: exists already, and is not replaced\n`)
      return 1
    }
    throw error
  } finally {
    db.close()
    unlinkSync(partial)
  }
  process.stderr.write(`${file}: ${records} records restored\n`)
  return 0
}
