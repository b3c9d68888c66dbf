"""Scrapers that behave badly. None may keep others from their scrape for longer than a few seconds."""

import contextlib
import socket
import time
from random import Random

from tests.soak.hostile.attack import Kind, named
from tests.soak.hostile.scene import Scene
from tests.waiting import eventually

ODD_ACCEPT = (
    "application/openmetrics-text; version=abc",
    "application/openmetrics-text; version=",
    "application/openmetrics-text;;;q=x",
    "text/plain; version=9.9; escaping=nothing",
    "," * 4000,
    "\x80\xff",
    "*/*;q=nan",
)


def _open(scene: Scene) -> socket.socket:
    return socket.create_connection(("127.0.0.1", scene.daemon.metrics_port), 10)


def _answered(scene: Scene) -> None:
    """Wait until an honest scrape is answered."""

    def answers() -> bool:
        try:
            return scene.daemon.get("/metrics") == 200
        except OSError:
            # No room yet.
            return False

    eventually(answers, "a scrape that is answered after bad ones")


def slow(scene: Scene, random: Random) -> None:
    """Send requests a byte at a time, as many as there are places."""
    with contextlib.ExitStack() as stack:
        scrapers = [stack.enter_context(_open(scene)) for _ in range(16)]
        for byte in b"GET /metrics HT":
            for scraper in scrapers:
                with contextlib.suppress(OSError):
                    scraper.sendall(bytes([byte]))
            time.sleep(0.05)  # being slow is the attack
    _answered(scene)


def half(scene: Scene, random: Random) -> None:
    """Leave requests half finished, with and without shutting down."""
    with contextlib.ExitStack() as stack:
        for _ in range(10):
            scraper = stack.enter_context(_open(scene))
            scraper.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n")
            if random.random() < 0.5:
                scraper.shutdown(socket.SHUT_WR)
        time.sleep(random.uniform(0, 1))  # not going on is the attack
    _answered(scene)


def large(scene: Scene, random: Random) -> None:
    """Send a header of a megabyte, a line without an end, ten thousand headers."""
    for request in (b"GET / HTTP/1.1\r\nX: " + b"x" * (1 << 20), b"G" * (1 << 20), b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 10_000):
        with _open(scene) as scraper, contextlib.suppress(OSError):
            scraper.sendall(request)
            scraper.shutdown(socket.SHUT_WR)
            scraper.recv(4096)
    _answered(scene)


def bad_accept(scene: Scene, random: Random) -> None:
    """Ask for formats that there are not; the answer is a page, or a status that says so, and never nothing."""
    for accept in ODD_ACCEPT:
        with _open(scene) as scraper:
            scraper.sendall(f"GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\n\r\n".encode("latin-1"))
            with contextlib.suppress(ConnectionResetError):
                answer = scraper.recv(100)
                assert answer.startswith(b"HTTP/1."), f"Accept: {accept[:60]!r} was answered with {answer!r}"
    _answered(scene)


def many(scene: Scene, random: Random) -> None:
    """Be a hundred scrapers at one time, who do not read their answers."""
    with contextlib.ExitStack() as stack:
        for _ in range(100):
            with contextlib.suppress(OSError):
                scraper = stack.enter_context(_open(scene))
                scraper.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        time.sleep(random.uniform(0, 1))  # being many is the attack
    _answered(scene)


def nonsense(scene: Scene, random: Random) -> None:
    """Send what is no HTTP, and methods and paths that there are not."""
    for request in (
        random.randbytes(3000),
        b"\r\n\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /metrics HTTP/9.9\r\n\r\n",
        b"DELETE /../../etc/passwd HTTP/1.1\r\n\r\n",
        b"GET " + b"/" * 7000 + b" HTTP/1.0\r\n\r\n",
        b"POST /metrics HTTP/1.1\r\nContent-Length: -5\r\nTransfer-Encoding: chunked\r\n\r\nffffffff\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ):
        with _open(scene) as scraper, contextlib.suppress(OSError):
            scraper.sendall(request)
            scraper.shutdown(socket.SHUT_WR)
            while scraper.recv(65536):
                pass
    _answered(scene)


ATTACKS = named(
    Kind.SCRAPER,
    {
        "scrapers-slow": slow,
        "scrapers-half": half,
        "scrapers-large": large,
        "scrapers-bad-accept": bad_accept,
        "scrapers-many": many,
        "scrapers-nonsense": nonsense,
    },
)
