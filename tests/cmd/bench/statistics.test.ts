// What `ctdb bench` makes of its samples: percentiles, the operations that a closed loop does not see, medians and ratios; and which command
// lines it refuses. Runs no load.

import { expect, test } from "bun:test"
import fc from "fast-check"
import { duration, short, timeChart } from "../../../cmd/bench/charts.ts"
import { Histogram } from "../../../cmd/bench/histogram.ts"
import { type Options, parseOptions } from "../../../cmd/bench/options.ts"
import { fitted } from "../../../cmd/bench/output.ts"
import { ratios, spread } from "../../../cmd/bench/statistics.ts"

function histogramOf(values: readonly number[]): Histogram {
  const histogram = new Histogram()
  for (const value of values) histogram.record(value)
  return histogram
}

test("percentiles are within a bucket of the exact ones", () => {
  fc.assert(
    fc.property(
      fc.array(fc.integer({ min: 1, max: 1e12 }), { minLength: 1, maxLength: 200 }),
      fc.constantFrom(0.01, 0.5, 0.9, 0.99, 1),
      (values, share) => {
        const exact = values.toSorted((a, b) => a - b)[Math.ceil(values.length * share) - 1]!
        const found = histogramOf(values).percentile(share)
        expect(found).toBeGreaterThan(exact * 0.96)
        expect(found).toBeLessThan(exact * 1.04)
      },
    ),
  )
})

test("a histogram goes through a pipe as it is", () => {
  const values = [1, 17, 1000, 1001, 5e9]
  const copy = new Histogram()
  copy.addNumbers(histogramOf(values).toNumbers())
  expect(copy.count).toBe(5)
  expect(copy.max).toBe(5e9)
  expect(copy.percentile(0.5)).toBe(histogramOf(values).percentile(0.5))
})

test("a standstill counts for every operation that would have begun during it", () => {
  // 10,000 operations of 100 us, then one of 1 s: in that second another 10,000 would have waited, half a second on average.
  const seen = histogramOf([...Array.from({ length: 10_000 }, () => 100_000), 1e9])
  expect(seen.percentile(0.99)).toBeLessThan(200_000)
  const corrected = seen.corrected(100_000)
  expect(corrected.count).toBeGreaterThan(19_800)
  expect(corrected.count).toBeLessThan(20_200)
  expect(corrected.percentile(0.75)).toBeGreaterThan(0.45e9)
  expect(corrected.percentile(0.75)).toBeLessThan(0.55e9)
  expect(corrected.max).toBe(1e9)
})

test("nothing is added when nothing stood still", () => {
  const seen = histogramOf([100, 100, 120])
  expect(seen.corrected(150).count).toBe(3)
})

test("medians and spreads", () => {
  expect(spread([3, 1, 2])).toEqual({ median: 2, least: 1, most: 3 })
  expect(spread([4, 1, 2, 3]).median).toBe(2.5)
  expect(spread([]).median).toBeNaN()
})

test("ratios go turn by turn and say how much better the first is", () => {
  expect(ratios([10, 30], [5, 10], "more")).toEqual({ median: 2.5, least: 2, most: 3 })
  expect(ratios([10], [5], "less").median).toBe(0.5)
})

const parsed = (...words: string[]): Options => {
  const options = parseOptions(words)
  if (options === "help" || "fault" in options) throw new Error(JSON.stringify(options))
  return options
}

test("a target is what was given, and nodes are as many as sockets", () => {
  expect(parsed("ring", "--socket", "/a,/b", "--socket", "/c").nodes).toBe(3)
  expect(parsed("ring", "--sandbox", "4").nodes).toBe(4)
  expect(parsed("all", "--sandbox", "3", "--compare", "stock").compareStock).toBe(true)
  expect(parsed("ring", "--socket", "/a", "--nodes", "3").nodes).toBe(3)
})

test.each([
  [["nothing"], "no generator"],
  [[], "which generator"],
  [["ring", "--socket", "/a", "--samples", "4"], "--samples"],
  [["ring", "--socket", "/a", "--seconds", "soon"], "--seconds"],
  [["ring", "--socket", "/a,/b", "--compare", "/c"], "--compare has 1"],
  [["ring", "--socket", "/a", "--compare", "stock"], "--sandbox"],
  [["ring", "--sandbox", "3", "--socket", "/a"], "own sockets"],
  [["ring", "--socket", "/a", "--where", "tmpfs"], "sandbox"],
  [["ring", "--socket", "/a", "--kind", "volatile"], "--kind"],
  [["ring", "--wrong"], "wrong"],
  [["ring", "more", "--socket", "/a"], "too many"],
])("%p is refused", (words, part) => {
  const options = parseOptions(words)
  expect(options).toHaveProperty("fault")
  expect((options as { fault: string }).fault).toContain(part)
})

test("figures on charts are short", () => {
  expect(short(1_500_000)).toBe("1.5 M")
  expect(short(40)).toBe("40")
  expect(duration(1500)).toBe("1.5 ms")
  expect(duration(0.2)).toBe("200 ns")
})

test("a chart of anything is finite and bounded", () => {
  fc.assert(
    fc.property(
      fc.array(fc.tuple(fc.double({ min: 0, max: 100, noNaN: true }), fc.double({ min: 0, max: 1e9, noNaN: true }))),
      (points) => {
        expect(timeChart([{ name: "a", points }], "x/s")).not.toMatch(/NaN|Infinity|undefined/)
      },
    ),
  )
})

test("a table in a narrow terminal says what it leaves out, and then fits", () => {
  const cells = {
    head: [
      "Load",
      "Unit",
      "ours",
      "stock",
      "Ratio",
      "Latency us p50/p99/max",
      "Client us",
      "Daemon us",
      "Others' load",
    ],
    rows: [
      ["one record", "locks/s", "10 (9 .. 11)", "5 (4 .. 6)", "2.00 (1.50 .. 2.75)", "1 / 2 / 3", "0.1", "0.2", "3%"],
    ],
  }
  expect(fitted(cells, 200)).toEqual({ ...cells, left: [] })
  const some = fitted(cells, 120)
  expect(some.left).toEqual(["Daemon us", "Others' load"])
  expect(some.rows[0]).toEqual([...cells.rows[0]!.slice(0, 7)])
  const few = fitted(cells, 60)
  expect(few.rows).toEqual([["one record", "locks/s", "10", "5", "2.00"]])
  expect(few.left).toEqual(["Latency us p50/p99/max", "Client us", "Daemon us", "Others' load", "spreads"])
})
