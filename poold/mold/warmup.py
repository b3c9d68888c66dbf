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
from functools import partial

from poold import channel
from poold.channel import Assignment
from poold.mold.clone import OBSERVER_ARGUMENTS, SCOUT_ARGUMENTS, clone_worker, ended_well
from poold.mold.orders import work_off
from poold.mold.prefault import Pages
from poold.mold.scout import observe, stay
from poold.sandbox import vanish_with
from poold.title import set_title
from poold.worker.main import nothing

TYPE_CHECKING = False
if TYPE_CHECKING:  # without loading typing, whose weight every worker would carry
    from poold.connection import Connection
    from poold.worker.main import Worker

# Code is specialized after 8 to 16 runs (CPython 3.11 to 3.13).
RUNS = 20
# What a stage changes of a worker, and gives back.
KEPT = ("handler", "leave", "master", "mold", "ready", "reset", "setsid", "take_pages")


class Stage:
    """Puts a worker where nothing it does has an effect, and takes it back; a context manager."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._kept = {name: getattr(worker, name) for name in KEPT}
        self._collecting = gc.isenabled()
        self._pipe_signal = signal.getsignal(signal.SIGPIPE)

    def __enter__(self) -> None:
        worker = self._worker
        worker.handler, worker.ready, worker.setsid, worker.leave = _serve, True, _nothing, _stay
        worker.reset = nothing

    def __exit__(self, *exception: object) -> None:
        for name, value in self._kept.items():
            setattr(self._worker, name, value)
        signal.signal(signal.SIGPIPE, self._pipe_signal)
        # A worker asks for something gentler than its mold.
        vanish_with(self._worker.master)
        if not self._collecting:
            gc.disable()
        set_title("mold")


class Scene:
    """One life, with everything in it that a worker will ask for, and then the end of each channel."""

    def __init__(self, worker: Worker, number: int) -> None:
        self.to_mold, self.mold = channel.pair()
        self.to_worker, self.theirs = channel.pair()
        self.near, self.far = socket.socketpair()
        worker.mold = os.dup(self.mold.fileno())
        self.page = os.memfd_create("poold-page")
        channel.send_order(self.to_mold, channel.order(0, number, ahead=True), self.theirs.fileno(), self.page)
        self.to_mold.shutdown(socket.SHUT_WR)
        assignment = Assignment(session=number, family=socket.AF_INET, host="127.0.0.1", port=number, flow=0, scope=0, listener="warm-up")
        channel.send_with(self.to_worker, assignment.pack(), self.near.fileno())
        self.to_worker.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Clear up."""
        for end in (self.to_mold, self.mold, self.to_worker, self.theirs, self.near, self.far):
            end.close()
        os.close(self.page)


def warm_up(worker: Worker) -> None:
    """Serve connections to nobody, with a handler that does nothing; worker and process are afterwards as they were."""
    if worker.command is not None:
        return
    with Stage(worker):
        for number in range(1, RUNS + 1):
            scene = Scene(worker, number)
            work_off(scene.mold, _be_cloned, worker)
            worker.hang_up()
            scene.close()


def scout(worker: Worker) -> Pages | None:
    """Return the pages that a worker needs; None where it cannot be found out, and workers take them one by one. Raises OSError.

    To be called with one thread only, and after everything that changes this process's memory.
    """
    if worker.command is not None:
        return None
    maps = os.open("/proc/self/maps", os.O_RDONLY)
    try:
        report = os.memfd_create("poold-pages")
    except OSError:
        os.close(maps)
        raise
    handler = partial(stay, worker.mold)
    try:
        with Stage(worker):
            scene = Scene(worker, RUNS + 1)
            dup = worker.mold
            worker.master, worker.handler, worker.leave = os.getpid(), handler, os._exit
            try:
                observer = clone_worker(OBSERVER_ARGUMENTS)
                # The scout alone is to have this; then the observer hears of its end.
                scene.theirs.close()
                if not observer:
                    observe(scene.to_worker, report, worker.master, maps)
                # The observer alone is the scout's master and client: when it ends, the scout does.
                scene.to_worker.close()
                scene.far.close()
                work_off(scene.mold, partial(clone_worker, SCOUT_ARGUMENTS), worker)
                answered = channel.receive_mold_report(scene.to_mold)
            finally:
                os.close(dup)
                scene.close()
        found = ended_well(observer)
        if answered is not None and answered.answer[2]:
            found = ended_well(answered.answer[2]) and found
        return Pages.unpacked(os.pread(report, os.fstat(report).st_size, 0)) if found else None
    finally:
        os.close(maps)
        os.close(report)


def _be_cloned() -> int:
    return 0


def _serve(connection: Connection) -> None:
    """Do nothing with a connection."""


def _nothing() -> None:
    """Do not lead a session: the mold does already, and may not do it twice (setsid(2))."""


def _stay(code: int) -> None:
    """Do not end."""
