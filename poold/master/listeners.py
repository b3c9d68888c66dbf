"""The listeners and the gate: while it is open they are watched, while it is closed newcomers wait in the kernel's backlog."""

import errno
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from poold.address import Endpoint
from poold.log import log
from poold.master.loop import Loop
from poold.master.sessions import Accepted
from poold.master.sockdiag import unix_queue
from poold.master.sockets import Opened, address
from poold.scoreboard import ACCEPT_ERRORS, ACCEPTED, ACCEPTING, BACKLOG, BACKLOG_KNOWN, BACKLOG_LIMIT, NOT_ACCEPTING_SINCE, Counters

# Accepts of one listener in one turn, so that a busy one holds up neither signals nor the others.
ACCEPTS_MAX = 16
# How long to leave accept alone when the kernel is out of something: no other event would say that it has it again.
PAUSE = 0.1
SHORTAGES = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
# What belongs to one client that has gone wrong before it was accepted (accept(2), "Error handling"); the next one is tried.
PASSING = {
    errno.ECONNABORTED,
    errno.EPROTO,
    errno.ENETDOWN,
    errno.ENOPROTOOPT,
    errno.EHOSTDOWN,
    errno.ENONET,
    errno.EHOSTUNREACH,
    errno.EOPNOTSUPP,
    errno.ENETUNREACH,
    errno.EPERM,
    errno.ETIMEDOUT,
}


@dataclass(slots=True, eq=False)
class Listening:
    """One open listener; `number` is its cell in the counters."""

    opened: Opened
    name: str
    number: int
    family: int


class Listeners:
    """The open listeners, and whether they are watched."""

    def __init__(self, *, loop: Loop, counters: Counters) -> None:
        self._loop = loop
        self._counters = counters
        self._open: list[Listening] = []
        self._watched = False
        self._pause_until = 0.0
        # Asked before each accept; told of each connection.
        self.may_accept: Callable[[], bool] = lambda: False
        self.on_accepted: Callable[[Accepted], object] = lambda accepted: accepted.socket.close()

    def add(self, opened: Opened, name: str) -> Listening:
        """Take over an open socket. Raises LookupError when too many names have been used."""
        listening = Listening(opened, name, self._counters.listener(name), int(opened.socket.family))
        self._open.append(listening)
        return listening

    def gate(self, open: bool) -> None:
        """Watch the listeners, or stop; again changes nothing."""
        open = open and self._loop.clock() >= self._pause_until
        if open == self._watched:
            return
        self._watched = open
        cells = self._counters.cells
        cells[ACCEPTING] = open
        cells[NOT_ACCEPTING_SINCE] = 0 if open else int(self._loop.clock() * 1_000_000)
        for listening in self._open:
            if open:
                self._loop.watch(listening.opened.socket, partial(self._accept, listening))
            else:
                self._loop.unwatch(listening.opened.socket)
        # Whoever came first last time comes last now: with room for one only, one busy listener would always get it.
        self._open.append(self._open.pop(0))

    def _accept(self, listening: Listening) -> None:
        for _ in range(ACCEPTS_MAX):
            if not self._watched or not self.may_accept():
                return
            try:
                accepted, raw = listening.opened.socket.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if not self._survived(listening, error):
                    return
                continue
            if listening.family == socket.AF_UNIX:
                peer = Endpoint.unix_peer(accepted)
            else:
                peer = Endpoint.of(listening.family, raw)
            self._counters.cells[ACCEPTED[listening.number]] += 1
            self.on_accepted(Accepted(accepted, listening.name, listening.number, peer, self._loop.clock()))

    def _survived(self, listening: Listening, error: OSError) -> bool:
        """Count an error of accept and say whether to try again at once."""
        number = error.errno or 0
        name = errno.errorcode.get(number, "other")
        self._counters.cells[ACCEPT_ERRORS.get(name, ACCEPT_ERRORS["other"])] += 1
        if number in PASSING:
            return True
        log.warning("accept_error", listener=listening.name, errno=name, pause_seconds=PAUSE)
        self._pause_until = self._loop.clock() + PAUSE
        self._loop.at(self._pause_until, lambda: None)
        self.gate(False)
        return False

    def describe(self) -> list[dict[str, str]]:
        """Return name and address of each open listener."""
        return [{"name": listening.name, "address": address(listening.opened.socket)} for listening in self._open]

    def measure(self) -> None:
        """Write down how full the kernel's queues are."""
        cells = self._counters.cells
        for listening in self._open:
            queued = queue(listening.opened.socket)
            cells[BACKLOG_KNOWN[listening.number]] = queued is not None
            cells[BACKLOG[listening.number]], cells[BACKLOG_LIMIT[listening.number]] = queued or (0, 0)

    def close(self) -> None:
        """Close every listener, and remove the socket files that are ours."""
        if self._watched:
            self.gate(False)
        for listening in self._open:
            listening.opened.close()
            self._counters.cells[BACKLOG_KNOWN[listening.number]] = 0
        self._open.clear()


def queue(listening: socket.socket) -> tuple[int, int] | None:
    """Return how many connections wait for accept, and how many may (Linux: tcpi_unacked and tcpi_sacked of a TCP listener)."""
    if listening.family == socket.AF_UNIX:
        return unix_queue(listening)
    info = listening.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    # struct tcp_info: eight bytes, then rto, ato, snd_mss, rcv_mss, unacked, sacked.
    depth, limit = struct.unpack_from("II", info, 24)
    return depth, limit
