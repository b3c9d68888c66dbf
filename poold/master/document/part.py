"""The parts of the state document, and the checks that every part uses.

Some classes own something that must survive an exec. Each of them has a part: a frozen dataclass in
the same file. The owner's `save` returns the part, and the owner's `restore` takes one. The
document is the sum of the parts (`poold.master.upgrade.state`).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

LARGEST = (1 << 64) - 1


@dataclass(frozen=True, kw_only=True)
class Part:
    """The fields of one owner in the state document.

    `poold.master.upgrade.state` calls both methods for each part of a document separately.
    """

    def check(self) -> None:
        """Raise ValueError where a value is impossible."""

    def descriptors(self) -> Iterator[int]:
        """Yield each descriptor that the part names, once."""
        return iter(())


P = TypeVar("P", bound=Part)


class Owner(Protocol[P]):
    """An object that owns a part of the state document."""

    def save(self) -> P:
        """Return the part as of this moment. The owner does not change."""

    def restore(self, part: P) -> None:
        """Go on from the part that the previous program has left.

        Raises ConfigError, OSError, LookupError.
        """


def check_range(what: str, value: float | None, low: float, high: float = LARGEST) -> None:
    """Raise ValueError where a value is below `low` or above `high`. None passes.

    `what` names the value in the message.
    """
    # The comparison is written so that a NaN does not pass.
    if value is not None and not low <= value <= high:
        raise ValueError(f"{what} cannot be {value}")


def check_descriptor(value: int | None) -> None:
    """Raise ValueError where a value cannot be a descriptor. None passes."""
    # Below 3 are the standard streams.
    check_range("a descriptor", value, 3, (1 << 31) - 1)
