"""Where the keys of a TOML text stand: every key path to its line.

A scanner for text that `tomllib` has accepted already, because tomllib tells what a key holds and not where it was written.
It must never judge: for text that tomllib refuses its answer means nothing. It does not recurse, so depth cannot hurt it.

A path is a tuple of keys and, inside arrays, of positions from 0: `("listener", 1, "address")` is the key `address` of the
second `[[listener]]`. People are shown positions from 1 (`dotted`).
"""

import re
import tomllib
from bisect import bisect_left
from collections.abc import Mapping

KeyPath = tuple[str | int, ...]
# A place, and what is wrong there.
Finding = tuple[KeyPath, str]

_BLANK = re.compile(r"[ \t\r\n]*(?:#[^\n]*[ \t\r\n]*)*")
_SPACE = re.compile(r"[ \t]*")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_BARE_VALUE = re.compile(r"[^,\]}#\n]*")
_BASIC = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"')
_LITERAL = re.compile(r"'[^']*'")
# The end of a multi-line text may hold one or two quotes of the text itself: take all that are there.
_LONG_BASIC = re.compile(r'"""[^"\\]*(?:(?:\\.|"(?!""))[^"\\]*)*"{3,5}', re.DOTALL)
_LONG_LITERAL = re.compile(r"'''[^']*(?:'(?!'')[^']*)*'{3,5}")
_QUOTED = (('"""', _LONG_BASIC), ("'''", _LONG_LITERAL), ('"', _BASIC), ("'", _LITERAL))
# What a text is made of, as far as quotes and comments matter.
_WORD_OR_MARK = re.compile(r"[A-Za-z0-9_-]+|[^#\"'A-Za-z0-9_-]+")
_COMMENT = re.compile(r"#[^\n]*")
# A key of more parts than this is no settings file's, and tomllib takes a time for it that grows with their square.
KEY_PARTS_MAX = 40
_ENDLESS_KEY = re.compile(
    r"(?:(?>[A-Za-z0-9_-]+|\"[^\"\\\n]*(?:\\.[^\"\\\n]*)*\"|'[^'\n]*')[ \t]*\.[ \t]*){%d}" % KEY_PARTS_MAX  # noqa: UP031 # braces
)
# Deeper keys have the line of what is around them: a path costs memory for each of its parts.
_DEPTH_MAX = 32


def key_lines(text: str) -> Mapping[KeyPath, int]:
    """Return the line, from 1, of every key, table and array element of a text that tomllib accepts.

    A table is where its first header, or the first key written through it, is.
    """
    scanner = _Scanner(text)
    scanner.scan()
    newlines = [match.start() for match in re.finditer("\n", text)]
    return {path: bisect_left(newlines, offset) + 1 for path, offset in scanner.offsets.items()}


def nearest(lines: Mapping[KeyPath, int], path: KeyPath) -> int | None:
    """Return the line of a path or, where it was not written, of the closest table around it; None if there is none."""
    return next((lines[path[:length]] for length in range(len(path), 0, -1) if path[:length] in lines), None)


def dotted(path: KeyPath) -> str:
    """Return a path as an operator would write it: dots between keys, quotes where TOML needs them, positions from 1."""
    words = [f"[{part + 1}]" if isinstance(part, int) else f".{_key(part)}" for part in path]
    return "".join(words).removeprefix(".")


def _key(key: str) -> str:
    if _BARE_KEY.fullmatch(key):
        return key
    return '"' + "".join(c if c.isprintable() and c not in '"\\' else _escape(c) for c in key) + '"'


def _escape(character: str) -> str:
    number = ord(character)
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def endless_key(text: str) -> int | None:
    """Return the line of the first key of more than KEY_PARTS_MAX parts, None if there is none. Takes any text; linear."""
    at = 0
    while at < len(text):
        if _ENDLESS_KEY.match(text, at):
            return text.count("\n", 0, at) + 1
        for opening, pattern in (*_QUOTED, ("#", _COMMENT), ("", _WORD_OR_MARK)):
            if text.startswith(opening, at):
                match = pattern.match(text, at)
                break
        if match is None:
            # A quote that is not closed: the rest is nothing, as tomllib will say.
            return None
        at = match.end()
    return None


class _Open:
    """An array or inline table that is being read; `index` counts an array's elements and is None for a table."""

    __slots__ = ("index", "path")

    def __init__(self, path: KeyPath, *, index: int | None) -> None:
        self.path = path
        self.index = index


class _Scanner:
    """One pass over a text; `offsets` maps each path to where it was written first."""

    def __init__(self, text: str) -> None:
        self.offsets: dict[KeyPath, int] = {}
        self._text = text
        self._at = 0
        self._last: dict[KeyPath, int] = {}  # the position of the newest table of each [[array]]

    def scan(self) -> None:
        """Read the whole text, statement by statement."""
        table: KeyPath = ()
        self._skip(_BLANK)
        while self._at < len(self._text):
            if self._text[self._at] == "[":
                table = self._header()
            else:
                self._value(self._assignment(table))
            self._skip(_BLANK)

    def _skip(self, pattern: re.Pattern[str]) -> str:
        """Step over what matches here, and return it."""
        match = pattern.match(self._text, self._at)
        if match is None:
            raise ValueError("tomllib would not have accepted this text")
        self._at = match.end()
        return match.group()

    def _note(self, path: KeyPath, offset: int) -> None:
        if len(path) <= _DEPTH_MAX:
            self.offsets.setdefault(path, offset)

    def _header(self) -> KeyPath:
        """Read `[a.b]` or `[[a.b]]` and return the path of the table that it opens."""
        start = self._at
        is_array = self._text.startswith("[[", self._at)
        self._at += 2 if is_array else 1
        *tables, last = self._keys()
        self._at += 2 if is_array else 1
        path: KeyPath = ()
        for key in tables:
            path = self._newest((*path, key), start)
        path = (*path, last)
        if not is_array:
            return self._newest(path, start)
        self._last[path] = self._last.get(path, -1) + 1
        return self._newest(path, start)

    def _newest(self, path: KeyPath, offset: int) -> KeyPath:
        """Note a table; if it is an [[array]], go on to its newest element."""
        self._note(path, offset)
        if path in self._last:
            path = (*path, self._last[path])
            self._note(path, offset)
        return path

    def _assignment(self, table: KeyPath) -> KeyPath:
        """Read `a.b =` inside of a table and return the path of the value that follows."""
        start = self._at
        path = table
        for key in self._keys():
            path = (*path, key)
            self._note(path, start)
        self._at += 1
        self._skip(_SPACE)
        return path

    def _keys(self) -> list[str]:
        """Read a dotted key and the space around it."""
        keys = []
        while True:
            self._skip(_SPACE)
            keys.append(self._one_key())
            self._skip(_SPACE)
            if not self._text.startswith(".", self._at):
                return keys
            self._at += 1

    def _one_key(self) -> str:
        quote = self._text[self._at]
        if quote == "'":
            return self._skip(_LITERAL)[1:-1]
        if quote == '"':
            written = self._skip(_BASIC)
            return str(tomllib.loads(f"key = {written}")["key"]) if "\\" in written else written[1:-1]
        return self._skip(_BARE_KEY)

    def _value(self, path: KeyPath | None) -> None:
        """Read a value and, if it is an array or an inline table, all that is in it."""
        unclosed: list[_Open] = []
        while path is not None:
            opening = self._text[self._at]
            if opening in "[{":
                unclosed.append(_Open(path, index=0 if opening == "[" else None))
                self._at += 1
            else:
                self._scalar()
            path = self._next(unclosed)

    def _next(self, unclosed: list[_Open]) -> KeyPath | None:
        """Step to the next value in the innermost unclosed array or table; return its path, or None when all are closed."""
        while unclosed:
            self._skip(_BLANK)
            inner = unclosed[-1]
            character = self._text[self._at]
            if character == ",":
                self._at += 1
            elif character in "]}":
                self._at += 1
                unclosed.pop()
            elif inner.index is None:
                return self._assignment(inner.path)
            else:
                path = (*inner.path, inner.index)
                inner.index += 1
                self._note(path, self._at)
                return path
        return None

    def _scalar(self) -> None:
        for opening, pattern in (*_QUOTED, ("", _BARE_VALUE)):
            if self._text.startswith(opening, self._at):
                self._skip(pattern)
                return
