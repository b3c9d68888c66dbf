"""What `[server.options]` may say to the chat. Pure: the folder is looked at when a session begins."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:  # without loading typing, whose weight every worker would carry
    from collections.abc import Mapping
    from typing import Any

# Name: default, least, most. 21 characters of four bytes each, escaped, are the most that is surely a file name; a line of
# 3500 bytes, its member's name before it, is the most that surely fits into a record. A backlog holds
# what one FIFO does, so that a client that reads loses nothing, however much comes at once.
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
    """The options, checked: bytes for lines and backlog, characters for names, lines a second for the rate (0: any)."""

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
    """Read the table, in which nothing is required; raise ValueError that says what would be right."""
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
