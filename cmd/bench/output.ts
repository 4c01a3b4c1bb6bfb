// Results as text: a table for people and pipes, and the JSON form. The page with charts is page.ts.

import type { Machine } from "./machine.ts"
import type { Latency, Measured, Row } from "./measure.ts"
import { figure } from "./progress.ts"
import type { Spread } from "./statistics.ts"

/** Everything that one call of the program found out. */
export interface Result {
  readonly when: string
  readonly version: string
  readonly machine: Machine
  readonly command: string
  readonly targets: readonly string[]
  readonly seconds: number
  readonly samples: number
  readonly warmup: number
  readonly rows: readonly Row[]
  /** Rows that could not be measured at all. */
  readonly failures: readonly { readonly title: string; readonly reason: string }[]
}

export const violationsOf = (result: Result): string[] =>
  result.rows.flatMap(({ title, targets }) =>
    targets.flatMap(({ target, violations }) => violations.map((text) => `${title}, ${target}: ${text}`)),
  )

/** "1 234 (1 200 .. 1 300)" */
const spreadText = ({ median, least, most }: Spread): string =>
  Number.isNaN(median)
    ? "-"
    : least === most
      ? figure(median)
      : `${figure(median)} (${figure(least)} .. ${figure(most)})`

const ratioText = ({ median, least, most }: Spread): string =>
  Number.isNaN(median) ? "-" : `${median.toFixed(2)} (${least.toFixed(2)} .. ${most.toFixed(2)})`

const us = (value: number | undefined): string => (value === undefined ? "-" : figure(value))

const latencyText = (latency: Latency | undefined): string =>
  latency === undefined ? "-" : `${figure(latency.p50)} / ${figure(latency.p99)} / ${figure(latency.max)}`

/** Heads and cells of the table. */
export function tableOf(result: Result): Cells {
  const compared = result.targets.length > 1
  const head = [
    "Load",
    "Unit",
    ...result.targets,
    ...(compared ? ["Ratio"] : []),
    "Latency us p50/p99/max",
    "Client us",
    "Daemon us",
    "Others' load",
  ]
  const each = (row: Row, text: (side: Measured) => string): string => {
    const texts = row.targets.map(text)
    return texts.every((other) => other === "-") ? "-" : texts.join(" | ")
  }
  const rows = result.rows.map((row) => [
    row.title,
    row.unit,
    ...row.targets.map(({ value }) => spreadText(value)),
    ...(compared ? [row.ratio === undefined ? "-" : ratioText(row.ratio)] : []),
    each(row, ({ latency }) => latencyText(latency)),
    each(row, ({ clientUs }) => us(clientUs)),
    each(row, ({ daemonUs }) => us(daemonUs)),
    Number.isNaN(row.foreign) ? "-" : `${Math.round(row.foreign * 100)}%`,
  ])
  return { head, rows }
}

export interface Cells {
  readonly head: readonly string[]
  readonly rows: readonly (readonly string[])[]
}

/** Columns that give way first when a terminal is too narrow. */
const DISPENSABLE = ["Others' load", "Daemon us", "Client us", "Latency us p50/p99/max"]
/** What the table puts around a cell's text. */
const AROUND = 4

/** The table in `width` columns of a terminal: without what has no room, and the names of what that is. */
export function fitted(cells: Cells, width: number): Cells & { readonly left: readonly string[] } {
  const left: string[] = []
  let { head, rows } = cells
  const wide = (): boolean =>
    head.reduce((sum, title, at) => sum + AROUND + Math.max(title.length, ...rows.map((row) => row[at]!.length)), 0) >
    width
  for (const name of DISPENSABLE) {
    const column = head.indexOf(name)
    if (!wide() || column < 0) continue
    left.unshift(name)
    head = head.toSpliced(column, 1)
    rows = rows.map((row) => row.toSpliced(column, 1))
  }
  if (wide()) {
    left.push("spreads")
    rows = rows.map((row) => row.map((cell, column) => (column === 0 ? cell : cell.replace(/ \(.* \.\. .*\)$/, ""))))
  }
  return { head, rows, left }
}

/** The table with plain spaces, for pipes. */
export function plainTable({ head, rows }: Cells): string {
  const widths = head.map((title, column) => Math.max(title.length, ...rows.map((row) => row[column]!.length)))
  const line = (cells: readonly string[]): string =>
    cells
      .map((cell, column) => (column < 2 ? cell.padEnd(widths[column]!) : cell.padStart(widths[column]!)))
      .join("  ")
      .trimEnd()
  return `${[line(head), ...rows.map(line)].join("\n")}\n`
}

/** What must be known to read the table. */
export function footnotes(result: Result): string {
  const { machine, samples, seconds, warmup } = result
  const lines = [
    `${machine.processors} processors (${machine.model}), ${machine.memoryGb} GB, Linux ${machine.kernel}.`,
    `Median (least .. most) of ${samples} samples of ${figure(seconds / samples)} s after ${figure(warmup)} s of warm-up.`,
    "Recoveries and memory are sampled one by one.",
    ...(result.targets.length > 1
      ? [`Targets were measured by turns. Ratio: how many times better ${result.targets[0]} is, of each turn.`]
      : []),
    "Latencies: a run of their own, with what a client that waits could not begin (coordinated omission).",
    "Client us, daemon us: processor time of one operation in all client processes and in all daemons.",
    "Others' load: share of the machine that other processes used meanwhile.",
  ]
  return `${lines.join("\n")}\n`
}
