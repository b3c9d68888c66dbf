"""The mold's memory, made cheap to clone: whole huge pages instead of five hundred small ones each.

A clone copies one entry of the page tables for each page that is mapped and private, and its end takes them down again: for a handler
of 150 MB that is most of what a session costs. A huge page is one entry; a worker that writes to it gets the small page it writes to,
and what is only read stays whole, in the mold too.
"""

from __future__ import annotations

import ctypes

TYPE_CHECKING = False
if TYPE_CHECKING:  # without loading typing, whose weight every worker would carry
    from collections.abc import Iterator

# madvise(2), Linux 6.1: collapse now, whatever /sys/kernel/mm/transparent_hugepage/enabled says.
_MADV_COLLAPSE = 25
_HUGE = 2 << 20
# Below this a clone spends its time elsewhere: a mold's own few megabytes are written to all over, and fall apart again at once.
_WORTH_IT = 16 << 20

_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def compact() -> int:
    """Collapse this process's private memory into huge pages, if there is much of it; return how many bytes the kernel took.

    A kernel that cannot, or has none to give, leaves everything as it is, and clones only cost more.
    """
    ranges = list(_anonymous())
    if sum(end - start for start, end in ranges) < _WORTH_IT:
        return 0
    taken = 0
    for start, end in ranges:
        for at in range(-(-start // _HUGE) * _HUGE, end // _HUGE * _HUGE, _HUGE):
            if _libc.madvise(at, _HUGE, _MADV_COLLAPSE) == 0:
                taken += _HUGE
    return taken


def _anonymous() -> Iterator[tuple[int, int]]:
    """Yield where the private memory lies that belongs to no file (proc(5), maps)."""
    with open("/proc/self/maps", "rb") as maps:
        for line in maps:
            place, permissions, _, _, inode, *name = line.split()
            if permissions == b"rw-p" and inode == b"0" and name in ([], [b"[heap]"]):
                start, _, end = place.partition(b"-")
                yield int(start, 16), int(end, 16)
