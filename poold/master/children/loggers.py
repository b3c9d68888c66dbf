"""Keeps the logger, where one is needed.

The master starts the logger before any other child, starts another one when the logger has died,
and ends the logger after all other children. While there is no logger, lines wait in the pipes. A
process whose line finds no room in a full pipe drops that line and counts the loss.
"""

import os
import select
from functools import partial

from poold import channel
from poold.channel import LINES_LOST, LOGGER_LEAVE, LOGGER_READY, LOGGER_WORD_MAX
from poold.log import log
from poold.master.children.exits import Exit
from poold.master.children.spawn import Launcher
from poold.master.children.succession import Member, Starter, Succession
from poold.master.children.table import Child
from poold.master.current import Current
from poold.words import Kind, State

# The seconds that the end of poold waits for the last lines. The stream of the log may be blocked.
LAST_SECONDS = 2.0
KILL_SECONDS = 0.5
TRIES = 2
# The seconds that a logger may take until its first read.
STARTUP = 20.0


class Loggers(Succession[Member]):
    """The logger in use, and one of the previous program."""

    def __init__(self, *, current: Current, launcher: Launcher, starter: Starter) -> None:
        super().__init__(current=current, launcher=launcher, starter=starter)
        self._streams = launcher.streams
        self._format = ""

    def _wanted(self) -> bool:
        return self._streams.logged

    def _launch_current(self) -> Member:
        streams = self._streams

        def launch(lifeline: int) -> int:
            return self._launcher.logger(self._current, lifeline=lifeline, own=streams.own_reader, output=streams.output_reader)

        logger = self._starter.start(
            Kind.LOGGER,
            self._current.generation,
            members=self._members,
            make=Member,
            pair=channel.make_pair,
            launch=launch,
            read=self._read,
        )
        child = logger.child
        self._format = self._current.config.log.format
        self._ladder.set_deadline(child, STARTUP, partial(self._ladder.expel, child, None))
        log.info("logger_started", pid=child.pid)
        return logger

    def inherit(self, child: Child) -> None:
        """Take over a logger of the previous program, and ask the logger to leave.

        That logger writes what has been read, and the new logger goes on from there.
        """
        logger = self._members[child] = Member(child)
        if child.leaving:
            return
        self._used = logger
        self._send(child, LOGGER_LEAVE)
        self._ladder.retire(child)

    def configure(self) -> None:
        """Tell the logger a changed format.

        Lines that were written before may still get the new format.
        """
        if self._used is not None and self._format != self._current.config.log.format:
            self._format = self._current.config.log.format
            if not self._send(self._used.child, self._format.encode()):
                self._ladder.expel(self._used.child, None)

    def _send(self, child: Child, word: bytes) -> bool:
        try:
            return child.channel is not None and child.channel.send(word) == len(word)
        except OSError:
            # The logger has ended, or does not read.
            return False

    def _read(self, logger: Member) -> None:
        child = logger.child
        for _ in range(channel.MESSAGES_PER_TURN):
            if child.channel is None:
                return
            try:
                word = child.channel.recv(LOGGER_WORD_MAX)
            except BlockingIOError:
                return
            except ConnectionResetError:
                word = b""
            if word == LOGGER_READY and child.state is State.STARTING:
                self._mark_ready(child)
                log.debug("logger_ready", pid=child.pid)
            elif len(word) == LINES_LOST.size:
                log.dropped += LINES_LOST.unpack(word)[0]
            else:
                self._ladder.close_channel(child)
                if not child.leaving and not child.exiting:
                    self._ladder.expel(child, None)

    def hear_out(self, child: Child) -> None:
        """Read from a logger that has ended how many lines the logger has lost."""
        self._read(self._members[child])

    def exited(self, child: Child, exit: Exit) -> None:
        """Settle the end of a logger. Start another one if that logger was in use."""
        if self._members.pop(child) is not self._used:
            return
        self._used = None
        if child.excused:
            self.start()
        else:
            self._start_later(f"the logger ended with status {exit.status}")

    def _log_failure(self, reason: str, *, first: bool) -> None:
        log.error("logger_failed", reason=reason, retry_seconds=self._throttle.delay)

    def stop(self) -> None:
        """Do nothing: the last lines are still to come. `close` ends the logger."""

    def close(self) -> None:
        """Wait until the last lines are written, and give descriptor 2 back.

        The master calls this last, after the end of the loop. The call takes a few seconds at most.
        A logger that does nothing is replaced once. A logger that even SIGKILL does not end is
        blocked on the stream of the log, and is left behind.
        """
        for _ in range(TRIES if self._streams.logged else 0):
            # Without a logger, the lines in the pipes have no reader.
            self.start()
            if self._used is None:
                return
            used = self._used.child
            told = self._send(used, LOGGER_LEAVE)
            # A logger that is leaving is the previous program's, and does not read the last lines.
            ended = (told or used.leaving) and _wait_for_end(used, LAST_SECONDS)
            if told and ended:
                self._streams.give_back()
                return
            if not ended:
                self._ladder.expel(used, None)
                if not _wait_for_end(used, KILL_SECONDS):
                    return
            self._used = None


def _wait_for_end(child: Child, seconds: float) -> bool:
    """Wait up to `seconds` for a logger's end. Return whether the logger has ended."""
    try:
        process = os.pidfd_open(child.pid)
    except OSError:
        # The master has waited for the logger already.
        return True
    waiting = select.poll()
    waiting.register(process, select.POLLIN)
    ended = bool(waiting.poll(seconds * 1000))
    if ended:
        os.waitid(os.P_PIDFD, process, os.WEXITED | os.WNOHANG)
    os.close(process)
    return ended
