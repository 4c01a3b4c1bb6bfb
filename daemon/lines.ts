// The output of child processes, line by line.

/** A line that grows longer is handed on in parts (characters). */
const LINE_MAX = 4096

/** Hands on what comes, line by line, until the stream ends. */
export async function readLines(stream: ReadableStream<Uint8Array>, onLine: (line: string) => void): Promise<void> {
  const decoder = new TextDecoder()
  let rest = ""
  for await (const chunk of stream) {
    const lines = (rest + decoder.decode(chunk, { stream: true })).split("\n")
    rest = lines.pop() ?? ""
    for (const line of lines) onLine(line)
    if (rest.length > LINE_MAX) {
      onLine(rest)
      rest = ""
    }
  }
  if (rest !== "") onLine(rest)
}
