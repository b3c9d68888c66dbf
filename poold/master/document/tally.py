"""Carries the counters from one program of the master to the next, by name.

Another version may keep a counter in another cell.

The names are those of the rows in `poold.scoreboard` that are carried, with the label values behind
them: `refused/full`, `accepted/main`.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from poold.log import log
from poold.master.document.part import Part, check_range
from poold.metrictable import Histogram, MetricType
from poold.scoreboard import LOG_DROPPED, METRICS, Counters

_COUNTED = [metric for metric in METRICS if metric.carried and metric.type is not MetricType.HISTOGRAM]
_HISTOGRAMS = {metric.carried: metric.histogram for metric in METRICS if metric.carried and metric.type is MetricType.HISTOGRAM}


@dataclass(frozen=True, slots=True)
class HistogramPart:
    """Counts by upper bound, one count for what is above all bounds, and the sum in micro-units."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: int

    def __post_init__(self) -> None:
        if len(self.counts) != len(self.bounds) + 1:
            raise ValueError("a histogram has one count more than bounds")
        if any(math.isnan(bound) for bound in self.bounds):
            raise ValueError("a bound is a number")
        for count in (*self.counts, self.total):
            check_range("a count", count, 0)


@dataclass(frozen=True, slots=True)
class TallyPart:
    """Counters by name. `listeners` has the listeners' names in the order of their numbers."""

    listeners: tuple[str, ...] = ()
    counts: dict[str, int] = field(default_factory=dict)
    histograms: dict[str, HistogramPart] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for count in self.counts.values():
            check_range("a count", count, 0)


@dataclass(frozen=True, kw_only=True)
class CountersPart(Part):
    """The counters."""

    tally: TallyPart


class Tally:
    """Saves and restores the counters."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters

    def save(self) -> CountersPart:
        """Return the counters as of this moment."""
        return CountersPart(tally=read_tally(self._counters))

    def restore(self, part: CountersPart) -> None:
        """Begin counting at the numbers that the previous program has reached.

        Raises LookupError.
        """
        load_tally(self._counters, part.tally)


def _named_cells(listeners: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Yield name and cell of each figure that is carried, except those of histograms."""
    for metric in _COUNTED:
        yield from (("/".join((metric.carried, *values)), cell) for values, cell in metric.series(listeners))


def read_tally(counters: Counters) -> TallyPart:
    """Return the counters as of this moment."""
    listeners = tuple(counters.names)
    return TallyPart(
        listeners=listeners,
        counts={name: counters.cells[cell] for name, cell in _named_cells(listeners)},
        histograms={name: _read_histogram(counters, histogram) for name, histogram in _HISTOGRAMS.items()},
    )


def _read_histogram(counters: Counters, histogram: Histogram) -> HistogramPart:
    counts = counters.cells[histogram.first : histogram.first + len(histogram.buckets) + 1]
    return HistogramPart(bounds=histogram.buckets, counts=tuple(counts), total=counters.cells[histogram.total])


def load_tally(counters: Counters, tally: TallyPart) -> None:
    """Begin counting at the numbers in `tally`. A count that is missing begins at 0.

    Raises LookupError when the previous program had more listeners' names than there are cells for.
    """
    for name in tally.listeners:
        counters.listener(name)
    for name, cell in _named_cells(tuple(counters.names)):
        counters.cells[cell] = tally.counts.get(name, 0)
    for name, part in tally.histograms.items():
        if name in _HISTOGRAMS:
            _load_histogram(counters, _HISTOGRAMS[name], part)
    # The log counts these lines, and `Gauges` copies the count into the cell each turn.
    log.dropped += counters.cells[LOG_DROPPED]


def _load_histogram(counters: Counters, histogram: Histogram, part: HistogramPart) -> None:
    """Add counts to the buckets to which the counts belong.

    A bucket of the previous program may be missing here. That bucket's count goes to the next wider
    bucket, so that the number of values stays.
    """
    for bound, count in zip((*part.bounds, float("inf")), part.counts, strict=True):
        wider = next((index for index, each in enumerate(histogram.buckets) if bound <= each), len(histogram.buckets))
        counters.cells[histogram.first + wider] += count
    counters.cells[histogram.total] = part.total
