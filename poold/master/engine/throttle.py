"""How long to hold back after failures."""

from dataclasses import dataclass

# After a failure: wait, twice as long each time, until a try succeeds.
DELAY_MIN = 0.05
DELAY_MAX = 5.0


@dataclass(slots=True)
class Throttle:
    """How long to hold back after failures; pure. `since` is when the first of them was, 0 where the last try succeeded."""

    delay: float = 0.0
    until: float = 0.0
    shortest: float = DELAY_MIN
    longest: float = DELAY_MAX
    since: float = 0.0

    def failed(self, now: float) -> bool:
        """Count a failure; say whether it is the first since the last success. More failures while held back change nothing."""
        first = self.delay == 0
        if now >= self.until:
            self.delay = min(max(self.shortest, self.delay * 2), self.longest)
            self.until = now + self.delay
        if first:
            self.since = now
        return first

    def succeeded(self) -> None:
        """Hold nothing back any more."""
        self.delay = self.until = self.since = 0.0

    def retry(self) -> None:
        """Let the next try be made at once; should it fail too, what was held back longest last counts."""
        self.until = 0.0

    def open(self, now: float) -> bool:
        """Say whether another try may be made."""
        return now >= self.until
