// The stock program names that this one binary stands in for, each with the word after `ctdb` that means the same. Main
// reads it as a macro (the table becomes part of the entry point), `ctdb links` as a module.

/** Installed name -> first argument of `ctdb`. A name is listed only when its program exists. */
export function stockNames(): Record<string, string> {
  return {
    ctdbd: "run",
    ctdb_recoverd: "recoverd",
    ctdb_recovery_helper: "recovery-helper",
    ctdb_mutex_fcntl_helper: "mutex-fcntl-helper",
    "ctdb-config": "config",
    "ctdb-path": "path",
  }
}
