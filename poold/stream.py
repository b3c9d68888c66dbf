"""Replaces sys.stdout and sys.stderr in a process whose descriptors 1 and 2 are the log's stream.

The stream may be full because no process reads from the stream, or closed. Python's own streams
would then wait for ever or raise, and a session would keep its worker for a line that no process
reads. These streams wait for at most one second, drop what the log's stream does not take, and
count the dropped writes. The next line that goes out tells the number.

The mold makes the two streams before the handler's import. Each printed line goes out at once and
in one piece (pipe(7), PIPE_BUF).
"""

from __future__ import annotations

import io
import os
import sys
from errno import EBADF, ENOSYS, EOPNOTSUPP, ESPIPE
from select import POLLOUT, poll
from time import monotonic

from poold.log import LINE_MAX, RWF_NOWAIT

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` is not loaded: every worker would carry its memory
    from _typeshed import ReadableBuffer

# The most seconds that a write waits.
PATIENCE = 1.0
# The errors by which the kernel says that this stream has no RWF_NOWAIT (pwritev2(2)).
_NO_NOWAIT = (EOPNOTSUPP, ENOSYS, ESPIPE)


class LogStream(io.RawIOBase):
    """The log's stream at a descriptor.

    If a handler puts another file at the descriptor, writes go to that file without a time limit.
    """

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd
        self._file = _file_id(fd)
        self._nowait = True
        # True after a wait in vain. Later writes then do not wait, until one of them succeeds.
        self._stuck = False
        self.dropped = 0

    def writable(self) -> bool:
        """Return True: the stream can be written to."""
        return True

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._fd

    def isatty(self) -> bool:
        """Return whether the descriptor is a terminal."""
        return os.isatty(self._fd)

    def write(self, data: ReadableBuffer) -> int:
        """Write what the stream takes within a second, and drop the rest.

        Return the length of the data, as if all were written. Raises OSError where the descriptor
        is closed.
        """
        content = bytes(data)
        if self.dropped:
            notice = f"poold: {self.dropped} writes to this stream were dropped, because nobody read it\n".encode()
            if self.put(notice) == len(notice):
                self.dropped = 0
        if self.put(content) < len(content):
            self.dropped += 1
        return len(content)

    def put(self, content: bytes) -> int:
        """Write what the stream takes within a second. Return how many bytes. Raises as `write`."""
        at = 0
        while at < len(content):
            piece = content[at : at + LINE_MAX]
            if at + LINE_MAX < len(content):
                piece = piece[: piece.rfind(b"\n") + 1] or piece
            try:
                taken = os.pwritev(self._fd, [piece], -1, RWF_NOWAIT) if self._nowait else 0
            except OSError as error:
                self._nowait = self._nowait and error.errno not in _NO_NOWAIT
                if self._nowait and not isinstance(error, BlockingIOError) and self._is_log_file():
                    # The stream is closed at the other end, or the disk is full.
                    return at
                taken = 0
            taken = taken or self._wait_and_put(piece)
            if not taken:
                return at
            at += taken
        return at

    def _wait_and_put(self, piece: bytes) -> int:
        """Wait until the stream takes bytes of this piece. Return how many, or 0 after a second."""
        if not self._is_log_file():
            return os.write(self._fd, piece)
        ready = poll()
        ready.register(self._fd, POLLOUT)
        until = monotonic() + (0.0 if self._stuck else PATIENCE)
        while True:
            left = until - monotonic()
            if not ready.poll(max(0.0, left) * 1000):
                break
            try:
                taken = os.pwritev(self._fd, [piece], -1, RWF_NOWAIT) if self._nowait else os.write(self._fd, piece)
            except BlockingIOError:
                # Another process has filled the stream in between.
                if left <= 0:
                    break
                continue
            except OSError:
                # The stream is closed at the other end.
                break
            self._stuck = False
            return taken
        self._stuck = True
        return 0

    def _is_log_file(self) -> bool:
        try:
            return _file_id(self._fd) == self._file
        except OSError as error:
            raise OSError(EBADF, os.strerror(EBADF)) from error


def _file_id(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def install() -> None:
    """Replace sys.stdout and sys.stderr by such streams, with the same encodings."""
    for name, fd in (("stdout", 1), ("stderr", 2)):
        old = getattr(sys, name)
        encoding, errors = (old.encoding, old.errors) if old is not None else ("utf-8", "backslashreplace")
        stream = io.TextIOWrapper(io.BufferedWriter(LogStream(fd)), encoding, errors, line_buffering=True)
        stream.mode = "w"  # type: ignore[misc]  # as in the interpreter's own streams
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def flush() -> None:
    """Write out what was printed so far."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BaseException:  # noqa: S112 -- the stream is closed, or the handler has replaced it
            continue  # a broken stream must not change how the session has ended
