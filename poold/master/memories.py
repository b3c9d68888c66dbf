"""The shared memories: the master's own, and what others get of them."""

import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass

from poold.childrows import SLOTS, ChildRows
from poold.log import log
from poold.master.document.part import Part
from poold.pages import PAGE_SIZE, PhasePage
from poold.scoreboard import Counters, keep_size, read_only, shared_memory


@dataclass(frozen=True, kw_only=True)
class MemoriesPart(Part):
    """The file in which workers of a version before pages of their own have theirs, and the phase page."""

    activity: int
    phase: int

    def descriptors(self) -> Iterator[int]:
        """Yield both."""
        return iter((self.activity, self.phase))


@dataclass(slots=True)
class Memories:
    """The shared memories.

    `phase` is mapped by workers for as long as they live: the program after this one takes it over. `shared_activity` is the one file in which
    workers of a version before pages of their own have theirs.
    """

    counters: Counters
    rows: ChildRows
    phase: PhasePage
    phase_fd: int
    shared_activity: int
    # Read-only: the phase page for molds; counters and rows for whoever asks on the control socket.
    phase_view: int
    views: list[int]

    def save(self) -> MemoriesPart:
        """Return what workers go on with."""
        return MemoriesPart(activity=self.shared_activity, phase=self.phase_fd)

    def restore(self, part: MemoriesPart) -> None:
        """Do nothing: memories are made of their part, because all others need them."""


def share(inherited: MemoriesPart | None = None) -> Memories:
    """Make the shared memories, or those that are not inherited. Raises OSError."""
    counters, rows = Counters(), ChildRows()
    if inherited is None:
        shared_activity, phase = shared_memory("activity", SLOTS * PAGE_SIZE), shared_memory("phase", PAGE_SIZE)
    else:
        shared_activity, phase = inherited.activity, _check_phase_page(inherited.phase)
    try:
        keep_size(phase)
    except PermissionError:
        # Done by the program before.
        pass
    views = [read_only(fd) for fd in (counters.fd, rows.fd)]
    return Memories(counters, rows, PhasePage(phase), phase, shared_activity, read_only(phase), views)


def _check_phase_page(fd: int) -> int:
    """Return the phase page of the program before, or another one where that is none: touching what is not there would be fatal."""
    try:
        if os.fstat(fd).st_size < PAGE_SIZE:
            raise OSError(f"it has {os.fstat(fd).st_size} bytes")
        fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError as error:
        log.error("phase_lost", error=str(error))
        return shared_memory("phase", PAGE_SIZE)
    return fd
