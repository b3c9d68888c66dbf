"""Which of the mold's pages a worker uses on its way to the handler, found out by two clones.

They are always the same: objects lie where they lie. A *scout* lives a worker's life until the handler has the word, and stays there. An
*observer*, cloned before it, is its master and its client, and looks at its pages from outside (proc(5), pagemap): those that are mapped
by the scout alone are what it has written to. Looking writes to pages as well, but to the observer's own; and the mold, for which the
scout is a vfork(2), stands still until both have gone.

What becomes of these pages: `poold.mold.prefault`.
"""

from __future__ import annotations

import os
import time
from array import array
from os import _exit as leave

from poold.channel import Word, receive_report
from poold.log import log
from poold.mold.prefault import PAGE, RANGE, Pages, probe
from poold.sandbox import be_seen, vanish_with

TYPE_CHECKING = False
if TYPE_CHECKING:  # without loading typing, whose weight every worker would carry
    from collections.abc import Iterable, Iterator, Sequence
    from typing import NoReturn

    from poold.channel import Wire
    from poold.connection import Connection

# In memory; and mapped by this process alone.
_PRESENT = 1 << 63
_OWN = _PRESENT | 1 << 56
_ENTRY = 8
# Pages that the kernel maps around one that is only read (fault_around_bytes, 64 kB by default).
_AROUND = max(1, (64 << 10) // PAGE)
# A larger area is a reservation, and not looked at: there are eight bytes of pagemap for each of its pages.
_AREA_MAX = 4 << 30
# How long the scout may be silent; and how often the observer looks whether it waits yet.
_PATIENCE = 2.0
_TICK = 0.0002


def stay(channel: int, connection: Connection) -> None:
    """Be the scout's handler: let the observer look, and do what every handler does first, until it has seen enough.

    Nothing of the mold's is left open by then, `channel` neither: who may look could also take what there is.
    """
    os.close(channel)
    be_seen()
    connection.socket.recv(1)


def observe(scout: Wire, report: int, mold: int, maps: int) -> NoReturn:
    """Be the observer. `scout` is the master's end of the scout's channel, `report` where its pages are written to.

    `maps` says what the mold has mapped (proc(5)): the scout may have more. The report is complete if this process ends with 0.
    """
    status = 1
    try:
        vanish_with(mold)
        # A filter may answer one of these with death (seccomp(2)): better here than in the mold.
        probe()
        pages = _pages(_waiting_scout(scout), maps).packed()
        status = int(os.write(report, pages) != len(pages))
    except Exception as error:  # whatever it is, workers take their pages one by one then
        log.info("pages_not_prefaulted", reason=f"{type(error).__name__}: {error}")
    finally:
        leave(status)


def _waiting_scout(end: Wire) -> int:
    """Return the scout's pid, once it waits for its client. Raises EOFError, OSError."""
    end.settimeout(_PATIENCE)
    pid, said = 0, None
    while said != Word.ACK:
        report = receive_report(end)
        if report is None:
            raise EOFError("the scout has gone")
        pid, said = report.pid, report.word
    for _ in range(int(_PATIENCE / _TICK)):
        if _state(pid) == b"S":
            return pid
        time.sleep(_TICK)  # nobody is told that another process has begun to wait
    raise TimeoutError("the scout does not wait for its client")


def _state(pid: int) -> bytes:
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            return stat.read().rpartition(b")")[2].split(None, 1)[0]
    except FileNotFoundError:
        # Where /proc hides what one may not look into (proc(5), hidepid), the scout is not there until it lets itself be seen.
        return b""


def _pages(pid: int, maps: int) -> Pages:
    """Return the pages that a process uses, of those in these areas. Raises OSError."""
    pages = Pages()
    with open(maps, "rb") as lines, open(f"/proc/{pid}/pagemap", "rb", buffering=0) as pagemap:
        for start, end, writable, of_file in _areas(lines):
            if end - start > _AREA_MAX:
                continue
            pagemap.seek(start // PAGE * _ENTRY)
            entries = array("Q", pagemap.read((end - start) // PAGE * _ENTRY))
            if not writable:
                pages.read += _windows(entries, start)
            elif of_file:
                pages.of_files += _runs(entries, start)
            else:
                pages.anonymous += _runs(entries, start)
    with open(f"/proc/{pid}/smaps_rollup", "rb") as rollup:
        pages.huge = any(line.startswith(b"AnonHugePages:") and int(line.split()[1]) for line in rollup)
    return pages


def _areas(maps: Iterable[bytes]) -> Iterator[tuple[int, int, bool, bool]]:
    """Yield begin and end of each private area, whether it may be written to, and whether it began as a file's (proc(5), maps).

    Not the kernel's own, [vvar] and [vdso]: they cannot be populated, and a call ends at the first range that cannot.
    """
    for line in maps:
        place, permissions, _, _, inode, *_ = line.split(None, 5)
        if permissions.startswith(b"r") and permissions.endswith(b"p") and b"[v" not in line:
            start, _, end = place.partition(b"-")
            yield int(start, 16), int(end, 16), permissions[1:2] == b"w", inode != b"0"


def _runs(entries: Sequence[int], start: int) -> bytes:
    """Return the ranges of the pages that are the process's own, neighbours together."""
    own = [number for number, entry in enumerate(entries) if entry & _OWN == _OWN]
    ranges = b""
    while own:
        length = next((n for n, number in enumerate(own) if number != own[0] + n), len(own))
        ranges += RANGE.pack(start + own[0] * PAGE, length * PAGE)
        del own[:length]
    return ranges


def _windows(entries: Sequence[int], start: int) -> bytes:
    """Return one page of each neighbourhood that is in memory: a fault for one page maps what is there around it (fault_around_bytes)."""
    ranges, last = b"", -1
    for number, entry in enumerate(entries, start // PAGE):
        if entry & _PRESENT and number // _AROUND != last:
            last = number // _AROUND
            ranges += RANGE.pack(number * PAGE, PAGE)
    return ranges
