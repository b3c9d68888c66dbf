"""A handler whose import leaves a thread in the mold that speaks for the first worker, through a process of its own."""

import contextlib
import gc
import os
import socket
import struct
import threading

from poold import Connection

BORN = struct.pack("<BxxxiQ", 1, 0, 0) + b"0.0.0"


def sockets() -> set[int]:
    """Return the descriptors that are sockets."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                found.add(int(name))
    return found


# Now, because every order's descriptor has the same number: who looked while one is worked off would never see a new one.
KNOWN = sockets()


def speak() -> None:
    """Wait for the first order, and answer it from a child of the mold's."""
    # The last thing that a mold does before it takes orders.
    while gc.isenabled():
        continue
    while not (new := sockets() - KNOWN):
        continue
    channel = socket.socket(fileno=os.dup(new.pop()))
    pid = os.fork()
    if pid == 0:
        channel.send(BORN)
        os._exit(0)
    os.waitpid(pid, 0)


threading.Thread(target=speak, daemon=True).start()


def serve(connection: Connection) -> None:
    """Echo a line."""
    connection.socket.sendall(connection.reader.readline())
