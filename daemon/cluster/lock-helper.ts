// The cluster lock through a helper program, as the stock daemon takes it: a path means our own fcntl helper, `!COMMAND` any
// other (cluster page 5.6). The helper holds the lock as long as it lives. Part of Bun's environment; the simulator has its
// own lock.

import { selfCommand } from "../../lib/sys/self.ts"
import type { ClusterLockPort, HeldLock, LockOutcome } from "../environment.ts"
import { readLines } from "../lines.ts"

export interface LockHelperSettings {
  /** Another program for plain paths (variable CTDB_CLUSTER_MUTEX_HELPER of the stock daemon). */
  readonly helper: string | undefined
  /** A line that the helper wrote to its standard error. */
  readonly onOutput: (line: string) => void
}

/** The characters that a helper writes once. */
const OUTCOMES: Readonly<Record<string, LockOutcome>> = { "0": "taken", "1": "contention", "2": "timeout" }

export function lockHelper(settings: LockHelperSettings): ClusterLockPort {
  return {
    take(lock, timeoutMs, done, onLost) {
      return new Attempt(settings, lock, timeoutMs, done, onLost).cancel
    },
  }
}

class Attempt {
  private state: "trying" | "held" | "over" = "trying"
  private readonly timer: ReturnType<typeof setTimeout>
  private child: Bun.Subprocess<"ignore", "pipe", "pipe"> | undefined

  constructor(
    settings: LockHelperSettings,
    lock: string,
    timeoutMs: number,
    private readonly done: (outcome: LockOutcome, held: HeldLock | undefined) => void,
    private readonly onLost: () => void,
  ) {
    this.timer = setTimeout(() => this.end("timeout"), timeoutMs)
    const { command, argv0 } = commandOf(lock, settings.helper)
    try {
      this.child = Bun.spawn([...command], {
        env: process.env,
        stdin: "ignore",
        stdout: "pipe",
        stderr: "pipe",
        ...(argv0 === undefined ? {} : { argv0 }),
      })
    } catch (error) {
      settings.onOutput(`${command[0]}: ${error instanceof Error ? error.message : String(error)}`)
      setImmediate(() => this.end("error"))
      return
    }
    void this.readResult(this.child.stdout)
    void readLines(this.child.stderr, settings.onOutput)
  }

  readonly cancel = (): void => {
    if (this.state === "trying") this.stop()
  }

  private async readResult(stdout: ReadableStream<Uint8Array>): Promise<void> {
    const reader = stdout.getReader()
    for (;;) {
      const { done, value } = await reader.read()
      if (done) break
      const first = value[0]
      // What follows the first character means nothing.
      if (this.state === "trying" && first !== undefined) this.answered(String.fromCharCode(first))
    }
    if (this.state === "trying") this.end("error")
    else if (this.state === "held") {
      this.stop()
      this.onLost()
    }
  }

  private answered(character: string): void {
    const outcome = OUTCOMES[character] ?? "error"
    if (outcome !== "taken") {
      this.end(outcome)
      return
    }
    clearTimeout(this.timer)
    this.state = "held"
    this.done("taken", {
      release: () => {
        if (this.state === "held") this.stop()
      },
    })
  }

  private end(outcome: LockOutcome): void {
    if (this.state !== "trying") return
    this.stop()
    this.done(outcome, undefined)
  }

  private stop(): void {
    this.state = "over"
    clearTimeout(this.timer)
    this.child?.kill("SIGTERM")
  }
}

function commandOf(lock: string, helper: string | undefined): { command: readonly string[]; argv0?: string } {
  if (lock.startsWith("!"))
    return {
      command: lock
        .slice(1)
        .trim()
        .split(/[ \t]+/),
    }
  if (helper !== undefined) return { command: [helper, lock] }
  return selfCommand("mutex-fcntl-helper", "ctdb_mutex_fcntl_helper", [lock])
}
