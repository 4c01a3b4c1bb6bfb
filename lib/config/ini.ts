// The line syntax that ctdb.conf and the tunables files share: sections, `KEY = VALUE`, comments, continued lines, and white
// space reduced inside a line. Source: reference page "Configuration", section 4. Knows no option and judges no value.

export type IniItem =
  | { readonly kind: "section"; readonly name: string; readonly line: number }
  /** `value` is undefined when the line has no `=`, and empty when nothing stands behind it. */
  | { readonly kind: "entry"; readonly key: string; readonly value: string | undefined; readonly line: number }

export interface IniFile {
  /** In the order of the file, up to the first syntax error. */
  readonly items: readonly IniItem[]
  /** The line after which nothing was read. */
  readonly syntaxError: { readonly line: number; readonly cause: string } | undefined
}

const NEWLINE = "\n"

function isBlank(char: string): boolean {
  return char === " " || char === "\t" || char === "\r" || char === "\v" || char === "\f"
}

export function parseIni(text: string): IniFile {
  const items: IniItem[] = []
  let at = 0
  let line = 1
  const fail = (failedLine: number, cause: string): IniFile => ({ items, syntaxError: { line: failedLine, cause } })

  while (at < text.length) {
    const first = text[at]!
    if (first === NEWLINE || isBlank(first)) {
      if (first === NEWLINE) line++
      at++
      continue
    }
    if (first === "#" || first === ";") {
      const end = text.indexOf(NEWLINE, at)
      at = end < 0 ? text.length : end
      continue
    }
    const startLine = line
    const logical = readLogicalLine(text, at)
    at = logical.next
    line += logical.physicalLines
    if (logical.text.startsWith("[")) {
      const close = logical.text.indexOf("]")
      if (close < 0) return fail(startLine, 'a section without "]"')
      items.push({ kind: "section", name: logical.text.slice(1, close), line: startLine })
      continue
    }
    const equals = logical.text.indexOf("=")
    if (equals === 0) return fail(startLine, 'no option name before "="')
    const key = trimOne(equals < 0 ? logical.text : logical.text.slice(0, equals))
    if (equals < 0 && key === "") continue
    const value = equals < 0 ? undefined : trimOne(logical.text.slice(equals + 1))
    items.push({ kind: "entry", key, value, line: startLine })
  }
  return { items, syntaxError: undefined }
}

/** One line with its continuations: runs of white space reduced to their first character, the newline consumed. */
function readLogicalLine(text: string, start: number): { text: string; next: number; physicalLines: number } {
  let out = ""
  let physicalLines = 0
  let at = start
  for (; at < text.length; at++) {
    const char = text[at]!
    if (char === NEWLINE) {
      physicalLines++
      const stripped = isBlank(out.at(-1) ?? "") ? out.slice(0, -1) : out
      if (!stripped.endsWith("\\")) {
        at++
        break
      }
      out = stripped.slice(0, -1)
    } else if (!isBlank(char) || !isBlank(out.at(-1) ?? "")) {
      out += char
    }
  }
  return { text: out, next: at, physicalLines }
}

/** Inside a line runs of white space are reduced already, so there is at most one on each side. */
function trimOne(text: string): string {
  const from = isBlank(text[0] ?? "") ? 1 : 0
  const to = text.length > from && isBlank(text.at(-1)!) ? text.length - 1 : text.length
  return text.slice(from, to)
}

/** What C's strtol(text, NULL, 0) makes of a text: the number at its start, 0 if there is none; `rest` is what follows. */
export function parseCInteger(text: string): { readonly value: bigint; readonly rest: string } {
  const match = /^[ \t\n\v\f\r]*([+-]?)(0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)/.exec(text)
  if (match === null) return { value: 0n, rest: text }
  const digits = match[2]!
  const magnitude = /^0[0-7]+$/.test(digits) ? BigInt(`0o${digits.slice(1)}`) : BigInt(digits)
  return { value: match[1] === "-" ? -magnitude : magnitude, rest: text.slice(match[0].length) }
}
