// Structures of the controls that are ours and not CTDB's: only our nodes know them (daemon/database/alike.ts). All others are
// in structs.ts.

import { datan, struct, u32, type ValueOf } from "./codec.ts"
import { pulldbExt } from "./structs.ts"

/** Of ALIKE_RETAIN: `keep` has one bit for each group of keys, `leader` becomes the records' dmaster. */
export const alikeRetain = struct("alike_retain", { dbId: u32, tid: u32, leader: u32, keep: datan })
export type AlikeRetain = ValueOf<typeof alikeRetain>

/** Of ALIKE_PULL: as pulldb_ext, without the records of the groups in `keep`. */
export const alikePull = struct("alike_pull", { ...pulldbExt.fields, keep: datan })
export type AlikePull = ValueOf<typeof alikePull>
