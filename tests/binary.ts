// The compiled program that tests run: dist/ctdb, built again if a source is newer. CTDB_TEST_BINARY names another one,
// which is taken as it is. Starts nothing.

import { existsSync, renameSync, rmSync, statSync } from "node:fs"
import { join } from "node:path"

const root = join(import.meta.dir, "..")
const target = join(root, "dist", "ctdb")

function newestSourceMs(): number {
  const sources = new Bun.Glob("{cmd,lib,daemon}/**/*.ts").scanSync(root)
  return Math.max(...[...sources, "build.ts", "package.json"].map((path) => statSync(join(root, path)).mtimeMs))
}

function build(): void {
  // A directory of its own for each process: test files that start side by side must not build into each other.
  const staging = join(root, "dist", `build-${process.pid}`)
  const built = Bun.spawnSync([process.execPath, "build.ts", join(staging, "ctdb")], {
    cwd: root,
    stdout: "ignore",
    stderr: "pipe",
  })
  if (!built.success) throw new Error(`the program can't be built: ${built.stderr.toString()}`)
  renameSync(join(staging, "ctdb"), target)
  rmSync(staging, { recursive: true, force: true })
}

function upToDate(): string {
  const chosen = process.env.CTDB_TEST_BINARY
  if (chosen !== undefined) return chosen
  if (!existsSync(target) || statSync(target).mtimeMs < newestSourceMs()) build()
  return target
}

/** Absolute path of the program under test. */
export const binary: string = upToDate()
