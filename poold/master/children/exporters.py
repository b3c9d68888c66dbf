"""Keeps the exporter: starts one, answers its questions, and starts another when one has died.

On its lifeline the exporter asks a question before each scrape. The master then measures the
figures that the master does not count: those of its own process and of the kernel's queues. The
master publishes the counters and answers. For this reason an idle master never wakes by itself. A
master that does not answer has a loop that does not turn.

An exporter may hang, or be stopped by a session of the same user. The master has no periodic tick
to find that out, but also holds the metrics listener. While the exporter answers, the master
watches that listener. When a scraper waits there, the master asks the exporter whether the
exporter's loop turns. If a scraper still waits at the master's next look, the master stops watching
until the answer is due. A crowd of scrapers then wakes the master once or twice in `SILENCE`, and
not once for each scraper.

For a changed metrics address the master prepares a second exporter.
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
from poold.master.children.spawn import Launcher
from poold.master.children.succession import Member, Prepared, Starter, Succession
from poold.master.children.table import Child
from poold.master.clients import sockets
from poold.master.clients.sockets import Opened, SocketPart
from poold.master.current import Current
from poold.master.document.part import Part
from poold.master.phase import Life
from poold.scoreboard import read_only
from poold.words import Failure, Kind, State

# The seconds that an exporter may take until the exporter answers scrapes.
STARTUP = 20.0
# The seconds that an exporter may later take to answer the master's question.
SILENCE = 5.0


@dataclass(slots=True, eq=False)
class Exporter(Member):
    """An exporter.

    `questioned` says that an answer is due, or that the time is too early for the next question.
    `answered` says that the answer has come. `crowded` says that more scrapers have come meanwhile.
    """

    questioned: bool = False
    answered: bool = False
    crowded: bool = False


@dataclass(frozen=True, kw_only=True)
class ExportersPart(Part):
    """The metrics listener, and its address as the settings write the address."""

    metrics: SocketPart | None = None
    metrics_address: str | None = None

    def descriptors(self) -> Iterator[int]:
        """Yield the listener's descriptor."""
        return iter(() if self.metrics is None else (self.metrics.fd,))


class Exporters(Succession[Exporter]):
    """The exporter in use, and an exporter that is being prepared."""

    def __init__(
        self,
        *,
        life: Life,
        current: Current,
        launcher: Launcher,
        starter: Starter,
    ) -> None:
        super().__init__(current=current, launcher=launcher, starter=starter)
        self._life = life
        # The listener of the exporter in use, or None while metrics are off.
        self._listener: Opened | None = None
        # The listener that the master watches for scrapers.
        self._watched: Opened | None = None
        self._questions: list[tuple[Wire, int]] = []

    @property
    def listener(self) -> Opened | None:
        """The metrics listener, or None while metrics are off."""
        return self._listener

    def open(self, address: Address) -> None:
        """Open the metrics listener. Raises ConfigError."""
        self._listener = sockets.open_metrics(address)
        log.info("metrics_listening", address=sockets.address_of(self._listener.socket))

    def save(self) -> ExportersPart:
        """Return the metrics listener."""
        address = self._current.config.metrics.listen
        return ExportersPart(
            metrics=self._listener.save() if self._listener is not None else None,
            metrics_address=str(address) if address is not None else None,
        )

    def restore(self, part: ExportersPart) -> None:
        """Take over the metrics listener of the previous program.

        A listener whose descriptor is not there is opened anew.
        """
        if part.metrics is None:
            return
        address = self._current.config.metrics.listen
        try:
            self._listener = sockets.restore_socket("metrics", part.metrics, {})
        except ConfigError as error:
            log.error("listener_lost", listener="metrics", reason=str(error.problems[0]))
            try:
                self._listener = sockets.open_metrics(address) if address is not None else None
            except ConfigError as second:
                # Metrics are no reason to end sessions. The next reload opens the listener.
                log.error("listener_lost", listener="metrics", reason=str(second.problems[0]))

    def _wanted(self) -> bool:
        return self._listener is not None and not self._life.closes

    def _launch_current(self) -> Exporter:
        assert self._listener is not None
        return self._launch(self._current, self._listener)

    def _launch(self, settings: Current, listener: Opened) -> Exporter:
        def launch(lifeline: int) -> int:
            counters = read_only(self._counters.fd)
            try:
                return self._launcher.exporter(settings, counters=counters, lifeline=lifeline, listener=listener.socket.fileno())
            finally:
                os.close(counters)

        exporter = self._starter.start(
            Kind.EXPORTER, settings.generation, members=self._members, make=Exporter, pair=_lifeline, launch=launch, read=self._read
        )
        child = exporter.child
        self._ladder.set_deadline(child, STARTUP, partial(self._ladder.expel, child, Failure.TIMEOUT))
        log.info("exporter_started", pid=child.pid)
        return exporter

    def prepare(self, settings: Current, listener: Opened, prepared: Prepared) -> None:
        """Start an exporter for other settings beside the one in use. Raises OSError.

        `prepared` is called with None when the exporter answers, or with the reason for the
        failure.
        """
        self._candidate = self._launch(settings, listener)
        self._candidate.prepared = prepared

    def adopt(self, listener: Opened | None) -> None:
        """Use the prepared exporter from now on, or none. Calling this again changes nothing.

        Other exporters answer the requests that they have, and leave.
        """
        if self._candidate is not None or listener is None:
            self._used, self._candidate = self._candidate, None
        if self._used is not None:
            self._used.prepared = None
        before, self._listener = self._listener, listener
        try:
            self._watch_listener()
        finally:
            if before is not None and before is not listener:
                before.close()
        for exporter in self._staying():
            if exporter is not self._used:
                self._ladder.retire(exporter.child)

    def inherit(self, child: Child) -> None:
        """Take over an exporter of the previous program and ask the exporter to leave.

        That exporter reads memory that no process writes any more. The new exporter is started when
        the old one has left. Side by side, each would answer a part of the scrapes, and counters
        would seem to fall. Meanwhile scrapers wait in the queue.
        """
        self._members[child] = exporter = Exporter(child)
        if not child.leaving:
            self._used = exporter
            self._ladder.retire(child)

    def hear_out(self, child: Child) -> None:
        """Read nothing: an exporter that has ended waits for no answer."""

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
            self._watch_listener()
            return
        if child.state is State.STARTING:
            self._ready(exporter)
        exporter.answered = exporter.answered or ANSWER in words
        if QUESTION in words and child.channel is not None:
            self._questions.append((child.channel, words.count(QUESTION)))

    def _ready(self, exporter: Exporter) -> None:
        self._mark_ready(exporter.child)
        log.info("exporter_ready", pid=exporter.child.pid)
        exporter.report_outcome(None)
        self._watch_listener()

    def _watch_listener(self) -> None:
        """Watch the metrics listener while the exporter in use answers scrapes.

        While a crowd waits and the exporter has been asked, the listener is not watched.
        """
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
            self._loop.watch(wanted.socket, self._question_exporter)
            self._watched = wanted
        except OSError as error:
            log.warning("accept_error", listener="metrics", errno=errno.errorcode.get(error.errno or 0), pause_seconds=SILENCE)
            self._loop.after(SILENCE, self._watch_listener)

    def _question_exporter(self) -> None:
        """Ask the exporter in use whether its loop turns, because a scraper waits for an answer."""
        exporter = self._used
        if exporter is None or exporter.child.channel is None:
            return
        if exporter.questioned:
            exporter.crowded = True
            self._watch_listener()
            return
        exporter.questioned, exporter.answered = True, False
        self._ladder.set_deadline(exporter.child, SILENCE, partial(self._judge_silence, exporter))
        try:
            exporter.child.channel.send(QUESTION, socket.MSG_NOSIGNAL)
        except OSError:
            # The exporter has ended, and the reaper will see that. Or the exporter does not read,
            # and then does not answer either.
            return

    def _judge_silence(self, exporter: Exporter) -> None:
        """End an exporter that has not answered, and start another one later.

        The new start follows from the silence. The later exit starts nothing more.
        """
        exporter.questioned = exporter.crowded = False
        if exporter.answered:
            self._watch_listener()
            return
        log.error("exporter_silent", pid=exporter.child.pid, seconds=SILENCE)
        self._ladder.expel(exporter.child, Failure.TIMEOUT)
        self._ladder.close_channel(exporter.child)
        self._used = None
        self._watch_listener()
        self._start_later("")

    def answer_due(self) -> bool:
        """Say whether an exporter waits for an answer. The answer follows the next publishing."""
        return bool(self._questions)

    def answer(self) -> None:
        """Tell the exporters that have asked that the counters are of this moment."""
        questions, self._questions = self._questions, []
        for end, count in questions:
            try:
                end.send(ANSWER * count, socket.MSG_NOSIGNAL)
            except OSError:
                # The exporter has ended, and the reaper will see that. Or the exporter does not
                # read its answers, and goes without.
                continue

    def exited(self, child: Child, exit: Exit) -> None:
        """Settle the end of an exporter. Start another one if that exporter was in use."""
        exporter = self._members.pop(child)
        reason = f"the exporter ended with status {exit.status}"
        if exporter is self._candidate:
            self._candidate = None
            exporter.report_outcome(reason)
        elif exporter is self._used:
            self._used = None
            self._watch_listener()
            if child.excused:
                # The exporter was asked to leave, to make room for another.
                self.start()
            elif not self._life.closes:
                self._start_later(reason)

    def _log_failure(self, reason: str, *, first: bool) -> None:
        log.error("exporter_failed", reason=reason, retry_seconds=self._throttle.delay)

    def stop(self) -> None:
        """Ask every exporter to leave."""
        super().stop()
        self._watch_listener()


def _lifeline() -> tuple[Wire, Wire]:
    """Return the master's end of a lifeline and the exporter's. Raises OSError.

    The master's end does not block.
    """
    ours, theirs = _socketpair()
    ours.setblocking(False)
    return ours, theirs
