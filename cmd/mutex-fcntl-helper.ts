// `ctdb_mutex_fcntl_helper FILE [RECHECK_INTERVAL [PING_TIMEOUT]]`: holds the cluster lock, a POSIX record lock on the first
// byte of FILE, for the daemon that started it, and answers on standard output by the helper protocol (cluster page 5.6,
// 5.7). A second process of the same program looks whether the file is still the locked one: opening and closing it in
// this one would give up the lock.

import { closeSync, fstatSync, openSync, writeSync } from "node:fs"
import { FIRST_BYTE, FileLock, waitForLock } from "../lib/sys/filelock.ts"
import { processExists } from "../lib/sys/process.ts"
import { selfCommand } from "../lib/sys/self.ts"
import { strerrorOf } from "../lib/sys/strerror.ts"

const NAME = "ctdb_mutex_fcntl_helper"
const PARENT_CHECK_MS = 5000
const RECHECK_S = 5
const PING_MS = 1000
const CHECK = "--check"

export async function run(argv: readonly string[]): Promise<number> {
  if (argv[0] === CHECK) return check(argv[1] ?? "", Number(argv[2]), Number(argv[3]))
  if (argv.length < 1 || argv.length > 3) {
    process.stderr.write(`Usage: ${NAME} <file> [recheck_interval [ping_timeout]]\n`)
    return 1
  }
  const [path = "", recheck = String(RECHECK_S), ping = "0"] = argv
  return hold(path, Number.parseInt(recheck, 10) || 0, Number.parseInt(ping, 10) || 0)
}

async function hold(path: string, recheckS: number, pingTimeoutS: number): Promise<number> {
  const parent = process.ppid
  let lock: FileLock | undefined
  try {
    lock = FileLock.tryLock(path, 0o600, FIRST_BYTE)
  } catch (error) {
    process.stderr.write(`${NAME}: Unable to open ${path} - (${strerrorOf(error)})\n`)
    writeSync(1, "3")
    return 0
  }
  if (lock === undefined) {
    writeSync(1, "1")
    return 0
  }
  writeSync(1, "0")
  if (parent === 1) return 0
  const reason = await new Promise<string>((over) => {
    process.on("SIGTERM", () => over(""))
    setInterval(() => {
      if (!processExists(parent) || process.ppid !== parent) over("parent gone")
    }, PARENT_CHECK_MS)
    if (recheckS > 0) watchFile(path, lock, recheckS, pingTimeoutS, over)
  })
  if (reason !== "") process.stderr.write(`${NAME}: ${reason}\n`)
  lock.release()
  return 0
}

/** Starts the process that checks the file, and gives up when it ends or no longer says that it lives. */
function watchFile(
  path: string,
  lock: FileLock,
  recheckS: number,
  pingTimeoutS: number,
  over: (reason: string) => void,
): void {
  const { command, argv0 } = selfCommand("mutex-fcntl-helper", NAME, [
    CHECK,
    path,
    String(lock.inode),
    String(recheckS),
  ])
  const child = Bun.spawn([...command], {
    stdin: "pipe",
    stdout: "pipe",
    stderr: "inherit",
    ...(argv0 === undefined ? {} : { argv0 }),
  })
  const silent = () => over("ping timeout from lock test child")
  let timer = pingTimeoutS > 0 ? setTimeout(silent, pingTimeoutS * 1000) : undefined
  void (async () => {
    for await (const _ of child.stdout) {
      if (timer === undefined) continue
      clearTimeout(timer)
      timer = setTimeout(silent, pingTimeoutS * 1000)
    }
    over("")
  })()
}

/** The checking process: ends when the path no longer leads to the locked file, or with the process that started it. */
async function check(path: string, inode: number, intervalS: number): Promise<number> {
  process.stdin.on("end", () => process.exit(0))
  process.stdin.resume()
  setInterval(() => writeSync(1, "."), PING_MS)
  for (;;) {
    await Bun.sleep(intervalS * 1000)
    let fd: number
    try {
      fd = openSync(path, "r+")
    } catch (error) {
      process.stderr.write(`${NAME}: lock lost - lock file "${path}" open failed (${strerrorOf(error)})\n`)
      return 0
    }
    if (fstatSync(fd).ino !== inode) {
      process.stderr.write(`${NAME}: lock lost - lock file "${path}" inode changed\n`)
      return 0
    }
    // Waits for as long as the file system does: what a hung one shows is that the pings stop.
    waitForLock(fd, { start: 1, length: 1 })
    closeSync(fd)
  }
}
