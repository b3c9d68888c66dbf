"""What poold weighs and does when there is nothing to do: a stray import or a tick shows here the day it comes.

Memory is told as what a process has beyond a bare interpreter of the same Python, so that the bounds hold for each version. They are
a tenth or so above what was measured when they were set.
"""

import subprocess
import sys
import time
from pathlib import Path

from tests.childkit import exporter_of, mold_of, spares_of
from tests.procfs import kilobytes, smaps_rollup, status_fields
from tests.support import Poold
from tests.waiting import eventually

# Kilobytes beyond a bare interpreter.
MOLD_RESIDENT = 4_000
MASTER_ANONYMOUS = 9_900
# Of a spare: what it has for itself alone.
SPARE_PRIVATE = 650

BARE = "import sys; print(open('/proc/self/smaps_rollup').read())"


def test_memory_after_the_start(poold: Poold) -> None:
    """Mold, spare and master have what they need and no more."""
    daemon = poold(options={"server.handler": "poold.handlers.echo:serve", "pool.min_spare": 2}).start()
    [spare, _] = spares_of(daemon, 2)
    bare = subprocess.run([sys.executable, "-P", "-c", BARE], capture_output=True, text=True, check=True).stdout
    # What judging settings needs went with the process that judged them.
    assert "pydantic" not in Path(f"/proc/{daemon.master}/maps").read_text()
    assert kilobytes(smaps_rollup(mold_of(daemon)), "Rss") - kilobytes(bare, "Rss") <= MOLD_RESIDENT
    assert kilobytes(smaps_rollup(daemon.master), "Anonymous") - kilobytes(bare, "Anonymous") <= MASTER_ANONYMOUS
    assert kilobytes(smaps_rollup(spare), "Private_Dirty") <= SPARE_PRIVATE


def wakeups(pids: list[int]) -> list[int]:
    """Return how often each of these processes has waited for something and got it (proc(5), voluntary_ctxt_switches)."""
    return [int(status_fields(pid)["voluntary_ctxt_switches"]) for pid in pids]


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
