// The command-line conventions that the stock programs share (popt's): options and words mix until `--`, `-dVALUE`, `-d=VALUE`, `--debug=VALUE`,
// an option that only prints a help text ends the parse where it stands, and the words of the errors. It knows no option: programs bring
// their tables.

/** An option as a program declares it. */
export interface PoptOption {
  readonly long?: string
  readonly short?: string
  readonly takesValue: boolean
  /** What follows is not looked at: an error before it wins, one after it is not seen. */
  readonly ends?: true
  /** What is wrong with a value, if anything. */
  readonly check?: (value: string) => string | undefined
}

export type PoptResult<Option> =
  | {
      readonly kind: "options"
      readonly seen: readonly { readonly option: Option; readonly value: string }[]
      readonly words: readonly string[]
    }
  /** `Invalid option WHAT: WHY` is the stock text. */
  | { readonly kind: "error"; readonly what: string; readonly why: string }

/** Splits arguments into options, in their order, and words. The value of an option that takes none is "". */
export function parsePopt<Option extends PoptOption>(
  argv: readonly string[],
  options: readonly Option[],
): PoptResult<Option> {
  const seen: { option: Option; value: string }[] = []
  const words: string[] = []
  const wrong = (what: string, why: string): PoptResult<Option> => ({ kind: "error", what, why })
  let next = 0
  while (next < argv.length) {
    const argument = argv[next++]!
    if (argument === "--") {
      words.push(...argv.slice(next))
      break
    }
    if (!argument.startsWith("-") || argument === "-") {
      words.push(argument)
      continue
    }
    const isLong = argument.startsWith("--")
    const equals = isLong ? argument.indexOf("=") : -1
    const name = isLong ? argument.slice(2, equals < 0 ? undefined : equals) : ""
    // A long option is the whole argument, a short one a letter of it.
    for (let letter = isLong ? argument.length - 1 : 1; letter < argument.length; letter++) {
      const option = options.find((known) => (isLong ? known.long === name : known.short === argument[letter]))
      if (option === undefined) return wrong(argument, "unknown option")
      const joined = isLong
        ? equals < 0
          ? undefined
          : argument.slice(equals + 1)
        : letter + 1 < argument.length
          ? argument.slice(letter + 1)
          : undefined
      if (!option.takesValue) {
        if (isLong ? joined !== undefined : joined?.startsWith("=") === true) {
          return wrong(argument, "option does not take an argument")
        }
        seen.push({ option, value: "" })
        if (option.ends === true) return { kind: "options", seen, words }
        continue
      }
      if (joined === undefined && next >= argv.length) return wrong(argument, "missing argument")
      const source = joined === undefined ? argv[next++]! : argument
      const value = joined === undefined ? source : isLong ? joined : joined.replace(/^=/, "")
      const why = option.check?.(value)
      if (why !== undefined) return wrong(source, why)
      seen.push({ option, value })
      break
    }
  }
  return { kind: "options", seen, words }
}
