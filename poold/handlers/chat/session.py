"""A session of the chat: its client, the others, and its end, all seen by one poll.

The one thing a reader would not guess: a session's own FIFO is also its wakeup descriptor for SIGTERM, so that one poll sees
the client, the others and the end, and the signal handler does nothing but note.
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
# How often an idle session wakes to see whether a drain has begun: nothing else would tell it.
TICK = 5.0
REFRESH = 3600.0
# What a client that has said its last word gets to take what it has not read yet.
LINGER = 2.0
# No less than a TLS record holds: poll does not see what TLS has read and not given out.
CHUNK = 16384


class Wire:
    """The client's socket, without ever waiting for it."""

    __slots__ = ("_flags", "_later", "_socket")

    def __init__(self, client: socket.socket) -> None:
        self._socket = client
        # Flags instead of O_NONBLOCK, which would hold for everybody who has this connection.
        self._flags = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        self._later: tuple[type[OSError], ...] = (BlockingIOError,)
        if type(client) is not socket.socket:
            # TLS takes no flags and has its own words for "later". Its module is heavy, and loaded only where TLS is used.
            from ssl import SSLWantReadError, SSLWantWriteError

            self._flags = 0
            self._later = (SSLWantReadError, SSLWantWriteError)
            client.setblocking(False)

    def fileno(self) -> int:
        """Return the descriptor to poll."""
        return self._socket.fileno()

    def receive(self) -> bytes | None:
        """Return what has come: nothing at the end of file, None where there is nothing yet."""
        try:
            return self._socket.recv(CHUNK, self._flags)
        except self._later:
            return None

    def send(self, data: bytes) -> int:
        """Send what is taken now, and return how much that was."""
        try:
            return self._socket.send(data, self._flags)
        except self._later:
            return 0

    def restore(self) -> None:
        """Make the socket what it was."""
        self._socket.setblocking(True)


class Termination:
    """Remembers that SIGTERM came."""

    __slots__ = ("asked",)

    def __init__(self) -> None:
        self.asked = False

    def __call__(self, signum: int, frame: object) -> None:
        """Note it; the session's loop acts."""
        self.asked = True


class Session:
    """The loop of one client's session."""

    __slots__ = ("_backlog", "_connection", "_drain_told", "_left_at", "_lines", "_member", "_refresh_at", "_seat", "_termination", "_wire")

    def __init__(self, connection: Connection, limits: Limits, seat: Seat, termination: Termination) -> None:
        self._connection = connection
        self._seat = seat
        self._termination = termination
        self._wire = Wire(connection.socket)
        self._lines = LineSplitter(limits.max_line)
        self._backlog = Backlog(limits.max_backlog)
        self._member = Member(seat, self._backlog, limits, connection.set_status)
        self._refresh_at = monotonic() + REFRESH
        self._left_at = 0.0
        self._drain_told = False

    def run(self) -> None:
        """Serve the client until it leaves or SIGTERM comes."""
        try:
            self._member.arrive()
            while not self._finished():
                self._turn()
            if self._termination.asked:
                self._member.tell("The server has ended this session.")
                self._send()
        finally:
            # In a drain everybody leaves: a goodbye from each to each would take what time is left.
            self._member.leave(silently=self._connection.stopping)
            self._wire.restore()

    def _finished(self) -> bool:
        if self._termination.asked:
            return True
        unsent = self._backlog or self._seat.post.waiting()
        return self._member.gone and (not unsent or monotonic() >= self._left_at + LINGER)

    def _turn(self) -> None:
        """Wait once, then do what there is to do: what comes in first, since a client may be gone after its last line."""
        for fd, event in self._wait():
            if fd == self._seat.fifo:
                self._receive()
            elif fd != self._wire.fileno():
                self._seat.post.flush(fd)
            elif event & ~select.POLLOUT and not self._member.gone:
                self._read()
        self._member.announce_departed()
        self._look_at_clock()
        self._send()

    def _wait(self) -> list[tuple[int, int]]:
        poll = select.poll()
        # First: what others said before a client's command comes before the answer.
        poll.register(self._seat.fifo, select.POLLIN)
        wanted = (0 if self._member.gone else select.POLLIN) | (select.POLLOUT if self._backlog else 0)
        if wanted:
            poll.register(self._wire, wanted)
        for fd in self._seat.post.waiting():
            poll.register(fd, select.POLLOUT)
        seconds = max(0.0, self._left_at + LINGER - monotonic()) if self._member.gone else TICK
        return poll.poll(seconds * 1000)

    def _look_at_clock(self) -> None:
        if self._connection.stopping and not self._drain_told:
            self._drain_told = True
            self._member.tell("The server is going down; this session will end soon.")
        if monotonic() >= self._refresh_at and not self._member.gone:
            self._refresh_at = monotonic() + REFRESH
            self._seat.refresh()

    def _read(self) -> None:
        data = self._wire.receive()
        if data is None:
            return
        for line, cut in self._lines.feed(data) if data else self._lines.finish():
            if not self._member.gone:
                self._member.obey(line, cut)
        if not data:
            self._member.leave()
        self._left_at = monotonic()

    def _receive(self) -> None:
        lines, lost = self._seat.receive()
        self._backlog.lost += lost
        for line in lines:
            self._backlog.add(line)

    def _send(self) -> None:
        while (chunk := self._backlog.chunk()) and (count := self._wire.send(chunk)):
            self._backlog.sent(count)


def serve(connection: Connection) -> None:
    """Serve one client of the chat. After SIGTERM the process says goodbye and then ends by it."""
    limits = check_options(connection.options)
    termination = Termination()
    before = signal.signal(signal.SIGTERM, termination)
    try:
        seat = take_seat(limits.directory, f"guest-{connection.id}", LOBBY)
        wakeup = signal.set_wakeup_fd(seat.fifo, warn_on_full_buffer=False)
        try:
            Session(connection, limits, seat, termination).run()
        finally:
            signal.set_wakeup_fd(wakeup)
            seat.close()
    finally:
        signal.signal(signal.SIGTERM, before)
        if termination.asked:
            # The status a parent expects of a process it ended, and it holds in a worker that would serve another client.
            os.kill(os.getpid(), signal.SIGTERM)
