"""What whoever asks on the control socket sees of this master: its own words, and descriptors of what it publishes.

A table of thousands costs the master nothing, because the client reads it. What sessions say of themselves is on a page of each that
nobody else may have; it is copied for those who ask for it, a bounded number a turn.
"""

import json
import os
from collections.abc import Callable
from functools import partial
from typing import Any

from poold.master.children.spawn import memory_file
from poold.master.outside.control import Answer, Reply
from poold.master.parts import Parts


class Views:
    """Answers the verb `view`. `about` returns what only the master itself knows."""

    def __init__(self, parts: Parts, about: Callable[[], dict[str, Any]]) -> None:
        self._parts = parts
        self._about = about

    def view(self, request: dict[str, Any], reply: Reply) -> None:
        """Answer with counters and rows; with `statuses`, a JSON object of texts by session comes with them."""
        if request.get("statuses"):
            self._parts.activities.gather(self._parts.loop, self._parts.table, partial(self._gathered, reply))
        else:
            reply(Answer(self._about(), self._parts.memories.views))

    def _gathered(self, reply: Reply, texts: dict[int, str]) -> None:
        try:
            statuses = memory_file("statuses", json.dumps(texts).encode())
        except OSError as error:
            reply(Answer({"ok": False, "error": f"no descriptor for what sessions say: {error.strerror}"}))
            return
        try:
            reply(Answer({**self._about(), "statuses": True}, [*self._parts.memories.views, statuses]))
        finally:
            os.close(statuses)
