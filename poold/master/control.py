"""The control socket: bounded, without blocking, one request and one answer a connection. An answer may come later.

Who may ask is settled in one place: the socket file's mode, and the credentials the client had when it connected (SO_PEERCRED): root
or the user the master runs as.
"""

import json
import os
import socket
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from poold.log import log
from poold.master.deadlines import Deadline
from poold.master.loop import Loop
from poold.master.sockets import Opened
from poold.rpc import REQUEST_MAX

CLIENTS_MAX = 8
CLIENT_SECONDS = 5.0
# How long to leave accept alone when there is no descriptor for a client.
PAUSE = 0.1


@dataclass(slots=True)
class Answer:
    """What a verb says, with descriptors that the caller keeps owning."""

    document: dict[str, Any]
    fds: list[int] = field(default_factory=list)


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


class Control:
    """Serves the control socket."""

    def __init__(self, *, loop: Loop, opened: Opened, verbs: Mapping[str, Verb]) -> None:
        self._loop = loop
        self._opened = opened
        self._verbs = verbs
        self._clients: list[Client] = []
        opened.socket.setblocking(False)
        self._watch()

    def _watch(self) -> None:
        self._loop.watch(self._opened.socket, self._accept)

    def _accept(self) -> None:
        try:
            accepted, _ = self._opened.socket.accept()
        except BlockingIOError:
            # The client has gone.
            return
        except OSError as error:
            log.warning("control_refused", error=error.strerror)
            self._loop.forget(self._opened.socket)
            self._loop.after(PAUSE, self._watch)
            return
        accepted.setblocking(False)
        _, uid, _ = struct.unpack("3i", accepted.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if uid not in (0, os.geteuid()):
            log.warning("control_refused", uid=uid)
            accepted.close()
            return
        silent = [client for client in self._clients if not client.waiting]
        if len(silent) >= CLIENTS_MAX:
            self._close(silent[0])
        client = Client(accepted)
        try:
            self._loop.watch(accepted, partial(self._read, client))
        except OSError as error:
            log.warning("control_refused", uid=uid, error=error.strerror)
            accepted.close()
            return
        client.deadline = self._loop.after(CLIENT_SECONDS, partial(self._close, client))
        self._clients.append(client)

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
        if not chunk:
            # What it asked for goes on without it.
            self._close(client)
        elif client.waiting:
            self._answer(client, Answer({"ok": False, "error": "one request a connection"}))
        elif b"\n" in client.request:
            self._take(client)
        elif len(client.request) > REQUEST_MAX:
            self._answer(client, Answer({"ok": False, "error": f"the request is longer than {REQUEST_MAX} bytes"}))

    def _take(self, client: Client) -> None:
        client.waiting = True
        if client.deadline is not None:
            client.deadline.cancel()
        self._ask(client, client.request.partition(b"\n")[0], partial(self._answer, client))

    def _ask(self, client: Client, line: bytes, reply: Reply) -> None:
        try:
            request = json.loads(line)
        except (ValueError, RecursionError):
            reply(Answer({"ok": False, "error": "the request is not a line of JSON"}))
            return
        verb = request.get("verb") if isinstance(request, dict) else None
        if not isinstance(verb, str) or verb not in self._verbs:
            reply(Answer({"ok": False, "error": f"no such verb; there are {', '.join(self._verbs)}"}))
            return
        client.verb = verb
        self._verbs[verb](request, reply)

    def _answer(self, client: Client, answer: Answer) -> None:
        """Send the whole answer or none of it: it fits the buffer of a new connection, or the client does not read."""
        if client not in self._clients:
            # It has not waited for it.
            return
        rights = struct.pack(f"{len(answer.fds)}i", *answer.fds)
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if answer.fds else []
        try:
            client.socket.sendmsg([json.dumps(answer.document).encode() + b"\n"], ancillary, socket.MSG_NOSIGNAL)
        except OSError as error:
            log.debug("control_unanswered", error=error.strerror)
        self._close(client)

    def waiting(self, verb: str) -> int | None:
        """Return the descriptor of the client who has asked for this and whose answer is being made, None when there is none."""
        return next((client.socket.fileno() for client in self._clients if client.verb == verb), None)

    def inherit(self, accepted: socket.socket, verb: str) -> Reply:
        """Take over a client whom the program before has not answered, and return what answers it."""
        accepted.setblocking(False)
        client = Client(accepted, verb=verb, waiting=True)
        self._loop.watch(accepted, partial(self._read, client))
        self._clients.append(client)
        return partial(self._answer, client)

    @property
    def opened(self) -> Opened:
        """The listening socket."""
        return self._opened

    def _close(self, client: Client) -> None:
        self._clients.remove(client)
        if client.deadline is not None:
            client.deadline.cancel()
        self._loop.forget(client.socket)
        client.socket.close()

    def close(self) -> None:
        """Close the control socket and remove its file."""
        for client in list(self._clients):
            self._close(client)
        self._loop.forget(self._opened.socket)
        self._opened.close()
