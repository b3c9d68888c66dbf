"""The life of a logger: read what other processes write, write lines, end when the master says so.

The master starts a logger like any child. `own` is the pipe of poold's processes without user code,
`output` the pipe of processes with user code. `lifeline` is a channel to the master (see the end of
`poold.channel`). The lifeline may end without LOGGER_LEAVE. Then the master is dead, or an older
version without loggers has taken the master's place. In the second case the logger goes on until no
process has the pipes open any more.
"""

import json
import os
import resource
import select
import socket
import sys
import time

from poold import arguments, channel, sandbox
from poold.channel import LINES_LOST, LOGGER_LEAVE, LOGGER_READY, LOGGER_WORD_MAX
from poold.logger import records
from poold.logger.lines import LineBuffer
from poold.logger.records import LineLog
from poold.logger.sink import Sink

# The most bytes of one read. A logger that is killed loses no more than these.
READ_MAX = 16 << 10
# Seconds that half a line waits for its other half.
HALF_SECONDS = 1.0
# The most bytes that the logger reads from each pipe at the end, however much is written.
LAST_BYTES = 4 << 20
# Seconds for which a logger still reads after the master's death.
ORPHAN_SECONDS = 1.0
NEVER_WAIT = socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT


class Logger:
    """Reads two pipes and writes one stream."""

    def __init__(self, fds: dict[str, int], lifeline: channel.Wire, *, master: int, log: LineLog) -> None:
        self._log = log
        self._lifeline = lifeline
        self._master = master
        self._sink = Sink()
        self._pipes = {fds["own"]: LineBuffer(), fds["output"]: LineBuffer()}
        self._recorders = {fds["own"]: records.record_own, fds["output"]: records.record_output}
        self._poll = select.poll()
        for fd in (*self._pipes, lifeline.fileno()):
            self._poll.register(fd, select.POLLIN)
        # The time since which there has been half a line, and the time to end after the master's
        # death. 0: none.
        self._half_since = 0.0
        self._end_at = 0.0

    def run(self) -> None:
        """Write lines until the master says leave, or all pipes are closed."""
        self._send_master(LOGGER_READY)
        while self._pipes and not (self._end_at and time.monotonic() > self._end_at):
            for fd, _ in self._poll.poll(self._poll_timeout()):
                if fd != self._lifeline.fileno():
                    self._read(fd)
                elif not self._obey_master():
                    self._write_rest()
                    return
            self._flush_old_halves()
            self._write()

    def _poll_timeout(self) -> float | None:
        due_times = [at for at in (self._end_at, self._half_since and self._half_since + HALF_SECONDS) if at]
        return max(0.0, min(due_times) - time.monotonic()) * 1000 if due_times else None

    def _read(self, fd: int) -> int:
        """Read from one pipe once. Return the number of bytes."""
        chunk = os.read(fd, READ_MAX)
        if not chunk:
            self._poll.unregister(fd)
        for line in self._pipes[fd].feed(chunk) if chunk else self._pipes.pop(fd).flush():
            self._recorders[fd](self._log, line)
        return len(chunk)

    def _flush_old_halves(self) -> None:
        """Write half a line that has waited for its other half for `HALF_SECONDS`."""
        if not any(lines.waiting for lines in self._pipes.values()):
            self._half_since = 0.0
        elif not self._half_since:
            self._half_since = time.monotonic()
        elif time.monotonic() >= self._half_since + HALF_SECONDS:
            self._half_since = 0.0
            for fd, lines in self._pipes.items():
                for line in lines.flush():
                    self._recorders[fd](self._log, line)

    def _obey_master(self) -> bool:
        """Read one word of the master. Return whether to go on."""
        try:
            word = self._lifeline.recv(LOGGER_WORD_MAX)
        except ConnectionResetError:
            # The master has ended with unread words in its queue (unix(7)). That is an end as well.
            word = b""
        if word == LOGGER_LEAVE:
            return False
        if word:
            self._log.configure(format=word.decode(), level="debug")
            return True
        self._poll.unregister(self._lifeline.fileno())
        if os.getppid() != self._master:
            self._end_at = time.monotonic() + ORPHAN_SECONDS
        return True

    def _write_rest(self) -> None:
        """Write all that is in the pipes already, within `LAST_BYTES` for each."""
        for fd in list(self._pipes):
            left = LAST_BYTES
            ready = select.poll()
            ready.register(fd, select.POLLIN)
            while fd in self._pipes and left > 0 and ready.poll(0):
                left -= self._read(fd)
                self._write()
        for fd, lines in self._pipes.items():
            for line in lines.flush():
                self._recorders[fd](self._log, line)
        self._write()

    def _write(self) -> None:
        lines = self._log.take()
        if not lines:
            return
        reported, self._sink.lost = self._sink.lost, 0
        if reported:
            self._log.warning("log_dropped", lines=reported)
            lines = [*self._log.take(), *lines]
        lost = self._sink.write(lines)
        if reported and lost == len(lines):
            # `log_dropped` is lost as well. The reported lines stay unreported, and `log_dropped`
            # itself does not count as one of them.
            self._sink.lost += reported - 1
            lost -= 1
        if lost:
            self._send_master(LINES_LOST.pack(lost))

    def _send_master(self, word: bytes) -> None:
        try:
            self._lifeline.send(word, NEVER_WAIT)
        except OSError:
            # The master is dead or busy. The master's counter lacks these lines. `log_dropped`
            # tells of them in the log.
            return


def main() -> None:
    """Run a logger to its end."""
    sandbox.forbid_inspection()
    fds = arguments.read(sys.argv[1:])
    for fd in fds.values():
        os.set_inheritable(fd, False)
    try:
        from poold.title import set_title

        set_title("logger")
    except ImportError:
        # An isolated interpreter may not find setproctitle. The log works without a title.
        pass
    with open(fds["settings"], "rb") as file:
        settings = json.loads(file.read())
    resource.setrlimit(resource.RLIMIT_NOFILE, tuple(settings["nofile"]))
    sandbox.become_identity(settings["becomes"])
    log = LineLog()
    # Each child applies the level itself. The logger writes all that comes.
    log.configure(format=settings["log_format"], level="debug", journal=settings["log_journal"])
    lifeline = channel.open_wire(fds["lifeline"])
    Logger(fds, lifeline, master=settings["master"], log=log).run()
