"""What an attack is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from random import Random
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a scene is given to attacks, and knows none
    from tests.soak.hostile.scene import Scene

Act = Callable[["Scene", Random], object]


class Kind(StrEnum):
    """Who attacks."""

    SESSION = "session"
    IMPORT = "import"
    CLIENT = "client"
    SCRAPER = "scraper"
    CONTROL = "control"
    SETTINGS = "settings"
    MACHINE = "machine"


class Lane(StrEnum):
    """Attacks of one lane come one after the other; the two lanes go on at the same time."""

    DAEMON = "daemon"
    WIRE = "wire"


@dataclass(frozen=True, slots=True)
class Attack:
    """One row: `act` does it and returns when it is over, and raises AssertionError when poold was not what it must be."""

    name: str
    kind: Kind
    act: Act

    @property
    def lane(self) -> Lane:
        """The lane that this kind comes in: what changes the daemon itself is never done twice at one time."""
        return Lane.WIRE if self.kind in (Kind.SESSION, Kind.CLIENT, Kind.SCRAPER) else Lane.DAEMON


def named(kind: Kind, acts: dict[str, Act]) -> tuple[Attack, ...]:
    """Return the rows of one kind."""
    return tuple(Attack(name, kind, act) for name, act in acts.items())
