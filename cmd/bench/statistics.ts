// Medians and spreads of samples, and of ratios of samples that were taken by turns. Nothing here knows what was measured.

export interface Spread {
  readonly median: number
  readonly least: number
  readonly most: number
}

/** NaN of no samples. */
export function spread(samples: readonly number[]): Spread {
  const sorted = samples.toSorted((a, b) => a - b)
  const middle = sorted.length >> 1
  const median =
    sorted.length === 0
      ? Number.NaN
      : sorted.length % 2 === 1
        ? sorted[middle]!
        : (sorted[middle - 1]! + sorted[middle]!) / 2
  return { median, least: sorted[0] ?? Number.NaN, most: sorted.at(-1) ?? Number.NaN }
}

/** How many times better the first target is, from the samples of each turn. Above 1: the first is better, whichever way better is. */
export function ratios(first: readonly number[], second: readonly number[], better: "more" | "less"): Spread {
  const pairs = first.slice(0, second.length).map((value, turn) => {
    const other = second[turn]!
    return better === "more" ? value / other : other / value
  })
  return spread(pairs)
}
