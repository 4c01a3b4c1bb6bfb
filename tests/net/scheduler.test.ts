import { expect, test } from "bun:test"
import { realScheduler } from "../../lib/net/scheduler.ts"

test("a timer of a tunable's largest value, in seconds, is not over at once", async () => {
  const fired: string[] = []
  const far = realScheduler.setTimer(0xffffffff * 1000, () => fired.push("far"))
  await new Promise<void>((resolve) => realScheduler.setTimer(20, resolve))
  far.cancel()
  expect(fired).toEqual([])
})
