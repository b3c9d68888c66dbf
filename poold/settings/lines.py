"""Where the keys of a TOML text stand: the line of every key path.

tomllib tells what a key holds and does not tell its line. `key_lines` reads a text that tomllib has
accepted, so the patterns below need not check the rules of TOML. For any other text the result of
`key_lines` means nothing.

A path is a tuple of keys and, inside arrays, of positions from 0: `("listener", 1, "address")` is
the key `address` of the second `[[listener]]`. Operators read positions from 1 (`dotted`).
"""

import re
import tomllib
from collections.abc import Iterator, Mapping
from itertools import count

KeyPath = tuple[str | int, ...]
# A place, and what is wrong there.
Finding = tuple[KeyPath, str]

# The time that tomllib takes for a dotted key grows with the square of its parts.
KEY_PARTS_MAX = 40
# A path costs memory for each of its parts. A deeper key gets the line of a table around it.
_DEPTH_MAX = 32

_SPACE = r"[ \t]*"
_COMMENT = r"#[^\n]*"
_WORD = r"[A-Za-z0-9_-]++"
_SHORT = r'"(?!"")[^"\\\n]*(?:\\.[^"\\\n]*)*"' + r"|'(?!'')[^'\n]*'"
# One or two quotes before the three that end a long text belong to the text (toml.io, v1.0.0).
_LONG = r'"""[^"\\]*(?:(?:\\(?s:.)|"(?!""))[^"\\]*)*"{3,5}' + r"|'''[^']*(?:'(?!'')[^']*)*'{3,5}"
_PART = rf"(?:{_WORD}|{_SHORT})"
_KEY = rf"(?P<key>{_PART}(?:{_SPACE}\.{_SPACE}{_PART})*){_SPACE}"
# Outside of arrays and inline tables stands `[table]`, `[[array]]` or `key =`.
_STATEMENT = re.compile(rf"(?:\s|{_COMMENT})*+(?P<header>\[\[?)?{_SPACE}{_KEY}[\]=]+{_SPACE}")
# Inside stands the end, the `key =` of an inline table, or a value of an array.
_MEMBER = re.compile(rf"(?:[\s,]|{_COMMENT})*+(?:(?P<end>[\]}}])|{_KEY}={_SPACE})?")
_VALUE = re.compile(rf"(?P<opening>[\[{{])|{_LONG}|{_SHORT}|[^,\]}}#\n]*")
_PARTS = re.compile(_PART)
# The last pattern is for a quote that nothing closes: tomllib refuses the text from there on.
_ENDLESS_KEY = re.compile(
    rf"(?P<endless>(?:{_PART}{_SPACE}\.{_SPACE}){{{KEY_PARTS_MAX}}})"
    rf"|{_COMMENT}|{_LONG}|{_SHORT}|{_WORD}|[^#\"'A-Za-z0-9_-]+|(?s:.+)"
)


def key_lines(text: str) -> Mapping[KeyPath, int]:
    """Return the line, from 1, of every key, table and array element. tomllib accepts the text.

    A table has the line of its first header, or of the first dotted key that names the table.
    """
    lines: dict[KeyPath, int] = {}
    newest: dict[KeyPath, int] = {}  # the position of the latest table of each [[array]]
    table: KeyPath = ()
    unclosed: list[tuple[KeyPath, Iterator[int]]] = []  # arrays and inline tables: path, positions
    at, line = 0, 1
    while at < len(text) and (step := (_MEMBER if unclosed else _STATEMENT).match(text, at)):
        line += text.count("\n", at, step.end())
        at = step.end()
        if step.lastgroup == "end":
            unclosed.pop()
            continue
        header = step.groupdict().get("header")
        path, positions = unclosed[-1] if unclosed else (() if header else table, count())
        parts: list[str | int] = _parts(step["key"]) if step["key"] else [next(positions)]
        for path in _paths(path, parts, newest, append=header == "[["):  # noqa: B020 -- ends as the last one
            lines.setdefault(path[:_DEPTH_MAX], line)
        if header:
            table = path
        elif value := _VALUE.match(text, at):
            line += text.count("\n", at, value.end())
            at = value.end()
            if value["opening"]:
                unclosed.append((path, count()))
    return lines


def _parts(key: str) -> list[str | int]:
    """Return the parts of a dotted key without their quotes and escapes."""
    return [str(tomllib.loads(f"key = {part}")["key"]) if part[0] in "\"'" else part for part in _PARTS.findall(key)]


def _paths(path: KeyPath, parts: list[str | int], newest: dict[KeyPath, int], *, append: bool) -> Iterator[KeyPath]:
    """Yield the path of each part of a key, and of the latest table of each array on the way.

    With `append` the last part names an array, which gets one table more.
    """
    for left, part in enumerate(parts, 1 - len(parts)):
        path = (*path, part)
        yield path
        if append and left == 0:
            newest[path] = newest.get(path, -1) + 1
        if path in newest:
            path = (*path, newest[path])
            yield path


def endless_key(text: str) -> int | None:
    """Return the line of the first key of more than KEY_PARTS_MAX parts; None if there is none.

    Any text will do, and the time grows with its size alone.
    """
    endless = (step.start() for step in _ENDLESS_KEY.finditer(text) if step["endless"])
    return next((text.count("\n", 0, start) + 1 for start in endless), None)


def nearest(lines: Mapping[KeyPath, int], path: KeyPath) -> int | None:
    """Return the line of a path, or of the closest table around a path that is not written.

    None means that no table around the path is written either.
    """
    return next((lines[path[:length]] for length in range(len(path), 0, -1) if path[:length] in lines), None)


def dotted(path: KeyPath) -> str:
    """Return a path as an operator writes one: dots, TOML's quotes, and positions from 1."""
    words = [f"[{part + 1}]" if isinstance(part, int) else f".{_quoted(part)}" for part in path]
    return "".join(words).removeprefix(".")


def _quoted(key: str) -> str:
    """Return a key, in quotes and with escapes where TOML needs them."""
    if re.fullmatch(_WORD, key):
        return key
    return '"' + "".join(c if c.isprintable() and c not in '"\\' else _escape(c) for c in key) + '"'


def _escape(character: str) -> str:
    number = ord(character)
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"
