"""Births of workers: from the order to the mold until the worker is ready, or was stillborn.

A birth is asynchronous. The slot is claimed, a channel made, the order sent; the mold answers (a pid or an errno) and the worker
says BORN with the kernel's word for its pid, in either order, and either may be missing. A pid that is reaped while orders are
open may be a worker that died before it could say so: it is kept until its order is known, or none is open.
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
    """The orders that are open, and exits that may belong to them."""

    def __init__(self, *, table: ChildTable, counters: Counters) -> None:
        self._table = table
        self._counters = counters
        self.throttle = Throttle()
        self.open: dict[int, Child] = {}
        self.unclaimed: dict[int, Exit] = {}
        # How many orders are open, by generation.
        self.by_generation: Counter[int] = Counter()

    def begin(self, child: Child) -> None:
        """Note that an order was sent for this child."""
        self.open[child.slot] = child
        self.by_generation[child.generation] += 1

    def failed(self, now: float, *, number: int, why: str, clone: bool = True) -> bool:
        """Slow down after a birth that failed, with one line until one succeeds; say whether it is the first since one did.

        `number` is the errno, 0 where a worker has died. `clone` says that it was the clone that failed, or something for it was lacking.
        """
        name = errno.errorcode.get(number, str(number)) if number else None
        if name is not None and clone:
            self._counters.cells[FORK_FAILURES.get(name, FORK_FAILURES["other"])] += 1
        first = self.throttle.failed(now)
        if first:
            hint = "look at TasksMax=, pids.max and ulimit -u" if number == errno.EAGAIN and clone else None
            log.warning("spawn_failed", why=why, errno=name, hint=hint, retry_seconds=self.throttle.delay)
        return first

    def answered(self, child: Child, pid: int, number: int) -> bool:
        """Take the mold's answer to an order, a pid or an errno; say whether there will be no worker because the clone failed."""
        if child.answered or self.open.get(child.slot) is not child:
            return False
        child.answered = True
        if not number:
            child.named_pid = pid
        return bool(number)

    def born(self, child: Child, report: Report) -> None:
        """Take a worker's BORN. Raises ProtocolError when the sender is not a child of ours, or is another poold."""
        if child.pid or report.pid <= 1 or self._table.by_pid(report.pid) is not None:
            raise ProtocolError(f"BORN of pid {report.pid} does not belong here")
        try:
            # User code in the mold can make processes too; only a child of ours can be waited for (waitid(2)).
            os.waitid(os.P_PID, report.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            raise ProtocolError(f"pid {report.pid} says BORN and is no child of ours") from None
        if report.version != __version__:
            raise ProtocolError(f"a worker of poold {report.version} under a master of {__version__}")
        self._spawned(child, report.pid)

    def prove(self, child: Child) -> None:
        """Take the mold's word for a pid if the kernel says that it is a child of ours: a worker that hangs before its BORN."""
        pid = child.named_pid
        if child.pid or pid <= 1 or self._table.by_pid(pid) is not None or pid in self.unclaimed:
            return
        try:
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            # Not ours, whatever the mold says.
            return
        self._spawned(child, pid)

    def _spawned(self, child: Child, pid: int) -> None:
        self._table.born(child, pid)
        self._counters.cells[SPAWNED[Kind.WORKER]] += 1
        log.debug("child_spawned", kind=child.kind, pid=pid, slot=child.slot)

    def ready(self, child: Child) -> None:
        """Take a worker's READY: births work."""
        child.ready = True
        self.throttle.succeeded()
        self.close(child)

    def close(self, child: Child) -> None:
        """Forget an order, however it ended."""
        if self.open.get(child.slot) is child:
            del self.open[child.slot]
            self.by_generation[child.generation] -= 1
            if not self.by_generation[child.generation]:
                del self.by_generation[child.generation]

    def exited(self, exit: Exit) -> None:
        """Keep an exit that belongs to no row yet."""
        self.unclaimed[exit.pid] = exit

    def match(self) -> list[tuple[Child, Exit]]:
        """Return the children whose exits were kept, and leave in `unclaimed` what may still belong to an open order."""
        matched = []
        for child in list(self.open.values()):
            pid = child.pid or child.named_pid
            exit = self.unclaimed.pop(pid, None) if pid else None
            if exit is not None:
                if not child.pid:
                    self._spawned(child, exit.pid)
                matched.append((child, exit))
        return matched

    def strangers(self) -> list[Exit]:
        """Take out the kept exits that belong to nobody: no order is open that could be theirs."""
        if any(not child.pid and not child.named_pid for child in self.open.values()):
            return []
        strangers, self.unclaimed = list(self.unclaimed.values()), {}
        return strangers
