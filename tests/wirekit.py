"""What clients and scrapers do on the wire beyond a word and its answer: raw requests, another network, coming and going."""

import contextlib
import ctypes
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from tests.support import Client, Daemon
from tests.waiting import DEADLINE

CLONE_NEWNET = 0x40000000
T = TypeVar("T")


def raw(daemon: Daemon, request: bytes) -> bytes:
    """Send bytes to the metrics listener and return everything that comes back, b"" also for a reset."""
    with socket.create_connection(("127.0.0.1", daemon.metrics_port), timeout=DEADLINE) as scraper:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            scraper.sendall(request)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while part := scraper.recv(65536):
                answer += part
        return answer


def status(answer: bytes) -> int:
    """Return the status of an HTTP answer, 0 for none."""
    words = answer.partition(b"\r\n")[0].split()
    return int(words[1]) if len(words) > 1 and words[0].startswith(b"HTTP/") else 0


def inside(pid: int, make: Callable[[], T]) -> T:
    """Return what a function makes in the network of a process; a socket stays of the network it was made in."""
    result: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            with Path(f"/proc/{pid}/ns/net").open("rb") as network:
                # Only the calling thread moves (setns(2)), so it is a thread of its own.
                assert ctypes.CDLL(None, use_errno=True).setns(network.fileno(), CLONE_NEWNET) == 0
            result.append(make())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(DEADLINE)
    if errors:
        raise errors[0]
    return result[0]


def listening(daemon: Daemon, listener: str) -> tuple[str, int]:
    """Return the address that a TCP listener says it has."""
    address = daemon.event("listening", listener=listener)["address"].removeprefix("tcp://")
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def port_of(client: Client) -> int:
    """Return the client's own port."""
    return int(client.socket.getsockname()[1])


@contextlib.contextmanager
def visitors(daemon: Daemon, count: int = 2) -> Iterator[list[str]]:
    """Be clients that come and go all the time, and note what becomes of each."""
    stop, outcomes = threading.Event(), list[str]()

    def come_and_go(number: int) -> None:
        visit = 0
        while not stop.is_set():
            visit += 1
            try:
                with daemon.connect() as client:
                    nonce = f"{number}-{visit}"
                    outcomes.append("served" if client.ask(f"echo {nonce}") == nonce else "wrong")
            except OSError as error:
                outcomes.append(f"lost: {error}")

    threads = [threading.Thread(target=come_and_go, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield outcomes
    finally:
        stop.set()
        for thread in threads:
            thread.join()
