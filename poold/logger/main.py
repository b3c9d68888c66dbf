"""A logger's life: read what others write, write lines, until the master says that there is no more.

Started as every child is; `own` and `output` are the pipes of poold's own processes and of those with user code, `lifeline` is a channel
to the master (see the end of `poold.channel`). When that ends without a word, the master has ended, or an older program has taken the
master's place that knows no logger: then this process goes on until nobody has the pipes any more.
"""

import json
import os
import resource
import select
import socket
import sys
import time

from poold import arguments, channel, sandbox
from poold.channel import LOGGER_LEAVE, LOGGER_READY, LOGGER_WORD_MAX, LOST
from poold.logger import records
from poold.logger.lines import Lines
from poold.logger.records import Recorder
from poold.logger.sink import Sink

# What is read of a pipe at once. A logger that is killed takes no more than this along.
CHUNK = 16 << 10
# How long half a line waits for its other half.
HALF_SECONDS = 1.0
# What is read at the end, of each pipe: nobody is to write for ever.
LAST_BYTES = 4 << 20
# How long those who outlive the master for a moment are listened to.
GRACE_SECONDS = 1.0
NEVER_WAIT = socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT


class Logger:
    """Two pipes, one stream."""

    def __init__(self, fds: dict[str, int], lifeline: channel.Wire, *, master: int, log: Recorder) -> None:
        self._log = log
        self._lifeline = lifeline
        self._master = master
        self._sink = Sink()
        self._pipes = {fds["own"]: Lines(), fds["output"]: Lines()}
        self._note = {fds["own"]: records.note_own, fds["output"]: records.note_output}
        self._poll = select.poll()
        for fd in (*self._pipes, lifeline.fileno()):
            self._poll.register(fd, select.POLLIN)
        # Since when there has been half a line, and when to stop listening to those who outlive the master.
        self._half_since = 0.0
        self._until = 0.0

    def run(self) -> None:
        """Write lines until there will be none any more."""
        self._tell(LOGGER_READY)
        while self._pipes and not (self._until and time.monotonic() > self._until):
            for fd, _ in self._poll.poll(self._patience()):
                if fd != self._lifeline.fileno():
                    self._read(fd)
                elif not self._hear():
                    self._finish()
                    return
            self._settle_halves()
            self._write()

    def _patience(self) -> float | None:
        due = [at for at in (self._until, self._half_since and self._half_since + HALF_SECONDS) if at]
        return max(0.0, min(due) - time.monotonic()) * 1000 if due else None

    def _read(self, fd: int) -> int:
        """Read of one pipe; return how much there was."""
        chunk = os.read(fd, CHUNK)
        if not chunk:
            self._poll.unregister(fd)
        for line in self._pipes[fd].feed(chunk) if chunk else self._pipes.pop(fd).flush():
            self._note[fd](self._log, line)
        return len(chunk)

    def _settle_halves(self) -> None:
        """Let half a line wait for its other half, but not for long."""
        if not any(lines.waiting for lines in self._pipes.values()):
            self._half_since = 0.0
        elif not self._half_since:
            self._half_since = time.monotonic()
        elif time.monotonic() >= self._half_since + HALF_SECONDS:
            self._half_since = 0.0
            for fd, lines in self._pipes.items():
                for line in lines.flush():
                    self._note[fd](self._log, line)

    def _hear(self) -> bool:
        """Take the master's word; say whether to go on."""
        try:
            word = self._lifeline.recv(LOGGER_WORD_MAX)
        except ConnectionResetError:
            # It has gone without reading all that was said to it.
            word = b""
        if word == LOGGER_LEAVE:
            return False
        if word:
            self._log.configure(format=word.decode(), level="debug")
            return True
        self._poll.unregister(self._lifeline.fileno())
        if os.getppid() != self._master:
            self._until = time.monotonic() + GRACE_SECONDS
        return True

    def _finish(self) -> None:
        """Write what is there already, and no more."""
        for fd in list(self._pipes):
            left = LAST_BYTES
            ready = select.poll()
            ready.register(fd, select.POLLIN)
            while fd in self._pipes and left > 0 and ready.poll(0):
                left -= self._read(fd)
                self._write()
        for fd, lines in self._pipes.items():
            for line in lines.flush():
                self._note[fd](self._log, line)
        self._write()

    def _write(self) -> None:
        lines = self._log.take()
        if not lines:
            return
        told, self._sink.lost = self._sink.lost, 0
        if told:
            self._log.warning("log_dropped", lines=told)
            lines = [*self._log.take(), *lines]
        lost = self._sink.write(lines)
        if told and lost == len(lines):
            # Nobody has read of those either, and this line about them is none of the log's.
            self._sink.lost += told - 1
            lost -= 1
        if lost:
            self._tell(LOST.pack(lost))

    def _tell(self, word: bytes) -> None:
        try:
            self._lifeline.send(word, NEVER_WAIT)
        except OSError:
            # It is gone, or busy: its counter is short of these lines, which the log itself tells of.
            return


def main() -> None:
    """Run a logger until the master lets it go."""
    sandbox.hide()
    fds = arguments.read(sys.argv[1:])
    for fd in fds.values():
        os.set_inheritable(fd, False)
    try:
        from poold.title import set_title

        set_title("logger")
    except ImportError:
        # Isolated, this interpreter may not find a library that others do: a title is not worth the log.
        pass
    with open(fds["settings"], "rb") as file:
        settings = json.loads(file.read())
    resource.setrlimit(resource.RLIMIT_NOFILE, tuple(settings["nofile"]))
    sandbox.become_identity(settings["becomes"])
    log = Recorder()
    # Children write what their own level lets through.
    log.configure(format=settings["log_format"], level="debug", journal=settings["log_journal"])
    lifeline = channel.wire(fds["lifeline"])
    Logger(fds, lifeline, master=settings["master"], log=log).run()
