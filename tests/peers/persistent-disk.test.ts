// Disks that fail under persistent databases: full, read-only, with errors, with other contents than were written, before a start or
// while the file is in use. The client is told or its commit is on the other nodes, the database is marked, the others go on, and
// nothing acknowledged is lost when the disk is back. Mounts small file systems, as root only.

import { expect, test } from "bun:test"
import {
  closeSync,
  copyFileSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  rmSync,
  statSync,
  symlinkSync,
  unlinkSync,
  writeFileSync,
  writeSync,
} from "node:fs"
import { tmpdir } from "node:os"
import { attach, forgetDatabases } from "../../lib/client/attach.ts"
import { Client } from "../../lib/client/client.ts"
import { Transaction } from "../../lib/client/transaction.ts"
import { CURRENT_NODE, NodeFlag } from "../../lib/protocol/constants.ts"
import { commitOf, SEQUENCE_KEY, stored, u64, utf8 } from "./commits.ts"
import { GONE, type Kind, MixedCluster } from "./nodes.ts"
import { canMount, canTrace, STRACE } from "./privileges.ts"
import { stockInstalled, waitUntil } from "./stock.ts"

const mountable = { tmpfs: canMount("tmpfs"), ext4: canMount("ext4") }

/** A small file system under the persistent databases and the health marks of one node. */
class Disk {
  private readonly mountPoint: string
  private readonly image: string
  private readonly filler: string

  /** "ext4" can be made read-only as the kernel does it after an error; "tmpfs" is filled in no time. */
  constructor(
    private readonly type: "ext4" | "tmpfs",
    base: string,
  ) {
    // Outside the cluster's directory, whose removal must never meet a file system that is read-only.
    const directory = mkdtempSync(`${tmpdir()}/ctdb-disk-`)
    this.mountPoint = `${directory}/mounted`
    this.image = `${directory}/image`
    this.filler = `${this.mountPoint}/filler`
    mkdirSync(this.mountPoint)
    if (type === "ext4") {
      writeFileSync(this.image, "")
      run("truncate", "-s", "32M", this.image)
      run("mkfs.ext4", "-q", this.image)
    }
    this.mount()
    mkdirSync(base, { recursive: true })
    for (const name of ["persistent", "state"]) {
      mkdirSync(`${this.mountPoint}/${name}`)
      symlinkSync(`${this.mountPoint}/${name}`, `${base}/${name}`)
    }
  }

  mount(): void {
    if (this.type === "tmpfs") run("mount", "-t", "tmpfs", "-o", "size=16m", "ctdb-test", this.mountPoint)
    else run("mount", "-o", "loop", this.image, this.mountPoint)
  }

  /** As soon as nobody has anything in it open. */
  async unmount(): Promise<void> {
    await waitUntil("unmounted disk", () => Bun.spawnSync(["umount", this.mountPoint], { stderr: "ignore" }).success)
  }

  fill(): void {
    expect(() => writeFileSync(this.filler, Buffer.alloc(32 << 20))).toThrow("ENOSPC")
  }

  free(): void {
    unlinkSync(this.filler)
  }

  /** What an I/O error of the journal does: from now on nothing is written. Files stay open, and mapped. */
  abort(): void {
    run("sync", "-f", this.mountPoint)
    run("mount", "-o", "remount,abort", this.mountPoint)
  }

  /** Nothing new in the databases' directory any more; files that are open are written as ever. */
  directoryReadOnly(): void {
    run("mount", "--bind", `${this.mountPoint}/persistent`, `${this.mountPoint}/persistent`)
    run("mount", "-o", "remount,bind,ro", `${this.mountPoint}/persistent`)
  }

  directoryWritable(): void {
    run("umount", `${this.mountPoint}/persistent`)
  }

  remove(): void {
    // Lazily: a test that failed may have left something open.
    Bun.spawnSync(["umount", "-l", `${this.mountPoint}/persistent`], { stderr: "ignore" })
    Bun.spawnSync(["umount", "-l", this.mountPoint], { stderr: "ignore" })
    rmSync(`${this.mountPoint}/..`, { recursive: true, force: true })
  }
}

function run(...words: string[]): void {
  const { success, stderr } = Bun.spawnSync(words)
  if (!success) throw new Error(`${words.join(" ")}: ${stderr}`)
}

/** Injects a fault into the system calls of a process, as strace has it, until the function returned is called. */
async function inject(pid: number, injection: string): Promise<() => Promise<void>> {
  const tracer = Bun.spawn([STRACE, "-f", "-o", "/dev/null", "-e", `inject=${injection}`, "-p", String(pid)], {
    stdin: "ignore",
    stdout: "ignore",
    stderr: "pipe",
  })
  const reader = tracer.stderr.getReader()
  await reader.read()
  return async () => {
    tracer.kill("SIGINT")
    await tracer.exited
  }
}

/** A cluster with a database in it, and what was committed to it and acknowledged. */
class Committed {
  readonly name = "failing.tdb"
  readonly cluster: MixedCluster
  private readonly numbers = new Map<string, number>()
  private id = 0

  constructor(kinds: readonly Kind[], address: number) {
    this.cluster = new MixedCluster(`127.${address < 80 ? 63 : 73}.${address}.`, kinds, { lock: true })
  }

  /** Node 0 first, which leads then. */
  async start(): Promise<void> {
    const { cluster } = this
    await cluster.start(0)
    await Promise.all(cluster.pnns.slice(1).map((pnn) => cluster.start(pnn)))
    await cluster.allOk()
    for (const pnn of cluster.pnns) await this.commit(pnn, 10)
  }

  /** A new record, and one that takes up space. */
  async commit(pnn: number, bytes: number): Promise<void> {
    const client = this.cluster.client(pnn)
    const database = await attach(client, this.name, { kind: "persistent" })
    this.id = database.id
    const number = this.numbers.size + 1
    const key = `record ${number}, of node ${pnn}`
    const transaction = await Transaction.start(client, database)
    await transaction.store(utf8.encode(key), u64(number))
    await transaction.store(utf8.encode(`space ${number}`), new Uint8Array(bytes).fill(number))
    await transaction.commit()
    this.numbers.set(key, number)
  }

  async health(pnn: number): Promise<string> {
    const limits = { timeoutMs: 5000 }
    return (await this.cluster.client(pnn).control("DB_GET_HEALTH", CURRENT_NODE, this.id, limits)) ?? ""
  }

  /** Every node has everything, and as often as it was committed, and finds its database healthy. */
  async allHaveAll(): Promise<void> {
    for (const pnn of this.cluster.pnns) {
      expect(await this.health(pnn)).toBe("")
      expect(await stored(this.cluster, pnn, this.name, SEQUENCE_KEY)).toBe(this.numbers.size)
      for (const [key, number] of this.numbers) {
        expect(await stored(this.cluster, pnn, this.name, utf8.encode(key)), `${key}, on node ${pnn}`).toBe(number)
      }
    }
  }
}

interface Failure {
  readonly what: string
  readonly kinds: readonly Kind[]
  readonly victim: number
  readonly disk: "ext4" | "tmpfs"
  readonly needsStrace?: boolean
  /** Bytes of the commits that meet it. */
  readonly bytes: number
  /** The mark that the victim's database has. */
  readonly mark: RegExp
  /** Begins it; the function returned ends it, and has the node back. */
  begin(disk: Disk, cluster: MixedCluster, victim: number): Promise<() => Promise<void>>
}

async function unban(cluster: MixedCluster, victim: number): Promise<void> {
  expect((await cluster.node(victim).tool("unban")).status).toBe(0)
}

const full = (kinds: readonly Kind[], victim: number): Failure => ({
  what: "a full disk",
  kinds,
  victim,
  disk: "tmpfs",
  bytes: 300_000,
  mark: /^WARNING - no space on the disk: .*ENOSPC/,
  async begin(disk, cluster) {
    disk.fill()
    return async () => {
      disk.free()
      await unban(cluster, victim)
    }
  },
})

const failures: readonly Failure[] = [
  full(["ours", "ours", "ours"], 0),
  full(["stock", "ours", "ours"], 1),
  {
    what: "a file system that became read-only",
    kinds: ["ours", "stock", "ours"],
    victim: 2,
    disk: "ext4",
    bytes: 100,
    mark: /^ERROR - write failed: .*EROFS/,
    async begin(disk, cluster, victim) {
      disk.abort()
      return async () => {
        await forgetDatabases(cluster.client(victim))
        await cluster.kill(victim)
        await disk.unmount()
        disk.mount()
        await cluster.start(victim)
      }
    },
  },
  {
    what: "errors of fdatasync",
    kinds: ["ours", "stock", "ours"],
    victim: 0,
    disk: "ext4",
    needsStrace: true,
    bytes: 100,
    mark: /^ERROR - write failed: .*EIO/,
    async begin(_, cluster, victim) {
      const over = await inject(cluster.node(victim).pid, "fdatasync:error=EIO")
      return async () => {
        await over()
        await unban(cluster, victim)
      }
    },
  },
]

for (const [index, failure] of failures.entries()) {
  const { what, kinds, victim, bytes, mark } = failure
  test.skipIf(!stockInstalled || !mountable[failure.disk] || (failure.needsStrace === true && !canTrace))(
    `${kinds.join()}: ${what} on node ${victim}: it is marked, the others go on, nothing acknowledged is lost`,
    async () => {
      const committed = new Committed(kinds, 55 + index)
      const { cluster } = committed
      const disk = new Disk(failure.disk, cluster.base(victim))
      const others = cluster.pnns.filter((pnn) => pnn !== victim)
      try {
        await committed.start()
        const end = await failure.begin(disk, cluster, victim)
        // The first of them by a recovery, which the victim fails in.
        for (const pnn of others) await committed.commit(pnn, bytes)
        expect(await committed.health(victim)).toMatch(mark)
        expect((await cluster.view(others[0]!))!.flags[victim]).toBe(NodeFlag.BANNED)
        const client = await Client.connect({ socket: cluster.node(victim).socket, timeoutMs: 5000 })
        const refusal = await attach(client, "failing.tdb", { kind: "persistent" }).then(() => "", String)
        expect(refusal).toMatch(/this node is inactive/)
        await client.close()
        for (const pnn of others) await committed.commit(pnn, bytes)

        await end()
        await cluster.allOk(60_000)
        for (const pnn of cluster.pnns) await committed.commit(pnn, 10)
        await committed.allHaveAll()
      } catch (error) {
        throw new Error(`${error instanceof Error ? error.stack : error}\n${cluster.logEnds()}`)
      } finally {
        await cluster.end()
        disk.remove()
      }
    },
    150_000,
  )
}

test.skipIf(!stockInstalled || !mountable.ext4)(
  "ours,stock,ours: a directory that takes no new file: the client that attaches is told, and what is open goes on",
  async () => {
    const committed = new Committed(["ours", "stock", "ours"], 60)
    const { cluster } = committed
    const disk = new Disk("ext4", cluster.base(0))
    try {
      await committed.start()
      disk.directoryReadOnly()
      const refusal = await attach(cluster.client(0), "new.tdb", { kind: "persistent" }).then(() => "", String)
      expect(refusal).toMatch(/new\.tdb.*EROFS/)
      for (const pnn of cluster.pnns) await committed.commit(pnn, 100)
      disk.directoryWritable()
      await attach(cluster.client(0), "new.tdb", { kind: "persistent" })
      await committed.allHaveAll()
    } catch (error) {
      throw new Error(`${error instanceof Error ? error.stack : error}\n${cluster.logEnds()}`)
    } finally {
      await cluster.end()
      disk.remove()
    }
  },
  90_000,
)

/** Writes garbage over what lies at that place in a file. */
function damage(path: string, at: number, bytes: number, byte = 0xa5): void {
  const file = openSync(path, "r+")
  writeSync(file, Buffer.alloc(bytes, byte), 0, bytes, at)
  closeSync(file)
}

test.skipIf(!stockInstalled)(
  "ours,stock,ours: a file that is damaged while its node is down is set aside, and the others' contents take its place",
  async () => {
    const committed = new Committed(["ours", "stock", "ours"], 61)
    const { cluster } = committed
    try {
      await committed.start()
      await cluster.stop(2)
      const directory = `${cluster.base(2)}/persistent`
      // The whole table of chains, which the header's check does not cover.
      damage(`${directory}/failing.tdb.2`, 168, 4 * 1000)
      await cluster.settled({ observers: [0, 1], flags: [0, 0, GONE] }, 60_000)
      for (const pnn of [0, 1]) await committed.commit(pnn, 100)
      await cluster.start(2)
      await cluster.allOk(60_000)
      expect(readdirSync(directory).some((name) => name.startsWith("failing.tdb.2.corrupted."))).toBe(true)
      expect(cluster.log(2)).toMatch(/failing\.tdb is healthy again/)
      for (const pnn of cluster.pnns) await committed.commit(pnn, 10)
      await committed.allHaveAll()
    } catch (error) {
      throw new Error(`${error instanceof Error ? error.stack : error}\n${cluster.logEnds()}`)
    } finally {
      await cluster.end()
    }
  },
  120_000,
)

/** Where the table of chains begins, and where the records of a file with the default number of them. */
const CHAINS = 172
const RECORDS = CHAINS + 4 * 100_001

/** What another process writes over a file that the node has open. */
const scribbles: readonly {
  readonly what: string
  readonly at: number
  readonly until?: number
  readonly byte: number
  readonly kinds: readonly Kind[]
  readonly victim: number
  /** What the victim's log says of it. */
  readonly log: RegExp
  readonly kept: boolean
}[] = [
  {
    what: "the header",
    at: 0,
    until: 168,
    byte: 0xa5,
    kinds: ["ours", "ours", "stock"],
    victim: 1,
    log: /is unhealthy: ERROR - damaged: .*the header is not that of a TDB file/,
    kept: true,
  },
  {
    what: "the table of chains",
    at: CHAINS,
    until: RECORDS,
    byte: 0xa5,
    kinds: ["stock", "ours", "ours"],
    victim: 1,
    log: /is unhealthy: ERROR - damaged: .*not 4-byte aligned/,
    kept: true,
  },
  {
    what: "the table of chains, with zeros, so that no record is found",
    at: CHAINS,
    until: RECORDS,
    byte: 0,
    kinds: ["ours", "stock", "ours"],
    victim: 2,
    log: /sequence number \d+ does not follow on this copy's 0/,
    kept: false,
  },
  {
    what: "the list of free records",
    at: 168,
    until: 172,
    byte: 0xa5,
    kinds: ["ours", "ours", "ours"],
    victim: 0,
    log: /is unhealthy: ERROR - damaged: /,
    kept: true,
  },
  {
    what: "all records",
    at: RECORDS,
    byte: 0xa5,
    kinds: ["stock", "ours", "stock"],
    victim: 1,
    log: /is unhealthy: ERROR - damaged: .*bad magic 0xa5a5a5a5/,
    kept: true,
  },
  {
    what: "the whole file",
    at: 0,
    byte: 0x5a,
    kinds: ["ours", "ours", "ours"],
    victim: 0,
    log: /is unhealthy: ERROR - damaged: /,
    kept: true,
  },
]

for (const [index, { what, at, until, byte, kinds, victim, log, kept }] of scribbles.entries()) {
  test.skipIf(!stockInstalled)(
    `${kinds.join()}: somebody writes over ${what} in the file of node ${victim}: the others bring it back, and nobody is banned`,
    async () => {
      const committed = new Committed(kinds, 80 + index)
      const { cluster } = committed
      const directory = `${cluster.base(victim)}/persistent`
      const file = `${directory}/failing.tdb.${victim}`
      const others = cluster.pnns.filter((pnn) => pnn !== victim)
      try {
        await committed.start()
        const pids = cluster.pnns.map((pnn) => cluster.node(pnn).pid)
        damage(file, at, (until ?? statSync(file).size) - at, byte)
        // The first of them meets it.
        for (const pnn of [...others, victim]) await committed.commit(pnn, 100)
        expect(cluster.log(victim)).toMatch(log)
        await committed.allHaveAll()
        for (const pnn of cluster.pnns) expect((await cluster.view(pnn))!.flags).toEqual([0, 0, 0])
        expect(cluster.pnns.map((pnn) => cluster.node(pnn).pid)).toEqual(pids)
        // The file is whole for those who open it next, and what it held is there for whoever wants to look.
        const copy = `${cluster.directory}/copy.tdb`
        copyFileSync(file, copy)
        expect(String(Bun.spawnSync(["tdbtool", copy, "check"]).stdout)).toContain("Database integrity is OK")
        expect(readdirSync(directory).some((name) => name.includes(".corrupted."))).toBe(kept)
      } catch (error) {
        throw new Error(`${error instanceof Error ? error.stack : error}\n${cluster.logEnds()}`)
      } finally {
        await cluster.end()
      }
    },
    300_000,
  )
}

test.skipIf(!stockInstalled)(
  "a single node whose file is written over: the client is told, and nothing more is stored",
  async () => {
    const cluster = new MixedCluster("127.73.86.", ["ours"], { lock: true })
    try {
      await cluster.startTogether()
      await cluster.allOk()
      const client = cluster.client(0)
      const dbId = await client.control("DB_ATTACH_PERSISTENT", CURRENT_NODE, "failing.tdb")
      const commit = (rsn: number) =>
        client.control("TRANS3_COMMIT", CURRENT_NODE, commitOf(dbId, rsn, "data")).then(() => "", String)
      expect(await commit(1)).toBe("")
      const file = `${cluster.base(0)}/persistent/failing.tdb.0`
      damage(file, RECORDS, statSync(file).size - RECORDS)
      expect(await commit(2)).toMatch(/no node has stored it: node 0: .*bad magic/)
      expect(await commit(2)).toMatch(/no node has stored it: .*is unhealthy: ERROR - damaged: /)
      expect(await client.control("GET_DB_SEQNUM", CURRENT_NODE, dbId).then(() => "", String)).toMatch(/bad magic/)
      expect(readdirSync(`${cluster.base(0)}/persistent`).some((name) => name.includes(".corrupted."))).toBe(true)
      // A recovery has nothing better, and must not make that an empty database.
      const { size } = statSync(file)
      expect((await cluster.node(0).tool("-T", "10", "recover")).status).not.toBe(0)
      expect(statSync(file).size).toBe(size)
      expect(await client.control("DB_GET_HEALTH", CURRENT_NODE, dbId)).toMatch(/ERROR - damaged: /)
    } catch (error) {
      throw new Error(`${error instanceof Error ? error.stack : error}\n${cluster.logEnds()}`)
    } finally {
      await cluster.end()
    }
  },
  60_000,
)

test.skipIf(!stockInstalled || !canTrace)(
  "a disk that fails: the client is told, the database is marked, and goes on when the disk does",
  async () => {
    const cluster = new MixedCluster("127.63.54.", ["ours"], { lock: true })
    try {
      await cluster.startTogether()
      await cluster.allOk()
      const client = cluster.client(0)
      const dbId = await client.control("DB_ATTACH_PERSISTENT", CURRENT_NODE, "failing.tdb")
      const commit = (rsn: number, data: string) =>
        client.controlStatus("TRANS3_COMMIT", CURRENT_NODE, commitOf(dbId, rsn, data))
      expect(await commit(1, "good")).toBe(0)
      const health = async () => (await client.control("DB_GET_HEALTH", CURRENT_NODE, dbId)) ?? ""

      const broken = async (injection: string, during: () => Promise<void>) => {
        const over = await inject(cluster.node(0).pid, injection)
        try {
          await during()
        } finally {
          await over()
        }
      }

      const large = "x".repeat(600_000)
      await broken("fallocate:error=ENOSPC", async () => {
        const error = await client.control("TRANS3_COMMIT", CURRENT_NODE, commitOf(dbId, 2, large)).then(
          () => undefined,
          (failure: unknown) => failure,
        )
        expect(String(error)).toMatch(/no node has stored it: node 0: .*(ENOSPC|[Nn]o space)/)
        expect(await health()).toMatch(/^WARNING - no space on the disk: /)
      })
      // The old contents are all there, and a commit that succeeds takes the mark away.
      expect(await stored(cluster, 0, "failing.tdb", SEQUENCE_KEY)).toBe(1)
      expect(await commit(2, large)).toBe(0)
      expect(await health()).toBe("")

      await broken("fdatasync:error=EIO", async () => {
        expect(await commit(3, "lost")).toBe(-1)
        expect(await health()).toMatch(/^ERROR - write failed: /)
        expect(await commit(3, "lost")).toBe(-1)
      })
      expect(await stored(cluster, 0, "failing.tdb", SEQUENCE_KEY)).toBe(2)
      expect(await commit(3, "refused")).toBe(-1)
      await client.control("DB_SET_HEALTHY", CURRENT_NODE, dbId)
      expect(await commit(3, "good")).toBe(0)
      expect((await cluster.view(0))!.flags[0]! & NodeFlag.BANNED).toBe(0)
    } finally {
      await cluster.end()
    }
  },
  60_000,
)
