"""What print() writes to: sys.stdout and sys.stderr of a process whose descriptors 1 and 2 are the log's stream.

That stream may be full because nobody reads it, or closed because nobody will. Python's own streams would wait for ever then, or raise, and
a session would keep its place for a line that nobody reads. These wait for a second at the most, drop what is not taken and count it; the
next line that goes out says how much that was.

Made once, in the mold, before the handler's import. Lines go out as they are printed, each in one piece (pipe(7), PIPE_BUF).
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
if TYPE_CHECKING:  # without loading typing, whose weight every worker would carry
    from _typeshed import ReadableBuffer

PATIENCE = 1.0
# This stream cannot be written to "now or never".
_CANNOT = (EOPNOTSUPP, ENOSYS, ESPIPE)


class LogStream(io.RawIOBase):
    """The log's stream at a descriptor. If a handler puts another file there, that is written to as any file."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd
        self._file = _file_of(fd)
        self._nowait = True
        # Waited in vain: nothing is waited for until something is taken again.
        self._stuck = False
        self.dropped = 0

    def writable(self) -> bool:
        """Say that it can be written to."""
        return True

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._fd

    def isatty(self) -> bool:
        """Say whether it is a terminal."""
        return os.isatty(self._fd)

    def write(self, data: ReadableBuffer) -> int:
        """Write everything within a second, or drop the rest; all of it counts as written. Raises OSError when the descriptor is closed."""
        content = bytes(data)
        if self.dropped:
            told = f"poold: {self.dropped} writes to this stream were dropped, because nobody read it\n".encode()
            if self.put(told) == len(told):
                self.dropped = 0
        if self.put(content) < len(content):
            self.dropped += 1
        return len(content)

    def put(self, content: bytes) -> int:
        """Write as much as is taken within a second, and return how much that was. Raises as `write`."""
        at = 0
        while at < len(content):
            piece = content[at : at + LINE_MAX]
            if at + LINE_MAX < len(content):
                piece = piece[: piece.rfind(b"\n") + 1] or piece
            try:
                taken = os.pwritev(self._fd, [piece], -1, RWF_NOWAIT) if self._nowait else 0
            except OSError as error:
                self._nowait = self._nowait and error.errno not in _CANNOT
                if self._nowait and not isinstance(error, BlockingIOError) and self._is_the_logs():
                    # Nobody will ever read it, or its disk is full.
                    return at
                taken = 0
            taken = taken or self._put_patiently(piece)
            if not taken:
                return at
            at += taken
        return at

    def _put_patiently(self, piece: bytes) -> int:
        """Wait until a piece is taken, wholly or in part, and return how much; 0 when it was not."""
        if not self._is_the_logs():
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
                # Somebody else was faster.
                if left <= 0:
                    break
                continue
            except OSError:
                # Nobody will ever read it.
                break
            self._stuck = False
            return taken
        self._stuck = True
        return 0

    def _is_the_logs(self) -> bool:
        try:
            return _file_of(self._fd) == self._file
        except OSError as error:
            raise OSError(EBADF, os.strerror(EBADF)) from error


def _file_of(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def install() -> None:
    """Have this process's standard output and error be such streams, with the encoding that they have."""
    for name, fd in (("stdout", 1), ("stderr", 2)):
        before = getattr(sys, name)
        encoding, errors = (before.encoding, before.errors) if before is not None else ("utf-8", "backslashreplace")
        stream = io.TextIOWrapper(io.BufferedWriter(LogStream(fd)), encoding, errors, line_buffering=True)
        stream.mode = "w"  # type: ignore[misc]  # as the interpreter's own have it
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def flush() -> None:
    """Let what was printed go out."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BaseException:  # noqa: S112 -- the stream is closed, or is something of the handler's: nowhere to say so
            continue  # nothing that a handler leaves behind changes how its session ended
