"""A handler that does what its client tells it to, in Python: what a session could try that has been taken over.

A request is a line of JSON, a text that is executed; what it says by `say` comes back as a line of JSON, and so does what it raises.
"""

import ctypes
import fcntl
import json
import mmap
import os
from typing import Any

from poold import Connection

LIBC = ctypes.CDLL(None, use_errno=True)


def page() -> int:
    """Return the descriptor of this worker's activity page."""
    for name in os.listdir("/proc/self/fd"):
        try:
            if "poold-activity" in os.readlink(f"/proc/self/fd/{name}"):
                return int(name)
        except OSError:
            continue  # that of the listing
    raise LookupError("there is no page")


def tried(action: Any, *arguments: Any) -> str:
    """Do something, and return the name of what it raised, "" for nothing."""
    try:
        action(*arguments)
    except Exception as error:
        return type(error).__name__
    return ""


def called(function: str, *arguments: Any) -> int:
    """Call a function of the C library, and return its errno, 0 where it did not fail."""
    action = getattr(LIBC, function)
    action.restype = ctypes.c_void_p if function in ("mmap", "mremap") else ctypes.c_long
    answer = action(*arguments)
    return ctypes.get_errno() if answer in (-1, ctypes.c_void_p(-1).value) else 0


def fate(action: Any, *arguments: Any) -> int:
    """Do something in a forked process, and return the signal it dies of, 0 for none."""
    pid = os.fork()
    if pid == 0:
        action(*arguments)
        os._exit(0)
    return os.waitpid(pid, 0)[1] & 127


def grow_and_touch(at: int, size: int) -> None:
    """Make a mapping longer, from a page or from nothing (mremap(2)), and touch what lies behind its first page."""
    LIBC.mremap.restype = ctypes.c_void_p
    grown = LIBC.mremap(ctypes.c_void_p(at), ctypes.c_size_t(size), ctypes.c_size_t(2 * mmap.PAGESIZE), 1)
    ctypes.string_at(grown + mmap.PAGESIZE, 1)


def turn_and_touch(at: int) -> None:
    """Have a mapping show the file's second page (remap_file_pages(2)), and touch it."""
    LIBC.remap_file_pages(ctypes.c_void_p(at), ctypes.c_size_t(mmap.PAGESIZE), 0, ctypes.c_size_t(1), 0)
    ctypes.string_at(at, 1)


def serve(connection: Connection) -> None:
    """Execute each line, in one place."""
    place: dict[str, Any] = {"c": connection, "os": os, "mmap": mmap, "fcntl": fcntl, "ctypes": ctypes}
    place |= {"page": page, "tried": tried, "called": called, "fate": fate}
    place |= {"grow_and_touch": grow_and_touch, "turn_and_touch": turn_and_touch}
    for line in connection.reader:
        said: list[Any] = []
        place["say"] = said.append
        try:
            exec(json.loads(line), place)
        except Exception as error:
            said.append(f"{type(error).__name__}: {error}")
        connection.socket.sendall(json.dumps(said).encode() + b"\n")
