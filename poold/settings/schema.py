"""The schema of the settings: tables as TOML has them go in, one frozen `Config` comes out, and a plain one for the master (`settled`).

Owns the names, ranges and defaults of poold.toml. It must never open a file, ask the network or the account database: what
depends on the machine is `poold.settings.preflight`'s. A `Config` obeys every rule that can be told from the settings alone, so
whoever holds one need not check again.

A broken rule is a `pydantic.ValidationError` in the operator's language; `poold.settings.file` adds key and line. Because the
texts are for TOML, the models take what TOML can write: `mode="0660"`, not 0o660, and `**{"import": 60}`.
"""

from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from poold.address import Address, Scheme
from poold.settings import config, fields
from poold.settings.config import CommandStyle, LogFormat, LogLevel, WhenFull
from poold.settings.fields import Fault, refuse

DEFAULT_HANDLER = "poold.handlers.chat:serve"
DEFAULT_ADDRESS = "tcp://127.0.0.1:7777"
DEFAULT_METRICS = "tcp://127.0.0.1:9777"
LISTENERS_MAX = 64
CHILDREN_MAX = 65536
MESSAGE_BYTES_MAX = 1024

# The kernel's own ceilings: MAX_TCP_KEEPIDLE, and an int of milliseconds (tcp(7), TCP_USER_TIMEOUT).
KEEPALIVE_MAX = 32767.0
USER_TIMEOUT_MAX = 2147483.0

# Which keys of a listener mean something for which scheme. What is set after accept() serves an inherited socket too.
APPLIES = {
    "backlog": (Scheme.TCP, Scheme.UNIX),
    "mode": (Scheme.UNIX,),
    "owner": (Scheme.UNIX,),
    "group": (Scheme.UNIX,),
    "keepalive": (Scheme.TCP, Scheme.SYSTEMD),
    "user_timeout": (Scheme.TCP, Scheme.SYSTEMD),
    "nodelay": (Scheme.TCP, Scheme.SYSTEMD),
    "freebind": (Scheme.TCP,),
    "interface": (Scheme.TCP,),
}


_ACCOUNT = fields.text("a name, in quotes", fields.is_filled)
_FOLDER = "the path of a folder"


class _Table(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Server(_Table):
    """What is served, and as whom. Exactly one of `handler` and `command` is set; `umask` is a number."""

    handler: Annotated[str | None, fields.text('"module:object", such as "mypackage.chat:serve"', fields.is_handler)] = DEFAULT_HANDLER
    command: Annotated[tuple[str, ...] | None, fields.texts("a text, in quotes", fields.is_filled, empty=False)] = None
    command_style: Annotated[CommandStyle, fields.choice(CommandStyle)] = CommandStyle.INETD
    options: Annotated[dict[str, Any], fields.OPTIONS] = {}
    environment: Annotated[dict[str, str], fields.ENVIRONMENT] = {}
    path: Annotated[tuple[str, ...], fields.texts(_FOLDER, fields.is_filled)] = (".",)
    user: Annotated[str | None, _ACCOUNT] = None
    group: Annotated[str | None, _ACCOUNT] = None
    groups: Annotated[tuple[str, ...] | None, fields.texts("a name, in quotes", fields.is_filled)] = None
    umask: Annotated[int, fields.OCTAL] = 0o077
    working_directory: Annotated[str, fields.text(_FOLDER, fields.is_filled)] = "/"

    @model_validator(mode="before")
    @classmethod
    def _command_replaces_handler(cls, table: object) -> object:
        if isinstance(table, dict) and table.get("command") is not None and "handler" not in table:
            return {**table, "handler": None}
        return table

    @model_validator(mode="after")
    def _serves_one_thing(self) -> Self:
        if self.handler is not None and self.command is not None:
            refuse([Fault(("command",), "cannot be written beside handler: keep one of the two", ("handler",))])
        if self.handler is None and self.command is None:
            refuse([Fault(("handler",), "must be written, or command in its place")])
        return self


class Listener(_Table):
    """One place to listen at. Durations are seconds; keys that mean nothing for the scheme hold their default."""

    address: Annotated[Address, fields.ADDRESS] = Address.parse(DEFAULT_ADDRESS)
    name: Annotated[str, fields.text("1 to 128 bytes of printable text", fields.is_label)] = DEFAULT_ADDRESS
    backlog: Annotated[int, fields.whole(1)] = 1024
    mode: Annotated[int, fields.OCTAL] = 0o660
    owner: Annotated[str | None, _ACCOUNT] = None
    group: Annotated[str | None, _ACCOUNT] = None
    keepalive: Annotated[float, fields.duration(high=KEEPALIVE_MAX)] = 60.0
    user_timeout: Annotated[float, fields.duration(high=USER_TIMEOUT_MAX)] = 90.0
    nodelay: Annotated[bool, fields.FLAG] = True
    freebind: Annotated[bool, fields.FLAG] = False
    interface: Annotated[str | None, fields.text("the name of a network interface", fields.is_interface)] = None

    @model_validator(mode="before")
    @classmethod
    def _is_named_by_its_address(cls, table: object) -> object:
        if isinstance(table, dict) and "name" not in table and isinstance(table.get("address"), str | Address):
            return {**table, "name": str(table["address"])}
        return table

    @model_validator(mode="after")
    def _has_no_foreign_keys(self) -> Self:
        scheme = self.address.scheme
        refuse(
            Fault((key,), f"is for {' and '.join(f'{fitting}://' for fitting in schemes)} only; this listener is {scheme}://")
            for key, schemes in APPLIES.items()
            if key in self.model_fields_set and scheme not in schemes
        )
        return self


class Pool(_Table):
    """How many workers there are, and how long one lives. Spares beyond `max_children` are never forked."""

    max_children: Annotated[int, fields.whole(1, CHILDREN_MAX)] = 256
    min_spare: Annotated[int, fields.whole(0, CHILDREN_MAX)] = 4
    max_spare: Annotated[int, fields.whole(0, CHILDREN_MAX)] = 16
    connections_per_child: Annotated[int, fields.whole(0)] = 1
    when_full: Annotated[WhenFull, fields.choice(WhenFull)] = WhenFull.WAIT
    refuse_message: Annotated[
        str, fields.text(f"a text of at most {MESSAGE_BYTES_MAX} bytes", lambda text: len(text.encode()) <= MESSAGE_BYTES_MAX)
    ] = ""
    preload: Annotated[bool, fields.FLAG] = True

    @model_validator(mode="after")
    def _has_room_for_its_spares(self) -> Self:
        if self.max_spare < self.min_spare and "max_spare" in self.model_fields_set:
            refuse([Fault(("max_spare",), f"must be at least min_spare, which is {self.min_spare}, not {self.max_spare}", ("min_spare",))])
        if self.max_spare < self.min_spare:
            refuse([Fault(("min_spare",), f"must be at most max_spare, which is {self.max_spare} unless written, not {self.min_spare}")])
        return self


class Timeouts(_Table):
    """Deadlines, in seconds."""

    startup: Annotated[float, fields.duration(zero=False)] = 10.0
    import_: Annotated[float, fields.duration(zero=False)] = Field(default=60.0, alias="import")
    drain: Annotated[float, fields.duration(zero=True)] = 30.0
    kill: Annotated[float, fields.duration(zero=False)] = 5.0


class Metrics(_Table):
    """Where metrics are served; None is nowhere."""

    listen: Annotated[Address | None, fields.TCP_OR_NONE] = Address.parse(DEFAULT_METRICS)


class Control(_Table):
    """The control socket; None leaves the place to `poold.settings.control_path`."""

    socket: Annotated[str | None, fields.text("the path of a socket", fields.is_filled)] = None


class Log(_Table):
    """What is logged, and how it looks."""

    format: Annotated[LogFormat, fields.choice(LogFormat)] = LogFormat.TEXT
    level: Annotated[LogLevel, fields.choice(LogLevel)] = LogLevel.INFO


def _listeners(value: object) -> tuple[object, ...]:
    if not isinstance(value, list | tuple):
        raise fields.wrong("written [[listener]], with two brackets, once for each", value)
    if len(value) > LISTENERS_MAX:
        raise ValueError(f"is written {len(value)} times; at most {LISTENERS_MAX} are possible")
    return tuple(value) or (Listener(),)


class Config(_Table):
    """All settings. Relative paths are as written; `poold.settings.load` makes them absolute."""

    server: Server = Server()
    listeners: Annotated[tuple[Listener, ...], BeforeValidator(_listeners)] = Field(default=(Listener(),), alias="listener")
    pool: Pool = Pool()
    timeouts: Timeouts = Timeouts()
    metrics: Metrics = Metrics()
    control: Control = Control()
    log: Log = Log()

    @model_validator(mode="after")
    def _binds_no_address_twice(self) -> Self:
        addresses: dict[Address, int] = {}
        names: dict[str, int] = {}
        faults = []
        for index, listener in enumerate(self.listeners):
            if listener.address in addresses:
                faults.append(Fault(("listener", index, "address"), f"is that of listener[{addresses[listener.address]}] already"))
            elif listener.name in names:
                faults.append(Fault(("listener", index, "name"), f"is that of listener[{names[listener.name]}] already"))
            addresses.setdefault(listener.address, index + 1)
            names.setdefault(listener.name, index + 1)
        metrics = self.metrics.listen
        if metrics is not None and metrics.port and metrics in addresses:
            position = addresses[metrics]
            if "listen" in self.metrics.model_fields_set:
                faults.append(Fault(("metrics", "listen"), f"is that of listener[{position}] already"))
            else:
                faults.append(Fault(("listener", position - 1, "address"), "is that of metrics.listen, unless that is written too"))
        refuse(faults)
        return self


def settled(model: Config) -> config.Config:
    """Return judged settings as the master holds them."""

    def table(kind: type, values: _Table) -> Any:
        return kind(**{name: getattr(values, name) for name in type(values).model_fields})

    return config.Config(
        server=table(config.Server, model.server),
        listeners=tuple(table(config.Listener, listener) for listener in model.listeners),
        pool=table(config.Pool, model.pool),
        timeouts=table(config.Timeouts, model.timeouts),
        metrics=table(config.Metrics, model.metrics),
        control=table(config.Control, model.control),
        log=table(config.Log, model.log),
    )
