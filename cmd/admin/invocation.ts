// One run of one command: its words and options, where its output goes, and the conversation with the daemon. The rules
// that all commands share are here: what a failed control prints, how exit statuses follow from errors, how the leader
// and a takeover run are waited for. What a command asks and prints is in its own module.

import { type Client, ControlError } from "../../lib/client/client.ts"
import { decode, u32 } from "../../lib/protocol/codec.ts"
import { Errno, Srvid, UNKNOWN_PNN } from "../../lib/protocol/constants.ts"
import type { ControlName, ReplyOf, RequestOf } from "../../lib/protocol/controls.ts"
import type { NodeMap } from "../../lib/protocol/structs.ts"
import type { Command } from "./commands.ts"
import type { Options } from "./options.ts"
import type { Output } from "./output.ts"

/** Ends the command. `status` is an errno, a control's status or an exit status: see {@link exitStatus}. */
export class Failure extends Error {
  override readonly name = "Failure"
  constructor(readonly status: number) {
    super(`status ${status}`)
  }
}

/** The words do not fit the command: its usage is printed, exit 1. */
export class UsageError extends Error {
  override readonly name = "UsageError"
}

/** What the shell sees: -1 and every other general error is 1, the rest modulo 256. */
export function exitStatus(status: number): number {
  return status === -1 ? 1 : status & 0xff
}

/** A control's outcome on one of several nodes: the reply, or the error number that a single one would have failed with. */
export type Outcome<Reply> =
  | { readonly ok: true; readonly reply: Reply }
  | { readonly ok: false; readonly error: number }

export class Invocation {
  #leader: number | undefined
  #leaderHeard: (() => void)[] = []
  readonly #leaderChanged = new Set<() => void>()
  #node: number | undefined
  /** The node map as last fetched: nodes.ts keeps it here for the run. */
  nodeMap: NodeMap | undefined

  constructor(
    readonly command: Command,
    readonly words: readonly string[],
    readonly options: Options,
    readonly output: Output,
    /** Undefined for commands that work without the daemon. */
    private readonly connection: Client | undefined,
  ) {}

  get client(): Client {
    if (this.connection === undefined) throw new Error(`${this.command.name} has no connection`)
    return this.connection
  }

  /** The node whose socket is used. */
  get localNode(): number {
    return this.client.pnn
  }

  /** The node that the command is for: `-n`, or the local one. */
  get node(): number {
    return this.#node ?? this.localNode
  }

  /** Takes the node of `-n`, after it has been checked. */
  chooseNode(pnn: number): void {
    this.#node = pnn
  }

  /** Limit of one request, ms. */
  get timeoutMs(): number {
    return Math.max(0, this.options.timeLimit) * 1000
  }

  /** Standard error, then the end with this status. */
  fail(status: number, line?: string): never {
    if (line !== undefined) this.output.warn(line)
    throw new Failure(status)
  }

  /** A word that is no number of its kind: the stock tool ends without a text; people get one. */
  badNumber(word: string, errno: number): number {
    if (this.output.mode === "terminal") {
      this.output.warn(
        `${this.command.name}: "${word}" is ${errno === Errno.EINVAL ? "not a number" : "too large a number"}`,
      )
    }
    return errno
  }

  /**
   * Sends a control and returns its reply. A failure prints the stock tool's line, then `line` if given.
   * @throws Failure
   */
  async control<N extends ControlName>(
    name: N,
    node: number,
    request?: RequestOf<N>,
    line?: string,
  ): Promise<ReplyOf<N>> {
    const outcome = await this.tryControl(name, node, request)
    if (outcome.ok) return outcome.reply
    return this.fail(outcome.error, line)
  }

  /** The same with the failure as a value; its line has been printed. */
  async tryControl<N extends ControlName>(name: N, node: number, request?: RequestOf<N>): Promise<Outcome<ReplyOf<N>>> {
    try {
      if (this.timeoutMs === 0) throw timedOut(name, node)
      return { ok: true, reply: await this.client.control(name, node, request, { timeoutMs: this.timeoutMs }) }
    } catch (error) {
      return { ok: false, error: this.controlFailed(error, name, node) }
    }
  }

  /** The reply's status, of controls whose result it is (any number counts as an answer). @throws Failure */
  async controlStatus<N extends ControlName>(name: N, node: number, request?: RequestOf<N>): Promise<number> {
    try {
      if (this.timeoutMs === 0) throw timedOut(name, node)
      return await this.client.controlStatus(name, node, request, { timeoutMs: this.timeoutMs })
    } catch (error) {
      throw new Failure(this.controlFailed(error, name, node))
    }
  }

  /** The status of controls that answer with it, negative ones being failures. @throws Failure */
  async controlValue<N extends ControlName>(name: N, node: number): Promise<number> {
    const status = await this.controlStatus(name, node)
    return status < 0 ? this.fail(this.controlRefused(name, status)) : status
  }

  /** For a status that means failure after controlStatus(): the stock tool's line, and the status to end with. */
  controlRefused(name: ControlName, status: number): number {
    this.output.warn(`Control ${name} failed, ret=${status}`)
    return status
  }

  /** Sends a control to several nodes at once. No line is printed for those that fail. */
  async controlAll<N extends ControlName>(
    name: N,
    nodes: readonly number[],
    request?: RequestOf<N>,
  ): Promise<Map<number, Outcome<ReplyOf<N>>>> {
    const asked = nodes.map(async (node): Promise<[number, Outcome<ReplyOf<N>>]> => {
      try {
        if (this.timeoutMs === 0) throw timedOut(name, node)
        const reply = await this.client.control(name, node, request, { timeoutMs: this.timeoutMs })
        return [node, { ok: true, reply }]
      } catch (error) {
        return [node, { ok: false, error: errorNumber(error) }]
      }
    })
    return new Map(await Promise.all(asked))
  }

  private controlFailed(error: unknown, name: ControlName, node: number): number {
    const number = errorNumber(error)
    if (!(error instanceof ControlError)) throw error
    if (error.reason === "closed") throw new Failure(1)
    const where = error.reason === "status" ? "" : ` to node ${node}`
    this.output.warn(`Control ${name} failed${where}, ret=${number}`)
    // What the stock tool throws away: the daemon's own words. People get them, scripts the stock line alone.
    if (this.output.mode === "terminal" && error.reason === "status" && error.text !== "") {
      this.output.warn(`  the daemon of node ${node} says: ${error.text}`)
    }
    return number
  }

  /** Listens for leader broadcasts from now on. */
  async followLeader(): Promise<void> {
    await this.client.onMessage(Srvid.LEADER, (payload) => {
      if (payload.length < 4) return
      const leader = decode(u32, payload)
      const isNew = leader !== this.#leader
      this.#leader = leader
      for (const heard of this.#leaderHeard.splice(0)) heard()
      if (isNew) for (const changed of this.#leaderChanged) changed()
    })
  }

  /** The leader as last broadcast; waits up to the time limit for the first broadcast, then it is UNKNOWN_PNN. */
  async leader(): Promise<number> {
    if (this.#leader !== undefined) return this.#leader
    this.output.flush()
    await new Promise<void>((resolve) => {
      const timer = setTimeout(resolve, this.timeoutMs)
      this.#leaderHeard.push(() => {
        clearTimeout(timer)
        resolve()
      })
    })
    return this.#leader ?? UNKNOWN_PNN
  }

  /** Calls back when another leader than before is heard, until the returned function is called. */
  onNewLeader(changed: () => void): () => void {
    this.#leaderChanged.add(changed)
    return () => this.#leaderChanged.delete(changed)
  }

  /** Does what may take long; on a terminal it says what is waited for. */
  async waiting<T>(text: string | (() => string), wait: () => Promise<T>): Promise<T> {
    this.output.flush()
    if (this.output.mode !== "terminal") return await wait()
    const terminal = await import("./terminal.ts")
    return await terminal.waiting(text, wait())
  }

  async sleep(ms: number): Promise<void> {
    this.output.flush()
    await Bun.sleep(ms)
  }
}

function timedOut(name: ControlName, node: number): ControlError {
  return new ControlError(name, node, "timeout", -1, "")
}

/** The number that stands for a failed control in texts and exit statuses. */
function errorNumber(error: unknown): number {
  if (!(error instanceof ControlError)) throw error
  switch (error.reason) {
    case "status":
      return error.status
    case "timeout":
      return Errno.ETIMEDOUT
    case "protocol":
      return Errno.EPROTO
    case "closed":
      return Errno.EIO
  }
}
