// Debian's Samba, clustered, on our nodes and beside a stock one: what `net conf` writes on one node is read on the other, files
// go in and out through both, a file that is open through one can't be deleted through the other, and what a killed node held is
// free. Starts its own smbd processes on loopback addresses, and ends only those.

import { afterAll, beforeAll, expect, test } from "bun:test"
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs"
import { GONE, type Kind, MixedCluster } from "./nodes.ts"
import { stockInstalled, waitUntil } from "./stock.ts"

const SMBD = "/usr/sbin/smbd"
const installed = stockInstalled && existsSync(SMBD) && existsSync("/usr/bin/smbclient")
const PORT = 14450

interface Outcome {
  readonly status: number
  readonly output: string
}

async function run(...words: string[]): Promise<Outcome> {
  const child = Bun.spawn(words, { stdin: "ignore", stdout: "pipe", stderr: "pipe" })
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
      await waitUntil(`smbd of node ${pnn}`, async () => (await this.client(pnn, "ls")).status === 0, 30_000)
    }
  }

  net(pnn: number, ...words: string[]): Promise<Outcome> {
    return run("net", "-s", `${this.base(pnn)}/smb.conf`, ...words)
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
  new SambaCluster(["ours", "ours"], "127.56.31.", "127.56.32."),
  new SambaCluster(["ours", "stock"], "127.56.33.", "127.56.34."),
]

beforeAll(async () => {
  if (installed) await Promise.all(clusters.map((samba) => samba.start()))
}, 90_000)
afterAll(async () => {
  await Promise.all(clusters.map((samba) => samba.end()))
}, 60_000)

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
    60_000,
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
    60_000,
  )

  test.skipIf(!installed)(
    `${name}: a file open on one node is locked on the other, until its node is killed`,
    async () => {
      writeFileSync(`${samba.share}/held`, "held")
      const file = OpenFile.open(samba.unc(1), "held")
      try {
        await waitUntil("the open file", async () => (await samba.smbstatus(1)).output.includes("held"), 20_000)
        expect((await samba.client(0, "del held")).output).toContain("NT_STATUS_SHARING_VIOLATION")
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
      } finally {
        await file.end()
      }
    },
    120_000,
  )
}
