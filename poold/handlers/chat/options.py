"""The options of the chat in `[server.options]`. Makes no system call.

A session checks the folder `directory` when the session begins.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` is not loaded: every worker would carry its memory
    from collections.abc import Mapping
    from typing import Any

# Name: default, least, most. A name of 21 characters, of four bytes each and escaped, still fits
# into a file name. A line of 3500 bytes, with its member's name, still fits into a record. The
# default backlog is as large as a FIFO: a client that reads then loses no line of a burst.
NUMBERS = {
    "max_line": (2000, 80, 3500),
    "max_name": (20, 1, 21),
    "max_room": (20, 1, 21),
    "max_backlog": (256 * 1024, 65536, 64 * 1024 * 1024),
    "max_rate": (20, 0, 10_000),
    "max_burst": (200, 1, 100_000),
}
UNITS = {"KiB": 1024, "MiB": 1024 * 1024}


class Limits:
    """The checked options.

    Lines and backlog count in bytes, names in characters, the rate in lines a second (0: any rate).
    """

    __slots__ = ("directory", *NUMBERS)

    def __init__(self, directory: str | None, numbers: Mapping[str, int]) -> None:
        self.directory = directory
        self.max_line = numbers["max_line"]
        self.max_name = numbers["max_name"]
        self.max_room = numbers["max_room"]
        self.max_backlog = numbers["max_backlog"]
        self.max_rate = numbers["max_rate"]
        self.max_burst = numbers["max_burst"]


def check_options(options: Mapping[str, Any]) -> Limits:
    """Return the checked options. Each may be missing. A ValueError says what would be right."""
    unknown = sorted(set(options) - set(NUMBERS) - {"directory"})
    if unknown:
        raise ValueError(f"the chat has no option {unknown[0]!r}; it has directory, {', '.join(NUMBERS)}")
    directory = options.get("directory")
    if directory is not None and not (isinstance(directory, str) and directory.startswith("/") and "\0" not in directory):
        raise ValueError(f"directory is {directory!r}; write the absolute path of a folder")
    return Limits(directory, {name: _number(name, options.get(name)) for name in NUMBERS})


def _number(name: str, value: object) -> int:
    default, least, most = NUMBERS[name]
    if value is None:
        return default
    if name == "max_backlog" and isinstance(value, str) and value[-3:] in UNITS and value[:-3].isdecimal():
        value = int(value[:-3]) * UNITS[value[-3:]]
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError(f"{name} is {value!r}; write a whole number from {least} to {most}")
    return value
