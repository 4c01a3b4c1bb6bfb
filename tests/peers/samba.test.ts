// Debian's Samba, clustered, on our nodes and beside a stock one: what `net conf` writes on one node is read on the other, files
// go in and out through both, both know the same users, a file that is open through one can't be deleted through the other, and what
// a killed node held is free. Starts its own smbd processes on loopback addresses, and ends only those.

import { afterAll, beforeAll, expect, test } from "bun:test"
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs"
import { binary } from "../binary.ts"
import { GONE, type Kind, MixedCluster } from "./nodes.ts"
import { stockInstalled, waitUntil } from "./stock.ts"

const SMBD = "/usr/sbin/smbd"
const installed = stockInstalled && existsSync(SMBD) && existsSync("/usr/bin/smbclient")
const PORT = 14450

interface Outcome {
  readonly status: number
  readonly output: string
}

const run = (...words: string[]): Promise<Outcome> => runWith("", ...words)

async function runWith(input: string, ...words: string[]): Promise<Outcome> {
  const child = Bun.spawn(words, { stdin: new Blob([input]), stdout: "pipe", stderr: "pipe" })
  const killer = setTimeout(() => child.kill(), 30_000)
  const [out, errors, status] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
    child.exited,
  ])
  clearTimeout(killer)
  return { status, output: out + errors }
}

/** Two nodes, each with an smbd that has state and private directories of its own; the share is on both. */
class SambaCluster {
  readonly cluster: MixedCluster
  private readonly smbds: (Bun.Subprocess | undefined)[] = []

  constructor(
    readonly kinds: readonly Kind[],
    prefix: string,
    private readonly smbPrefix: string,
  ) {
    this.cluster = new MixedCluster(prefix, kinds, { lock: true })
  }

  private base(pnn: number): string {
    return `${this.cluster.directory}/samba${pnn}`
  }

  get share(): string {
    return `${this.cluster.directory}/share`
  }

  private configuration(pnn: number): string {
    const base = this.base(pnn)
    for (const name of ["private", "state", "lock", "cache", "pid", "run", "log"]) {
      mkdirSync(`${base}/${name}`, { recursive: true })
    }
    return `[global]
netbios name = CLUSTER
clustering = yes
ctdbd socket = ${this.cluster.node(pnn).socket}
private dir = ${base}/private
state directory = ${base}/state
lock directory = ${base}/lock
cache directory = ${base}/cache
pid directory = ${base}/pid
ncalrpc dir = ${base}/run
log file = ${base}/log/log.%m
passdb backend = tdbsam
smb ports = ${PORT}
interfaces = ${this.smbPrefix}${pnn + 1}/8
bind interfaces only = yes
disable spoolss = yes
load printers = no
printcap name = /dev/null
map to guest = bad user
guest account = nobody
include = registry
[share]
path = ${this.share}
read only = no
guest ok = yes
force user = root
`
  }

  async start(): Promise<void> {
    await this.cluster.startTogether()
    await this.cluster.allOk()
    mkdirSync(this.share)
    for (const pnn of this.cluster.pnns) {
      const text = this.configuration(pnn)
      writeFileSync(`${this.base(pnn)}/smb.conf`, text)
      // Each in a process group of its own: an smbd that ends takes its whole group with it.
      const words = [SMBD, "-F", "-s", `${this.base(pnn)}/smb.conf`]
      this.smbds[pnn] = Bun.spawn(words, { stdin: "ignore", stdout: "ignore", stderr: "ignore" })
    }
    for (const pnn of this.cluster.pnns) {
      await waitUntil(`smbd of node ${pnn}`, async () => (await this.client(pnn, "ls")).status === 0, 60_000)
    }
  }

  net(pnn: number, ...words: string[]): Promise<Outcome> {
    return run("net", "-s", `${this.base(pnn)}/smb.conf`, ...words)
  }

  /** Gives root a password, in Samba's own user database. */
  password(pnn: number, password: string, ...words: string[]): Promise<Outcome> {
    return runWith(
      `${password}\n${password}\n`,
      "smbpasswd",
      "-c",
      `${this.base(pnn)}/smb.conf`,
      "-s",
      ...words,
      "root",
    )
  }

  /** What a session of root comes to. */
  login(pnn: number, password: string): Promise<Outcome> {
    return run("smbclient", "-U", `root%${password}`, "-p", String(PORT), this.unc(pnn), "-c", "ls")
  }

  /** Has a g_lock while a command runs that ends with its standard input; waits a minute for it. (The tool counts in ms.) */
  holdLock(pnn: number, name: string): Bun.Subprocess<"pipe", "ignore", "ignore"> {
    const words = ["net", "-s", `${this.base(pnn)}/smb.conf`, "g_lock", "do", name, "60000", "cat"]
    return Bun.spawn(words, { stdin: "pipe", stdout: "ignore", stderr: "ignore" })
  }

  /** `ctdb glock list` of this project's tool, through that node. */
  async locks(pnn: number): Promise<string> {
    const child = Bun.spawn([binary, "glock", "list"], {
      env: { ...process.env, ...this.cluster.node(pnn).environment },
      stdin: "ignore",
      stdout: "pipe",
      stderr: "pipe",
    })
    return await new Response(child.stdout).text()
  }

  unc(pnn: number): string {
    return `//${this.smbPrefix}${pnn + 1}/share`
  }

  client(pnn: number, commands: string): Promise<Outcome> {
    return run("smbclient", "-N", "-p", String(PORT), this.unc(pnn), "-c", commands)
  }

  smbstatus(pnn: number): Promise<Outcome> {
    return run("smbstatus", "-s", `${this.base(pnn)}/smb.conf`)
  }

  smbdExited(pnn: number): Promise<number> {
    return this.smbds[pnn]?.exited ?? Promise.resolve(0)
  }

  async end(): Promise<void> {
    for (const smbd of this.smbds) smbd?.kill()
    await Promise.all(this.smbds.map((smbd) => smbd?.exited))
    await this.cluster.end()
  }
}

/** A client that has a file open until it is ended. */
class OpenFile {
  private constructor(private readonly child: Bun.Subprocess) {}

  static open(unc: string, name: string): OpenFile {
    const child = Bun.spawn(["smbclient", "-N", "-p", String(PORT), unc], {
      stdin: "pipe",
      stdout: "ignore",
      stderr: "ignore",
    })
    child.stdin.write(`open ${name}\n`)
    child.stdin.flush()
    return new OpenFile(child)
  }

  async end(): Promise<void> {
    this.child.kill()
    await this.child.exited
  }
}

const clusters = [
  new SambaCluster(["ours", "ours"], "127.63.31.", "127.63.32."),
  new SambaCluster(["ours", "stock"], "127.63.33.", "127.63.34."),
]

beforeAll(async () => {
  if (installed) await Promise.all(clusters.map((samba) => samba.start()))
}, 300_000)
afterAll(async () => {
  await Promise.all(clusters.map((samba) => samba.end()))
}, 300_000)

for (const samba of clusters) {
  const name = samba.kinds.join(" and ")

  test.skipIf(!installed)(
    `${name}: net conf on one node is read on the other`,
    async () => {
      expect(await samba.net(0, "conf", "addshare", "one", "/tmp")).toMatchObject({ status: 0 })
      expect((await samba.net(1, "conf", "list")).output).toContain("[one]")
      expect(await samba.net(1, "conf", "setparm", "one", "comment", "written on node 1")).toMatchObject({ status: 0 })
      expect((await samba.net(0, "conf", "getparm", "one", "comment")).output).toContain("written on node 1")
      const sequence = await Promise.all(
        samba.cluster.pnns.map(
          async (pnn) => (await samba.cluster.node(pnn).tool("getdbseqnum", "registry.tdb")).stdout,
        ),
      )
      expect(sequence[1]).toBe(sequence[0]!)
    },
    300_000,
  )

  test.skipIf(!installed)(
    `${name}: files go in, out and away through both`,
    async () => {
      const source = `${samba.cluster.directory}/source`
      writeFileSync(source, "a file\n")
      for (const pnn of [0, 1]) {
        expect(await samba.client(pnn, `put ${source} file${pnn}`)).toMatchObject({ status: 0 })
        const copy = `${samba.cluster.directory}/copy${pnn}`
        expect(await samba.client(1 - pnn, `get file${pnn} ${copy}`)).toMatchObject({ status: 0 })
        expect(readFileSync(copy, "utf8")).toBe("a file\n")
        expect(await samba.client(1 - pnn, `del file${pnn}`)).toMatchObject({ status: 0 })
        expect(existsSync(`${samba.share}/file${pnn}`)).toBe(false)
      }
    },
    300_000,
  )

  test.skipIf(!installed)(
    `${name}: shares imported on one node are all there on the other`,
    async () => {
      const file = `${samba.cluster.directory}/import.conf`
      const sections = Array.from({ length: 200 }, (_, index) => `[many${index}]\n\tpath = /srv/${index}\n`)
      writeFileSync(file, sections.join("\n"))
      expect(await samba.net(0, "conf", "import", file)).toMatchObject({ status: 0 })
      expect((await samba.net(1, "conf", "list")).output.match(/^\[many\d+\]$/gm)).toHaveLength(200)
    },
    300_000,
  )

  test.skipIf(!installed)(
    `${name}: a user made on one node can log in on the other, and a password changed there counts here`,
    async () => {
      expect(await samba.password(0, "first", "-a")).toMatchObject({ status: 0 })
      for (const pnn of [0, 1]) expect(await samba.login(pnn, "first")).toMatchObject({ status: 0 })
      expect((await samba.login(1, "wrong")).output).toContain("NT_STATUS_LOGON_FAILURE")
      expect(await samba.password(1, "second")).toMatchObject({ status: 0 })
      for (const pnn of [0, 1]) {
        expect(await samba.login(pnn, "second")).toMatchObject({ status: 0 })
        expect((await samba.login(pnn, "first")).output).toContain("NT_STATUS_LOGON_FAILURE")
      }
    },
    300_000,
  )

  test.skipIf(!installed)(
    `${name}: a g_lock of Samba's with its holder and waiter is listed, and handed on`,
    async () => {
      const line = (role: string, pnn: number, type: string) =>
        new RegExp(`^name:wanted ${role}:${pnn}:\\d+ type:${type} .*format:samba$`, "m")
      const holder = samba.holdLock(1, "wanted")
      await waitUntil("the lock", async () => line("holder", 1, "write").test(await samba.locks(0)), 60_000)
      const waiter = samba.holdLock(0, "wanted")
      await waitUntil("the waiter", async () => line("waiter", 0, "unknown").test(await samba.locks(1)), 60_000)
      holder.stdin.end()
      expect(await holder.exited).toBe(0)
      await waitUntil("the waiter's turn", async () => line("holder", 0, "write").test(await samba.locks(1)), 60_000)
      waiter.stdin.end()
      expect(await waiter.exited).toBe(0)
      expect(await samba.locks(0)).not.toContain("name:wanted")
    },
    300_000,
  )

  test.skipIf(!installed)(
    `${name}: a file open on one node is locked on the other, until its node is killed`,
    async () => {
      writeFileSync(`${samba.share}/held`, "held")
      const file = OpenFile.open(samba.unc(1), "held")
      try {
        await waitUntil("the open file", async () => (await samba.smbstatus(1)).output.includes("held"), 60_000)
        expect((await samba.client(0, "del held")).output).toContain("NT_STATUS_SHARING_VIOLATION")
        const orphan = samba.holdLock(1, "orphan")
        await waitUntil("the lock", async () => /^name:orphan holder:1:/m.test(await samba.locks(0)), 60_000)
        for (const pnn of [0, 1]) expect((await samba.smbstatus(pnn)).output).toContain("held")
        await samba.cluster.kill(1)
        await samba.smbdExited(1)
        await samba.cluster.settled({ observers: [0], flags: [0, GONE] }, 60_000)
        await waitUntil(
          "the killed node's lock to go",
          async () => !(await samba.client(0, "del held")).output.includes("SHARING_VIOLATION"),
          20_000,
        )
        expect(existsSync(`${samba.share}/held`)).toBe(false)
        expect((await samba.smbstatus(0)).output).not.toContain("held")
        // The same for a g_lock: whoever wants it next has it.
        const next = samba.holdLock(0, "orphan")
        await waitUntil("its next holder", async () => /^name:orphan holder:0:/m.test(await samba.locks(0)), 60_000)
        next.stdin.end()
        expect(await next.exited).toBe(0)
        orphan.kill()
        await orphan.exited
      } finally {
        await file.end()
      }
    },
    120_000,
  )
}
