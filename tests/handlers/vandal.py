"""The handler of `cases`, in a session that reaches for its mold, and in a mold that can be made to misbehave at its next clone.

Files in $FOLDER say how: `sterile-PID` ends each clone of that mold at its first breath; `says-PID` holds messages in hexadecimal,
separated by spaces, for the mold to say to the master right after its next clone, and `child-says-PID` for that clone to say in its name.
"""

import os
import resource
import socket
import stat
from pathlib import Path

import cases
from cases import serve

from poold import Connection

__all__ = ["serve"]

FOLDER = Path(os.environ["FOLDER"])
MOLD = os.getpid()


def limit(_: Connection, argument: str) -> str:
    """Set a limit of another process of the same user."""
    pid, name, value = argument.split()
    resource.prlimit(int(pid), getattr(resource, f"RLIMIT_{name}"), (int(value), int(value)))
    return "ok"


def channel() -> socket.socket:
    """Return a duplicate of the mold's channel, its only socket while it imports this."""
    sockets = [fd for fd in range(3, 1024) if is_socket(fd)]
    return socket.socket(fileno=os.dup(sockets[0]))


def is_socket(fd: int) -> bool:
    try:
        return stat.S_ISSOCK(os.fstat(fd).st_mode)
    except OSError:
        # There is no such descriptor.
        return False


def say(file: Path) -> None:
    try:
        words = file.read_text().split()
        file.unlink()
    except FileNotFoundError:
        # There is nothing to say.
        return
    try:
        for word in words:
            CHANNEL.send(bytes.fromhex(word), socket.MSG_NOSIGNAL)
    except OSError:
        # The master has heard enough.
        return


def born() -> None:
    if (FOLDER / f"sterile-{MOLD}").exists():
        os._exit(0)
    say(FOLDER / f"child-says-{MOLD}")


CHANNEL = channel()
os.register_at_fork(after_in_child=born, after_in_parent=lambda: say(FOLDER / f"says-{MOLD}"))
cases.ORDERS["limit"] = limit
