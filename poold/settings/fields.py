"""What a setting accepts: a function for each declaration, and the words for what is right.

A reader gets a value as TOML has it. A reader returns the value that poold uses, or raises
ValueError or FaultsError with a message for the operator. The words in `Reader.words` follow "must
be" in those messages, and stand beside each key in poold.toml.

This module looks at no machine and knows no setting by name.
"""

import datetime as dt
import math
import re
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from typing import Any, NamedTuple

from poold.address import Address
from poold.settings.annotations import Hint, Range, Setting, Unit

# How deep a handler's options may be nested.
NESTED_MAX = 32
DURATION_WORDS = 'a number of seconds or a text such as "250ms", "30s", "5m" or "2h"'

_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h)", re.ASCII)
_SECONDS = {"s": 1, "m": 60, "h": 3600}
# The service manager sets these variables for poold (sd_notify(3), sd_listen_fds(3),
# sd_watchdog_enabled(3)). In a child they would be wrong.
_RESERVED_NAME = re.compile(r"NOTIFY_SOCKET|(LISTEN|WATCHDOG)_.*", re.DOTALL)

_SEEN: tuple[tuple[tuple[type, ...], str], ...] = (
    ((list, tuple), "a list"),
    ((dict,), "a table"),
    ((dt.date, dt.time), "a date or time"),
)


class Fault(NamedTuple):
    """A broken rule: a path inside the judged value, a message, and the compared keys."""

    path: tuple[str | int, ...]
    message: str
    siblings: tuple[str, ...] = ()


class FaultsError(Exception):
    """Several faults of one value, each with a place inside that value."""

    def __init__(self, faults: list[Fault]) -> None:
        super().__init__("; ".join(fault.message for fault in faults))
        self.faults = faults


class Reader(NamedTuple):
    """The words for what is right, and the function that reads a value."""

    words: str
    read: Callable[[object], Any]


def refuse(faults: Iterable[Fault]) -> None:
    """Raise a FaultsError with all faults; return if there are none."""
    found = list(faults)
    if found:
        raise FaultsError(found)


def shown(text: str) -> str:
    """Return at most 40 characters of a text, in quotes; what a terminal might obey is escaped."""
    cut = text if len(text) <= 40 else text[:39] + "…"
    return '"' + "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut) + '"'


def seen(value: object) -> str:
    """Return the words for a value that stands where another one belongs."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        # TOML can write thousands of hexadecimal digits, and Python refuses to print so many.
        return "a number that large" if isinstance(value, int) and value.bit_length() > 64 else str(value)
    if isinstance(value, str):
        return f"the text {shown(value)}"
    return next((words for types, words in _SEEN if isinstance(value, types)), "that")


def wrong(words: str, value: object) -> ValueError:
    """Return the error for a value that stands where `words` describe what is right."""
    return ValueError(f"must be {words}, not {seen(value)}")


def reader_of(setting: Setting, table: str) -> Reader:
    """Return what reads the values of a setting in the table of this name."""
    if isinstance(setting.kind, type) and issubclass(setting.kind, StrEnum):
        reader = _choice(setting.kind)
    elif setting.kind in (dict[str, Any], dict[str, str]):
        reader = _table(f"a table: [{table}.{setting.key}]", _unlike_json if setting.kind == dict[str, Any] else _unlike_variables)
    else:
        reader = _READERS[setting.kind](setting)
    if not setting.optional:
        return reader
    return Reader(reader.words, lambda value: None if value is None else reader.read(value))


def _flag(setting: Setting) -> Reader:
    words = "true or false"

    def read(value: object) -> bool:
        if isinstance(value, bool):
            return value
        raise wrong(words, value)

    return Reader(words, read)


def _whole(setting: Setting) -> Reader:
    if setting.annotation(Unit) is Unit.OCTAL:
        return _octal()
    limits = setting.annotation(Range) or Range()
    words = f"a whole number from {limits.low} to {limits.high}"

    def read(value: object) -> int:
        if isinstance(value, int) and not isinstance(value, bool) and limits.low <= value <= limits.high:
            return value
        raise wrong(words, value)

    return Reader(words, read)


def _octal() -> Reader:
    words = 'octal digits up to "0777" in quotes, such as "0077"'

    def read(value: object) -> int:
        if isinstance(value, str) and re.fullmatch(r"0?[0-7]{1,3}", value, re.ASCII):
            return int(value, 8)
        raise wrong(words, value)

    return Reader(words, read)


def seconds(value: object) -> float | None:
    """Return the seconds of a number, or of a text with a unit; None for anything else."""
    if isinstance(value, int | float):
        if isinstance(value, bool) or (isinstance(value, float) and math.isnan(value)):
            return None
        return float(min(value, 10**18))  # far above every range, and a larger int may not fit into a float
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return None
    number, unit = match.groups()
    # 250 / 1000 is the float nearest to 0.25; 250 * 0.001 need not be.
    return float(number) / 1000 if unit == "ms" else float(number) * _SECONDS[unit]


def _duration(setting: Setting) -> Reader:
    limits = setting.annotation(Range) or Range()
    most = f"at most {limits.high:.0f} {Unit.SECONDS}"

    def read(value: object) -> float:
        found = seconds(value)
        if found is None or found < 0:
            raise wrong(DURATION_WORDS, value)
        if found == 0 and limits.above:
            raise wrong("above 0", value)
        if found > limits.high:
            raise wrong(most, value)
        return found

    return Reader(f"above 0, {most}" if limits.above else most, read)


def _text(setting: Setting) -> Reader:
    hint = _hint(setting)

    def read(value: object) -> str:
        if isinstance(value, str) and hint.accepts(value):
            return value
        raise wrong(hint.words, value)

    return Reader(hint.words, read)


def _texts(setting: Setting) -> Reader:
    hint = _hint(setting)
    words = f"a list, each entry {hint.words}"
    least = (setting.annotation(Range) or Range()).low

    def read(value: object) -> tuple[str, ...]:
        if not isinstance(value, list | tuple):
            raise wrong(words, value)
        if len(value) < least:
            raise ValueError(f"must have at least one entry, {hint.words}")
        refuse(
            Fault((index,), f"must be {hint.words}, not {seen(entry)}")
            for index, entry in enumerate(value)
            if not isinstance(entry, str) or not hint.accepts(entry)
        )
        return tuple(value)

    return Reader(words, read)


def _hint(setting: Setting) -> Hint:
    hint = setting.annotation(Hint)
    assert hint is not None, f"{setting.name} is a text, and its declaration has no Hint"
    return hint


def _choice(choices: type[StrEnum]) -> Reader:
    *most, last = [f'"{word}"' for word in choices]
    words = f"{', '.join(most)} or {last}"

    def read(value: object) -> StrEnum:
        if isinstance(value, str) and value in set(choices):
            return choices(value)
        raise wrong(words, value)

    return Reader(words, read)


def _address(setting: Setting) -> Reader:
    words = "a text such as tcp://HOST:PORT or unix:///PATH"
    hint = setting.annotation(Hint)

    def read(value: object) -> Address | None:
        if setting.optional and value == "":
            return None
        if not isinstance(value, str):
            raise wrong(words, value)
        address = Address.parse(value)
        if hint is not None and not hint.accepts(address):
            raise ValueError(f"must be {hint.words}")
        return address

    return Reader(words if hint is None else hint.words, read)


def _table(words: str, faults: Callable[[dict[str, Any]], Iterable[Fault]]) -> Reader:
    def read(value: object) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise wrong(words, value)
        refuse(faults(value))
        return value

    return Reader(words, read)


def _unlike_json(value: object, path: tuple[str | int, ...] = ()) -> Iterable[Fault]:
    """Yield what JSON cannot carry, because the options cross to the mold as JSON.

    Yield what is nested too deep as well. Each level takes a part of the stack of every process
    that reads JSON or copies a value.
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


def _unlike_variables(table: Mapping[str, object]) -> Iterable[Fault]:
    for name, value in table.items():
        if not name or "=" in name or "\0" in name:
            yield Fault((name,), "cannot name a variable: a name is not empty and holds neither '=' nor a zero byte")
        elif _RESERVED_NAME.fullmatch(name):
            yield Fault((name,), "cannot be set: it is the service manager's word to poold and never reaches a child")
        elif not isinstance(value, str) or "\0" in value:
            yield Fault((name,), f"must be a text without a zero byte, not {seen(value)}")


_READERS: Mapping[Any, Callable[[Setting], Reader]] = {
    bool: _flag,
    int: _whole,
    float: _duration,
    str: _text,
    tuple[str, ...]: _texts,
    Address: _address,
}
