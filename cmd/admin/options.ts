// The tool's command line: the options table, what the options say (popt.ts splits them), and the usage texts made from the table. It
// knows no command. Source: reference page "Admin tool" section 1, and the running tool for the error texts.

import { type PoptOption, parsePopt } from "../popt.ts"

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
  /** `--watch`: `recover` shows how far the recovery has come. */
  readonly watch: boolean
}

interface OptionSpec {
  readonly short?: string
  readonly long?: string
  /** What the argument is called; none for a flag. */
  readonly argument?: "INT" | "STRING" | "CHAR"
  readonly sets: keyof Options
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
  { long: "watch", sets: "watch", text: "recover: show how far the recovery has come", ours: true },
]

export type ParsedLine =
  | { readonly kind: "run"; readonly options: Options; readonly words: readonly string[] }
  | { readonly kind: "help" }
  | { readonly kind: "usage" }
  | { readonly kind: "error"; readonly text: string }

const NUMBER_FORM = "invalid numeric value"
const NUMBER_RANGE = "number too large or too small"

/** What ends the parse. */
const help: PoptOption = { long: "help", short: "?", takesValue: false, ends: true }
const usage: PoptOption = { long: "usage", takesValue: false, ends: true }

const poptOptions: readonly (PoptOption & { readonly spec?: OptionSpec })[] = [
  ...optionTable.map((spec) => ({
    spec,
    ...(spec.long === undefined ? {} : { long: spec.long }),
    ...(spec.short === undefined ? {} : { short: spec.short }),
    takesValue: spec.argument !== undefined,
    ...(spec.argument === "INT" ? { check: numberFault } : {}),
  })),
  help,
  usage,
]

/** Parses the arguments after the program's name. An error before `--help` and `--usage` wins, one after them is not seen. */
export function parseOptions(argv: readonly string[]): ParsedLine {
  const parsed = parsePopt(argv, poptOptions)
  if (parsed.kind === "error") return { kind: "error", text: `Invalid option ${parsed.what}: ${parsed.why}` }
  const options: Options = {
    node: -1,
    timeLimit: 10,
    maxRunTime: 0,
    machine: false,
    separator: "|",
    verbose: false,
    debug: undefined,
    json: false,
    yes: false,
    watch: false,
  }
  for (const { option, value } of parsed.seen) {
    const { spec } = option
    if (spec === undefined) return { kind: option === help ? "help" : "usage" }
    Object.assign(options, {
      [spec.sets]: spec.argument === undefined ? true : spec.argument === "INT" ? parseInt32(value) : value,
    })
  }
  return { kind: "run", options, words: parsed.words }
}

function numberFault(value: string): string | undefined {
  const parsed = parseInt32(value)
  return typeof parsed === "string" ? parsed : undefined
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
