"""Bends the system around a poold that runs: system calls that fail or dawdle, limits, streams that nobody reads.

All from outside: a tracer, the kernel's own limits, signals, a handler that means harm. Nothing in poold knows of it.
"""

import contextlib
import json
import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.procfs import children_of, status_fields, take_orphans
from tests.support import Client, Daemon, Poold
from tests.waiting import DEADLINE, eventually


class Tracer:
    """A strace that sits on a running process; `lines` is what it has seen."""

    def __init__(self, process: "subprocess.Popen[bytes]", output: Path) -> None:
        self._process = process
        self._output = output

    def lines(self, *words: str) -> list[str]:
        """Return the calls seen so far whose line has all of these words."""
        lines = self._output.read_text(errors="replace").splitlines()
        return [line for line in lines if all(word in line for word in words)]

    def times(self, *words: str) -> list[float]:
        """Return when these calls were made."""
        return [float(next(word for word in line.split() if "." in word)) for line in self.lines(*words)]

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(DEADLINE)


@contextlib.contextmanager
def traced(folder: Path, pid: int, *expressions: str, follow: bool = False) -> Iterator[Tracer]:
    """Have strace sit on a process, with expressions such as `inject=accept4:error=EMFILE:when=1`.

    With `follow` also on what it makes; else on it alone. To be left in a quiet moment: a signal that is just being delivered when
    strace lets go is lost, so a child of the master that ends then would never be reaped.
    """
    output = folder / f"strace-{pid}-{time.monotonic_ns()}"
    calls = ",".join(dict.fromkeys(expression.partition("=")[2].partition(":")[0] for expression in expressions))
    arguments = [f"-e{expression}" for expression in (f"trace={calls}", *expressions)]
    command = ["strace", "-qq", "-ttt", "-o", str(output), *(["-f"] if follow else []), *arguments, "-p", str(pid)]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    tracer = Tracer(process, output)
    try:
        eventually(lambda: process.poll() is not None or _tracer_of(pid), f"strace sits on {pid}")
        assert process.poll() is None, f"strace ended with {process.returncode}"
        yield tracer
    finally:
        tracer.close()


def _tracer_of(pid: int) -> int:
    return int(status_fields(pid)["TracerPid"])


def mischievous(poold: Poold, *words: str, options: Mapping[str, Any] | None = None) -> Daemon:
    """Make a daemon whose handler does these things wrong at its import, and others when `mishap` is called."""
    daemon = poold()
    environment = {"MISCHIEF": " ".join(words), "MISCHIEF_FOLDER": str(daemon.folder)}
    daemon.write(options={"server.handler": "mischief:serve", "server.environment": environment, **(options or {})})
    return daemon


def mishap(daemon: Daemon, name: str) -> None:
    """Let something go wrong once in a daemon's mold: "die-young" ends the next clone at its first breath."""
    (daemon.folder / f"{name}-{time.monotonic_ns()}").touch()


def execute(client: Client, code: str) -> None:
    """Have a session of `attacker` execute this."""
    client.send(json.dumps(code).encode() + b"\n")


def said(client: Client, code: str) -> list[Any]:
    """Have a session of `attacker` execute this, and return what it says."""
    execute(client, code)
    words: list[Any] = json.loads(client.line())
    return words


def forgive(daemon: Daemon, event: str) -> None:
    """Take an event that was provoked out of the log of a daemon that has ended, for the fixture."""
    lines = daemon.log.read_bytes().splitlines(keepends=True)
    daemon.log.write_bytes(b"".join(line for line in lines if f'"event": "{event}"'.encode() not in line))


@contextlib.contextmanager
def pids_limit(pid: int, limit: int) -> Iterator[Callable[[str], object]]:
    """Let a process and what it makes be so many at most; yields what sets another limit ("max" is none)."""
    folder, home = _pids_folders(pid)
    try:
        folder.mkdir()
        (folder / "pids.max").write_text(str(limit))
        (folder / "cgroup.procs").write_text(str(pid))
    except OSError as error:
        pytest.skip(f"the pids controller cannot be used here: {error}")
    try:
        yield (folder / "pids.max").write_text
    finally:
        (folder / "pids.max").write_text("max")
        eventually(lambda: _emptied(folder, home), f"{folder} is empty")


def _pids_folders(pid: int) -> tuple[Path, Path]:
    """Return a new folder for a control group that can limit processes, and the folder the process is in (version 1, else 2)."""
    root = Path("/sys/fs/cgroup")
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "pids" or (not controllers and not (root / "pids").is_dir()):
            home = root / controllers / path.lstrip("/")
            return home / f"poold-test-{os.getpid()}-{pid}", home
    pytest.skip("there is no pids controller here")


def _emptied(folder: Path, home: Path) -> bool:
    """Move everybody home and remove the folder; say whether nobody was born meanwhile."""
    for member in (folder / "cgroup.procs").read_text().split():
        with contextlib.suppress(ProcessLookupError):
            (home / "cgroup.procs").write_text(member)
    try:
        folder.rmdir()
    except OSError:
        return False
    return True


@contextlib.contextmanager
def out_of_files(pid: int) -> Iterator[None]:
    """Let a running process open nothing more: no new descriptor's number is low enough."""
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, hard))
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """Mount 64 KiB of disk."""
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], check=False).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def fill(file: Path) -> None:
    """Write to a file until its disk is full."""
    with file.open("wb", buffering=0) as filler:
        for size in (4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    filler.write(b"x" * size)


@contextlib.contextmanager
def ended(daemon: Daemon) -> Iterator[None]:
    """End a daemon whose pid or log is not where the fixture looks for it, if the test has not."""
    try:
        yield
    finally:
        if daemon.process is not None and daemon.process.poll() is None:
            daemon.process.kill()
            daemon.process.wait(DEADLINE)


def terminated(daemon: Daemon) -> int:
    """Stop a daemon that is our own child, without a look at its log, and return the exit status."""
    os.kill(daemon.pid, signal.SIGTERM)
    return daemon.wait()


@contextlib.contextmanager
def orphaned(daemon: Daemon) -> Iterator[None]:
    """Kill the master at the end of the block, and let nothing be left a moment after it."""
    before = children_of(os.getpid())
    try:
        yield
    finally:
        take_orphans(before)
        daemon.control.unlink(missing_ok=True)


def murder(daemon: Daemon) -> None:
    """Kill the master."""
    os.kill(daemon.pid, signal.SIGKILL)
    daemon.wait()


@contextlib.contextmanager
def at_the_gate(gate: Path) -> Iterator[None]:
    """Keep the handler's import waiting meanwhile, from when it has come there."""

    def arrived() -> int:
        try:
            return os.open(gate, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            # Nobody reads.
            return 0

    fd = eventually(arrived, "an import at the gate")
    gate.unlink()
    try:
        yield
    finally:
        os.close(fd)


class Pipe:
    """A named pipe for a stream of poold's; nobody reads it but `text`, which returns what is there."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = path
        self.reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        # What a process does first in order to write to it, as its standard output and error.
        self.prelude = f"fd = os.open({str(path)!r}, os.O_WRONLY)\nos.dup2(fd, 1)\nos.dup2(fd, 2)\nos.close(fd)"

    def text(self) -> str:
        """Return what has been written since the last time."""
        found = b""
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(self.reader, 65536):
                found += chunk
        return found.decode()

    def fill(self) -> None:
        """Fill it to the last byte, through an open file of our own."""
        writer = os.open(self.path, os.O_WRONLY | os.O_NONBLOCK)
        for size in (4096, 1):
            with contextlib.suppress(BlockingIOError):
                while True:
                    os.write(writer, b"x" * size)
        os.close(writer)

    def close(self) -> None:
        """Leave: whoever writes from now on gets EPIPE."""
        if self.reader >= 0:
            os.close(self.reader)
            self.reader = -1
