"""Deadlines, throttle, wire formats, shared memories, log lines: the parts that need no process to be tried."""

import dataclasses
import json
import os
import socket
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poold import scoreboard as board
from poold.address import Address, Endpoint
from poold.log import FIELD_MAX, LIMITED, Log, printable
from poold.master.engine.deadlines import Deadlines
from poold.master.engine.throttle import DELAY_MAX, DELAY_MIN, Throttle
from poold.master.pool.pool import CROWD_MAX, CROWD_MIN, HOLDOFF_EACH, holdoff
from poold.pages import PAGE_SIZE, PhasePage, PhaseView
from poold.scoreboard import Counters, CountersView, Row, Table, TableView, read_only, shared_memory
from poold.words import Cause, Kind, State


@given(st.lists(st.tuples(st.floats(0, 100), st.booleans()), max_size=300), st.floats(0, 100))
def test_deadlines(entries: list[tuple[float, bool]], now: float) -> None:
    """What is due comes in order, older first, and nothing that was cancelled."""
    deadlines = Deadlines()
    called: list[int] = []
    made = [deadlines.at(at, lambda number=number: called.append(number)) for number, (at, _) in enumerate(entries)]
    for deadline, (_, cancel) in zip(made, entries, strict=True):
        if cancel:
            deadline.cancel()
            deadline.cancel()
    kept = [(at, number) for number, (at, cancel) in enumerate(entries) if not cancel]
    assert len(deadlines) == len(kept)
    assert deadlines.next_at() == (min(kept)[0] if kept else None)
    while (callback := deadlines.due(now)) is not None:
        callback()
    assert called == [number for at, number in sorted(kept) if at <= now]
    assert len(deadlines) == len([at for at, _ in kept if at > now])


def test_cancelled_deadlines_do_not_pile_up() -> None:
    """A daemon that sets and forgets a deadline for each session keeps a small heap."""
    deadlines = Deadlines()
    for number in range(10_000):
        deadlines.at(1e9 + number, lambda: None).cancel()
    assert len(deadlines._heap) < 200


@given(st.integers(0, 200), st.integers(0, 200))
def test_holdoff(waiting: int, coming: int) -> None:
    """Nobody holds off for a few, nor for workers that are not on their way, nor for long; with more of a crowd, no shorter."""
    seconds = holdoff(waiting, coming)
    if min(waiting, coming) <= CROWD_MIN:
        assert seconds == 0
    else:
        assert HOLDOFF_EACH <= seconds <= HOLDOFF_EACH * CROWD_MAX
    assert seconds <= holdoff(waiting + 1, coming + 1)


@given(st.lists(st.tuples(st.floats(0, 10), st.booleans()), max_size=60))
def test_throttle(steps: list[tuple[float, bool]]) -> None:
    """The delay doubles from its least to its greatest, a success takes it away, and the first failure is told from the rest."""
    throttle, now, failing = Throttle(), 0.0, False
    for wait, good in steps:
        now += wait
        if good:
            throttle.succeeded()
            assert throttle.open(now)
        else:
            before = throttle.delay
            could = throttle.open(now)
            assert throttle.failed(now) is not failing
            assert throttle.delay == (min(max(DELAY_MIN, before * 2), DELAY_MAX) if could else before)
            assert not throttle.open(now)
            assert throttle.open(now + throttle.delay)
        failing = not good


def test_counters_are_of_one_moment() -> None:
    """A reader never sees two counters of different moments, however fast the writer is."""
    counters = Counters()
    fd = read_only(counters.fd)
    view = CountersView(fd)
    os.close(fd)
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            for cell in (board.ENDED[Cause.OK], board.ENDED[Cause.LOST], board.GENERATION):
                counters.cells[cell] += 1
            counters.publish()

    writer = threading.Thread(target=write)
    writer.start()
    last = 0
    for _ in range(20_000):
        cells = view.read()
        values = {cells[cell] for cell in (board.ENDED[Cause.OK], board.ENDED[Cause.LOST], board.GENERATION)}
        assert len(values) == 1
        assert values >= {max(values)}
        assert max(values) >= last
        last = max(values)
    stop.set()
    writer.join()
    assert last > 0
    counters.close()


def test_counters_cannot_be_written_by_readers() -> None:
    """A read-only descriptor of the counters cannot be opened again for writing in effect: the memory is sealed."""
    counters = Counters()
    fd = read_only(counters.fd)
    again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
    with pytest.raises(PermissionError):
        os.write(again, b"x")
    with pytest.raises(PermissionError):
        os.ftruncate(again, 0)
    os.close(again)
    os.close(fd)
    counters.close()


def test_listener_names_are_bounded() -> None:
    """A name keeps its number for ever; the sixty-fifth is refused with a word about what to do."""
    counters = Counters()
    numbers = [counters.listener(f"listener {number}") for number in range(64)]
    assert numbers == list(range(64))
    assert counters.listener("listener 7") == 7
    with pytest.raises(LookupError, match="reuse"):
        counters.listener("one more")
    counters.close()


def test_rows() -> None:
    """What is written in a row is what a reader sees, until it is cleared."""
    table = Table()
    fd = read_only(table.fd)
    view = TableView(fd)
    os.close(fd)
    rows = [
        Row(slot, 1000 + slot, Kind.WORKER, State.SERVING, 3, 7, 2, 99, 1.5, 2.5, f"[2001:db8::{slot}]:65535") for slot in (16, 20, 65_000)
    ]
    for row in rows:
        values = dataclasses.asdict(row)
        table.write(values.pop("slot"), **values)
    assert view.rows() == rows
    table.clear(20)
    assert view.rows() == [rows[0], rows[2]]
    table.close()


def test_phase() -> None:
    """Workers see that a drain began."""
    fd = shared_memory("phase", PAGE_SIZE)
    view = PhaseView(read := read_only(fd))
    os.close(read)
    assert not view.draining()
    PhasePage(fd).drain()
    assert view.draining()
    os.close(fd)


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


@pytest.mark.parametrize("text", ["tcp://127.0.0.1:80", "tcp://[::]:0", "tcp://example.org:65535", "unix:///run/x.sock", "systemd://main"])
def test_addresses(text: str) -> None:
    """An address is written as it was read."""
    assert str(Address.parse(text)) == text
    assert Address.parse(text) == Address.parse(text)


@given(st.text(max_size=30) | st.builds("tcp://{}".format, st.text(max_size=20)))
def test_no_address_breaks_the_parser(text: str) -> None:
    """Anything is an address or a ValueError that shows it or says what is right."""
    try:
        Address.parse(text)
    except ValueError as error:
        assert len(str(error)) > 10


def test_endpoints() -> None:
    """An IPv4 client of a dual-stack listener is an IPv4 client."""
    assert str(Endpoint.of(socket.AF_INET6, ("::ffff:192.0.2.7", 80, 0, 0))) == "192.0.2.7:80"
    assert str(Endpoint.of(socket.AF_INET6, ("2001:db8::1", 80, 0, 0))) == "[2001:db8::1]:80"
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert str(Endpoint.unix_peer(ours)) == f"unix:uid={os.getuid()},pid={os.getpid()}"
