"""The exporter: a process of its own that answers Prometheus from the counters in shared memory.

It holds a read-only view, the metrics listener and a lifeline to the master, and nothing else: what a scraper does to it harms
nobody. It asks the master on the lifeline before it answers, waits a moment, and answers from what was published last if there is
no reply: a master that is busy or stopped is still measured. EOF on the lifeline ends it.

    /metrics   everything; /healthz   200 while the master's loop turns; /readyz   200 while it accepts, or has within 5 s
"""

import io
import json
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler
from platform import python_version
from typing import Any

from prometheus_client import CollectorRegistry, exposition
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from poold import __version__, sandbox
from poold import scoreboard as board
from poold.log import log
from poold.scoreboard import CountersView, Histogram
from poold.title import set_title

# How long a scrape waits for the master's word, and a health check for its pulse.
FRESH_SECONDS = 0.25
HEALTH_SECONDS = 2.0
NOT_READY_AFTER = 5.0
# One scraper's whole request and answer; more scrapers than this at once are turned away.
REQUEST_SECONDS = 5.0
CLIENTS_MAX = 8
REQUEST_MAX = 8192

Cells = Sequence[int]


class Lifeline:
    """Asks the master whether its loop turns; one question serves all who ask meanwhile."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._condition = threading.Condition()
        self._asked = 0
        self._answered = 0

    def ask(self, seconds: float) -> bool:
        """Ask now; say whether the master answered in time. What it publishes is then of a moment after the question."""
        with self._condition:
            if self._asked - self._answered < 64:
                self._asked += 1
                try:
                    self._end.send(b"?", socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
                except OSError:
                    # The master is gone, and this process about to be; or it does not read, which is an answer too.
                    self._asked -= 1
                    return False
            mine = self._asked
            return self._condition.wait_for(lambda: self._answered >= mine, seconds)

    def listen(self) -> None:
        """Take answers until the master is gone."""
        while answers := self._end.recv(4096):
            with self._condition:
                self._answered += len(answers)
                self._condition.notify_all()


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
        if cells[board.LISTENING[number]]:
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


class Exporter:
    """What the requests are answered from."""

    def __init__(self, view: CountersView, lifeline: Lifeline) -> None:
        self.view = view
        self.lifeline = lifeline
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(PooldCollector(view))
        self._places = threading.BoundedSemaphore(CLIENTS_MAX)

    def metrics(self, accept: str) -> tuple[bytes, str]:
        """Return the exposition and its content type, in the format that an Accept header asks for."""
        self.lifeline.ask(FRESH_SECONDS)
        encode, content_type = exposition.choose_encoder(accept)
        return encode(self._registry), content_type

    def ready(self) -> bool:
        """Say whether new clients are let in."""
        self.lifeline.ask(FRESH_SECONDS)
        cells = self.view.read()
        if cells[board.DRAINING]:
            return False
        if cells[board.ACCEPTING]:
            return True
        since = cells[board.NOT_ACCEPTING_SINCE] / 1e6
        return since > 0 and time.monotonic() - since < NOT_READY_AFTER

    def serve(self, listener: socket.socket) -> None:
        """Answer scrapers for ever, each in a thread, a few at a time."""
        listener.setblocking(True)
        while True:
            try:
                client, _ = listener.accept()
            except OSError as error:
                log.warning("accept_error", listener="metrics", error=error.strerror)
                time.sleep(0.1)  # this process has nothing else to do, and no descriptor to do it with
                continue
            if not self._places.acquire(blocking=False):
                client.close()
                continue
            threading.Thread(target=self._answer, args=(client,), daemon=True).start()

    def _answer(self, client: socket.socket) -> None:
        # A deadline for the whole exchange, whatever comes byte by byte: the shutdown wakes whoever waits for the scraper.
        timer = threading.Timer(REQUEST_SECONDS, _shut, args=(client,))
        timer.daemon = True
        timer.start()
        try:
            with client:
                client.settimeout(REQUEST_SECONDS)
                Request(client, "", self)
        except OSError:
            # The scraper has gone: its own affair.
            return
        finally:
            timer.cancel()
            self._places.release()


def _shut(client: socket.socket) -> None:
    try:
        client.shutdown(socket.SHUT_RDWR)
    except OSError:
        # It is closed already.
        return


class Bounded:
    """A reader that gives up on a request that does not end."""

    def __init__(self, file: io.BufferedIOBase) -> None:
        self._file = file
        self._left = REQUEST_MAX

    def readline(self, limit: int = -1) -> bytes:
        """Return the next line. Raises ValueError when the request is longer than any scraper's."""
        line = self._file.readline(min(limit, self._left + 1) if limit >= 0 else self._left + 1)
        self._left -= len(line)
        if self._left < 0:
            raise ValueError(f"a request of more than {REQUEST_MAX} bytes")
        return line

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Request(BaseHTTPRequestHandler):
    """One request of a scraper; each gets one answer and the connection ends."""

    server_version = f"poold/{__version__}"
    sys_version = ""

    def __init__(self, client: socket.socket, address: str, exporter: Exporter) -> None:
        self._exporter = exporter
        super().__init__(client, address, exporter)  # type: ignore[arg-type]  # it only keeps what is called the server

    def do_GET(self) -> None:
        """Answer."""
        path = self.path.partition("?")[0]
        if path == "/metrics":
            body, content_type = self._exporter.metrics(self.headers.get("Accept", ""))
            self._reply(200, body, content_type)
        elif path == "/healthz":
            alive = self._exporter.lifeline.ask(HEALTH_SECONDS)
            self._reply(200 if alive else 503, b"ok\n" if alive else b"the master's loop does not turn\n")
        elif path == "/readyz":
            ready = self._exporter.ready()
            self._reply(200 if ready else 503, b"ok\n" if ready else b"not accepting\n")
        else:
            self._reply(404, b"there are /metrics, /healthz and /readyz\n")

    do_HEAD = do_GET

    def _not_allowed(self) -> None:
        self._reply(405, b"only GET and HEAD\n")

    do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_TRACE = do_CONNECT = _not_allowed

    def setup(self) -> None:
        """Make the files, and bound what is read of one request."""
        super().setup()
        self.rfile = Bounded(self.rfile)  # type: ignore[assignment]  # all that http.server asks of it is readline and close

    def handle(self) -> None:
        """Answer one request; one that is too long gets told so."""
        try:
            super().handle()
        except ValueError:
            self._reply(431, b"the request is too long\n")

    def _reply(self, status: int, body: bytes, content_type: str = "text/plain; charset=utf-8") -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: scrapes are no events."""


def main() -> None:
    """Run an exporter until the master is gone."""
    fds = {name: int(number) for name, _, number in (argument.partition("=") for argument in sys.argv[1:])}
    for fd in fds.values():
        os.set_inheritable(fd, False)
    set_title("exporter")
    with open(fds["settings"], "rb") as file:
        settings = json.loads(file.read())
    log.configure(format=settings["log_format"], level=settings["log_level"])
    resource.setrlimit(resource.RLIMIT_NOFILE, tuple(settings["nofile"]))
    view = CountersView(fds["counters"])
    os.close(fds["counters"])
    sandbox.become_identity(settings["identity"])
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    lifeline = Lifeline(socket.socket(fileno=fds["lifeline"]))
    listener = socket.socket(fileno=fds["listener"])
    exporter = Exporter(view, lifeline)
    threading.Thread(target=exporter.serve, args=(listener,), daemon=True).start()
    lifeline_says_hello(lifeline)
    lifeline.listen()
    os._exit(0)


def lifeline_says_hello(lifeline: Lifeline) -> None:
    """Let the master know that scrapes are answered from now on."""
    threading.Thread(target=lifeline.ask, args=(HEALTH_SECONDS,), daemon=True).start()
