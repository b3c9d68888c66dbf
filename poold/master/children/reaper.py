"""The reaper: the only place where the master waits for a child.

SIGCHLD says that some children have ended, and the reaper asks until none is left. The reaper looks
at each exit before taking the exit (waitid(2), WNOWAIT). As long as the zombie exists, its pid and
its process group belong to that child. During that time the reaper reads the child's last messages,
and kills what is left of a group that poold has ended.

The same wait returns stops as well. `poold.master.children.tracees` takes these.
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
from poold.master.clients.sessions import Session
from poold.master.engine.loop import Loop
from poold.master.engine.signals import Inbox
from poold.scoreboard import CPU_SECONDS, FAILED, MEMORY_BYTES, REAPED, Counters
from poold.words import Cause, Kind

# The most exits and stops that one turn takes. The next turn takes the others.
REAPS_MAX = 256
EXITS = (os.CLD_EXITED, os.CLD_KILLED, os.CLD_DUMPED)


def exit_status(wait_status: int) -> int | None:
    """Return the exit status in a wait status. A negative exit status is a signal.

    Return None for a wait status that tells of a stop, or that a stopped process goes on (wait(2)).
    """
    ended = os.WIFEXITED(wait_status) or os.WIFSIGNALED(wait_status)
    return os.waitstatus_to_exitcode(wait_status) if ended else None


class Keeper(Protocol):
    """The object that looks after the children of one kind."""

    def hear_out(self, child: Child) -> None:
        """Read the last messages of a child that has ended and is not reaped yet."""

    def exited(self, child: Child, exit: Exit) -> Cause | None:
        """Settle the end of a child that is reaped and has no row any more.

        Return the cause of the end of its session, or None for no session.
        """

    def stop(self) -> None:
        """Ask every child of this kind to leave. Calling this again changes nothing."""

    def inherit(self, child: Child) -> None:
        """Take over a child of the previous program. Raises OSError."""


class Unborn(Protocol):
    """The object that knows of children whose pids the master does not know yet.

    `poold.master.pool.workers.Workers` implements this protocol.
    """

    def read_unborn(self) -> None:
        """Read the pids that such children have sent."""

    def keep_exit(self, exit: Exit) -> None:
        """Keep an exit that belongs to no row, because the exit may be that of such a child."""

    def match_exits(self) -> Iterable[tuple[Child, Exit]]:
        """Return the children whose exits were kept."""


class Reaper:
    """Waits for children. The keeper of a child's kind settles the child's end.

    `keepers` has a keeper for each kind of child.
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
        """Take the exits that have come, a bounded number in each turn."""
        more = True
        try:
            more = self._reap_some()
        finally:
            # Also after an error, because the kernel sends no second SIGCHLD for the children that
            # are left.
            if more:
                self._inbox.note(signal.SIGCHLD)

    def _reap_some(self) -> bool:
        """Take a bounded number of exits. Return whether there may be more."""
        for _ in range(REAPS_MAX):
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                if found is None:
                    return False
                if found.si_code in EXITS:
                    self._take_exit(found.si_pid)
                else:
                    self.tracees.stopped(found.si_pid)
            except ChildProcessError:
                self.reconcile()
                return False
            except Exception:
                # The exit may have been taken already, and would not come out of a wait again.
                self._loop.after(0, self.reconcile)
                raise
        return True

    def _take_exit(self, pid: int) -> None:
        child = self._table.by_pid(pid)
        if child is None:
            self._unborn.read_unborn()
            child = self._table.by_pid(pid)
        if child is not None:
            self._hear_out(child)
            self._ladder.sweep(child)
        stranger = child is None and is_process(pid)
        self.tracees.forget(pid)
        taken, wait_status, usage = os.wait4(pid, os.WNOHANG)
        status = exit_status(wait_status)
        if not taken or status is None:
            # An exit that was seen cannot become anything else. If that happened, the next turn
            # would look at the child again.
            return
        if child is not None:
            self._settle(child, Exit(pid, status, usage))
        elif stranger:
            self._unborn.keep_exit(Exit(pid, status, usage))

    def _hear_out(self, child: Child) -> None:
        child.exiting = True
        self._keepers[child.kind].hear_out(child)

    def match(self) -> None:
        """Settle the children whose exits came before their pids were known."""
        for child, exit in self._unborn.match_exits():
            self._settle(child, exit)

    def reconcile(self) -> None:
        """Settle children for which another part of this process has waited.

        Such an exit status is lost (wait(2), ECHILD).
        """
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
        """Settle the end of a child: its channel, its slot, its session and the counts.

        Even where a step raises, the child is not signalled any more, has no row, and its keeper
        knows of the end.
        """
        self._loop.call_each(
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
        """Have the keeper settle a child's end, then count and log how the child ended."""
        session, cause = child.session, None
        try:
            cause = self._keepers[child.kind].exited(child, exit)
        finally:
            self._count_end(child, exit, session, cause)

    def _count_end(self, child: Child, exit: Exit, session: Session | None, cause: Cause | None) -> None:
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
