// Transactions on persistent and replicated databases: pfetch, pstore, pdelete, ptrans. Reference page "Admin tool", section 8.9.

import { readFileSync } from "node:fs"
import type { Database } from "../../lib/client/database.ts"
import { Transaction } from "../../lib/client/transaction.ts"
import { attachFound, bytesJson, bytesOfText, findDatabase, isVolatile, parseBytes, recordWork } from "./databases.ts"
import { Failure, type Invocation } from "./invocation.ts"
import { cString } from "./records.ts"

/** Finds and attaches the database of the first word. @throws Failure for a volatile one */
async function transactional(invocation: Invocation): Promise<Database> {
  const found = await findDatabase(invocation, invocation.words[0] ?? "")
  if (isVolatile(found.flags)) return invocation.fail(1, `Transactions not supported on DB ${found.name}`)
  return await attachFound(invocation, found)
}

function start(invocation: Invocation, database: Database, readonly: boolean): Promise<Transaction> {
  const line = `Failed to start transaction on db ${database.name}`
  return recordWork(invocation, line, () =>
    invocation.waiting(`Waiting for the transaction lock of ${database.name}`, () =>
      Transaction.start(invocation.client, database, { readonly }),
    ),
  )
}

/** Commits; nothing changed is no commit. @throws Failure */
async function commit(invocation: Invocation, transaction: Transaction): Promise<void> {
  const { name } = transaction.database
  await recordWork(invocation, `Failed to commit transaction on db ${name}`, () =>
    invocation.waiting(`Committing to ${name}`, () => transaction.commit()),
  )
}

export async function pfetch(invocation: Invocation): Promise<number> {
  const { output, words } = invocation
  const [, word = ""] = words
  const database = await transactional(invocation)
  const key = parseBytes(invocation, "key", word)
  const transaction = await start(invocation, database, true)
  let data: Uint8Array | undefined
  try {
    data = await recordWork(invocation, `Failed to read record for key ${word}`, () => transaction.fetch(key))
  } finally {
    await transaction.cancel()
  }
  if (output.mode === "json") {
    output.json({ database: database.name, key: bytesJson(key), data: data === undefined ? null : bytesJson(data) })
  } else {
    // A missing record is an empty line, which scripts know.
    output.printBytes(Buffer.concat([cString(data ?? new Uint8Array(0)), Buffer.from("\n")]))
  }
  return 0
}

export async function pstore(invocation: Invocation): Promise<number> {
  const [, word = "", value = ""] = invocation.words
  const database = await transactional(invocation)
  const key = parseBytes(invocation, "key", word)
  const data = parseBytes(invocation, "value", value)
  const transaction = await start(invocation, database, false)
  await recordWork(invocation, `Failed to store record for key ${word}`, () => transaction.store(key, data))
  const { changed } = transaction
  await commit(invocation, transaction)
  if (invocation.output.mode === "json") invocation.output.json({ database: database.name, changed })
  return 0
}

export async function pdelete(invocation: Invocation): Promise<number> {
  const [, word = ""] = invocation.words
  const database = await transactional(invocation)
  const key = parseBytes(invocation, "key", word)
  const transaction = await start(invocation, database, false)
  await recordWork(invocation, `Failed to delete record for key ${word}`, () => transaction.delete(key))
  const { changed } = transaction
  await commit(invocation, transaction)
  if (invocation.output.mode === "json") invocation.output.json({ database: database.name, changed })
  return 0
}

/** One line of ptrans: what to store, nothing (an empty key), or what is wrong with it. */
type Line =
  | { readonly kind: "store"; readonly key: Uint8Array; readonly value: Uint8Array }
  | { readonly kind: "skip" }
  | { readonly kind: "bad"; readonly text: string }

/**
 * Reads `"KEY" "VALUE"`, rest ignored. Quotes can't be escaped; `0x` is hexadecimal. `line` has one character a byte, its newline included:
 * the complaints quote what is left of the line, as the stock tool's do.
 */
export function parseLine(line: string): Line {
  const first = quoted(line)
  if (first.kind !== "text") return { kind: "bad", text: first.text }
  const second = quoted(first.rest)
  if (second.kind !== "text") return { kind: "bad", text: second.text }
  const key = bytesOfText(first.text, `"${first.rest}`)
  if (typeof key === "string") return { kind: "bad", text: key }
  const value = bytesOfText(second.text, `"${second.rest}`)
  if (typeof value === "string") return { kind: "bad", text: value }
  return key.length === 0 ? { kind: "skip" } : { kind: "store", key, value }
}

function quoted(
  text: string,
):
  | { readonly kind: "text"; readonly text: string; readonly rest: string }
  | { readonly kind: "bad"; readonly text: string } {
  const trimmed = text.replace(/^[ \t]+/, "")
  if (!trimmed.startsWith('"')) return { kind: "bad", text: `Unsupported input format in ${text}` }
  const end = trimmed.indexOf('"', 1)
  if (end < 0) return { kind: "bad", text: `Unmatched " in input ${text}` }
  return { kind: "text", text: trimmed.slice(1, end), rest: trimmed.slice(end + 1) }
}

export async function ptrans(invocation: Invocation): Promise<number> {
  const { output, words } = invocation
  const [, file] = words
  const database = await transactional(invocation)
  let input: Uint8Array
  try {
    input = readFileSync(file ?? 0)
  } catch (error) {
    if (file === undefined) input = new Uint8Array(0)
    else {
      output.warn(`Failed to open file ${file}`)
      if (output.mode === "terminal" && error instanceof Error) output.warn(`  ${error.message}`)
      throw new Failure(1)
    }
  }
  const transaction = await start(invocation, database, false)
  // One character a byte.
  for (const line of Buffer.from(input)
    .toString("latin1")
    .match(/[^\n]*\n|[^\n]+$/g) ?? []) {
    const parsed = parseLine(line)
    if (parsed.kind === "bad") output.warn(Buffer.from(parsed.text, "latin1").toString())
    if (parsed.kind !== "store") continue
    const { key, value } = parsed
    const text = Buffer.from(key).toString()
    await recordWork(invocation, `Failed to store record for key ${text}`, () => transaction.store(key, value))
  }
  const { changed } = transaction
  await commit(invocation, transaction)
  if (output.mode === "json") output.json({ database: database.name, changed })
  return 0
}
