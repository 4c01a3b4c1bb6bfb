// `ctdb recovery-helper OUTPUT_FD SOCKET_PATH GENERATION` (installed as `ctdb_recovery_helper`): one recovery, run as a client
// of the local node, with the command line and the exit protocol of the stock program (cluster page 7.1), so that a stock
// recovery daemon can run it. What a recovery does is in daemon/recovery.

import { randomInt } from "node:crypto"
import { writeSync } from "node:fs"
import { diskFiles } from "../daemon/recovery/files.ts"
import { RecoveryFailure, recover } from "../daemon/recovery/recover.ts"
import { run as runTask } from "../daemon/recovery/task.ts"
import { Client } from "../lib/client/client.ts"
import { loadConfigFile, startConfiguration } from "../lib/config/config-file.ts"
import { type Logger, parseLogLevel } from "../lib/config/log.ts"
import { logHost, openLogger } from "../lib/config/log-sinks.ts"
import { resolvePaths } from "../lib/config/paths.ts"
import { parseTunableValue, type Tunables, tunablesFromWords } from "../lib/config/tunables.ts"
import { realScheduler } from "../lib/net/scheduler.ts"
import { setProcessName } from "../lib/sys/process.ts"

const NAME = "ctdb_recovery_helper"
const CONNECT_MS = 30_000

export async function run(argv: readonly string[]): Promise<number> {
  const [outputText, socket, generationText] = argv
  const output = parseTunableValue(outputText ?? "")
  const generation = parseTunableValue(generationText ?? "")
  if (argv.length !== 3 || socket === undefined || output === undefined || generation === undefined) {
    process.stderr.write(`Usage: ${NAME} <output-fd> <ctdb-socket-path> <generation>\n`)
    return 1
  }
  const { CTDB_LOGGING: location, CTDB_DEBUGLEVEL: level } = process.env
  if (location === undefined || level === undefined) {
    process.stderr.write("recovery: Unable to initialize logging\n")
    return 1
  }
  setProcessName(NAME)
  const paths = resolvePaths(process.env)
  const log = openLogger({
    location,
    level: parseLogLevel(level) ?? 0,
    program: "ctdb-recovery",
    host: logHost(paths),
  })
  process.on("SIGHUP", () => log.reopen())
  try {
    await recoverOnce(log, socket, generation, stateDirectory())
    writeSync(output, new Uint8Array(4))
    return 0
  } catch (error) {
    const known = error instanceof RecoveryFailure || (error instanceof Error && "code" in error)
    log.error(known ? `Recovery failed: ${(error as Error).message}` : `Recovery failed: ${stackOf(error)}`)
    return 1
  } finally {
    log.close()
  }
}

async function recoverOnce(log: Logger, socket: string, generation: number, state: string): Promise<void> {
  const client = await Client.connect({ socket, timeoutMs: CONNECT_MS })
  const tunables = await tunablesOf(client)
  await new Promise<void>((resolve, reject) => {
    client.onClosed = (reason) => reject(new RecoveryFailure(`the own node has gone: ${reason}`))
    runTask(
      recover({
        session: client.session,
        scheduler: realScheduler,
        log,
        files: diskFiles(state),
        pnn: client.pnn,
        tunables,
        generation,
        excluded: new Set(),
        firstSrvid: randomInt(1, 0x7fffffff),
      }),
      resolve,
      reject,
    )
  })
  await client.close()
}

function stateDirectory(): string {
  const given = process.env.CTDB_DBDIR_STATE
  if (given !== undefined) return given
  const paths = resolvePaths(process.env)
  const start = startConfiguration(loadConfigFile(paths.configFile, paths.etcDir))
  return start.ok ? start.value.configuration.database.stateDirectory : paths.varDir
}

function tunablesOf(client: Client): Promise<Tunables> {
  return new Promise((resolve, reject) => {
    client.session.request("GET_ALL_TUNABLES", client.pnn, { timeoutMs: CONNECT_MS }, (reply) => {
      if (!reply.ok) {
        reject(new RecoveryFailure(`the own node does not tell its tunables: ${reply.error}`))
        return
      }
      const view = new DataView(reply.data.buffer, reply.data.byteOffset, reply.data.byteLength)
      const words = Array.from({ length: reply.data.byteLength >> 2 }, (_, index) => view.getUint32(index * 4, true))
      resolve(tunablesFromWords(words))
    })
  })
}

function stackOf(error: unknown): string {
  return error instanceof Error ? (error.stack ?? error.message) : String(error)
}
