// The tool's command line: the options table, the parser that follows popt's rules as the stock tool shows them, and the
// usage texts made from the table. It knows no command. Source: reference page "Admin tool" section 1, and the running
// tool for the error texts.

/** What the options say. */
export interface Options {
  /** `-n`, -1 when not given. */
  readonly node: number
  /** `-t`, seconds. */
  readonly timeLimit: number
  /** `-T`, seconds; 0 when not given. */
  readonly maxRunTime: number
  /** `-Y` or `-X`. */
  readonly machine: boolean
  /** `-x`. */
  readonly separator: string
  readonly verbose: boolean
  /** `-d`, as typed. */
  readonly debug: string | undefined
  readonly json: boolean
  /** `--yes`: no question before a destructive command. */
  readonly yes: boolean
}

type Key = keyof Options

interface OptionSpec {
  readonly short?: string
  readonly long?: string
  /** What the argument is called; none for a flag. */
  readonly argument?: "INT" | "STRING" | "CHAR"
  readonly sets: Key
  readonly text: string
  /** Not an option of the stock tool: shown only on a terminal. */
  readonly ours?: true
}

/** In the order of the help text. */
const optionTable: readonly OptionSpec[] = [
  { short: "d", long: "debug", argument: "STRING", sets: "debug", text: "debug level" },
  { short: "t", long: "timelimit", argument: "INT", sets: "timeLimit", text: "timelimit (in seconds)" },
  { short: "n", long: "node", argument: "INT", sets: "node", text: "node specification - integer" },
  { short: "Y", sets: "machine", text: "enable machine readable output" },
  { short: "j", long: "json", sets: "json", text: "JSON output", ours: true },
  {
    short: "x",
    long: "separator",
    argument: "CHAR",
    sets: "separator",
    text: "specify separator for machine readable output",
  },
  { short: "X", sets: "machine", text: "enable machine parsable output with separator |" },
  { short: "v", long: "verbose", sets: "verbose", text: "enable verbose output" },
  {
    short: "T",
    long: "maxruntime",
    argument: "INT",
    sets: "maxRunTime",
    text: "die if runtime exceeds this limit (in seconds)",
  },
  { long: "yes", sets: "yes", text: "do not ask before a destructive command", ours: true },
]

export type ParsedLine =
  | { readonly kind: "run"; readonly options: Options; readonly words: readonly string[] }
  | { readonly kind: "help" }
  | { readonly kind: "usage" }
  | { readonly kind: "error"; readonly text: string }

const NUMBER_FORM = "invalid numeric value"
const NUMBER_RANGE = "number too large or too small"

/**
 * Parses the arguments after the program's name. Options and words may mix; `--` ends the options; `--help` and
 * `--usage` end the parsing where they stand, so an error before them wins and one after them is not seen.
 */
export function parseOptions(argv: readonly string[]): ParsedLine {
  const found: { -readonly [K in Key]: Options[K] } = {
    node: -1,
    timeLimit: 10,
    maxRunTime: 0,
    machine: false,
    separator: "|",
    verbose: false,
    debug: undefined,
    json: false,
    yes: false,
  }
  const words: string[] = []
  const bad = (argument: string, why: string): ParsedLine => ({
    kind: "error",
    text: `Invalid option ${argument}: ${why}`,
  })

  /** Stores a value; returns the reason if it is no good. */
  const store = (spec: OptionSpec, value: string | true): string | undefined => {
    if (spec.argument === "INT") {
      const number = parseInt32(String(value))
      if (typeof number === "string") return number
      Object.assign(found, { [spec.sets]: number })
      return undefined
    }
    Object.assign(found, { [spec.sets]: value })
    return undefined
  }

  let index = 0
  while (index < argv.length) {
    const argument = argv[index++]!
    if (argument === "--") {
      words.push(...argv.slice(index))
      break
    }
    if (!argument.startsWith("-") || argument === "-") {
      words.push(argument)
      continue
    }

    if (argument.startsWith("--")) {
      const equals = argument.indexOf("=")
      const name = argument.slice(2, equals < 0 ? undefined : equals)
      const spec = optionTable.find((candidate) => candidate.long === name)
      if (spec?.argument === undefined) {
        if (spec === undefined && name !== "help" && name !== "usage") return bad(argument, "unknown option")
        if (equals >= 0) return bad(argument, "option does not take an argument")
        if (spec === undefined) return { kind: name === "help" ? "help" : "usage" }
        store(spec, true)
        continue
      }
      if (equals < 0 && index >= argv.length) return bad(argument, "missing argument")
      const source = equals < 0 ? argv[index++]! : argument
      const why = store(spec, equals < 0 ? source : argument.slice(equals + 1))
      if (why !== undefined) return bad(source, why)
      continue
    }

    let at = 1
    while (at < argument.length) {
      const letter = argument[at++]!
      const spec = optionTable.find((candidate) => candidate.short === letter)
      if (spec === undefined && letter !== "?") return bad(argument, "unknown option")
      if (spec?.argument === undefined) {
        if (argument[at] === "=") return bad(argument, "option does not take an argument")
        if (spec === undefined) return { kind: "help" }
        store(spec, true)
        continue
      }
      const joined = at < argument.length
      if (!joined && index >= argv.length) return bad(argument, "missing argument")
      const source = joined ? argument : argv[index++]!
      const why = store(spec, joined ? argument.slice(argument[at] === "=" ? at + 1 : at) : source)
      if (why !== undefined) return bad(source, why)
      break
    }
  }
  return { kind: "run", options: found, words }
}

/** strtoll base 0 over the whole text (the empty one is 0), within 32 bits; a text says what is wrong. */
function parseInt32(text: string): number | string {
  const match = /^[ \t\n\v\f\r]*([+-]?)(0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)$/.exec(text)
  if (match === null) return text === "" ? 0 : NUMBER_FORM
  const digits = match[2]!
  const octal = digits.length > 1 && digits.startsWith("0") && !/^0[xX]/.test(digits)
  const magnitude = BigInt(octal ? `0o${digits.slice(1)}` : digits)
  const value = match[1] === "-" ? -magnitude : magnitude
  if (value < -0x8000_0000n || value > 0x7fff_ffffn) return NUMBER_RANGE
  return Number(value)
}

/** The option part of the help; our own options only when asked for. */
export function optionHelp(withOurs: boolean): string {
  const rows = optionTable.filter((spec) => withOurs || spec.ours !== true)
  const lines = rows.map((spec) => helpLine(spec.short, spec.long, spec.argument, spec.text))
  lines.push("", "Help options:", helpLine("?", "help", undefined, "Show this help message"))
  lines.push(helpLine(undefined, "usage", undefined, "Display brief usage message"))
  return `Usage: [OPTION...]\n${lines.join("\n")}\n`
}

function helpLine(short: string | undefined, long: string | undefined, argument: string | undefined, text: string) {
  const shortPart = short === undefined ? "    " : long === undefined ? `-${short}` : `-${short}, `
  const longPart = long === undefined ? "" : `--${long}${argument === undefined ? "" : `=${argument}`}`
  return `  ${(shortPart + longPart).padEnd(24)} ${text}`
}

/** popt's brief usage: wrapped where popt wraps (a line ends by column 72), 8 blanks in front of each further line. */
export function optionUsage(withOurs: boolean): string {
  const rows = optionTable.filter((spec) => withOurs || spec.ours !== true)
  const flags = rows.filter((spec) => spec.argument === undefined && spec.short !== undefined).map((spec) => spec.short)
  const items = [`[-?${flags.join("")}]`, "[-?|--help]", "[--usage]"]
  for (const { short, long, argument } of rows) {
    const names = [short === undefined ? "" : `-${short}`, long === undefined ? "" : `--${long}`].filter(
      (n) => n !== "",
    )
    items.push(`[${names.join("|")}${argument === undefined ? "" : `=${argument}`}]`)
  }
  let text = "Usage:"
  let column = text.length
  for (const item of items) {
    if (column > 10 && column + item.length + 1 > 72) {
      text += "\n       "
      column = 7
    }
    text += ` ${item}`
    column += item.length + 1
  }
  return `${text}\n`
}
