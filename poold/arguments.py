"""How a process of poold's is told its descriptors: by `NAME=NUMBER` arguments, one for each.

Loaded by the mold, so it imports nothing.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:  # without a module that every worker would carry
    from collections.abc import Mapping


def write(fds: "Mapping[str, int]") -> list[str]:
    """Return the arguments that name these descriptors."""
    return [f"{name}={fd}" for name, fd in fds.items()]


def read(arguments: list[str]) -> dict[str, int]:
    """Return the descriptors that arguments name. Raises ValueError."""
    return {name: int(number) for name, _, number in (argument.partition("=") for argument in arguments)}
