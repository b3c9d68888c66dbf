"""Orders to the mold: how many may be placed, and what becomes of each until its worker is ready or is given up."""

from collections.abc import Callable
from functools import partial

from poold import channel
from poold.log import log
from poold.master.children.ladder import Ladder
from poold.master.children.table import Child, ChildTable
from poold.master.current import Current
from poold.master.engine.loop import Loop
from poold.master.pool.activity import Activities
from poold.master.pool.births import Births
from poold.settings.descriptors import BIRTHS_MAX
from poold.words import Failure, Kind


class Orders:
    """Places orders, and settles those that no worker comes of."""

    def __init__(self, *, current: Current, loop: Loop, table: ChildTable, births: Births, ladder: Ladder, activities: Activities) -> None:
        self._current = current
        self._loop = loop
        self._table = table
        self._births = births
        self._ladder = ladder
        self._activities = activities
        # Sends an order with its descriptors to a mold and returns that mold; raises OSError. Set by the molds' keeper.
        self.send: Callable[[bytes, int, int | None], Child] | None = None
        # Told that a worker has said something.
        self.on_readable: Callable[[Child], object] = lambda child: None
        # Told of a mold that no worker came of, and whether that is the first time since one did.
        self.on_failed: Callable[[Child, bool], object] = lambda mold, first: None
        self.stopping = False

    def begin_anew(self, send: Callable[[bytes, int, int | None], Child]) -> None:
        """Send orders to another mold: what was held back because of the one before is tried at once."""
        self.send = send
        self._births.throttle.retry()

    def left(self) -> int:
        """Return how many may be placed now: the cap, and no failure to recover from."""
        if self.held_back():
            return 0
        below_cap = self._current.config.pool.max_children - self._table.workers
        return max(0, min(below_cap, BIRTHS_MAX - len(self._births.open)))

    def held_back(self) -> bool:
        """Say whether none may be placed because something is lacking: a mold, or the last failure is not long enough ago."""
        throttle = self._births.throttle
        return self.stopping or self.send is None or (throttle.delay > 0 and not throttle.open(self._loop.clock()))

    def coming(self) -> int:
        """Return how many workers are on their way that will serve: those of older settings leave as soon as they are ready."""
        return self._births.by_generation[self._current.generation]

    def place(self, count: int, *, ahead: bool) -> None:
        """Order so many workers, as far as they can be ordered. `ahead` says that nobody waits for them yet."""
        for _ in range(count):
            if not self._place(ahead):
                return

    def _place(self, ahead: bool) -> bool:
        assert self.send is not None
        child = self._table.claim(Kind.WORKER, generation=self._current.generation, now=self._loop.clock())
        try:
            page = self._activities.open(child) if self._current.config.server.command is None else None
            child.channel, theirs = channel.make_pair()
        except OSError as error:
            self.forget(child)
            self._failed(error.errno or 0, "no descriptors for a page and a channel")
            return False
        try:
            self._loop.watch(child.channel, partial(self.on_readable, child))
            child.mold = self.send(channel.pack_order(child.slot, child.incarnation, ahead=ahead), theirs.fileno(), page)
        except OSError as error:
            self.forget(child)
            self._failed(error.errno or 0, "the mold cannot be reached")
            return False
        finally:
            theirs.close()
        self._births.begin(child)
        self._ladder.within(child, self._birth_seconds(), partial(self._not_ready, child))
        return True

    def _birth_seconds(self) -> float:
        """Return how long an ordered worker may take until it is ready."""
        config = self._current.config
        return config.timeouts.startup + (0 if config.pool.preload else config.timeouts.import_)

    def answered(self, slot: int, incarnation: int, pid: int, number: int) -> None:
        """Take the mold's answer to an order."""
        child = self._births.answered(slot, incarnation, pid, number)
        if child is not None:
            self.forget(child)
            self._failed(number, "the mold cannot clone", child.mold)

    def stillborn(self, child: Child) -> None:
        """Slow down after a worker that died before it was ready."""
        self._failed(0, "a worker died before it was ready", child.mold)

    def _failed(self, number: int, why: str, mold: Child | None = None) -> None:
        first = self._births.failed(self._loop.clock(), number=number, why=why)
        if mold is not None:
            self.on_failed(mold, first)
        # The loop turns again once births may be tried again.
        self._loop.at(self._births.throttle.until, lambda: None)

    def forget(self, child: Child) -> None:
        """Give back the slot of a child that was never born."""
        self._births.close(child)
        self._ladder.relax(child)
        self._ladder.close_channel(child)
        self._activities.close(child)
        self._table.remove(child)

    def _not_ready(self, child: Child) -> None:
        self._births.prove(child)
        log.warning("worker_not_ready", pid=child.pid or None, seconds=self._loop.clock() - child.claimed_at)
        if child.pid:
            self._ladder.expel(child, Failure.STILLBORN)
        else:
            self.forget(child)
            self._failed(0, "an ordered worker never appeared", child.mold)
