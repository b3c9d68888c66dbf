"""Starts poold as its users do and looks at it from outside: the wire, /proc, the log, the metrics endpoint.

The test owns the listening sockets and passes them as systemd would; readiness is READY=1 on the test's own NOTIFY_SOCKET. So no
port is guessed and nothing sleeps: a test waits for facts, with one generous deadline.
"""

import contextlib
import functools
import http.client
import itertools
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from tests.laws import LawKeeper, Metrics
from tests.procfs import children_of, descendants, take_orphans
from tests.waiting import DEADLINE, eventually

HANDLERS = Path(__file__).parent / "handlers"

# Puts passed sockets on 3, 4, … and becomes poold, as a service manager does; LISTEN_PID is the pid that exec keeps. What a test
# wants to be true of the process before (a signal ignored, a limit) is its prelude.
LAUNCH = """
import fcntl, os, sys
high = [fcntl.fcntl(int(fd), fcntl.F_DUPFD, 200) for fd in sys.argv[1].split(",") if fd]
for number, fd in enumerate(high):
    os.dup2(fd, 3 + number, inheritable=True)
os.closerange(3 + len(high), 1024)
if high:
    os.environ.setdefault("LISTEN_PID", str(os.getpid()))
exec(sys.argv[2])
os.execv(sys.argv[3], sys.argv[3:])
"""


class NotifySocket:
    """A service manager's end of sd_notify."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.messages: list[dict[str, str]] = []

    def poll(self) -> list[dict[str, str]]:
        """Return every message so far."""
        while True:
            try:
                data = self.socket.recv(65536, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return self.messages
            self.messages.append(dict(line.split("=", 1) for line in data.decode().splitlines()))

    def close(self) -> None:
        self.socket.close()
        self.path.unlink()


class Client:
    """A client of a listener."""

    def __init__(self, address: Any, *, family: int | None = None, timeout: float = DEADLINE) -> None:
        if family is None:
            family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.socket = socket.socket(family, socket.SOCK_STREAM)
        self.socket.settimeout(timeout)
        try:
            self.socket.connect(address)
        except OSError:
            self.socket.close()
            raise
        self.file = self.socket.makefile("rb")

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def line(self) -> str:
        """Return the next line, "" at the end."""
        return self.file.readline().decode().rstrip("\n")

    def ask(self, words: str) -> str:
        """Send a line and return the line that comes back."""
        self.send(words.encode() + b"\n")
        return self.line()

    def rest(self) -> bytes:
        """Return everything until the end."""
        return self.file.read()

    def finish(self) -> bytes:
        """Say that nothing more comes, and return what the server still says."""
        self.socket.shutdown(socket.SHUT_WR)
        return self.rest()

    def reset(self) -> None:
        """Leave with a reset instead of an end."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        self.file.close()
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Daemon:
    """One poold under test."""

    def __init__(self, folder: Path, *, settings: str = "", options: Mapping[str, Any] | None = None) -> None:
        """Write a settings file. `options` are keys as `pool.max_children`; `settings` is TOML that follows them."""
        self.folder = folder
        self.control = folder / "control.sock"
        self.log = folder / "log"
        self.log.touch()
        self.config = folder / "poold.toml"
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.passed: dict[str, socket.socket] = {"main": self.listener}
        self.notify = NotifySocket(folder / "notify.sock")
        self.process: subprocess.Popen[bytes] | None = None
        self.keeper: LawKeeper | None = None
        self.python = sys.executable
        self.metrics_port = free_port()
        self.write(settings=settings, options=options or {})

    def write(self, *, settings: str = "", options: Mapping[str, Any]) -> None:
        """Write the settings file anew."""
        tables: dict[str, dict[str, Any]] = {
            "server": {"handler": "cases:serve", "path": [str(HANDLERS)]},
            "metrics": {"listen": f"tcp://127.0.0.1:{self.metrics_port}"},
            "control": {"socket": str(self.control)},
            "log": {"format": "json", "level": "debug"},
            # A test that is about the drain says so; the others are not to wait for sessions that they leave open.
            "timeouts": {"drain": 0},
        }
        for key, value in options.items():
            table, _, name = key.rpartition(".")
            tables.setdefault(table, {})[name] = value
            if value is None:
                del tables[table][name]
        text = "".join(
            f"[{table}]\n" + "".join(f"{key} = {toml(value)}\n" for key, value in keys.items()) for table, keys in tables.items()
        )
        if "[[listener]]" not in settings:
            text += '[[listener]]\naddress = "systemd://main"\nname = "main"\n'
        self.config.write_text(text + settings)

    def let_others_in(self) -> None:
        """Let every user come to its folder and read there."""
        for folder in (self.folder, *self.folder.parents):
            if folder.stat().st_mode & 0o077 == 0:
                folder.chmod(0o755)

    @property
    def address(self) -> tuple[str, int]:
        name: tuple[str, int] = self.listener.getsockname()
        return name

    def start(
        self,
        *,
        prelude: str = "",
        environ: Mapping[str, str] | None = None,
        wrapper: Sequence[str] = (),
        wait: bool = True,
        laws: bool = True,
    ) -> Self:
        """Start it; with `wait`, until it says READY=1. `wrapper` is a command that runs poold, as strace does."""
        command = [*wrapper, self.python, "-m", "poold", "run", "-c", str(self.config)]
        program = (
            command[0]
            if "/" in command[0]
            else next(f"{place}/{command[0]}" for place in os.environ["PATH"].split(":") if os.path.exists(f"{place}/{command[0]}"))
        )
        fds = [passed.fileno() for passed in self.passed.values()]
        launch = [sys.executable, "-c", LAUNCH, ",".join(map(str, fds)), prelude, program, *command[1:]]
        variables = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
        variables |= {"NOTIFY_SOCKET": str(self.notify.path), "LISTEN_FDS": str(len(fds)), "LISTEN_FDNAMES": ":".join(self.passed)}
        # What an earlier start said is not this one's.
        self.notify.messages.clear()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                launch,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=fds,
                env={**variables, **(environ or {})},
                cwd=self.folder,
            )
        if wait:
            self.ready()
            if laws:
                self.keeper = LawKeeper(self.metrics, per_second=20)
        return self

    def ready(self) -> None:
        """Wait for READY=1; fail at once if the process ends."""

        def check() -> bool:
            if self.process is not None and self.process.poll() is not None:
                raise AssertionError(f"poold ended with {self.process.returncode} before it was ready:\n{self.log.read_text()}")
            return any("READY" in message for message in self.notify.poll())

        eventually(check, "READY=1")

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def master(self) -> int:
        """The master's pid, also under a wrapper, as it told the service manager."""
        told = [int(message["MAINPID"]) for message in self.notify.poll() if "MAINPID" in message]
        return told[-1] if told else self.pid

    def connect(self, **options: Any) -> Client:
        return Client(self.address, **options)

    def events(self, name: str, *, after: int = 0, **fields: Any) -> list[dict[str, Any]]:
        """Return the log's events of this name with these fields, from the offset on."""
        found = []
        for line in self._lines()[after:].splitlines():
            if f'"event": "{name}"'.encode() in line:
                record = json.loads(line)
                if all(record.get(key) == value for key, value in fields.items()):
                    found.append(record)
        return found

    def event(self, name: str, *, after: int = 0, **fields: Any) -> dict[str, Any]:
        """Wait for an event in the log."""
        return eventually(lambda: self.events(name, after=after, **fields), f"event {name} {fields}")[0]

    def mark(self) -> int:
        """Return the log's present end, for `after`."""
        return len(self._lines())

    def _lines(self) -> bytes:
        """Return the log, but for a line that is just being written."""
        return b"".join(line for line in self.log.read_bytes().splitlines(keepends=True) if line.endswith(b"\n"))

    def metrics(self) -> Metrics:
        """Scrape."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=DEADLINE) as answer:
            return Metrics.parse(answer.read().decode())

    def metric(self, name: str, value: float, **labels: str) -> None:
        """Wait until the sum of these samples has this value."""
        eventually(lambda: self._fetched(name, **labels) == value, f"{name} {labels} = {value}")

    def _fetched(self, name: str, **labels: str) -> float | None:
        try:
            return self.metrics().total(name, **labels)
        except (OSError, http.client.HTTPException):
            # The exporter is not there yet, or just now not.
            return None

    def get(self, path: str) -> int:
        """Return the status of a page of the exporter."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}{path}", timeout=DEADLINE) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    def cli(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command of poold's command line."""
        environ = {**os.environ, "NO_COLOR": "1"}
        return subprocess.run(
            [sys.executable, "-m", "poold", *arguments],
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            env=environ,
            cwd=self.folder,
            check=False,
        )

    def ask(self, command: str) -> Any:
        """Return what `poold status` or `poold ps` says, as JSON."""
        done = self.cli(command, "--socket", str(self.control), "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def children(self, kind: str | None = None) -> list[dict[str, Any]]:
        """Return the rows of `poold ps`, of one kind."""
        rows: list[dict[str, Any]] = self.ask("ps")
        return [row for row in rows if kind is None or row["kind"] == kind]

    def kill(self, number: int = signal.SIGTERM) -> None:
        """Send the master a signal."""
        os.kill(self.master, number)

    def wait(self) -> int:
        """Wait for its end and return the exit status."""
        assert self.process is not None
        return self.process.wait(DEADLINE)

    def crash(self) -> None:
        """Kill the master, and take the exits of all that it leaves behind."""
        before = children_of(os.getpid())
        self.kill(signal.SIGKILL)
        self.wait()
        take_orphans(before)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Stop it and return the exit status."""
        if self.process is not None and self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                self.kill(number)
        return self.wait()

    def close(self) -> list[str]:
        """End whatever is left, and say what should not have been."""
        wrong = []
        if self.keeper is not None:
            self.keeper.close()
            wrong += sorted(set(self.keeper.broken))
        if self.process is not None and self.process.poll() is None:
            for child in [self.process.pid, *descendants(self.process.pid)]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGCONT)
            try:
                status = self.stop()
            except subprocess.TimeoutExpired:
                status = None
                for left in [self.process.pid, *descendants(self.process.pid)]:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(left, signal.SIGKILL)
                self.process.wait()
            if status != 0:
                wrong.append(f"exit status {status} after TERM")
        for passed in self.passed.values():
            passed.close()
        self.notify.close()
        wrong += [
            f"{event['event']}: {event.get('traceback') or event}"
            for name in ("loop_error", "worker_failed")
            for event in self.events(name)
        ]
        wrong += [f"socket file left: {path}" for path in self.folder.rglob("*") if path.is_socket()]
        return wrong


# What the `poold` fixture is: it makes a daemon, which the test starts.
Poold = Callable[..., Daemon]


def toml(value: Any) -> str:
    """Write a TOML value."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {toml(item)}" for key, item in value.items()) + " }"
    return json.dumps(value)


PORTS_FIRST = 10240
PORTS_EACH = 256


class Ports:
    """The ports that are this process's alone among all that run tests in this network: a block below those that the kernel gives out.

    A block is taken by an abstract name (unix(7)), which the kernel frees when the process ends, however it ends. Names and ports
    are both of the network namespace.
    """

    def __init__(self) -> None:
        self._mark = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        beyond = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
        for first in range(PORTS_FIRST, beyond - PORTS_EACH + 1, PORTS_EACH):
            try:
                self._mark.bind(f"\0poold-test-ports-{first}")
            except OSError:
                # Another process's.
                continue
            self._ports = itertools.cycle(range(first, first + PORTS_EACH))
            return
        raise AssertionError(f"no {PORTS_EACH} ports are free between {PORTS_FIRST} and {beyond}")

    def free(self) -> int:
        """Return the next one that nobody listens on."""
        for port in itertools.islice(self._ports, PORTS_EACH):
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind(("127.0.0.1", port))
                except OSError:
                    # A daemon that is to do without any support of ours has it, or one of before.
                    continue
            return port
        raise AssertionError(f"none of {PORTS_EACH} ports is free")

    def close(self) -> None:
        """Let others have them."""
        self._mark.close()


@functools.cache
def _ports() -> Ports:
    return Ports()


def free_port() -> int:
    """Return a port that nobody listens on and no other test is given; for the metrics listener, which cannot be passed."""
    return _ports().free()
