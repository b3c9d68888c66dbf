"""A worker's pages, taken at one go while it waits, instead of by two hundred faults when its client is there.

Which of the mold's pages a worker writes to on its way to the handler is always the same: objects lie where they lie. So the mold sends a
scout: a clone that lives a worker's life until the handler has the word, notes which pages are its own by then (proc(5), pagemap) and
ends. A worker that nobody waits for yet asks the kernel for all of them, right after the clone (process_madvise(2), one call with
MADV_POPULATE_WRITE, and one for the libraries' with MADV_POPULATE_READ): it is a spare's time then, and not its client's.

Linux 6.14 is the first that does this for the calling process; elsewhere workers take their pages one by one.
"""

from __future__ import annotations

import ctypes
import os
import struct
from os import _exit as leave
from os import close, preadv
from os import open as open_file

TYPE_CHECKING = False
if TYPE_CHECKING:  # without loading typing, whose weight every worker would carry
    from collections.abc import Iterator

    Call = tuple[int | ctypes.c_void_p | None, ...]

# The same number on every architecture that came after Linux 5.0's unification of system call tables.
_PROCESS_MADVISE = 440
# The calling process, without a descriptor of it (pidfd_open(2)).
_PIDFD_SELF = -10000
_MADV_POPULATE_READ, _MADV_POPULATE_WRITE = 22, 23
_PR_SET_DUMPABLE = 4
_PAGE = os.sysconf("SC_PAGE_SIZE")
# In memory; mapped by this process alone.
_PRESENT, _EXCLUSIVE = 1 << 63, 1 << 56
_ENTRY = 8
_RANGE = struct.Struct("NN")
# Pages that the kernel maps around one that is only read (fault_around_bytes, 64 kB by default).
_AROUND = 16
# Bytes between two areas that are looked at together.
_GAP_MAX = 64 << 20
# The kernel takes so many ranges in one call (readv(2), IOV_MAX).
RANGES_MAX = 1024

_PROT_READ, _PROT_WRITE, _MAP_SHARED, _MAP_ANONYMOUS = 1, 2, 1, 32
_FAILED = ctypes.c_void_p(-1).value
_libc = ctypes.PyDLL(None, use_errno=True)
_prctl, _syscall = _libc.prctl, _libc.syscall
_syscall.restype = ctypes.c_long
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)


def possible() -> bool:
    """Say whether this kernel populates the caller's own pages: asked for none, it says whether it would."""
    answer: int = _syscall(_PROCESS_MADVISE, _PIDFD_SELF, None, 0, _MADV_POPULATE_WRITE, None)
    return answer == 0


def take(calls: list[Call]) -> None:
    """Make these system calls. One that fails takes nothing, and what it would have taken comes by faults."""
    for call in calls:
        _syscall(*call)


class Survey:
    """What two scouts note, in memory that they share with their mold: the pagemap's entries of each area that was there before them.

    The first looks where a worker takes its pages, the second where the handler has the word; what the second has and the first has not
    is what there is to take. What noting itself takes is in both. Everything is made before, so that it takes little.
    """

    def __init__(self) -> None:
        """Raises OSError."""
        self._areas = list(_areas())
        self._spans = list(_spans(self._areas))
        size = sum(end - start for start, end in self._spans) // _PAGE * _ENTRY
        self._size = 2 * size
        address = _libc.mmap(None, self._size, _PROT_READ | _PROT_WRITE, _MAP_SHARED | _MAP_ANONYMOUS, -1, 0)
        if address == _FAILED:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        self._address: int = address
        memory = memoryview((ctypes.c_ubyte * self._size).from_address(address)).cast("B")
        self.first, self.second = self._plan(memory[:size]), self._plan(memory[size:])

    def _plan(self, memory: memoryview) -> list[tuple[int, list[memoryview]]]:
        """Return where in the pagemap each span begins, and the room for it."""
        plan = []
        for start, end in self._spans:
            size = (end - start) // _PAGE * _ENTRY
            plan.append((start // _PAGE * _ENTRY, [memory[:size]]))
            memory = memory[size:]
        return plan

    def calls(self) -> list[Call]:
        """Return the arguments of the system calls that take what there is to take; and give the memory back."""
        copied, read = bytearray(), bytearray()
        for (begin, _), (_, (early,)), (_, (late,)) in zip(self._spans, self.first, self.second, strict=True):
            before, after = early.cast("Q"), late.cast("Q")
            for start, end, written in self._areas:
                if begin <= start < begin + len(after) * _PAGE:
                    part = slice((start - begin) // _PAGE, (end - begin) // _PAGE)
                    taken = _taken(before[part], after[part], _PRESENT | _EXCLUSIVE if written else _PRESENT)
                    if written:
                        for first, count in _runs(taken):
                            copied += _RANGE.pack(start + first * _PAGE, count * _PAGE)
                    else:
                        for window in _windows(taken, start // _PAGE):
                            read += _RANGE.pack(window * _PAGE, _PAGE)
        self.first.clear()
        self.second.clear()
        _libc.munmap(self._address, self._size)
        return [*_call(bytes(read), _MADV_POPULATE_READ), *_call(bytes(copied), _MADV_POPULATE_WRITE)]


def note(pagemap: str, plan: list[tuple[int, list[memoryview]]]) -> None:
    """Note what this file says of the pages. Raises OSError."""
    fd = open_file(pagemap, 0)
    for offset, room in plan:
        preadv(fd, room, offset)
    close(fd)


def tell(plan: list[tuple[int, list[memoryview]]], connection: object = None) -> None:
    """Note which pages this process has by now, and end."""
    status = 1
    try:
        # A process that has changed its user may not look at its own pagemap otherwise (proc(5)).
        _prctl(_PR_SET_DUMPABLE, 1, None, None, None)
        note("/proc/self/pagemap", plan)
        status = 0
    finally:
        leave(status)


def _areas() -> Iterator[tuple[int, int, bool]]:
    """Yield begin and end of each private area of this process, and whether it may be written to (proc(5), maps).

    Not the kernel's own, [vvar] and [vdso]: they cannot be populated, and a call ends at the first range that cannot.
    """
    with open("/proc/self/maps", "rb") as maps:
        for line in maps:
            place, permissions, rest = line.split(None, 2)
            if permissions.startswith(b"r") and permissions.endswith(b"p") and b"[v" not in rest:
                start, _, end = place.partition(b"-")
                yield int(start, 16), int(end, 16), permissions[1:2] == b"w"


def _spans(areas: list[tuple[int, int, bool]]) -> Iterator[tuple[int, int]]:
    """Yield begin and end of the neighbourhoods that areas lie in: to read a gap costs less than to read once more."""
    begin, until = areas[0][0], areas[0][1]
    for start, end, _ in areas[1:]:
        if start - until > _GAP_MAX:
            yield begin, until
            begin = start
        until = end
    yield begin, until


def _taken(before: memoryview, after: memoryview, wanted: int) -> Iterator[int]:
    """Yield the numbers of the entries that have all these bits after, and had not before."""
    for number, (early, late) in enumerate(zip(before, after, strict=True)):
        if late & wanted == wanted and early & wanted != wanted:
            yield number


def _runs(numbers: Iterator[int]) -> Iterator[tuple[int, int]]:
    """Yield first and count of each run of numbers that follow one another."""
    first = last = -2
    for number in numbers:
        if number != last + 1:
            if first >= 0:
                yield first, last + 1 - first
            first = number
        last = number
    if first >= 0:
        yield first, last + 1 - first


def _windows(numbers: Iterator[int], page: int) -> Iterator[int]:
    """Yield one page of each neighbourhood that is in memory: a fault for one page maps what is there around it (fault_around_bytes)."""
    last = -1
    for number in numbers:
        if (page + number) // _AROUND != last:
            last = (page + number) // _AROUND
            yield page + number


def _call(ranges: bytes, advice: int) -> Iterator[Call]:
    count = min(len(ranges) // _RANGE.size, RANGES_MAX)
    if count:
        # The arguments keep the memory alive.
        memory = ctypes.create_string_buffer(ranges, len(ranges))
        yield _PROCESS_MADVISE, _PIDFD_SELF, ctypes.cast(memory, ctypes.c_void_p), count, advice, None
