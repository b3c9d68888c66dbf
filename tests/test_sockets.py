"""Listening sockets: what clients do to them before they are accepted, and what is wrong with an address or a passed descriptor."""

import contextlib
import json
import os
import queue
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.childkit import spares_of
from tests.procfs import alive, descendants, frozen, gone, open_files, state
from tests.support import Client, Daemon, Poold, free_port
from tests.waiting import DEADLINE, eventually
from tests.wirekit import inside, listening, port_of

ONE_SPARE = {"pool.min_spare": 1, "pool.max_spare": 1}

# Runs poold in a network of its own, in which a shell command is executed first.
NETWORK = ("unshare", "-n", "sh", "-c", 'ip link set lo up && eval "$0" && exec "$@"')
needs_network = pytest.mark.skipif(
    os.geteuid() != 0 or not all(map(shutil.which, ("unshare", "ip", "sysctl"))), reason="needs root, unshare(1), ip(8) and sysctl(8)"
)


def listener(address: str, name: str | None = None, **keys: Any) -> str:
    """Return the settings of a listener."""
    lines = {"address": address, **({"name": name} if name else {}), **keys}
    return "[[listener]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in lines.items())


def refused_start(daemon: Daemon, **arguments: Any) -> str:
    """Start what cannot start; return what it says."""
    mark = daemon.mark() if daemon.log.exists() else 0
    daemon.start(wait=False, **arguments)
    text_of = daemon.log.read_bytes
    assert daemon.wait() == 1, text_of()
    text = text_of()[mark:].decode()
    assert "Traceback" not in text, text
    return text


def waiting(passed: socket.socket) -> int:
    """Return how many connections wait for accept, by the kernel's word."""
    return int(struct.unpack_from("I", passed.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104), 24)[0])


# Clients that are there before they are accepted.


def test_reset_before_accept(poold: Poold) -> None:
    """Clients that have reset their connections before they are accepted end as `client_gone`: no failure, and each by its address."""
    daemon = poold(options={"pool.min_spare": 2}).start()
    ports = set()
    with frozen(daemon.master):
        for _ in range(30):
            client = daemon.connect()
            ports.add(port_of(client))
            client.send(b"echo never\n")
            client.reset()
    daemon.metric("poold_sessions_ended_total", 30, cause="client_gone")
    metrics = daemon.metrics()
    assert metrics.total("poold_connections_accepted_total") == 30
    assert metrics.total("poold_children_failed_total") == 0
    assert metrics.total("poold_accept_errors_total") == 0
    assert {int(event["peer"].rpartition(":")[2]) for event in daemon.events("session_ended")} == ports
    assert "Traceback" not in daemon.log.read_text()


def test_end_before_accept(poold: Poold) -> None:
    """Clients that have said something and gone before they are accepted get their session, which ends well."""
    daemon = poold(options={"pool.min_spare": 2}).start()
    with frozen(daemon.master):
        clients = [daemon.connect() for _ in range(10)]
        for number, client in enumerate(clients):
            client.send(f"echo {number}\n".encode())
            client.socket.shutdown(socket.SHUT_WR)
    assert [client.rest() for client in clients] == [f"{number}\n".encode() for number in range(10)]
    for client in clients:
        client.close()
    daemon.metric("poold_sessions_ended_total", 10, cause="ok")


def test_unix_client_that_has_gone_before_accept(poold: Poold, tmp_path: Path) -> None:
    """Clients of a unix socket that have gone before they are accepted are sessions with a peer, and no failure."""
    path = tmp_path / "service.sock"
    daemon = poold(options={"pool.min_spare": 2}, settings=listener(f"unix://{path}", "local")).start()
    with frozen(daemon.master):
        for _ in range(10):
            client = Client(str(path))
            client.send(b"echo never\n")
            client.close()
    daemon.metric("poold_sessions_ended_total", 10)
    metrics = daemon.metrics()
    assert metrics.total("poold_connections_accepted_total", listener="local") == 10
    assert metrics.total("poold_children_failed_total") == 0
    assert {event["peer"] for event in daemon.events("session_ended")} == {f"unix:uid={os.geteuid()},pid={os.getpid()}"}


def test_queue_overflow_while_the_master_is_stopped(poold: Poold) -> None:
    """More clients than the kernel queues, while the master is stopped: all are served once it goes on, none is refused or reset."""
    daemon = poold(options={"pool.min_spare": 2})
    daemon.listener.listen(3)
    daemon.start()
    clients = []
    with frozen(daemon.master):
        for _ in range(10):
            client = socket.socket()
            client.setblocking(False)
            assert client.connect_ex(daemon.address) in (0, 115)
            clients.append(client)
        # The kernel queues one more than it was told.
        eventually(lambda: waiting(daemon.listener) == 4, "a full queue")
    for number, client in enumerate(clients):
        client.settimeout(DEADLINE)
        # Blocks until the connection is there; its first packet may have to be sent again.
        assert eventually(lambda client=client: client.connect_ex(daemon.address) in (0, 106), "the connection")
        client.sendall(f"echo {number}\n".encode())
        with client.makefile("rb") as file:
            assert file.readline() == f"{number}\n".encode()
        client.close()
    daemon.metric("poold_sessions_ended_total", 10, cause="ok")
    assert daemon.metrics().total("poold_connections_refused_total") == 0


def test_depth_of_the_queue_is_exported(poold: Poold) -> None:
    """How many clients wait for accept, and how many may, is exported for each TCP listener."""
    daemon = poold(
        options={"pool.max_children": 1, "pool.min_spare": 1}, settings=listener("tcp://127.0.0.1:0", "small", backlog=2)
    ).start()
    address = listening(daemon, "small")
    with Client(address) as served:
        served.ask("pid")
        daemon.metric("poold_accepting", 0)
        clients = [Client(address) for _ in range(3)]
        daemon.metric("poold_backlog", 3, listener="small")
        assert daemon.metrics().total("poold_backlog_limit", listener="small") == 2
    for client in clients:
        assert client.ask("echo here") == "here"
        client.close()
    daemon.metric("poold_backlog", 0, listener="small")


# Fairness.


def test_busy_listener_does_not_starve_another(poold: Poold) -> None:
    """A client of a quiet listener is accepted within a few turns, however many wait at the busy one."""
    daemon = poold(options={"pool.max_children": 4, "pool.min_spare": 2}, settings=listener("systemd://main", "busy"))
    quiet = daemon.passed["quiet"] = socket.create_server(("127.0.0.1", 0))
    daemon.config.write_text(daemon.config.read_text() + listener("systemd://quiet", "quiet"))
    daemon.start()
    with frozen(daemon.master):
        crowd = [daemon.connect() for _ in range(200)]
        for one in crowd:
            one.send(b"exit 0\n")
        client = Client(quiet.getsockname())
    with client:
        # Two turns' worth of the busy listener's clients at most.
        assert json.loads(client.ask("facts"))["id"] <= 32
    for one in crowd:
        assert one.rest() == b""
        one.close()
    daemon.metric("poold_sessions_ended_total", 201, cause="ok")


@pytest.mark.parametrize("cap", [1, 8])
def test_flood_of_one_listener(poold: Poold, cap: int) -> None:
    """While clients come to one listener without end, those of another are served, also when there is room for one session only."""
    daemon = poold(options={"pool.max_children": cap, "pool.min_spare": 1}, settings=listener("systemd://main", "busy"))
    quiet = daemon.passed["quiet"] = socket.create_server(("127.0.0.1", 0))
    daemon.config.write_text(daemon.config.read_text() + listener("systemd://quiet", "quiet"))
    daemon.start()
    enough = threading.Event()
    problems: queue.SimpleQueue[BaseException] = queue.SimpleQueue()

    def flood() -> None:
        try:
            while not enough.is_set():
                with daemon.connect() as client:
                    assert client.ask("echo flood") == "flood"
        except BaseException as error:
            problems.put(error)

    threads = [threading.Thread(target=flood) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for number in range(5):
            with Client(quiet.getsockname()) as client:
                assert client.ask(f"echo {number}") == str(number)
    finally:
        enough.set()
        for thread in threads:
            thread.join(DEADLINE)
    assert problems.empty(), problems.get()
    daemon.metric("poold_sessions_active", 0)
    metrics = daemon.metrics()
    assert metrics.total("poold_connections_accepted_total", listener="quiet") == 5
    assert metrics.total("poold_sessions_ended_total", cause="ok") == metrics.total("poold_sessions_ended_total")


def test_signals_come_before_clients(poold: Poold) -> None:
    """A child that has died is reaped before the clients are accepted that came at the same moment."""
    daemon = poold(options=ONE_SPARE).start()
    (spare,) = spares_of(daemon, 1)
    with frozen(daemon.master):
        mark = daemon.mark()
        clients = [daemon.connect() for _ in range(100)]
        os.kill(spare, signal.SIGKILL)
        eventually(lambda: state(spare) == "Z", "its death")
    daemon.event("session_started", after=mark)
    names = [json.loads(line)["event"] for line in daemon.log.read_bytes()[mark:].splitlines()]
    assert names.index("child_failed") < names.index("session_started")
    for client in clients:
        client.close()
    daemon.metric("poold_sessions_ended_total", 100)


# Unix sockets.


def test_stale_socket_files_are_replaced(poold: Poold, tmp_path: Path) -> None:
    """After a master was killed, another one takes over its socket files, and removes them at its end."""
    files = [tmp_path / "service.sock", tmp_path / "control.sock"]
    arguments = {"options": {"control.socket": str(files[1])}, "settings": listener(f"unix://{files[0]}", "local", mode="0600")}
    first = poold(**arguments).start()
    with Client(str(files[0])) as client:
        assert client.ask("echo one") == "one"
        first.crash()
        assert client.rest() == b""
    assert all(path.is_socket() for path in files)
    second = poold(**arguments).start()
    with Client(str(files[0])) as client:
        assert client.ask("echo two") == "two"
    assert files[0].stat().st_mode & 0o777 == 0o600
    assert second.stop() == 0
    assert [path for path in files if path.exists()] == []


def test_socket_file_that_is_in_use(poold: Poold, tmp_path: Path) -> None:
    """A second poold at the same socket file ends with 1 and says why; the first one's file is untouched and served."""
    path = tmp_path / "service.sock"
    first = poold(settings=listener(f"unix://{path}", "local")).start()
    inode = path.stat().st_ino
    assert f"cannot listen on unix://{path}: another process listens there" in refused_start(poold(settings=listener(f"unix://{path}")))
    text = refused_start(poold(options={"control.socket": str(first.control)}))
    assert f"cannot listen on {first.control}: another process listens there" in text
    assert path.stat().st_ino == inode
    # Nor was it asked by a connection that it would have had to serve.
    assert first.metrics().total("poold_connections_accepted_total") == 0
    with Client(str(path)) as client:
        assert client.ask("echo mine") == "mine"
    assert first.ask("status")["phase"] == "running"


def test_socket_file_of_a_stopped_daemon_is_in_use(poold: Poold, tmp_path: Path) -> None:
    """A socket file whose owner does not answer, with a full queue, is not taken for a stale one."""
    path = tmp_path / "service.sock"
    first = poold(settings=listener(f"unix://{path}", "local", backlog=1)).start()
    with frozen(first.master), contextlib.ExitStack() as clients:
        while True:
            client = clients.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            if client.connect_ex(str(path)):
                break
        assert "another process listens there" in refused_start(poold(settings=listener(f"unix://{path}")))
    with socket.socket(socket.AF_UNIX) as client:
        # Without a time-out connect() waits for room in the queue.
        client.connect(str(path))
        client.settimeout(DEADLINE)
        client.sendall(b"echo mine\n")
        assert client.recv(100) == b"mine\n"


def test_foreign_socket_file_is_not_removed(poold: Poold, tmp_path: Path) -> None:
    """A daemon whose socket file was replaced by somebody else's leaves that one alone when it ends."""
    path = tmp_path / "service.sock"
    daemon = poold(settings=listener(f"unix://{path}", "local")).start()
    path.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        assert daemon.stop() == 0
        assert path.is_socket()


def test_socket_file_that_was_removed(poold: Poold, tmp_path: Path) -> None:
    """A daemon whose socket file was removed ends well all the same."""
    path = tmp_path / "service.sock"
    daemon = poold(settings=listener(f"unix://{path}", "local")).start()
    path.unlink()
    daemon.control.unlink()
    assert daemon.stop() == 0


@contextlib.contextmanager
def immutable(*folders: Path) -> Iterator[None]:
    """Let nobody, not even root, make or remove anything in these folders."""
    try:
        if subprocess.run(["chattr", "+i", *folders], check=False, capture_output=True).returncode:
            pytest.skip("no folder can be made immutable here")
        yield
    finally:
        subprocess.run(["chattr", "-i", *folders], check=True, capture_output=True)


needs_chattr = pytest.mark.skipif(os.geteuid() != 0 or shutil.which("chattr") is None, reason="needs root and chattr(1)")


@needs_chattr
def test_socket_files_that_cannot_be_removed(poold: Poold, tmp_path: Path) -> None:
    """A stop ends with 0 although no socket file can be removed; each is told of once, by its path and the reason."""
    folder = tmp_path / "fixed"
    folder.mkdir()
    paths = [folder / "first.sock", folder / "second.sock", folder / "control.sock"]
    settings = "".join(listener(f"unix://{path}", path.stem) for path in paths[:2])
    daemon = poold(options={**ONE_SPARE, "control.socket": str(paths[2])}, settings=settings).start()
    with Client(str(paths[0])) as client:
        client.ask("pid")
        with immutable(folder):
            assert daemon.stop() == 0
        assert client.rest() == b""
    told = sorted((event["path"], event["errno"]) for event in daemon.events("socket_file_not_removed"))
    assert told == sorted((str(path), "EPERM") for path in paths)
    assert len(daemon.events("listener_closed")) == 2
    assert daemon.events("stopped")
    # What is left is stale, and no obstacle to the next start.
    daemon.start()
    assert daemon.stop() == 0
    assert not any(path.exists() for path in paths)


@needs_chattr
def test_socket_file_of_a_removed_listener_that_cannot_be_removed(poold: Poold, tmp_path: Path) -> None:
    """A reload that removes a listener whose file cannot be removed is applied to the end, and the next one is not kept out."""
    folder = tmp_path / "fixed"
    folder.mkdir()
    path, more = folder / "gone.sock", listener("tcp://127.0.0.1:0", "more")
    daemon = poold(options=ONE_SPARE, settings=listener(f"unix://{path}", "gone") + listener(f"unix://{tmp_path}/other", "other")).start()
    with immutable(folder):
        daemon.write(options=ONE_SPARE, settings=more)
        assert daemon.cli("reload", "--socket", str(daemon.control)).returncode == 0
        daemon.event("socket_file_not_removed", path=str(path), errno="EPERM")
        # The other one that was removed with it, and the one that came.
        daemon.event("listener_closed", listener="gone")
        daemon.event("listener_closed", listener="other")
        with Client(listening(daemon, "more")) as client:
            assert client.ask("echo here") == "here"
        done = daemon.cli("reload", "--socket", str(daemon.control))
        assert done.returncode == 0, done.stderr
        with pytest.raises(ConnectionRefusedError):
            Client(str(path))
    assert len(daemon.events("socket_file_not_removed")) == 1
    path.unlink()


@pytest.fixture
def places(tmp_path: Path) -> Iterator[dict[str, tuple[str, str]]]:
    """Places where no socket can be made, and what is said of them."""
    (tmp_path / "file").write_text("precious")
    (tmp_path / "target").write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    yield {
        "long": (f"{tmp_path}/{'x' * 120}", "a unix socket's has at most 107"),
        "missing": (f"{tmp_path}/missing/service.sock", "no such file or directory"),
        "not a folder": (f"{tmp_path}/file/service.sock", "not a folder"),
        "file": (f"{tmp_path}/file", "exists and is a regular file"),
        "link": (f"{tmp_path}/link", "exists and is a symbolic link"),
        "dangling": (f"{tmp_path}/dangling", "exists and is a symbolic link"),
        "folder": (f"{tmp_path}/folder", "exists and is a folder"),
        "fifo": (f"{tmp_path}/fifo", "exists and is a FIFO"),
    }
    assert (tmp_path / "file").read_text() == (tmp_path / "target").read_text() == "precious"
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "dangling").is_symlink()
    assert not (tmp_path / "nowhere").exists()
    assert (tmp_path / "fifo").is_fifo()


@pytest.mark.parametrize("key", ["listener", "control"])
@pytest.mark.parametrize("place", ["long", "missing", "not a folder", "file", "link", "dangling", "folder", "fifo"])
def test_place_where_no_socket_can_be(poold: Poold, places: dict[str, tuple[str, str]], place: str, key: str) -> None:
    """A path where no socket can be made is named with its line, by the check and at the start, and what is there stays."""
    path, reason = places[place]
    if key == "listener":
        daemon = poold(settings=listener(f"unix://{path}"))
    else:
        daemon = poold(options={"control.socket": path})
    checked = daemon.cli("check", "-c", str(daemon.config))
    assert checked.returncode == 1
    text = refused_start(daemon)
    for said in (checked.stderr, text):
        assert f"line {line_of(daemon, path)}: " in said
        assert "listener[1].address" in said if key == "listener" else "control.socket" in said
        assert reason in said


def line_of(daemon: Daemon, text: str) -> int:
    """Return the number of the line of the settings that has this text."""
    return next(number for number, line in enumerate(daemon.config.read_text().splitlines(), 1) if text in line)


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root and unshare(1)")
def test_folder_that_is_not_writable(poold: Poold, tmp_path: Path) -> None:
    """A folder where the user of the master may not make a socket is named by the check and at the start."""
    folder = tmp_path / "folder"
    folder.mkdir()
    daemon = poold(settings=listener(f"unix://{folder}/service.sock"))
    # What binds root too: nothing can be written there.
    wrapper = ("unshare", "-m", "sh", "-c", f'mount -t tmpfs -o ro none {folder} && exec "$@"', "sh")
    check = [*wrapper, sys.executable, "-m", "poold", "check", "-c", str(daemon.config)]
    checked = subprocess.run(check, capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert checked.returncode == 1
    for said in (checked.stderr, refused_start(daemon, wrapper=wrapper)):
        assert f"line {line_of(daemon, 'service.sock')}: listener[1].address: poold may not make a socket in the folder" in said


# Ports.


def test_port_in_use(poold: Poold, tmp_path: Path) -> None:
    """A port that somebody else listens on, a listener's or the metrics', is named at the start, which fails; nothing is left."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        path = tmp_path / "service.sock"
        text = refused_start(poold(settings=listener(f"unix://{path}") + listener(f"tcp://127.0.0.1:{port}")))
        assert f"cannot listen on tcp://127.0.0.1:{port}: Address already in use" in text
        text = refused_start(poold(options={"metrics.listen": f"tcp://127.0.0.1:{port}"}, settings=listener(f"unix://{path}")))
        assert f"metrics.listen: cannot listen on tcp://127.0.0.1:{port}: Address already in use" in text
        assert not path.exists()


def test_port_is_free_after_a_kill(poold: Poold) -> None:
    """Right after a master was killed with sessions open, another one can listen on the same port."""
    port = free_port()
    arguments = {"options": {"metrics.listen": f"tcp://127.0.0.1:{free_port()}"}, "settings": listener(f"tcp://127.0.0.1:{port}")}
    first = poold(**arguments).start(laws=False)
    with Client(("127.0.0.1", port)) as client:
        client.ask("pid")
        first.crash()
        first.control.unlink()
        poold(**arguments).start(laws=False)
        with Client(("127.0.0.1", port)) as another:
            assert another.ask("echo two") == "two"


# IPv4 and IPv6.


@needs_network
@pytest.mark.parametrize("only", [0, 1])
def test_dual_stack(poold: Poold, only: int) -> None:
    """[::] serves IPv4 too, whatever the system's default is, and an IPv4 client is known by its IPv4 address; [::1] serves IPv6 only."""
    settings = listener("tcp://[::]:7001", "dual") + listener("tcp://[::1]:7002", "six") + listener("tcp://127.0.0.1:7002", "four")
    daemon = poold(settings=settings).start(wrapper=(*NETWORK, f"sysctl -qw net.ipv6.bindv6only={only}"), laws=False)
    for host, port, name in (("127.0.0.1", 7001, "dual"), ("::1", 7001, "dual"), ("::1", 7002, "six"), ("127.0.0.1", 7002, "four")):
        with inside(daemon.master, lambda host=host, port=port: Client((host, port))) as client:
            facts = json.loads(client.ask("facts"))
            shown = f"[{host}]" if ":" in host else host
            assert (facts["listener"], facts["local"]) == (name, f"{shown}:{port}")
            assert facts["peer"] == f"{shown}:{port_of(client)}"
        assert daemon.event("session_ended", session=facts["id"])["peer"] == facts["peer"]


def test_dual_stack_beside_ipv4(poold: Poold) -> None:
    """[::] and 0.0.0.0 on one port cannot both be had, and the start says which one has to go."""
    port = free_port()
    text = refused_start(poold(settings=listener(f"tcp://[::]:{port}") + listener(f"tcp://0.0.0.0:{port}")))
    assert f"listener[2].address: tcp://0.0.0.0:{port} is taken by listener[1].address, which is tcp://[::]:{port}" in text


@needs_network
def test_host_without_ipv6(poold: Poold) -> None:
    """Where there is no IPv6, an IPv6 address is refused by name, and IPv4 is served."""
    wrapper = (*NETWORK, "sysctl -qw net.ipv6.conf.all.disable_ipv6=1")
    text = refused_start(poold(settings=listener("tcp://[::1]:7001")), wrapper=wrapper)
    assert "cannot listen on tcp://[::1]:7001: " in text
    daemon = poold(settings=listener("tcp://127.0.0.1:7001")).start(wrapper=wrapper, laws=False)
    with inside(daemon.master, lambda: Client(("127.0.0.1", 7001))) as client:
        assert client.ask("echo four") == "four"


@needs_network
def test_host_without_ipv4(poold: Poold) -> None:
    """Where there is no IPv4, service and metrics are served over IPv6."""
    wrapper = (*NETWORK, "ip address del 127.0.0.1/8 dev lo")
    text = refused_start(poold(settings=listener("tcp://127.0.0.2:7001")), wrapper=wrapper)
    assert "cannot listen on tcp://127.0.0.2:7001: " in text
    daemon = poold(options={"metrics.listen": "tcp://[::1]:7002"}, settings=listener("tcp://[::1]:7001"))
    daemon.start(wrapper=wrapper, laws=False)
    with inside(daemon.master, lambda: Client(("::1", 7001))) as client:
        assert client.ask("echo six") == "six"
    with inside(daemon.master, lambda: Client(("::1", 7002))) as scraper:
        scraper.send(b"GET /metrics HTTP/1.1\r\n\r\n")
        assert b'poold_connections_accepted_total{listener="tcp://[::1]:7001"} 1.0' in scraper.rest()


# Passed descriptors.


def passed_file() -> Any:
    return Path("/dev/null").open("rb")


def passed_tcp() -> Any:
    return socket.socket(socket.AF_INET, socket.SOCK_STREAM)


def passed_udp() -> Any:
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)


def passed_connection() -> Any:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return socket.create_connection(server.getsockname())


def passed_packets() -> Any:
    packets = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    packets.bind(f"\0poold-test-{os.getpid()}")
    packets.listen()
    return packets


def passed_netlink() -> Any:
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (passed_file, "is not a socket"),
        (passed_tcp, "does not listen for streams"),
        (passed_udp, "does not listen for streams"),
        (passed_connection, "does not listen for streams"),
        (passed_packets, "does not listen for streams"),
        (passed_netlink, f"is of family {int(socket.AF_NETLINK)}"),
    ],
)
def test_passed_descriptor_that_is_no_listener(poold: Poold, make: Callable[[], Any], reason: str) -> None:
    """A passed descriptor that is no listening stream socket keeps poold from starting, and is named by number and name."""
    daemon = poold()
    daemon.passed["odd"] = make()
    assert f"the passed descriptor 4 (odd) {reason}; a listening stream socket is needed" in refused_start(daemon)


def test_fewer_descriptors_than_announced(poold: Poold) -> None:
    """A passed descriptor that is announced and not there keeps poold from starting, and is named."""
    text = refused_start(poold(), environ={"LISTEN_FDS": "2", "LISTEN_FDNAMES": "main:second"})
    assert "the passed descriptor 4 (second) cannot be used: Bad file descriptor" in text


def test_descriptors_for_another_process(poold: Poold) -> None:
    """Descriptors that are announced to another process are not adopted."""
    text = refused_start(poold(), environ={"LISTEN_PID": "1"})
    assert "no socket named 'main' was passed (passed: none)" in text


@pytest.mark.parametrize("environ", [{"LISTEN_PID": "1"}, {"LISTEN_FDS": "many"}, {"LISTEN_PID": "x"}, {"LISTEN_FDS": "-1"}])
def test_what_is_not_meant_for_poold_reaches_no_child(poold: Poold, environ: dict[str, str]) -> None:
    """Descriptors and variables that poold was started with and does not use are not passed on to any child."""
    daemon = poold(options=ONE_SPARE, settings=listener("tcp://127.0.0.1:0", "own")).start(environ=environ)
    with Client(listening(daemon, "own")) as client:
        facts = json.loads(client.ask("facts"))
        passed = os.fstat(daemon.listener.fileno()).st_ino
        for pid in descendants(daemon.master):
            assert f"socket:[{passed}]" not in open_files(pid).values()
        assert [name for name in facts["environ"] if name.startswith(("LISTEN_", "NOTIFY_"))] == []


def test_service_manager_is_not_known_to_children(poold: Poold) -> None:
    """The variables of socket activation and readiness reach neither mold nor worker nor exporter, nor do the passed sockets."""
    daemon = poold(options=ONE_SPARE).start()
    spares_of(daemon, 1)
    with daemon.connect() as client:
        client.ask("pid")
        passed = os.fstat(daemon.listener.fileno()).st_ino
        children = descendants(daemon.master)
        assert len(children) >= 3
        for pid in children:
            names = {variable.partition(b"=")[0] for variable in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")}
            assert not names & {b"LISTEN_PID", b"LISTEN_FDS", b"LISTEN_FDNAMES", b"NOTIFY_SOCKET"}
            assert f"socket:[{passed}]" not in open_files(pid).values()


def test_passed_sockets_of_one_name(poold: Poold) -> None:
    """Sockets that were passed under one name, as those of one .socket unit are, are all served."""
    daemon = poold()
    second = daemon.passed["second"] = socket.create_server(("127.0.0.1", 0))
    daemon.start(environ={"LISTEN_FDNAMES": "main:main"})
    for address in (daemon.address, second.getsockname()):
        with Client(address, timeout=5) as client:
            assert client.ask("echo here") == "here"


def test_passed_socket_that_nobody_wants(poold: Poold) -> None:
    """A passed socket that no listener names is warned of, and does no harm."""
    daemon = poold()
    daemon.passed["second"] = socket.create_server(("127.0.0.1", 0))
    daemon.start()
    assert daemon.event("passed_socket_unused")["name"] == "second"
    with daemon.connect() as client:
        assert client.ask("echo here") == "here"


def test_passed_unix_socket(poold: Poold, tmp_path: Path) -> None:
    """A passed unix socket is served, and its file is left alone at the end: it is the service manager's."""
    path = tmp_path / "manager.sock"
    daemon = poold(settings=listener("systemd://local", "local"))
    passed = daemon.passed["local"] = socket.socket(socket.AF_UNIX)
    passed.bind(str(path))
    passed.listen()
    daemon.start()
    with Client(str(path)) as client:
        assert json.loads(client.ask("facts"))["peer"] == f"unix:uid={os.geteuid()},pid={os.getpid()}"
        worker = int(client.ask("pid"))
        assert alive(worker)
    eventually(lambda: gone(worker), "its end")
    assert daemon.stop() == 0
    assert path.is_socket()
