"""The master's side of an upgrade's guard (`poold.master.guard`)."""

import socket
from collections.abc import Callable

from poold.master.change.trials import Trials
from poold.master.children.ladder import Ladder
from poold.master.children.spawn import Launcher
from poold.master.children.table import Child
from poold.master.current import Current
from poold.master.engine.loop import Loop
from poold.master.guard import READY, WATCH

# Gets None when the guard is ready, or the reason why there is no guard.
OnReady = Callable[[str | None], object]


class Guard:
    """A running guard. In the table of children a guard counts as a trial."""

    def __init__(self, *, current: Current, loop: Loop, ladder: Ladder, launcher: Launcher, trials: Trials, on_ready: OnReady) -> None:
        """Start the guard. Raises OSError."""
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
            # The guard has ended without reading everything.
            word = b""
        if word == READY:
            self._on_ready(None)
            return
        self._loop.forget(self._channel)
        self._on_ready("the guard of the upgrade has ended; what it said is in the log")

    def watch(self) -> int:
        """Tell the guard to watch the master from now on. Raises OSError.

        Return the descriptor that the new program closes once its loop turns.
        """
        self._channel.send(WATCH, socket.MSG_NOSIGNAL)
        return self._channel.fileno()

    def dismiss(self) -> None:
        """Ask the guard to leave. A second call changes nothing."""
        self._loop.forget(self._channel)
        self._channel.close()
        child, self._child = self._child, None
        if child is not None and not child.leaving and not child.exiting:
            self._ladder.retire(child)
