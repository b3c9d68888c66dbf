"""What the state document is made of: the part of each owner, and what every part may rely on.

An owner of something that must survive an exec has a part: a frozen dataclass beside the owner's own class, in the same file. `save`
returns the part, `restore` takes one. The document is the sum of the parts (`poold.master.upgrade.state`).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

LARGEST = (1 << 64) - 1


@dataclass(frozen=True, kw_only=True)
class Part:
    """The fields of one owner in the state document. Both methods are called for each part of a document by itself."""

    def check(self) -> None:
        """Raise ValueError where a value cannot be."""

    def descriptors(self) -> Iterator[int]:
        """Yield the descriptors that the part names, each once."""
        return iter(())


P = TypeVar("P", bound=Part)


class Owner(Protocol[P]):
    """Whoever owns a part of what crosses an exec."""

    def save(self) -> P:
        """Return the part as it is now; nothing is changed."""

    def restore(self, part: P) -> None:
        """Go on from the part that the program before has left. Raises ConfigError, OSError, LookupError."""


def check_range(what: str, value: float | None, low: float, high: float = LARGEST) -> None:
    """Raise ValueError where a value is not between these; None is not looked at."""
    # Written so that a NaN is not within anything.
    if value is not None and not low <= value <= high:
        raise ValueError(f"{what} cannot be {value}")


def check_descriptor(value: int | None) -> None:
    """Raise ValueError where a value cannot be a descriptor; None is not looked at."""
    # Below are the standard streams.
    check_range("a descriptor", value, 3, (1 << 31) - 1)
