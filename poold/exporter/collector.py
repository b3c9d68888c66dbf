"""Turns the figures of the shared counters into metric families.

There is one family for each row of the table in `poold.scoreboard`. Label values are words of
closed sets and the names of listeners.
"""

from collections.abc import Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.core import Metric as Family
from prometheus_client.registry import Collector

from poold.metrictable import Metric, MetricType
from poold.scoreboard import METRICS, CountersView

INFINITE = float("inf")


class PooldCollector(Collector):
    """Reads the counters once for each scrape."""

    def __init__(self, view: CountersView) -> None:
        self._view = view

    def collect(self) -> Iterator[Family]:
        """Yield every metric family, all figures as of one moment."""
        cells = self._view.read()
        listeners = self._view.names(cells)
        for metric in METRICS:
            yield _histogram(metric, cells) if metric.type is MetricType.HISTOGRAM else _figures(metric, cells, listeners)


def _figures(metric: Metric, cells: Sequence[int], listeners: list[str]) -> Family:
    """Return the family of a counter or gauge, without the series whose figure is not known."""
    kind = CounterMetricFamily if metric.type is MetricType.COUNTER else GaugeMetricFamily
    family = kind(metric.name, metric.help, labels=metric.labels.names)
    known = metric.labels.known
    for number, (values, cell) in enumerate(metric.series(listeners)):
        if known is None or cells[known[number]]:
            family.add_metric(values, metric.figure(cells[cell]))
    return family


def _histogram(metric: Metric, cells: Sequence[int]) -> Family:
    """Return the family of a histogram. A bucket of the exposition holds the lower buckets too."""
    family = HistogramMetricFamily(metric.name, metric.help)
    where = metric.histogram
    below, buckets = 0, []
    for index, bound in enumerate((*where.buckets, INFINITE)):
        below += cells[where.first + index]
        buckets.append((f"{bound:g}" if bound != INFINITE else "+Inf", below))
    family.add_metric([], buckets, sum_value=cells[where.total] / 1e6)
    return family
