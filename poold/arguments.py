"""The arguments by which the master tells a new process the numbers of inherited descriptors.

Each argument has the form `NAME=NUMBER`. The mold loads this module, so this module imports
nothing.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:  # not loaded: every worker would carry its memory
    from collections.abc import Mapping


def write(fds: "Mapping[str, int]") -> list[str]:
    """Return the arguments that name these descriptors."""
    return [f"{name}={fd}" for name, fd in fds.items()]


def read(arguments: list[str]) -> dict[str, int]:
    """Return the descriptors that these arguments name. Raises ValueError."""
    return {name: int(number) for name, _, number in (argument.partition("=") for argument in arguments)}
