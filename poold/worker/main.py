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
from os import close, setsid

from poold import __version__, channel, sandbox
from poold.address import Endpoint
from poold.channel import Outcome, Word, read_assignment, receive_with, report
from poold.connection import Connection
from poold.log import log, trace
from poold.pages import Activity
from poold.title import show, titled
from poold.worker import adapters

TYPE_CHECKING = False
if TYPE_CHECKING:  # without loading typing, whose weight every worker would carry
    from collections.abc import Mapping
    from typing import Any, NoReturn

    from poold.channel import Wire
    from poold.pages import PhaseView

# Room for an address and the longest name of a listener; up to 512 bytes the interpreter has the memory at hand.
ASSIGNMENT_MAX = 448

# As plain numbers: looking an enumeration's member up, and converting it, touches several pages.
_SIGPIPE = int(signal.SIGPIPE)
_AF_UNIX, _AF_INET, _SOCK_STREAM = int(socket.AF_UNIX), int(socket.AF_INET), int(socket.SOCK_STREAM)
_MSG_NOSIGNAL = int(socket.MSG_NOSIGNAL)
_ACK, _NACK, _DONE = int(Word.ACK), int(Word.NACK), int(Word.DONE)
_OK, _EXIT, _CLIENT_GONE = int(Outcome.OK), int(Outcome.EXIT), int(Outcome.CLIENT_GONE)
_SPARE = titled("spare")


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
        "connections",
        "file",
        "master",
        "mold",
        "options",
        "phase",
        "ready",
        "serve",
        "settings",
        "title",
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
        self.title = titled(settings["name"])
        self.connections: int = settings["connections_per_child"]
        self.options: Mapping[str, Any] = settings["options"]
        self.command: list[str] | None = settings["command"]
        self.ready = bool(settings["preload"] or self.command is not None)
        self.born = channel.born(ready=self.ready, version=__version__)


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
        close(birth.mold)
        setsid()
        end = settle(birth, fd)
        if not birth.ready:
            _import(birth)
            _say(end, report(Word.READY))
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
    show(_SPARE)
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
        birth = self._birth
        left = birth.connections or -1
        while (connection := self.take()) is not None:
            left -= 1
            if birth.command is not None:
                self._execute(connection, birth.command)
            code, outcome = self.serve(connection, left == 0)
            if left == 0:
                return code
            _say(self._channel, report(_DONE, connection.id, outcome))
            show(_SPARE)
        return 0

    def take(self) -> Connection | None:
        """Wait for a connection; None: there will be none any more."""
        while True:
            data, fd = receive_with(self._channel, ASSIGNMENT_MAX)
            if not data:
                return None
            session, family, host, port, flow, scope, listener = read_assignment(data)
            if fd is not None:
                break
            # What made the kernel drop it.
            _say(self._channel, report(_NACK, session, errno.EMFILE))
        accepted = socket.socket(family, _SOCK_STREAM, 0, fd)
        if family == _AF_INET:
            peer = Endpoint(family, (host, port), host, port)
        elif family == _AF_UNIX:
            peer = Endpoint.unix_peer(accepted)
        else:
            peer = Endpoint.of(family, (host, port, flow, scope))
        self._title = f"{self._birth.title} {peer}"
        show(self._title)
        return Connection(accepted, session, peer, listener, self._birth.options, self)

    def serve(self, connection: Connection, last: bool) -> tuple[int, int]:
        """Acknowledge a connection and serve it to its end; return the exit status it asks for and its `Outcome`."""
        serve = self._birth.serve
        assert serve is not None
        # Before the first byte is read: until then the master can give the client to another worker.
        _say(self._channel, report(_ACK, connection.id))
        if last:
            self._channel.close()
        # A handler expects BrokenPipeError, as everywhere in Python. A function that does nothing gives it that, and unlike
        # SIG_IGN it is not passed on to programs that the handler starts.
        _signal.signal(_SIGPIPE, _nothing)
        gc.enable()
        ended = 0, _OK
        try:
            serve(connection)
            connection.close()
        except BaseException as error:  # whatever it is, it ends this session and nothing else
            ended = self._failed(connection, error)
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):
                # The log's stream is closed or full; there is nowhere to say so.
                continue
        return ended

    def _failed(self, connection: Connection, error: BaseException) -> tuple[int, int]:
        """Say how a session ended that its handler did not return from, and close its connection."""
        try:
            if isinstance(error, (BrokenPipeError, ConnectionResetError)):
                self._note_client_gone()
                log.info("client_gone", session=connection.id, peer=connection.peer, listener=connection.listener)
                return 1, _CLIENT_GONE
            if isinstance(error, SystemExit):
                code = _exit_code(error)
                return code, _EXIT if code else _OK
            log.error(
                "handler_failed",
                session=connection.id,
                peer=connection.peer,
                listener=connection.listener,
                error=type(error).__name__,
                traceback=trace(error),
            )
            return 1, _EXIT
        finally:
            try:
                connection.close()
            except OSError:
                # What the handler wrote last cannot be delivered: its client has gone.
                self._note_client_gone()

    def _note_client_gone(self) -> None:
        try:
            self._activity().client_gone()
        except OSError:
            # The handler has closed the descriptor: nobody hears of it, and the session ends as `exit`.
            return

    def _execute(self, connection: Connection, command: list[str]) -> NoReturn:
        """Become the command. Its start is the acknowledgement: the channel closes by itself when execve succeeds."""
        _say(self._channel, report(Word.EXEC, connection.id))
        try:
            adapters.execute(command, connection)
        except OSError as error:
            _say(self._channel, report(Word.NOEXEC, connection.id, error.errno or 0))
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
        show(titled(text, self._title))

    def extend_deadline(self, seconds: float) -> None:
        """Ask for time until `seconds` from now."""
        self._activity().extend_deadline(time.monotonic() + seconds)


def _nothing(signum: int, frame: object) -> None:
    """Do nothing."""
