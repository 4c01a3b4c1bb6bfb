// The report as one HTML page that needs nothing else: what was measured on what machine, the comparison, and for each row its throughput over
// time and its latencies. The charts are charts.ts's.

import { duration, escapeHtml, latencyChart, ratioChart, timeChart } from "./charts.ts"
import type { Row } from "./measure.ts"
import { footnotes, type Result, tableOf, violationsOf } from "./output.ts"

const STYLE = `
:root { --ink: #1d2430; --soft: #5c6675; --paper: #ffffff; --card: #f6f7f9; --grid: #dde1e7; --a: #1f6fb2; --b: #d9822b; --bad: #b3261e; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ee; --soft: #9aa5b4; --paper: #14181e; --card: #1c222b; --grid: #343d4a; --a: #5aa7e8; --b: #f0a55b; --bad: #ff8a80; }
}
* { box-sizing: border-box }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif }
main { max-width: 1320px; margin: 0 auto; padding: 32px 24px 64px }
h1 { font-size: 26px; margin: 0 0 4px } h2 { font-size: 19px; margin: 40px 0 12px } h3 { font-size: 15px; margin: 0 0 2px }
p, pre { color: var(--soft); margin: 4px 0 } pre { white-space: pre-wrap; font: 13px/1.5 ui-monospace, "DejaVu Sans Mono", monospace }
.scroll { overflow-x: auto } .scroll svg { min-width: 820px }
table { border-collapse: collapse; font-size: 12.5px; width: 100%; font-variant-numeric: tabular-nums }
th, td { padding: 5px 8px; border-bottom: 1px solid var(--grid); text-align: right; vertical-align: top } td b { white-space: nowrap; font-weight: inherit } td .key { width: 7px; height: 7px; margin: 0 5px 1px 0 } th { color: var(--soft); font-weight: 600 }
th:first-child, td:first-child, th:nth-child(2), td:nth-child(2) { text-align: left }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(520px, 1fr)); gap: 16px }
.card { background: var(--card); border-radius: 8px; padding: 14px 16px }
.card p { font-size: 13px } .card h4 { font-size: 12px; font-weight: 600; color: var(--soft); margin: 10px 0 0 }
svg { max-width: 100%; height: auto; display: block } .card svg { width: 100% }
svg text { fill: var(--soft); font-size: 11px } svg .tiny { font-size: 9.5px } svg .strong { fill: var(--ink); font-weight: 600 }
.grid { stroke: var(--grid) } .axis { stroke: var(--soft) } .whisker { stroke: var(--ink); stroke-width: 1.5 }
.line0 { stroke: var(--a); fill: none; stroke-width: 1.8 } .line1 { stroke: var(--b); fill: none; stroke-width: 1.8 }
.bar0, .dot0 { fill: var(--a) } .bar1, .dot1 { fill: var(--b) }
.key { display: inline-block; width: 11px; height: 11px; border-radius: 2px; margin: 0 5px 0 12px } .key0 { background: var(--a); margin-left: 0 } .key1 { background: var(--b) }
.bad { color: var(--bad); font-weight: 600 } .good { color: var(--soft) }
@media (max-width: 600px) { .cards { grid-template-columns: 1fr } }
`

const PERCENTILES = ["p50", "p90", "p99", "p999", "max"] as const
const NAMES = ["50%", "90%", "99%", "99.9%", "max"]

function card(row: Row): string {
  const measured = row.targets.filter(({ value }) => !Number.isNaN(value.median))
  const figures = measured
    .map(
      ({ target, value }) =>
        `${escapeHtml(target)} <b>${value.median.toLocaleString("en", { maximumSignificantDigits: 4 })}</b>`,
    )
    .join(", ")
  const ratio =
    row.ratio === undefined || Number.isNaN(row.ratio.median) ? "" : `, ratio <b>${row.ratio.median.toFixed(2)}</b>`
  const parts = [`<h3>${escapeHtml(row.title)}</h3><p>${figures} ${escapeHtml(row.unit)}${ratio}</p>`]
  if (row.targets.some(({ series }) => series.length > 1)) {
    const lines = row.targets.map(({ target, series }) => ({ name: target, points: series }))
    parts.push(`<h4>${escapeHtml(row.unit)} over time</h4>${timeChart(lines, row.unit)}`)
  }
  const timed = row.targets.filter(({ latency }) => latency !== undefined)
  if (timed.length > 0) {
    const bars = timed.map(({ target, latency }) => ({ name: target, values: PERCENTILES.map((key) => latency![key]) }))
    parts.push(`<h4>latency</h4>${latencyChart(NAMES, bars)}`)
  }
  for (const { target, clientUs, daemonUs } of row.targets) {
    if (clientUs === undefined || daemonUs === undefined) continue
    parts.push(
      `<p>${escapeHtml(target)}: an operation costs ${duration(clientUs)} in the clients, ${duration(daemonUs)} in the daemons</p>`,
    )
  }
  return `<section class="card">${parts.join("")}</section>`
}

/** A cell breaks between its figures only; targets that share one have a line each. */
const cellOf = (cell: string): string =>
  cell
    .split(" | ")
    .map((line) =>
      line
        .split(/ (?=\()/)
        .map((part) => (/\d/.test(part) && part.length < 40 ? `<b>${escapeHtml(part)}</b>` : escapeHtml(part)))
        .join(" "),
    )
    .map((line, index, lines) => (lines.length > 1 ? `<span class="key key${index}"></span>${line}` : line))
    .join("<br>")

/** The whole page. */
export function pageOf(result: Result): string {
  const violations = violationsOf(result)
  const [first = "", second] = result.targets
  const { head, rows } = tableOf(result)
  const compared = result.rows.flatMap(({ title, ratio }) =>
    ratio === undefined || Number.isNaN(ratio.median) ? [] : [{ name: title, value: ratio }],
  )
  const legend = result.targets
    .map((name, index) => `<span class="key key${index}"></span>${escapeHtml(name)}`)
    .join("")
  return `<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>ctdb bench, ${escapeHtml(result.when)}</title><style>${STYLE}</style></head><body><main>
<h1>ctdb bench${second === undefined ? "" : `: ${escapeHtml(first)} beside ${escapeHtml(second)}`}</h1>
<p>${escapeHtml(result.when)}, ctdb ${escapeHtml(result.version)}</p><pre>${escapeHtml(result.command)}</pre>
<p>${legend}</p>
${
  violations.length + result.failures.length === 0
    ? `<p class="good">Every check held: nothing was lost, doubled or seen going back.</p>`
    : [...violations, ...result.failures.map(({ title, reason }) => `${title}: ${reason}`)]
        .map((violation) => `<p class="bad">${escapeHtml(violation)}</p>`)
        .join("\n")
}
${second === undefined || compared.length === 0 ? "" : `<h2>Comparison</h2><div class="scroll">${ratioChart(compared, first, second)}</div>`}
<h2>Results</h2>
<div class="scroll"><table><thead><tr>${head.map((cell) => `<th>${escapeHtml(cell)}</th>`).join("")}</tr></thead>
<tbody>${rows.map((cells) => `<tr>${cells.map((cell) => `<td>${cellOf(cell)}</td>`).join("")}</tr>`).join("\n")}</tbody></table></div>
<pre>${escapeHtml(footnotes(result))}</pre>
<h2>Each load</h2><div class="cards">${result.rows.map(card).join("\n")}</div>
</main></body></html>
`
}
