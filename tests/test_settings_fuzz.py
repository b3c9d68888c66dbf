"""Whatever bytes the settings are, or a trial's verdict is: an answer of the known form comes back, and it comes back soon."""

import json
import os
import random
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from poold.errors import Problem
from poold.master.change import trials
from poold.master.children.exits import Exit
from poold.master.children.spawn import memory_file
from poold.master.children.table import Child
from poold.settings import judge
from poold.settings.config import People, of_document
from poold.settings.judge import PROBLEMS_MAX
from poold.settings.lines import KEY_PARTS_MAX, endless_key
from poold.words import Kind

REPOSITORY = Path(__file__).parent.parent
FILE = REPOSITORY / "poold.toml"
REFERENCE = FILE.read_bytes()
# Far above what any of it takes, and far below what a growth with the square of the size would.
SOON = 60.0

# All keys of the reference, as if they were no comments.
EVERYTHING = b"\n".join(
    line[1:] if line.startswith(b"#") and b" = " in line and line[1:2] != b" " else line for line in REFERENCE.splitlines()
)
SCRAPS = [
    b"[",
    b"]",
    b"[[",
    b"]]",
    b'"',
    b"'",
    b'"""',
    b"'''",
    b"=",
    b".",
    b",",
    b"{",
    b"}",
    b"\\",
    b"#",
    b"\n",
    b"\r",
    b"\0",
    b"\xff",
    b"1e999",
    b"-1",
]
SCRAPS += [b"0x" + b"f" * 40, b"nan", b"true", b"1979-05-27", b"[server]\n", b"[[listener]]\n", b"a.b.c.d = 1\n", "é\u2028".encode()]


def verdict(data: bytes, file: Path | None = FILE) -> dict[str, Any]:
    """Judge, and check the form of the verdict, which crosses as JSON."""
    begun = time.monotonic()
    found: dict[str, Any] = json.loads(json.dumps(judge.verdict(data, file, environ={"PATH": "/bin"})))
    assert time.monotonic() - begun < SOON
    if "problems" in found:
        assert found["problems"]
        assert len(found["problems"]) <= PROBLEMS_MAX + 1
        lines = data.count(b"\n") + 1
        for problem in found["problems"]:
            assert problem.keys() == {"key", "message", "line"}
            assert problem["line"] is None or 1 <= problem["line"] <= lines
            assert problem["message"]
            assert str(Problem(**problem)).isprintable()
    else:
        of_document(found["settings"])
        People(**found["people"])
        assert all(isinstance(text, str) for text in found["warnings"])
    return found


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """Return a settings file that was cut, shuffled, repeated, or written over here and there."""
    data = bytearray(draw(st.sampled_from([REFERENCE, EVERYTHING])))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(data)))
        length = draw(st.integers(0, 60))
        match draw(st.sampled_from(["cut", "remove", "insert", "replace", "repeat", "shuffle"])):
            case "cut":
                del data[at:]
            case "remove":
                del data[at : at + length]
            case "insert":
                data[at:at] = draw(st.one_of(st.sampled_from(SCRAPS), st.binary(max_size=8)))
            case "replace":
                data[at : at + length] = draw(st.sampled_from(SCRAPS))
            case "repeat":
                data[at:at] = data[at : at + length] * draw(st.integers(1, 5))
            case "shuffle":
                lines = bytes(data).splitlines(keepends=True)
                random.Random(draw(st.integers())).shuffle(lines)
                data = bytearray(b"".join(lines))
    return bytes(data)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(mutated())
def test_a_file_that_was_damaged(data: bytes) -> None:
    """A settings file that was damaged anywhere is good, or is refused with problems whose lines are its own."""
    verdict(data)


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.binary(max_size=200), st.lists(st.sampled_from(SCRAPS), max_size=40).map(b"".join)), st.booleans())
def test_bytes(data: bytes, named: bool) -> None:
    """No bytes make the judge fail in a way of its own, with a file or without one."""
    verdict(data, FILE if named else None)


def test_every_key_that_is_written_out_is_good() -> None:
    """The reference with every default written out is what it is without."""
    here, there = verdict(EVERYTHING), verdict(REFERENCE)
    assert here["settings"] == there["settings"]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("tables", b"".join(b"[a%d]\n" % number for number in range(100_000))),
        ("keys", b"[pool]\n" + b"".join(b"k%d=1\n" % number for number in range(100_000))),
        ("listeners", b"[[listener]]\n" * 80_000),
        ("options", b"[server]\nhandler='a:b'\n[server.options]\n" + b"".join(b"k%d=1979-05-27\n" % number for number in range(50_000))),
        ("dots", b"a." * 520_000 + b"a = 1"),
        ("header of dots", b"[" + b"a." * 520_000 + b"a]"),
        ("quoted dots", b'"a".' * 260_000 + b"a = 1"),
        ("inline dots", b"x = { " + b"a. " * 340_000 + b"a = 1 }"),
        ("many long keys", b"".join(b"k%d" % number + b".a" * 39 + b" = 1\n" for number in range(11_000))),
        ("lists", b"x = " + b"[" * 500_000),
        ("closed lists", b"x = " + b"[" * 500_000 + b"]" * 500_000),
        ("inline tables", b"x = " + b"{a=" * 300_000),
        ("quotes", b'"' * 1_000_000),
        ("escapes", b'x = "' + b'\\"' * 500_000),
        ("escapes outside", b'\\"' * 500_000),
        ("single quotes", b"'''" + b"''x" * 300_000),
        ("digits", b"x = " + b"1" * 1_000_000),
        ("hexadecimal", b"[pool]\nmax_children = 0x" + b"f" * 1_000_000),
        ("one name", b"[server]\nhandler = '" + b"a" * 1_000_000 + b":b'"),
        ("comments", b"#\n" * 500_000),
    ],
)
def test_large_and_nasty(name: str, data: bytes) -> None:
    """A file of the greatest size is judged soon, whatever it is full of, and the master can read all of the verdict."""
    assert len(data) <= 1 << 20, name
    assert len(json.dumps(verdict(data))) <= trials.VERDICT_MAX


TOKENS = st.sampled_from(
    ["a", "a-1", '"q.u.o.t.e.d"', "'l'", ".", " . ", "\n", "=", "[", "]", "#", '"', "'", '"""', "'''", "\\", " ", "1.5", "é"]
)


@given(st.lists(TOKENS, max_size=200).map("".join))
def test_no_ordinary_key_is_endless(text: str) -> None:
    """Only dots that join more parts than a key may have make an endless key; where they are quoted or commented on does not matter."""
    parts = ".".join(["a"] * (KEY_PARTS_MAX + 1))
    found = endless_key(text)
    assert (found is None) or text.count(".") >= KEY_PARTS_MAX
    assert endless_key(f"x = 1\n{parts} = 1") == 2
    for quoted in (f'x = "{parts}"', f"x = '{parts}'", f'x = """\n{parts}\n"""', f"x = '''\n{parts}\n'''", f"# {parts}"):
        assert endless_key(f"{quoted}\ny = 1\n") is None


# A trial's verdict, as the master reads it.

JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.sampled_from(["problems", "key", "message", "line", "settings", "people", "warnings", "x"]), inner, max_size=4),
    ),
    max_leaves=12,
)


def read(data: bytes, status: int = 0) -> tuple[Any, list[Problem]]:
    """Return what the master makes of what a trial has written down."""
    fd = memory_file("verdict", data)
    try:
        return trials._read_verdict(fd, Child(0, 1, Kind.TRIAL, 1, 0.0), Exit(2, status, None))
    finally:
        os.close(fd)


@settings(deadline=None)
@given(st.one_of(JSON.map(lambda value: json.dumps(value).encode()), st.binary(max_size=100)), st.sampled_from([0, 1, -9]))
def test_any_verdict_is_read(data: bytes, status: int) -> None:
    """Whatever a trial has written, the master has a document to look into, or problems that can be told."""
    found, problems = read(data, status)
    assert isinstance(found, dict)
    assert all(isinstance(str(problem), str) for problem in problems)
    assert found or problems or data.strip() == b"{}"


@pytest.mark.parametrize("data", [b"[" * 1_000_000, b'{"problems":' * 200_000, b"", b"{}", b"1" * 10_000])
def test_nasty_verdicts(data: bytes) -> None:
    """A verdict that is no JSON, or nested without an end, is a problem like any other; one that says nothing says nothing."""
    found, problems = read(data)
    assert (found == {} and bool(problems)) or data == b"{}"
