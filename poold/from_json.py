"""From what JSON can carry to frozen dataclasses, by their annotations.

The types are int, float, str, bool, enumerations of str, `Address`, `X | None`, `tuple[X, ...]`,
`dict[str, X]`, Any, and dataclasses of these. A value of another type is refused and never
converted. Only an int becomes a float where a float is declared, because JSON does not tell them
apart. A `__post_init__` refuses values by ValueError.

The state document and the settings cross to the master in this way, because the master has no
pydantic.
"""

import types
import typing
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from enum import StrEnum
from functools import cache
from typing import Any

from poold.address import Address

Reader = Callable[[Any], Any]


class MalformedError(Exception):
    """A value is not what is expected; says where."""

    def __init__(self, message: str, *places: str) -> None:
        super().__init__(f"{'.'.join(places)}: {message}" if places else message)
        self.message = message
        self.places = places


def from_json(kind: type, value: Any) -> Any:
    """Return a dataclass of this kind with what `value` holds. Raises MalformedError."""
    return _reader(kind)(value)


@cache
def _reader(kind: Any) -> Reader:
    """Return what reads values of an annotation; made once for each."""
    if kind is Any:
        return lambda value: value
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        inner = _reader(next(each for each in arguments if each is not types.NoneType))
        return lambda value: None if value is None else inner(value)
    if origin is tuple:
        return _sequence(_reader(arguments[0]))
    if origin is dict:
        return _mapping(_reader(arguments[1]))
    if is_dataclass(kind):
        return _dataclass(kind)
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return _word(kind)
    if kind is Address:
        return _address
    return _plain(kind)


def _plain(kind: type) -> Reader:
    def read(value: Any) -> Any:
        if kind is float and type(value) is int:
            try:
                return float(value)
            except OverflowError:
                raise MalformedError(f"{_shown(value)} is too large") from None
        if type(value) is not kind:
            raise MalformedError(f"{_shown(value)} is not of type {kind.__name__}")
        return value

    return read


def _word(kind: type[StrEnum]) -> Reader:
    def read(value: Any) -> Any:
        try:
            return kind(value)
        except ValueError:
            raise MalformedError(f"{_shown(value)} is no {kind.__name__.lower()} that this version knows") from None

    return read


def _address(value: Any) -> Address:
    try:
        return Address.parse(_plain(str)(value))
    except ValueError as error:
        raise MalformedError(str(error)) from None


def _sequence(inner: Reader) -> Reader:
    def read(value: Any) -> Any:
        if not isinstance(value, list):
            raise MalformedError(f"{_shown(value)} is not a list")
        return tuple(_at(str(number), inner, each) for number, each in enumerate(value))

    return read


def _mapping(inner: Reader) -> Reader:
    def read(value: Any) -> Any:
        if not isinstance(value, dict):
            raise MalformedError(f"{_shown(value)} is not an object")
        return {key: _at(key, inner, each) for key, each in value.items()}

    return read


def _dataclass(kind: Any) -> Reader:
    hints = typing.get_type_hints(kind)
    readers = {each.name: _reader(hints[each.name]) for each in fields(kind)}
    needed = {each.name for each in fields(kind) if each.default is MISSING and each.default_factory is MISSING}

    def read(value: Any) -> Any:
        if not isinstance(value, dict):
            raise MalformedError(f"{_shown(value)} is not an object")
        missing = needed - value.keys()
        if missing:
            raise MalformedError(f"{min(missing)} is missing")
        known = {name: _at(name, inner, value[name]) for name, inner in readers.items() if name in value}
        try:
            return kind(**known)
        except ValueError as error:
            raise MalformedError(str(error)) from error

    return read


def _at(place: str, inner: Reader, value: Any) -> Any:
    try:
        return inner(value)
    except MalformedError as error:
        raise MalformedError(error.message, place, *error.places) from error


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"
