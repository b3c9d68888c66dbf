"""What poold weighs and does when there is nothing to do: a stray import or a tick shows here the day it comes.

Memory is told as what a process has beyond a bare interpreter of the same Python, so that the bounds hold for each version. They are
a tenth or so above what was measured when they were set.
"""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.faultkit import exporter_of, mold_of, spares_of
from tests.support import Daemon, eventually

Poold = Callable[..., Daemon]

# Kilobytes beyond a bare interpreter.
MOLD_RESIDENT = 4_000
MASTER_ANONYMOUS = 9_000
# Of a spare: what it has for itself alone.
SPARE_PRIVATE = 650

BARE = "import sys; print(open('/proc/self/smaps_rollup').read())"


def kilobytes(text: str, *names: str) -> int:
    """Return the sum of these lines of a smaps_rollup (proc(5))."""
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith(names))


def memory(pid: int) -> str:
    """Return a process's smaps_rollup."""
    return Path(f"/proc/{pid}/smaps_rollup").read_text()


def test_memory_after_the_start(poold: Poold) -> None:
    """Mold, spare and master have what they need and no more."""
    daemon = poold(options={"server.handler": "poold.handlers.echo:serve", "pool.min_spare": 2}).start()
    [spare, _] = spares_of(daemon, 2)
    bare = subprocess.run([sys.executable, "-P", "-c", BARE], capture_output=True, text=True, check=True).stdout
    # What judging settings needs went with the process that judged them.
    assert "pydantic" not in Path(f"/proc/{daemon.master}/maps").read_text()
    assert kilobytes(memory(mold_of(daemon)), "Rss") - kilobytes(bare, "Rss") <= MOLD_RESIDENT
    assert kilobytes(memory(daemon.master), "Anonymous") - kilobytes(bare, "Anonymous") <= MASTER_ANONYMOUS
    assert kilobytes(memory(spare), "Private_Dirty") <= SPARE_PRIVATE


def wakeups(pids: list[int]) -> list[int]:
    """Return how often each of these processes has waited for something and got it (proc(5), voluntary_ctxt_switches)."""
    texts = [Path(f"/proc/{pid}/status").read_text().splitlines() for pid in pids]
    return [int(next(line for line in text if line.startswith("voluntary_ctxt")).split()[1]) for text in texts]


def test_nothing_to_do(poold: Poold) -> None:
    """With nobody there, no process of poold ever wakes up: nothing is polled, nothing ticks."""
    daemon = poold(options={"pool.min_spare": 2}).start(laws=False)  # scrapes are something to do
    pids = [daemon.master, mold_of(daemon), exporter_of(daemon), *spares_of(daemon, 2)]
    # What was said last may go out up to a status line's interval later; and once after the last scrape, at most five seconds later,
    # the master looks whether the exporter has answered it.
    rest(7)
    before = wakeups(pids)
    rest(3)
    assert wakeups(pids) == before


def rest(seconds: float) -> None:
    """Do nothing for so long: that nothing happens meanwhile is what is tested."""
    end = time.monotonic() + seconds
    eventually(lambda: time.monotonic() > end, f"{seconds} seconds")
