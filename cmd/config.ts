// `ctdb-config`: dumps, queries and checks ctdb.conf without a daemon. Scripts live by its statuses (0 with an empty line: known
// but not set; 2: this version does not know the option), so output, errors and statuses are the stock program's to the byte
// (reference page "Configuration", section 8). The newest version's options are known besides; `dump` shows them only if set.

import { readFileSync } from "node:fs"
import {
  type ConfigFault,
  type ConfigFile,
  defaultConfiguration,
  diskProbe,
  dumpConfiguration,
  type FileProbe,
  findOption,
  optionText,
  optionValue,
  parseConfig,
} from "../lib/config/config-file.ts"
import { LogLevel, parseLogLevel } from "../lib/config/log.ts"
import { BROKEN_SETUP_STATUS, BrokenSetupError, type Paths, resolvePaths } from "../lib/config/paths.ts"
import { type PoptOption, parsePopt } from "./popt.ts"

const EINVAL = 22
const ENOENT = 2

interface ConfigCommand {
  readonly name: string
  readonly shown: string
  readonly argumentCount: number
  readonly help: string
  run(paths: Paths, level: number, words: readonly string[]): number
}

const commands: readonly ConfigCommand[] = [
  { name: "dump", shown: "dump", argumentCount: 0, help: "Dump configuration", run: dump },
  { name: "get", shown: "get <section> <key>", argumentCount: 2, help: "Get a config value", run: get },
  { name: "validate", shown: "validate", argumentCount: 0, help: "Validate configuration file", run: validate },
]

const options: readonly PoptOption[] = [
  { long: "help", short: "h", takesValue: false, ends: true },
  { long: "debug", short: "d", takesValue: true },
  { long: "usage", takesValue: false, ends: true },
  { long: "popt-help", short: "?", takesValue: false, ends: true },
]

const synopsis =
  "Usage: ctdb-config [-h?] [-h|--help] [-?|--help] [--usage]\n        [-d|--debug=ERROR|WARNING|NOTICE|INFO|DEBUG]"

const optionHelp = `
Help Options:
  -h, --help                                      Show this help message

Options:
  -d, --debug=ERROR|WARNING|NOTICE|INFO|DEBUG     debug level

Help options:
  -?, --help                                      Show this help message
      --usage                                     Display brief usage message
`

function usage(): string {
  const width = Math.max(...commands.map((command) => command.shown.length))
  const lines = commands.map((command) => `  ${command.shown.padEnd(width)}     ${command.help}\n`)
  return `Usage: ctdb-config [<options>] <command> [<args>]\n${optionHelp}\nCommands:\n${lines.join("")}`
}

function commandUsage(command: ConfigCommand): string {
  const gap = command.argumentCount === 0 ? "      " : "     "
  return `${synopsis} <command> [<args>]\n\n  ${command.shown}${gap}${command.help}\n`
}

export async function run(argv: readonly string[]): Promise<number> {
  const parsed = parsePopt(argv, options)
  if (parsed.kind === "error") {
    process.stderr.write(`Invalid option ${parsed.what}: ${parsed.why}\n`)
    process.stdout.write(usage() + usage())
    return 1
  }
  let level: number = LogLevel.ERROR
  for (const { option, value } of parsed.seen) {
    if (option.long === "debug") level = parseLogLevel(value) ?? level
    if (option.long === "help" || option.long === "usage") {
      process.stdout.write(`${synopsis}\n`)
      return 0
    }
    if (option.long === "popt-help") {
      process.stdout.write(`Usage: ctdb-config [OPTION...]\n${optionHelp}`)
      return 0
    }
  }
  const [name, ...words] = parsed.words
  const command = commands.find((candidate) => candidate.name === name)
  if (command === undefined) {
    process.stdout.write(usage() + usage())
    return 1
  }
  if (words.length !== command.argumentCount) {
    process.stdout.write(commandUsage(command))
    return EINVAL
  }
  try {
    return command.run(resolvePaths(process.env), level, words)
  } catch (error) {
    if (!(error instanceof BrokenSetupError)) throw error
    process.stderr.write(`${error.message}\n`)
    return BROKEN_SETUP_STATUS
  }
}

/** Bytes are kept as they are: one character for each, in and out, and in the paths that checks look at. */
const bytesOf = (text: string) => Buffer.from(text, "latin1")

const byteProbe: FileProbe = {
  kind: (path) => diskProbe.kind(bytesOf(path).toString()),
  executable: (path) => diskProbe.executable(bytesOf(path).toString()),
}

type Content = { readonly missing: true } | { readonly missing: false; readonly file: ConfigFile }

/** The file as every command reads it, with the messages at NOTICE, WARNING and (if lenient) DEBUG told on stderr. */
function read(paths: Paths, level: number): Content {
  if (level >= LogLevel.NOTICE) tell([`Reading config file ${paths.configFile}`])
  let content: string
  try {
    content = readFileSync(paths.configFile).toString("latin1")
  } catch (error) {
    if (error instanceof Error && "code" in error && error.code === "ENOENT") return { missing: true }
    content = ""
  }
  return { missing: false, file: parseConfig(content, paths.configFile, bytesOf(paths.etcDir).toString(), byteProbe) }
}

function tell(lines: readonly string[]): void {
  for (const line of lines) process.stderr.write(bytesOf(`${line}\n`))
}

/** Faults and warnings in the file's order, as the stock parser meets them. True if the file is good. */
function report(paths: Paths, level: number, file: ConfigFile, strict: boolean): boolean {
  const unknownLevel = strict ? LogLevel.ERROR : LogLevel.DEBUG
  const lines: { readonly line: number; readonly texts: readonly string[] }[] = []
  for (const fault of file.faults) {
    if (fault.kind === "unknown" && level < unknownLevel) continue
    lines.push({ line: fault.line, texts: strict ? fault.stock : fault.stock.map(leniently) })
  }
  for (const warning of file.warnings) {
    if (warning.stock !== undefined && level >= LogLevel.WARNING)
      lines.push({ line: warning.line, texts: [warning.stock] })
  }
  for (const { texts } of lines.sort((a, b) => a.line - b.line)) tell(texts)
  const good = !file.faults.some((fault) => stops(fault, strict))
  if (!good) tell([`Failed to load config file ${paths.configFile}`])
  return good
}

function stops(fault: ConfigFault, strict: boolean): boolean {
  return fault.kind === "invalid" || (strict && fault.kind === "unknown")
}

const leniently = (line: string) => line.replace(/^conf: unknown section \[/, "conf: ignoring unknown section [")

function dump(paths: Paths, level: number): number {
  const content = read(paths, level)
  if (!content.missing && !report(paths, level, content.file, false)) return EINVAL
  const configuration = content.missing ? defaultConfiguration() : content.file.configuration
  process.stdout.write(bytesOf(dumpConfiguration(configuration)))
  return 0
}

function get(paths: Paths, level: number, words: readonly string[]): number {
  const [section = "", key = ""] = words
  const option = findOption(section, key)
  if (option === undefined) {
    process.stderr.write(`Configuration option [${section}] -> "${key}" not defined\n`)
    return ENOENT
  }
  const content = read(paths, level)
  if (!content.missing && !report(paths, level, content.file, false)) return EINVAL
  const configuration = content.missing ? defaultConfiguration() : content.file.configuration
  process.stdout.write(bytesOf(`${optionText(optionValue(configuration, option))}\n`))
  return 0
}

function validate(paths: Paths, level: number): number {
  const content = read(paths, level)
  if (content.missing) {
    tell([`Failed to load config file ${paths.configFile}`])
    return ENOENT
  }
  return report(paths, level, content.file, true) ? 0 : EINVAL
}
