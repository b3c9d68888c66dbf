"""What the chat computes without touching the world: names, lines, harmless text, a slow client's queue, the rate.

Nothing here makes a system call or reads a clock. The one thing a reader would not guess: what is held for a client is held
as whole lines, so that what has to be dropped is dropped as whole lines and can be counted.
"""

from collections import deque
from unicodedata import normalize

# Bytes of a file name, of which every Linux file system takes 255. A dot is not among the plain ones: no name is "..".
PLAIN = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")
FILE_NAME_MAX = 255

SE, SB, WILL, DONT, IAC = 0xF0, 0xFA, 0xFB, 0xFE, 0xFF
# Zero-width joiners look like control characters, but Persian, Hindi and many emoji are not written right without them.
JOINERS = "\u200c\u200d"
UNSHOWN = "\ufffd"
# The letters that have no shape of their own (Unicode, Default_Ignorable_Code_Point): what else is not seen is no letter.
BLANK_LETTERS = frozenset("\u115f\u1160\u3164\uffa0")

# As much as a TLS record holds; what is being sent is beyond recall, so it should be little.
CHUNK = 16384


def encode(name: str) -> str:
    """Return a name as a file name: letters and digits of ASCII, - and _ as they are, every other byte of UTF-8 as %XX."""
    return "".join(chr(byte) if byte in PLAIN else f"%{byte:02X}" for byte in name.encode())


def decode(file_name: str) -> str:
    """Return the name that `encode` made this file name of."""
    head, *escaped = file_name.split("%")
    return b"".join([head.encode(), *(bytes.fromhex(part[:2]) + part[2:].encode() for part in escaped)]).decode()


def common_form(name: str) -> str:
    """Return a name in the one form it is kept in, whatever form its letters came in (Unicode Standard Annex 15, NFKC)."""
    return normalize("NFKC", name)


def key(name: str) -> str:
    """Return the file name that is the same for all names that differ in upper and lower case or in the form of their letters only.

    This is the Unicode Standard's compatibility caseless match (definition D146), in which a letter may have to be folded twice; composed
    at the end, which is shorter.
    """
    folded = normalize("NFD", name).casefold()
    return encode(normalize("NFKC", normalize("NFKC", folded).casefold()))


def name_problem(name: str, most: int) -> str | None:
    """Say what is wrong with the name of a member or a room in its common form, None where nothing is.

    Nothing that a letter or a digit is not can be in it: no mark, no space, nothing that is not seen or that turns others round.
    """
    if not name or len(name) > most or len(encode(name)) > FILE_NAME_MAX or len(key(name)) > FILE_NAME_MAX:
        return f"A name has 1 to {most} characters."
    if not name[0].isalnum() or not all(letter.isalnum() or letter in "-_." for letter in name) or BLANK_LETTERS.intersection(name):
        return "A name has letters, digits, - _ and . only, and begins with a letter or a digit."
    return None


def clean(line: bytes) -> str:
    """Return a client's line as text that can do no harm on anybody's terminal, without its end of line."""
    text = without_telnet(line).decode("utf-8", "replace")
    if not text.isprintable():
        text = "".join(map(_shown, text))
    return text.rstrip()


def _shown(letter: str) -> str:
    if letter == "\t":
        return " "
    if letter < " " or "\x7f" <= letter <= "\x9f":
        return ""
    if letter.isprintable() or letter in JOINERS:
        return letter
    return " " if letter.isspace() else UNSHOWN


def without_telnet(line: bytes) -> bytes:
    """Return the line without the commands of RFC 854, which no UTF-8 text can contain."""
    kept = bytearray()
    begin = 0
    while (at := line.find(IAC, begin)) >= 0:
        kept += line[begin:at]
        begin = _end_of_command(line, at)
    return bytes(kept) + line[begin:]


def _end_of_command(line: bytes, at: int) -> int:
    command = line[at + 1] if at + 1 < len(line) else 0
    if command == SB:
        end = line.find(bytes((IAC, SE)), at)
        return end + 2 if end >= 0 else len(line)
    if WILL <= command <= DONT:
        return at + 3
    return at + 2 if command >= SE else at + 1


def fit(text: str, most: int) -> bytes:
    """Return the text in UTF-8, cut between two characters where it has more than `most` bytes."""
    data = text.encode()
    return data if len(data) <= most else data[:most].decode("utf-8", "ignore").encode()


class LineSplitter:
    """Cuts what a client sends into lines of at most `most` bytes, and holds no more than one of them."""

    __slots__ = ("_most", "_skipping", "_tail")

    def __init__(self, most: int) -> None:
        self._most = most
        self._tail = b""
        self._skipping = False

    def feed(self, data: bytes) -> list[tuple[bytes, bool]]:
        """Return the lines that `data` completes, each with whether it was cut; what follows a cut is skipped to its newline."""
        found: list[tuple[bytes, bool]] = []
        *ended, rest = data.split(b"\n")
        for piece in ended:
            self._add(piece, found)
            if not self._skipping:
                found.append((self._tail, False))
            self._tail, self._skipping = b"", False
        self._add(rest, found)
        return found

    def finish(self) -> list[tuple[bytes, bool]]:
        """Return the last line, which has no newline, if there is one."""
        last, self._tail = self._tail, b""
        return [(last, False)] if last else []

    def _add(self, piece: bytes, found: list[tuple[bytes, bool]]) -> None:
        if self._skipping:
            return
        self._tail += piece
        if len(self._tail) > self._most:
            found.append((self._tail[: self._most], True))
            self._tail, self._skipping = b"", True


class Backlog:
    """The lines a client has yet to take: at most `most` bytes of them, beside one chunk that is being sent.

    `lost` counts the lines that were dropped, the oldest first, since the client was last told.
    """

    __slots__ = ("_chunk", "_lines", "_most", "_size", "lost")

    def __init__(self, most: int) -> None:
        self._most = most
        self._lines: deque[bytes] = deque()
        self._size = 0
        self._chunk = b""
        self.lost = 0

    def add(self, line: bytes) -> None:
        """Queue one line, its newline included."""
        self._lines.append(line)
        self._size += len(line)
        while self._size > self._most:
            self._size -= len(self._lines.popleft())
            self.lost += 1

    def chunk(self) -> bytes:
        """Return what to send next, empty if nothing; it stays the same until `sent` is told of some of it."""
        if not self._chunk:
            pieces = [f"*** {self.lost} line{'s' * (self.lost > 1)} lost: you read too slowly.\n".encode()] if self.lost else []
            self.lost = 0
            size = 0
            while self._lines and size < CHUNK:
                pieces.append(self._lines.popleft())
                size += len(pieces[-1])
            self._size -= size
            self._chunk = b"".join(pieces)
        return self._chunk

    def sent(self, count: int) -> None:
        """Forget the first `count` bytes of the chunk."""
        self._chunk = self._chunk[count:]

    def __bool__(self) -> bool:
        return bool(self._chunk or self._lines or self.lost)


class Bucket:
    """A token bucket: `rate` lines a second, up to `burst` at once; a rate of 0 lets everything through."""

    __slots__ = ("_at", "_burst", "_level", "_rate", "_told")

    def __init__(self, rate: int, burst: int, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._level = float(burst)
        self._at = now
        self._told = False

    def take(self, now: float) -> bool:
        """Say whether one more line may pass."""
        self._level = min(self._burst, self._level + (now - self._at) * self._rate)
        self._at = now
        if self._level >= self._burst / 2:
            self._told = False
        if self._rate and self._level < 1:
            return False
        self._level -= 1
        return True

    def notice_due(self) -> bool:
        """Say, once in a flood, that its client should be told; a flood is over when the bucket is half full again."""
        due, self._told = not self._told, True
        return due
