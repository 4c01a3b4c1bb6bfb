// `ctdb-path`: prints where a node's files are. Scripts call it, so output, errors and statuses are the stock program's to the
// byte (reference page "Configuration", section 9), oddities such as a usage printed twice included.

import {
  BROKEN_SETUP_STATUS,
  BrokenSetupError,
  type Paths,
  pidFile,
  resolvePaths,
  socketFile,
} from "../lib/config/paths.ts"
import { type PoptOption, parsePopt } from "./popt.ts"

interface PathCommand {
  /** The words that pick it. */
  readonly words: readonly string[]
  /** How its one argument is shown, if it takes one. */
  readonly argument?: string
  readonly help: string
  path(paths: Paths, argument: string): string
}

const directories = { datadir: "dataDir", etcdir: "etcDir", rundir: "runDir", vardir: "varDir" } as const

const commands: readonly PathCommand[] = [
  { words: ["config"], help: "Get path of CTDB config file", path: (paths) => paths.configFile },
  {
    words: ["pidfile"],
    argument: "<daemon>",
    help: "Get path of CTDB daemon pidfile",
    path: (paths, daemon) => pidFile(paths.runDir, daemon),
  },
  {
    words: ["socket"],
    argument: "<daemon>",
    help: "Get path of CTDB daemon socket",
    path: (paths, daemon) => (daemon === "ctdbd" ? paths.daemonSocket : socketFile(paths.runDir, daemon)),
  },
  ...Object.entries(directories).flatMap(([name, field]): PathCommand[] => [
    {
      words: [name, "append"],
      argument: "<path>",
      help: `Get path relative to CTDB ${name.toUpperCase()}`,
      path: (paths, path) => `${paths[field]}/${path}`,
    },
    { words: [name], help: `Get path of CTDB ${name.toUpperCase()}`, path: (paths) => paths[field] },
  ]),
]

const helpOption: PoptOption = { long: "help", short: "h", takesValue: false }

function shown(command: PathCommand): string {
  return [...command.words, ...(command.argument === undefined ? [] : [command.argument])].join(" ")
}

function usage(): string {
  const width = Math.max(...commands.map((command) => shown(command).length))
  const lines = commands.map((command) => `  ${shown(command).padEnd(width)}     ${command.help}\n`)
  return [
    "Usage: ctdb-path [<options>] <command> [<args>]\n\nHelp Options:\n",
    "  -h, --help     Show this help message\n\nCommands:\n",
    ...lines,
  ].join("")
}

function commandUsage(command: PathCommand): string {
  const gap = command.argument === undefined ? "      " : "     "
  return `Usage: ctdb-path [-h] [-h|--help] <command> [<args>]\n\n  ${shown(command)}${gap}${command.help}\n`
}

export async function run(argv: readonly string[]): Promise<number> {
  const parsed = parsePopt(argv, [helpOption])
  if (parsed.kind === "error") {
    process.stderr.write(`Invalid option ${parsed.what}: ${parsed.why}\n`)
    process.stdout.write(usage() + usage())
    return 1
  }
  const { words, seen } = parsed
  const command = commands.find((candidate) => candidate.words.every((word, index) => words[index] === word))
  if (seen.length > 0 || command === undefined) {
    process.stdout.write((command === undefined ? usage() : commandUsage(command)) + usage())
    return 1
  }
  const rest = words.slice(command.words.length)
  if (rest.length !== (command.argument === undefined ? 0 : 1)) {
    process.stdout.write(commandUsage(command))
    return 22
  }
  try {
    process.stdout.write(`${command.path(resolvePaths(process.env), rest[0] ?? "")}\n`)
    return 0
  } catch (error) {
    if (!(error instanceof BrokenSetupError)) throw error
    process.stderr.write(`${error.message}\n`)
    return BROKEN_SETUP_STATUS
  }
}
