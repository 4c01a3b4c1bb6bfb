// What a node holds in its database files, read from outside without a lock: for comparing nodes with each other. Only for
// a cluster at rest.

import { existsSync } from "node:fs"
import { join } from "node:path"
import { decode } from "../../lib/protocol/codec.ts"
import { ltdbHeader } from "../../lib/protocol/structs.ts"
import { toDecimal } from "../../lib/protocol/word64.ts"
import { NOLOCK } from "../../lib/tdb/format.ts"
import { openTdb, traverseRead } from "../../lib/tdb/tdb.ts"

/** Records of `<base>/volatile|persistent/<name>.<pnn>`, as text with their headers, sorted; undefined without the file. */
export function contents(base: string, name: string, pnn: number): string[] | undefined {
  const path = ["volatile", "persistent"].map((kind) => join(base, kind, `${name}.${pnn}`)).find(existsSync)
  if (path === undefined) return undefined
  const tdb = openTdb(path, { openFlags: 0, flags: NOLOCK })
  const records: string[] = []
  traverseRead(tdb, (bytes, keyStart, keyLength, dataStart, dataLength) => {
    const key = Buffer.from(bytes.slice(keyStart, keyStart + keyLength)).toString("latin1")
    const data = bytes.slice(dataStart, dataStart + dataLength)
    const { rsn, dmaster, flags } = decode(ltdbHeader, data)
    const value = Buffer.from(data.subarray(24)).toString("latin1")
    records.push(`${key}: rsn ${toDecimal(rsn)} dmaster ${dmaster} flags 0x${flags.toString(16)} ${value}`)
  })
  tdb.close()
  return records.sort()
}

/** The records without their headers, and without deleted ones. */
export function values(base: string, name: string, pnn: number): string[] {
  return (contents(base, name, pnn) ?? [])
    .map((line) => line.replace(/: rsn \d+ dmaster \d+ flags 0x[0-9a-f]+ /, " = "))
    .filter((line) => !line.endsWith(" = "))
}
