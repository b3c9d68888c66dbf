"""A worker's life: born, ready, handed a connection, serve, exit.

What the flowchart of a concurrent server asks of a child is here: it holds no listening socket (a mold never had one), serves,
closes the accepted socket and exits, and never goes back to accept. It leaves by os._exit alone, behind one barrier, so that
neither an exception nor an exit handler of the mold's ever runs in it.

Descriptors while serving: 0, 1, 2 and the connection; with `connections_per_child` other than 1 also the channel.
"""

from __future__ import annotations

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
from poold.pages import Activity, PhaseView
from poold.title import set_title
from poold.worker import adapters

TYPE_CHECKING = False
if TYPE_CHECKING:  # without loading typing, whose weight every worker would carry
    from collections.abc import Mapping
    from typing import Any, NoReturn

ASSIGNMENT_MAX = 1024


class Birth:
    """What a new worker is given: its slot, its channel, descriptors of the shared pages, and what the mold has loaded.

    `altered` are the signals whose dispositions the handler's import has changed.
    """

    __slots__ = ("activity", "altered", "channel", "master", "phase", "serve", "settings", "slot")

    def __init__(
        self,
        *,
        slot: int,
        channel: socket.socket,
        master: int,
        activity: int,
        phase: int,
        altered: tuple[int, ...],
        settings: Mapping[str, Any],
        serve: adapters.Serve | None,
    ) -> None:
        self.slot = slot
        self.channel = channel
        self.master = master
        self.activity = activity
        self.phase = phase
        self.altered = altered
        self.settings = settings
        self.serve = serve


def live(birth: Birth) -> NoReturn:
    """Be a worker until the end of the process. To be called in the clone, with all signals blocked."""
    code = 70
    try:
        worker = Worker(birth)
        worker.settle()
        code = worker.run()
    except SystemExit as leaving:
        code = _exit_code(leaving)
    except BaseException as error:
        # Nothing may climb out of the clone into the mold's code. poold's own fault: the channel ends before READY or ACK,
        # and the master acts on that, not on this exit status.
        log.error("worker_failed", error=type(error).__name__, traceback=trace(error))
    finally:
        os._exit(code)


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

    def __init__(self, birth: Birth) -> None:
        self._birth = birth
        self._channel = birth.channel
        self._settings = birth.settings
        self._serve = birth.serve
        self._name: str = birth.settings["name"]
        self._title = ""
        self._activity: Activity
        self._phase: PhaseView

    def settle(self) -> None:
        """Take up life as a process of one's own, and say so: BORN, then READY when a connection can be served."""
        birth = self._birth
        for number in birth.altered:
            signal.signal(number, signal.SIG_DFL)
        # The handler's import may have set one, which would be shared with the mold.
        signal.set_wakeup_fd(-1)
        os.setsid()
        if not sandbox.die_with(birth.master):
            os._exit(0)
        self._activity = Activity(birth.activity, birth.slot)
        self._phase = PhaseView(birth.phase)
        os.close(birth.activity)
        os.close(birth.phase)
        self._say(channel.report(Word.BORN, version=__version__))
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        set_title("spare")
        if not self._settings["preload"]:
            self._import()
            gc.freeze()
        self._say(channel.report(Word.READY))

    def _import(self) -> None:
        try:
            self._serve = adapters.load(self._settings)
        except BaseException as error:  # user code may raise anything; the worker is stillborn, and this says why
            log.error("handler_import_failed", reason=f"{type(error).__name__}: {error}", traceback=trace(error))
            os._exit(_exit_code(error) if isinstance(error, SystemExit) else 1)

    def run(self) -> int:
        """Serve what is handed over until the master closes the channel or the last connection is served; return the exit status."""
        left = self._settings["connections_per_child"] or -1
        while True:
            data, fd = channel.receive_with(self._channel, ASSIGNMENT_MAX)
            if not data:
                return 0
            assignment = Assignment.unpack(data)
            if fd is None:
                self._say(channel.report(Word.NACK, assignment.session, errno.EMFILE))  # what made the kernel drop it
                continue
            connection = self._receive(assignment, fd)
            left -= 1
            if self._settings["command"] is not None:
                return self._execute(connection)
            # Before the first byte is read: until then the master can give the client to another worker.
            self._say(channel.report(Word.ACK, assignment.session))
            if left == 0:
                self._channel.close()
                return self._session(connection)[0]
            _, outcome = self._session(connection)
            self._say(channel.report(Word.DONE, assignment.session, outcome))
            set_title("spare")

    def _say(self, message: bytes) -> None:
        try:
            self._channel.send(message, socket.MSG_NOSIGNAL)
        except (BrokenPipeError, ConnectionResetError):
            # The master has let go of this worker, or is gone: whatever it was given is not its own to serve.
            os._exit(0)

    def _receive(self, assignment: Assignment, fd: int) -> Connection:
        accepted = socket.socket(assignment.family, socket.SOCK_STREAM, 0, fileno=fd)
        if assignment.family == socket.AF_UNIX:
            peer = Endpoint.unix_peer(accepted)
        elif assignment.family == socket.AF_INET6:
            peer = Endpoint.of(assignment.family, (assignment.host, assignment.port, assignment.flow, assignment.scope))
        else:
            peer = Endpoint.of(assignment.family, (assignment.host, assignment.port))
        local = Endpoint.of(assignment.family, accepted.getsockname())
        self._title = f"{self._name} {peer}"
        set_title(self._title)
        return Connection(
            accepted,
            id=assignment.session,
            peer=peer,
            local=local,
            listener=assignment.listener,
            options=self._settings["options"],
            desk=self,
        )

    def _session(self, connection: Connection) -> tuple[int, Outcome]:
        """Serve one connection to its end; return the exit status it asks for and how it ended."""
        assert self._serve is not None
        # A handler expects BrokenPipeError, as everywhere in Python. A function that does nothing gives it that, and unlike
        # SIG_IGN it is not passed on to programs that the handler starts.
        signal.signal(signal.SIGPIPE, _nothing)
        gc.enable()
        try:
            self._serve(connection)
            connection.close()
            return 0, Outcome.OK
        except (BrokenPipeError, ConnectionResetError):
            self._activity.client_gone()
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
            self._activity.client_gone()
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):
                # The log's stream is closed or full; there is nowhere to say so.
                continue

    def _execute(self, connection: Connection) -> NoReturn:
        """Become the command. Its start is the acknowledgement: the channel closes by itself when execve succeeds."""
        self._say(channel.report(Word.EXEC, connection.id))
        try:
            adapters.execute(self._settings["command"], connection)
        except OSError as error:
            self._say(channel.report(Word.NOEXEC, connection.id, error.errno or 0))
            os._exit(127)

    def stopping(self) -> bool:
        """Say whether a drain has begun."""
        return self._phase.draining()

    def set_status(self, text: str) -> None:
        """Show what the session is doing."""
        self._activity.set_status(text)
        set_title(f"{self._title} {text}")

    def extend_deadline(self, seconds: float) -> None:
        """Ask for time until `seconds` from now."""
        self._activity.extend_deadline(time.monotonic() + seconds)


def _nothing(signum: int, frame: object) -> None:
    """Do nothing."""
