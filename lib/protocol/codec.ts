// The encodings of wire-protocol.md section 4, and the combinators that build structures from them: one description
// gives size, write, read, validation and TypeScript type. Readers check every length against the bytes that are
// there before they use or allocate anything. Which structures exist is said in structs.ts; packets in packet.ts.

import { decodeText, textLength, writeText } from "./text.ts"
import type { Word64 } from "./word64.ts"

/**
 * EMSGSIZE: fewer bytes than the structure needs, or a count or length that does not fit in them.
 * EINVAL: a value outside its type (bool 2, a name too long). EPROTO: a value that names nothing known.
 */
export type ProtocolErrorCode = "EMSGSIZE" | "EINVAL" | "EPROTO"

/** The only error that decoding and encoding raise. `offset` counts from the start of the bytes given to decode(). */
export class ProtocolError extends Error {
  override readonly name = "ProtocolError"
  readonly code: ProtocolErrorCode
  readonly structure: string
  readonly field: string
  readonly offset: number

  constructor(code: ProtocolErrorCode, structure: string, field: string, offset: number, what: string) {
    super(`${structure}${field === "" ? "" : `.${field}`} at byte ${offset}: ${what}`)
    this.code = code
    this.structure = structure
    this.field = field
    this.offset = offset
  }
}

const EMPTY = new Uint8Array(0)
const f64Value = new Float64Array(1)
const f64Bytes = new Uint8Array(f64Value.buffer)

/**
 * A cursor over bytes[offset, end). Offsets in errors count from `origin`, where the bytes given to decode() start.
 * `structure` and `field` name what is being read, for errors; struct() keeps them up to date.
 */
export class Reader {
  readonly bytes: Uint8Array
  readonly origin: number
  offset: number
  end: number
  structure: string
  field = ""

  constructor(bytes: Uint8Array, structure: string, start = 0, end = bytes.length) {
    this.bytes = bytes
    this.origin = start
    this.offset = start
    this.end = end
    this.structure = structure
  }

  get remaining(): number {
    return this.end - this.offset
  }

  fail(code: ProtocolErrorCode, what: string, offset = this.offset): never {
    throw new ProtocolError(code, this.structure, this.field, offset - this.origin, what)
  }

  /** Moves on by `size` bytes and returns where they start. */
  advance(size: number): number {
    const at = this.offset
    if (size > this.end - at) this.fail("EMSGSIZE", `${size} bytes needed, ${this.end - at} left`)
    this.offset = at + size
    return at
  }

  u8(): number {
    return this.bytes[this.advance(1)]!
  }

  u16(): number {
    const at = this.advance(2)
    return this.bytes[at]! | (this.bytes[at + 1]! << 8)
  }

  u32(): number {
    return this.i32() >>> 0
  }

  i32(): number {
    const at = this.advance(4)
    const bytes = this.bytes
    return bytes[at]! | (bytes[at + 1]! << 8) | (bytes[at + 2]! << 16) | (bytes[at + 3]! << 24)
  }

  u64(): Word64 {
    this.need(8)
    const lo = this.u32()
    return { hi: this.u32(), lo }
  }

  i64(): number {
    const at = this.offset
    this.need(8)
    const lo = this.u32()
    const value = this.i32() * 0x100000000 + lo
    if (!Number.isSafeInteger(value)) this.fail("EINVAL", "value beyond 53 bits", at)
    return value
  }

  f64(): number {
    const at = this.advance(8)
    for (let i = 0; i < 8; i++) f64Bytes[i] = this.bytes[at + i]!
    return f64Value[0]!
  }

  /** A view, not a copy, of the next `size` bytes. */
  take(size: number): Uint8Array {
    const at = this.advance(size)
    return size === 0 ? EMPTY : this.bytes.subarray(at, at + size)
  }

  /** A u32 element count, refused unless that many elements of at least `elementSize` bytes can still follow. */
  count(elementSize: number, gap = 0): number {
    const at = this.offset
    const count = this.u32()
    this.advance(gap)
    if (count * elementSize > this.remaining) {
      this.fail(
        "EMSGSIZE",
        `${count} elements of at least ${elementSize} bytes announced, ${this.remaining} bytes left`,
        at,
      )
    }
    return count
  }

  /** Text in the next `size` bytes, which ends at the first NUL or after them. */
  text(size: number): string {
    const at = this.advance(size)
    let end = at
    while (end < at + size && this.bytes[end] !== 0) end++
    return decodeText(this.bytes, at, end)
  }

  private need(size: number): void {
    if (size > this.remaining) this.fail("EMSGSIZE", `${size} bytes needed, ${this.remaining} left`)
  }
}

/** A cursor that fills bytes[offset, end). It refuses values that their field can't hold, rather than cut them. */
export class Writer {
  readonly bytes: Uint8Array
  readonly origin: number
  offset: number
  readonly end: number
  structure: string
  field = ""

  constructor(bytes: Uint8Array, structure: string, start = 0, end = bytes.length) {
    this.bytes = bytes
    this.origin = start
    this.offset = start
    this.end = end
    this.structure = structure
  }

  fail(code: ProtocolErrorCode, what: string): never {
    throw new ProtocolError(code, this.structure, this.field, this.offset - this.origin, what)
  }

  private advance(size: number): number {
    const at = this.offset
    if (size > this.end - at) this.fail("EMSGSIZE", `no room for ${size} bytes`)
    this.offset = at + size
    return at
  }

  private integer(value: number, min: number, max: number): void {
    if (!(Number.isInteger(value) && value >= min && value <= max))
      this.fail("EINVAL", `${value} is not in ${min}..${max}`)
  }

  u8(value: number): void {
    this.integer(value, 0, 0xff)
    this.bytes[this.advance(1)] = value
  }

  u16(value: number): void {
    this.integer(value, 0, 0xffff)
    const at = this.advance(2)
    this.bytes[at] = value
    this.bytes[at + 1] = value >>> 8
  }

  u32(value: number): void {
    if (value >>> 0 !== value) this.fail("EINVAL", `${value} is not an unsigned 32-bit integer`)
    this.word(value)
  }

  i32(value: number): void {
    if ((value | 0) !== value) this.fail("EINVAL", `${value} is not a signed 32-bit integer`)
    this.word(value)
  }

  u64(value: Word64): void {
    this.u32(value.lo)
    this.u32(value.hi)
  }

  i64(value: number): void {
    if (!Number.isSafeInteger(value)) this.fail("EINVAL", `${value} is not an integer of 53 bits`)
    this.word(value)
    this.word(Math.floor(value / 0x100000000))
  }

  f64(value: number): void {
    f64Value[0] = value
    this.bytes.set(f64Bytes, this.advance(8))
  }

  data(value: Uint8Array): void {
    this.bytes.set(value, this.advance(value.length))
  }

  zeros(size: number): void {
    const at = this.advance(size)
    this.bytes.fill(0, at, at + size)
  }

  /** The bytes of `text`, without NUL and length. */
  text(text: string): void {
    const length = textLength(text)
    if (length < 0) this.fail("EINVAL", "text with a NUL or a stray surrogate")
    writeText(this.bytes, this.advance(length), text)
  }

  private word(value: number): void {
    const at = this.advance(4)
    const bytes = this.bytes
    bytes[at] = value
    bytes[at + 1] = value >>> 8
    bytes[at + 2] = value >>> 16
    bytes[at + 3] = value >>> 24
  }
}

/**
 * How values of T are laid out. Sizes are bytes; `minSize` is the least that any value takes, and what every value
 * takes if `fixed`. read() and write() raise ProtocolError only.
 */
export interface Codec<T> {
  readonly name: string
  readonly minSize: number
  readonly fixed: boolean
  /** Reading takes everything up to the end of the payload. */
  readonly toEnd?: true
  /** Of arrays: the codec of each element, for tests and tools that walk descriptions. */
  readonly element?: Codec<unknown>
  size(value: T): number
  write(w: Writer, value: T): void
  read(r: Reader): T
}

export type ValueOf<C> = C extends Codec<infer T> ? T : never

/** Bytes of one value. @throws ProtocolError EINVAL for a value that does not fit its field. */
export function encode<T>(codec: Codec<T>, value: T): Uint8Array {
  const size = codec.size(value)
  const w = new Writer(new Uint8Array(size), codec.name)
  codec.write(w, value)
  if (w.offset !== size) w.fail("EINVAL", `${w.offset} bytes written where ${size} were announced`)
  return w.bytes
}

/** The value at the start of `bytes`; bytes left over are ignored, payloads are views. @throws ProtocolError */
export function decode<T>(codec: Codec<T>, bytes: Uint8Array): T {
  return codec.read(new Reader(bytes, codec.name))
}

/** As decode(), but bytes left over are an error (EMSGSIZE): for the payloads that controls check for exact size. */
export function decodeExact<T>(codec: Codec<T>, bytes: Uint8Array): T {
  const r = new Reader(bytes, codec.name)
  const value = codec.read(r)
  r.field = ""
  if (r.remaining !== 0) r.fail("EMSGSIZE", `${r.remaining} bytes left over`)
  return value
}

function fixedCodec<T>(
  name: string,
  size: number,
  read: (r: Reader) => T,
  write: (w: Writer, value: T) => void,
): Codec<T> {
  return { name, minSize: size, fixed: true, size: () => size, read, write }
}

export const u8: Codec<number> = fixedCodec(
  "u8",
  1,
  (r) => r.u8(),
  (w, v) => w.u8(v),
)
export const u16: Codec<number> = fixedCodec(
  "u16",
  2,
  (r) => r.u16(),
  (w, v) => w.u16(v),
)
export const u32: Codec<number> = fixedCodec(
  "u32",
  4,
  (r) => r.u32(),
  (w, v) => w.u32(v),
)
export const i32: Codec<number> = fixedCodec(
  "i32",
  4,
  (r) => r.i32(),
  (w, v) => w.i32(v),
)
/** Signed 64-bit integers that fit a number; others fail with EINVAL. */
export const i64: Codec<number> = fixedCodec(
  "i64",
  8,
  (r) => r.i64(),
  (w, v) => w.i64(v),
)
export const u64: Codec<Word64> = fixedCodec(
  "u64",
  8,
  (r) => r.u64(),
  (w, v) => w.u64(v),
)
export const f64: Codec<number> = fixedCodec(
  "f64",
  8,
  (r) => r.f64(),
  (w, v) => w.f64(v),
)
export const pid: Codec<number> = fixedCodec(
  "pid",
  4,
  (r) => r.i32(),
  (w, v) => w.i32(v),
)

export const bool: Codec<boolean> = fixedCodec(
  "bool",
  1,
  (r) => {
    const value = r.u8()
    if (value > 1) r.fail("EINVAL", `${value} is neither 0 nor 1`, r.offset - 1)
    return value === 1
  },
  (w, value) => w.u8(value ? 1 : 0),
)

/** No bytes: the payload of controls and messages that have none. */
export const none: Codec<undefined> = fixedCodec<undefined>(
  "none",
  0,
  () => undefined,
  () => undefined,
)

/** A u32 followed by a u32 0 that must be there: the request of GET_DB_SEQNUM (wire-protocol.md 6.3). */
export const u32AndZero: Codec<number> = fixedCodec(
  "u32_and_zero",
  8,
  (r) => {
    const value = r.u32()
    r.advance(4)
    return value
  },
  (w, value) => {
    w.u32(value)
    w.zeros(4)
  },
)

/** `size` bytes of text, NUL-padded, the last byte always NUL; a longer text is refused (EINVAL), not cut. */
export function chars(size: number): Codec<string> {
  return fixedCodec(
    `chars[${size}]`,
    size,
    (r) => {
      const at = r.advance(size)
      const end = r.offset
      r.offset = at
      const text = r.text(size - 1)
      r.offset = end
      return text
    },
    (w, value) => {
      const length = textLength(value)
      if (length >= size) w.fail("EINVAL", `text of ${length} bytes in a field of ${size}`)
      w.text(value)
      w.zeros(size - length)
    },
  )
}

/** Bytes that exist only because a C structure has a hole: written zero, skipped, left out of the value. */
export interface Padding extends Codec<undefined> {
  readonly padding: true
}

export function padding(size: number): Padding {
  const codec = fixedCodec<undefined>(
    `padding[${size}]`,
    size,
    (r) => {
      r.advance(size)
    },
    (w) => w.zeros(size),
  )
  return { ...codec, padding: true }
}

/** Text and its NUL up to the end of the payload; null is no bytes at all, "" is one NUL. */
export const string: Codec<string | null> = {
  name: "string",
  minSize: 0,
  fixed: false,
  toEnd: true,
  size: (value) => (value === null ? 0 : textLength(value) + 1),
  read: (r) => (r.remaining === 0 ? null : r.text(r.remaining)),
  write: (w, value) => {
    if (value === null) return
    w.text(value)
    w.u8(0)
  },
}

/** Text without NUL up to the end of the payload (memory reports). */
export const text: Codec<string> = {
  name: "text",
  minSize: 0,
  fixed: false,
  toEnd: true,
  size: (value) => Math.max(0, textLength(value)),
  read: (r) => r.text(r.remaining),
  write: (w, value) => w.text(value),
}

/** u32 length that counts the NUL, then text and NUL; null has length 0, "" length 1. */
export const stringn: Codec<string | null> = {
  name: "stringn",
  minSize: 4,
  fixed: false,
  size: (value) => (value === null ? 4 : 4 + textLength(value) + 1),
  read: (r) => {
    const length = r.count(1)
    return length === 0 ? null : r.text(length)
  },
  write: (w, value) => {
    if (value === null) {
      w.u32(0)
      return
    }
    const length = textLength(value)
    if (length < 0) w.fail("EINVAL", "text with a NUL or a stray surrogate")
    w.u32(length + 1)
    w.text(value)
    w.u8(0)
  },
}

/** Raw bytes up to the end of the payload, as a view. */
export const data: Codec<Uint8Array> = {
  name: "data",
  minSize: 0,
  fixed: false,
  toEnd: true,
  size: (value) => value.length,
  read: (r) => r.take(r.remaining),
  write: (w, value) => w.data(value),
}

/** u32 length, then that many raw bytes, as a view. */
export const datan: Codec<Uint8Array> = {
  name: "datan",
  minSize: 4,
  fixed: false,
  size: (value) => 4 + value.length,
  read: (r) => r.take(r.count(1)),
  write: (w, value) => {
    w.u32(value.length)
    w.data(value)
  },
}

function sizeOfAll<T>(element: Codec<T>, values: readonly T[]): number {
  if (element.fixed) return element.minSize * values.length
  let size = 0
  for (const value of values) size += element.size(value)
  return size
}

/** Elements must take bytes and an end: otherwise a crafted count could not be checked against the bytes there are. */
function requireElement(element: Codec<unknown>): void {
  if (element.minSize === 0 || element.toEnd) throw new TypeError(`${element.name} can't be an element`)
}

/**
 * u32 count, `gap` bytes of padding, then the elements. The count is checked against the bytes left before use.
 * `name` is for arrays that are structures of their own.
 */
export function array<T>(element: Codec<T>, gap = 0, name = `${element.name}[]`): Codec<readonly T[]> {
  requireElement(element)
  const head = 4 + gap
  return {
    name,
    element,
    minSize: head,
    fixed: false,
    size: (values) => head + sizeOfAll(element, values),
    read: (r) => {
      if (r.field === "") r.field = "num"
      const values: T[] = []
      for (let left = r.count(element.minSize, gap); left > 0; left--) values.push(element.read(r))
      return values
    },
    write: (w, values) => {
      w.u32(values.length)
      w.zeros(gap)
      for (const value of values) element.write(w, value)
    },
  }
}

/** Exactly `count` elements, without a count on the wire. */
export function fixedArray<T>(element: Codec<T>, count: number): Codec<readonly T[]> {
  return {
    name: `${element.name}[${count}]`,
    element,
    minSize: element.minSize * count,
    fixed: element.fixed,
    size: (values) => sizeOfAll(element, values),
    read: (r) => {
      const values: T[] = []
      for (let i = 0; i < count; i++) values.push(element.read(r))
      return values
    },
    write: (w, values) => {
      if (values.length !== count) w.fail("EINVAL", `${values.length} elements where ${count} belong`)
      for (const value of values) element.write(w, value)
    },
  }
}

/** As many elements as fit in the rest of the payload; a part of an element at the end is ignored. */
export function arrayToEnd<T>(element: Codec<T>, name = `${element.name}[...]`): Codec<readonly T[]> {
  requireElement(element)
  return {
    name,
    element,
    minSize: 0,
    fixed: false,
    toEnd: true,
    size: (values) => sizeOfAll(element, values),
    read: (r) => {
      const values: T[] = []
      while (r.remaining >= element.minSize) values.push(element.read(r))
      return values
    },
    write: (w, values) => {
      for (const value of values) element.write(w, value)
    },
  }
}

type Fields = Readonly<Record<string, Codec<unknown>>>

/** The value of a struct: its fields without padding. */
export type StructValue<F extends Fields> = {
  readonly [K in keyof F as F[K] extends Padding ? never : K]: ValueOf<F[K]>
}

/** A codec that knows its fields, in wire order, for tests and tools that walk descriptions. */
export interface Struct<F extends Fields> extends Codec<StructValue<F>> {
  readonly fields: F
}

/**
 * Fields one after another, without gaps: the order of the keys is the order on the wire. Padding is a field of its own.
 * A field that takes "the rest" (string, data, arrayToEnd) must be the last; struct() refuses others when it is built.
 */
export function struct<const F extends Fields>(name: string, fields: F): Struct<F> {
  const keys = Object.keys(fields)
  const codecs = Object.values(fields)
  const isPadding = codecs.map((codec) => "padding" in codec)
  const count = keys.length
  let minSize = 0
  let fixed = true
  for (let i = 0; i < count; i++) {
    const codec = codecs[i]!
    if (codec.toEnd && i < count - 1) throw new TypeError(`${name}.${keys[i]} leaves no bytes for the fields after it`)
    minSize += codec.minSize
    fixed &&= codec.fixed
  }

  return {
    ...(codecs[count - 1]?.toEnd ? { toEnd: true } : {}),
    name,
    fields,
    minSize,
    fixed,
    size: (value) => {
      if (fixed) return minSize
      const record = value as Record<string, unknown>
      let size = 0
      for (let i = 0; i < count; i++) size += codecs[i]!.size(record[keys[i]!])
      return size
    },
    read: (r) => {
      const outer = r.structure
      r.structure = name
      const value: Record<string, unknown> = {}
      for (let i = 0; i < count; i++) {
        const key = keys[i]!
        r.field = key
        const field = codecs[i]!.read(r)
        if (!isPadding[i]) value[key] = field
      }
      r.structure = outer
      return value as StructValue<F>
    },
    write: (w, value) => {
      const outer = w.structure
      w.structure = name
      const record = value as Record<string, unknown>
      for (let i = 0; i < count; i++) {
        const key = keys[i]!
        w.field = key
        codecs[i]!.write(w, record[key])
      }
      w.structure = outer
    },
  }
}

/** Seconds and microseconds since the epoch (wire-protocol.md section 4); zero means "never". */
export const timeval = struct("timeval", { sec: i64, usec: i64 })
export type Timeval = ValueOf<typeof timeval>
