// A node: builds the rooms of the main daemon over one state, and takes it from start to RUNNING to its end. The order of
// the steps is the stock daemon's (cluster page 1.2, 1.11), as peers and scripts see it.

import { type Fault, faultText, type Parsed } from "../lib/config/fault.ts"
import type { ListedNode } from "../lib/config/nodes-file.ts"
import type { Tunables } from "../lib/config/tunables.ts"
import type { PacketConnection, PacketHandler, PeerCredentials } from "../lib/net/ports.ts"
import { encode } from "../lib/protocol/codec.ts"
import { Capability, INVALID_GENERATION, NodeFlag, RunState, Srvid } from "../lib/protocol/constants.ts"
import { type NodeFlagChange, nodeFlagChange, type Statistics } from "../lib/protocol/structs.ts"
import type { Word64 } from "../lib/protocol/word64.ts"
import { type Client, Clients } from "./clients.ts"
import { Flags } from "./cluster/flags.ts"
import { type AnnouncedVersion, Keepalive } from "./cluster/keepalive.ts"
import { Links } from "./cluster/links.ts"
import { Complaints } from "./complaints.ts"
import { execute } from "./controls.ts"
import { Calls } from "./database/calls.ts"
import { Collapse } from "./database/collapse.ts"
import { NodeFreeze } from "./database/freeze.ts"
import { Persistent } from "./database/persistent.ts"
import { Delegations } from "./database/readonly.ts"
import { Databases } from "./database/registry.ts"
import { Sticky } from "./database/sticky.ts"
import { Traverses } from "./database/traverse.ts"
import { Vacuum } from "./database/vacuum.ts"
import type { NodeEnvironment } from "./environment.ts"
import { IdTable } from "./ids.ts"
import { RecoverySide } from "./recovery/mode.ts"
import { type IdEntry, type LocalClient, Router } from "./routing.ts"
import { Monitor } from "./services/monitor.ts"
import { RecoveryDaemonWatch } from "./services/recovery-daemon.ts"
import { Startup, setRunState } from "./services/startup.ts"
import { isConnected, NodeState, newEntry } from "./state.ts"

export interface NodeSettings {
  readonly tunables: Tunables
  /** The string of the cluster lock option. */
  readonly clusterLock: string | undefined
  readonly leaderCapability: boolean
  readonly lmasterCapability: boolean
  readonly startAsStopped: boolean
  readonly startAsDisabled: boolean
  readonly testMode: boolean
  readonly announcedVersion: AnnouncedVersion
  /** The address of this node, if configured; otherwise the first of the list that can be bound. */
  readonly nodeAddress: string | undefined
}

/** Start can't go on. `status` is the daemon's exit status (cluster page 1.2). */
export class StartError extends Error {
  constructor(
    message: string,
    readonly status: number,
  ) {
    super(message)
    this.name = "StartError"
  }
}

/** A failure that a stock daemon ends with abort(): what the shell reports for SIGABRT. */
export const ABORT_STATUS = 134

export class Node {
  readonly state: NodeState
  readonly router: Router
  readonly clients: Clients
  readonly databases: Databases
  readonly persistent: Persistent
  readonly traverses: Traverses
  readonly vacuum: Vacuum
  readonly freeze: NodeFreeze
  readonly calls: Calls
  readonly flags: Flags
  readonly recovery: RecoverySide
  readonly recoveryDaemon: RecoveryDaemonWatch
  private readonly links: Links
  private readonly keepalive: Keepalive
  private readonly monitor: Monitor
  private readonly startup: Startup

  constructor(
    private readonly settings: NodeSettings,
    readonly environment: NodeEnvironment,
  ) {
    this.state = new NodeState({
      tunables: settings.tunables,
      clusterLock: settings.clusterLock,
      capabilities:
        Capability.DEFAULT &
        ~(settings.leaderCapability ? 0 : Capability.RECMASTER) &
        ~(settings.lmasterCapability ? 0 : Capability.LMASTER),
    })
    const { state } = this
    const ids = new IdTable<IdEntry>()
    const complaints = new Complaints(environment)
    this.router = new Router(state, environment, ids, complaints, () => this.links)
    const askForRecovery = (reason: string) => this.recovery.ask(reason)
    const delegations = new Delegations(state, environment, this.router)
    const sticky = new Sticky(state, environment)
    const collapse = new Collapse(environment)
    this.databases = new Databases(state, environment, this.router, () => this.freeze, {
      attached: (database) => {
        for (const room of [delegations, sticky, collapse, this.calls, this.vacuum]) room.attached(database)
        database.onWipe = () => {
          delegations.forget(database)
          this.vacuum.forget(database)
        }
      },
      detached: (database) => {
        for (const room of [this.calls, delegations, sticky, collapse, this.vacuum]) room.detached(database)
        this.traverses.detached(database)
      },
    })
    this.freeze = new NodeFreeze(() => this.databases.all())
    const find = (id: number) => this.databases.get(id)
    const { router } = this
    this.calls = new Calls(state, environment, router, ids, find, askForRecovery, delegations, sticky, collapse)
    this.router.records = this.calls
    this.vacuum = new Vacuum(state, environment, router, this.databases, ids, this.calls)
    this.clients = new Clients(state, environment, ids, this.router, askForRecovery)
    this.persistent = new Persistent(state, environment, this.router, this.databases, askForRecovery)
    this.traverses = new Traverses(state, environment, this.router, this.databases)
    this.clients.onGone.push(
      (client) => this.calls.clientGone(client),
      (client) => this.databases.clientGone(client),
      (client) => this.persistent.clientGone(client),
      (client) => this.traverses.clientGone(client),
    )
    this.links = new Links(state, environment, complaints, {
      onPacket: (peer, packet) => this.router.receiveFromNode(peer, packet),
      onConnected: (node) => this.calls.nodeConnected(node.pnn),
      onDisconnected: (node) => {
        this.router.nodeDisconnected(node.pnn)
        this.traverses.nodeGone(node.pnn)
        if ((node.flags & (NodeFlag.BANNED | NodeFlag.STOPPED)) === 0) this.calls.nodeLost(node.pnn)
      },
      onDrain: () => {},
    })
    const leave = (reason: string) => this.shutdown(0, reason)
    this.keepalive = new Keepalive(state, environment, this.links, complaints, settings.announcedVersion, leave)
    this.router.keepalive = this.keepalive
    this.router.execute = (control, client, answer) => execute(this, control, client, answer)
    const releaseAddresses = () => {}
    const tellRecoveryDaemon = (change: NodeFlagChange) =>
      this.router.sendMessage(state.pnn, Srvid.PUSH_NODE_FLAGS, encode(nodeFlagChange, change))
    this.flags = new Flags(state, environment, this.freeze, askForRecovery, releaseAddresses, tellRecoveryDaemon)
    this.recovery = new RecoverySide(state, environment, this.router, this.freeze, {
      shutdown: (status, reason) => this.shutdown(status, reason),
      releaseAddresses,
      recovered: () => {
        this.databases.recovered()
        this.calls.recovered()
      },
      setRunState: (runState) => {
        setRunState(state, environment, runState)
        // An attach can come between the end of the first recovery and its event.
        this.databases.recovered()
      },
    })
    this.recoveryDaemon = new RecoveryDaemonWatch(state, environment)
    this.monitor = new Monitor(state, environment, this.router, this.freeze)
    this.startup = new Startup(state, environment, this.router, settings.testMode, () => this.monitor.start())
  }

  /** Steps 18 to 32 of the start. What goes wrong in them ends the process by itself. A shutdown may come in between. */
  start(): void {
    const { state, environment, settings } = this
    state.startTime = environment.wallClock()
    state.startedMs = environment.monotonicMs()
    state.statistics.reset(state.startTime)
    setRunState(state, environment, RunState.INIT)
    environment.runEvent("init", "", state.tunables.EventScriptTimeout, (status) => {
      if (state.shuttingDown) return
      if (status !== 0) this.fail(new StartError("Failed to run init event", 1))
      else {
        environment.notify("init")
        environment.readNodes((nodes) => this.join(nodes, settings))
      }
    })
  }

  private join(nodes: Parsed<readonly ListedNode[]>, settings: NodeSettings): void {
    const { state, environment } = this
    if (state.shuttingDown) return
    try {
      this.loadNodes(nodes)
      this.findSelf(settings.nodeAddress)
    } catch (error) {
      if (!(error instanceof StartError)) throw error
      this.fail(error)
      return
    }
    environment.log.notice(`PNN is ${state.pnn}`)
    state.self.flags &= ~NodeFlag.DISCONNECTED
    if (settings.startAsDisabled) {
      environment.log.error("This node is configured to start in DISABLED state")
      state.self.flags |= NodeFlag.PERMANENTLY_DISABLED
    }
    if (settings.startAsStopped) {
      environment.log.error("This node is configured to start in STOPPED state")
      state.self.flags |= NodeFlag.STOPPED
    }
    state.generation = INVALID_GENERATION
    state.vnnMap = state.nodes.filter((node) => (node.flags & NodeFlag.DELETED) === 0).map((node) => node.pnn)
    const failed = (error: unknown) => {
      environment.log.error(`Failed to attach to databases: ${error instanceof Error ? error.message : String(error)}`)
      this.fail(new StartError("Failed to attach to databases", ABORT_STATUS))
    }
    const attached = (error: unknown) => {
      if (state.shuttingDown) return
      if (error !== null) {
        failed(error)
        return
      }
      this.freeze.freeze((ok) => {
        if (state.shuttingDown) return
        if (ok) this.serve()
        else this.fail(new StartError("Failed to get initial freeze", ABORT_STATUS))
      })
    }
    try {
      this.databases.attachPersistent(attached)
    } catch (error) {
      failed(error)
    }
  }

  private serve(): void {
    const { state, environment } = this
    environment.acceptClients()
    this.links.connectAll()
    setRunState(state, environment, RunState.SETUP)
    environment.runEvent("setup", "", state.tunables.EventScriptTimeout, (status) => {
      if (state.shuttingDown) return
      if (status !== 0) {
        this.fail(new StartError("Failed to run setup event", 1))
        return
      }
      environment.notify("setup")
      this.recoveryDaemon.start()
      this.keepalive.start()
      this.countInterval()
      setRunState(state, environment, RunState.FIRST_RECOVERY)
      this.startup.wait()
    })
  }

  private fail(error: StartError): void {
    this.environment.log.error(`ctdb exiting with error: ${error.message}`)
    this.links.stop()
    this.environment.exit(error.status)
  }

  private loadNodes(nodes: Parsed<readonly ListedNode[]>): void {
    if (!nodes.ok) {
      this.logFaults(nodes.faults)
      throw new StartError("Failed to load nodes list", 1)
    }
    this.state.nodes = nodes.value.map(newEntry)
  }

  /** The own node: the one whose address is configured, else the first whose address can be bound here. */
  private findSelf(nodeAddress: string | undefined): void {
    const { state } = this
    const candidates = state.nodes.filter(
      (node) => (node.flags & NodeFlag.DELETED) === 0 && (nodeAddress === undefined || node.address === nodeAddress),
    )
    if (nodeAddress !== undefined && candidates.length === 0) {
      throw new StartError(`Can not determine PNN - unknown node address ${nodeAddress}`, ABORT_STATUS)
    }
    const failures: string[] = []
    for (const node of candidates) {
      state.pnn = node.pnn
      try {
        this.links.listen()
        return
      } catch (error) {
        failures.push(error instanceof Error ? error.message : String(error))
      }
    }
    if (nodeAddress !== undefined) throw new StartError(`Failed to bind() to socket - ${failures[0]}`, 1)
    throw new StartError("Unable to bind to any node address - giving up", 1)
  }

  /**
   * RELOAD_NODES_FILE: takes the list over as far as it changed. An unreadable list changes nothing; a stock daemon ends
   * here, and takes its clients with it.
   */
  reloadNodes(done: (ok: boolean) => void): void {
    this.environment.readNodes((nodes) => done(this.takeOver(nodes)))
  }

  private takeOver(nodes: Parsed<readonly ListedNode[]>): boolean {
    const { state, environment } = this
    if (!nodes.ok) {
      this.logFaults(nodes.faults)
      environment.log.error("Nodes list can't be read: keeping the one in use")
      return false
    }
    const own = nodes.value[state.pnn]
    if (own === undefined || own.address !== state.self.address) {
      environment.log.error(`Nodes list has another address than ${state.self.address} for this node: not taken over`)
      return false
    }
    const before = state.nodes
    state.nodes = nodes.value.map((listed) => {
      const old = before[listed.pnn]
      const deleted = old !== undefined && (old.flags & NodeFlag.DELETED) !== 0
      const same = old !== undefined && old.address === listed.address && old.port === listed.port
      return old !== undefined && same && deleted === listed.deleted ? old : newEntry(listed)
    })
    for (const old of before) {
      if (old !== state.nodes[old.pnn] && isConnected(old)) this.router.nodeDisconnected(old.pnn)
    }
    this.links.reload()
    environment.log.notice("Nodes list reloaded")
    this.router.sendMessage(state.pnn, Srvid.RELOAD_NODES, new Uint8Array(0))
    return true
  }

  /** A new connection on the client socket. */
  acceptClient(connection: PacketConnection, credentials: PeerCredentials): PacketHandler | undefined {
    return this.clients.accept(connection, credentials)
  }

  clientOf(client: LocalClient | undefined): Client | undefined {
    // Every local client was made by `clients`; the router knows less of it than the controls need.
    return client as Client | undefined
  }

  setCapability(capability: number, on: boolean): number {
    const { state } = this
    state.capabilities = on ? state.capabilities | capability : state.capabilities & ~capability
    return 0
  }

  /** A message without payload to the clients of this node only. */
  tellClients(srvid: Word64): void {
    this.router.srvids.deliver(srvid, new Uint8Array(0))
  }

  /** Orderly end. The first caller decides the exit status; what follows tells the others and leaves in their eyes. */
  shutdown(status: number, reason: string): void {
    const { state, environment } = this
    if (state.shuttingDown) {
      environment.log.error("Already shutting down so will not proceed.")
      return
    }
    state.shuttingDown = true
    environment.log.notice(`Shutdown sequence commencing. (${reason})`)
    if (state.runState < RunState.SHUTDOWN) setRunState(state, environment, RunState.SHUTDOWN)
    this.recoveryDaemon.leave(() =>
      environment.runEvent("shutdown", "", state.tunables.EventScriptTimeout, () => {
        this.links.stop()
        environment.log.notice("Shutdown sequence complete, exiting.")
        environment.exit(status)
      }),
    )
  }

  logFaults(faults: readonly Fault[]): void {
    for (const fault of faults) this.environment.log.error(faultText(fault))
  }

  statistics(): Statistics {
    const { state, environment } = this
    return {
      ...state.statistics.now,
      numClients: this.clients.count,
      frozen: this.freeze.frozen ? 1 : 0,
      recovering: state.recoveryMode,
      memoryUsed: environment.memoryUsed() >>> 0,
      statisticsCurrentTime: environment.wallClock(),
    }
  }

  memoryReport(): string {
    const lines = [
      `resident memory  ${this.environment.memoryUsed()} bytes`,
      `clients          ${this.clients.count}`,
      ...this.state.nodes.map((node) => `queued to node ${node.pnn} ${this.links.queuedBytes(node.pnn)} bytes`),
    ]
    return `${lines.join("\n")}\n`
  }

  private countInterval(): void {
    const { state, environment } = this
    environment.setTimer(Math.max(1, state.tunables.StatHistoryInterval) * 1000, () => {
      state.statistics.endInterval(environment.wallClock())
      this.countInterval()
    })
  }
}
