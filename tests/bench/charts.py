"""The charts, drawn from the results: poold in warm, strong colours, everybody else in cool, thin ones."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.bench.load import QUANTILES
from tests.bench.peer import ECHO, HTTP
from tests.bench.peers import CEILING, POOLD
from tests.bench.report import number
from tests.bench.results import Results
from tests.bench.summary import Figure, throughput
from tests.bench.svg import Axis, Drawing, Look, Panel, linear, logarithmic, rounded
from tests.bench.targets import CONCURRENCY, RATE

WARM = ("#c2410c", "#f59e0b", "#be185d")
COOL = ("#1e40af", "#0f766e", "#6b7280", "#7dd3fc", "#a78bfa", "#84cc16", "#334155")
PLAIN = "#94a3b8"
DASHES = ("", "6 3", "9 3 2 3", "2 3")
# The parts of the sessions whose latency is drawn: as many as the eye can tell apart.
DRAWN = (0.0, 0.02, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.93, 0.95, 0.96, 0.97, 0.975, 0.98, 0.985, 0.99, 0.995)
TICKS = (0.0, 0.5, 0.9, 0.99)
# Milliseconds; an axis that is the same in most runs leaves most of the chart as it was.
LATENCIES = (0.2, 20)
# Of a page: what stands to the left of a panel, to its right, and the panels' width.
MARGIN, LEGEND, PANEL = 76, 220, 520


def draw(results: Results, folder: Path) -> list[Path]:
    """Draw every chart that there are figures for, and return the files."""
    makers: dict[str, Callable[[Results], Drawing | None]] = {
        "throughput.svg": throughput_chart,
        "latency.svg": latency_chart,
        "memory.svg": memory_chart,
        "opening.svg": opening_chart,
    }
    written = []
    for name, make in makers.items():
        drawing = make(results)
        if drawing is not None:
            drawing.write(folder / name)
            written.append(folder / name)
    return written


def throughput_chart(results: Results) -> Drawing | None:
    """Bars: sessions a second, the closed loop; the whiskers are the least and the greatest of the rounds."""
    groups = _by_service(results, [run.peer for run in results.closed if run.concurrency == CONCURRENCY])
    if not groups:
        return None
    left, bar = 180, 24
    height = 50 + sum(bar * len(names) + 60 for names in groups.values())
    drawing = Drawing(left + PANEL + 100, height, f"Sessions a second on one core, {CONCURRENCY} at a time")
    top = 44
    for service, names in groups.items():
        figures = {name: figure for name in names if (figure := Figure.of(throughput(results, name, CONCURRENCY).values()))}
        axis = linear(f"{service} sessions per second (more is better)", rounded(max(figure.high for figure in figures.values())))
        panel = Panel(drawing, left, top, PANEL, bar * len(figures), axis, Axis("", (), float))
        panel.frame()
        for place, (name, figure) in enumerate(sorted(figures.items(), key=lambda pair: -pair[1].median)):
            middle = top + bar * place + bar / 2
            low, end, high = (left + PANEL * axis.place(value) for value in (figure.low, figure.median, figure.high))
            color = _look(name, results).color if name.startswith(POOLD) else PLAIN
            drawing.text(left - 8, middle + 4, name, "end")
            drawing.add(f'<rect x="{left}" y="{middle - 8:.0f}" width="{end - left:.0f}" height="16" fill="{color}"/>')
            drawing.rule((low, middle), (high, middle), "thin")
            drawing.text(high + 6, middle + 4, number(figure.median))
        top += bar * len(figures) + 60
    return drawing


def latency_chart(results: Results) -> Drawing | None:
    """Lines: latency over percentiles, the open loop; at each percentile the median of the rounds."""
    groups = _by_service(results, [run.peer for run in results.open if run.rate == RATE])
    if not groups:
        return None
    height = 250
    title = f"Latency of a session, {RATE} due each second, counted from when it was due"
    drawing = Drawing(MARGIN + PANEL + LEGEND, 50 + len(groups) * (height + 64), title)
    shares = Axis("share of sessions that were served in so long or less", TICKS, _nines, lambda part: f"{100 * part:g} %")
    for place, (service, names) in enumerate(groups.items()):
        lines = {name: _latencies(results, name) for name in names}
        values = [value for line in lines.values() for _, value in line]
        axis = logarithmic(f"latency of {service} sessions, ms", values, least=LATENCIES[0], most=LATENCIES[1])
        panel = Panel(drawing, MARGIN, 44 + place * (height + 64), PANEL, height, shares, axis)
        _lines(panel, lines, results)
    return drawing


def memory_chart(results: Results) -> Drawing | None:
    """Points: memory a session over the number held; the whiskers are the least and the greatest of the rounds."""
    if not results.held:
        return None
    figures: dict[str, dict[int, Figure]] = {}
    for run in results.held:
        alike = [each.bytes_each / 1e3 for each in results.held if (each.peer, each.sessions) == (run.peer, run.sessions)]
        if (figure := Figure.of(alike)) is not None:
            figures.setdefault(run.peer, {})[run.sessions] = figure
    counts = [run.sessions for run in results.held]
    most = max(figure.high for of_peer in figures.values() for figure in of_peer.values())
    x = logarithmic("sessions held at a time", counts, least=min(counts), most=max(counts))
    y = linear("memory of a session, kB (less is better)", rounded(most))
    panel = _single("Memory of a held session: fall of the machine's available memory ÷ sessions", x, y)
    _lines(panel, {name: [(count, figure.median) for count, figure in sorted(known.items())] for name, known in figures.items()}, results)
    for name, known in figures.items():
        for count, figure in known.items():
            panel.mark((count, figure.median), figure.low, figure.high, _look(name, results))
    return panel.drawing


def opening_chart(results: Results) -> Drawing | None:
    """Lines: the time to open the n-th session, while all before it are held; medians of hundredths, then of the rounds."""
    if not results.held:
        return None
    most = max(run.sessions for run in results.held)
    lines = {}
    for name in dict.fromkeys(run.peer for run in results.held):
        runs = [run.opening for run in results.held if (run.peer, run.sessions) == (name, most)]
        points = [point.median * 1e3 for values in zip(*runs, strict=True) if (point := Figure.of(values))]
        lines[name] = [(most * (at + 1) / len(points), point) for at, point in enumerate(points)]
    x = linear("sessions held already", rounded(most))
    times = [value for line in lines.values() for _, value in line]
    y = logarithmic("time to open one more, ms (less is better)", times, least=LATENCIES[0], most=LATENCIES[1])
    panel = _single(f"Opening one session after the other, up to {most:,}, all of them held", x, y)
    _lines(panel, lines, results)
    return panel.drawing


def _single(title: str, x: Axis, y: Axis) -> Panel:
    """Return the panel of a chart that has one."""
    return Panel(Drawing(MARGIN + PANEL + LEGEND, 400, title), MARGIN, 44, PANEL, 300, x, y)


def _lines(panel: Panel, lines: dict[str, list[tuple[float, float]]], results: Results) -> None:
    """Draw a panel with a line for each server, poold's on top, and say beside it which is which."""
    panel.frame()
    for name in sorted(lines, key=lambda name: name.startswith(POOLD)):
        panel.line(lines[name], _look(name, results))
    panel.drawing.legend(panel.left + panel.width + 16, panel.top + 20, ((name, _look(name, results)) for name in lines))


def _latencies(results: Results, name: str) -> list[tuple[float, float]]:
    """Return the points of a server's line: parts of the sessions, and milliseconds."""
    runs = [run for run in results.open if (run.peer, run.rate) == (name, RATE)]
    # Beyond this part of them there is less than one session: nothing to be seen there.
    least = min(run.ended for run in runs)
    points = dict(zip(QUANTILES, (Figure.of(values) for values in zip(*(run.quantiles for run in runs), strict=True)), strict=True))
    return [(part, point.median * 1e3) for part in DRAWN if (point := points[part]) is not None and part * least < least - 1]


def _by_service(results: Results, names: Sequence[str]) -> dict[str, list[str]]:
    """Return the servers among these for each service, but for the one that is nobody's rival."""
    groups = {
        service.name: [
            name for name, facts in results.peers.items() if facts["service"] == service.name and name in names and name != CEILING
        ]
        for service in (ECHO, HTTP)
    }
    return {service: found for service, found in groups.items() if found}


def _nines(part: float) -> float:
    """Return a part's place on an axis that ends with the last one drawn and has as much room for 90 to 99 % as for 0 to 90 %."""
    return math.log(1 - part) / math.log(1 - DRAWN[-1])


def _look(name: str, results: Results) -> Look:
    """Return how a server's line is drawn; the same in every chart of a run."""
    service = results.peers[name]["service"]
    ours = [peer for peer in results.peers if peer.startswith(POOLD) and results.peers[peer]["service"] == service]
    others = [peer for peer in results.peers if not peer.startswith(POOLD) and results.peers[peer]["service"] == service]
    if name in ours:
        return Look(WARM[ours.index(name) % len(WARM)], 2.6)
    at = others.index(name)
    return Look(COOL[at % len(COOL)], 1.3, DASHES[at % len(DASHES)])
