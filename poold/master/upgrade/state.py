"""The state document: what one program of the master tells the next one at an upgrade.

The document is the sum of the parts of its owners (`poold.master.document.part`). A new owner adds
a part, which is one more base of `StateDocument`. Bytes come in, and checked values go out. Nothing
here acts on a descriptor or a process.

The document crosses between versions of poold. A field that is not known is ignored, and a field
that may be missing has a default. Anything else that is not understood makes the whole document
unreadable. Examples are another format, an unknown kind of child, and an impossible number. The
trial of an upgrade reads the document first, while nothing has changed.

Descriptors and pids are only numbers here. The owner that restores a part finds out what they are.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from poold import __version__
from poold.errors import PooldError
from poold.from_json import MalformedError, from_json
from poold.master.children.exporters import ExportersPart
from poold.master.children.inheritance import ChildrenPart
from poold.master.children.spawn import LauncherPart
from poold.master.clients.linger import LingerPart
from poold.master.clients.listening import ListenersPart
from poold.master.clients.sessions import SessionsPart
from poold.master.clients.store import StorePart
from poold.master.current import Current
from poold.master.document.part import Owner, Part, check_descriptor, check_range
from poold.master.document.tally import CountersPart
from poold.master.memories import MemoriesPart
from poold.master.outside.control import ControlPart
from poold.master.pool.mold import MoldsPart

# Counts incompatible changes. A document of another format is refused.
FORMAT = 1


class StateError(PooldError):
    """The document cannot be used. The message says why."""


@dataclass(frozen=True, kw_only=True)
class OriginPart(Part):
    """Where this life of poold began: the settings file, and the time of the start.

    `file` is None without a settings file. `started_at` is a time of CLOCK_MONOTONIC.
    """

    file: str | None
    started_at: float

    def check(self) -> None:
        """Raise ValueError if `started_at` cannot be a time."""
        check_range("a time", self.started_at, 0)


@dataclass(frozen=True, slots=True)
class Origin:
    """The owner of what no other part knows: the settings file, start time and environment."""

    file: Path | None
    started_at: float
    environ: Mapping[str, str] = field(repr=False)

    def save(self) -> OriginPart:
        """Return where this life began."""
        return OriginPart(file=str(self.file) if self.file is not None else None, started_at=self.started_at)

    def restore(self, part: OriginPart) -> None:
        """Do nothing: the next program is built from the origin."""


@dataclass(frozen=True, kw_only=True)
class SettingsPart(Part):
    """The settings for the next program, and the generation of the settings in force.

    The settings are the verdict of the trial, in the words of the new code. `control_setting` is
    the place of the control socket in the settings in force, which no upgrade can change.
    """

    generation: int
    control_setting: str | None
    settings: dict[str, Any] = field(default_factory=dict)
    people: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def check(self) -> None:
        """Raise ValueError if `generation` cannot be a generation."""
        check_range("a generation", self.generation, 1, (1 << 32) - 2)

    @classmethod
    def of(cls, current: Current, verdict: Mapping[str, Any]) -> "SettingsPart":
        """Return the part of the settings in force and of a verdict, which may be empty.

        Before the trial of an upgrade there is no verdict.
        """
        return cls(
            generation=current.generation,
            control_setting=current.config.control.socket,
            settings=dict(verdict.get("settings", {})),
            people=dict(verdict.get("people", {})),
            warnings=tuple(verdict.get("warnings", ())),
        )


@dataclass(frozen=True, kw_only=True)
class StateDocument(
    OriginPart,
    SettingsPart,
    MemoriesPart,
    LauncherPart,
    CountersPart,
    StorePart,
    ListenersPart,
    ControlPart,
    ExportersPart,
    MoldsPart,
    ChildrenPart,
    SessionsPart,
    LingerPart,
):
    """The whole document."""

    format: int = FORMAT
    version: str = __version__

    def __post_init__(self) -> None:
        for part in _parts():
            part.check(self)
        fds = list(self._descriptors())
        for fd in fds:
            check_descriptor(fd)
        _unique("slot", (child.slot for child in self.children))
        _unique("pid", (child.pid for child in self.children))
        _unique("session", (child.session.id for child in self.children if child.session is not None))
        _unique("descriptor", fds)
        passed = {each.fd for each in self.passed}
        for listener in self.listeners:
            if listener.socket.lent != (listener.socket.fd in passed):
                raise ValueError(f"descriptor {listener.socket.fd} is either passed or not")

    def _descriptors(self) -> Iterator[int]:
        for part in _parts():
            yield from part.descriptors(self)

    def named_descriptors(self) -> set[int]:
        """Return every descriptor that the document names."""
        return set(self._descriptors())


def _parts() -> tuple[type[Part], ...]:
    return StateDocument.__bases__


def _unique(what: str, values: Iterable[int]) -> None:
    twice = [value for value, count in Counter(values).items() if count > 1]
    if twice:
        raise ValueError(f"{what} {twice[0]} is there twice")


def collect(settings: SettingsPart, owners: Iterable[Owner[Any]]) -> StateDocument:
    """Return the document as of now, for these settings. Nothing is changed."""
    fields = dict(vars(settings))
    for owner in owners:
        fields |= vars(owner.save())
    return StateDocument(**fields)


def write(state: StateDocument) -> bytes:
    """Return the bytes of a document."""
    return json.dumps(vars(state), default=_fields).encode()


def _fields(part: Any) -> dict[str, Any]:
    # `asdict` would copy all values once more, and clients are waiting.
    return {name: getattr(part, name) for name in part.__slots__}


def read(data: bytes) -> StateDocument:
    """Return the document that these bytes hold. Raises StateError."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise StateError(f"the state document is no JSON: {error}") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        is_one = isinstance(found, dict) and "format" in found
        what = f"has format {found['format']!r}" if is_one else "has no format"
        raise StateError(f"the state document {what}, and poold {__version__} understands format {FORMAT}")
    try:
        state: StateDocument = from_json(StateDocument, found)
    except MalformedError as error:
        raise StateError(f"the state document cannot be understood: {error}") from error
    return state
