"""The machine: which core is whose, and what a reader of figures must know of it."""

import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench.memory import available_bytes


@dataclass(frozen=True, slots=True)
class Cores:
    """One core for the server and all its children, another for the load generator and this program."""

    server: int
    load: int

    @classmethod
    def choose(cls) -> "Cores":
        """Take the first and the last core that this process may use. Raises RuntimeError when there is one only."""
        allowed = sorted(os.sched_getaffinity(0))
        if len(allowed) < 2:
            raise RuntimeError("two cores are needed: one for the server, one for the load")
        return cls(server=allowed[-1], load=allowed[0])

    @contextmanager
    def started_on(self, *cores: int) -> Iterator[None]:
        """Let what is started meanwhile run on these cores alone: affinity is inherited, and in force before the exec."""
        os.sched_setaffinity(0, cores)
        try:
            yield
        finally:
            self.leave_the_server_alone()

    def leave_the_server_alone(self) -> None:
        """Let this process run on the load generator's core."""
        os.sched_setaffinity(0, {self.load})


def first_line(*command: str) -> str:
    """Return the first line that a command prints, on either stream; "" when it cannot be run."""
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip().partition("\n")[0]


def scanned() -> bool:
    """Say whether DAMON's kernel thread runs: it walks every mapping of a page, of which workers of one mold have thousands."""
    return any(comm.read_text().startswith("kdamond") for comm in Path("/proc").glob("[0-9]*/comm"))


def measured_poold(python: str) -> str:
    """Return which poold an interpreter runs: its version, and its commit where it is this checkout's."""
    version = first_line(python, "-P", "-c", "import poold; print(poold.__version__)")
    file = Path(first_line(python, "-P", "-c", "import poold; print(poold.__file__)"))
    root = Path(__file__).parents[2]
    if not file.is_relative_to(root / "poold"):
        return f"{version}, installed"
    commit = first_line("git", "-C", str(root), "rev-parse", "--short", "HEAD")
    changed = first_line("git", "-C", str(root), "status", "--porcelain", "--untracked-files=no", "--", "poold")
    return f"{version}, {commit}{', changed since' if changed else ''}"


def environment(python: str, cores: Cores) -> dict[str, str]:
    """Return what the figures depend on besides the servers themselves."""
    model = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "kernel": platform.release(),
        "processor": f"{os.cpu_count()} of {model[0] if model else platform.machine()}",
        "cores": f"servers on core {cores.server}, load generator on core {cores.load}",
        "memory": f"{available_bytes() / 1e9:.1f} GB available",
        "page scanner": "kdamond, which disturbs thousands of processes that share pages" if scanned() else "none",
        "python": first_line(python, "-c", "import os, sys; print(sys.version.split()[0], os.path.realpath(sys.executable))"),
        "poold": measured_poold(python),
    }
