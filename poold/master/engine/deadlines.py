"""A heap of deadlines on the monotonic clock.

Nothing here reads a clock: the caller passes the time.
"""

import heapq
from collections.abc import Callable

Callback = Callable[[], object]


class Deadline:
    """A callback that falls due at a given time, unless the deadline is cancelled before."""

    __slots__ = ("_heap", "callback")

    def __init__(self, heap: "Deadlines", callback: Callback) -> None:
        self._heap = heap
        self.callback: Callback | None = callback

    @property
    def pending(self) -> bool:
        """Say whether the deadline has neither fallen due nor been cancelled."""
        return self.callback is not None

    def cancel(self) -> None:
        """Cancel the deadline: the callback is never called.

        Cancelling again, or after the deadline has fallen due, changes nothing.
        """
        if self.callback is not None:
            self.callback = None
            self._heap.note_cancelled()


class Deadlines:
    """The deadlines in the order of time. Of equal times, the one that was added first is first."""

    def __init__(self) -> None:
        # Time, order of arrival, deadline. No two entries have the same order, so a comparison
        # never reaches the deadline, which would take a call.
        self._heap: list[tuple[float, int, Deadline]] = []
        self._order = 0
        self._cancelled = 0

    def at(self, when: float, callback: Callback) -> Deadline:
        """Add a deadline: `callback` falls due at `when` (seconds, monotonic)."""
        self._order += 1
        deadline = Deadline(self, callback)
        heapq.heappush(self._heap, (when, self._order, deadline))
        return deadline

    def note_cancelled(self) -> None:
        """Count a cancelled entry.

        When the cancelled entries are the greater part of the heap, all of them are taken out. Most
        deadlines are cancelled before they fall due.
        """
        self._cancelled += 1
        if self._cancelled > 64 and self._cancelled * 2 > len(self._heap):
            self._heap = [entry for entry in self._heap if entry[2].callback is not None]
            heapq.heapify(self._heap)
            self._cancelled = 0

    def next_at(self) -> float | None:
        """Return the time of the next deadline, or None when there is no deadline."""
        while self._heap and self._heap[0][2].callback is None:
            heapq.heappop(self._heap)
            self._cancelled -= 1
        return self._heap[0][0] if self._heap else None

    def shift(self, seconds: float) -> None:
        """Put every deadline off by this many seconds."""
        self._heap = [(at + seconds, order, deadline) for at, order, deadline in self._heap]

    def any_due(self, now: float) -> bool:
        """Say whether a deadline is due at `now`."""
        at = self.next_at()
        return at is not None and at <= now

    def pop_due(self, now: float) -> Callback | None:
        """Take out the next deadline that is due at `now`, and return the callback.

        Return None when no deadline is due. The caller takes one deadline at a time, because a
        callback may cancel the next deadline.
        """
        if not self.any_due(now):
            return None
        deadline = heapq.heappop(self._heap)[2]
        callback, deadline.callback = deadline.callback, None
        return callback

    def __len__(self) -> int:
        return len(self._heap) - self._cancelled
