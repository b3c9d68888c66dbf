"""One open listener, and what crosses an upgrade of all of them."""

from collections.abc import Iterator
from dataclasses import dataclass

from poold.master.clients.sockets import Opened, SocketPart
from poold.master.document.part import Part
from poold.master.engine.deadlines import Deadline
from poold.settings.config import Listener


@dataclass(slots=True, eq=False)
class Listening:
    """One open listener; `number` is its cell in the counters.

    One that is `leaving` is closed as soon as nobody waits in its queue. `empty` says that nobody did at the last look.
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
        """Return what the next program must know of it."""
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
    """An open listener: its address as the settings have it, and what cannot be changed on an open one."""

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
        """Yield the descriptors of our own listeners; those that are lent are among what was passed."""
        return (each.socket.fd for each in self.listeners if not each.socket.lent)
