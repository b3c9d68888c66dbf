"""The few words that end a child: EOF (leave), TERM (stop now), KILL. One ladder, climbed by deadlines.

A pid is signalled only while its row exists, and only the master reaps, so it cannot have been given to a stranger. Every child
leads a session and a group of its own before its pid is known here: the group is what gets the signal, so that what a handler
forked ends with a session that poold ends.
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
    """Ends children, and owns each child's one deadline."""

    def __init__(self, *, current: Current, loop: Loop, table: ChildTable) -> None:
        self._current = current
        self._loop = loop
        self._table = table

    def set_deadline(self, child: Child, seconds: float, callback: Callback) -> None:
        """Set the child's deadline; the one it had is forgotten."""
        self.clear_deadline(child)
        child.deadline = self._loop.after(seconds, callback)

    def clear_deadline(self, child: Child) -> None:
        """Forget the child's deadline."""
        if child.deadline is not None:
            child.deadline.cancel()
            child.deadline = None

    def close_channel(self, child: Child) -> None:
        """Close our end of the child's channel: EOF, the word for leave."""
        if child.channel is not None:
            self._loop.forget(child.channel)
            child.channel.close()
            child.channel = None

    def retire(self, child: Child, *, listen: bool = False) -> None:
        """Ask a child that has nothing new to do to leave; TERM follows when it does not. With `listen`, hear it out."""
        child.excused = True
        if listen and child.channel is not None:
            child.channel.shutdown(socket.SHUT_WR)
        else:
            self.close_channel(child)
        if not child.leaving:
            self._table.move(child, State.RETIRING)
        self.set_deadline(child, self._current.config.timeouts.kill, partial(self.terminate, child))

    def terminate(self, child: Child) -> None:
        """Stop a child now; KILL follows when it does not."""
        if child.state in (State.TERMINATING, State.KILLED):
            return
        self._table.move(child, State.TERMINATING)
        self.set_deadline(child, self._current.config.timeouts.kill, partial(self.kill, child))
        self._signal(child, signal.SIGTERM)

    def kill(self, child: Child) -> None:
        """End a child that did not stop."""
        self.clear_deadline(child)
        if child.state is State.KILLED:
            return
        self._table.move(child, State.KILLED)
        log.info("child_killed", kind=child.kind, pid=child.pid or None)
        self._signal(child, signal.SIGKILL)

    def expel(self, child: Child, failure: Failure | None) -> None:
        """End a child that is of no use any more, at once; `failure` is what it counts as, None: what its exit says."""
        if child.failure is None:
            child.failure = failure
        self.kill(child)

    def resume(self, child: Child) -> None:
        """Give a child that the program before has told to go the time it has for that, from now."""
        seconds = self._current.config.timeouts.kill
        if child.state is State.RETIRING:
            self.set_deadline(child, seconds, partial(self.terminate, child))
        elif child.state is State.TERMINATING:
            self.set_deadline(child, seconds, partial(self.kill, child))

    def sweep(self, child: Child) -> None:
        """End what is left of a worker's group when poold ended its session; to be called before the leader is reaped."""
        if child.state in (State.TERMINATING, State.KILLED):
            self._signal(child, signal.SIGKILL)

    def _signal(self, child: Child, number: signal.Signals) -> None:
        if child.pid <= 1:
            # Claimed, not born: its channel's end or its own deadline settles it.
            return
        try:
            try:
                os.killpg(child.pid, number)
            except ProcessLookupError:
                # It has no group of its own yet: it hangs before it could make one. (Or it is a zombie, which feels nothing.)
                os.kill(child.pid, number)
        except PermissionError:
            # It has become another user (sudo(8)), and this process may signal none but its own. It ends when it likes; others go on.
            log.warning("child_not_signalled", kind=child.kind, pid=child.pid, signal=number.name)
