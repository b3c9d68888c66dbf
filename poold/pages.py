"""Two shared memories that workers see: the phase page and their own activity page.

Loaded by the mold, so it imports little. `phase` is one page that the master writes; the mold maps it read-only, once for all its
workers. `activity` has one page a slot: a worker maps its own (mmap(2), offset) when it has something to say, which most never have.
What the master reads there is gossip: it may change that session's own fate and nothing else.

Phase page:     0 draining (8 bytes: 0 or 1)
Activity page:  0 broken pipe left the handler (8 bytes: 0 or 1)   8 deadline asked for (double, CLOCK_MONOTONIC, 0 = none)
                16 length of the status text (8 bytes)             24 the text, UTF-8, at most 200 bytes
                224 pid of the worker whose page it is (8 bytes): the rest counts only for that one
"""

import ctypes
import os
import struct

PAGE = os.sysconf("SC_PAGE_SIZE")
STATUS_AT = 24
STATUS_MAX = 200
OWNER_AT = STATUS_AT + STATUS_MAX
_DOUBLE = struct.Struct("<d")

_PROT_READ, _PROT_WRITE, _MAP_SHARED = 1, 2, 1
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_FAILED = ctypes.c_void_p(-1).value


def _mapped(fd: int, *, size: int = PAGE, offset: int = 0, writable: bool = False) -> memoryview:
    """Map a shared memory for the rest of this process's life; raise OSError.

    Not the module mmap: its objects keep a duplicate of the descriptor (before Python 3.13 always), and a serving worker must
    have none but its connection.
    """
    protection = _PROT_READ | (_PROT_WRITE if writable else 0)
    address = _libc.mmap(None, size, protection, _MAP_SHARED, fd, offset)
    if address == _FAILED:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return memoryview((ctypes.c_ubyte * size).from_address(address)).cast("B")


class Phase:
    """The master's side of the phase page."""

    def __init__(self, fd: int) -> None:
        self._map = _mapped(fd, writable=True)

    def drain(self) -> None:
        """Tell every worker that a drain has begun."""
        self._map[0:8] = (1).to_bytes(8, "little")


class PhaseView:
    """A worker's side of the phase page, mapped by its mold."""

    def __init__(self, fd: int) -> None:
        self._map = _mapped(fd)

    def draining(self) -> bool:
        """Say whether a drain has begun."""
        return self._map[0] != 0


class Activity:
    """A worker's own page. Its slot may have had another worker before, so the page is wiped first and then signed."""

    def __init__(self, fd: int, slot: int) -> None:
        self._map = _mapped(fd, offset=slot * PAGE, writable=True)
        self._map[0 : OWNER_AT + 8] = bytes(OWNER_AT + 8)
        self._map[OWNER_AT : OWNER_AT + 8] = os.getpid().to_bytes(8, "little")

    def client_gone(self) -> None:
        """Note that a broken pipe or a reset left the handler."""
        self._map[0:8] = (1).to_bytes(8, "little")

    def extend_deadline(self, at: float) -> None:
        """Ask for a deadline not before `at` (CLOCK_MONOTONIC)."""
        self._map[8:16] = _DOUBLE.pack(at)

    def set_status(self, text: str) -> None:
        """Show a text in `poold ps`."""
        encoded = text.encode("utf-8", "replace")[:STATUS_MAX]
        self._map[16:24] = bytes(8)
        self._map[STATUS_AT : STATUS_AT + len(encoded)] = encoded
        self._map[16:24] = len(encoded).to_bytes(8, "little")


class ActivityView:
    """Everybody's pages, read as gossip; the address space for every slot is reserved once."""

    def __init__(self, fd: int, slots: int) -> None:
        self._map = _mapped(fd, size=slots * PAGE)

    def _signed(self, slot: int, pid: int) -> bool:
        at = slot * PAGE + OWNER_AT
        return int.from_bytes(self._map[at : at + 8], "little") == pid

    def client_gone(self, slot: int, pid: int) -> bool:
        """Say whether the worker in this slot noted that its client had gone."""
        return self._map[slot * PAGE] != 0 and self._signed(slot, pid)

    def deadline(self, slot: int, pid: int) -> float:
        """Return the deadline that the worker in this slot asks for, 0.0 for none."""
        at: float = _DOUBLE.unpack_from(self._map, slot * PAGE + 8)[0]
        return at if 0 <= at < float("inf") and self._signed(slot, pid) else 0.0

    def status(self, slot: int, pid: int) -> str:
        """Return the status text of the worker in this slot."""
        if not self._signed(slot, pid):
            return ""
        at = slot * PAGE
        length = min(int.from_bytes(self._map[at + 16 : at + 24], "little"), STATUS_MAX)
        text = bytes(self._map[at + STATUS_AT : at + STATUS_AT + length]).decode("utf-8", "replace")
        return "".join(c for c in text if c.isprintable())
