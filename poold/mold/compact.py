"""Collapses the mold's memory into huge pages, so that a clone copies fewer entries of page tables.

A clone copies one entry of the page tables for each page that is mapped and private. The end of the
clone removes these entries. For a large handler most of a session's cost is this copying. A huge
page has one entry. A worker that writes to a huge page gets a copy of the one small page that the
worker has written to. A huge page that is only read stays whole, in the mold as well.
"""

from __future__ import annotations

import ctypes

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` is not loaded: every worker would carry its memory
    from collections.abc import Iterator

# madvise(2), Linux 6.1: collapse now, whatever transparent_hugepage/enabled in /sys/kernel/mm says.
_MADV_COLLAPSE = 25
_HUGE_PAGE = 2 << 20
# Smaller memory is left alone. A mold's own few megabytes are written to in many places, and the
# kernel splits their huge pages again at the first clone.
_SIZE_MIN = 16 << 20

_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def compact() -> int:
    """Collapse this process's private memory into huge pages, unless the memory is small.

    Return how many bytes the kernel has collapsed. A kernel that lacks the call, or has no huge
    page free, leaves the memory unchanged.
    """
    ranges = list(_anonymous_areas())
    if sum(end - start for start, end in ranges) < _SIZE_MIN:
        return 0
    collapsed = 0
    for start, end in ranges:
        for at in range(-(-start // _HUGE_PAGE) * _HUGE_PAGE, end // _HUGE_PAGE * _HUGE_PAGE, _HUGE_PAGE):
            if _libc.madvise(at, _HUGE_PAGE, _MADV_COLLAPSE) == 0:
                collapsed += _HUGE_PAGE
    return collapsed


def _anonymous_areas() -> Iterator[tuple[int, int]]:
    """Yield begin and end of each private area that belongs to no file (proc(5), maps)."""
    with open("/proc/self/maps", "rb") as maps:
        for line in maps:
            place, permissions, _, _, inode, *name = line.split()
            if permissions == b"rw-p" and inode == b"0" and name in ([], [b"[heap]"]):
                start, _, end = place.partition(b"-")
                yield int(start, 16), int(end, 16)
