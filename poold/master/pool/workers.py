"""Keeps the workers: hears out those that end, and settles what their ends leave behind."""

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
    """The keeper of workers (`poold.master.children.reaper.Keeper`), born and unborn."""

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
        """Read what a worker whose exit was seen still has to say."""
        self._hearing.hear_out(child)

    def exited(self, child: Child, exit: Exit) -> Cause | None:
        """Settle the end of a worker; return the cause of its session's end, None where there was none or it goes on elsewhere."""
        try:
            self._births.close(child)
            gone = exit.status is not None and exit.status > 0 and self._activities.read(child).client_gone
            cause = self._handover.settle(child, status=exit.status, client_gone=gone)
        finally:
            self._activities.close(child)
        if failure_of(child, status=exit.status, cause=cause) is Failure.STILLBORN:
            self._orders.stillborn(child)
        return cause

    def stop(self) -> None:
        """End every worker."""
        self._pool.stop()

    def inherit(self, child: Child) -> None:
        """Take over a worker of the program before: its spares leave, because their code is older than ours."""
        if child.page is not None and not is_page(child.page):
            # Nobody closes what is no page: it may be anything.
            child.page = None
        if child.state is State.SPARE:
            self._ladder.retire(child)
        elif child.channel is not None:
            self._hearing.listen(child)

    def find(self) -> None:
        """Read what workers say whose pids are not known yet: a process that has ended may be one of them."""
        self._hearing.read_unborn()

    def unclaimed(self, exit: Exit) -> None:
        """Keep an exit that belongs to no row: until its worker's order is known, or no order is open that could be its."""
        self._births.exited(exit)

    def match(self) -> Iterable[tuple[Child, Exit]]:
        """Return the workers whose exits were kept; count those exits that belong to nobody."""
        if not self._births.unclaimed:
            return ()
        matched = self._births.match()
        for stranger in self._births.strangers():
            self._counters.cells[UNKNOWN_REAPED] += 1
            log.debug("unknown_child_reaped", pid=stranger.pid, status=stranger.status)
        return matched
