// A process that uses the real library on command, for tests: one JSON array [operation, ...strings or numbers] a line on stdin, one
// JSON result a line on stdout. Started by `Peer` below.

import { LibTdb } from "./libtdb.ts"

/** Drives such a process. */
export class Peer {
  private readonly process
  private readonly waiting: ((result: unknown) => void)[] = []

  constructor() {
    this.process = Bun.spawn([process.execPath, import.meta.path], { stdin: "pipe", stdout: "pipe", stderr: "inherit" })
    void this.listen()
  }

  get pid(): number {
    return this.process.pid
  }

  private async listen(): Promise<void> {
    let rest = ""
    const decoder = new TextDecoder()
    for await (const chunk of this.process.stdout) {
      rest += decoder.decode(chunk, { stream: true })
      const lines = rest.split("\n")
      rest = lines.pop()!
      for (const line of lines) this.waiting.shift()?.(JSON.parse(line))
    }
    for (const waiting of this.waiting) waiting("gone")
  }

  /** Send a command; resolves with its result when it is done. */
  call(...command: (string | number)[]): Promise<unknown> {
    this.process.stdin.write(`${JSON.stringify(command)}\n`)
    this.process.stdin.flush()
    return new Promise((resolve) => this.waiting.push(resolve))
  }

  async kill(): Promise<void> {
    this.process.kill("SIGKILL")
    await this.process.exited
  }
}

if (import.meta.main) {
  let db: LibTdb | null = null
  const key = (text: unknown): Buffer => Buffer.from(String(text))
  const run = ([operation, ...args]: unknown[]): unknown => {
    if (operation === "open") {
      db = LibTdb.open(String(args[0]), Number(args[1]), Number(args[2]), 0o102)
      return db !== null
    }
    switch (operation) {
      case "lock":
        return db!.lockChain(key(args[0]))
      case "try":
        return db!.tryLockChain(key(args[0]))
      case "unlock":
        return db!.unlockChain(key(args[0]))
      case "lockall":
        return db!.lockAll()
      case "lockallread":
        return db!.lockAllRead()
      case "unlockallread":
        return db!.unlockAllRead()
      case "trylockall":
        return db!.tryLockAll()
      case "unlockall":
        return db!.unlockAll()
      case "store":
        return db!.store(key(args[0]), key(args[1]))
      case "fetch":
        return Buffer.from(db!.fetch(key(args[0])) ?? "none").toString()
      case "start":
        return db!.start()
      case "commit":
        return db!.commit()
      case "prepare":
        return db!.prepare()
      case "cancel":
        return db!.cancel()
      case "check":
        return db!.check()
      case "close":
        return db!.close()
      default:
        throw new Error(`no operation ${String(operation)}`)
    }
  }
  for await (const line of console) console.log(JSON.stringify(run(JSON.parse(line))))
}
