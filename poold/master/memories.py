"""The shared memories: the master's own, and the read-only views for other processes."""

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
    """The shared activity file of an old version's workers, and the phase page."""

    activity: int
    phase: int

    def descriptors(self) -> Iterator[int]:
        """Yield both descriptors."""
        return iter((self.activity, self.phase))


@dataclass(slots=True)
class Memories:
    """The shared memories.

    Workers map `phase_page` as long as they live, so the next program takes over the page. In
    `shared_activity` all workers of an old version write. That version had no activity page for
    each worker.
    """

    counters: Counters
    rows: ChildRows
    phase_page: PhasePage
    phase_page_fd: int
    shared_activity: int
    # Read-only views. `phase_view` is for molds, and `views` (counters, rows) is for control
    # clients.
    phase_view: int
    views: list[int]

    def save(self) -> MemoriesPart:
        """Return the memories that living workers use."""
        return MemoriesPart(activity=self.shared_activity, phase=self.phase_page_fd)

    def restore(self, part: MemoriesPart) -> None:
        """Do nothing: the memories are made from the part, before all other parts of the master."""


def share(inherited: MemoriesPart | None = None) -> Memories:
    """Make the shared memories that are not inherited. Raises OSError."""
    counters, rows = Counters(), ChildRows()
    if inherited is None:
        shared_activity, phase_page_fd = shared_memory("activity", SLOTS * PAGE_SIZE), shared_memory("phase", PAGE_SIZE)
    else:
        shared_activity, phase_page_fd = inherited.activity, _check_phase_page(inherited.phase)
    try:
        keep_size(phase_page_fd)
    except PermissionError:
        # The previous program has done so.
        pass
    views = [read_only(fd) for fd in (counters.fd, rows.fd)]
    return Memories(counters, rows, PhasePage(phase_page_fd), phase_page_fd, shared_activity, read_only(phase_page_fd), views)


def _check_phase_page(fd: int) -> int:
    """Return this descriptor if it is a phase page, or else a new page.

    The kernel ends a process that touches a mapped page beyond the end of the file.
    """
    try:
        if os.fstat(fd).st_size < PAGE_SIZE:
            raise OSError(f"it has {os.fstat(fd).st_size} bytes")
        fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError as error:
        log.error("phase_lost", error=str(error))
        return shared_memory("phase", PAGE_SIZE)
    return fd
