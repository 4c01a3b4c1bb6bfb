// Public addresses and interfaces: ip, ipinfo, ifaces, setifacelink, addip, delip, moveip, reloadips, gratarp. Reference
// page "Admin tool", section 8.4. Which node gets which address is the leader's decision, not this tool's.

import { parseIp4, parseIp6, type SockAddr, sameIp, sockAddrFrom } from "../../lib/protocol/address.ts"
import { encode, u32 } from "../../lib/protocol/codec.ts"
import { BROADCAST_CONNECTED, Errno, Srvid } from "../../lib/protocol/constants.ts"
import type { PublicIp, PublicIpInfo } from "../../lib/protocol/structs.ts"
import { type Invocation, UsageError } from "./invocation.ts"
import { activeNodes, connectedNodes, nodeMap, parseNodeList } from "./nodes.ts"
import { parseUint32 } from "./numbers.ts"
import { disableOperation, takeoverRun } from "./requests.ts"

const NO_NODE = 0xffff_ffff

/** An address from the command line. @throws Failure after printing that it is none */
export function addressWord(invocation: Invocation, text: string): SockAddr {
  return sockAddrFrom(text) ?? invocation.fail(1, `Invalid IP address ${text}`)
}

/** IPv4 before IPv6, then by the bytes of the address. */
export function compareAddresses(a: SockAddr, b: SockAddr): number {
  if (a.family !== b.family) return a.family === "inet" ? -1 : 1
  const bytes = (address: SockAddr) => parseIp4(address.addr) ?? parseIp6(address.addr) ?? new Uint8Array(0)
  return Buffer.compare(bytes(a), bytes(b))
}

function ownAddresses(invocation: Invocation, node: number): Promise<readonly PublicIp[]> {
  return invocation.control("GET_PUBLIC_IPS", node)
}

/** All addresses that any active node knows; the host is who says so itself, the last one if several do. */
async function clusterAddresses(invocation: Invocation): Promise<PublicIp[]> {
  const nodes = activeNodes(await nodeMap(invocation))
  if (nodes.length === 0) return invocation.fail(1)
  const found = new Map<string, PublicIp>()
  for (const node of nodes) {
    for (const { pnn, addr } of await ownAddresses(invocation, node)) {
      const hosted = pnn === node
      if (hosted || !found.has(addr.addr)) found.set(addr.addr, { pnn: hosted ? pnn : NO_NODE, addr })
    }
  }
  return [...found.values()]
}

/** Names of an address's interfaces: all, those with link up, and the one that it is on. */
function interfaceNames(info: PublicIpInfo | undefined) {
  const all = info?.ifaces ?? []
  const active = info === undefined ? undefined : all[info.activeIdx]
  return {
    active: active?.name ?? "",
    available: all.filter((iface) => iface.linkState !== 0).map((iface) => iface.name),
    configured: all.map((iface) => iface.name),
  }
}

export async function ip(invocation: Invocation): Promise<number> {
  const { output, node, words, options } = invocation
  if (words[0] !== undefined && words[0] !== "all") throw new UsageError()
  const all = words[0] === "all"
  const addresses = all ? await clusterAddresses(invocation) : [...(await ownAddresses(invocation, node))]
  addresses.sort((a, b) => compareAddresses(a.addr, b.addr))
  const rows: { address: string; pnn: number; names: ReturnType<typeof interfaceNames> }[] = []
  for (const { pnn, addr } of addresses) {
    const asked = all ? pnn : node
    const info = asked === NO_NODE ? undefined : await invocation.control("GET_PUBLIC_IP_INFO", asked, addr)
    rows.push({ address: addr.addr, pnn: pnn | 0, names: interfaceNames(info) })
  }

  const title = all ? "Public IPs on ALL nodes\n" : `Public IPs on node ${node}\n`
  const detail = ({ active, available, configured }: ReturnType<typeof interfaceNames>) => [
    active,
    available.join(","),
    configured.join(","),
  ]
  await output.show({
    text: () =>
      title +
      rows
        .map(({ address, pnn, names }) => {
          if (!options.verbose) return `${address} ${pnn}\n`
          const [active, available, configured] = detail(names)
          return `${address} node[${pnn}] active[${active}] available[${available}] configured[${configured}]\n`
        })
        .join(""),
    machine: () => {
      const head = ["Public IP", "Node"]
      if (options.verbose) head.push("ActiveInterfaces", "AvailableInterfaces", "ConfiguredInterfaces")
      const line = ({ address, pnn, names }: (typeof rows)[number]) =>
        output.machineLine(options.verbose ? [address, pnn, ...detail(names)] : [address, pnn])
      return output.machineLine(head) + rows.map(line).join("")
    },
    json: () => ({
      ...(all ? {} : { node }),
      public_ips: rows.map(({ address, pnn, names }) => ({
        address,
        node: pnn === -1 ? null : pnn,
        active_interface: names.active === "" ? null : names.active,
        available_interfaces: names.available,
        configured_interfaces: names.configured,
      })),
    }),
    terminal: async () => {
      const { red, table } = await import("./terminal.ts")
      if (rows.length === 0) return title.replace(/\n$/, ": none\n")
      return table(
        ["Address", "Node", "Interface", "Available", "Configured"],
        rows.map(({ address, pnn, names }) => [address, pnn === -1 ? red("none") : pnn, ...detail(names)]),
      )
    },
  })
  return 0
}

export async function ipinfo(invocation: Invocation): Promise<number> {
  const { output, node, words } = invocation
  const address = addressWord(invocation, words[0] ?? "")
  const outcome = await invocation.tryControl("GET_PUBLIC_IP_INFO", node, address)
  if (!outcome.ok) {
    if (outcome.error !== Errno.ETIMEDOUT) output.print(`Node ${node} does not know about IP ${address.addr}\n`)
    return outcome.error
  }
  const { ip, activeIdx, ifaces } = outcome.reply
  await output.show({
    text: () =>
      `Public IP[${ip.addr.addr}] info on node ${node}\n` +
      `IP:${ip.addr.addr}\nCurrentNode:${ip.pnn}\nNumInterfaces:${ifaces.length}\n` +
      ifaces
        .map(({ name, linkState, references }, index) => {
          const link = linkState === 0 ? "down" : "up"
          const mark = index === activeIdx ? " (active)" : ""
          return `Interface[${index + 1}]: Name:${name} Link:${link} References:${references}${mark}\n`
        })
        .join(""),
    json: () => ({
      node,
      address: ip.addr.addr,
      current_node: ip.pnn === NO_NODE ? null : ip.pnn,
      interfaces: ifaces.map(({ name, linkState, references }, index) => ({
        name,
        link: linkState === 0 ? "down" : "up",
        references,
        active: index === activeIdx,
      })),
    }),
  })
  return 0
}

export async function ifaces(invocation: Invocation): Promise<number> {
  const { output, node } = invocation
  const list = await invocation.control("GET_IFACES", node)
  const none = `No interfaces configured on node ${node}\n`
  const link = (state: number) => (state === 0 ? "down" : "up")
  await output.show({
    text: () => {
      if (list.length === 0) return none
      const line = ({ name, linkState, references }: (typeof list)[number]) =>
        `name:${name} link:${link(linkState)} references:${references}\n`
      return `Interfaces on node ${node}\n${list.map(line).join("")}`
    },
    machine: () => {
      if (list.length === 0) return none
      const head = output.machineLine(["Name", "LinkStatus", "References"])
      return (
        head + list.map(({ name, linkState, references }) => output.machineLine([name, linkState, references])).join("")
      )
    },
    json: () => ({
      node,
      interfaces: list.map(({ name, linkState, references }) => ({ name, link: link(linkState), references })),
    }),
    terminal: async () => {
      if (list.length === 0) return none
      const { green, red, table } = await import("./terminal.ts")
      return table(
        ["Interface", "Link", "Addresses"],
        list.map(({ name, linkState, references }) => [name, linkState === 0 ? red("down") : green("up"), references]),
      )
    },
  })
  return 0
}

/** Longest name that is looked for, in bytes. */
const INTERFACE_NAME_MAX = 16

export async function setifacelink(invocation: Invocation): Promise<number> {
  const { output, node, words } = invocation
  const [name = "", state] = words
  if (Buffer.byteLength(name) > INTERFACE_NAME_MAX) return invocation.fail(1, `Interface name '${name}' too long`)
  const line = `Failed to get interface information from node ${node}`
  const list = await invocation.control("GET_IFACES", node, undefined, line)
  if (!list.some((iface) => iface.name === name)) {
    output.print(`Interface ${name} not configured on node ${node}\n`)
    return 1
  }
  if (state !== "up" && state !== "down") throw new UsageError()
  const request = { name, linkState: state === "up" ? 1 : 0, references: 0 }
  const failed = `Failed to set link state for interface ${name} node ${node}`
  await invocation.control("SET_IFACE_LINK_STATE", node, request, failed)
  if (output.mode === "json") output.json({ node, interface: name, link: state })
  return 0
}

/** `ADDRESS/MASK`. */
function maskedAddressWord(invocation: Invocation, text: string): { addr: SockAddr; mask: number } {
  const match = /^(.*)\/([0-9]+)$/.exec(text)
  const addr = sockAddrFrom(match?.[1] ?? "")
  if (match === null || addr === undefined) return invocation.fail(1, `Invalid IP/Mask ${text}`)
  return { addr, mask: Number(match[2]) >>> 0 }
}

/** How often, and how long apart in ms, addip and moveip try. The pause also follows the last try. */
const TRIES = 5
const PAUSE_MS = 3000

async function knownAddresses(invocation: Invocation): Promise<readonly PublicIp[]> {
  const { node } = invocation
  const outcome = await invocation.tryControl("GET_PUBLIC_IPS", node)
  return outcome.ok ? outcome.reply : invocation.fail(1, `Failed to get Public IPs from node ${node}`)
}

export async function addip(invocation: Invocation): Promise<number> {
  const { client, output, node, words } = invocation
  const { addr, mask } = maskedAddressWord(invocation, words[0] ?? "")
  const known = await knownAddresses(invocation)
  const report = (added: boolean) => {
    if (output.mode === "json") output.json({ node, address: addr.addr, added })
  }
  if (known.some((ip) => sameIp(ip.addr, addr))) {
    output.warn(`Node already knows about IP ${addr.addr}`)
    report(false)
    return 0
  }
  const request = { addr, mask, iface: words[1] ?? "" }
  let error = 0
  for (let attempt = 1; attempt <= TRIES; attempt++) {
    const outcome = await invocation.tryControl("ADD_PUBLIC_IP", node, request)
    if (outcome.ok) {
      client.sendMessage(BROADCAST_CONNECTED, Srvid.REBALANCE_NODE, encode(u32, node))
      report(true)
      await client.close()
      return 0
    }
    error = outcome.error
    await invocation.sleep(PAUSE_MS)
  }
  return invocation.fail(error, `Failed to add public IP to node ${node}. Giving up`)
}

/** The address stays visible until the next takeover run has moved it. */
export async function delip(invocation: Invocation): Promise<number> {
  const { output, node, words } = invocation
  const addr = addressWord(invocation, words[0] ?? "")
  const known = await knownAddresses(invocation)
  const found = known.some((ip) => sameIp(ip.addr, addr))
  if (found) {
    const line = `Failed to delete public IP from node ${node}`
    await invocation.control("DEL_PUBLIC_IP", node, { addr, mask: 0, iface: null }, line)
  } else output.warn(`Node does not know about IP address ${addr.addr}`)
  if (output.mode === "json") output.json({ node, address: addr.addr, deleted: found })
  return 0
}

/** Seconds that takeover runs stay off when the tool dies half-way: twice the limit of one request. */
const offSeconds = (invocation: Invocation) => 2 * invocation.options.timeLimit

/** Switches takeover runs off or on; nodes that do not answer in time are passed over, as by the stock tool. */
async function switchTakeoverRuns(invocation: Invocation, nodes: readonly number[], seconds: number): Promise<boolean> {
  const error = await disableOperation(invocation, "takeover runs", nodes, seconds)
  return error === undefined || error === Errno.ETIMEDOUT
}

/** One attempt. @returns 0, or the error number after printing the step that failed */
async function moveOnce(invocation: Invocation, address: SockAddr, target: number): Promise<number> {
  const { output } = invocation
  const failed = (error: number, line: string) => {
    output.warn(line)
    return error
  }
  const known = await invocation.tryControl("GET_PUBLIC_IPS", target)
  if (!known.ok) return failed(known.error, `Failed to get Public IPs from node ${target}`)
  if (!known.reply.some((ip) => sameIp(ip.addr, address))) {
    return failed(1, `Node ${target} CANNOT host IP address ${address.addr}`)
  }
  const map = await nodeMap(invocation)
  const connected = connectedNodes(map)
  const others = activeNodes(map).filter((node) => node !== target)
  if (others.length === 0) return failed(1, "Memory allocation error")

  if (!(await switchTakeoverRuns(invocation, connected, offSeconds(invocation)))) {
    return failed(1, "Failed to disable takeover runs")
  }
  const request = { pnn: target, addr: address }
  const released = await invocation.controlAll("RELEASE_IP", others, request)
  for (const outcome of released.values())
    if (!outcome.ok) return failed(outcome.error, "Failed to release IP on nodes")
  const taken = await invocation.tryControl("TAKEOVER_IP", target, request)
  if (!taken.ok) return failed(taken.error, `Failed to takeover IP on node ${target}`)
  if (!(await switchTakeoverRuns(invocation, connected, 0))) return failed(1, "Failed to enable takeover runs")
  const told = await invocation.controlAll("IPREALLOCATED", connected)
  for (const outcome of told.values()) if (!outcome.ok) return failed(outcome.error, "Failed to send ipreallocated")
  return 0
}

export async function moveip(invocation: Invocation): Promise<number> {
  const { output, words } = invocation
  const address = addressWord(invocation, words[0] ?? "")
  const target = parseUint32(words[1] ?? "", 10)
  if (!target.ok) return invocation.fail(1, `Invalid PNN ${words[1]}`)
  let error = 0
  for (let attempt = 1; attempt <= TRIES; attempt++) {
    error = await moveOnce(invocation, address, target.value)
    if (error === 0) {
      if (output.mode === "json") output.json({ address: address.addr, node: target.value })
      return 0
    }
    await invocation.sleep(PAUSE_MS)
  }
  return invocation.fail(error, `Failed to move IP ${address.addr} to node ${target.value}`)
}

/** Exit 0 even when a node failed to reload: scripts of the stock tool rely on it. */
export async function reloadips(invocation: Invocation): Promise<number> {
  const { output, node, words } = invocation
  const map = await nodeMap(invocation)
  const chosen = words[0] === undefined ? [node] : parseNodeList(invocation, words[0], map)
  const nodes = activeNodes(map).filter((pnn) => chosen.includes(pnn))
  if (nodes.length === 0) return invocation.fail(1, "Memory allocation error")
  const connected = connectedNodes(map)
  if (!(await switchTakeoverRuns(invocation, connected, offSeconds(invocation)))) {
    return invocation.fail(1, "Failed to disable takeover runs")
  }
  const reloaded = await invocation.controlAll("RELOAD_PUBLIC_IPS", nodes)
  const failed = [...reloaded].filter(([, outcome]) => !outcome.ok).map(([pnn]) => pnn)
  if (failed.length > 0) output.warn("Failed to reload IPs on some nodes.")
  if (!(await switchTakeoverRuns(invocation, connected, 0))) return invocation.fail(1, "Failed to enable takeover runs")
  const result = await invocation.waiting("waiting for the leader to reassign public addresses", () =>
    takeoverRun(invocation),
  )
  if (result < 0) return result
  if (output.mode === "json") output.json({ reloaded: nodes.filter((pnn) => !failed.includes(pnn)), failed })
  return 0
}

export async function gratarp(invocation: Invocation): Promise<number> {
  const { output, node, words } = invocation
  const addr = addressWord(invocation, words[0] ?? "")
  const line = `Unable to send gratuitous arp from node ${node}`
  await invocation.control("SEND_GRATUITOUS_ARP", node, { addr, mask: 0, iface: words[1] ?? "" }, line)
  if (output.mode === "json") output.json({ node, address: addr.addr, interface: words[1] ?? "" })
  return 0
}
