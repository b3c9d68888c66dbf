"""Trials: a process of its own finds out whether something would do, and the master reads its verdict.

A trial may hang in a name service or die of what it tries: neither reaches the master. Its verdict is JSON in a memory file; one
that has `problems` says no, and so does a trial that does not exit with 0.
"""

import json
import os
from collections.abc import Callable
from functools import partial
from typing import Any

from poold.errors import Problem
from poold.master.births import Exit
from poold.master.children import Child
from poold.master.parts import Parts
from poold.master.spawn import memory_file
from poold.scoreboard import SPAWNED
from poold.words import Failure, Kind, State

# A trial that takes longer hangs: in a name service, say.
TRIAL_SECONDS = 30.0
VERDICT_MAX = 8 << 20

# Told the verdict: what the trial wrote down, or what it found wrong.
Judged = Callable[[dict[str, Any], list[Problem]], object]


class Trials:
    """The trials that run; there is one at a time, or one that nobody waits for any more beside it."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._running: dict[Child, tuple[int, Judged]] = {}

    def begin(self, launch: Callable[[int], int], judged: Judged) -> None:
        """Start a trial by `launch`, which takes a descriptor for the verdict and returns a pid. Raises OSError."""
        parts = self._parts
        child = parts.table.claim(Kind.TRIAL, generation=parts.current.generation, now=parts.loop.clock())
        verdict = -1
        try:
            verdict = memory_file("verdict")
            pid = launch(verdict)
        except OSError:
            parts.table.remove(child)
            if verdict >= 0:
                os.close(verdict)
            raise
        self._running[child] = (verdict, judged)
        child.ready = True
        parts.table.born(child, pid)
        parts.table.move(child, State.SERVING)
        parts.counters.cells[SPAWNED[Kind.TRIAL]] += 1
        parts.ladder.within(child, TRIAL_SECONDS, partial(parts.ladder.expel, child, Failure.TIMEOUT))

    def exited(self, child: Child, exit: Exit) -> None:
        """Read the verdict of a trial that has ended, and tell it."""
        if child not in self._running:
            # Begun by the program that was here before an upgrade.
            return
        fd, judged = self._running.pop(child)
        try:
            verdict, problems = _verdict(fd, child, exit)
        finally:
            os.close(fd)
        judged(verdict, problems)


def _verdict(fd: int, child: Child, exit: Exit) -> tuple[dict[str, Any], list[Problem]]:
    if exit.status != 0:
        reason = f"took longer than {TRIAL_SECONDS:g} s" if child.failure is Failure.TIMEOUT else f"ended with status {exit.status}"
        return {}, [Problem("", f"the trial {reason}; what it said is in the log")]
    try:
        verdict = json.loads(os.pread(fd, VERDICT_MAX, 0))
        return verdict, [Problem(problem["key"], problem["message"], problem["line"]) for problem in verdict.get("problems", ())]
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        # An upgrade's is written by other code; and whoever asked must hear of an end.
        return {}, [Problem("", f"the trial's verdict cannot be understood: {type(error).__name__}: {error}")]
