"""Prefaulting: pages that a worker has before it needs them, instead of by two hundred faults when its client is there.

A clone shares every page with its mold until one of the two writes to it; then there is a fault, and a copy. Two ways around it, both
for pages of which the mold knows beforehand that they will be written to (`poold.mold.scout`):

*Pinned pages are copied by the clone itself.* A page that is pinned for input or output must stay its owner's, because a device may be
writing to it; so a clone gets a copy at once, and neither of the two has a fault later (Linux 5.9, mm/memory.c, copy_present_page).
What pins pages for as long as one likes is to register them as buffers of an io_uring(7), which is not used for anything else. The
ring is registered with its thread (Linux 5.18, IORING_REGISTER_RING_FDS), so that no descriptor of it is open, in workers neither.

*A worker that nobody waits for yet takes pages itself*, right after the clone (process_madvise(2), Linux 6.14): those of the libraries'
text that it will read, and what could not be pinned.

Where neither is allowed, pages come one by one.
"""

from __future__ import annotations

import ctypes
import struct
from array import array
from functools import partial
from os import close, strerror, sysconf

from poold.log import log

TYPE_CHECKING = False
if TYPE_CHECKING:  # without loading typing, whose weight every worker would carry
    from collections.abc import Callable, Iterator

    Call = tuple[int | bytes | None, ...]

# The same numbers on every architecture: they came after Linux 5.0's unification of system call tables.
_IO_URING_SETUP, _IO_URING_REGISTER, _PROCESS_MADVISE = 425, 427, 440
_IORING_REGISTER_BUFFERS, _IORING_UNREGISTER_BUFFERS, _IORING_REGISTER_RING_FDS = 0, 1, 20
_PARAMS_SIZE = 120
# struct io_uring_rsrc_update: any index, and the ring.
_RING_FD = struct.Struct("=IIQ")
_ANY_INDEX = 0xFFFFFFFF
# The calling process, without a descriptor of it (pidfd_open(2)).
_PIDFD_SELF = -10000
_MADV_POPULATE_READ, _MADV_POPULATE_WRITE = 22, 23
PAGE = sysconf("SC_PAGE_SIZE")
# struct iovec.
RANGE = struct.Struct("NN")
_HEAD = struct.Struct("?NN")
# The kernel takes so many ranges in one call (readv(2), IOV_MAX).
RANGES_MAX = 1024
# A page that is part of a larger one (a large folio) takes all of it along to the clone: then nothing is gained.
SURPLUS_MAX = 1.25

# PyDLL, because a call that keeps the interpreter's lock touches less, and none of these waits. Memory goes to it as bytes, or as the
# address of an array: a buffer of ctypes is a new class for each size, and classes leave their marks all over the heap.
_syscall = ctypes.PyDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long


class Pages:
    """Ranges of pages, packed as `RANGE`: `read`, and written to: `of_files`, in areas that began as a file's, and `anonymous`.

    `huge` says that there are huge pages (AnonHugePages, proc(5)).
    """

    __slots__ = ("anonymous", "huge", "of_files", "read")

    def __init__(self) -> None:
        self.read = self.of_files = self.anonymous = b""
        self.huge = False

    def packed(self) -> bytes:
        """Return all of it, for another process."""
        return _HEAD.pack(self.huge, len(self.read), len(self.of_files)) + self.read + self.of_files + self.anonymous

    @classmethod
    def unpacked(cls, data: bytes) -> Pages:
        """Return what was packed. Raises struct.error."""
        pages = cls()
        huge, read, of_files = _HEAD.unpack_from(data)
        data = data[_HEAD.size :]
        pages.huge = bool(huge)
        pages.read, pages.of_files, pages.anonymous = data[:read], data[read : read + of_files], data[read + of_files :]
        return pages

    def written(self) -> int:
        """Return how many are written to."""
        sizes: list[int] = [size for _, size in RANGE.iter_unpack(self.of_files + self.anonymous)]
        return sum(sizes) // PAGE


def probe() -> None:
    """Make each of the calls, to no effect: a filter may answer one of them with death (seccomp(2)), and an observer is there for that."""
    ring = open_ring()
    if ring >= 0:
        close(ring)
    _syscall(_IO_URING_REGISTER, -1, _IORING_REGISTER_BUFFERS, None, 0)
    populates()


def populates() -> bool:
    """Say whether this kernel populates the caller's own pages: asked for none, it says whether it would."""
    answer: int = _syscall(_PROCESS_MADVISE, _PIDFD_SELF, None, 0, _MADV_POPULATE_WRITE, None)
    return answer == 0


def open_ring() -> int:
    """Return the descriptor of a new io_uring that stays until its thread ends, whoever closes the descriptor; below 0: there is none."""
    parameters = array("B", bytes(_PARAMS_SIZE))
    ring: int = _syscall(_IO_URING_SETUP, 1, ctypes.c_void_p(parameters.buffer_info()[0]))
    if ring >= 0:
        kept = array("B", _RING_FD.pack(_ANY_INDEX, 0, ring))
        if _syscall(_IO_URING_REGISTER, ring, _IORING_REGISTER_RING_FDS, ctypes.c_void_p(kept.buffer_info()[0]), 1) != 1:
            close(ring)
            return -1
    return ring


def provide(pages: Pages, look_again: Callable[[], Pages | None]) -> Callable[[], object] | None:
    """Pin what can be pinned, for as long as this process lives; return what takes the rest in a worker, or None.

    `look_again` says which pages a worker has by then.
    """
    of_files, anonymous = pages.of_files, pages.anonymous
    # Until Linux 6.5 what began as a file's cannot be pinned (io_uring_register(2)).
    choices = [(of_files, anonymous)] if pages.huge else [(anonymous + of_files, b""), (anonymous, of_files)]
    left = anonymous + of_files
    ring = open_ring()
    if ring < 0:
        log.info("pages_not_prefaulted", reason=f"io_uring: {strerror(ctypes.get_errno())}")
    else:
        try:
            left = next((left for pinned, left in choices if _pin(ring, pinned, pages.written(), look_again)), left)
        finally:
            close(ring)
    calls = [*_call(pages.read, _MADV_POPULATE_READ), *_call(left, _MADV_POPULATE_WRITE)] if populates() else []
    return partial(_take, calls) if calls else None


def _take(calls: list[Call]) -> None:
    """Make these system calls. One that fails takes nothing, and what it would have taken comes by faults."""
    for call in calls:
        _syscall(*call)


def _pin(ring: int, ranges: bytes, written: int, look_again: Callable[[], Pages | None]) -> bool:
    """Pin these ranges, and say whether they are, and workers have hardly more than the pages that they write to.

    It may be more than may be locked (RLIMIT_MEMLOCK).
    """
    count = len(ranges) // RANGE.size
    if not 0 < count <= RANGES_MAX:
        return False
    if _syscall(_IO_URING_REGISTER, ring, _IORING_REGISTER_BUFFERS, ranges, count) != 0:
        log.info("pages_not_prefaulted", reason=f"io_uring_register: {strerror(ctypes.get_errno())}")
        return False
    proved = False
    try:
        found = look_again()
        proved = found is not None and found.written() <= written * SURPLUS_MAX
        if found is not None and not proved:
            log.info("pages_not_prefaulted", reason=f"a worker has {found.written()} pages, and needs {written}")
    finally:
        if not proved:
            _syscall(_IO_URING_REGISTER, ring, _IORING_UNREGISTER_BUFFERS, None, 0)
    return proved


def _call(ranges: bytes, advice: int) -> Iterator[Call]:
    count = min(len(ranges) // RANGE.size, RANGES_MAX)
    if count:
        yield _PROCESS_MADVISE, _PIDFD_SELF, ranges, count, advice, None
