"""Trials: a child process judges settings or code, and the master reads its verdict.

A trial may hang in a name service, or may die of what the trial attempts. Neither reaches the
master. The verdict is JSON in a memory file. A verdict with `problems` refuses, and so does a trial
with an exit status other than 0.

The callback of a trial is called at the trial's end in any case, even after an error of poold's
own.
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

# Seconds that a trial may take. A trial that takes longer hangs, for example in a name service.
TRIAL_SECONDS = 30.0
VERDICT_MAX = 8 << 20

# Gets the verdict: what the trial has written, and the problems that the trial has found.
OnVerdict = Callable[[dict[str, Any], list[Problem]], object]


class Trials:
    """The running trials: one, and perhaps an older trial whose verdict is no longer wanted."""

    def __init__(self, *, current: Current, loop: Loop, table: ChildTable, ladder: Ladder, counters: Counters) -> None:
        self._current = current
        self._loop = loop
        self._table = table
        self._ladder = ladder
        self._counters = counters
        self._running: dict[Child, tuple[int, OnVerdict]] = {}

    def begin(self, launch: Callable[[int], int], on_verdict: OnVerdict) -> None:
        """Start a trial and call `on_verdict` at its end.

        `launch` takes a descriptor for the verdict and returns a pid. Whatever is raised, OSError
        above all, no trial runs then.
        """
        for lost in [each for each in self._running if self._table.by_pid(each.pid) is not each]:
            os.close(self._running.pop(lost)[0])
        verdict = memory_file("verdict")
        try:
            child = self.start(lambda: launch(verdict))
            self._running[child] = (verdict, on_verdict)
        except BaseException:
            os.close(verdict)
            raise
        self._ladder.set_deadline(child, TRIAL_SECONDS, partial(self._ladder.expel, child, Failure.TIMEOUT))

    def start(self, launch: Callable[[], int]) -> Child:
        """Start a process of this kind by `launch`, which returns a pid.

        Whatever is raised, no process runs then.
        """
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
        """Do nothing: each trial ends by itself or at its deadline."""

    def inherit(self, child: Child) -> None:
        """Do nothing: the verdict of the previous program's trial is no longer wanted."""

    def exited(self, child: Child, exit: Exit) -> None:
        """Read the verdict of a trial that has ended, and call its callback."""
        if child not in self._running:
            # The previous program has begun this trial, or this process gives no verdict.
            return
        fd, on_verdict = self._running.pop(child)
        fault: Exception | None = None
        try:
            verdict, problems = _read_verdict(fd, child, exit)
        except Exception as error:
            fault, verdict, problems = error, {}, [OWN_FAULT]
        finally:
            os.close(fd)
        on_verdict(verdict, problems)
        if fault is not None:
            self._loop.note_error(fault)


def _read_verdict(fd: int, child: Child, exit: Exit) -> tuple[dict[str, Any], list[Problem]]:
    if exit.status != 0:
        reason = f"took longer than {TRIAL_SECONDS:g} s" if child.failure is Failure.TIMEOUT else f"ended with status {exit.status}"
        return {}, [Problem("", f"the trial {reason}; what it said is in the log")]
    # os.pread takes memory for all the bytes that a call asks for.
    text = os.pread(fd, min(os.fstat(fd).st_size, VERDICT_MAX), 0)
    try:
        verdict = json.loads(text)
        return verdict, [Problem(problem["key"], problem["message"], problem["line"]) for problem in verdict.get("problems", ())]
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        # The code of another version writes an upgrade's verdict. The request needs an answer in
        # any case.
        return {}, [Problem("", f"the trial's verdict cannot be understood: {type(error).__name__}: {error}")]
