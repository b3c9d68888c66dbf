"""The wire between the master and its pool: orders to a mold, assignments to a worker, and what each has to say.

All are SOCK_SEQPACKET pairs: a message arrives whole or not at all, with its descriptor, and the other side's end is EOF. What
comes from a child is gossip: bounded, checked, and about that child alone, because who speaks is known by the channel.

Master → mold    Order: slot, incarnation, ahead (0 or 1: nobody waits for this worker yet); descriptors: the worker's end of a new
                 channel, and its activity page, if it is not for a program
Mold → master    Hello: version · Ready: threads (0 or 1) · Failed: text · Answer: the order, and a pid or an errno
Master → worker  Assignment: session, family, peer, listener; descriptor: the connection. EOF: leave
Worker → master  Report: BORN version, ready (0 or 1) · READY · ACK session · NACK session, errno · EXEC session ·
                 NOEXEC session, errno · DONE session, outcome
Master ↔ logger  a few words at the end of this file

The kernel's word for a worker's pid comes with every report (SO_PASSCRED, unix(7)).
"""

from __future__ import annotations

import _socket
import socket
import struct
from enum import IntEnum

from poold.errors import ProtocolError

_CREDENTIALS = struct.Struct("3i")
_CREDENTIALS_SPACE = socket.CMSG_SPACE(_CREDENTIALS.size)
_DESCRIPTOR = struct.Struct("i")
_DESCRIPTORS = struct.Struct("2i")
_DESCRIPTORS_SIZE = _DESCRIPTORS.size
_DESCRIPTORS_SPACE = socket.CMSG_SPACE(_DESCRIPTORS_SIZE)
# As plain numbers: an enumeration's member costs a worker several pages at each use.
_AF_UNIX, _SOCK_SEQPACKET, _SOL_SOCKET = int(socket.AF_UNIX), int(socket.SOCK_SEQPACKET), int(socket.SOL_SOCKET)
_SCM_RIGHTS, _SCM_CREDENTIALS = int(socket.SCM_RIGHTS), int(socket.SCM_CREDENTIALS)
_MSG_CMSG_CLOEXEC, _MSG_NOSIGNAL, _MSG_TRUNC = int(socket.MSG_CMSG_CLOEXEC), int(socket.MSG_NOSIGNAL), int(socket.MSG_TRUNC)

# The compiled socket itself: what the module socket wraps around it costs a worker pages at its birth, and the master time at each.
Wire = _socket.socket

# A report is at most this long; a longer one breaks the protocol.
REPORT_MAX = 64
VERSION_MAX = 32
MOLD_TEXT_MAX = 8192
# How many messages of one child are read in one turn, so that no child can hold the master (a flood is a broken protocol).
READS_MAX = 16


class Word(IntEnum):
    """The first byte of a report."""

    BORN = 1
    READY = 2
    ACK = 3
    NACK = 4
    EXEC = 5
    NOEXEC = 6
    DONE = 7


_WORDS = {int(word): word for word in Word}
_REPORT = struct.Struct("<BxxxiQ")


class Report:
    """What a worker says. `number` is an errno; with BORN, 1 for ready as well; with DONE, an `Outcome`.

    `pid` is the kernel's word for who says it.
    """

    __slots__ = ("number", "pid", "session", "version", "word")

    def __init__(self, word: Word, *, session: int, number: int, version: str, pid: int) -> None:
        self.word = word
        self.session = session
        self.number = number
        self.version = version
        self.pid = pid


class Outcome(IntEnum):
    """How a session ended in a worker that goes on to another one."""

    OK = 0
    EXIT = 1
    CLIENT_GONE = 2


def report(word: int, session: int = 0, number: int = 0) -> bytes:
    """Return the bytes of a report."""
    return _REPORT.pack(word, number, session)


def born(*, ready: bool, version: str) -> bytes:
    """Return the bytes of BORN."""
    return report(Word.BORN, 0, ready) + version.encode()[:VERSION_MAX]


_ASSIGNMENT = struct.Struct("<QHHIII")
_ASSIGNMENT_SIZE = _ASSIGNMENT.size


class Assignment:
    """One connection for a worker: `host` … `scope` are the peer's address as accept() gave it, `listener` the listener's name."""

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
        """Return the bytes on the wire."""
        head = _ASSIGNMENT.pack(self.session, self.family, self.port, self.flow, self.scope, len(self.host))
        return head + f"{self.host}{self.listener}".encode()


def read_assignment(data: bytes) -> tuple[int, int, str, int, int, int, str]:
    """Return what an assignment says, in the order of `Assignment.__init__`; a tuple, because a worker reads one in its whole life."""
    session, family, port, flow, scope, length = _ASSIGNMENT.unpack_from(data)
    names = data[_ASSIGNMENT_SIZE:].decode()
    return session, family, names[:length], port, flow, scope, names[length:]


def pair() -> tuple[Wire, Wire]:
    """Return the master's end, which does not block and learns who speaks, and the child's. Raises OSError."""
    ours, theirs = _socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    return ours, theirs


def wire(fd: int) -> Wire:
    """Return the end of a pair that this descriptor is, and own it."""
    return Wire(_AF_UNIX, _SOCK_SEQPACKET, 0, fd)


def send_with(end: Wire, data: bytes, fd: int) -> None:
    """Send one message with one descriptor; the caller still owns it. Raises OSError."""
    end.sendmsg((data,), ((_SOL_SOCKET, _SCM_RIGHTS, _DESCRIPTOR.pack(fd)),), _MSG_NOSIGNAL)


def send_order(end: Wire, data: bytes, theirs: int, page: int | None) -> None:
    """Send an order with the worker's end of its channel and, unless it is for a program, its page. Raises OSError."""
    rights = _DESCRIPTOR.pack(theirs) if page is None else _DESCRIPTORS.pack(theirs, page)
    end.sendmsg((data,), ((_SOL_SOCKET, _SCM_RIGHTS, rights),), _MSG_NOSIGNAL)


def receive_with(end: Wire, size: int) -> tuple[bytes, tuple[int, ...]]:
    """Wait for one message with one or two descriptors, which the caller then owns; (b"", ()) is EOF.

    Some are missing where this process is at its limit of open files (recvmsg(2), MSG_CTRUNC).
    """
    try:
        data, ancillary, _, _ = end.recvmsg(size, _DESCRIPTORS_SPACE, _MSG_CMSG_CLOEXEC)
    except ConnectionResetError:
        # The other side ended without reading all that was said to it: an end all the same (unix(7)).
        return b"", ()
    if not ancillary:
        return data, ()
    # Nothing but descriptors comes on a child's end, which has no SO_PASSCRED.
    rights = ancillary[0][2]
    return data, _DESCRIPTORS.unpack(rights) if len(rights) == _DESCRIPTORS_SIZE else _DESCRIPTOR.unpack(rights)


def receive_report(end: Wire) -> Report | None:
    """Return the next report; None is EOF. Raises BlockingIOError when there is none, ProtocolError, OSError."""
    data, ancillary, flags, _ = end.recvmsg(REPORT_MAX, _CREDENTIALS_SPACE)
    if not data and not ancillary:
        return None
    # A message of no bytes is not the end: it comes with its sender's credentials.
    if flags & _MSG_TRUNC or len(data) < _REPORT.size:
        raise ProtocolError(f"a report of {len(data)} bytes or more")
    word, number, session = _REPORT.unpack_from(data)
    known = _WORDS.get(word)
    if known is None:
        raise ProtocolError(f"report {word} does not exist")
    pid = 0
    for level, kind, payload in ancillary:
        if level == _SOL_SOCKET and kind == _SCM_CREDENTIALS:
            pid = _CREDENTIALS.unpack_from(payload)[0]
    version = data[_REPORT.size :].decode("ascii", "replace") if known is Word.BORN else ""
    return Report(known, session=session, number=number, version=version, pid=pid)


class MoldWord(IntEnum):
    """The first byte of what a mold says."""

    HELLO = 1
    READY = 2
    FAILED = 3
    ANSWER = 4


_ORDER = struct.Struct("<III")
ORDER_SIZE = _ORDER.size
# What a mold says begins with it in every version: an upgrade's mold speaks to a master of the version before.
_MOLD_HEAD = struct.Struct("<B15xi")
# An answer is this head, the order, and what was made: a pid, or an errno below 0. Bytes, because a mold writes to as few pages as it can
# between two clones.
ANSWER_HEAD = _MOLD_HEAD.pack(MoldWord.ANSWER, 0)
MADE = struct.Struct("<i")


class MoldReport:
    """What a mold says: `text` a version or a reason, `number` its threads (READY), `answer` what became of an order (ANSWER).

    An answer is slot, incarnation, pid and errno; both of the last are 0 where they say nothing.
    """

    __slots__ = ("answer", "number", "text", "word")

    def __init__(self, word: MoldWord, *, number: int = 0, text: str = "", answer: tuple[int, int, int, int] = (0, 0, 0, 0)) -> None:
        self.word = word
        self.number = number
        self.text = text
        self.answer = answer


def order(slot: int, incarnation: int, *, ahead: bool) -> bytes:
    """Return the bytes of an order for a worker."""
    return _ORDER.pack(slot, incarnation, ahead)


def read_order(data: bytes) -> tuple[int, int, int]:
    """Return slot, incarnation and ahead of an order."""
    slot, incarnation, ahead = _ORDER.unpack(data)
    return slot, incarnation, ahead


def mold_report(word: MoldWord, *, number: int = 0, text: str = "") -> bytes:
    """Return the bytes of what a mold says, but for its answers."""
    return _MOLD_HEAD.pack(word, number) + text.encode("utf-8", "backslashreplace")[:MOLD_TEXT_MAX]


def receive_mold_report(end: Wire) -> MoldReport | None:
    """Return what a mold said next; None is EOF. Raises BlockingIOError when there is nothing, ProtocolError, OSError."""
    data = end.recv(_MOLD_HEAD.size + MOLD_TEXT_MAX)
    if not data:
        return None
    if len(data) < _MOLD_HEAD.size or not MoldWord.HELLO <= data[0] <= MoldWord.ANSWER:
        raise ProtocolError(f"a mold's message {data[0]} of {len(data)} bytes does not exist")
    word, number = _MOLD_HEAD.unpack_from(data)
    rest = data[_MOLD_HEAD.size :]
    if word != MoldWord.ANSWER:
        return MoldReport(MoldWord(word), number=number, text=rest.decode("utf-8", "replace"))
    if len(rest) != ORDER_SIZE + MADE.size:
        raise ProtocolError(f"an answer of {len(rest)} bytes")
    (slot, incarnation, _), (made,) = _ORDER.unpack_from(rest), MADE.unpack_from(rest, ORDER_SIZE)
    return MoldReport(MoldWord.ANSWER, answer=(slot, incarnation, max(0, made), max(0, -made)))


# Between master and logger, the same in every version. Logger → master: LOGGER_READY; then how many lines it could not write, in LOST.
# Master → logger: the format that lines are to have; LOGGER_LEAVE: write what has come by now, and end.
LOGGER_READY = b"ready"
LOGGER_LEAVE = b"leave"
LOST = struct.Struct("<I")
LOGGER_WORD_MAX = 64
