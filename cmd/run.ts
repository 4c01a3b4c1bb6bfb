// Placeholder: this program is not written yet. It exists so that the entry point's table is whole.

export async function run(_argv: readonly string[]): Promise<number> {
  process.stderr.write("ctdb run: not part of this build yet\n")
  return 1
}
