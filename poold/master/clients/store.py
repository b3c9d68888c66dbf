"""The service manager's store of descriptors (sd_notify(3), FDSTORE=).

The master puts its own listeners into the store, so that the listeners outlive a master that is
killed. A client that comes while there is no master waits in the queue of a stored socket. The next
master gets the stored sockets together with the passed ones, and recognises the listener by the
name. The master removes a listener from the store when the listener is closed. Otherwise clients
could connect to the port although no process accepts.
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

# A function that sends fields and descriptors to the service manager.
Notify = Callable[..., object]


def store_name(listener: Listener, file: tuple[int, int] | None) -> str:
    """Return the name of a listener in the store.

    The name depends only on what cannot be changed on an open socket. A name is at most 255
    characters of printable ASCII without colons (sd_notify(3)). crc32 is used, because hashlib
    would cost the master memory.
    """
    address = str(listener.address)
    check = crc32(repr((address, listener.interface, listener.freebind, file)).encode())
    return f"{PREFIX}{check:08x}-" + "".join(c if c.isascii() and (c.isalnum() or c in "./-") else "_" for c in address)


@dataclass(frozen=True, slots=True)
class PassedPart:
    """A socket that the service manager has passed."""

    name: str
    fd: int

    def __post_init__(self) -> None:
        check_descriptor(self.fd)


@dataclass(frozen=True, kw_only=True)
class StorePart(Part):
    """What the service manager has passed, without the sockets from the store."""

    passed: tuple[PassedPart, ...] = ()

    def descriptors(self) -> Iterator[int]:
        """Yield the passed descriptors."""
        return (each.fd for each in self.passed)


class Store:
    """The listeners of this master in the store, and the passed sockets."""

    def __init__(self, notify: Notify, given: Iterable[tuple[str, int]]) -> None:
        """Take names and descriptors that the service manager has passed.

        Raises ConfigError for a descriptor that is no listening socket.
        """
        self._notify = notify
        self._found: dict[str, socket.socket] = {}
        self._left_to_next = False
        self.passed: dict[str, list[socket.socket]] = {}
        """The sockets that the service manager has passed for the settings to use, by name."""
        self._sort(given)

    def _sort(self, given: Iterable[tuple[str, int]]) -> None:
        for name, fd in given:
            listening = sockets.check_passed(name, fd)
            if name.startswith(PREFIX):
                self._found[name] = listening
            else:
                self.passed.setdefault(name, []).append(listening)

    def save(self) -> StorePart:
        """Return what the next program must know about the passed sockets."""
        return StorePart(passed=tuple(PassedPart(name, each.fileno()) for name, several in self.passed.items() for each in several))

    def restore(self, part: StorePart) -> None:
        """Do nothing.

        At its start, the next program is given the passed sockets in the same way as a first
        program.
        """

    def find(self, listener: Listener) -> Opened | None:
        """Return the socket that a `[[listener]]` had under the previous master.

        Return None where the store had no such socket.
        """
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
        """Put a listener of this master into the store. Calling this again changes nothing."""
        if not opened.passed_by_manager:
            self._notify(fds=[opened.socket.fileno()], FDSTORE=1, FDNAME=store_name(listener, opened.file))

    def drop(self, opened: Opened, listener: Listener) -> None:
        """Remove a listener from the store. The caller closes the listener next."""
        if not opened.passed_by_manager and not self._left_to_next:
            self._remove(store_name(listener, opened.file))

    def leave(self) -> None:
        """Leave the stored sockets to the next master: `drop` removes nothing from now on."""
        self._left_to_next = True

    def clear(self) -> None:
        """Close and remove the stored sockets that `find` has not returned.

        The settings have changed while there was no master.
        """
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
        # The file is gone, so no client would find the socket.
        status = None
    return (status.st_dev, status.st_ino) if status is not None else None
