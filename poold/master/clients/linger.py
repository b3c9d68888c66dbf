"""A clean end for refused connections.

The master sends the message, shuts down its side, and waits a while for the client's side to end.
On a close() with unread bytes the kernel sends a reset, and the client loses the message that is on
the way (RFC 1122, 4.2.2.13).

What the client sends meanwhile is discarded. On TCP the kernel discards the bytes (tcp(7),
MSG_TRUNC). On a unix socket the kernel does not offer that, and the master reads the bytes into a
buffer that is never looked at.
"""

import socket
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from poold.channel import Wire
from poold.master.clients import sockets
from poold.master.document.part import Part
from poold.master.engine.deadlines import Deadline
from poold.master.engine.loop import Loop
from poold.settings.descriptors import LINGER_MAX

LINGER_SECONDS = 1.0
_DISCARDED = bytearray(65536)


@dataclass(frozen=True, kw_only=True)
class LingerPart(Part):
    """The descriptors of refused connections that have not ended yet."""

    lingering: tuple[int, ...] = ()

    def descriptors(self) -> Iterator[int]:
        """Yield these descriptors."""
        return iter(self.lingering)


class Linger:
    """Refused connections that have not ended yet."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._open: dict[Wire, Deadline] = {}

    def refuse(self, refused: Wire, message: bytes) -> None:
        """Send the message and end the connection. The socket belongs to this object from here on.

        A message of the settings (1 KiB at most) is sent whole or not at all. The empty send buffer
        of a new connection has room for the message: tcp_wmem and SO_SNDBUF cannot be set below 4
        KiB (tcp(7), socket(7)).
        """
        refused.setblocking(False)
        try:
            if message:
                refused.send(message, socket.MSG_NOSIGNAL)
            refused.shutdown(socket.SHUT_WR)
            self._loop.watch(refused, partial(self._discard, refused))
        except OSError:
            # The client has gone already, or its window is shut, or the socket cannot be watched.
            # The client has had what could be sent.
            refused.close()
            return
        self._close_later(refused)

    def save(self) -> LingerPart:
        """Return the connections that have not ended yet."""
        return LingerPart(lingering=tuple(refused.fileno() for refused in self._open))

    def restore(self, part: LingerPart) -> None:
        """Take over the connections that the previous program has refused."""
        for fd in part.lingering:
            refused = sockets.adopt_connection(fd)
            if refused is not None:
                refused.setblocking(False)
                self._loop.watch(refused, partial(self._discard, refused))
                self._close_later(refused)

    def _close_later(self, refused: Wire) -> None:
        if len(self._open) >= LINGER_MAX:
            self._close(next(iter(self._open)))
        self._open[refused] = self._loop.after(LINGER_SECONDS, partial(self._close, refused))

    def _discard(self, refused: Wire) -> None:
        if refused not in self._open:
            return
        try:
            discarded = refused.recv_into(_DISCARDED, len(_DISCARDED), socket.MSG_TRUNC)
        except BlockingIOError:
            return
        except OSError:
            # The connection was reset, so the client reads nothing more.
            discarded = 0
        if not discarded:
            self._close(refused)

    def _close(self, refused: Wire) -> None:
        self._open.pop(refused).cancel()
        self._loop.forget(refused)
        refused.close()

    def close(self) -> None:
        """Close all refused connections now."""
        self._loop.call_each(partial(self._close, refused) for refused in list(self._open))
