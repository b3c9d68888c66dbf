"""What is wrong: looked for while it runs, and at the end."""

import contextlib
import os
import re
import stat
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests import rights
from tests.procfs import children_of, descendants, private_kilobytes, stat_fields, title
from tests.soak.hostile.scene import Scene
from tests.waiting import eventually

# Kilobytes that the master may have more at the end than at the beginning, whatever has been served and reloaded meanwhile; and its
# shared memory.
MEMORY_MORE = 6 << 10
SHARED_MORE = 1 << 10
# How often rights are looked at, in seconds; a look takes a tenth of one.
RIGHTS_EVERY = 3.0


@dataclass
class Failures:
    """What went wrong, each kind once with how often, and what was being done then."""

    limit: int
    found: dict[str, tuple[str, str]] = field(default_factory=dict)
    times: Counter[str] = field(default_factory=Counter)
    _now: list[str] = field(default_factory=list)
    _recent: dict[str, float] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextlib.contextmanager
    def during(self, what: str) -> Iterator[None]:
        """Note that an attack goes on."""
        with self._lock:
            self._now.append(what)
        try:
            yield
        finally:
            with self._lock:
                self._now.remove(what)
                self._recent[what] = time.monotonic()

    def add(self, text: str) -> None:
        """Take what went wrong."""
        kind = re.sub(r"0x[0-9a-f]+|\d+", "#", text)[:300]
        with self._lock:
            self.times[kind] += 1
            if kind in self.found:
                return
            recent = [what for what, at in self._recent.items() if time.monotonic() - at < 5]
            self.found[kind] = text, f"during {', '.join(self._now) or 'nothing'}; just before: {', '.join(recent[-6:]) or 'nothing'}"
        print(f"FAILED {text[:3000]}\n       {self.found[kind][1]}", flush=True)

    def many(self) -> bool:
        """Say whether it makes no sense to go on."""
        return len(self.found) >= self.limit


@dataclass(frozen=True, slots=True)
class Possessions:
    """What a master has: descriptors by kind, private kilobytes, kilobytes of shared memory."""

    descriptors: Counter[str]
    private: int
    shared: int

    @classmethod
    def of(cls, scene: Scene) -> "Possessions":
        """Look at a master."""
        found = rights.look(scene.master, metrics=scene.daemon.metrics_port, control=str(scene.daemon.control))[scene.master]
        return cls(Counter(str(held.thing) for held in found.held), private_kilobytes(scene.master), shared_kilobytes(scene.master))


def shared_kilobytes(pid: int) -> int:
    """Return how much memory the memory files have that a process holds."""
    sizes = {}
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            if "/memfd:" in os.readlink(f"/proc/{pid}/fd/{name}"):
                status = os.stat(f"/proc/{pid}/fd/{name}")
                sizes[status.st_ino] = status.st_blocks // 2
    return sum(sizes.values())


def files(folder: Path) -> set[str]:
    """Return what is below a folder that a daemon has made: not the campaign's own, not what sessions leave in theirs, and no log."""
    return {str(path) for place in ("run", "tmp") for path in (folder / place).rglob("*")}


class Verdict:
    """Looks at one scene from its start to its end. `trusted` are the pids of honest sessions that stay."""

    def __init__(self, scene: Scene, failures: Failures, trusted: Callable[[], set[int]]) -> None:
        self._scene = scene
        self._failures = failures
        self._trusted = trusted
        self._before = set(children_of(os.getpid())) - {scene.master}
        self._files = files(scene.folder)
        self.quiet()
        self._baseline = Possessions.of(scene)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def quiet(self) -> None:
        """Wait until nobody is inside but who stays, and every spare is there."""
        stay = len(self._trusted())
        eventually(lambda: self._count("poold_sessions_active") == stay, "every session has ended", seconds=90)
        eventually(lambda: self._count("poold_children", kind="worker", state="spare") == 4, "every spare is there", seconds=60)
        eventually(lambda: self._count("poold_children") == stay + 4 + self._count("poold_children", kind="logger") + 2, "nobody leaves")

    def _count(self, name: str, **labels: str) -> float:
        try:
            return self._scene.daemon.metrics().total(name, **labels)
        except OSError:
            # There is no exporter just now.
            return -1

    def _watch(self) -> None:
        looked = 0.0
        while not self._end.wait(0.5):
            if self._scene.dead():
                return
            self._look()
            if time.monotonic() - looked > RIGHTS_EVERY:
                self.rights()
                looked = time.monotonic()

    def look(self) -> None:
        """Look at everything now."""
        if not self._scene.dead():
            self._look()
            self.rights()

    def _look(self) -> None:
        scene = self._scene
        keeper = scene.daemon.keeper
        assert keeper is not None
        broken, keeper.broken = keeper.broken, []
        for text in (*broken, *scene.log.wrong(), *scene.log_changes()):
            self._failures.add(text)

    def rights(self) -> None:
        """Hold everybody to the table of rights."""
        for text in self._scene.broken_rights(self._trusted(), opened=self._scene.opened):
            self._failures.add(text)

    def death(self) -> None:
        """Say how the daemon died."""
        process = self._scene.daemon.process
        assert process is not None
        lines = "\n         ".join([line[:1000] for line in self._scene.log.lines][-12:])
        self._failures.add(f"the daemon has died with status {process.returncode}; the log's last lines:\n         {lines}")

    def final(self) -> None:
        """Wait for the daemon to be as it was at the beginning, and say what is not. It must be alive."""
        scene = self._scene
        scene.sweep()
        try:
            scene.restore()
            self.quiet()
            eventually(lambda: not self._more(), "the descriptors and the memory of the beginning", seconds=20)
        except AssertionError as error:
            self._failures.add(f"at the end: {error}; more than at the beginning: {self._more()}; there are {self._strangers()}")
        self.rights()
        self._look()
        if loop_errors := self._count("poold_loop_errors_total"):
            self._failures.add(f"at the end: {loop_errors:g} errors of the loop")
        keeper = scene.daemon.keeper
        if keeper is None or not keeper.scrapes:
            self._failures.add("at the end: nobody could scrape")

    def _strangers(self) -> list[str]:
        """Describe the processes that are neither spares nor what a daemon always has."""
        found = []
        for pid in descendants(self._scene.master):
            with contextlib.suppress(OSError):
                line = title(pid)
                if not line.startswith(("poold: spare", "poold: mold", "poold: exporter", "poold: logger")):
                    state, waits = (stat_fields(pid) or ["gone"])[0], Path(f"/proc/{pid}/wchan").read_text(errors="replace")
                    found.append(
                        f"{pid} {line[:80]!r} {Path(f'/proc/{pid}/comm').read_text(errors='replace').strip()!r} {state} in {waits}"
                    )
        return found

    def _more(self) -> list[str]:
        before, now = self._baseline, Possessions.of(self._scene)
        more = [f"{count} times {thing}" for thing, count in (now.descriptors - before.descriptors).items()]
        if now.private > before.private + MEMORY_MORE:
            more.append(f"{now.private - before.private} kB private")
        if now.shared > before.shared + SHARED_MORE:
            more.append(f"{now.shared - before.shared} kB shared")
        return more + sorted(files(self._scene.folder) - self._files)

    def close(self) -> None:
        """Stop looking."""
        self._end.set()
        self._thread.join()

    def left_behind(self) -> None:
        """Say what processes are left after the daemon's end, and end them: they have fallen to this one."""
        deadline = time.monotonic() + 10
        while (left := set(children_of(os.getpid())) - self._before) and time.monotonic() < deadline:
            for pid in left:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
            time.sleep(0.05)  # what was killed takes its moment to go
        for pid in left:
            fields = stat_fields(pid)
            with contextlib.suppress(OSError):
                line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                self._failures.add(f"process {pid} is left, in state {fields[0] if fields else 'gone'}: {line[:200]!r}")
                os.kill(pid, 9)
                os.waitpid(pid, 0)
        sockets = [str(path) for path in self._scene.folder.rglob("*") if path.exists() and stat.S_ISSOCK(path.lstat().st_mode)]
        for path in sockets:
            self._failures.add(f"socket file {path} is left")
