"""The types that a setting can have: each turns a value as TOML has it into one that poold uses, or says what would be right.

Owns the wording of "must be …, not …". It must never look at the machine, and knows no setting by name. Every validator
here replaces pydantic's own (`PlainValidator`), because an operator should never read the words of a library.
"""

import datetime as dt
import math
import re
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from typing import Any, NamedTuple

from pydantic import PlainValidator, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from poold.address import Address, Scheme

NAME_BYTES_MAX = 128

# How deep a handler's options may be nested.
NESTED_MAX = 32

# What is kept in shared memory or sent to the mold as a number fits into 31 bits.
WHOLE_MAX = 2**31 - 1
# No deadline is longer than a year, so none overflows whatever it is multiplied with.
YEAR = 366 * 86400.0

_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h)", re.ASCII)
_UNITS = {"s": 1, "m": 60, "h": 3600}
# sd_notify(3), sd_listen_fds(3), sd_watchdog_enabled(3): they speak to poold and would be a lie in a child.
_RESERVED_NAME = re.compile(r"NOTIFY_SOCKET|(LISTEN|WATCHDOG)_.*", re.DOTALL)

_SEEN: tuple[tuple[tuple[type, ...], str], ...] = (
    ((list, tuple), "a list"),
    ((dict,), "a table"),
    ((dt.date, dt.time), "a date or time"),
)


class Fault(NamedTuple):
    """A rule broken below the place that notices it: the path from there, what would be right, the siblings it rests on."""

    path: tuple[str | int, ...]
    message: str
    siblings: tuple[str, ...] = ()


def refuse(faults: Iterable[Fault]) -> None:
    """Raise one ValidationError that holds all faults, each with its own place; return if there are none."""
    details = [
        InitErrorDetails(
            type=PydanticCustomError("fault", "{text}", {"text": fault.message, "siblings": fault.siblings}), loc=fault.path, input=None
        )
        for fault in faults
    ]
    if details:
        raise ValidationError.from_exception_data("settings", details)


def shown(text: str) -> str:
    """Return text in quotes, cut to 40 characters, with what a terminal could misunderstand escaped."""
    cut = text if len(text) <= 40 else text[:39] + "…"
    return '"' + "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut) + '"'


def seen(value: object) -> str:
    """Say what was found in the place of what would be right."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        # Python refuses to print an integer of thousands of digits, which TOML can write in hexadecimal.
        return "a number that large" if isinstance(value, int) and value.bit_length() > 64 else str(value)
    if isinstance(value, str):
        return f"the text {shown(value)}"
    return next((words for types, words in _SEEN if isinstance(value, types)), "that")


def wrong(what: str, value: object) -> ValueError:
    """Return the error for a value that should have been `what`."""
    return ValueError(f"must be {what}, not {seen(value)}")


def whole(low: int, high: int = WHOLE_MAX) -> PlainValidator:
    """A whole number from low to high."""

    def read(value: object) -> int:
        if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
            return value
        raise wrong(f"a whole number from {low} to {high}", value)

    return PlainValidator(read)


def _flag(value: object) -> bool:
    if isinstance(value, bool):
        return value
    raise wrong("true or false", value)


def _octal(value: object) -> int:
    if isinstance(value, str) and re.fullmatch(r"0?[0-7]{1,3}", value, re.ASCII):
        return int(value, 8)
    raise wrong('octal digits up to "0777" in quotes, such as "0077"', value)


def seconds(value: object) -> float | None:
    """Read a duration: a number of seconds, or a text of a number and a unit ms, s, m or h. None if it is neither."""
    if isinstance(value, int | float):
        if isinstance(value, bool) or (isinstance(value, float) and math.isnan(value)):
            return None
        return float(min(value, 10**18))  # a larger integer need not fit into a float; every bound lies far below
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return None
    number, unit = match.groups()
    # 250 / 1000 is the float nearest to 0.25; 250 * 0.001 need not be.
    return float(number) / 1000 if unit == "ms" else float(number) * _UNITS[unit]


def duration(*, zero: bool = True, high: float = YEAR) -> PlainValidator:
    """A duration in seconds, at most `high`; with `zero`, 0 is one too."""
    what = 'a number of seconds or a text such as "250ms", "30s", "5m" or "2h"'

    def read(value: object) -> float:
        found = seconds(value)
        if found is None or found < 0:
            raise wrong(what, value)
        if found == 0 and not zero:
            raise wrong("above 0", value)
        if found > high:
            raise wrong(f"at most {high:.0f} seconds", value)
        return found

    return PlainValidator(read)


def text(what: str, right: Callable[[str], bool]) -> PlainValidator:
    """A text for which `right` holds. None, which TOML cannot say, is passed on for the types that allow it."""

    def read(value: object) -> str | None:
        if value is None or (isinstance(value, str) and right(value)):
            return value
        raise wrong(what, value)

    return PlainValidator(read)


def texts(what: str, right: Callable[[str], bool], *, empty: bool = True) -> PlainValidator:
    """A list of texts for which `right` holds, as a tuple; None is passed on as in `text`."""

    def read(value: object) -> tuple[str, ...] | None:
        if value is None:
            return None
        if not isinstance(value, list | tuple):
            raise wrong(f"a list, each entry {what}", value)
        if not value and not empty:
            raise ValueError(f"must have at least one entry, {what}")
        refuse(
            Fault((index,), f"must be {what}, not {seen(entry)}")
            for index, entry in enumerate(value)
            if not isinstance(entry, str) or not right(entry)
        )
        return tuple(value)

    return PlainValidator(read)


def choice(choices: type[StrEnum]) -> PlainValidator:
    """One word of a closed set."""
    *most, last = [f'"{word}"' for word in choices]

    def read(value: object) -> StrEnum:
        if isinstance(value, str) and value in set(choices):
            return choices(value)
        raise wrong(f"{', '.join(most)} or {last}", value)

    return PlainValidator(read)


def is_filled(value: str) -> bool:
    """Say whether a text is more than nothing and can be passed to the kernel."""
    return bool(value) and "\0" not in value


def is_handler(value: str) -> bool:
    """Say whether a text has the form module:object, dotted names on both sides."""
    module, _, name = value.partition(":")
    return all(part.isidentifier() for side in (module, name) for part in side.split("."))


def is_label(value: str) -> bool:
    """Say whether a text can stand in a log line and as the value of a metric's label."""
    return bool(value) and value.isprintable() and len(value.encode()) <= NAME_BYTES_MAX


def is_interface(value: str) -> bool:
    """Say whether a text can name a network interface: IFNAMSIZ is 16, the last a terminating zero (netdevice(7))."""
    return 0 < len(value.encode()) < 16 and value.isprintable() and not set(value) & {" ", "/", ":"}


def _address(value: object) -> Address:
    if isinstance(value, Address):
        return value
    if isinstance(value, str):
        return Address.parse(value)
    raise wrong("a text such as tcp://HOST:PORT or unix:///PATH", value)


def _tcp_or_none(value: object) -> Address | None:
    if value is None or value == "":
        return None
    address = _address(value)
    if address.scheme is not Scheme.TCP:
        raise ValueError('must be tcp://HOST:PORT, or "" for none')
    return address


def _options(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise wrong("a table: [server.options]", value)
    refuse(_unlike_json(value, ()))
    return value


def _unlike_json(value: object, path: tuple[str | int, ...]) -> Iterable[Fault]:
    """Yield what JSON cannot say of a TOML value, for the options travel to the mold as JSON; and what is nested without an end.

    Whoever reads JSON, or copies what it holds, goes as deep as that, and has a stack that ends.
    """
    if isinstance(value, dict | list):
        if len(path) >= NESTED_MAX:
            yield Fault(path, f"tables and lists can be nested {NESTED_MAX} deep, and here something begins below that")
            return
        for key, entry in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _unlike_json(entry, (*path, key))
    match value:
        case dt.date() | dt.time():
            yield Fault(path, "dates and times cannot be passed on: write it as a text, in quotes")
        case float() if not math.isfinite(value):
            yield Fault(path, f"{value} cannot be passed on: write it as a text, in quotes")
        case int() if not -(2**63) <= value < 2**63:
            yield Fault(path, "a whole number must fit into 64 bits: write it as a text, in quotes")


def _environment(value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        raise wrong("a table: [server.environment]", value)
    refuse(_environment_faults(value))
    return value


def _environment_faults(table: Mapping[str, object]) -> Iterable[Fault]:
    for name, value in table.items():
        if not name or "=" in name or "\0" in name:
            yield Fault((name,), "cannot name a variable: a name is not empty and holds neither '=' nor a zero byte")
        elif _RESERVED_NAME.fullmatch(name):
            yield Fault((name,), "cannot be set: it is the service manager's word to poold and never reaches a child")
        elif not isinstance(value, str) or "\0" in value:
            yield Fault((name,), f"must be a text without a zero byte, not {seen(value)}")


FLAG = PlainValidator(_flag)
OCTAL = PlainValidator(_octal)
ADDRESS = PlainValidator(_address)
TCP_OR_NONE = PlainValidator(_tcp_or_none)
OPTIONS = PlainValidator(_options)
ENVIRONMENT = PlainValidator(_environment)
