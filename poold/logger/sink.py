"""Writes to the log's stream. Only the logger does so, and a write may take any time.

A write to a file waits as long as the file's disk stands still. A socket, such as the journal's,
has a reader, and a reader may never read again. A write to a socket therefore waits as long as
print() does (`poold.stream`).
"""

import os
import stat

from poold.stream import LogStream


class Sink:
    """Writes lines to descriptor 2 and counts the lines that the stream did not take."""

    def __init__(self) -> None:
        mode = os.fstat(2).st_mode
        self._stream = None if stat.S_ISREG(mode) else LogStream(2)
        self._torn = False
        # Lost lines that no `log_dropped` has reported yet.
        self.lost = 0

    def write(self, lines: list[bytes]) -> int:
        """Write whole lines. Return how many were lost.

        The stream may take a part of a line. The next write then begins with a line break.
        """
        content = b"".join([b"\n", *lines] if self._torn else lines)
        taken = self._write_file(content) if self._stream is None else self._stream.put(content)
        if taken:
            self._torn = not content[:taken].endswith(b"\n")
        lost = content[taken:].count(b"\n")
        self.lost += lost
        return lost

    def _write_file(self, content: bytes) -> int:
        at = 0
        try:
            while at < len(content):
                at += os.write(2, content[at:])
        except OSError:
            # The disk is full or broken. These lines count as lost, and later lines are tried
            # again.
            return at
        return at
