"""From runs to figures: medians of the rounds with their spread, and ratios of two servers' figures round by round."""

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self

from tests.bench.results import Results


@dataclass(frozen=True, slots=True)
class Figure:
    """A median, and the least and the greatest of the values it was taken from."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Self | None:
        """Return the figure of some values, None when there are none."""
        found = sorted(values)
        return cls(statistics.median(found), found[0], found[-1]) if found else None


def ratio(above: Mapping[int, float], below: Mapping[int, float]) -> Figure | None:
    """Return the figure of the rounds' own ratios: what drifts from one round to the next is in both parts and cancels."""
    return Figure.of(value / below[number] for number, value in above.items() if below.get(number))


def throughput(results: Results, peer: str, concurrency: int) -> dict[int, float]:
    """Return a server's sessions a second in each round."""
    return {run.round: run.sessions_per_second for run in results.closed if (run.peer, run.concurrency) == (peer, concurrency)}


def median_latency(results: Results, peer: str, rate: int) -> dict[int, float]:
    """Return the median latency of a server's open loop in each round."""
    return {run.round: run.p50 for run in results.open if (run.peer, run.rate) == (peer, rate)}
