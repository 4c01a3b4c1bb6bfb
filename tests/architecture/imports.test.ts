// The house's order: an import only ever points downward, libc is opened in one room alone, and the face, the daemon and
// the libraries don't know who stands above them. Reads the sources; runs nothing of them.

import { expect, test } from "bun:test"
import { readFileSync } from "node:fs"
import { dirname, join, relative, resolve } from "node:path"

const root = resolve(import.meta.dir, "../..")

/** Rooms from the bottom up: what a room may import besides itself. */
const ALLOWED: Readonly<Record<string, readonly string[]>> = {
  "lib/protocol": [],
  "lib/sys": [],
  "lib/tdb": ["lib/protocol", "lib/sys"],
  "lib/net": ["lib/protocol", "lib/sys"],
  "lib/config": ["lib/protocol", "lib/sys"],
  "lib/client": ["lib/net", "lib/tdb", "lib/config", "lib/protocol", "lib/sys"],
  daemon: ["lib/client", "lib/net", "lib/tdb", "lib/config", "lib/protocol", "lib/sys"],
  cmd: ["daemon", "lib/client", "lib/net", "lib/tdb", "lib/config", "lib/protocol", "lib/sys"],
}

/** What the product may depend on besides Bun and Node's own modules. */
const PACKAGES = ["cac", "@clack/prompts", "cli-table3", "msgpackr"]

function roomOf(path: string): string | undefined {
  return Object.keys(ALLOWED).find((room) => path.startsWith(`${room}/`))
}

function sources(): string[] {
  return [...new Bun.Glob("{lib,daemon,cmd}/**/*.ts").scanSync(root)].sort()
}

function importsOf(path: string): string[] {
  const text = readFileSync(join(root, path), "utf8")
  const found = [...text.matchAll(/(?:^|\n)\s*(?:import|export)\s[^;"']*?from\s*["']([^"']+)["']/g)]
  const bare = [...text.matchAll(/(?:^|\n)import\s*["']([^"']+)["']/g)]
  const dynamic = [...text.matchAll(/\bimport\(\s*["']([^"']+)["']\s*\)/g)]
  return [...found, ...bare, ...dynamic].map((match) => match[1] ?? "")
}

test("every source file belongs to a room", () => {
  expect(sources().length).toBeGreaterThan(50)
  expect(sources().filter((path) => roomOf(path) === undefined)).toEqual([])
})

test("imports point downward only", () => {
  const upward: string[] = []
  for (const path of sources()) {
    const room = roomOf(path) ?? ""
    for (const name of importsOf(path)) {
      if (!name.startsWith(".")) continue
      const target = relative(root, resolve(root, dirname(path), name))
      const other = roomOf(target)
      if (other === room) continue
      if (other === undefined || !(ALLOWED[room] ?? []).includes(other)) upward.push(`${path} imports ${target}`)
    }
  }
  expect(upward).toEqual([])
})

test("only lib/sys opens libraries", () => {
  const users = sources().filter((path) => importsOf(path).includes("bun:ffi"))
  expect(users.length).toBeGreaterThan(0)
  expect(users.filter((path) => !path.startsWith("lib/sys/"))).toEqual([])
})

test("protocol logic does no input or output", () => {
  const outside = sources()
    .filter((path) => path.startsWith("lib/protocol/"))
    .filter((path) => importsOf(path).some((name) => name.startsWith("node:") || name.startsWith("bun")))
  expect(outside).toEqual([])
})

test("the daemon's logic reaches the world only through its environment", () => {
  // These are the environment, or a part of it.
  const environment = [
    "daemon/environment-bun.ts",
    "daemon/cluster/lock-helper.ts",
    "daemon/database/files-disk.ts",
    "daemon/recovery/files.ts",
  ]
  const direct = sources()
    .filter((path) => path.startsWith("daemon/") && !environment.includes(path))
    .filter((path) => {
      const text = readFileSync(join(root, path), "utf8").replace(/\/\/.*|\/\*[\s\S]*?\*\//g, "")
      return (
        importsOf(path).some((name) => name.startsWith("node:fs") || name.startsWith("node:net")) ||
        /\bBun\.|\bsetTimeout\(|\bsetInterval\(|\bsetImmediate\(|\bDate\.now\(|\bperformance\.|\bMath\.random\(/.test(
          text,
        )
      )
    })
  expect(direct).toEqual([])
})

test("dependencies are the chosen few", () => {
  const names = new Set<string>()
  for (const path of sources()) {
    for (const name of importsOf(path)) {
      if (name.startsWith(".") || name.startsWith("node:") || name === "bun" || name.startsWith("bun:")) continue
      names.add(name)
    }
  }
  expect([...names].filter((name) => !PACKAGES.includes(name))).toEqual([])
})
