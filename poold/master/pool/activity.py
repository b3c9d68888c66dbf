"""Activity pages: one memory file for each worker, made with its order and kept until it is reaped.

The master alone gives a page's descriptor away, to the worker whose page it is. It reads with pread(2) and never maps a page: a
mapping of a file that somebody else may cut would be fatal to touch (mmap(2), SIGBUS). A new worker gets a new file, because what a
session has left behind may still hold the old one. What is read is gossip of one session.
"""

import fcntl
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from poold.master.children.table import Child
from poold.master.engine.loop import Loop
from poold.pages import ACTIVITY_LAYOUT, ACTIVITY_SEALS, PAGE_SIZE, STATUS_MAX
from poold.scoreboard import keep_size, shared_memory

# Pages that are read in one turn for whoever asks what every session does.
READS_MAX = 256


@dataclass(frozen=True, slots=True)
class Activity:
    """What a session has said: its client had gone; a deadline it asks for (CLOCK_MONOTONIC, 0.0: none); what it does."""

    client_gone: bool = False
    deadline: float = 0.0
    status: str = ""


SILENT = Activity()


def understand(data: bytes, owner: int) -> Activity:
    """Return what the bytes of a page say, nothing where `owner` has not written them. Any bytes will do."""
    if len(data) < ACTIVITY_LAYOUT.size:
        return SILENT
    gone, deadline, length, text, signed = ACTIVITY_LAYOUT.unpack_from(data)
    if signed != owner:
        return SILENT
    status = text[: min(length, STATUS_MAX)].decode("utf-8", "replace")
    return Activity(
        client_gone=gone != 0,
        deadline=deadline if math.isfinite(deadline) and deadline > 0 else 0.0,
        status="".join(c for c in status if c.isprintable()),
    )


def is_page(fd: int) -> bool:
    """Say whether a descriptor is that of a page, of which nobody can change the size."""
    try:
        return fcntl.fcntl(fd, fcntl.F_GET_SEALS) == ACTIVITY_SEALS
    except OSError:
        return False


class Activities:
    """The pages of all workers.

    `common` is the one file in which workers of a version before pages of their own have theirs, a page a slot. Such a version asks for
    it, also where this one is replaced by it.
    """

    def __init__(self, common: int) -> None:
        self.common = common

    def open(self, child: Child) -> int:
        """Make the page of a worker that is about to be ordered, and return its descriptor, which stays ours. Raises OSError."""
        fd = shared_memory("activity", PAGE_SIZE)
        child.page = fd
        keep_size(fd)
        return fd

    def close(self, child: Child) -> None:
        """Let go of a worker's page; again does no harm."""
        if child.page is not None:
            os.close(child.page)
            child.page = None

    def read(self, child: Child) -> Activity:
        """Return what a worker's session has said."""
        session = child.session
        if session is None:
            return SILENT
        try:
            if child.page is not None:
                return understand(os.pread(child.page, ACTIVITY_LAYOUT.size, 0), session.id)
            # A worker signs what it writes there with its pid.
            return understand(os.pread(self.common, ACTIVITY_LAYOUT.size, child.slot * PAGE_SIZE), child.pid)
        except OSError:
            # A descriptor is shared with the worker, who may have set any flag on it (fcntl(2), F_SETFL).
            return SILENT

    def gather(self, loop: Loop, children: Iterable[Child], told: Callable[[dict[int, str]], object]) -> None:
        """Collect what all these children's sessions do, by session, a bounded number a turn; tell it when it is complete."""
        texts: dict[int, str] = {}
        left = [child for child in children if child.session is not None]

        def read_some() -> None:
            for child in left[:READS_MAX]:
                # It may have ended since.
                text = self.read(child).status
                if text and child.session is not None:
                    texts[child.session.id] = text
            del left[:READS_MAX]
            if left:
                loop.after(0, read_some)
            else:
                told(texts)

        read_some()
