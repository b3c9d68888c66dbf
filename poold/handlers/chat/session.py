"""The loop of a chat session: one poll waits for the client, for other sessions and for SIGTERM.

The session's FIFO is also its wakeup descriptor for signals. SIGTERM therefore wakes the poll, and
the signal handler only sets a flag.
"""

import os
import select
import signal
import socket
from time import monotonic

from poold.connection import Connection
from poold.handlers.chat.member import Member
from poold.handlers.chat.options import Limits, check_options
from poold.handlers.chat.room import Seat, take_seat
from poold.handlers.chat.text import Backlog, LineSplitter

LOBBY = "lobby"
# Seconds between two looks of an idle session at `stopping`. No descriptor tells of a drain.
LOOK_SECONDS = 5.0
REFRESH_SECONDS = 3600.0
# Seconds that a client which has sent its last byte gets to read the rest.
LINGER_SECONDS = 2.0
# At least the size of a TLS record: poll does not see bytes that the TLS layer holds already.
READ_SIZE = 16384


class ClientSocket:
    """The client's socket, with calls that never wait."""

    __slots__ = ("_flags", "_not_now", "_socket")

    def __init__(self, client: socket.socket) -> None:
        self._socket = client
        # Flags, because O_NONBLOCK would apply to every process that has this connection.
        self._flags = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        self._not_now: tuple[type[OSError], ...] = (BlockingIOError,)
        if type(client) is not socket.socket:
            # An SSL socket takes no flags and has exceptions of its own for "not now". The module
            # `ssl` is large, and loaded only where TLS is used.
            from ssl import SSLWantReadError, SSLWantWriteError

            self._flags = 0
            self._not_now = (SSLWantReadError, SSLWantWriteError)
            client.setblocking(False)

    def fileno(self) -> int:
        """Return the descriptor to poll."""
        return self._socket.fileno()

    def receive(self) -> bytes | None:
        """Return what has come, nothing at the end of file, or None if nothing has come yet."""
        try:
            return self._socket.recv(READ_SIZE, self._flags)
        except self._not_now:
            return None

    def send(self, data: bytes) -> int:
        """Send what the socket takes now. Return the number of bytes."""
        try:
            return self._socket.send(data, self._flags)
        except self._not_now:
            return 0

    def restore(self) -> None:
        """Make the socket blocking again."""
        self._socket.setblocking(True)


class Termination:
    """The handler of SIGTERM: remembers that the signal has come."""

    __slots__ = ("received",)

    def __init__(self) -> None:
        self.received = False

    def __call__(self, signum: int, frame: object) -> None:
        """Set the flag. The session's loop then ends the session."""
        self.received = True


class SessionLoop:
    """The loop of one client's session."""

    __slots__ = (
        "_backlog",
        "_client",
        "_connection",
        "_drain_told",
        "_left_at",
        "_lines",
        "_member",
        "_refresh_at",
        "_seat",
        "_termination",
    )

    def __init__(self, connection: Connection, limits: Limits, seat: Seat, termination: Termination) -> None:
        self._connection = connection
        self._seat = seat
        self._termination = termination
        self._client = ClientSocket(connection.socket)
        self._lines = LineSplitter(limits.max_line)
        self._backlog = Backlog(limits.max_backlog)
        self._member = Member(seat, self._backlog, limits, connection.set_status)
        self._refresh_at = monotonic() + REFRESH_SECONDS
        self._left_at = 0.0
        self._drain_told = False

    def run(self) -> None:
        """Serve the client until the client leaves or SIGTERM comes."""
        try:
            self._member.arrive()
            while not self._finished():
                self._turn()
            if self._termination.received:
                self._member.tell("The server has ended this session.")
                self._send_backlog()
        finally:
            # In a drain all sessions leave. A goodbye from each to each would use up the drain's
            # time.
            self._member.leave(silently=self._connection.stopping)
            self._client.restore()

    def _finished(self) -> bool:
        if self._termination.received:
            return True
        unsent = self._backlog or self._seat.post.waiting()
        return self._member.gone and (not unsent or monotonic() >= self._left_at + LINGER_SECONDS)

    def _turn(self) -> None:
        """Wait once, then handle input before output: a client may leave after its last line."""
        for fd, event in self._wait():
            if fd == self._seat.fifo:
                self._read_fifo()
            elif fd != self._client.fileno():
                self._seat.post.flush(fd)
            elif event & ~select.POLLOUT and not self._member.gone:
                self._read_client()
        self._member.announce_departed()
        self._check_time()
        self._send_backlog()

    def _wait(self) -> list[tuple[int, int]]:
        poll = select.poll()
        # The FIFO comes first: lines that came before a client's command go out before the answer.
        poll.register(self._seat.fifo, select.POLLIN)
        events = (0 if self._member.gone else select.POLLIN) | (select.POLLOUT if self._backlog else 0)
        if events:
            poll.register(self._client, events)
        for fd in self._seat.post.waiting():
            poll.register(fd, select.POLLOUT)
        seconds = max(0.0, self._left_at + LINGER_SECONDS - monotonic()) if self._member.gone else LOOK_SECONDS
        return poll.poll(seconds * 1000)

    def _check_time(self) -> None:
        if self._connection.stopping and not self._drain_told:
            self._drain_told = True
            self._member.tell("The server is going down; this session will end soon.")
        if monotonic() >= self._refresh_at and not self._member.gone:
            self._refresh_at = monotonic() + REFRESH_SECONDS
            self._seat.refresh()

    def _read_client(self) -> None:
        data = self._client.receive()
        if data is None:
            return
        for line, cut in self._lines.feed(data) if data else self._lines.finish():
            if not self._member.gone:
                self._member.obey(line, cut)
        if not data:
            self._member.leave()
        self._left_at = monotonic()

    def _read_fifo(self) -> None:
        lines, lost = self._seat.receive()
        self._backlog.lost += lost
        for line in lines:
            self._backlog.add(line)

    def _send_backlog(self) -> None:
        while (chunk := self._backlog.chunk()) and (count := self._client.send(chunk)):
            self._backlog.sent(count)


def serve(connection: Connection) -> None:
    """Serve one client of the chat. After SIGTERM say goodbye, then end by that signal."""
    limits = check_options(connection.options)
    termination = Termination()
    old_handler = signal.signal(signal.SIGTERM, termination)
    try:
        seat = take_seat(limits.directory, f"guest-{connection.id}", LOBBY)
        wakeup = signal.set_wakeup_fd(seat.fifo, warn_on_full_buffer=False)
        try:
            SessionLoop(connection, limits, seat, termination).run()
        finally:
            signal.set_wakeup_fd(wakeup)
            seat.close()
    finally:
        signal.signal(signal.SIGTERM, old_handler)
        if termination.received:
            # The master then gets the status of a process that SIGTERM has ended. A worker that
            # would serve another client ends as well.
            os.kill(os.getpid(), signal.SIGTERM)
