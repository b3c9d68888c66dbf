"""The exception tree, by whose fault it is, and poold's own exit statuses.

    PooldError
    ├── ConfigError      the operator's: settings, users, paths, addresses
    ├── ProtocolError    a peer's: a child or a client broke a wire format
    ├── ResourceError    the kernel's: out of something; retried by a deadline
    └── InternalError    ours: our own tables disagree; systemd restarts us

An exit status below belongs to the *command* poold. The exit status of a worker belongs to its handler and is never read
as a word of poold's own.

No dataclasses here nor in anything else that the mold loads: they bring `inspect` and 1.4 MB, which every worker's clone pays for.
"""

from __future__ import annotations

from enum import IntEnum

TYPE_CHECKING = False
if TYPE_CHECKING:  # without loading typing, whose weight every worker would carry
    from typing import Any


class ExitCode(IntEnum):
    """What the command `poold` exits with."""

    OK = 0
    FAILED = 1
    USAGE = 2
    UNREACHABLE = 3
    INTERNAL = 70  # EX_SOFTWARE of sysexits(3)


class PooldError(Exception):
    """The root of every error that poold raises on purpose."""


class Problem:
    """One thing wrong with the settings: where it is (key, line) and what would be right."""

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


def refusal(problems: list[Problem]) -> dict[str, Any]:
    """Return the verdict of a trial that says no, as JSON carries it to the master."""
    return {"problems": [{"key": problem.key, "message": problem.message, "line": problem.line} for problem in problems]}


# What is told to whoever asked for something that failed in a way that no code expects.
OWN_FAULT = Problem("", "a fault of poold's own; loop_error has its traceback")


class ConfigError(PooldError):
    """The settings cannot be used; carries every problem found, in the order of the file."""

    def __init__(self, problems: list[Problem], file: str | None = None) -> None:
        super().__init__(f"{len(problems)} problem(s) in {file or 'the settings'}")
        self.problems = problems
        self.file = file


class ProtocolError(PooldError):
    """A peer said something its wire format does not allow."""


class ResourceError(PooldError):
    """The kernel refused something that it may grant later."""


class InternalError(PooldError):
    """poold's own tables disagree."""
