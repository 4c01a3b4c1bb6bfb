// What a worker process is told to do, and what it answers: JSON lines through its standard input and output. The loads are in loads/,
// the process that reads these lines is worker.ts, the one that writes them crew.ts.

import type { DatabaseKind } from "../../lib/client/database.ts"

/** One worker: one process that is one client of one node (but for the idle and flooding loads, which are many). */
export interface WorkerPlan {
  readonly load: LoadName
  readonly socket: string
  /** Path of the shared memory, and this worker's place in it. */
  readonly arena: string
  readonly index: number
  readonly workers: number
  /** Nodes that take part, numbered from 0. */
  readonly nodes: number
  /** Others that this program did not start take part, so that sums are not known. */
  readonly shared: boolean
  readonly database: string
  readonly kind: DatabaseKind
  readonly key: string
  readonly records: number
  /** Bytes of a value; 4 is what stock generators store. */
  readonly valueSize: number
  /** Tokens in a ring, in each direction. */
  readonly depth: number
  /** Operations a second that a load with a rate of its own keeps to. */
  readonly rate: number
  /** Clients that one worker stands for, where it stands for many. */
  readonly clients: number
}

export type LoadName =
  | "counter"
  | "spread"
  | "readonly"
  | "g-lock"
  | "transactions"
  | "record-ring"
  | "message-ring"
  | "control"
  | "idle"
  | "flood"
  | "fill"

export type Command =
  | { readonly do: "open"; readonly plan: WorkerPlan }
  | { readonly do: "barrier" }
  | { readonly do: "run"; readonly latency: boolean }
  | { readonly do: "settle" }

export type Answer =
  | {
      readonly is: "open"
      readonly pnn: number
      readonly daemon: number
      readonly path: string
      readonly mutexes: boolean
    }
  | { readonly is: "barrier" }
  | {
      readonly is: "run"
      readonly cpuUs: number
      readonly latency: readonly number[]
      readonly violations: readonly string[]
    }
  | ({ readonly is: "settle" } & Settled)
  | { readonly is: "error"; readonly text: string }

/** What a worker says when all have stopped. */
export interface Settled {
  /** Operations by this worker that count in `total`. */
  readonly counted: number
  /** What the database says of all workers together since they began; only the first worker looks. */
  readonly total?: number
  readonly violations: readonly string[]
}
