"""The settings: each is declared here, once, as a field of a frozen dataclass.

The type, the default and the annotations (`poold.settings.annotations`) of a field are all that is
said of a setting. From them follow what the judging process accepts and what `poold check` says
(`schema`, `fields`), what `poold check --print` writes (`toml`), and what `of_document` reads. A
test compares poold.toml with them.

The master holds a `Config` whose values have been judged. The judging process sends one as a JSON
document (`document`), so the master needs no pydantic.
"""

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Annotated, Any

from poold.address import Address, Scheme
from poold.from_json import MalformedError, from_json
from poold.settings.annotations import (
    WHOLE_MAX,
    YEAR,
    Hint,
    Key,
    Range,
    Schemes,
    Unit,
    is_filled,
    is_handler,
    is_interface,
    is_label,
    is_tcp,
    settings_of,
)
from poold.words import LISTENERS_MAX

DEFAULT_NAME = "tcp://127.0.0.1:7777"
DEFAULT_ADDRESS = Address.parse(DEFAULT_NAME)
DEFAULT_METRICS = Address.parse("tcp://127.0.0.1:9777")
CHILDREN_MAX = 65536
MESSAGE_BYTES_MAX = 1024

# The kernel's limits: MAX_TCP_KEEPIDLE, and an int of milliseconds (tcp(7), TCP_USER_TIMEOUT).
KEEPALIVE_MAX = 32767.0
USER_TIMEOUT_MAX = 2147483.0

ACCOUNT = Hint("a name, in quotes", is_filled)
FOLDER = Hint("the path of a folder", is_filled)
DEADLINE = Range(0, YEAR, above=True)
# poold sets these options after accept(), so they apply to a socket of the service manager too.
CONNECTED = Schemes((Scheme.TCP, Scheme.SYSTEMD))


class CommandStyle(StrEnum):
    """How a command gets its connection: on 0 and 1, or as descriptor 3 with LISTEN_FDS."""

    INETD = "inetd"
    SYSTEMD = "systemd"


class WhenFull(StrEnum):
    """What a client meets at the cap: a queue, or a message and the end of the connection."""

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
    """What is served, and as which user. Exactly one of `handler` and `command` is set."""

    handler: Annotated[str | None, Hint('"module:object", such as "mypackage.chat:serve"', is_handler)] = "poold.handlers.chat:serve"
    command: Annotated[tuple[str, ...] | None, Hint("a text, in quotes", is_filled), Range(1)] = None
    command_style: CommandStyle = CommandStyle.INETD
    options: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    path: Annotated[tuple[str, ...], FOLDER] = (".",)
    user: Annotated[str | None, ACCOUNT] = None
    group: Annotated[str | None, ACCOUNT] = None
    groups: Annotated[tuple[str, ...] | None, ACCOUNT] = None
    umask: Annotated[int, Unit.OCTAL] = 0o077
    working_directory: Annotated[str, FOLDER] = "/"


@dataclass(frozen=True, slots=True)
class Listener:
    """One place to listen at. A setting without a meaning for the address has the default."""

    address: Address = DEFAULT_ADDRESS
    name: Annotated[str, Hint("1 to 128 bytes of printable text", is_label)] = DEFAULT_NAME
    backlog: Annotated[int, Range(1), Schemes((Scheme.TCP, Scheme.UNIX))] = 1024
    mode: Annotated[int, Unit.OCTAL, Schemes((Scheme.UNIX,))] = 0o660
    owner: Annotated[str | None, ACCOUNT, Schemes((Scheme.UNIX,))] = None
    group: Annotated[str | None, ACCOUNT, Schemes((Scheme.UNIX,))] = None
    keepalive: Annotated[float, Unit.SECONDS, Range(0, KEEPALIVE_MAX), CONNECTED] = 60.0
    user_timeout: Annotated[float, Unit.SECONDS, Range(0, USER_TIMEOUT_MAX), CONNECTED] = 90.0
    nodelay: Annotated[bool, CONNECTED] = True
    freebind: Annotated[bool, Schemes((Scheme.TCP,))] = False
    interface: Annotated[str | None, Hint("the name of a network interface", is_interface), Schemes((Scheme.TCP,))] = None


@dataclass(frozen=True, slots=True)
class Pool:
    """How many workers there are, and how long one lives.

    Spares count as workers, so the mold clones no spare beyond `max_children`.
    """

    max_children: Annotated[int, Range(1, CHILDREN_MAX)] = 256
    min_spare: Annotated[int, Range(0, CHILDREN_MAX)] = 4
    max_spare: Annotated[int, Range(0, CHILDREN_MAX)] = 16
    connections_per_child: Annotated[int, Range(0, WHOLE_MAX)] = 1
    when_full: WhenFull = WhenFull.WAIT
    refuse_message: Annotated[
        str, Hint(f"a text of at most {MESSAGE_BYTES_MAX} bytes", lambda text: len(text.encode()) <= MESSAGE_BYTES_MAX)
    ] = ""
    preload: bool = True


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Deadlines."""

    startup: Annotated[float, Unit.SECONDS, DEADLINE] = 10.0
    import_: Annotated[float, Unit.SECONDS, DEADLINE, Key("import")] = 60.0
    drain: Annotated[float, Unit.SECONDS, Range(0, YEAR)] = 30.0
    kill: Annotated[float, Unit.SECONDS, DEADLINE] = 5.0


@dataclass(frozen=True, slots=True)
class Metrics:
    """Where the exporter listens; None means that there is no exporter."""

    listen: Annotated[Address | None, Hint('tcp://HOST:PORT, or "" for none', is_tcp)] = DEFAULT_METRICS


@dataclass(frozen=True, slots=True)
class Control:
    """The control socket; for None, `poold.settings.file.control_path` chooses the path."""

    socket: Annotated[str | None, Hint("the path of a socket", is_filled)] = None


@dataclass(frozen=True, slots=True)
class Log:
    """What is logged, and in which format."""

    format: LogFormat = LogFormat.TEXT
    level: LogLevel = LogLevel.INFO


@dataclass(frozen=True, slots=True)
class Config:
    """All settings. `poold.settings.judge` makes relative paths absolute."""

    server: Server = Server()
    listeners: Annotated[tuple[Listener, ...], Key("listener"), Range(0, LISTENERS_MAX)] = (Listener(),)
    pool: Pool = Pool()
    timeouts: Timeouts = Timeouts()
    metrics: Metrics = Metrics()
    control: Control = Control()
    log: Log = Log()


@dataclass(frozen=True, slots=True)
class People:
    """Identities for `poold.sandbox.become_identity`, and the variables that come with the user.

    The mold and the workers have the identity `workers`, the exporter has `helper`. None stands for
    the master's own.
    """

    workers: dict[str, Any] | None
    helper: dict[str, Any] | None
    variables: dict[str, str]


def keys(table: object) -> dict[str, str]:
    """Return the names of a table's fields, each with the key in the file."""
    return {setting.name: setting.key for setting in settings_of(type(table))}


def document(config: Config) -> dict[str, Any]:
    """Return settings as JSON gives them back. `of_document` reads an equal Config."""
    return asdict(config, dict_factory=lambda items: {name: _json(value) for name, value in items})


def _json(value: Any) -> Any:
    if isinstance(value, Address):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def of_document(tables: dict[str, Any]) -> Config:
    """Return the settings that `document` wrote down. Raises ValueError for anything else.

    A key that is missing, or that this version does not know, is a ValueError too. A poold of
    another version has judged these settings, and this version would apply other ones.
    """
    try:
        config: Config = from_json(Config, tables)
    except MalformedError as error:
        raise ValueError(str(error)) from error
    if document(config) != tables:
        raise ValueError("the settings are in the words of another version")
    return config
