"""The small handlers that ship, each served in this process."""

import re
import socket
import threading
from collections.abc import Iterator

import pytest

from poold.address import Endpoint
from poold.connection import Connection
from poold.handlers import daytime, echo

DEADLINE = 30.0


class FakeWorker:
    """What a worker would answer to a handler that asks nothing."""

    def stopping(self) -> bool:
        return False

    def set_status(self, text: str) -> None:
        raise AssertionError(text)

    def extend_deadline(self, seconds: float) -> None:
        raise AssertionError(seconds)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, Connection]]:
    """A client's socket and the connection that serves it, over TCP."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname(), timeout=DEADLINE)
        accepted, peer = listener.accept()
    there = Endpoint.of(socket.AF_INET, peer)
    with client, accepted:
        yield client, Connection(accepted, id=1, peer=there, listener="test", options={}, worker=FakeWorker())


def received(client: socket.socket) -> bytes:
    """Return all that comes until the end of file."""
    return b"".join(iter(lambda: client.recv(65536), b""))


def test_echo_returns_every_byte(pair: tuple[socket.socket, Connection]) -> None:
    """What is sent comes back, also what is more than any buffer holds, and the client's end of file ends it."""
    client, connection = pair
    sent = bytes(range(256)) * 20_000

    def serve() -> None:
        echo.serve(connection)
        connection.close()

    def send() -> None:
        client.sendall(sent)
        client.shutdown(socket.SHUT_WR)

    threads = [threading.Thread(target=serve), threading.Thread(target=send)]
    for thread in threads:
        thread.start()
    back = received(client)
    for thread in threads:
        thread.join(DEADLINE)
    assert back == sent


def test_echo_of_nothing_is_nothing(pair: tuple[socket.socket, Connection]) -> None:
    """A client that sends nothing gets nothing, and its end of file ends the session."""
    client, connection = pair
    client.shutdown(socket.SHUT_WR)
    echo.serve(connection)
    connection.close()
    assert received(client) == b""


@pytest.mark.parametrize("sent", [b"", b"what time is it?\r\n", b"x" * 10_000], ids=["nothing", "a line", "much"])
def test_daytime_is_one_line(pair: tuple[socket.socket, Connection], sent: bytes) -> None:
    """A client gets one line with date and time and then the end of file, whatever it has sent."""
    client, connection = pair
    client.sendall(sent)
    daytime.serve(connection)
    connection.close()
    assert re.fullmatch(rb"[A-Z][a-z]+day, [A-Z][a-z]+ \d\d, \d{4} \d\d:\d\d:\d\d-[\x21-\x7e]+\r\n", received(client))
