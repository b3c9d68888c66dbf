"""The service manager's store of descriptors (sd_notify(3), FDSTORE=): listeners of our own outlive a master that is killed.

Who comes while there is no master waits in the queue of a socket that is kept, and the next master gets it with the passed ones, under
a name that tells what it is. A listener that poold closes is taken out, or its port would go on being answered by nobody.
"""

import os
import socket
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from zlib import crc32

from poold.address import Scheme
from poold.log import log
from poold.master.clients import sockets
from poold.master.clients.sockets import Opened
from poold.master.document.part import Part, check_descriptor
from poold.settings.config import Listener

PREFIX = "poold-listener-"

# Sends fields and descriptors to the service manager.
Notify = Callable[..., object]


def store_name(listener: Listener, file: tuple[int, int] | None) -> str:
    """Return the name of a listener in the store: the same for the same socket, whatever of it can be changed on an open one.

    A name there is printable ASCII without colons, at most 255 of them (sd_notify(3)); hashlib would cost the master half a megabyte.
    """
    address = str(listener.address)
    check = crc32(repr((address, listener.interface, listener.freebind, file)).encode())
    return f"{PREFIX}{check:08x}-" + "".join(c if c.isascii() and (c.isalnum() or c in "./-") else "_" for c in address)


@dataclass(frozen=True, slots=True)
class PassedPart:
    """A socket that the service manager passed."""

    name: str
    fd: int

    def __post_init__(self) -> None:
        check_descriptor(self.fd)


@dataclass(frozen=True, kw_only=True)
class StorePart(Part):
    """What the service manager passed, besides what was in the store."""

    passed: tuple[PassedPart, ...] = ()

    def descriptors(self) -> Iterator[int]:
        """Yield the descriptors that were passed."""
        return (each.fd for each in self.passed)


class Store:
    """What the store holds of ours, and what was passed besides."""

    def __init__(self, notify: Notify, given: Iterable[tuple[str, int]]) -> None:
        """Take what was given: names and descriptors. Raises ConfigError for a descriptor that is of no use."""
        self._notify = notify
        self._found: dict[str, socket.socket] = {}
        self._left_to_next = False
        self.passed: dict[str, list[socket.socket]] = {}
        """What the service manager passed for the settings to use, by name."""
        self._sort(given)

    def _sort(self, given: Iterable[tuple[str, int]]) -> None:
        for name, fd in given:
            adopted = sockets.adopt(name, fd)
            if name.startswith(PREFIX):
                self._found[name] = adopted
            else:
                self.passed.setdefault(name, []).append(adopted)

    def save(self) -> StorePart:
        """Return what the next program must know of what was passed."""
        return StorePart(passed=tuple(PassedPart(name, each.fileno()) for name, several in self.passed.items() for each in several))

    def restore(self, part: StorePart) -> None:
        """Do nothing: the next program is given what was passed as a first one is."""

    def find(self, listener: Listener) -> Opened | None:
        """Return the socket that a `[[listener]]` had under the master before, None if there is none or it is of no use."""
        path = listener.address.path if listener.address.scheme is Scheme.UNIX else ""
        file = _file(path)
        found = self._found.pop(store_name(listener, file), None)
        if found is None:
            return None
        found.setblocking(False)
        opened = Opened(found, path, file)
        try:
            sockets.retune(opened, listener)
        except (OSError, KeyError) as error:
            log.warning("listener_not_changed", listener=listener.name, error=str(error))
        return opened

    def keep(self, opened: Opened, listener: Listener) -> None:
        """Put a listener of our own into the store; again changes nothing."""
        if not opened.passed_by_manager:
            self._notify(fds=[opened.socket.fileno()], FDSTORE=1, FDNAME=store_name(listener, opened.file))

    def drop(self, opened: Opened, listener: Listener) -> None:
        """Take a listener out that is about to be closed."""
        if not opened.passed_by_manager and not self._left_to_next:
            self._remove(store_name(listener, opened.file))

    def leave(self) -> None:
        """Leave what the store holds to the next master, whatever this one closes from now on."""
        self._left_to_next = True

    def clear(self) -> None:
        """Close what nobody has asked for: settings have changed while there was no master."""
        for name, found in self._found.items():
            log.info("stored_socket_unused", address=sockets.address_of(found))
            self._remove(name)
            found.close()
        self._found.clear()

    def _remove(self, name: str) -> None:
        self._notify(FDSTOREREMOVE=1, FDNAME=name)


def _file(path: str) -> tuple[int, int] | None:
    try:
        status = os.lstat(path) if path else None
    except OSError:
        # It is gone, and so nobody would find the socket.
        status = None
    return (status.st_dev, status.st_ino) if status is not None else None
