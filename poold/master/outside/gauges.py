"""Writes the figures that are looked up, and not counted, into the shared counters.

They are figures of the child table, the sessions and this process.
"""

import os
import resource
import time

from poold.childrows import NO_LISTENER, ChildRows
from poold.log import log
from poold.master.children.table import Child, ChildTable
from poold.master.clients.sessions import Sessions
from poold.master.current import Current
from poold.master.engine.loop import Loop
from poold.master.pool.pool import Pool
from poold.scoreboard import (
    BARREN_FROM,
    BUILD_INFO,
    CHILDREN,
    CHILDREN_ACTIVE,
    CHILDREN_MAX,
    GENERATION,
    LOG_DROPPED,
    LOOP_ERRORS,
    LOOP_SECONDS,
    PROCESS_CPU,
    PROCESS_FDS,
    PROCESS_FDS_MAX,
    PROCESS_RESIDENT,
    PROCESS_STARTED,
    PROCESS_VIRTUAL,
    SESSIONS_ACTIVE,
    Counters,
)

_PAGE = resource.getpagesize()


class Gauges:
    """Keeps the shared counters and rows equal to the master's own tables."""

    def __init__(
        self, *, current: Current, loop: Loop, table: ChildTable, sessions: Sessions, pool: Pool, counters: Counters, rows: ChildRows
    ) -> None:
        self._current = current
        self._loop = loop
        self._table = table
        self._sessions = sessions
        self._pool = pool
        self._counters = counters
        self._rows = rows
        counters.cells[BUILD_INFO] = 1
        counters.cells[PROCESS_STARTED] = int(time.time() * 1_000_000)

    def _write(self, child: Child) -> None:
        session = child.session
        self._rows.write(
            child.slot,
            pid=child.pid,
            kind=child.kind,
            state=child.state,
            listener=session.number if session is not None else NO_LISTENER,
            incarnation=child.incarnation,
            generation=child.generation,
            session=session.id if session is not None else 0,
            born_at=child.claimed_at,
            session_at=session.accepted_at if session is not None else 0.0,
            peer=str(session.peer) if session is not None else "",
        )

    def publish(self) -> None:
        """Publish counters and rows as of this moment.

        The master's loop calls this at the end of each turn.
        """
        cells = self._counters.cells
        changed_states, changed_children = self._table.take_changes()
        for key in changed_states:
            cells[CHILDREN[key]] = self._table.census[key]
        for slot, child in changed_children.items():
            if child is None:
                self._rows.clear(slot)
            else:
                self._write(child)
        cells[SESSIONS_ACTIVE] = len(self._sessions.open)
        cells[CHILDREN_ACTIVE] = self._sessions.serving
        cells[BARREN_FROM] = int(self._pool.barren_from() * 1_000_000)
        cells[CHILDREN_MAX] = self._current.config.pool.max_children
        cells[GENERATION] = self._current.generation
        cells[LOG_DROPPED] = log.dropped
        cells[LOOP_ERRORS] = self._loop.errors
        self._counters.observe(LOOP_SECONDS, self._loop.clock() - self._loop.woken_at)
        self._counters.publish()

    def measure(self) -> None:
        """Write what the kernel tells of this process."""
        cells = self._counters.cells
        usage = resource.getrusage(resource.RUSAGE_SELF)
        cells[PROCESS_CPU] = int((usage.ru_utime + usage.ru_stime) * 1_000_000)
        cells[PROCESS_FDS_MAX] = resource.getrlimit(resource.RLIMIT_NOFILE)[0] & 0xFFFFFFFFFFFFFFFF
        try:
            with open("/proc/self/statm", encoding="ascii") as statm:
                virtual, resident = statm.read().split()[:2]
            cells[PROCESS_VIRTUAL] = int(virtual) * _PAGE
            cells[PROCESS_RESIDENT] = int(resident) * _PAGE
            # One of the descriptors is the listing's own.
            cells[PROCESS_FDS] = len(os.listdir("/proc/self/fd")) - 1
        except OSError:
            # There is no descriptor to read /proc with, so all of them are in use.
            cells[PROCESS_FDS] = cells[PROCESS_FDS_MAX]
