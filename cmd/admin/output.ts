// Where the tool's output goes: text for scripts, lines with separators, JSON, or a terminal. Standard output is
// collected and written before anything else becomes visible (a line on standard error, a wait, the end), so that both
// streams into one file keep the order of the stock tool. Writes are synchronous: the process may end right after.

import { writeSync } from "node:fs"

/** Who reads: scripts get `text` or `machine` byte for byte as the stock tool prints them. */
export type Mode = "text" | "machine" | "json" | "terminal"

/** One result in all its forms; only the one that is asked for is made. Without a form of its own, `text` serves. */
export interface Presentation {
  readonly text: () => string
  readonly machine?: () => string
  readonly json: () => unknown
  readonly terminal?: () => string | Promise<string>
}

export class Output {
  #pending = ""

  constructor(
    readonly mode: Mode,
    readonly separator: string,
  ) {}

  /** Text for standard output, as it is. */
  print(text: string): void {
    this.#pending += text
    if (this.#pending.length > 65_536) this.flush()
  }

  /** Bytes for standard output that need not be text. */
  printBytes(bytes: Uint8Array): void {
    this.flush()
    writeAll(1, bytes)
  }

  /** One line for standard error. */
  warn(line: string): void {
    this.flush()
    writeAll(2, `${line}\n`)
  }

  flush(): void {
    const text = this.#pending
    this.#pending = ""
    if (text !== "") writeAll(1, text)
  }

  /** `|a|b|c|` and a newline. */
  machineLine(fields: readonly (string | number)[]): string {
    return `${this.separator}${fields.join(this.separator)}${this.separator}\n`
  }

  json(value: unknown): void {
    this.print(`${JSON.stringify(value, null, 2)}\n`)
  }

  async show(forms: Presentation): Promise<void> {
    switch (this.mode) {
      case "json":
        this.json(forms.json())
        break
      case "machine":
        this.print((forms.machine ?? forms.text)())
        break
      case "terminal":
        this.print(await (forms.terminal ?? forms.text)())
        break
      case "text":
        this.print(forms.text())
    }
  }
}

const encoder = new TextEncoder()

/** Writes everything. A closed pipe ends the process as SIGPIPE would; a full non-blocking one is waited for. */
function writeAll(descriptor: number, content: string | Uint8Array): void {
  const bytes = typeof content === "string" ? encoder.encode(content) : content
  let written = 0
  while (written < bytes.length) {
    try {
      written += writeSync(descriptor, bytes, written)
    } catch (error) {
      const code = error instanceof Error && "code" in error ? error.code : undefined
      if (code === "EAGAIN") Bun.sleepSync(5)
      else if (code === "EPIPE") process.exit(128 + 13)
      else return
    }
  }
}
