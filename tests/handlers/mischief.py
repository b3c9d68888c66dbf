"""The handler of `cases`, in a mold that was spoilt by its import, and with more to ask for.

Words in $MISCHIEF say what the import does; files in $MISCHIEF_FOLDER cause one mishap each.
"""

import os
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

import cases
from cases import serve

from poold import Connection

__all__ = ["serve"]

WORDS = os.environ.get("MISCHIEF", "").split()
FOLDER = Path(os.environ.get("MISCHIEF_FOLDER", "/nonexistent"))
KEPT: list[Any] = []


def die_young() -> None:
    """End a clone before the first line of poold's own runs in it, once for each file."""
    for file in FOLDER.glob("die-young-*"):
        try:
            file.unlink()
        except FileNotFoundError:
            # A sibling took it.
            continue
        os._exit(0)


def leave_orphan(number: int) -> int:
    """Make a process that ends with this status when nobody is left here who could wait for it; return its pid."""
    reader, writer = os.pipe()
    middle = os.fork()
    if middle == 0:
        orphan = os.fork()
        if orphan == 0:
            os._exit(number)
        os.write(writer, str(orphan).encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(middle, 0)
    with open(reader) as file:
        return int(file.read())


def program(_: Connection, argument: str) -> str:
    """Start a program without any care, and return its pid."""
    KEPT.append(subprocess.Popen(argument.split(), close_fds=False, restore_signals=False))
    return str(KEPT[-1].pid)


def output(_: Connection, argument: str) -> str:
    """Run a program without any care, and return the line it prints."""
    done = subprocess.run(argument.split(), close_fds=False, restore_signals=False, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.strip()


cases.ORDERS.update(
    {
        "orphan": lambda _, argument: str(leave_orphan(int(argument))),
        "program": program,
        "output": output,
        "wakeup": lambda _, argument: str(signal.set_wakeup_fd(-1)),
    }
)

os.register_at_fork(after_in_child=die_young)
if "catch-term" in WORDS:
    signal.signal(signal.SIGTERM, lambda number, frame: None)
if "wakeup" in WORDS:
    KEPT.extend(socket.socketpair())
    KEPT[0].setblocking(False)
    signal.set_wakeup_fd(KEPT[0].fileno())
if "orphan" in WORDS:
    leave_orphan(3)
while "hang" in WORDS:
    signal.pause()
