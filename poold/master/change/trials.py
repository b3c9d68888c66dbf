"""Trials: a process of its own finds out whether something would do, and the master reads its verdict.

A trial may hang in a name service or die of what it tries: neither reaches the master. Its verdict is JSON in a memory file; one
that has `problems` says no, and so does a trial that does not exit with 0. Whoever began a trial is told of its end whatever happens
on the way, an error of poold's own included.
"""

import json
import os
from collections.abc import Callable
from functools import partial
from typing import Any

from poold.errors import OWN_FAULT, Problem
from poold.master.children.exits import Exit
from poold.master.children.ladder import Ladder
from poold.master.children.spawn import memory_file
from poold.master.children.table import Child, ChildTable
from poold.master.current import Current
from poold.master.engine.loop import Loop
from poold.scoreboard import SPAWNED, Counters
from poold.words import Failure, Kind, State

# A trial that takes longer hangs: in a name service, say.
TRIAL_SECONDS = 30.0
VERDICT_MAX = 8 << 20

# Told the verdict: what the trial wrote down, or what it found wrong.
Judged = Callable[[dict[str, Any], list[Problem]], object]


class Trials:
    """The trials that run; there is one at a time, or one that nobody waits for any more beside it."""

    def __init__(self, *, current: Current, loop: Loop, table: ChildTable, ladder: Ladder, counters: Counters) -> None:
        self._current = current
        self._loop = loop
        self._table = table
        self._ladder = ladder
        self._counters = counters
        self._running: dict[Child, tuple[int, Judged]] = {}

    def begin(self, launch: Callable[[int], int], judged: Judged) -> None:
        """Start a trial by `launch`, which takes a descriptor for the verdict and returns a pid.

        Whatever is raised (OSError is what can be expected), there is no trial.
        """
        for lost in [each for each in self._running if self._table.by_pid(each.pid) is not each]:
            os.close(self._running.pop(lost)[0])
        verdict = memory_file("verdict")
        try:
            child = self.start(lambda: launch(verdict))
            self._running[child] = (verdict, judged)
        except BaseException:
            os.close(verdict)
            raise
        self._ladder.within(child, TRIAL_SECONDS, partial(self._ladder.expel, child, Failure.TIMEOUT))

    def start(self, launch: Callable[[], int]) -> Child:
        """Start a process of this kind by `launch`, which returns a pid. Whatever is raised, there is none."""
        child = self._table.claim(Kind.TRIAL, generation=self._current.generation, now=self._loop.clock())
        try:
            self._table.born(child, launch())
            self._counters.cells[SPAWNED[Kind.TRIAL]] += 1
            child.ready = True
            self._table.move(child, State.SERVING)
        except BaseException:
            if child.pid:
                self._ladder.expel(child, None)
            else:
                self._table.remove(child)
            raise
        return child

    def hear_out(self, child: Child) -> None:
        """Read nothing: a trial's verdict is read when the trial has ended."""

    def stop(self) -> None:
        """Leave them: each ends by itself, or by its deadline."""

    def inherit(self, child: Child) -> None:
        """Take over a trial that the program before has begun; nobody waits for its verdict."""

    def exited(self, child: Child, exit: Exit) -> None:
        """Read the verdict of a trial that has ended, and tell it."""
        if child not in self._running:
            # Begun by the program that was here before an upgrade, or one that gives no verdict.
            return
        fd, judged = self._running.pop(child)
        fault: Exception | None = None
        try:
            verdict, problems = _verdict(fd, child, exit)
        except Exception as error:
            fault, verdict, problems = error, {}, [OWN_FAULT]
        finally:
            os.close(fd)
        judged(verdict, problems)
        if fault is not None:
            self._loop.note_error(fault)


def _verdict(fd: int, child: Child, exit: Exit) -> tuple[dict[str, Any], list[Problem]]:
    if exit.status != 0:
        reason = f"took longer than {TRIAL_SECONDS:g} s" if child.failure is Failure.TIMEOUT else f"ended with status {exit.status}"
        return {}, [Problem("", f"the trial {reason}; what it said is in the log")]
    # As much as there is: os.pread takes memory for as much as it is asked for.
    text = os.pread(fd, min(os.fstat(fd).st_size, VERDICT_MAX), 0)
    try:
        verdict = json.loads(text)
        return verdict, [Problem(problem["key"], problem["message"], problem["line"]) for problem in verdict.get("problems", ())]
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        # An upgrade's is written by other code; and whoever asked must hear of an end.
        return {}, [Problem("", f"the trial's verdict cannot be understood: {type(error).__name__}: {error}")]
