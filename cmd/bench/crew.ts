// The worker processes of one measurement on one target: starts them, tells them when to work, and collects what they say. What they do
// is in loads/; when they do it is measure.ts's affair.

import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { longLived } from "../../lib/sys/runtime.ts"
import { selfCommand } from "../../lib/sys/self.ts"
import { Arena } from "./arena.ts"
import { Histogram } from "./histogram.ts"
import type { Answer, Command, Settled, WorkerPlan } from "./plan.ts"

/** What a crew's plan leaves open. */
export type Task = Omit<WorkerPlan, "arena" | "index" | "workers">

/** What a crew says after a run. */
export interface Worked {
  /** CPU time of all workers together (us). */
  readonly cpuUs: number
  readonly latency: Histogram
  readonly violations: readonly string[]
}

type AnswerTo<D extends Command["do"]> = Extract<Answer, { is: D }>

class Member {
  private readonly child
  private readonly waiting: { resolve(answer: Answer): void; reject(error: Error): void }[] = []

  constructor() {
    const { command, argv0 } = selfCommand("bench", "ctdb", [])
    // A compiled binary of this name takes the program's word first.
    const words = argv0 === undefined ? ["_worker"] : ["bench", "_worker"]
    this.child = Bun.spawn([...command, ...words], {
      env: { ...process.env, ...longLived() },
      stdin: "pipe",
      stdout: "pipe",
      stderr: "inherit",
      ...(argv0 === undefined ? {} : { argv0 }),
    })
    void this.listen()
  }

  private async listen(): Promise<void> {
    let rest = ""
    const decoder = new TextDecoder()
    for await (const chunk of this.child.stdout) {
      rest += decoder.decode(chunk, { stream: true })
      for (let end = rest.indexOf("\n"); end >= 0; end = rest.indexOf("\n")) {
        const answer = JSON.parse(rest.slice(0, end)) as Answer
        rest = rest.slice(end + 1)
        const first = this.waiting.shift()
        if (answer.is === "error") first?.reject(new Error(answer.text))
        else first?.resolve(answer)
      }
    }
    for (const { reject } of this.waiting.splice(0)) reject(new Error("a worker process ended unexpectedly"))
  }

  ask<C extends Command>(command: C): Promise<AnswerTo<C["do"]>> {
    return new Promise((resolve, reject) => {
      this.waiting.push({ resolve: (answer) => resolve(answer as AnswerTo<C["do"]>), reject })
      this.child.stdin.write(`${JSON.stringify(command)}\n`)
      void this.child.stdin.flush()
    })
  }

  async end(): Promise<void> {
    this.child.stdin.end()
    const timer = setTimeout(() => this.child.kill("SIGKILL"), 5000)
    await this.child.exited
    clearTimeout(timer)
  }
}

export class Crew {
  private running: Promise<AnswerTo<"run">>[] = []

  private constructor(
    private readonly directory: string,
    private readonly arena: Arena,
    private readonly members: readonly Member[],
    /** In the order of the tasks. */
    readonly opened: readonly AnswerTo<"open">[],
  ) {}

  /** Starts a process for each task and waits until all are connected. @throws Error with a worker's words */
  static async open(tasks: readonly Task[]): Promise<Crew> {
    const directory = mkdtempSync(join(tmpdir(), "ctdb-bench-"))
    const arena = Arena.create(join(directory, "arena"), tasks.length)
    const members = tasks.map(() => new Member())
    try {
      const opened = await Promise.all(
        tasks.map((task, index) => {
          const plan = { ...task, arena: arena.path, index, workers: tasks.length }
          return members[index]!.ask({ do: "open", plan })
        }),
      )
      return new Crew(directory, arena, members, opened)
    } catch (error) {
      await Promise.all(members.map((member) => member.end()))
      rmSync(directory, { recursive: true, force: true })
      throw error
    }
  }

  /** Processes of the daemons that are driven. */
  get daemons(): readonly number[] {
    return [...new Set(this.opened.map(({ daemon }) => daemon))]
  }

  /** Operations done so far. */
  get done(): number {
    return this.arena.allDone
  }

  /** Waits for the generators of other machines. One worker of each node does. */
  async barrier(): Promise<void> {
    const first = new Map(this.opened.map(({ pnn }, index) => [pnn, this.members[index]!]))
    await Promise.all([...first.values()].map((member) => member.ask({ do: "barrier" })))
  }

  start(latency: boolean): void {
    this.arena.running = true
    this.running = this.members.map((member) => member.ask({ do: "run", latency }))
    // Looked at in stop(); until then nobody waits.
    for (const run of this.running) run.catch(() => {})
  }

  /** Ends the run, or with `finish` waits for work that has an end of its own. @throws Error with a worker's words */
  async stop(finish = false): Promise<Worked> {
    if (!finish) this.arena.running = false
    const answers = await Promise.all(this.running)
    this.arena.running = false
    this.running = []
    const latency = new Histogram()
    for (const answer of answers) latency.addNumbers(answer.latency)
    return {
      cpuUs: answers.reduce((sum, { cpuUs }) => sum + cpuUs, 0),
      latency,
      violations: answers.flatMap(({ violations }) => violations),
    }
  }

  /** What is wrong with the outcome: nothing in a good run. @param exact false when others took part */
  async settle(exact: boolean): Promise<readonly string[]> {
    const answers: Settled[] = await Promise.all(this.members.map((member) => member.ask({ do: "settle" })))
    const violations = answers.flatMap((answer) => answer.violations)
    const totals = answers.flatMap(({ total }) => (total === undefined ? [] : [total]))
    if (totals.length > 0) {
      const total = totals.reduce((sum, value) => sum + value, 0)
      const counted = answers.reduce((sum, answer) => sum + answer.counted, 0)
      if (exact ? total !== counted : total < counted) {
        violations.push(`the clients counted ${counted}, the cluster has ${total}`)
      }
    }
    return violations
  }

  async close(): Promise<void> {
    this.arena.running = false
    await Promise.all(this.members.map((member) => member.end()))
    rmSync(this.directory, { recursive: true, force: true })
  }
}
