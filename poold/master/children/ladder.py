"""Ends children in steps: EOF on the channel, then SIGTERM, then SIGKILL, each after a deadline.

A pid is signalled only while the child's row exists. Only the master reaps children, so no other
process can have that pid. Every child leads a session and a process group of its own before the
master knows the pid. The group gets the signal, so that processes which a handler has forked end
with a session that poold ends.
"""

import os
import signal
import socket
from functools import partial

from poold.log import log
from poold.master.children.table import Child, ChildTable
from poold.master.current import Current
from poold.master.engine.deadlines import Callback
from poold.master.engine.loop import Loop
from poold.words import Failure, State


class Ladder:
    """Ends children, and owns the one deadline of each child."""

    def __init__(self, *, current: Current, loop: Loop, table: ChildTable) -> None:
        self._current = current
        self._loop = loop
        self._table = table

    def set_deadline(self, child: Child, seconds: float, callback: Callback) -> None:
        """Set the child's deadline in place of the one before."""
        self.clear_deadline(child)
        child.deadline = self._loop.after(seconds, callback)

    def clear_deadline(self, child: Child) -> None:
        """Cancel the child's deadline."""
        if child.deadline is not None:
            child.deadline.cancel()
            child.deadline = None

    def close_channel(self, child: Child) -> None:
        """Close the master's end of the child's channel. EOF tells the child to leave."""
        if child.channel is not None:
            self._loop.forget(child.channel)
            child.channel.close()
            child.channel = None

    def retire(self, child: Child, *, listen: bool = False) -> None:
        """Ask a child without further work to leave. SIGTERM follows when the child does not leave.

        With `listen`, the master goes on reading what the child sends.
        """
        child.excused = True
        if listen and child.channel is not None:
            child.channel.shutdown(socket.SHUT_WR)
        else:
            self.close_channel(child)
        if not child.leaving:
            self._table.move(child, State.RETIRING)
        self.set_deadline(child, self._current.config.timeouts.kill, partial(self.terminate, child))

    def terminate(self, child: Child) -> None:
        """Send SIGTERM to a child. SIGKILL follows when the child does not end."""
        if child.state in (State.TERMINATING, State.KILLED):
            return
        self._table.move(child, State.TERMINATING)
        self.set_deadline(child, self._current.config.timeouts.kill, partial(self.kill, child))
        self._signal(child, signal.SIGTERM)

    def kill(self, child: Child) -> None:
        """Send SIGKILL to a child."""
        self.clear_deadline(child)
        if child.state is State.KILLED:
            return
        self._table.move(child, State.KILLED)
        log.info("child_killed", kind=child.kind, pid=child.pid or None)
        self._signal(child, signal.SIGKILL)

    def expel(self, child: Child, failure: Failure | None) -> None:
        """Kill a child that is of no use any more.

        The child's end counts as `failure`. For None the exit status decides.
        """
        if child.failure is None:
            child.failure = failure
        self.kill(child)

    def resume(self, child: Child) -> None:
        """Set the deadline of a child that the previous program has told to leave.

        The child gets the whole time once more.
        """
        seconds = self._current.config.timeouts.kill
        if child.state is State.RETIRING:
            self.set_deadline(child, seconds, partial(self.terminate, child))
        elif child.state is State.TERMINATING:
            self.set_deadline(child, seconds, partial(self.kill, child))

    def sweep(self, child: Child) -> None:
        """Kill what is left of a worker's process group after poold has ended the session.

        The caller calls this before the leader is reaped.
        """
        if child.state in (State.TERMINATING, State.KILLED):
            self._signal(child, signal.SIGKILL)

    def _signal(self, child: Child, number: signal.Signals) -> None:
        if child.pid <= 1:
            # The slot is claimed but the child is not born. EOF on the channel or the child's
            # deadline settles the row.
            return
        try:
            try:
                os.killpg(child.pid, number)
            except ProcessLookupError:
                # The child hangs before making a group of its own. Or the child is a zombie, which
                # no signal changes.
                os.kill(child.pid, number)
        except PermissionError:
            # The child has become another user (sudo(8)), which this process may not signal. That
            # child ends by itself, and the master goes on.
            log.warning("child_not_signalled", kind=child.kind, pid=child.pid, signal=number.name)
