// How this program starts another of its own programs: as a compiled binary it runs itself under the installed name of the other, from a
// source tree it runs the same entry file with the other's word first. Which programs there are is cmd/main.ts's table.

export interface SelfCommand {
  readonly command: readonly string[]
  /** What ps shows as the name; only a compiled binary can be called by another name. */
  readonly argv0?: string
}

/** Whether this is the compiled binary (its files lie in a virtual file system), and not a source tree. */
const compiled = Bun.main.startsWith("/$bunfs/")

/** @param word first argument that selects the program; @param installed its name in the process list */
export function selfCommand(word: string, installed: string, argv: readonly string[]): SelfCommand {
  if (!compiled) return { command: [process.execPath, Bun.main, word, ...argv] }
  // Not execPath: an upgrade may have put another file there, and this node goes on with its own.
  return { command: ["/proc/self/exe", ...argv], argv0: installed }
}
