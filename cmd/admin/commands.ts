// One table of truth for the tool's commands: name, arguments, help text, what it needs, and the module that does it. The
// help, the argument check, the node check and the question before a destructive command all come from here; adding a
// command is one entry and one module. Order, names and texts are the stock tool's (reference page "Admin tool",
// section 7), odd spellings included.

import type { Invocation } from "./invocation.ts"

/** Does one command; returns the exit status. */
export type Handler = (invocation: Invocation) => Promise<number>

export interface Command {
  readonly name: string
  /** As the help shows them. */
  readonly words: string
  readonly text: string
  /** How many words are accepted; `any` looks at none or at as many as it likes. */
  readonly accepts: "any" | readonly [minimum: number, maximum: number]
  /** Works without a connection to the daemon. */
  readonly offline?: true
  /** `-n` may name only the local node. */
  readonly local?: true
  /** The stock tool looks this one's usage up under a wrong name and prints the help of all. */
  readonly misnamed?: true
  /** Not a command of the stock tool (4.17): only people see it in the help. */
  readonly ours?: true
  /** On a terminal: asked before the command runs. What it destroys or interrupts, as a question. */
  readonly ask?: (node: number, words: readonly string[]) => string
  /** What does it; of a command that this version does not have, what to do instead. */
  readonly load: (() => Promise<Handler>) | { readonly instead: string }
}

const MANY = Number.POSITIVE_INFINITY

export const commands: readonly Command[] = [
  {
    name: "version",
    words: "",
    text: "show version of ctdb",
    accepts: "any",
    offline: true,
    load: async () => (await import("./offline.ts")).version,
  },
  {
    name: "status",
    words: "",
    text: "show node status",
    accepts: [0, 0],
    load: async () => (await import("./status.ts")).status,
  },
  {
    name: "uptime",
    words: "",
    text: "show node uptime",
    accepts: "any",
    load: async () => (await import("./node.ts")).uptime,
  },
  { name: "ping", words: "", text: "ping a node", accepts: "any", load: async () => (await import("./node.ts")).ping },
  {
    name: "runstate",
    words: "[setup|first_recovery|startup|running]",
    text: "get/check runstate of a node",
    accepts: "any",
    load: async () => (await import("./node.ts")).runstate,
  },
  {
    name: "getvar",
    words: "<name>",
    text: "get a tunable variable",
    accepts: [1, 1],
    load: async () => (await import("./tunables.ts")).getvar,
  },
  {
    name: "setvar",
    words: "<name> <value>",
    text: "set a tunable variable",
    accepts: [2, 2],
    load: async () => (await import("./tunables.ts")).setvar,
  },
  {
    name: "listvars",
    words: "",
    text: "list tunable variables",
    accepts: [0, 0],
    load: async () => (await import("./tunables.ts")).listvars,
  },
  {
    name: "statistics",
    words: "",
    text: "show ctdb statistics",
    accepts: [0, 0],
    load: async () => (await import("./statistics.ts")).statistics,
  },
  {
    name: "statisticsreset",
    words: "",
    text: "reset ctdb statistics",
    accepts: [0, 0],
    load: async () => (await import("./statistics.ts")).statisticsreset,
  },
  {
    name: "stats",
    words: "[count]",
    text: "show rolling statistics",
    accepts: [0, 1],
    load: async () => (await import("./statistics.ts")).stats,
  },
  {
    name: "ip",
    words: "[all]",
    text: "show public ips",
    accepts: [0, 1],
    load: async () => (await import("./addresses.ts")).ip,
  },
  {
    name: "ipinfo",
    words: "<ip>",
    text: "show public ip details",
    accepts: [1, 1],
    load: async () => (await import("./addresses.ts")).ipinfo,
  },
  {
    name: "ifaces",
    words: "",
    text: "show interfaces",
    accepts: [0, 0],
    load: async () => (await import("./addresses.ts")).ifaces,
  },
  {
    name: "setifacelink",
    words: "<iface> up|down",
    text: "set interface link status",
    accepts: [2, 2],
    load: async () => (await import("./addresses.ts")).setifacelink,
  },
  {
    name: "process-exists",
    words: "<pid> [<srvid>]",
    text: "check if a process exists on a node",
    accepts: [1, 2],
    load: async () => (await import("./node.ts")).processExists,
  },
  {
    name: "getdbmap",
    words: "",
    text: "show attached databases",
    accepts: [0, 0],
    load: async () => (await import("./dbmap.ts")).getdbmap,
  },
  {
    name: "getdbstatus",
    words: "<dbname|dbid>",
    text: "show database status",
    accepts: [1, 1],
    load: async () => (await import("./dbmap.ts")).getdbstatus,
  },
  {
    name: "catdb",
    words: "<dbname|dbid>",
    text: "dump cluster-wide ctdb database",
    accepts: [1, 1],
    local: true,
    load: async () => (await import("./records.ts")).catdb,
  },
  {
    name: "cattdb",
    words: "<dbname|dbid>",
    text: "dump local ctdb database",
    accepts: [1, 1],
    local: true,
    load: async () => (await import("./records.ts")).cattdb,
  },
  {
    name: "getcapabilities",
    words: "",
    text: "show node capabilities",
    accepts: [0, 0],
    load: async () => (await import("./node.ts")).getcapabilities,
  },
  {
    name: "pnn",
    words: "",
    text: "show the pnn of the currnet node",
    accepts: "any",
    local: true,
    load: async () => (await import("./node.ts")).pnn,
  },
  {
    name: "lvs",
    words: "leader|list|status",
    text: "show lvs configuration",
    accepts: [1, 1],
    local: true,
    load: async () => (await import("./programs.ts")).lvs,
  },
  {
    name: "setdebug",
    words: "ERROR|WARNING|NOTICE|INFO|DEBUG",
    text: "set debug level",
    accepts: [1, 1],
    load: async () => (await import("./node.ts")).setdebug,
  },
  {
    name: "getdebug",
    words: "",
    text: "get debug level",
    accepts: [0, 0],
    load: async () => (await import("./node.ts")).getdebug,
  },
  {
    name: "attach",
    words: "<dbname> [persistent|replicated]",
    text: "attach a database",
    accepts: [1, 2],
    local: true,
    load: async () => (await import("./dbmap.ts")).attach,
  },
  {
    name: "detach",
    words: "<dbname|dbid> ...",
    text: "detach database(s)",
    accepts: [1, MANY],
    local: true,
    ask: (_node, words) => `Detach ${words.join(", ")} from all nodes?`,
    load: async () => (await import("./dbmap.ts")).detach,
  },
  {
    name: "dumpmemory",
    words: "",
    text: "dump ctdbd memory map",
    accepts: "any",
    load: async () => (await import("./node.ts")).dumpmemory,
  },
  {
    name: "rddumpmemory",
    words: "",
    text: "dump recoverd memory map",
    accepts: "any",
    load: async () => (await import("./node.ts")).rddumpmemory,
  },
  {
    name: "getpid",
    words: "",
    text: "get ctdbd process ID",
    accepts: "any",
    load: async () => (await import("./node.ts")).getpid,
  },
  {
    name: "disable",
    words: "",
    text: "disable a node",
    accepts: [0, 0],
    ask: (node) => `Disable node ${node}? It gives its public addresses to other nodes.`,
    load: async () => (await import("./flags.ts")).disable,
  },
  {
    name: "enable",
    words: "",
    text: "enable a node",
    accepts: [0, 0],
    load: async () => (await import("./flags.ts")).enable,
  },
  {
    name: "stop",
    words: "",
    text: "stop a node",
    accepts: [0, 0],
    ask: (node) => `Stop node ${node}? It leaves the cluster until "ctdb continue".`,
    load: async () => (await import("./flags.ts")).stop,
  },
  {
    name: "continue",
    words: "",
    text: "continue a stopped node",
    accepts: [0, 0],
    load: async () => (await import("./flags.ts")).continueNode,
  },
  {
    name: "ban",
    words: "<bantime>",
    text: "ban a node",
    accepts: [1, 1],
    ask: (node, words) =>
      `Ban node ${node} for ${words[0]} seconds? It drops its databases and addresses for that time.`,
    load: async () => (await import("./flags.ts")).ban,
  },
  {
    name: "unban",
    words: "",
    text: "unban a node",
    accepts: [0, 0],
    load: async () => (await import("./flags.ts")).unban,
  },
  {
    name: "shutdown",
    words: "",
    text: "shutdown ctdb daemon",
    accepts: [0, 0],
    ask: (node) => `Shut down the daemon of node ${node}? Its clients (smbd, winbindd) lose their databases.`,
    load: async () => (await import("./cluster.ts")).shutdown,
  },
  {
    name: "recover",
    words: "",
    text: "force recovery",
    accepts: [0, 0],
    ask: () => "Force a recovery? All databases stand still until it ends.",
    load: async () => (await import("./cluster.ts")).recover,
  },
  {
    name: "sync",
    words: "",
    text: "run ip reallocation (deprecated)",
    accepts: [0, 0],
    load: async () => (await import("./cluster.ts")).ipreallocate,
  },
  {
    name: "ipreallocate",
    words: "",
    text: "run ip reallocation",
    accepts: [0, 0],
    load: async () => (await import("./cluster.ts")).ipreallocate,
  },
  {
    name: "gratarp",
    words: "<ip> <interface>",
    text: "send a gratuitous arp",
    accepts: [2, 2],
    load: async () => (await import("./addresses.ts")).gratarp,
  },
  {
    name: "tickle",
    words: "<srcip:port> <dstip:port>",
    text: "send a tcp tickle ack",
    accepts: [0, 2],
    offline: true,
    load: {
      instead:
        "sending a packet by hand is not in this version yet; the stock tool's tickle needs no daemon of its kind",
    },
  },
  {
    name: "gettickles",
    words: "<ip> [<port>]",
    text: "get the list of tickles",
    accepts: [1, 2],
    load: async () => (await import("./tickles.ts")).gettickles,
  },
  {
    name: "addtickle",
    words: "<ip>:<port> <ip>:<port>",
    text: "add a tickle",
    accepts: [0, 2],
    load: async () => (await import("./tickles.ts")).addtickle,
  },
  {
    name: "deltickle",
    words: "<ip>:<port> <ip>:<port>",
    text: "delete a tickle",
    accepts: [0, 2],
    load: async () => (await import("./tickles.ts")).deltickle,
  },
  {
    name: "listnodes",
    words: "",
    text: "list nodes in the cluster",
    accepts: [0, 0],
    offline: true,
    load: async () => (await import("./offline.ts")).listnodes,
  },
  {
    name: "reloadnodes",
    words: "",
    text: "reload the nodes file all nodes",
    accepts: "any",
    local: true,
    ask: () => "Reload the nodes file on all nodes? Nodes that it no longer lists leave the cluster.",
    load: async () => (await import("./reloadnodes.ts")).reloadnodes,
  },
  {
    name: "moveip",
    words: "<ip> <node>",
    text: "move an ip address to another node",
    accepts: [2, 2],
    local: true,
    load: async () => (await import("./addresses.ts")).moveip,
  },
  {
    name: "addip",
    words: "<ip/mask> <iface>",
    text: "add an ip address to a node",
    accepts: [2, 2],
    load: async () => (await import("./addresses.ts")).addip,
  },
  {
    name: "delip",
    words: "<ip>",
    text: "delete an ip address from a node",
    accepts: [1, 1],
    ask: (node, words) => `Delete address ${words[0]} from node ${node}? If it is there, its connections break.`,
    load: async () => (await import("./addresses.ts")).delip,
  },
  {
    name: "backupdb",
    words: "<dbname|dbid> <file>",
    text: "backup a database into a file",
    accepts: [2, 2],
    local: true,
    load: async () => (await import("./backup.ts")).backupdb,
  },
  {
    name: "restoredb",
    words: "<file> [dbname]",
    text: "restore a database from a file",
    accepts: [1, 2],
    local: true,
    ask: (_node, words) => `Replace the database by what ${words[0]} holds?`,
    load: async () => (await import("./backup.ts")).restoredb,
  },
  {
    name: "dumpdbbackup",
    words: "<file>",
    text: "dump database from a backup file",
    accepts: [1, 1],
    offline: true,
    misnamed: true,
    load: async () => (await import("./backup.ts")).dumpdbbackup,
  },
  {
    name: "wipedb",
    words: "<dbname|dbid>",
    text: "wipe the contents of a database.",
    accepts: [1, 1],
    local: true,
    ask: (_node, words) => `Delete every record of ${words[0]} on all nodes?`,
    load: async () => (await import("./backup.ts")).wipedb,
  },
  {
    name: "leader",
    words: "",
    text: "show the pnn of the leader",
    accepts: "any",
    load: async () => (await import("./cluster.ts")).leader,
  },
  {
    name: "event",
    words: "",
    text: "event and event script commands",
    accepts: "any",
    offline: true,
    load: async () => (await import("./programs.ts")).event,
  },
  {
    name: "scriptstatus",
    words: "[init|setup|startup|monitor|takeip|releaseip|ipreallocated]",
    text: "show event script status",
    accepts: [0, 1],
    offline: true,
    load: async () => (await import("./programs.ts")).scriptstatus,
  },
  {
    name: "natgw",
    words: "leader|list|status",
    text: "show natgw configuration",
    accepts: [1, 1],
    local: true,
    load: async () => (await import("./programs.ts")).natgw,
  },
  {
    name: "getreclock",
    words: "",
    text: "get recovery lock file",
    accepts: [0, 0],
    load: async () => (await import("./node.ts")).getreclock,
  },
  {
    name: "setlmasterrole",
    words: "on|off",
    text: "set LMASTER role",
    accepts: [1, 1],
    load: async () => (await import("./node.ts")).setlmasterrole,
  },
  {
    name: "setleaderrole",
    words: "on|off",
    text: "set LEADER role",
    accepts: [1, 1],
    load: async () => (await import("./node.ts")).setleaderrole,
  },
  {
    name: "setdbreadonly",
    words: "<dbname|dbid>",
    text: "enable readonly records",
    accepts: [1, 1],
    load: async () => (await import("./dbmap.ts")).setdbreadonly,
  },
  {
    name: "setdbsticky",
    words: "<dbname|dbid>",
    text: "enable sticky records",
    accepts: [1, 1],
    load: async () => (await import("./dbmap.ts")).setdbsticky,
  },
  {
    name: "pfetch",
    words: "<dbname|dbid> <key>",
    text: "fetch record from persistent database",
    accepts: [2, 2],
    local: true,
    load: async () => (await import("./persistent.ts")).pfetch,
  },
  {
    name: "pstore",
    words: "<dbname|dbid> <key> <value>",
    text: "write record to persistent database",
    accepts: [3, 3],
    local: true,
    load: async () => (await import("./persistent.ts")).pstore,
  },
  {
    name: "pdelete",
    words: "<dbname|dbid> <key>",
    text: "delete record from persistent database",
    accepts: [2, 2],
    local: true,
    load: async () => (await import("./persistent.ts")).pdelete,
  },
  {
    name: "ptrans",
    words: "<dbname|dbid> [<file>]",
    text: "update a persistent database (from file or stdin)",
    accepts: [1, 2],
    local: true,
    load: async () => (await import("./persistent.ts")).ptrans,
  },
  {
    name: "tfetch",
    words: "<tdb-file> <key> [<file>]",
    text: "fetch a record",
    accepts: [2, 3],
    load: async () => (await import("./records.ts")).tfetch,
  },
  {
    name: "tstore",
    words: "<tdb-file> <key> <data> [<rsn> <dmaster> <flags>]",
    text: "store a record",
    accepts: [3, 5],
    load: async () => (await import("./records.ts")).tstore,
  },
  {
    name: "readkey",
    words: "<dbname|dbid> <key> [readonly]",
    text: "read value of a database key",
    accepts: [2, 3],
    local: true,
    load: async () => (await import("./records.ts")).readkey,
  },
  {
    name: "writekey",
    words: "<dbname|dbid> <key> <value>",
    text: "write value for a database key",
    accepts: [3, 3],
    local: true,
    load: async () => (await import("./records.ts")).writekey,
  },
  {
    name: "deletekey",
    words: "<dbname|dbid> <key>",
    text: "delete a database key",
    accepts: [2, 2],
    local: true,
    load: async () => (await import("./records.ts")).deletekey,
  },
  {
    name: "checktcpport",
    words: "<port>",
    text: "check if a service is bound to a specific tcp port or not",
    accepts: [1, 1],
    offline: true,
    misnamed: true,
    load: async () => (await import("./offline.ts")).checktcpport,
  },
  {
    name: "getdbseqnum",
    words: "<dbname|dbid>",
    text: "get database sequence number",
    accepts: [1, 1],
    local: true,
    load: async () => (await import("./dbmap.ts")).getdbseqnum,
  },
  {
    name: "nodestatus",
    words: "[all|<pnn-list>]",
    text: "show and return node status",
    accepts: [0, 1],
    load: async () => (await import("./status.ts")).nodestatus,
  },
  {
    name: "dbstatistics",
    words: "<dbname|dbid>",
    text: "show database statistics",
    accepts: [1, 1],
    load: async () => (await import("./dbmap.ts")).dbstatistics,
  },
  {
    name: "reloadips",
    words: "[all|<pnn-list>]",
    text: "reload the public addresses file",
    accepts: [0, 1],
    local: true,
    load: async () => (await import("./addresses.ts")).reloadips,
  },
  {
    name: "pushrecord",
    words: "<dbname|dbid> <key> <value>",
    text: "push a record to all nodes",
    accepts: [3, 3],
    local: true,
    ours: true,
    load: async () => (await import("./records.ts")).pushrecord,
  },
  {
    name: "glock",
    words: "list",
    text: "show holders and waiters of cluster-wide locks",
    accepts: [1, 1],
    local: true,
    ours: true,
    load: async () => (await import("./glock.ts")).glock,
  },
]

/** Names that older releases had, for a hint to people (scripts get the stock tool's plain refusal). */
export const formerNames: Readonly<Record<string, string>> = {
  recmaster: "leader",
  setrecmasterrole: "setleaderrole",
  xpnn: "pnn",
  isnotrecmaster: "leader",
  lvsmaster: "lvs leader",
  natgwlist: "natgw list",
  eventscript: "event",
}

/** The lines under `Commands:`. In the list of all, scripts get the stock tool's. */
export function commandHelp(list: readonly Command[], terminal = false): string {
  const shown = list === commands && !terminal ? list.filter((command) => command.ours !== true) : list
  const lines = shown.map(({ name, words, text }) => `  ${name.padEnd(15)} ${words.padEnd(27)}  ${text}\n`)
  return `\nCommands:\n${lines.join("")}`
}

/** Whether this many words may follow the command's name. */
export function acceptsCount(command: Command, count: number): boolean {
  return command.accepts === "any" || (count >= command.accepts[0] && count <= command.accepts[1])
}
