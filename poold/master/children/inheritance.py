"""The children that one program of the master leaves to the next one."""

import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from poold.channel import Wire
from poold.log import log
from poold.master.children.ladder import Ladder
from poold.master.children.reaper import Keeper, Reaper
from poold.master.children.table import Child, ChildPart, ChildTable
from poold.master.clients.sessions import Sessions
from poold.master.document.part import Part
from poold.words import Kind


@dataclass(frozen=True, kw_only=True)
class ChildrenPart(Part):
    """All born children."""

    children: tuple[ChildPart, ...]

    def descriptors(self) -> Iterator[int]:
        """Yield the descriptors of the children's channels and pages."""
        return (fd for child in self.children for fd in (child.channel, child.page) if fd is not None)


class Inheritance:
    """Saves the table of children, and gives each inherited child to the keeper of its kind."""

    def __init__(self, *, table: ChildTable, ladder: Ladder, sessions: Sessions, reaper: Reaper, keepers: Mapping[Kind, Keeper]) -> None:
        self._table = table
        self._ladder = ladder
        self._sessions = sessions
        self._reaper = reaper
        self._keepers = keepers

    def save(self) -> ChildrenPart:
        """Return all born children."""
        return ChildrenPart(children=tuple(child.save() for child in self._table if child.pid))

    def restore(self, part: ChildrenPart) -> None:
        """Take over the children of the previous program. Raises OSError.

        A process that is no child of the master any more has ended, and is settled.
        """
        for each in part.children:
            child = self._child(each)
            self._table.inherit(child)
            self._ladder.resume(child)
        self._table.settle_slots()
        for child in self._table:
            self._keepers[child.kind].inherit(child)
        self._reaper.reconcile()

    def _child(self, part: ChildPart) -> Child:
        child = Child(part.slot, part.incarnation, part.kind, part.generation, part.claimed_at)
        child.pid, child.state, child.ready = part.pid, part.state, part.ready
        child.excused, child.failure, child.page = part.excused, part.failure, part.page
        if part.channel is not None:
            child.channel = _channel(part, part.channel)
            if child.leaving:
                # A mold whose last answers were still to be read. At an upgrade no order is open,
                # so there is nothing more to read.
                self._ladder.close_channel(child)
        if part.session is not None:
            child.session = self._sessions.inherit(part.session)
        return child


def _channel(part: ChildPart, fd: int) -> Wire | None:
    """Return the master's end of a child's channel, or None where the descriptor is no channel.

    Such a descriptor stays open, because the number may belong to anything.
    """
    try:
        end = Wire(fileno=fd)
        if end.family != socket.AF_UNIX:
            end.detach()
            raise OSError("it is not one")
    except OSError as error:
        log.error("channel_lost", kind=part.kind, pid=part.pid, error=str(error))
        return None
    end.setblocking(False)
    return end
