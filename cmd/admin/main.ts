// The admin tool: reads the command line, finds the command, connects, checks `-n`, runs the command and turns what it
// throws into texts and an exit status. The order of these steps, and so of their errors, is the stock tool's (reference
// page "Admin tool", sections 1 and 2).

import type { Client } from "../../lib/client/client.ts"
import { BROKEN_SETUP_STATUS, BrokenSetupError, type Paths, resolvePaths } from "../../lib/config/paths.ts"
import { acceptsCount, type Command, commandHelp, commands, formerNames } from "./commands.ts"
import { parseUnsigned } from "./numbers.ts"
import { type Options, optionHelp, optionUsage, parseOptions } from "./options.ts"
import { type Mode, Output } from "./output.ts"
import { isTerminal } from "./tty.ts"

/** Seconds that a run may take when neither `-T` nor CTDB_TIMEOUT says. */
const DEFAULT_RUN_TIME = 120

export async function run(argv: readonly string[]): Promise<number> {
  const terminal = await isTerminal(1)
  const parsed = parseOptions(argv)
  const plain = new Output("text", "|")
  const finish = (status: number) => {
    plain.flush()
    return status
  }
  switch (parsed.kind) {
    case "error":
      plain.warn(parsed.text)
      return 1
    case "help":
      plain.print(optionHelp(terminal))
      return finish(0)
    case "usage":
      plain.print(optionUsage(terminal))
      return finish(0)
  }

  const { options, words } = parsed
  const maxRunTime = runTime(options)
  if (maxRunTime === undefined) {
    plain.warn("Invalid value CTDB_TIMEOUT")
    return 1
  }
  if (options.json && options.machine) {
    plain.warn("--json and -Y options are mutually exclusive")
    return 1
  }
  const name = words[0]
  if (name === undefined) {
    plain.print(optionHelp(terminal) + commandHelp(commands, terminal))
    return finish(1)
  }
  const command = commands.find((candidate) => candidate.name === name)
  if (command === undefined) {
    plain.warn(`Unknown command '${name}'`)
    if (await isTerminal(2)) plain.warn(hint(name))
    return 1
  }
  const mode: Mode = options.json ? "json" : options.machine ? "machine" : terminal ? "terminal" : "text"
  const output = new Output(mode, options.separator)
  limitRunTime(maxRunTime, output)
  const status = await runCommand(command, words.slice(1), options, output)
  output.flush()
  return status
}

/** Seconds; 0 for no limit. Undefined: CTDB_TIMEOUT is no number. */
function runTime(options: Options): number | undefined {
  if (options.maxRunTime !== 0) return options.maxRunTime
  const text = process.env.CTDB_TIMEOUT
  if (text === undefined) return DEFAULT_RUN_TIME
  const parsed = parseUnsigned(text)
  return parsed.ok ? Number(BigInt.asUintN(32, parsed.value)) : undefined
}

/**
 * Ends the process when the time is over. The stock tool also signals its whole process group, which outside test mode
 * is its caller's; this tool has no children that would need it.
 */
function limitRunTime(seconds: number, output: Output): void {
  if (seconds <= 0 || seconds > 2_000_000) return
  const timer = setTimeout(() => {
    output.warn("Maximum runtime exceeded - exiting")
    process.exit(1)
  }, seconds * 1000)
  timer.unref()
}

/** What a person meant who typed an unknown command. */
function hint(name: string): string {
  const former = formerNames[name]
  if (former !== undefined) return `  It is called "ctdb ${former}" now.`
  const near = commands
    .map((command) => command.name)
    .filter((known) => known.startsWith(name) || name.startsWith(known))
  return near.length > 0 ? `  Did you mean: ${near.join(", ")}?` : `  "ctdb" alone lists all commands.`
}

async function runCommand(
  command: Command,
  words: readonly string[],
  options: Options,
  output: Output,
): Promise<number> {
  const { exitStatus, Failure, Invocation, UsageError } = await import("./invocation.ts")
  let client: Client | undefined
  try {
    if (command.offline === true) {
      if (options.node !== -1) {
        output.warn(`Cannot specify node for command ${command.name}`)
        return 1
      }
    } else {
      client = await connect(output)
      if (client === undefined) return 1
    }

    const invocation = new Invocation(command, words, options, output, client)
    if (client !== undefined) {
      if (options.node !== -1) {
        const node = options.node >>> 0
        const { checkNode } = await import("./nodes.ts")
        await checkNode(invocation, node)
        if (command.local === true && node !== client.pnn) {
          output.warn(`Node cannot be specified for command ${command.name}`)
          return 1
        }
        invocation.chooseNode(node)
      }
      await invocation.followLeader()
    }
    if (!acceptsCount(command, words.length)) throw new UsageError()
    if (typeof command.load !== "function") {
      output.warn(`ctdb ${command.name}: ${command.load.instead}`)
      return 1
    }
    const handler = await command.load()
    if (!(await confirmed(invocation, options))) return 1
    return exitStatus(await handler(invocation))
  } catch (error) {
    if (error instanceof Failure) return exitStatus(error.status)
    if (error instanceof UsageError) {
      const list = command.misnamed === true && output.mode !== "terminal" ? undefined : [command]
      const options = list === undefined ? optionHelp(false) : optionUsage(output.mode === "terminal")
      output.print(options + commandHelp(list ?? commands))
      return 1
    }
    if (error instanceof BrokenSetupError) return brokenSetup(output, error)
    throw error
  } finally {
    output.flush()
    // The process ends next: what was sent without asking for an answer has to leave it first.
    await client?.close()
  }
}

/** Asks before a destructive command, when a person sits at both ends. */
async function confirmed(
  invocation: InstanceType<typeof import("./invocation.ts").Invocation>,
  options: Options,
): Promise<boolean> {
  const { ask } = invocation.command
  if (ask === undefined || options.yes || invocation.output.mode !== "terminal" || !(await isTerminal(0))) return true
  const terminal = await import("./terminal.ts")
  return await terminal.ask(ask(invocation.node, invocation.words))
}

/** Connects to the local daemon; undefined after the texts of a failed connection have been printed. */
async function connect(output: Output): Promise<Client | undefined> {
  const paths: Paths = resolvePaths(process.env)
  const [{ Client, ControlError }, { SysError }] = await Promise.all([
    import("../../lib/client/client.ts"),
    import("../../lib/sys/errno.ts"),
  ])
  // A path that does not fit into a socket address is cut, as the stock tool cuts it.
  const socket = Buffer.from(paths.daemonSocket).subarray(0, 107).toString()
  try {
    const client = await Client.connect({ socket })
    if (client.pnn < 0x8000_0000 && client.pnn >= 0) {
      client.onClosed = (reason) => {
        if (client.session.pendingRequests === 0) return
        closedByDaemon(output, reason)
      }
      return client
    }
  } catch (error) {
    if (error instanceof SysError) output.warn(`connect() failed, errno=${error.errno}`)
    else if (!(error instanceof ControlError)) throw error
  }
  output.warn(`Failed to connect to CTDB daemon (${paths.daemonSocket})`)
  const { explainMembership } = await import("./nodes-list.ts")
  explainMembership(output, process.env)
  return undefined
}

/** The stock tool says this at level NOTICE only, so scripts never see it. */
function closedByDaemon(output: Output, reason: string): void {
  if (output.mode === "terminal") output.warn(`connection to daemon closed, exiting (${reason})`)
}

/** Test mode without CTDB_BASE: the stock programs abort. */
function brokenSetup(output: Output, error: BrokenSetupError): number {
  output.warn(error.message)
  return BROKEN_SETUP_STATUS
}
