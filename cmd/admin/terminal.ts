// What only people see: tables, colour, questions and what is being waited for. Nothing here is loaded or printed unless
// standard output is a terminal and no machine form was asked for.

import { confirm, isCancel } from "@clack/prompts"
import Table from "cli-table3"

const colourful = process.stdout.isTTY && process.env.NO_COLOR === undefined && process.env.TERM !== "dumb"
const paint = (code: number, text: string) => (colourful ? `\x1b[${code}m${text}\x1b[0m` : text)

export const red = (text: string) => paint(31, text)
export const green = (text: string) => paint(32, text)
export const yellow = (text: string) => paint(33, text)
export const bold = (text: string) => paint(1, text)
export const faint = (text: string) => paint(2, text)

/** A table with a line under its head only. Cells may hold colour. */
export function table(head: readonly string[], rows: readonly (readonly (string | number)[])[]): string {
  const lines = new Table({
    head: head.map(bold),
    style: { head: [], border: [], compact: true },
    chars: {
      top: "",
      "top-mid": "",
      "top-left": "",
      "top-right": "",
      bottom: "",
      "bottom-mid": "",
      "bottom-left": "",
      "bottom-right": "",
      left: "",
      "left-mid": "",
      right: "",
      "right-mid": "",
      mid: "",
      "mid-mid": "",
      middle: "  ",
    },
  })
  for (const row of rows) lines.push(row.map(String))
  return `${lines
    .toString()
    .split("\n")
    .map((line) => line.trimEnd())
    .join("\n")}\n`
}

/** Names in front, values behind. */
export function list(rows: readonly (readonly [name: string, value: string | number])[]): string {
  const width = Math.max(...rows.map(([name]) => name.length))
  return rows.map(([name, value]) => `${faint(name.padEnd(width))}  ${value}\n`).join("")
}

/** Asks before something is destroyed or interrupted. Ctrl-C and Escape mean no. */
export async function ask(question: string): Promise<boolean> {
  const answer = await confirm({ message: question, initialValue: false })
  return !isCancel(answer) && answer
}

/** `3 d 4 h`, `2 min 5 s`, `1.4 s`, `3.2 ms`: the two largest units. */
export function duration(seconds: number): string {
  if (seconds < 0.1) return `${(seconds * 1000).toFixed(1)} ms`
  if (seconds < 60) return `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`
  const whole = Math.round(seconds)
  const units = [
    [86_400, "d"],
    [3600, "h"],
    [60, "min"],
    [1, "s"],
  ] as const
  const first = units.findIndex(([size]) => whole >= size)
  const [size, unit] = units[first]!
  const rest = units[first + 1]
  const head = `${Math.floor(whole / size)} ${unit}`
  return rest === undefined ? head : `${head} ${Math.floor((whole % size) / rest[0])} ${rest[1]}`
}

/** One line that says what is waited for, or how far it is, and since when; gone when `wait` ends. */
export async function waiting<T>(text: string | (() => string), wait: Promise<T>): Promise<T> {
  const started = performance.now()
  const draw = () => {
    const line = typeof text === "string" ? text : text()
    process.stderr.write(`\r\x1b[K${faint(`${line} (${duration((performance.now() - started) / 1000)})`)}`)
  }
  const timer = setInterval(draw, 500)
  try {
    return await wait
  } finally {
    clearInterval(timer)
    process.stderr.write("\r\x1b[K")
  }
}
