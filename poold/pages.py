"""Two shared memories that workers see: the phase page and their own activity page.

Loaded by the mold, so it imports little. `phase` is one page that the master writes; the mold maps it read-only, once for all its
workers. An activity page is a memory file of one worker's own: nobody but that worker and the master ever has a descriptor of it, and
its seals let nobody cut it or make it longer. A worker writes to it when it has something to say, which most never have. What the
master reads there (`poold.master.pool.activity`) is gossip: it may change that session's own fate and nothing else.

One page of a file that all workers share would not do: mremap(2) with an old size of 0, or growing, and remap_file_pages(2) reach
the neighbours of a page that is mapped, without any descriptor.

Phase page:     0 draining (8 bytes: 0 or 1)                       8 tracebacks are left out (8 bytes: 0 or 1)
Activity page:  0 broken pipe left the handler (8 bytes: 0 or 1)   8 deadline asked for (double, CLOCK_MONOTONIC, 0 = none)
                16 length of the status text (8 bytes)             24 the text, UTF-8, at most 200 bytes
                224 the session that says it (8 bytes): a worker may serve another one next
"""

import ctypes
import errno
import os
import struct

PAGE = os.sysconf("SC_PAGE_SIZE")
STATUS_MAX = 200
# Broken pipe, deadline, length and text of the status, session.
ACTIVITY = struct.Struct(f"<QdQ{STATUS_MAX}sQ")
# fcntl(2): the file keeps its size, and its seals.
_F_GET_SEALS = 1034
ACTIVITY_SEALS = 0x1 | 0x2 | 0x4  # F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW

_PROT_READ, _PROT_WRITE, _MAP_SHARED = 1, 2, 1
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_FAILED = ctypes.c_void_p(-1).value


def mapped(fd: int, *, size: int = PAGE, writable: bool = False) -> memoryview:
    """Map a shared memory for the rest of this process's life; raise OSError. What lies behind the file's end is fatal to touch.

    Not the module mmap: its objects keep a duplicate of the descriptor (before Python 3.13 always), and a serving worker must
    have none but its connection, an exporter none but its sockets.
    """
    protection = _PROT_READ | (_PROT_WRITE if writable else 0)
    address = _libc.mmap(None, size, protection, _MAP_SHARED, fd, 0)
    if address == _FAILED:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return memoryview((ctypes.c_ubyte * size).from_address(address)).cast("B")


class Phase:
    """The master's side of the phase page."""

    def __init__(self, fd: int) -> None:
        self._map = mapped(fd, writable=True)

    def drain(self) -> None:
        """Tell every worker that a drain has begun."""
        self._map[0:8] = (1).to_bytes(8, "little")

    def hush(self, on: bool) -> None:
        """Tell every worker whether to leave out why its handler failed: there are enough of these for now."""
        self._map[8:16] = int(on).to_bytes(8, "little")


class PhaseView:
    """A worker's side of the phase page, mapped by its mold."""

    def __init__(self, fd: int) -> None:
        self._map = mapped(fd)

    def draining(self) -> bool:
        """Say whether a drain has begun."""
        return self._map[0] != 0

    def hushed(self) -> bool:
        """Say whether the master wants to hear no reason why handlers fail."""
        return self._map[8] != 0


class Activity:
    """What one session says on its worker's page. `fd` is the page's descriptor, which stays the worker's."""

    def __init__(self, fd: int, session: int) -> None:
        self._fd = fd
        self._session = session
        self._gone = False
        self._deadline = 0.0
        self._status = b""

    def client_gone(self) -> None:
        """Note that a broken pipe or a reset left the handler. Raises OSError as `_publish`."""
        self._gone = True
        self._publish()

    def extend_deadline(self, at: float) -> None:
        """Ask for a deadline not before `at` (CLOCK_MONOTONIC). Raises OSError as `_publish`."""
        self._deadline = at
        self._publish()

    def set_status(self, text: str) -> None:
        """Show a text in `poold ps`. Raises OSError as `_publish`."""
        self._status = text.encode("utf-8", "replace")[:STATUS_MAX]
        self._publish()

    def _publish(self) -> None:
        """Write all of it at once. Raises OSError where the handler has closed the page's descriptor."""
        # The handler may have a file of its own at this number by now. Its seals tell the page from anything else.
        if _libc.fcntl(self._fd, _F_GET_SEALS, 0) != ACTIVITY_SEALS:
            raise OSError(errno.EBADF, "the descriptor of the activity page was closed")
        status = self._status
        os.pwrite(self._fd, ACTIVITY.pack(self._gone, self._deadline, len(status), status, self._session), 0)
