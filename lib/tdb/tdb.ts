// The public face of the TDB engine: everything that other rooms may use. The files beside it are its parts.

export { INSERT, MODIFY, type Parser, REPLACE, type StoreMode, Tdb } from "./database.ts"
export { TdbError, type TdbErrorCode } from "./error.ts"
export * from "./format.ts"
export { freelistSize } from "./freelist.ts"
export { jenkinsHash, oldHash } from "./hash.ts"
export { type MemoryOptions, type OpenOptions, openMemory, openTdb } from "./open.ts"
export { keys, type RecordVisitor, traverse, traverseRead, type Visitor, Walk } from "./traverse.ts"
