// The rows of the performance table as values: what was measured, how ours stands to stock's, what is asked, and whether it holds. How a
// row is measured is in the other files of this folder; how it is printed in page.ts.

import { figure } from "../../../cmd/bench/progress.ts"
import { ratios, type Spread, spread } from "../../../cmd/bench/statistics.ts"

/** Which comparison decides: the same client on both daemons, or our client on our node beside stock's algorithm in C on a stock one. */
export type Decides = "daemon" | "whole"

export interface Line {
  readonly section: string
  readonly what: string
  readonly ours: string
  /** The same client or the same test, with stock's daemon, helper or library. */
  readonly stock: string
  /** The published algorithm in C on stock's daemon, where there is one. */
  readonly published?: string
  /** How many times better ours is than `stock`, and than `published`. */
  readonly daemon?: Spread
  readonly whole?: Spread
  /** What is asked, as text; none: told, not asked for. */
  readonly target?: string
  readonly decides?: Decides
  readonly holds?: boolean
}

/** A part of the table: measured in one go, kept in a file. */
export interface Part {
  readonly lines: readonly Line[]
  /** What checks of the loads found wrong. */
  readonly complaints: readonly string[]
  readonly load: number
  readonly seconds: number
}

export interface Asked {
  readonly section: string
  readonly what: string
  readonly unit: string
  readonly better: "more" | "less"
  /** The least ratio that is wanted, and by which comparison (default: daemon). */
  readonly least?: number
  readonly decides?: Decides
}

/** A row of samples; a single sample of each side is fine. */
export function compared(
  asked: Asked,
  ours: readonly number[],
  stock: readonly number[],
  published?: readonly number[],
): Line {
  const { section, what, unit, better, least, decides = "daemon" } = asked
  const text = (samples: readonly number[]) => `${figure(spread(samples).median)} ${unit}`
  const daemon = ratioOf(ours, stock, better)
  const whole = published === undefined ? undefined : ratioOf(ours, published, better)
  const deciding = decides === "whole" && whole !== undefined ? whole : daemon
  return {
    section,
    what,
    ours: text(ours),
    stock: text(stock),
    ...(published === undefined ? {} : { published: text(published) }),
    daemon,
    ...(whole === undefined ? {} : { whole }),
    ...(least === undefined
      ? {}
      : { target: `>= ${least}`, decides: deciding === whole ? "whole" : "daemon", holds: deciding.median >= least }),
  }
}

/** Median by median; least and most of the turns. Samples may be more on one side. */
function ratioOf(ours: readonly number[], stock: readonly number[], better: "more" | "less"): Spread {
  const { least, most } = ratios(ours, stock, better)
  const [mine, theirs] = [spread(ours).median, spread(stock).median]
  return { median: better === "more" ? mine / theirs : theirs / mine, least, most }
}

/** A row with a limit for ours alone. @param limit as text, like "<= 100 ms" */
export function limited(
  section: string,
  what: string,
  [ours, stock]: readonly [string, string],
  limit?: { readonly text: string; readonly holds: boolean },
): Line {
  return { section, what, ours, stock, ...(limit === undefined ? {} : { target: limit.text, holds: limit.holds }) }
}
