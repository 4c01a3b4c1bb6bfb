// ctdb.conf: every option with its type, default and check in one table, from which the configuration's type, the parser, the
// reload rules and `ctdb-config dump` follow. Source: reference page "Configuration", sections 4 to 8. Parsing asks about
// files on disk only through FileProbe; reading the file itself is loadConfigFile. Nothing here prints.

import { readFileSync, statSync } from "node:fs"
import { parseAddress } from "./address.ts"
import { errnoOf, type Fault, type Parsed } from "./fault.ts"
import { parseCInteger, parseIni } from "./ini.ts"
import { LogLevel, parseLogLevel, parseLogLocation } from "./log.ts"
import { compiledIn } from "./paths.ts"

/** What checks of options need to know about the disk. */
export interface FileProbe {
  kind(path: string): "directory" | "file" | "other" | undefined
  /** The owner's execute bit. */
  executable(path: string): boolean
}

export const diskProbe: FileProbe = {
  kind(path) {
    const stat = statSync(path, { throwIfNoEntry: false })
    if (stat === undefined) return undefined
    return stat.isDirectory() ? "directory" : stat.isFile() ? "file" : "other"
  },
  executable(path) {
    return ((statSync(path, { throwIfNoEntry: false })?.mode ?? 0) & 0o100) !== 0
  },
}

interface CheckContext {
  readonly probe: FileProbe
  readonly etcDir: string
}

/** Nothing if the value is good, else the message the stock programs print ("" if only their generic one). */
type Check<T> = (value: T, context: CheckContext) => string | undefined

interface OptionOf<T> {
  readonly type: "string" | "integer" | "boolean"
  readonly key: string
  readonly defaultValue: T
  readonly check: Check<T>
  /** Can't be changed by a reload. */
  readonly fixed: boolean
  /** Not known to 4.17: `dump` shows it only if it is set. */
  readonly newest: boolean
  /** The option to use instead. */
  readonly deprecated: string | undefined
}

interface Extra<T> {
  readonly check?: Check<T>
  readonly fixed?: boolean
  readonly newest?: boolean
  readonly deprecated?: string
}

function option<T>(type: OptionOf<T>["type"], key: string, defaultValue: T, extra: Extra<T>): OptionOf<T> {
  return {
    type,
    key,
    defaultValue,
    check: extra.check ?? (() => undefined),
    fixed: extra.fixed ?? false,
    newest: extra.newest ?? false,
    deprecated: extra.deprecated,
  }
}

const text = (key: string, defaultValue: string, extra: Extra<string> = {}) =>
  option<string>("string", key, defaultValue, extra)

const optionalText = (key: string, extra: Extra<string> = {}) =>
  option<string | undefined>("string", key, undefined, {
    ...extra,
    check: (value, context) => (value === undefined ? undefined : extra.check?.(value, context)),
  })

const integer = (key: string, defaultValue: number, extra: Extra<number> = {}) =>
  option<number>("integer", key, defaultValue, extra)

const flag = (key: string, defaultValue: boolean, extra: Extra<boolean> = {}) =>
  option<boolean>("boolean", key, defaultValue, extra)

const invalidValue = (section: string, key: string, value: string | number) =>
  `Invalid value for [${section}] -> ${key} = ${value}`

const checkLocation: Check<string> = (value, { probe }) => {
  const location = parseLogLocation(value)
  if (location === undefined) return ""
  if (location.kind !== "file") return undefined
  const slash = location.path.lastIndexOf("/")
  const directory = slash < 0 ? "." : location.path.slice(0, Math.max(slash, 1))
  return probe.kind(directory) === "directory" ? undefined : ""
}

const checkDirectory =
  (key: string): Check<string> =>
  (value, { probe }) =>
    probe.kind(value) === "directory" ? undefined : `${key} "${value}" does not exist`

const checkScript =
  (key: string): Check<string> =>
  (value, { probe, etcDir }) => {
    const path = `${etcDir}/${baseName(value)}`
    const kind = probe.kind(path)
    if (kind === undefined) return `${key} ${path} does not exist`
    if (kind !== "file") return `${key} ${path} is not a file`
    return probe.executable(path) ? undefined : `${key} ${path} is not executable`
  }

/** POSIX basename(3): trailing slashes don't count. */
function baseName(path: string): string {
  const trimmed = path.replace(/\/+$/, "")
  return trimmed === "" ? "/" : trimmed.slice(trimmed.lastIndexOf("/") + 1)
}

const directory = (key: string, path: string) => text(key, path, { check: checkDirectory(key), fixed: true })

/** All options, in the order of `ctdb-config dump`. */
export const optionTable = {
  logging: {
    location: text("location", `file:${compiledIn.logFile}`, { check: checkLocation, fixed: true }),
    logLevel: text("log level", "ERROR", { check: (value) => (parseLogLevel(value) === undefined ? "" : undefined) }),
  },
  cluster: {
    transport: text("transport", "tcp", {
      check: (value) => (value === "tcp" ? undefined : invalidValue("cluster", "transport", value)),
      fixed: true,
    }),
    nodeAddress: optionalText("node address", {
      check: (value) =>
        value.startsWith("[") || parseAddress(value) === undefined
          ? invalidValue("cluster", "node address", value)
          : undefined,
      fixed: true,
    }),
    clusterLock: optionalText("cluster lock", { fixed: true }),
    recoveryLock: optionalText("recovery lock", { fixed: true, deprecated: "cluster lock" }),
    nodesList: optionalText("nodes list", { newest: true }),
    leaderTimeout: integer("leader timeout", 5, {
      check: (value) => (value > 0 ? undefined : invalidValue("cluster", "leader timeout", value)),
      fixed: true,
    }),
    leaderCapability: flag("leader capability", true, { fixed: true }),
  },
  database: {
    volatileDirectory: directory("volatile database directory", `${compiledIn.varDir}/volatile`),
    persistentDirectory: directory("persistent database directory", `${compiledIn.varDir}/persistent`),
    stateDirectory: directory("state database directory", `${compiledIn.varDir}/state`),
    lockDebugScript: optionalText("lock debug script", { check: checkScript("lock debug script") }),
    tdbMutexes: flag("tdb mutexes", true, { fixed: true }),
  },
  event: {
    debugScript: optionalText("debug script", { check: checkScript("debug script") }),
  },
  failover: {
    disabled: flag("disabled", false, { fixed: true }),
    shutdownExtraTimeout: integer("shutdown extra timeout", 0, { fixed: true, newest: true }),
    shutdownFailoverTimeout: integer("shutdown failover timeout", 10, { fixed: true, newest: true }),
  },
  legacy: {
    realtimeScheduling: flag("realtime scheduling", true, { fixed: true }),
    lmasterCapability: flag("lmaster capability", true, { fixed: true }),
    startAsStopped: flag("start as stopped", false, { fixed: true }),
    startAsDisabled: flag("start as disabled", false, { fixed: true }),
    scriptLogLevel: text("script log level", "ERROR", {
      check: (value) =>
        parseLogLevel(value) === undefined ? invalidValue("legacy", "script log level", value) : undefined,
      fixed: true,
    }),
  },
}

type Table = typeof optionTable
type ValueOfOption<O> = O extends OptionOf<infer T> ? T : never

/** All options' values. Timeouts are in seconds, directories and locks are as written. */
export type Configuration = {
  readonly [S in keyof Table]: { readonly [K in keyof Table[S]]: ValueOfOption<Table[S][K]> }
}

type OptionValue = string | number | boolean | undefined

/** One row of the table with the section it is in and the name its value has in Configuration. */
export interface OptionDescription {
  readonly section: keyof Table
  readonly field: string
  readonly key: string
  readonly type: "string" | "integer" | "boolean"
  readonly defaultValue: OptionValue
  readonly fixed: boolean
  readonly newest: boolean
  readonly deprecated: string | undefined
  check(value: OptionValue, context: CheckContext): string | undefined
}

export const sectionNames = Object.keys(optionTable) as readonly (keyof Table)[]

export const optionDescriptions: readonly OptionDescription[] = sectionNames.flatMap((section) =>
  Object.entries(optionTable[section] as Record<string, OptionOf<OptionValue>>).map(([field, row]) => ({
    section,
    field,
    ...row,
  })),
)

/** Section names are compared without case, keys with case. */
export function findOption(section: string, key: string): OptionDescription | undefined {
  const lower = section.toLowerCase()
  return optionDescriptions.find((candidate) => candidate.section === lower && candidate.key === key)
}

export function optionValue(configuration: Configuration, description: OptionDescription): OptionValue {
  return (configuration[description.section] as Record<string, OptionValue>)[description.field]
}

export function defaultConfiguration(): Configuration {
  return withValues(new Map())
}

function withValues(values: ReadonlyMap<OptionDescription, OptionValue>): Configuration {
  const sections: Record<string, Record<string, OptionValue>> = {}
  for (const description of optionDescriptions) {
    sections[description.section] ??= {}
    sections[description.section]![description.field] = values.get(description) ?? description.defaultValue
  }
  return sections as unknown as Configuration
}

/** What a fault of ctdb.conf means: `invalid` stops every reader, `unknown` only `ctdb-config validate`. */
export type ConfigFaultKind = "invalid" | "unknown" | "syntax" | "unreadable"

export interface ConfigFault extends Fault {
  readonly kind: ConfigFaultKind
  /** The lines that the stock programs print for it, none for what they pass over in silence. */
  readonly stock: readonly string[]
}

/** Something that works, but that the operator should know. */
export interface ConfigWarning extends Fault {
  /** The stock programs' line at WARNING, undefined if they say nothing. */
  readonly stock: string | undefined
}

export interface ConfigFile {
  /** Values in effect if the faults are disregarded: those of bad lines are left at their defaults. */
  readonly configuration: Configuration
  /** The options that the file sets to a good value, be it the default. */
  readonly explicit: ReadonlySet<OptionDescription>
  readonly faults: readonly ConfigFault[]
  readonly warnings: readonly ConfigWarning[]
}

/**
 * Parses a whole ctdb.conf. `configuration` holds the defaults alone when the file has a syntax error, because that is
 * what the stock programs do with it. Relative paths are relative to the working directory.
 */
export function parseConfig(content: string, source: string, etcDir: string, probe: FileProbe = diskProbe): ConfigFile {
  const { items, syntaxError } = parseIni(content)
  const faults: ConfigFault[] = []
  const warnings: ConfigWarning[] = []
  const values = new Map<OptionDescription, { readonly value: OptionValue; readonly line: number }>()
  const explicit = new Set<OptionDescription>()
  let section: string | undefined
  for (const item of items) {
    const { line } = item
    const unknown = (cause: string, stock: string) =>
      faults.push({ source, line, cause, kind: "unknown", stock: [stock] })
    const invalid = (cause: string, ...stock: string[]) => faults.push({ source, line, cause, kind: "invalid", stock })
    if (item.kind === "section") {
      section = sectionNames.find((name) => name === item.name.toLowerCase())
      if (section === undefined) unknown(`unknown section [${item.name}]`, `conf: unknown section [${item.name}]`)
      continue
    }
    const { key, value: valueText } = item
    if (valueText === undefined) continue
    if (section === undefined) {
      unknown(`option "${key}" is in no known section`, `conf: unknown section for option "${key}"`)
      continue
    }
    const description = findOption(section, key)
    if (description === undefined) {
      unknown(`unknown option [${section}] -> "${key}"`, `conf: unknown option [${section}] -> "${key}"`)
      continue
    }
    if (valueText === "") {
      invalid(`[${section}] -> "${key}" has no value`, `conf: empty value [${section}] -> "${key}"`)
      continue
    }
    const value = convert(description.type, valueText)
    if (value === undefined) {
      const expected = description.type === "boolean" ? "true, yes, false or no" : "a number from 0 to 2147483647"
      invalid(
        `invalid value [${section}] -> "${key}" = "${valueText}": expected ${expected}`,
        `conf: invalid value [${section}] -> "${key}" = "${valueText}"`,
      )
      continue
    }
    const objection = description.check(value, { probe, etcDir })
    if (objection !== undefined) {
      const cause = objection === "" ? `invalid value [${section}] -> "${key}" = "${valueText}"` : objection
      const generic = `conf: validation for option "${key}" failed`
      invalid(cause, ...(objection === "" ? [generic] : [objection, generic]))
      continue
    }
    if (description.deprecated !== undefined) {
      const stock = `Configuration option [${section}] -> ${key} is deprecated`
      warnings.push({ source, line, cause: `"${key}" is deprecated, use "${description.deprecated}"`, stock })
    }
    explicit.add(description)
    const earlier = values.get(description)
    if (earlier !== undefined && value === description.defaultValue) {
      // The stock parser drops a value that equals the default even if an earlier line set another (observed).
      const cause = `[${section}] -> "${key}" = "${valueText}" is ignored: line ${earlier.line} set another value`
      warnings.push({ source, line, cause: `${cause} and the default does not undo it`, stock: undefined })
      continue
    }
    values.set(description, { value, line })
  }
  if (syntaxError !== undefined) {
    const { line, cause } = syntaxError
    faults.push({ source, line, cause, kind: "syntax", stock: [] })
    return { configuration: defaultConfiguration(), explicit: new Set(), faults, warnings }
  }
  const configuration = withValues(new Map([...values].map(([description, { value }]) => [description, value])))
  return { configuration, explicit, faults, warnings }
}

function convert(type: OptionDescription["type"], valueText: string): OptionValue {
  if (type === "string") return valueText
  if (type === "boolean") {
    const lower = valueText.toLowerCase()
    if (lower === "true" || lower === "yes") return true
    return lower === "false" || lower === "no" ? false : undefined
  }
  const { value } = parseCInteger(valueText)
  return value < 0n || value > 0x7fff_ffffn ? undefined : Number(value)
}

/**
 * Reads and parses. A missing file has no faults and all defaults (`missing` is true); one that can't be read for another
 * reason has the one fault `unreadable`, which the stock programs pass over as they do a syntax error.
 */
export function loadConfigFile(
  path: string,
  etcDir: string,
  probe: FileProbe = diskProbe,
): ConfigFile & { readonly missing: boolean } {
  try {
    return { ...parseConfig(readFileSync(path, "utf8"), path, etcDir, probe), missing: false }
  } catch (error) {
    const reason = errnoOf(error)
    const configuration = defaultConfiguration()
    if (reason === "ENOENT") return { configuration, explicit: new Set(), faults: [], warnings: [], missing: true }
    const fault: ConfigFault = {
      source: path,
      line: 0,
      cause: `cannot be read: ${reason}`,
      kind: "unreadable",
      stock: [],
    }
    return { configuration, explicit: new Set(), faults: [fault], warnings: [], missing: false }
  }
}

/**
 * What a starting daemon makes of a file. Unknown names are told and ignored as by the stock daemon. Invalid values stop
 * the start as there. Syntax errors and unreadable files stop it too, unlike the stock daemon, which then starts with all
 * defaults and thus without its cluster lock: ours refuses knowingly.
 */
export function startConfiguration(file: ConfigFile): Parsed<{
  readonly configuration: Configuration
  /** Number of the level to start with. */
  readonly logLevel: number
  /** Unknown names, deprecated names and other things worth a line at WARNING. */
  readonly remarks: readonly Fault[]
}> {
  const faults = file.faults.filter((fault) => fault.kind !== "unknown")
  if (faults.length > 0) return { ok: false, faults }
  const remarks = [...file.faults, ...file.warnings]
  return { ok: true, value: { configuration: file.configuration, logLevel: daemonLogLevel(file), remarks } }
}

export interface Reload {
  /** The current values with those that may change taken from the file. */
  readonly configuration: Configuration
  /** One line at WARNING for each option that can't change at run time. */
  readonly ignored: readonly string[]
}

/** What a running program takes from a file it reads again; a failed reload changes nothing. */
export function reloadConfiguration(current: Configuration, file: ConfigFile): Parsed<Reload> {
  const faults = file.faults.filter((fault) => fault.kind !== "unknown")
  if (faults.length > 0) return { ok: false, faults }
  const values = new Map<OptionDescription, OptionValue>()
  const ignored: string[] = []
  for (const description of optionDescriptions) {
    const now = optionValue(current, description)
    const wanted = optionValue(file.configuration, description)
    if (description.fixed && wanted !== now)
      ignored.push(`Ignoring update of [${description.section}] -> ${description.key}`)
    values.set(description, description.fixed ? now : wanted)
  }
  return { ok: true, value: { configuration: withValues(values), ignored } }
}

/** The lock in effect: `cluster lock`, else its old name. */
export function clusterLock(configuration: Configuration): string | undefined {
  return configuration.cluster.clusterLock ?? configuration.cluster.recoveryLock
}

/**
 * The main daemon's level: the option if the file sets it, else NOTICE. (The table's default, which `dump` shows and the
 * event daemon uses, is ERROR; observed.)
 */
export function daemonLogLevel(file: ConfigFile): number {
  const set = [...file.explicit].some(({ section, key }) => section === "logging" && key === "log level")
  return (set ? parseLogLevel(file.configuration.logging.logLevel) : undefined) ?? LogLevel.NOTICE
}

/** The database directories that a daemon needs and does not make; each fault's cause is the stock daemon's message. */
export function missingDirectories(configuration: Configuration, probe: FileProbe = diskProbe): readonly string[] {
  const { volatileDirectory, persistentDirectory, stateDirectory } = configuration.database
  const wanted = { Volatile: volatileDirectory, Persistent: persistentDirectory, State: stateDirectory }
  return Object.entries(wanted)
    .filter(([, path]) => probe.kind(path) !== "directory")
    .map(([name, path]) => `${name} database directory ${path} does not exist`)
}

/** The text of one value in `dump` and `get`. */
export function optionText(value: OptionValue): string {
  return value === undefined ? "" : String(value)
}

/** `ctdb-config dump`: options at their defaults are comments; newest's options appear only if they differ. */
export function dumpConfiguration(configuration: Configuration): string {
  let out = ""
  for (const section of sectionNames) {
    out += `[${section}]\n`
    for (const description of optionDescriptions) {
      if (description.section !== section) continue
      const value = optionValue(configuration, description)
      const isDefault = value === description.defaultValue
      if (isDefault && description.newest) continue
      out += `\t${isDefault ? "# " : ""}${description.key} = ${optionText(value)}\n`
    }
  }
  return out
}
