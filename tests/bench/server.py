"""One server as a fresh process: started on its core, waited for by being its client, ended with all that came of it."""

import ctypes
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Self

from tests.bench.machine import Cores
from tests.bench.peer import Peer, Place, Service

START_SECONDS = 10.0
STOP_SECONDS = 20.0
PR_SET_CHILD_SUBREAPER = 36
INTERRUPTS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}

# Below the range of ephemeral ports: a client that connects to a port there before its server listens might meet itself.
_ports = count(20_000)


class ServerError(Exception):
    """A server did not start, or did not answer as it should."""


@dataclass(frozen=True, slots=True)
class Ground:
    """What all servers of a run have in common: the cores, the folder of the compiled programs, the Python of the Python servers."""

    cores: Cores
    programs: Path
    python: str


class Server:
    """A server's process. As a context manager: it is started on entry, and afterwards nothing of it is left."""

    def __init__(self, peer: Peer, ground: Ground, *, sessions: int) -> None:
        """Choose its place. It will be able to hold `sessions` at a time."""
        self.peer = peer
        self._ground = ground
        self._folder = tempfile.TemporaryDirectory(prefix="bench-")
        self.place = Place(free_port(), free_port(), Path(self._folder.name), ground.programs, ground.python, sessions)
        self._log = self.place.folder / "log"
        self._process: subprocess.Popen[bytes] | None = None
        self.said: list[str] = []
        """What it wrote to its standard error, known once it has ended."""
        self.killed = False
        """Whether it had to be, because it did not end by itself."""
        self.cores: tuple[int, ...] = (ground.cores.server,)
        """Where it runs, its children too."""
        self.environ: dict[str, str] = {}
        """Added to its environment."""

    @property
    def pid(self) -> int:
        """The process that was started."""
        assert self._process is not None
        return self._process.pid

    def __enter__(self) -> Self:
        command = self.peer.command(self.place)
        with self._log.open("wb") as log, self._ground.cores.started_on(*self.cores):
            # A session of its own: the terminal's Ctrl-C is for the benchmark, which then ends the server in order.
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **self.environ},
                cwd=self.place.folder,
                start_new_session=True,
            )
        return self

    def __exit__(self, *exception: object) -> None:
        with uninterrupted():
            if self._process is not None:
                self._process.terminate()
                try:
                    self._process.wait(STOP_SECONDS)
                except subprocess.TimeoutExpired:
                    self.killed = True
                    self._process.kill()
                    self._process.wait()
            end_descendants()
            self.said = self._log.read_text(errors="replace").splitlines()
            self._folder.cleanup()

    def wait(self) -> Self:
        """Return when it has served a client. Raises ServerError when it does not."""
        assert self._process is not None
        end, trouble = time.monotonic() + START_SECONDS, ""
        while time.monotonic() < end and self._process.poll() is None:
            try:
                be_client(self.place.port, self.peer.service)
                return self
            except OSError as error:
                trouble = str(error)
                time.sleep(0.005)  # servers of all kinds: none but its own client can tell that it serves
        raise ServerError(f"{self.peer.name} does not serve: {trouble}: {self._log.read_text(errors='replace')[-500:]}")


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody has, and that this run did not return before."""
    for port in _ports:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("count() ends")


def be_client(port: int, service: Service, timeout: float = 5.0) -> None:
    """Have one session. Raises OSError when it is not served as it should."""
    with socket.create_connection(("127.0.0.1", port), timeout) as client:
        client.sendall(service.request)
        answer = client.recv(65536)
        if service.expected not in answer:
            raise OSError(f"answered {answer[:80]!r}")
        while service.until_eof and client.recv(65536):
            pass


def adopt_orphans() -> None:
    """Become the parent of whatever a server leaves behind, so that it can be found and ended."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Put off Ctrl-C and its like until what must be ended has been."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, INTERRUPTS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_descendants() -> None:
    """Kill and collect every process that descends from this one. Orphans are this process's children: see `adopt_orphans`."""
    while found := descendants(os.getpid()):
        for pid in found:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue  # its parent has collected it since
        try:
            while os.waitpid(-1, 0)[0]:
                pass
        except ChildProcessError:
            continue  # all have been; look once more for those that came between


def descendants(pid: int) -> list[int]:
    """Return the pids of a process's children, and of theirs."""
    children: dict[int, list[int]] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            parent = int(Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        children.setdefault(parent, []).append(int(name))
    found, todo = [], [pid]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found
