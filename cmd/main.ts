// The one entry point: picks a program by the name it is called by (`ctdbd`, `ctdb-path`...) or by the first argument
// (`ctdb run`), and loads only that program. It parses nothing else and has no import left at run time (the two below are
// macros), because the time of `ctdb version` is the time to load this file.

import { stockNames } from "./names.ts" with { type: "macro" }
import { versionText } from "./version.ts" with { type: "macro" }

/** One program: takes the arguments after its name, returns the exit status. */
interface Program {
  run(argv: readonly string[]): Promise<number>
}

/** Programs by the word after `ctdb`. What is not here is a command of the admin tool. */
const programs = new Map<string, () => Promise<Program>>([
  ["run", () => import("./run.ts")],
  ["recoverd", () => import("./recoverd.ts")],
  ["recovery-helper", () => import("./recovery-helper.ts")],
  ["mutex-fcntl-helper", () => import("./mutex-fcntl-helper.ts")],
  ["sandbox", () => import("./sandbox.ts")],
  ["tdb", () => import("./tdb.ts")],
  ["bench", () => import("./bench/main.ts")],
  ["config", () => import("./config.ts")],
  ["path", () => import("./path.ts")],
  ["links", () => import("./links.ts")],
])

async function start(calledAs: string, argv: readonly string[]): Promise<number> {
  const names: Record<string, string> = stockNames()
  const installed = Object.hasOwn(names, calledAs) ? programs.get(names[calledAs] ?? "") : undefined
  if (installed !== undefined) return (await installed()).run(argv)
  const named = programs.get(argv[0] ?? "")
  if (named !== undefined) return (await named()).run(argv.slice(1))
  return (await import("./admin/main.ts")).run(argv)
}

const argv = process.argv.slice(2)
const calledAs = process.argv0.slice(process.argv0.lastIndexOf("/") + 1)
if (calledAs !== "ctdb" || argv.length !== 1 || argv[0] !== "version" || process.env.CTDB_TIMEOUT !== undefined) {
  process.exit(await start(calledAs, argv))
}
console.log(versionText())
