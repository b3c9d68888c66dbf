"""Finds out, with two clones, to which of the mold's pages a worker writes before its handler runs.

These pages are the same in each worker, because the clones of one mold have their objects at the
same addresses. The *scout* is a clone that lives a worker's life up to the handler and waits there.
The *observer* is cloned before the scout and stands in for the scout's master and client. The
observer reads from outside which pages the scout has mapped (proc(5), pagemap). A page that only
the scout has mapped is one that the scout has written to.

This reading changes pages of the observer, not of the scout. The scout is a vfork(2) of the mold:
the mold stands still until the scout has ended.

`poold.mold.prefault` uses the result.
"""

from __future__ import annotations

import os
import time
from array import array
from os import _exit as leave

from poold.channel import WorkerWord, receive_report
from poold.log import log
from poold.mold.prefault import PAGE_SIZE, RANGE, PageRanges, probe
from poold.sandbox import allow_inspection, kill_with_parent

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` is not loaded: every worker would carry its memory
    from collections.abc import Iterable, Iterator, Sequence
    from typing import NoReturn

    from poold.channel import Wire
    from poold.connection import Connection

# Bits of a pagemap entry (proc(5)): in memory, and mapped by one process only.
_PRESENT = 1 << 63
_OWN = _PRESENT | 1 << 56
_ENTRY_SIZE = 8
# At a fault for reading, the kernel maps the pages around as well (fault_around_bytes, 64 kB by
# default).
_BLOCK_PAGES = max(1, (64 << 10) // PAGE_SIZE)
# A larger area is a mere reservation of addresses. The observer leaves such an area out, because
# pagemap has eight bytes for each page.
_AREA_MAX = 4 << 30
# Seconds for which the observer waits for each of the scout's reports, and seconds between two
# looks at the scout's state.
_REPORT_SECONDS = 2.0
_LOOK_PAUSE = 0.0002


def wait_for_observer(channel_fd: int, connection: Connection) -> None:
    """Be the scout's handler: let the observer look, and receive, as every handler does first.

    The call returns when the observer ends. No descriptor of the mold's is open by then, and this
    function closes `channel_fd`, the last of them. A process that may look into the scout could
    also take the scout's descriptors.
    """
    os.close(channel_fd)
    allow_inspection()
    connection.socket.recv(1)


def observe(scout: Wire, report_fd: int, mold_pid: int, maps_fd: int) -> NoReturn:
    """Be the observer: write the scout's pages to `report_fd` and exit.

    `scout` is the master's end of the scout's channel. `maps_fd` lists the areas of the mold
    (proc(5), maps). Areas that only the scout has are left out. With exit status 0 the report is
    complete.
    """
    status = 1
    try:
        kill_with_parent(mold_pid)
        # A filter of system calls may kill the caller (seccomp(2)): the observer, not the mold.
        probe()
        pages = _read_pages(_await_scout(scout), maps_fd).packed()
        status = int(os.write(report_fd, pages) != len(pages))
    except Exception as error:  # without the report, faults provide the workers' pages
        log.info("pages_not_prefaulted", reason=f"{type(error).__name__}: {error}")
    finally:
        leave(status)


def _await_scout(wire: Wire) -> int:
    """Return the scout's pid, once the scout waits for its client. Raises EOFError, OSError."""
    wire.settimeout(_REPORT_SECONDS)
    pid, word = 0, None
    while word != WorkerWord.ACK:
        report = receive_report(wire)
        if report is None:
            raise EOFError("the scout has gone")
        pid, word = report.pid, report.word
    for _ in range(int(_REPORT_SECONDS / _LOOK_PAUSE)):
        if _state(pid) == b"S":
            return pid
        time.sleep(_LOOK_PAUSE)  # no call reports that another process has begun to wait
    raise TimeoutError("the scout does not wait for its client")


def _state(pid: int) -> bytes:
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            return stat.read().rpartition(b")")[2].split(None, 1)[0]
    except FileNotFoundError:
        # With hidepid (proc(5)), /proc shows the scout only after the scout has allowed this.
        return b""


def _read_pages(pid: int, maps_fd: int) -> PageRanges:
    """Return the pages that a process uses in the areas that `maps_fd` lists. Raises OSError."""
    pages = PageRanges()
    with open(maps_fd, "rb") as lines, open(f"/proc/{pid}/pagemap", "rb", buffering=0) as pagemap:
        for start, end, writable, of_file in _areas(lines):
            if end - start > _AREA_MAX:
                continue
            pagemap.seek(start // PAGE_SIZE * _ENTRY_SIZE)
            entries = array("Q", pagemap.read((end - start) // PAGE_SIZE * _ENTRY_SIZE))
            if not writable:
                pages.read += _block_ranges(entries, start)
            elif of_file:
                pages.of_files += _own_ranges(entries, start)
            else:
                pages.anonymous += _own_ranges(entries, start)
    with open(f"/proc/{pid}/smaps_rollup", "rb") as rollup:
        pages.huge = any(line.startswith(b"AnonHugePages:") and int(line.split()[1]) for line in rollup)
    return pages


def _areas(maps: Iterable[bytes]) -> Iterator[tuple[int, int, bool, bool]]:
    """Yield begin and end of each private area, whether it is writable and whether it maps a file.

    The format is that of maps (proc(5)). The kernel's own areas [vvar] and [vdso] are left out.
    They cannot be populated, and process_madvise(2) stops at the first range that cannot.
    """
    for line in maps:
        place, permissions, _, _, inode, *_ = line.split(None, 5)
        if permissions.startswith(b"r") and permissions.endswith(b"p") and b"[v" not in line:
            start, _, end = place.partition(b"-")
            yield int(start, 16), int(end, 16), permissions[1:2] == b"w", inode != b"0"


def _own_ranges(entries: Sequence[int], start: int) -> bytes:
    """Return the pages that only this process has mapped, adjacent pages as one range."""
    own = [number for number, entry in enumerate(entries) if entry & _OWN == _OWN]
    ranges = b""
    while own:
        length = next((n for n, number in enumerate(own) if number != own[0] + n), len(own))
        ranges += RANGE.pack(start + own[0] * PAGE_SIZE, length * PAGE_SIZE)
        del own[:length]
    return ranges


def _block_ranges(entries: Sequence[int], start: int) -> bytes:
    """Return one page for each block of pages that is in memory.

    A fault for this one page also maps the other pages of the block (fault_around_bytes).
    """
    ranges, last = b"", -1
    for number, entry in enumerate(entries, start // PAGE_SIZE):
        if entry & _PRESENT and number // _BLOCK_PAGES != last:
            last = number // _BLOCK_PAGES
            ranges += RANGE.pack(number * PAGE_SIZE, PAGE_SIZE)
    return ranges
