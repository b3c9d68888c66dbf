"""The exceptions, by whose fault each is, and the exit statuses of the command poold.

    PooldError
    ├── ConfigError      the operator: settings, users, paths, addresses
    ├── ProtocolError    a peer: a child or a client broke a wire format
    ├── ResourceError    the kernel: a resource is missing, and poold tries again later
    └── InternalError    poold: its own tables disagree, and systemd restarts poold

An exit status below belongs to the command poold. The exit status of a worker belongs to the
worker's handler. The master never takes that status for a message of poold.

The mold loads this module. Nothing that the mold loads uses dataclasses: they load `inspect`, and
every worker would carry the memory.
"""

from __future__ import annotations

from enum import IntEnum

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` is not loaded: every worker would carry its memory
    from typing import Any


class ExitCode(IntEnum):
    """The exit statuses of the command poold."""

    OK = 0
    FAILED = 1
    USAGE = 2
    UNREACHABLE = 3
    INTERNAL = 70  # EX_SOFTWARE of sysexits(3)


class PooldError(Exception):
    """The root of every error that poold raises on purpose."""


class Problem:
    """One problem of the settings: its place (key, line), and what would be right."""

    __slots__ = ("key", "line", "message")

    def __init__(self, key: str, message: str, line: int | None = None) -> None:
        self.key = key
        self.message = message
        self.line = line

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Problem) and (self.key, self.message, self.line) == (other.key, other.message, other.line)

    def __hash__(self) -> int:
        return hash((self.key, self.message, self.line))

    def __repr__(self) -> str:
        return f"Problem({self.key!r}, {self.message!r}, {self.line!r})"

    def __str__(self) -> str:
        where = f"line {self.line}: " if self.line is not None else ""
        return f"{where}{self.key}: {self.message}" if self.key else f"{where}{self.message}"


def pack_problems(problems: list[Problem]) -> dict[str, Any]:
    """Return the verdict of a trial that refuses, in the form in which JSON carries the verdict."""
    return {"problems": [{"key": problem.key, "message": problem.message, "line": problem.line} for problem in problems]}


# The answer to an operator whose request has failed by an unexpected exception.
OWN_FAULT = Problem("", "a fault of poold's own; loop_error has its traceback")


class ConfigError(PooldError):
    """The settings cannot be used. `problems` lists every problem in the order of the file."""

    def __init__(self, problems: list[Problem], file: str | None = None) -> None:
        super().__init__(f"{len(problems)} problem(s) in {file or 'the settings'}")
        self.problems = problems
        self.file = file


class ProtocolError(PooldError):
    """A peer has sent something that its wire format does not allow."""


class ResourceError(PooldError):
    """The kernel has refused something that the kernel may grant later."""


class InternalError(PooldError):
    """poold's own tables disagree."""
