"""poold: one isolated process per connection, on Linux, in production.

A master owns the listening sockets and all signals. For each connection there is one child, up to a cap; the master tracks
its children in a table that SIGCHLD empties, and an exporter shows the counts to Prometheus.

Where each box of a concurrent server's flowchart lives:

    initialise daemon        poold.master.main              Master.__init__, Master._start
    process signals          poold.master.engine.signals    Inbox notes; Master._on_signals acts
    accept                   poold.master.clients.listeners Listeners._accept
    fork                     poold.mold.clone               clone_worker, asked for by poold.master.pool.orders
    (child) close top socket poold.worker.main              Worker.live: a mold is started without any listener, so there is none to
                                                            close; what it has of its own, its channel, is closed here
    (child) serve            poold.worker.main              Worker.serve
    (child) close accepted   poold.worker.main              Worker.serve, by Connection.close
    (child) exit             poold.worker.main              live: os._exit, never back to accept
    (parent) close accepted  poold.master.clients.sessions  Sessions.acknowledge, once the worker has said that it has it
    reap                     poold.master.children.reaper            Reaper.reap

A directory is a process: `master`, `mold`, `worker`, `exporter`, `logger`. What lies beside them is public (`connection`, `address`,
`handlers`), crosses a process boundary (`channel`, `lifeline`, `rpc`, `scoreboard` with `metrictable`, `childrows`, `pages`, `words`,
`from_json`, `log`, `stream`), is a child's first act (`arguments`, `sandbox`, `title`), or is the command line (`cli`, `report`,
`probe`). `settings` judges poold.toml.

A folder of `master` is a concern. Above them stand `parts`, which builds everything in one pass, and `main`, which turns the loop; below
them what all have in common: `current` (the settings in force), `phase` (where the master is in its life), `memories` (what is shared).

    engine    waiting: for descriptors, signals and moments; nothing there knows anything of poold
    clients   whoever connects, from the listening socket to the session's end
    children  any process that the master starts, whatever its kind
    pool      how a worker is made and meets its client
    change    replacing the settings, trying what would replace them, and ending
    upgrade   replacing the program; `successor`, `rehearsal` and `guard` are the programs that take part
    document  what crosses an exec
    outside   whoever is neither client nor child: control socket, service manager, readers of the gauges

A connection's way, one direction only, and the file of each step under `poold.master`:

    clients/listeners: accept ─▶ clients/door: let in, or refuse ─▶ pool/handover: a spare, or wait ─▶ channel ═ SCM_RIGHTS ═▶ worker
    pool/pool: how many ─▶ pool/orders ─▶ mold clones ─▶ pool/hearing: BORN, READY ─▶ spare                │ ACK, serve, exit
    counts ◀─ pool/workers: the session's one cause ◀─ children/reaper ◀─ SIGCHLD ◀─────────────────────────────┘
"""

from poold.connection import Connection

__all__ = ["Connection", "__version__"]

__version__ = "0.1.0"
