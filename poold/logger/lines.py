"""Cuts the bytes of a pipe into lines of bounded length. Makes no system call."""

from poold.log import LINE_MAX, RECORD

_RECORD = RECORD.encode()
# The most bytes of a line that is no record. Longer text is cut into pieces of this size.
PIECE_MAX = 2000


class LineBuffer:
    """Holds the bytes of one pipe that are not a whole line yet."""

    def __init__(self) -> None:
        self._partial = b""

    def feed(self, chunk: bytes) -> list[bytes]:
        """Take the next bytes. Return the lines that they complete, without line breaks.

        Empty lines are left out. A record always begins a new line, so that half a line of one
        process cannot spoil the record of another.
        """
        *lines, self._partial = (self._partial + chunk).replace(_RECORD, b"\n" + _RECORD).split(b"\n")
        found = [piece for line in lines for piece in _cut(line)]
        if len(self._partial) > _length_max(self._partial):
            *more, self._partial = _cut(self._partial)
            found += more
        return found

    def flush(self) -> list[bytes]:
        """Return the held bytes as if they were a whole line."""
        rest, self._partial = self._partial, b""
        return _cut(rest)

    @property
    def waiting(self) -> bool:
        """Return whether there is half a line."""
        return bool(self._partial)


def _length_max(line: bytes) -> int:
    return LINE_MAX if line.startswith(_RECORD) else PIECE_MAX


def _cut(line: bytes) -> list[bytes]:
    """Cut a line that is too long, between two characters if the line is UTF-8."""
    if len(line) <= _length_max(line):
        return [line] if line else []
    pieces = []
    while len(line) > PIECE_MAX:
        at = next((at for at in range(PIECE_MAX, PIECE_MAX - 4, -1) if line[at] & 0xC0 != 0x80), PIECE_MAX)
        pieces.append(line[:at])
        line = line[at:]
    return [*pieces, line]
