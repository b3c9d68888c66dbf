"""Keeps the exporter: starts it, answers its questions, starts another when it dies, prepares one for another address.

The exporter asks on its lifeline before it answers a scrape; the master then brings up to date what it does not count (its own
process's figures, the kernel's queues) and publishes. So an idle master need not wake by itself, and a master that does not
answer is one whose loop does not turn.

An exporter may hang as well, or be stopped by a session of the same user. A master that nobody needs has no tick to find that out by, but
somebody who wants an answer of a hung exporter waits at the metrics listener, which the master holds too: so the master watches it, and
when somebody waits there asks the exporter whether its loop turns. Should somebody still wait, or again, when the master looks next,
the listener is left alone until the answer is due: a crowd of scrapers wakes the master once or twice in `SILENCE`, not once for each.
"""

import errno
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from poold.channel import Wire
from poold.lifeline import ANSWER, QUESTION, WORDS_MAX
from poold.log import log
from poold.master.children.exits import Exit
from poold.master.children.ladder import Ladder
from poold.master.children.spawn import Launcher
from poold.master.children.table import Child, ChildTable
from poold.master.clients.sockets import Opened
from poold.master.current import Current
from poold.master.engine.loop import Loop
from poold.master.engine.throttle import Throttle
from poold.scoreboard import SPAWNED, Counters, read_only
from poold.words import Failure, Kind, State

# How long an exporter may take until it answers scrapes.
STARTUP = 20.0
# And how long, from then on, to say that its loop turns when somebody has come to be answered.
SILENCE = 5.0

# Told how a prepared exporter turned out: None, or why it cannot be used.
Prepared = Callable[[str | None], object]


@dataclass(slots=True, eq=False)
class Exporter:
    """An exporter. `prepared` is set as long as it is a candidate.

    `asked` says that its answer is due, or that it is not yet time for the next question; `answered` that the answer has come;
    `crowded` that more scrapers have come meanwhile.
    """

    child: Child
    prepared: Prepared | None = None
    asked: bool = False
    answered: bool = False
    crowded: bool = False


class Exporters:
    """The exporter in use, and one that is being prepared."""

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
        # Whose exporter is in use; None: metrics are off.
        self.listener: Opened | None = None
        # At which one newcomers are noticed.
        self._watched: Opened | None = None
        self._exporters: dict[Child, Exporter] = {}
        self._used: Exporter | None = None
        self._candidate: Exporter | None = None
        self._throttle = Throttle()
        self._asking: list[tuple[Wire, int]] = []
        self.stopping = False

    def start(self) -> None:
        """Start an exporter for the listener in use, if there is none; a failure is tried again later."""
        if self.stopping or self.listener is None or self._used is not None:
            return
        try:
            self._used = self._launch(self._current, self.listener)
        except OSError as error:
            self._again(str(error))

    def _launch(self, settings: Current, listener: Opened) -> Exporter:
        child = self._table.claim(Kind.EXPORTER, generation=settings.generation, now=self._loop.clock())
        exporter = Exporter(child)
        try:
            child.channel, theirs = socket.socketpair()
            child.channel.setblocking(False)
            with theirs:
                self._loop.watch(child.channel, partial(self._read, exporter))
                pid = self._spawn(settings, theirs, listener.socket)
        except BaseException:
            self._ladder.close_channel(child)
            self._table.remove(child)
            raise
        self._table.born(child, pid)
        self._counters.cells[SPAWNED[Kind.EXPORTER]] += 1
        self._exporters[child] = exporter
        self._ladder.within(child, STARTUP, partial(self._too_slow, exporter))
        log.info("exporter_started", pid=pid)
        return exporter

    def _spawn(self, settings: Current, lifeline: socket.socket, listener: socket.socket) -> int:
        counters = read_only(self._counters.fd)
        try:
            fds = {"counters": counters, "lifeline": lifeline.fileno(), "listener": listener.fileno()}
            return self._launcher.exporter(settings, **fds)
        finally:
            os.close(counters)

    def prepare(self, settings: Current, listener: Opened, prepared: Prepared) -> None:
        """Start an exporter for other settings beside the one in use, and tell when it answers or cannot. Raises OSError."""
        self._candidate = self._launch(settings, listener)
        self._candidate.prepared = prepared

    def _too_slow(self, exporter: Exporter) -> None:
        self._ladder.expel(exporter.child, Failure.TIMEOUT)

    def adopt(self, listener: Opened | None) -> None:
        """Use the prepared exporter, or none, from now on; others answer what has come to them and leave. Again changes nothing."""
        if self._candidate is not None or listener is None:
            self._used, self._candidate = self._candidate, None
        if self._used is not None:
            self._used.prepared = None
        before, self.listener = self.listener, listener
        try:
            self._look_out()
        finally:
            if before is not None and before is not listener:
                before.close()
        for exporter in self._exporters.values():
            if exporter is not self._used and not exporter.child.leaving:
                self._ladder.retire(exporter.child)

    def discard(self) -> None:
        """Give up the exporter that is being prepared; its listener is its opener's to close."""
        candidate, self._candidate = self._candidate, None
        if candidate is not None and not candidate.child.leaving:
            candidate.prepared = None
            self._ladder.retire(candidate.child)

    def inherit(self, child: Child) -> None:
        """Take over an exporter of the program before, and see it off: it reads memory that nobody writes any more.

        Ours is started when it has left. Side by side they would answer now from the one memory and now from the other, and
        counters would seem to fall; meanwhile scrapers wait in the queue.
        """
        self._exporters[child] = exporter = Exporter(child)
        if not child.leaving:
            self._used = exporter
            self._ladder.retire(child)

    def _read(self, exporter: Exporter) -> None:
        child = exporter.child
        if child.channel is None:
            return
        try:
            words = child.channel.recv(WORDS_MAX)
        except BlockingIOError:
            return
        except ConnectionResetError:
            words = b""
        if not words:
            self._ladder.close_channel(child)
            if not child.leaving:
                self._ladder.expel(child, None)
            self._look_out()
            return
        if child.state is State.STARTING:
            self._ready(exporter)
        exporter.answered = exporter.answered or ANSWER in words
        if QUESTION in words and child.channel is not None:
            self._asking.append((child.channel, words.count(QUESTION)))

    def _ready(self, exporter: Exporter) -> None:
        exporter.child.ready = True
        self._ladder.relax(exporter.child)
        self._table.move(exporter.child, State.SERVING)
        self._throttle.succeeded()
        log.info("exporter_ready", pid=exporter.child.pid)
        if exporter.prepared is not None:
            exporter.prepared(None)
        self._look_out()

    def _look_out(self) -> None:
        """Watch the listener in use exactly while the exporter in use answers, unless it has been asked whether it does, by a crowd."""
        used = self._used
        wanted = self.listener if used is not None and used.child.state is State.SERVING and not used.crowded else None
        if wanted is self._watched:
            return
        if self._watched is not None:
            self._loop.forget(self._watched.socket)
            self._watched = None
        if wanted is None:
            return
        try:
            self._loop.watch(wanted.socket, self._newcomer)
            self._watched = wanted
        except OSError as error:
            log.warning("accept_error", listener="metrics", errno=errno.errorcode.get(error.errno or 0), pause_seconds=SILENCE)
            self._loop.after(SILENCE, self._look_out)

    def _newcomer(self) -> None:
        """Ask the exporter in use whether its loop turns, because somebody wants an answer of it."""
        exporter = self._used
        if exporter is None or exporter.child.channel is None:
            return
        if exporter.asked:
            exporter.crowded = True
            self._look_out()
            return
        exporter.asked, exporter.answered = True, False
        self._ladder.within(exporter.child, SILENCE, partial(self._due, exporter))
        try:
            exporter.child.channel.send(QUESTION, socket.MSG_NOSIGNAL)
        except OSError:
            # It has gone, and its exit will tell; or it does not read: then it does not answer either.
            return

    def _due(self, exporter: Exporter) -> None:
        """End an exporter that has not answered. Not its exit but its silence is the reason for another one, as with a mold."""
        exporter.asked = exporter.crowded = False
        if exporter.answered:
            self._look_out()
            return
        log.error("exporter_silent", pid=exporter.child.pid, seconds=SILENCE)
        self._ladder.expel(exporter.child, Failure.TIMEOUT)
        self._ladder.close_channel(exporter.child)
        self._used = None
        self._look_out()
        self._again("")

    def asked(self) -> bool:
        """Say whether an answer is due: after the next publishing."""
        return bool(self._asking)

    def answer(self) -> None:
        """Tell whoever asked that the counters are of this moment."""
        asking, self._asking = self._asking, []
        for end, count in asking:
            try:
                end.send(ANSWER * count, socket.MSG_NOSIGNAL)
            except OSError:
                # It has gone, or does not read its answers: its own fault, and its exit will tell.
                continue

    def exited(self, child: Child, exit: Exit) -> None:
        """Settle the end of an exporter; start another one if it was the one in use."""
        exporter = self._exporters.pop(child)
        reason = f"the exporter ended with status {exit.status}"
        if exporter is self._candidate:
            self._candidate = None
            if exporter.prepared is not None:
                exporter.prepared(reason)
        elif exporter is self._used:
            self._used = None
            self._look_out()
            if child.excused:
                # It was asked to leave, to make room for another.
                self.start()
            elif not self.stopping:
                self._again(reason)

    def _again(self, reason: str) -> None:
        self._throttle.failed(self._loop.clock())
        if reason:
            log.error("exporter_failed", reason=reason, retry_seconds=self._throttle.delay)
        self._loop.at(self._throttle.until, self.start)

    def stop(self) -> None:
        """Ask every exporter to leave."""
        self.stopping = True
        for exporter in self._exporters.values():
            if not exporter.child.leaving:
                self._ladder.retire(exporter.child)
        self._look_out()
