"""The two shared pages that a worker sees: the phase page, and the worker's own activity page.

The mold loads this module, so this module imports little. The master writes the phase page, one for
all workers. The mold maps the phase page read-only, once for all its workers. Each worker has an
activity page, a memory file of its own. Only that worker and the master ever have a descriptor of
this file. The file's seals let no process change its size. A worker writes to its activity page
when the handler sets a status or a deadline, or when the client has gone. Most sessions write
nothing. The master does not trust the content (`poold.master.pool.activity`): a session can change
its own fate there and nothing else.

Each worker has a file of its own, because a process that maps one page of a file can map the pages
beside that page without a descriptor (mremap(2), remap_file_pages(2)).

Phase page:     0 a drain has begun (8 bytes: 0 or 1)       8 leave tracebacks out (8 bytes: 0 or 1)
Activity page:  0 a broken pipe or a reset ended the handler (8 bytes: 0 or 1)
                8 the deadline asked for (double, CLOCK_MONOTONIC, 0 = none)
                16 length of the status text (8 bytes)      24 the text, UTF-8, at most 200 bytes
                224 the session that this is about (8 bytes): a worker may serve several in turn
"""

import ctypes
import errno
import os
import struct

PAGE_SIZE = os.sysconf("SC_PAGE_SIZE")
STATUS_MAX = 200
# Broken pipe or reset, deadline, length of the status, status, session.
ACTIVITY_LAYOUT = struct.Struct(f"<QdQ{STATUS_MAX}sQ")
# fcntl(2): with these seals the file keeps its size and its seals.
_F_GET_SEALS = 1034
ACTIVITY_SEALS = 0x1 | 0x2 | 0x4  # F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW

_PROT_READ, _PROT_WRITE, _MAP_SHARED = 1, 2, 1
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_MAP_FAILED = ctypes.c_void_p(-1).value


def map_memory(fd: int, *, size: int = PAGE_SIZE, writable: bool = False) -> memoryview:
    """Map a shared memory file for the rest of this process's life. Raises OSError.

    An access behind the end of the file kills the process (mmap(2), SIGBUS). The module `mmap` is
    not used: its objects keep a duplicate of the descriptor (before Python 3.13 always). A serving
    worker must have no descriptor but its connection, an exporter none but its sockets.
    """
    protection = _PROT_READ | (_PROT_WRITE if writable else 0)
    address = _libc.mmap(None, size, protection, _MAP_SHARED, fd, 0)
    if address == _MAP_FAILED:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return memoryview((ctypes.c_ubyte * size).from_address(address)).cast("B")


class PhasePage:
    """The phase page as the master writes it."""

    def __init__(self, fd: int) -> None:
        self._map = map_memory(fd, writable=True)

    def drain(self) -> None:
        """Tell every worker that a drain has begun."""
        self._map[0:8] = (1).to_bytes(8, "little")

    def hush(self, on: bool) -> None:
        """Tell every worker whether to leave out the log of a failed handler.

        The master turns this on while many sessions fail.
        """
        self._map[8:16] = int(on).to_bytes(8, "little")


class PhaseView:
    """The phase page as a worker reads it. The mold maps the page."""

    def __init__(self, fd: int) -> None:
        self._map = map_memory(fd)

    def draining(self) -> bool:
        """Return whether a drain has begun."""
        return self._map[0] != 0

    def hushed(self) -> bool:
        """Return whether a worker leaves out the log of a failed handler."""
        return self._map[8] != 0


class ActivityWriter:
    """Writes one session's messages to the activity page of its worker.

    `fd` is the page's descriptor, which the worker keeps.
    """

    def __init__(self, fd: int, session: int) -> None:
        self._fd = fd
        self._session = session
        self._client_gone = False
        self._deadline = 0.0
        self._status = b""

    def note_client_gone(self) -> None:
        """Tell that a broken pipe or a reset has ended the handler. Raises as `_publish`."""
        self._client_gone = True
        self._publish()

    def extend_deadline(self, at: float) -> None:
        """Ask for a deadline not before `at` (CLOCK_MONOTONIC). Raises as `_publish`."""
        self._deadline = at
        self._publish()

    def set_status(self, text: str) -> None:
        """Show a text in `poold ps`. Raises as `_publish`."""
        self._status = text.encode("utf-8", "replace")[:STATUS_MAX]
        self._publish()

    def _publish(self) -> None:
        """Write the whole page at once. Raises OSError if the descriptor is closed."""
        # The handler may have opened a file of its own under this number. The seals tell the page
        # from such a file.
        if _libc.fcntl(self._fd, _F_GET_SEALS, 0) != ACTIVITY_SEALS:
            raise OSError(errno.EBADF, "the descriptor of the activity page was closed")
        status = self._status
        os.pwrite(self._fd, ACTIVITY_LAYOUT.pack(self._client_gone, self._deadline, len(status), status, self._session), 0)
