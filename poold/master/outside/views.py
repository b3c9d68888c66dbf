"""What others see of this master: its own words, in a line or in full, and descriptors of what it publishes.

A table of thousands costs the master nothing, because the client reads it. What sessions say of themselves is on a page of each that
nobody else may have; it is copied for those who ask for it, a bounded number a turn.
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
    """Says how it goes."""

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
        # Sessions and cap, as the title has them.
        self._shown_load = (-1, 0)

    def show(self) -> None:
        """Show how it goes: in this process's title, and to the service manager."""
        load = self._load()
        if load != self._shown_load:
            self._shown_load = load
            set_title(f"master [{load[0]}/{load[1]}]")
        if self._life.phase is not Phase.STARTING and self._manager.present:
            self._manager.status(self._status_line())

    def show_ready(self) -> None:
        """Tell the service manager that clients are served from now on."""
        self._manager.status(self._status_line())
        self._manager.ready()

    def _load(self) -> tuple[int, int]:
        return len(self._sessions.open), self._current.config.pool.max_children

    def _status_line(self) -> str:
        """Return how it goes, in one line."""
        sessions, cap = self._load()
        text = f"{sessions}/{cap} sessions, {len(self._handover.spares)} spares"
        left = self._life.left(self._loop.clock())
        if left is not None:
            return f"draining, {text}, {left:.0f} s left"
        shown = self._life.shown
        return text if shown is Phase.RUNNING else f"{shown}, {text}"

    def about(self) -> dict[str, Any]:
        """Return what the master says of itself on the control socket."""
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
        """Answer with counters and rows; with `statuses`, a JSON object of texts by session comes with them."""
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
