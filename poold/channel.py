"""The messages between the master and its children: mold, workers and logger.

Each channel is a SOCK_SEQPACKET pair. A message arrives whole or not at all, together with its
descriptors, and the end of one side is EOF on the other (unix(7)). The master does not trust what a
child says. The master bounds and checks each message, and applies the message to that child alone,
because each child has its own channel.

Master → mold    Order: slot, incarnation, ahead (1: no session waits for this worker yet, else 0).
                 Descriptors: the worker's end of a new channel, and its activity page unless the
                 settings name a command
Mold → master    Hello: version · Ready: threads (0 or 1) · Failed: text · Answer: the order, and
                 a pid or an errno
Master → worker  Assignment: session, family, peer, listener. Descriptor: the connection. EOF: leave
Worker → master  Report: BORN version, ready (0 or 1) · READY · ACK session · NACK session, errno ·
                 EXEC session · NOEXEC session, errno · DONE session, outcome
Master ↔ logger  the words at the end of this file

The kernel adds the worker's pid to each report (SO_PASSCRED, unix(7)).
"""

from __future__ import annotations

import _socket
import struct
from _socket import (
    AF_UNIX,
    CMSG_SPACE,
    MSG_CMSG_CLOEXEC,
    MSG_NOSIGNAL,
    MSG_TRUNC,
    SCM_CREDENTIALS,
    SCM_RIGHTS,
    SO_PASSCRED,
    SOCK_SEQPACKET,
    SOL_SOCKET,
    socketpair,
)
from enum import IntEnum

from poold.errors import ProtocolError

# The constants of the compiled module are plain integers. A session needs these for the reason that
# `poold.plain` gives.
_CREDENTIALS = struct.Struct("3i")
_CREDENTIALS_SPACE = CMSG_SPACE(_CREDENTIALS.size)
_DESCRIPTOR = struct.Struct("i")
_DESCRIPTORS = struct.Struct("2i")
_DESCRIPTORS_SIZE = _DESCRIPTORS.size
_DESCRIPTORS_SPACE = CMSG_SPACE(_DESCRIPTORS_SIZE)

# The compiled module's socket has no wrapper. The wrapper of `socket` costs a worker pages at its
# birth, and the master time for each socket.
Wire = _socket.socket

# The most bytes of a report. A longer report breaks the protocol.
REPORT_MAX = 64
VERSION_MAX = 32
MOLD_TEXT_MAX = 8192
# The most messages of one child that the master reads in one turn, so that no child can keep the
# master busy. A worker that ends with more unread messages breaks the protocol.
MESSAGES_PER_TURN = 16


class WorkerWord(IntEnum):
    """The first byte of a report."""

    BORN = 1
    READY = 2
    ACK = 3
    NACK = 4
    EXEC = 5
    NOEXEC = 6
    DONE = 7


_WORDS = {int(word): word for word in WorkerWord}
_REPORT = struct.Struct("<BxxxiQ")


class Report:
    """A worker's message to the master.

    `number` is an errno. With BORN, 1 says that the worker is ready as well. With DONE, `number` is
    an `Outcome`. `pid` is the pid of the process that has sent the report, from the kernel.
    """

    __slots__ = ("number", "pid", "session", "version", "word")

    def __init__(self, word: WorkerWord, *, session: int, number: int, version: str, pid: int) -> None:
        self.word = word
        self.session = session
        self.number = number
        self.version = version
        self.pid = pid


class Outcome(IntEnum):
    """How a session ended in a worker that goes on to serve another session."""

    OK = 0
    EXIT = 1
    CLIENT_GONE = 2


def pack_report(word: int, session: int = 0, number: int = 0) -> bytes:
    """Return the bytes of a report."""
    return _REPORT.pack(word, number, session)


def pack_birth(*, ready: bool, version: str) -> bytes:
    """Return the bytes of BORN."""
    return pack_report(WorkerWord.BORN, 0, ready) + version.encode()[:VERSION_MAX]


_ASSIGNMENT = struct.Struct("<QHHIII")
_ASSIGNMENT_SIZE = _ASSIGNMENT.size


class Assignment:
    """One connection for a worker.

    `host`, `port`, `flow` and `scope` are the peer's address as accept(2) has returned it.
    `listener` is the listener's name.
    """

    __slots__ = ("family", "flow", "host", "listener", "port", "scope", "session")

    def __init__(self, *, session: int, family: int, host: str, port: int, flow: int, scope: int, listener: str) -> None:
        self.session = session
        self.family = family
        self.host = host
        self.port = port
        self.flow = flow
        self.scope = scope
        self.listener = listener

    def pack(self) -> bytes:
        """Return the bytes of the message."""
        head = _ASSIGNMENT.pack(self.session, self.family, self.port, self.flow, self.scope, len(self.host))
        return head + f"{self.host}{self.listener}".encode()


def read_assignment(data: bytes) -> tuple[int, int, str, int, int, int, str]:
    """Return the fields of an assignment, in the order of `Assignment.__init__`.

    The result is a tuple: a worker would pay for an `Assignment` that it reads only once.
    """
    session, family, port, flow, scope, length = _ASSIGNMENT.unpack_from(data)
    names = data[_ASSIGNMENT_SIZE:].decode()
    return session, family, names[:length], port, flow, scope, names[length:]


def make_pair() -> tuple[Wire, Wire]:
    """Return the two ends of a new channel: the master's and the child's. Raises OSError.

    The master's end does not block, and gets the sender's pid with each message.
    """
    master_end, child_end = socketpair(AF_UNIX, SOCK_SEQPACKET)
    master_end.setblocking(False)
    master_end.setsockopt(SOL_SOCKET, SO_PASSCRED, 1)
    return master_end, child_end


def open_wire(fd: int) -> Wire:
    """Return the end of a channel with this descriptor. The result owns the descriptor."""
    return Wire(AF_UNIX, SOCK_SEQPACKET, 0, fd)


def send_with_descriptor(wire: Wire, data: bytes, fd: int) -> None:
    """Send a message with a copy of the descriptor, which the caller keeps. Raises OSError."""
    wire.sendmsg((data,), ((SOL_SOCKET, SCM_RIGHTS, _DESCRIPTOR.pack(fd)),), MSG_NOSIGNAL)


def send_order(wire: Wire, data: bytes, worker_end: int, page_fd: int | None) -> None:
    """Send an order with the worker's end of its channel and the worker's activity page.

    `page_fd` is None where the settings name a command. The caller keeps both descriptors. Raises
    OSError.
    """
    rights = _DESCRIPTOR.pack(worker_end) if page_fd is None else _DESCRIPTORS.pack(worker_end, page_fd)
    wire.sendmsg((data,), ((SOL_SOCKET, SCM_RIGHTS, rights),), MSG_NOSIGNAL)


def receive_with_descriptors(wire: Wire, size: int) -> tuple[bytes, tuple[int, ...]]:
    """Wait for a message with one or two descriptors, which the caller then owns.

    Return (b"", ()) at EOF. Descriptors are missing where this process is at its limit of open
    files (recvmsg(2), MSG_CTRUNC).
    """
    try:
        data, ancillary, _, _ = wire.recvmsg(size, _DESCRIPTORS_SPACE, MSG_CMSG_CLOEXEC)
    except ConnectionResetError:
        # The other side has ended with unread messages in its queue (unix(7)). That is an end as
        # well.
        return b"", ()
    if not ancillary:
        return data, ()
    # Without SO_PASSCRED, which a child's end never has, descriptors are the only ancillary data.
    rights = ancillary[0][2]
    return data, _DESCRIPTORS.unpack(rights) if len(rights) == _DESCRIPTORS_SIZE else _DESCRIPTOR.unpack(rights)


def receive_report(wire: Wire) -> Report | None:
    """Return the next report, or None at EOF.

    Raises BlockingIOError where there is no report yet, ProtocolError and OSError.
    """
    data, ancillary, flags, _ = wire.recvmsg(REPORT_MAX, _CREDENTIALS_SPACE)
    if not data and not ancillary:
        return None
    # A message of no bytes is not EOF: credentials come with each message, and not with EOF.
    if flags & MSG_TRUNC or len(data) < _REPORT.size:
        raise ProtocolError(f"a report of {len(data)} bytes or more")
    word, number, session = _REPORT.unpack_from(data)
    known = _WORDS.get(word)
    if known is None:
        raise ProtocolError(f"report {word} does not exist")
    pid = 0
    for level, kind, payload in ancillary:
        if level == SOL_SOCKET and kind == SCM_CREDENTIALS:
            pid = _CREDENTIALS.unpack_from(payload)[0]
    version = data[_REPORT.size :].decode("ascii", "replace") if known is WorkerWord.BORN else ""
    return Report(known, session=session, number=number, version=version, pid=pid)


class MoldWord(IntEnum):
    """The first byte of a mold's message."""

    HELLO = 1
    READY = 2
    FAILED = 3
    ANSWER = 4


_ORDER = struct.Struct("<III")
ORDER_SIZE = _ORDER.size
# Every version begins a mold's messages with this head: during an upgrade the new version's mold
# talks to the old version's master.
_MOLD_HEAD = struct.Struct("<B15xi")
# An answer is this head, the order and the result: a pid, or an errno as a negative number. The
# head is packed here, because the mold writes to as few pages as possible between two clones.
ANSWER_HEAD = _MOLD_HEAD.pack(MoldWord.ANSWER, 0)
ORDER_RESULT = struct.Struct("<i")


class MoldReport:
    """A mold's message to the master.

    `text` is the version (HELLO) or the reason (FAILED). `number` is the number of threads (READY).
    `answer` is slot, incarnation, pid and errno of an order (ANSWER). Of pid and errno one is 0.
    """

    __slots__ = ("answer", "number", "text", "word")

    def __init__(self, word: MoldWord, *, number: int = 0, text: str = "", answer: tuple[int, int, int, int] = (0, 0, 0, 0)) -> None:
        self.word = word
        self.number = number
        self.text = text
        self.answer = answer


def pack_order(slot: int, incarnation: int, *, ahead: bool) -> bytes:
    """Return the bytes of an order for a worker."""
    return _ORDER.pack(slot, incarnation, ahead)


def read_order(data: bytes) -> tuple[int, int, int]:
    """Return slot, incarnation and ahead of an order."""
    slot, incarnation, ahead = _ORDER.unpack(data)
    return slot, incarnation, ahead


def pack_mold_report(word: MoldWord, *, number: int = 0, text: str = "") -> bytes:
    """Return the bytes of a mold's message other than an answer."""
    return _MOLD_HEAD.pack(word, number) + text.encode("utf-8", "backslashreplace")[:MOLD_TEXT_MAX]


def receive_mold_report(wire: Wire) -> MoldReport | None:
    """Return the next message of a mold, or None at EOF.

    Raises BlockingIOError where there is no message yet, ProtocolError and OSError.
    """
    data = wire.recv(_MOLD_HEAD.size + MOLD_TEXT_MAX)
    if not data:
        return None
    if len(data) < _MOLD_HEAD.size or not MoldWord.HELLO <= data[0] <= MoldWord.ANSWER:
        raise ProtocolError(f"a mold's message {data[0]} of {len(data)} bytes does not exist")
    word, number = _MOLD_HEAD.unpack_from(data)
    rest = data[_MOLD_HEAD.size :]
    if word != MoldWord.ANSWER:
        return MoldReport(MoldWord(word), number=number, text=rest.decode("utf-8", "replace"))
    if len(rest) != ORDER_SIZE + ORDER_RESULT.size:
        raise ProtocolError(f"an answer of {len(rest)} bytes")
    (slot, incarnation, _), (made,) = _ORDER.unpack_from(rest), ORDER_RESULT.unpack_from(rest, ORDER_SIZE)
    return MoldReport(MoldWord.ANSWER, answer=(slot, incarnation, max(0, made), max(0, -made)))


# The words between master and logger are the same in every version. The logger sends LOGGER_READY,
# and later the number of lines that it could not write, packed by LOST. The master sends the format
# of the log ("text" or "json"). LOGGER_LEAVE tells the logger to write all lines that have come,
# and to end.
LOGGER_READY = b"ready"
LOGGER_LEAVE = b"leave"
LINES_LOST = struct.Struct("<I")
LOGGER_WORD_MAX = 64
