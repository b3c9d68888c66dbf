"""The births of workers: from the order until the worker is READY, or until no worker will come.

A birth is asynchronous. The master claims a slot, makes a channel, and sends the order to the mold.
The mold answers with a pid or an errno. The worker reports BORN, and the kernel adds the worker's
pid. Answer and BORN come in either order, and either may be missing.

A worker may die before the worker has reported BORN. So the exit of an unknown pid is kept until
its order is known, or until no order is open.
"""

import errno
import os
from collections import Counter

from poold import __version__
from poold.channel import Report
from poold.errors import ProtocolError
from poold.log import log
from poold.master.children.exits import Exit
from poold.master.children.table import Child, ChildTable
from poold.master.engine.throttle import Throttle
from poold.scoreboard import FORK_FAILURES, SPAWNED, Counters
from poold.words import Kind


class Births:
    """The open orders, and the exits that may belong to them."""

    def __init__(self, *, table: ChildTable, counters: Counters) -> None:
        self._table = table
        self._counters = counters
        self.throttle = Throttle()
        self.open: dict[int, Child] = {}
        self.unclaimed: dict[int, Exit] = {}
        # The number of open orders, by generation.
        self.by_generation: Counter[int] = Counter()

    def begin(self, child: Child) -> None:
        """Note that an order for this child has been sent."""
        self.open[child.slot] = child
        self.by_generation[child.generation] += 1

    def note_failure(self, now: float, *, number: int, why: str, clone: bool = True) -> bool:
        """Slow down after a failed birth. Return whether this is the first failure since a success.

        `number` is an errno, or 0 if a worker has died. `clone` says that the clone failed or that
        a descriptor was missing, and not that the mold was out of reach. Only the first failure
        since a success is logged.
        """
        name = errno.errorcode.get(number, str(number)) if number else None
        if name is not None and clone:
            self._counters.cells[FORK_FAILURES.get(name, FORK_FAILURES["other"])] += 1
        first = self.throttle.failed(now)
        if first:
            hint = "look at TasksMax=, pids.max and ulimit -u" if number == errno.EAGAIN and clone else None
            log.warning("spawn_failed", why=why, errno=name, hint=hint, retry_seconds=self.throttle.delay)
        return first

    def take_answer(self, child: Child, pid: int, number: int) -> bool:
        """Take the mold's answer to an order: a pid, or an errno.

        Return whether the clone has failed, so that no worker will come.
        """
        if child.answered or self.open.get(child.slot) is not child:
            return False
        child.answered = True
        if not number:
            child.named_pid = pid
        return bool(number)

    def take_born(self, child: Child, report: Report) -> None:
        """Take a worker's BORN.

        Raises ProtocolError if the sender is no child of the master, or has another version of
        poold.
        """
        if child.pid or report.pid <= 1 or self._table.by_pid(report.pid) is not None:
            raise ProtocolError(f"BORN of pid {report.pid} does not belong here")
        try:
            # User code in the mold can make processes too. Only a child of this process can be
            # waited for (waitid(2)).
            os.waitid(os.P_PID, report.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            raise ProtocolError(f"pid {report.pid} says BORN and is no child of ours") from None
        if report.version != __version__:
            raise ProtocolError(f"a worker of poold {report.version} under a master of {__version__}")
        self._record_birth(child, report.pid)

    def prove(self, child: Child) -> None:
        """Accept the pid that the mold has named, if the kernel knows that child of the master.

        A worker that hangs before BORN becomes known in this way.
        """
        pid = child.named_pid
        if child.pid or pid <= 1 or self._table.by_pid(pid) is not None or pid in self.unclaimed:
            return
        try:
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            # The pid is no child of this process, whatever the mold says.
            return
        self._record_birth(child, pid)

    def _record_birth(self, child: Child, pid: int) -> None:
        self._table.born(child, pid)
        self._counters.cells[SPAWNED[Kind.WORKER]] += 1
        log.debug("child_spawned", kind=child.kind, pid=pid, slot=child.slot)

    def take_ready(self, child: Child) -> None:
        """Take a worker's READY. Births work, so they are not slowed down any more."""
        child.ready = True
        self.throttle.succeeded()
        self.close(child)

    def close(self, child: Child) -> None:
        """Forget an order, however the order has ended."""
        if self.open.get(child.slot) is child:
            del self.open[child.slot]
            self.by_generation[child.generation] -= 1
            if not self.by_generation[child.generation]:
                del self.by_generation[child.generation]

    def keep_exit(self, exit: Exit) -> None:
        """Keep an exit that belongs to no row yet."""
        self.unclaimed[exit.pid] = exit

    def match_exits(self) -> list[tuple[Child, Exit]]:
        """Return the children that the kept exits belong to, each with its exit.

        Exits that may still belong to an open order stay in `unclaimed`.
        """
        matched = []
        for child in list(self.open.values()):
            pid = child.pid or child.named_pid
            exit = self.unclaimed.pop(pid, None) if pid else None
            if exit is not None:
                if not child.pid:
                    self._record_birth(child, exit.pid)
                matched.append((child, exit))
        return matched

    def take_strangers(self) -> list[Exit]:
        """Take out and return the kept exits, unless an order is open that one may belong to."""
        if any(not child.pid and not child.named_pid for child in self.open.values()):
            return []
        strangers, self.unclaimed = list(self.unclaimed.values()), {}
        return strangers
