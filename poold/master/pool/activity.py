"""The activity pages: the memory files in which workers tell what their sessions do.

The master makes one file for each worker, together with the worker's order. The master keeps the
file until the worker is reaped, and gives its descriptor to that worker alone. A process that a
session has left behind may still have the session's file open. So each new worker gets a new file.
The master does not trust the content, which counts for one session only.

The master reads a page with pread(2) and never maps a page. Another process may shorten the file,
and a mapping that is cut is fatal to touch (mmap(2), SIGBUS).
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

# The most pages that the master reads in one turn when a client asks what every session does.
READS_MAX = 256


@dataclass(frozen=True, slots=True)
class Activity:
    """What a session has told through its page.

    `client_gone` says that the session's client had gone. `deadline` is the deadline that the
    session asks for (CLOCK_MONOTONIC, 0.0: none). `status` is the text that describes the session.
    """

    client_gone: bool = False
    deadline: float = 0.0
    status: str = ""


NO_ACTIVITY = Activity()


def parse_page(data: bytes, owner: int) -> Activity:
    """Return what the bytes of a page tell, or `NO_ACTIVITY` if `owner` has not written them.

    `owner` is the number with which the writer signs. Any bytes are allowed.
    """
    if len(data) < ACTIVITY_LAYOUT.size:
        return NO_ACTIVITY
    gone, deadline, length, text, signed = ACTIVITY_LAYOUT.unpack_from(data)
    if signed != owner:
        return NO_ACTIVITY
    status = text[: min(length, STATUS_MAX)].decode("utf-8", "replace")
    return Activity(
        client_gone=gone != 0,
        deadline=deadline if math.isfinite(deadline) and deadline > 0 else 0.0,
        status="".join(c for c in status if c.isprintable()),
    )


def is_page(fd: int) -> bool:
    """Return whether a descriptor is an activity page, a memory file of fixed size.

    No process can change the size, because the file is sealed (fcntl(2), F_ADD_SEALS).
    """
    try:
        return fcntl.fcntl(fd, fcntl.F_GET_SEALS) == ACTIVITY_SEALS
    except OSError:
        return False


class Activities:
    """The activity pages of all workers.

    `shared_activity` is the one file in which all workers of an old version write, a page for each
    slot. That version had no file for each worker. A program of that version asks for the file,
    also when such a program replaces this one.
    """

    def __init__(self, shared_activity: int) -> None:
        self.shared_activity = shared_activity

    def open(self, child: Child) -> int:
        """Make the page of a worker that is about to be ordered, and return its descriptor.

        The master keeps the descriptor. Raises OSError.
        """
        fd = shared_memory("activity", PAGE_SIZE)
        child.page = fd
        keep_size(fd)
        return fd

    def close(self, child: Child) -> None:
        """Close a worker's page. A second call changes nothing."""
        if child.page is not None:
            os.close(child.page)
            child.page = None

    def read(self, child: Child) -> Activity:
        """Return what a worker's session has told."""
        session = child.session
        if session is None:
            return NO_ACTIVITY
        try:
            if child.page is not None:
                return parse_page(os.pread(child.page, ACTIVITY_LAYOUT.size, 0), session.id)
            # In the shared file a worker signs with its pid.
            return parse_page(os.pread(self.shared_activity, ACTIVITY_LAYOUT.size, child.slot * PAGE_SIZE), child.pid)
        except OSError:
            # The worker shares the open file, and may have set any flag of the file (fcntl(2),
            # F_SETFL).
            return NO_ACTIVITY

    def gather(self, loop: Loop, children: Iterable[Child], on_complete: Callable[[dict[int, str]], object]) -> None:
        """Collect the status text of each child's session, then call `on_complete` with all texts.

        The texts are given by session. At most `READS_MAX` pages are read in one turn.
        """
        texts: dict[int, str] = {}
        left = [child for child in children if child.session is not None]

        def read_some() -> None:
            for child in left[:READS_MAX]:
                # The session may have ended since.
                text = self.read(child).status
                if text and child.session is not None:
                    texts[child.session.id] = text
            del left[:READS_MAX]
            if left:
                loop.after(0, read_some)
            else:
                on_complete(texts)

        read_some()
