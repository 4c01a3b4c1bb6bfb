// A worker process of `ctdb bench`: reads commands (plan.ts) from its standard input, one JSON line each, runs one load, and answers on its
// standard output. It ends with its input, so nothing stays behind whatever becomes of its parent.

import { forgetDatabases } from "../../lib/client/attach.ts"
import { Client } from "../../lib/client/client.ts"
import { CURRENT_NODE } from "../../lib/protocol/constants.ts"
import { Arena } from "./arena.ts"
import { clusterWait } from "./barrier.ts"
import { Histogram } from "./histogram.ts"
import type { Load, LoadContext } from "./loads/load.ts"
import type { Answer, Command, LoadName, WorkerPlan } from "./plan.ts"

const CONNECT_MS = 10_000
/** So many violations are told; the others are only counted. */
const TOLD = 5

type MakeLoad = (context: LoadContext) => Promise<Load>

const loads: Readonly<Record<LoadName, () => Promise<MakeLoad>>> = {
  counter: async () => (await import("./loads/counter.ts")).counter,
  spread: async () => (await import("./loads/spread.ts")).spread,
  readonly: async () => (await import("./loads/readonly.ts")).readonly,
  "g-lock": async () => (await import("./loads/g-lock.ts")).gLock,
  transactions: async () => (await import("./loads/transactions.ts")).transactions,
  "record-ring": async () => (await import("./loads/record-ring.ts")).recordRing,
  "message-ring": async () => (await import("./loads/message-ring.ts")).messageRing,
  control: async () => (await import("./loads/daemon.ts")).control,
  idle: async () => (await import("./loads/daemon.ts")).idle,
  flood: async () => (await import("./loads/daemon.ts")).flood,
  fill: async () => (await import("./loads/daemon.ts")).fill,
}

class Worker {
  private violations: string[] = []
  private unspoken = 0

  private constructor(
    private readonly client: Client,
    private readonly plan: WorkerPlan,
    private readonly load: Load,
  ) {}

  static async open(plan: WorkerPlan): Promise<{ worker: Worker; answer: Answer }> {
    const client = await Client.connect({ socket: plan.socket, timeoutMs: CONNECT_MS })
    client.onClosed = (reason) => {
      say({ is: "error", text: `the daemon closed the connection (${reason})` })
      process.exit(1)
    }
    await client.waitForRecovery()
    let worker: Worker | undefined
    const context: LoadContext = {
      plan,
      client,
      arena: Arena.open(plan.arena, plan.workers),
      violation: (text) => worker?.note(text),
    }
    const load = await (await loads[plan.load]())(context)
    worker = new Worker(client, plan, load)
    const daemon = await client.controlStatus("GET_PID", CURRENT_NODE)
    const tdb = load.database?.tdb
    const answer: Answer = {
      is: "open",
      pnn: client.pnn,
      daemon,
      path:
        load.database === undefined ? "" : ((await client.control("GETDBPATH", client.pnn, load.database.id)) ?? ""),
      mutexes: tdb !== undefined && tdb.locks.mutexes !== null,
    }
    return { worker, answer }
  }

  private note(text: string): void {
    if (this.violations.length < TOLD) this.violations.push(text)
    else this.unspoken++
  }

  private takeViolations(): string[] {
    const told = this.unspoken > 0 ? [...this.violations, `and ${this.unspoken} more`] : this.violations
    this.violations = []
    this.unspoken = 0
    return told
  }

  async obey(command: Exclude<Command, { do: "open" }>): Promise<Answer> {
    switch (command.do) {
      case "barrier":
        await clusterWait(this.client, this.plan.nodes)
        return { is: "barrier" }
      case "run": {
        const latency = command.latency ? new Histogram() : undefined
        const before = process.cpuUsage()
        await this.load.run(latency)
        const { user, system } = process.cpuUsage(before)
        return {
          is: "run",
          cpuUs: user + system,
          latency: latency?.toNumbers() ?? [],
          violations: this.takeViolations(),
        }
      }
      case "settle": {
        const settled = await this.load.settle()
        return { is: "settle", ...settled, violations: [...settled.violations, ...this.takeViolations()] }
      }
    }
  }

  async end(): Promise<void> {
    // A mapping that goes away under a held mutex would lock its chain for ever.
    await forgetDatabases(this.client)
    await this.client.close()
  }
}

function say(answer: Answer): void {
  process.stdout.write(`${JSON.stringify(answer)}\n`)
}

/** The process's whole life. */
export async function work(): Promise<number> {
  // Ctrl-C goes to the whole group: the parent decides, and a loop ends between two rounds.
  process.on("SIGINT", () => {})
  let worker: Worker | undefined
  for await (const line of console) {
    try {
      const command = JSON.parse(line) as Command
      if (command.do === "open") {
        const opened = await Worker.open(command.plan)
        worker = opened.worker
        say(opened.answer)
      } else if (worker !== undefined) say(await worker.obey(command))
    } catch (error) {
      say({ is: "error", text: error instanceof Error ? error.message : String(error) })
      await worker?.end()
      return 1
    }
  }
  await worker?.end()
  return 0
}
