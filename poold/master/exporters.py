"""Keeps the exporter: starts it, answers its questions, starts another when it dies.

The exporter asks on its lifeline before it answers a scrape; the master then brings up to date what it does not count (its own
process's figures, the kernel's queues) and publishes. So an idle master need not wake by itself, and a master that does not
answer is one whose loop does not turn.
"""

import os
import socket
from functools import partial

from poold.log import log
from poold.master.births import Exit, Throttle
from poold.master.children import Child, ChildTable
from poold.master.current import Current
from poold.master.ladder import Ladder
from poold.master.loop import Loop
from poold.master.sockets import Opened
from poold.master.spawn import Launcher
from poold.scoreboard import SPAWNED, Counters, read_only
from poold.words import Kind, State

# Questions in one read; scrapers that ask at once share one answer each.
QUESTIONS_MAX = 64


class Exporters:
    """The exporter, while metrics are on."""

    def __init__(
        self,
        *,
        current: Current,
        loop: Loop,
        table: ChildTable,
        ladder: Ladder,
        counters: Counters,
        launcher: Launcher,
    ) -> None:
        self._current = current
        self._loop = loop
        self._table = table
        self._ladder = ladder
        self._counters = counters
        self._launcher = launcher
        # None: metrics are off.
        self.listener: Opened | None = None
        self._throttle = Throttle()
        self._asking: list[tuple[socket.socket, int]] = []
        self.stopping = False

    def start(self) -> None:
        """Start an exporter; a failure is tried again later."""
        if self.stopping or self.listener is None:
            return
        child = self._table.claim(Kind.EXPORTER, generation=self._current.generation, now=self._loop.clock())
        try:
            ours, pid = self._spawn(self.listener.socket)
        except (OSError, KeyError) as error:
            self._table.remove(child)
            self._again(str(error))
            return
        child.channel = ours
        self._table.born(child, pid)
        self._counters.cells[SPAWNED[Kind.EXPORTER]] += 1
        self._loop.watch(ours, partial(self._read, child))
        log.info("exporter_started", pid=pid)

    def _spawn(self, listener: socket.socket) -> tuple[socket.socket, int]:
        counters = read_only(self._counters.fd)
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        try:
            fds = {"counters": counters, "lifeline": theirs.fileno(), "listener": listener.fileno()}
            return ours, self._launcher.exporter(self._current.config, **fds)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
            os.close(counters)

    def _read(self, child: Child) -> None:
        if child.channel is None:
            return
        try:
            questions = child.channel.recv(QUESTIONS_MAX)
        except BlockingIOError:
            return
        except ConnectionResetError:
            questions = b""
        if not questions:
            self._ladder.close_channel(child)
            self._ladder.expel(child, None)
            return
        if child.state is State.STARTING:
            child.ready = True
            self._table.move(child, State.SERVING)
            self._throttle.succeeded()
            log.info("exporter_ready", pid=child.pid)
        self._asking.append((child.channel, len(questions)))

    def asked(self) -> bool:
        """Say whether an answer is due: after the next publishing."""
        return bool(self._asking)

    def answer(self) -> None:
        """Tell whoever asked that the counters are of this moment."""
        asking, self._asking = self._asking, []
        for end, count in asking:
            try:
                end.send(b"!" * count, socket.MSG_NOSIGNAL)
            except OSError:
                # It has gone, or does not read its answers: its own fault, and its exit will tell.
                continue

    def exited(self, child: Child, exit: Exit) -> None:
        """Settle the end of an exporter, and start another one."""
        if not self.stopping:
            self._again(f"the exporter ended with status {exit.status}")

    def _again(self, reason: str) -> None:
        self._throttle.failed(self._loop.clock())
        log.error("exporter_failed", reason=reason, retry_seconds=self._throttle.delay)
        self._loop.at(self._throttle.until, self._start_if_missing)

    def _start_if_missing(self) -> None:
        if not any(child.kind is Kind.EXPORTER for child in self._table):
            self.start()

    def stop(self) -> None:
        """Ask the exporter to leave."""
        self.stopping = True
        for child in self._table:
            if child.kind is Kind.EXPORTER and not child.leaving:
                self._ladder.retire(child)
