// docs/performance.md from the lines that were measured: the tables, which rows do not hold, and why as far as that is known.

import { cpus, totalmem } from "node:os"
import type { Spread } from "../../../cmd/bench/statistics.ts"
import type { Line, Part } from "./lines.ts"

const DIGITS = 2
const ratioText = (ratio: Spread | undefined): string =>
  ratio === undefined
    ? ""
    : ratio.least === ratio.most
      ? ratio.median.toFixed(DIGITS)
      : `${ratio.median.toFixed(DIGITS)} (${ratio.least.toFixed(DIGITS)} .. ${ratio.most.toFixed(DIGITS)})`

/** Our client beside the published one, both on stock's daemon: what of the whole is not the daemon's. */
const clientText = (daemon: Spread | undefined, whole: Spread | undefined): string =>
  daemon === undefined || whole === undefined ? "" : (whole.median / daemon.median).toFixed(DIGITS)

const holdsText = ({ holds, decides }: Line, wide: boolean): string =>
  holds === undefined ? "" : `${holds ? "yes" : "**no**"}${wide && decides !== undefined ? `, ${decides}` : ""}`

function sectionText(section: string, lines: readonly Line[]): string {
  const wide = lines.some(({ published }) => published !== undefined)
  const other = section.includes("libtdb") ? "libtdb" : "Stock"
  const head = wide
    ? ["What", "Ours", "Stock, our client", "Stock, its client in C", "Daemon", "Client", "Whole", "Target", "Holds"]
    : ["What", "Ours", other, "Ratio", "Target", "Holds"]
  const rows = lines.map((line) => {
    const { what, ours, stock, published = "", daemon, whole, target = "" } = line
    const middle = wide
      ? [ours, stock, published, ratioText(daemon), clientText(daemon, whole), ratioText(whole)]
      : [ours, stock, ratioText(daemon)]
    return [what, ...middle, target, holdsText(line, wide)]
  })
  const row = (cells: readonly string[]) => `| ${cells.join(" | ")} |`
  return [`## ${section}`, "", row(head), row(head.map(() => "---")), ...rows.map(row), ""].join("\n")
}

export function page(parts: readonly Part[], reasonOf: (line: Line) => string | undefined): string {
  const lines = parts.flatMap((part) => part.lines)
  const sections = [...new Set(lines.map(({ section }) => section))].map((section) =>
    sectionText(
      section,
      lines.filter((line) => line.section === section),
    ),
  )
  const asked = lines.filter(({ holds }) => holds !== undefined)
  const below = asked.filter(({ holds }) => holds === false)
  const because = new Map<string, string[]>()
  for (const line of below) {
    const reason = reasonOf(line) ?? "Not yet looked into."
    because.set(reason, [...(because.get(reason) ?? []), line.what])
  }
  const reasons = [...because].map(([reason, names]) => `- ${names.join("; ")}: ${reason}`).join("\n")
  const wrong = parts.flatMap(({ complaints }) => complaints)
  const loads = parts.map(({ load }) => load)
  const [processor] = cpus()
  return `# Performance

Made by \`bun tests/bench/table.ts\`, part by part with \`--only PART\`; \`ctdb bench all --sandbox 3 --compare stock --report FILE.html\` shows the part
about clusters with charts.

Every figure of ours has the stock 4.17 daemon's (or libtdb's) beside it from the same run. A ratio says how many times better ours is, as median
(least .. most) of the samples; above 1 ours is better. Only ratios mean something on another machine. Rows of clusters have three:

- Daemon: the same client, ours, on nodes of both kinds by turns. It leaves out what the client does by itself.
- Client: our client beside the stock client's algorithm, both on stock nodes: the client's own cost, or what it saves.
- Whole: our client on our nodes beside the stock client's algorithm, in C on libtdb (\`tests/bench/published.c\`), on stock nodes. It is what somebody
  gets who runs one or the other, and the product of the other two.

The program in C has neither the memory management nor the event loop of stock's client library, and is faster than stock's own generators; so Whole
is the lower bound of what a user sees.

Whole decides where there is such a client, as its algorithm is the yardstick, but for rows that measure the daemon's transport (messages, controls).

Of ${asked.length} rows with a target ${asked.length - below.length} hold.

${cpus().length} processors (${processor?.model}), ${Math.round(totalmem() / 2 ** 30)} GB, shared with other work: the load average was ${Math.min(...loads).toFixed(1)} to ${Math.max(...loads).toFixed(1)} when the parts ended.
Three nodes and their clients share the processors, so a row that crosses nodes measures how fast processes are woken as much as the daemon.

${sections.join("\n")}
## Checks

${wrong.length === 0 ? "Every check of the generators held." : `Checks that failed:\n\n${wrong.map((text) => `- ${text}`).join("\n")}`}

## Rows below their target

${reasons === "" ? "None." : reasons}
`
}
