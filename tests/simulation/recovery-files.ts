// Scratch files and kept records of a recovery, in memory: what the simulator gives instead of a state directory.

import type { Aside, RecoveryFiles, Scratch } from "../../daemon/recovery/files.ts"

/** Records by file name, each key and value as text of bytes (latin1). */
export type Kept = Map<string, Map<string, string>>

export function memoryFiles(kept: Kept): RecoveryFiles {
  return { openScratch, openAside: () => openAside(kept) }
}

function openScratch(): Scratch {
  let bytes = new Uint8Array(4096)
  let end = 0
  return {
    append: (piece) => {
      while (end + piece.length > bytes.length) {
        const grown = new Uint8Array(bytes.length * 2)
        grown.set(bytes)
        bytes = grown
      }
      bytes.set(piece, end)
      end += piece.length
      return end - piece.length
    },
    read: (offset, target) => target.set(bytes.subarray(offset, offset + target.length)),
    close: () => {},
  }
}

function openAside(kept: Kept): Aside {
  const records = new Map<string, string>()
  return {
    store: (key, data) => {
      records.set(Buffer.from(key).toString("latin1"), Buffer.from(data).toString("latin1"))
    },
    keep: (name) => {
      kept.set(name, records)
      return name
    },
    abandon: () => {},
  }
}
