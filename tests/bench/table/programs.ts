// Rows that the other programs of tests/bench measure: the TDB engine beside libtdb, recoveries, starts. Runs them and reads what they
// print.

import { join } from "node:path"
import { figure } from "../../../cmd/bench/progress.ts"
import { output } from "./clusters.ts"
import { compared, type Line, limited } from "./lines.ts"

const here = join(import.meta.dir, "..")
const program = (name: string, ...words: string[]): Promise<string> =>
  output([process.execPath, join(here, name), ...words])

/** libtdb's time by ours that is asked for, by the beginning of the name. */
const ENGINE: readonly (readonly [start: RegExp, least: number])[] = [
  [/^locked fetch\+store, fcntl/, 0.9],
  [/^(locked fetch|the same, \d|insert|traverse of a million|commit of .*, (synced|libtdb's sync calls))/, 1],
]

const ENGINE_SECTION = "The TDB engine beside libtdb, one operation"

export async function engineLines(): Promise<Line[]> {
  const lines: Line[] = []
  let syncs: { ours?: string; libtdb?: string } = {}
  for (const text of (await program("tdb.ts")).split("\n")) {
    const sync = /^ +syncs of a commit, (ours|libtdb): (.+)$/.exec(text)
    if (sync !== null) {
      syncs = { ...syncs, [sync[1]!]: sync[2]! }
      const { ours, libtdb } = syncs
      if (ours === undefined || libtdb === undefined) continue
      lines.push(limited(ENGINE_SECTION, `${lines.at(-1)?.what}: calls`, [ours, libtdb]))
      syncs = {}
      continue
    }
    const found = /^(.+?) +libtdb +([\d.]+ \S+) +ours +([\d.]+ \S+) +ratio ([\d.]+)/.exec(text)
    if (found === null) continue
    const [, what = "", stock = "", ours = "", number] = found
    const ratio = Number(number)
    const least = ENGINE.find(([start]) => start.test(what))?.[1]
    lines.push({
      section: ENGINE_SECTION,
      what,
      ours,
      stock,
      daemon: { median: ratio, least: ratio, most: ratio },
      ...(least === undefined ? {} : { target: `>= ${least}`, holds: ratio >= least }),
    })
  }
  return lines
}

type Numbers = Readonly<Record<string, number | undefined>>
interface Measurement {
  readonly records: number
  readonly databases: number
  readonly ours: Numbers
  readonly stock: Numbers
}

const measurements = (text: string): Measurement[] =>
  text.split("\n").flatMap((line) => (line.startsWith("{") ? [JSON.parse(line) as Measurement] : []))

const SECTION = "Recovery"
const sized = ({ records, databases }: Measurement): string =>
  `${figure(records)} records in ${databases} ${databases === 1 ? "database" : "databases"}`

/** Records in total x databases. */
/** Most databases only where they decide: two hundred take minutes on stock nodes. */
const SIZES = [
  ...[1, 10].map((databases) => `10000x${databases}`),
  ...[1, 10, 50, 200].map((databases) => `100000x${databases}`),
  ...[1, 10].map((databases) => `1000000x${databases}`),
]

/** Both recovery helpers on the same stock nodes. */
export async function helperLines(): Promise<Line[]> {
  const found = measurements(await program("recovery.ts", ...SIZES))
  const lines = found.flatMap((one): Line[] => {
    const asked = { section: SECTION, better: "less" as const }
    const { ours, stock } = one
    const what = `recovery helper, ${sized(one)}`
    const least = one.records >= 100_000 ? 2 : 1
    return [
      compared({ ...asked, what: `${what}: time`, unit: "s", least }, [ours.seconds!], [stock.seconds!]),
      compared(
        { ...asked, what: `${what}: peak memory`, unit: "MB", ...(one.records >= 1_000_000 ? { least: 4 } : {}) },
        [ours.megabytes!],
        [stock.megabytes!],
      ),
    ]
  })
  return [...lines, ...growthLines(found, "seconds", "recovery helper")]
}

/** How the time grows with the records, where both sizes were measured. */
function growthLines(found: readonly Measurement[], key: string, who: string): Line[] {
  return found.flatMap((large): Line[] => {
    const small = found.find(
      ({ records, databases }) => records * 10 === large.records && databases === large.databases,
    )
    if (small === undefined || small.records < 100_000) return []
    const growth = (side: "ours" | "stock") => large[side][key]! / small[side][key]!
    const what = `${who}, time for ${sized(large)} by that for ${figure(small.records)}`
    const texts = [`${growth("ours").toFixed(1)} times`, `${growth("stock").toFixed(1)} times`] as const
    return [limited(SECTION, what, texts, { text: "<= 10", holds: growth("ours") <= 10 })]
  })
}

/** What whole nodes do, ours and then stock ones, with the same records. */
export async function nodeRecoveryLines(): Promise<Line[]> {
  const sizes = ["10000x1", "10000x10", "100000x10", "100000x50", "100000x200", "1000000x10"]
  const found = measurements(await program("recovery.ts", "nodes", ...sizes))
  const growth = growthLines(found, "first", "recovery of nodes, records only their owners hold")
  return [...found.flatMap(linesOfNodes), ...growth]
}

function linesOfNodes(one: Measurement): Line[] {
  const asked = { section: SECTION, better: "less" as const, unit: "s" }
  const { ours, stock } = one
  const least = one.records >= 100_000 ? 2 : 1
  const rows = [
    { key: "first", what: "recovery of nodes, records only their owners hold", least },
    { key: "alike", what: "recovery of nodes, all hold the same", least },
    { key: "killed", what: "kill -9 of a member until NORMAL", least: 1 },
  ] as const
  const lines = rows.flatMap(({ key, what, least }) => {
    const [mine, theirs] = [ours[key], stock[key]]
    if (mine === undefined || theirs === undefined || !(mine > 0 && theirs > 0)) return []
    return [compared({ ...asked, what: `${what}, ${sized(one)}`, least }, [mine], [theirs])]
  })
  const megabytes = (key: "megabytes" | "daemonMegabytes", what: string, few: { readonly least?: number } = {}) =>
    compared(
      { ...asked, what: `${what}, pages of their own, ${sized(one)}`, unit: "MB", ...few },
      [ours[key]!],
      [stock[key]!],
    )
  const few = one.records >= 1_000_000 ? { least: 4 } : {}
  lines.push(megabytes("megabytes", "peak memory of the leader's recovery processes", few))
  lines.push(megabytes("daemonMegabytes", "growth of the leader's daemon at its peak"))
  if (ours.stallMs !== undefined && stock.stallMs !== undefined) {
    const texts = [`${figure(ours.stallMs)} ms`, `${figure(stock.stallMs)} ms`] as const
    const limit = { text: "<= 50 ms", holds: ours.stallMs <= 50 }
    lines.push(limited(SECTION, `longest stall of a node's loop, ${sized(one)}`, texts, limit))
  }
  return lines
}

export async function startLines(): Promise<Line[]> {
  const text = await program("cluster.ts", "2")
  return [...text.matchAll(/^(.+) \((\S+)\) +([\d.]+) +([\d.]+) {2}/gm)].flatMap(
    ([, what = "", unit = "", stock, ours]) =>
      // The others are rows of `ctdb bench` already.
      /ring|round trip|resident/.test(what)
        ? []
        : [
            compared(
              {
                section: "Start and rest",
                what,
                unit,
                better: "less",
                ...(/^(start of three|ctdb version)/.test(what) ? { least: 1 } : {}),
              },
              [Number(ours)],
              [Number(stock)],
            ),
          ],
  )
}
