// The public_addresses file: `ADDRESS/MASKBITS IFACE[,IFACE...]` a line. Source: reference page "IP failover", section 2.
// Whether an interface exists is asked of the caller; which address goes where is the failover code's affair.

import { readFileSync } from "node:fs"
import { type Address, parseAddress } from "./address.ts"
import { errnoOf, type Fault, type Parsed } from "./fault.ts"

export interface PublicAddress {
  /** Canonical literal. */
  readonly address: string
  readonly family: Address["family"]
  readonly maskBits: number
  /** Candidates in the file's order, at least one. */
  readonly interfaces: readonly string[]
  /** 1-based line of the file. */
  readonly line: number
}

export interface PublicAddressFault extends Fault {
  /** The lines that the stock daemon logs for it. */
  readonly stock: readonly string[]
}

/** The last line of a stock daemon that fails on this file, with status 1. */
export const PUBLIC_ADDRESSES_FAILED = "Unable to setup public IP addresses"

const ADDRESS_TEXT_MAX = 63
const INTERFACE_NAME_MAX = 16

/**
 * Parses the file; any fault makes it invalid. Every bad line is reported.
 * @param interfaceExists whether this host has an interface of that name
 */
export function parsePublicAddresses(
  text: string,
  source: string,
  interfaceExists: (name: string) => boolean,
):
  | { readonly ok: true; readonly value: readonly PublicAddress[] }
  | { readonly ok: false; readonly faults: readonly PublicAddressFault[] } {
  const addresses: PublicAddress[] = []
  const faults: PublicAddressFault[] = []
  for (const [index, rawLine] of text.split("\n").entries()) {
    const line = index + 1
    const words = rawLine
      .replace(/[\r\0].*$/s, "")
      .split(/[ \t]+/)
      .filter((word) => word !== "")
    const [addressText, interfaceText] = words
    if (addressText === undefined || addressText.startsWith("#")) continue
    const fault = (cause: string, ...stock: string[]) => faults.push({ source, line, cause, stock })
    if (interfaceText === undefined) {
      fault(
        "no interface: expected ADDRESS/MASKBITS IFACE[,IFACE...]",
        `No interface specified at line ${line} of public addresses file`,
      )
      continue
    }
    const parsed = parseAddressWithMask(addressText)
    if (parsed === undefined) {
      fault(`"${addressText}" is not ADDRESS/MASKBITS`, `Badly formed line ${line} in public address list`)
      continue
    }
    const { address, family, maskBits } = parsed
    const failed = `Failed to add line ${line} to the public address list`
    const earlier = addresses.find((other) => other.address === address)
    if (earlier !== undefined) {
      fault(`${address} is on line ${earlier.line} already`, `Duplicate public IP address '${address}'`, failed)
      continue
    }
    const interfaces = interfaceText.split(",").filter((name) => name !== "")
    const unknown = interfaces.find((name) => name.length > INTERFACE_NAME_MAX || !interfaceExists(name))
    if (unknown !== undefined || interfaces.length === 0) {
      const name = unknown ?? interfaceText
      fault(`this host has no interface "${name}"`, `Unknown interface ${name} for public address ${address}`, failed)
      continue
    }
    addresses.push({ address, family, maskBits, interfaces, line })
  }
  return faults.length > 0 ? { ok: false, faults } : { ok: true, value: addresses }
}

/** `ADDRESS/MASKBITS`, split at the last slash; the range of the mask bits is not checked, as in the stock daemon. */
export function parseAddressWithMask(text: string): (Address & { address: string; maskBits: number }) | undefined {
  const slash = text.lastIndexOf("/")
  if (slash < 0 || text.length > ADDRESS_TEXT_MAX) return undefined
  const maskText = text.slice(slash + 1)
  const address = parseAddress(text.slice(0, slash))
  if (address === undefined || !/^[0-9]{1,9}$/.test(maskText)) return undefined
  return { ...address, address: address.text, maskBits: Number(maskText) }
}

/** Reads and parses; a missing file is no addresses (`missing`), which deserves a warning and no more. */
export function loadPublicAddresses(
  path: string,
  interfaceExists: (name: string) => boolean,
): Parsed<{ readonly addresses: readonly PublicAddress[]; readonly missing: boolean }> {
  let text: string
  try {
    text = readFileSync(path, "utf8")
  } catch (error) {
    const reason = errnoOf(error)
    if (reason === "ENOENT") return { ok: true, value: { addresses: [], missing: true } }
    return { ok: false, faults: [{ source: path, line: 0, cause: `cannot be read: ${reason}` }] }
  }
  const parsed = parsePublicAddresses(text, path, interfaceExists)
  return parsed.ok ? { ok: true, value: { addresses: parsed.value, missing: false } } : parsed
}
