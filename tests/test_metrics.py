"""One row a metric: what scrapers, `poold status` and an upgrade make of the rows."""

import os
from collections.abc import Iterator
from pathlib import Path
from platform import python_version
from typing import Any
from zlib import crc32

from prometheus_client import CollectorRegistry, exposition

from poold import __version__
from poold import scoreboard as board
from poold.exporter.collector import PooldCollector
from poold.scoreboard import Counters, CountersView, Histogram, read_only

# What the first release served for the counters of `filled`. Dashboards rely on each line; a later release may add lines.
SERVED = Path(__file__).parent / "exposition" / "first.txt"
# The constants of single cells that a metric shows, and those of several cells by word.
NUMBERS = """SESSIONS_ACTIVE CHILDREN_ACTIVE CHILDREN_MAX UNKNOWN_REAPED RELOAD_SUCCESS_AT GENERATION LOG_DROPPED LOOP_ERRORS MOLD_STARTS
PROCESS_CPU PROCESS_STARTED PROCESS_VIRTUAL PROCESS_RESIDENT PROCESS_FDS PROCESS_FDS_MAX ACCEPTING RELOAD_SUCCESSFUL DRAINING""".split()
WORDS = "REFUSED ENDED CHILDREN SPAWNED REAPED FAILED FORK_FAILURES ACCEPT_ERRORS RELOADS UPGRADES".split()
LISTENERS = ("main", "unix:///srv/pool/u.sock", 'odd "name" \\ of\n two lines')


def number_of(*names: object) -> int:
    """Return the same number for the same names, whatever else there is."""
    return crc32("/".join(str(name) for name in names).encode())


def places() -> Iterator[tuple[int, int]]:
    """Yield a cell and its number for each constant that a metric shows."""
    for name, where in vars(board).items():
        if name in NUMBERS:
            yield where, number_of(name)
        elif isinstance(where, Histogram):
            yield from ((where.first + index, number_of(name, index) % 1000) for index in range(len(where.buckets) + 1))
            yield where.total, number_of(name)
        elif name in WORDS:
            yield from ((cell, number_of(name, word)) for word, cell in where.items())
    for number, listener in enumerate(LISTENERS):
        yield board.BACKLOG_KNOWN[number], number % 2
        for name, cells in (("ACCEPTED", board.ACCEPTED), ("BACKLOG", board.BACKLOG), ("BACKLOG_LIMIT", board.BACKLOG_LIMIT)):
            yield cells[number], number_of(name, listener)


def filled() -> Counters:
    """Return counters with another number in each cell."""
    counters = Counters()
    for listener in LISTENERS:
        counters.listener(listener)
    for cell, number in places():
        counters.cells[cell] = number
    counters.publish()
    return counters


def served(counters: Counters) -> list[str]:
    """Return the lines that an exporter serves as text, with words in the place of this version and this Python."""
    fd = read_only(counters.fd)
    view = CountersView(fd)
    os.close(fd)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(PooldCollector(view))
    text = exposition.generate_latest(registry).decode()
    text = text.replace(f'version="{__version__}"', 'version="VERSION"').replace(f'python="{python_version()}"', 'python="PYTHON"')
    return text.splitlines()


def test_metrics_are_as_in_the_first_release() -> None:
    """Each line that the first release served is served: name, help, type, labels, and the cell that the figure comes from."""
    counters = filled()
    assert set(SERVED.read_text().splitlines()) <= set(served(counters))
    counters.close()
