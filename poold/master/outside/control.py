"""The control socket: bounded, without blocking, one request and one answer a connection. An answer may come later.

Who may ask is settled in one place: the socket file's mode, and the credentials the client had when it connected (SO_PEERCRED): root
or the user the master runs as.
"""

import json
import os
import socket
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from poold.errors import ConfigError
from poold.log import log
from poold.master.clients import sockets
from poold.master.clients.sockets import Opened, SocketPart
from poold.master.document.part import Part
from poold.master.engine.deadlines import Callback, Deadline
from poold.master.engine.loop import Loop
from poold.rpc import ANSWER_MAX, REQUEST_MAX

# Clients that have not asked yet, or do not read their answers; the oldest gives way to one more.
CLIENTS_MAX = 8
# Clients whose answers are being made.
WAITING_MAX = 64
# How long a client may take to ask, and how long to read its answer.
CLIENT_SECONDS = 5.0
# How long to leave accept alone when there is no descriptor for a client.
PAUSE = 0.1


@dataclass(slots=True)
class Answer:
    """What a verb says, with descriptors that the caller keeps owning."""

    document: dict[str, Any]
    fds: list[int] = field(default_factory=list)


def refusal(error: str) -> Answer:
    """Return the answer that says no."""
    return Answer({"ok": False, "error": error})


Reply = Callable[[Answer], object]
# A verb answers by its second argument, now or later, once.
Verb = Callable[[dict[str, Any], Reply], object]


@dataclass(slots=True, eq=False)
class Client:
    """A client that has not had its answer yet."""

    socket: socket.socket
    request: bytes = b""
    deadline: Deadline | None = None
    # What it has asked for, and its answer is being made; "" before.
    verb: str = ""
    waiting: bool = False
    # What it has not read yet of its answer.
    unsent: bytes = b""


@dataclass(frozen=True, kw_only=True)
class ControlPart(Part):
    """The control socket, and the client who has asked for the upgrade."""

    control: SocketPart
    requester: int | None = None

    def descriptors(self) -> Iterator[int]:
        """Yield the descriptors of the socket and of the client."""
        yield self.control.fd
        if self.requester is not None:
            yield self.requester


class Control:
    """Serves the control socket."""

    def __init__(self, *, loop: Loop, verbs: Mapping[str, Verb]) -> None:
        """Nothing is served before `open`."""
        self._loop = loop
        self._verbs = verbs
        self._opened: Opened | None = None
        self._clients: list[Client] = []
        self._pause_end: Deadline | None = None
        # Its file has gone and could not be made again, which has been said.
        self._loss_logged = False
        # Answers the client of the program before.
        self._inherited: Reply | None = None

    def open(self, opened: Opened) -> None:
        """Serve this listening socket."""
        self._opened = opened
        opened.socket.setblocking(False)
        self._watch(opened)

    def _watch(self, opened: Opened) -> None:
        self._pause_end = None
        try:
            self._loop.watch(opened.socket, partial(self._accept, opened))
        except OSError as error:
            # No memory for it, say. Without another try nobody could ever ask for anything again.
            log.warning("control_refused", error=error.strerror)
            self._pause_end = self._loop.after(PAUSE, partial(self._watch, opened))

    def _pause(self, opened: Opened) -> None:
        """Leave the clients that come alone for a moment."""
        self._loop.forget(opened.socket)
        self._pause_end = self._loop.after(PAUSE, partial(self._watch, opened))

    def _accept(self, opened: Opened) -> None:
        try:
            accepted, _ = opened.socket.accept()
        except BlockingIOError:
            # The client has gone.
            return
        except OSError as error:
            log.warning("control_refused", error=error.strerror)
            self._pause(opened)
            return
        accepted.setblocking(False)
        _, uid, _ = struct.unpack("3i", accepted.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if uid not in (0, os.geteuid()):
            log.warning("control_refused", uid=uid)
            accepted.close()
            return
        client = Client(accepted)
        try:
            self._loop.watch(accepted, partial(self._read, client))
        except OSError as error:
            log.warning("control_refused", uid=uid, error=error.strerror)
            accepted.close()
            return
        client.deadline = self._loop.after(CLIENT_SECONDS, partial(self._close, client))
        self._clients.append(client)
        self._make_room()

    def _make_room(self) -> None:
        """Close the oldest of too many clients that keep the master waiting."""
        silent = [client for client in self._clients if not client.waiting]
        if len(silent) > CLIENTS_MAX:
            self._close(silent[0])

    def _read(self, client: Client) -> None:
        if client not in self._clients:
            return
        try:
            chunk = client.socket.recv(REQUEST_MAX)
        except BlockingIOError:
            return
        except OSError:
            # It has gone.
            chunk = b""
        client.request += chunk
        line, end, _ = client.request.partition(b"\n")
        if not chunk:
            # What it asked for goes on without it.
            self._close(client)
        elif client.waiting:
            self._answer(client, refusal("one request a connection"))
        elif len(line) + len(end) > REQUEST_MAX:
            self._answer(client, refusal(f"the request is longer than {REQUEST_MAX} bytes"))
        elif end:
            self._take_request(client, line)

    def _take_request(self, client: Client, line: bytes) -> None:
        if sum(each.waiting for each in self._clients) >= WAITING_MAX:
            self._answer(client, refusal(f"busy: {WAITING_MAX} others wait for their answers"))
            return
        client.waiting = True
        if client.deadline is not None:
            client.deadline.cancel()
        try:
            self._run_verb(client, line, partial(self._answer, client))
        except Exception:
            # Nobody will answer any more: an end, not silence.
            if client in self._clients:
                self._close(client)
            raise

    def _run_verb(self, client: Client, line: bytes, reply: Reply) -> None:
        try:
            request = json.loads(line)
        except (ValueError, RecursionError):
            reply(refusal("the request is not a line of JSON"))
            return
        verb = request.get("verb") if isinstance(request, dict) else None
        if not isinstance(verb, str) or verb not in self._verbs:
            reply(refusal(f"no such verb; there are {', '.join(self._verbs)}"))
            return
        client.verb = verb
        self._verbs[verb](request, reply)

    def _answer(self, client: Client, answer: Answer) -> None:
        """Send an answer, with its descriptors; what the client's buffer has no room for is sent as it reads."""
        if client not in self._clients or client.unsent:
            # It has not waited for it, or has had another one.
            return
        client.waiting = False
        later = False
        try:
            later = self._deliver(client, answer)
        finally:
            # An answer that cannot be given is an end, not silence.
            if not later:
                self._close(client)

    def _deliver(self, client: Client, answer: Answer) -> bool:
        """Send as much of an answer as there is room for; say whether more is to come."""
        data = json.dumps(answer.document).encode() + b"\n"
        if len(data) > ANSWER_MAX:
            data = json.dumps(refusal("the answer is too long; the log has it").document).encode() + b"\n"
        rights = struct.pack(f"{len(answer.fds)}i", *answer.fds)
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if answer.fds else []
        try:
            sent = client.socket.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)
            if sent < len(data):
                self._send_later(client, data[sent:])
                return True
        except OSError as error:
            log.debug("control_unanswered", error=error.strerror)
        return False

    def _send_later(self, client: Client, unsent: bytes) -> None:
        """Send the rest of an answer whenever there is room for it, for so long. Raises OSError."""
        client.unsent = unsent
        self._loop.forget(client.socket)
        self._loop.watch(client.socket, partial(self._send, client), writable=True)
        if client.deadline is not None:
            client.deadline.cancel()
        client.deadline = self._loop.after(CLIENT_SECONDS, partial(self._give_up, client))
        self._make_room()

    def _send(self, client: Client) -> None:
        if client not in self._clients:
            return
        try:
            sent = client.socket.send(client.unsent, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return
        except OSError as error:
            log.debug("control_unanswered", error=error.strerror)
            self._close(client)
            return
        client.unsent = client.unsent[sent:]
        if not client.unsent:
            self._close(client)

    def _give_up(self, client: Client) -> None:
        log.debug("control_unanswered", error="it does not read its answer")
        self._close(client)

    def find_waiting(self, verb: str) -> int | None:
        """Return the descriptor of the client who has asked for this and whose answer is being made, None when there is none."""
        return next((client.socket.fileno() for client in self._clients if client.waiting and client.verb == verb), None)

    def save(self) -> ControlPart:
        """Return the control socket, and the client who has asked for an upgrade and has no answer yet."""
        assert self._opened is not None
        return ControlPart(control=self._opened.save(), requester=self.find_waiting("upgrade"))

    def restore(self, part: ControlPart) -> None:
        """Take over control socket and client of the program before; a socket that is not there is opened anew. Raises ConfigError."""
        try:
            self.open(sockets.restore_socket("control", part.control, {}))
        except ConfigError as error:
            log.error("listener_lost", listener="control", reason=str(error.problems[0]))
            self.open(sockets.open_control(part.control.path, patience=0))
        asking = sockets.adopt_connection(part.requester) if part.requester is not None else None
        if asking is not None:
            self._inherited = self.inherit(socket.socket(fileno=asking.detach()), "upgrade")

    def inherit(self, accepted: socket.socket, verb: str) -> Reply:
        """Take over a client whom the program before has not answered, and return what answers it."""
        accepted.setblocking(False)
        client = Client(accepted, verb=verb, waiting=True)
        self._loop.watch(accepted, partial(self._read, client))
        self._clients.append(client)
        return partial(self._answer, client)

    def answer_inherited(self, answer: Answer) -> None:
        """Answer the client of the program before, if there is one."""
        reply, self._inherited = self._inherited, None
        if reply is not None:
            reply(answer)

    def _close(self, client: Client) -> None:
        self._clients.remove(client)
        if client.deadline is not None:
            client.deadline.cancel()
        self._loop.forget(client.socket)
        client.socket.close()

    def renew(self) -> None:
        """Make the socket file again if somebody has removed or replaced it: without one nobody could ask for anything."""
        former = self._opened
        if former is None:
            return
        if former.reachable():
            self._loss_logged = False
            return
        try:
            opened = sockets.open_control(former.path, patience=0)
        except ConfigError as error:
            if not self._loss_logged:
                self._loss_logged = True
                log.warning("control_socket_lost", path=former.path, error=str(error.problems[0]), hint="a reload or a scrape tries again")
            return
        log.warning("control_socket_lost", path=former.path, hint="it was made again")
        for _ in range(CLIENTS_MAX):
            # Who has connected before it was lost.
            if self._pause_end is None:
                self._accept(former)
        self._stop_listening(former)
        self.open(opened)
        former.close()

    def _stop_listening(self, opened: Opened) -> None:
        if self._pause_end is not None:
            self._pause_end.cancel()
        self._loop.forget(opened.socket)

    def close(self) -> None:
        """Close the control socket and remove its file."""
        steps: list[Callback] = [partial(self._close, client) for client in self._clients]
        opened, self._opened = self._opened, None
        if opened is not None:
            steps += [partial(self._stop_listening, opened), opened.close]
        self._loop.call_each_with_retry(steps)
