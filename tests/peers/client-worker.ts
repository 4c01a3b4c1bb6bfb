// One client process of tests/peers/client-database.test.ts: does the job that its argument describes (JSON) and prints what came of it.

import { closeSync, openSync, unlinkSync } from "node:fs"
import { attach } from "../../lib/client/attach.ts"
import { Client } from "../../lib/client/client.ts"
import type { Database, LockedRecord } from "../../lib/client/database.ts"
import { GLock, type GLockFormat } from "../../lib/client/g-lock.ts"
import { Transaction } from "../../lib/client/transaction.ts"

export type Job =
  | { readonly job: "count"; readonly keys: number; readonly rounds: number }
  | {
      readonly job: "churn"
      readonly keys: number
      readonly rounds: number
      readonly mine: string
      readonly others: readonly string[]
    }
  | { readonly job: "read"; readonly key: string; readonly until: number; readonly how: "lock" | "parse" }
  | { readonly job: "write"; readonly key: string; readonly until: number; readonly pauseMs: number }
  | { readonly job: "transact"; readonly kind: "persistent" | "replicated"; readonly rounds: number }
  | {
      readonly job: "exclude"
      readonly name: string
      readonly rounds: number
      readonly file: string
      readonly format: GLockFormat
    }
  | { readonly job: "hold"; readonly name: string }

export type Task = Job & { readonly socket: string; readonly database: string }

export interface Report {
  /** Rounds done. */
  readonly done: number
  readonly ms: number
  /**
   * Of "read": values that were smaller than one seen before; of "exclude": meetings in the critical section; of "churn": records that
   * were not as they had been left. Must be 0.
   */
  readonly wrong: number
  readonly migrations: number
  readonly chainWaits: number
}

const bytes = new Uint8Array(4)

const numberOf = (b: Uint8Array, start: number, length: number): number =>
  length < 4 ? 0 : (b[start]! | (b[start + 1]! << 8) | (b[start + 2]! << 16) | (b[start + 3]! << 24)) >>> 0

function bytesOf(value: number): Uint8Array {
  new DataView(bytes.buffer).setUint32(0, value, true)
  return bytes
}

async function lock(database: Database, key: Uint8Array, mode: "read" | "write" = "write"): Promise<LockedRecord> {
  const locked = database.fetchLock(key, mode)
  return locked instanceof Promise ? await locked : locked
}

async function increment(database: Database, key: Uint8Array): Promise<number> {
  const record = await lock(database, key)
  try {
    const value = record.parse(numberOf) + 1
    record.store(bytesOf(value))
    return value
  } finally {
    record.unlock()
  }
}

async function run(task: Task): Promise<Report> {
  const client = await Client.connect({ socket: task.socket, timeoutMs: 10_000 })
  const kind = task.job === "transact" ? task.kind : "volatile"
  const database = await attach(client, task.database, { kind })
  const started = performance.now()
  let done = 0
  let wrong = 0
  switch (task.job) {
    case "count": {
      const keys = Array.from({ length: task.keys }, (_, index) => Buffer.from(`counter ${index}`))
      for (; done < task.rounds; done++) {
        await increment(database, keys[(done * 7 + process.pid) % keys.length]!)
        // As other programs between two operations: lets the messages in.
        if (done % 64 === 0) await Bun.sleep(0)
      }
      break
    }
    case "churn": {
      // Records that come and go, this process's own, each time on another node: what was deleted stays away, what was written stays.
      const clients = await Promise.all(task.others.map((socket) => Client.connect({ socket, timeoutMs: 10_000 })))
      const databases = [database, ...(await Promise.all(clients.map((other) => attach(other, task.database))))]
      const anywhere = () => databases[Math.floor(Math.random() * databases.length)]!
      const left = new Map<number, number>()
      for (; done < task.rounds; done++) {
        const index = Math.floor(Math.random() * task.keys)
        const record = await lock(anywhere(), Buffer.from(`${task.mine} ${index}`))
        try {
          if (record.parse(numberOf) !== (left.get(index) ?? 0)) wrong++
          if ((left.get(index) ?? 0) > 0) record.delete()
          else record.store(bytesOf(done + 1))
          left.set(index, (left.get(index) ?? 0) > 0 ? 0 : done + 1)
        } finally {
          record.unlock()
        }
        if (done % 8 === 0) await Bun.sleep(2)
      }
      // Nothing of it stays.
      for (const [index, value] of left) {
        const record = await lock(anywhere(), Buffer.from(`${task.mine} ${index}`))
        if (record.parse(numberOf) !== value) wrong++
        record.delete()
        record.unlock()
      }
      await Promise.all(clients.map((other) => other.close()))
      break
    }
    case "write": {
      const key = Buffer.from(task.key)
      for (let value = 0; value < task.until; done++) {
        value = await increment(database, key)
        if (task.pauseMs > 0) await Bun.sleep(task.pauseMs)
      }
      break
    }
    case "read": {
      const key = Buffer.from(task.key)
      let last = 0
      for (; last < task.until; done++) {
        let value: number
        if (task.how === "lock") {
          const record = await lock(database, key, "read")
          value = record.parse(numberOf)
          record.unlock()
        } else value = (await database.parse(key, numberOf)) ?? 0
        if (value < last) wrong++
        last = Math.max(last, value)
        if (done % 16 === 0) await Bun.sleep(1)
      }
      break
    }
    case "transact": {
      const key = Buffer.from("counter")
      for (; done < task.rounds; done++) {
        const transaction = await Transaction.start(client, database)
        const data = await transaction.fetch(key)
        await transaction.store(key, bytesOf((data === undefined ? 0 : numberOf(data, 0, data.length)) + 1))
        await transaction.commit()
      }
      break
    }
    case "exclude": {
      for (; done < task.rounds; done++) {
        const held = await GLock.acquire(client, { name: task.name, type: "write", format: task.format })
        try {
          const descriptor = openSync(task.file, "wx")
          await Bun.sleep(0)
          closeSync(descriptor)
          unlinkSync(task.file)
        } catch {
          wrong++
        }
        await held.release()
      }
      break
    }
    case "hold": {
      await GLock.acquire(client, { name: task.name, type: "write" })
      process.stdout.write("held\n")
      await new Promise(() => {})
    }
  }
  const ms = performance.now() - started
  await client.close()
  return { done, ms, wrong, ...database.counters }
}

if (import.meta.main) {
  const report = await run(JSON.parse(process.argv[2] ?? "") as Task)
  process.stdout.write(`${JSON.stringify(report)}\n`)
  process.exit(0)
}
