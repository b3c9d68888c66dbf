"""Says what a row of the table of metrics holds, and deals out the cells of a row.

The rows stand in `poold.scoreboard`.

A row has a name, a type, a help text and labels. Everything else follows from the rows:

cells        `MetricTable` gives each figure a place in the shared counters

exposition   `poold.exporter.collector` turns every row into a metric family
status       `poold.report` shows the rows that have a place in `status`
upgrade      `poold.master.document.tally` carries the rows that are `carried`
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, StrEnum, auto
from itertools import count, product
from typing import Generic, TypeVar
from zlib import crc32

Places_co = TypeVar("Places_co", covariant=True)
Word = TypeVar("Word", bound=str)
OtherWord = TypeVar("OtherWord", bound=str)
# Label values and the cell of their figure.
Series = Iterator[tuple[tuple[str, ...], int]]


class MetricType(StrEnum):
    """The type of a metric, in the word of the exposition format."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class CellUnit(Enum):
    """What the integer in a cell counts.

    A metric tells microseconds as seconds; `poold status` tells a flag as true or false.
    """

    ONE = auto()
    MICROSECOND = auto()
    FLAG = auto()


@dataclass(frozen=True, slots=True)
class Histogram:
    """Where a histogram's cells are: one for each bucket, one above them, then the sum.

    The sum is in micro-units.
    """

    buckets: tuple[float, ...]
    first: int
    total: int


class Labels(ABC, Generic[Places_co]):
    """The labels of a metric: names, values, and how the code that counts finds the cells."""

    names: tuple[str, ...] = ()
    # Each combination of label values in the order of the cells. None: the values are the
    # listeners' names.
    values: tuple[tuple[str, ...], ...] | None = ((),)
    # Upper bounds of a histogram's buckets, in the unit of the metric.
    buckets: tuple[float, ...] = ()
    # Cells of flags, one for each series. A series whose flag is 0 has no figure now.
    known: Sequence[int] | None = None
    size: int = 1

    @abstractmethod
    def places(self, first: int) -> Places_co:
        """Return what the code that counts finds the cells in, where `first` is the first cell."""


class NoLabel(Labels[int]):
    """One figure, in one cell."""

    def places(self, first: int) -> int:
        """Return the cell."""
        return first


class WordLabel(Labels[dict[Word, int]]):
    """One label, whose values are a closed set of words."""

    def __init__(self, name: str, words: Iterable[Word]) -> None:
        self._words = tuple(words)
        self.names = (name,)
        self.values = tuple((str(word),) for word in self._words)
        self.size = len(self._words)

    def places(self, first: int) -> dict[Word, int]:
        """Return the cell of each word."""
        return dict(zip(self._words, count(first)))


class WordLabels(Labels[dict[tuple[Word, OtherWord], int]]):
    """Two labels, whose values are closed sets of words."""

    def __init__(self, name: str, words: Iterable[Word], other_name: str, other_words: Iterable[OtherWord]) -> None:
        self._pairs = tuple(product(words, other_words))
        self.names = (name, other_name)
        self.values = tuple((str(word), str(other)) for word, other in self._pairs)
        self.size = len(self._pairs)

    def places(self, first: int) -> dict[tuple[Word, OtherWord], int]:
        """Return the cell of each pair of words."""
        return dict(zip(self._pairs, count(first)))


class FactLabels(Labels[int]):
    """Labels that tell facts about the program that reads.

    There is one figure, which the code that counts sets to 1.
    """

    def __init__(self, facts: Mapping[str, str]) -> None:
        self.names = tuple(facts)
        self.values = (tuple(facts.values()),)

    def places(self, first: int) -> int:
        """Return the cell."""
        return first


class ListenerLabel(Labels[range]):
    """The label `listener`, whose values are the names of at most `size` listeners."""

    names = ("listener",)
    values = None

    def __init__(self, size: int, known: Sequence[int] | None = None) -> None:
        self.size = size
        self.known = known

    def places(self, first: int) -> range:
        """Return the cells by listener's number."""
        return range(first, first + self.size)


class BucketLabel(Labels[Histogram]):
    """The label `le` of a histogram's buckets, whose values are the upper bounds."""

    def __init__(self, buckets: tuple[float, ...]) -> None:
        self.buckets = buckets
        self.size = len(buckets) + 2

    def places(self, first: int) -> Histogram:
        """Return where buckets and sum are."""
        return Histogram(self.buckets, first, first + len(self.buckets) + 1)


@dataclass(frozen=True, slots=True)
class Metric:
    """One row. `first` is the first of the row's cells.

    carried   the row's name in the state document, "" for a row that a new program begins anew
    status    the place in `poold status --json`, "" for none; a dot leads into an object
    line      whether the screen of `poold status` has a line of the figures
    """

    name: str
    type: MetricType
    help: str
    labels: Labels[object]
    first: int
    unit: CellUnit
    carried: str
    status: str
    line: bool

    @property
    def histogram(self) -> Histogram:
        """Return where buckets and sum of a histogram are."""
        where = self.labels.places(self.first)
        assert isinstance(where, Histogram), f"{self.name} is a {self.type}"
        return where

    def series(self, listeners: Iterable[str]) -> Series:
        """Yield label values and cell of each figure of a counter or gauge.

        `listeners` has the listeners' names in the order of their numbers.
        """
        values = ((name,) for name in listeners) if self.labels.values is None else self.labels.values
        return zip(values, count(self.first))

    def figure(self, number: int) -> float:
        """Return the figure that the integer in a cell stands for, in the unit of the metric."""
        return number / 1e6 if self.unit is CellUnit.MICROSECOND else number


class MetricTable:
    """The rows, in the order of their cells."""

    def __init__(self) -> None:
        self.metrics: list[Metric] = []
        self.size = 0

    def counter(
        self,
        name: str,
        help: str,
        labels: Labels[Places_co],
        *,
        unit: CellUnit = CellUnit.ONE,
        carried: str | None = None,
        status: str = "",
        line: str = "",
    ) -> Places_co:
        """Add a counter and return its places.

        An upgrade carries the counter, because counters never fall, unless `carried` is "".
        """
        carried = name if carried is None else carried
        return self._add(name, MetricType.COUNTER, help, labels, unit=unit, carried=carried, status=status, line=line)

    def gauge(
        self,
        name: str,
        help: str,
        labels: Labels[Places_co],
        *,
        unit: CellUnit = CellUnit.ONE,
        carried: str = "",
        status: str = "",
        line: str = "",
    ) -> Places_co:
        """Add a gauge and return its places.

        The program after an upgrade measures the gauge anew, unless there is a name in `carried`.
        """
        return self._add(name, MetricType.GAUGE, help, labels, unit=unit, carried=carried, status=status, line=line)

    def histogram(self, name: str, help: str, buckets: tuple[float, ...], *, carried: str | None = None) -> Histogram:
        """Add a histogram, carried as a counter is, and return its places."""
        carried = name if carried is None else carried
        return self._add(name, MetricType.HISTOGRAM, help, BucketLabel(buckets), carried=carried)

    def _add(
        self,
        name: str,
        type: MetricType,
        help: str,
        labels: Labels[Places_co],
        *,
        carried: str,
        unit: CellUnit = CellUnit.ONE,
        status: str = "",
        line: str = "",
    ) -> Places_co:
        first = self.cells(labels.size).start
        self.metrics.append(Metric(name, type, help, labels, first, unit, carried, line or status, bool(line)))
        return labels.places(first)

    def cells(self, size: int) -> range:
        """Return cells that no metric shows: what the readers of the counters need besides."""
        self.size += size
        return range(self.size - size, self.size)

    def checksum(self) -> int:
        """Return a number that is another one for other rows, words or bounds, or another order."""
        return crc32(repr((self.size, [_layout(metric) for metric in self.metrics])).encode())


def _layout(metric: Metric) -> tuple[object, ...]:
    # Facts change from release to release, and the cells stay where they are.
    values = None if isinstance(metric.labels, FactLabels) else metric.labels.values
    return metric.name, metric.first, metric.unit.name, metric.labels.names, values, metric.labels.buckets
