// ARCHITECTURE.md lists the controls that a node does not serve. The list must be the truth.

import { expect, test } from "bun:test"
import { readFileSync } from "node:fs"
import { join } from "node:path"
import { implemented } from "../../daemon/controls.ts"
import { type Control, type ControlName, controls } from "../../lib/protocol/controls.ts"

test("the controls that are refused are those that ARCHITECTURE.md names", () => {
  const text = readFileSync(join(import.meta.dir, "../../ARCHITECTURE.md"), "utf8")
  const named = [...text.matchAll(/^\| (\d+) \| ([A-Z0-9_]+) \|/gm)].map(([, opcode, name]) => `${opcode} ${name}`)
  const missing = (Object.entries(controls) as [ControlName, Control][])
    .filter(([name, control]) => !control.obsolete && !implemented.has(name))
    .map(([name, { opcode }]) => `${opcode} ${name}`)
  expect(named.sort()).toEqual(missing.sort())
})
