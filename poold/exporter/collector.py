"""From the cells of the scoreboard to metrics: names, labels and help texts; labels only from closed sets."""

from collections.abc import Iterable, Iterator, Sequence
from platform import python_version
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from poold import __version__
from poold import scoreboard as board
from poold.scoreboard import CountersView, Histogram

Cells = Sequence[int]


class PooldCollector(Collector):
    """Turns one consistent reading of the counters into metrics."""

    def __init__(self, view: CountersView) -> None:
        self._view = view

    def collect(self) -> Iterator[Metric]:
        """Return every metric, all of one moment."""
        cells = self._view.read()
        names = self._view.names(cells)
        yield from _connections(cells, names)
        yield from _children(cells)
        yield from _operations(cells)
        yield from _process(cells)


def _counter(name: str, help: str, label: str, values: Iterable[tuple[str, float]]) -> Metric:
    family = CounterMetricFamily(name, help, labels=[label] if label else None)
    for word, value in values:
        family.add_metric([word] if label else [], value)
    return family


def _plain(name: str, help: str, value: float) -> Metric:
    return CounterMetricFamily(name, help, value=value)


def _gauge(name: str, help: str, value: float) -> Metric:
    return GaugeMetricFamily(name, help, value=value)


def _histogram(cells: Cells, where: Histogram, name: str, help: str) -> Metric:
    family = HistogramMetricFamily(name, help)
    count, buckets = 0, []
    for index, bound in enumerate((*where.buckets, float("inf"))):
        count += cells[where.first + index]
        buckets.append((f"{bound:g}" if bound != float("inf") else "+Inf", count))
    family.add_metric([], buckets, sum_value=cells[where.total] / 1e6)
    return family


def _words(cells: Cells, places: dict[Any, int]) -> Iterator[tuple[str, float]]:
    return ((str(word), cells[cell]) for word, cell in places.items())


def _connections(cells: Cells, names: list[str]) -> Iterator[Metric]:
    accepted = ((name, cells[board.ACCEPTED[number]]) for number, name in enumerate(names))
    yield _counter("poold_connections_accepted", "Connections that accept() returned.", "listener", accepted)
    yield _counter(
        "poold_connections_refused", "Accepted connections that did not become sessions.", "reason", _words(cells, board.REFUSED)
    )
    yield _gauge(
        "poold_sessions_active", "Sessions that have not ended, those that wait for their worker included.", cells[board.SESSIONS_ACTIVE]
    )
    yield _counter("poold_sessions_ended", "Sessions that ended, each with its one cause.", "cause", _words(cells, board.ENDED))
    yield _histogram(cells, board.SESSION_SECONDS, "poold_session_duration_seconds", "Time from accept to a session's end.")
    yield _histogram(
        cells, board.HANDOVER_SECONDS, "poold_handover_seconds", "Time from accept to the worker's acknowledgement of the connection."
    )
    yield _counter("poold_accept_errors", "Errors of accept().", "errno", _words(cells, board.ACCEPT_ERRORS))
    yield _gauge("poold_accepting", "1 while the listeners are watched.", cells[board.ACCEPTING])
    depth = GaugeMetricFamily("poold_backlog", "Connections that wait in the kernel for accept.", labels=["listener"])
    limit = GaugeMetricFamily("poold_backlog_limit", "Connections that may wait in the kernel.", labels=["listener"])
    for number, name in enumerate(names):
        if cells[board.BACKLOG_KNOWN[number]]:
            depth.add_metric([name], cells[board.BACKLOG[number]])
            limit.add_metric([name], cells[board.BACKLOG_LIMIT[number]])
    yield depth
    yield limit


def _children(cells: Cells) -> Iterator[Metric]:
    yield _gauge("poold_children_active", "Workers that serve an acknowledged session.", cells[board.CHILDREN_ACTIVE])
    children = GaugeMetricFamily("poold_children", "Living children by kind and state.", labels=["kind", "state"])
    for (kind, state), cell in board.CHILDREN.items():
        children.add_metric([kind, state], cells[cell])
    yield children
    yield _gauge("poold_children_max", "The cap: how many workers may live, spares included.", cells[board.CHILDREN_MAX])
    yield _counter("poold_children_spawned", "Children that came to life.", "kind", _words(cells, board.SPAWNED))
    yield _counter("poold_children_reaped", "Children whose exit was collected.", "kind", _words(cells, board.REAPED))
    yield _counter("poold_children_failed", "Reaped children that failed, of all kinds.", "reason", _words(cells, board.FAILED))
    yield _plain("poold_unknown_children_reaped", "Exits of processes that are not the pool's.", cells[board.UNKNOWN_REAPED])
    yield _histogram(cells, board.CPU_SECONDS, "poold_child_cpu_seconds", "CPU time of a child, user and system.")
    yield _histogram(
        cells,
        board.MEMORY_BYTES,
        "poold_child_memory_peak_bytes",
        "Peak resident memory of a child; a worker's begins at the mold's size at its clone, so that is the floor.",
    )
    yield _counter("poold_fork_failures", "Clones that failed.", "errno", _words(cells, board.FORK_FAILURES))
    yield _plain("poold_mold_starts", "Molds that were started.", cells[board.MOLD_STARTS])


def _operations(cells: Cells) -> Iterator[Metric]:
    yield _gauge(
        "poold_config_last_reload_successful", "1 when the last reload, or the start, was applied.", cells[board.RELOAD_SUCCESSFUL]
    )
    yield _gauge(
        "poold_config_last_reload_success_timestamp_seconds", "When settings were last applied.", cells[board.RELOAD_SUCCESS_AT] / 1e6
    )
    yield _counter("poold_reloads", "Reloads by result.", "result", _words(cells, board.RELOADS))
    yield _counter("poold_upgrades", "Upgrades by result.", "result", _words(cells, board.UPGRADES))
    yield _gauge("poold_generation", "Counts applied settings and upgrades.", cells[board.GENERATION])
    yield _gauge("poold_draining", "1 while draining.", cells[board.DRAINING])
    build = GaugeMetricFamily("poold_build_info", "What runs, as labels.", labels=["version", "python"])
    build.add_metric([__version__, python_version()], 1)
    yield build
    yield _histogram(cells, board.LOOP_SECONDS, "poold_master_loop_seconds", "Work in one turn of the master's loop.")
    yield _plain("poold_log_dropped", "Log lines that their stream did not take.", cells[board.LOG_DROPPED])
    yield _plain("poold_loop_errors", "Errors that a callback of the master's loop raised.", cells[board.LOOP_ERRORS])


def _process(cells: Cells) -> Iterator[Metric]:
    yield _plain("process_cpu_seconds", "CPU time of the master, user and system.", cells[board.PROCESS_CPU] / 1e6)
    yield _gauge("process_start_time_seconds", "When the master started, since the epoch.", cells[board.PROCESS_STARTED] / 1e6)
    yield _gauge("process_virtual_memory_bytes", "Virtual memory of the master.", cells[board.PROCESS_VIRTUAL])
    yield _gauge("process_resident_memory_bytes", "Resident memory of the master.", cells[board.PROCESS_RESIDENT])
    yield _gauge("process_open_fds", "Open descriptors of the master.", cells[board.PROCESS_FDS])
    yield _gauge("process_max_fds", "Limit of the master's open descriptors.", cells[board.PROCESS_FDS_MAX])
