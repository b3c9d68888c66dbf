"""The metrics endpoint: whatever scrapers do to it and whatever becomes of its process, sessions do not notice and no figure is wrong."""

import contextlib
import errno
import http.client
import itertools
import json
import os
import queue
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families

from tests.childkit import exporter_of, mold_of, spares_of
from tests.faultkit import pids_limit
from tests.laws import LawKeeper
from tests.needs import needs_root
from tests.procfs import alive, children_of, frozen, gone, open_files, shows
from tests.support import Client, Daemon, Poold, free_port
from tests.waiting import DEADLINE, eventually
from tests.wirekit import inside, port_of, raw, status

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
    ("accept", "openmetrics"),
    [
        ("application/openmetrics-text; version=abc", False),
        ("application/openmetrics-text; version=", True),
        ("application/openmetrics-text; version=1.0.0.0.0.x", False),
        ("application/openmetrics-text; version=\xe4", False),
        ("application/openmetrics-text; version=99.0.0", False),
        ("application/openmetrics-text; q=0", False),
        ("APPLICATION/OpenMetrics-Text;Version=1.0.0", True),
        ("text/plain; version=abc", False),
        ("text/plain, application/openmetrics-text;q=0.1", False),
        (",;=,;;;===, ,q=,", False),
        ("application/openmetrics-text;" * 200, True),
    ],
)
def test_odd_accept(poold: Poold, accept: str, openmetrics: bool) -> None:
    """Whatever a scraper says that it accepts, it gets one of the two formats, whole, and nothing of what it said comes back."""
    daemon = poold().start()
    answer = raw(daemon, f"GET /metrics HTTP/1.1\r\nAccept: {accept}\r\n\r\n".encode("latin-1"))
    assert status(answer) == 200
    version = b"application/openmetrics-text; version=1.0.0" if openmetrics else b"text/plain; version=0.0.4"
    assert b"\r\nContent-Type: " + version + b"; charset=utf-8" in answer
    assert b"poold_sessions_active 0" in answer
    assert answer.endswith(b"# EOF\n") == openmetrics
    assert "Traceback" not in daemon.log.read_text()


def test_accept_on_several_lines(poold: Poold) -> None:
    """What several Accept lines say counts as if it stood on one."""
    daemon = poold().start()
    request = b"GET /metrics HTTP/1.1\r\nAccept: text/html\r\naccept:application/openmetrics-text\r\n\r\n"
    assert raw(daemon, request).endswith(b"# EOF\n")


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", {404}),
        (b"GET /metrics/../../etc/passwd HTTP/1.1\r\n\r\n", {404}),
        (b"GET http://example.org/metrics HTTP/1.1\r\n\r\n", {200}),
        (b"GET HTTPS://[::1]:9777/metrics?x HTTP/1.1\r\n\r\n", {200}),
        (b"GET http://example.org HTTP/1.1\r\n\r\n", {404}),
        (b"GET //metrics HTTP/1.1\r\n\r\n", {404}),
        (b"GET metrics HTTP/1.1\r\n\r\n", {404}),
        (b"GET * HTTP/1.1\r\n\r\n", {404}),
        (b"CONNECT example.org:443 HTTP/1.1\r\n\r\n", {405}),
        (b"GET " + b"/x" * 2000 + b" HTTP/1.1\r\n\r\n", {404}),
        (b"POST /metrics HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello", {405}),
        (b"DELETE /metrics HTTP/1.1\r\n\r\n", {405}),
        (b"BREW /metrics HTTP/1.1\r\n\r\n", {501}),
        (b"get /metrics HTTP/1.1\r\n\r\n", {501}),
        (b"GET /metrics HTTP/9.9\r\n\r\n", {505}),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {505}),
        (b"GET /metrics HTTX/1.1\r\n\r\n", {400}),
        (b"GET /metrics with spaces HTTP/1.1\r\n\r\n", {400}),
        (b"GET /metrics HTTP/1.1\r\n" + b"X: y\r\n" * 200 + b"\r\n", {431}),
        # Not read to its end, so that the answer may be lost in a reset.
        (b"GET /" + b"x" * 1_000_000 + b" HTTP/1.1\r\n\r\n", {0, 414, 431}),
        (b"GET /metrics HTTP/1.1\r\nX: " + b"y" * 1_000_000 + b"\r\n\r\n", {0, 431}),
        (b"GET /metrics HTTP/1.1\r\n" + b"X: y\r\n" * 200_000 + b"\r\n", {0, 431}),
        (b"GET /metrics HTTP/1.1\r\nno colon\r\n\r\n", {400}),
        (b"GET /metrics HTTP/1.1\r\n: no name\r\n\r\n", {400}),
        (b"GET /metrics HTTP/1.1\r\nA : b\r\n\r\n", {400}),
        (b"GET /metrics HTTP/1.1\r\nA: b\r\n folded\r\n\r\n", {400}),
        (b"GET /metrics HTTP/1.1\r\nA: \0\r\n\r\n", {400}),
        (b"GET /metrics HTTP/1.1\rA: b\r\n\r\n", {400}),
        (b"GET /\xff HTTP/1.1\r\n\r\n", {400}),
        (b"GET /metrics HTTP/1.1\r\nA: \xff\r\n\r\n", {200}),
        (b"GET /metrics HTTP/1.1\n\n", {200}),
        (b"GET /metrics HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello", {200}),
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
    """A request without a version, as before HTTP/1.0, gets an error at its first line's end, whatever else it waits for."""
    daemon = poold().start()
    with scraper(daemon) as client:
        client.sendall(b"GET /metrics\r\n")
        assert client.recv(12) == b"HTTP/1.0 400"


def test_method_that_is_not_allowed(poold: Poold) -> None:
    """A 405 says which methods are allowed."""
    daemon = poold().start()
    assert b"\r\nAllow: GET, HEAD\r\n" in raw(daemon, b"PUT /metrics HTTP/1.1\r\n\r\n")


def test_one_answer_a_connection(poold: Poold) -> None:
    """Of requests that follow each other on one connection the first is answered, and the connection ends."""
    daemon = poold().start()
    answer = raw(daemon, GET * 2000)
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
        for _ in range(500):
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


def test_clients_that_finish_nothing(poold: Poold) -> None:
    """Clients that never finish a request, many more than there are places, keep nobody else out."""
    daemon = poold().start()
    with contextlib.ExitStack() as stack:
        for number in range(200):
            client = stack.enter_context(scraper(daemon))
            client.sendall(GET[: number % 20])
            if number % 20 == 19:
                assert daemon.get("/healthz") == daemon.get("/readyz") == 200
                assert answers(daemon)
    dropped = daemon.events("scraper_dropped", reason="crowd")
    # Some of them were closed for others, which is said, but not for each.
    assert 1 <= len(dropped) <= 10


def test_health_checks_of_a_crowd(poold: Poold) -> None:
    """While more clients than there are places scrape as fast as they can, each health check is answered, and none says no."""
    daemon = poold().start(laws=False)

    def scrapes(enough: threading.Event) -> None:
        while not enough.is_set():
            raw(daemon, GET)

    with in_background(50, scrapes):
        seen = {daemon.get(path) for _ in range(20) for path in ("/healthz", "/readyz")}
    assert seen == {200}


def test_one_thread_in_the_exporter(poold: Poold) -> None:
    """The exporter has one thread, however many ask and asked."""
    daemon = poold().start()
    pid = exporter(daemon)
    for _ in range(50):
        assert daemon.get("/healthz") == 200
    with in_background(8, lambda enough: [raw(daemon, GET) for _ in range(10)]):
        assert os.listdir(f"/proc/{pid}/task") == [str(pid)]
    assert os.listdir(f"/proc/{pid}/task") == [str(pid)]


def test_what_the_exporter_holds(poold: Poold) -> None:
    """The exporter's descriptors are its listener, its lifeline, three streams and its loop's own; the counters it can only read."""
    daemon = poold().start(laws=False)
    daemon.metric("poold_children", 1, kind="exporter", state="serving")
    pid = exporter(daemon)
    files = eventually(lambda: files if len(files := open_files(pid)) == 8 else {}, "the last scrape has gone")
    assert Counter(name.partition(":")[0] for name in files.values()) == {
        "/dev/null": 1,
        "pipe": 2,
        # The listener, the lifeline, and both ends of what wakes asyncio's loop.
        "socket": 4,
        "anon_inode": 1,
    }
    shared = [line.split() for line in Path(f"/proc/{pid}/maps").read_text().splitlines() if "memfd" in line]
    assert [(line[1], line[5]) for line in shared] == [("r--s", "/memfd:poold-counters")]


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
    """An exporter that is stopped by a signal holds up neither sessions nor the master's end."""
    daemon = poold(options={"timeouts.kill": 0.2}).start(laws=False)
    eventually(lambda: answers(daemon), "a scrape is answered")
    pid = exporter(daemon)
    with frozen(pid):
        for _ in range(20):
            with daemon.connect() as client:
                assert client.ask("echo here") == "here"
    daemon.metric("poold_sessions_ended_total", 20, cause="ok")
    with frozen(pid):
        assert daemon.stop() == 0
        assert gone(pid)


def test_exporter_that_hangs(poold: Poold) -> None:
    """An exporter that does not answer is replaced as soon as somebody has waited for it, who is answered by the next one."""
    daemon = poold().start()
    for number in (1, 2):
        eventually(lambda: answers(daemon), "a scrape is answered")
        mark = daemon.mark()
        pid = exporter_of(daemon)
        os.kill(pid, signal.SIGSTOP)
        # Nobody but the master can help here, and it has no tick.
        waits = scraper(daemon)
        with waits:
            waits.sendall(GET)
            assert waits.recv(12) == b"HTTP/1.0 200"
        assert daemon.event("exporter_silent", after=mark)["pid"] == pid
        assert exporter(daemon, after=mark) != pid
        metrics = daemon.metrics()
        assert metrics.total("poold_children_failed_total", reason="timeout") == number
        assert metrics.total("poold_children_spawned_total", kind="exporter") == number + 1
    assert len(daemon.events("exporter_silent")) == 2


def test_exporter_that_hangs_and_nobody_asks(poold: Poold) -> None:
    """An exporter that nobody wants anything of may be stopped for as long as somebody likes, and goes on afterwards."""
    daemon = poold().start(laws=False)
    eventually(lambda: answers(daemon), "a scrape is answered")
    pid = exporter(daemon)
    with frozen(pid):
        # Longer than it has when somebody asks.
        began = time.monotonic()
        while time.monotonic() - began < 7:
            with daemon.connect() as client:
                assert client.ask("echo here") == "here"
    assert answers(daemon)
    assert len(daemon.events("exporter_started")) == 1


def test_exporter_that_hangs_at_its_start(poold: Poold) -> None:
    """An exporter that does not come as far as to answer anybody is replaced, too."""
    daemon = poold(options=ONE_SPARE).start(laws=False)
    eventually(lambda: answers(daemon), "a scrape is answered")
    mark = daemon.mark()
    os.kill(exporter(daemon), signal.SIGKILL)
    pid = exporter(daemon, after=mark)
    os.kill(pid, signal.SIGSTOP)
    assert daemon.event("exporter_failed", after=mark, reason="the exporter ended with status -9")
    daemon.event("exporter_ready", after=mark)
    assert answers(daemon)
    assert daemon.events("exporter_ready", after=mark, pid=pid) == []
    assert daemon.metrics().total("poold_children_failed_total", reason="timeout") == 1


@needs_root
def test_exporter_without_descriptors(poold: Poold) -> None:
    """An exporter that somebody has taken its descriptors from, and that can let nobody in, makes room for another one."""
    daemon = poold().start(laws=False)
    eventually(lambda: answers(daemon), "a scrape is answered")
    pid = exporter(daemon)
    # Which whoever has its user can do.
    code = "import os, resource, sys; pid, uid, gid = map(int, sys.argv[1:]); os.setgroups([]); os.setresgid(gid, gid, gid); "
    code += "os.setresuid(uid, uid, uid); resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, 3))"
    user = os.stat(f"/proc/{pid}")
    subprocess.run([sys.executable, "-c", code, str(pid), str(user.st_uid), str(user.st_gid)], check=True)
    with scraper(daemon) as waits:
        waits.sendall(GET)
        assert waits.recv(12) == b"HTTP/1.0 200"
    assert gone(pid)
    assert {event["error"] for event in daemon.events("accept_error", listener="metrics")} == {"Too many open files"}
    assert daemon.metrics().total("poold_children_failed_total", reason="exit") == 1


def test_health_while_exporters_change(poold: Poold) -> None:
    """While one exporter makes room for another on the same address, health checks are answered by either, and none says no."""
    daemon = poold(options=ONE_SPARE).start(laws=False)
    seen: queue.SimpleQueue[int] = queue.SimpleQueue()

    def checks(enough: threading.Event) -> None:
        while not enough.is_set():
            seen.put(status(raw(daemon, b"GET /healthz HTTP/1.1\r\n\r\n")))

    eventually(lambda: answers(daemon), "a scrape is answered")
    with in_background(4, checks):
        for generation, level in enumerate(("info", "debug", "info", "debug"), start=2):
            daemon.write(options={**ONE_SPARE, "log.level": level})
            daemon.kill(signal.SIGHUP)
            daemon.event("reload_applied", generation=generation)
    daemon.metric("poold_children_spawned_total", 5, kind="exporter")
    assert {seen.get() for _ in range(seen.qsize())} == {200}


def test_hung_exporter_at_another_address(poold: Poold) -> None:
    """After a reload has moved the metrics it is the new address at which a hung exporter is noticed."""
    daemon = poold(options=ONE_SPARE).start(laws=False)
    eventually(lambda: answers(daemon), "a scrape is answered")
    mark = daemon.mark()
    daemon.metrics_port = free_port()
    daemon.write(options=ONE_SPARE)
    daemon.kill(signal.SIGHUP)
    daemon.event("reload_applied")
    pid = exporter(daemon, after=mark)
    os.kill(pid, signal.SIGSTOP)
    assert answers(daemon)
    daemon.event("exporter_silent", pid=pid)


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
    """While the master is stopped its last figures are served at once, and /healthz and /readyz are 503; 200 again when it goes on."""
    daemon = poold(options=ONE_SPARE).start()
    with daemon.connect() as client:
        client.ask("pid")
        daemon.metric("poold_children_active", 1)
        spares_of(daemon, 1)
        assert daemon.get("/healthz") == 200
        with frozen(daemon.master):
            began = time.monotonic()
            metrics = daemon.metrics()
            assert time.monotonic() - began < 2
            assert metrics["poold_children_active"] == 1
            assert metrics.total("poold_connections_accepted_total") == 1
            assert daemon.get("/healthz") == daemon.get("/readyz") == 503
            assert client.ask("echo here") == "here"
        eventually(lambda: daemon.get("/healthz") == daemon.get("/readyz") == 200, "alive again", seconds=3)
    daemon.metric("poold_sessions_ended_total", 1, cause="ok")


def test_not_ready_without_a_mold(poold: Poold) -> None:
    """While there is neither a mold that works nor a spare /readyz is 503, also where newcomers are accepted to be refused."""
    daemon = poold()
    mood = daemon.folder / "mood"
    options = {**ONE_SPARE, "server.handler": "moody:serve", "server.environment": {"MOOD": str(mood)}, "pool.when_full": "refuse"}
    daemon.write(options=options)
    daemon.start()
    eventually(lambda: daemon.get("/readyz") == 200, "ready")
    mood.write_text("raise")
    os.kill(mold_of(daemon), signal.SIGKILL)
    daemon.event("mold_failed")
    # Its spare is as good as ever.
    assert daemon.get("/readyz") == 200
    for spare in spares_of(daemon, 1):
        os.kill(spare, signal.SIGKILL)
    eventually(lambda: daemon.get("/readyz") == 503, "not ready")
    assert b"no worker can be born" in raw(daemon, b"GET /readyz HTTP/1.1\r\n\r\n")
    assert daemon.metrics()["poold_accepting"] == 1
    assert daemon.get("/healthz") == 200
    mood.write_text("good")
    eventually(lambda: daemon.get("/readyz") == 200, "ready again")


@pytest.mark.parametrize("when_full", ["wait", "refuse"])
def test_not_ready_while_births_fail(poold: Poold, when_full: str) -> None:
    """Where no worker can be made /readyz is 503 after some seconds, however often it is tried, and 200 again when one was."""
    daemon = poold(options={**ONE_SPARE, "pool.when_full": when_full}).start()
    eventually(lambda: daemon.get("/readyz") == 200, "ready")
    [spare] = spares_of(daemon, 1)
    # Neither this mold can clone, nor can the master start another one.
    with pids_limit(mold_of(daemon), 1) as limit, pids_limit(daemon.pid, 1):
        os.kill(spare, signal.SIGKILL)
        daemon.event("spawn_failed")
        eventually(lambda: daemon.get("/readyz") == 503, "not ready")
        # Births are tried again after 5 s at the longest: none of that makes it ready.
        began = time.monotonic()
        while time.monotonic() - began < 7:
            assert daemon.get("/readyz") == 503
        limit("max")
        eventually(lambda: daemon.get("/readyz") == 200, "ready again")


def test_ready_again_when_nobody_needs_a_worker(poold: Poold) -> None:
    """Without spares births that fail make it not ready as long as somebody waits for one; then the next client is to find out."""
    daemon = poold(options={"pool.min_spare": 0, "timeouts.startup": 9}).start()
    eventually(lambda: daemon.get("/readyz") == 200, "ready")
    with pids_limit(mold_of(daemon), 1), pids_limit(daemon.pid, 1), daemon.connect() as client:
        eventually(lambda: daemon.get("/readyz") == 503, "not ready")
        assert client.rest() == b""
        daemon.metric("poold_sessions_ended_total", 1, cause="timeout_startup")
        eventually(lambda: daemon.get("/readyz") == 200, "ready again")
    with daemon.connect() as client:
        assert client.ask("echo here") == "here"


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


def test_metrics_at_an_address_that_is_taken(poold: Poold) -> None:
    """A reload that wants the metrics where somebody listens already is refused, and they stay where they are."""
    daemon = poold(options=ONE_SPARE).start()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        daemon.write(options={**ONE_SPARE, "metrics.listen": f"tcp://127.0.0.1:{taken.getsockname()[1]}"})
        daemon.kill(signal.SIGHUP)
        assert "Address already in use" in daemon.event("reload_refused")["reason"]
    assert daemon.get("/readyz") == 200
    assert len(daemon.events("exporter_started")) == 1


# What is shown.


def test_series_do_not_grow(poold: Poold) -> None:
    """However many clients of however many addresses come, the samples have the same names and labels, and are few."""
    daemon = poold(options={"pool.max_children": 8}).start()
    before = set(daemon.metrics())
    for number in range(2, 60):
        with socket.socket() as client:
            client.bind((f"127.0.0.{number}", 0))
            client.connect(daemon.address)
            client.sendall(b"status room-%d\n" % number)
            client.recv(100)
    daemon.metric("poold_sessions_active", 0)
    assert set(daemon.metrics()) == before
    assert len(before) < 300


@pytest.mark.parametrize("name", ['say "hi"', "back\\slash\\n", "{}=,", "Bücher 📚", "x" * 128, "\u00e9" * 64])
def test_odd_names_of_listeners(poold: Poold, name: str) -> None:
    """A listener's name is the same label in both formats, whatever characters it has."""
    listener = f'[[listener]]\naddress = "systemd://main"\nname = {json.dumps(name, ensure_ascii=False)}\n'
    daemon = poold(settings=listener).start(laws=False)
    with daemon.connect() as client:
        assert client.ask("echo here") == "here"
    daemon.metric("poold_sessions_ended_total", 1, cause="ok")
    text = raw(daemon, GET).partition(b"\r\n\r\n")[2].decode()
    opened = raw(daemon, b"GET /metrics HTTP/1.1\r\nAccept: application/openmetrics-text\r\n\r\n").partition(b"\r\n\r\n")[2].decode()
    for families in (text_string_to_metric_families(text), openmetrics_families(opened)):
        samples = [sample for family in families for sample in family.samples if sample.name == "poold_connections_accepted_total"]
        assert [(sample.labels, sample.value) for sample in samples] == [({"listener": name}, 1.0)]


def test_no_figure_is_out_of_its_range(poold: Poold) -> None:
    """No sample is negative, infinite or not a number, after sessions of all fates and without a limit of open files."""
    daemon = poold(options=ONE_SPARE).start()
    for words in ("echo here", "exit 3", "signal 9", "raise"):
        with daemon.connect() as client:
            client.ask(words)
    daemon.metric("poold_sessions_active", 0)
    assert {name: value for name, value in daemon.metrics().items() if not 0 <= value < 2.0**64 + 1} == {}


def test_multiprocess_mode_of_the_library(poold: Poold, tmp_path: Path) -> None:
    """The variable that makes prometheus_client keep a file for each process reaches no handler, and without it nothing is kept."""
    folder = tmp_path / "prometheus"
    folder.mkdir()
    daemon = poold().start(environ={"PROMETHEUS_MULTIPROC_DIR": str(folder)})
    for _ in range(10):
        with daemon.connect() as client:
            assert "PROMETHEUS_MULTIPROC_DIR" not in json.loads(client.ask("facts"))["environ"]
        assert answers(daemon)
    assert list(folder.iterdir()) == []


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


def test_exporter_at_a_limit_of_tasks(poold: Poold) -> None:
    """Scrapes and health checks are answered where no process may make another task."""
    daemon = poold().start(laws=False)
    daemon.metric("poold_children", 1, kind="exporter", state="serving")
    pid = exporter(daemon)
    with pids_limit(pid, 1):
        for _ in range(20):
            assert status(raw(daemon, GET)) == daemon.get("/healthz") == 200
    assert shows(pid, "poold: exporter")
    assert "Traceback" not in daemon.log.read_text()
