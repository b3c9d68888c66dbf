"""What the benchmark makes of its records: ratios, verdicts and the report. Nothing is measured here."""

import dataclasses
from pathlib import Path

import pytest

from tests.bench import charts
from tests.bench.load import QUANTILES
from tests.bench.report import render, table
from tests.bench.results import ClosedRun, HeldRun, MasterLook, OpenRun, ReloadRun, Results, StartRun
from tests.bench.summary import Figure, ratio
from tests.bench.targets import verdicts

SPEEDS = {"poold": 1000.0, "poold-reused": 4000.0, "ForkingTCPServer": 500.0, "tcpserver": 900.0, "C-fork": 2000.0, "costless": 9000.0}


def recorded() -> Results:
    """Return what a run of three rounds might have measured, the machine being twice as slow in the last one."""
    results = Results(environment={"kernel": "6.1"}, peers={name: {"service": "echo", "about": "", "version": ""} for name in SPEEDS})
    for round, drift in enumerate((1.0, 1.0, 0.5)):
        for peer, speed in SPEEDS.items():
            rate = speed * drift
            results.closed.append(ClosedRun(peer, round, 32, rate, 32 / rate, 64 / rate, 96 / rate, 0, 0.95 if peer == "costless" else 0.2))
            results.open.append(OpenRun(peer, round, 200, 600, 0, 1 / rate, 2 / rate, 3 / rate, [(1 + part) / rate for part in QUANTILES]))
    results.held.append(HeldRun("poold", 0, 10_000, 20.0, 500e3, 0.002, 0.0021, [0.002] * 100))
    for sessions, descriptors, spares in ((0, 24, 4), (10_000, 10_030, 6)):
        results.master.append(MasterLook(0, sessions, 30_000_000, 20_000_000, descriptors, spares, 0.0, 0.01, 0.05, 0.3, 9.0, 1e-4, None))
    results.reloads += [
        ReloadRun(1, applied=True, p50=0.001, longest=0.01, lost=0, machine_pause=0.003),
        ReloadRun(2, applied=True, p50=0.001, longest=0.01, lost=1, machine_pause=None),
    ]
    results.starts.append(StartRun(1, 0.2))
    return results


def test_records_survive_json(tmp_path: Path) -> None:
    """What is written reads back the same."""
    results = recorded()
    results.write(tmp_path / "results.json")
    assert Results.read(tmp_path / "results.json") == results


def test_ratios_are_taken_within_rounds() -> None:
    """A machine that is slower in one round does not move a ratio, and a round that one of the two missed is left out."""
    assert ratio({0: 10.0, 1: 5.0, 2: 7.0}, {0: 20.0, 1: 10.0}) == Figure(0.5, 0.5, 0.5)
    assert ratio({}, {0: 1.0}) is None


@pytest.mark.parametrize(
    ("place", "name", "median", "word"),
    [
        (0, "P1", 2.0, "aim met"),
        (1, "P2", 1000 / 900, "met"),
        (2, "P3", 0.5, "MISSED"),
        (3, "P4", 2.0, "MISSED"),
        (4, "P5", 2.0, "aim met"),
        (5, "P6", 500.0, "met"),
        (6, "P7", 1.05, "met"),
        (7, "P8", 30.0, "met"),
        (8, "P8", 0.0, "met"),
        (9, "P8", 1.0002, "MISSED"),
        (10, "P9", 10.0, "MISSED"),
        (11, "P10", 10.0, "met"),
        (12, "P10", 1.0, "MISSED"),
        (13, "P11", 200.0, "met"),
    ],
)
def test_verdicts(place: int, name: str, median: float, word: str) -> None:
    """Each target has its figure and its verdict."""
    verdict = list(verdicts(recorded()))[place]
    assert verdict.figure is not None
    assert (verdict.name, verdict.figure.median, verdict.word) == (name, pytest.approx(median), word)


def test_nothing_measured_is_no_verdict() -> None:
    """A run of nothing has a report all the same, in which no target is met or missed."""
    assert {verdict.word for verdict in verdicts(Results())} == {"not measured"}
    assert "not measured" in render(Results())


def test_a_verdict_says_what_it_is_of() -> None:
    """A quick run holds fewer sessions than the target is about."""
    results = recorded()
    results.held[:] = [HeldRun("poold", 0, 1000, 2.0, 500e3, 0.002, 0.0021, [0.002] * 100)]
    assert {verdict.note for verdict in verdicts(results) if verdict.name in ("P6", "P7")} == {"of 1,000"}


def test_a_machine_that_stood_still_is_told_of() -> None:
    """A wait that poold could not help stands beside its reason."""
    results = recorded()
    results.reloads.append(ReloadRun(3, applied=True, p50=0.001, longest=0.135, lost=0, machine_pause=0.0312))
    assert "(in the longest the machine itself stood still for 31 ms)" in render(results)
    assert "stood still for" not in render(recorded())


def test_the_report_tells_of_a_busy_generator() -> None:
    """A run in which the load generator had no time left is marked, and its ceiling is beside the fastest server."""
    text = render(recorded())
    line = next(line for line in text.splitlines() if line.startswith("| costless") and "*" in line)
    assert "9,000 [4,500 to 9,000]*" in line
    assert "2.2 times the fastest server (poold-reused)" in text


def test_tables_are_aligned() -> None:
    """Words stand to the left, figures to the right."""
    assert table(("", "ms"), [("poold", "1.5"), ("C", "12")]) == [
        "|       |  ms |",
        "|-------|----:|",
        "| poold | 1.5 |",
        "| C     |  12 |",
    ]


def drawn(results: Results, folder: Path) -> dict[str, list[str]]:
    """Draw every chart, and return the lines of each."""
    folder.mkdir()
    return {file.name: file.read_text().splitlines() for file in charts.draw(results, folder)}


def test_charts_are_small_and_the_same_each_time(tmp_path: Path) -> None:
    """The same figures give the same bytes, in fewer than 300 lines; whatever was not measured has no chart."""
    one, two = drawn(recorded(), tmp_path / "one"), drawn(recorded(), tmp_path / "two")
    assert one == two
    assert set(one) == {"throughput.svg", "latency.svg", "memory.svg", "opening.svg"}
    assert all(len(lines) < 300 for lines in one.values())
    assert drawn(Results(), tmp_path / "nothing") == {}


def test_another_run_changes_the_lines_of_its_figures_alone(tmp_path: Path) -> None:
    """A run that was a fifth slower draws other curves; axes, names and everything else stay as they were."""
    slower = recorded()
    slower.open[:] = [dataclasses.replace(run, quantiles=[1.2 * latency for latency in run.quantiles]) for run in slower.open]
    one, two = drawn(recorded(), tmp_path / "one")["latency.svg"], drawn(slower, tmp_path / "two")["latency.svg"]
    changed = [pair for pair in zip(one, two, strict=True) if pair[0] != pair[1]]
    assert changed
    assert all(line.startswith("<polyline ") for pair in changed for line in pair)


def test_the_chart_of_the_readme_is_one_of_these(tmp_path: Path) -> None:
    """What the README shows was drawn by this code: it is as small, and has the elements of a chart drawn now, figures aside."""
    lines = (Path(charts.__file__).parent / "latency.svg").read_text().splitlines()
    assert len(lines) < 300
    now = drawn(recorded(), tmp_path / "now")["latency.svg"]
    assert lines[1] == now[1]
    kinds = {line.split(maxsplit=1)[0] for line in lines}
    assert kinds == {line.split(maxsplit=1)[0] for line in now}
    for name in ("poold", "ForkingTCPServer", "C-fork"):
        assert any(line.endswith(f">{name}</text>") for line in lines)
