"""The computations of the chat: names, lines, safe text, a slow client's queue, the rate.

Nothing here makes a system call or reads a clock. A client's queue holds whole lines, so that
dropped lines can be counted.
"""

from collections import deque
from unicodedata import normalize

# The bytes that a file name holds unescaped. A dot is escaped, so that no name is "..". Every Linux
# file system takes names of 255 bytes.
PLAIN_BYTES = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")
FILE_NAME_MAX = 255

SE, SB, WILL, DONT, IAC = 0xF0, 0xFA, 0xFB, 0xFE, 0xFF
# Zero-width joiners count as unprintable, but Persian, Hindi and many emoji need them.
JOINERS = "\u200c\u200d"
UNSHOWN = "\ufffd"
# The only letters without a visible shape (Unicode, Default_Ignorable_Code_Point).
BLANK_LETTERS = frozenset("\u115f\u1160\u3164\uffa0")

# The most bytes of one send, as many as a TLS record holds. Lines in a chunk can no longer be
# dropped, so a chunk is small.
CHUNK_SIZE = 16384


def encode(name: str) -> str:
    """Return a name as a file name.

    ASCII letters and digits, - and _ stay. Every other byte of UTF-8 becomes %XX.
    """
    return "".join(chr(byte) if byte in PLAIN_BYTES else f"%{byte:02X}" for byte in name.encode())


def decode(file_name: str) -> str:
    """Return the name from which `encode` has made this file name."""
    head, *escaped = file_name.split("%")
    return b"".join([head.encode(), *(bytes.fromhex(part[:2]) + part[2:].encode() for part in escaped)]).decode()


def common_form(name: str) -> str:
    """Return a name in the one form in which names are kept (Unicode Standard Annex 15, NFKC)."""
    return normalize("NFKC", name)


def name_key(name: str) -> str:
    """Return one file name for all names that differ only in case or in the form of their letters.

    This is the compatibility caseless match of the Unicode Standard (definition D146). A letter may
    have to be folded twice. The result is composed at the end, because that is shorter.
    """
    folded = normalize("NFD", name).casefold()
    return encode(normalize("NFKC", normalize("NFKC", folded).casefold()))


def name_problem(name: str, length_max: int) -> str | None:
    """Return the problem of a name of a member or a room, or None. The name has its common form.

    A name holds letters, digits, - _ and . only. Marks, spaces, invisible characters and characters
    that change the direction of text are refused.
    """
    if not name or len(name) > length_max or len(encode(name)) > FILE_NAME_MAX or len(name_key(name)) > FILE_NAME_MAX:
        return f"A name has 1 to {length_max} characters."
    if not name[0].isalnum() or not all(letter.isalnum() or letter in "-_." for letter in name) or BLANK_LETTERS.intersection(name):
        return "A name has letters, digits, - _ and . only, and begins with a letter or a digit."
    return None


def clean_line(line: bytes) -> str:
    """Return a client's line as text that no terminal takes for a command, without its line end."""
    text = without_telnet(line).decode("utf-8", "replace")
    if not text.isprintable():
        text = "".join(map(_shown_letter, text))
    return text.rstrip()


def _shown_letter(letter: str) -> str:
    if letter == "\t":
        return " "
    if letter < " " or "\x7f" <= letter <= "\x9f":
        return ""
    if letter.isprintable() or letter in JOINERS:
        return letter
    return " " if letter.isspace() else UNSHOWN


def without_telnet(line: bytes) -> bytes:
    """Return the line without telnet commands (RFC 854), whose bytes no UTF-8 text contains."""
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


def encode_within(text: str, size_max: int) -> bytes:
    """Return the text in UTF-8, cut between two characters to at most `size_max` bytes."""
    data = text.encode()
    return data if len(data) <= size_max else data[:size_max].decode("utf-8", "ignore").encode()


class LineSplitter:
    """Cuts a client's bytes into lines of at most `size_max` bytes. Holds at most one line."""

    __slots__ = ("_size_max", "_skipping", "_tail")

    def __init__(self, size_max: int) -> None:
        self._size_max = size_max
        self._tail = b""
        self._skipping = False

    def feed(self, data: bytes) -> list[tuple[bytes, bool]]:
        """Return the lines that `data` completes, each with a flag: whether the line was cut.

        The rest of a cut line is dropped up to the newline.
        """
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
        """Return the last line, if it has no newline, else nothing."""
        last, self._tail = self._tail, b""
        return [(last, False)] if last else []

    def _add(self, piece: bytes, found: list[tuple[bytes, bool]]) -> None:
        if self._skipping:
            return
        self._tail += piece
        if len(self._tail) > self._size_max:
            found.append((self._tail[: self._size_max], True))
            self._tail, self._skipping = b"", True


class Backlog:
    """The lines that wait for a client: at most `size_max` bytes, besides one chunk.

    The chunk is being sent. Beyond the bound the oldest lines are dropped. `lost` counts the
    dropped lines that the client was not told of yet.
    """

    __slots__ = ("_chunk", "_lines", "_size", "_size_max", "lost")

    def __init__(self, size_max: int) -> None:
        self._size_max = size_max
        self._lines: deque[bytes] = deque()
        self._size = 0
        self._chunk = b""
        self.lost = 0

    def add(self, line: bytes) -> None:
        """Queue one line, its newline included."""
        self._lines.append(line)
        self._size += len(line)
        while self._size > self._size_max:
            self._size -= len(self._lines.popleft())
            self.lost += 1

    def chunk(self) -> bytes:
        """Return the bytes to send next, the same until `sent` is called. Empty: none."""
        if not self._chunk:
            pieces = [f"*** {self.lost} line{'s' * (self.lost > 1)} lost: you read too slowly.\n".encode()] if self.lost else []
            self.lost = 0
            size = 0
            while self._lines and size < CHUNK_SIZE:
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
    """A token bucket: `rate` lines a second, up to `burst` at once. Rate 0: each line passes."""

    __slots__ = ("_burst", "_level", "_notice_given", "_rate", "_updated_at")

    def __init__(self, rate: int, burst: int, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._level = float(burst)
        self._updated_at = now
        self._notice_given = False

    def take(self, now: float) -> bool:
        """Return whether one more line may pass."""
        self._level = min(self._burst, self._level + (now - self._updated_at) * self._rate)
        self._updated_at = now
        if self._level >= self._burst / 2:
            self._notice_given = False
        if self._rate and self._level < 1:
            return False
        self._level -= 1
        return True

    def notice_due(self) -> bool:
        """Return True once in a flood: the client is to be told of the limit.

        A flood is over when the bucket is half full again.
        """
        due, self._notice_given = not self._notice_given, True
        return due
