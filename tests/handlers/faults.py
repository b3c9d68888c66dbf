"""A handler that breaks rules when its client asks it to; everything else is as in `cases`."""

import os
import signal
import socket
import stat

import cases
from cases import serve

from poold import Connection

__all__ = ["serve"]


def channels() -> list[socket.socket]:
    """Return duplicates of what this process has of poold's own channels: they are its only sockets of this type."""
    found: dict[int, socket.socket] = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            status = os.fstat(int(name))
        except OSError:
            # It was that of the listing.
            continue
        # A duplicate may have got the number of the listing.
        if stat.S_ISSOCK(status.st_mode) and status.st_ino not in found:
            found[status.st_ino] = socket.socket(fileno=os.dup(int(name)))
    return [end for end in found.values() if end.type == socket.SOCK_SEQPACKET]


def tell(_: Connection, argument: str) -> str:
    """Say these bytes on the worker's channel, so many times, or until nobody listens."""
    message, _, times = argument.partition(" ")
    (channel,) = channels()
    try:
        for _ in range(int(times or 1)):
            channel.send(bytes.fromhex(message), socket.MSG_NOSIGNAL)
    except OSError as error:
        return type(error).__name__
    return "told"


def tell_rights(_: Connection, argument: str) -> str:
    """Send descriptors along with a word."""
    (channel,) = channels()
    socket.send_fds(channel, [bytes.fromhex(argument)], [0] * 200)
    return "told"


def count_term(connection: Connection, argument: str) -> str:
    """Tell the client of each TERM, and do not leave."""
    signal.signal(signal.SIGTERM, lambda *_: connection.socket.sendall(b"term\n"))
    return "ok"


def raise_long(_: Connection, argument: str) -> None:
    """Raise an error whose text is long, and is not text."""
    raise ValueError("\x1b[31m\r\n\0\u202e" * 50_000)


def recurse(connection: Connection, argument: str) -> None:
    """Come to the end of the stack."""
    recurse(connection, argument)


def close_everything(_: Connection, argument: str) -> None:
    """Close every descriptor, as a program does that becomes a daemon."""
    os.closerange(0, 1024)


cases.ORDERS.update(
    {
        "tell": tell,
        "tell_rights": tell_rights,
        "count_term": count_term,
        "raise_long": raise_long,
        "recurse": recurse,
        "close_everything": close_everything,
    }
)
