"""Runs a worker's code in the mold, so that workers need not pay for the first runs of this code.

The interpreter writes to memory while it runs code for the first few times. The writes go to
counters and inline caches beside the code (PEP 659), and to version tags and the cache of types.
New objects settle in pools of memory. In a worker each of these writes makes the kernel copy a page
of the mold's. The warm-up makes these writes before the first clone.
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
from poold.mold.prefault import PageRanges
from poold.mold.scout import observe, wait_for_observer
from poold.sandbox import kill_with_parent
from poold.title import set_title
from poold.worker.main import do_nothing

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` is not loaded: every worker would carry its memory
    from poold.connection import Connection
    from poold.worker.main import Worker

# CPython 3.11 to 3.13 specialize code after 8 to 16 runs.
RUNS = 20
# The attributes of a worker that an `Isolation` changes and sets back.
KEPT = ("exit_process", "handler", "master_pid", "mold_fd", "ready_at_birth", "setsid", "spare_sigpipe", "take_pages")


class Isolation:
    """A context manager: within it, a worker's run has no lasting effect on the mold."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._kept = {name: getattr(worker, name) for name in KEPT}
        self._collecting = gc.isenabled()
        self._pipe_signal = signal.getsignal(signal.SIGPIPE)

    def __enter__(self) -> None:
        worker = self._worker
        worker.handler, worker.ready_at_birth, worker.setsid, worker.exit_process = _serve_nothing, True, _skip_setsid, _skip_exit
        worker.spare_sigpipe = do_nothing

    def __exit__(self, *exception: object) -> None:
        for name, value in self._kept.items():
            setattr(self._worker, name, value)
        signal.signal(signal.SIGPIPE, self._pipe_signal)
        # The run has asked for SIGTERM at the master's death. A mold asks for SIGKILL.
        kill_with_parent(self._worker.master_pid)
        if not self._collecting:
            gc.disable()
        set_title("mold")


class Counterparts:
    """Mold, master and client of one run: an order, a connection, then the end of each channel."""

    def __init__(self, worker: Worker, number: int) -> None:
        self.to_mold, self.mold = channel.make_pair()
        self.to_worker, self.worker_end = channel.make_pair()
        self.near, self.far = socket.socketpair()
        worker.mold_fd = os.dup(self.mold.fileno())
        self.page = os.memfd_create("poold-page")
        channel.send_order(self.to_mold, channel.pack_order(0, number, ahead=True), self.worker_end.fileno(), self.page)
        self.to_mold.shutdown(socket.SHUT_WR)
        assignment = Assignment(session=number, family=socket.AF_INET, host="127.0.0.1", port=number, flow=0, scope=0, listener="warm-up")
        channel.send_with_descriptor(self.to_worker, assignment.pack(), self.near.fileno())
        self.to_worker.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close all descriptors."""
        for end in (self.to_mold, self.mold, self.to_worker, self.worker_end, self.near, self.far):
            end.close()
        os.close(self.page)


def warm_up(worker: Worker) -> None:
    """Run the worker on connections without a client, and leave worker and process unchanged."""
    if worker.command is not None:
        return
    with Isolation(worker):
        for number in range(1, RUNS + 1):
            counterparts = Counterparts(worker, number)
            work_off(counterparts.mold, _pretend_clone, worker)
            worker.close_descriptors()
            counterparts.close()


def scout(worker: Worker) -> PageRanges | None:
    """Return the pages that a worker needs, or None if scout or observer have failed.

    The process must have one thread only. The call comes after everything that changes the memory
    of this process. Raises OSError.
    """
    if worker.command is not None:
        return None
    maps_fd = os.open("/proc/self/maps", os.O_RDONLY)
    try:
        report_fd = os.memfd_create("poold-pages")
    except OSError:
        os.close(maps_fd)
        raise
    handler = partial(wait_for_observer, worker.mold_fd)
    try:
        with Isolation(worker):
            counterparts = Counterparts(worker, RUNS + 1)
            dup = worker.mold_fd
            worker.master_pid, worker.handler, worker.exit_process = os.getpid(), handler, os._exit
            try:
                observer = clone_worker(OBSERVER_ARGUMENTS)
                # With this end closed here, only the scout holds it. The observer then learns of
                # the scout's end.
                counterparts.worker_end.close()
                if not observer:
                    observe(counterparts.to_worker, report_fd, worker.master_pid, maps_fd)
                # With these ends closed here, only the observer holds them. When the observer ends,
                # the scout ends.
                counterparts.to_worker.close()
                counterparts.far.close()
                work_off(counterparts.mold, partial(clone_worker, SCOUT_ARGUMENTS), worker)
                mold_report = channel.receive_mold_report(counterparts.to_mold)
            finally:
                os.close(dup)
                counterparts.close()
        complete = ended_well(observer)
        if mold_report is not None and mold_report.answer[2]:
            complete = ended_well(mold_report.answer[2]) and complete
        return PageRanges.unpacked(os.pread(report_fd, os.fstat(report_fd).st_size, 0)) if complete else None
    finally:
        os.close(maps_fd)
        os.close(report_fd)


def _pretend_clone() -> int:
    return 0


def _serve_nothing(connection: Connection) -> None:
    """Stand in for the handler."""


def _skip_setsid() -> None:
    """Stand in for setsid(2), which fails in the mold: the mold leads a session already."""


def _skip_exit(code: int) -> None:
    """Stand in for os._exit."""
