"""The object that a handler receives: one accepted connection. This is public API.

A handler is a function of one `Connection`. When the function returns, the session has ended well.
"""

from __future__ import annotations

import socket as socketlib

from poold.address import Endpoint

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` is not loaded: every worker would carry its memory
    import io
    from collections.abc import Mapping
    from typing import Any, Protocol

    class WorkerRequests(Protocol):
        """The requests that a connection passes to its worker."""

        def stopping(self) -> bool:
            """Return whether a drain has begun."""
            ...

        def set_status(self, text: str) -> None:
            """Show this text in `poold ps` and in the process title."""
            ...

        def extend_deadline(self, seconds: float) -> None:
            """Ask the master for a deadline that is `seconds` from now."""
            ...


class Connection:
    """One accepted connection and its facts.

    `socket` is a connected, blocking `socket.socket`. poold closes the socket when the handler has
    returned. The handler may close the socket earlier. `peer` is a `poold.address.Endpoint`,
    `listener` the listener's name. `id` is unique in the daemon's life. `options` is the table
    `[server.options]`. `tls` is the client's certificate or None.
    """

    __slots__ = ("_local", "_peer", "_reader", "_worker", "_writer", "id", "listener", "options", "socket", "tls")

    def __init__(  # noqa: PLR0917 -- keywords would cost each worker a dictionary
        self,
        socket: socketlib.socket,
        id: int,
        peer: Endpoint | tuple[str, int],
        listener: str,
        options: Mapping[str, Any],
        worker: WorkerRequests,
    ) -> None:
        self.socket = socket
        self.id = id
        # An IPv4 address stays a tuple until the handler reads `peer`. Many handlers never do.
        self._peer = peer
        self.listener = listener
        self.options = options
        self.tls: Mapping[str, Any] | None = None
        self._worker = worker
        self._local: Endpoint | None = None
        self._reader: io.BufferedReader | None = None
        self._writer: io.BufferedWriter | None = None

    @property
    def peer(self) -> Endpoint:
        """The client's end of the connection."""
        if isinstance(self._peer, tuple):
            self._peer = Endpoint.of(socketlib.AF_INET, self._peer)
        return self._peer

    @property
    def local(self) -> Endpoint:
        """The server's end, looked up on first use. Raises OSError if the socket is closed."""
        if self._local is None:
            self._local = Endpoint.of(self.socket.family, self.socket.getsockname())
        return self._local

    @property
    def reader(self) -> io.BufferedReader:
        """A buffered binary file that reads from the client, made on first use."""
        if self._reader is None:
            self._reader = self.socket.makefile("rb")
        return self._reader

    @property
    def writer(self) -> io.BufferedWriter:
        """A buffered binary file that writes to the client, made on first use.

        poold flushes the file when the handler returns.
        """
        if self._writer is None:
            self._writer = self.socket.makefile("wb")
        return self._writer

    @property
    def stopping(self) -> bool:
        """True once a drain has begun: the session has `timeouts.drain` left to finish."""
        return self._worker.stopping()

    def set_status(self, text: str) -> None:
        """Show `text` in `poold ps` and in the process title.

        Control characters are removed, and long texts are cut. Raises OSError where the handler has
        closed the descriptor of the activity page.
        """
        self._worker.set_status(text)

    def extend_deadline(self, seconds: float) -> None:
        """Move the idle and the session deadline to now + `seconds` where that is later.

        Raises as `set_status`.
        """
        self._worker.extend_deadline(seconds)

    def close(self) -> None:
        """Flush `writer` and close the connection.

        Raises what the flush raises, after everything is closed.
        """
        writer, self._writer = self._writer, None
        reader, self._reader = self._reader, None
        try:
            if writer is not None:
                writer.close()
        finally:
            if reader is not None:
                reader.close()
            self.socket.close()

    def __repr__(self) -> str:
        return f"<Connection {self.id} {self.peer} on {self.listener}>"


def ucspi_environ(*, id: int, peer: Endpoint, local: Endpoint) -> dict[str, str]:
    """Return the environment variables that describe a connection to a command.

    The names are those of UCSPI (cr.yp.to/proto/ucspi.txt). PROTO and TCPREMOTEIP… are those of
    tcpserver and s6-tcpserver, IPCREMOTEEUID… those of s6-ipcserver. Programs for xinetd read
    REMOTE_HOST and REMOTE_PORT.
    """
    if peer.family == socketlib.AF_UNIX:
        return {
            "PROTO": "IPC",
            "IPCREMOTEPID": str(peer.pid),
            "IPCREMOTEEUID": str(peer.uid),
            "IPCREMOTEEGID": str(peer.gid),
            "IPCREMOTEPATH": peer.path,
            "IPCLOCALPATH": local.path,
            "IPCCONNNUM": str(id),
        }
    return {
        "PROTO": "TCP",
        "TCPREMOTEIP": peer.host,
        "TCPREMOTEPORT": str(peer.port),
        "TCPLOCALIP": local.host,
        "TCPLOCALPORT": str(local.port),
        "TCPCONNNUM": str(id),
        "REMOTE_HOST": peer.host,
        "REMOTE_PORT": str(peer.port),
    }
