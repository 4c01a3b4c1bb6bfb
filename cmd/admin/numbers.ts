// Numbers and times as C programs read and print them: strtoul with its bases, atoi, ctime, printf's padding. The stock
// tool's arguments and outputs are defined by these (reference page "Admin tool", sections 3, 7 and 8).

/** EINVAL and ERANGE of Linux: exit statuses of commands given a bad number. */
const EINVAL = 22
const ERANGE = 34

export type ParsedNumber =
  | { readonly ok: true; readonly value: bigint }
  | { readonly ok: false; readonly errno: number }

/**
 * strtoull: leading blanks, `0x` and (base 0) a leading `0` for octal, whatever follows the digits is ignored. No digits
 * or a minus sign: EINVAL. More than 64 bits: ERANGE.
 */
export function parseUnsigned(text: string, base: 0 | 10 | 16 = 0): ParsedNumber {
  const match = /^[ \t\n\v\f\r]*(\+?)(.*)$/s.exec(text)
  const rest = match?.[2] ?? ""
  const digits = leadingDigits(rest, base)
  if (digits === undefined) return { ok: false, errno: EINVAL }
  const value = BigInt(digits)
  return value > 0xffff_ffff_ffff_ffffn ? { ok: false, errno: ERANGE } : { ok: true, value }
}

/** The digits as a literal that BigInt understands. */
function leadingDigits(text: string, base: 0 | 10 | 16): string | undefined {
  if (base !== 10) {
    const hex = /^0[xX]([0-9a-fA-F]+)/.exec(text) ?? (base === 16 ? /^([0-9a-fA-F]+)/.exec(text) : null)
    if (hex !== null) return `0x${hex[1]}`
    const octal = base === 0 ? /^0([0-7]*)/.exec(text) : null
    if (octal !== null) return `0o${octal[1] === "" ? "0" : octal[1]}`
  }
  return /^[0-9]+/.exec(text)?.[0]
}

/** parseUnsigned cut to 32 bits, as a C uint32_t variable cuts it. */
export function parseUint32(
  text: string,
  base: 0 | 10 | 16 = 0,
): { ok: true; value: number } | { ok: false; errno: number } {
  const parsed = parseUnsigned(text, base)
  return parsed.ok ? { ok: true, value: Number(BigInt.asUintN(32, parsed.value)) } : parsed
}

/** atoi as glibc does it: strtol (clamped to 64 bits), cut to a signed 32-bit number; 0 without digits. */
export function atoi(text: string): number {
  const match = /^[ \t\n\v\f\r]*([+-]?[0-9]+)/.exec(text)
  if (match === null) return 0
  const wide = BigInt(match[1]!)
  const clamped = wide > 0x7fff_ffff_ffff_ffffn ? 0x7fff_ffff_ffff_ffffn : wide < -(2n ** 63n) ? -(2n ** 63n) : wide
  return Number(BigInt.asIntN(32, clamped))
}

const weekdays = ["Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"] as const
const months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"] as const

/** `Tue Nov 24 15:00:36 2026`, local time, without ctime's newline. Seconds since the epoch. */
export function ctime(seconds: number): string {
  const date = new Date(seconds * 1000)
  const two = (value: number) => String(value).padStart(2, "0")
  const day = String(date.getDate()).padStart(2)
  const time = `${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}`
  return `${weekdays[date.getDay()]} ${months[date.getMonth()]} ${day} ${time} ${date.getFullYear()}`
}

/** `(000 00:01:21)`: days, hours, minutes, seconds. */
export function elapsed(seconds: number): string {
  const whole = Math.trunc(seconds)
  const part = (value: number, width: number) => String(value).padStart(width, "0")
  const days = Math.trunc(whole / 86_400)
  const hours = Math.trunc((whole % 86_400) / 3600)
  const minutes = Math.trunc((whole % 3600) / 60)
  return `(${part(days, 3)} ${part(hours, 2)}:${part(minutes, 2)}:${part(whole % 60, 2)})`
}
