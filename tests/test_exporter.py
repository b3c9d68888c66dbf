"""The metrics endpoint: whatever scrapers do to it and whatever becomes of its process, sessions do not notice and no figure is wrong."""

import contextlib
import errno
import http.client
import itertools
import os
import queue
import random
import shutil
import signal
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faultkit import pids_limit
from tests.support import DEADLINE, Client, Daemon, LawKeeper, alive, children_of, eventually
from tests.wirekit import (
    frozen,
    gone,
    inside,
    port_of,
    raw,
    shows,
    spares,
    status,
)

Poold = Callable[..., Daemon]

ONE_SPARE = {"pool.min_spare": 1, "pool.max_spare": 1}
GET = b"GET /metrics HTTP/1.1\r\nHost: test\r\n\r\n"


def exporter(daemon: Daemon, *, after: int = 0) -> int:
    """Return the pid of the exporter that was started after this point of the log."""
    return int(daemon.event("exporter_started", after=after)["pid"])


def answers(daemon: Daemon) -> bool:
    """Say whether a scrape is answered now."""
    try:
        return bool(daemon.metrics())
    except (OSError, http.client.HTTPException):
        return False


def scraper(daemon: Daemon) -> socket.socket:
    """Connect to the metrics listener."""
    return socket.create_connection(("127.0.0.1", daemon.metrics_port), timeout=DEADLINE)


def reset(client: socket.socket) -> None:
    """Leave with a reset."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


@contextlib.contextmanager
def in_background(count: int, work: Callable[[threading.Event], None]) -> Iterator[None]:
    """Do something in threads until the block ends; what it raises fails the test."""
    enough = threading.Event()
    problems: queue.SimpleQueue[BaseException] = queue.SimpleQueue()

    def run() -> None:
        try:
            work(enough)
        except BaseException as error:
            problems.put(error)

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        enough.set()
        for thread in threads:
            thread.join(DEADLINE)
    if not problems.empty():
        raise problems.get()


def sessions(daemon: Daemon) -> Callable[[threading.Event], None]:
    """Return work that has one session after the other."""

    def work(enough: threading.Event) -> None:
        while not enough.is_set():
            with daemon.connect() as client:
                assert client.ask("echo here") == "here"

    return work


# What is asked.


def test_format_by_accept(poold: Poold) -> None:
    """A scraper gets the text format, and OpenMetrics when it asks for it; a query does no harm, HEAD gets no body."""
    daemon = poold().start()
    text = raw(daemon, b"GET /metrics?name=x HTTP/1.1\r\n\r\n")
    assert status(text) == 200
    assert b"Content-Type: text/plain; version=" in text
    assert b"# TYPE poold_sessions_active gauge" in text
    assert len(text) < 65536
    opened = raw(daemon, b"GET /metrics HTTP/1.1\r\nAccept: application/openmetrics-text; version=1.0.0\r\n\r\n")
    assert b"Content-Type: application/openmetrics-text" in opened
    assert opened.endswith(b"# EOF\n")
    head = raw(daemon, b"HEAD /metrics HTTP/1.1\r\n\r\n")
    assert status(head) == 200
    assert head.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", {404}),
        (b"GET /metrics/../../etc/passwd HTTP/1.1\r\n\r\n", {404}),
        (b"GET http://example.org/metrics HTTP/1.1\r\n\r\n", {404}),
        (b"GET " + b"/x" * 2000 + b" HTTP/1.1\r\n\r\n", {404}),
        (b"POST /metrics HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello", {405}),
        (b"DELETE /metrics HTTP/1.1\r\n\r\n", {405}),
        (b"BREW /metrics HTTP/1.1\r\n\r\n", {501}),
        (b"get /metrics HTTP/1.1\r\n\r\n", {501}),
        (b"GET /metrics HTTP/9.9\r\n\r\n", {400, 505}),
        (b"GET /metrics HTTX/1.1\r\n\r\n", {400}),
        (b"GET /metrics with spaces HTTP/1.1\r\n\r\n", {400}),
        (b"GET /metrics HTTP/1.1\r\n" + b"X: y\r\n" * 200 + b"\r\n", {431}),
        # Not read to its end, so that the answer may be lost in a reset.
        (b"GET /" + b"x" * 1_000_000 + b" HTTP/1.1\r\n\r\n", {0, 414, 431}),
        (b"GET /metrics HTTP/1.1\r\nX: " + b"y" * 1_000_000 + b"\r\n\r\n", {0, 431}),
        (b"GET /metrics HTTP/1.1\r\n" + b"X: y\r\n" * 200_000 + b"\r\n", {0, 431}),
        (b"GET /metrics HTTP/1.1\r\nno colon\r\n: no name\r\n\0: \0\r\n\xff: \xfe\r\n\r\n", {200, 400}),
        (b"\0\xff\xfe\x80\r\n\r\n", {400}),
        (b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + bytes(500), {0, 400}),
        (b"\r\n\r\n", {0, 400}),
    ],
    ids=lambda value: repr(value[:24]) if isinstance(value, bytes) else "",
)
def test_odd_request(poold: Poold, request_: bytes, expected: set[int]) -> None:
    """A request that is none, or for something else, gets its error and the end, and the next scrape is answered."""
    daemon = poold().start()
    with scraper(daemon) as client:
        try:
            client.sendall(request_)
            client.shutdown(socket.SHUT_WR)
        except OSError as error:
            # Answered and reset already, because not all of it was read.
            assert error.errno in (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while part := client.recv(65536):
                answer += part
    assert status(answer) in expected, answer[:200]
    assert answers(daemon)
    assert "Traceback" not in daemon.log.read_text()
    assert len(daemon.events("exporter_started")) == 1


def test_http_0_9(poold: Poold) -> None:
    """A request without a version, as before HTTP/1.0, gets the page or an error, and the end."""
    daemon = poold().start()
    answer = raw(daemon, b"GET /metrics\r\n\r\n")
    assert answer.startswith(b"# HELP") or status(answer) in (200, 400, 505)


def test_one_answer_a_connection(poold: Poold) -> None:
    """Of requests that follow each other on one connection the first is answered, and the connection ends."""
    daemon = poold().start()
    answer = raw(daemon, GET * 3)
    assert answer.count(b"HTTP/1.") == 1
    assert b"\r\nConnection: close\r\n" in answer


def test_request_that_is_not_finished(poold: Poold) -> None:
    """Scrapers that go away in the middle of a request, in peace or with a reset, harm nobody."""
    daemon = poold().start()
    for length in range(1, len(GET), 5):
        with scraper(daemon) as client:
            client.sendall(GET[:length])
            if length % 2:
                reset(client)
    eventually(lambda: answers(daemon), "a scrape is answered")
    assert "Traceback" not in daemon.log.read_text()
    assert len(daemon.events("exporter_started")) == 1


def test_scrapers_that_vanish(poold: Poold) -> None:
    """Scrapers that reset their connection instead of reading the answer are ignored."""
    daemon = poold().start()
    for _ in range(60):
        client = scraper(daemon)
        client.sendall(GET)
        reset(client)
    eventually(lambda: answers(daemon), "a scrape is answered")
    assert alive(exporter(daemon))
    assert len(daemon.events("exporter_started")) == 1
    assert "Traceback" not in daemon.log.read_text()
    assert [event for name in ("exporter_failed", "accept_error") for event in daemon.events(name)] == []


# How many ask, and how slowly.


def test_slow_scrapers(poold: Poold) -> None:
    """Scrapers that say nothing, or a byte at a time, or never read, have five seconds; sessions are served meanwhile."""
    daemon = poold().start()
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(scraper(daemon)) for _ in range(4)]
        dribbling = [stack.enter_context(scraper(daemon)) for _ in range(4)]
        for client in (*silent, *dribbling):
            client.settimeout(0.1)
        letters = itertools.cycle(b"GET /metrics HTTP/1.1\r\nX: ")
        ended: set[socket.socket] = set()

        def all_ended() -> bool:
            for client in {*silent, *dribbling} - ended:
                try:
                    if client in dribbling:
                        client.send(bytes([next(letters)]))
                    if client.recv(1) == b"":
                        ended.add(client)
                except TimeoutError:
                    continue
                except (BrokenPipeError, ConnectionResetError):
                    ended.add(client)
            with daemon.connect() as one:
                assert one.ask("echo here") == "here"
            return len(ended) == 8

        eventually(all_ended, "all of them are turned out", seconds=15)
    assert 4 <= time.monotonic() - began <= 12
    eventually(lambda: answers(daemon), "a scrape is answered")


def test_scraper_that_does_not_read(poold: Poold) -> None:
    """Scrapers that ask and never read do not keep others from being answered."""
    daemon = poold().start()
    with contextlib.ExitStack() as stack:
        for _ in range(30):
            client = stack.enter_context(socket.socket())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
            client.connect(("127.0.0.1", daemon.metrics_port))
            client.sendall(GET)
        eventually(lambda: answers(daemon), "a scrape is answered", seconds=10)


def test_crowd_of_scrapers(poold: Poold) -> None:
    """Of hundreds of scrapers at one time each is answered in full or turned away, and none takes a session's place."""
    daemon = poold(options={"pool.max_children": 2, "pool.min_spare": 1}).start()
    outcomes = Counter[str]()
    with in_background(2, sessions(daemon)), contextlib.ExitStack() as stack:
        crowd = []
        for _ in range(300):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", daemon.metrics_port))
            crowd.append(client)
        for client in crowd:
            client.settimeout(DEADLINE)
            answer = b""
            try:
                eventually(lambda client=client: client.connect_ex(("127.0.0.1", daemon.metrics_port)) in (0, 106), "the connection")
                client.sendall(GET)
                while part := client.recv(65536):
                    answer += part
            except (BrokenPipeError, ConnectionResetError):
                # Turned away with what it said unread.
                pass
            whole = status(answer) == 200 and answer.endswith(b"\n")
            outcomes["answered" if whole else "turned away" if not answer or status(answer) == 503 else "cut off"] += 1
    assert set(outcomes) <= {"answered", "turned away"}, outcomes
    eventually(lambda: answers(daemon), "a scrape is answered")
    daemon.metric("poold_sessions_active", 0)
    metrics = daemon.metrics()
    # Nobody but the two who wanted a session had one.
    assert metrics.total("poold_sessions_ended_total", cause="ok") == metrics.total("poold_connections_accepted_total")
    assert metrics.total("poold_connections_refused_total") == 0
    # No turn of the master's loop took long.
    assert metrics.total("poold_master_loop_seconds_bucket", le="0.5") == metrics["poold_master_loop_seconds_count"]
    assert alive(exporter(daemon))


def test_one_thread_in_the_master(poold: Poold) -> None:
    """The master has one thread, however many scrapes and sessions there are at one time."""
    daemon = poold(options={"pool.min_spare": 2}).start()
    tasks = f"/proc/{daemon.master}/task"

    def scrapes(enough: threading.Event) -> None:
        while not enough.is_set():
            answers(daemon)

    seen: set[int] = set()

    def enough_sessions() -> bool:
        seen.add(len(os.listdir(tasks)))
        return ended(daemon) >= 100

    with in_background(3, scrapes), in_background(3, sessions(daemon)):
        eventually(enough_sessions, "a hundred sessions under scrapes")
    assert seen == {1}


def ended(daemon: Daemon) -> float:
    """Return how many sessions have ended, 0 when nobody answers."""
    try:
        return daemon.metrics().total("poold_sessions_ended_total")
    except (OSError, http.client.HTTPException):
        return 0


# The exporter's own process.


def test_exporter_killed(poold: Poold) -> None:
    """A killed exporter is replaced with a delay and counted; sessions do not notice, and no counter begins anew."""
    daemon = poold().start()
    with daemon.connect() as client, in_background(2, sessions(daemon)):
        assert client.ask("echo before") == "before"
        pid = exporter(daemon)
        for number in (1, 2):
            eventually(lambda: answers(daemon), "a scrape is answered")
            mark = daemon.mark()
            os.kill(pid, signal.SIGKILL)
            assert daemon.event("exporter_failed", after=mark)["retry_seconds"] == 0.05
            pid = exporter(daemon, after=mark)
            eventually(lambda: answers(daemon), "a scrape is answered again")
            metrics = daemon.metrics()
            assert metrics.total("poold_children_failed_total", reason="signal") == number
            assert metrics.total("poold_children_reaped_total", kind="exporter") == number
            assert metrics.total("poold_children_spawned_total", kind="exporter") == number + 1
            assert metrics.total("poold_connections_accepted_total") >= 1
        assert client.ask("echo after") == "after"
    assert daemon.keeper is not None
    assert daemon.keeper.scrapes > 0


def test_exporter_that_never_lives(poold: Poold) -> None:
    """An exporter that dies each time before it answers is started ever more slowly, until it lives."""
    daemon = poold(options=ONE_SPARE).start(laws=False)
    eventually(lambda: answers(daemon), "a scrape is answered")
    pid = exporter(daemon)
    delays = []
    for _ in range(4):
        mark = daemon.mark()
        os.kill(pid, signal.SIGKILL)
        delays.append(daemon.event("exporter_failed", after=mark)["retry_seconds"])
        pid = exporter(daemon, after=mark)
    assert delays == [0.05, 0.1, 0.2, 0.4]
    daemon.event("exporter_ready", pid=pid)
    eventually(lambda: answers(daemon), "a scrape is answered again")
    mark = daemon.mark()
    os.kill(pid, signal.SIGKILL)
    assert daemon.event("exporter_failed", after=mark)["retry_seconds"] == 0.05
    with daemon.connect() as client:
        assert client.ask("echo here") == "here"


def test_exporter_stopped(poold: Poold) -> None:
    """An exporter that is stopped by a signal holds up neither sessions nor the master's end; scrapes go on when it does."""
    daemon = poold(options={"timeouts.kill": 0.2}).start()
    pid = exporter(daemon)
    assert answers(daemon)
    with frozen(pid), contextlib.ExitStack() as stack:
        waiting = stack.enter_context(scraper(daemon))
        waiting.sendall(GET)
        for _ in range(20):
            with daemon.connect() as client:
                assert client.ask("echo here") == "here"
        os.kill(pid, signal.SIGCONT)
        assert waiting.recv(12) == b"HTTP/1.0 200"
        daemon.metric("poold_sessions_ended_total", 20, cause="ok")
    with frozen(pid):
        assert daemon.stop() == 0
        assert gone(pid)


def test_questions_that_are_not_answered_do_not_pile_up(poold: Poold) -> None:
    """An exporter that does not read the master's answers costs the master nothing, whatever it asked before."""
    daemon = poold(options=ONE_SPARE).start(laws=False)
    eventually(lambda: answers(daemon), "a scrape is answered")
    pid = exporter(daemon)
    with frozen(daemon.master):
        clients = [scraper(daemon) for _ in range(8)]
        for client in clients:
            client.sendall(GET)
        for client in clients:
            # From what was published last.
            assert client.recv(12) == b"HTTP/1.0 200"
            client.close()
        os.kill(pid, signal.SIGSTOP)
    with daemon.connect() as client:
        assert client.ask("echo here") == "here"
    os.kill(pid, signal.SIGCONT)
    daemon.metric("poold_sessions_ended_total", 1, cause="ok")
    assert daemon.get("/healthz") == 200


# The state of the master, seen through the exporter.


def test_figures_at_the_cap(poold: Poold) -> None:
    """At the cap, with clients waiting, scrapes and health checks are answered and tell of it."""
    daemon = poold(options={"pool.max_children": 1, "pool.min_spare": 1}).start()
    assert daemon.get("/readyz") == 200
    with daemon.connect() as served, daemon.connect() as waits:
        served.ask("pid")
        daemon.metric("poold_accepting", 0)
        daemon.metric("poold_backlog", 1)
        metrics = daemon.metrics()
        assert metrics["poold_sessions_active"] == metrics["poold_children_active"] == metrics["poold_children_max"] == 1
        assert daemon.get("/healthz") == 200
        # A moment without room is normal.
        assert daemon.get("/readyz") == 200
        served.finish()
        assert waits.ask("echo next") == "next"


def test_not_ready_after_a_while_at_the_cap(poold: Poold) -> None:
    """/readyz is 503 once nobody was accepted for five seconds, and 200 again as soon as there is room."""
    daemon = poold(options={"pool.max_children": 1, "pool.min_spare": 1}).start()
    with daemon.connect() as client:
        client.ask("pid")
        daemon.metric("poold_accepting", 0)
        full = time.monotonic()
        eventually(lambda: daemon.get("/readyz") == 503, "not ready")
        assert 4 <= time.monotonic() - full < 10
        assert daemon.get("/healthz") == 200
    eventually(lambda: daemon.get("/readyz") == 200, "ready again", seconds=3)


def test_figures_of_a_stopped_master(poold: Poold) -> None:
    """While the master is stopped its last figures are served at once, and /healthz is 503; it is 200 again when the master goes on."""
    daemon = poold(options=ONE_SPARE).start()
    with daemon.connect() as client:
        client.ask("pid")
        daemon.metric("poold_children_active", 1)
        spares(daemon, 1)
        assert daemon.get("/healthz") == 200
        with frozen(daemon.master):
            began = time.monotonic()
            metrics = daemon.metrics()
            assert time.monotonic() - began < 2
            assert metrics["poold_children_active"] == 1
            assert metrics.total("poold_connections_accepted_total") == 1
            assert daemon.get("/healthz") == 503
            assert daemon.get("/readyz") == 200
            assert client.ask("echo here") == "here"
        eventually(lambda: daemon.get("/healthz") == 200, "alive again", seconds=3)
    daemon.metric("poold_sessions_ended_total", 1, cause="ok")


def test_not_ready_while_it_stops(poold: Poold) -> None:
    """From TERM on /readyz is 503 and poold_draining 1, while /healthz and the figures are there to the end."""
    daemon = poold(options={"timeouts.kill": 2.0}).start()
    with daemon.connect() as client:
        assert client.ask("ignore_term") == "ok"
        daemon.kill(signal.SIGTERM)
        daemon.event("stopping")
        eventually(lambda: daemon.get("/readyz") == 503, "not ready", seconds=1)
        assert daemon.get("/healthz") == 200
        metrics = daemon.metrics()
        assert metrics["poold_draining"] == 1
        assert metrics["poold_accepting"] == 0
        assert metrics["poold_sessions_active"] == 1
        assert client.rest() == b""
    assert daemon.wait() == 0


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root and unshare(1)")
def test_metrics_are_for_this_host_by_default(poold: Poold) -> None:
    """Without a setting the metrics are at port 9777 of the loopback address only, and the exporter is not root."""
    daemon = poold(options={"metrics.listen": None})
    # In a network of its own, where nobody else has the port.
    daemon.start(wrapper=("unshare", "-n", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"), laws=False)
    assert daemon.event("metrics_listening")["address"] == "tcp://127.0.0.1:9777"
    rows = [line.split() for line in Path(f"/proc/{daemon.master}/net/tcp").read_text().splitlines()[1:]]
    # 0A is LISTEN; the address is written as the machine stores it.
    assert [row[1] for row in rows if row[3] == "0A"] == [f"{struct.unpack('=I', socket.inet_aton('127.0.0.1'))[0]:08X}:{9777:04X}"]
    with inside(daemon.master, lambda: Client(("127.0.0.1", 9777))) as client:
        client.send(GET)
        assert client.line().startswith("HTTP/1.0 200")
    assert os.stat(f"/proc/{exporter(daemon)}").st_uid == 65534


def test_metrics_off(poold: Poold) -> None:
    """With an empty setting there is no exporter, and nobody misses it."""
    daemon = poold(options={"metrics.listen": ""}).start(laws=False)
    with daemon.connect() as client:
        assert client.ask("echo here") == "here"
    assert daemon.events("exporter_started") == []
    with pytest.raises(ConnectionRefusedError):
        scraper(daemon)
    assert [row["kind"] for row in daemon.children("exporter")] == []


# All of it at one time.

SECONDS = 5.0
KILLS_MAX = 40


class Murderer:
    """Kills a worker at random now and then, and remembers whom."""

    def __init__(self, daemon: Daemon) -> None:
        self.killed: set[int] = set()
        self._master = daemon.master
        self._dice = random.Random(7)
        self._began = time.monotonic()

    def strike(self) -> bool:
        """Kill one when it is time; say whether the time is over."""
        elapsed = time.monotonic() - self._began
        if len(self.killed) < min(KILLS_MAX, elapsed * KILLS_MAX / SECONDS):
            workers = [pid for pid in children_of(self._master) if shows(pid, "poold: spare", "poold: cases")]
            if workers:
                victim = self._dice.choice(workers)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(victim, signal.SIGKILL)
                    self.killed.add(victim)
        return elapsed >= SECONDS


def talk(daemon: Daemon, nonce: str) -> tuple[int, bool]:
    """Have a session of a few words; return the client's port, and whether it was served to its end. A wrong word is an error."""
    with daemon.connect() as client:
        port = port_of(client)
        try:
            for step in range(3):
                answer = client.ask(f"echo {nonce}-{step}")
                # An end in the middle is one thing, somebody else's answer another.
                assert answer in (f"{nonce}-{step}", "")
                if not answer:
                    return port, False
            assert client.finish() == b""
        except (BrokenPipeError, ConnectionResetError):
            return port, False
    return port, True


def test_laws_under_load_and_murder(poold: Poold) -> None:
    """Under load, while workers are killed at random, every scrape obeys the laws and each client's fate is explained by the log."""
    daemon = poold(options={"pool.max_children": 12, "pool.min_spare": 3}).start()
    assert daemon.keeper is not None
    # One scrape takes about as long as its share of a second: two together come to fifty.
    keepers = [daemon.keeper, LawKeeper(daemon.metrics, per_second=50)]
    fates: queue.SimpleQueue[tuple[int, bool]] = queue.SimpleQueue()
    numbers = itertools.count()

    def clients(enough: threading.Event) -> None:
        while not enough.is_set():
            fates.put(talk(daemon, f"nonce-{next(numbers)}"))

    murderer = Murderer(daemon)
    with in_background(4, clients):
        eventually(murderer.strike, "the end of the killing", seconds=SECONDS + DEADLINE)
    for keeper in keepers:
        keeper.close()
    daemon.metric("poold_sessions_active", 0)
    metrics = daemon.metrics()
    ends = [fates.get() for _ in range(fates.qsize())]
    # Every client was accepted, and ended in one of the ways there are.
    assert metrics.total("poold_connections_accepted_total") == len(ends)
    assert metrics.total("poold_connections_refused_total") == 0
    causes = {cause: metrics.total("poold_sessions_ended_total", cause=cause) for cause in ("ok", "signal", "client_gone", "lost")}
    assert sum(causes.values()) == len(ends)
    # Who was cut off had a worker that was killed, and nobody else died.
    cut = {port for port, served in ends if not served}
    failures = daemon.events("child_failed")
    assert {event["pid"] for event in failures} <= murderer.killed
    assert {event["reason"] for event in failures} <= {"signal", "stillborn"}
    assert cut <= {int(event["peer"].rpartition(":")[2]) for event in failures if "peer" in event}
    assert len(cut) <= causes["signal"] + causes["lost"] <= len(murderer.killed)
    assert metrics.total("poold_children_failed_total") == len(failures)
    assert len(murderer.killed) >= 10
    assert len(ends) >= 50
    assert sum(keeper.scrapes for keeper in keepers) >= 50
    assert [keeper.broken for keeper in keepers] == [[], []]


@pytest.mark.parametrize("tasks", [2, 3])
def test_exporter_at_a_limit_of_tasks(poold: Poold, tasks: int) -> None:
    """A scrape that no thread can be had for is turned away, and the next one is answered as soon as there is one."""
    daemon = poold().start(laws=False)
    daemon.metric("poold_children", 1, kind="exporter", state="serving")
    pid = exporter(daemon)
    eventually(lambda: len(os.listdir(f"/proc/{pid}/task")) == 2, "the threads of former scrapes have gone")
    with pids_limit(pid, tasks) as limit:
        for _ in range(20):
            # Turned away with its request unread: it may see a reset instead of the answer.
            assert status(raw(daemon, GET)) in (0, 503)
        limit("max")
        eventually(lambda: answers(daemon), "a scrape is answered")
    assert shows(pid, "poold: exporter")
    assert "Traceback" not in daemon.log.read_text()
