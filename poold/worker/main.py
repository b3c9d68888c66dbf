"""A worker's life: born, ready, handed a connection, serve, exit.

What the flowchart of a concurrent server asks of a child is here: it holds no listening socket (a mold never had one), serves,
closes the accepted socket and exits, and never goes back to accept. It leaves by os._exit alone, behind one barrier, so that
neither an exception nor an exit handler of the mold's ever runs in it.

Descriptors while serving: 0, 1, 2 and the connection; the activity pages, until the worker has mapped its own; with
`connections_per_child` other than 1 also the channel.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found] # no stubs; the module signal makes enumerations of everything, at each session
import errno
import gc
import os
import signal
import socket
import sys
import time

from poold import __version__, channel, sandbox
from poold.address import Endpoint
from poold.channel import Assignment, Outcome, Word
from poold.connection import Connection
from poold.log import log, trace
from poold.pages import Activity
from poold.title import set_title
from poold.worker import adapters

TYPE_CHECKING = False
if TYPE_CHECKING:  # without loading typing, whose weight every worker would carry
    from collections.abc import Mapping
    from typing import Any, NoReturn

    from poold.channel import Wire
    from poold.pages import PhaseView

ASSIGNMENT_MAX = 1024

# As plain numbers: an enumeration's member is converted at each use.
_SIGPIPE = int(signal.SIGPIPE)
_AF_UNIX, _AF_INET6, _SOCK_STREAM = int(socket.AF_UNIX), int(socket.AF_INET6), int(socket.SOCK_STREAM)
_MSG_NOSIGNAL = int(socket.MSG_NOSIGNAL)


class Birth:
    """What the workers of a mold have in common.

    `mold` is a descriptor of the mold's own, which they close; `activity` one of the activity pages; `phase` the phase page. `serve` is
    what the handler's import gave.
    """

    __slots__ = (
        "activity",
        "altered",
        "born",
        "command",
        "file",
        "master",
        "mold",
        "name",
        "options",
        "phase",
        "ready",
        "serve",
        "settings",
    )

    def __init__(self, *, master: int, mold: int, activity: int, phase: PhaseView, settings: Mapping[str, Any]) -> None:
        self.master = master
        self.mold = mold
        self.activity = activity
        self.file = file_of(activity)
        self.phase = phase
        self.settings = settings
        self.serve: adapters.Serve | None = None
        # What every worker looks at, made before the clone.
        self.name: str = settings["name"]
        self.options: Mapping[str, Any] = settings["options"]
        self.command: list[str] | None = settings["command"]
        self.ready = bool(settings["preload"] or self.command is not None)
        self.born = channel.report(Word.BORN, number=self.ready, version=__version__)


def file_of(fd: int) -> tuple[int, int]:
    """Return what tells an open file from any other."""
    info = os.fstat(fd)
    return info.st_dev, info.st_ino


def live(birth: Birth, slot: int, fd: int) -> NoReturn:
    """Be the worker in this slot until the end of the process; `fd` is its end of the channel to the master.

    To be called in the clone.
    """
    code = 70
    try:
        os.close(birth.mold)
        os.setsid()
        end = settle(birth, fd)
        if not birth.ready:
            _import(birth)
            _say(end, channel.report(Word.READY))
        code = Worker(birth, slot, end).run()
    except SystemExit as leaving:
        code = _exit_code(leaving)
    except BaseException as error:
        # Nothing may climb out of the clone into the mold's code. poold's own fault: the channel ends before READY or ACK,
        # and the master acts on that, not on this exit status.
        log.error("worker_failed", error=type(error).__name__, traceback=trace(error))
    finally:
        os._exit(code)


def settle(birth: Birth, fd: int) -> Wire:
    """Take up life as a process of one's own, and say so: BORN, and READY with it when a connection can be served.

    Every object that is touched for the first time is a page copied from the mold; this touches few.
    """
    if not sandbox.die_with(birth.master):
        os._exit(0)
    set_title("spare")
    end = channel.wire(fd)
    _say(end, birth.born)
    return end


def _import(birth: Birth) -> None:
    try:
        birth.serve = adapters.load(birth.settings)
    except BaseException as error:  # user code may raise anything; the worker is stillborn, and this says why
        log.error("handler_import_failed", reason=f"{type(error).__name__}: {error}", traceback=trace(error))
        os._exit(_exit_code(error) if isinstance(error, SystemExit) else 1)
    # It may have set one, which would wake whoever has the other end.
    signal.set_wakeup_fd(-1)
    gc.freeze()


def _say(end: Wire, message: bytes) -> None:
    try:
        end.send(message, _MSG_NOSIGNAL)
    except (BrokenPipeError, ConnectionResetError):
        # The master has let go of this worker, or is gone: whatever it was given is not its own to serve.
        os._exit(0)


def _exit_code(leaving: SystemExit) -> int:
    """Return the exit status that sys.exit() asked for, as the interpreter would."""
    if leaving.code is None:
        return 0
    if isinstance(leaving.code, int):
        return leaving.code & 0xFF
    print(leaving.code, file=sys.stderr)
    return 1


class Worker:
    """One worker; also what its connections ask questions of (`poold.connection.Desk`)."""

    __slots__ = ("_birth", "_channel", "_page", "_slot", "_title")

    def __init__(self, birth: Birth, slot: int, end: Wire) -> None:
        self._birth = birth
        self._slot = slot
        self._channel = end
        self._title = ""
        self._page: Activity | None = None

    def run(self) -> int:
        """Serve what is handed over until the master closes the channel or the last connection is served; return the exit status."""
        left = self._birth.settings["connections_per_child"] or -1
        while (connection := self.take()) is not None:
            left -= 1
            if self._birth.command is not None:
                self._execute(connection, self._birth.command)
            code, outcome = self.serve(connection, left == 0)
            if left == 0:
                return code
            _say(self._channel, channel.report(Word.DONE, connection.id, outcome))
            set_title("spare")
        return 0

    def take(self) -> Connection | None:
        """Wait for a connection; None: there will be none any more."""
        while True:
            data, fd = channel.receive_with(self._channel, ASSIGNMENT_MAX)
            if not data:
                return None
            assignment = Assignment.unpack(data)
            if fd is not None:
                return self._receive(assignment, fd)
            # What made the kernel drop it.
            _say(self._channel, channel.report(Word.NACK, assignment.session, errno.EMFILE))

    def serve(self, connection: Connection, last: bool) -> tuple[int, Outcome]:
        """Acknowledge a connection and serve it to its end; return the exit status it asks for and how it ended."""
        # Before the first byte is read: until then the master can give the client to another worker.
        _say(self._channel, channel.report(Word.ACK, connection.id))
        if last:
            self._channel.close()
        return self._session(connection)

    def _receive(self, assignment: Assignment, fd: int) -> Connection:
        family = assignment.family
        accepted = socket.socket(family, _SOCK_STREAM, 0, fd)
        if family == _AF_UNIX:
            peer = Endpoint.unix_peer(accepted)
        elif family == _AF_INET6:
            peer = Endpoint.of(family, (assignment.host, assignment.port, assignment.flow, assignment.scope))
        else:
            peer = Endpoint.of(family, (assignment.host, assignment.port))
        self._title = f"{self._birth.name} {peer}"
        set_title(self._title)
        return Connection(accepted, assignment.session, peer, assignment.listener, self._birth.options, self)

    def _session(self, connection: Connection) -> tuple[int, Outcome]:
        serve = self._birth.serve
        assert serve is not None
        # A handler expects BrokenPipeError, as everywhere in Python. A function that does nothing gives it that, and unlike
        # SIG_IGN it is not passed on to programs that the handler starts.
        _signal.signal(_SIGPIPE, _nothing)
        gc.enable()
        try:
            serve(connection)
            connection.close()
            return 0, Outcome.OK
        except (BrokenPipeError, ConnectionResetError):
            self._note_client_gone()
            log.info("client_gone", session=connection.id, peer=connection.peer, listener=connection.listener)
            return 1, Outcome.CLIENT_GONE
        except SystemExit as leaving:
            code = _exit_code(leaving)
            return code, Outcome.EXIT if code else Outcome.OK
        except BaseException as error:  # whatever it is, it ends this session and nothing else
            log.error(
                "handler_failed",
                session=connection.id,
                peer=connection.peer,
                listener=connection.listener,
                error=type(error).__name__,
                traceback=trace(error),
            )
            return 1, Outcome.EXIT
        finally:
            self._flush(connection)

    def _flush(self, connection: Connection) -> None:
        """Let go of everything the session may still hold back."""
        try:
            connection.close()
        except OSError:
            # What the handler wrote last cannot be delivered: its client has gone.
            self._note_client_gone()
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):
                # The log's stream is closed or full; there is nowhere to say so.
                continue

    def _note_client_gone(self) -> None:
        try:
            self._activity().client_gone()
        except OSError:
            # The handler has closed the descriptor: nobody hears of it, and the session ends as `exit`.
            return

    def _execute(self, connection: Connection, command: list[str]) -> NoReturn:
        """Become the command. Its start is the acknowledgement: the channel closes by itself when execve succeeds."""
        _say(self._channel, channel.report(Word.EXEC, connection.id))
        try:
            adapters.execute(command, connection)
        except OSError as error:
            _say(self._channel, channel.report(Word.NOEXEC, connection.id, error.errno or 0))
            os._exit(127)

    def _activity(self) -> Activity:
        """Return this worker's own page. Raises OSError when the handler has closed its descriptor before it was needed."""
        if self._page is None:
            fd = self._birth.activity
            # The handler may have closed it, and have a file of its own at this number.
            if file_of(fd) != self._birth.file:
                raise OSError(errno.EBADF, "the descriptor of the activity page was closed")
            self._page = Activity(fd, self._slot)
            os.close(fd)
        return self._page

    def stopping(self) -> bool:
        """Say whether a drain has begun."""
        return self._birth.phase.draining()

    def set_status(self, text: str) -> None:
        """Show what the session is doing."""
        self._activity().set_status(text)
        set_title(f"{self._title} {text}")

    def extend_deadline(self, seconds: float) -> None:
        """Ask for time until `seconds` from now."""
        self._activity().extend_deadline(time.monotonic() + seconds)


def _nothing(signum: int, frame: object) -> None:
    """Do nothing."""
