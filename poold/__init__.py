"""poold: one isolated process per connection, on Linux, in production.

A master owns the listening sockets and all signals. For each connection there is one child, up to a
cap. The master keeps its children in a table, and a child leaves the table when the master handles
its SIGCHLD. An exporter shows the counts to Prometheus.

Where each box of a concurrent server's flowchart lives:

    initialise daemon        poold.master.main              Master.__init__, Master._start
    process signals          poold.master.engine.signals    Inbox notes, Master._on_signals acts
    accept                   poold.master.clients.listeners Listeners._accept
    fork                     poold.mold.clone               clone_worker. Orders come from
                                                            poold.master.pool.orders
    (child) close top socket poold.worker.main              Worker.run: a mold starts without a
                                                            listener, so a worker has none to close.
                                                            The worker closes its own channel
    (child) serve            poold.worker.main              Worker.serve
    (child) close accepted   poold.worker.main              Worker.serve, by Connection.close
    (child) exit             poold.worker.main              run_worker, by os._exit
    (parent) close accepted  poold.master.clients.sessions  Sessions.acknowledge, after the worker's
                                                            acknowledgement
    reap                     poold.master.children.reaper   Reaper.reap

A directory is a process: `master`, `mold`, `worker`, `exporter`, `logger`. The modules beside these
directories are of five kinds:

    public                      connection, address, handlers
    shared by processes         channel, plain, lifeline, rpc, scoreboard with metrictable,
                                childrows, from_json, pages, words, log, stream, errors
    the first acts of a child   arguments, sandbox, title
    the service manager         systemd
    the command line            cli, report, probe

`settings` judges poold.toml.

A folder of `master` is a concern. Above all folders stand `parts`, which builds everything in one
pass, and `main`, which turns the loop. Below them stand modules that several folders use:
`current` (the settings in force), `phase` (the phase of the master's life) and `memories` (the
shared memories). `descriptors` raises the limit of open files.

    engine    waits for descriptors, signals and moments, and knows nothing of poold
    clients   the connections, from the listening socket to the session's end
    children  each process that the master starts, of any kind
    pool      how a worker is made and gets its connection
    change    replaces the settings, tries new ones, and ends the daemon
    upgrade   replaces the program, with the help of `successor`, `rehearsal`, `drill` and `guard`
    document  the state that crosses an exec
    outside   other processes: control clients, the service manager, readers of the gauges

A connection's way, one direction only, and the file of each step, under `poold.master` (`channel`,
`worker` and `mold`: under `poold`):

    clients/listeners: accept ─▶ clients/door: let in, or refuse ─▶ pool/handover: a spare, or wait
                         channel: the connection by SCM_RIGHTS ◀─┘
                         └─▶ worker: ACK, serve, exit ─▶ SIGCHLD ─▶ children/reaper
                         counts ◀─ pool/workers: the session's one cause ◀─┘
    pool/pool: how many ─▶ pool/orders ─▶ mold clones ─▶ pool/hearing: BORN, READY ─▶ spare
"""

from poold.connection import Connection

__all__ = ["Connection", "__version__"]

__version__ = "0.1.0"
