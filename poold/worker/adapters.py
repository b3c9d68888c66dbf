"""Loads the handler that the settings name, or starts the command in a worker's place.

A handler is a function of one connection or a `socketserver.BaseRequestHandler` class.
"""

from __future__ import annotations

import os
import socket
import sys
from importlib import import_module

from poold.connection import Connection, ucspi_environ

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` is not loaded: every worker would carry its memory
    from collections.abc import Callable, Mapping
    from typing import Any, NoReturn

    Serve = Callable[[Connection], object]


def load(settings: Mapping[str, Any]) -> Serve | None:
    """Return the function that serves a connection, or None where the settings name a command.

    Raises whatever the handler's import raises. The import may fork, and both processes may return
    from the import. The forked process then ends here, because its caller could not tell the two
    processes apart.
    """
    if settings["command"] is not None:
        return None
    pid = os.getpid()
    try:
        return _import_handler(settings)
    finally:
        if os.getpid() != pid:
            os._exit(0)


def _import_handler(settings: Mapping[str, Any]) -> Serve:
    module_name, _, attribute = settings["handler"].partition(":")
    target: Any = import_module(module_name)
    for name in attribute.split("."):
        target = getattr(target, name)
    if _is_request_handler(target):
        return _adapt_request_handler(target)
    if not callable(target):
        raise TypeError(f"{settings['handler']} is a {type(target).__name__}, not a function of one connection")
    serve: Serve = target
    return serve


def _is_request_handler(target: object) -> bool:
    """Say whether the target is a `BaseRequestHandler` class.

    Where `socketserver` is not loaded, no module can have derived a class from its classes.
    """
    socketserver = sys.modules.get("socketserver")
    return socketserver is not None and isinstance(target, type) and issubclass(target, socketserver.BaseRequestHandler)


class ServerView:
    """The attributes of `server` that a `BaseRequestHandler` may read.

    They give the address that the client has connected to, the handler's class and the options.
    """

    def __init__(self, handler: type, connection: Connection) -> None:
        self.RequestHandlerClass = handler
        self.server_address = connection.local.raw
        self.server_name = connection.local.host
        self.server_port = connection.local.port
        self.socket = connection.socket
        self.options = connection.options


def _adapt_request_handler(handler: type) -> Serve:
    def serve(connection: Connection) -> None:
        request = connection.socket
        handler(request, connection.peer.raw, ServerView(handler, connection))
        try:
            # As socketserver.TCPServer.shutdown_request does. Processes that the handler has forked
            # may hold the socket open; the client gets its end of file nevertheless.
            request.shutdown(socket.SHUT_WR)
        except OSError:
            # The client or the handler has closed the connection already.
            return

    return serve


def execute(command: list[str], connection: Connection) -> NoReturn:
    """Replace this process's program by the command, with the connection as descriptors 0 and 1.

    This is the convention of inetd. The function returns only by raising OSError.
    """
    environment = {**os.environ, **ucspi_environ(id=connection.id, peer=connection.peer, local=connection.local)}
    fd = connection.socket.fileno()
    os.dup2(fd, 0)
    os.dup2(fd, 1)
    os.execvpe(command[0], command, environment)
