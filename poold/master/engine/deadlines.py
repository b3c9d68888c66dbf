"""What is overdue at `now`: a heap of deadlines, pure. Only the monotonic clock decides anything."""

import heapq
from collections.abc import Callable

Callback = Callable[[], object]


class Deadline:
    """Something to be done at a time, unless it is cancelled before."""

    __slots__ = ("_heap", "callback")

    def __init__(self, heap: "Deadlines", callback: Callback) -> None:
        self._heap = heap
        self.callback: Callback | None = callback

    @property
    def pending(self) -> bool:
        """Say whether it is still to come: it has neither fallen due nor been cancelled."""
        return self.callback is not None

    def cancel(self) -> None:
        """Forget it; again or too late does no harm."""
        if self.callback is not None:
            self.callback = None
            self._heap.note_cancelled()


class Deadlines:
    """Deadlines by time; of equal times the older first."""

    def __init__(self) -> None:
        # Time, order of arrival, deadline: compared without a call, because no two have the same order.
        self._heap: list[tuple[float, int, Deadline]] = []
        self._order = 0
        self._cancelled = 0

    def at(self, when: float, callback: Callback) -> Deadline:
        """Have `callback` due at `when` (seconds, monotonic)."""
        self._order += 1
        deadline = Deadline(self, callback)
        heapq.heappush(self._heap, (when, self._order, deadline))
        return deadline

    def note_cancelled(self) -> None:
        """Count a cancelled entry, and throw them all out when they are the greater part: most deadlines never fall due."""
        self._cancelled += 1
        if self._cancelled > 64 and self._cancelled * 2 > len(self._heap):
            self._heap = [entry for entry in self._heap if entry[2].callback is not None]
            heapq.heapify(self._heap)
            self._cancelled = 0

    def next_at(self) -> float | None:
        """Return when the next one falls due; None: never."""
        while self._heap and self._heap[0][2].callback is None:
            heapq.heappop(self._heap)
            self._cancelled -= 1
        return self._heap[0][0] if self._heap else None

    def shift(self, seconds: float) -> None:
        """Put every deadline off by so much."""
        self._heap = [(at + seconds, order, deadline) for at, order, deadline in self._heap]

    def any_due(self, now: float) -> bool:
        """Say whether one is due at `now`."""
        at = self.next_at()
        return at is not None and at <= now

    def pop_due(self, now: float) -> Callback | None:
        """Take out the next one that is due at `now`, None when there is none.

        One at a time, because what one does may cancel the next.
        """
        if not self.any_due(now):
            return None
        deadline = heapq.heappop(self._heap)[2]
        callback, deadline.callback = deadline.callback, None
        return callback

    def __len__(self) -> int:
        return len(self._heap) - self._cancelled
