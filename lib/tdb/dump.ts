// The text format of tdbdump and tdbrestore (tdb-format.md 10.2): writing records in it and reading them back. It touches no files.

const HEX = "0123456789ABCDEF"

/** Bytes as tdbdump shows them: printable ASCII as it is, the rest, quotes and backslashes as \XX. */
export function quoteBytes(bytes: Uint8Array): string {
  let text = ""
  for (const byte of bytes) {
    if (byte >= 0x20 && byte < 0x7f && byte !== 0x22 && byte !== 0x5c) text += String.fromCharCode(byte)
    else text += `\\${HEX[byte >> 4]}${HEX[byte & 15]}`
  }
  return text
}

/** One record as tdbdump prints it. */
export function formatRecord(key: Uint8Array, data: Uint8Array): string {
  return `{\nkey(${key.length}) = "${quoteBytes(key)}"\ndata(${data.length}) = "${quoteBytes(data)}"\n}\n`
}

/** A dump that cannot be read: the line (from 1) and why. */
export class DumpError extends Error {
  constructor(
    readonly line: number,
    readonly reason: string,
  ) {
    super(`line ${line}: ${reason}`)
    this.name = "DumpError"
  }
}

export interface DumpedRecord {
  readonly key: Uint8Array
  readonly data: Uint8Array
}

/** Read a dump. Raises DumpError. */
export function* parseDump(text: string): Generator<DumpedRecord> {
  const lines = text.split("\n")
  let at = 0
  while (at < lines.length) {
    if (lines[at] === "") {
      at++
      continue
    }
    if (lines[at] !== "{") throw new DumpError(at + 1, "expected {")
    const key = parseField(lines[at + 1], "key", at + 2)
    const data = parseField(lines[at + 2], "data", at + 3)
    if (lines[at + 3] !== "}") throw new DumpError(at + 4, "expected }")
    yield { key, data }
    at += 4
  }
}

function parseField(line: string | undefined, name: string, number: number): Uint8Array {
  const match = /^(key|data)\((\d+)\) = "(.*)"$/.exec(line ?? "")
  if (match === null || match[1] !== name) throw new DumpError(number, `expected ${name}(LENGTH) = "BYTES"`)
  const bytes = unquote(match[3]!, number)
  if (bytes.length !== Number(match[2])) {
    throw new DumpError(number, `${name} of ${bytes.length} bytes says that it has ${match[2]}`)
  }
  return bytes
}

function unquote(text: string, line: number): Uint8Array {
  const bytes = new Uint8Array(text.length)
  let length = 0
  for (let i = 0; i < text.length; i++) {
    let byte = text.charCodeAt(i)
    if (byte === 0x5c) {
      const hex = text.slice(i + 1, i + 3)
      if (!/^[0-9a-fA-F]{2}$/.test(hex)) throw new DumpError(line, `\\${hex} is no escape`)
      byte = Number.parseInt(hex, 16)
      i += 2
    } else if (byte > 0x7f) throw new DumpError(line, "bytes above 127 must be escaped")
    bytes[length++] = byte
  }
  return bytes.subarray(0, length)
}
