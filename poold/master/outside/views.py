"""What the master shows of itself: the process title, the status line, and views for clients.

A view is descriptors of shared memory with the counters and rows. The client reads that memory, so
a table of thousands of rows costs the master nothing. The text that a session has set is on the
session's activity page, which no other process may have. For a client that asks for these texts the
master copies them, a bounded number in each turn.
"""

import json
import os
import time
from functools import partial
from typing import Any

from poold import __version__
from poold.master.children.spawn import memory_file
from poold.master.children.table import ChildTable
from poold.master.clients.listeners import Listeners
from poold.master.clients.sessions import Sessions
from poold.master.current import Current
from poold.master.engine.loop import Loop
from poold.master.memories import Memories
from poold.master.outside.control import Answer, Reply
from poold.master.outside.manager import Manager
from poold.master.phase import Life, Phase
from poold.master.pool.activity import Activities
from poold.master.pool.handover import HandOver
from poold.title import set_title


class Views:
    """Shows the state of the master."""

    def __init__(
        self,
        *,
        life: Life,
        current: Current,
        loop: Loop,
        table: ChildTable,
        sessions: Sessions,
        listeners: Listeners,
        handover: HandOver,
        activities: Activities,
        memories: Memories,
        manager: Manager,
        started_at: float,
    ) -> None:
        """`started_at` is when this life of poold began (CLOCK_MONOTONIC)."""
        self._life = life
        self._current = current
        self._loop = loop
        self._table = table
        self._sessions = sessions
        self._listeners = listeners
        self._handover = handover
        self._activities = activities
        self._memories = memories
        self._manager = manager
        self._started_at = started_at
        # The sessions and the cap in the present process title.
        self._shown_load = (-1, 0)

    def show(self) -> None:
        """Set this process's title, and send the status line to the service manager."""
        load = self._load()
        if load != self._shown_load:
            self._shown_load = load
            set_title(f"master [{load[0]}/{load[1]}]")
        if self._life.phase is not Phase.STARTING and self._manager.present:
            self._manager.status(self._status_line())

    def show_ready(self) -> None:
        """Tell the service manager that the master serves connections from now on."""
        self._manager.status(self._status_line())
        self._manager.ready()

    def _load(self) -> tuple[int, int]:
        return len(self._sessions.open), self._current.config.pool.max_children

    def _status_line(self) -> str:
        """Return the state of the master in one line."""
        sessions, cap = self._load()
        text = f"{sessions}/{cap} sessions, {len(self._handover.spares)} spares"
        left = self._life.left(self._loop.clock())
        if left is not None:
            return f"draining, {text}, {left:.0f} s left"
        shown = self._life.shown
        return text if shown is Phase.RUNNING else f"{shown}, {text}"

    def about(self) -> dict[str, Any]:
        """Return the master's own facts for a client of the control socket."""
        return {
            "ok": True,
            "version": __version__,
            "pid": os.getpid(),
            "phase": self._life.shown,
            "generation": self._current.generation,
            "seconds": time.monotonic() - self._started_at,
            "drain_seconds_left": self._life.left(self._loop.clock()),
            "listeners": self._listeners.describe(),
            "warnings": list(self._current.warnings),
        }

    def view(self, request: dict[str, Any], reply: Reply) -> None:
        """Answer with the descriptors of counters and rows.

        With `statuses` in the request, a JSON object of the sessions' texts by session id comes
        too.
        """
        if request.get("statuses"):
            self._activities.gather(self._loop, self._table, partial(self._answer_with_statuses, reply))
        else:
            reply(Answer(self.about(), self._memories.views))

    def _answer_with_statuses(self, reply: Reply, texts: dict[int, str]) -> None:
        try:
            statuses = memory_file("statuses", json.dumps(texts).encode())
        except OSError as error:
            reply(Answer({"ok": False, "error": f"no descriptor for what sessions say: {error.strerror}"}))
            return
        try:
            reply(Answer({**self.about(), "statuses": True}, [*self._memories.views, statuses]))
        finally:
            os.close(statuses)
