"""systemd's protocols: readiness (sd_notify(3)) and passed sockets (sd_listen_fds(3)).

These functions keep no state but the environment. systemd documents both protocols for programs to
implement. A notification never blocks and may fail: a missing or full socket must not hold up the
service.
"""

import contextlib
import os
import socket
import struct
from collections.abc import MutableMapping, Sequence

from poold.errors import ConfigError, Problem

FIRST_FD = 3


def notify(address: str, *, fds: Sequence[int] = (), **fields: str | int) -> bool:
    """Send fields (READY=1, STATUS=…) to the service manager at `address` (NOTIFY_SOCKET).

    A copy of each descriptor in `fds` goes along. Return whether the manager's socket has taken the
    message.
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
        # The socket is missing or full. The service goes on, and the manager acts by its own
        # timeouts.
        return False
    return True


def inherit_nothing() -> None:
    """Make all inherited descriptors but 0, 1 and 2 close-on-exec, so that no child gets them."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2:
            with contextlib.suppress(OSError):  # the descriptor of the listing itself is closed by now
                os.set_inheritable(int(name), False)


def listen_fds(environ: MutableMapping[str, str]) -> list[tuple[str, int]]:
    """Return the passed descriptors as (name, number), and remove the variables from `environ`.

    No child then sees the variables. Sockets that are meant for another process (LISTEN_PID) are
    left out. The call comes before this process opens any file, which could get the number of a
    missing descriptor. Raises ConfigError for a descriptor that is not open.
    """
    pid, count, names = (environ.pop(key, "") for key in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"))
    if not pid.isdigit() or int(pid) != os.getpid() or not count.isdigit():
        return []
    labels = names.split(":") if names else []
    passed = [(labels[index] if index < len(labels) and labels[index] else "unknown", FIRST_FD + index) for index in range(int(count))]
    for name, fd in passed:
        try:
            os.fstat(fd)
        except OSError as error:
            message = f"the passed descriptor {fd} ({name}) cannot be used: {error.strerror}; a listening stream socket is needed"
            raise ConfigError([Problem("", message)]) from error
    return passed
