"""The daemon that is attacked, and what attacks ask of it: to connect, to change its settings, to find its processes."""

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sysconfig
import time
from collections.abc import Callable, Container
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from tests.faultkit import Pipe
from tests.laws import LawKeeper
from tests.procfs import alive, descendants, title
from tests.rights import LEFTOVER, broken_rights
from tests.soak.hostile.logwatch import LogWatch
from tests.support import HANDLERS, Client, Daemon
from tests.waiting import eventually

MAX_CHILDREN = 64
SCRAPES_PER_SECOND = 4
LISTENERS = """
[[listener]]
address = "systemd://main"
name = "main"
[[listener]]
address = "unix://{folder}/run/honest.sock"
name = "honest"
mode = "0666"
[[listener]]
address = "unix://{folder}/run/lonely.sock"
name = "lonely"
mode = "0666"
"""
# Deeds of sessions that are inside when the daemon is to stop.
GUESTS = (
    "deaf-for-a-while",
    "traced-session",
    "main-thread-ends",
    "fork-bomb",
    "threads-that-outlive",
    "flood-its-client",
    "out-of-memory",
)
# What of the standard library nobody needs here.
LEFT_OUT = ("test", "site-packages", "idlelib", "ensurepip", "lib2to3", "tkinter", "turtledemo", "pydoc_data", "__pycache__", "config-*")


@dataclass(frozen=True, slots=True)
class Told:
    """What became of a reload, or of another command: its exit status, and what it said."""

    status: int
    text: str


class Scene:
    """One daemon, its folder, its log and whoever looks at it. `piped`: its log is a pipe, and else a file."""

    def __init__(self, folder: Path, *, piped: bool) -> None:
        self.folder = folder
        folder.chmod(0o755)
        for name, mode in (("run", 0o755), ("handlers", 0o755), ("scratch", 0o777), ("tmp", 0o1777)):
            (folder / name).mkdir()
            (folder / name).chmod(mode)
        self.daemon = Daemon(folder)
        # The handler in use has opened files of its own at its import.
        self.opened = False
        self.library = readable_library(folder)
        self.write()
        self.pipe = Pipe(folder / "pipe") if piped else None
        self.log: LogWatch

    def start(self) -> None:
        """Start the daemon and whoever looks at it."""
        self.log = LogWatch(self.pipe.path if self.pipe else self.daemon.log, piped=self.pipe is not None)
        prelude = self.pipe.prelude if self.pipe else ""
        self.daemon.start(environ={"TMPDIR": str(self.folder / "tmp")}, prelude=prelude, laws=False)
        if self.pipe is not None:
            # The log's reader is its only one from now on, so that it can leave.
            os.close(self.pipe.reader)
            self.pipe.reader = -1
        self.daemon.keeper = LawKeeper(self.daemon.metrics, SCRAPES_PER_SECOND)

    # ---- settings ----

    def options(self, **changes: Any) -> dict[str, Any]:
        """Return the settings that are right, with changes: `pool__min_spare=2` is `[pool] min_spare`."""
        options = {
            "server.handler": "hostile:serve",
            "server.path": [str(self.folder / "handlers"), str(HANDLERS), *self.library],
            "server.user": "nobody",
            "server.environment": {"TMPDIR": str(self.folder / "tmp")},
            "server.options": {
                "folder": str(self.folder),
                "control": str(self.daemon.control),
                "metrics": str(self.daemon.metrics_port),
                "scratch": str(self.folder / "scratch"),
            },
            "pool.max_children": MAX_CHILDREN,
            "timeouts.startup": 30,
            "timeouts.import": 10,
            "timeouts.kill": 2,
            "timeouts.drain": 1,
            "log.level": "info",
        }
        return options | {key.replace("__", "."): value for key, value in changes.items()}

    def write(self, more: str = "", listeners: str = LISTENERS, **changes: Any) -> None:
        """Write the settings file; `more` are listeners besides."""
        self.daemon.write(options=self.options(**changes), settings=listeners.format(folder=self.folder) + more.format(folder=self.folder))

    def ask(self, *words: str) -> Told:
        """Run a command of poold's command line against the daemon."""
        try:
            done = self.daemon.cli(*words, "--socket", str(self.daemon.control))
        except subprocess.TimeoutExpired:
            raise AssertionError(f"poold {' '.join(words)} has had no answer in half a minute") from None
        return Told(done.returncode, done.stdout + done.stderr)

    def reload(self) -> Told:
        """Ask for a reload until it is done or refused, however busy the daemon is."""
        return eventually(lambda: [told for told in [self.ask("reload")] if "busy" not in told.text], "a reload that is not told busy")[0]

    def applies(self, more: str = "", **changes: Any) -> None:
        """Have changed settings applied."""
        self.write(more, **changes)
        told = self.reload()
        assert told.status == 0, f"settings {changes} {more} were not applied: {told}"

    def refuses(self, content: bytes | None = None, **changes: Any) -> None:
        """Have settings refused; `content` is the whole file."""
        if content is None:
            self.write(**changes)
        else:
            self.daemon.config.write_bytes(content)
        told = self.reload()
        assert told.status == 1, f"settings {changes or (content or b'')[:60]!r} were not refused: {told}"

    def restore(self) -> None:
        """Have the settings that are right, whatever there was at the file's place."""
        config = self.daemon.config
        if config.is_symlink() or not config.is_file():
            if config.is_dir() and not config.is_symlink():
                config.rmdir()
            else:
                config.unlink(missing_ok=True)
        self.applies()

    def handler(self, name: str, text: str) -> str:
        """Write a module that the daemon's handlers may be in, and return its name."""
        file = self.folder / "handlers" / f"{name}.py"
        file.write_text(text)
        file.chmod(0o644)
        return name

    # ---- clients ----

    def connect(self, number: int = 0, timeout: float = 60.0) -> Client:
        """Return a client of a listener: each fourth one's is the unix socket."""
        if number % 4 == 3:
            return eventually(lambda: self._connect_unix(timeout), "room in the queue of a unix socket", seconds=timeout)[0]
        return self.daemon.connect(timeout=timeout)

    def _connect_unix(self, timeout: float) -> list[Client]:
        try:
            return [Client(str(self.folder / "run" / "honest.sock"), timeout=timeout)]
        except BlockingIOError:
            # Its queue is full: a TCP client would be told to come again by the kernel itself (unix(7), EAGAIN).
            return []

    # ---- processes ----

    @property
    def master(self) -> int:
        """The master's pid."""
        return self.daemon.pid

    def dead(self) -> bool:
        """Say whether the daemon has ended."""
        return self.daemon.process is not None and self.daemon.process.poll() is not None

    def titled(self, *words: str) -> list[int]:
        """Return the children of the master whose title begins with one of these words, the oldest first."""
        found = []
        for pid in descendants(self.master):
            with contextlib.suppress(OSError, IndexError):
                shown = title(pid).startswith(tuple(f"poold: {word}" for word in words))
                # What a mold's import has forked has the mold's title.
                if shown and alive(pid) and Path(f"/proc/{pid}/comm").read_text(errors="replace").strip() != LEFTOVER:
                    found.append(pid)
        return sorted(found)

    def broken_rights(self, trusted: Container[int] = (), *, opened: bool = False) -> list[str]:
        """Hold everybody to the table of rights; sessions only where they are trusted."""
        return broken_rights(
            self.master, metrics=self.daemon.metrics_port, control=str(self.daemon.control), trusted=trusted, opened=opened
        )

    def mold(self) -> int:
        """Return the pid of the mold of the present generation, by the master's word: a clone has its mold's title at first."""
        molds = eventually(lambda: self.daemon.children("mold"), "a mold in the table")
        return int(max(molds, key=lambda row: row["generation"])["pid"])

    def sweep(self) -> int:
        """Kill what sessions have left behind, by its name, and return how much there was."""
        return end_leftovers([self.master] if not self.dead() else [os.getpid()])

    # ---- the log's stream ----

    def log_changes(self) -> list[str]:
        """Say what has been changed on the stream that all have in common, and change it back."""
        # Where there is a logger, 2 is the master's pipe to it, and 1 the log itself; else both are.
        fd = copied_descriptor(self.master, 1)
        if fd < 0:
            return []
        try:
            flags = fcntl.fcntl(fd, fcntl.F_GETFL)
            right = (flags | (0 if self.pipe else os.O_APPEND)) & ~(os.O_NONBLOCK | os.O_ASYNC)
            if flags == right:
                return []
            fcntl.fcntl(fd, fcntl.F_SETFL, right)
            names = {os.O_NONBLOCK: "it does not block", os.O_APPEND: "it does not append", os.O_ASYNC: "it sends signals"}
            return [f"somebody has changed the log's stream: {text}" for flag, text in names.items() if (flags ^ right) & flag]
        finally:
            os.close(fd)

    def ended_among_guests(self, random: Random) -> list[str]:
        """Ask the daemon to stop while sessions are inside that do not want to end; return what is wrong with how it does."""
        guests = [self.connect(number, timeout=10) for number in range(6)]
        for client in guests:
            client.send(f"deed {random.choice(GUESTS)} {random.randrange(99)}\n".encode())
        self.daemon.kill(random.choice([signal.SIGTERM, signal.SIGINT, signal.SIGQUIT]))
        if random.random() < 0.3:
            self.daemon.kill(signal.SIGTERM)
        try:
            status = self.daemon.wait()
        except subprocess.TimeoutExpired:
            return ["the daemon has not ended within half a minute after it was asked to"]
        finally:
            for client in guests:
                client.close()
        return [] if status == 0 else [f"the daemon has ended with {status} after it was asked to stop"]

    def close(self) -> list[str]:
        """Stop the daemon, and return what it leaves that it should not."""
        # What the log says is the log's reader's to judge; an error of poold's code in a session that has spoilt it is no fault.
        wrong = [text for text in self.daemon.close() if not text.startswith(("worker_failed", "loop_error"))]
        if self.pipe is not None:
            self.log.stalled.clear()
        self.log.close()
        if self.pipe is not None:
            self.pipe.close()
        return wrong


def end_leftovers(roots: list[int]) -> int:
    """Kill what is called `leftover` below these processes: whatever state it is in, and whoever traces it."""
    count = 0
    for pid in (pid for root in roots for pid in descendants(root)):
        try:
            # Bytes: sessions call themselves what they like.
            name, line = Path(f"/proc/{pid}/comm").read_bytes().strip(), Path(f"/proc/{pid}/cmdline").read_bytes()
            if name == LEFTOVER.encode() or line.startswith(LEFTOVER.encode()):
                os.kill(pid, signal.SIGKILL)
                count += 1
        except OSError:
            # It has ended.
            continue
    return count


def readable_library(folder: Path) -> list[str]:
    """Return where the service user finds the standard library; nothing where it can read this interpreter's own.

    An interpreter in root's home is of no use to another user. So that sessions can still import what they like, they get a copy.
    """
    library = Path(sysconfig.get_path("stdlib"))
    if all(place.stat().st_mode & 0o001 for place in (library, *library.parents)):
        return []
    copy = folder / "library"
    shutil.copytree(library, copy, ignore=shutil.ignore_patterns(*LEFT_OUT), ignore_dangling_symlinks=True)
    return [str(copy), str(copy / "lib-dynload")]


def copied_descriptor(pid: int, number: int) -> int:
    """Return a copy of another process's descriptor, -1 if there is none (pidfd_getfd(2))."""
    import ctypes

    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return -1
    try:
        return int(ctypes.CDLL(None).syscall(438, pidfd, number, 0))
    finally:
        os.close(pidfd)


def patiently(act: Callable[[], object], seconds: float = 1.0) -> None:
    """Do something again and again for so long."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        act()


def unix_socket(path: Path, timeout: float = 10.0) -> socket.socket:
    """Return a connected unix socket."""
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(timeout)
    try:
        client.connect(str(path))
    except BaseException:
        client.close()
        raise
    return client
