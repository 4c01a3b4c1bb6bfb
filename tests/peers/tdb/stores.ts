// stores.ts FILE HASHSIZE FLAGS OUT SCRIPT: the file as it is after each single store of the real libtdb. See stores.c.

import { cc } from "bun:ffi"

const [file, hashSize, flags, out, script] = process.argv.slice(2) as [string, string, string, string, string]
const { symbols } = cc({
  source: new URL("./stores.c", import.meta.url).pathname,
  symbols: { watch_stores: { args: ["ptr", "i32", "i32", "ptr", "ptr"], returns: "i32" } },
})
const text = (value: string): Buffer => Buffer.from(`${value}\0`)
process.exit(symbols.watch_stores(text(file), Number(hashSize), Number(flags), text(script), text(out)) > 0 ? 0 : 1)
