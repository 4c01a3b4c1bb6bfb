// `ctdb links DIR`: makes the stock program names in DIR, each a symbolic link to this binary, so that scripts and units
// written for the stock package find `ctdbd`, `ctdb-path` and so on. It never replaces a file that is not such a link.

import { lstatSync, mkdirSync, readlinkSync, symlinkSync, unlinkSync } from "node:fs"
import { join, resolve } from "node:path"
import { stockNames } from "./names.ts"

const usage = `Usage: ctdb links [--force] DIR
  Creates in DIR a symbolic link to this program for each stock program name. DIR is made if it does not exist.
  --force   also replace links that point elsewhere (files that are no links always stay)
`

/** What has to be done for one name; `problem` is the text for the operator. */
type Step = { readonly kind: "keep" | "create" | "replace" } | { readonly kind: "refuse"; readonly problem: string }

function stepFor(path: string, target: string, force: boolean): Step {
  const entry = lstatSync(path, { throwIfNoEntry: false })
  if (entry === undefined) return { kind: "create" }
  if (!entry.isSymbolicLink()) return { kind: "refuse", problem: `${path} exists and is not a link: left as it is` }
  const present = readlinkSync(path)
  if (present === target) return { kind: "keep" }
  if (force) return { kind: "replace" }
  return { kind: "refuse", problem: `${path} points to ${present}: left as it is (--force replaces it)` }
}

export async function run(argv: readonly string[]): Promise<number> {
  const force = argv.includes("--force")
  const [directory, ...surplus] = argv.filter((word) => word !== "--force")
  if (directory === undefined || surplus.length > 0 || directory.startsWith("-")) {
    process.stderr.write(usage)
    return 1
  }
  const target = resolve(process.execPath)
  let refused = 0
  try {
    mkdirSync(directory, { recursive: true })
    for (const name of ["ctdb", ...Object.keys(stockNames())]) {
      const path = join(directory, name)
      if (resolve(path) === target) continue
      const step = stepFor(path, target, force)
      if (step.kind === "refuse") {
        process.stderr.write(`${step.problem}\n`)
        refused++
        continue
      }
      if (step.kind === "replace") unlinkSync(path)
      if (step.kind !== "keep") symlinkSync(target, path)
    }
  } catch (error) {
    process.stderr.write(`ctdb links: ${error instanceof Error ? error.message : String(error)}\n`)
    return 1
  }
  return refused === 0 ? 0 : 1
}
