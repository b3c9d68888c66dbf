"""Delays between tries that fail."""

from dataclasses import dataclass

# The delays in seconds. The first failure is followed by the shortest delay, and each further
# failure by twice the delay before.
DELAY_MIN = 0.05
DELAY_MAX = 5.0


@dataclass(slots=True)
class Throttle:
    """The delay after failures. Nothing here reads a clock: the caller passes the time.

    `since` is the time of the first failure after the last success, or 0.
    """

    delay: float = 0.0
    until: float = 0.0
    shortest: float = DELAY_MIN
    longest: float = DELAY_MAX
    since: float = 0.0

    def failed(self, now: float) -> bool:
        """Count a failure. Return whether the failure is the first since the last success.

        A failure before the delay has passed does not lengthen the delay.
        """
        first = self.delay == 0
        if now >= self.until:
            self.delay = min(max(self.shortest, self.delay * 2), self.longest)
            self.until = now + self.delay
        if first:
            self.since = now
        return first

    def succeeded(self) -> None:
        """Allow the next try at once, and begin with the shortest delay after the next failure."""
        self.delay = self.until = self.since = 0.0

    def retry(self) -> None:
        """Allow the next try at once, and keep the length of the delay.

        If the next try fails too, the delay is twice the last one.
        """
        self.until = 0.0

    def open(self, now: float) -> bool:
        """Say whether another try may be made now."""
        return now >= self.until
