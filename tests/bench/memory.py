"""The machine's memory: how much is left, and that what is left costs the same whenever it is taken."""

import mmap
import os
import time
from pathlib import Path

PAGE = os.sysconf("SC_PAGE_SIZE")
SETTLE_SECONDS = 10.0
SETTLE_PAUSE = 0.3
SETTLE_BYTES = 500_000
BALLAST_SHARE = 0.75
BALLAST_PIECE = 64 << 20
BALLAST_AHEAD = 512 << 20


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
        time.sleep(SETTLE_PAUSE)  # the kernel tells nobody that it has freed something
        now = available_bytes()
        if abs(now - before) <= SETTLE_BYTES or time.monotonic() > end:
            return now
        before = now


class Ballast:
    """Memory that was written to, given back to the machine piece by piece as others take theirs.

    A virtual machine's host takes back what its guest does not use, within seconds. The next page that is then needed costs several
    times as much as one that is there (12 and 3 µs where this was found), and the sessions after the first thousand would seem to be
    slow to open. So pages are kept in use until somebody needs them; the kernel hands out first what was freed last.
    """

    def __init__(self, size: int) -> None:
        """Take so much memory, as far as there is."""
        count = -(-min(size, int(available_bytes() * BALLAST_SHARE)) // BALLAST_PIECE)
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
        self._pieces = [mmap.mmap(-1, BALLAST_PIECE, flags=flags) for _ in range(count)]
        self._given = 0
        self._available = available_bytes()
        self.give()

    def give(self) -> None:
        """Give back so much that others find what they need in the next moments; to be called often while they take it."""
        taken = self._available + self._given - available_bytes()
        while self._pieces and self._given - taken < BALLAST_AHEAD:
            self._pieces.pop().close()
            self._given += BALLAST_PIECE

    def close(self) -> None:
        """Give back all of it."""
        while self._pieces:
            self._pieces.pop().close()
