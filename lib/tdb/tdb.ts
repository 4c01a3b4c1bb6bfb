// The public face of the TDB engine: everything that other rooms may use. The files beside it are its parts.

export { ChainWalk, type ChainWalkState } from "./chain-walk.ts"
export { type CheckResult, check, type RecordCheck, type Summary, summary, type Tally } from "./check.ts"
export { INSERT, MODIFY, type Parser, REPLACE, type StoreMode, Tdb } from "./database.ts"
export { DumpError, type DumpedRecord, formatRecord, parseDump, quoteBytes } from "./dump.ts"
export { TdbError, type TdbErrorCode } from "./error.ts"
export * from "./format.ts"
export { freelistSize } from "./freelist.ts"
export { jenkinsHash, oldHash } from "./hash.ts"
export { type MemoryOptions, type OpenOptions, openMemory, openTdb } from "./open.ts"
export { rescue } from "./rescue.ts"
export { keys, type RecordVisitor, traverse, traverseRead, type Visitor, Walk } from "./traverse.ts"
export { type Granted, type Held, startWaiters, WAITERS, type Wait } from "./waits.ts"
