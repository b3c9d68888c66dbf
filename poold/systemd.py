"""systemd's protocols: readiness (sd_notify(3)) and passed sockets (sd_listen_fds(3)). Functions without state but the environment.

Both are written to be implemented by the programs that use them. Notifying is best effort and never blocks: a missing or full
socket must not hold up the service.
"""

import contextlib
import os
import socket
import struct
from collections.abc import MutableMapping, Sequence

from poold.errors import ConfigError, Problem

FIRST_FD = 3


def notify(address: str, *, fds: Sequence[int] = (), **fields: str | int) -> bool:
    """Send fields (READY=1, STATUS=…) to the service manager at `address` (NOTIFY_SOCKET); say whether it took them.

    With `fds`, a copy of each goes along.
    """
    if not address:
        return False
    message = "\n".join(f"{key}={value}" for key, value in fields.items())
    name = "\0" + address[1:] if address.startswith("@") else address
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds))] if fds else []
            sender.sendmsg([message.encode()], ancillary, 0, name)
    except OSError:
        # Nobody listens, or the queue is full: the service goes on, and the manager's own timeouts speak for themselves.
        return False
    return True


def inherit_nothing() -> None:
    """Let no descriptor that this process was started with reach a child, besides the standard streams."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2:
            with contextlib.suppress(OSError):  # that of the listing is closed by now
                os.set_inheritable(int(name), False)


def listen_fds(environ: MutableMapping[str, str]) -> list[tuple[str, int]]:
    """Return the passed descriptors as (name, number), and take the variables away so that no child ever sees them.

    Sockets meant for another process (LISTEN_PID) are not ours. Raises ConfigError for a descriptor that is not open; to be called
    before this process opens any of its own, which would take its number.
    """
    pid, count, names = (environ.pop(key, "") for key in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"))
    if not pid.isdigit() or int(pid) != os.getpid() or not count.isdigit():
        return []
    given = names.split(":") if names else []
    passed = [(given[index] if index < len(given) and given[index] else "unknown", FIRST_FD + index) for index in range(int(count))]
    for name, fd in passed:
        try:
            os.fstat(fd)
        except OSError as error:
            message = f"the passed descriptor {fd} ({name}) cannot be used: {error.strerror}; a listening stream socket is needed"
            raise ConfigError([Problem("", message)]) from error
    return passed
