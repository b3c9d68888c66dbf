"""The state document: what one program of the master tells the next one at an upgrade. Pure: bytes in, checked values out.

Two versions of poold meet here, so a field that is not known is ignored, one that may be missing has a default, and what is
not understood (another format, a kind of child that this version does not have, a number that cannot be) makes the whole document
unreadable. The trial of an upgrade reads it first, while nothing has changed. Descriptors and pids are numbers here; that
they are what they are said to be is found out by `poold.master.upgrade.takeover`.
"""

import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from poold import __version__
from poold.errors import PooldError
from poold.master.document.records import MalformedError, record
from poold.scoreboard import AUXILIARY_SLOTS, SLOTS
from poold.words import Cause, Failure, Kind, State

# Counts incompatible changes: what another format says is not guessed at.
FORMAT = 1
LARGEST = (1 << 64) - 1


class StateError(PooldError):
    """The document cannot be used; says why."""


def _within(what: str, value: float | None, low: float, high: float = LARGEST) -> None:
    # Written so that a NaN is not within anything.
    if value is not None and not low <= value <= high:
        raise ValueError(f"{what} cannot be {value}")


def _descriptor(value: int | None) -> None:
    # Below are the standard streams.
    _within("a descriptor", value, 3, (1 << 31) - 1)


@dataclass(frozen=True, slots=True)
class PeerPart:
    """A `poold.address.Endpoint`."""

    family: int
    host: str = ""
    port: int = 0
    path: str = ""
    pid: int = 0
    uid: int = -1
    gid: int = -1


@dataclass(frozen=True, slots=True)
class SessionPart:
    """A session whose worker has acknowledged it; `listener` is its listener's name."""

    id: int
    listener: str
    peer: PeerPart
    accepted_at: float
    executing: bool = False
    cause: Cause | None = None

    def __post_init__(self) -> None:
        _within("a session", self.id, 1)
        _within("a time", self.accepted_at, 0)


@dataclass(frozen=True, slots=True)
class ChildPart:
    """A born child. `channel` is the master's end, None where it is closed; `page` a worker's activity page, None where it has none."""

    slot: int
    incarnation: int
    kind: Kind
    generation: int
    pid: int
    state: State
    claimed_at: float
    ready: bool = False
    excused: bool = False
    failure: Failure | None = None
    channel: int | None = None
    page: int | None = None
    session: SessionPart | None = None

    def __post_init__(self) -> None:
        first, beyond = (AUXILIARY_SLOTS, SLOTS) if self.kind is Kind.WORKER else (0, AUXILIARY_SLOTS)
        _within(f"the slot of a {self.kind}", self.slot, first, beyond - 1)
        _within("an incarnation", self.incarnation, 0, (1 << 32) - 1)
        _within("a generation", self.generation, 0, (1 << 32) - 1)
        _within("a pid", self.pid, 2, (1 << 31) - 1)
        _within("a time", self.claimed_at, 0)
        _descriptor(self.channel)
        _descriptor(self.page)
        if self.session is not None and (self.kind is not Kind.WORKER or self.state in (State.STARTING, State.SPARE)):
            raise ValueError(f"a {self.kind} that is {self.state} has no session")


@dataclass(frozen=True, slots=True)
class SocketPart:
    """A listening socket, and the file that is its own (device, inode)."""

    fd: int
    path: str = ""
    file: tuple[int, ...] | None = None
    lent: bool = False

    def __post_init__(self) -> None:
        _descriptor(self.fd)
        if self.file is not None and len(self.file) != 2:
            raise ValueError("a file is told by device and inode")


@dataclass(frozen=True, slots=True)
class ListenerPart:
    """An open listener: its address as the settings have it, and what cannot be changed on an open one."""

    address: str
    name: str
    socket: SocketPart
    interface: str | None = None
    freebind: bool = False
    leaving: bool = False


@dataclass(frozen=True, slots=True)
class PassedPart:
    """A socket that the service manager passed."""

    name: str
    fd: int

    def __post_init__(self) -> None:
        _descriptor(self.fd)


@dataclass(frozen=True, slots=True)
class HistogramPart:
    """Counts by upper bound, one more for what is above them all, and the sum in micro-units."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: int

    def __post_init__(self) -> None:
        if len(self.counts) != len(self.bounds) + 1:
            raise ValueError("a histogram has one count more than bounds")
        if any(math.isnan(bound) for bound in self.bounds):
            raise ValueError("a bound is a number")
        for count in (*self.counts, self.total):
            _within("a count", count, 0)


@dataclass(frozen=True, slots=True)
class TallyPart:
    """Counters by name, because the next version may keep them elsewhere; `listeners` has every label used so far, in order."""

    listeners: tuple[str, ...] = ()
    counts: dict[str, int] = field(default_factory=dict)
    histograms: dict[str, HistogramPart] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for count in self.counts.values():
            _within("a count", count, 0)


@dataclass(frozen=True, slots=True)
class MoldPart:
    """The mold that was started from the new code, and the version that it says it has."""

    pid: int
    version: str


@dataclass(frozen=True, slots=True)
class StreamsPart:
    """The pipes to the logger, both ends; descriptor 2 is the log's stream itself."""

    own: int
    own_reader: int
    output: int
    output_reader: int


@dataclass(frozen=True, slots=True)
class StateDocument:
    """Everything. `settings`, `people` and `warnings` are the trial's verdict, in the words of the new code; times are CLOCK_MONOTONIC."""

    file: str | None
    generation: int
    started_at: float
    last_session: int
    # Of open files, soft and hard, as they were before the master raised its own (getrlimit(2): -1 is none).
    limits: tuple[int, ...]
    listeners: tuple[ListenerPart, ...]
    control: SocketPart
    control_setting: str | None
    # The file in which workers of a version before pages of their own have theirs.
    activity: int
    phase: int
    children: tuple[ChildPart, ...]
    tally: TallyPart
    format: int = FORMAT
    version: str = __version__
    settings: dict[str, Any] = field(default_factory=dict)
    people: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    passed: tuple[PassedPart, ...] = ()
    metrics: SocketPart | None = None
    metrics_address: str | None = None
    requester: int | None = None
    lingering: tuple[int, ...] = ()
    mold: MoldPart | None = None
    streams: StreamsPart | None = None

    def __post_init__(self) -> None:
        _within("a generation", self.generation, 1, (1 << 32) - 2)
        _within("a time", self.started_at, 0)
        _within("a session", self.last_session, 0)
        if len(self.limits) != 2:
            raise ValueError("limits are soft and hard")
        for fd in self._descriptors():
            _descriptor(fd)
        _unique("slot", (child.slot for child in self.children))
        _unique("pid", (child.pid for child in self.children))
        _unique("session", (child.session.id for child in self.children if child.session is not None))
        _unique("descriptor", self._descriptors())
        passed = {each.fd for each in self.passed}
        for listener in self.listeners:
            if listener.socket.lent != (listener.socket.fd in passed):
                raise ValueError(f"descriptor {listener.socket.fd} is either passed or not")

    def _descriptors(self) -> Iterator[int]:
        yield from (self.activity, self.phase, self.control.fd)
        yield from (each.fd for each in self.passed)
        yield from (listener.socket.fd for listener in self.listeners if not listener.socket.lent)
        yield from (fd for child in self.children for fd in (child.channel, child.page) if fd is not None)
        yield from self.lingering
        yield from (part.fd for part in (self.metrics,) if part is not None)
        yield from (fd for fd in (self.requester,) if fd is not None)
        if self.streams is not None:
            yield from (self.streams.own, self.streams.own_reader, self.streams.output, self.streams.output_reader)

    def descriptors(self) -> set[int]:
        """Return every descriptor that the document names."""
        return set(self._descriptors())


def _unique(what: str, values: Iterator[int]) -> None:
    twice = [value for value, count in Counter(values).items() if count > 1]
    if twice:
        raise ValueError(f"{what} {twice[0]} is there twice")


def write(state: StateDocument) -> bytes:
    """Return the document's bytes."""
    return json.dumps(state, default=_fields).encode()


def _fields(part: Any) -> dict[str, Any]:
    # Not `asdict`, which copies everything once more: newcomers are waiting.
    return {name: getattr(part, name) for name in part.__slots__}


def read(data: bytes) -> StateDocument:
    """Return what a document says. Raises StateError."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise StateError(f"the state document is no JSON: {error}") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        is_one = isinstance(found, dict) and "format" in found
        what = f"has format {found['format']!r}" if is_one else "has no format"
        raise StateError(f"the state document {what}, and poold {__version__} understands format {FORMAT}")
    try:
        state: StateDocument = record(StateDocument, found)
    except MalformedError as error:
        raise StateError(f"the state document cannot be understood: {error}") from error
    return state
