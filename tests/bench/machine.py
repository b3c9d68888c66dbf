"""The machine: which core is whose, how much memory is left, and what else a reader of figures must know of it."""

import mmap
import os
import platform
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

PAGE = os.sysconf("SC_PAGE_SIZE")
SETTLE_SECONDS = 10.0
SETTLE_PAUSE = 0.3
SETTLE_BYTES = 500_000
TOUCH_SHARE = 0.75
TOUCH_PIECE = 256 << 20


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


def available_bytes() -> int:
    """Return the kernel's MemAvailable, and the free pages that MemAvailable leaves out: those that each core keeps for itself.

    The pages of processes that ended go to their core's list, and the next processes take theirs from there. These lists hold some
    hundreds of megabytes: without them, a hundred sessions would seem to need nothing at all (/proc/zoneinfo, "pagesets").
    """
    facts = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    kept = sum(int(line.split()[1]) for line in Path("/proc/zoneinfo").read_text().splitlines() if line.lstrip().startswith("count:"))
    return int(facts["MemAvailable"].split()[0]) * 1024 + kept * PAGE


def settled_available_bytes() -> int:
    """Return what is available once it has come to rest: the kernel frees what dead processes had some time after they have gone."""
    end, before = time.monotonic() + SETTLE_SECONDS, available_bytes()
    while True:
        time.sleep(SETTLE_PAUSE)
        now = available_bytes()
        if abs(now - before) <= SETTLE_BYTES or time.monotonic() > end:
            return now
        before = now


def touch(size: int) -> None:
    """Write to so much memory, as far as there is, and give it back.

    A hypervisor may have taken back what the machine does not use. The next page that is then needed costs several times as much as one
    that is there (12 µs and 3 µs where this was found), and the sessions after the first thousand would seem to be slow to open.
    """
    size = min(size, int(available_bytes() * TOUCH_SHARE))
    with ExitStack() as touched:
        # In pieces, so that Ctrl-C need not wait for all of it.
        for _ in range(0, size, TOUCH_PIECE):
            touched.enter_context(mmap.mmap(-1, TOUCH_PIECE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE))


def first_line(*command: str) -> str:
    """Return the first line that a command prints, on either stream; "" when it cannot be run."""
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip().partition("\n")[0]


def environment(python: str, cores: Cores) -> dict[str, str]:
    """Return what the figures depend on besides the servers themselves."""
    model = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    here = Path(__file__).parent
    commit = first_line("git", "-C", str(here), "rev-parse", "--short", "HEAD")
    changed = first_line("git", "-C", str(here), "status", "--porcelain", "--untracked-files=no", "--", "../../poold")
    return {
        "kernel": platform.release(),
        "processor": f"{os.cpu_count()} of {model[0] if model else platform.machine()}",
        "cores": f"servers on core {cores.server}, load generator on core {cores.load}",
        "memory": f"{available_bytes() / 1e9:.1f} GB available",
        "python": first_line(python, "-c", "import sys; print(sys.version.split()[0])"),
        "poold": first_line(python, "-c", "import poold; print(poold.__version__)")
        + (f" ({commit}{', changed since' if changed else ''})" if commit else ""),
    }
