// The tunables: one table of name, default and place in the struct of GET_ALL_TUNABLES, look-up by name without case, and the
// ctdb.tunables file. Source: reference page "Configuration", sections 13 to 15. What a tunable does is not here.

import { readdirSync, readFileSync } from "node:fs"
import { errnoOf, type Fault } from "./fault.ts"
import { parseCInteger, parseIni } from "./ini.ts"

interface Row {
  /** Position in the struct of GET_ALL_TUNABLES (62 native 32-bit words). */
  readonly index: number
  readonly value: number
  /** Still stored and answered, used nowhere, left out of LIST_TUNABLES. */
  readonly obsolete?: true
}

/** In the order of LIST_TUNABLES and `ctdb listvars`, which is not that of the struct. */
export const tunableTable = {
  MaxRedirectCount: { index: 0, value: 3, obsolete: true },
  SeqnumInterval: { index: 1, value: 1000 },
  ControlTimeout: { index: 2, value: 60 },
  TraverseTimeout: { index: 3, value: 20 },
  KeepaliveInterval: { index: 4, value: 5 },
  KeepaliveLimit: { index: 5, value: 5 },
  RecoverTimeout: { index: 6, value: 30 },
  RecoverInterval: { index: 7, value: 1 },
  ElectionTimeout: { index: 8, value: 3 },
  TakeoverTimeout: { index: 9, value: 9 },
  MonitorInterval: { index: 10, value: 15 },
  TickleUpdateInterval: { index: 11, value: 20 },
  EventScriptTimeout: { index: 12, value: 30 },
  MonitorTimeoutCount: { index: 13, value: 20 },
  EventScriptUnhealthyOnTimeout: { index: 14, value: 0, obsolete: true },
  RecoveryGracePeriod: { index: 15, value: 120 },
  RecoveryBanPeriod: { index: 16, value: 300 },
  DatabaseHashSize: { index: 17, value: 100001 },
  DatabaseMaxDead: { index: 18, value: 5 },
  RerecoveryTimeout: { index: 19, value: 10 },
  EnableBans: { index: 20, value: 1 },
  DeterministicIPs: { index: 21, value: 0, obsolete: true },
  LCP2PublicIPs: { index: 41, value: 1, obsolete: true },
  ReclockPingPeriod: { index: 22, value: 60, obsolete: true },
  NoIPFailback: { index: 23, value: 0 },
  DisableIPFailover: { index: 24, value: 0, obsolete: true },
  VerboseMemoryNames: { index: 25, value: 0 },
  RecdPingTimeout: { index: 26, value: 60 },
  RecdFailCount: { index: 27, value: 10 },
  LogLatencyMs: { index: 28, value: 0 },
  RecLockLatencyMs: { index: 29, value: 1000 },
  RecoveryDropAllIPs: { index: 30, value: 120 },
  VerifyRecoveryLock: { index: 31, value: 1, obsolete: true },
  VacuumInterval: { index: 32, value: 10 },
  VacuumMaxRunTime: { index: 33, value: 120 },
  RepackLimit: { index: 34, value: 10000 },
  VacuumLimit: { index: 35, value: 5000, obsolete: true },
  VacuumFastPathCount: { index: 40, value: 60 },
  MaxQueueDropMsg: { index: 36, value: 1000000 },
  AllowUnhealthyDBRead: { index: 37, value: 0 },
  StatHistoryInterval: { index: 38, value: 1 },
  DeferredAttachTO: { index: 39, value: 120 },
  AllowClientDBAttach: { index: 42, value: 1 },
  RecoverPDBBySeqNum: { index: 43, value: 1, obsolete: true },
  DeferredRebalanceOnNodeAdd: { index: 44, value: 300, obsolete: true },
  FetchCollapse: { index: 45, value: 1 },
  HopcountMakeSticky: { index: 46, value: 50 },
  StickyDuration: { index: 47, value: 600 },
  StickyPindown: { index: 48, value: 200 },
  NoIPTakeover: { index: 49, value: 0 },
  DBRecordCountWarn: { index: 50, value: 100000 },
  DBRecordSizeWarn: { index: 51, value: 10000000 },
  DBSizeWarn: { index: 52, value: 100000000 },
  PullDBPreallocation: { index: 53, value: 10485760 },
  NoIPHostOnAllDisabled: { index: 54, value: 1, obsolete: true },
  Samba3AvoidDeadlocks: { index: 55, value: 0, obsolete: true },
  TDBMutexEnabled: { index: 56, value: 1, obsolete: true },
  LockProcessesPerDB: { index: 57, value: 200 },
  RecBufferSizeLimit: { index: 58, value: 1000000 },
  QueueBufferSize: { index: 59, value: 1024 },
  IPAllocAlgorithm: { index: 60, value: 2 },
  AllowMixedVersions: { index: 61, value: 0 },
} as const satisfies Record<string, Row>

export type TunableName = keyof typeof tunableTable

/** A node's tunables: one unsigned 32-bit number for each name, changed in place by SET_TUNABLE. */
export type Tunables = Record<TunableName, number>

export interface TunableDescription {
  readonly name: TunableName
  readonly index: number
  readonly defaultValue: number
  readonly obsolete: boolean
}

export const tunableDescriptions: readonly TunableDescription[] = Object.entries<Row>(tunableTable).map(
  ([name, row]) => ({
    name: name as TunableName,
    index: row.index,
    defaultValue: row.value,
    obsolete: row.obsolete === true,
  }),
)

const byLowerName = new Map(tunableDescriptions.map((tunable) => [tunable.name.toLowerCase(), tunable]))
const byIndex = [...tunableDescriptions].sort((a, b) => a.index - b.index)

export const TUNABLE_COUNT = tunableDescriptions.length

export function defaultTunables(): Tunables {
  const tunables: Partial<Tunables> = {}
  for (const { name, defaultValue } of tunableDescriptions) tunables[name] = defaultValue
  return tunables as Tunables
}

/** By name, case ignored. */
export function findTunable(name: string): TunableDescription | undefined {
  return byLowerName.get(name.toLowerCase())
}

/** Data of LIST_TUNABLES's reply: `:NAME:NAME...`, without the obsolete ones. */
export function tunableListText(): string {
  return tunableDescriptions
    .filter((tunable) => !tunable.obsolete)
    .map((tunable) => `:${tunable.name}`)
    .join("")
}

/** The 62 words of GET_ALL_TUNABLES in their order. */
export function tunablesToWords(tunables: Tunables): number[] {
  return byIndex.map((tunable) => tunables[tunable.name])
}

/** The same backwards; words beyond the known ones are ignored, missing ones keep their default. */
export function tunablesFromWords(words: readonly number[]): Tunables {
  const tunables = defaultTunables()
  for (const { name, index } of byIndex) tunables[name] = words[index] ?? tunables[name]
  return tunables
}

/** A number as ctdb.tunables and `ctdb setvar` take it: C notation, the whole text, 32 bits kept. */
export function parseTunableValue(text: string): number | undefined {
  const { value, rest } = parseCInteger(text)
  if (rest !== "" || text === "" || value < 0n || text.includes("-")) return undefined
  return value > 0xffff_ffff_ffff_ffffn ? undefined : Number(BigInt.asUintN(32, value))
}

export interface TunableSettings {
  readonly values: ReadonlyMap<TunableName, number>
  /** Never fatal: the good lines apply. */
  readonly faults: readonly TunableFault[]
}

export interface TunableFault extends Fault {
  /** What the stock daemon logs behind its prefix. */
  readonly stock: string
}

/** Parses one tunables file. */
export function parseTunables(text: string, source: string): TunableSettings {
  const values = new Map<TunableName, number>()
  const faults: TunableFault[] = []
  const { items, syntaxError } = parseIni(text)
  const fault = (line: number, cause: string, stock: string) => faults.push({ source, line, cause, stock })
  for (const item of items) {
    if (item.kind === "section") {
      const stock = `Invalid line for section [${item.name}] - sections not supported `
      fault(item.line, `sections are not supported here: [${item.name}]`, stock)
      continue
    }
    const { key, value: valueText, line } = item
    if (valueText === undefined || valueText === "") {
      fault(line, `"${key}" has no value: expected NAME = NUMBER`, `Invalid line containing "${key}"`)
      continue
    }
    const tunable = findTunable(key)
    if (tunable === undefined) {
      fault(line, `unknown tunable "${key}"`, `Unknown tunable "${key}"`)
      continue
    }
    const value = parseTunableValue(valueText)
    if (value === undefined) {
      const cause = `invalid value "${valueText}" for tunable "${key}": expected an unsigned number`
      fault(line, cause, `Invalid value "${valueText}" for tunable "${key}"`)
      continue
    }
    if (tunable.obsolete) fault(line, `obsolete tunable "${key}" has no effect`, `Obsolete tunable "${key}"`)
    values.set(tunable.name, value)
  }
  if (syntaxError !== undefined) fault(syntaxError.line, `${syntaxError.cause}; the rest is ignored`, "Syntax error")
  return { values, faults }
}

export interface LoadedTunables extends TunableSettings {
  /** Files that were read, in order. */
  readonly files: readonly string[]
  /** True if the main file does not exist, which is fine. */
  readonly missing: boolean
}

/** Reads the tunables file, then `*.tunables` of the directory in name order; later settings win. Never throws. */
export function loadTunables(file: string, directory?: string): LoadedTunables {
  const values = new Map<TunableName, number>()
  const faults: TunableFault[] = []
  const files: string[] = []
  let missing = false
  for (const path of [file, ...(directory === undefined ? [] : tunablesFilesIn(directory))]) {
    let text: string
    try {
      text = readFileSync(path, "utf8")
    } catch (error) {
      const reason = errnoOf(error)
      if (reason === "ENOENT") missing ||= path === file
      else faults.push({ source: path, line: 0, cause: `cannot be read: ${reason}`, stock: `Failed to open ${path}` })
      continue
    }
    files.push(path)
    const parsed = parseTunables(text, path)
    for (const [name, value] of parsed.values) values.set(name, value)
    faults.push(...parsed.faults)
  }
  return { values, faults, files, missing }
}

function tunablesFilesIn(directory: string): string[] {
  try {
    return readdirSync(directory)
      .filter((name) => name.endsWith(".tunables") && !name.startsWith("."))
      .sort()
      .map((name) => `${directory}/${name}`)
  } catch {
    return []
  }
}

/** Applies settings onto a node's tunables. */
export function applyTunables(tunables: Tunables, settings: Pick<TunableSettings, "values">): void {
  for (const [name, value] of settings.values) tunables[name] = value
}
