// The line that a person watches while rows are measured: a bar, how far it is, and the rate of the moment. Only on a terminal.

import { bold, faint } from "../admin/terminal.ts"

const WIDTH = 24
const REDRAW_MS = 80

/** 1234567 as "1 234 567", 12.34 as "12.3". */
export function figure(value: number): string {
  if (!Number.isFinite(value)) return "-"
  const digits = Math.abs(value) >= 100 ? 0 : Math.abs(value) >= 10 ? 1 : Math.abs(value) >= 1 ? 2 : 3
  const [whole = "", fraction] = value.toFixed(digits).split(".")
  const grouped = whole.replace(/\B(?=(\d{3})+(?!\d))/g, " ")
  return fraction === undefined ? grouped : `${grouped}.${fraction}`
}

export class ProgressLine {
  private drawn = 0
  private shown = false

  constructor(private readonly enabled: boolean) {}

  /** @param share of this row; @param row and @param rows which row of how many */
  draw(title: string, row: number, rows: number, share: number, target: string, rate: number, unit: string): void {
    const now = performance.now()
    if (!this.enabled || now - this.drawn < REDRAW_MS) return
    this.drawn = now
    this.shown = true
    const full = Math.round(Math.min(1, (row + share) / rows) * WIDTH)
    const bar = `${"█".repeat(full)}${faint("░".repeat(WIDTH - full))}`
    const count = ` ${row + 1}/${rows}  `
    const who = target === "" ? "" : `${target} `
    const pace = rate > 0 ? `${figure(rate)} ${unit}` : "starting"
    // A line that is too long would stay behind when the next one is drawn: its title gives way.
    const room = (process.stderr.columns ?? 80) - 1 - WIDTH - count.length - 2 - who.length - pace.length
    const name = title.length <= room ? title : `${title.slice(0, Math.max(0, room - 1))}…`
    const text = `${bar}${count}${name}  ${who}${rate > 0 ? bold(pace) : faint(pace)}`
    process.stderr.write(`\r\x1b[K${text}`)
  }

  clear(): void {
    if (this.shown) process.stderr.write("\r\x1b[K")
    this.shown = false
  }
}
