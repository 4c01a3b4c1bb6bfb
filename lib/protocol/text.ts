// Text on the wire is bytes of no declared character set. Valid UTF-8 becomes ordinary text; a byte that is not part
// of valid UTF-8 becomes the lone surrogate U+DC00 + byte, so that every byte string survives decode and encode.
// Framing (NUL, length words) is the codec's business, not this file's.

const utf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true })

/** Text of bytes[start, end). Never fails; see the head of this file for bytes that aren't UTF-8. */
export function decodeText(bytes: Uint8Array, start: number, end: number): string {
  if (start === end) return ""
  try {
    return utf8.decode(bytes.subarray(start, end))
  } catch {
    return decodeEscaped(bytes, start, end)
  }
}

/** Length in bytes of the UTF-8 sequence that starts at `at`, or 0 if there is no valid one. */
function sequenceLength(bytes: Uint8Array, at: number, end: number): number {
  const first = bytes[at]!
  if (first < 0x80) return 1
  const length =
    first >= 0xc2 && first < 0xe0 ? 2 : first >= 0xe0 && first < 0xf0 ? 3 : first >= 0xf0 && first < 0xf5 ? 4 : 0
  if (length === 0 || at + length > end) return 0
  for (let i = 1; i < length; i++) if ((bytes[at + i]! & 0xc0) !== 0x80) return 0
  const second = bytes[at + 1]!
  // Overlong forms, surrogates and values above U+10FFFF are told by the second byte.
  if (first === 0xe0 && second < 0xa0) return 0
  if (first === 0xed && second > 0x9f) return 0
  if (first === 0xf0 && second < 0x90) return 0
  if (first === 0xf4 && second > 0x8f) return 0
  return length
}

function decodeEscaped(bytes: Uint8Array, start: number, end: number): string {
  let text = ""
  for (let at = start; at < end; ) {
    const length = sequenceLength(bytes, at, end)
    if (length === 0) text += String.fromCharCode(0xdc00 + bytes[at++]!)
    else {
      text += utf8.decode(bytes.subarray(at, at + length))
      at += length
    }
  }
  return text
}

/** Bytes that `text` takes, or -1 if it can't be encoded: it contains NUL, or a surrogate that escapes no byte. */
export function textLength(text: string): number {
  let length = 0
  for (let i = 0; i < text.length; i++) {
    const unit = text.charCodeAt(i)
    if (unit === 0) return -1
    if (unit < 0x80) length += 1
    else if (unit < 0x800) length += 2
    else if (unit < 0xd800 || unit > 0xdfff) length += 3
    else if (unit < 0xdc00) {
      const next = text.charCodeAt(++i)
      if (!(next >= 0xdc00 && next <= 0xdfff)) return -1
      length += 4
    } else if (unit >= 0xdc80 && unit <= 0xdcff) length += 1
    else return -1
  }
  return length
}

/** Writes `text`, for which textLength() gave a length that fits, at `at`; returns the offset after it. */
export function writeText(bytes: Uint8Array, at: number, text: string): number {
  for (let i = 0; i < text.length; i++) {
    let point = text.charCodeAt(i)
    if (point < 0x80) bytes[at++] = point
    else if (point < 0x800) {
      bytes[at++] = 0xc0 | (point >> 6)
      bytes[at++] = 0x80 | (point & 0x3f)
    } else if (point < 0xd800 || point > 0xdfff) {
      bytes[at++] = 0xe0 | (point >> 12)
      bytes[at++] = 0x80 | ((point >> 6) & 0x3f)
      bytes[at++] = 0x80 | (point & 0x3f)
    } else if (point < 0xdc00) {
      point = 0x10000 + ((point - 0xd800) << 10) + (text.charCodeAt(++i) - 0xdc00)
      bytes[at++] = 0xf0 | (point >> 18)
      bytes[at++] = 0x80 | ((point >> 12) & 0x3f)
      bytes[at++] = 0x80 | ((point >> 6) & 0x3f)
      bytes[at++] = 0x80 | (point & 0x3f)
    } else bytes[at++] = point - 0xdc00
  }
  return at
}
