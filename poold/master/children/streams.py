"""Decides what descriptors 1 and 2 of the master and of each child are.

Where the log's stream is a file or a socket, all processes write into two pipes, and the logger
reads both. `own` is for the master and for trials, and is then the master's descriptor 2. `output`
is for processes that run user code, or that may have the same user as user code. For this reason
nothing that a handler writes can look like a line of poold's. The master keeps the read ends of
both pipes as well. While there is no logger, lines wait in the pipes, and no writer gets SIGPIPE.

Where the stream is a pipe or a terminal there is no logger. Children get an open file of their own.
What a child does to that open file (O_NONBLOCK, for example) does not change the master's, and a
child cannot read from a terminal. Where the master cannot open the stream again, because the pipe
is another user's, there is a logger too.
"""

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from poold.log import log

# Room for the lines that are written while another logger is started under load.
PIPE_BYTES = 256 << 10


@dataclass(frozen=True, slots=True)
class StreamsPart:
    """Both ends of the two pipes to the logger. Descriptor 2 is the log's stream itself."""

    own: int
    own_reader: int
    output: int
    output_reader: int


class Streams:
    """The log's stream, and the pipes between the stream and its writers.

    Until `open`, both `own` and `output` are descriptor 2, as in a command.
    """

    def __init__(self, output: int = 2) -> None:
        self.real = 2
        self.own = self.output = output
        self.own_reader = self.output_reader = -1

    @property
    def logged(self) -> bool:
        """Say whether a logger is needed."""
        return self.own_reader >= 0

    def open(self) -> None:
        """Make what the log's stream needs: an open file or the pipes. Raises OSError."""
        mode = os.fstat(2).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISSOCK(mode):
            try:
                self.output = self.own = reopen(2)
            except OSError:
                # The stream is another user's pipe, or a terminal outside this file system. No
                # child must get the master's own open file, so a logger is needed.
                pass
            else:
                return
        self.own_reader, self.own = _pipe()
        self.output_reader, self.output = _pipe()
        self._write_to_logger()

    def _write_to_logger(self) -> None:
        """Make the logger's pipe descriptor 2, and keep the log's stream in `real`."""
        self.real = fcntl.fcntl(2, fcntl.F_DUPFD_CLOEXEC, 3)
        os.dup2(self.own, 2)
        log.frame(on=True)

    def restore(self, part: StreamsPart) -> None:
        """Take over the pipes of the previous program. Raises OSError."""
        self.own, self.own_reader, self.output, self.output_reader = part.own, part.own_reader, part.output, part.output_reader
        self._write_to_logger()

    def save(self) -> StreamsPart | None:
        """Return the pipes for the next program, or None where there are no pipes."""
        if not self.logged:
            return None
        return StreamsPart(own=self.own, own_reader=self.own_reader, output=self.output, output_reader=self.output_reader)

    @contextlib.contextmanager
    def bypass_logger(self) -> Iterator[None]:
        """Make the log's stream itself descriptor 2 until the end of the `with` block.

        The block replaces the program, and the next program may know of no logger.
        """
        if self.logged:
            os.dup2(self.real, 2)
        try:
            yield
        finally:
            if self.logged:
                os.dup2(self.own, 2)

    def give_back(self) -> None:
        """Make the log's stream descriptor 2 for good, because there is no logger any more."""
        if self.logged:
            os.dup2(self.real, 2)
            log.frame(on=False)


def _pipe() -> tuple[int, int]:
    reader, writer = os.pipe2(os.O_CLOEXEC)
    # The kernel refuses a size above this user's limit (pipe(7), pipe-user-pages-soft). The usual
    # size is enough then.
    with contextlib.suppress(OSError):
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    return reader, writer


def reopen(fd: int) -> int:
    """Open the file, pipe or terminal behind this descriptor again, for writing only.

    Return the new descriptor. Raises OSError.
    """
    name = f"/proc/self/fd/{fd}"
    flags = os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    # Opening a pipe for writing fails while the pipe has no reader (fifo(7)). The master is that
    # reader for a moment.
    keep = os.open(name, os.O_RDWR | flags) if stat.S_ISFIFO(os.fstat(fd).st_mode) else -1
    try:
        opened = os.open(name, os.O_WRONLY | os.O_APPEND | flags)
    finally:
        if keep >= 0:
            os.close(keep)
    os.set_blocking(opened, True)
    return opened
