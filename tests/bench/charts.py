"""The charts, drawn from the results: poold in warm, strong colours, everybody else in cool, thin ones."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from tests.bench.load import QUANTILES
from tests.bench.peer import ECHO, HTTP
from tests.bench.peers import CEILING, POOLD
from tests.bench.report import number
from tests.bench.results import Results
from tests.bench.summary import Figure, throughput
from tests.bench.targets import CONCURRENCY, RATE

WARM = ("#c2410c", "#f59e0b", "#be185d")
COOL = ("#1e40af", "#0f766e", "#6b7280", "#7dd3fc", "#a78bfa", "#84cc16", "#334155")
PLAIN = "#94a3b8"
STYLES = ("-", "--", "-.", ":")
# A percentile's place on an axis that has as much room for 99 to 99.9 as for 0 to 90: in nines.
TICKS = (0.0, 0.5, 0.9, 0.99, 0.999)
THOUSANDS = FuncFormatter(lambda value, _: f"{value:,.0f}")


def draw(results: Results, folder: Path) -> list[Path]:
    """Draw every chart that there are figures for, and return the files."""
    makers: dict[str, Callable[[Results], Canvas | None]] = {
        "throughput.svg": throughput_chart,
        "latency.svg": latency_chart,
        "memory.svg": memory_chart,
        "opening.svg": opening_chart,
    }
    written = []
    for name, make in makers.items():
        canvas = make(results)
        if canvas is not None:
            canvas.savefig(folder / name)
            written.append(folder / name)
    return written


def throughput_chart(results: Results) -> Canvas | None:
    """Bars: sessions a second, the closed loop; the whiskers are the least and the greatest of the rounds."""
    groups = _by_service(results, [run.peer for run in results.closed if run.concurrency == CONCURRENCY])
    if not groups:
        return None
    heights = [len(names) + 1.5 for names in groups.values()]
    canvas = Canvas(figsize=(9, 0.42 * sum(heights) + 0.8), layout="constrained")
    canvas.suptitle(f"Sessions a second on one core, {CONCURRENCY} at a time")
    panels = canvas.subplots(len(groups), 1, squeeze=False, gridspec_kw={"height_ratios": heights})
    for axes, (service, names) in zip(panels[:, 0], groups.items(), strict=True):
        figures = {name: Figure.of(throughput(results, name, CONCURRENCY).values()) for name in names}
        known = sorted(((name, figure) for name, figure in figures.items() if figure is not None), key=lambda pair: pair[1].median)
        labels = [name for name, _ in known]
        medians = [figure.median for _, figure in known]
        whiskers = [[figure.median - figure.low for _, figure in known], [figure.high - figure.median for _, figure in known]]
        bars = axes.barh(
            labels,
            medians,
            xerr=whiskers,
            color=[_look(name, results)["color"] if name.startswith(POOLD) else PLAIN for name in labels],
            error_kw={"lw": 1, "capsize": 3},
        )
        axes.bar_label(bars, [number(median) for median in medians], padding=6, fontsize=9)
        axes.set_xlabel(f"{service} sessions per second (more is better)")
        axes.xaxis.set_major_formatter(THOUSANDS)
        axes.margins(x=0.12)
        _tidy(axes)
    return canvas


def latency_chart(results: Results) -> Canvas | None:
    """Lines: latency over percentiles, the open loop; at each percentile the median of the rounds."""
    groups = _by_service(results, [run.peer for run in results.open if run.rate == RATE])
    if not groups:
        return None
    canvas = Canvas(figsize=(10, 4.2 * len(groups)), layout="constrained")
    canvas.suptitle(f"Latency of a session, {RATE} due each second, counted from when it was due")
    panels = canvas.subplots(len(groups), 1, squeeze=False)
    for axes, (service, names) in zip(panels[:, 0], groups.items(), strict=True):
        for name in names:
            runs = [run.quantiles for run in results.open if (run.peer, run.rate) == (name, RATE)]
            points = [Figure.of(values) for values in zip(*runs, strict=True)]
            # Beyond this part of them there is less than one session: nothing to be seen there.
            least = min(run.ended for run in results.open if (run.peer, run.rate) == (name, RATE))
            known = ((part, point) for part, point in zip(QUANTILES, points, strict=True) if point is not None and part * least < least - 1)
            line = [(_nines(part), point.median * 1e3) for part, point in known]
            axes.plot([x for x, _ in line], [y for _, y in line], label=name, **_look(name, results))
        _logarithmic(axes)
        axes.xaxis.set_major_locator(FixedLocator([_nines(tick) for tick in TICKS]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 - 100 * 10**-value:g} %"))
        axes.set_xlabel("share of sessions that were served in so long or less")
        axes.set_ylabel(f"latency of {service} sessions, ms")
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
        _tidy(axes)
    return canvas


def memory_chart(results: Results) -> Canvas | None:
    """Points: memory a session over the number held; the whiskers are the least and the greatest of the rounds."""
    if not results.held:
        return None
    canvas = Canvas(figsize=(9, 4.5), layout="constrained")
    axes = canvas.subplots()
    axes.set_title("Memory of a held session: fall of the machine's available memory ÷ sessions")
    for name in dict.fromkeys(run.peer for run in results.held):
        counts = sorted({run.sessions for run in results.held if run.peer == name})
        figures = [Figure.of(run.bytes_each / 1e3 for run in results.held if (run.peer, run.sessions) == (name, count)) for count in counts]
        known = [(count, figure) for count, figure in zip(counts, figures, strict=True) if figure is not None]
        whiskers = [[figure.median - figure.low for _, figure in known], [figure.high - figure.median for _, figure in known]]
        medians = [figure.median for _, figure in known]
        axes.errorbar([count for count, _ in known], medians, yerr=whiskers, label=name, marker="o", capsize=3, **_look(name, results))
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(sorted({run.sessions for run in results.held})))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(THOUSANDS)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("sessions held at a time")
    axes.set_ylabel("memory of a session, kB (less is better)")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    _tidy(axes)
    return canvas


def opening_chart(results: Results) -> Canvas | None:
    """Lines: the time to open the n-th session, while all before it are held; medians of hundredths, then of the rounds."""
    if not results.held:
        return None
    most = max(run.sessions for run in results.held)
    canvas = Canvas(figsize=(9, 4.5), layout="constrained")
    axes = canvas.subplots()
    axes.set_title(f"Opening one session after the other, up to {most:,}, all of them held")
    for name in dict.fromkeys(run.peer for run in results.held):
        runs = [run.opening for run in results.held if (run.peer, run.sessions) == (name, most)]
        points = [point.median * 1e3 for values in zip(*runs, strict=True) if (point := Figure.of(values))]
        places = [most * (at + 1) / len(points) for at in range(len(points))]
        axes.plot(places, points, label=name, **_look(name, results))
    _logarithmic(axes)
    axes.xaxis.set_major_formatter(THOUSANDS)
    axes.set_xlim(0, most)
    axes.set_xlabel("sessions held already")
    axes.set_ylabel("time to open one more, ms (less is better)")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    _tidy(axes)
    return canvas


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
    return -math.log10(1 - part)


def _look(name: str, results: Results) -> dict[str, Any]:
    """Return how a server's line is drawn; the same in every chart of a run."""
    service = results.peers[name]["service"]
    ours = [peer for peer in results.peers if peer.startswith(POOLD) and results.peers[peer]["service"] == service]
    others = [peer for peer in results.peers if not peer.startswith(POOLD) and results.peers[peer]["service"] == service]
    if name in ours:
        return {"color": WARM[ours.index(name) % len(WARM)], "linewidth": 2.6, "zorder": 3}
    at = others.index(name)
    return {"color": COOL[at % len(COOL)], "linestyle": STYLES[at % len(STYLES)], "linewidth": 1.3, "zorder": 2}


def _logarithmic(axes: Axes) -> None:
    """Make the y axis logarithmic, with its numbers written out: 0.5, 1, 2, 5, 10."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, which="major", alpha=0.25)
    axes.set_axisbelow(True)
