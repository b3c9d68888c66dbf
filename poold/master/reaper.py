"""The reaper: the only place where a child is waited for.

SIGCHLD says "some"; the loop asks until nothing is left. Each exit is looked at before it is taken (waitid(2), WNOWAIT), because
as long as the zombie is there its pid and its group are its own: what it said last is read, and what poold ended is swept up.
A stop is no exit: `poold.master.children.tracees` takes those that come out of the wait as well.
"""

import os
from collections.abc import Callable
from functools import partial

from poold.log import log
from poold.master.children.exits import Exit
from poold.master.children.ladder import Ladder
from poold.master.children.table import Child, ChildTable, failure_of
from poold.master.children.tracees import Tracees, is_process
from poold.master.engine.deadlines import Callback
from poold.master.engine.loop import Loop
from poold.master.pool.activity import Activities
from poold.master.pool.births import Births
from poold.master.pool.handover import HandOver
from poold.master.pool.orders import Orders
from poold.master.pool.pool import Pool
from poold.scoreboard import CPU_SECONDS, FAILED, MEMORY_BYTES, REAPED, UNKNOWN_REAPED, Counters
from poold.words import Cause, Failure, Kind

# Exits, and stops, in one turn; the rest in the next one.
REAPS_MAX = 256
EXITS = (os.CLD_EXITED, os.CLD_KILLED, os.CLD_DUMPED)


def exit_code(status: int) -> int | None:
    """Return the exit code (negative: signal) that a wait status says; None if it says a stop, or that a stopped one goes on (wait(2))."""
    return os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) or os.WIFSIGNALED(status) else None


class Reaper:
    """Waits for children, and settles what their ends leave behind."""

    def __init__(
        self,
        *,
        loop: Loop,
        table: ChildTable,
        births: Births,
        pool: Pool,
        orders: Orders,
        handover: HandOver,
        ladder: Ladder,
        counters: Counters,
        activities: Activities,
    ) -> None:
        self._loop = loop
        self._table = table
        self._births = births
        self._pool = pool
        self._orders = orders
        self._handover = handover
        self._ladder = ladder
        self._counters = counters
        self._activities = activities
        self.tracees = Tracees(loop)
        # By kind: reads what a child whose exit was seen has said last; what is to be done when it has gone.
        self.hear_out: dict[Kind, Callable[[Child], object]] = {Kind.WORKER: pool.hear_out}
        self.on_exit: dict[Kind, Callable[[Child, Exit], object]] = {}

    def reap(self) -> bool:
        """Take the exits there are, a bounded number; say whether there may be more."""
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
            # A worker may have died before its BORN was read.
            for starting in list(self._births.open.values()):
                self._pool.read(starting)
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
            self._births.exited(Exit(pid, code, usage))

    def _hear_out(self, child: Child) -> None:
        child.exiting = True
        if child.kind in self.hear_out:
            self.hear_out[child.kind](child)

    def match(self) -> None:
        """Find out to whom the exits belong that had no row when they were taken."""
        if not self._births.unclaimed:
            return
        for child, exit in self._births.match():
            self._settle(child, exit)
        for stranger in self._births.strangers():
            self._counters.cells[UNKNOWN_REAPED] += 1
            log.debug("unknown_child_reaped", pid=stranger.pid, status=stranger.status)

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
        """Draw the line under a child: its session, the counts, the slot.

        Whatever is raised, it is not signalled any more, has no row, and its keeper knows.
        """
        steps: list[Callback] = [partial(self._ladder.relax, child), partial(self._conclude, child, exit)]
        steps += [partial(self._activities.close, child), partial(self._remove, child)]
        if child.kind in self.on_exit:
            steps.append(partial(self.on_exit[child.kind], child, exit))
        self._loop.each(steps)
        if self._table.by_pid(child.pid) is child:
            self._loop.after(0, self.reconcile)

    def _remove(self, child: Child) -> None:
        self._table.remove(child)
        self._counters.cells[REAPED[child.kind]] += 1

    def _conclude(self, child: Child, exit: Exit) -> None:
        now = self._loop.clock()
        self._ladder.close_channel(child)
        self._births.close(child)
        session = child.session
        cause: Cause | None = None
        if child.kind is Kind.WORKER:
            gone = exit.status is not None and exit.status > 0 and self._activities.read(child).client_gone
            cause = self._handover.settle(child, status=exit.status, client_gone=gone)
        failure = failure_of(child, status=exit.status, cause=cause)
        cells = self._counters.cells
        if exit.usage is not None:
            self._counters.observe(CPU_SECONDS, exit.usage.ru_utime + exit.usage.ru_stime)
            self._counters.observe(MEMORY_BYTES, exit.usage.ru_maxrss * 1024)
        if failure is not None:
            cells[FAILED[failure]] += 1
            log.warning(
                "child_failed",
                kind=child.kind,
                pid=exit.pid,
                reason=failure,
                status=exit.status,
                session=session.id if session is not None else None,
                peer=session.peer if session is not None else None,
                seconds=now - child.claimed_at,
            )
        log.debug("child_reaped", kind=child.kind, pid=exit.pid, status=exit.status, cause=cause)
        if failure is Failure.STILLBORN and child.kind is Kind.WORKER:
            self._orders.stillborn(child)
