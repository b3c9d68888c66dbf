"""The life of a worker: be cloned, report READY, wait for a connection, serve the connection, exit.

A worker holds no listening socket, because a mold never has one. A worker never accepts, and ends
by os._exit alone. One barrier catches every exception, so that the mold's code and the mold's exit
handlers never run in a worker.

Descriptors of a serving worker: 0, 1, 2, the connection, and the memory file of the activity page.
With `connections_per_child` other than 1 the channel is open as well.
"""

from __future__ import annotations

import errno
import gc
import os
import signal
import sys
import time
from _signal import SIG_DFL, raise_signal  # type: ignore[import-not-found] # no stubs; `signal` makes enumerations of these
from _signal import signal as set_disposition
from gc import enable as collect_garbage
from os import close
from socket import socket as Socket  # noqa: N812 -- an attribute of the module would be another page to copy

from poold import __version__, channel
from poold.address import Endpoint
from poold.channel import Wire, WorkerWord, pack_report, read_assignment, read_order, receive_with_descriptors
from poold.connection import Connection
from poold.log import log, trace
from poold.pages import ActivityWriter
from poold.plain import ACK, AF_INET, AF_UNIX, CLIENT_GONE, DONE, EXIT, MSG_NOSIGNAL, NACK, OK, SIGPIPE, SOCK_SEQPACKET, SOCK_STREAM
from poold.sandbox import terminate_with_parent
from poold.stream import flush
from poold.title import format_title, show_title
from poold.worker import adapters

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` is not loaded: every worker would carry its memory
    from collections.abc import Callable, Mapping
    from typing import Any, NoReturn

    from poold.pages import PhaseView

# The bytes of an assignment: an address and the longest name of a listener. For at most 512 bytes
# the interpreter takes the memory from its own pools.
ASSIGNMENT_MAX = 448

# The tries to exit before the process kills itself.
EXIT_TRIES = 1000
_SPARE_TITLE = format_title("spare")


def run_worker(worker: Worker, order: bytes, channel_fd: int, page_fd: int = -1) -> None:
    """Be the worker of this order until the process ends. The mold calls this in the clone.

    `channel_fd` is the worker's end of the channel to the master. `page_fd` is the memory file of
    the activity page.
    """
    status = 70
    try:
        worker.page_fd = page_fd
        status = worker.run(order, channel_fd)
    except SystemExit as leaving:
        status = _exit_status(leaving)
    except BaseException as error:
        # The mold's code must not go on in the clone. This is a fault of poold's own. The master
        # acts on the channel's end before READY or ACK, not on this exit status.
        set_disposition(SIGPIPE, do_nothing)
        log.error("worker_failed", error=type(error).__name__, traceback=trace(error))
    finally:
        _end_process(worker.exit_process, status)


def _end_process(exit_process: Callable[[int], object], status: int) -> None:
    """End this process, whatever user code raises: the mold's code must not go on in the clone."""
    for _ in range(EXIT_TRIES):
        try:
            exit_process(status)
            return
        except BaseException:
            status = 70
    # The handler has put a function in the place of `exit_process` that only raises.
    raise_signal(9)  # SIGKILL


def _send_or_exit(wire: Wire, message: bytes) -> None:
    try:
        wire.send(message, MSG_NOSIGNAL)
    except (BrokenPipeError, ConnectionResetError):
        # The master has closed the channel or is dead. If this worker holds a connection, the
        # master may give that client to another worker.
        os._exit(0)


def _exit_status(leaving: SystemExit) -> int:
    """Return the exit status that sys.exit() has asked for, as the interpreter would return it.

    The kernel cuts a status to eight bits (exit(3)). A number other than 0 that would be cut to 0
    becomes 1. The code may be any object: the methods of int are called, never the object's own.
    """
    code = leaving.code
    if code is None:
        return 0
    try:
        if isinstance(code, int):
            return int.__and__(code, 0xFF) or int.__ne__(code, 0) * 1
        print(code, file=sys.stderr)
    except BaseException:
        # The object's own methods have raised. The status is 1, as for any code but a number.
        return 1
    return 1


class Worker:
    """The worker that each clone of a mold becomes, and the `WorkerRequests` of its connections.

    The mold makes this object with all that its clones share. `mold_fd` is a descriptor of the
    mold's, which each clone closes. `phase` is the phase page. `descriptors_per_order` says how
    many descriptors come with an order. `handler` is the function that the handler's import has
    given. `page_fd`, the descriptor of the activity page, belongs to the clone.
    """

    __slots__ = (
        "_activity",
        "_channel",
        "_session_id",
        "_session_title",
        "birth_report",
        "command",
        "connections_per_child",
        "descriptors_per_order",
        "exit_process",
        "handler",
        "master_pid",
        "mold_fd",
        "options",
        "page_fd",
        "phase",
        "ready_at_birth",
        "setsid",
        "settings",
        "spare_sigpipe",
        "take_pages",
        "title_prefix",
    )

    def __init__(self, *, master_pid: int, mold_fd: int, phase: PhaseView, settings: Mapping[str, Any]) -> None:
        self.master_pid = master_pid
        self.mold_fd = mold_fd
        self.phase = phase
        self.settings = settings
        self.handler: adapters.Serve | None = None
        # Every worker reads these. The mold makes them once, before the first clone.
        self.title_prefix = format_title(settings["name"])
        self.connections_per_child: int = settings["connections_per_child"]
        self.options: Mapping[str, Any] = settings["options"]
        self.command: list[str] | None = settings["command"]
        self.ready_at_birth = bool(settings["preload"] or self.command is not None)
        self.birth_report = channel.pack_birth(ready=self.ready_at_birth, version=__version__)
        # The channel's end and the activity page. A command has no activity page.
        self.descriptors_per_order = 1 if self.command is not None else 2
        # A warm-up replaces the next three. SIGPIPE has its default disposition in a spare, as in
        # any process, but not in a mold.
        self.spare_sigpipe: Callable[[int, object], object] | int = SIG_DFL
        self.setsid: Callable[[], object] = os.setsid
        self.exit_process: Callable[[int], object] = os._exit
        # Takes the pages that a session will need, while no client waits for this worker.
        self.take_pages: Callable[[], object] = _take_no_pages
        # These belong to the clone.
        self.page_fd = -1
        self._session_id = 0
        self._channel: Wire
        self._session_title = ""
        self._activity: ActivityWriter | None = None

    def run(self, order: bytes, channel_fd: int) -> int:
        """Set up this process, then serve until the last connection. Return the exit status."""
        set_disposition(SIGPIPE, self.spare_sigpipe)
        _, _, ahead = read_order(order)
        if ahead:
            self.take_pages()
        close(self.mold_fd)
        setsid = self.setsid
        setsid()
        if not terminate_with_parent(self.master_pid):
            return 0
        show_title(_SPARE_TITLE)
        self._channel = wire = Wire(AF_UNIX, SOCK_SEQPACKET, 0, channel_fd)
        _send_or_exit(wire, self.birth_report)
        if not self.ready_at_birth:
            self._import_handler()
        sessions_left = self.connections_per_child
        while (connection := self.receive_connection()) is not None:
            sessions_left -= 1
            if self.command is not None:
                self._execute(connection, self.command)
            status, outcome = self.serve(connection, sessions_left == 0)
            if sessions_left == 0:
                return status
            _send_or_exit(wire, pack_report(DONE, connection.id, outcome))
            show_title(_SPARE_TITLE)
        return 0

    def _import_handler(self) -> None:
        set_disposition(SIGPIPE, do_nothing)
        try:
            self.handler = adapters.load(self.settings)
        except BaseException as error:  # user code may raise anything
            log.error("handler_import_failed", reason=f"{type(error).__name__}: {error}", traceback=trace(error))
            os._exit(_exit_status(error) if isinstance(error, SystemExit) else 1)
        flush()
        set_disposition(SIGPIPE, self.spare_sigpipe)
        # The import may have set a wakeup descriptor, whose other end another process may read. The
        # import may also have changed the signal that ends this process with the master.
        signal.set_wakeup_fd(-1)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        if not terminate_with_parent(self.master_pid):
            os._exit(0)
        gc.freeze()
        _send_or_exit(self._channel, pack_report(WorkerWord.READY))

    def receive_connection(self) -> Connection | None:
        """Wait for a connection. None: the master has closed the channel."""
        wire = self._channel
        while True:
            data, fds = receive_with_descriptors(wire, ASSIGNMENT_MAX)
            if not data:
                return None
            session, family, host, port, flow, scope, listener = read_assignment(data)
            if fds:
                break
            # The kernel drops a descriptor where the process is at its limit of open files.
            _send_or_exit(wire, pack_report(NACK, session, errno.EMFILE))
        accepted = Socket(family, SOCK_STREAM, 0, fds[0])
        peer: Endpoint | tuple[str, int]
        if family == AF_INET:
            # Most connections are IPv4. This branch leaves out what only the others need.
            peer, peer_text = (host, port), f"{host}:{port}"
        else:
            peer = Endpoint.unix_peer(accepted) if family == AF_UNIX else Endpoint.of(family, (host, port, flow, scope))
            peer_text = str(peer)
        self._session_id, self._activity = session, None
        self._session_title = title = f"{self.title_prefix} {peer_text}"
        show_title(title)
        return Connection(accepted, session, peer, listener, self.options, self)

    def serve(self, connection: Connection, last: bool) -> tuple[int, int]:
        """Acknowledge a connection and serve its client. Return exit status and `Outcome`."""
        handler = self.handler
        assert handler is not None
        # ACK goes out before the handler reads the first byte. Until the master has read ACK, the
        # master can give the client to another worker.
        _send_or_exit(self._channel, pack_report(ACK, connection.id))
        if last:
            self._channel.close()
        # A handler expects BrokenPipeError, as everywhere in Python. With a function that does
        # nothing, a write raises that error. Programs that the handler starts would inherit
        # SIG_IGN.
        set_disposition(SIGPIPE, do_nothing)
        collect_garbage()
        result = 0, OK
        try:
            handler(connection)
            connection.close()
        except BaseException as error:  # any exception ends this session and nothing else
            result = self._conclude_failure(connection, error)
        flush()
        return result

    def close_descriptors(self) -> None:
        """Close the descriptors that came with the order."""
        self._channel.close()
        close(self.page_fd)

    def _conclude_failure(self, connection: Connection, error: BaseException) -> tuple[int, int]:
        """Close the connection after the handler has raised. Return exit status and `Outcome`."""
        try:
            if isinstance(error, (BrokenPipeError, ConnectionResetError)):
                self._note_client_gone()
                return 1, CLIENT_GONE
            if isinstance(error, SystemExit):
                status = _exit_status(error)
                return status, EXIT if status else OK
            if not self.phase.hushed():
                self._log_failure(connection, error)
            return 1, EXIT
        finally:
            try:
                connection.close()
            except OSError:
                # The client has gone: the last bytes that the handler wrote cannot be delivered.
                self._note_client_gone()
            except BaseException as second:
                # The handler has replaced one of the objects that are closed here.
                log.debug("connection_not_closed", session=connection.id, error=type(second).__name__)

    def _log_failure(self, connection: Connection, error: BaseException) -> None:
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
            self._session_activity().note_client_gone()
        except OSError:
            # The handler has closed the activity page: the master counts this session as `exit`.
            return

    def _execute(self, connection: Connection, command: list[str]) -> NoReturn:
        """Become the command. execve(2) closes the channel, and this end is the acknowledgement."""
        _send_or_exit(self._channel, pack_report(WorkerWord.EXEC, connection.id))
        try:
            adapters.execute(command, connection)
        except OSError as error:
            _send_or_exit(self._channel, pack_report(WorkerWord.NOEXEC, connection.id, error.errno or 0))
            os._exit(127)

    def _session_activity(self) -> ActivityWriter:
        """Return the writer of the activity page for this session, made on first use."""
        if self._activity is None:
            self._activity = ActivityWriter(self.page_fd, self._session_id)
        return self._activity

    def stopping(self) -> bool:
        """Say whether a drain has begun."""
        return self.phase.draining()

    def set_status(self, text: str) -> None:
        """Show this text in `poold ps` and in the process title."""
        self._session_activity().set_status(text)
        show_title(format_title(text, self._session_title))

    def extend_deadline(self, seconds: float) -> None:
        """Ask the master for a deadline that is `seconds` from now."""
        self._session_activity().extend_deadline(time.monotonic() + seconds)


def _take_no_pages() -> None:
    """Take no page ahead: a page fault provides each page when the worker needs it."""


def do_nothing(signum: int, frame: object) -> None:
    """Handle a signal by doing nothing."""
