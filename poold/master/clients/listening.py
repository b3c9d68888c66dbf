"""One open listener, and the listeners' part of the state document."""

from collections.abc import Iterator
from dataclasses import dataclass

from poold.master.clients.sockets import Opened, SocketPart
from poold.master.document.part import Part
from poold.master.engine.deadlines import Deadline
from poold.settings.config import Listener


@dataclass(slots=True, eq=False)
class Listening:
    """One open listener. `number` is the listener's number in the counters.

    A listener that is `leaving` is closed as soon as no connection waits in its queue. `empty` says
    that no connection waited at the last accept. `unreachable_logged` says that a lost socket file
    has been logged.
    """

    opened: Opened
    listener: Listener
    number: int
    family: int
    leaving: bool = False
    unreachable_logged: bool = False
    empty: bool = False
    deadline: Deadline | None = None

    @property
    def name(self) -> str:
        """The label in metrics and logs."""
        return self.listener.name

    def save(self) -> "ListenerPart":
        """Return what the next program must know about the listener."""
        return ListenerPart(
            address=str(self.listener.address),
            name=self.name,
            socket=self.opened.save(),
            interface=self.listener.interface,
            freebind=self.listener.freebind,
            leaving=self.leaving,
        )


@dataclass(frozen=True, slots=True)
class ListenerPart:
    """An open listener.

    The part has the address as the settings write the address, and what cannot be changed on an
    open listener.
    """

    address: str
    name: str
    socket: SocketPart
    interface: str | None = None
    freebind: bool = False
    leaving: bool = False


@dataclass(frozen=True, kw_only=True)
class ListenersPart(Part):
    """The open listeners."""

    listeners: tuple[ListenerPart, ...]

    def descriptors(self) -> Iterator[int]:
        """Yield the descriptors of the listeners that poold has opened.

        The passed sockets are in the part of `poold.master.clients.store`. In a `SocketPart`,
        `lent` says that the service manager has passed the socket.
        """
        return (each.socket.fd for each in self.listeners if not each.socket.lent)
