// The command-line conventions that the stock small programs share: options anywhere before `--`, `-dVALUE`, `--debug=VALUE`,
// and the words of the errors. Only what those programs need; the admin tool has its own parser.

/** An option as the two small programs declare it. */
export interface PoptOption {
  readonly long: string
  readonly short?: string
  readonly takesValue: boolean
}

export type PoptResult =
  | {
      readonly kind: "options"
      readonly seen: readonly { option: PoptOption; value: string }[]
      readonly words: string[]
    }
  /** `Invalid option WHAT: WHY` is the stock text. */
  | { readonly kind: "error"; readonly what: string; readonly why: string }

/**
 * Splits arguments into options and words. `stopAt` ends the parse at once when an option is met that only prints a help
 * text: what follows it is not looked at.
 */
export function parsePopt(
  argv: readonly string[],
  options: readonly PoptOption[],
  stopAt: ReadonlySet<string>,
): PoptResult {
  const seen: { option: PoptOption; value: string }[] = []
  const words: string[] = []
  const missing = (what: string): PoptResult => ({ kind: "error", what, why: "missing argument" })
  for (let at = 0; at < argv.length; at++) {
    const argument = argv[at]!
    if (argument === "--") {
      words.push(...argv.slice(at + 1))
      break
    }
    if (!argument.startsWith("-") || argument === "-") {
      words.push(argument)
      continue
    }
    if (argument.startsWith("--")) {
      const equals = argument.indexOf("=")
      const name = equals < 0 ? argument.slice(2) : argument.slice(2, equals)
      const option = options.find((candidate) => candidate.long === name)
      if (option === undefined) return { kind: "error", what: argument, why: "unknown option" }
      if (!option.takesValue && equals >= 0) {
        return { kind: "error", what: argument, why: "option does not take an argument" }
      }
      if (option.takesValue && equals < 0 && at + 1 >= argv.length) return missing(argument)
      const value = !option.takesValue ? "" : equals >= 0 ? argument.slice(equals + 1) : argv[++at]!
      seen.push({ option, value })
      if (stopAt.has(option.long)) return { kind: "options", seen, words }
      continue
    }
    for (let letter = 1; letter < argument.length; letter++) {
      const option = options.find((candidate) => candidate.short === argument[letter])
      if (option === undefined) return { kind: "error", what: argument, why: "unknown option" }
      let value = ""
      if (option.takesValue) {
        const rest = argument.slice(letter + 1).replace(/^=/, "")
        if (letter + 1 < argument.length) value = rest
        else if (at + 1 < argv.length) value = argv[++at]!
        else return missing(argument)
        letter = argument.length
      }
      seen.push({ option, value })
      if (stopAt.has(option.long)) return { kind: "options", seen, words }
    }
  }
  return { kind: "options", seen, words }
}
