"""A worker's life, played through in the mold, where it costs once what it would cost in every worker.

The interpreter writes while it runs code for the first times: counters and inline caches beside the code (PEP 659), version tags
and the cache of types, and the objects it makes settle in pools of memory. In a worker each such write copies a page of the mold's.
What has been run before the clone is written before it.
"""

from __future__ import annotations

import gc
import os
import signal
import socket

from poold import channel, sandbox
from poold.channel import Assignment
from poold.title import set_title
from poold.worker.main import Birth, Worker, settle

TYPE_CHECKING = False
if TYPE_CHECKING:  # without loading typing, whose weight every worker would carry
    from poold.connection import Connection

# Code is specialized after 8 to 16 runs (CPython 3.11 to 3.13).
RUNS = 20


def rehearse(birth: Birth) -> None:
    """Serve connections to nobody, with a handler that does nothing; the process is afterwards as it was."""
    if birth.command is not None:
        return
    serve, birth.serve = birth.serve, _nothing
    pipe_signal = signal.getsignal(signal.SIGPIPE)
    collecting = gc.isenabled()
    try:
        for number in range(1, RUNS + 1):
            _once(birth, number)
    finally:
        birth.serve = serve
        signal.signal(signal.SIGPIPE, pipe_signal)
        # A worker asks for something gentler than its mold.
        sandbox.vanish_with(birth.master)
        if not collecting:
            gc.disable()
        set_title("mold")


def _once(birth: Birth, number: int) -> None:
    master, theirs = channel.pair()
    near, far = socket.socketpair()
    with near, far:
        worker = Worker(birth, 0, settle(birth, os.dup(theirs.fileno())))
        assignment = Assignment(session=number, family=socket.AF_INET, host="127.0.0.1", port=number, flow=0, scope=0, listener="rehearsal")
        channel.send_with(master, assignment.pack(), near.fileno())
        connection = worker.take()
        assert connection is not None
        worker.serve(connection, last=True)
    master.close()
    theirs.close()


def _nothing(connection: Connection) -> None:
    """Do nothing with a connection."""
