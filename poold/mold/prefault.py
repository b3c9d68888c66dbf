"""Prefaulting: gives a worker its pages before the worker needs them, without a page fault each.

A clone shares every page with the mold until one of the two writes to the page. That write causes a
page fault, and the kernel copies the page. The mold knows beforehand to which pages a worker will
write (`poold.mold.scout`). For these pages there are two ways around the fault:

*The clone copies pinned pages.* A page that is pinned for input or output must stay with its owner.
A device may be writing to that page. The kernel therefore copies a pinned page during the clone,
and neither process has a fault later (Linux 5.9, mm/memory.c, copy_present_page). A page that is
registered as a buffer of an io_uring(7) stays pinned. This ring is used for nothing else. The ring
is registered with its thread (Linux 5.18, IORING_REGISTER_RING_FDS), so that mold and workers have
no descriptor of the ring.

*A spare takes pages itself*, right after the clone, if no client waits for a worker yet
(process_madvise(2), Linux 6.14). These are the pages of the libraries' text that a worker reads,
and the pages that could not be pinned.

Where the kernel allows neither, a fault provides each page.
"""

from __future__ import annotations

import ctypes
import struct
from array import array
from functools import partial
from os import close, strerror, sysconf

from poold.log import log

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` is not loaded: every worker would carry its memory
    from collections.abc import Callable, Iterator

    Call = tuple[int | bytes | None, ...]

# System calls since Linux 5.1 have one number on every architecture.
_IO_URING_SETUP, _IO_URING_REGISTER, _PROCESS_MADVISE = 425, 427, 440
_IORING_REGISTER_BUFFERS, _IORING_UNREGISTER_BUFFERS, _IORING_REGISTER_RING_FDS = 0, 1, 20
_PARAMS_SIZE = 120
# struct io_uring_rsrc_update (io_uring.h): the kernel chooses the index of the ring.
_RING_FD = struct.Struct("=IIQ")
_ANY_INDEX = 0xFFFFFFFF
# The calling process itself, without a descriptor (PIDFD_SELF, linux/pidfd.h).
_PIDFD_SELF = -10000
_MADV_POPULATE_READ, _MADV_POPULATE_WRITE = 22, 23
PAGE_SIZE = sysconf("SC_PAGE_SIZE")
# struct iovec.
RANGE = struct.Struct("NN")
_HEAD = struct.Struct("?NN")
# The most ranges that the kernel takes in one call (readv(2), IOV_MAX).
RANGES_MAX = 1024
# Where pages are parts of larger ones (large folios), a clone copies a whole folio for each pinned
# page. Above this ratio of pages copied to pages needed, the pins are taken back.
SURPLUS_MAX = 1.25

# PyDLL keeps the interpreter's lock during a call. Such a call writes to fewer pages, and none of
# these calls waits. Memory is passed as bytes or as the address of an array. For a buffer, ctypes
# makes a new class for each size, and a new class changes many pages of the heap.
_syscall = ctypes.PyDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long


class PageRanges:
    """The pages that a worker uses, as ranges packed by `RANGE`.

    A worker only reads the pages of `read`. A worker writes to the pages of `of_files`, in areas
    that map a file, and of `anonymous`, in all other areas. `huge` says whether the process has
    huge pages (AnonHugePages, proc(5)).
    """

    __slots__ = ("anonymous", "huge", "of_files", "read")

    def __init__(self) -> None:
        self.read = self.of_files = self.anonymous = b""
        self.huge = False

    def packed(self) -> bytes:
        """Return these ranges as bytes, to be sent to another process."""
        return _HEAD.pack(self.huge, len(self.read), len(self.of_files)) + self.read + self.of_files + self.anonymous

    @classmethod
    def unpacked(cls, data: bytes) -> PageRanges:
        """Return the ranges that `packed` has packed. Raises struct.error."""
        pages = cls()
        huge, read, of_files = _HEAD.unpack_from(data)
        data = data[_HEAD.size :]
        pages.huge = bool(huge)
        pages.read, pages.of_files, pages.anonymous = data[:read], data[read : read + of_files], data[read + of_files :]
        return pages

    def written(self) -> int:
        """Return the number of pages that a worker writes to."""
        sizes: list[int] = [size for _, size in RANGE.iter_unpack(self.of_files + self.anonymous)]
        return sum(sizes) // PAGE_SIZE


def probe() -> None:
    """Make each of this module's system calls once, without an effect.

    A filter of system calls may kill the caller (seccomp(2)). The observer calls this function, and
    a filter then kills the observer instead of the mold.
    """
    ring = open_ring()
    if ring >= 0:
        close(ring)
    _syscall(_IO_URING_REGISTER, -1, _IORING_REGISTER_BUFFERS, None, 0)
    populates()


def populates() -> bool:
    """Return whether this kernel can populate pages of the caller, by a call for no page."""
    answer: int = _syscall(_PROCESS_MADVISE, _PIDFD_SELF, None, 0, _MADV_POPULATE_WRITE, None)
    return answer == 0


def open_ring() -> int:
    """Return the descriptor of a new io_uring, or a number below 0 where there can be none.

    The ring stays until this thread ends, even after the descriptor is closed.
    """
    parameters = array("B", bytes(_PARAMS_SIZE))
    ring: int = _syscall(_IO_URING_SETUP, 1, ctypes.c_void_p(parameters.buffer_info()[0]))
    if ring >= 0:
        registration = array("B", _RING_FD.pack(_ANY_INDEX, 0, ring))
        if _syscall(_IO_URING_REGISTER, ring, _IORING_REGISTER_RING_FDS, ctypes.c_void_p(registration.buffer_info()[0]), 1) != 1:
            close(ring)
            return -1
    return ring


def provide(pages: PageRanges, measure_again: Callable[[], PageRanges | None]) -> Callable[[], object] | None:
    """Pin these pages for the rest of this process's life, as far as the kernel allows.

    Return a function that takes the other pages in a worker, or None where there is none to take.
    `measure_again` returns the pages that a worker has with the pins.
    """
    of_files, anonymous = pages.of_files, pages.anonymous
    # Until Linux 6.5 pages of an area that maps a file cannot be pinned (io_uring_register(2)). A
    # huge page is never pinned: each clone would copy the whole huge page.
    choices = [(of_files, anonymous)] if pages.huge else [(anonymous + of_files, b""), (anonymous, of_files)]
    rest = anonymous + of_files
    ring = open_ring()
    if ring < 0:
        log.info("pages_not_prefaulted", reason=f"io_uring: {strerror(ctypes.get_errno())}")
    else:
        try:
            rest = next((rest for pinned, rest in choices if _pin(ring, pinned, pages.written(), measure_again)), rest)
        finally:
            close(ring)
    calls = [*_populate_call(pages.read, _MADV_POPULATE_READ), *_populate_call(rest, _MADV_POPULATE_WRITE)] if populates() else []
    return partial(_make_calls, calls) if calls else None


def _make_calls(calls: list[Call]) -> None:
    """Make these system calls. Where a call fails, a fault provides each of its pages later."""
    for call in calls:
        _syscall(*call)


def _pin(ring: int, ranges: bytes, written: int, measure_again: Callable[[], PageRanges | None]) -> bool:
    """Pin these ranges, and unpin them where a worker then gets too many pages.

    Return whether the ranges are pinned. The kernel refuses more than RLIMIT_MEMLOCK allows.
    """
    count = len(ranges) // RANGE.size
    if not 0 < count <= RANGES_MAX:
        return False
    if _syscall(_IO_URING_REGISTER, ring, _IORING_REGISTER_BUFFERS, ranges, count) != 0:
        log.info("pages_not_prefaulted", reason=f"io_uring_register: {strerror(ctypes.get_errno())}")
        return False
    worthwhile = False
    try:
        measured = measure_again()
        worthwhile = measured is not None and measured.written() <= written * SURPLUS_MAX
        if measured is not None and not worthwhile:
            log.info("pages_not_prefaulted", reason=f"a worker has {measured.written()} pages, and needs {written}")
    finally:
        if not worthwhile:
            _syscall(_IO_URING_REGISTER, ring, _IORING_UNREGISTER_BUFFERS, None, 0)
    return worthwhile


def _populate_call(ranges: bytes, advice: int) -> Iterator[Call]:
    count = min(len(ranges) // RANGE.size, RANGES_MAX)
    if count:
        yield _PROCESS_MADVISE, _PIDFD_SELF, ranges, count, advice, None
