"""One row a metric: what scrapers, `poold status` and an upgrade make of the rows."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from platform import python_version
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, exposition

from poold import __version__, report
from poold import scoreboard as board
from poold.childrows import ChildRows, ChildRowsView
from poold.exporter.collector import PooldCollector
from poold.master.document import tally
from poold.master.document.tally import TallyPart
from poold.metrictable import FactLabels, Histogram, ListenerLabel, MetricTable, MetricType, NoLabel, WordLabel, WordLabels
from poold.report import DaemonView
from poold.scoreboard import METRICS, Counters, CountersView, read_only
from tests.support import Daemon
from tests.upgradekit import install, mend, path_of, upgraded

Poold = Callable[..., Daemon]

# What the first release told of the counters of `filled`. Dashboards and scripts rely on it; a later release may tell more.
FIRST = Path(__file__).parent / "exposition"
STATE = json.loads((Path(__file__).parent / "state" / "format-1.json").read_text())
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
    counters.cells[board.BUILD_INFO] = 1
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


@pytest.fixture
def counters() -> Iterator[Counters]:
    """Return counters with another number in each cell."""
    made = filled()
    yield made
    made.close()


@pytest.fixture
def daemon_view(counters: Counters) -> Iterator[DaemonView]:
    """Return what `poold status` has of a daemon with these counters."""
    rows = ChildRows()
    state = {
        "version": "0.1.0",
        "pid": 4242,
        "phase": "running",
        "seconds": 3725.5,
        "listeners": [{"name": "main", "address": "tcp://127.0.0.1:7777"}],
        "warnings": ["odd \x1b"],
    }
    yield DaemonView(state, CountersView(counters.fd), ChildRowsView(rows.fd), {})
    rows.close()


@pytest.fixture
def _utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have times told in UTC."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def test_metrics_are_as_in_the_first_release(counters: Counters) -> None:
    """Each line that the first release served is served: name, help, type, labels, and the cell that the figure comes from."""
    first = (FIRST / "metrics.txt").read_text().splitlines()
    assert set(first) <= set(served(counters))


def test_metrics_of_the_first_release_have_no_more_labels(counters: Counters) -> None:
    """A family that the first release served has the label names that it had, and no other."""

    def labels(lines: list[str]) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for line in lines:
            if not line.startswith("#"):
                name, _, rest = line.partition("{")
                found.setdefault(name.split()[0], set()).add(",".join(part.partition("=")[0] for part in rest.split('",')))
        return found

    first, now = labels((FIRST / "metrics.txt").read_text().splitlines()), labels(served(counters))
    assert {name: now[name] for name in first} == first


@pytest.mark.usefixtures("_utc")
def test_status_is_as_in_the_first_release(daemon_view: DaemonView) -> None:
    """The screen of `poold status` has the lines that it had, and its JSON the values."""
    first = (FIRST / "status.txt").read_text().splitlines()
    now = report.status(daemon_view, as_json=False).splitlines()
    assert [line for line in now if line in first] == first
    told = json.loads(report.status(daemon_view, as_json=True))
    for key, value in json.loads((FIRST / "status.json").read_text()).items():
        assert told[key] == value, key


def test_names_in_the_state_document_are_kept(counters: Counters) -> None:
    """Each name in a recorded document is written, so that the version before can read it, and its figure goes on."""
    recorded = STATE["tally"]
    written = tally.read_tally(counters)
    others = {f"accepted/{name}" for name in recorded["listeners"]}
    assert set(recorded["counts"]) - others <= set(written.counts)
    assert set(recorded["histograms"]) <= set(written.histograms)
    fresh = Counters()
    tally.load_tally(fresh, TallyPart(listeners=tuple(recorded["listeners"]), counts=recorded["counts"]))
    assert recorded["counts"].items() <= tally.read_tally(fresh).counts.items()
    fresh.close()


def test_every_counter_is_carried(counters: Counters) -> None:
    """Every figure of a counter or histogram is the next program's, but for the CPU time, which the kernel goes on counting."""
    after = Counters()
    tally.load_tally(after, tally.read_tally(counters))
    for metric in METRICS:
        if metric.type is not MetricType.GAUGE and metric.name != "process_cpu_seconds_total":
            size = len(LISTENERS) if metric.labels.values is None else metric.labels.size
            cells = slice(metric.first, metric.first + size)
            assert any(counters.cells[cells]), metric.name
            assert after.cells[cells] == counters.cells[cells], metric.name
    after.close()


def test_a_count_that_the_document_lacks_begins_at_nothing(counters: Counters) -> None:
    """A counter that the program before did not have begins at 0."""
    tally.load_tally(counters, TallyPart())
    assert set(tally.read_tally(counters).counts.values()) == {0}


def test_no_name_is_taken_twice() -> None:
    """No two rows share a name, a name in the state document or a place in `poold status`, and counters are named as such."""
    for names in ([row.name for row in METRICS], [row.carried for row in METRICS], [row.status for row in METRICS]):
        assert [name for name, number in Counter(names).items() if name and number > 1] == []
    for metric in METRICS:
        assert metric.name.endswith("_total") == (metric.type is MetricType.COUNTER), metric.name
        assert metric.help.endswith("."), metric.name
        # The screen has one line for it, with the name of one fact.
        assert not (metric.line and "." in metric.status), metric.name


ROW = """
TURNS = _counter("poold_turns_total", "Turns of the loop.", WordLabel("side", ("left", "right")), line="turns")
LIT = _gauge("poold_lit", "1 while lit.", _NO_LABEL, unit=_FLAG, status="lamp.lit")
METRICS ="""
COUNTING = """
        import sys
        from poold.scoreboard import LIT, TURNS
        cells[LIT] = 1
        if not any("from poold.master.successor" in word for word in sys.orig_argv):
            cells[TURNS["left"]] += 1
        self._counters.publish()
"""


def test_one_row_is_one_metric(poold: Poold, tmp_path: Path) -> None:
    """With a row and the line that counts, and nothing else, a metric is served, shown by `poold status` and carried by an upgrade."""
    installed = install(tmp_path / "installed")
    mend(installed / "scoreboard.py", "\nMETRICS =", ROW)
    mend(installed / "master" / "outside" / "gauges.py", "\n        self._counters.publish()\n", COUNTING)
    daemon = poold().start(environ=path_of(installed))
    before = daemon.metrics()
    assert before.total("poold_turns_total", side="left") > 0
    assert (before.total("poold_turns_total", side="right"), before["poold_lit"]) == (0, 1)

    def status(*arguments: str) -> str:
        command = [sys.executable, "-m", "poold", "status", "--socket", str(daemon.control), *arguments]
        environ = {**os.environ, **path_of(installed)}
        return subprocess.run(command, capture_output=True, text=True, check=True, env=environ, cwd=daemon.folder).stdout

    told = json.loads(status("--json"))
    assert told["turns"]["left"] >= before.total("poold_turns_total", side="left")
    assert (told["turns"]["right"], told["lamp"]) == (0, {"lit": True})
    assert [line.split()[2] for line in status().splitlines() if line.startswith("turns ")] == ["(left"]
    upgraded(daemon)
    # The program that runs now counts no turns.
    assert daemon.metrics().total("poold_turns_total", side="left") >= told["turns"]["left"]


def test_status_of_another_layout(poold: Poold, tmp_path: Path) -> None:
    """A `poold status` whose table has the same number of cells in another order is told no figure of the wrong cell, but so much."""
    installed = install(tmp_path / "installed")
    text = (installed / "scoreboard.py").read_text()
    draining, accepting = (next(line for line in text.splitlines() if line.startswith(f"{name} = ")) for name in ("DRAINING", "ACCEPTING"))
    (installed / "scoreboard.py").write_text(
        text.replace(draining, "-").replace(accepting, "+").replace("\n-\n", f"\n{accepting}\n").replace("\n+\n", f"\n{draining}\n")
    )
    daemon = poold().start()
    command = [sys.executable, "-m", "poold", "status", "--socket", str(daemon.control)]
    environ = {**os.environ, **path_of(installed)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environ, cwd=daemon.folder)
    assert (done.returncode, done.stdout) == (3, "")
    assert "another version of poold" in done.stderr


class Side(StrEnum):
    """A closed set of words."""

    LEFT = "left"
    RIGHT = "right"


KINDS_OF_ROWS: dict[str, Callable[[MetricTable, str], object]] = {
    "plain": lambda table, name: table.gauge(name, "A figure.", NoLabel()),
    "words": lambda table, name: table.counter(name, "Figures.", WordLabel("side", Side)),
    "pairs": lambda table, name: table.gauge(name, "Figures.", WordLabels("side", Side, "number", ("one", "two", "three"))),
    "listeners": lambda table, name: table.counter(name, "Figures.", ListenerLabel(64)),
    "histogram": lambda table, name: table.histogram(name, "Figures.", (0.1, 1.0, 10.0)),
    "facts": lambda table, name: table.gauge(name, "Facts.", FactLabels({"version": name})),
}


def cells_in(places: object) -> list[int]:
    """Return the cells that the code that counts can reach, in their order."""
    match places:
        case int():
            return [places]
        case dict():
            return list(places.values())
        case range():
            return list(places)
        case Histogram():
            return [*range(places.first, places.first + len(places.buckets) + 1), places.total]
    raise TypeError(places)


@given(st.lists(st.sampled_from(sorted(KINDS_OF_ROWS)), max_size=12), st.data())
def test_rows_share_no_cell(kinds: list[str], data: st.DataObject) -> None:
    """Whatever rows there are, each cell is one row's, none is left over, and what a reader shows is what the counting code reaches."""
    table = MetricTable()
    dealt: list[int] = []
    for number, kind in enumerate(kinds):
        cells = cells_in(KINDS_OF_ROWS[kind](table, f"row_{number}"))
        dealt += cells
        metric = table.metrics[-1]
        if kind != "histogram":
            series = list(metric.series([f"listener {each}" for each in range(64)]))
            assert [cell for _, cell in series] == cells
            assert len({values for values, _ in series}) == len(series)
            assert all(len(values) == len(metric.labels.names) for values, _ in series)
    assert dealt == list(range(table.size))
    if len(set(kinds)) > 1:
        other = MetricTable()
        for number, kind in enumerate(data.draw(st.permutations(kinds).filter(lambda order: order != kinds))):
            KINDS_OF_ROWS[kind](other, f"row_{number}")
        assert other.checksum() != table.checksum()


def test_facts_are_no_layout() -> None:
    """Another version of poold, or another Python, does not make another layout; other words of a label do."""
    tables = [MetricTable() for _ in range(4)]
    tables[0].gauge("info", "Facts.", FactLabels({"version": "1"}))
    tables[1].gauge("info", "Facts.", FactLabels({"version": "2"}))
    tables[2].counter("sides", "Sides.", WordLabel("side", Side))
    tables[3].counter("sides", "Sides.", WordLabel("side", reversed(Side)))
    sums = [table.checksum() for table in tables]
    assert (sums[0] == sums[1], sums[2] == sums[3]) == (True, False)
