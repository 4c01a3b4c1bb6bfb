// The one error that every operation on a TDB file raises: what kind, in which file, at which offset, and why. Absence of a record
// is not an error unless the caller asked for it to exist.

/**
 * Kinds of failure. The first ten are libtdb's (tdb-format.md 8.1); the rest tell apart what libtdb reports through errno at open:
 * FORMAT is a file that is no TDB file or one that this engine must refuse, BUSY a lock that was not to be waited for.
 */
export type TdbErrorCode =
  | "CORRUPT"
  | "IO"
  | "LOCK"
  | "EXISTS"
  | "NOEXIST"
  | "EINVAL"
  | "RDONLY"
  | "NESTING"
  | "NOSPACE"
  | "CANCELLED"
  | "FORMAT"
  | "BUSY"

export class TdbError extends Error {
  constructor(
    readonly code: TdbErrorCode,
    /** Path of the file, or the name of a database in memory. */
    readonly file: string,
    readonly reason: string,
    /** Offset in the map (behind the mutex area) where it was found, when there is one. */
    readonly offset: number | undefined = undefined,
    /** The errno that libtdb's open would fail with, for errors of open. */
    readonly errno: number | undefined = undefined,
  ) {
    super(offset === undefined ? `${file}: ${reason}` : `${file}: offset ${offset}: ${reason}`)
    this.name = "TdbError"
  }
}
