"""Keeps a mold: starts it, passes orders to it, replaces one that dies or is silent.

Workers that live do not notice any of it: they are the master's own children.
"""

import errno
import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from poold import __version__, channel
from poold.channel import MoldReport, MoldWord
from poold.errors import ProtocolError
from poold.log import log
from poold.master.births import Exit, Throttle
from poold.master.children import Child, ChildTable
from poold.master.current import Current
from poold.master.ladder import Ladder
from poold.master.loop import Loop
from poold.master.pool import Pool
from poold.master.spawn import Launcher
from poold.scoreboard import MOLD_STARTS, SPAWNED, Counters
from poold.words import Failure, Kind, State

# How long a mold may leave an order unanswered.
SILENCE = 2.0


@dataclass(slots=True)
class Mold:
    """The mold in use or on its way."""

    child: Child
    unanswered: int = 0


class Molds:
    """The mold of the generation in force."""

    def __init__(
        self,
        *,
        current: Current,
        loop: Loop,
        table: ChildTable,
        ladder: Ladder,
        pool: Pool,
        counters: Counters,
        pages: Mapping[str, int],
        launcher: Launcher,
    ) -> None:
        self._current = current
        self._loop = loop
        self._table = table
        self._ladder = ladder
        self._pool = pool
        self._counters = counters
        self._pages = pages
        self._launcher = launcher
        self._throttle = Throttle()
        self._mold: Mold | None = None
        # Why the last mold could not be used, as far as anybody said.
        self._reason = ""
        self._told = ""
        self.ever_ready = False
        self.stopping = False
        # Told why, when a mold ends before any was ever ready.
        self.on_failed_start: Callable[[str], object] = lambda reason: None

    def start(self) -> None:
        """Start a mold; a failure is tried again later."""
        if self.stopping:
            return
        child = self._table.claim(Kind.MOLD, generation=self._current.generation, now=self._loop.clock())
        try:
            child.channel, pid = self._spawn()
        except (OSError, KeyError) as error:
            self._table.remove(child)
            self._again(str(error))
            return
        self._table.born(child, pid)
        cells = self._counters.cells
        cells[SPAWNED[Kind.MOLD]] += 1
        cells[MOLD_STARTS] += 1
        mold = self._mold = Mold(child)
        self._loop.watch(child.channel, partial(self._read, mold))
        limit = self._current.config.timeouts.import_
        self._ladder.within(child, limit, partial(self._too_slow, mold))
        log.info("mold_started", pid=pid, generation=child.generation)

    def _spawn(self) -> tuple[socket.socket, int]:
        ours, theirs = channel.pair()
        with theirs:
            try:
                return ours, self._launcher.mold(self._current.config, channel=theirs.fileno(), **self._pages)
            except BaseException:
                ours.close()
                raise

    def order(self, slot: int, incarnation: int, fd: int) -> Child:
        """Send an order to the mold and return its row. Raises OSError."""
        mold = self._mold
        if mold is None or mold.child.channel is None or not mold.child.ready:
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
        channel.send_with(mold.child.channel, channel.order(slot, incarnation), fd)
        mold.unanswered += 1
        if mold.unanswered == 1:
            self._ladder.within(mold.child, SILENCE, partial(self._silent, mold))
        return mold.child

    def _read(self, mold: Mold) -> None:
        for _ in range(channel.READS_MAX):
            if mold.child.channel is None:
                return
            try:
                report = channel.receive_mold_report(mold.child.channel)
            except BlockingIOError:
                return
            except ConnectionResetError:
                # It ended without reading all its orders; what it said before can still be read.
                continue
            except ProtocolError as error:
                log.error("protocol_error", pid=mold.child.pid, error=str(error))
                report = None
            if report is None:
                # Its exit is on its way; should it only have closed its end, it is of no use any more.
                self._close(mold)
                self._ladder.expel(mold.child, None)
                return
            self._on_report(mold, report)

    def _on_report(self, mold: Mold, report: MoldReport) -> None:
        match report.word:
            case MoldWord.HELLO:
                if report.text != __version__:
                    self._reason = f"poold {report.text} is installed now, and this master is {__version__}"
                    self._ladder.expel(mold.child, Failure.EXIT)
            case MoldWord.READY:
                self._ready(mold, threads=report.number)
            case MoldWord.FAILED:
                self._reason, _, trace = report.text.partition("\n")
                log.error("handler_import_failed", reason=self._reason, traceback=trace)
            case MoldWord.ANSWER:
                self._answered(mold, report)

    def _ready(self, mold: Mold, *, threads: int) -> None:
        if mold.child.leaving or mold.child.ready:
            return
        mold.child.ready = True
        self._ladder.relax(mold.child)
        self._table.move(mold.child, State.SERVING)
        self._throttle.succeeded()
        self.ever_ready = True
        self._pool.send_order = self.order
        log.info("mold_ready", pid=mold.child.pid, seconds=self._loop.clock() - mold.child.claimed_at)
        if threads > 1:
            log.warning("mold_has_threads", threads=threads, hint="workers are forked twice, which is slower; start threads in the handler")

    def _answered(self, mold: Mold, report: MoldReport) -> None:
        mold.unanswered = max(0, mold.unanswered - 1)
        if mold.unanswered:
            self._ladder.within(mold.child, SILENCE, partial(self._silent, mold))
        else:
            self._ladder.relax(mold.child)
        self._pool.answered(report)

    def _too_slow(self, mold: Mold) -> None:
        self._reason = f"the handler's import took longer than timeouts.import ({self._current.config.timeouts.import_:g} s)"
        log.error("handler_import_failed", reason=self._reason)
        self._ladder.expel(mold.child, Failure.TIMEOUT)

    def _silent(self, mold: Mold) -> None:
        log.error("mold_silent", pid=mold.child.pid, seconds=SILENCE, unanswered=mold.unanswered)
        self._ladder.expel(mold.child, Failure.TIMEOUT)
        # Not its exit but its silence is the reason for a new one: a process in the kernel's hands may take its time to die.
        self._close(mold)
        self._again("")

    def _close(self, mold: Mold) -> None:
        """Use this mold no more."""
        self._ladder.close_channel(mold.child)
        if self._mold is mold:
            self._mold = None
            self._pool.send_order = None

    def exited(self, child: Child, exit: Exit) -> None:
        """Settle the end of a mold, and start another one."""
        self._pool.abandoned(child)
        if self.stopping:
            return
        reason, self._reason = self._reason or f"the mold ended with status {exit.status}", ""
        if self._mold is not None and self._mold.child is child:
            self._close(self._mold)
        if not self.ever_ready:
            self.on_failed_start(reason)
        elif self._mold is None:
            self._again(reason)

    def _again(self, reason: str) -> None:
        now = self._loop.clock()
        first = self._throttle.failed(now)
        if reason and (first or reason != self._told):
            # Once for each reason, however often it is tried again.
            self._told = reason
            log.error("mold_failed", reason=reason, retry_seconds=self._throttle.delay)
        self._loop.at(self._throttle.until, self._start_if_missing)

    def _start_if_missing(self) -> None:
        if self._mold is None:
            self.start()

    def stop(self) -> None:
        """Ask the mold to leave."""
        self.stopping = True
        for child in self._table:
            if child.kind is Kind.MOLD and not child.leaving:
                self._ladder.retire(child)
