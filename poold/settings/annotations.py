"""What annotates a setting: the range, the unit and the form of its values, as plain objects.

`poold.settings.config` declares each setting once, as a field of a frozen dataclass. The
annotations here say what the type alone does not. The judging process makes validators of them; the
master loads this module too, so nothing here imports pydantic.
"""

from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from enum import StrEnum
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

from poold.address import Address, Scheme

# Numbers in shared memory and in messages to the mold have 31 bits.
WHOLE_MAX = 2**31 - 1
# A deadline is a year at most, so that no multiple of one overflows.
YEAR = 366 * 86400.0
NAME_BYTES_MAX = 128

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Range:
    """The least and the greatest number of a setting, or of the entries in a list.

    With `above`, the least number itself is wrong.
    """

    low: float = 0
    high: float = WHOLE_MAX
    above: bool = False


class Unit(StrEnum):
    """What a number is written in: a duration with or without its unit, or the digits of a mode."""

    SECONDS = "seconds"
    OCTAL = "octal"


@dataclass(frozen=True, slots=True)
class Hint:
    """What to write, in words that follow "must be", and the function that tests a value."""

    words: str
    accepts: Callable[[Any], bool]


@dataclass(frozen=True, slots=True)
class Key:
    """What a setting is called in the file, where Python needs another name."""

    name: str


class Schemes(tuple[Scheme, ...]):
    """The schemes of the addresses for which a listener's setting has a meaning."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Setting:
    """One declaration as the judging process reads it.

    `name` is the field's and `key` the file's. `kind` is the type, without `None` where the setting
    is `optional`. A table's `default` is an instance of its dataclass.
    """

    name: str
    key: str
    kind: Any
    optional: bool
    default: Any
    annotations: tuple[Any, ...]

    def annotation(self, kind: type[T]) -> T | None:
        """Return the annotation of a kind, None if there is none."""
        return next((each for each in self.annotations if isinstance(each, kind)), None)

    @property
    def table(self) -> type | None:
        """Return the dataclass of a table, or of the tables in an array; None for a value."""
        kinds: tuple[Any, ...] = (self.kind, *get_args(self.kind)[:1])
        return next((kind for kind in kinds if isinstance(kind, type) and is_dataclass(kind)), None)

    @property
    def is_array(self) -> bool:
        """Tell whether the setting is an array of tables."""
        return self.table not in (None, self.kind)


def settings_of(table: type) -> tuple[Setting, ...]:
    """Return the declarations of a dataclass, in their order."""
    return _declared(table)


@cache
def _declared(table: type) -> tuple[Setting, ...]:
    hints = get_type_hints(table, include_extras=True)
    found = []
    for each in fields(table):
        kind, *annotations = get_args(hints[each.name]) if get_origin(hints[each.name]) is Annotated else [hints[each.name]]
        optional = get_origin(kind) is UnionType
        key = next((note.name for note in annotations if isinstance(note, Key)), each.name)
        found.append(
            Setting(
                name=each.name,
                key=key,
                kind=next(inner for inner in get_args(kind) if inner is not NoneType) if optional else kind,
                optional=optional,
                default=each.default if each.default_factory is MISSING else each.default_factory(),
                annotations=tuple(annotations),
            )
        )
    return tuple(found)


def is_filled(value: str) -> bool:
    """Tell whether a text has a character and no zero byte, which ends a text of the kernel."""
    return bool(value) and "\0" not in value


def is_handler(value: str) -> bool:
    """Tell whether a text is `module:object`, with dotted names on both sides."""
    module, _, name = value.partition(":")
    return all(part.isidentifier() for side in (module, name) for part in side.split("."))


def is_label(value: str) -> bool:
    """Tell whether a text fits into a log line and into the label of a metric."""
    return bool(value) and value.isprintable() and len(value.encode()) <= NAME_BYTES_MAX


def is_interface(value: str) -> bool:
    """Tell whether a network interface can have this name.

    IFNAMSIZ is 16, with a zero byte at the end (netdevice(7)).
    """
    return 0 < len(value.encode()) < 16 and value.isprintable() and not set(value) & {" ", "/", ":"}


def is_tcp(value: Address) -> bool:
    """Tell whether an address is one of TCP."""
    return value.scheme is Scheme.TCP
