"""The log's stream itself: written to by this process alone, as long as that takes.

A file is waited for, however long its disk stands still. A stream that somebody reads (a socket: the journal's) is waited for as print()
waits for it (`poold.stream`), because who stops reading may never begin again.
"""

import os
import stat

from poold.stream import LogStream


class Sink:
    """Writes lines to descriptor 2 and counts those that were not taken."""

    def __init__(self) -> None:
        mode = os.fstat(2).st_mode
        self._stream = None if stat.S_ISREG(mode) else LogStream(2)
        self._torn = False
        # Lines that nobody was told of yet.
        self.lost = 0

    def write(self, lines: list[bytes]) -> int:
        """Write whole lines; return how many were lost. The line after one that went out in part starts on a line of its own."""
        content = b"".join([b"\n", *lines] if self._torn else lines)
        taken = self._write(content) if self._stream is None else self._stream.put(content)
        if taken:
            self._torn = not content[:taken].endswith(b"\n")
        lost = content[taken:].count(b"\n")
        self.lost += lost
        return lost

    def _write(self, content: bytes) -> int:
        at = 0
        try:
            while at < len(content):
                at += os.write(2, content[at:])
        except OSError:
            # The disk is full or broken: the lines are counted, and the next ones tried.
            return at
        return at
