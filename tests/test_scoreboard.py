"""The shared memories: counters of one moment, the rows of the table, the phase; each is read through a read-only descriptor."""

import dataclasses
import os
import threading

import pytest

from poold import scoreboard as board
from poold.childrows import ChildRow, ChildRows, ChildRowsView
from poold.pages import PAGE_SIZE, PhasePage, PhaseView
from poold.scoreboard import Counters, CountersView, read_only, shared_memory
from poold.words import Cause, Kind, State


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
    table = ChildRows()
    fd = read_only(table.fd)
    view = ChildRowsView(fd)
    os.close(fd)
    rows = [
        ChildRow(slot, 1000 + slot, Kind.WORKER, State.SERVING, 3, 7, 2, 99, 1.5, 2.5, f"[2001:db8::{slot}]:65535")
        for slot in (16, 20, 65_000)
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
