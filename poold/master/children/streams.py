"""What descriptors 1 and 2 of whom are.

Where the log's stream is a file or a socket, everybody writes into pipes that the logger reads: `own` is for the master and for trials,
`output` for processes that run user code or may have the user that does, so that nothing a handler writes can pass for a line of poold's.
The master's descriptor 2 is `own` then. The master keeps the other ends of both pipes as well: while there is no logger, lines wait in the
pipes and nobody gets SIGPIPE.

Elsewhere (a pipe, a terminal) there is no logger, and children get an open file of their own: what they do to that (O_NONBLOCK, say) does
not change the master's, and a terminal cannot be read through it. Where none can be had, because the pipe is another user's, there is a
logger too.
"""

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from poold.log import log

# Lines for as long as it takes to start another logger under load.
PIPE_BYTES = 256 << 10


@dataclass(frozen=True, slots=True)
class StreamsPart:
    """The pipes to the logger, both ends; descriptor 2 is the log's stream itself."""

    own: int
    own_reader: int
    output: int
    output_reader: int


class Streams:
    """The log's stream, and what stands between it and those who write. Until `open` everything is descriptor 2, as it is for a command."""

    def __init__(self, output: int = 2) -> None:
        self.real = 2
        self.own = self.output = output
        self.own_reader = self.output_reader = -1

    @property
    def logged(self) -> bool:
        """Say whether a logger is needed."""
        return self.own_reader >= 0

    def open(self) -> None:
        """Find out what the log's stream is and make what is needed. Raises OSError."""
        mode = os.fstat(2).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISSOCK(mode):
            try:
                self.output = self.own = reopen(2)
            except OSError:
                # Another user's pipe, or a terminal that is not in this file system: nobody else is to have ours.
                pass
            else:
                return
        self.own_reader, self.own = _pipe()
        self.output_reader, self.output = _pipe()
        self._write_to_logger()

    def _write_to_logger(self) -> None:
        """Put the logger's pipe between this process and the log's stream."""
        self.real = fcntl.fcntl(2, fcntl.F_DUPFD_CLOEXEC, 3)
        os.dup2(self.own, 2)
        log.frame(on=True)

    def restore(self, part: StreamsPart) -> None:
        """Take over the pipes of the program before. Raises OSError."""
        self.own, self.own_reader, self.output, self.output_reader = part.own, part.own_reader, part.output, part.output_reader
        self._write_to_logger()

    def save(self) -> StreamsPart | None:
        """Return what the next program needs of this, None for nothing."""
        if not self.logged:
            return None
        return StreamsPart(own=self.own, own_reader=self.own_reader, output=self.output, output_reader=self.output_reader)

    @contextlib.contextmanager
    def bypass_logger(self) -> Iterator[None]:
        """Have the log's stream itself at descriptor 2: for the next program, which may not know of any logger; and not in between."""
        if self.logged:
            os.dup2(self.real, 2)
        try:
            yield
        finally:
            if self.logged:
                os.dup2(self.own, 2)

    def give_back(self) -> None:
        """Give descriptor 2 back for good: there is no logger any more."""
        if self.logged:
            os.dup2(self.real, 2)
            log.frame(on=False)


def _pipe() -> tuple[int, int]:
    reader, writer = os.pipe2(os.O_CLOEXEC)
    # More than this user may have is refused (pipe(7), pipe-user-pages-soft): the usual size will do.
    with contextlib.suppress(OSError):
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    return reader, writer


def reopen(fd: int) -> int:
    """Return an open file of its own for what this descriptor is, to be written to alone. Raises OSError."""
    name = f"/proc/self/fd/{fd}"
    flags = os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    # A pipe that nobody reads, or nobody just now, cannot be opened for writing (fifo(7)); with a reader of our own it can.
    keep = os.open(name, os.O_RDWR | flags) if stat.S_ISFIFO(os.fstat(fd).st_mode) else -1
    try:
        opened = os.open(name, os.O_WRONLY | os.O_APPEND | flags)
    finally:
        if keep >= 0:
            os.close(keep)
    os.set_blocking(opened, True)
    return opened
