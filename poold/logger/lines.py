"""From bytes in chunks to lines: pure. Bounded, whatever comes."""

from poold.log import LINE_MAX, RECORD

_RECORD = RECORD.encode()
# Text without a line break is told in pieces of this size.
PIECE = 2000


class Lines:
    """What has come of one pipe and is not a whole line yet."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, chunk: bytes) -> list[bytes]:
        """Take the next bytes and return the lines that they complete, without their ends; empty ones are left out.

        A record begins a line, whatever stood before it: who left half a line cannot spoil another's record.
        """
        *lines, self._rest = (self._rest + chunk).replace(_RECORD, b"\n" + _RECORD).split(b"\n")
        found = [piece for line in lines for piece in _pieces(line)]
        if len(self._rest) > _longest(self._rest):
            *more, self._rest = _pieces(self._rest)
            found += more
        return found

    def flush(self) -> list[bytes]:
        """Return what has come so far as if it were a line."""
        rest, self._rest = self._rest, b""
        return _pieces(rest)

    @property
    def waiting(self) -> bool:
        """Say whether there is half a line."""
        return bool(self._rest)


def _longest(line: bytes) -> int:
    return LINE_MAX if line.startswith(_RECORD) else PIECE


def _pieces(line: bytes) -> list[bytes]:
    """Cut a line that is too long, not within a character of UTF-8 where that can be avoided."""
    if len(line) <= _longest(line):
        return [line] if line else []
    pieces = []
    while len(line) > PIECE:
        at = next((at for at in range(PIECE, PIECE - 4, -1) if line[at] & 0xC0 != 0x80), PIECE)
        pieces.append(line[:at])
        line = line[at:]
    return [*pieces, line]
