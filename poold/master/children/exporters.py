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
from _socket import socketpair as _socketpair
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from poold.address import Address
from poold.channel import Wire
from poold.errors import ConfigError
from poold.lifeline import ANSWER, QUESTION, WORDS_MAX
from poold.log import log
from poold.master.children.exits import Exit
from poold.master.children.ladder import Ladder
from poold.master.children.spawn import Launcher
from poold.master.children.succession import Member, Prepared, Starter, Succession
from poold.master.children.table import Child, ChildTable
from poold.master.clients import sockets
from poold.master.clients.sockets import Opened, SocketPart
from poold.master.current import Current
from poold.master.document.part import Part
from poold.master.engine.loop import Loop
from poold.master.phase import Life
from poold.scoreboard import Counters, read_only
from poold.words import Failure, Kind, State

# How long an exporter may take until it answers scrapes.
STARTUP = 20.0
# And how long, from then on, to say that its loop turns when somebody has come to be answered.
SILENCE = 5.0


@dataclass(slots=True, eq=False)
class Exporter(Member):
    """An exporter.

    `asked` says that its answer is due, or that it is not yet time for the next question; `answered` that the answer has come;
    `crowded` that more scrapers have come meanwhile.
    """

    asked: bool = False
    answered: bool = False
    crowded: bool = False


@dataclass(frozen=True, kw_only=True)
class ExportersPart(Part):
    """The metrics listener, and its address as the settings have it."""

    metrics: SocketPart | None = None
    metrics_address: str | None = None

    def descriptors(self) -> Iterator[int]:
        """Yield the listener's descriptor."""
        return iter(() if self.metrics is None else (self.metrics.fd,))


class Exporters(Succession[Exporter]):
    """The exporter in use, and one that is being prepared."""

    def __init__(
        self,
        *,
        life: Life,
        current: Current,
        loop: Loop,
        table: ChildTable,
        ladder: Ladder,
        starter: Starter,
        counters: Counters,
        launcher: Launcher,
    ) -> None:
        super().__init__(loop=loop, ladder=ladder)
        self._life = life
        self._current = current
        self._table = table
        self._starter = starter
        self._counters = counters
        self._launcher = launcher
        # The listener of the exporter in use; None: metrics are off.
        self._listener: Opened | None = None
        # The listener at which newcomers are noticed.
        self._watched: Opened | None = None
        self._asking: list[tuple[Wire, int]] = []

    @property
    def listener(self) -> Opened | None:
        """The metrics listener, None while metrics are off."""
        return self._listener

    def open(self, address: Address) -> None:
        """Open the metrics listener. Raises ConfigError."""
        self._listener = sockets.open_metrics(address)
        log.info("metrics_listening", address=sockets.address(self._listener.socket))

    def save(self) -> ExportersPart:
        """Return the metrics listener."""
        address = self._current.config.metrics.listen
        return ExportersPart(
            metrics=self._listener.save() if self._listener is not None else None,
            metrics_address=str(address) if address is not None else None,
        )

    def restore(self, part: ExportersPart) -> None:
        """Take over the metrics listener of the program before; one that is not there is opened anew."""
        if part.metrics is None:
            return
        address = self._current.config.metrics.listen
        try:
            self._listener = sockets.restored("metrics", part.metrics, {})
        except ConfigError as error:
            log.error("listener_lost", listener="metrics", reason=str(error.problems[0]))
            try:
                self._listener = sockets.open_metrics(address) if address is not None else None
            except ConfigError as second:
                # No session is ended for the want of metrics; the next reload opens them.
                log.error("listener_lost", listener="metrics", reason=str(second.problems[0]))

    def start(self) -> None:
        """Start an exporter for the listener in use, if there is none; a failure is tried again later."""
        if self._life.closes or self._listener is None or self._used is not None:
            return
        try:
            self._used = self._launch(self._current, self._listener)
        except OSError as error:
            self._again(str(error))

    def _launch(self, settings: Current, listener: Opened) -> Exporter:
        def launch(lifeline: int) -> int:
            counters = read_only(self._counters.fd)
            try:
                return self._launcher.exporter(settings, counters=counters, lifeline=lifeline, listener=listener.socket.fileno())
            finally:
                os.close(counters)

        child = self._starter.start(Kind.EXPORTER, settings.generation, pair=_lifeline, launch=launch, read=self._read)
        exporter = self._members[child] = Exporter(child)
        self._ladder.set_deadline(child, STARTUP, partial(self._ladder.expel, child, Failure.TIMEOUT))
        log.info("exporter_started", pid=child.pid)
        return exporter

    def prepare(self, settings: Current, listener: Opened, prepared: Prepared) -> None:
        """Start an exporter for other settings beside the one in use, and tell when it answers or cannot. Raises OSError."""
        self._candidate = self._launch(settings, listener)
        self._candidate.prepared = prepared

    def adopt(self, listener: Opened | None) -> None:
        """Use the prepared exporter, or none, from now on; others answer what has come to them and leave. Again changes nothing."""
        if self._candidate is not None or listener is None:
            self._used, self._candidate = self._candidate, None
        if self._used is not None:
            self._used.prepared = None
        before, self._listener = self._listener, listener
        try:
            self._look_out()
        finally:
            if before is not None and before is not listener:
                before.close()
        for exporter in self._staying():
            if exporter is not self._used:
                self._ladder.retire(exporter.child)

    def inherit(self, child: Child) -> None:
        """Take over an exporter of the program before, and see it off: it reads memory that nobody writes any more.

        Ours is started when it has left. Side by side they would answer now from the one memory and now from the other, and
        counters would seem to fall; meanwhile scrapers wait in the queue.
        """
        self._members[child] = exporter = Exporter(child)
        if not child.leaving:
            self._used = exporter
            self._ladder.retire(child)

    def hear_out(self, child: Child) -> None:
        """Read nothing: an exporter's last words are questions that nobody waits to have answered."""

    def _read(self, child: Child) -> None:
        exporter = self._members[child]
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
        self._ladder.clear_deadline(exporter.child)
        self._table.move(exporter.child, State.SERVING)
        self._throttle.succeeded()
        log.info("exporter_ready", pid=exporter.child.pid)
        exporter.turned_out(None)
        self._look_out()

    def _look_out(self) -> None:
        """Watch the listener in use exactly while the exporter in use answers, unless it has been asked whether it does, by a crowd."""
        used = self._used
        wanted = self._listener if used is not None and used.child.state is State.SERVING and not used.crowded else None
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
        self._ladder.set_deadline(exporter.child, SILENCE, partial(self._due, exporter))
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
        exporter = self._members.pop(child)
        reason = f"the exporter ended with status {exit.status}"
        if exporter is self._candidate:
            self._candidate = None
            exporter.turned_out(reason)
        elif exporter is self._used:
            self._used = None
            self._look_out()
            if child.excused:
                # It was asked to leave, to make room for another.
                self.start()
            elif not self._life.closes:
                self._again(reason)

    def _tell(self, reason: str, *, first: bool) -> None:
        log.error("exporter_failed", reason=reason, retry_seconds=self._throttle.delay)

    def stop(self) -> None:
        """Ask every exporter to leave."""
        super().stop()
        self._look_out()


def _lifeline() -> tuple[Wire, Wire]:
    """Return the master's end of a lifeline, which does not block, and the exporter's. Raises OSError."""
    ours, theirs = _socketpair()
    ours.setblocking(False)
    return ours, theirs
