"""The handler of `cases`, which can also do to its standard streams what one should not."""

import fcntl
import os
import subprocess
import sys

import cases
from cases import serve

from poold import Connection

__all__ = ["serve"]

print("imported")


def attempt(what: object) -> str:
    """Call it; return the name of the error, or "done"."""
    try:
        what()  # type: ignore[operator]
    except OSError as error:
        return type(error).__name__
    return "done"


def damage(_: Connection, argument: str) -> str:
    """Try to truncate, read and seek both streams."""
    tried = []
    for fd in (1, 2):
        tried += [
            attempt(lambda fd=fd: os.ftruncate(fd, 0)),
            attempt(lambda fd=fd: os.read(fd, 1)),
            attempt(lambda fd=fd: os.lseek(fd, 0, os.SEEK_SET)),
            attempt(lambda fd=fd: os.close(os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_TRUNC))) if argument else "done",
        ]
    return " ".join(tried)


def unblock(_: Connection, argument: str) -> str:
    """Switch both streams to O_NONBLOCK."""
    for fd in (1, 2):
        os.set_blocking(fd, False)
    return "done"


def raw(_: Connection, argument: str) -> str:
    """Write these bytes as they are."""
    os.write(2, bytes.fromhex(argument))
    return "done"


def pour(_: Connection, argument: str) -> str:
    """Print so many lines of a hundred characters."""
    for number in range(int(argument)):
        print(f"{number:08d} {'x' * 90}")
    return "done"


def pour_raw(_: Connection, argument: str) -> str:
    """Write so many lines of a hundred characters without Python's help."""
    for number in range(int(argument)):
        os.write(1, f"{number:08d} {'y' * 90}\n".encode())
    return "done"


def flags(_: Connection, argument: str) -> str:
    """Return the flags of the stream's open file."""
    return str(fcntl.fcntl(2, fcntl.F_GETFL))


def leave_printing(_: Connection, argument: str) -> str:
    """Leave a process behind that has the streams open; return its pid."""
    process = subprocess.Popen(["sleep", "600"], start_new_session=True)
    return str(process.pid)


def half(_: Connection, argument: str) -> str:
    """Print without an end of the line, and let it go."""
    sys.stdout.write(argument)
    sys.stdout.flush()
    return "done"


cases.ORDERS.update(
    {
        "damage": damage,
        "unblock": unblock,
        "raw": raw,
        "pour": pour,
        "pour_raw": pour_raw,
        "flags": flags,
        "leave_printing": leave_printing,
        "half": half,
    }
)
