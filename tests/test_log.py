"""Log lines: one record is one line, whatever is in it, and nobody waits for it."""

import contextlib
import errno
import io
import json
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from poold import stream
from poold.log import FIELD_MAX, LIMITED, LINE_MAX, RECORD, WINDOW, Log, escaped, printable
from poold.stream import PATIENCE, LogStream

LEVELS = ("debug", "info", "warning", "error")
ANY = st.text(st.characters(exclude_categories=()), max_size=1000)
VALUES = ANY | st.integers() | st.floats() | st.booleans() | st.none()
KEYS = st.sampled_from(["peer", "reason", "traceback", "line", "session", "path"])
ESCAPE = re.compile(r"\\(x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8}|.)")


class Kept(Log):
    """A log that keeps its lines."""

    def __init__(self, format: str, *, level: str = "debug", framed: bool = False) -> None:
        super().__init__()
        self.lines: list[bytes] = []
        self.configure(format=format, level=level, journal=False, framed=framed)
        self._terminal = False

    def put(self, line: bytes) -> bool:
        """Keep a line."""
        self.lines.append(line)
        return True


def only(line: bytes) -> str:
    """Return a line's text, which is printable and ends where the line does."""
    assert len(line) <= LINE_MAX
    text = line.decode()
    assert text.endswith("\n")
    assert text[:-1].isprintable()
    return text[:-1]


def parsed(line: str) -> tuple[str, str, dict[str, str]]:
    """Read logfmt: level, event, and each field as it was before it was escaped."""
    _, level, event, *_ = line.split(" ", 3)
    rest = line.split(" ", 3)[3] if line.count(" ") > 2 else ""
    fields: dict[str, str] = {}
    while rest:
        match = re.match(r'([a-z_]+)=("((?:[^"\\]|\\.)*)"|[^ "=\\]*)(?: |$)', rest)
        assert match, rest
        fields[match[1]] = match[2] if match[3] is None else ESCAPE.sub(_unescaped, match[3])
        rest = rest[match.end() :]
    return level, event, fields


def _unescaped(match: re.Match[str]) -> str:
    word = match[1]
    return chr(int(word[1:], 16)) if len(word) > 1 else {"n": "\n", "r": "\r", "t": "\t"}.get(word, word)


def as_written(value: object) -> str:
    """Return a field's value as the text log has it."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


@given(st.sampled_from(LEVELS), st.dictionaries(KEYS, VALUES, max_size=6))
@example("info", {"peer": '"\\', "reason": "a=b c", "path": ""})
@example("info", {"peer": "\u202e\u2028\ud800\x7f\x9b\0"})
@example("error", {"traceback": "\\" * 3000, "line": "\U0001f600" * 3000})
def test_text_can_be_read_back(level: str, fields: dict[str, Any]) -> None:
    """Whatever the fields are, a text event is one printable line of bounded length, and a reader of logfmt gets back what they were."""
    log = Kept("text")
    getattr(log, level)("something", **fields)
    said, event, found = parsed(only(log.lines[0]))
    assert (said, event) == (level, "something")
    assert found.keys() == {key for key, value in fields.items() if value is not None}
    for key, text in found.items():
        whole = as_written(fields[key])
        cut = text.strip("…")
        assert text == whole or ("…" in text and cut in whole)
        assert text == whole or len(whole) >= 4


@given(st.sampled_from(LEVELS), st.dictionaries(KEYS, VALUES, max_size=6), st.booleans())
@example("info", {"peer": float("nan"), "reason": float("inf"), "session": 10**4000}, False)
def test_json_is_always_json(level: str, fields: dict[str, Any], framed: bool) -> None:
    """Whatever the fields are, a JSON event is one printable line of bounded length that any reader of JSON takes."""
    log = Kept("json", framed=framed)
    getattr(log, level)("something", **fields)
    [line] = log.lines
    assert line.startswith(RECORD.encode()) == framed
    record = json.loads(only(line.removeprefix(RECORD.encode())), parse_constant=pytest.fail)
    assert (record["level"], record["event"]) == (level, "something")
    assert record.keys() - {"time", "level", "event"} == {key for key, value in fields.items() if value is not None}
    assert all(len(record[key]) <= FIELD_MAX for key in ("peer", "reason", "path") if isinstance(record.get(key), str))


@given(st.dictionaries(KEYS, VALUES, max_size=6))
def test_raw_records_are_whole(fields: dict[str, Any]) -> None:
    """What a child says to the logger is one line of ASCII that a pipe takes in one piece."""
    log = Kept("raw", framed=True)
    log.error("something", **fields)
    [line] = log.lines
    assert len(line) <= LINE_MAX
    assert line.isascii()
    assert line.count(b"\n") == 1
    assert json.loads(line[1:])["event"] == "something"


@given(ANY, st.integers(1, 400), st.booleans())
def test_printable_is_bounded(text: str, limit: int, tail: bool) -> None:
    """Escaped text has at most as many characters as asked for, and no escape is cut."""
    shown = printable(text, limit, tail=tail, quoted="\\")
    assert shown.isprintable()
    assert len(shown) <= limit
    plain = ESCAPE.sub(_unescaped, shown.strip("…"))
    assert plain in text or "…" in text


def test_end_of_a_traceback_is_kept() -> None:
    """Of a traceback that is too long the end stays, which says what is wrong."""
    for form in ("text", "json"):
        log = Kept(form)
        log.error("handler_failed", peer="somebody", traceback="File\n" * 5000 + "ValueError: here")
        assert b"ValueError: here" in log.lines[0]
        assert b"peer" in log.lines[0]


@given(ANY)
def test_lines_for_a_terminal(text: str) -> None:
    """Text for a terminal keeps its line breaks and has nothing else that a terminal would obey."""
    shown = escaped(text)
    assert shown.count("\n") == text.count("\n")
    assert all(line.isprintable() for line in shown.split("\n"))


def test_traceback_on_a_terminal() -> None:
    """On a terminal a traceback has its line breaks, and nothing in it is obeyed."""
    ours, theirs = os.openpty()
    try:
        log = Log(theirs)
        log.configure(format="text", level="info", journal=False)
        log.error("handler_failed", error="E", traceback="Traceback:\n  File\nE: \x1b]0;owned\x07\u202e\n")
        lines = os.read(ours, 4096).decode().splitlines()
        assert lines[0].endswith("error handler_failed error=E")
        assert lines[1:] == ["Traceback:", "  File", "E: \\x1b]0;owned\\x07\\u202e"]
    finally:
        os.close(ours)
        os.close(theirs)


def test_held_back_lines_are_told_without_another() -> None:
    """When no further line of an event comes, a deadline tells how many were held back; there is one deadline, and then none."""
    log, due = Kept("json"), []
    log.later = lambda seconds, callback: due.append((seconds, callback))
    for _ in range(1000):
        log.info("connection_refused", reason="full")
    assert len(log.lines) == LIMITED["connection_refused"]
    [(seconds, callback)] = due
    assert 0 < seconds <= WINDOW + 0.01
    log._windows["connection_refused"].start -= WINDOW
    callback()
    assert json.loads(log.lines[-1])["suppressed"] == 1000 - LIMITED["connection_refused"]
    count = len(log.lines)
    log.tell_held_back(all=True)
    assert len(log.lines) == count


def test_sessions_are_never_held_back() -> None:
    """The end of a session is logged, however many there are."""
    log = Kept("text")
    for number in range(1000):
        log.info("session_ended", session=number)
    assert len(log.lines) == 1000


def test_dropped_lines_are_told() -> None:
    """The first line that goes out after some that did not says how many those were."""
    reader, writer = os.pipe()
    log = Log(writer)
    log.configure(format="json", level="info")
    for _ in range(2000):
        log.info("something", text="x" * 200)
    dropped = log.dropped
    assert dropped > 0
    os.read(reader, 1 << 20)
    log.info("heard")
    told, heard = (json.loads(line) for line in os.read(reader, 1 << 20).splitlines())
    assert (told["event"], told["lines"], heard["event"]) == ("log_dropped", dropped, "heard")
    assert log.dropped == dropped
    os.close(reader)
    os.close(writer)


def test_line_after_a_torn_one() -> None:
    """A line of which only a part was taken is counted as dropped, and the next one begins a line of its own."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        log = Log(theirs.fileno())
        log.configure(format="json", level="info", journal=False)
        log._format_line = lambda event, level, fields: b"x" * 999_999 + b"\n"  # type: ignore[method-assign]
        log.info("torn")
        assert log.dropped == 1
        received = b""
        with contextlib.suppress(BlockingIOError):
            while True:
                received += ours.recv(1 << 20, socket.MSG_DONTWAIT)
        assert 0 < len(received) < 1_000_000
        del log._format_line  # type: ignore[misc]
        log.info("whole")
        rest = ours.recv(1 << 20)
        assert rest.startswith(b"\n")
        assert [json.loads(line)["event"] for line in rest.splitlines() if line] == ["log_dropped", "whole"]


def lines_of(write: int, read: int) -> list[str]:
    """Return what came through a pipe."""
    os.close(write)
    with os.fdopen(read, encoding="utf-8") as file:
        return file.read().splitlines()


@given(st.text(max_size=400))
def test_one_record_is_one_line(text: str) -> None:
    """Whatever a field holds, an event is one line of printable text, and JSON when JSON is asked for."""
    for form in ("text", "json"):
        read, write = os.pipe()
        log = Log(write)
        log.configure(format=form, level="info")
        log.info("something", peer=text, count=3)
        [line] = lines_of(write, read)
        assert line.isprintable()
        if form == "json":
            assert json.loads(line)["peer"] == printable(text)
        assert len(printable(text)) <= FIELD_MAX


def test_floods_are_held_back_and_counted() -> None:
    """Of an event that peers can cause at will, a bounded number of lines is written; the next window says how many were not."""
    read, write = os.pipe()
    log = Log(write)
    log.configure(format="json", level="info")
    for _ in range(1000):
        log.info("connection_refused", reason="full")
    log._windows["connection_refused"].start -= 100
    log.info("connection_refused", reason="full")
    records = [json.loads(line) for line in lines_of(write, read)]
    assert len(records) == LIMITED["connection_refused"] + 1
    assert records[-1]["suppressed"] == 1000 - LIMITED["connection_refused"]


def test_log_never_blocks() -> None:
    """Lines that a full pipe does not take are dropped and counted, and writing goes on when it is read again."""
    read, write = os.pipe()
    log = Log(write)
    log.configure(format="text", level="info")
    for _ in range(2000):
        log.info("something", text="x" * 200)
    assert log.dropped > 0
    os.read(read, 1 << 20)
    dropped = log.dropped
    log.info("heard", again=True)
    assert log.dropped == dropped
    assert lines_of(write, read)[-1].endswith("info heard again=True")


# ---- What print() writes to --------------------------------------------------------------------------------------------------


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Return both ends of a pipe of the smallest size."""
    reader, writer = os.pipe()
    yield reader, writer
    for fd in (reader, writer):
        try:
            os.close(fd)
        except OSError as error:
            assert error.errno == errno.EBADF


def stream_to(fd: int) -> io.TextIOWrapper:
    """Return a stream as handlers have it."""
    return io.TextIOWrapper(io.BufferedWriter(LogStream(fd)), "utf-8", line_buffering=True)


def test_print_goes_out_at_once(pipe: tuple[int, int]) -> None:
    """A printed line is in the log's stream when print() returns."""
    reader, writer = pipe
    print("one", file=stream_to(writer))
    assert os.read(reader, 100) == b"one\n"


def test_print_to_a_full_stream_waits_once(pipe: tuple[int, int]) -> None:
    """Thousands of lines to a stream that nobody reads take a second in all; the first one that is read again says how many are missing."""
    reader, writer = pipe
    printing = stream_to(writer)
    began = time.monotonic()
    for _ in range(5000):
        print("x" * 100, file=printing)
    assert time.monotonic() - began < 10 * PATIENCE
    kept = len(os.read(reader, 1 << 20)) // 101
    print("again", file=printing)
    told, again = os.read(reader, 1 << 20).decode().splitlines()
    assert told.startswith(f"poold: {5000 - kept} writes to this stream were dropped")
    assert again == "again"


def test_print_to_a_stream_that_is_read_slowly(pipe: tuple[int, int]) -> None:
    """Nothing is dropped as long as somebody reads now and then."""
    reader, writer = pipe
    printing, received = stream_to(writer), bytearray()

    def read() -> None:
        while chunk := os.read(reader, 100):
            received.extend(chunk)

    thread = threading.Thread(target=read)
    thread.start()
    for number in range(3000):
        print(f"{number} {'x' * 100}", file=printing)
    os.close(writer)
    thread.join()
    assert [int(line.split()[0]) for line in received.decode().splitlines()] == list(range(3000))


def test_print_when_the_reader_has_gone(pipe: tuple[int, int]) -> None:
    """Printing to a log that nobody will ever read raises nothing and waits for nothing."""
    reader, writer = pipe
    os.close(reader)
    printing = stream_to(writer)
    for _ in range(100):
        print("x", file=printing)
    raw = printing.buffer.raw
    assert isinstance(raw, LogStream)
    assert raw.dropped == 100


def test_what_a_handler_puts_in_its_place_is_an_ordinary_file(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a handler has put another file at the descriptor, it is waited for as long as it takes, and errors are raised, as anywhere."""
    monkeypatch.setattr(stream, "PATIENCE", 0.0)
    _, writer = pipe
    written = LogStream(writer)
    mine_reader, mine = os.pipe()
    os.dup2(mine, writer)
    os.close(mine)
    received = bytearray()
    thread = threading.Thread(target=lambda: received.extend(_all(mine_reader)))
    thread.start()
    assert written.write(b"x" * 3_000_000) == 3_000_000
    os.close(writer)
    thread.join()
    assert len(received) == 3_000_000
    with pytest.raises(OSError, match="Bad file descriptor"):
        written.write(b"x")


def _all(fd: int) -> bytes:
    found = b""
    while chunk := os.read(fd, 65536):
        found += chunk
    os.close(fd)
    return found


@given(st.lists(st.binary(max_size=9000), max_size=8))
def test_stream_carries_every_byte(chunks: list[bytes]) -> None:
    """What is written in any portions arrives whole and in order as long as it is read."""
    reader, writer = os.pipe()
    written = LogStream(writer)
    received: list[bytes] = []
    thread = threading.Thread(target=lambda: received.append(_all(reader)))
    thread.start()
    for chunk in chunks:
        assert written.write(chunk) == len(chunk)
    os.close(writer)
    thread.join()
    assert received == [b"".join(chunks)]
