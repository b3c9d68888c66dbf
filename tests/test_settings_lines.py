"""The line finder against tomllib: documents in every style of TOML, written by a generator that knows where it put each key."""

import tomllib
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from poold.settings.lines import KeyPath, dotted, key_lines, nearest

SCALARS = [
    "1",
    "0x1F",
    "inf",
    "true",
    "1979-05-27 07:32:00",
    '""',
    "''",
    '"a # no comment"',
    '"quote \\" and \\\\"',
    "'[fake]'",
    '"""\nfake = 1\n[fake]\n"""',
    "'''\nfake = \"\"\"\n'''",
    '""""two quotes"" inside, two at the end"""""',
    "'''one quote at the end''''",
    '"""escaped \\""" and \\\n   folded"""',
    '""""""',
]
TAILS = ["\n", "  # comment with [ = ' and \"\n", "\n\n", "\r\n", "\n# [not.a.table]\n# no = 1\n"]
KEYS = st.one_of(
    st.text("abz019_-", min_size=1, max_size=5),
    st.text("a.#[]= '\"\\é\n\t", max_size=4),
)


class Writer:
    """Writes a document and notes the line of every path on the way."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.text = ""
        self.lines: dict[KeyPath, int] = {}

    def mark(self, path: KeyPath) -> None:
        """Note that the next thing written is what stands at this path."""
        self.lines.setdefault(path, self.text.count("\n") + 1)

    def pick(self, *choices: str) -> str:
        """Draw one of some texts."""
        return self.draw(st.sampled_from(choices))

    def count(self, most: int) -> int:
        """Draw a number from 0."""
        return self.draw(st.integers(0, most))

    def keys(self, most: int) -> list[str]:
        """Draw some different keys."""
        return self.draw(st.lists(KEYS, max_size=most, unique=True))

    def spell(self, key: str) -> str:
        """Draw one of the ways in which TOML can write a key."""
        ways = ['"' + "".join(f"\\u{ord(c):04X}" if c in '"\\\n' else c for c in key) + '"']
        if key and key.isascii() and key.replace("_", "").replace("-", "").isalnum():
            ways.append(key)
        if "'" not in key and "\n" not in key:
            ways.append(f"'{key}'")
        return self.pick(*ways)

    def value(self, path: KeyPath, depth: int) -> None:
        """Write a scalar, an array or an inline table."""
        kind = self.count(5) if depth else 0
        if kind == 5:
            self.array(path, depth - 1)
        elif kind == 4:
            self.inline(path, depth - 1)
        else:
            self.text += self.pick(*SCALARS)

    def array(self, path: KeyPath, depth: int) -> None:
        """Write an array over one line or many."""
        self.text += "["
        for index in range(self.count(3)):
            self.text += self.pick("", " ", "\n  ", " # ] }\n")
            self.mark((*path, index))
            self.value((*path, index), depth)
            self.text += self.pick(",", " ,", "\n,\n")
        self.text += self.pick("", "\n") + "]"

    def inline(self, path: KeyPath, depth: int) -> None:
        """Write an inline table; only its values may break the line."""
        self.text += "{"
        for index, key in enumerate(self.keys(3)):
            self.text += ", " if index else " "
            self.mark((*path, key))
            self.text += self.spell(key) + self.pick("=", " = ")
            self.value((*path, key), depth)
        self.text += self.pick("}", " }")

    def table(self, header: str, path: KeyPath, depth: int) -> None:
        """Write what a table holds: keys, dotted keys, then tables and arrays of tables with headers of their own."""
        keys = self.keys(6)
        cut = self.count(len(keys)) if depth else len(keys)
        for key in keys[:cut]:
            self.assignment(path, key)
        for key in keys[cut:]:
            name = header + self.pick(".", " . ") + self.spell(key) if header else self.spell(key)
            if self.count(1):
                for index in range(1 + self.count(2)):
                    self.header("[[", name, "]]", path=(*path, key), index=index)
                    self.table(name, (*path, key, index), depth - 1)
            else:
                self.header("[", name, "]", path=(*path, key))
                self.table(name, (*path, key), depth - 1)

    def assignment(self, path: KeyPath, key: str) -> None:
        """Write `key = value` or `key.more = value`."""
        self.text += self.pick("", "\t")
        self.mark((*path, key))
        self.text += self.spell(key)
        path = (*path, key)
        for more in self.keys(2):
            path = (*path, more)
            self.mark(path)
            self.text += self.pick(".", " . ") + self.spell(more)
        self.text += self.pick("=", " = ")
        self.value(path, 3)
        self.text += self.pick(*TAILS)

    def header(self, opening: str, name: str, closing: str, *, path: KeyPath, index: int | None = None) -> None:
        """Write a header and note its table."""
        self.mark(path)
        if index is not None:
            self.mark((*path, index))
        self.text += opening + name + closing + self.pick(*TAILS)


@st.composite
def documents(draw: st.DrawFn) -> tuple[str, dict[KeyPath, int]]:
    """Return a TOML text and the line of each of its paths."""
    writer = Writer(draw)
    writer.text += writer.pick("", "# comment\n\n")
    writer.table("", (), 3)
    return writer.text, writer.lines


def paths(value: Any, path: KeyPath = ()) -> set[KeyPath]:
    """Return the path of everything inside of a parsed document."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = {path} if path else set()
    return found.union(*(paths(entry, (*path, key)) for key, entry in inner))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(documents())
def test_every_path_of_a_document_has_its_line(document: tuple[str, dict[KeyPath, int]]) -> None:
    """Every path that tomllib finds in a document is located on the line where it was written first."""
    text, expected = document
    assert set(expected) == paths(tomllib.loads(text))
    assert expected == key_lines(text)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(documents())
def test_the_line_of_a_bare_key_contains_it(document: tuple[str, dict[KeyPath, int]]) -> None:
    """The line that is named for a key holds the key itself, when nothing in it needs an escape."""
    text, _ = document
    rows = text.split("\n")
    for path, line in key_lines(text).items():
        key = path[-1]
        if isinstance(key, str) and not set(key) & set('"\\\n'):
            assert key in rows[line - 1]


EXAMPLE = """\
[server] # 1
user = "joe" # 2
[server.options] # 3
limits = { a = 1, b = [ # 4
  2, # 5
] } # 6
[[listener]] # 7
address = "a" # 8
[[listener]] # 9
"address" = "b" # 10
'tls'.key = "c" # 11
[listener.more] # 12
"""


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("server", "user"), 2),
        (("server", "group"), 1),
        (("server", "options", "limits", "b"), 4),
        (("server", "options", "limits", "b", 0), 5),
        (("listener",), 7),
        (("listener", 0, "name"), 7),
        (("listener", 1, "address"), 10),
        (("listener", 1, "tls", "key"), 11),
        (("listener", 1, "more", "x"), 12),
        (("listener", 2), 7),
        (("pool", "max_children"), None),
        ((), None),
    ],
)
def test_a_key_that_is_not_there_has_the_line_of_what_is_around(path: KeyPath, line: int | None) -> None:
    """A path is located where it stands, else at the closest table around it, else nowhere."""
    assert line == nearest(key_lines(EXAMPLE), path)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (("pool", "max_children"), "pool.max_children"),
        (("listener", 1, "address"), "listener[2].address"),
        (("server", "environment", "A B"), 'server.environment."A B"'),
        (("a.b", 'q"\\'), '"a.b"."q\\u0022\\u005c"'),
        (("a", 0, 1), "a[1][2]"),
        (("", "\n\x1b"), '""."\\u000a\\u001b"'),
        ((), ""),
    ],
)
def test_a_path_is_shown_as_an_operator_writes_it(path: KeyPath, text: str) -> None:
    """Keys are joined by dots and quoted where TOML asks for it, and positions count from 1."""
    assert text == dotted(path)


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=5), min_size=1, max_size=4))
def test_a_shown_path_is_valid_toml(keys: list[str]) -> None:
    """A path of keys, as it is shown, is a dotted key that means the same path."""
    tree: Any = tomllib.loads(f"{dotted(tuple(keys))} = 1")
    for key in keys:
        tree = tree[key]
    assert tree == 1


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * 200 + "]" * 200,
        'a = """' + 'x"' * 300_000 + '"""',
        "a = '" + "x" * 500_000 + "'",
        "# only a comment",
        "",
        "a = 1",
        "a.b.c = 1\r\n[d]\r\n",
    ],
)
def test_odd_texts_are_scanned_to_their_end(text: str) -> None:
    """Depth, size and a missing last newline trouble the scanner as little as they do tomllib."""
    tomllib.loads(text)
    assert max(key_lines(text).values(), default=0) <= text.count("\n") + 1
