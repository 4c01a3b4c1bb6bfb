// IP address literals as the configuration files hold them: parsed strictly and written in the canonical form, by the rules
// that the stock programs were seen to follow. No names, no ports, no scopes, no I/O.

export interface Address {
  readonly family: "inet" | "inet6"
  /** Canonical text: dotted quad, or RFC 5952 as inet_ntop writes it. */
  readonly text: string
}

const mappedPrefix = "::ffff:"

/**
 * An IPv4 or IPv6 literal, undefined for anything else. `[...]` around IPv6 is accepted; the IPv4-mapped form
 * `::ffff:1.2.3.4` becomes plain IPv4 (and a mapped address in any other spelling is refused), as the stock daemon does.
 */
export function parseAddress(text: string): Address | undefined {
  let literal = text
  if (literal.startsWith("[") && literal.endsWith("]")) {
    literal = literal.slice(1, -1)
    if (!literal.includes(":")) return undefined
  }
  if (!literal.includes(":")) return dottedQuad(literal)
  if (literal.toLowerCase().startsWith(mappedPrefix)) return dottedQuad(literal.slice(mappedPrefix.length))
  const groups = parseGroups(literal)
  return groups === undefined ? undefined : { family: "inet6", text: formatGroups(groups) }
}

function dottedQuad(text: string): Address | undefined {
  const numbers = quadBytes(text)
  return numbers === undefined ? undefined : { family: "inet", text: numbers.join(".") }
}

function quadBytes(text: string): number[] | undefined {
  const parts = text.split(".")
  if (parts.length !== 4) return undefined
  const bytes: number[] = []
  for (const part of parts) {
    if (!/^(0|[1-9][0-9]{0,2})$/.test(part)) return undefined
    const byte = Number(part)
    if (byte > 255) return undefined
    bytes.push(byte)
  }
  return bytes
}

/** The eight 16-bit groups of an IPv6 literal. */
function parseGroups(text: string): number[] | undefined {
  const halves = text.split("::")
  if (halves.length > 2) return undefined
  const head = parseRun(halves[0]!, halves.length === 1)
  const tail = halves.length === 2 ? parseRun(halves[1]!, true) : []
  if (head === undefined || tail === undefined) return undefined
  const missing = 8 - head.length - tail.length
  if (halves.length === 1) return missing === 0 ? head : undefined
  return missing >= 1 ? [...head, ...new Array<number>(missing).fill(0), ...tail] : undefined
}

function parseRun(text: string, mayEndInQuad: boolean): number[] | undefined {
  if (text === "") return []
  const groups: number[] = []
  const parts = text.split(":")
  for (const [index, part] of parts.entries()) {
    if (part.includes(".")) {
      const quad = mayEndInQuad && index === parts.length - 1 ? quadBytes(part) : undefined
      if (quad === undefined) return undefined
      groups.push(quad[0]! * 256 + quad[1]!, quad[2]! * 256 + quad[3]!)
    } else {
      if (!/^[0-9a-fA-F]{1,4}$/.test(part)) return undefined
      groups.push(Number.parseInt(part, 16))
    }
  }
  return groups
}

/** inet_ntop: the first longest run of at least two zero groups becomes `::`; `::a.b.c.d` for compatible addresses. */
function formatGroups(groups: readonly number[]): string {
  let bestStart = -1
  let bestLength = 1
  for (let start = 0; start < 8; start++) {
    let end = start
    while (end < 8 && groups[end] === 0) end++
    if (end - start > bestLength) {
      bestStart = start
      bestLength = end - start
    }
  }
  const quad = `${groups[6]! >> 8}.${groups[6]! & 255}.${groups[7]! >> 8}.${groups[7]! & 255}`
  if (bestStart === 0 && bestLength === 6) return `::${quad}`
  const hex = (part: readonly number[]) => part.map((group) => group.toString(16)).join(":")
  if (bestStart < 0) return hex(groups)
  return `${hex(groups.slice(0, bestStart))}::${hex(groups.slice(bestStart + bestLength))}`
}
