"""The drill: the trial of an upgrade lets the new program take over, serve and stop once.

The drill builds the master as its successor does, from the document and the judged settings. The
master gets a stand-in for everything that the document names. These are descriptors of the trial's
own, children with pids that no process can have, and an idle process as the mold. No socket has a
file, so no file is removed or changed. No process is started by the master, and the log is
captured. So nothing that this master does reaches another process.

Then the drill drives the master from outside. A client connects, and a process that acts as a
worker serves the client. The control socket gets requests for a view, a reload and an upgrade. The
last two are refused, because no trial can be started. Then the master is told to stop.

The drill succeeds if nothing is raised. The fate of the client does not matter, because these
settings may refuse this client. So the drill finds what is missing from the code that the drill
runs. Not run are the steps after a trial's verdict, the timeouts, and other ways to end.
"""

import contextlib
import errno
import fcntl
import json
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from poold import __version__, channel, sandbox
from poold.address import Address, Scheme
from poold.channel import ORDER_RESULT, WorkerWord
from poold.childrows import AUXILIARY_SLOTS
from poold.errors import ExitCode, Problem
from poold.log import log, trace
from poold.master import successor
from poold.master.children.spawn import Launcher
from poold.master.children.streams import StreamsPart
from poold.master.children.table import ChildPart, NoSlotError
from poold.master.clients.listening import ListenerPart
from poold.master.clients.sockets import SocketPart
from poold.master.pool.mold import MoldPart
from poold.master.upgrade.state import StateDocument
from poold.pages import PAGE_SIZE
from poold.scoreboard import keep_size, shared_memory
from poold.words import Kind, State

# A number above every pid of the kernel (proc_sys_kernel(5), pid_max: at most 1 << 22).
UNUSED_PID = 1 << 23
# Seconds that a step may take, and seconds that a client waits that may not be let in.
SECONDS = 10.0
SERVED_SECONDS = 0.5
# The most workers that the drill makes. Further orders fail.
BIRTHS_MAX = 4
ASSIGNMENT_MAX = 4096
VERBS = ("view", "reload", "upgrade", "stop")
LOG_MAX = 1 << 20


class NoLauncher(Launcher):
    """A launcher that starts nothing."""

    def _start(self, *given: object, **named: object) -> int:
        raise OSError(errno.EPERM, "nothing is started in a drill")


def drill(found: StateDocument) -> Iterator[Problem]:
    """Yield the problems of the new program, which goes on from this document and its settings."""
    captured, framed, stream = CapturedLog(), log.framed, os.dup(2)
    os.dup2(captured.writer, 2)
    started: list[int] = []
    try:
        Drill(found, captured, started).run()
        reason = ""
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        log.error("upgrade_drill_failed", reason=reason, traceback=trace(error))
    finally:
        os.dup2(stream, 2)
        os.close(stream)
        log.frame(on=framed)
        _end_processes(started)
    if reason:
        for line in captured.lines("loop_error", "giving_up", "upgrade_drill_failed"):
            log.put(line)
        yield Problem("", f"the new program does not work in a drill: {reason}; the log has more")


class CapturedLog:
    """A pipe in the place of the log's stream, with room for all lines of a drill."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        with contextlib.suppress(OSError):  # the usual size will do
            fcntl.fcntl(self.writer, fcntl.F_SETPIPE_SZ, LOG_MAX)

    def part(self) -> StreamsPart:
        """Return a part for a logger's pipes in which this pipe stands for both."""
        return StreamsPart(os.dup(self.writer), os.dup(self.reader), os.dup(self.writer), os.dup(self.reader))

    def lines(self, *events: str) -> list[bytes]:
        """Return the captured lines of these events."""
        with contextlib.suppress(BlockingIOError):  # nothing was logged
            captured = os.read(self.reader, LOG_MAX).splitlines(keepends=True)
            return [line for line in captured if any(event.encode() in line for event in events)]
        return []


class Drill:
    """One master with stand-ins, and the process that drives this master."""

    def __init__(self, found: StateDocument, captured: CapturedLog, started: list[int]) -> None:
        """Build the master, and add to `started` each process that is made. Raises any error."""
        self._started = started
        # The other ends of the master's sockets, and the addresses of the listening ones.
        self._other_ends: list[object] = []
        self._addresses: list[tuple[int, Any]] = []
        mold, self._mold = channel.make_pair()
        # This process is made first, while few descriptors are open that the process must not have.
        pid = _start_idle(self._mold.fileno())
        started.append(pid)
        requester, asked = socket.socketpair()
        self._other_ends.append(requester)
        control = self._make_listening(Scheme.UNIX)
        self._control = self._addresses.pop()
        stand_ins = {each.fd: self._make_listening(Scheme.UNIX) for each in found.passed}
        self._document = replace(
            found,
            listeners=tuple(self._stand_in_listener(each, stand_ins) for each in found.listeners),
            passed=tuple(replace(each, fd=stand_ins[each.fd]) for each in found.passed),
            control=SocketPart(control),
            metrics=SocketPart(self._make_listening(Scheme.UNIX)) if found.metrics is not None else None,
            requester=asked.detach(),
            lingering=(),
            activity=shared_memory("activity", PAGE_SIZE),
            phase=shared_memory("phase", PAGE_SIZE),
            children=tuple(self._stand_in_children(found.children, pid, mold.detach())),
            mold=MoldPart(pid, __version__),
            streams=captured.part() if found.streams is not None else None,
        )
        self._master = successor.build(self._document, environ={}, origin={}, launcher=NoLauncher)

    def _make_listening(self, scheme: Scheme) -> int:
        """Return a listening socket that only processes of this machine can reach."""
        listening = socket.socket(socket.AF_INET if scheme is Scheme.TCP else socket.AF_UNIX)
        # Without a name, the kernel chooses an abstract one (unix(7), autobind), which is no file.
        listening.bind(("127.0.0.1", 0) if scheme is Scheme.TCP else "")
        listening.listen(8)
        self._addresses.append((listening.family, listening.getsockname()))
        return listening.detach()

    def _stand_in_listener(self, part: ListenerPart, stand_ins: dict[int, int]) -> ListenerPart:
        fd = stand_ins[part.socket.fd] if part.socket.lent else self._make_listening(Address.parse(part.address).scheme)
        return replace(part, socket=SocketPart(fd, lent=part.socket.lent))

    def _stand_in_children(self, children: Iterable[ChildPart], mold: int, end: int) -> Iterator[ChildPart]:
        """Yield the mold, and a stand-in for one child of each sort in the document."""
        samples = {(each.kind, each.state, each.session is not None, each.page is not None): each for each in children}
        for number, each in enumerate(samples.values()):
            ours, theirs = channel.make_pair()
            self._other_ends.append(theirs)
            page = shared_memory("activity", PAGE_SIZE) if each.page is not None else None
            if page is not None:
                keep_size(page)
            yield replace(each, pid=UNUSED_PID + number, channel=ours.detach() if each.channel is not None else None, page=page)
        free = set(range(AUXILIARY_SLOTS)) - {each.slot for each in samples.values()}
        if not free:
            raise NoSlotError(AUXILIARY_SLOTS, "children that are not workers")
        yield ChildPart(min(free), 0, Kind.MOLD, 1, mold, State.SERVING, time.monotonic(), ready=True, channel=end)

    def run(self) -> None:
        """Drive the master from take-over to end. Raises any error of the master's.

        Raises RuntimeError for errors that the master has caught.
        """
        master = self._master
        master.take_over(self._document)
        before = master.errors
        with contextlib.closing(self._connect_client()) as client:
            self._turn_until(lambda: _receive(client) is not None, patience=SERVED_SECONDS)
            for verb in VERBS:
                self._request(verb)
        self._turn_until(lambda: False)
        master.close()
        if master.errors > before:
            raise RuntimeError(f"{master.errors - before} errors")

    def _connect_client(self) -> socket.socket:
        """Return a client of the first listener."""
        family, where = self._addresses[0]
        client = socket.socket(family)
        client.setblocking(False)
        client.connect_ex(where)
        return client

    def _request(self, verb: str) -> None:
        """Send a request and wait for any answer."""
        family, where = self._control
        with contextlib.closing(socket.socket(family)) as asking:
            asking.connect(where)
            asking.setblocking(False)
            asking.send(json.dumps({"verb": verb, "now": True}).encode() + b"\n")
            if not self._turn_until(lambda: _receive(asking)):
                raise RuntimeError(f"the verb {verb} has no answer")

    def _turn_until(self, check: Callable[[], object], *, patience: float = SECONDS) -> bool:
        """Turn the loop until `check` is true or the master ends, for at most `patience` seconds.

        Return whether one of the two has come.
        """
        end = time.monotonic() + patience
        while time.monotonic() < end:
            # The signal keeps the loop from waiting.
            signal.raise_signal(signal.SIGURG)
            going_on = self._master.turn()
            if self._master.exit_status is not ExitCode.OK:
                raise RuntimeError("it gives up")
            if not going_on:
                return True
            self._act_as_mold()
            if check():
                return True
        return False

    def _act_as_mold(self) -> None:
        """Act on an order as a mold does, if there is an order."""
        poll = select.poll()
        poll.register(self._mold, select.POLLIN)
        # The wait of a millisecond leaves the processor to the processes that act as workers.
        if not poll.poll(1):
            return
        order, fds = channel.receive_with_descriptors(self._mold, channel.ORDER_SIZE)
        if not order:
            return
        answer = -errno.EAGAIN
        if len(self._started) <= BIRTHS_MAX:
            answer = _start_worker(fds[0])
            self._started.append(answer)
        for fd in fds:
            os.close(fd)
        with contextlib.suppress(OSError):  # the master has closed the channel already
            self._mold.send(channel.ANSWER_HEAD + order + ORDER_RESULT.pack(answer))


def _receive(client: socket.socket) -> bytes | None:
    """Return what a client has received: b"" for the end, None for nothing yet."""
    try:
        return client.recv(1 << 20)
    except BlockingIOError:
        return None
    except OSError:
        # The client was not let in, or was disconnected.
        return b""


def _fork(keep: int) -> int:
    """Fork, and return as `os.fork` does.

    The child ends with this process. Besides the standard streams the child keeps one descriptor.
    """
    parent = os.getpid()
    pid = os.fork()
    if not pid:
        sandbox.kill_with_parent(parent)
        for fd in map(int, os.listdir("/proc/self/fd")):
            if fd > 2 and fd != keep:
                with contextlib.suppress(OSError):  # the descriptor of the listing is closed by now
                    os.close(fd)
    return pid


def _start_idle(end: int) -> int:
    """Start a process that ends when the other side of this channel is closed. Return its pid."""
    pid = _fork(end)
    if pid:
        return pid
    try:
        poll = select.poll()
        poll.register(end, 0)
        poll.poll()
    finally:
        os._exit(0)


def _end_processes(started: list[int]) -> None:
    """End the processes that the drill's master has not reaped.

    Otherwise the running master, a subreaper, would get them as children.
    """
    for pid in started:
        with contextlib.suppress(ChildProcessError):
            if os.waitpid(pid, os.WNOHANG)[0] == 0:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def _start_worker(end: int) -> int:
    """Start a process that reports on this channel what a worker reports. Return its pid."""
    pid = _fork(end)
    if pid:
        return pid
    try:
        wire = channel.open_wire(end)
        wire.send(channel.pack_birth(ready=True, version=__version__))
        assignment, _ = channel.receive_with_descriptors(wire, ASSIGNMENT_MAX)
        if assignment:
            wire.send(channel.pack_report(WorkerWord.ACK, channel.read_assignment(assignment)[0]))
    finally:
        os._exit(0)
