"""Keeps the workers: reads the last reports of workers that end, and settles their ends."""

from collections.abc import Iterable

from poold.log import log
from poold.master.children.exits import Exit
from poold.master.children.ladder import Ladder
from poold.master.children.table import Child, failure_of
from poold.master.pool.activity import Activities, is_page
from poold.master.pool.births import Births
from poold.master.pool.handover import HandOver
from poold.master.pool.hearing import Hearing
from poold.master.pool.orders import Orders
from poold.master.pool.pool import Pool
from poold.scoreboard import UNKNOWN_REAPED, Counters
from poold.words import Cause, Failure, State


class Workers:
    """The keeper of workers, born and unborn (`poold.master.children.reaper.Keeper`)."""

    def __init__(
        self,
        *,
        ladder: Ladder,
        births: Births,
        activities: Activities,
        handover: HandOver,
        hearing: Hearing,
        orders: Orders,
        pool: Pool,
        counters: Counters,
    ) -> None:
        self._ladder = ladder
        self._births = births
        self._activities = activities
        self._handover = handover
        self._hearing = hearing
        self._orders = orders
        self._pool = pool
        self._counters = counters

    def hear_out(self, child: Child) -> None:
        """Read the last reports of a worker that is about to be reaped."""
        self._hearing.hear_out(child)

    def exited(self, child: Child, exit: Exit) -> Cause | None:
        """Settle the end of a worker, and return the cause of its session's end.

        The result is None if there was no session, or if the session goes on in another worker.
        """
        try:
            self._births.close(child)
            gone = exit.status is not None and exit.status > 0 and self._activities.read(child).client_gone
            cause = self._handover.settle(child, status=exit.status, client_gone=gone)
        finally:
            self._activities.close(child)
        if failure_of(child, status=exit.status, cause=cause) is Failure.STILLBORN:
            self._orders.note_stillborn(child)
        return cause

    def stop(self) -> None:
        """End every worker."""
        self._pool.stop()

    def inherit(self, child: Child) -> None:
        """Take over a worker of the previous program.

        A spare is asked to leave, because its code is older than this program.
        """
        if child.page is not None and not is_page(child.page):
            # The descriptor is no page and may be anything, so the descriptor is not closed.
            child.page = None
        if child.state is State.SPARE:
            self._ladder.retire(child)
        elif child.channel is not None:
            self._hearing.listen(child)

    def read_unborn(self) -> None:
        """Read the reports of workers without a known pid. An ended process may be one of them."""
        self._hearing.read_unborn()

    def keep_exit(self, exit: Exit) -> None:
        """Keep an exit that belongs to no row.

        The exit is kept until its worker's order is known, or until no order is open that the exit
        could belong to.
        """
        self._births.keep_exit(exit)

    def match_exits(self) -> Iterable[tuple[Child, Exit]]:
        """Return the workers that the kept exits belong to. Count the exits without an order."""
        if not self._births.unclaimed:
            return ()
        matched = self._births.match_exits()
        for stranger in self._births.take_strangers():
            self._counters.cells[UNKNOWN_REAPED] += 1
            log.debug("unknown_child_reaped", pid=stranger.pid, status=stranger.status)
        return matched
