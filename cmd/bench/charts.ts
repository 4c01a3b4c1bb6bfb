// Charts as SVG text: throughput over time, latency percentiles, and ratios with their spreads. Colours are classes, so that the page decides
// about light and dark. Draws numbers; knows nothing of what they mean.

import { figure } from "./progress.ts"
import type { Spread } from "./statistics.ts"

export const escapeHtml = (text: string): string =>
  text.replace(/[&<>"]/g, (sign) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[sign] ?? sign)

const text = (
  x: number,
  y: number,
  content: string,
  anchor: "start" | "middle" | "end" = "start",
  kind = "label",
): string =>
  `<text x="${x.toFixed(1)}" y="${y.toFixed(1)}" text-anchor="${anchor}" class="${kind}">${escapeHtml(content)}</text>`

const line = (x1: number, y1: number, x2: number, y2: number, kind: string): string =>
  `<line x1="${x1.toFixed(1)}" y1="${y1.toFixed(1)}" x2="${x2.toFixed(1)}" y2="${y2.toFixed(1)}" class="${kind}"/>`

function svg(width: number, height: number, label: string, body: string): string {
  return `<svg viewBox="0 0 ${width} ${height}" width="${width}" height="${height}" role="img" aria-label="${escapeHtml(label)}">${body}</svg>`
}

/** The next of 1, 2, 5, 10... that is not below. */
function roundUp(value: number): number {
  const unit = 10 ** Math.floor(Math.log10(value))
  return ([1, 2, 5, 10].find((step) => step * unit >= value) ?? 10) * unit
}

/** 1500000 as "1.5 M". */
export function short(value: number): string {
  if (value >= 1e6) return `${figure(value / 1e6).replace(/\.?0+$/, "")} M`
  if (value >= 1e4) return `${figure(value / 1e3).replace(/\.0+$/, "")} k`
  return figure(value)
    .replace(/(\.\d*?)0+$/, "$1")
    .replace(/\.$/, "")
}

/** A gap in time between two points that is longer than this is not bridged (s): another target had its turn. */
const GAP_S = 0.35

export interface Line {
  readonly name: string
  readonly points: readonly (readonly [number, number])[]
}

/** Throughput over time. */
export function timeChart(lines: readonly Line[], unit: string): string {
  const [width, height, left, right, top, bottom] = [520, 190, 62, 12, 14, 26]
  const all = lines.flatMap(({ points }) => points)
  const lastX = Math.max(1, ...all.map(([x]) => x))
  const topY = roundUp(Math.max(1e-9, ...all.map(([, y]) => y)))
  const x = (value: number): number => left + (value / lastX) * (width - left - right)
  const y = (value: number): number => height - bottom - (value / topY) * (height - top - bottom)
  const parts: string[] = []
  for (const share of [0, 0.5, 1]) {
    parts.push(line(left, y(topY * share), width - right, y(topY * share), "grid"))
    parts.push(text(left - 6, y(topY * share) + 4, short(topY * share), "end"))
  }
  for (let i = 0; i <= 4; i++) {
    parts.push(
      text(
        x((lastX * i) / 4),
        height - 8,
        `${figure((lastX * i) / 4).replace(/\.?0+$/, "") || "0"} s`,
        i === 0 ? "start" : i === 4 ? "end" : "middle",
      ),
    )
  }
  for (const [index, { points }] of lines.entries()) {
    let path = ""
    let lastX: number | undefined
    for (const [time, rate] of points) {
      path += `${lastX !== undefined && time - lastX < GAP_S ? "L" : "M"}${x(time).toFixed(1)} ${y(rate).toFixed(1)}`
      lastX = time
      parts.push(`<circle cx="${x(time).toFixed(1)}" cy="${y(rate).toFixed(1)}" r="1.6" class="dot${index}"/>`)
    }
    parts.push(`<path d="${path}" class="line${index}"/>`)
  }
  return svg(width, height, `${unit} over time`, parts.join(""))
}

export interface Bars {
  readonly name: string
  readonly values: readonly number[]
}

/** Percentiles side by side, on a logarithmic axis. */
export function latencyChart(labels: readonly string[], bars: readonly Bars[]): string {
  const [width, height, left, right, top, bottom] = [520, 190, 62, 12, 18, 26]
  const all = bars.flatMap(({ values }) => values).filter((value) => value > 0)
  const low = Math.floor(Math.log10(Math.min(...all)))
  const high = Math.max(low + 1, Math.ceil(Math.log10(Math.max(...all) * 1.4)))
  const y = (value: number): number =>
    height - bottom - ((Math.log10(Math.max(value, 10 ** low)) - low) / (high - low)) * (height - top - bottom)
  const parts: string[] = []
  for (let power = low; power <= high; power++) {
    parts.push(line(left, y(10 ** power), width - right, y(10 ** power), "grid"))
    parts.push(text(left - 6, y(10 ** power) + 4, duration(10 ** power), "end"))
  }
  const group = (width - left - right) / labels.length
  const bar = Math.min(42, (group - 14) / bars.length)
  for (const [at, label] of labels.entries()) {
    const middle = left + group * (at + 0.5)
    parts.push(text(middle, height - 8, label, "middle"))
    for (const [index, { values }] of bars.entries()) {
      const value = values[at]!
      const from = middle + (index - bars.length / 2) * bar
      const heightOf = Math.max(1, height - bottom - y(value))
      parts.push(
        `<rect x="${(from + 1).toFixed(1)}" y="${(height - bottom - heightOf).toFixed(1)}" width="${(bar - 2).toFixed(1)}" height="${heightOf.toFixed(1)}" rx="2" class="bar${index}"/>`,
      )
      parts.push(text(from + bar / 2, height - bottom - heightOf - 4, duration(roughly(value)), "middle", "tiny"))
    }
  }
  return svg(width, height, "latency percentiles", parts.join(""))
}

/** Two digits: neighbouring labels have no room for more. */
const roughly = (value: number): number => Number(value.toPrecision(2))

/** Microseconds in the unit that suits. */
export function duration(us: number): string {
  if (us >= 1e6) return `${short(us / 1e6)} s`
  if (us >= 1e3) return `${short(us / 1e3)} ms`
  if (us >= 1) return `${short(us)} µs`
  return `${short(us * 1000)} ns`
}

export interface Ratio {
  readonly name: string
  readonly value: Spread
}

/** Ratios as bars from 1, to the right where the first is better, with a line for the spread. */
export function ratioChart(ratios: readonly Ratio[], first: string, second: string): string {
  const [width, left, right, step, top] = [1240, 420, 90, 26, 44]
  const height = top + ratios.length * step + 8
  const extremes = ratios
    .flatMap(({ value }) => [value.least, value.most])
    .filter((value) => value > 0 && Number.isFinite(value))
  const reach = Math.max(1, Math.ceil(Math.log2(Math.max(2, ...extremes, ...extremes.map((value) => 1 / value)))))
  const x = (value: number): number => {
    const clamped = Math.min(2 ** reach, Math.max(2 ** -reach, value))
    return left + ((Math.log2(clamped) + reach) / (2 * reach)) * (width - left - right)
  }
  const parts: string[] = []
  for (let power = -reach; power <= reach; power++) {
    if (reach > 5 && power % 2 !== 0) continue
    const value = 2 ** power
    parts.push(line(x(value), top - 8, x(value), height - 6, power === 0 ? "axis" : "grid"))
    parts.push(text(x(value), top - 14, value >= 1 ? `${value}x` : `1/${1 / value}x`, "middle"))
  }
  parts.push(text(x(2 ** reach), 14, `${first} is better →`, "end", "strong"))
  parts.push(text(x(2 ** -reach), 14, `← ${second} is better`, "start", "strong"))
  for (const [index, { name, value }] of ratios.entries()) {
    const middle = top + step * (index + 0.5)
    const [from, to] = value.median >= 1 ? [x(1), x(value.median)] : [x(value.median), x(1)]
    parts.push(text(left - 12, middle + 4, name, "end"))
    parts.push(
      `<rect x="${from.toFixed(1)}" y="${(middle - 7).toFixed(1)}" width="${Math.max(1, to - from).toFixed(1)}" height="14" rx="2" class="${value.median >= 1 ? "bar0" : "bar1"}"/>`,
    )
    parts.push(line(x(value.least), middle, x(value.most), middle, "whisker"))
    parts.push(text(width - right + 12, middle + 4, `${value.median.toFixed(2)}x`, "start", "strong"))
  }
  return svg(width, height, "ratios", parts.join(""))
}
