"""Clients that behave badly: they hang up, dawdle, do not read, come in crowds."""

import array
import contextlib
import os
import socket
import struct
import time
from collections.abc import Iterator
from random import Random

from tests.soak.hostile.attack import Kind, named
from tests.soak.hostile.scene import Scene, unix_socket

RESET = struct.pack("ii", 1, 0)


@contextlib.contextmanager
def crowd(scene: Scene, count: int) -> Iterator[list[socket.socket]]:
    """Connect so many at once, and hang up."""
    with contextlib.ExitStack() as stack:
        clients = []
        for _ in range(count):
            client = stack.enter_context(socket.socket())
            client.settimeout(10)
            client.setblocking(False)
            client.connect_ex(scene.daemon.address)
            clients.append(client)
        for client in clients:
            client.settimeout(10)
        yield clients


def connect_and_reset(scene: Scene, random: Random) -> None:
    """Reset connections as soon as there are any, before or after a byte."""
    for _ in range(100):
        with socket.create_connection(scene.daemon.address, 10) as client:
            if random.random() < 0.3:
                client.sendall(b"e")
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)


def reset_in_the_middle(scene: Scene, random: Random) -> None:
    """Reset connections while their sessions write."""
    for _ in range(10):
        with contextlib.suppress(OSError), scene.connect() as client:
            client.send(b"deed flood-its-client 1\n")
            client.socket.recv(random.randrange(1, 1000))
            client.reset()


def half_open(scene: Scene, random: Random) -> None:
    """Connect and say nothing, many at a time, for a moment."""
    with crowd(scene, 30):
        time.sleep(random.uniform(0.5, 2))  # being there is the attack


def slow_bytes(scene: Scene, random: Random) -> None:
    """Send a line a byte at a time."""
    with scene.connect(random.randrange(4)) as client:
        for byte in b"echo slow\n":
            client.send(bytes([byte]))
            time.sleep(0.05)  # being slow is the attack
        assert client.line() == "slow", "a slow client was not served"


def never_read(scene: Scene, random: Random) -> None:
    """Ask for megabytes and never read."""
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            client = stack.enter_context(scene.connect(random.randrange(4)))
            for _ in range(10):
                client.send(b"deed flood-its-client 1\n")
        time.sleep(random.uniform(0.5, 1.5))  # not reading is the attack


def two_hundred_at_once(scene: Scene, random: Random) -> None:
    """Be two hundred clients at one time, three times the cap, of whom some ask and the rest hang up."""
    with crowd(scene, 200) as clients:
        for client in random.sample(clients, 40):
            with contextlib.suppress(OSError):
                client.sendall(b"echo one of many\n")
        time.sleep(random.uniform(0, 1))  # being many is the attack


def out_of_band(scene: Scene, random: Random) -> None:
    """Send urgent data before, within and after a line."""
    with scene.connect() as client:
        client.socket.send(b"!", socket.MSG_OOB)
        client.send(b"echo urgent\n")
        client.socket.send(b"!", socket.MSG_OOB)
        client.line()


def shut_down_halves(scene: Scene, random: Random) -> None:
    """Shut down one half or both, before, in and after a request."""
    for how in (socket.SHUT_WR, socket.SHUT_RD, socket.SHUT_RDWR):
        for words in (b"", b"echo ha", b"echo half\n"):
            with scene.connect(random.randrange(4)) as client, contextlib.suppress(OSError):
                client.send(words)
                client.socket.shutdown(how)
                client.rest()


def nonsense(scene: Scene, random: Random) -> None:
    """Send megabytes that are no request, and read none of the answers: at some time neither side can go on."""
    with scene.connect(random.randrange(4), timeout=3) as client, contextlib.suppress(OSError):
        for _ in range(32):
            client.send(random.randbytes(65536))
        client.finish()


def send_descriptors(scene: Scene, random: Random) -> None:
    """Send descriptors with the bytes over a unix socket, all that one message may have (unix(7), SCM_MAX_FD)."""
    for _ in range(5):
        with unix_socket(scene.folder / "run" / "honest.sock") as client, contextlib.suppress(OSError):
            null = os.open("/dev/null", os.O_RDONLY)
            try:
                rights = array.array("i", [null] * 253)
                client.sendmsg([b"echo with "], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
                client.sendmsg([b"descriptors\n"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [client.fileno()]))])
            finally:
                os.close(null)
            assert client.recv(100) == b"with descriptors\n"


def unix_crowd(scene: Scene, random: Random) -> None:
    """Come to a unix socket from names that cannot be printed, and leave at once."""
    for number in range(40):
        with socket.socket(socket.AF_UNIX) as client, contextlib.suppress(OSError):
            client.bind(b"\0\x1b]0;owned\x07\n" + random.randbytes(20) + str(number).encode())
            client.settimeout(5)
            client.connect(str(scene.folder / "run" / "honest.sock"))
            if number % 3 == 0:
                client.sendall(b"echo named\n")


def tiny_window(scene: Scene, random: Random) -> None:
    """Have almost no room for an answer, and read it a few bytes at a time."""
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        client.settimeout(10)
        client.connect(scene.daemon.address)
        client.sendall(b"echo " + b"x" * 20000 + b"\n")
        got = 0
        while got < 20001 and (part := client.recv(random.randrange(1, 2000))):
            got += len(part)
        assert got == 20001, f"a client with a small window got {got} of 20001 bytes"


ATTACKS = named(
    Kind.CLIENT,
    {
        "clients-connect-and-reset": connect_and_reset,
        "clients-reset-in-the-middle": reset_in_the_middle,
        "clients-half-open": half_open,
        "clients-slow-bytes": slow_bytes,
        "clients-never-read": never_read,
        "clients-two-hundred-at-once": two_hundred_at_once,
        "clients-out-of-band": out_of_band,
        "clients-shut-down-halves": shut_down_halves,
        "clients-nonsense": nonsense,
        "clients-send-descriptors": send_descriptors,
        "clients-unix-crowd": unix_crowd,
        "clients-tiny-window": tiny_window,
    },
)
