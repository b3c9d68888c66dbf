"""poold's targets, and whether a run met them: each a figure of this run beside the least that is asked for and what is aimed at."""

from collections.abc import Iterator
from dataclasses import dataclass

from tests.bench.peers import POOLD
from tests.bench.results import MasterLook, Results
from tests.bench.summary import Figure, median_latency, ratio, throughput

CONCURRENCY = 32
RATE = 200
MANY = 10_000
MB = 1e6
# A machine that stood still for longer than this shows in what newcomers waited.
STILL = 0.005


@dataclass(frozen=True, slots=True)
class Verdict:
    """One target. `least` says that greater is better; a figure of None was not measured; a note says what it is of, if not as asked."""

    name: str
    what: str
    unit: str
    figure: Figure | None
    target: float
    aim: float | None = None
    least: bool = False
    note: str = ""

    @property
    def word(self) -> str:
        """Say in a word how it came out."""
        if self.figure is None:
            return "not measured"
        if self.aim is not None and self._meets(self.aim):
            return "aim met"
        return "met" if self._meets(self.target) else "MISSED"

    def _meets(self, bound: float) -> bool:
        assert self.figure is not None
        return self.figure.median >= bound if self.least else self.figure.median <= bound


def verdicts(results: Results) -> Iterator[Verdict]:
    """Yield the verdict on every target."""
    yield from _ratios(results)
    yield from _held(results)
    yield from _master(results)
    yield from _moments(results)


def _ratios(results: Results) -> Iterator[Verdict]:
    rate = {peer: throughput(results, peer, CONCURRENCY) for peer in results.peers}
    wait = {peer: median_latency(results, peer, RATE) for peer in results.peers}

    def rates(peer: str, other: str) -> Figure | None:
        return ratio(rate.get(peer, {}), rate.get(other, {}))

    def waits(peer: str, other: str) -> Figure | None:
        return ratio(wait.get(peer, {}), wait.get(other, {}))

    speed, late = f"sessions/s, {CONCURRENCY} at a time", f"median latency at {RATE}/s"
    yield Verdict("P1", f"{speed}: poold ÷ ForkingTCPServer", "", rates(POOLD, "ForkingTCPServer"), 1.3, 1.5, least=True)
    yield Verdict("P2", f"{speed}: poold ÷ tcpserver with cat", "", rates(POOLD, "tcpserver"), 1.0, least=True)
    yield Verdict("P3", f"{late}: poold ÷ ForkingTCPServer", "", waits(POOLD, "ForkingTCPServer"), 0.35)
    yield Verdict("P4", f"{late}: poold ÷ fork in C", "", waits(POOLD, "C-fork"), 1.2, 1.0)
    yield Verdict("P5", f"{speed}: poold reused ÷ fork in C", "", rates("poold-reused", "C-fork"), 1.0, 1.5, least=True)


def _held(results: Results) -> Iterator[Verdict]:
    runs = [run for run in results.held if run.peer == POOLD]
    most = max((run.sessions for run in runs), default=MANY)
    runs = [run for run in runs if run.sessions == most]
    note = "" if most == MANY else f"of {most:,}"
    memory = Figure.of(run.bytes_each / 1000 for run in runs)
    slower = Figure.of(run.last_hundred / run.first_hundred for run in runs)
    yield Verdict("P6", f"memory of a session, {MANY:,} held", "kB", memory, 650, 450, note=note)
    yield Verdict("P7", f"opening the last hundred of {MANY:,} ÷ the first", "", slower, 1.1, note=note)


def _master(results: Results) -> Iterator[Verdict]:
    most = max((seen.sessions for seen in results.master), default=MANY)
    full = [seen for seen in results.master if seen.sessions == most]
    empty = {seen.round: seen for seen in results.master if seen.sessions == 0}
    note = "" if most == MANY else f"with {most:,}"

    def beyond(seen: MasterLook) -> float:
        # A spare has a channel and a page.
        before = empty[seen.round]
        more = (seen.descriptors - 2 * seen.spares) - (before.descriptors - 2 * before.spares)
        return more / max(1, seen.sessions)

    yield Verdict("P8", f"master with {MANY:,} sessions: RSS", "MB", Figure.of(seen.resident / MB for seen in full), 30, note=note)
    wakeups = Figure.of(seen.wakeups_per_second for seen in full)
    yield Verdict("P8", "the same, idle: wakeups a second", "", wakeups, 0, note=note)
    descriptors = Figure.of(beyond(seen) for seen in full if seen.round in empty)
    yield Verdict("P8", "the same: descriptors of each session", "", descriptors, 1, note=note)
    yield Verdict("P9", f"a scrape with {MANY:,} sessions", "ms", Figure.of(seen.scrape * 1e3 for seen in full), 5, note=note)


def _moments(results: Results) -> Iterator[Verdict]:
    pauses = Figure.of(run.longest * 1e3 for run in results.reloads)
    worst = max((run.lost for run in results.reloads), default=None)
    refused = sum(not run.applied for run in results.reloads)
    slowest = max(results.reloads, key=lambda run: run.longest, default=None)
    still = (slowest.machine_pause if slowest else None) or 0
    note = f"in the longest the machine itself stood still for {still * 1e3:.0f} ms" if still > STILL else ""
    yield Verdict("P10", f"longest wait of a newcomer during a reload, {RATE}/s", "ms", pauses, 15, note=note)
    # Not a median: one that was lost is one too many.
    lost = None if worst is None else Figure.of([worst])
    yield Verdict("P10", "the same: refused or lost", "", lost, 0, note=f"{refused} reloads not applied" if refused else "")
    yield Verdict(
        "P11", "from start to READY, on one core", "ms", Figure.of(run.seconds * 1e3 for run in results.starts if run.cores == 1), 200
    )
