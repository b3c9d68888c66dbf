"""From the settings to something that serves: a function, a socketserver class, or a program."""

from __future__ import annotations

import os
import socket
import sys
from importlib import import_module

from poold.connection import Connection, ucspi_environ

TYPE_CHECKING = False
if TYPE_CHECKING:  # without loading typing, whose weight every worker would carry
    from collections.abc import Callable, Mapping
    from typing import Any, NoReturn

    Serve = Callable[[Connection], object]


def load(settings: Mapping[str, Any]) -> Serve | None:
    """Return what serves a connection, None where a program does. Raises whatever the handler's import raises.

    Where the import forks and both processes come back from it, only the one that called does: a second one would be taken for it.
    """
    if settings["command"] is not None:
        return None
    pid = os.getpid()
    try:
        return _import(settings)
    finally:
        if os.getpid() != pid:
            os._exit(0)


def _import(settings: Mapping[str, Any]) -> Serve:
    module_name, _, attribute = settings["handler"].partition(":")
    target: Any = import_module(module_name)
    for name in attribute.split("."):
        target = getattr(target, name)
    if _is_request_handler(target):
        return _request_handler(target)
    if not callable(target):
        raise TypeError(f"{settings['handler']} is a {type(target).__name__}, not a function of one connection")
    serve: Serve = target
    return serve


def _is_request_handler(target: object) -> bool:
    """Say whether it is a socketserver handler; its module is loaded if it is."""
    socketserver = sys.modules.get("socketserver")
    return socketserver is not None and isinstance(target, type) and issubclass(target, socketserver.BaseRequestHandler)


class ServerView:
    """What a `BaseRequestHandler` may ask of its `server`: the address it was reached at, and which class it is."""

    def __init__(self, handler: type, connection: Connection) -> None:
        self.RequestHandlerClass = handler
        self.server_address = connection.local.raw
        self.server_name = connection.local.host
        self.server_port = connection.local.port
        self.socket = connection.socket
        self.options = connection.options


def _request_handler(handler: type) -> Serve:
    def serve(connection: Connection) -> None:
        request = connection.socket
        handler(request, connection.peer.raw, ServerView(handler, connection))
        try:
            # As socketserver's shutdown_request does: the client's EOF must not wait for other holders of the socket.
            request.shutdown(socket.SHUT_WR)
        except OSError:
            # The client or the handler has closed it: there is nobody left to tell.
            return

    return serve


def execute(command: list[str], connection: Connection) -> NoReturn:
    """Become the program, inetd-style: the connection is its descriptors 0 and 1. Returns only by raising OSError."""
    environment = {**os.environ, **ucspi_environ(id=connection.id, peer=connection.peer, local=connection.local)}
    fd = connection.socket.fileno()
    os.dup2(fd, 0)
    os.dup2(fd, 1)
    os.execvpe(command[0], command, environment)
