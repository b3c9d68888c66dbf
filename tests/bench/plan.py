"""How long and how often: the whole comparison, and the quick one."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run measures. Durations are seconds."""

    rounds: int
    """How often every server has its turn in the loops; one turn is a fresh process."""
    warm: float
    """Load before the first measurement of a turn, not counted."""
    rest: float
    """Between two measurements, for what the first left to be done: exits to collect, spares to make."""
    closed_levels: tuple[int, ...]
    closed_seconds: float
    open_rates: tuple[int, ...]
    open_seconds: float
    held_sessions: tuple[int, ...]
    held_rounds: int
    idle: float
    """How long the master's wakeups are counted."""
    asks: int
    """How often it is scraped and asked, with sessions and without."""
    reloads: int
    starts: int
    patience: float
    """After so long a session has failed."""


FULL = Plan(
    rounds=5,
    warm=0.5,
    rest=0.3,
    closed_levels=(1, 8, 32, 128),
    closed_seconds=2.0,
    open_rates=(50, 200, 400, 1000),
    open_seconds=3.0,
    held_sessions=(100, 1000, 10_000),
    held_rounds=3,
    idle=10.0,
    asks=10,
    reloads=10,
    starts=10,
    patience=10.0,
)

QUICK = Plan(
    rounds=2,
    warm=0.1,
    rest=0.05,
    closed_levels=(1, 32),
    closed_seconds=0.35,
    open_rates=(200,),
    open_seconds=0.5,
    held_sessions=(100, 1000),
    held_rounds=1,
    idle=2.0,
    asks=3,
    reloads=2,
    starts=3,
    patience=1.0,
)
