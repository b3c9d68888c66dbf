"""The loop: the only place where the master waits. It sleeps until something happens or the next deadline; it has no tick.

One turn: hold off, if there is a reason to; wait; signals; if there were any, look again what is ready, because they may have changed
what the rest means; then what is ready; then what is overdue. An error in one callback is logged and counted and does not reach the
others; when errors do not stop, the master gives up in order rather than live half dead.
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

# Events in one turn; the rest in the next one.
EVENTS_MAX = 256
# A wait that returned so much later than its own time-out: this process was stopped, or the machine stood still.
STALL = 5.0
# More errors than this in so many seconds: the fault does not go away by itself.
ERRORS_MAX = 20
ERRORS_WINDOW = 10.0
# How long after an error the loop turns again, though nothing else should happen.
TURN_AFTER_ERROR = 1.0


class File(Protocol):
    """What has a descriptor."""

    def fileno(self) -> int:
        """Return the descriptor."""
        ...


class Loop:
    """Callbacks by descriptor and by time."""

    def __init__(self, inbox: Inbox, on_signals: Callable[[set[int]], object], on_idle: Callback) -> None:
        self._inbox = inbox
        self._on_signals = on_signals
        self._on_idle = on_idle
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callback] = {}
        self._inbox_fd = inbox.fileno()
        # Looked at first, and by itself.
        self.watch(inbox, lambda: None)
        self._deadlines = Deadlines()
        self._error_times: list[float] = []
        self.clock = time.monotonic
        self.woken_at = self.clock()
        self.eager = False
        # For so many seconds others have more to do than this process: what happens meanwhile is acted on at one go.
        self.holdoff = 0.0
        self.errors = 0

    def watch(self, file: File, callback: Callback, *, writable: bool = False) -> None:
        """Call `callback` whenever the descriptor is readable, or else `writable`, or at its end. Raises OSError (epoll_ctl(2))."""
        fd = file.fileno()
        self._epoll.register(fd, select.EPOLLOUT if writable else select.EPOLLIN)
        self._callbacks[fd] = callback

    def forget(self, file: File) -> None:
        """Stop watching, if it was watched; before the descriptor is closed, because epoll may go on reporting it (epoll(7))."""
        fd = file.fileno()
        if self._callbacks.pop(fd, None) is None:
            return
        try:
            self._epoll.unregister(fd)
        except OSError:
            # The close that follows takes it out as well (epoll(7)).
            return

    def at(self, when: float, callback: Callback) -> Deadline:
        """Call `callback` at `when` by this loop's clock."""
        return self._deadlines.at(when, callback)

    def after(self, seconds: float, callback: Callback) -> Deadline:
        """Call `callback` so many seconds from now."""
        return self._deadlines.at(self.clock() + seconds, callback)

    def turn(self) -> None:
        """Wait for something to happen and let it be acted on. With `eager` set: do not wait, be idle at once if nothing is ready."""
        if self.holdoff:
            time.sleep(self.holdoff)  # not the selector, which would return at the first word; a few milliseconds
        due_at = self._deadlines.next_at()
        ready = self._epoll.poll(self._poll_timeout(due_at), EVENTS_MAX)
        self.woken_at = self.clock()
        idle = not ready
        late = self.woken_at - due_at if due_at is not None else 0.0
        if late > STALL:
            # This process did not run (stopped, suspended): nobody is to be punished for time that was not his.
            self._deadlines.shift(late)
            log.warning("stalled", seconds=late)
        if (self._inbox_fd, select.EPOLLIN) in ready:
            self.call_guarded(self._take_signals)
            # They may have changed what the rest means.
            ready = self._epoll.poll(0, EVENTS_MAX)
        self._call_ready(ready)
        if self._deadlines.any_due(self.woken_at):
            # All that has come is heard before anybody is found late: this process may have been stopped on its way here.
            self._call_ready(self._epoll.poll(0, EVENTS_MAX))
            while (callback := self._deadlines.pop_due(self.woken_at)) is not None:
                self.call_guarded(callback)
        elif idle:
            self.call_guarded(self._on_idle)

    def _call_ready(self, ready: list[tuple[int, int]]) -> None:
        for fd, _ in ready:
            # One of those before it may have closed it.
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
        """Call it; an error is logged and counted. Raises InternalError where that was the error, or when there were too many."""
        try:
            callback()
        except Exception as error:
            self.note_error(error)

    def call_each(self, callbacks: Iterable[Callback]) -> None:
        """Call every one of them like that, whatever is raised by any; InternalError after the last."""
        fatal: InternalError | None = None
        for callback in callbacks:
            try:
                self.call_guarded(callback)
            except InternalError as error:
                fatal = error
        if fatal is not None:
            raise fatal

    def call_each_with_retry(self, steps: Iterable[Callback]) -> None:
        """Take every step of what there is no way back from, whatever is raised by any; one that raises is taken once more.

        What had no memory may have it then. So no step may do harm when it is taken twice. InternalError after the last.
        """
        self.call_each(partial(self._call_with_retry, step) for step in steps)

    def _call_with_retry(self, step: Callback) -> None:
        try:
            step()
        except Exception as error:
            self.note_error(error)
            step()

    def note_error(self, error: Exception) -> None:
        """Log and count an error of poold's own. Raises InternalError where this is one, or when there were too many."""
        if isinstance(error, InternalError):
            raise error
        self.errors += 1
        try:
            # What is lost with it is found by whoever looks at the facts each turn; there must be one.
            self.after(TURN_AFTER_ERROR, lambda: None)
            now = self.clock()
            self._error_times = [at for at in self._error_times if now - at < ERRORS_WINDOW] + [now]
            log.error("loop_error", error=type(error).__name__, traceback="".join(traceback.format_exception(error)))
        except MemoryError:
            # A traceback takes memory, and there may be none for this error's; it has been counted.
            log.dropped += 1
        if len(self._error_times) > ERRORS_MAX:
            raise InternalError(f"{len(self._error_times)} errors in {ERRORS_WINDOW:g} seconds") from error

    def resume(self, errors: int) -> None:
        """Go on counting errors where the program before has stopped."""
        self.errors = errors

    def close(self) -> None:
        """Give the selector back."""
        self._epoll.close()
