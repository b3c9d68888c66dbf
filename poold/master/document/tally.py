"""Counters from one program to the next: by name, because another version may have other ones, in other places."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from poold import scoreboard as board
from poold.log import log
from poold.master.document.part import Part, within
from poold.scoreboard import Counters, Histogram


@dataclass(frozen=True, slots=True)
class HistogramPart:
    """Counts by upper bound, one more for what is above them all, and the sum in micro-units."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: int

    def __post_init__(self) -> None:
        if len(self.counts) != len(self.bounds) + 1:
            raise ValueError("a histogram has one count more than bounds")
        if any(math.isnan(bound) for bound in self.bounds):
            raise ValueError("a bound is a number")
        for count in (*self.counts, self.total):
            within("a count", count, 0)


@dataclass(frozen=True, slots=True)
class TallyPart:
    """Counters by name, because the next version may keep them elsewhere; `listeners` has every label used so far, in order."""

    listeners: tuple[str, ...] = ()
    counts: dict[str, int] = field(default_factory=dict)
    histograms: dict[str, HistogramPart] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for count in self.counts.values():
            within("a count", count, 0)


@dataclass(frozen=True, kw_only=True)
class CountersPart(Part):
    """What has been counted."""

    tally: TallyPart


class Tally:
    """The owner of what has been counted: what crosses an upgrade of the counters."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters

    def save(self) -> CountersPart:
        """Return what has been counted so far."""
        return CountersPart(tally=taken(self._counters))

    def restore(self, part: CountersPart) -> None:
        """Go on counting where the program before has stopped. Raises LookupError."""
        resume(self._counters, part.tally)


_WORDS: dict[str, Mapping[Any, int]] = {
    "refused": board.REFUSED,
    "ended": board.ENDED,
    "spawned": board.SPAWNED,
    "reaped": board.REAPED,
    "failed": board.FAILED,
    "fork_failures": board.FORK_FAILURES,
    "accept_errors": board.ACCEPT_ERRORS,
    "reloads": board.RELOADS,
    "upgrades": board.UPGRADES,
}
_SINGLE = {
    "unknown_reaped": board.UNKNOWN_REAPED,
    "reload_successful": board.RELOAD_SUCCESSFUL,
    "reload_success_at": board.RELOAD_SUCCESS_AT,
    "log_dropped": board.LOG_DROPPED,
    "loop_errors": board.LOOP_ERRORS,
    "mold_starts": board.MOLD_STARTS,
    "process_started": board.PROCESS_STARTED,
}
_HISTOGRAMS = {
    "session_seconds": board.SESSION_SECONDS,
    "cpu_seconds": board.CPU_SECONDS,
    "memory_bytes": board.MEMORY_BYTES,
    "handover_seconds": board.HANDOVER_SECONDS,
    "loop_seconds": board.LOOP_SECONDS,
}


def _cells(listeners: list[str]) -> Iterator[tuple[str, int]]:
    """Yield name and cell of each counter that is not part of a histogram."""
    yield from _SINGLE.items()
    for table, cells in _WORDS.items():
        yield from ((f"{table}/{word}", cell) for word, cell in cells.items())
    yield from ((f"accepted/{name}", board.ACCEPTED[number]) for number, name in enumerate(listeners))


def taken(counters: Counters) -> TallyPart:
    """Return what has been counted so far."""
    listeners = list(counters.names)
    return TallyPart(
        listeners=tuple(listeners),
        counts={name: counters.cells[cell] for name, cell in _cells(listeners)},
        histograms={name: _read(counters, where) for name, where in _HISTOGRAMS.items()},
    )


def _read(counters: Counters, where: Histogram) -> HistogramPart:
    counts = counters.cells[where.first : where.first + len(where.buckets) + 1]
    return HistogramPart(bounds=where.buckets, counts=tuple(counts), total=counters.cells[where.total])


def resume(counters: Counters, tally: TallyPart) -> None:
    """Go on counting where the program before has stopped. Raises LookupError when it had more listeners' names than there is room for."""
    for name in tally.listeners:
        counters.listener(name)
    for name, cell in _cells(list(counters.names)):
        counters.cells[cell] = tally.counts.get(name, 0)
    for name, part in tally.histograms.items():
        if name in _HISTOGRAMS:
            _write(counters, _HISTOGRAMS[name], part)
    # Kept where it is counted, and copied into the cell each turn.
    log.dropped += counters.cells[board.LOG_DROPPED]


def _write(counters: Counters, where: Histogram, part: HistogramPart) -> None:
    """Add counts to the buckets they belong to; where the bounds have changed, to the next wider one, so that none is lost."""
    for bound, count in zip((*part.bounds, float("inf")), part.counts, strict=True):
        wider = next((index for index, each in enumerate(where.buckets) if bound <= each), len(where.buckets))
        counters.cells[where.first + wider] += count
    counters.cells[where.total] = part.total
