"""A worker's life: born, ready, handed a connection, serve, exit.

What the flowchart of a concurrent server asks of a child is here: it holds no listening socket (a mold never had one), serves,
closes the accepted socket and exits, and never goes back to accept. It leaves by os._exit alone, behind one barrier, so that
neither an exception nor an exit handler of the mold's ever runs in it.

Descriptors while serving: 0, 1, 2, the connection and its activity page; with `connections_per_child` other than 1 also the channel.
"""

from __future__ import annotations

import errno
import gc
import os
import signal
import socket
import sys
import time
from _signal import SIG_DFL  # type: ignore[import-not-found] # no stubs; the module signal makes enumerations of everything
from _signal import signal as set_disposition
from gc import enable as collect_garbage
from os import close
from socket import socket as Socket  # noqa: N812 -- as a name of its own: a module on the way would be another page to copy

from poold import __version__, channel
from poold.address import Endpoint
from poold.channel import Outcome, Wire, Word, read_assignment, read_order, receive_with, report
from poold.connection import Connection
from poold.log import log, trace
from poold.pages import Activity
from poold.sandbox import die_with
from poold.stream import flush
from poold.title import show, titled
from poold.worker import adapters

TYPE_CHECKING = False
if TYPE_CHECKING:  # without loading typing, whose weight every worker would carry
    from collections.abc import Callable, Mapping
    from typing import Any, NoReturn

    from poold.pages import PhaseView

# Room for an address and the longest name of a listener; up to 512 bytes the interpreter has the memory at hand.
ASSIGNMENT_MAX = 448

# As plain numbers: looking an enumeration's member up, and converting it, touches several pages.
_SIGPIPE = int(signal.SIGPIPE)
_AF_UNIX, _AF_INET = int(socket.AF_UNIX), int(socket.AF_INET)
_SOCK_STREAM, _SOCK_SEQPACKET = int(socket.SOCK_STREAM), int(socket.SOCK_SEQPACKET)
_MSG_NOSIGNAL = int(socket.MSG_NOSIGNAL)
_ACK, _NACK, _DONE = int(Word.ACK), int(Word.NACK), int(Word.DONE)
_OK, _EXIT, _CLIENT_GONE = int(Outcome.OK), int(Outcome.EXIT), int(Outcome.CLIENT_GONE)
_SPARE = titled("spare")


def live(worker: Worker, order: bytes, fd: int, page: int = -1) -> None:
    """Be the worker of this order until the end of the process; `fd` is its end of the channel to the master, `page` its activity page.

    To be called in the clone.
    """
    code = 70
    try:
        worker.page = page
        code = worker.live(order, fd)
    except SystemExit as leaving:
        code = _exit_code(leaving)
    except BaseException as error:
        # Nothing may climb out of the clone into the mold's code. poold's own fault: the channel ends before READY or ACK,
        # and the master acts on that, not on this exit status.
        set_disposition(_SIGPIPE, nothing)
        log.error("worker_failed", error=type(error).__name__, traceback=trace(error))
    finally:
        _leave(worker.leave, code)


def _leave(leave: Callable[[int], object], code: int) -> None:
    """End this process, whatever a handler has left behind: its signal handlers may raise at any moment, also in here."""
    left = False
    while not left:
        try:
            leave(code)
            left = True
        except BaseException:
            # Not out of here, where the mold's code would go on in this process.
            code = 70


def _say(end: Wire, message: bytes) -> None:
    try:
        end.send(message, _MSG_NOSIGNAL)
    except (BrokenPipeError, ConnectionResetError):
        # The master has let go of this worker, or is gone: whatever it was given is not its own to serve.
        os._exit(0)


def _exit_code(leaving: SystemExit) -> int:
    """Return the exit status that sys.exit() asked for, as the interpreter would; but what was not 0 is not 0 when it is cut (exit(3)).

    The code may be an object of any kind: the methods called are those of int, and not its own.
    """
    code = leaving.code
    if code is None:
        return 0
    try:
        if isinstance(code, int):
            return int.__and__(code, 0xFF) or int.__ne__(code, 0) * 1
        print(code, file=sys.stderr)
    except BaseException:
        # It cannot be shown, or is not what it says it is: an error of the handler's, as anything that is no number.
        return 1
    return 1


class Worker:
    """The worker that every clone of a mold will be; also what its connections ask questions of (`poold.connection.Desk`).

    Made in the mold, with all that its clones have in common: `mold` is a descriptor of the mold's own, which they close; `phase` the phase
    page; `given` how many descriptors come with an order. `handler` is what its import gave. A clone's own is `page`, the descriptor of its
    activity page.
    """

    __slots__ = (
        "_activity",
        "_channel",
        "_session",
        "_title",
        "born",
        "command",
        "connections",
        "given",
        "handler",
        "leave",
        "master",
        "mold",
        "name",
        "options",
        "page",
        "phase",
        "ready",
        "reset",
        "setsid",
        "settings",
        "take_pages",
    )

    def __init__(self, *, master: int, mold: int, phase: PhaseView, settings: Mapping[str, Any]) -> None:
        self.master = master
        self.mold = mold
        self.phase = phase
        self.settings = settings
        self.handler: adapters.Serve | None = None
        # What every worker looks at, made before the clone.
        self.name = titled(settings["name"])
        self.connections: int = settings["connections_per_child"]
        self.options: Mapping[str, Any] = settings["options"]
        self.command: list[str] | None = settings["command"]
        self.ready = bool(settings["preload"] or self.command is not None)
        self.born = channel.born(ready=self.ready, version=__version__)
        # A program has nothing to say on a page.
        self.given = 1 if self.command is not None else 2
        # What a warm-up must not do. `reset` is what SIGPIPE does to a spare: what it does to any process, but not to the mold.
        self.reset: Callable[[int, object], object] | int = SIG_DFL
        self.setsid: Callable[[], object] = os.setsid
        self.leave: Callable[[int], object] = os._exit
        # Takes the pages that will be needed, while nobody waits for them.
        self.take_pages: Callable[[], object] = _no_pages
        # What is a clone's own.
        self.page = -1
        self._session = 0
        self._channel: Wire
        self._title = ""
        self._activity: Activity | None = None

    def live(self, order: bytes, fd: int) -> int:
        """Become a process of one's own, serve until the master closes the channel or the last connection is served; return the status."""
        set_disposition(_SIGPIPE, self.reset)
        _, _, ahead = read_order(order)
        if ahead:
            self.take_pages()
        close(self.mold)
        setsid = self.setsid
        setsid()
        if not die_with(self.master):
            return 0
        show(_SPARE)
        self._channel = end = Wire(_AF_UNIX, _SOCK_SEQPACKET, 0, fd)
        _say(end, self.born)
        if not self.ready:
            self._import()
        left = self.connections
        while (connection := self.take()) is not None:
            left -= 1
            if self.command is not None:
                self._execute(connection, self.command)
            code, outcome = self.serve(connection, left == 0)
            if left == 0:
                return code
            _say(end, report(_DONE, connection.id, outcome))
            show(_SPARE)
        return 0

    def _import(self) -> None:
        set_disposition(_SIGPIPE, nothing)
        try:
            self.handler = adapters.load(self.settings)
        except BaseException as error:  # user code may raise anything; the worker is stillborn, and this says why
            log.error("handler_import_failed", reason=f"{type(error).__name__}: {error}", traceback=trace(error))
            os._exit(_exit_code(error) if isinstance(error, SystemExit) else 1)
        flush()
        set_disposition(_SIGPIPE, self.reset)
        # The import may have set one, which would wake whoever has the other end; and what ends this process with its master.
        signal.set_wakeup_fd(-1)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        if not die_with(self.master):
            os._exit(0)
        gc.freeze()
        _say(self._channel, report(Word.READY))

    def take(self) -> Connection | None:
        """Wait for a connection; None: there will be none any more."""
        end = self._channel
        while True:
            data, fds = receive_with(end, ASSIGNMENT_MAX)
            if not data:
                return None
            session, family, host, port, flow, scope, listener = read_assignment(data)
            if fds:
                break
            # What made the kernel drop it.
            _say(end, report(_NACK, session, errno.EMFILE))
        accepted = Socket(family, _SOCK_STREAM, 0, fds[0])
        peer: Endpoint | tuple[str, int]
        if family == _AF_INET:
            # The most frequent one, without what the others need.
            peer, shown = (host, port), f"{host}:{port}"
        else:
            peer = Endpoint.unix_peer(accepted) if family == _AF_UNIX else Endpoint.of(family, (host, port, flow, scope))
            shown = str(peer)
        self._session, self._activity = session, None
        self._title = title = f"{self.name} {shown}"
        show(title)
        return Connection(accepted, session, peer, listener, self.options, self)

    def serve(self, connection: Connection, last: bool) -> tuple[int, int]:
        """Acknowledge a connection and serve it to its end; return the exit status it asks for and its `Outcome`."""
        handler = self.handler
        assert handler is not None
        # Before the first byte is read: until then the master can give the client to another worker.
        _say(self._channel, report(_ACK, connection.id))
        if last:
            self._channel.close()
        # A handler expects BrokenPipeError, as everywhere in Python. A function that does nothing gives it that, and unlike
        # SIG_IGN it is not passed on to programs that the handler starts.
        set_disposition(_SIGPIPE, nothing)
        collect_garbage()
        ended = 0, _OK
        try:
            handler(connection)
            connection.close()
        except BaseException as error:  # whatever it is, it ends this session and nothing else
            ended = self._failed(connection, error)
        flush()
        return ended

    def hang_up(self) -> None:
        """Close what came with the order."""
        self._channel.close()
        close(self.page)

    def _failed(self, connection: Connection, error: BaseException) -> tuple[int, int]:
        """Say how a session ended that its handler did not return from, and close its connection."""
        try:
            if isinstance(error, (BrokenPipeError, ConnectionResetError)):
                self._note_client_gone()
                return 1, _CLIENT_GONE
            if isinstance(error, SystemExit):
                code = _exit_code(error)
                return code, _EXIT if code else _OK
            if not self.phase.hushed():
                self._tell(connection, error)
            return 1, _EXIT
        finally:
            try:
                connection.close()
            except OSError:
                # What the handler wrote last cannot be delivered: its client has gone.
                self._note_client_gone()
            except BaseException as second:
                # The handler has put something else in the place of what is closed here.
                log.debug("connection_not_closed", session=connection.id, error=type(second).__name__)

    def _tell(self, connection: Connection, error: BaseException) -> None:
        """Say why the handler failed."""
        log.error(
            "handler_failed",
            session=connection.id,
            peer=connection.peer,
            listener=connection.listener,
            error=type(error).__name__,
            traceback=trace(error),
        )

    def _note_client_gone(self) -> None:
        try:
            self._said().client_gone()
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

    def _said(self) -> Activity:
        """Return what this session says on its page."""
        if self._activity is None:
            self._activity = Activity(self.page, self._session)
        return self._activity

    def stopping(self) -> bool:
        """Say whether a drain has begun."""
        return self.phase.draining()

    def set_status(self, text: str) -> None:
        """Show what the session is doing."""
        self._said().set_status(text)
        show(titled(text, self._title))

    def extend_deadline(self, seconds: float) -> None:
        """Ask for time until `seconds` from now."""
        self._said().extend_deadline(time.monotonic() + seconds)


def _no_pages() -> None:
    """Take none: they come when they are needed."""


def nothing(signum: int, frame: object) -> None:
    """Do nothing."""
