"""The results as a text: markdown tables that are read as well in a terminal."""

from collections.abc import Iterable, Sequence

from tests.bench.peer import ECHO, HTTP
from tests.bench.peers import CEILING
from tests.bench.results import Results
from tests.bench.summary import Figure
from tests.bench.targets import verdicts

BUSY = 0.9
# The fastest server must stay so far below what the generator can do that it is the server which is measured.
CLEAR = 1.5
NOTHING = "-"

METHOD = """\
Figures are medians of the rounds, with the least and the greatest in brackets; ratios are taken within a round. Every turn of a server
is a fresh process on a core of its own, with all its children; the load generator has the other core. Servers take turns, ABCABC….
Latency is counted from the time a session was due, so a server or a generator that is late does not look fast. An open rate above what a
server reached in its closed loop is left out: its latency would only tell how long the run was."""


def render(results: Results) -> str:
    """Return the whole report."""
    parts = [
        ["# poold and others, side by side", "", METHOD],
        table(("what", "this run"), results.environment.items()),
        _servers(results),
        *(_closed(results, service.name) for service in (ECHO, HTTP)),
        _generator(results),
        *(_open(results, service.name) for service in (ECHO, HTTP)),
        _held(results),
        _master(results),
        _moments(results),
        _troubles(results),
        _targets(results),
    ]
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def section(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a heading and a table; none when the table would be empty."""
    return [f"## {title}", "", *table(header, rows)] if rows else []


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return a markdown table, aligned: words to the left, figures to the right."""
    body = [list(row) for row in rows]
    widths = [max(len(row[column]) for row in (header, *body)) for column in range(len(header))]
    rights = [all(row[column].lstrip("-")[:1].isdigit() or row[column] in ("", NOTHING) for row in body) for column in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = (cell.rjust(width) if right else cell.ljust(width) for cell, width, right in zip(cells, widths, rights, strict=True))
        return f"| {' | '.join(padded)} |"

    rule = "|".join("-" * (width + 1) + (":" if right else "-") for width, right in zip(widths, rights, strict=True))
    return [line(header), f"|{rule}|", *map(line, body)]


def number(value: float) -> str:
    """Return a number with three significant digits, thousands apart."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def spread(figure: Figure | None) -> str:
    """Return a figure with its spread, which is left out where there was one value only."""
    if figure is None:
        return NOTHING
    if figure.low == figure.high:
        return number(figure.median)
    return f"{number(figure.median)} [{number(figure.low)} to {number(figure.high)}]"


def _peers(results: Results, service: str) -> list[str]:
    return [name for name, facts in results.peers.items() if facts["service"] == service]


def _servers(results: Results) -> list[str]:
    rows = [(name, facts["about"], facts["version"]) for name, facts in results.peers.items()]
    rows += [(name, f"left out: {reason}", "") for name, reason in results.skipped.items()]
    return section("Servers", ("name", "what it is", "version"), rows)


def _closed(results: Results, service: str) -> list[str]:
    levels = sorted({run.concurrency for run in results.closed})
    rows = []
    for peer in _peers(results, service):
        cells = [peer]
        for level in levels:
            runs = [run for run in results.closed if (run.peer, run.concurrency) == (peer, level)]
            cells.append(spread(Figure.of(run.sessions_per_second for run in runs)) + "*" * any(run.generator_share > BUSY for run in runs))
        rows.append(cells)
    return section(f"{service}, closed loop: sessions/s", ("", *(f"{level} at a time" for level in levels)), rows if levels else [])


def _generator(results: Results) -> list[str]:
    """Say whether it was the servers that were measured."""
    lines = []
    for level in sorted({run.concurrency for run in results.closed}):
        rates: dict[str, float] = {}
        for peer in results.peers:
            figure = Figure.of(run.sessions_per_second for run in results.closed if (run.peer, run.concurrency) == (peer, level))
            if figure is not None:
                rates[peer] = figure.median
        ceiling = rates.pop(CEILING, None)
        if ceiling is None or not rates:
            continue
        fastest = max(rates, key=lambda peer: rates[peer])
        times = ceiling / rates[fastest]
        lines.append(
            f"- {level} at a time the generator can do {number(ceiling)} sessions/s ({CEILING}), {times:.1f} times the fastest server"
            f" ({fastest}){'' if times >= CLEAR else ': TOO CLOSE, that server may be faster than it looks'}."
        )
    if not lines:
        return []
    shares = [run.generator_share for run in results.closed if run.peer != CEILING]
    if shares:
        lines.append(
            f"- Of its core it used at most {max(shares):.0%} with any other server; a * marks servers with which it was above {BUSY:.0%}."
        )
    return ["## Is it the load generator that was measured?", "", *lines]


def _open(results: Results, service: str) -> list[str]:
    rates = sorted({run.rate for run in results.open})
    rows = []
    for peer in _peers(results, service):
        for rate in rates:
            runs = [run for run in results.open if (run.peer, run.rate) == (peer, rate)]
            if runs:
                figures = (Figure.of(getattr(run, name) * 1e3 for run in runs) for name in ("p50", "p99", "max"))
                rows.append((peer, f"{rate:,}/s", *map(spread, figures), str(sum(run.failed for run in runs))))
    return section(f"{service}, open loop: latency in ms", ("", "rate", "p50", "p99", "max", "failed"), rows)


def _held(results: Results) -> list[str]:
    rows = []
    for peer, sessions in dict.fromkeys((run.peer, run.sessions) for run in results.held):
        runs = [run for run in results.held if (run.peer, run.sessions) == (peer, sessions)]
        rows.append(
            (
                peer,
                f"{sessions:,}",
                spread(Figure.of(run.bytes_each / 1e3 for run in runs)),
                spread(Figure.of(run.seconds for run in runs)),
                spread(Figure.of(run.first_hundred * 1e3 for run in runs)),
                spread(Figure.of(run.last_hundred * 1e3 for run in runs)),
                spread(Figure.of(run.last_hundred / run.first_hundred for run in runs)),
            )
        )
    header = ("", "sessions", "kB each", "s to open all", "ms, first 100", "ms, last 100", "last ÷ first")
    return section("Sessions that are held", header, rows)


# What a line is, which attribute of a look it shows, and what turns that into the line's unit.
MASTER_ROWS = (
    ("RSS, MB", "resident", 1e-6),
    ("private memory, MB", "private", 1e-6),
    ("descriptors", "descriptors", 1),
    ("spares", "spares", 1),
    ("wakeups/s, idle", "wakeups_per_second", 1),
    ("a scrape of /metrics, ms", "scrape", 1e3),
    ("poold status, ms", "status", 1e3),
    ("poold ps, ms", "ps", 1e3),
    ("turns of its loop", "loop_turns", 1),
    ("mean turn, ms", "loop_mean", 1e3),
    ("every turn was below, ms", "loop_longest", 1e3),
)


def _master(results: Results) -> list[str]:
    counts = sorted({seen.sessions for seen in results.master})
    rows = []
    for what, name, scale in MASTER_ROWS:
        cells = [what]
        for sessions in counts:
            values = [getattr(seen, name) for seen in results.master if seen.sessions == sessions]
            cells.append(spread(Figure.of(value * scale for value in values if value is not None)))
        rows.append(cells)
    header = ("", *(f"{sessions:,} sessions" for sessions in counts))
    return section("poold's master", header, rows if counts else [])


def _moments(results: Results) -> list[str]:
    rows = []
    if results.reloads:
        applied = sum(run.applied for run in results.reloads)
        what = (
            f"longest wait during a reload ({applied} of {len(results.reloads)} applied, {sum(run.lost for run in results.reloads)} lost)"
        )
        rows.append((what, spread(Figure.of(run.longest * 1e3 for run in results.reloads))))
        rows.append(("median wait, the same loops", spread(Figure.of(run.p50 * 1e3 for run in results.reloads))))
        pauses = Figure.of(run.machine_pause * 1e3 for run in results.reloads if run.machine_pause is not None)
        rows.append(("longest time in which the machine itself stood still, the same loops", spread(pauses)))
    for cores in sorted({run.cores for run in results.starts}):
        what = f"start to READY with {cores} core{'s' * (cores > 1)}"
        rows.append((what, spread(Figure.of(run.seconds * 1e3 for run in results.starts if run.cores == cores))))
    return section("poold's reload and start", ("", "ms"), rows)


def _troubles(results: Results) -> list[str]:
    return ["## What went wrong", "", *(f"- {trouble}" for trouble in results.troubles)] if results.troubles else []


def _targets(results: Results) -> list[str]:
    rows = []
    for verdict in verdicts(results):
        sign = "≥" if verdict.least else "≤"
        bound = f"{sign} {number(verdict.target)} {verdict.unit}".rstrip()
        aim = "" if verdict.aim is None else number(verdict.aim)
        what = f"{verdict.what} ({verdict.note})" if verdict.note else verdict.what
        rows.append((verdict.name, what, spread(verdict.figure), bound, aim, verdict.word))
    return section("Targets", ("", "what", "this run", "target", "aim", "verdict"), rows)
