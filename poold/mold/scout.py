"""Which of the mold's pages a worker uses on its way to the handler, found out by a scout.

They are always the same: objects lie where they lie. So the mold sends a scout: a clone that lives a worker's life until the handler
has the word, notes which pages are its own by then (proc(5), pagemap) and ends. What becomes of them: `poold.mold.ahead`.
"""

from __future__ import annotations

import ctypes
import os
from os import _exit as leave
from os import close, preadv
from os import open as open_file

from poold.mold.ahead import PAGE, RANGE, Pages, probe

TYPE_CHECKING = False
if TYPE_CHECKING:  # without loading typing, whose weight every worker would carry
    from collections.abc import Iterator

    Plan = list[tuple[int, list[memoryview]]]

_PR_SET_DUMPABLE = 4
# In memory; mapped by this process alone.
_PRESENT, _EXCLUSIVE = 1 << 63, 1 << 56
_ENTRY = 8
# Pages that the kernel maps around one that is only read (fault_around_bytes, 64 kB by default).
_AROUND = 16
# Bytes between two areas that are looked at together.
_GAP_MAX = 64 << 20
# What an area is: only read; a file's, but written to; no file's.
_READ, _FILE, _ANONYMOUS = range(3)

_PROT_READ, _PROT_WRITE, _MAP_SHARED, _MAP_ANONYMOUS = 1, 2, 1, 32
_FAILED = ctypes.c_void_p(-1).value
_libc = ctypes.PyDLL(None, use_errno=True)
_prctl = _libc.prctl
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)


class Survey:
    """What a scout notes, in memory that it shares with its mold: the pagemap's entries of each area that was there before it.

    Everything is made before, so that noting writes to little.
    """

    def __init__(self) -> None:
        """Raises OSError."""
        self._areas = list(_areas())
        self._spans = list(_spans(self._areas))
        self._size = sum(end - start for start, end in self._spans) // PAGE * _ENTRY
        address = _libc.mmap(None, self._size, _PROT_READ | _PROT_WRITE, _MAP_SHARED | _MAP_ANONYMOUS, -1, 0)
        if address == _FAILED:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        self._address: int = address
        memory = memoryview((ctypes.c_ubyte * self._size).from_address(address)).cast("B")
        # Where in the pagemap each span begins, and the room for it.
        self.plan: Plan = []
        for start, end in self._spans:
            size = (end - start) // PAGE * _ENTRY
            self.plan.append((start // PAGE * _ENTRY, [memory[:size]]))
            memory = memory[size:]

    def pages(self) -> Pages:
        """Return what was noted, and give the memory back."""
        pages = Pages()
        for (begin, _), (_, (room,)) in zip(self._spans, self.plan, strict=True):
            noted = room.cast("Q")
            for start, end, kind in self._areas:
                if begin <= start < begin + len(noted) * PAGE:
                    entries = noted[(start - begin) // PAGE : (end - begin) // PAGE]
                    if kind == _READ:
                        pages.read += _windows(entries, start)
                    elif kind == _FILE:
                        pages.of_files += _runs(entries, start)
                    else:
                        pages.anonymous += _runs(entries, start)
        self.plan.clear()
        _libc.munmap(self._address, self._size)
        return pages


def note(pagemap: str, plan: Plan) -> None:
    """Note what this file says of the pages. Raises OSError."""
    fd = open_file(pagemap, 0)
    for offset, room in plan:
        preadv(fd, room, offset)
    close(fd)


def tell(plan: Plan, connection: object) -> None:
    """Be the scout's handler: note which pages this process has by now, try what may be deadly, and end."""
    status = 1
    try:
        # A process that has changed its user may not look at its own pagemap otherwise (proc(5)).
        _prctl(_PR_SET_DUMPABLE, 1, None, None, None)
        note("/proc/self/pagemap", plan)
        probe()
        status = 0
    finally:
        leave(status)


def _areas() -> Iterator[tuple[int, int, int]]:
    """Yield begin, end and kind of each private area of this process (proc(5), maps).

    Not the kernel's own, [vvar] and [vdso]: they cannot be populated, and a call ends at the first range that cannot.
    """
    with open("/proc/self/maps", "rb") as maps:
        for line in maps:
            place, permissions, _, _, inode, *_ = line.split(None, 5)
            if permissions.startswith(b"r") and permissions.endswith(b"p") and b"[v" not in line:
                start, _, end = place.partition(b"-")
                kind = _READ if permissions[1:2] != b"w" else _ANONYMOUS if inode == b"0" else _FILE
                yield int(start, 16), int(end, 16), kind


def _spans(areas: list[tuple[int, int, int]]) -> Iterator[tuple[int, int]]:
    """Yield begin and end of the neighbourhoods that areas lie in: to read a gap costs less than to read once more."""
    begin, until = areas[0][0], areas[0][1]
    for start, end, _ in areas[1:]:
        if start - until > _GAP_MAX:
            yield begin, until
            begin = start
        until = end
    yield begin, until


def _runs(entries: memoryview, start: int) -> bytes:
    """Return the ranges of the pages that are this process's own, neighbours together."""
    ranges, first = b"", -1
    for number, entry in enumerate([*entries, 0]):
        own = entry & _PRESENT and entry & _EXCLUSIVE
        if own and first < 0:
            first = number
        elif not own and first >= 0:
            ranges += RANGE.pack(start + first * PAGE, (number - first) * PAGE)
            first = -1
    return ranges


def _windows(entries: memoryview, start: int) -> bytes:
    """Return one page of each neighbourhood that is in memory: a fault for one page maps what is there around it (fault_around_bytes)."""
    ranges, last = b"", -1
    for number, entry in enumerate(entries, start // PAGE):
        if entry & _PRESENT and number // _AROUND != last:
            last = number // _AROUND
            ranges += RANGE.pack(number * PAGE, PAGE)
    return ranges
