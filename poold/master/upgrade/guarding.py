"""The master's end of an upgrade's guard (`poold.master.guard`): starts it, gives it the word, lets it go."""

import socket
from collections.abc import Callable

from poold.master.change.trials import Trials
from poold.master.children.ladder import Ladder
from poold.master.children.spawn import Launcher
from poold.master.children.table import Child
from poold.master.current import Current
from poold.master.engine.loop import Loop
from poold.master.guard import READY, WATCH

# Told that the guard is ready, or why there is none.
OnReady = Callable[[str | None], object]


class Guard:
    """A guard that runs. It belongs to the trials in the table: it is there for the sake of one upgrade."""

    def __init__(self, *, current: Current, loop: Loop, ladder: Ladder, launcher: Launcher, trials: Trials, on_ready: OnReady) -> None:
        """Start it. Raises OSError."""
        self._loop = loop
        self._ladder = ladder
        self._on_ready = on_ready
        self._child: Child | None = None
        self._channel, guard_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._channel.setblocking(False)
        try:
            with guard_end:
                loop.watch(self._channel, self._read)
                self._child = trials.start(lambda: launcher.guard(current.config, channel=guard_end.fileno()))
        except BaseException:
            self.dismiss()
            raise

    def _read(self) -> None:
        try:
            word = self._channel.recv(len(READY))
        except BlockingIOError:
            return
        except OSError:
            # It ended with words unread.
            word = b""
        if word == READY:
            self._on_ready(None)
            return
        self._loop.forget(self._channel)
        self._on_ready("the guard of the upgrade has ended; what it said is in the log")

    def watch(self) -> int:
        """Have it watch from now on, and return the descriptor that the new program closes when its loop turns. Raises OSError."""
        self._channel.send(WATCH, socket.MSG_NOSIGNAL)
        return self._channel.fileno()

    def dismiss(self) -> None:
        """Let it go; again does no harm."""
        self._loop.forget(self._channel)
        self._channel.close()
        child, self._child = self._child, None
        if child is not None and not child.leaving and not child.exiting:
            self._ladder.retire(child)
