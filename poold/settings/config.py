"""The settings as the running master holds them: plain, frozen, and good.

Whoever judges settings (`poold.settings.schema`, with pydantic) does so in a process that ends; what crosses to the master is a JSON
document of a `Config`. Defaults are the schema's: here every value is written. A library that is needed once would otherwise stay in
the master for ever.
"""

from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any

from poold.address import Address

# Names that Python keeps to itself.
ALIASES = {"listeners": "listener", "import_": "import"}


class CommandStyle(StrEnum):
    """How a command gets its connection: on 0 and 1, or as descriptor 3 with LISTEN_FDS."""

    INETD = "inetd"
    SYSTEMD = "systemd"


class WhenFull(StrEnum):
    """What a client meets that finds every slot taken: a queue, or a message and the end."""

    WAIT = "wait"
    REFUSE = "refuse"


class LogFormat(StrEnum):
    """The shape of a log line."""

    TEXT = "text"
    JSON = "json"


class LogLevel(StrEnum):
    """The least level that is written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Server:
    """What is served, and as whom. Exactly one of `handler` and `command` is set; `umask` is a number."""

    handler: str | None
    command: tuple[str, ...] | None
    command_style: CommandStyle
    options: dict[str, Any]
    environment: dict[str, str]
    path: tuple[str, ...]
    user: str | None
    group: str | None
    groups: tuple[str, ...] | None
    umask: int
    working_directory: str


@dataclass(frozen=True, slots=True)
class Listener:
    """One place to listen at. Durations are seconds; keys that mean nothing for the scheme hold their default."""

    address: Address
    name: str
    backlog: int
    mode: int
    owner: str | None
    group: str | None
    keepalive: float
    user_timeout: float
    nodelay: bool
    freebind: bool
    interface: str | None


@dataclass(frozen=True, slots=True)
class Pool:
    """How many workers there are, and how long one lives. Spares beyond `max_children` are never forked."""

    max_children: int
    min_spare: int
    max_spare: int
    connections_per_child: int
    when_full: WhenFull
    refuse_message: str
    preload: bool


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Deadlines, in seconds."""

    startup: float
    import_: float
    drain: float
    kill: float


@dataclass(frozen=True, slots=True)
class Metrics:
    """Where metrics are served; None is nowhere."""

    listen: Address | None


@dataclass(frozen=True, slots=True)
class Control:
    """The control socket; None leaves the place to `poold.settings.file.control_path`."""

    socket: str | None


@dataclass(frozen=True, slots=True)
class Log:
    """What is logged, and how it looks."""

    format: LogFormat
    level: LogLevel


@dataclass(frozen=True, slots=True)
class Config:
    """All settings. Paths are absolute."""

    server: Server
    listeners: tuple[Listener, ...]
    pool: Pool
    timeouts: Timeouts
    metrics: Metrics
    control: Control
    log: Log


@dataclass(frozen=True, slots=True)
class People:
    """Identities for `poold.sandbox.become_identity` (None: as the master), and the variables that come with the user.

    `workers` is for mold and workers, `helper` for the exporter.
    """

    workers: dict[str, Any] | None
    helper: dict[str, Any] | None
    variables: dict[str, str]


def keys(table: object) -> dict[str, str]:
    """Return the names of a table's fields, each with what it is called in the file."""
    assert not isinstance(table, type)
    return {each.name: ALIASES.get(each.name, each.name) for each in fields(table)}  # type: ignore[arg-type] # any of the tables above


def document(config: Config) -> dict[str, Any]:
    """Return settings as what JSON can carry; `of_document` reads an equal Config from it."""
    tables = asdict(config)
    for listener in tables["listeners"]:
        listener["address"] = str(listener["address"])
    listen = tables["metrics"]["listen"]
    tables["metrics"]["listen"] = None if listen is None else str(listen)
    return tables


def of_document(tables: dict[str, Any]) -> Config:
    """Return the settings that `document` wrote down. Raises KeyError, TypeError or ValueError for anything else."""
    server, listen = tables["server"], tables["metrics"]["listen"]
    texts = {key: None if server[key] is None else tuple(server[key]) for key in ("command", "path", "groups")}
    pool, log = tables["pool"], tables["log"]
    return Config(
        server=Server(**{**server, **texts, "command_style": CommandStyle(server["command_style"])}),
        listeners=tuple(Listener(**{**listener, "address": Address.parse(listener["address"])}) for listener in tables["listeners"]),
        pool=Pool(**{**pool, "when_full": WhenFull(pool["when_full"])}),
        timeouts=Timeouts(**tables["timeouts"]),
        metrics=Metrics(None if listen is None else Address.parse(listen)),
        control=Control(**tables["control"]),
        log=Log(LogFormat(log["format"]), LogLevel(log["level"])),
    )
