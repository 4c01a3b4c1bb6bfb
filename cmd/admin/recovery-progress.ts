// `ctdb recover --watch`: shows what the leader tells of its recovery while it runs. On a terminal one line that changes, on a
// pipe a line for each report, with --json an object a line. It asks nothing and decides nothing: a leader that tells
// nothing, a stock one for example, is waited for in silence.

import { progressText, RECOVERY_PROGRESS, type RecoveryProgress, readProgress } from "../../daemon/recovery/progress.ts"
import type { Invocation } from "./invocation.ts"

/** The last report follows the end of the recovery by less than this (ms). */
const LAST_REPORT_MS = 1000
const REDRAW_MS = 100
const BAR_WIDTH = 24

export interface WatchedRecovery {
  /** Shows reports while `wait` runs, and the last one of the recovery that it ends with: `wait` gives its generation. */
  until(wait: () => Promise<number>): Promise<number>
}

/** Listens from now on: a report of a recovery that is asked for after this is not missed. */
export async function watchRecovery(invocation: Invocation): Promise<WatchedRecovery> {
  const { client, output } = invocation
  const isTerminal = output.mode === "terminal"
  const terminal = isTerminal ? await import("./terminal.ts") : undefined
  let last: RecoveryProgress | undefined
  let heard: () => void = () => {}
  await client.onMessage(RECOVERY_PROGRESS, (data) => {
    const progress = readProgress(data)
    if (progress === undefined) return
    last = progress
    if (output.mode === "json") output.printBytes(new TextEncoder().encode(`${JSON.stringify(progress)}\n`))
    else if (terminal === undefined) output.printBytes(new TextEncoder().encode(`${line(progress)}\n`))
    heard()
  })

  const draw = (startedMs: number) => {
    const seconds = (performance.now() - startedMs) / 1000
    const text = last === undefined ? "waiting for the recovery to begin" : drawing(last)
    process.stderr.write(`\r\x1b[K${terminal?.faint(`${text} (${terminal.duration(seconds)})`)}`)
  }

  return {
    async until(wait) {
      const startedMs = performance.now()
      const timer = isTerminal ? setInterval(() => draw(startedMs), REDRAW_MS) : undefined
      try {
        const generation = await wait()
        const over = () => last?.generation === generation && (last.phase === "done" || last.phase === "failed")
        const endMs = performance.now() + LAST_REPORT_MS
        while (!over() && performance.now() < endMs) {
          await Promise.race([
            Bun.sleep(endMs - performance.now()),
            new Promise<void>((resolve) => {
              heard = resolve
            }),
          ])
        }
        return generation
      } finally {
        clearInterval(timer)
        if (isTerminal) process.stderr.write("\r\x1b[K")
        if (isTerminal && last !== undefined) output.print(`${line(last)}\n`)
        if (isTerminal && last === undefined) output.print("The leader tells nothing of its recovery's progress\n")
      }
    },
  }
}

function line(progress: RecoveryProgress): string {
  return `Recovery by node ${progress.leader}, ${progress.phase}: ${progressText(progress)}`
}

/** `[######......] 12 of 24 databases, 120 000 records, 14.2 MB`: short enough for one line of a terminal. */
function drawing(progress: RecoveryProgress): string {
  const { phase, databases, frozen, recovered, failed, pushedRecords, pushedBytes, keptRecords } = progress
  const done = databases === 0 ? 0 : Math.floor((BAR_WIDTH * (recovered + failed)) / databases)
  const bar = `[${"#".repeat(done)}${".".repeat(BAR_WIDTH - done)}]`
  const records = `${pushedRecords} records sent (${(pushedBytes / 1e6).toFixed(1)} MB), ${keptRecords} alike`
  const trouble = failed > 0 ? `, ${failed} given up` : ""
  return `${bar} ${phase}: ${frozen} of ${databases} frozen, ${recovered} recovered${trouble}, ${records}`
}
