"""The control socket: one request and one answer on each connection. An answer may come later.

The number and the size of requests and answers are bounded, and nothing here blocks the master. Two
things decide which processes may connect: the mode of the socket file, and the credentials that the
client had at connect() (SO_PEERCRED). The client must be root or the user of the master.
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

# The most clients without a request, or with an unread answer. The oldest gives way.
CLIENTS_MAX = 8
# The most clients whose answers are being made.
WAITING_MAX = 64
# The seconds that a client may take to send its request, and again to read the answer.
CLIENT_SECONDS = 5.0
# The seconds without accept after an error, for example when there is no free descriptor.
PAUSE = 0.1


@dataclass(slots=True)
class Answer:
    """The answer to a request. The descriptors in `fds` stay the caller's."""

    document: dict[str, Any]
    fds: list[int] = field(default_factory=list)


def refusal(error: str) -> Answer:
    """Return the answer that refuses a request, with the reason."""
    return Answer({"ok": False, "error": error})


Reply = Callable[[Answer], object]
# A verb calls its second argument with the answer, now or later, once.
Verb = Callable[[dict[str, Any], Reply], object]


@dataclass(slots=True, eq=False)
class Client:
    """A client that has not had its whole answer yet."""

    socket: socket.socket
    request: bytes = b""
    deadline: Deadline | None = None
    # The client's verb once there is a request. `waiting`: the answer is being made.
    verb: str = ""
    waiting: bool = False
    # The bytes of the answer that the client has not read yet.
    unsent: bytes = b""


@dataclass(frozen=True, kw_only=True)
class ControlPart(Part):
    """The control socket, and the client that has asked for the upgrade."""

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
        """Map verbs to the functions that answer. No client is served before `open`."""
        self._loop = loop
        self._verbs = verbs
        self._opened: Opened | None = None
        self._clients: list[Client] = []
        self._pause_end: Deadline | None = None
        # The log says already that the socket file has gone and could not be made again.
        self._loss_logged = False
        # The function that answers a client of the previous program.
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
            # There may be no memory. Without another try no client could be served any more.
            log.warning("control_refused", error=error.strerror)
            self._pause_end = self._loop.after(PAUSE, partial(self._watch, opened))

    def _pause(self, opened: Opened) -> None:
        """Accept no client for `PAUSE` seconds."""
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
        """Close the oldest client that keeps the master waiting, if there are too many of these."""
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
            # The client has gone.
            chunk = b""
        client.request += chunk
        line, end, _ = client.request.partition(b"\n")
        if not chunk:
            # The client has gone. What the client has asked for goes on.
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
            # No other code will answer this client. EOF tells the client so.
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
        """Send an answer. What finds no room in the socket's buffer is sent later."""
        if client not in self._clients or client.unsent:
            # The client does not wait for this answer, or has had another answer.
            return
        client.waiting = False
        later = False
        try:
            later = self._deliver(client, answer)
        finally:
            # Where the answer cannot be sent, EOF tells the client so.
            if not later:
                self._close(client)

    def _deliver(self, client: Client, answer: Answer) -> bool:
        """Send as much of an answer as there is room for. Return whether the rest is sent later."""
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
        """Send the rest as there is room, for at most `CLIENT_SECONDS`. Raises OSError."""
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
        """Return the descriptor of a client that waits for an answer to this verb, or None."""
        return next((client.socket.fileno() for client in self._clients if client.waiting and client.verb == verb), None)

    def save(self) -> ControlPart:
        """Return the control socket, and the client that waits for the answer to an upgrade."""
        assert self._opened is not None
        return ControlPart(control=self._opened.save(), requester=self.find_waiting("upgrade"))

    def restore(self, part: ControlPart) -> None:
        """Take over the control socket and the waiting client of the previous program.

        A socket whose descriptor is not there is opened anew. Raises ConfigError.
        """
        try:
            self.open(sockets.restore_socket("control", part.control, {}))
        except ConfigError as error:
            log.error("listener_lost", listener="control", reason=str(error.problems[0]))
            self.open(sockets.open_control(part.control.path, patience=0))
        asking = sockets.adopt_connection(part.requester) if part.requester is not None else None
        if asking is not None:
            self._inherited = self.inherit(socket.socket(fileno=asking.detach()), "upgrade")

    def inherit(self, accepted: socket.socket, verb: str) -> Reply:
        """Take over a client of the previous program, and return what answers that client."""
        accepted.setblocking(False)
        client = Client(accepted, verb=verb, waiting=True)
        self._loop.watch(accepted, partial(self._read, client))
        self._clients.append(client)
        return partial(self._answer, client)

    def answer_inherited(self, answer: Answer) -> None:
        """Answer the client of the previous program, if there is one."""
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
        """Make a lost socket file again. Without the file no client could connect."""
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
            # Accept the clients that connected before the file was lost.
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
