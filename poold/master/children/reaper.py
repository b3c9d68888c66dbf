"""The reaper: the only place where a child is waited for.

SIGCHLD says "some"; the loop asks until nothing is left. Each exit is looked at before it is taken (waitid(2), WNOWAIT), because
as long as the zombie is there its pid and its group are its own: what it said last is read, and what poold ended is swept up.
A stop is no exit: `poold.master.children.tracees` takes those that come out of the wait as well.
"""

import os
import signal
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Protocol

from poold.log import log
from poold.master.children.exits import Exit
from poold.master.children.ladder import Ladder
from poold.master.children.table import Child, ChildTable, failure_of
from poold.master.children.tracees import Tracees, is_process
from poold.master.engine.loop import Loop
from poold.master.engine.signals import Inbox
from poold.scoreboard import CPU_SECONDS, FAILED, MEMORY_BYTES, REAPED, Counters
from poold.words import Cause, Kind

# Exits, and stops, in one turn; the rest in the next one.
REAPS_MAX = 256
EXITS = (os.CLD_EXITED, os.CLD_KILLED, os.CLD_DUMPED)


def exit_code(status: int) -> int | None:
    """Return the exit code (negative: signal) that a wait status says; None if it says a stop, or that a stopped one goes on (wait(2))."""
    return os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) or os.WIFSIGNALED(status) else None


class Keeper(Protocol):
    """Who looks after the children of one kind."""

    def hear_out(self, child: Child) -> None:
        """Read what a child whose exit was seen has said last."""

    def exited(self, child: Child, exit: Exit) -> Cause | None:
        """Settle the end of a child that is reaped and has no row any more; return the cause of its session's end, if it had one."""

    def stop(self) -> None:
        """Have every child of this kind leave; again does no harm."""

    def inherit(self, child: Child) -> None:
        """Take over a child of the program before. Raises OSError."""


class Unborn(Protocol):
    """Who knows of children that have no pid yet: an exit may be theirs (`poold.master.pool.workers.Workers`)."""

    def find(self) -> None:
        """Find out the pids of those who have told theirs."""

    def unclaimed(self, exit: Exit) -> None:
        """Keep an exit that belongs to no row."""

    def match(self) -> Iterable[tuple[Child, Exit]]:
        """Return those children whose exits were kept."""


class Reaper:
    """Waits for children, and has each child's keeper settle what its end leaves behind.

    `keepers` has one for each kind of child there is.
    """

    def __init__(
        self,
        *,
        inbox: Inbox,
        loop: Loop,
        table: ChildTable,
        ladder: Ladder,
        counters: Counters,
        unborn: Unborn,
        keepers: Mapping[Kind, Keeper],
    ) -> None:
        self._inbox = inbox
        self._loop = loop
        self._table = table
        self._ladder = ladder
        self._counters = counters
        self._unborn = unborn
        self._keepers = keepers
        self.tracees = Tracees(loop)

    def reap(self) -> None:
        """Take the exits there are, a bounded number a turn."""
        more = True
        try:
            more = self._reap_some()
        finally:
            # Also after an error, because no signal comes again for those who are left.
            if more:
                self._inbox.note(signal.SIGCHLD)

    def _reap_some(self) -> bool:
        """Take a bounded number of exits; say whether there may be more."""
        for _ in range(REAPS_MAX):
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                if found is None:
                    return False
                if found.si_code in EXITS:
                    self._take(found.si_pid)
                else:
                    self.tracees.stopped(found.si_pid)
            except ChildProcessError:
                self.reconcile()
                return False
            except Exception:
                # Its exit may have been taken, and nobody would ask for it again.
                self._loop.after(0, self.reconcile)
                raise
        return True

    def _take(self, pid: int) -> None:
        child = self._table.by_pid(pid)
        if child is None:
            self._unborn.find()
            child = self._table.by_pid(pid)
        if child is not None:
            self._hear_out(child)
            self._ladder.sweep(child)
        stranger = child is None and is_process(pid)
        self.tracees.gone(pid)
        taken, status, usage = os.wait4(pid, os.WNOHANG)
        code = exit_code(status)
        if not taken or code is None:
            # What was an exit cannot become anything else; if it did, it would be looked at once more.
            return
        if child is not None:
            self._settle(child, Exit(pid, code, usage))
        elif stranger:
            self._unborn.unclaimed(Exit(pid, code, usage))

    def _hear_out(self, child: Child) -> None:
        child.exiting = True
        self._keepers[child.kind].hear_out(child)

    def match(self) -> None:
        """Find out to whom the exits belong that had no row when they were taken."""
        for child, exit in self._unborn.match():
            self._settle(child, exit)

    def reconcile(self) -> None:
        """Let go of children that somebody else has waited for: nobody will tell how they ended (wait(2), ECHILD)."""
        for child in self._table:
            if not child.pid:
                continue
            try:
                os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                log.error("exit_status_lost", kind=child.kind, pid=child.pid)
                if not child.exiting:
                    self._hear_out(child)
                self._settle(child, Exit(child.pid, None, None))

    def _settle(self, child: Child, exit: Exit) -> None:
        """Draw the line under a child: its channel, the slot, its session, the counts.

        Whatever is raised, it is not signalled any more, has no row, and its keeper knows.
        """
        self._loop.each(
            (
                partial(self._ladder.clear_deadline, child),
                partial(self._ladder.close_channel, child),
                partial(self._remove, child),
                partial(self._conclude, child, exit),
            )
        )
        if self._table.by_pid(child.pid) is child:
            self._loop.after(0, self.reconcile)

    def _remove(self, child: Child) -> None:
        self._table.remove(child)
        self._counters.cells[REAPED[child.kind]] += 1

    def _conclude(self, child: Child, exit: Exit) -> None:
        """Have the keeper settle a child's end, and count and tell how it ended."""
        session = child.session
        cause = self._keepers[child.kind].exited(child, exit)
        failure = failure_of(child, status=exit.status, cause=cause)
        if exit.usage is not None:
            self._counters.observe(CPU_SECONDS, exit.usage.ru_utime + exit.usage.ru_stime)
            self._counters.observe(MEMORY_BYTES, exit.usage.ru_maxrss * 1024)
        if failure is not None:
            self._counters.cells[FAILED[failure]] += 1
            log.warning(
                "child_failed",
                kind=child.kind,
                pid=exit.pid,
                reason=failure,
                status=exit.status,
                session=session.id if session is not None else None,
                peer=session.peer if session is not None else None,
                seconds=self._loop.clock() - child.claimed_at,
            )
        log.debug("child_reaped", kind=child.kind, pid=exit.pid, status=exit.status, cause=cause)
