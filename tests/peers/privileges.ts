// What this machine lets a test do beyond running programs: mount file systems, and interfere with another process's system
// calls. Containers may allow neither, even to root; a test that needs them says so by being skipped there.

import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"

export const STRACE = "/usr/bin/strace"

const succeeds = (...words: string[]): boolean => {
  try {
    return Bun.spawnSync(words, { stdin: "ignore", stdout: "ignore", stderr: "ignore" }).success
  } catch {
    return false
  }
}

/** Whether strace is there and may follow a process that it did not start itself. */
export const canTrace = ((): boolean => {
  const other = Bun.spawn(["sleep", "60"], { stdin: "ignore", stdout: "ignore", stderr: "ignore" })
  try {
    // Ends at once when it may not attach, otherwise when the time is over.
    const words = [
      "timeout",
      "--preserve-status",
      "-s",
      "INT",
      "0.3",
      STRACE,
      "-o",
      "/dev/null",
      "-p",
      String(other.pid),
    ]
    const { exitCode, stderr } = Bun.spawnSync(words, { stdin: "ignore", stdout: "ignore", stderr: "pipe" })
    return exitCode !== null && stderr.toString().includes("attached")
  } catch {
    return false
  } finally {
    other.kill("SIGKILL")
  }
})()

/** Whether a file system of that type, ext4 in a file, can be mounted. */
export function canMount(type: "tmpfs" | "ext4"): boolean {
  if (process.getuid?.() !== 0) return false
  const directory = mkdtempSync(join(tmpdir(), "ctdb-mount-"))
  const at = join(directory, "mounted")
  const image = join(directory, "image")
  try {
    const made =
      succeeds("mkdir", at) &&
      (type === "tmpfs"
        ? succeeds("mount", "-t", "tmpfs", "ctdb-test", at)
        : succeeds("truncate", "-s", "8M", image) &&
          succeeds("mkfs.ext4", "-q", image) &&
          succeeds("mount", "-o", "loop", image, at))
    return made && succeeds("umount", at)
  } finally {
    rmSync(directory, { recursive: true, force: true })
  }
}
