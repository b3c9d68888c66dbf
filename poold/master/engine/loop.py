"""The event loop. While serving, the master waits only here. The loop has no periodic tick.

The loop sleeps until a descriptor is ready, a signal comes or the next deadline falls due. One
turn:

1. Sleep for `holdoff` seconds, if the caller has set any.
2. Wait with epoll.
3. Act on signals. After signals, poll again, because acting on signals may have changed what a
   ready descriptor means.
4. Call the callbacks of the ready descriptors.
5. Call the callbacks of the deadlines that are due.

The loop logs and counts an error in one callback, and goes on with the other callbacks. When errors
do not stop, the loop raises InternalError, and the master ends in order.
"""

import select
import time
import traceback
from collections.abc import Callable, Iterable
from functools import partial
from typing import Protocol

from poold.errors import InternalError
from poold.log import log
from poold.master.engine.deadlines import Callback, Deadline, Deadlines
from poold.master.engine.signals import Inbox

# The most descriptors that one turn acts on. The next turn acts on the others.
EVENTS_MAX = 256
# A wait that returns this many seconds after its own time-out shows that this process was stopped,
# or that the machine stood still.
STALL = 5.0
# With more errors than this in `ERRORS_WINDOW` seconds, the fault does not go away by itself.
ERRORS_MAX = 20
ERRORS_WINDOW = 10.0
# After an error the loop turns again within this many seconds, even if nothing else happens.
TURN_AFTER_ERROR = 1.0


class HasFileno(Protocol):
    """An object with a descriptor."""

    def fileno(self) -> int:
        """Return the descriptor."""
        ...


class Loop:
    """Calls callbacks when descriptors are ready and when deadlines fall due."""

    def __init__(self, inbox: Inbox, on_signals: Callable[[set[int]], object], on_idle: Callback) -> None:
        self._inbox = inbox
        self._on_signals = on_signals
        self._on_idle = on_idle
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callback] = {}
        self._inbox_fd = inbox.fileno()
        # The inbox needs no callback: `turn` reads the inbox before any other descriptor.
        self.watch(inbox, lambda: None)
        self._deadlines = Deadlines()
        self._error_times: list[float] = []
        self.clock = time.monotonic
        self.woken_at = self.clock()
        self.eager = False
        # The seconds that each turn sleeps before the wait. The caller sets this while other
        # processes need the CPU more, and one turn then acts on several events.
        self.holdoff = 0.0
        self.errors = 0

    def watch(self, file: HasFileno, callback: Callback, *, writable: bool = False) -> None:
        """Call `callback` whenever the descriptor is readable or at its end. Raises OSError.

        With `writable`, call `callback` whenever the descriptor is writable (epoll_ctl(2)).
        """
        fd = file.fileno()
        self._epoll.register(fd, select.EPOLLOUT if writable else select.EPOLLIN)
        self._callbacks[fd] = callback

    def forget(self, file: HasFileno) -> None:
        """Stop watching the descriptor. A descriptor that is not watched changes nothing.

        The caller calls this before closing the descriptor, because epoll may go on reporting a
        closed descriptor (epoll(7)).
        """
        fd = file.fileno()
        if self._callbacks.pop(fd, None) is None:
            return
        try:
            self._epoll.unregister(fd)
        except OSError:
            # The caller closes the descriptor next, which takes the descriptor out of epoll as well
            # (epoll(7)).
            return

    def at(self, when: float, callback: Callback) -> Deadline:
        """Call `callback` at `when` by this loop's clock."""
        return self._deadlines.at(when, callback)

    def after(self, seconds: float, callback: Callback) -> Deadline:
        """Call `callback` this many seconds from now."""
        return self._deadlines.at(self.clock() + seconds, callback)

    def turn(self) -> None:
        """Wait for an event and call the callbacks concerned.

        With `eager` set, the loop does not wait, and calls `on_idle` at once if nothing is ready.
        """
        if self.holdoff:
            time.sleep(self.holdoff)  # not the selector, which would return at the first event
        due_at = self._deadlines.next_at()
        ready = self._epoll.poll(self._poll_timeout(due_at), EVENTS_MAX)
        self.woken_at = self.clock()
        idle = not ready
        late = self.woken_at - due_at if due_at is not None else 0.0
        if late > STALL:
            # This process did not run, being stopped or suspended. Children and clients
            # had no chance to meet their deadlines.
            self._deadlines.shift(late)
            log.warning("stalled", seconds=late)
        if (self._inbox_fd, select.EPOLLIN) in ready:
            self.call_guarded(self._take_signals)
            # Acting on signals may have changed what a ready descriptor means.
            ready = self._epoll.poll(0, EVENTS_MAX)
        self._call_ready(ready)
        if self._deadlines.any_due(self.woken_at):
            # Read all messages that have come before any child counts as late: this process may
            # have been stopped between the wait and this line.
            self._call_ready(self._epoll.poll(0, EVENTS_MAX))
            while (callback := self._deadlines.pop_due(self.woken_at)) is not None:
                self.call_guarded(callback)
        elif idle:
            self.call_guarded(self._on_idle)

    def _call_ready(self, ready: list[tuple[int, int]]) -> None:
        for fd, _ in ready:
            # An earlier callback of this turn may have closed this descriptor.
            callback = self._callbacks.get(fd)
            if callback is not None:
                self.call_guarded(callback)

    def _take_signals(self) -> None:
        signals = self._inbox.take()
        if signals:
            self._on_signals(signals)

    def _poll_timeout(self, due_at: float | None) -> float | None:
        if self.eager:
            return 0
        return None if due_at is None else max(0.0, due_at - self.clock())

    def call_guarded(self, callback: Callback) -> None:
        """Call `callback`, and log and count an error that `callback` raises.

        Raises InternalError where `callback` has raised one, or when there were too many errors.
        """
        try:
            callback()
        except Exception as error:
            self.note_error(error)

    def call_each(self, callbacks: Iterable[Callback]) -> None:
        """Call every callback as `call_guarded` does, also after one of them has raised.

        Raises InternalError after the last callback.
        """
        fatal: InternalError | None = None
        for callback in callbacks:
            try:
                self.call_guarded(callback)
            except InternalError as error:
                fatal = error
        if fatal is not None:
            raise fatal

    def call_each_with_retry(self, steps: Iterable[Callback]) -> None:
        """Take every step, also after one has raised, and take a step that raises once more.

        The caller uses this where there is no way back. A step that found no memory may find memory
        the second time. Taking a step twice must do no harm. Raises InternalError after the last
        step.
        """
        self.call_each(partial(self._call_with_retry, step) for step in steps)

    def _call_with_retry(self, step: Callback) -> None:
        try:
            step()
        except Exception as error:
            self.note_error(error)
            step()

    def note_error(self, error: Exception) -> None:
        """Log and count an error in poold's own code.

        Raises InternalError where `error` is one, or when there were too many errors.
        """
        if isinstance(error, InternalError):
            raise error
        self.errors += 1
        try:
            # The next turn finds what this error has left undone, because the master compares its
            # tables with the facts in each turn. This deadline makes sure that there is a next
            # turn.
            self.after(TURN_AFTER_ERROR, lambda: None)
            now = self.clock()
            self._error_times = [at for at in self._error_times if now - at < ERRORS_WINDOW] + [now]
            log.error("loop_error", error=type(error).__name__, traceback="".join(traceback.format_exception(error)))
        except MemoryError:
            # There is no memory for the traceback. The error has been counted.
            log.dropped += 1
        if len(self._error_times) > ERRORS_MAX:
            raise InternalError(f"{len(self._error_times)} errors in {ERRORS_WINDOW:g} seconds") from error

    def resume(self, errors: int) -> None:
        """Begin counting errors at the number that the previous program has reached."""
        self.errors += errors

    def close(self) -> None:
        """Close the selector."""
        self._epoll.close()
