"""The drill: in the trial, before anybody depends on it, the new program takes over from the document, serves and stops.

The master is built as its successor builds it, from the document and the settings that were judged, and gets stand-ins for all that the
document names: descriptors of this process's own, children whose pids no process can have, one that does nothing and is the mold. No
file has a name, so none is removed or changed; nothing is started; what is logged is kept. So nothing that the master does reaches anybody.

Then it is driven as it would be, from outside: a client comes, and is served by a process that says what a worker says; the control
socket is asked for a view, a reload and an upgrade, which are refused because no trial can be started; and it is told to stop.

What counts is that nothing is raised: not what becomes of the client, who may not be let in by these settings. So a drill finds what is
missing of the code that it runs. It does not run what comes after the verdict of a trial, timeouts, or another way to end than this one.
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

# Above every pid that the kernel gives out (proc_sys_kernel(5), pid_max: at most 1 << 22).
UNUSED_PID = 1 << 23
# How long a step of it may take that does not get on, and how long a client may wait who is not let in.
SECONDS = 10.0
SERVED_SECONDS = 0.5
# Workers that are played; more are told that they cannot be started.
BIRTHS_MAX = 4
ASSIGNMENT_MAX = 4096
VERBS = ("view", "reload", "upgrade", "stop")
LOG_MAX = 1 << 20


class NoLauncher(Launcher):
    """Starts nothing."""

    def _start(self, *given: object, **named: object) -> int:
        raise OSError(errno.EPERM, "nothing is started in a drill")


def drill(found: StateDocument) -> Iterator[Problem]:
    """Yield what is wrong with the new program, which goes on from this document with the settings in it."""
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
    """A pipe instead of the log's stream, which has room for what is said in a drill."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        with contextlib.suppress(OSError):  # the usual size will do
            fcntl.fcntl(self.writer, fcntl.F_SETPIPE_SZ, LOG_MAX)

    def part(self) -> StreamsPart:
        """Return what the document says of the pipes to a logger, in the place of both."""
        return StreamsPart(os.dup(self.writer), os.dup(self.reader), os.dup(self.writer), os.dup(self.reader))

    def lines(self, *events: str) -> list[bytes]:
        """Return the lines of these events."""
        with contextlib.suppress(BlockingIOError):  # nothing was said
            said = os.read(self.reader, LOG_MAX).splitlines(keepends=True)
            return [line for line in said if any(event.encode() in line for event in events)]
        return []


class Drill:
    """One master on a stage of its own, and whoever drives it."""

    def __init__(self, found: StateDocument, captured: CapturedLog, started: list[int]) -> None:
        """Build it, and note the processes that were made for it. Raises whatever is wrong with it."""
        self._started = started
        # The other ends of what it has, and where it can be reached.
        self._other_ends: list[object] = []
        self._addresses: list[tuple[int, Any]] = []
        mold, self._mold = channel.make_pair()
        # While there is little that a process must not have.
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
        """Return a socket that listens where only this machine's processes can come."""
        listening = socket.socket(socket.AF_INET if scheme is Scheme.TCP else socket.AF_UNIX)
        # No name: the kernel gives an abstract one (unix(7), autobind), which is no file.
        listening.bind(("127.0.0.1", 0) if scheme is Scheme.TCP else "")
        listening.listen(8)
        self._addresses.append((listening.family, listening.getsockname()))
        return listening.detach()

    def _stand_in_listener(self, part: ListenerPart, stand_ins: dict[int, int]) -> ListenerPart:
        fd = stand_ins[part.socket.fd] if part.socket.lent else self._make_listening(Address.parse(part.address).scheme)
        return replace(part, socket=SocketPart(fd, lent=part.socket.lent))

    def _stand_in_children(self, children: Iterable[ChildPart], mold: int, end: int) -> Iterator[ChildPart]:
        """Yield the mold, and one child of each sort that the document has, nobody's."""
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
        """Drive it from its take-over to its end. Raises whatever it raises, and RuntimeError for what it has caught and gone on."""
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
        """Have a request answered, whatever the answer."""
        family, where = self._control
        with contextlib.closing(socket.socket(family)) as asking:
            asking.connect(where)
            asking.setblocking(False)
            asking.send(json.dumps({"verb": verb, "now": True}).encode() + b"\n")
            if not self._turn_until(lambda: _receive(asking)):
                raise RuntimeError(f"the verb {verb} has no answer")

    def _turn_until(self, check: Callable[[], object], *, patience: float = SECONDS) -> bool:
        """Turn the loop until this is so, and say so; until it is at its end, or for so many seconds."""
        end = time.monotonic() + patience
        while time.monotonic() < end:
            # So that it does not wait.
            signal.raise_signal(signal.SIGURG)
            going_on = self._master.turn()
            if self._master.exit_code is not ExitCode.OK:
                raise RuntimeError("it gives up")
            if not going_on:
                return True
            self._act_as_mold()
            if check():
                return True
        return False

    def _act_as_mold(self) -> None:
        """Do what a mold and a worker do, if there is an order."""
        poll = select.poll()
        poll.register(self._mold, select.POLLIN)
        # Those who play need the processor, too.
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
        with contextlib.suppress(OSError):  # it has been told to leave
            self._mold.send(channel.ANSWER_HEAD + order + ORDER_RESULT.pack(answer))


def _receive(client: socket.socket) -> bytes | None:
    """Return what a client has got, b"" for an end, None for nothing yet."""
    try:
        return client.recv(1 << 20)
    except BlockingIOError:
        return None
    except OSError:
        # It could not come in, or was sent away.
        return b""


def _fork(keep: int) -> int:
    """Return as `os.fork` does; the child ends with this process and has this descriptor besides the standard streams."""
    parent = os.getpid()
    pid = os.fork()
    if not pid:
        sandbox.kill_with_parent(parent)
        for fd in map(int, os.listdir("/proc/self/fd")):
            if fd > 2 and fd != keep:
                with contextlib.suppress(OSError):  # that of the listing is closed by now
                    os.close(fd)
    return pid


def _start_idle(end: int) -> int:
    """Make a process that ends when the other side of this channel does, and return its pid."""
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
    """End those of these processes that the master in the drill has not taken the exits of, or they would be another master's."""
    for pid in started:
        with contextlib.suppress(ChildProcessError):
            if os.waitpid(pid, os.WNOHANG)[0] == 0:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def _start_worker(end: int) -> int:
    """Make a process that says on this channel what a worker says, and return its pid."""
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
