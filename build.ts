// Compiles the product: one executable, dist/ctdb (or the path given), from cmd/main.ts. Needs no network: the runtime that is compiled in is
// the bun that runs this file. Modules stay separate chunks inside the executable, so that a command loads only what it
// uses; the source map stays too, so that a stack trace names our files and lines.

import { existsSync, mkdirSync, renameSync, rmSync, statSync } from "node:fs"
import { dirname, join } from "node:path"

const target = process.argv[2] ?? "dist/ctdb"
/** Where bun leaves the executable and a copy of each source map; the maps that count are inside the executable. */
const staging = join(dirname(target), ".build")

/** Files that are started as workers by their path: a compiled binary finds them only when they are entry points. */
const workers = [...new Bun.Glob("{lib,daemon}/**/{worker,waiter,*-worker,*.worker}.ts").scanSync(".")]

rmSync(staging, { recursive: true, force: true })
mkdirSync(staging, { recursive: true })
const started = performance.now()
const staged = join(staging, "ctdb")
const result = await Bun.build({
  entrypoints: ["cmd/main.ts", ...workers],
  target: "bun",
  format: "esm",
  splitting: true,
  minify: true,
  bytecode: true,
  sourcemap: "linked",
  compile: { outfile: staged, autoloadDotenv: false, autoloadBunfig: false },
  throw: false,
})
for (const log of result.logs) console.error(String(log))
if (!result.success || !existsSync(staged)) process.exit(1)
// Renamed into place, so that a running node keeps its executable and a failed build keeps the last good one.
renameSync(staged, target)
rmSync(staging, { recursive: true, force: true })
console.log(
  `${target} ${(statSync(target).size / 1e6).toFixed(0)} MB in ${((performance.now() - started) / 1000).toFixed(1)} s`,
)
