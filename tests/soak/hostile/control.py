"""Clients of the control socket that behave badly: root's, because nobody else gets in."""

import array
import contextlib
import json
import os
import socket
import time
from random import Random

from poold import rpc
from tests.soak.hostile.attack import Kind, named
from tests.soak.hostile.scene import Scene, unix_socket
from tests.waiting import eventually


def _open(scene: Scene) -> socket.socket:
    """Connect; whether the queue is full is the attack's own affair."""
    return eventually(lambda: _try(scene), "room in the queue of the control socket")[0]


def _try(scene: Scene) -> list[socket.socket]:
    try:
        return [unix_socket(scene.daemon.control)]
    except BlockingIOError:
        # Its queue is full.
        return []


def _answered(scene: Scene) -> None:
    """See that an honest client is answered."""
    told = scene.ask("status")
    assert told.status == 0, f"poold status after an attack on the control socket: {told}"


def garbage(scene: Scene, random: Random) -> None:
    """Say what is no request: bytes, JSON that is none of ours, verbs that are no text, numbers without end."""
    requests: tuple[bytes, ...] = (
        random.randbytes(2000) + b"\n",
        b"[" * 4000 + b"\n",
        b'{"verb": ' + b"9" * 4000 + b"}\n",
        b'{"verb": {"a": 1}}\n',
        b'{"verb": null}\n',
        b"null\n",
        b'"view"\n',
        b'{"verb": "view", "verb": "reloaded"}\n',
        b'{"verb": "view\\u0000"}\n',
        b'{"verb": "reload", "dry_run": {"a": [1, 2]}}\n',
        b"\xff\xfe\n",
        b"\n\n\n",
        b'{"verb": NaN}\n{"verb": "stop"}\n',
        b'{"verb": "kill", "what": -1}\n',
    )
    for request in requests:
        with _open(scene) as client, contextlib.suppress(OSError):
            client.sendall(request)
            client.recv(65536)
    _answered(scene)


def idle(scene: Scene, random: Random) -> None:
    """Connect and say nothing, more than there are places."""
    with contextlib.ExitStack() as stack:
        for _ in range(30):
            client = stack.enter_context(_open(scene))
            if random.random() < 0.5:
                with contextlib.suppress(OSError):
                    client.sendall(b'{"verb": ')
        _answered(scene)


def large(scene: Scene, random: Random) -> None:
    """Send a megabyte without an end of a line."""
    with _open(scene) as client, contextlib.suppress(OSError):
        for _ in range(16):
            client.sendall(b" " * 65536)
    _answered(scene)


def descriptors(scene: Scene, random: Random) -> None:
    """Send as many descriptors as the kernel lets through, with and without a request."""
    for words in (b"x", b'{"verb": "view"}\n', b""):
        with _open(scene) as client, contextlib.suppress(OSError):
            null = os.open("/dev/null", os.O_RDONLY)
            try:
                for _ in range(20):
                    client.sendmsg([words or b" "], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [null] * 253))])
            finally:
                os.close(null)
            if words.endswith(b"\n"):
                client.recv(65536)
    _answered(scene)


def reload_storm(scene: Scene, random: Random) -> None:
    """Ask for forty reloads at a time; one is done, and the others are told busy."""
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(_open(scene)) for _ in range(40)]
        for client in clients:
            with contextlib.suppress(OSError):
                client.sendall(json.dumps({"verb": "reload", "dry_run": random.random() < 0.3}).encode() + b"\n")
        if random.random() < 0.5:
            for client in clients:
                with contextlib.suppress(OSError):
                    client.recv(65536)
    _answered(scene)


def dry_run_storm(scene: Scene, random: Random) -> None:
    """Ask for dry runs one after the other, and hang up before their answers."""
    for _ in range(30):
        with _open(scene) as client, contextlib.suppress(OSError):
            client.sendall(b'{"verb": "reload", "dry_run": true}\n')
            if random.random() < 0.2:
                client.recv(65536)
    _answered(scene)


def view_flood(scene: Scene, random: Random) -> None:
    """Ask for three hundred views; each comes with descriptors, and some are never received."""
    for number in range(300):
        if number % 3:
            with _open(scene) as client, contextlib.suppress(OSError):
                client.sendall(b'{"verb": "view"}\n')
        else:
            answer, fds = rpc.call([scene.daemon.control], {"verb": "view"}, timeout=30)
            for fd in fds:
                os.close(fd)
            assert answer["ok"], f"a view was answered with {answer}"


def write_into_views(scene: Scene, random: Random) -> None:
    """Try to write into what a view's descriptors show: the reader is root, and still may not."""
    _, fds = rpc.call([scene.daemon.control], {"verb": "view"}, timeout=30)
    try:
        for fd in fds:
            try:
                os.write(fd, b"x")
            except OSError:
                # As it should be.
                continue
            raise AssertionError(f"descriptor {os.readlink(f'/proc/self/fd/{fd}')} of a view can be written to")
    finally:
        for fd in fds:
            os.close(fd)


def closing_early(scene: Scene, random: Random) -> None:
    """Hang up at each moment of a request, with and without a reset of what is unread."""
    request = b'{"verb": "view"}\n'
    for _ in range(60):
        with _open(scene) as client, contextlib.suppress(OSError):
            client.sendall(request[: random.randrange(len(request) + 1)])
            if random.random() < 0.3:
                client.shutdown(random.choice([socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR]))
    _answered(scene)


def tables_of_odd_sessions(scene: Scene, random: Random) -> None:
    """Look at the table and the state while sessions say odd things of themselves: whole, and nothing that a terminal obeys."""
    with contextlib.ExitStack() as stack:
        for name in ("odd-statuses", "very-many-statuses", "odd-deadlines", "deaf-for-a-while"):
            stack.enter_context(scene.connect(random.randrange(4))).send(f"deed {name} 1\n".encode())
        for words in (["ps"], ["ps", "--json"], ["status"], ["status", "--json"]):
            told = scene.ask(*words)
            assert told.status == 0, f"poold {' '.join(words)}: {told}"
            odd = {character for character in told.text if not character.isprintable()} - {"\n"}
            assert not odd, f"poold {' '.join(words)} prints {odd}"
            if "--json" in words:
                json.loads(told.text)


def two_requests(scene: Scene, random: Random) -> None:
    """Ask again before there is an answer, byte by byte."""
    with _open(scene) as client, contextlib.suppress(OSError):
        for byte in b'{"verb": "reload", "dry_run": true}\n{"verb": "view"}\n':
            client.sendall(bytes([byte]))
        time.sleep(random.uniform(0, 0.1))  # so that it comes at various moments of the first
        client.sendall(b'{"verb": "view"}\n' * 100)
    _answered(scene)


ATTACKS = named(
    Kind.CONTROL,
    {
        "control-garbage": garbage,
        "control-idle": idle,
        "control-large": large,
        "control-descriptors": descriptors,
        "control-reload-storm": reload_storm,
        "control-dry-run-storm": dry_run_storm,
        "control-view-flood": view_flood,
        "control-write-into-views": write_into_views,
        "control-closing-early": closing_early,
        "control-tables-of-odd-sessions": tables_of_odd_sessions,
        "control-two-requests": two_requests,
    },
)
